"""All mutants, pairs, and the rows of the catalogue of real bugs that wait for their feature."""

from __future__ import annotations

from collections.abc import Iterator

from . import acceptance, apply, client, disk, journal, leadership, learning, operators, phase1, phase2, reads, survey
from .model import Edit, Mutant, NotApplicable, Pair
from .rows import NOT_APPLICABLE, PAIRS

__all__ = ["CANARY", "MUTANTS", "NOT_APPLICABLE", "PAIRS", "NotApplicable", "all_edits", "find"]

CANARY = 1000

_CANARY = Mutant(
    CANARY,
    "canary: a checker fails for every hundredth seed, to see that failures are reported",
    (
        Edit(
            "pyapi/fastpaxos/testing/cluster.py",
            "        if self.settle():\n",
            "        if mutant(1000) and self.seed % 100 == 99:\n"
            '            raise Violation("the canary was heard", checker="canary")\n'
            "        if self.settle():\n",
        ),
    ),
    origin="TigerBeetle's canary fuzzer",
)

MUTANTS: tuple[Mutant, ...] = (
    *acceptance.MUTANTS,
    *phase1.MUTANTS,
    *phase2.MUTANTS,
    *learning.MUTANTS,
    *survey.MUTANTS,
    *reads.MUTANTS,
    *apply.MUTANTS,
    *journal.MUTANTS,
    *disk.MUTANTS,
    *client.MUTANTS,
    *leadership.MUTANTS,
    _CANARY,
    *operators.MUTANTS,
)

_BY_NUMBER = {mutant.number: mutant for mutant in MUTANTS}


def all_edits() -> Iterator[tuple[int, Edit]]:
    """Every edit of every mutant, in the order in which they are made."""
    for mutant in MUTANTS:
        for edit in mutant.edits:
            yield mutant.number, edit


def find(active: tuple[int, ...]) -> Mutant | Pair:
    """The mutant or the pair of these numbers. Raises KeyError when there is none."""
    if len(active) == 1:
        return _BY_NUMBER[active[0]]
    return {pair.numbers: pair for pair in PAIRS}[active[0], active[1]]
