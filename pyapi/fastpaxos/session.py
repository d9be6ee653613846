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
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from random import Random
from typing import Any

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

from fastpaxos.answers import Answers, BlockReply, Completion, parse_command_error
from fastpaxos.command_queue import ClientLimits, CommandQueue, PendingBlock
from fastpaxos.errors import (
    Busy,
    Closed,
    ConfigError,
    ConnectionLost,
    DeadlineExceeded,
    FrameError,
    NoLeader,
    NotApplied,
    OutcomeUnknown,
    Rejected,
    ResultGone,
    SessionExpired,
    TooLarge,
)
from fastpaxos.handshake import GROUP_ID, PROTOCOL_MAX, PROTOCOL_MIN, Hello, check_hello
from fastpaxos.inflight import InflightBlocks, PendingQueries, PendingQuery
from fastpaxos.leader_choice import LeaderChoice

__all__ = ["BlockReply", "Completion", "ConnectionState", "Session"]

logger = logging.getLogger(__name__)

NS_PER_MS = 1_000_000
NOT_READY_WAIT_NS = 10 * NS_PER_MS
BACKOFF_MIN_NS = 10 * NS_PER_MS
BACKOFF_MAX_NS = 500 * NS_PER_MS
LEADERLESS_PATIENCE_NS = 100 * NS_PER_MS
SILENCE_MAX_NS = 8_000 * NS_PER_MS
NONCE_BYTES = 16
DEADLINE_MS_MAX = (1 << 32) - 1
# A refusal with one of these reasons does not go away by trying again.
CONFIG_REASONS = frozenset({"cluster", "group", "kind", "protocol"})


class ConnectionState(Enum):
    """Where the one connection stands."""

    DISCONNECTED = "disconnected"
    GREETING = "greeting"
    WAITING = "waiting"
    OPENING = "opening"
    READY = "ready"


DISCONNECTED = ConnectionState.DISCONNECTED
READY = ConnectionState.READY


