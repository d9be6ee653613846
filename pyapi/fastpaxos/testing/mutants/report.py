"""What a mutation campaign found: who was killed by whom after how many seeds, and whether it can be believed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from .catalogue import CANARY, MUTANTS, NOT_APPLICABLE
from .model import Mutant, Pair

__all__ = ["SIMULATION", "Campaign", "Outcome"]

SIMULATION = "sim"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one layer said about one mutant (`active` is empty for a control run) from one base seed.

    Attributes:
        verdict: "killed", "survived", or "invalid": the layer fails without the mutant too, or cannot run at all.
        checker: who killed it.
        seeds: seeds that it took; 1 for a pytest node.
        seed: the seed that failed, 0 where there is none.
        replay: the command that shows it again.
    """

    active: tuple[int, ...]
    layer: str
    base_seed: int
    verdict: str
    checker: str = ""
    seeds: int = 0
    seed: int = 0
    seconds: float = 0.0
    error: str = ""
    replay: str = ""


@dataclass(frozen=True, slots=True)
class Campaign:
    """What a campaign found."""

    chosen: Sequence[Mutant | Pair]
    outcomes: Sequence[Outcome]
    seconds: float
    base_seeds: int
    seeds_max: int

    def of(self, active: tuple[int, ...]) -> list[Outcome]:
        """The outcomes of one mutant, or of the control runs for ()."""
        return [outcome for outcome in self.outcomes if outcome.active == active]

    def is_killed(self, each: Mutant | Pair) -> bool:
        """From every base seed some layer killed it."""
        outcomes = self.of(each.active)
        by_test = any(o.verdict == "killed" and o.layer != SIMULATION for o in outcomes)
        by_seed = {o.base_seed for o in outcomes if o.verdict == "killed" and o.layer == SIMULATION}
        return by_test or len(by_seed) >= self.base_seeds

    @property
    def survivors(self) -> list[Mutant | Pair]:
        """What should have been killed and was not."""
        return [each for each in self.chosen if not self.is_killed(each) and not getattr(each, "equivalent", "")]

    @property
    def problems(self) -> list[str]:
        """Why the campaign itself cannot be believed: failures without a mutant, or a canary that nobody reported."""
        found = [
            f"a control run fails ({outcome.verdict}, {outcome.checker}): {outcome.error} | {outcome.replay}"
            for outcome in self.of(())
            if outcome.verdict != "survived"
        ]
        found += [
            f"mutant {','.join(map(str, outcome.active))} in {outcome.layer}: {outcome.error}"
            for outcome in self.outcomes
            if outcome.active and outcome.verdict == "invalid"
        ]
        if any(each.active == (CANARY,) for each in self.survivors):
            found.append(f"the canary (mutant {CANARY}) was not reported: failures may go unseen")
        return found

    @property
    def exit_code(self) -> int:
        """0 when every mutant that is not equivalent was killed and the campaign can be believed."""
        return 1 if self.survivors or self.problems else 0

    def seeds_to_kill(self, each: Mutant | Pair) -> list[int]:
        """Seeds that the simulator needed, one number per base seed that killed; empty where a test killed it."""
        return sorted(o.seeds for o in self.of(each.active) if o.verdict == "killed" and o.layer == SIMULATION)

    def to_mapping(self) -> dict[str, Any]:
        """The whole result, for JSON."""
        killed = [each for each in self.chosen if self.is_killed(each)]
        seeds = sorted(number for each in killed for number in self.seeds_to_kill(each))
        return {
            "mutants": len(self.chosen),
            "killed": len(killed),
            "survivors": [each.active for each in self.survivors],
            "problems": self.problems,
            "equivalent": {mutant.number: mutant.equivalent for mutant in MUTANTS if mutant.equivalent},
            "not_applicable": {row.row: row.why for row in NOT_APPLICABLE},
            "base_seeds": self.base_seeds,
            "seeds_max": self.seeds_max,
            "seeds_to_kill_median": median(seeds) if seeds else None,
            "seeds_to_kill_p95": percentile(seeds, 95),
            "seconds": round(self.seconds, 1),
            "outcomes": [asdict(outcome) for outcome in self.outcomes],
        }


def percentile(numbers: Sequence[int], share: int) -> int | None:
    """The smallest of the sorted numbers that `share` percent of them do not exceed; None when there are none."""
    return numbers[math.ceil(len(numbers) * share / 100) - 1] if numbers else None
