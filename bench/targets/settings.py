"""The best settings of the floor and of our own load, found by short trials once for each kind of run."""

from __future__ import annotations

from collections.abc import Callable

from bench.targets.commands import Commands

__all__ = ["Settings"]

TRIAL_OPTIONS = ("--seconds", "1", "--warmup", "0.5")
BLOCK_BYTES_MAX = 1_000_000
BATCHES = (1000, 4000, 16_000)
"""Commands per call of `execute_many`; where they are large, as many as a block holds, and a quarter of that."""
IN_FLIGHT = ((1, 4), (2, 4), (4, 8))
"""Sessions, and calls that each has open."""
FLOOR_SEARCHES = 2
FINALISTS = 3
"""One short trial errs; what it errs about the floor would be a present to us."""


class Settings:
    """Asks for the best options, and remembers the answers.

    Args:
        commands: runs the trials.
        tell: is called with a line for people.
    """

    def __init__(self, commands: Commands, tell: Callable[[str], None]) -> None:
        self._commands = commands
        self._tell = tell
        self._floors: dict[tuple[int, str], tuple[str, ...]] = {}
        self._loads: dict[tuple[str, int], tuple[str, ...]] = {}

    def floor(self, replicas: int, durability: str) -> tuple[str, ...]:
        """The options of `bench floor` that give its highest throughput. Raises NotMeasured."""
        key = replicas, durability
        if key not in self._floors:
            options: tuple[str, ...] = ("--replicas", str(replicas), "--durability", durability)
            searches = [self._commands.bench("floor", *options, "--seconds", "1") for _ in range(FLOOR_SEARCHES)]
            found = max(searches, key=lambda report: report["bytes_per_second"])
            options += ("--payload-bytes-per-frame", str(found["payload_bytes_per_frame"]))
            options += ("--window", str(found["window"]))
            self._floors[key] = options + (("--sync", found["sync"]) if durability == "fsync" else ())
        return self._floors[key]

    def load(self, durability: str, payload: int) -> tuple[str, ...]:
        """The options of `bench closed` that give the highest throughput of `execute_many` with 3 replicas.

        Raises NotMeasured.
        """
        key = durability, payload
        if key not in self._loads:
            fixed = ("--durability", durability, "--payload", str(payload))
            speeds = {
                ("--batch", str(batch), "--clients", str(clients), "--pipeline", str(pipeline)): 0
                for batch in batches(payload)
                for clients, pipeline in IN_FLIGHT
            }
            for count in (len(speeds), FINALISTS):
                for options in sorted(speeds, key=lambda each: -speeds[each])[:count]:
                    report = self._commands.bench("closed", *fixed, *options, *TRIAL_OPTIONS)
                    speeds[options] += report["commands_per_second"]
            best = max(speeds, key=lambda options: speeds[options])
            self._tell(f"  best of {len(speeds)}: {' '.join(best)}")
            self._loads[key] = fixed + best
        return self._loads[key]


def batches(payload: int) -> list[int]:
    """The batch sizes to try for commands of `payload` bytes."""
    most = BLOCK_BYTES_MAX // (payload + 4)
    return sorted({min(batch, most) for batch in BATCHES} | ({max(1, most // 4)} if most < BATCHES[-1] else set()))
