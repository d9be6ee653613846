"""The catalogue of planted faults fits the sources, covers what it must, and is in no build but its own."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

import fastpaxos_core
from fastpaxos.testing.mutants.catalogue import CANARY, MUTANTS, NOT_APPLICABLE, PAIRS, all_edits, find
from fastpaxos.testing.mutants.model import NUMBER_MAX, Mutant
from fastpaxos.testing.mutants.rows import ROWS
from fastpaxos.testing.mutants.source import ENVIRONMENT_NAME, mutated_sources

ROOT = Path(__file__).parents[2]
SHIPPED = [
    path
    for folder in ("fastpaxos_core", "pyapi")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".pyx", ".pxd", ".h", ".pyi") and "mutants" not in path.parts
]
OPERATOR_FIRST = 1001
# Reconfiguration (5.6) and witnesses (5.14) are not there yet.
RULES = {f"5.{number}" for number in (1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13)}
GATES = {
    "Accepted",
    "Prepare",
    "Promise",
    "batch is journalled",
    "directory sync",
    "duplicate Accept",
    "durable ticket",
    "durable_index",
    "echo",
    "eviction",
    "founding record",
    "fsync",
    "fsync error",
    "held messages",
    "identity is durable",
    "one write at a time",
    "own vote",
    "promise is journalled",
    "sync before rename",
    "tail is written again",
    "ticket of Accepted",
    "ticket of held messages",
    "whole writes",
    "write error",
}


def number_of(mutant: Mutant) -> str:
    return str(mutant.number)


def test_every_edit_fits_the_sources() -> None:
    """Whoever changes a line that a fault is planted in must move the fault."""
    texts = mutated_sources(ROOT, all_edits())
    assert len(texts) > 20
    assert all((ROOT / file).read_text() != text for file, text in texts.items())


def test_numbers_are_unique_and_in_range() -> None:
    counts = Counter(mutant.number for mutant in MUTANTS)
    assert [number for number, count in counts.items() if count > 1] == []
    assert all(0 < number <= NUMBER_MAX for number in counts)


@pytest.mark.parametrize("mutant", MUTANTS, ids=number_of)
def test_mutant_is_guarded_by_its_own_number_and_has_a_layer(mutant: Mutant) -> None:
    assert re.search(rf"\b(?:MUTANT|mutant)\({mutant.number}\)", "".join(edit.mutated for edit in mutant.edits))
    assert all(edit.original != edit.mutated for edit in mutant.edits)
    assert mutant.origin
    assert mutant.layers
    for layer in mutant.layers:
        if layer != "sim":
            file, _, test = layer.partition("::")
            assert (ROOT / file).exists(), layer
            assert not test or re.search(rf"def {test}\(", (ROOT / file).read_text()), layer


def test_every_row_is_planted_or_waits_for_its_feature() -> None:
    planted = {row for mutant in MUTANTS for row in mutant.rows}
    waiting = {entry.row for entry in NOT_APPLICABLE}
    assert planted | waiting == set(ROWS)
    assert planted & waiting == set()
    assert all(entry.why for entry in NOT_APPLICABLE)


def test_every_safety_rule_and_every_durability_gate_is_deleted_by_some_mutant() -> None:
    assert {rule for mutant in MUTANTS for rule in mutant.rules} == RULES
    assert {mutant.gate for mutant in MUTANTS} - {""} == GATES


def test_there_are_enough_operators_and_they_reach_every_module() -> None:
    operators = [mutant for mutant in MUTANTS if mutant.number >= OPERATOR_FIRST]
    assert len(operators) >= 25
    files = {Path(edit.file).stem for mutant in operators for edit in mutant.edits}
    modules = "acceptor phase1 proposer learner window reads sessions applier journal journal_recovery quorum wire"
    assert set(modules.split()) - files == set()


def test_pairs_name_mutants_and_the_canary_is_there() -> None:
    assert all(find((number,)) for pair in PAIRS for number in pair.numbers)
    assert [find(pair.numbers) for pair in PAIRS] == list(PAIRS)
    assert CANARY in {mutant.number for mutant in MUTANTS}


def test_no_shipped_source_has_a_guard() -> None:
    guard = re.compile(r"\b(MUTANT|mutant)\(|mutants\.h|fastpaxos_core\.mutants")
    assert [path.name for path in SHIPPED if guard.search(path.read_text())] == []
    assert not (ROOT / "fastpaxos_core" / "mutants.py").exists()
    assert not (ROOT / "fastpaxos_core" / "mutants.h").exists()


def test_no_compiled_module_reads_the_switch() -> None:
    modules = sorted(Path(fastpaxos_core.__file__).parent.glob("*.so"))
    assert len(modules) > 20
    assert [path.name for path in modules if ENVIRONMENT_NAME.encode() in path.read_bytes()] == []