class Session:
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
        self.choice = choice
        self.session_id = 0
        self.cluster_id = b""
        self.limits_known = False
        self.is_session_closed = False
        self._random = random
        self._limits = limits if limits is not None else ClientLimits()
        self._is_abandoned = is_abandoned
        self._silence_timeout_ns = silence_timeout_ms * NS_PER_MS
        self._incarnation = random.getrandbits(64)
        self._writer = FrameWriter(0, self._incarnation, 0)
        self._queue = CommandQueue(self._limits, is_abandoned)
        self._inflight = InflightBlocks(blocks_in_flight_max)
        self._queries = PendingQueries()
        self._answers = Answers()
        self._out: list[bytes] = []
        self._nonce = random.randbytes(NONCE_BYTES)
        self._next_request = 1
        self._open_request = 0
        self._close_request = 0
        self._is_closing = False
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
    def limits(self) -> ClientLimits:
        """The limits in force."""
        return self._queue.limits

    @property
    def pending_bytes(self) -> int:
        """Bytes charged for all that is queued or unanswered; a command with a waiter of its own costs 64 more."""
        return self._queue.charge + self._inflight.charge + self._queries.charge

    @property
    def room_bytes(self) -> int:
        """Bytes that may still be submitted; negative when more than allowed is pending."""
        return self._limits.inflight_bytes_max - self.pending_bytes

    @property
    def is_idle(self) -> bool:
        """No caller waits for anything."""
        if self._queue or self._queries:
            return False
        gone = self._is_abandoned
        return all(gone is not None and gone(waiter) for waiter in self._inflight.live_waiters())

    @property
    def needs_ticks(self) -> bool:
        """Whether time matters now. False for an idle client with a standing connection."""
        is_settled = self._state is READY or self._state is DISCONNECTED
        return bool(not is_settled or self._inflight or self._queue or self._queries or self._close_request)

    def wait_ns(self, now_ns: int) -> int:
        """How long to wait before connecting to `address`."""
        return self.choice.wait_ns(now_ns)

    # --- work ---------------------------------------------------------------------------------------------------------

    def has_room(self, size: int) -> bool:
        """Whether `size` more bytes may be submitted now. Anything fits when nothing is pending."""
        pending_bytes = self._queue.charge + self._inflight.charge + self._queries.charge
        return pending_bytes + size <= self._limits.inflight_bytes_max or not pending_bytes

    def submit(self, command: bytes, waiter: Any, deadline_ns: int) -> None:
        """Queue one command. Raises Busy, TooLarge, Closed."""
        if self._is_closing or not self.has_room(len(command)):
            self._refuse_work(len(command))
        self._queue.add(command, waiter, deadline_ns)

    def submit_list(self, commands: Sequence[bytes], waiter: Any, deadline_ns: int, *, is_raw: bool = False) -> None:
        """Queue `commands`, all of them bytes, as exactly one block with one waiter, which gets the list of results.

        Failed commands have a CommandError in that list. With `is_raw` the waiter gets a `BlockReply` instead. The
        sequence must not change afterwards. Raises Busy, TooLarge, Closed, ValueError for an empty list.
        """
        if self._is_closing or not self.has_room(1):
            self._refuse_work(1)
        self._queue.add_list(commands, waiter, deadline_ns, is_raw=is_raw)

    def query(self, request: bytes, waiter: Any, deadline_ns: int) -> None:
        """Ask a linearizable read. Raises Busy, TooLarge, Closed."""
        if self._is_closing or not self.has_room(len(request)):
            self._refuse_work(len(request))
        self._queue.check_command_bytes(len(request))
        self._queries.add(self._take_request_id(), PendingQuery(request, waiter, deadline_ns))

    def close(self) -> None:
        """Take no more work. When all callers have their answers, the session is closed through the log."""
        self._is_closing = True

    def abandon(self, reason: str) -> None:
        """Give every caller an error now: Closed for what was never sent, ConnectionLost for the rest."""
        self._is_closing = True
        self._answers.fail(self._queue.clear(), lambda: Closed(f"{reason}; the command was never sent"))
        self._answers.fail(
            self._inflight.live_waiters(),
            lambda: ConnectionLost(
                f"{reason} while the command had no answer; it may have been applied, look before doing it again"
            ),
        )
        self._inflight.clear()
        for query in self._queries.clear():
            if query.attempts:
                self._answers.one(query.waiter, ConnectionLost(f"{reason} before the query was answered").of_query())
            else:
                self._answers.one(query.waiter, Closed(f"{reason}; the query was never sent"))

    def take_completions(self) -> list[Completion]:
        """Return the answers since the last call, in the order in which they came."""
        return self._answers.take() if self._answers else []

    def _refuse_work(self, size: int) -> None:
        if self._is_closing:
            raise Closed("the client is closed and takes no more work; open a new one")
        raise Busy(
            f"{self.pending_bytes} bytes are queued or unanswered and {size} more would exceed inflight_bytes_max "
            f"{self._limits.inflight_bytes_max}; await answers or ready_to_submit()"
        )

    # --- connection ---------------------------------------------------------------------------------------------------

    def connected(self, now_ns: int) -> None:
        """A connection to `address` stands: greet."""
        self._address = self.choice.target
        self._state = ConnectionState.GREETING
        self._node_id = 0
        self._since_ns = self._heard_ns = now_ns
        hello = {
            "protocol_min": PROTOCOL_MIN,
            "protocol_max": PROTOCOL_MAX,
            "kind": "client",
            "features": 0,
            "group_id": GROUP_ID,
            "node_id": 0,
            "boot": 0,
            "incarnation": self._incarnation,
            "durability": "",
            "founding": b"",
            "cluster_id": self.cluster_id,
        }
        self._out = [self._writer.hello(hello)]

    def connect_failed(self, error: Exception, now_ns: int) -> None:
        """`address` could not be reached."""
        self._note_failure(self.choice.target, error, now_ns)

    def disconnected(self, error: Exception | None, now_ns: int) -> None:
        """The connection ended, or sent what is no frame. Does nothing if the session has left it already."""
        if self._state is not DISCONNECTED:
            self._drop(error or ConnectionError("the node closed the connection"), now_ns)

    def receive(self, frame: Frame, now_ns: int) -> None:
        """Take one frame of the current connection. A wrong one ends the connection; nothing is raised."""
        state = self._state
        if state is DISCONNECTED:
            return
        self._heard_ns = now_ns
        frame_type = frame.type
        try:
            if frame_type == FrameType.HELLO:
                self._handle_hello(check_hello(parse_mapping(frame)), now_ns)
            elif frame_type == FrameType.CONTROL:
                self._handle_control(parse_mapping(frame), now_ns)
            elif state is ConnectionState.GREETING:
                raise FrameError(f"the first frame has type {frame_type}, it is no hello")
            elif frame_type == FrameType.REPLY:
                self._handle_reply(parse_reply(frame), now_ns)
            elif frame_type == FrameType.QUERY_REPLY:
                self._handle_query_reply(parse_query_reply(frame), now_ns)
            else:
                raise FrameError(f"a node sent its client a frame of type {frame_type}")
        except (FrameError, ConfigError) as error:
            self._drop(error, now_ns)

    def tick(self, now_ns: int) -> None:
        """Let time pass: deadlines, and patience with nodes that do not answer."""
        self._sweep(now_ns)
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

    def _take_request_id(self) -> int:
        request_id = self._next_request
        self._next_request += 1
        return request_id

    def _control(self, operation: str, request_id: int, **fields: Any) -> None:
        self._out.append(self._writer.control({"op": operation, "request_id": request_id, **fields}))

    def _send_blocks(self, now_ns: int) -> None:
        """Send again what must be, then number and send what is queued, as far as the limits allow."""
        inflight = self._inflight
        if inflight.needs_resend:
            for block in inflight.take_resends():
                self._send_block(block)
        queue = self._queue
        if queue:
            self._sweep_queue(now_ns)
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
        self._out.append(self._writer.submit(block.data, request_id))

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

    def _handle_hello(self, hello: Hello, now_ns: int) -> None:
        if self._state is not ConnectionState.GREETING:
            raise FrameError("a second hello on one connection")
        if hello.protocol_min > PROTOCOL_MAX or hello.protocol_max < PROTOCOL_MIN:
            raise ConfigError(
                f"{self._address} speaks protocol {hello.protocol_min}..{hello.protocol_max}, this client "
                f"{PROTOCOL_MIN}..{PROTOCOL_MAX}; upgrade the older one"
            )
        if hello.group_id != GROUP_ID:
            raise ConfigError(f"{self._address} serves group {hello.group_id}, this client uses group {GROUP_ID}")
        if self.cluster_id and hello.cluster_id and hello.cluster_id != self.cluster_id:
            raise ConfigError(
                f"{self._address} belongs to cluster {hello.cluster_id.hex()}, but this client talks to cluster "
                f"{self.cluster_id.hex()}; check the addresses"
            )
        if hello.cluster_id and not self.cluster_id:
            self.cluster_id = self._writer.cluster_id = hello.cluster_id
        self._node_id = hello.node_id
        limits = hello.mapping.get("limits")
        if isinstance(limits, Mapping):
            for waiter, error in self._queue.set_limits(self._limits.lowered(limits)):
                self._answers.one(waiter, error)
            self.limits_known = True
        members = hello.mapping.get("members")
        if isinstance(members, Mapping):
            known = {_node_id(key): _address(value) for key, value in members.items()}
            self.choice.learn({node_id: address for node_id, address in known.items() if node_id and address})
        self._follow(hello.mapping, now_ns)

    def _handle_control(self, message: Mapping[str, Any], now_ns: int) -> None:
        operation = message.get("op")
        request_id = message.get("request_id")
        if operation == "refused":
            reason = message.get("reason")
            text = f"{self._address} refused this client ({reason}): {message.get('message')}"
            raise ConfigError(text) if reason in CONFIG_REASONS else FrameError(text)
        if self._state is ConnectionState.GREETING:
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
        if self._state is ConnectionState.OPENING:
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
            text = "the command was applied, but the cluster no longer keeps its result; read the state to see it"
            self._answers.fail(block.waiters, lambda: ResultGone(text))
            self._inflight.remove(block)
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

    def _handle_refusal(
        self, status: object, hint: Mapping[str, Any], now_ns: int, *, is_query: bool = False
    ) -> None:
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

    # --- which error --------------------------------------------------------------------------------------------------

    def _end_session(self, reason: str) -> None:
        """Nothing of this session can apply any more. What was sent may have before; what was not goes into the next."""
        text = f"{reason} before the command was answered; it may have been applied, look before doing it again"
        self._answers.fail(self._inflight.live_waiters(), lambda: SessionExpired(text))
        self._inflight.clear()
        self.session_id = 0
        self._nonce = self._random.randbytes(NONCE_BYTES)
        if self._state is READY:
            self._state = ConnectionState.OPENING
            self._hold_until_ns = 0

    def _refuse_for_ever(self, block: PendingBlock, status: int) -> None:
        """A node will never take this block, so nothing behind it can apply either: this session leads nowhere."""
        name = ReplyStatus(status).name
        text = f"node {self._node_id} refused a block of {block.count} commands and {len(block.data)} bytes with {name}"
        if block.attempts > 1:
            self._answers.fail(block.waiters, lambda: OutcomeUnknown(f"{text}, but an earlier attempt may have applied"))
        elif status == ReplyStatus.TOO_LARGE:
            self._answers.fail(block.waiters, lambda: TooLarge(f"{text}; submit less at once"))
        else:
            self._answers.fail(block.waiters, lambda: Rejected(text))
        self._inflight.remove(block)
        self._control("close_session", self._take_request_id(), session_id=self.session_id)
        self._end_session(f"the session was given up because {text}")

    def _sweep(self, now_ns: int) -> None:
        """Answer every caller whose deadline has passed."""
        self._sweep_queue(now_ns)
        for block in self._inflight:
            if block.deadline_ns <= now_ns:
                expired = block.expire(now_ns)
                text = (
                    f"no answer before the deadline; the command was sent {block.attempts} time(s), last to "
                    f"{self._address}, and may have been applied or may still be: look before doing it again"
                )
                self._answers.fail(expired, lambda text=text: DeadlineExceeded(text))  # type: ignore[misc]
        for query in self._queries.sweep(now_ns):
            if query.attempts:
                error = DeadlineExceeded(f"no answer to the query before the deadline; asked {query.attempts} time(s)")
                self._answers.one(query.waiter, error.of_query())
            else:
                self._answers.one(query.waiter, self._not_sent_error())

    def _sweep_queue(self, now_ns: int) -> None:
        self._answers.fail(self._queue.sweep(now_ns), self._not_sent_error)

    def _not_sent_error(self) -> NotApplied:
        """Why something could not be sent before its deadline."""
        if self._state is READY:
            return Busy(
                f"the deadline passed behind {self.pending_bytes} bytes that are queued or unanswered; it was never sent"
            )
        return NoLeader(
            f"no leader could be reached before the deadline, so it was never sent; {self.choice.describe_errors()}"
        )

    # --- leader -------------------------------------------------------------------------------------------------------

    def _follow(self, hint: Mapping[str, Any], now_ns: int) -> None:
        """Somebody said who leads (0: nobody is known): stay if it is this node, go there, or wait here for news."""
        leader_id, leader_address = _node_id(hint.get("leader_id")), _address(hint.get("leader_address"))
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
            text = f"no address of the cluster can be used: {choice.describe_errors()}"
            self._answers.fail(self._queue.clear(), lambda: ConfigError(text))
            for query in self._queries.clear():
                self._answers.one(query.waiter, ConfigError(text))

    def _progressed(self) -> None:
        self.choice.progressed(self._address)
        self._refusals = self._silences = 0

    def _is_owed(self) -> bool:
        """Whether the node owes an answer."""
        return bool(
            self._state is ConnectionState.GREETING
            or self._open_request
            or self._close_request
            or self._inflight.is_owed()
            or self._queries.is_owed()
        )


def _node_id(value: object) -> int:
    is_id = isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 16
    return value if is_id else 0  # type: ignore[return-value]


def _address(value: object) -> str:
    return value if isinstance(value, str) and len(value) <= 256 else ""
