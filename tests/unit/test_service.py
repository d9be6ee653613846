"""fastpaxos.service: what clients ask and what they are told, over a core that answers as the test says."""

from __future__ import annotations

from typing import Any

import pytest

from fastpaxos.config import NodeConfig
from fastpaxos.service import ClientService
from fastpaxos.statemachine import QueryContext, StateMachine
from fastpaxos_core.block import build_block
from fastpaxos_core.errors import FrameError
from fastpaxos_core.wire import (
    Frame,
    FrameSplitter,
    FrameType,
    FrameWriter,
    ReplyStatus,
    parse_mapping,
    parse_query_reply,
    parse_reply,
)

MIB = 1 << 20
CLUSTER = {1: "127.0.0.1:7001", 2: "127.0.0.1:7002", 3: "127.0.0.1:7003"}
WRITER = FrameWriter(0, 9, 0)
NONCE = bytes(16)


def frames_of(data: bytes) -> list[Frame]:
    frames: list[Frame] = FrameSplitter(MIB, 8 * MIB).feed(data)
    return frames


class FakeReplica:
    """Takes everything with `status`, and gives back what the test puts into `replies` and `ready`."""

    def __init__(self) -> None:
        self.status = ReplyStatus.OK
        self.leader_id = 2
        self.window_is_filling = False
        self.applied_index = 40
        self.now_ns = 7
        self.taken: list[tuple[Any, ...]] = []
        self.replies: list[Any] = []
        self.ready: list[Any] = []

    def _take(self, *values: Any) -> int:
        self.taken.append(values)
        return int(self.status)

    def submit(self, block: bytes, waiter: Any) -> int:
        return self._take("submit", block, waiter)

    def open_session(self, nonce: bytes, waiter: Any) -> int:
        return self._take("open", nonce, waiter)

    def close_session(self, session_id: int, waiter: Any) -> int:
        return self._take("close", session_id, waiter)

    def read(self, waiter: Any, minimum_index: int) -> int:
        return self._take("read", minimum_index, waiter)

    def take_replies(self) -> list[Any]:
        replies, self.replies = self.replies, []
        return replies

    def take_ready_reads(self) -> list[Any]:
        ready, self.ready = self.ready, []
        return ready


class Client:
    """A connection that keeps what it is sent."""

    def __init__(self) -> None:
        self.closed = False
        self.inflight: dict[bytes, int] = {}
        self.inflight_bytes = 0
        self.is_held = False
        self.writes: list[list[bytes]] = []

    def send(self, buffers: list[bytes]) -> None:
        self.writes.append(buffers)

    def pause(self) -> None:
        self.is_held = True

    def resume(self) -> None:
        self.is_held = False

    def frames(self) -> list[Frame]:
        writes, self.writes = self.writes, []
        return frames_of(b"".join(b"".join(buffers) for buffers in writes))


class Machine(StateMachine):
    def apply(self, command: bytes, context: object) -> bytes:
        return command

    def query(self, request: bytes, context: QueryContext) -> bytes:
        if request == b"raise":
            raise LookupError("not there")
        return request + b" at %d" % context.applied_index


class World:
    def __init__(self, **settings: Any) -> None:
        self.now_ns = 0
        self.changes = 0
        self.replica = FakeReplica()
        self.client = Client()
        self.others: list[Client] = []
        config = NodeConfig(node_id=1, cluster=CLUSTER, data_dir="unused", **settings)
        self.service = ClientService(
            config, Machine(), status=lambda: {"id": 1, "role": "leader"}, changed=self._changed, clock_ns=self.clock_ns
        )
        self.service.writer = FrameWriter(1, 5, 1, b"c" * 16)
        self.service.replica = self.replica  # type: ignore[assignment]

    def _changed(self) -> None:
        self.changes += 1

    def clock_ns(self) -> int:
        return self.now_ns

    def ask(self, data: bytes, client: Client | None = None) -> list[Frame]:
        """Let the client send `data`; return what it is told."""
        for frame in frames_of(data):
            self.service.take(client or self.client, frame)
        self.service.flush()
        return (client or self.client).frames()

    def take(self, block: bytes, request_id: int, client: Client | None = None) -> None:
        """A block arrives; the turn is not over yet."""
        if client is not None:
            self.others.append(client)
        (frame,) = frames_of(b"".join(WRITER.submit(block, request_id)))
        self.service.take(client or self.client, frame)

    def answer(self, waiter: Any, status: int = 0, session_id: int = 5, results: bytes = b"") -> list[Frame]:
        self.replica.replies.append((waiter, status, session_id, 1, 1, 77, results))
        self.service.answer_blocks()
        self.service.flush()
        return self.client.frames()


BLOCK = build_block([b"command"], 5, 1)


