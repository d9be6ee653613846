"""A closed loop over raw connections: each answer sends the next request. Nothing else runs in between, so that what
is measured is the server and not a client library."""

from __future__ import annotations

import asyncio
import functools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol, cast

from fastpaxos.cli.latency import LatencyHistogram
from fastpaxos.cli.peers.peer import PeerError

__all__ = ["Answer", "Lane", "LaneLoad", "SerialLane", "run_lanes"]

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


class Lane(asyncio.Protocol, ABC):
    """One connection. `done` ends when its time is over and the last answer is there, or with a PeerError.

    A subclass sends the first requests in `start`, and in `take` the next ones when answers are complete.
    """

    def __init__(self, load: LaneLoad, number: int) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.load = load
        self._number = number

    @abstractmethod
    def start(self) -> None:
        """Send the first requests."""

    @abstractmethod
    def take(self, data: bytes) -> None:
        """What the server sent. Raises PeerError if it is no success."""

    def next_request(self) -> bytes:
        """The requests in turn."""
        self._number += 1
        return self.load.requests[self._number % len(self.load.requests)]

    def write(self, data: bytes) -> None:
        """Send bytes."""
        self._transport.write(data)

    def close(self) -> None:
        """Safe to call twice."""
        self._transport.abort()

    def finish(self, error: PeerError | None = None) -> None:
        """All is answered, or nothing more will be."""
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self.take(data)
        except PeerError as error:
            self.finish(error)
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.finish(PeerError(f"the server closed a connection: {error or 'end of stream'}"))


class SerialLane(Lane):
    """One request in flight."""

    def __init__(self, load: LaneLoad, number: int, answer: Answer) -> None:
        super().__init__(load, number)
        self._answer = answer
        self._begin_ns = 0

    def start(self) -> None:
        self._send(time.perf_counter_ns())

    def take(self, data: bytes) -> None:
        if not self._answer.take(data):
            return
        now_ns = time.perf_counter_ns()
        self.load.count(self._begin_ns, now_ns)
        if now_ns < self.load.end_ns:
            self._send(now_ns)
        else:
            self.finish()

    def _send(self, now_ns: int) -> None:
        self._begin_ns = now_ns
        self.write(self.next_request())


async def run_lanes(port: int, lanes: int, load: LaneLoad, make_lane: Callable[[int], Lane]) -> None:
    """Open `lanes` connections to 127.0.0.1 and keep requests in flight on each until the load's time is over.

    `make_lane` gets the number of a lane's first request. Raises PeerError for an answer that is no success, and
    TimeoutError if an answer does not come.
    """
    loop = asyncio.get_running_loop()
    opened: list[Lane] = []
    try:
        async with asyncio.timeout(load.warmup_s + load.seconds + ANSWER_TIMEOUT_S):
            for number in range(lanes):
                # The lanes start at different requests, so that they do not all write the same key at once.
                make = functools.partial(make_lane, number * len(load.requests) // lanes)
                _, lane = await loop.create_connection(make, "127.0.0.1", port)
                opened.append(lane)
            load.begin()
            for lane in opened:
                lane.start()
            await asyncio.gather(*(lane.done for lane in opened))
    finally:
        for lane in opened:
            lane.close()
            if lane.done.done() and not lane.done.cancelled():
                lane.done.exception()  # several may have failed; one is reported
