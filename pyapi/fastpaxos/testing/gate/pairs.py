"""Timings that carry over between machines: subject and reference in turns, and the median of their ratios.

What slows the machine down for a while slows both down. A ratio is still far noisier than an instruction count, so its
bounds are generous: they find what became twice as slow, or a tail that grew, which no instruction count can see.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["Bound", "Pair", "PairResult", "run_pair"]

Measure = Callable[[], Mapping[str, float]]


@dataclass(frozen=True)
class Bound:
    """A limit on the median of subject / reference of one metric; at least one of the two limits is given."""

    metric: str
    at_least: float | None = None
    at_most: float | None = None

    def allows(self, ratio: float) -> bool:
        """Tell whether a ratio is within the limits."""
        return (self.at_least is None or ratio >= self.at_least) and (self.at_most is None or ratio <= self.at_most)

    def __str__(self) -> str:
        limits = [(">=", self.at_least), ("<=", self.at_most)]
        return " and ".join(f"{sign} {limit:g}" for sign, limit in limits if limit is not None)


@dataclass(frozen=True)
class Pair:
    """Two measurements that return {metric: value}, each of a second or so; both check what they measured."""

    name: str
    subject: Measure
    reference: Measure
    bounds: tuple[Bound, ...]
    rounds: int = 5


@dataclass(frozen=True)
class PairResult:
    """The ratios of all rounds, by metric."""

    pair: Pair
    ratios: Mapping[str, tuple[float, ...]]

    def median(self, metric: str) -> float:
        """Return the median of a metric's ratios."""
        return statistics.median(self.ratios[metric])

    @property
    def broken(self) -> list[Bound]:
        """Bounds that do not hold."""
        return [bound for bound in self.pair.bounds if not bound.allows(self.median(bound.metric))]


def run_pair(pair: Pair) -> PairResult:
    """Measure both sides `rounds` times. Which of them comes first alternates."""
    ratios: dict[str, list[float]] = {bound.metric: [] for bound in pair.bounds}
    for number in range(pair.rounds):
        if number % 2:
            reference, subject = pair.reference(), pair.subject()
        else:
            subject, reference = pair.subject(), pair.reference()
        for metric, found in ratios.items():
            found.append(subject[metric] / reference[metric])
    return PairResult(pair, {metric: tuple(found) for metric, found in ratios.items()})
