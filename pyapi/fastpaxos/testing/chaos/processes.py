"""Replica processes that reach each other through proxies, and what a chaos run does to them.

It knows which replicas it ended itself: any other end is a finding.
"""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from fastpaxos.cli.cluster_process import STOP_TIMEOUT_S, ClusterProcess
from fastpaxos.testing.fault_proxy import FaultNetwork
from fastpaxos.testing.history import Violation

__all__ = ["ChaosCluster", "FaultCluster", "strace_command"]

FSYNC_CALLS = "fdatasync"
TRACE_OPTIONS = ("-f", "-qq", "--seccomp-bpf")
TRACE_SUFFIX = ".strace"
INJECTED = b"(INJECTED)"


class FaultCluster(ClusterProcess):
    """Replica processes that reach each other through `network`, if there is one."""

    network: FaultNetwork | None = None

    def start(self, node_id: int, *, tracer: Sequence[str] = ()) -> None:
        """Start replica `node_id`, or start it again on what its disk holds."""
        members = self.cluster
        if self.network is not None:
            self.cluster = self.network.addresses_for(node_id)
        try:
            super().start(node_id, tracer=tracer)
        finally:
            self.cluster = members

    def logs(self) -> str:
        """The end of every replica's log."""
        return "\n".join(f"--- log of replica {node_id}\n{self.log_tail(node_id)}" for node_id in self.cluster)


@functools.cache
def strace_command() -> str | None:
    """Where a `strace` is that may trace processes here, or None: then fsync errors cannot be injected."""
    strace = shutil.which("strace")
    if strace is None:
        return None
    trial = [strace, *TRACE_OPTIONS, "-o", os.devnull, "-e", f"trace={FSYNC_CALLS}", "--", "true"]
    done = subprocess.run(trial, stdin=subprocess.DEVNULL, capture_output=True, timeout=STOP_TIMEOUT_S, check=False)
    return strace if done.returncode == 0 else None


class ChaosCluster(FaultCluster):
    """The replicas of one round. Members that are down, paused or about to fail are known by name.

    Attributes:
        kills, pauses: how often a running replica got SIGKILL, and SIGSTOP.
        down: members that were stopped on purpose and not started again.
        paused: members that sleep.
        failing: members whose fsync is going to fail: they must stop on their own.
    """

    def __init__(self, folder: Path, replicas: int, settings: dict[str, object]) -> None:
        super().__init__(folder, replicas, machine="kv", settings=settings)
        self.kills = 0
        self.pauses = 0
        self.down: set[int] = set()
        self.paused: set[int] = set()
        self.failing: set[int] = set()

    @property
    def members(self) -> list[int]:
        """All node ids."""
        return list(self.cluster)

    @property
    def up(self) -> list[int]:
        """Members that run, asleep or awake, and are not about to fail."""
        return [node_id for node_id in self.cluster if node_id not in self.down | self.failing]

    def died(self) -> list[str]:
        """What there is to say about replicas that ended although nobody ended them."""
        running = set(self.running())
        return [
            f"replica {node_id} ended on its own; the end of its log:\n{self.log_tail(node_id)}"
            for node_id in self.up
            if node_id not in running
        ]

    async def take_down(self, node_ids: list[int], *, cleanly: bool = False) -> list[int]:
        """SIGKILL members at once, or SIGTERM them, and wait until they are gone. Returns those that had been up."""
        victims = [node_id for node_id in node_ids if node_id in self.up]
        self.down |= {*victims}
        self.paused -= {*victims}
        if not cleanly:
            self.kills += len(victims)
        await asyncio.gather(*(asyncio.to_thread(self.end if cleanly else self.kill, each) for each in victims))
        return victims

    def end(self, node_id: int) -> None:
        """SIGTERM replica `node_id` and wait until it has ended. Raises Violation if it does not."""
        self._signal(node_id, signal.SIGTERM)
        self._signal(node_id, signal.SIGCONT)
        try:
            self._processes[node_id].wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise Violation(
                f"replica {node_id} has not ended {STOP_TIMEOUT_S:g} s after SIGTERM", "processes"
            ) from error

    def bring_up(self, node_ids: list[int]) -> None:
        """Start members that are down."""
        for node_id in node_ids:
            if node_id in self.down:
                self.start(node_id)
                self.down.discard(node_id)

    def sleep(self, node_ids: list[int]) -> None:
        """SIGSTOP members that are up and awake."""
        for node_id in node_ids:
            if node_id in self.up and node_id not in self.paused:
                self.pause(node_id)
                self.paused.add(node_id)
                self.pauses += 1

    def wake(self, node_ids: list[int]) -> None:
        """SIGCONT members that sleep."""
        for node_id in node_ids:
            if node_id in self.paused:
                self.resume(node_id)
                self.paused.discard(node_id)

    def trace_file(self, node_id: int) -> Path:
        """Where strace writes what it injected into replica `node_id`."""
        return self.folder / f"replica-{node_id}{TRACE_SUFFIX}"

    def start_with_fsync_error(self, node_id: int, call_number: int) -> None:
        """Start a member that is down, under strace: its fdatasync call of that number, and all later ones, fail."""
        strace = strace_command()
        assert strace is not None
        inject = f"inject={FSYNC_CALLS}:error=EIO:when={call_number}+"
        trace_file = self.trace_file(node_id)
        trace_file.unlink(missing_ok=True)
        tracer = [strace, *TRACE_OPTIONS, "-o", str(trace_file)]
        self.start(node_id, tracer=[*tracer, "-e", f"trace={FSYNC_CALLS}", "-e", inject, "--"])
        self.down.discard(node_id)
        self.failing.add(node_id)

    def has_fsync_error(self, node_id: int) -> bool:
        """Whether strace has let an fdatasync of replica `node_id` fail."""
        trace_file = self.trace_file(node_id)
        return trace_file.exists() and INJECTED in trace_file.read_bytes()

    def is_running(self, node_id: int) -> bool:
        """Whether the process of replica `node_id` lives."""
        return node_id in self.running()

    async def end_fsync_error(self, node_id: int) -> None:
        """Count a member that failed as one that is down; kill it if it lives."""
        self.failing.discard(node_id)
        if self.is_running(node_id):
            self.kills += 1
            await asyncio.to_thread(self.kill, node_id)
        self.down.add(node_id)

    def exit_code(self, node_id: int) -> int | None:
        """The exit code of the last process of replica `node_id`, None while it runs."""
        return self._processes[node_id].poll()

    def stop(self) -> dict[int, int]:
        """End every replica; see `ClusterProcess.stop`."""
        self.down.update(self.cluster)
        return super().stop()

    async def restore(self) -> None:
        """Wake and start everybody."""
        self.wake(self.members)
        for node_id in [*self.failing]:
            await self.end_fsync_error(node_id)
        self.bring_up(self.members)
