"""Mutation campaigns: every planted fault must be seen, and everything that is seen must be a planted fault.

Each mutant runs in processes of its own, on the build of `make build-mutants`. A kill counts only if the very same run
is clean without the mutant. Results say who killed what after how many seeds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import fastpaxos_core
from fastpaxos.errors import ConfigError

from .catalogue import MUTANTS, PAIRS, find
from .model import Mutant, Pair
from .report import SIMULATION, Campaign, Outcome
from .source import ENVIRONMENT_NAME

__all__ = ["BASE_SEED_STEP", "Runner", "run_mutants", "source_root"]

BASE_SEED_STEP = 1_000_000
SEEDS_MAX = 1_000
CONTROL_SEEDS = 50
SECONDS_MAX = 900.0
PYTEST_FAILED = 1
PROBE = "fastpaxos.testing.mutants.probe"


def source_root() -> Path:
    """The source tree that the running core was built from. Raises ConfigError where there is none."""
    for folder in Path(fastpaxos_core.__file__).resolve().parents:
        if (folder / "Makefile").exists() and (folder / "fastpaxos_core" / "replica.pyx").exists():
            return folder
    raise ConfigError(
        "mutants are compiled from the sources, and this is an installed package: get a source tree of fastpaxos, "
        "run `make build` there, and `fastpaxos sim mutants` from its virtual environment"
    )


class Runner:
    """Runs mutants of one source tree.

    Args:
        root: the source tree; its mutants are built.
        seeds_max: seeds after which a mutant counts as survivor.
        seconds_max: wall clock for one process; one that takes longer hangs.
    """

    def __init__(self, root: Path, *, seeds_max: int = SEEDS_MAX, seconds_max: float = SECONDS_MAX) -> None:
        self.root = root
        self.library = root / "build" / "mutants" / "lib"
        self.seeds_max = seeds_max
        self.seconds_max = seconds_max

    def build(self) -> None:
        """Bring the build up to date. Raises ConfigError if it fails."""
        done = subprocess.run(["make", "build-mutants"], cwd=self.root, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConfigError(
                f"`make build-mutants` failed in {self.root}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
            )

    def run(self, active: tuple[int, ...], layer: str, base_seed: int = 0) -> Outcome:
        """Run one mutant in one layer. A kill is believed once `confirm` has seen the same run without the mutant."""
        return self._simulate(active, base_seed) if layer == SIMULATION else self._pytest(active, [layer])

    def confirm(self, outcomes: Iterable[Outcome]) -> list[Outcome]:
        """Run everything that killed once more, without a mutant: a kill whose run fails all the same is invalid."""
        outcomes = list(outcomes)
        kills = [outcome for outcome in outcomes if outcome.active and outcome.verdict == "killed"]
        faults = self._faults_of_seeds([outcome for outcome in kills if outcome.layer == SIMULATION])
        faults.update(self._faults_of_tests([outcome for outcome in kills if outcome.layer != SIMULATION]))
        return [
            replace(outcome, verdict="invalid", error=f"fails without the mutant as well: {faults[id(outcome)]}")
            if id(outcome) in faults
            else outcome
            for outcome in outcomes
        ]

    def _faults_of_seeds(self, kills: Sequence[Outcome]) -> dict[int, str]:
        names = [f"{','.join(map(str, kill.active))}:{kill.seed or kill.base_seed}" for kill in kills]
        if not names:
            return {}
        code, output, errors, _ = self._call((), ["-m", PROBE, "--confirm", " ".join(names)])
        if code:
            return dict.fromkeys(map(id, kills), errors[-500:])
        found: list[str] = json.loads(output.splitlines()[-1])
        return {id(kill): error for kill, error in zip(kills, found, strict=True) if error}

    def _faults_of_tests(self, kills: Sequence[Outcome]) -> dict[int, str]:
        nodes = [*dict.fromkeys(kill.layer for kill in kills)]
        if not nodes or self._pytest((), nodes).verdict == "survived":
            return {}
        # Some test fails: one by one they say which.
        controls = {node: self._pytest((), [node]) for node in nodes}
        return {
            id(kill): f"{control.checker} {control.error}"
            for kill in kills
            if (control := controls[kill.layer]).verdict != "survived"
        }

    def control(self, count: int = CONTROL_SEEDS) -> Outcome:
        """Seeds without any mutant: they must be clean."""
        return self._simulate((), 0, count)

    def _environment(self, active: tuple[int, ...]) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": str(self.library),
            "PYTHONSAFEPATH": "1",
            "FASTPAXOS_TEST_EXPECT_BUILD": "mutants",
            "OPENBLAS_NUM_THREADS": "1",
            ENVIRONMENT_NAME: ",".join(map(str, active)),
        }

    def _call(self, active: tuple[int, ...], arguments: list[str]) -> tuple[int | None, str, str, float]:
        """Exit code (None: it did not end), output, errors, seconds."""
        started = time.monotonic()
        command = [sys.executable, *arguments]
        try:
            done = subprocess.run(
                command, cwd=self.root, env=self._environment(active), capture_output=True, text=True,
                timeout=self.seconds_max, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return None, "", f"no end after {self.seconds_max:.0f} s", time.monotonic() - started
        return done.returncode, done.stdout, done.stderr, time.monotonic() - started

    def _replay(self, active: tuple[int, ...], arguments: Sequence[str]) -> str:
        library = self.library.relative_to(self.root)
        return f"{ENVIRONMENT_NAME}={','.join(map(str, active))} PYTHONPATH={library} python {' '.join(arguments)}"

    def _simulate(self, active: tuple[int, ...], seed: int, count: int = 0) -> Outcome:
        arguments = ["-m", PROBE, "--seed", str(seed), "--count", str(count or self.seeds_max)]
        code, output, errors, seconds = self._call(active, arguments)
        replay = self._replay(active, arguments)
        if code is None or code < 0:
            checker = "hang" if code is None else "crash"
            return Outcome(active, SIMULATION, seed, "killed", checker, 1, 0, seconds, errors[-500:], replay)
        if code:
            return Outcome(active, SIMULATION, seed, "invalid", error=errors[-500:], seconds=seconds, replay=replay)
        found: Mapping[str, Any] = json.loads(output.splitlines()[-1])
        if not found["killed"]:
            return Outcome(active, SIMULATION, seed, "survived", seeds=found["seeds"], seconds=seconds)
        replay = self._replay(active, ["-m", PROBE, "--seed", str(found["seed"]), "--count", "1"])
        return Outcome(
            active, SIMULATION, seed, "killed", found["checker"], found["seeds"], found["seed"], found["seconds"],
            found["error"], replay,
        )  # fmt: skip

    def _pytest(self, active: tuple[int, ...], nodes: Sequence[str]) -> Outcome:
        node = " ".join(nodes)
        folders = f"pythonpath={self.library.relative_to(self.root)} tests"
        arguments = ["-m", "pytest", "-q", "-x", "--no-header", "-o", folders, *nodes]
        code, output, errors, seconds = self._call(active, arguments)
        replay = self._replay(active, ["-m", "pytest", "-o", f"'{folders}'", node])
        if code is None or code < 0:
            checker = "hang" if code is None else "crash"
            return Outcome(active, node, 0, "killed", checker, 1, 0, seconds, errors[-500:], replay)
        if code == 0:
            return Outcome(active, node, 0, "survived", seeds=1, seconds=seconds, replay=replay)
        failed = [line for line in output.splitlines() if line.startswith("FAILED")]
        if code != PYTEST_FAILED or not failed:
            text = (output[-1000:] + errors[-1000:]).strip()
            return Outcome(active, node, 0, "invalid", error=text, seconds=seconds, replay=replay)
        test, _, text = failed[0].removeprefix("FAILED ").partition(" - ")
        return Outcome(active, node, 0, "killed", test.partition("[")[0], 1, 0, seconds, text[:500], replay)


def select(only: Iterable[int | tuple[int, ...]] | None) -> list[Mutant | Pair]:
    """The mutants and pairs of these numbers; all that are not argued equivalent when None."""
    if only is not None:
        return [find(number if isinstance(number, tuple) else (number,)) for number in only]
    return [*(mutant for mutant in MUTANTS if not mutant.equivalent), *PAIRS]


def run_mutants(
    *,
    root: Path | None = None,
    only: Iterable[int | tuple[int, ...]] | None = None,
    jobs: int = 2,
    base_seeds: int = 1,
    seeds_max: int = SEEDS_MAX,
    all_layers: bool = False,
    build: bool = True,
    progress: Callable[[Outcome], None] = lambda outcome: None,
) -> Campaign:
    """Run mutants and judge the campaign.

    Args:
        root: the source tree; found by the running core when None.
        only: numbers, and pairs as tuples; all that are not equivalent when None.
        jobs: processes at a time.
        base_seeds: how often each mutant runs; run k begins with seed k x 1,000,000.
        seeds_max: seeds after which a mutant counts as survivor.
        all_layers: run every layer of a mutant, not only until one of them kills it.
        build: bring the build up to date first.
        progress: called with each outcome, in any order, from one thread at a time.

    Raises:
        ConfigError: there is no source tree, or the mutants cannot be built.
    """
    runner = Runner(root if root is not None else source_root(), seeds_max=seeds_max)
    if build:
        runner.build()
    chosen = select(only)
    started = time.monotonic()
    outcomes: list[Outcome] = []

    def control() -> list[Outcome]:
        return [runner.control()]

    def attempt(each: Mutant | Pair, number: int) -> list[Outcome]:
        found: list[Outcome] = []
        for layer in each.layers:
            if layer != SIMULATION and number and not found:
                break  # a test comes first, and has no seed: once is enough
            found.append(runner.run(each.active, layer, number * BASE_SEED_STEP))
            if found[-1].verdict == "killed" and not all_layers:
                break
        return found

    with ThreadPoolExecutor(jobs) as pool:
        runs = [pool.submit(attempt, each, number) for each in chosen for number in range(base_seeds)]
        for future in [*runs, pool.submit(control)]:
            for outcome in future.result():
                outcomes.append(outcome)
                progress(outcome)
    return Campaign(chosen, runner.confirm(outcomes), time.monotonic() - started, base_seeds, seeds_max)
