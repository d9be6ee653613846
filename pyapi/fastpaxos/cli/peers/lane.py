"""A closed loop over raw connections: a request, its answer, the next request. Nothing else runs in between, so that
what is measured is the server and not a client library."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Protocol, cast

from fastpaxos.cli.latency import LatencyHistogram
from fastpaxos.cli.peers.peer import PeerError

__all__ = ["Answer", "LaneLoad", "run_lanes"]

ANSWER_TIMEOUT_S = 30.0


class Answer(Protocol):
    """Knows when the answer of a request is complete."""

    def take(self, data: bytes) -> bool:
        """Return whether the answer is complete with this piece. Raises PeerError if it says anything but success."""


class LaneLoad:
    """What all lanes of one load share: the requests, `commands` in each, the measured time, and what came back."""

    def __init__(self, requests: Sequence[bytes], commands: int, seconds: float, warmup_s: float) -> None:
        self.requests = requests
        self.commands = commands
        self.seconds = seconds
        self.warmup_s = warmup_s
        self.answered = 0  # requests
        self.measured = 0  # of them, in the measured time
        self.samples_ns: list[int] = []
        self.measure_from_ns = self.end_ns = 0

    @property
    def commands_per_second(self) -> float:
        """Commands answered in the measured time, per second."""
        return self.measured * self.commands / self.seconds

    def histogram(self) -> LatencyHistogram:
        """The latency of each request that began in the measured time."""
        histogram = LatencyHistogram()
        histogram.record(self.samples_ns)
        return histogram

    def begin(self) -> None:
        """The warm-up begins now."""
        self.measure_from_ns = time.perf_counter_ns() + int(self.warmup_s * 1e9)
        self.end_ns = self.measure_from_ns + int(self.seconds * 1e9)

    def count(self, begin_ns: int, now_ns: int) -> None:
        """A request was answered."""
        self.answered += 1
        if self.measure_from_ns <= now_ns <= self.end_ns:
            self.measured += 1
        if begin_ns >= self.measure_from_ns:
            self.samples_ns.append(now_ns - begin_ns)


class Lane(asyncio.Protocol):
    """One connection. `done` ends when the answer of its last request is there."""

    def __init__(self, load: LaneLoad, number: int, answer: Answer) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._load = load
        self._number = number
        self._answer = answer
        self._begin_ns = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self, now_ns: int) -> None:
        """The next request."""
        self._begin_ns = now_ns
        self._number += 1
        self._transport.write(self._load.requests[self._number % len(self._load.requests)])

    def data_received(self, data: bytes) -> None:
        try:
            complete = self._answer.take(data)
        except PeerError as error:
            self._transport.abort()
            self._end(error)
            return
        if not complete:
            return
        now_ns = time.perf_counter_ns()
        self._load.count(self._begin_ns, now_ns)
        if now_ns < self._load.end_ns:
            self.send(now_ns)
        else:
            self._end(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(PeerError(f"the server closed a connection: {error or 'end of stream'}"))

    def close(self) -> None:
        """Safe to call twice."""
        self._transport.abort()

    def _end(self, error: PeerError | None) -> None:
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


async def run_lanes(port: int, lanes: int, load: LaneLoad, make_answer: Callable[[], Answer]) -> None:
    """Open `lanes` connections to 127.0.0.1 and keep one request in flight on each until the load's time is over.

    Raises PeerError for an answer that is no success, and TimeoutError if an answer does not come.
    """
    loop = asyncio.get_running_loop()
    opened: list[Lane] = []
    try:
        async with asyncio.timeout(load.warmup_s + load.seconds + ANSWER_TIMEOUT_S):
            for number in range(lanes):
                # The lanes start at different requests, so that they do not all write the same key at once.
                first = number * len(load.requests) // lanes
                _, lane = await loop.create_connection(
                    lambda first=first: Lane(load, first, make_answer()),  # type: ignore[misc]
                    "127.0.0.1",
                    port,
                )
                opened.append(lane)
            load.begin()
            for lane in opened:
                lane.send(time.perf_counter_ns())
            await asyncio.gather(*(lane.done for lane in opened))
    finally:
        for lane in opened:
            lane.close()
            if lane.done.done() and not lane.done.cancelled():
                lane.done.exception()  # several may have failed; one is reported
