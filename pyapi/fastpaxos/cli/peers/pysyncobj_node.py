"""One process of a PySyncObj cluster. Who starts it sends requests over a pipe, and it ends when the pipe does.

PySyncObj is a library: its commands are called in the process of a node. So the load runs in the leader itself, which
spares it the way from a client. It unpickles what it receives, and therefore listens on 127.0.0.1 alone.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from fastpaxos.cli.latency import LatencyHistogram
from fastpaxos.cli.peers.peer import payloads

__all__ = ["NodeFailure", "NodeLoad", "NodeResult", "NodeSettings", "run_node"]

TICK_S = 0.05
LAST_ANSWERS_S = 5.0
PAYLOADS = 8


@dataclass(frozen=True, slots=True)
class NodeFailure:
    """What ended a node."""

    text: str


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """Settings of `SyncObjConf`; `busy` lets the leader poll without ever waiting (only without autoTick)."""

    options: dict[str, Any] = field(default_factory=dict)
    busy: bool = False

    @property
    def ticks_itself(self) -> bool:
        """PySyncObj has a thread of its own for its work, unless told otherwise."""
        return bool(self.options.get("autoTick", True))


@dataclass(frozen=True, slots=True)
class NodeLoad:
    """Keep `window` commands unanswered for `warmup_s` and then `seconds`."""

    window: int
    payload_bytes: int
    seconds: float
    warmup_s: float


@dataclass(slots=True)
class NodeResult:
    """What came back; the latencies only of a window of one. PySyncObj never answers some commands of a leader that
    lost its office: they are `unanswered`."""

    acknowledged: int = 0
    measured: int = 0
    errors: int = 0
    unanswered: int = 0
    latency: list[list[int]] = field(default_factory=list)


def make_chain(addresses: list[str], settings: NodeSettings) -> Any:
    """A node whose state machine does the job of the hash chain: it folds each command and counts."""
    import pysyncobj

    class Chain(pysyncobj.SyncObj):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(addresses[0], addresses[1:], pysyncobj.SyncObjConf(**settings.options))
            self.digest = 0
            self.count = 0

        @pysyncobj.replicated  # type: ignore[untyped-decorator]
        def add(self, command: bytes) -> int:
            self.digest = zlib.crc32(command, self.digest)
            self.count += 1
            return self.count

    return Chain()


def run_node(addresses: list[str], settings: NodeSettings, pipe: Connection) -> None:
    """Serve the pipe until its end; the first address is this node's own. What PySyncObj raises goes to the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for who started this process
    logging.disable(logging.CRITICAL)
    with contextlib.suppress(EOFError, BrokenPipeError):
        try:
            serve(make_chain(addresses, settings), settings, pipe)
        except EOFError:
            raise
        except Exception as error:
            pipe.send(NodeFailure(f"{type(error).__name__}: {error}"))


def serve(chain: Any, settings: NodeSettings, pipe: Connection) -> None:
    """Answer "leader", "state" and loads."""

    def turn() -> None:
        if settings.ticks_itself:
            time.sleep(0.001)
        else:
            chain.doTick(0.0 if settings.busy and chain._isLeader() else TICK_S)

    while True:
        while not pipe.poll(0):
            turn()
        request = pipe.recv()
        if request == "leader":
            pipe.send(chain.isReady() and chain._isLeader() and chain.hasQuorum)
        elif request == "state":
            pipe.send((chain.count, chain.digest))
        else:
            pipe.send(run_load(chain, turn, request))


def run_load(chain: Any, turn: Callable[[], None], load: NodeLoad) -> NodeResult:
    """Call the replicated method; each answer calls it again until the time is over. Then wait for the last answers."""
    result = NodeResult(unanswered=load.window)
    clock = time.perf_counter_ns
    commands = payloads(PAYLOADS, load.payload_bytes)
    samples: list[int] = []
    alone = load.window == 1
    measure_from = clock() + int(load.warmup_s * 1e9)
    end = measure_from + int(load.seconds * 1e9)
    begin = clock()

    def answered(_result: Any, error: int) -> None:
        nonlocal begin
        now = clock()
        if error:
            result.errors += 1
        else:
            result.acknowledged += 1
            if measure_from <= now <= end:
                result.measured += 1
            if alone and begin >= measure_from:
                samples.append(now - begin)
        if now < end and not result.errors:
            begin = now
            chain.add(commands[result.acknowledged % PAYLOADS], callback=answered)
        else:
            result.unanswered -= 1

    for number in range(load.window):
        chain.add(commands[number % PAYLOADS], callback=answered)
    give_up = end + int(LAST_ANSWERS_S * 1e9)
    while result.unanswered and clock() < give_up:
        turn()
    histogram = LatencyHistogram()
    histogram.record(samples)
    result.latency = histogram.to_sparse()
    return result