def test_a_block_goes_to_the_core_and_its_answer_to_the_client() -> None:
    world = World()
    assert world.ask(b"".join(WRITER.submit(BLOCK, 31))) == []
    ((_, block, waiter),) = world.replica.taken
    assert block == BLOCK
    assert world.changes == 1
    assert (len(world.client.inflight), world.client.inflight_bytes) == (1, len(BLOCK))
    (frame,) = world.answer(waiter, results=b"results")
    reply = parse_reply(frame)
    assert (reply.session_id, reply.first_sequence, reply.request_id, reply.slot_begin) == (5, 1, 31, 77)
    assert (reply.status, reply.results) == (ReplyStatus.OK, b"results")
    assert (len(world.client.inflight), world.client.inflight_bytes) == (0, 0)


@pytest.mark.parametrize("status", [ReplyStatus.NOT_LEADER, ReplyStatus.NOT_READY, ReplyStatus.OUT_OF_ORDER])
def test_a_refused_block_is_answered_at_once(status: ReplyStatus) -> None:
    world = World()
    world.replica.status = status
    (frame,) = world.ask(b"".join(WRITER.submit(BLOCK, 31)))
    reply = parse_reply(frame)
    assert (reply.session_id, reply.first_sequence, reply.request_id, reply.status) == (5, 1, 31, status)
    assert reply.leader_hint == (0 if status is ReplyStatus.OUT_OF_ORDER else 2)
    assert world.client.inflight == {}


def test_before_founding_everything_is_not_ready() -> None:
    world = World()
    world.service.replica = None
    data = b"".join(WRITER.submit(BLOCK, 1)) + WRITER.query(2, b"q")
    data += WRITER.control({"op": "open_session", "nonce": NONCE, "request_id": 3})
    data += WRITER.control({"op": "close_session", "session_id": 4, "request_id": 4})
    submit, query, opened, closed = world.ask(data)
    assert parse_reply(submit).status == ReplyStatus.NOT_READY
    assert parse_query_reply(query).status == ReplyStatus.NOT_READY
    for frame, request_id in ((opened, 3), (closed, 4)):
        message = parse_mapping(frame)
        assert (message["op"], message["request_id"], message["status"]) == ("error", request_id, ReplyStatus.NOT_READY)
        assert (message["leader_id"], message["leader_address"]) == (0, "")
    world.service.answer_blocks()
    world.service.answer_queries()


def test_a_client_may_have_so_many_bytes_unanswered_and_one_block_always() -> None:
    world = World(inflight_bytes_per_session=MIB)
    large = [build_block([bytes(600_000)], 5, sequence) for sequence in (1, 2)]
    assert world.ask(b"".join(WRITER.submit(large[0], 1))) == []
    (frame,) = world.ask(b"".join(WRITER.submit(large[1], 2)))
    assert parse_reply(frame).status == ReplyStatus.BUSY
    assert len(world.replica.taken) == 1
    world.answer(world.replica.taken[0][2])
    assert world.ask(b"".join(WRITER.submit(large[1], 3))) == []


def test_a_block_that_is_sent_again_counts_once() -> None:
    world = World()
    world.ask(b"".join(WRITER.submit(BLOCK, 1)) + b"".join(WRITER.submit(BLOCK, 2)))
    assert (len(world.client.inflight), world.client.inflight_bytes) == (1, len(BLOCK))
    # The core gives back only the waiter of the later attempt.
    (frame,) = world.answer(world.replica.taken[1][2])
    assert parse_reply(frame).request_id == 2
    assert (len(world.client.inflight), world.client.inflight_bytes) == (0, 0)


def test_a_client_that_is_gone_gets_nothing_and_holds_nothing() -> None:
    world = World()
    world.ask(b"".join(WRITER.submit(BLOCK, 1)) + WRITER.query(2, b"q"))
    block_waiter, query_waiter = world.replica.taken[0][2], world.replica.taken[1][2]
    world.client.closed = True
    world.service.forget(world.client)
    assert world.answer(block_waiter) == []
    world.replica.ready = [(query_waiter, 0, 40)]
    world.service.answer_queries()
    world.service.flush()
    assert world.client.writes == []
    assert world.service.queries_pending == 0


def test_answers_of_one_turn_leave_in_one_write() -> None:
    world = World()
    blocks = [build_block([b"x"], 5, sequence) for sequence in range(1, 6)]
    world.ask(b"".join(b"".join(WRITER.submit(block, number)) for number, block in enumerate(blocks)))
    world.replica.replies = [(taken[2], 0, 5, 1, 1, 7, b"") for taken in world.replica.taken]
    world.service.answer_blocks()
    world.service.flush()
    (buffers,) = world.client.writes
    assert len(buffers) == 5


