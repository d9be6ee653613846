"""A chaos run: rounds of a fresh cluster each, with faults and load, then healing, then the verdict on every call.

Rounds keep memory, disk and the replay at each restart bounded, however long the run is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random
from time import monotonic_ns
from typing import Any

from fastpaxos.cli.journal import journal_directory
from fastpaxos.cli.status import Statuses, is_settled, leader_of, read_statuses
from fastpaxos.client import Client
from fastpaxos.kv import encode_put
from fastpaxos.testing.chaos.calls import Call
from fastpaxos.testing.chaos.nemesis import Nemesis
from fastpaxos.testing.chaos.processes import ChaosCluster, strace_command
from fastpaxos.testing.chaos.schedule import Schedule, draw_schedule
from fastpaxos.testing.chaos.verdict import Verdict, judge, write_evidence
from fastpaxos.testing.chaos.witness import Applied, applied_commands, read_log
from fastpaxos.testing.chaos.workload import TEXT_KEY, Recorder, Workload
from fastpaxos.testing.fault_proxy import CLIENTS, FaultNetwork
from fastpaxos.testing.history import Violation
from fastpaxos.testing.operations import Outcome
from fastpaxos_core import journal_recovery

__all__ = ["ChaosPlan", "RoundReport", "run_round"]

NS_PER_MS = 1_000_000
START_S = 30.0
# When everything is whole again, a command must be committed within this time: the processes start and replay their
# journals, connections that fell silent are given up, and at worst a few elections fail.
LIVENESS_BOUND_S = 20.0
SETTLE_S = 60.0
# All that a round does beside its faults has bounds of its own, which together are shorter than this.
OVERTIME_S = 240.0
STATUS_TIMEOUT_S = 0.4
WATCH_INTERVAL_S = 0.25
PARTITION_SCENES = (
    *("split", "isolate_leader", "isolate_one", "one_way", "partial", "chained", "flapping"),
    "clients_cut_off",
)
CLIENT_OPTIONS: Mapping[str, Any] = {"timeout": START_S}


@dataclass(frozen=True, slots=True)
class ChaosPlan:
    """What all rounds of a run have in common. `rate` is in calls per second."""

    seed: str
    rate: float
    replicas: int | None = None
    """Members of the cluster; None: 3 and 5 in turn."""

    def draw(self, number: int, seconds: float) -> Schedule:
        """The schedule of round `number`, from 1."""
        replicas = self.replicas or (3, 5)[number % 2 == 0]
        return draw_schedule(f"{self.seed}/{number}", seconds, replicas, fsync_errors=strace_command() is not None)


@dataclass(slots=True)
class RoundReport:
    """What one round did and found."""

    number: int
    replicas: int
    seconds: float = 0.0
    operations: int = 0
    operations_checked: int = 0
    operations_checked_by_clients_word: int = 0
    keys_searched: int = 0
    searches_given_up: int = 0
    ok: int = 0
    not_applied: int = 0
    unknown: int = 0
    kills: int = 0
    pauses: int = 0
    partitions: int = 0
    fsync_errors: int = 0
    bit_flips: int = 0
    frame_bit_flips: int = 0
    frames_broken: int = 0
    leader_changes: int = 0
    longest_gap_ms: float = 0.0
    recovery_ms: float = 0.0
    digests_equal: bool = False
    scenes: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def to_map(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        return asdict(self)


class Round:
    """One round, from the first start of its processes to the verdict."""

    def __init__(self, plan: ChaosPlan, number: int, schedule: Schedule, folder: Path) -> None:
        self.report = RoundReport(number, schedule.replicas)
        self.recorder = Recorder()
        self.logs: dict[int, list[Applied]] = {}
        self.digests: dict[int, str] = {}
        self._folder = folder
        self._schedule = schedule
        self._seed = f"{plan.seed}/{number}"
        self._rate = plan.rate
        self._cluster = ChaosCluster(folder, schedule.replicas, schedule.settings)
        self._leader: int | None = None
        self._touched: set[int] = set()
        self._leaders: list[tuple[int, int]] = []
        self._began = time.monotonic()
        self._events = folder / "events.jsonl"

    def say(self, what: str) -> None:
        """Write down what happens now."""
        with self._events.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"at_ns": monotonic_ns(), "what": what}) + "\n")

    async def run(self) -> None:
        """Play the round and judge it. Violations stand in the report; only what the harness cannot do is raised."""
        self.say(f"round {self._seed}: {self._schedule}")
        try:
            async with asyncio.timeout(self._schedule.seconds + OVERTIME_S):
                statuses = await self._play()
            self._judge(statuses)
        except Violation as violation:
            self._found(str(violation))
        except TimeoutError:
            self._found(f"the round has not ended {OVERTIME_S:g} s after its faults")
        finally:
            self._cluster.stop()
            self._sum_up()

    def _found(self, *problems: str) -> None:
        for problem in problems:
            self.say(f"VIOLATION: {problem}")
        self.report.violations += problems

    # --- under faults -------------------------------------------------------------------------------------------------

    async def _play(self) -> Statuses:
        """Run the cluster through the schedule, heal it, and return the statuses on which all replicas settled."""
        random = Random(f"{self._seed} network")
        cluster = self._cluster
        async with FaultNetwork(cluster.cluster, random) as network, self._watched() as monitor:
            cluster.network = network
            nemesis = Nemesis(self._schedule, cluster, network, lambda: self._leader, self.say)
            with cluster:
                await self._set_up(monitor)
                workload = Workload(network.addresses_for(CLIENTS), self.recorder, self._rate, self._seed)
                workload.start()
                try:
                    await nemesis.play()
                    await self._heal(network, workload)
                    await workload.stop()
                finally:
                    await workload.cancel()
                    self._count(nemesis, network)
                    self._touched = nemesis.rot.touched
                self._found(*workload.problems, *nemesis.problems)
                statuses = await self._settle(monitor)
                codes = await asyncio.to_thread(cluster.stop)
                if set(codes.values()) != {0}:
                    self._found(f"SIGTERM at the end: the exit codes are {codes}")
                return statuses

    async def _set_up(self, monitor: Client) -> None:
        """Wait for the first leader; write the one key that is no number."""
        command = encode_put(TEXT_KEY, b"no number")
        call = self.recorder.begin("set up", command, is_query=False)
        try:
            call.answer(await monitor.execute(command), monotonic_ns())
        except Exception as error:
            raise Violation(f"the cluster did not begin to work within {START_S:g} s: {error}") from error

    @contextlib.asynccontextmanager
    async def _watched(self) -> AsyncIterator[Client]:
        """A client that goes to the replicas without proxies, and a task that looks who leads and who died."""
        async with Client(self._cluster.cluster, **CLIENT_OPTIONS) as monitor:
            watcher = asyncio.create_task(self._watch(monitor))
            try:
                yield monitor
            finally:
                watcher.cancel()
                [ending] = await asyncio.gather(watcher, return_exceptions=True)
                if not isinstance(ending, asyncio.CancelledError):
                    self._found(f"the watcher of the replicas ended: {ending!r}")

    async def _watch(self, monitor: Client) -> None:
        reported: set[str] = set()
        while True:
            statuses = await read_statuses(monitor, self._cluster.cluster, STATUS_TIMEOUT_S)
            leader = leader_of(statuses)
            if leader is not None:
                ballot = next(entry["ballot"] for entry in statuses if entry["id"] == leader)
                if not self._leaders or self._leaders[-1] != (leader, ballot):
                    self._leaders.append((leader, ballot))
                    self.say(f"replica {leader} leads, ballot {ballot:#x}")
            self._leader = leader
            for problem in set(self._cluster.died()) - reported:
                reported.add(problem)
                self._found(problem)
            await asyncio.sleep(WATCH_INTERVAL_S)

    async def _heal(self, network: FaultNetwork, workload: Workload) -> None:
        """The liveness phase: everything is made whole, and the load must get answers again within the bound."""
        network.heal(reset=True)
        await self._cluster.restore()
        healed_ns = monotonic_ns()
        self.say("everything is healed")
        calls = self.recorder.calls
        first_after = len(calls)

        def answered() -> int | None:
            times = [
                call.answered_ns
                for call in calls[first_after:]
                if call.outcome is Outcome.OK and not call.is_query and call.answered_ns is not None
            ]
            return min(times, default=None)

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LIVENESS_BOUND_S):
                while answered() is None and not workload.problems:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        answered_ns = answered()
        if answered_ns is None:
            raise Violation(f"nothing was committed within {LIVENESS_BOUND_S:g} s after everything was healed")
        self.report.recovery_ms = round((answered_ns - healed_ns) / NS_PER_MS, 1)

    async def _settle(self, monitor: Client) -> Statuses:
        """Wait until all replicas have applied the same slots and have said so twice."""
        before: Statuses = []
        statuses: Statuses = []
        deadline = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline:
            statuses = await read_statuses(monitor, self._cluster.cluster, STATUS_TIMEOUT_S)
            if is_settled(statuses) and is_settled([*before, *statuses]):
                return statuses
            before = statuses
            await asyncio.sleep(0.1)
        raise Violation(f"the replicas do not agree {SETTLE_S:g} s after everything was healed: {statuses}")

    # --- the verdict --------------------------------------------------------------------------------------------------

    def _judge(self, statuses: Statuses) -> None:
        report = self.report
        for entry in statuses:
            node_id = entry["id"]
            data_dir = self._cluster.data_dir(node_id)
            self.logs[node_id] = applied_commands(read_log(data_dir, entry["applied_index"]))
            self.digests[node_id] = entry["digest"]
            if node_id not in self._touched:
                self._check_untouched(entry, journal_recovery.verify(journal_directory(data_dir)))
        verdict: Verdict = judge(self.recorder.calls, self.logs, self.digests)
        report.operations_checked = verdict.checked
        report.operations_checked_by_clients_word = verdict.checked_by_clients_word
        report.keys_searched, report.searches_given_up = verdict.keys_searched, verdict.searches_given_up
        report.digests_equal = len(set(self.digests.values())) == 1
        self._found(*verdict.problems)

    def _check_untouched(self, status: Mapping[str, Any], problems: list[str]) -> None:
        """Kills, failed fsyncs and everything else must leave a journal sound, and its replica a vote."""
        if problems:
            self._found(f"nothing damaged the journal of replica {status['id']}, and it is not sound: {problems}")
        if not status["voting"]:
            self._found(f"nothing damaged the journal of replica {status['id']}, and it has lost its vote")

    def _count(self, nemesis: Nemesis, network: FaultNetwork) -> None:
        report = self.report
        report.scenes = dict(sorted(nemesis.counts.items()))
        report.partitions = sum(nemesis.counts[kind] for kind in PARTITION_SCENES)
        report.fsync_errors = nemesis.fsync_errors
        report.bit_flips = nemesis.rot.count
        report.frame_bit_flips = network.flipped
        report.frames_broken = network.broken

    def _sum_up(self) -> None:
        report = self.report
        calls = self.recorder.calls
        outcomes = Counter(call.outcome for call in calls)
        report.operations = len(calls)
        report.ok = outcomes[Outcome.OK]
        report.not_applied = outcomes[Outcome.NOT_APPLIED]
        report.unknown = outcomes[Outcome.UNKNOWN]
        report.kills = self._cluster.kills
        report.pauses = self._cluster.pauses
        report.leader_changes = max(0, len(self._leaders) - 1)
        report.longest_gap_ms, gap_end_ns = longest_gap(calls)
        self.say(f"the longest time without a commit was {report.longest_gap_ms} ms and ended at {gap_end_ns} ns")
        report.seconds = round(time.monotonic() - self._began, 1)
        if report.violations:
            write_evidence(self._folder, calls, self.logs, self.digests)


def longest_gap(calls: list[Call]) -> tuple[float, int]:
    """The longest time without a commit in ms, as the acknowledged commands tell it, and when it ended in ns."""
    times = sorted(
        call.answered_ns
        for call in calls
        if call.outcome is Outcome.OK and not call.is_query and call.answered_ns is not None
    )
    gap_ns, end_ns = max(((after - before, after) for before, after in pairwise(times)), default=(0, 0))
    return round(gap_ns / NS_PER_MS, 1), end_ns


async def run_round(
    plan: ChaosPlan, number: int, seconds: float, folder: Path, tell: Callable[[str], None]
) -> RoundReport:
    """Play round `number` of a plan in an empty folder, which holds the evidence then; return its report."""
    schedule = plan.draw(number, seconds)
    tell(f"round {number}: {schedule.replicas} replicas, {seconds:.0f} s of faults")
    this = Round(plan, number, schedule, folder)
    await this.run()
    return this.report
