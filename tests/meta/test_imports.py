"""The direction of imports: the core knows nothing of clocks, chance, sockets, loops or the package above it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "fastpaxos_core"
PACKAGE = ROOT / "pyapi" / "fastpaxos"
FORBIDDEN_IN_CORE = {"asyncio", "datetime", "fastpaxos", "random", "secrets", "selectors", "socket", "ssl", "time"}
FORBIDDEN_IN_CORE |= {"uuid", "uvloop"}
# `import a.b as c, d`, `from a.b import c`, `cimport a`, `from a cimport b`, at any indentation.
CYTHON_IMPORT = re.compile(r"^\s*(?:from\s+(?P<source>[\w.]+)\s+c?import\b|c?import\s+(?P<names>[\w., ]+))", re.M)
SYSTEM_CALLS_ALLOWED_IN = {"journal_writer"}


def imported_roots(source: Path) -> set[str]:
    """The first names of all modules that a file imports."""
    text = source.read_text()
    roots: set[str] = set()
    if source.suffix == ".py":
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                roots |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                roots.add(str(node.module).split(".")[0])
        return roots
    for match in CYTHON_IMPORT.finditer(text):
        names = [match["source"]] if match["source"] else match["names"].split(",")
        roots |= {name.split(" as ")[0].strip().split(".")[0] for name in names}
    return roots


def core_sources() -> list[Path]:
    return [path for path in sorted(CORE.iterdir()) if path.suffix in {".py", ".pyx", ".pxd"}]


@pytest.mark.parametrize("source", core_sources(), ids=lambda path: path.name)
def test_core_imports_neither_the_package_nor_clock_chance_or_network(source: Path) -> None:
    assert not imported_roots(source) & FORBIDDEN_IN_CORE


@pytest.mark.parametrize("source", core_sources(), ids=lambda path: path.name)
def test_only_the_journal_writer_makes_system_calls(source: Path) -> None:
    if source.stem in SYSTEM_CALLS_ALLOWED_IN:
        return
    assert not {"os", "posix", "threading"} & imported_roots(source)
    assert not re.search(r"cimport\b.*\b(clock_gettime|gettimeofday|rand)\b|unistd|<time\.h>", source.read_text())


def test_the_import_pattern_sees_every_form() -> None:
    text = "import time\nfrom random import Random\n    cimport asyncio.events as e\n"
    text += "from socket cimport x\nimport a, ssl\n"
    found = {name for match in CYTHON_IMPORT.finditer(text) for name in match.groups() if name}
    assert found == {"time", "random", "asyncio.events as e", "socket", "a, ssl"}


def test_the_package_has_no_cython_of_its_own() -> None:
    assert [path for path in PACKAGE.rglob("*") if path.suffix in {".pyx", ".pxd", ".c"}] == []


@pytest.mark.parametrize("source", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_the_package_imports_click_and_rich_only_in_its_command_line(source: Path) -> None:
    roots = imported_roots(source)
    if "cli" not in source.parts:
        assert not roots & {"click", "rich"}
    assert not roots & {"pickle", "marshal", "shelve"}, "nothing on wire or disk is ever unpickled"
