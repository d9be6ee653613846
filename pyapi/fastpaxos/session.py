"""The client's side of the protocol. Sans-I/O: time and frames go in, buffers and completions come out.

A `Session` batches commands into blocks, numbers them, keeps several in flight, and sends every unanswered block again,
byte for byte the same and oldest first, until it is answered or the session ends. It also chooses the node to talk to.
The same inputs give the same outputs; chance comes only from the random source that is passed in.

How a shell drives it (all on one thread):

- While `is_connected` is False: wait `wait_ns()`, connect to `address`, then `connected()` or `connect_failed()`.
- Each frame goes to `receive()`, the end of a connection to `disconnected()`, and the time to `tick()` about every
  10 ms while `needs_ticks`.
- After any of these, and after submitting: write `flush()`, hand out `take_completions()`, and close the transport if
  `is_connected` has become False.

A connection goes GREETING (hello sent) -> WAITING (this node does not lead, and who does is unknown or unreachable) or
OPENING (session being opened through the log) -> READY. A redirect ends it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from enum import Enum
from random import Random
from typing import Any

from fastpaxos.answers import Completion, parse_command_error
from fastpaxos.client_handshake import check_node_hello, client_hello, leader_of, members_of, refusal_error
from fastpaxos.command_queue import ClientLimits
from fastpaxos.errors import (
    Busy,
    ConfigError,
    FrameError,
    NoLeader,
    NotApplied,
    Rejected,
    TooLarge,
)
from fastpaxos.handshake import Hello, check_hello
from fastpaxos.leader_choice import LeaderChoice
from fastpaxos.pending_work import PendingWork
from fastpaxos_core.pending_block import PendingBlock
from fastpaxos_core.wire import (
    Frame,
    FrameType,
    FrameWriter,
    QueryReply,
    Reply,
    ReplyStatus,
    parse_mapping,
    parse_query_reply,
    parse_reply,
)

__all__ = ["Completion", "ConnectionState", "Session"]

logger = logging.getLogger(__name__)

NS_PER_MS = 1_000_000
NOT_READY_WAIT_NS = 10 * NS_PER_MS
BACKOFF_MIN_NS = 10 * NS_PER_MS
BACKOFF_MAX_NS = 500 * NS_PER_MS
LEADERLESS_PATIENCE_NS = 100 * NS_PER_MS
SILENCE_MAX_NS = 8_000 * NS_PER_MS
NONCE_BYTES = 16
DEADLINE_MS_MAX = (1 << 32) - 1


class ConnectionState(Enum):
    """Where the one connection stands."""

    DISCONNECTED = "disconnected"
    GREETING = "greeting"
    WAITING = "waiting"
    OPENING = "opening"
    READY = "ready"


DISCONNECTED = ConnectionState.DISCONNECTED
GREETING = ConnectionState.GREETING
READY = ConnectionState.READY

HELLO = int(FrameType.HELLO)
CONTROL = int(FrameType.CONTROL)
REPLY = int(FrameType.REPLY)
QUERY_REPLY = int(FrameType.QUERY_REPLY)


class Session(PendingWork):
    """One client of one cluster.

    Args:
        choice: the cluster's addresses.
        random: gives the nonces, the client's id and the jitter.
        limits: what may be sent; a node's hello can only lower it.
        blocks_in_flight_max: blocks that may be unanswered at a time.
        silence_timeout_ms: a node that owes an answer and says nothing for this long is left for another one. Doubles
            each time without progress, up to 8 s.
        is_abandoned: tells whether a waiter's caller has gone, so that its command need not be sent any more.

    Waiters are objects of the shell's choice; each is given back at most once, in a `Completion`. Deadlines are
    monotonic nanoseconds on the clock of `now_ns`.

    Attributes:
        session_id: 0 while no session is open.
        cluster_id: b"" until the first contact with a founded node; other clusters are refused from then on.
        limits_known: a node's hello has told its limits.
        unusable: says why no address can be used (all are of another cluster or protocol), "" otherwise.
        is_session_closed: the log has the close of this session, or there was none to close.
    """

    def __init__(
        self,
        choice: LeaderChoice,
        *,
        random: Random,
        limits: ClientLimits | None = None,
        blocks_in_flight_max: int = 32,
        silence_timeout_ms: int = 1_000,
        is_abandoned: Callable[[Any], bool] | None = None,
    ) -> None:
        super().__init__(limits if limits is not None else ClientLimits(), blocks_in_flight_max, is_abandoned)
        self.choice = choice
        self.session_id = 0
        self.cluster_id = b""
        self.limits_known = False
        self.unusable = ""
        self.is_session_closed = False
        self._random = random
        self._silence_timeout_ns = silence_timeout_ms * NS_PER_MS
        self._incarnation = random.getrandbits(64)
        self._writer = FrameWriter(0, self._incarnation, 0)
        self._out: list[bytes] = []
        self._nonce = random.randbytes(NONCE_BYTES)
        self._open_request = 0
        self._close_request = 0
        self._state = DISCONNECTED
        self._address = choice.target
        self._node_id = 0
        self._since_ns = 0
        self._heard_ns = 0
        self._silences = 0
        self._refusals = 0
        self._hold_until_ns = 0
        self._query_hold_until_ns = 0

    # --- facts --------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> ConnectionState:
        """Where the connection stands."""
        return self._state

    @property
    def is_connected(self) -> bool:
        """False when the shell must close the transport that it has, if any, and connect anew."""
        return self._state is not DISCONNECTED

    @property
    def address(self) -> str:
        """The address to connect to next."""
        return self.choice.target

    @property
    def node_id(self) -> int:
        """The node at the other end, 0 while unknown."""
        return self._node_id if self._state is not DISCONNECTED else 0

    @property
    def needs_ticks(self) -> bool:
        """Whether time matters now. False for an idle client with a standing connection."""
        is_settled = self._state is READY or self._state is DISCONNECTED
        return bool(not is_settled or self._inflight or self.queue or self._queries or self._close_request)

    def wait_ns(self, now_ns: int) -> int:
        """How long to wait before connecting to `address`."""
        return self.choice.wait_ns(now_ns)

    # --- connection ---------------------------------------------------------------------------------------------------

    def connected(self, now_ns: int) -> None:
        """A connection to `address` stands: greet."""
        self._address = self.choice.target
        self._state = GREETING
        self._node_id = 0
        self._since_ns = self._heard_ns = now_ns
        self._out = [self._writer.hello(client_hello(self._incarnation, self.cluster_id))]

    def connect_failed(self, error: Exception, now_ns: int) -> None:
        """`address` could not be reached."""
        self._note_failure(self.choice.target, error, now_ns)

    def disconnected(self, error: Exception | None, now_ns: int) -> None:
        """The connection ended, or sent what is no frame. Does nothing if the session has left it already."""
        if self._state is not DISCONNECTED:
            self._drop(error or ConnectionError("the node closed the connection"), now_ns)

    def receive(self, frame: Frame, now_ns: int) -> None:
        """Take one frame of the current connection. A wrong one ends the connection; nothing is raised."""
        if self._state is DISCONNECTED:
            return
        self._heard_ns = now_ns
        try:
            self._dispatch(frame, now_ns)
        except (FrameError, ConfigError) as error:
            self._drop(error, now_ns)

    def tick(self, now_ns: int) -> None:
        """Let time pass: deadlines, and patience with nodes that do not answer."""
        self._sweep(now_ns, self._address, self._not_sent_error)
        state = self._state
        if state is DISCONNECTED:
            return
        if state is ConnectionState.WAITING:
            if now_ns - self._since_ns > LEADERLESS_PATIENCE_NS:
                self._drop(NoLeader(f"node {self._node_id} knows no leader that can be reached"), now_ns)
            return
        limit_ns = min(self._silence_timeout_ns << min(self._silences, 8), SILENCE_MAX_NS)
        if now_ns - self._heard_ns > limit_ns and self._is_owed():
            self._silences += 1
            self._drop(TimeoutError(f"the node did not answer for {limit_ns // NS_PER_MS} ms"), now_ns)

    def flush(self, now_ns: int) -> list[bytes]:
        """Return everything that is to be written to the current connection now, in order."""
        state = self._state
        if state is READY or state is ConnectionState.OPENING:
            if not self._is_owed():
                self._heard_ns = now_ns  # the node's silence counts from the first thing that it owes
            if now_ns >= self._hold_until_ns:
                if state is READY:
                    self._send_blocks(now_ns)
                elif not self._open_request:
                    self._open_request = self._take_request_id()
                    self._control("open_session", self._open_request, nonce=self._nonce)
            if self._queries.to_send and now_ns >= self._query_hold_until_ns:
                self._send_queries(now_ns)
        if self._is_closing:
            self._close_session(now_ns)
        out, self._out = self._out, []
        return out

    # --- sending ------------------------------------------------------------------------------------------------------

    def _control(self, operation: str, request_id: int, **fields: Any) -> None:
        self._out.append(self._writer.control({"op": operation, "request_id": request_id, **fields}))

    def _send_blocks(self, now_ns: int) -> None:
        """Send again what must be, then number and send what is queued, as far as the limits allow."""
        inflight = self._inflight
        if inflight.needs_resend:
            for block in inflight.take_resends():
                self._send_block(block)
        queue = self.queue
        if queue:
            self._sweep_queue(now_ns, self._not_sent_error)
        while queue:
            cut = inflight.cut(queue, self.session_id)
            if cut is None:
                break
            self._send_block(cut)

    def _send_block(self, block: PendingBlock) -> None:
        block.request_id = request_id = self._next_request
        self._next_request = request_id + 1
        block.attempts += 1
        block.needs_send = False
        # No deadline goes with it: later blocks depend on this one even when nobody waits for it any more.
        self._out += self._writer.submit(block.data, request_id)

    def _send_queries(self, now_ns: int) -> None:
        for query_id, query in self._queries.take_sends():
            left_ms = max(1, min((query.deadline_ns - now_ns) // NS_PER_MS, DEADLINE_MS_MAX))
            self._out.append(self._writer.query(query_id, query.request, left_ms))

    def _close_session(self, now_ns: int) -> None:
        if self._open_request or self._close_request or not self.is_idle:
            return
        if not self.session_id:
            self.is_session_closed = True
        elif self._state is READY and now_ns >= self._hold_until_ns and not self.is_session_closed:
            self._close_request = self._take_request_id()
            self._control("close_session", self._close_request, session_id=self.session_id)

    # --- receiving ----------------------------------------------------------------------------------------------------

    def _dispatch(self, frame: Frame, now_ns: int) -> None:
        frame_type = frame.type
        if frame_type == REPLY and self._state is not GREETING:
            self._handle_reply(parse_reply(frame), now_ns)
        elif frame_type == HELLO:
            self._handle_hello(check_hello(parse_mapping(frame)), now_ns)
        elif frame_type == CONTROL:
            self._handle_control(parse_mapping(frame), now_ns)
        elif self._state is GREETING:
            raise FrameError(f"the first frame is {frame!r}, it is no hello")
        elif frame_type == QUERY_REPLY:
            self._handle_query_reply(parse_query_reply(frame), now_ns)
        else:
            raise FrameError(f"a node sent its client {frame!r}")

    def _handle_hello(self, hello: Hello, now_ns: int) -> None:
        if self._state is not GREETING:
            raise FrameError("a second hello on one connection")
        check_node_hello(hello, self._address, self.cluster_id)
        if hello.cluster_id and not self.cluster_id:
            self.cluster_id = self._writer.cluster_id = hello.cluster_id
        self._node_id = hello.node_id
        self.unusable = ""
        limits = hello.mapping.get("limits")
        if isinstance(limits, Mapping):
            for waiter, error in self.queue.set_limits(self._own_limits.lowered(limits)):
                self._answers.one(waiter, error)
            self.limits_known = True
        self.choice.learn(members_of(hello.mapping))
        self._follow(hello.mapping, now_ns)

    def _handle_control(self, message: Mapping[str, Any], now_ns: int) -> None:
        operation = message.get("op")
        request_id = message.get("request_id")
        if operation == "refused":
            raise refusal_error(message, self._address)
        if self._state is GREETING:
            raise FrameError(f"the first frame is the control message {operation!r}, it is no hello")
        if operation == "leader_changed":
            self._follow(message, now_ns)
        elif not isinstance(request_id, int) or not request_id:
            return
        elif request_id == self._open_request and operation in ("session_opened", "error"):
            self._open_request = 0
            self._handle_session_opened(message, now_ns)
        elif request_id == self._close_request and operation in ("session_closed", "error"):
            self._close_request = 0
            if message.get("status") in (ReplyStatus.OK, ReplyStatus.SESSION_UNKNOWN):
                self.is_session_closed = True
            else:
                self._handle_refusal(message.get("status"), message, now_ns)

    def _handle_session_opened(self, message: Mapping[str, Any], now_ns: int) -> None:
        status = message.get("status")
        if status != ReplyStatus.OK:
            self._handle_refusal(status, message, now_ns)
            return
        session_id = message.get("session_id")
        if isinstance(session_id, bool) or not isinstance(session_id, int) or not 0 < session_id < 1 << 64:
            raise FrameError(f"a session was opened with id {session_id!r}")
        self.session_id = session_id
        self._progressed()
        # The request was made in OPENING, and leaving that state forgets it.
        self._state = READY
        self._hold_until_ns = 0

    def _handle_reply(self, reply: Reply, now_ns: int) -> None:
        block = self._inflight.get(reply.first_sequence)
        if block is None or reply.session_id != self.session_id:
            return  # a second answer to what is answered, or one in a session that is over
        status = reply.status
        if status == ReplyStatus.OK:
            self._answers.block(block, reply)
            self._inflight.remove(block)
            self._progressed()
        elif status == ReplyStatus.RESULT_GONE:
            self._answer_gone(block)
            self._progressed()
        elif status == ReplyStatus.SESSION_UNKNOWN:
            self._end_session("the session expired, or was evicted because the cluster had too many (sessions_max)")
        elif block.needs_send or reply.request_id != block.request_id:
            return  # a refusal of an earlier attempt
        elif status == ReplyStatus.TOO_LARGE or status == ReplyStatus.MALFORMED:
            self._refuse_for_ever(block, status)
        else:
            # After Busy the earlier blocks still run there; in the other cases the node may have lost them.
            self._inflight.mark_for_resend(block.first_sequence if status == ReplyStatus.BUSY else 0)
            self._handle_refusal(status, {"leader_id": reply.leader_hint}, now_ns)

    def _handle_query_reply(self, reply: QueryReply, now_ns: int) -> None:
        query = self._queries.get(reply.query_id)
        if query is None:
            return
        status = reply.status
        if status == ReplyStatus.OK:
            self._answers.one(query.waiter, reply.result)
            self._progressed()
        elif status == ReplyStatus.COMMAND_ERROR:
            self._answers.one(query.waiter, parse_command_error(reply.result))
        elif status == ReplyStatus.TOO_LARGE:
            self._answers.one(query.waiter, TooLarge(f"node {self._node_id}: the query or its answer is too large"))
        elif status == ReplyStatus.MALFORMED:
            self._answers.one(query.waiter, Rejected(f"node {self._node_id} cannot read the query"))
        else:
            if not query.needs_send:
                self._queries.mark_for_resend(query)
                self._handle_refusal(status, {"leader_id": reply.leader_hint}, now_ns, is_query=True)
            return
        self._queries.remove(reply.query_id)

    def _handle_refusal(self, status: object, hint: Mapping[str, Any], now_ns: int, *, is_query: bool = False) -> None:
        """Something was refused for now and is marked to be sent again: decide when, and to whom."""
        wait_ns = NOT_READY_WAIT_NS
        if status == ReplyStatus.NOT_LEADER and hint.get("leader_id") != self._node_id:
            self._follow(hint, now_ns)
            return
        if status == ReplyStatus.CLOSING:
            self._drop(NoLeader(f"node {self._node_id} is shutting down"), now_ns)
            return
        if status in (ReplyStatus.BUSY, ReplyStatus.OUT_OF_ORDER, ReplyStatus.INVALID_SEQUENCE):
            wait_ns = min(BACKOFF_MIN_NS << min(self._refusals, 16), BACKOFF_MAX_NS)
            wait_ns = int(wait_ns * (0.5 + self._random.random()))
            self._refusals += 1
        elif status not in (ReplyStatus.NOT_READY, ReplyStatus.NOT_LEADER):
            raise FrameError(f"node {self._node_id} answered with status {status!r}, which does not fit the request")
        if is_query:
            self._query_hold_until_ns = max(self._query_hold_until_ns, now_ns + wait_ns)
        else:
            self._hold_until_ns = max(self._hold_until_ns, now_ns + wait_ns)

    # --- end of the session, deadlines ------------------------------------------------------------------------------

    def _end_session(self, reason: str) -> None:
        """This session is over: open another one."""
        self._answer_session_over(reason)
        self.session_id = 0
        self._nonce = self._random.randbytes(NONCE_BYTES)
        if self._state is READY:
            self._state = ConnectionState.OPENING
            self._hold_until_ns = 0

    def _refuse_for_ever(self, block: PendingBlock, status: int) -> None:
        """A node will never take this block, so nothing behind it can apply either: this session leads nowhere."""
        name = ReplyStatus(status).name
        text = f"node {self._node_id} refused a block of {block.count} commands and {len(block.data)} bytes with {name}"
        self._answer_refused(block, text, is_too_large=status == ReplyStatus.TOO_LARGE)
        self._control("close_session", self._take_request_id(), session_id=self.session_id)
        self._end_session(f"the session was given up because {text}")

    def _not_sent_error(self) -> NotApplied:
        """Why something could not be sent before its deadline."""
        if self._state is READY:
            return Busy(
                f"the deadline passed behind {self.pending_bytes} bytes that are queued or unanswered; nothing was sent"
            )
        return NoLeader(
            f"no leader could be reached before the deadline, so it was never sent; {self.choice.describe_errors()}"
        )

    # --- leader -------------------------------------------------------------------------------------------------------

    def _follow(self, hint: Mapping[str, Any], now_ns: int) -> None:
        """Somebody said who leads (0: nobody is known): stay if it is this node, go there, or wait here for news."""
        leader_id, leader_address = leader_of(hint)
        if leader_id and leader_id == self._node_id:
            self.choice.leader_id = leader_id
            if self._state is not READY and self._state is not ConnectionState.OPENING:
                self._state = READY if self.session_id else ConnectionState.OPENING
                self._hold_until_ns = self._query_hold_until_ns = 0
            return
        if leader_id and self.choice.redirect(leader_id, leader_address, now_ns):
            self._leave()
            return
        if not leader_id:
            self.choice.leader_id = 0
        if self._state is not ConnectionState.WAITING:
            self._state = ConnectionState.WAITING
            self._since_ns = now_ns
            self._unsend()

    def _leave(self) -> None:
        """End the connection; everything unanswered is to be sent again on the next one."""
        self._state = DISCONNECTED
        self._out.clear()
        self._unsend()

    def _unsend(self) -> None:
        self._open_request = self._close_request = 0
        self._inflight.mark_for_resend()
        self._queries.mark_all_for_resend()

    def _drop(self, error: Exception, now_ns: int) -> None:
        """The connection failed."""
        logger.debug("left node %d at %s: %s", self._node_id, self._address, error)
        self._leave()
        self._note_failure(self._address, error, now_ns)

    def _note_failure(self, address: str, error: Exception, now_ns: int) -> None:
        choice = self.choice
        if isinstance(error, ConfigError) and str(choice.errors.get(address)) != str(error):
            logger.warning("%s", error)
        choice.failed(address, error, now_ns)
        if all(isinstance(choice.errors.get(each), ConfigError) for each in choice.addresses):
            self.unusable = text = f"no address of the cluster can be used: {choice.describe_errors()}"
            self._answer_not_sent(lambda: ConfigError(text))

    def _progressed(self) -> None:
        self.choice.progressed(self._address)
        self._refusals = self._silences = 0

    def _is_owed(self) -> bool:
        """Whether the node owes an answer."""
        return bool(
            self._state is GREETING
            or self._open_request
            or self._close_request
            or self._inflight.is_owed()
            or self._queries.is_owed()
        )
