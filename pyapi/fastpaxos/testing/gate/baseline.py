"""The committed counts, and their comparison with new ones."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .callgrind import Profile, Workload
from .stages import REST, functions_of_stages, missing_functions, with_flat_memory

__all__ = ["TOLERANCE", "Baseline", "Comparison", "Verdict", "compare", "metrics_of"]

TOLERANCE = 0.02
FORMAT = 1


class Verdict(enum.Enum):
    """What a metric's comparison says. Everything but SAME and BETTER makes the gate red."""

    SAME = "same"
    BETTER = "better"
    WORSE = "WORSE"
    NEW = "NOT IN THE BASELINE"
    GONE = "NOT COUNTED ANY MORE"

    @property
    def is_red(self) -> bool:
        """Tell whether this fails the gate."""
        return self not in (Verdict.SAME, Verdict.BETTER)


@dataclass(frozen=True)
class Comparison:
    """One metric: instructions per repetition in the baseline and now."""

    metric: str
    before: float | None
    now: float | None
    verdict: Verdict

    @property
    def change(self) -> float:
        """Relative change: 0.05 = 5 % more instructions."""
        return self.now / self.before - 1.0 if self.before and self.now is not None else 0.0


@dataclass(frozen=True)
class Baseline:
    """Counts of one state of the code, with the toolchain that they were taken with."""

    toolchain: Mapping[str, str]
    counts: Mapping[str, float]

    @classmethod
    def load(cls, path: Path) -> Baseline:
        """Read a file that `save` wrote. Raises ValueError when it is another format, OSError when it is not there."""
        content = json.loads(path.read_text())
        if content.get("format") != FORMAT:
            raise ValueError(f"{path} has format {content.get('format')!r}, this version reads {FORMAT}")
        return cls(content["toolchain"], content["counts"])

    def save(self, path: Path) -> None:
        """Write a file for people to read in a diff: one line per metric."""
        content = {
            "format": FORMAT,
            "toolchain": dict(sorted(self.toolchain.items())),
            "counts": {metric: round(count, 1) for metric, count in self.counts.items()},
        }
        path.write_text(json.dumps(content, indent=2) + "\n")

    def differences(self, toolchain: Mapping[str, str]) -> list[str]:
        """Say in what another toolchain differs; empty when counts can be compared."""
        names = sorted({*self.toolchain, *toolchain})
        return [
            f"{name}: {self.toolchain.get(name)} -> {toolchain.get(name)}"
            for name in names
            if self.toolchain.get(name) != toolchain.get(name)
        ]


def metrics_of(workload: Workload, profile: Profile) -> dict[str, float]:
    """Return the metrics of a profile: the whole, and each stage of the workload.

    Raises ValueError when a function that a stage names never ran: a renamed function would look like a fast one.
    """
    missing = missing_functions(profile, workload.stages)
    if missing:
        raise ValueError(f"{workload.name}: {', '.join(missing)} never ran: correct the stages of the suite")
    profile = with_flat_memory(profile)
    metrics = {workload.name: profile.total}
    for stage, functions in functions_of_stages(profile, workload.stages).items():
        if stage != REST:
            metrics[f"{workload.name}: {stage}"] = sum(functions.values())
    return metrics


def compare(before: Mapping[str, float], now: Mapping[str, float], tolerance: float = TOLERANCE) -> list[Comparison]:
    """Compare every metric of either side. More than `tolerance` above the baseline is worse."""
    return [_compare_one(metric, before.get(metric), now.get(metric), tolerance) for metric in {**before, **now}]


def _compare_one(metric: str, before: float | None, now: float | None, tolerance: float) -> Comparison:
    if before is None:
        verdict = Verdict.NEW
    elif now is None:
        verdict = Verdict.GONE
    elif now > before * (1.0 + tolerance):
        verdict = Verdict.WORSE
    elif now < before * (1.0 - tolerance):
        verdict = Verdict.BETTER
    else:
        verdict = Verdict.SAME
    return Comparison(metric, before, now, verdict)
