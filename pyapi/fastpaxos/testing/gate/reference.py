"""The code that the baseline was taken from, when its counts are of another toolchain: checked out, built, counted.

The reference is the last commit that changed the baseline file: it holds the code whose counts the file has. No commit
id is written down that a rebase or a squash could make wrong.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

__all__ = ["NoReferenceError", "check_out", "reference_commit", "root_of"]


class NoReferenceError(Exception):
    """There is nothing to compare with; the text says why, and what to do."""


def git(folder: Path, *arguments: str) -> bytes:
    """Run git and return what it prints. Raises NoReferenceError."""
    try:
        run = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, check=False)
    except OSError as error:
        raise NoReferenceError(f"git does not run: {error}") from error
    if run.returncode:
        raise NoReferenceError(f"git {arguments[0]} failed: {run.stderr.decode(errors='replace').strip()}")
    return run.stdout


def root_of(folder: Path) -> Path:
    """Return the top of the checkout that a folder is in."""
    return Path(git(folder, "rev-parse", "--show-toplevel").decode().strip())


def reference_commit(baseline: Path) -> str:
    """Return the last commit that changed the baseline file.

    Raises NoReferenceError when there is none, or when the clone is shallow and its history may end too early: then its
    oldest commit looks as if it had written every file, and the code would be compared with itself.
    """
    folder = baseline.resolve().parent
    commit = git(folder, "log", "-1", "--format=%H", "--", baseline.name).decode().strip()
    if not commit:
        raise NoReferenceError(f"{baseline} was never committed: commit it with the code that it was taken from")
    shallow = Path(git(folder, "rev-parse", "--git-path", "shallow").decode().strip())
    shallow = shallow if shallow.is_absolute() else folder / shallow
    if shallow.exists() and commit in shallow.read_text().split():
        raise NoReferenceError(
            "the history of this clone ends before the baseline was taken: run `git fetch --unshallow`"
        )
    return commit


def check_out(root: Path, commit: str, tree: Path) -> None:
    """Write the files of a commit into the folder `tree`."""
    with tarfile.open(fileobj=io.BytesIO(git(root, "archive", "--format=tar", commit))) as archive:
        archive.extractall(tree, filter="data")
