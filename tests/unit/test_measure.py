"""What a benchmark report says about the machine, the software and the source tree."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from fastpaxos.cli import measure
from fastpaxos.cli.measure import cpu_model, describe_machine, event_loop, file_system, git_commit, version_of

GIT = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]


def test_setup_names_machine_software_and_build(tmp_path: Path) -> None:
    setup = describe_machine(tmp_path)
    assert {"date", "cpu", "cores", "memory_bytes", "system", "event_loop", "versions", "build", "commit"} <= set(setup)
    versions = setup["versions"]
    assert isinstance(versions, dict)
    assert set(versions) == {"python", "fastpaxos", "cython", "numpy", "uvloop", "msgpack"}
    assert all(version is None or version[0].isdigit() for version in versions.values())
    assert setup["cores"] == len(os.sched_getaffinity(0))
    assert isinstance(setup["file_system"], str)
    assert "file_system" not in describe_machine()


def test_file_system_is_that_of_the_mount(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device = os.stat(tmp_path).st_dev
    lines = ["22 1 0:99 / /other rw shared:1 - tmpfs none rw"]
    lines += [f"23 1 {os.major(device)}:{os.minor(device)} / /here rw master:1 shared:2 - xfs /dev/disk rw"]
    monkeypatch.setattr(measure.Path, "read_text", lambda path: "\n".join(lines))
    assert file_system(tmp_path) == "xfs"
    lines.pop()
    assert file_system(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("processor : 0\nmodel name\t: Some CPU 9000\nmodel name\t: Some CPU 9000\n", "Some CPU 9000"),
        ("processor : 0\nModel\t\t: Small Board Rev 1.2\n", "Small Board Rev 1.2"),
        ("processor : 0\n", "fallback"),
    ],
)
def test_cpu_model(text: str, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure.Path, "read_text", lambda path: text)
    monkeypatch.setattr(measure.platform, "processor", lambda: "fallback")
    assert cpu_model() == model


def test_event_loop_is_the_one_that_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "version_of", lambda name: "1.2.3")
    assert event_loop() == "uvloop 1.2.3"
    monkeypatch.setattr(measure, "version_of", lambda name: None)
    assert event_loop().startswith("asyncio 3.")


def test_what_is_not_installed_has_no_version() -> None:
    assert version_of("numpy") is not None
    assert version_of("no-such-distribution-is-installed") is None


def test_commit_of_a_source_tree(tmp_path: Path) -> None:
    assert git_commit(tmp_path) is None

    def git(*arguments: str) -> str:
        done = subprocess.run([*GIT, "-C", str(tmp_path), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "--quiet")
    assert git_commit(tmp_path) is None
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "--quiet", "--message", "first")
    commit = git("rev-parse", "HEAD")
    (tmp_path / "untracked").write_text("build output")
    assert git_commit(tmp_path) == commit
    (tmp_path / "file").write_text("two")
    assert git_commit(tmp_path) == f"{commit} (dirty)"


def test_a_tree_inside_another_repository_is_not_taken_for_it(tmp_path: Path) -> None:
    subprocess.run([*GIT, "-C", str(tmp_path), "init", "--quiet"], check=True)
    installed = tmp_path / ".venv" / "lib"
    installed.mkdir(parents=True)
    assert git_commit(installed) is None


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", "")
    assert git_commit(tmp_path) is None
