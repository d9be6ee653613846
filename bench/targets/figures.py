"""What a line of the table is: figures of several rounds, each beside its reference of the same round, and a wish."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastpaxos_core.block import build_block

__all__ = ["Line", "Wanted", "block_bytes_per_second", "markdown_table", "shown"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What must be reached, and what would be fine beyond it: at least that much, or at most."""

    limit: float
    dream: float | None = None
    is_at_least: bool = True

    def is_met(self, value: float, limit: float | None = None) -> bool:
        """Whether `value` reaches the limit, or another one."""
        limit = self.limit if limit is None else limit
        return value >= limit if self.is_at_least else value <= limit

    def __str__(self) -> str:
        return f"{'>=' if self.is_at_least else '<='} {shown(self.limit)}"


@dataclass(slots=True)
class Line:
    """One wish of the table and what was measured for it.

    `figures` has one value per round, in `unit`; `references` runs parallel to it where the wish is about their ratio
    (the floor, mostly), and is empty where it is about the figure. `reason` says why nothing was measured, or why what
    was measured does not count. `notes` are shown beside the figure, `details` only stand in the JSON.
    """

    name: str
    what: str
    wanted: Wanted
    unit: str
    commands: list[str] = field(default_factory=list)
    figures: list[float] = field(default_factory=list)
    references: list[float] = field(default_factory=list)
    reason: str = ""
    notes: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def give_up(self, reason: str) -> None:
        """It could not be measured. What some rounds gave is dropped: a median needs all of them."""
        self.reason = reason
        self.figures.clear()
        self.references.clear()

    def add(self, figure: float, reference: float | None = None) -> None:
        """The result of one round."""
        self.figures.append(figure)
        if reference is not None:
            self.references.append(reference)

    @property
    def figure(self) -> float | None:
        """The median figure, None where nothing was measured."""
        return statistics.median(self.figures) if self.figures else None

    @property
    def reference(self) -> float | None:
        """The median reference, None where there is none."""
        return statistics.median(self.references) if self.references else None

    @property
    def ratios(self) -> list[float]:
        """Figure to reference, round by round."""
        pairs = zip(self.figures, self.references, strict=True) if self.references else ()
        return [figure / reference for figure, reference in pairs]

    @property
    def ratio(self) -> float | None:
        """The median of the ratios, which is not the ratio of the medians: a pair shares its minute of the machine."""
        ratios = self.ratios
        return statistics.median(ratios) if ratios else None

    @property
    def value(self) -> float | None:
        """What the wish is about: the ratio where there are references, else the figure."""
        return self.ratio if self.references else self.figure

    @property
    def is_met(self) -> bool | None:
        """None: not measured."""
        value = self.value
        if value is None:
            return None
        return not self.reason and self.wanted.is_met(value)

    @property
    def verdict(self) -> str:
        """The last column: met or not, and why."""
        value, dream = self.value, self.wanted.dream
        if value is None:
            return f"not measured: {self.reason}"
        if not self.is_met:
            return f"**not met**: {self.reason}" if self.reason else "**not met**"
        return "met, and the dream" if dream is not None and self.wanted.is_met(value, dream) else "met"

    def to_map(self) -> dict[str, Any]:
        """The line as JSON can hold it."""
        ratios: Sequence[float | None] = self.ratios or [None] * len(self.figures)
        references: Sequence[float | None] = self.references or [None] * len(self.figures)
        return {
            "name": self.name,
            "what": self.what,
            "commands": self.commands,
            "unit": self.unit,
            "figure": self.figure,
            "reference": self.reference,
            "ratio": self.ratio,
            "wanted": str(self.wanted),
            "limit": self.wanted.limit,
            "dream": self.wanted.dream,
            "met": self.is_met,
            "reason": self.reason,
            "rounds": [
                {"figure": figure, "reference": reference, "ratio": ratio}
                for figure, reference, ratio in zip(self.figures, references, ratios, strict=True)
            ],
            "details": self.details,
        }


def block_bytes_per_second(report: Mapping[str, Any]) -> float:
    """Bytes of whole blocks, headers included, that a report of `bench closed` says were answered per second."""
    setup = report["setup"]
    batch = setup["batch"]
    block = build_block([bytes(setup["payload_bytes"])] * batch, 1, 1)
    return float(report["commands_per_second"] / batch * len(block))


def shown(value: float | None) -> str:
    """A figure for people: no digits that mean nothing."""
    if value is None:
        return ""
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def markdown_table(lines: Sequence[Line]) -> str:
    """All lines as a Markdown table."""
    rows = [
        "| P | what | command | figure | floor or reference | ratio | wanted | met |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        unit = f" {line.unit}" if line.unit else ""
        cells = (
            line.name,
            line.what,
            "<br>".join(f"`{command}`" for command in line.commands),
            f"{shown(line.figure)}{unit}{f' ({line.notes})' if line.notes else ''}" if line.figures else "",
            f"{shown(line.reference)}{unit}" if line.references else "",
            shown(line.ratio),
            f"{line.wanted}{'' if line.references else unit}",
            line.verdict,
        )
        rows.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(rows)
