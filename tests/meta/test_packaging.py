"""What a wheel and a source distribution contain: what users need, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "fastpaxos_core"
COPIED = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md")
COPIED += ("Makefile",)


@pytest.fixture(scope="module")
def source_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree whose only compiled module is the smallest one: the contents are decided by suffix."""
    tree = tmp_path_factory.mktemp("packaging") / "tree"
    ignored = shutil.ignore_patterns("*.so", "*.c", "*.html", "__pycache__")
    for folder in ("fastpaxos_core", "pyapi"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=ignored)
    for name in COPIED:
        shutil.copy(ROOT / name, tree / name)
    for source in (tree / "fastpaxos_core").glob("*.pyx"):
        if source.stem != "build":
            source.write_text(f'"""Stands in for {source.stem}."""\n')
    for declaration in (tree / "fastpaxos_core").glob("*.pxd"):
        declaration.write_text("")
    return tree


def run_build(tree: Path, *arguments: str) -> None:
    # Warnings of the build backend about itself are not this project's.
    environment = {**os.environ, "FASTPAXOS_BUILD": "release", "CFLAGS": "-O0", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-P", "-m", "build", "--no-isolation", "--outdir", str(tree / "dist"), *arguments]
    result = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]


@pytest.fixture(scope="module")
def sdist_names(source_tree: Path) -> set[str]:
    run_build(source_tree, "--sdist")
    (archive,) = (source_tree / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as file:
        return {name.split("/", 1)[1] for name in file.getnames() if "/" in name}


def test_sdist_has_every_source_and_nothing_built(sdist_names: set[str]) -> None:
    suffixes = {".pyx", ".pxd", ".h", ".pyi"}
    sources = {f"fastpaxos_core/{path.name}" for path in CORE.iterdir() if path.suffix in suffixes}
    sources |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "pyapi").rglob("*.py")}
    assert sources - sdist_names == set()
    assert {"LICENSE", "README.md", "setup.py", "pyproject.toml", "fastpaxos_core/py.typed"} <= sdist_names
    assert {name for name in sdist_names if name.endswith((".c", ".so", ".pyc", ".html"))} == set()
    assert {name for name in sdist_names if name.startswith(("build/", ".venv", ".git", "data/"))} == set()


@pytest.fixture(scope="module")
def slim_wheel_names(source_tree: Path) -> set[str]:
    """Names in a wheel of the tree with one module compiled, built out of the way of the sdist."""
    tree = source_tree.parent / "slim"
    shutil.copytree(source_tree, tree, ignore=shutil.ignore_patterns("dist", "build", "*.egg-info"))
    for source in (tree / "fastpaxos_core").glob("*.pyx"):
        if source.stem != "build":
            source.unlink()
    run_build(tree, "--wheel")
    (archive,) = (tree / "dist").glob("*.whl")
    with zipfile.ZipFile(archive) as file:
        return set(file.namelist())


def test_wheel_has_the_packages_and_nothing_else(slim_wheel_names: set[str]) -> None:
    tops = {name.split("/")[0] for name in slim_wheel_names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "fastpaxos",
        "fastpaxos_core",
        "fastpaxos_pytest",
    }
    python = {path.relative_to(ROOT / "pyapi").as_posix() for path in (ROOT / "pyapi").rglob("*.py")}
    stubs = {f"fastpaxos_core/{path.name}" for path in CORE.glob("*.pyi")}
    typed = {"fastpaxos/py.typed", "fastpaxos_core/py.typed", "fastpaxos_core/__init__.py"}
    assert (python | stubs | typed) - slim_wheel_names == set()
    allowed = (".py", ".pyi", ".so", "py.typed")
    packages = {name for name in slim_wheel_names if ".dist-info/" not in name}
    assert {name for name in packages if not name.endswith(allowed)} == set()


def test_wheel_offers_the_command_and_the_licence(slim_wheel_names: set[str]) -> None:
    information = {name.split("/", 1)[1] for name in slim_wheel_names if ".dist-info/" in name}
    assert {"entry_points.txt", "licenses/LICENSE", "METADATA"} <= information
