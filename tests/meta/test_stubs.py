"""Every compiled module has its stub and its docstring; stubtest compares the two in `make check`."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

CORE = Path(__file__).parents[2] / "fastpaxos_core"
SOURCES = sorted(CORE.glob("*.pyx"))


def test_there_are_sources() -> None:
    assert len(SOURCES) > 10


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_module_has_a_stub_and_a_docstring(source: Path) -> None:
    assert source.with_suffix(".pyi").is_file()
    assert (importlib.import_module(f"fastpaxos_core.{source.stem}").__doc__ or "").strip()


def test_no_stub_is_left_behind() -> None:
    left_behind = [stub.name for stub in CORE.glob("*.pyi") if not stub.with_suffix(".pyx").exists()]
    assert left_behind == []
