"""The long search for crash states and for damage that breaks a promise.

    python -m crash.campaign --states 100000 --corruptions 10000 --seed 1

prints totals as JSON, and ends with status 1 if there was a violation. A violation is saved as one file, which holds
the whole state; it prints the command that checks it again:

    python -m crash.campaign --replay FILE
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgpack

from crash.damage import Damage, DamagedImage, check_damage, damages, sound_images
from crash.ledger import CrashViolation, Expectation
from crash.power_cut import fingerprint
from crash.recording import Recorder, working_folder
from crash.recovering import Recovered, check_image, check_interrupted, check_recovered
from crash.scenario import DATA_PATH, CrashState, Scenario
from journal_model import Batch, State

# Every n-th state is also recovered with a power cut at each operation of the recovery.
INTERRUPTED_EVERY = 16


# --- saving and replaying ---------------------------------------------------------------------------------------------


def load_expectation(fields: dict[str, Any]) -> Expectation:
    def state(values: dict[str, Any]) -> State:
        return State(
            values["promised_ballot"], values["commit_index"], tuple(Batch(**batch) for batch in values["batches"])
        )

    return Expectation(
        **{
            **fields,
            "founding": tuple(fields["founding"]),
            "states": tuple(map(state, fields["states"])),
            "chosen": {slot: Batch(**batch) for slot, batch in fields["chosen"].items()},
        }
    )


def save(case: CrashState | DamagedImage, error: CrashViolation, name: str) -> Path:
    """Write a case into the current directory."""
    path = Path(f"crash-{name}.case")
    fields = {name: getattr(case, name) for name in case.__slots__}
    fields |= {"expected": asdict(case.expected), "error": str(error)}
    if isinstance(case, DamagedImage):
        fields["damage"] = asdict(case.damage)
    path.write_bytes(msgpack.packb(fields))
    return path


def load_case(path: Path) -> tuple[CrashState | DamagedImage, str]:
    """A saved case, and what was wrong with it."""
    fields = msgpack.unpackb(path.read_bytes(), strict_map_key=False)
    error = fields.pop("error")
    fields["expected"] = load_expectation(fields["expected"])
    if "damage" in fields:
        fields["damage"] = Damage(**fields["damage"])
        return DamagedImage(**fields), error
    return CrashState(**fields), error


def replay(path: Path, folder: Path) -> None:
    """Check one saved case again.

    Raises:
        CrashViolation: it still breaks a promise.
    """
    case, error = load_case(path)
    print(f"{path}: {case.place}; it said: {error}")
    if isinstance(case, DamagedImage):
        print(check_damage(case, folder / "scratch"))
    else:
        found = check_state(case, folder)
        if found is not None:
            check_interrupted(case.image, DATA_PATH, found, case.durability, case.segment_bytes, random.Random(0))


# --- searching --------------------------------------------------------------------------------------------------------


def check_state(state: CrashState, folder: Path) -> Recovered | None:
    """Recover one state and compare; None when it was rightly refused."""
    return check_image(
        state.image, DATA_PATH, state.expected, folder / "scratch", state.durability, state.segment_bytes
    )


class Campaign:
    """Counts what was checked, and keeps the violations."""

    def __init__(self, recorder: Recorder, folder: Path, depth: int) -> None:
        self.recorder = recorder
        self.folder = folder
        self.depth = depth
        self.counts: Counter[str] = Counter()
        self.distinct: set[bytes] = set()
        self.violations: list[str] = []
        self._found: dict[bytes, Recovered] = {}

    def search_states(self, seed: int, enough: int) -> None:
        """All states of one seed, until there are `enough` distinct ones."""
        scenario = Scenario(seed, self.recorder, self.folder, self.depth)
        self._found.clear()
        try:
            for number, state in enumerate(scenario.states()):
                self._check(state, seed, number)
                if len(self.distinct) >= enough:
                    break
        except CrashViolation as error:
            self.violations.append(f"seed {seed}: {error}")
        self.counts.update(scenario.counts)

    def _check(self, state: CrashState, seed: int, number: int) -> None:
        self.counts["states"] += 1
        mark = fingerprint(state.image)
        self.distinct.add(mark)
        try:
            if mark in self._found:
                # The same files as before, of which something else must hold now.
                check_recovered(self._found[mark], state.expected)
                return
            found = check_state(state, self.folder)
            if found is None:
                return
            self._found[mark] = found
            if len(self._found) % INTERRUPTED_EVERY == 1:
                self.counts["power cuts during recovery"] += check_interrupted(
                    state.image, DATA_PATH, found, state.durability, state.segment_bytes, random.Random(number)
                )
        except CrashViolation as error:
            self._keep(state, error, f"state-{seed}-{number}")

    def search_damage(self, seed: int, enough: int) -> None:
        """Damage to sound images of one seed, until there are `enough` cases."""
        rng = random.Random(seed)
        for image in sound_images(seed, self.recorder, self.folder):
            for number, case in enumerate(damages(image, rng)):
                if self.counts["corruption cases"] >= enough:
                    return
                self.counts["corruption cases"] += 1
                try:
                    self.counts[f"damage {case.damage.kind}: {check_damage(case, self.folder / 'scratch')}"] += 1
                except CrashViolation as error:
                    self._keep(case, error, f"damage-{seed}-{number}")

    def _keep(self, case: CrashState | DamagedImage, error: CrashViolation, name: str) -> None:
        path = save(case, error, name)
        self.violations.append(f"{case.place}: {error}")
        print(f"VIOLATION {case.place}: {error}\nreplay: python -m crash.campaign --replay {path}", file=sys.stderr)

    def report(self) -> dict[str, Any]:
        return {
            **{name: self.counts[name] for name in sorted(self.counts)},
            "distinct states": len(self.distinct),
            "violations": len(self.violations),
        }


def seeds(first: int) -> Iterator[int]:
    while True:
        yield first
        first += 1


def run_campaign(arguments: argparse.Namespace, folder: Path) -> int:
    """Search for as long as the arguments say; returns the exit status."""
    started = time.monotonic()

    def is_over() -> bool:
        return bool(campaign.violations) or time.monotonic() - started > arguments.seconds

    with Recorder(folder) as recorder:
        campaign = Campaign(recorder, folder, arguments.depth)
        for seed in seeds(arguments.seed):
            if len(campaign.distinct) >= arguments.states or is_over():
                break
            campaign.search_states(seed, arguments.states)
        for seed in seeds(arguments.seed):
            if campaign.counts["corruption cases"] >= arguments.corruptions or is_over():
                break
            campaign.search_damage(seed, arguments.corruptions)
    report = campaign.report() | {"seconds": round(time.monotonic() - started), "first seed": arguments.seed}
    print(json.dumps(report, indent=2))
    return 1 if campaign.violations else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="crash.campaign", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--states", type=int, default=10_000, help="distinct crash states to check")
    parser.add_argument("--corruptions", type=int, default=1_000, help="damaged images to check")
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--depth", type=int, default=3, help="random choices of each kind at each system call")
    parser.add_argument("--seconds", type=float, default=86_400.0, help="stop after so long, whatever is missing")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="check one saved case again")
    arguments = parser.parse_args()
    # Every damage is logged by the storage, as it must be.
    logging.disable()
    with working_folder() as folder:
        if arguments.replay:
            replay(arguments.replay, folder)
            return 0
        return run_campaign(arguments, folder)


if __name__ == "__main__":
    sys.exit(main())
