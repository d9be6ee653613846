"""Campaigns: many seeds on several processes, what they did, what failed, and whether anything was never tried.

result = run_campaign(range(1, 1001), jobs=2)
assert not result.failures, result.failures[0].replay_command()
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED as ANY
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from .cluster import SimCluster
from .options import SimOptions
from .swarm import draw_options

__all__ = ["SOMETIMES", "CampaignResult", "Failure", "SeedRun", "run_campaign", "run_seed"]

_CHUNK = 10
_TWICE_EVERY = 100
# How many seeds it takes before a mark that is still missing counts as a failure.
_SOMETIMES_SEEDS = 1_000

SOMETIMES = (
    "acknowledged",
    "adopted_from_minority",
    "answered_again",
    "chain",
    "client_held",
    "clock_jump",
    "crash",
    "crash_between_effects",
    "crash_in_recovery",
    "crash_of_all",
    "disk_lost",
    "disk_reordered_write",
    "disk_stall",
    "disk_torn_write",
    "expelled",
    "flap",
    "frame_corrupted",
    "frame_duplicated",
    "frame_lost",
    "frame_refused",
    "frame_reordered",
    "frame_replayed",
    "full_disk",
    "gap_filled",
    "hub",
    "isolated_leader",
    "journal_read",
    "kill",
    "leader_ended",
    "learned_by_survey",
    "may_halt",
    "one_way_cut",
    "partial_cut",
    "partition",
    "pause",
    "promise_with_entries",
    "promise_with_unknown",
    "promises_lost",
    "read_failure",
    "reads",
    "record_repaired",
    "recovered_unsynced",
    "refused_incarnation",
    "reset",
    "rot",
    "sent_fetch",
    "sent_learn",
    "sent_nack",
    "session_evicted",
    "stopped_as_corrupt",
    "stopped_by_disk",
    "swizzle",
    "torn_tail",
    "sync_failure_keep",
    "sync_failure_revert",
    "two_leaders",
    "write_failure",
)
"""Marks that a campaign must hit: each is a situation in which bugs live. One that is never hit fails the campaign."""

_NOT_SUMMED = ("seed", "trace", "settled_ms")


@dataclass(frozen=True)
class Failure:
    """A seed whose run broke a property.

    Attributes:
        seed, options: give the same run again.
        checker: which property; the type of the exception where it was the program itself that noticed.
        message: what was seen.
    """

    seed: int
    checker: str
    message: str
    options: SimOptions

    def replay_command(self) -> str:
        """The command that shows this run again."""
        return f"fastpaxos sim replay {self.seed}"


@dataclass(frozen=True)
class SeedRun:
    """One seed that was run: its figures, and its failure if there was one."""

    seed: int
    report: dict[str, Any]
    failure: Failure | None


@dataclass
class CampaignResult:
    """Sums over a campaign."""

    seeds: int = 0
    totals: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    run_twice: int = 0
    virtual_ms: int = 0
    trace: int = 0
    """Sum of all trace digests: equal for equal campaigns."""
    wall_seconds: float = 0.0

    def add(self, run: SeedRun) -> None:
        """Take in one seed."""
        self.seeds += 1
        self.totals.update({name: count for name, count in run.report.items() if name not in _NOT_SUMMED})
        self.trace = (self.trace + run.report.get("trace", 0)) & 0xFFFF_FFFF_FFFF
        if run.failure is not None:
            self.failures.append(run.failure)

    def missing_marks(self) -> list[str]:
        """What never happened although it must happen sometimes; [] for campaigns too short to tell."""
        return [mark for mark in SOMETIMES if not self.totals[mark]] if self.seeds >= _SOMETIMES_SEEDS else []


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep thousands of elections and failing disks out of the log."""
    logger = logging.getLogger("fastpaxos")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def run_seed(seed: int, options: SimOptions | None = None, trace: Callable[[str], None] | None = None) -> SeedRun:
    """Run one seed; whatever goes wrong in it becomes a Failure.

    Args:
        seed: of the run.
        options: drawn from the seed when left out.
        trace: told a line about everything that happens.
    """
    options = options if options is not None else draw_options(seed)
    cluster: SimCluster | None = None
    failure = None
    try:
        with _quiet():
            cluster = SimCluster(seed, options, trace=trace)
            cluster.run()
    except Exception as error:
        checker = getattr(error, "checker", type(error).__name__)
        failure = Failure(seed, checker, f"{type(error).__name__}: {error}", options)
    report = cluster.report() if cluster is not None else {"seed": seed}
    return SeedRun(seed, report, failure)


def _run_chunk(seeds: Sequence[int]) -> list[tuple[SeedRun, bool]]:
    """Run some seeds in a worker; every hundredth one twice, which must give the same trace."""
    gc.disable()  # a run makes few cycles, and many objects that live as long as it does
    try:
        return _run_seeds(seeds)
    finally:
        gc.enable()
        gc.collect()


def _run_seeds(seeds: Sequence[int]) -> list[tuple[SeedRun, bool]]:
    runs = []
    for seed in seeds:
        run = run_seed(seed)
        twice = seed % _TWICE_EVERY == 0
        if twice and run.failure is None and (again := run_seed(seed)).report != run.report:
            message = f"two runs of seed {seed} differ: {run.report} and {again.report}"
            run = SeedRun(seed, run.report, Failure(seed, "determinism", message, draw_options(seed)))
        runs.append((run, twice))
    return runs


def _chunks(seeds: Iterable[int]) -> Iterator[list[int]]:
    rest = iter(seeds)
    while chunk := list(islice(rest, _CHUNK)):
        yield chunk


def run_campaign(
    seeds: Iterable[int],
    jobs: int = 1,
    progress: Callable[[CampaignResult], None] | None = None,
    failures_max: int = 20,
) -> CampaignResult:
    """Run seeds on `jobs` processes (1: in this one) and sum up what they did.

    Args:
        seeds: which.
        jobs: worker processes.
        progress: told the result so far, after every few seeds.
        failures_max: the campaign ends early at so many failures.
    """
    result = CampaignResult()
    begin = time.monotonic()
    executor: ProcessPoolExecutor | ThreadPoolExecutor
    if jobs > 1:
        executor = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
    else:
        executor = ThreadPoolExecutor(1)
    with executor:
        waiting: dict[Future[list[tuple[SeedRun, bool]]], list[int]] = {}
        chunks = _chunks(seeds)
        while True:
            while len(waiting) < 2 * jobs and len(result.failures) < failures_max:
                chunk = next(chunks, None)
                if chunk is None:
                    break
                waiting[executor.submit(_run_chunk, chunk)] = chunk
            if not waiting:
                break
            for future in wait(waiting, return_when=ANY).done:
                _take(result, future, waiting.pop(future))
            result.wall_seconds = time.monotonic() - begin
            if progress is not None:
                progress(result)
    return result


def _take(result: CampaignResult, future: Future[list[tuple[SeedRun, bool]]], chunk: list[int]) -> None:
    try:
        runs = future.result()
    except BrokenProcessPool:
        message = f"a worker process died in one of the seeds {chunk}"
        result.failures.append(Failure(chunk[0], "crash", message, draw_options(chunk[0])))
        return
    for run, twice in runs:
        result.add(run)
        result.run_twice += twice
