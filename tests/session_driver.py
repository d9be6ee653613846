"""Drives a client session without I/O: virtual time, one node's end at a time. For the tests of the client side."""

from __future__ import annotations

import random
from typing import Any

from fake_node import NodeEnd, Received, Submitted
from fastpaxos.answers import Completion
from fastpaxos.command_queue import ClientLimits
from fastpaxos.leader_choice import LeaderChoice
from fastpaxos.session import Session
from fastpaxos_core.wire import FrameSplitter, ReplyStatus

MS = 1_000_000
MEMBERS = {1: "a:1", 2: "b:2", 3: "c:3"}
FAR_NS = 1_000_000 * MS


class SessionDriver:
    """A session, its clock, and what its callers got: `answers[waiter]` is a result or an exception."""

    def __init__(self, seed: int = 1, *, members: dict[int, str] | None = None, **options: Any) -> None:
        self.random = random.Random(seed)
        self.abandoned: set[Any] = set()
        choice = LeaderChoice(MEMBERS if members is None else members, random=self.random)
        self.session = Session(choice, random=self.random, is_abandoned=self.abandoned.__contains__, **options)
        self.now_ns = 5_000 * MS
        self.end = NodeEnd()
        self.answers: dict[Any, Any] = {}
        self.order: list[Any] = []
        self._splitter = FrameSplitter(1 << 21, 1 << 24)

    def connect(self, node_id: int = 1) -> Received:
        """Connect to the address the session wants and return what it says first."""
        assert not self.session.is_connected
        self.advance(0, self.session.wait_ns(self.now_ns))
        self.end = NodeEnd(node_id)
        self._splitter = FrameSplitter(1 << 21, 1 << 24)
        self.session.connected(self.now_ns)
        return self.flush()

    def greet(self, leader_id: int | None = None, **fields: Any) -> Received:
        """The node says hello; by default it leads."""
        return self.receive(self.end.hello(self.end.node_id if leader_id is None else leader_id, **fields))

    def open(self, session_id: int = 7, **fields: Any) -> SessionDriver:
        """Connect, and open the session at a leading node."""
        self.connect()
        request = self.greet(**fields).controls[0]
        self.receive(self.opened(request["request_id"], session_id))
        assert self.session.session_id == session_id
        return self

    def opened(self, request_id: int, session_id: int = 7, status: int = ReplyStatus.OK) -> bytes:
        return self.control(op="session_opened", request_id=request_id, session_id=session_id, status=int(status))

    def control(self, **message: Any) -> bytes:
        return self.end.writer.control(message)

    def receive(self, data: bytes) -> Received:
        """Bytes of the node arrive; returns what the session sends next."""
        for frame in self._splitter.feed(data):
            self.session.receive(frame, self.now_ns)
        return self.flush()

    def flush(self) -> Received:
        buffers = self.session.flush(self.now_ns)
        self._take_answers()
        return Received(self.end.splitter.feed(b"".join(buffers)))

    def advance(self, milliseconds: float = 0, nanoseconds: int = 0) -> Received:
        """Let time pass, with a tick every 10 ms as a shell does, and return everything that was sent."""
        until_ns = self.now_ns + int(milliseconds * MS) + nanoseconds
        buffers: list[bytes] = []
        while self.now_ns < until_ns:
            self.now_ns = min(self.now_ns + 10 * MS, until_ns)
            self.session.tick(self.now_ns)
            buffers += self.session.flush(self.now_ns)
            self._take_answers()
        return Received(self.end.splitter.feed(b"".join(buffers)))

    def submit(self, *commands: bytes, timeout_ms: int = 5_000) -> Received:
        """Submit commands that are their own waiters, and flush."""
        for command in commands:
            self.session.submit(command, command, self.now_ns + timeout_ms * MS)
        return self.flush()

    def query(self, request: bytes, timeout_ms: int = 5_000) -> Received:
        self.session.query(request, request, self.now_ns + timeout_ms * MS)
        return self.flush()

    def ok(self, submitted: Submitted, results: list[Any] | None = None) -> Received:
        return self.receive(self.end.ok(submitted, results))

    def refuse(self, submitted: Submitted, status: int, leader_hint: int = 0) -> Received:
        return self.receive(self.end.refuse(submitted, status, leader_hint))

    def lose_connection(self) -> None:
        self.session.disconnected(None, self.now_ns)
        self._take_answers()

    def _take_answers(self) -> None:
        for completion in self.session.take_completions():
            self._take(completion)

    def _take(self, completion: Completion) -> None:
        assert len(completion.waiters) == len(completion.results)
        assert completion.has_errors == any(isinstance(result, Exception) for result in completion.results)
        for waiter, result in zip(completion.waiters, completion.results, strict=True):
            if waiter is not None:
                assert waiter not in self.answers, f"{waiter!r} was answered twice"
                self.answers[waiter] = result
                self.order.append(waiter)


def limits(**values: int) -> ClientLimits:
    return ClientLimits(**values)
