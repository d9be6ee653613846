"""docs/spec and its checker fit together. TLC itself runs by `make spec`: it needs Java and minutes."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "spec"
SPEC = (FOLDER / "MultiPaxos.tla").read_text()
LINES_MAX = 400
FINISHED = """
Model checking completed. No error has been found.
2668537 states generated, 744074 distinct states found, 0 states left on queue.
The depth of the complete state graph search is 38.
"""
REFUTED = """
Error: Invariant SentIsDurable is violated.
Error: The behavior up to this point is:
State 1: <Initial predicate>
State 2: <Action line 20>
State 3: <Action line 30>
1,016 states generated, 512 distinct states found, 99 states left on queue.
"""


@pytest.fixture(scope="module")
def checker() -> ModuleType:
    name = "spec_check"
    description = importlib.util.spec_from_file_location(name, FOLDER / "check.py")
    assert description is not None
    assert description.loader is not None
    module = importlib.util.module_from_spec(description)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        description.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


def test_specification_stays_short() -> None:
    assert len(SPEC.splitlines()) <= LINES_MAX


def test_every_mutant_of_the_specification_is_checked_and_reported(checker: ModuleType) -> None:
    mutants = set(re.findall(r'\bIs\("(\w+)"\)', SPEC))
    assert len(mutants) >= 15
    assert set(checker.MUTANTS) == mutants
    reported = re.findall(r"^\| `(\w+)` \|", (FOLDER / "README.md").read_text(), re.M)
    assert sorted(reported) == sorted([*mutants, *(path.stem for path in FOLDER.glob("*.cfg"))])


def test_every_configuration_checks_every_invariant_without_a_mutant(checker: ModuleType) -> None:
    paths = sorted(FOLDER.glob("*.cfg"))
    assert paths
    constants = set(re.findall(r"^    (\w+),? +\\\*", SPEC.split("VARIABLES")[0], re.M))
    for path in paths:
        text = path.read_text()
        assert f"INVARIANTS {' '.join(checker.ALL)}\nPROPERTY PromiseNeverFalls" in text, path
        assert 'Mutant = "none"' in text, path
        assert set(re.findall(r"^    (\w+) = ", text, re.M)) == constants, path
    for name in (*checker.ALL, "PromiseNeverFalls"):
        assert re.search(rf"^{name} ==", SPEC, re.M), name


def test_configuration_of_a_mutant_names_every_constant(checker: ModuleType) -> None:
    constants = set(re.findall(r"^    (\w+),? +\\\*", SPEC.split("VARIABLES")[0], re.M))
    for mutant, (bounds, _) in checker.MUTANTS.items():
        text = bounds.config(mutant, checker.HARM)
        assert set(re.findall(r"^    (\w+) = ", text, re.M)) == constants
        assert f'Mutant = "{mutant}"' in text


def test_report_of_a_finished_run_is_read(checker: ModuleType) -> None:
    assert checker.parse_output(FINISHED) == checker.Outcome("", 0, 744074, 2668537, 38, True)


def test_report_of_a_refuted_run_is_read(checker: ModuleType) -> None:
    assert checker.parse_output(REFUTED) == checker.Outcome("SentIsDurable", 2, 512, 1016, 0, False)


def test_broken_promise_property_is_read(checker: ModuleType) -> None:
    text = REFUTED.replace("Invariant SentIsDurable is", "Action property line 9, col 5 to line 12 of module X is")
    assert checker.parse_output(text).violated == "PromiseNeverFalls"


@pytest.mark.parametrize("text", ["", "Error: Parsing or semantic analysis failed.", REFUTED.partition("Error")[0]])
def test_failed_run_is_no_result(checker: ModuleType, text: str) -> None:
    with pytest.raises(ValueError, match="TLC failed"):
        checker.parse_output(text)


def test_violation_is_bad_where_the_specification_should_hold(
    checker: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text, expected, good in ((REFUTED, False, False), (FINISHED, True, False), (REFUTED, True, True)):
        outcome = checker.parse_output(text)
        monkeypatch.setattr(checker, "run_tlc", lambda _config, _jar, outcome=outcome: outcome)
        assert checker.row("case", "all", "", Path(), expected=expected)["good"] is good


def test_surviving_mutant_fails_the_check(
    checker: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checker, "find_jar", Path)
    monkeypatch.setattr(checker, "run_tlc", lambda _config, _jar: checker.parse_output(FINISHED))
    monkeypatch.setattr(sys, "argv", ["check.py", "--only", next(iter(checker.MUTANTS)), "--json"])
    assert checker.main() == 1
    report = json.loads(capsys.readouterr().out)
    assert report["good"] is False
    assert report["rows"][0]["distinct_states"] == 744074


def test_missing_tools_are_named(
    checker: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checker, "find_jar", Path)
    monkeypatch.setattr(checker.shutil, "which", lambda _name: None)
    monkeypatch.setattr(sys, "argv", ["check.py"])
    assert checker.main() == 2
    assert "default-jre-headless" in capsys.readouterr().err


def test_unknown_name_is_refused(
    checker: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["check.py", "--only", "nothing_like_it"])
    with pytest.raises(SystemExit) as refusal:
        checker.main()
    assert refusal.value.code == 2
    assert "nothing_like_it: neither a .cfg nor a mutant" in capsys.readouterr().err
