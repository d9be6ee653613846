"""How mutation campaigns judge: what counts as a kill, what as a survivor, and what makes a campaign worthless."""

from __future__ import annotations

from pathlib import Path

import pytest

import fastpaxos_core
from fastpaxos.errors import ConfigError
from fastpaxos.testing.mutants.campaign import Runner, select, source_root
from fastpaxos.testing.mutants.catalogue import CANARY, MUTANTS, find
from fastpaxos.testing.mutants.document import to_document, to_table
from fastpaxos.testing.mutants.model import Edit
from fastpaxos.testing.mutants.report import Campaign, Outcome, percentile
from fastpaxos.testing.mutants.source import MutationError, mutated_sources, write_sources

ROOT = Path(__file__).parents[2]
NODE = "tests/test_it.py::test_it"
TESTS = """
import os

def test_it():
    assert os.environ["FASTPAXOS_MUTANT"] != "7", "seen"

def test_always():
    assert False, "anyway"
"""


def killed(number: int, layer: str = "sim", base_seed: int = 0, seeds: int = 1) -> Outcome:
    return Outcome((number,), layer, base_seed, "killed", "agreement", seeds, base_seed + seeds - 1)


def survived(number: int, layer: str = "sim", base_seed: int = 0) -> Outcome:
    return Outcome((number,), layer, base_seed, "survived", seeds=1000)


CLEAN = Outcome((), "sim", 0, "survived", seeds=50)


def campaign(outcomes: list[Outcome], base_seeds: int = 1) -> Campaign:
    numbers = dict.fromkeys(outcome.active for outcome in outcomes if outcome.active)
    return Campaign([find(number) for number in numbers], outcomes, 1.0, base_seeds, 1000)


def test_numbers_name_one_mutant_each() -> None:
    assert len({mutant.number for mutant in MUTANTS}) == len(MUTANTS)


def test_all_killed_is_success() -> None:
    found = campaign([CLEAN, killed(2), survived(3), killed(3, "tests/x.py::test_y"), killed(CANARY)])
    assert (found.exit_code, found.survivors, found.problems) == (0, [], [])


def test_a_survivor_is_a_failure() -> None:
    found = campaign([CLEAN, killed(2), survived(3)])
    assert found.exit_code == 1
    assert [each.active for each in found.survivors] == [(3,)]


def test_every_base_seed_must_kill() -> None:
    assert campaign([CLEAN, killed(2), killed(2, base_seed=1_000_000)], 2).exit_code == 0
    assert campaign([CLEAN, killed(2), survived(2, base_seed=1_000_000)], 2).exit_code == 1


def test_a_control_run_that_fails_spoils_the_campaign() -> None:
    found = campaign([Outcome((), "sim", 0, "killed", "agreement", error="slot 3", replay="run it"), killed(2)])
    assert found.exit_code == 1
    assert "slot 3" in found.problems[0]
    assert "run it" in found.problems[0]


def test_a_canary_that_nobody_hears_spoils_the_campaign() -> None:
    assert "canary" in campaign([CLEAN, survived(CANARY)]).problems[0]


def test_what_is_argued_equivalent_may_survive() -> None:
    number = next(mutant.number for mutant in MUTANTS if mutant.equivalent)
    assert campaign([CLEAN, survived(number)]).exit_code == 0
    assert number not in [each.active[0] for each in select(None)]
    assert [each.active for each in select([number, (2, 16)])] == [(number,), (2, 16)]


def test_the_table_and_the_mapping_say_who_killed_whom() -> None:
    outcomes = [CLEAN, *(killed(2, base_seed=k * 1_000_000, seeds=k + 1) for k in range(4)), survived(3)]
    found = campaign(outcomes, 4)
    mapping = found.to_mapping()
    assert (mapping["mutants"], mapping["killed"], mapping["survivors"]) == (2, 1, [(3,)])
    assert (mapping["seeds_to_kill_median"], mapping["seeds_to_kill_p95"]) == (2.5, 4)
    lines = to_table(found).splitlines()
    assert "sim: agreement | 2.5 | 4 |" in lines[2]
    assert "**survived**" in lines[3]
    assert "1 of 2 mutants and pairs were killed" in to_document(found, "make mutants")


def test_percentiles() -> None:
    assert percentile([], 95) is None
    assert percentile([7], 95) == 7
    assert percentile(list(range(1, 21)), 95) == 19
    assert percentile(list(range(1, 101)), 50) == 50


def test_a_snippet_must_stand_exactly_once(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text('"""A."""\n\nx = 1\ny = 1\n')
    assert "x = mutant(3)\n" in mutated_sources(tmp_path, [(3, Edit("a.py", "x = 1", "x = mutant(3)"))])["a.py"]
    for original in ("z = 1", " = 1"):
        with pytest.raises(MutationError, match="mutant 3"):
            mutated_sources(tmp_path, [(3, Edit("a.py", original, "x = mutant(3)"))])


def test_a_later_edit_sees_what_an_earlier_one_left(tmp_path: Path) -> None:
    (tmp_path / "a.pyx").write_text('"""A."""\n\nif a:\n    b\n')
    edits = [
        (3, Edit("a.pyx", "if a:", "if a and not MUTANT(3):")),
        (4, Edit("a.pyx", "not MUTANT(3):", "not MUTANT(3) and not MUTANT(4):")),
    ]
    text = mutated_sources(tmp_path, edits)["a.pyx"]
    assert "if a and not MUTANT(3) and not MUTANT(4):\n    b\n" in text
    assert 'cdef extern from "mutants.h" nogil:' in text


def test_what_did_not_change_is_not_written_again(tmp_path: Path) -> None:
    edits = [(2, find((2,)).edits[0])]
    assert write_sources(ROOT, tmp_path, edits) > 100
    assert write_sources(ROOT, tmp_path, edits) == 0
    assert "MUTANT(2)" in (tmp_path / "fastpaxos_core" / "state.pyx").read_text()
    assert write_sources(ROOT, tmp_path, []) == 1
    assert "MUTANT" not in (tmp_path / "fastpaxos_core" / "state.pyx").read_text()


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(TESTS)
    (tmp_path / "tests" / "test_broken.py").write_text("import nowhere_to_be_found\n")
    return Runner(tmp_path)


def test_a_kill_is_owed_to_the_mutant_or_invalid(runner: Runner) -> None:
    owed, not_seen = runner.run((7,), NODE), runner.run((8,), NODE)
    assert (owed.verdict, owed.checker, not_seen.verdict) == ("killed", NODE, "survived")
    assert "seen" in owed.error
    assert "FASTPAXOS_MUTANT=7" in owed.replay
    anyway = runner.run((7,), "tests/test_it.py::test_always")
    confirmed = runner.confirm([owed, not_seen, anyway])
    assert confirmed[:2] == [owed, not_seen]
    assert (confirmed[2].verdict, "without the mutant" in confirmed[2].error) == ("invalid", True)


def test_a_test_that_cannot_be_collected_kills_nothing(runner: Runner) -> None:
    assert runner.run((7,), "tests/test_broken.py").verdict == "invalid"


def test_the_source_tree_is_found_and_an_installed_package_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fastpaxos_core, "__file__", str(ROOT / "build" / "checked" / "lib" / "fastpaxos_core" / "x.py"))
    assert source_root() == ROOT
    monkeypatch.setattr(fastpaxos_core, "__file__", str(tmp_path / "fastpaxos_core" / "__init__.py"))
    with pytest.raises(ConfigError, match="source tree"):
        source_root()
