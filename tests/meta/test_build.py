"""The compiled core is what runs, and it is the build that this run of the tests is meant for."""

from __future__ import annotations

import importlib
import importlib.machinery
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastpaxos
import fastpaxos_core

ROOT = Path(__file__).parents[2]
MODULES = sorted(path.stem for path in (ROOT / "fastpaxos_core").glob("*.pyx"))
EXPECTED_BUILD = os.environ.get("FASTPAXOS_TEST_EXPECT_BUILD", "release")


@pytest.mark.parametrize("name", MODULES)
def test_module_is_compiled_and_lies_beside_the_package(name: str) -> None:
    module = importlib.import_module(f"fastpaxos_core.{name}")
    assert module.__file__ is not None
    assert isinstance(module.__loader__, importlib.machinery.ExtensionFileLoader)
    assert Path(module.__file__).parent == Path(fastpaxos_core.__file__).parent


def test_build_is_the_expected_one() -> None:
    information = fastpaxos_core.build_info()
    assert information["profile"] == EXPECTED_BUILD
    assert information["checked"] == (EXPECTED_BUILD in ("checked", "asan"))
    assert tuple(map(int, information["cython"].split("."))) >= (3, 3, 0)


def test_both_packages_come_from_the_place_of_that_build() -> None:
    core = Path(fastpaxos_core.__file__).resolve().parents[1]
    package = Path(fastpaxos.__file__ or "").resolve().parents[1]
    if EXPECTED_BUILD == "release":
        assert (core, package) == (ROOT, ROOT / "pyapi")
    else:
        assert core == package == ROOT / "build" / EXPECTED_BUILD / "lib"


def test_child_processes_get_the_same_build() -> None:
    from fastpaxos.cli.cluster_process import child_environment

    program = "import fastpaxos, fastpaxos_core as core; "
    program += "print(core.build_info()['profile'], core.__file__, fastpaxos.__file__)"
    command = [sys.executable, "-P", "-c", program]
    output = subprocess.run(command, env=child_environment(), cwd=ROOT, capture_output=True, text=True, check=True)
    assert output.stdout.split() == [EXPECTED_BUILD, fastpaxos_core.__file__, fastpaxos.__file__]


def test_missing_build_is_named(tmp_path: Path) -> None:
    (tmp_path / "fastpaxos_core").mkdir()
    source = Path(fastpaxos_core.__file__).read_text()
    (tmp_path / "fastpaxos_core" / "__init__.py").write_text(source)
    command = [sys.executable, "-P", "-c", "import fastpaxos_core"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    output = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert output.returncode == 1
    assert "not built" in output.stderr
    assert "make build" in output.stderr