def test_blocks_without_room_wait_in_order_and_nothing_more_is_read() -> None:
    world = World()
    other = Client()
    blocks = [build_block([b"x"], 5, sequence) for sequence in (1, 2, 3)]
    world.replica.status = ReplyStatus.BUSY
    world.take(blocks[0], 1)
    world.replica.status = ReplyStatus.OK
    # There is room again, but not for what stands behind a block that waits.
    world.take(blocks[1], 2)
    assert world.client.inflight_bytes == len(blocks[0]) + len(blocks[1])
    world.replica.status = ReplyStatus.BUSY
    world.take(blocks[2], 3, other)
    world.replica.taken.clear()
    world.service.flush()
    assert [taken[1] for taken in world.replica.taken] == [blocks[0]]
    assert (world.client.is_held, other.is_held) == (True, True)
    world.replica.status = ReplyStatus.OK
    world.service.flush()
    assert [taken[1] for taken in world.replica.taken[1:]] == blocks
    assert (world.client.is_held, other.is_held) == (False, False)
    assert (world.client.writes, other.writes) == ([], [])
    world.take(blocks[1], 4)
    assert world.replica.taken[-1][1] == blocks[1]


def test_blocks_that_wait_are_refused_when_leadership_ends_and_dropped_when_their_client_has_gone() -> None:
    world = World()
    other = Client()
    world.replica.status = ReplyStatus.BUSY
    world.take(BLOCK, 1)
    world.take(BLOCK, 2, other)
    other.closed = True
    world.replica.taken.clear()
    world.replica.status = ReplyStatus.NOT_LEADER
    world.service.flush()
    (reply,) = map(parse_reply, world.client.frames())
    assert (reply.status, reply.request_id) == (ReplyStatus.NOT_LEADER, 1)
    assert len(world.replica.taken) == 1
    assert (world.client.inflight_bytes, world.client.is_held, other.writes) == (0, False, [])


def test_nobody_overtakes_a_block_that_waits_and_the_newest_connection_gets_the_answer() -> None:
    world = World()
    again = Client()
    world.replica.status = ReplyStatus.BUSY
    world.take(BLOCK, 1)
    # Its client has left, which nobody can see yet, and sends it again. There is room by now.
    world.replica.status = ReplyStatus.OK
    world.replica.taken.clear()
    world.take(BLOCK, 2, again)
    assert world.replica.taken == []
    world.service.flush()
    assert [taken[1] for taken in world.replica.taken] == [BLOCK, BLOCK]
    # The core answers the last one that asked.
    world.replica.replies.append((world.replica.taken[-1][2], 0, 5, 1, 1, 77, b""))
    world.service.answer_blocks()
    world.service.flush()
    (reply,) = map(parse_reply, again.frames())
    assert (reply.status, reply.request_id) == (ReplyStatus.OK, 2)
    assert (again.inflight_bytes, world.client.writes) == (0, [])


def test_more_than_a_quarter_of_the_window_does_not_wait() -> None:
    world = World(window_bytes=8 * MIB)
    world.replica.status = ReplyStatus.BUSY
    large = build_block([bytes(900_000)], 5, 1)
    for number in range(3):
        world.take(large, number, Client())
    world.service.flush()
    (last,) = (client for client in world.others if client.writes)
    (reply,) = map(parse_reply, last.frames())
    assert (reply.status, reply.request_id) == (ReplyStatus.BUSY, 2)


def test_clients_are_held_while_the_window_fills() -> None:
    world = World()
    other = Client()
    world.replica.window_is_filling = True
    world.ask(b"".join(WRITER.submit(BLOCK, 1)))
    assert world.client.is_held
    world.ask(WRITER.query(1, b""), other)
    assert not other.is_held
    world.replica.window_is_filling = False
    world.service.flush()
    assert not world.client.is_held


def test_queries_are_answered_with_the_state_of_now() -> None:
    world = World()
    data = b"".join(WRITER.query(number, request) for number, request in ((1, b"value"), (2, b"raise"), (3, b"late")))
    world.ask(data)
    assert world.service.queries_pending == 3
    waiters = [taken[2] for taken in world.replica.taken]
    world.replica.ready = [(waiters[0], 0, 33), (waiters[1], 0, 33), (waiters[2], ReplyStatus.NOT_LEADER, 0)]
    world.service.answer_queries()
    world.service.flush()
    value, failed, refused = map(parse_query_reply, world.client.frames())
    assert (value.query_id, value.status, value.result, value.read_index) == (1, 0, b"value at 40", 40)
    assert failed.status == ReplyStatus.COMMAND_ERROR
    assert b"LookupError" in failed.result
    assert (refused.query_id, refused.status, refused.leader_hint) == (3, ReplyStatus.NOT_LEADER, 2)
    assert world.service.queries_pending == 0


