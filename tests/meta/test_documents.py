"""README and docs: their links lead somewhere, their names exist, and the README's example runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\[[^\]]+\]\((?P<target>[^)\s]+)\)")
HEADING = re.compile(r"^#+ +(?P<title>.+?)\s*$", re.M)
RECIPE = re.compile(r"`make (?P<name>[a-z-]+)")
FILE_NAME = re.compile(r"`?(?P<path>(?:fastpaxos_core|pyapi|tests|docs|bench)/[\w./-]*\w\.(?:pyx|pxd|pyi|py|md|h))`?")
FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```", re.M | re.S)


def without_code(text: str) -> str:
    return FENCE.sub("", text)


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as code hosts make them."""
    titles = [match["title"].lower() for match in HEADING.finditer(without_code(path.read_text()))]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


def test_there_are_documents() -> None:
    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md"} <= {path.name for path in DOCUMENTS}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    broken = []
    for match in LINK.finditer(without_code(document.read_text())):
        target, _, anchor = match["target"].partition("#")
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path = (document.parent / target).resolve() if target else document
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(match["target"])
    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_files_and_recipes_exist(document: Path) -> None:
    text = document.read_text()
    assert sorted({match["path"] for match in FILE_NAME.finditer(text) if not (ROOT / match["path"]).exists()}) == []
    recipes = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.M))
    assert {match["name"] for match in RECIPE.finditer(text)} - recipes == set()


def test_every_recipe_of_the_makefile_is_explained() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.search(r"^\.PHONY: (.*)$", makefile, re.M)[1].split())  # type: ignore[index]
    assert phony == set(re.findall(r"^([a-z][a-z-]*):.*## ", makefile, re.M))


def readme_examples() -> list[str]:
    return [
        match["text"] for match in FENCE.finditer((ROOT / "README.md").read_text()) if match["language"] == "python"
    ]


def test_readme_example_runs_as_it_stands(tmp_path: Path) -> None:
    from fastpaxos.cli.cluster_process import child_environment, free_ports

    (example,) = readme_examples()
    # Only the ports are others, so that two runs of the tests do not meet.
    for readme_port, port in zip((7001, 7002, 7003), free_ports(3), strict=True):
        assert example.count(str(readme_port)) == 1
        example = example.replace(str(readme_port), str(port))
    program = tmp_path / "example.py"
    program.write_text(example)
    environment = {**child_environment(), "TMPDIR": str(tmp_path)}
    for variable in [name for name in os.environ if name.startswith("FASTPAXOS_") and "TEST" not in name]:
        del environment[variable]
    command = [sys.executable, "-W", "error", str(program)]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["b'2'", "1000", "b'1002'"]
    assert [path.name for path in tmp_path.iterdir()] == ["example.py"]
