"""What a mutant is: one planted fault, as edits of the shipped sources that a guard switches on.

An edit names a snippet that stands exactly once in its file and what replaces it. The replacement must behave like the
snippet while its guard is off: `MUTANT(n)` in Cython, `mutant(n)` in Python.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["NUMBER_MAX", "Edit", "Mutant", "NotApplicable", "Pair", "core", "package"]

NUMBER_MAX = 2047


@dataclass(frozen=True, slots=True)
class Edit:
    """One replacement. `file` is a path from the root of the source tree."""

    file: str
    original: str
    mutated: str


def core(module: str, original: str, mutated: str) -> Edit:
    """An edit of a module of `fastpaxos_core`; a name without suffix is a `.pyx`."""
    return Edit(f"fastpaxos_core/{module}{'' if '.' in module else '.pyx'}", original, mutated)


def package(module: str, original: str, mutated: str) -> Edit:
    """An edit of a Python module of `fastpaxos`."""
    return Edit(f"pyapi/fastpaxos/{module}.py", original, mutated)


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault.

    Attributes:
        number: names it; what FASTPAXOS_MUTANT switches on. Rows 1 to 65 of the catalogue of real bugs keep their
            numbers; a second fault of row r is r + 100, a third r + 200. Operators begin at 1001.
        rows: the real bugs that it repeats.
        rules: rules of the safety list (DESIGN 5) that it deletes, as "5.1".
        gate: the durability gate that it deletes, "" if none.
        layers: who must kill it, the quickest first: "sim", or a pytest node.
        options: settings of `SimOptions` under which small worlds meet it often.
        equivalent: why nothing can see it, "" if something must.
    """

    number: int
    title: str
    edits: tuple[Edit, ...]
    rows: tuple[int, ...] = ()
    origin: str = ""
    rules: tuple[str, ...] = ()
    gate: str = ""
    layers: tuple[str, ...] = ("sim",)
    options: Mapping[str, object] = field(default_factory=dict)
    equivalent: str = ""

    @property
    def active(self) -> tuple[int, ...]:
        """Numbers to be switched on."""
        return (self.number,)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two faults that might hide each other. Killed like a mutant."""

    numbers: tuple[int, int]
    title: str
    layers: tuple[str, ...] = ("sim",)
    options: Mapping[str, object] = field(default_factory=dict)

    @property
    def active(self) -> tuple[int, ...]:
        """Numbers to be switched on."""
        return self.numbers


@dataclass(frozen=True, slots=True)
class NotApplicable:
    """A row of the catalogue of real bugs that cannot be planted today, and why."""

    row: int
    why: str