def test_queries_have_deadlines_and_a_limit() -> None:
    world = World(queries_pending_max=2)
    world.ask(WRITER.query(1, b"a", deadline_ms=5) + WRITER.query(2, b"b", deadline_ms=50, minimum_index=12))
    assert world.replica.taken[1][1] == 12
    (frame,) = world.ask(WRITER.query(3, b"c"))
    assert parse_query_reply(frame).status == ReplyStatus.BUSY
    world.now_ns = 10_000_000
    world.replica.ready = [(taken[2], 0, 12) for taken in world.replica.taken]
    world.service.answer_queries()
    world.service.flush()
    (frame,) = world.client.frames()
    assert parse_query_reply(frame).query_id == 2


def test_sessions_are_opened_and_closed_through_the_core() -> None:
    world = World()
    assert world.ask(WRITER.control({"op": "open_session", "nonce": NONCE, "request_id": 8})) == []
    assert world.ask(WRITER.control({"op": "close_session", "session_id": 5, "request_id": 9})) == []
    (_, nonce, opening), (_, session_id, closing) = world.replica.taken
    assert (nonce, session_id) == (NONCE, 5)
    (frame,) = world.answer(opening, session_id=66)
    assert parse_mapping(frame) == {"op": "session_opened", "session_id": 66, "status": 0, "request_id": 8}
    (frame,) = world.answer(closing)
    assert parse_mapping(frame) == {"op": "session_closed", "session_id": 5, "status": 0, "request_id": 9}
    world.replica.status = ReplyStatus.NOT_LEADER
    (frame,) = world.ask(WRITER.control({"op": "open_session", "nonce": NONCE, "request_id": 10}))
    message = parse_mapping(frame)
    assert (message["leader_id"], message["leader_address"]) == (2, CLUSTER[2])
    assert message["status"] == ReplyStatus.NOT_LEADER


def test_status_ping_and_what_is_unknown() -> None:
    world = World()
    (frame,) = world.ask(WRITER.control({"op": "status", "request_id": 1}))
    assert parse_mapping(frame) == {"op": "status", "request_id": 1, "id": 1, "role": "leader"}
    (frame,) = world.ask(WRITER.control({"op": "ping"}))
    assert parse_mapping(frame) == {"op": "pong", "request_id": 0}
    (frame,) = world.ask(WRITER.control({"op": ["x" * 200_000], "request_id": 2}))
    message = parse_mapping(frame)
    assert (message["op"], message["status"]) == ("error", ReplyStatus.MALFORMED)
    assert len(message["message"]) < 200


@pytest.mark.parametrize(
    "data",
    [
        WRITER.control({"op": "status", "request_id": -1}),
        WRITER.control({"op": "status", "request_id": "1"}),
        WRITER.control({"op": "open_session", "nonce": b"short"}),
        WRITER.control({"op": "open_session", "nonce": 5}),
        WRITER.control({"op": "close_session"}),
        WRITER.control({"op": "close_session", "session_id": 0}),
        WRITER.control({"op": "close_session", "session_id": True}),
        WRITER.encode(FrameType.ACCEPT, 1, b""),
        WRITER.encode(FrameType.HELLO, 0, b"\x80"),
        WRITER.encode(FrameType.SUBMIT, 0, b"short"),
        WRITER.encode(FrameType.QUERY, 0, b"short"),
        WRITER.encode(FrameType.CONTROL, 0, b"\xc1"),
    ],
)
def test_malformed_requests_are_frame_errors(data: bytes) -> None:
    world = World()
    with pytest.raises(FrameError):
        world.ask(data)
    assert world.replica.taken == []


@pytest.mark.parametrize("block", [b"", b"x", bytes(39), bytes(100)])
def test_what_is_no_block_is_for_the_core_to_refuse(block: bytes) -> None:
    world = World()
    world.replica.status = ReplyStatus.MALFORMED
    (frame,) = world.ask(b"".join(WRITER.submit(block, 3)))
    assert (parse_reply(frame).status, parse_reply(frame).request_id) == (ReplyStatus.MALFORMED, 3)


def test_clients_that_were_held_are_served_again_in_the_order_in_which_they_were_held() -> None:
    """A set made the order depend on the addresses of objects: equal seeds of a simulation gave different runs."""
    world = World()
    clients = [Client() for _ in range(40)]
    resumed: list[Client] = []
    world.replica.window_is_filling = True
    for number, client in enumerate(clients):
        client.resume = lambda client=client: resumed.append(client)  # type: ignore[method-assign, misc]
        world.ask(b"".join(WRITER.submit(BLOCK, number)), client)
    assert resumed == []
    world.replica.window_is_filling = False
    world.service.flush()
    assert resumed == clients
