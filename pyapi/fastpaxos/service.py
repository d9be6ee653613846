"""What a node does for its clients: takes their blocks, queries and control requests, and sends the answers.

Who waits for an answer is a small tuple that goes through the core and comes back once. Answers collect per connection
and leave with one `writelines` at the end of each turn of the driver loop.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from fastpaxos.statemachine import QueryContext, StateMachine, query_machine
from fastpaxos_core.errors import FrameError
from fastpaxos_core.wire import FrameType, FrameWriter, ReplyStatus, parse_mapping, parse_query, parse_submit

if TYPE_CHECKING:
    from fastpaxos.config import NodeConfig
    from fastpaxos_core.replica import Replica
    from fastpaxos_core.wire import Frame

__all__ = ["ClientConnection", "ClientService"]

logger = logging.getLogger(__name__)

OK = int(ReplyStatus.OK)
NOT_LEADER = int(ReplyStatus.NOT_LEADER)
NOT_READY = int(ReplyStatus.NOT_READY)
BUSY = int(ReplyStatus.BUSY)
MALFORMED = int(ReplyStatus.MALFORMED)
SUBMIT = int(FrameType.SUBMIT)
QUERY = int(FrameType.QUERY)
CONTROL = int(FrameType.CONTROL)

NS_PER_MS = 1_000_000
NONCE_BYTES = 16
WAITING_CHARGE = 256  # what a block that waits takes beside its bytes

# What waits: (connection, request id, what, detail). `what` is one of these.
WAIT_BLOCK = 0  # detail: session id and first sequence, as they stand in the block
WAIT_OPEN = 1
WAIT_CLOSE = 2  # detail: session id

# Where a block's header has its session id and first sequence.
BLOCK_IDENTITY = slice(16, 32)


class ClientConnection(Protocol):
    """A connection of a client: TCP (`transport.Connection`) or in this process (`local.LocalConnection`)."""

    closed: bool
    inflight: dict[bytes, int]
    """Bytes of each unanswered block. A block that is sent again counts once."""
    inflight_bytes: int

    def send(self, buffers: list[bytes]) -> None: ...

    def pause(self) -> None:
        """Take nothing from this client until `resume`."""
        ...

    def resume(self) -> None: ...


class ClientService:
    """The client side of one node.

    Without a replica (before founding) everything is answered NOT_READY. `status` makes the node's status map;
    `changed` is called when the core has something to do.
    """

    def __init__(
        self,
        config: NodeConfig,
        machine: StateMachine,
        *,
        status: Callable[[], dict[str, Any]],
        changed: Callable[[], None],
        clock_ns: Callable[[], int],
    ) -> None:
        self.replica: Replica | None = None
        self.writer = FrameWriter(0, 0, 0)
        self.queries_pending = 0
        self._config = config
        self._machine = machine
        self._status = status
        self.changed = changed
        self._clock_ns = clock_ns
        self._outgoing: dict[ClientConnection, list[bytes]] = {}
        self._paused: dict[ClientConnection, None] = {}  # in the order in which they are served again
        self._waiting: deque[tuple[ClientConnection, int, bytes, bytes]] = deque()
        self._waiting_bytes = 0

    # Requests

    def take(self, connection: ClientConnection, frame: Frame) -> None:
        """Handle one frame of a client. Raises FrameError if it is none that a client may send."""
        if frame.type == SUBMIT:
            self._take_submit(connection, frame)
        elif frame.type == QUERY:
            self._take_query(connection, frame)
        elif frame.type == CONTROL:
            self._take_control(connection, parse_mapping(frame))
        else:
            raise FrameError(f"a client sent {frame!r}, which is none of its frames")

    def _take_submit(self, connection: ClientConnection, frame: Frame) -> None:
        request_id, _ = parse_submit(frame)
        block = frame.body
        size = len(block)
        key = block[BLOCK_IDENTITY]
        replica = self.replica
        if replica is None:
            status = NOT_READY
        elif connection.inflight_bytes and connection.inflight_bytes + size > self._config.inflight_bytes_per_session:
            status = BUSY
        elif self._waiting:
            # Nobody overtakes: not within a session, whatever its connections are, and not between clients.
            status = self._let_wait(connection, request_id, key, block)
        else:
            status = replica.submit(block, (connection, request_id, WAIT_BLOCK, key))
            if status == BUSY:
                status = self._let_wait(connection, request_id, key, block)
        if status == OK:
            connection.inflight_bytes += size - connection.inflight.get(key, 0)
            connection.inflight[key] = size
            if replica is not None and replica.window_is_filling:
                self._pause(connection)
        else:
            self._refuse_block(connection, request_id, key, status)
        self.changed()

    def _refuse_block(self, connection: ClientConnection, request_id: int, key: bytes, status: int) -> None:
        session_id, first_sequence = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
        leader = self._leader_hint(status)
        self._send(connection, self.writer.reply(session_id, first_sequence, request_id, 0, status, leader, 0)[0])

    # Blocks that the window has no room for. What one read of a client brought waits here, in order, and nothing more
    # is read from it: being sent away costs a client a pause of many round trips.

    def _let_wait(self, connection: ClientConnection, request_id: int, key: bytes, block: bytes) -> int:
        charge = len(block) + WAITING_CHARGE
        # More would take longer than clients are patient with a node that says nothing.
        if self._waiting and self._waiting_bytes + charge > self._config.window_bytes // 4:
            return BUSY
        self._waiting.append((connection, request_id, key, block))
        self._waiting_bytes += charge
        self._pause(connection)
        return OK

    def _admit_waiting(self) -> None:
        """Submit what waits, in the order in which it came, as far as there is room."""
        replica, waiting = self.replica, self._waiting
        while waiting:
            connection, request_id, key, block = waiting[0]
            if not connection.closed:
                if replica is None:
                    status = NOT_READY
                else:
                    status = replica.submit(block, (connection, request_id, WAIT_BLOCK, key))
                if status == BUSY:
                    return
                if status != OK:
                    connection.inflight_bytes -= connection.inflight.pop(key, 0)
                    self._refuse_block(connection, request_id, key, status)
                self.changed()
            waiting.popleft()
            self._waiting_bytes -= len(block) + WAITING_CHARGE

    def _take_query(self, connection: ClientConnection, frame: Frame) -> None:
        query = parse_query(frame)
        deadline_ns = self._clock_ns() + query.deadline_ms * NS_PER_MS if query.deadline_ms else 0
        if self.replica is None:
            status = NOT_READY
        elif self.queries_pending >= self._config.queries_pending_max:
            status = BUSY
        else:
            waiter = (connection, query.query_id, query.request, deadline_ns)
            status = self.replica.read(waiter, query.minimum_index)
        if status == OK:
            self.queries_pending += 1
        else:
            self._send(connection, self.writer.query_reply(query.query_id, status, self._leader_hint(status), 0))
        self.changed()

    def _take_control(self, connection: ClientConnection, message: Mapping[str, Any]) -> None:
        op = message.get("op")
        request_id = message.get("request_id", 0)
        if isinstance(request_id, bool) or not isinstance(request_id, int) or not 0 <= request_id < 2**64:
            raise FrameError(f"a control message has request_id={request_id!r}; expected a whole number")
        if op == "open_session":
            self._open_session(connection, request_id, message)
        elif op == "close_session":
            self._close_session(connection, request_id, message)
        elif op == "status":
            answer = {**self._status(), "op": "status", "request_id": request_id}
            self._send(connection, self.writer.control(answer))
        elif op == "ping":
            self._send(connection, self.writer.control({"op": "pong", "request_id": request_id}))
        else:
            self._control_error(connection, request_id, MALFORMED, f"unknown control message {repr(op)[:100]}")
        self.changed()

    def _open_session(self, connection: ClientConnection, request_id: int, message: Mapping[str, Any]) -> None:
        nonce = message.get("nonce")
        if not isinstance(nonce, bytes) or len(nonce) != NONCE_BYTES:
            raise FrameError(f"open_session has nonce={nonce!r}; expected {NONCE_BYTES} bytes")
        status = NOT_READY
        if self.replica is not None:
            status = self.replica.open_session(nonce, (connection, request_id, WAIT_OPEN, nonce))
        if status != OK:
            self._control_error(connection, request_id, status, "the session cannot be opened here now")

    def _close_session(self, connection: ClientConnection, request_id: int, message: Mapping[str, Any]) -> None:
        session_id = message.get("session_id")
        if isinstance(session_id, bool) or not isinstance(session_id, int) or not 0 < session_id < 2**64:
            raise FrameError(f"close_session has session_id={session_id!r}; expected a whole number above 0")
        status = NOT_READY
        if self.replica is not None:
            status = self.replica.close_session(session_id, (connection, request_id, WAIT_CLOSE, session_id))
        if status != OK:
            self._control_error(connection, request_id, status, "the session cannot be closed here now")

    def _control_error(self, connection: ClientConnection, request_id: int, status: int, text: str) -> None:
        leader_id = self.replica.leader_id if self.replica is not None else 0
        message = {
            "op": "error",
            "request_id": request_id,
            "status": status,
            "leader_id": leader_id,
            "leader_address": self._config.cluster.get(leader_id, ""),
            "message": f"{text} ({ReplyStatus(status).name})",
        }
        self._send(connection, self.writer.control(message))

    # Answers

    def answer_blocks(self) -> None:
        """Send what the core answered: blocks that were applied, sessions opened and closed."""
        replica = self.replica
        if replica is None:
            return
        make_reply, outgoing = self.writer.reply, self._outgoing
        replies: list[tuple[Any, int, int, int, int, int, bytes]] = replica.take_replies()
        for waiter, status, session_id, first_sequence, count, slot_begin, results in replies:
            connection, request_id, what, detail = waiter
            if connection.closed:
                continue
            if what == WAIT_BLOCK:
                connection.inflight_bytes -= connection.inflight.pop(detail, 0)
                leader = 0 if status == OK else self._leader_hint(status)
                frames = make_reply(session_id, first_sequence, request_id, count, status, leader, slot_begin, results)
            elif what == WAIT_OPEN:
                message = {"op": "session_opened", "session_id": session_id, "status": status}
                frames = [self.writer.control({**message, "request_id": request_id})]
            else:
                message = {"op": "session_closed", "session_id": detail, "status": status}
                frames = [self.writer.control({**message, "request_id": request_id})]
            queue = outgoing.get(connection)
            if queue is None:
                outgoing[connection] = frames
            else:
                queue += frames

    def answer_queries(self) -> None:
        """Run the queries whose read index is reached. Only between batches: no query sees half of one."""
        replica = self.replica
        if replica is None or not self.queries_pending:
            return
        ready: list[tuple[Any, int, int]] = replica.take_ready_reads()
        if not ready:
            return
        self.queries_pending -= len(ready)
        now_ns = self._clock_ns()
        context = QueryContext(replica.applied_index, replica.now_ns)
        for (connection, query_id, request, deadline_ns), status, read_index in ready:
            if connection.closed or (deadline_ns and now_ns >= deadline_ns):
                continue
            result = b""
            if status == OK:
                status, result = query_machine(self._machine, request, context)
                read_index = context.applied_index
            answer = self.writer.query_reply(query_id, status, self._leader_hint(status), read_index, result)
            self._send(connection, answer)

    def flush(self) -> None:
        """Admit what waits, hand what collected to the connections, take from paused clients again if there is room."""
        if self._waiting:
            self._admit_waiting()
        if self._outgoing:
            outgoing, self._outgoing = self._outgoing, {}
            for connection, frames in outgoing.items():
                connection.send(frames)
        if self._paused and not self._waiting and (self.replica is None or not self.replica.window_is_filling):
            paused, self._paused = self._paused, {}
            for connection in paused:
                if not connection.closed:
                    connection.resume()

    def forget(self, connection: ClientConnection) -> None:
        """The client is gone. What waits for it in the core comes back later and is dropped then."""
        self._paused.pop(connection, None)
        self._outgoing.pop(connection, None)

    def _send(self, connection: ClientConnection, frame: bytes) -> None:
        self._outgoing.setdefault(connection, []).append(frame)

    def _pause(self, connection: ClientConnection) -> None:
        if connection not in self._paused:
            self._paused[connection] = None
            connection.pause()

    def _leader_hint(self, status: int) -> int:
        return self.replica.leader_id if self.replica is not None and status in (NOT_LEADER, NOT_READY) else 0
