"""Simulated clients: real blocks, sequences, byte-identical retries, reconnects, duplicates and reads.

They speak the client frames of docs/protocol.md through the real writer and splitter, and note in a `ClientHistory`
what they asked for and what they were told. They are independent of `fastpaxos.session` on purpose: a client that
somebody else wrote must be as safe.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import msgpack

from fastpaxos_core.block import build_block
from fastpaxos_core.errors import FrameError
from fastpaxos_core.results import decode_results
from fastpaxos_core.wire import (
    Frame,
    FrameType,
    FrameWriter,
    ReplyStatus,
    parse_mapping,
    parse_query_reply,
    parse_reply,
)

from .history import ClientHistory, Read, Violation, Write
from .network import parse_frames
from .schedule import MILLISECOND_NS, Schedule

if TYPE_CHECKING:
    from random import Random

__all__ = ["ClientHost", "ClientOptions", "SimClient"]

# A gap in the log (an earlier block was lost with a leader) refuses one attempt; the next one may apply.
_GAP = (ReplyStatus.OUT_OF_ORDER, ReplyStatus.INVALID_SEQUENCE)
_REFUSED_FOR_NOW = (ReplyStatus.NOT_LEADER, ReplyStatus.NOT_READY, ReplyStatus.BUSY, *_GAP)
_RESEND_PAUSE_NS = 10 * MILLISECOND_NS
_NO_LEADER_PAUSE_NS = 60 * MILLISECOND_NS


@dataclass(frozen=True)
class ClientOptions:
    """How a client behaves. Probabilities are in 0..1, times in nanoseconds."""

    pipeline: int = 4
    """Blocks in flight."""
    commands_per_block_max: int = 8
    command_bytes_max: int = 40
    think_ns: int = 20 * MILLISECOND_NS
    """Longest pause before a new block or read."""
    reads: float = 0.2
    """Share of new operations that are reads."""
    retry_ns: int = 400 * MILLISECOND_NS
    duplicate: float = 0.0
    """Probability that a block is sent again at once, perhaps to another node."""
    frames_rot: bool = False
    """Frames may arrive damaged, so that a node may call a good block malformed."""
    reopen: float = 0.0
    """Probability per operation that the client closes its session when all is answered, and opens another."""


class ClientHost(Protocol):
    """What a client needs of its simulation."""

    schedule: Schedule
    history: ClientHistory

    def node_ids(self) -> list[int]:
        """All nodes, reachable or not."""

    def send_from_client(self, client: int, node: int, epoch: int, data: bytes, frame: Frame) -> None:
        """Carry one frame to a node; it may be lost. `client` is its address, below 0; `epoch` 0: no connection."""

    def note_submitted(self, block: bytes) -> None:
        """A client is about to send this block for the first time."""

    def note_nonce(self, nonce: bytes) -> None:
        """A client is about to open a session with this nonce."""


@dataclass(slots=True)
class _Attempted:
    write: Write
    attempts: int = 0


class SimClient:
    """One client with one session at a time.

    `stop()` ends new work; what is unanswered is retried until it is answered, as rule 5.9 demands.
    """

    def __init__(self, host: ClientHost, number: int, options: ClientOptions) -> None:
        self.host = host
        self.number = number
        self.name = f"client {number}"
        self.options = options
        self.stopped = False
        self.reads_answered = 0
        self.target = 0
        self.session_id = 0
        self.nonce = b""
        self.unanswered: OrderedDict[int, _Attempted] = OrderedDict()
        self.read_waiting: dict[int, Read] = {}
        self.sessions_lost: list[tuple[int, int]] = []
        """(session id, time) of every answer that a session is unknown."""
        self._closing = False
        self._opening: set[int] = set()
        self._answered: dict[int, Write] = {}
        self._next_sequence = 1
        self._next_request = 1
        self._command_number = 0
        self._sent_ns = 0
        self._resend_due = False
        self._writer = FrameWriter(0, number, 0)
        self._random: Random = host.schedule.random
        self.target = self._random.choice(host.node_ids())
        self._new_session()
        host.schedule.after(self._random.randrange(1, options.think_ns + 1), self._think)
        host.schedule.after(self._random.randrange(1, options.retry_ns), self._check_timeouts)

    @property
    def is_idle(self) -> bool:
        """Nothing is unanswered."""
        return not self.unanswered and not self.read_waiting

    def stop(self) -> None:
        """Begin nothing new."""
        self.stopped = True

    # New work

    def _think(self) -> None:
        if self.stopped:
            return
        random = self._random
        self.host.schedule.after(self.host.schedule.delay(1, self.options.think_ns), self._think)
        if not self.session_id or self._closing:
            return
        if random.random() < self.options.reads:
            self._read()
        elif len(self.unanswered) < self.options.pipeline:
            self._write()
        if self.options.reopen and random.random() < self.options.reopen:
            self._closing = True
            self._close_if_idle()

    def _write(self) -> None:
        random = self._random
        commands = []
        for _ in range(random.randint(1, self.options.commands_per_block_max)):
            self._command_number += 1
            filler = bytes(random.randrange(self.options.command_bytes_max + 1))
            commands.append(b"%d/%d:" % (self.number, self._command_number) + filler)
        oldest = next(iter(self.unanswered), self._next_sequence)
        block = build_block(commands, self.session_id, self._next_sequence, oldest)
        write = Write(self.name, self.session_id, self._next_sequence, block, self.host.schedule.now_ns)
        self._next_sequence += len(commands)
        self.host.history.writes.append(write)
        self.host.note_submitted(block)
        self.unanswered[write.first_sequence] = _Attempted(write)
        self._submit(write.first_sequence, self.target)
        if random.random() < self.options.duplicate:
            self._submit(write.first_sequence, random.choice(self.host.node_ids()))

    def _read(self) -> None:
        read = Read(self.name, self.host.schedule.now_ns)
        self.host.history.reads.append(read)
        query_id = self._request_number()
        self.read_waiting[query_id] = read
        self._send(self.target, self._writer.query(query_id, b""))

    def _submit(self, first_sequence: int, node: int) -> None:
        attempted = self.unanswered[first_sequence]
        attempted.attempts += 1
        request_id = self._request_number()
        self._sent_ns = self.host.schedule.now_ns
        self._send(node, b"".join(self._writer.submit(attempted.write.block, request_id)))

    def _new_session(self) -> None:
        self._closing = False
        self._opening.clear()
        self._answered.clear()
        self.session_id = 0
        self.nonce = self._random.randbytes(16)
        self._next_sequence = 1
        self.host.note_nonce(self.nonce)
        self._open()

    def _open(self) -> None:
        self._opening.add(self._control({"op": "open_session", "nonce": self.nonce}))

    def _close_if_idle(self) -> None:
        if self._closing and not self.unanswered and self.session_id:
            self._control({"op": "close_session", "session_id": self.session_id})

    def _control(self, message: dict[str, Any]) -> int:
        self._sent_ns = self.host.schedule.now_ns
        request_id = self._request_number()
        self._send(self.target, self._writer.control({**message, "request_id": request_id}))
        return request_id

    def _request_number(self) -> int:
        self._next_request += 1
        return self._next_request

    def _send(self, node: int, data: bytes) -> None:
        [(_, frame)] = parse_frames(data)
        self.host.send_from_client(-self.number, node, 0, data, frame)

    # Retries

    def _check_timeouts(self) -> None:
        """Resend what has been unanswered for too long, oldest first, to the next node."""
        self.host.schedule.after(self.options.retry_ns // 2, self._check_timeouts)
        waits = self.unanswered or not self.session_id or self._closing
        if waits and self.host.schedule.now_ns - self._sent_ns >= self.options.retry_ns:
            self.target = self._random.choice(self.host.node_ids())
            self.resend()
        for query_id, read in list(self.read_waiting.items()):
            if self.host.schedule.now_ns - read.invoked_ns > self.options.retry_ns:
                # A read changes nothing, so an unanswered one is given up.
                del self.read_waiting[query_id]

    def resend(self) -> None:
        """Send everything unanswered to the present target, byte-identical and oldest first."""
        if not self.session_id:
            self._open()
        elif self.unanswered:
            for first_sequence in list(self.unanswered):
                self._submit(first_sequence, self.target)
        else:
            self._close_if_idle()

    def _redirect(self, node: int, leader_hint: int) -> None:
        """The node does not lead: go to its hint, else (soon) anywhere."""
        if node != self.target:
            return
        self.target = leader_hint or self._random.choice(self.host.node_ids())
        if self.target != node:
            self._resend_later(_RESEND_PAUSE_NS if leader_hint else _NO_LEADER_PAUSE_NS)

    # Answers

    def receive(self, node: int, frame: Frame) -> None:
        """One frame from a node."""
        try:
            self._dispatch(node, frame)
        except FrameError:
            if not self.options.frames_rot:
                raise

    def _dispatch(self, node: int, frame: Frame) -> None:
        if frame.type == FrameType.REPLY:
            self._handle_reply(node, frame)
        elif frame.type == FrameType.QUERY_REPLY:
            self._handle_query_reply(node, frame)
        elif frame.type == FrameType.CONTROL:
            self._handle_control(node, parse_mapping(frame))
        else:
            raise Violation(f"{self.name} got a frame of type {frame.type}")

    def _handle_reply(self, node: int, frame: Frame) -> None:
        reply = parse_reply(frame)
        if reply.session_id != self.session_id:
            return
        if reply.first_sequence not in self.unanswered:
            # A duplicate: whatever it says must be what the first answer said.
            answered = self._answered.get(reply.first_sequence)
            if answered is not None and reply.status == ReplyStatus.OK:
                answered.answer(decode_results(frame.body, reply.command_count), self.host.schedule.now_ns)
            return
        attempted = self.unanswered[reply.first_sequence]
        write = attempted.write
        if reply.status == ReplyStatus.MALFORMED and self.options.frames_rot:
            # A bit flipped on the way, and the node noticed: the next attempt may arrive whole.
            self._resend_later(_RESEND_PAUSE_NS)
            return
        if reply.status in _REFUSED_FOR_NOW:
            if reply.status == ReplyStatus.NOT_LEADER:
                self._redirect(node, reply.leader_hint)
            elif reply.status in _GAP and node == self.target:
                self._resend_later(_RESEND_PAUSE_NS)
            return
        if reply.status == ReplyStatus.OK:
            results = decode_results(frame.body, reply.command_count)
            write.positions = []
            for result in results:
                if not isinstance(result, bytes):
                    raise Violation(f"{self.name} was told that its command failed: {result}")
                write.positions.append(int.from_bytes(result, "little"))
            write.answer(results, self.host.schedule.now_ns)
            self._answered[reply.first_sequence] = write
            del self.unanswered[reply.first_sequence]
            self._close_if_idle()
            return
        if reply.status == ReplyStatus.RESULT_GONE:
            raise Violation(f"the results of write {write.first_sequence} of {self.name} are gone before it had them")
        if reply.status == ReplyStatus.SESSION_UNKNOWN:
            # Only a first attempt is disproved by it: an earlier one may have applied before the session ended.
            write.refused = attempted.attempts == 1
            self._session_lost()
            return
        raise Violation(f"write {write.first_sequence} of {self.name} was answered {ReplyStatus(reply.status).name}")

    def _resend_later(self, pause_ns: int) -> None:
        """Something was refused: send all again soon, once for all the refusals that arrive together."""
        if not self._resend_due:
            self._resend_due = True
            self.host.schedule.after(pause_ns, self._resend_now)

    def _resend_now(self) -> None:
        self._resend_due = False
        self.resend()

    def _session_lost(self) -> None:
        self.sessions_lost.append((self.session_id, self.host.schedule.now_ns))
        self.unanswered.clear()
        self._new_session()

    def _handle_query_reply(self, node: int, frame: Frame) -> None:
        reply = parse_query_reply(frame)
        read = self.read_waiting.pop(reply.query_id, None)
        if read is None:
            return
        if reply.status == ReplyStatus.OK:
            read.answered_ns = self.host.schedule.now_ns
            read.result, read.read_index, read.status = bytes(reply.result), reply.read_index, int(reply.status)
            self.reads_answered += 1
            _, read.count, _ = msgpack.unpackb(reply.result)
        elif reply.status == ReplyStatus.NOT_LEADER:
            self._redirect(node, reply.leader_hint)

    def _handle_control(self, node: int, message: dict[str, Any]) -> None:
        operation = message["op"]
        if operation == "session_opened":
            if message["request_id"] in self._opening and not self.session_id:
                self.session_id = message["session_id"]
                self._next_sequence = 1
        elif operation == "session_closed":
            if message["session_id"] == self.session_id and self._closing:
                self._new_session()
        elif operation == "refused":
            raise Violation(f"{self.name} was refused: {message}")
        elif operation == "error" and message["status"] == ReplyStatus.NOT_LEADER:
            self._redirect(node, message["leader_id"])
