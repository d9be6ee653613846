"""Frames: layout, fragmentation, limits, and refusal of whatever is not a frame."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterable
from typing import Any

import crc32c as reference
import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpaxos_core.block import build_block, check_block
from fastpaxos_core.errors import FrameError
from fastpaxos_core.wire import (
    Frame,
    FrameSplitter,
    FrameType,
    FrameWriter,
    Query,
    QueryReply,
    Reply,
    ReplyStatus,
    parse_mapping,
    parse_query,
    parse_query_reply,
    parse_reply,
    parse_submit,
)

HEADER = struct.Struct("<IBBHIIII16sQIHHQ")
CLUSTER = bytes(range(1, 17))
OTHER_CLUSTER = bytes(range(17, 33))
UINT16_MAX, UINT32_MAX, UINT64_MAX = (1 << 16) - 1, (1 << 32) - 1, (1 << 64) - 1
deterministic = settings(derandomize=True, database=None, deadline=None, max_examples=150)
PARSERS: tuple[Callable[[Frame], object], ...] = (
    parse_submit,
    parse_reply,
    parse_query,
    parse_query_reply,
    parse_mapping,
)


def sealed(frame: bytes) -> bytes:
    """Return the frame with the CRC that its header and head ask for."""
    head_bytes = struct.unpack_from("<I", frame, 12)[0]
    crc = reference.crc32c(frame[12 : 64 + head_bytes], reference.crc32c(frame[:8]))
    return frame[:8] + struct.pack("<I", crc) + frame[12:]


def raw_frame(
    frame_type: int,
    head: bytes = b"",
    body: bytes = b"",
    *,
    magic: int = 0x31585046,
    version: int = 1,
    flags: int = 0,
    group_id: int = 0,
    cluster_id: bytes = CLUSTER,
    incarnation: int = 12,
    boot: int = 13,
    sender: int = 3,
    reserved: int = 0,
    ballot: int = 0,
) -> bytes:
    header = HEADER.pack(
        magic, version, frame_type, flags, 0, len(head), len(body), group_id, cluster_id, incarnation, boot, sender,
        reserved, ballot,
    )  # fmt: skip
    return sealed(header + head + body)


def make_writer(cluster_id: bytes = CLUSTER) -> FrameWriter:
    return FrameWriter(3, 12, 13, cluster_id)


def make_splitter(expected_cluster: bytes | None = CLUSTER) -> FrameSplitter:
    return FrameSplitter(1 << 20, 1 << 20, expected_cluster)


def only_frame(data: bytes) -> Frame:
    [frame] = make_splitter().feed(data)
    return frame


def receive(splitter: FrameSplitter, data: bytes, sizes: Iterable[int]) -> list[Frame]:
    """Deliver data by get_buffer and buffer_updated, in pieces of at most the given sizes."""
    frames = []
    position = 0
    for size in sizes:
        buffer = splitter.get_buffer(65536)
        piece = data[position : position + min(size, len(buffer))]
        buffer[: len(piece)] = piece
        frames += splitter.buffer_updated(len(piece))
        position += len(piece)
        if position == len(data):
            return frames
    raise AssertionError(f"only {position} of {len(data)} bytes were delivered")


def facts(frame: Frame) -> tuple[object, ...]:
    return (
        frame.type, frame.flags, frame.group_id, frame.cluster_id, frame.incarnation, frame.boot, frame.sender,
        frame.ballot, frame.head, frame.body,
    )  # fmt: skip


SAMPLE_FRAMES = [
    make_writer().hello({"kind": "peer", "members": {1: "a:1"}}),
    b"".join(make_writer().submit(build_block([b"one", b"three", b""], 5, 6), 77, 1000)),
    make_writer().encode(FrameType.ACCEPT, 1 << 20, bytes(48), b"blocks" * 30),
    make_writer().encode(FrameType.HEARTBEAT, 9, bytes(24)),
    make_writer().encode(FrameType.NACK, 9, b""),
    make_writer().encode(FrameType.LEARN, 9, b"", b"body without head"),
    b"".join(make_writer().reply(1, 2, 3, 4, ReplyStatus.OK, 0, 5, b"results")),
    make_writer().query(8, b"get"),
    make_writer().query_reply(8, ReplyStatus.OK, 0, 44, b"value"),
    make_writer().control({"op": "status", "request_id": 4}),
]
SAMPLE_STREAM = b"".join(SAMPLE_FRAMES)
SAMPLE_FACTS = [facts(only_frame(data)) for data in SAMPLE_FRAMES]


# ---- layout and round trips ----


@deterministic
@given(
    st.sampled_from(list(FrameType)),
    st.integers(0, UINT64_MAX),
    st.binary(max_size=100),
    st.binary(max_size=100),
    st.integers(0, UINT16_MAX),
    st.integers(0, UINT64_MAX),
    st.integers(0, UINT32_MAX),
    st.integers(0, UINT32_MAX),
)
def test_frames_have_the_documented_bytes_and_read_back(
    frame_type: FrameType,
    ballot: int,
    head: bytes,
    body: bytes,
    node_id: int,
    incarnation: int,
    boot: int,
    group_id: int,
) -> None:
    writer = FrameWriter(node_id, incarnation, boot, CLUSTER, group_id)
    data = writer.encode(frame_type, ballot, head, body)
    assert data == raw_frame(
        frame_type, head, body, group_id=group_id, incarnation=incarnation, boot=boot, sender=node_id, ballot=ballot
    )
    frame = only_frame(data)
    assert facts(frame) == (frame_type, 0, group_id, CLUSTER, incarnation, boot, node_id, ballot, head, body)


@deterministic
@given(st.binary(max_size=60), st.integers(0, UINT64_MAX), st.integers(0, UINT32_MAX))
def test_submit(block: bytes, request_id: int, deadline_ms: int) -> None:
    data = b"".join(make_writer().submit(block, request_id, deadline_ms))
    assert data == raw_frame(20, struct.pack("<QI4x", request_id, deadline_ms), block)
    frame = only_frame(data)
    assert parse_submit(frame) == (request_id, deadline_ms)
    assert frame.body == block


@deterministic
@given(
    st.tuples(*[st.integers(0, UINT64_MAX)] * 3),
    st.integers(0, UINT32_MAX),
    st.sampled_from(list(ReplyStatus)),
    st.integers(0, UINT16_MAX),
    st.integers(0, UINT64_MAX),
    st.binary(max_size=60),
)
def test_reply(
    numbers: tuple[int, ...], command_count: int, status: ReplyStatus, leader_hint: int, slot_begin: int, results: bytes
) -> None:
    fields = (*numbers, command_count, status, leader_hint, slot_begin)
    data = b"".join(make_writer().reply(*fields, results))
    assert data == raw_frame(21, struct.pack("<QQQIHHQII", *fields, reference.crc32c(results), 0), results)
    reply = parse_reply(only_frame(data))
    assert isinstance(reply, Reply)
    assert reply == (*fields, results)
    assert reply._fields == (
        "session_id", "first_sequence", "request_id", "command_count", "status", "leader_hint", "slot_begin", "results",
    )  # fmt: skip


@deterministic
@given(st.integers(0, UINT64_MAX), st.binary(max_size=60), st.integers(0, UINT32_MAX), st.integers(0, UINT64_MAX))
def test_query(query_id: int, request: bytes, deadline_ms: int, minimum_index: int) -> None:
    data = make_writer().query(query_id, request, deadline_ms, 0, minimum_index)
    assert data == raw_frame(22, struct.pack("<QIHHQ", query_id, deadline_ms, 0, 0, minimum_index) + request)
    query = parse_query(only_frame(data))
    assert isinstance(query, Query)
    assert query._asdict() == {
        "query_id": query_id,
        "deadline_ms": deadline_ms,
        "read_mode": 0,
        "minimum_index": minimum_index,
        "request": request,
    }


@deterministic
@given(
    st.integers(0, UINT64_MAX),
    st.sampled_from(list(ReplyStatus)),
    st.integers(0, UINT16_MAX),
    st.integers(0, UINT64_MAX),
    st.binary(max_size=60),
)
def test_query_reply(query_id: int, status: ReplyStatus, leader_hint: int, read_index: int, result: bytes) -> None:
    data = make_writer().query_reply(query_id, status, leader_hint, read_index, result)
    assert data == raw_frame(23, struct.pack("<QHHIQ", query_id, status, leader_hint, 0, read_index) + result)
    reply = parse_query_reply(only_frame(data))
    assert isinstance(reply, QueryReply)
    assert reply._asdict() == {
        "query_id": query_id,
        "status": status,
        "leader_hint": leader_hint,
        "read_index": read_index,
        "result": result,
    }


def test_parts_that_may_be_left_out() -> None:
    writer = make_writer()
    assert writer.encode(FrameType.NACK, 1, b"head") == writer.encode(FrameType.NACK, 1, b"head", b"")
    assert parse_submit(only_frame(b"".join(writer.submit(b"", 5)))) == (5, 0)
    assert parse_query(only_frame(writer.query(1, b"get"))) == (1, 0, 0, 0, b"get")
    assert parse_reply(only_frame(b"".join(writer.reply(1, 2, 3, 4, 5, 6, 7)))).results == b""
    assert parse_query_reply(only_frame(writer.query_reply(1, 2, 3, 4))).result == b""


def test_writer_names_its_sender_and_learns_its_cluster() -> None:
    writer = FrameWriter(3, incarnation=12, boot=13, group_id=2)
    assert (writer.node_id, writer.incarnation, writer.boot, writer.group_id) == (3, 12, 13, 2)
    assert writer.cluster_id == bytes(16)
    [before] = make_splitter(None).feed(writer.encode(FrameType.NACK, 0, b""))
    writer.cluster_id = CLUSTER
    [after] = make_splitter(None).feed(writer.encode(FrameType.NACK, 0, b""))
    assert (before.cluster_id, after.cluster_id, writer.cluster_id) == (bytes(16), CLUSTER, CLUSTER)


def test_writer_refuses_what_does_not_fit() -> None:
    writer = make_writer()
    with pytest.raises(ValueError, match="frame type 11 is unknown"):
        writer.encode(11, 0, b"")
    for arguments in ((256, 0, b""), (-1, 0, b""), (1, 1 << 64, b"")):
        with pytest.raises(OverflowError):
            writer.encode(*arguments)
    for arguments in ((1, 0, None), (1, 0, b"", None), (1, 0, bytearray(4)), (1, 0, b"", "text")):
        with pytest.raises(TypeError):
            writer.encode(*arguments)
    for cluster_id in (b"short", bytes(17)):
        with pytest.raises(ValueError, match=f"16 bytes, not {len(cluster_id)}"):
            writer.cluster_id = cluster_id
    with pytest.raises(TypeError, match="bytes, not str"):
        FrameWriter(1, 1, 1, "c" * 16)
    for numbers in ((65536, 1, 1), (1, 1 << 64, 1), (1, 1, 1 << 32)):
        with pytest.raises(OverflowError):
            FrameWriter(*numbers)


def test_enumerations_have_the_documented_values() -> None:
    assert [int(frame_type) for frame_type in FrameType] == [*range(1, 11), *range(20, 24), 40, 41]
    assert [int(status) for status in ReplyStatus] == list(range(12))


def test_frames_cannot_be_made_or_changed() -> None:
    with pytest.raises(TypeError, match="FrameSplitter"):
        Frame()
    with pytest.raises(AttributeError):
        only_frame(SAMPLE_FRAMES[0]).head = b""
    empty = Frame.__new__(Frame)
    assert (empty.head, empty.body, empty.cluster_id) == (b"", b"", bytes(16))
    assert repr(only_frame(SAMPLE_FRAMES[2])) == (
        "Frame(ACCEPT, sender=3, boot=13, ballot=1048576, head=48 bytes, body=180 bytes)"
    )


# ---- fragmentation ----


def test_two_fragments_cut_at_every_byte() -> None:
    for cut in range(len(SAMPLE_STREAM) + 1):
        splitter = make_splitter()
        frames = splitter.feed(SAMPLE_STREAM[:cut]) + splitter.feed(SAMPLE_STREAM[cut:])
        assert [facts(frame) for frame in frames] == SAMPLE_FACTS, f"cut at byte {cut}"
        assert splitter.pending_bytes == 0


def test_a_frame_comes_out_with_its_last_byte_and_not_before() -> None:
    splitter = make_splitter()
    for data, expected in zip(SAMPLE_FRAMES, SAMPLE_FACTS, strict=True):
        for position in range(len(data) - 1):
            assert splitter.pending_bytes == position
            assert splitter.feed(data[position : position + 1]) == []
        assert [facts(frame) for frame in splitter.feed(data[-1:])] == [expected]


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 63, 64, 65, 1000, 1 << 20])
def test_receive_buffer_with_pieces_of_any_size(piece_bytes: int) -> None:
    frames = receive(make_splitter(), SAMPLE_STREAM * 20, iter(lambda: piece_bytes, None))
    assert [facts(frame) for frame in frames] == SAMPLE_FACTS * 20


@deterministic
@given(st.lists(st.integers(1, 300), min_size=1, max_size=30), st.booleans(), st.binary(max_size=5))
def test_feed_and_receive_buffer_may_alternate(sizes: list[int], feeds_first: bool, junk: bytes) -> None:
    splitter = make_splitter()
    frames = []
    position = 0
    feeds = feeds_first
    while position < len(SAMPLE_STREAM):
        for size in sizes:
            piece = SAMPLE_STREAM[position : position + size]
            buffer = splitter.get_buffer()
            if feeds:
                buffer[: len(junk)] = junk
                frames += splitter.feed(bytearray(piece))
            else:
                buffer[: len(piece)] = piece
                frames += splitter.buffer_updated(len(piece))
            position += len(piece)
            feeds = not feeds
    assert [facts(frame) for frame in frames] == SAMPLE_FACTS


def test_many_frames_at_once() -> None:
    frames = make_splitter().feed(memoryview(SAMPLE_STREAM * 500))
    assert [facts(frame) for frame in frames] == SAMPLE_FACTS * 500
    assert make_splitter().feed(b"") == []


@pytest.mark.parametrize("body_bytes", [262_143, 262_144, 262_145, 600_000, 1 << 20])
@pytest.mark.parametrize("piece_bytes", [100_000, 262_144, 1 << 20])
def test_large_heads_and_bodies_are_received_in_place(body_bytes: int, piece_bytes: int) -> None:
    source = random.Random(body_bytes + piece_bytes)
    head, body = source.randbytes(700_000), source.randbytes(body_bytes)
    data = make_writer().encode(FrameType.LEARN, 5, head, body) + SAMPLE_STREAM
    splitter = make_splitter()
    frames = receive(splitter, data * 2, iter(lambda: piece_bytes, None))
    assert [facts(frame) for frame in frames] == [
        (10, 0, 0, CLUSTER, 12, 13, 3, 5, head, body), *SAMPLE_FACTS
    ] * 2  # fmt: skip
    assert make_splitter().feed(data)[0].body == body


def test_buffers_never_show_the_memory_of_a_returned_frame() -> None:
    body = random.Random(5).randbytes(1 << 20)
    data = make_writer().encode(FrameType.LEARN, 5, b"head", body)
    splitter = make_splitter()
    kept = receive(splitter, data + SAMPLE_STREAM, iter(lambda: 1 << 20, None))
    before = [facts(frame) for frame in kept]
    for _ in range(3):
        buffer = splitter.get_buffer()
        buffer[:] = b"\xff" * len(buffer)
        assert splitter.buffer_updated(0) == []
    receive(splitter, data.replace(body[:100], bytes(100)), iter(lambda: 77_777, None))
    assert [facts(frame) for frame in kept] == before
    assert kept[0].body == body


def test_a_kept_buffer_outlives_its_splitter() -> None:
    splitter = make_splitter()
    splitter.feed(make_writer().encode(FrameType.LEARN, 5, b"head", bytes(1 << 20))[:100])
    target, ordinary = splitter.get_buffer(), make_splitter().get_buffer()
    assert len(target) == (1 << 20) - 32
    del splitter
    target[:] = b"\x01" * len(target)
    ordinary[:] = b"\x01" * len(ordinary)
    assert target[-1] == ordinary[-1] == 1


def test_buffer_updated_needs_a_buffer_of_that_size() -> None:
    splitter = make_splitter()
    with pytest.raises(ValueError, match=r"buffer_updated\(1\) after a buffer of 0 bytes"):
        splitter.buffer_updated(1)
    size = len(splitter.get_buffer())
    for count in (-1, size + 1):
        with pytest.raises(ValueError, match=rf"buffer_updated\({count}\) after a buffer of {size} bytes"):
            splitter.buffer_updated(count)
    splitter.get_buffer()
    splitter.feed(b"")
    with pytest.raises(ValueError, match="after a buffer of 0 bytes"):
        splitter.buffer_updated(0)
    splitter.get_buffer()[: len(SAMPLE_FRAMES[0])] = SAMPLE_FRAMES[0]
    assert [facts(frame) for frame in splitter.buffer_updated(len(SAMPLE_FRAMES[0]))] == SAMPLE_FACTS[:1]
    with pytest.raises(ValueError, match="after a buffer of 0 bytes"):
        splitter.buffer_updated(0)


def test_a_released_buffer_does_no_harm() -> None:
    splitter = make_splitter()
    with splitter.get_buffer() as buffer:
        buffer[: len(SAMPLE_STREAM)] = SAMPLE_STREAM
    assert len(splitter.buffer_updated(len(SAMPLE_STREAM))) == len(SAMPLE_FRAMES)
    assert len(splitter.get_buffer()) >= 65536


def test_feed_takes_only_bytes_like_data() -> None:
    for data in ("text", None, 5, [b"a"]):
        with pytest.raises(TypeError):
            make_splitter().feed(data)


# ---- refusals ----


BAD_HEADERS = [
    ("magic", raw_frame(1, magic=0x20544547), 4, 'starts with 0x20544547, expected 0x31585046 \\("FPX1"\\)'),
    ("version", raw_frame(1, version=2), 5, "version 2, this build knows only version 1"),
    ("type 0", raw_frame(0), 6, "frame type 0 is unknown"),
    ("type 11", raw_frame(11), 6, "frame type 11 is unknown"),
    ("type 42", raw_frame(42), 6, "frame type 42 is unknown"),
    ("type 64 + 1", raw_frame(65), 6, "frame type 65 is unknown"),
    ("type 255", raw_frame(255), 6, "frame type 255 is unknown"),
    ("flags", raw_frame(1, flags=0x8001), 8, "flags 0x8001, none is known"),
    ("head", raw_frame(1, bytes(101)), 16, "frame says 101 head bytes, limit is 100"),
    ("body", raw_frame(1, b"", bytes(201)), 20, "frame says 201 body bytes, limit is 200"),
    ("absurd head", raw_frame(1)[:12] + b"\xff" * 4, 16, "frame says 4294967295 head bytes, limit is 100"),
    ("absurd body", raw_frame(1)[:16] + b"\xff" * 4, 20, "frame says 4294967295 body bytes, limit is 200"),
    ("reserved", raw_frame(1, reserved=4096), 64, "reserved bits 0x1000, they must be 0"),
]


@pytest.mark.parametrize(
    ("data", "judged_at", "message"), [bad[1:] for bad in BAD_HEADERS], ids=[bad[0] for bad in BAD_HEADERS]
)
def test_bad_headers_are_refused_as_soon_as_the_field_is_there(data: bytes, judged_at: int, message: str) -> None:
    splitter = FrameSplitter(100, 200, CLUSTER)
    for position in range(judged_at - 1):
        assert splitter.feed(data[position : position + 1]) == []
    with pytest.raises(FrameError, match=message):
        splitter.feed(data[judged_at - 1 : judged_at])
    with pytest.raises(FrameError, match=message):
        FrameSplitter(100, 200, CLUSTER).feed(data)


def test_parts_exactly_at_their_limits_are_taken() -> None:
    [frame] = FrameSplitter(100, 200, CLUSTER).feed(raw_frame(1, bytes(100), bytes(200)))
    assert (len(frame.head), len(frame.body)) == (100, 200)
    [frame] = FrameSplitter(0, 0, CLUSTER).feed(raw_frame(1))
    assert (frame.head, frame.body) == (b"", b"")
    assert (FrameSplitter(100, 200, CLUSTER).head_bytes_max, FrameSplitter(100, 200).body_bytes_max) == (100, 200)


def test_wrong_crc_names_both_values_before_any_body_arrives() -> None:
    data = bytearray(raw_frame(3, b"head", b"body"))
    said = struct.unpack_from("<I", data, 8)[0]
    data[8] ^= 1
    with pytest.raises(FrameError, match=f"have CRC {said:#010x}, the frame says {said ^ 1:#010x}"):
        make_splitter().feed(data[:68])


def test_errors_are_sticky() -> None:
    splitter = make_splitter()
    lent = splitter.get_buffer()
    with pytest.raises(FrameError, match="0x20544547"):
        splitter.feed(SAMPLE_FRAMES[0] + b"GET / HTTP/1.1\r\n\r\n")
    for again in (
        lambda: splitter.feed(SAMPLE_STREAM),
        lambda: splitter.feed(b""),
        splitter.get_buffer,
        lambda: splitter.buffer_updated(0),
    ):
        with pytest.raises(FrameError, match="0x20544547"):
            again()
    assert splitter.pending_bytes == 0
    lent[:4] = b"FPX1"


@pytest.mark.parametrize("data", SAMPLE_FRAMES)
def test_every_bit_flip_of_header_and_head_is_refused(data: bytes) -> None:
    # The good frames behind it stand in for a stream that goes on: a larger length swallows them, never accepts them.
    [frame] = make_splitter().feed(data)
    covered = 64 + len(frame.head)
    following = make_writer().encode(FrameType.NACK, 1, b"") * 70
    for bit in range(8 * covered):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << (bit % 8)
        splitter = FrameSplitter(4095, 4095, CLUSTER)
        with pytest.raises(FrameError):
            splitter.feed(bytes(flipped) + following)


def test_a_corrupt_body_is_found_by_the_crc_of_its_block() -> None:
    data = SAMPLE_FRAMES[1]
    check_block(only_frame(data).body)
    for position in range(64 + 16, len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 0x40
        with pytest.raises(FrameError):
            check_block(only_frame(flipped).body)


# ---- clusters ----


def test_a_frame_of_another_cluster_is_refused_by_name() -> None:
    with pytest.raises(FrameError, match=f"cluster {OTHER_CLUSTER.hex()}, expected cluster {CLUSTER.hex()}"):
        make_splitter().feed(raw_frame(1, cluster_id=OTHER_CLUSTER))
    with pytest.raises(FrameError, match=OTHER_CLUSTER.hex()):
        make_splitter().feed(raw_frame(40, b"\x80", cluster_id=OTHER_CLUSTER))


def test_frames_without_a_cluster_are_taken_only_for_hello_and_control() -> None:
    for frame_type in FrameType:
        data = raw_frame(frame_type, b"\x80", cluster_id=bytes(16))
        if frame_type in (FrameType.HELLO, FrameType.CONTROL):
            assert only_frame(data).cluster_id == bytes(16)
            continue
        with pytest.raises(FrameError, match=f"{frame_type.name} names no cluster, expected cluster {CLUSTER.hex()}"):
            make_splitter().feed(data)


def test_any_cluster_is_taken_until_one_is_expected() -> None:
    splitter = make_splitter(None)
    assert splitter.expected_cluster is None
    clusters = [bytes(16), CLUSTER, OTHER_CLUSTER, CLUSTER]
    frames = splitter.feed(b"".join(raw_frame(1, cluster_id=cluster) for cluster in clusters))
    assert [frame.cluster_id for frame in frames] == clusters
    splitter.expected_cluster = CLUSTER
    assert splitter.expected_cluster == CLUSTER
    assert len(splitter.feed(raw_frame(1) * 2)) == 2
    with pytest.raises(FrameError, match=OTHER_CLUSTER.hex()):
        splitter.feed(raw_frame(1, cluster_id=OTHER_CLUSTER))


def test_the_expected_cluster_is_judged_even_when_it_is_set_within_a_frame() -> None:
    splitter = make_splitter(None)
    data = raw_frame(1, b"head", cluster_id=OTHER_CLUSTER)
    assert len(splitter.feed(data)) == 1
    splitter.feed(data[:66])
    splitter.expected_cluster = CLUSTER
    with pytest.raises(FrameError, match=OTHER_CLUSTER.hex()):
        splitter.feed(data[66:])


def test_an_unfounded_cluster_is_no_expectation() -> None:
    for unfounded in (None, b"", bytes(16)):
        assert make_splitter(unfounded).expected_cluster is None
    with pytest.raises(ValueError, match="16 bytes, not 3"):
        make_splitter(b"abc")


# ---- heads ----


@pytest.mark.parametrize(
    ("parse", "frame_type", "head_bytes", "is_exact"),
    [
        (parse_submit, FrameType.SUBMIT, 16, True),
        (parse_reply, FrameType.REPLY, 48, True),
        (parse_query, FrameType.QUERY, 24, False),
        (parse_query_reply, FrameType.QUERY_REPLY, 24, False),
    ],
)
def test_heads_of_a_wrong_size_or_type_are_refused(
    parse: Callable[[Frame], object], frame_type: FrameType, head_bytes: int, is_exact: bool
) -> None:
    quantity = "exactly" if is_exact else "at least"
    sizes = [*range(head_bytes), *([head_bytes + 1, 2 * head_bytes] if is_exact else [])]
    for size in sizes:
        message = f"{frame_type.name} has a head of {size} bytes, it needs {quantity} {head_bytes}"
        with pytest.raises(FrameError, match=message):
            parse(only_frame(raw_frame(frame_type, bytes(size))))
    parse(only_frame(raw_frame(frame_type, bytes(head_bytes))))
    with pytest.raises(FrameError, match=f"frame is PREPARE, expected {frame_type.name}"):
        parse(only_frame(raw_frame(1, bytes(head_bytes))))
    with pytest.raises(TypeError):
        parse(None)


@pytest.mark.parametrize(
    ("parse", "data", "message"),
    [
        (parse_submit, raw_frame(20, struct.pack("<QII", 1, 0, 7)), "SUBMIT has reserved bits 0x7"),
        (parse_query, raw_frame(22, struct.pack("<QIHHQ", 1, 0, 0, 7, 0)), "QUERY has reserved bits 0x7"),
        (parse_query, raw_frame(22, struct.pack("<QIHHQ", 1, 0, 3, 0, 0)), "QUERY has read mode 3"),
        (parse_query, raw_frame(22, bytes(24), b"body"), "QUERY has a body of 4 bytes"),
        (parse_query_reply, raw_frame(23, struct.pack("<QHHIQ", 1, 0, 0, 7, 0)), "QUERY_REPLY has reserved bits 0x7"),
        (parse_query_reply, raw_frame(23, struct.pack("<QHHIQ", 1, 12, 0, 0, 0)), "QUERY_REPLY has status 12"),
        (parse_query_reply, raw_frame(23, bytes(24), b"body"), "QUERY_REPLY has a body of 4 bytes"),
        (parse_reply, raw_frame(21, struct.pack("<QQQIHHQII", 1, 2, 3, 4, 12, 0, 5, 0, 0)), "REPLY has status 12"),
        (
            parse_reply,
            raw_frame(21, struct.pack("<QQQIHHQII", 1, 2, 3, 4, 0, 0, 5, 7, 0), b"r"),
            "results of REPLY 3 have CRC",
        ),
        (parse_mapping, raw_frame(40, b"\x80", b"body"), "HELLO has a body of 4 bytes"),
        (parse_mapping, raw_frame(1, b"\x80"), "frame is PREPARE, expected HELLO or CONTROL"),
    ],
)
def test_wrong_fields_of_heads_are_refused(parse: Callable[[Frame], object], data: bytes, message: str) -> None:
    with pytest.raises(FrameError, match=message):
        parse(only_frame(data))


# ---- maps ----


mapping_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), UINT64_MAX) | st.floats(allow_nan=False) | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda values: st.lists(values, max_size=4)
    | st.dictionaries(st.text(max_size=4) | st.integers(0, 65535), values, max_size=4),
    max_leaves=12,
).filter(lambda value: depth_of(value) <= 7)  # fmt: skip


def depth_of(value: object) -> int:
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return 1 + max((depth_of(item) for item in inner), default=0)


@deterministic
@given(st.dictionaries(st.text(max_size=6), mapping_values, max_size=6))
def test_maps_read_back(mapping: dict[str, Any]) -> None:
    for data in (make_writer().hello(mapping), make_writer().control(mapping)):
        assert parse_mapping(only_frame(data)) == mapping


def test_bytes_stay_bytes_and_text_stays_text() -> None:
    mapping = {"cluster_id": CLUSTER, "empty": b"", "text": "höst:1", "members": {1: "a:1", 2: "b:2"}}
    parsed = parse_mapping(only_frame(make_writer().hello(mapping)))
    assert parsed == mapping
    assert [type(value) for value in parsed.values()] == [bytes, bytes, str, dict]


def nested(levels: int) -> bytes:
    """Return a map that holds lists in lists; the map counts as one level and so does the innermost nil."""
    return b"\x81\xa1k" + b"\x91" * (levels - 2) + b"\xc0"


BAD_MAPS = [
    ("nothing", b"", "no msgpack map"),
    ("list", b"\x90", "expected a msgpack map, got list"),
    ("number", b"\x05", "expected a msgpack map, got int"),
    ("trailing bytes", b"\x80\x80", "ExtraData"),
    ("truncated", b"\x81\xa1k", "no msgpack map"),
    ("truncated text", b"\x81\xa1k\xa5abc", "no msgpack map"),
    ("unused byte", b"\x81\xa1k\xc1", "no msgpack map"),
    ("outer key is a number", b"\x81\x01\x01", "outer key 1, it must be str"),
    ("bytes as key", b"\x81\xc4\x01k\x01", "key of type bytes"),
    ("list as key", b"\x81\x90\x01", "key of type list"),
    ("bool as key", b"\x81\xa1k\x81\xc3\x01", "key of type bool"),
    ("float as key", b"\x81\xa1k\x81\xcb" + bytes(8) + b"\x01", "key of type float"),
    ("key given twice", b"\x82\xa1k\x01\xa1k\x02", "the key 'k' twice"),
    ("not UTF-8", b"\x81\xa1k\xa1\xff", "UnicodeDecodeError"),
    ("extension", b"\x81\xa1k\xd4\x05\x00", "no msgpack map"),
    ("empty extension", b"\x81\xa1k\xc7\x00\x05", "value of type ExtType"),
    ("timestamp", b"\x81\xa1k\xd6\xff" + bytes(4), "no msgpack map"),
    ("9 levels", nested(9), "nested deeper than 8 levels"),
    ("500 levels", nested(500), "nested deeper than 8 levels"),
    ("100000 levels", nested(100_000), "no msgpack map"),
    ("absurd list", b"\x81\xa1k\xdd\xff\xff\xff\xff", "exceeds max_array_len"),
    ("list of 4097", msgpack.packb({"k": [0] * 4097}), "exceeds max_array_len"),
    ("absurd map", b"\xdf\xff\xff\xff\xff", "exceeds max_map_len"),
    ("absurd text", b"\x81\xa1k\xdb\xff\xff\xff\xff", "no msgpack map"),
    ("absurd bytes", b"\x81\xa1k\xc6\xff\xff\xff\xff", "no msgpack map"),
    ("absurd extension", b"\x81\xa1k\xc9\xff\xff\xff\xff\x05", "exceeds max_ext_len"),
    ("more than 256 KiB", msgpack.packb({"k": bytes(262_144)}), "map has 262152 bytes, limit is 262144"),
]


@pytest.mark.parametrize(("head", "message"), [bad[1:] for bad in BAD_MAPS], ids=[bad[0] for bad in BAD_MAPS])
def test_bad_maps_are_refused(head: bytes, message: str) -> None:
    with pytest.raises(FrameError, match=message):
        parse_mapping(only_frame(raw_frame(40, head)))


def test_maps_exactly_at_their_limits_are_taken() -> None:
    for mapping in ({"k": [0] * 4096}, {"k": bytes(262_136)}, {str(key): 0 for key in range(4096)}):
        assert parse_mapping(only_frame(make_writer().control(mapping))) == mapping
    assert parse_mapping(only_frame(raw_frame(41, nested(8)))) == {"k": [[[[[[None]]]]]]}


def test_writer_refuses_maps_that_would_be_refused() -> None:
    for mapping, error in [
        ({1: 2}, ValueError),
        ({"k": {b"bytes": 1}}, ValueError),
        ([], ValueError),
        ({"k": [0] * 4097}, ValueError),
        ({"k": bytes(300_000)}, ValueError),
        ({"k": object()}, TypeError),
    ]:
        for encode in (make_writer().hello, make_writer().control):
            with pytest.raises(error):
                encode(mapping)


# ---- fuzzing ----


def parse_all(frames: Iterable[Frame]) -> int:
    """Run every parser over every frame; only FrameError may come out. Return how many heads were accepted."""
    accepted = 0
    for frame in frames:
        for parse in PARSERS:
            try:
                parse(frame)
            except FrameError:
                continue
            accepted += 1
    return accepted


def test_garbage_is_refused() -> None:
    source = random.Random(31)
    refused = 0
    for _ in range(20_000):
        data = source.randbytes(source.randrange(200))
        if source.random() < 0.5:
            data = b"FPX1\x01" + data
        splitter = FrameSplitter(4096, 4096, None)
        try:
            assert splitter.feed(data) == []
        except FrameError:
            refused += 1
    assert refused > 15_000


def test_mutated_frames_under_a_right_crc_never_crash_a_parser() -> None:
    source = random.Random(32)
    accepted = refused = 0
    for _ in range(20_000):
        data = bytearray(source.choice(SAMPLE_FRAMES))
        head_bytes = struct.unpack_from("<I", data, 12)[0]
        for _ in range(source.randrange(1, 5)):
            data[source.randrange(5, 64 + head_bytes)] = source.choice((0, 1, 20, 23, 255, source.randrange(256)))
        data[12:16] = struct.pack("<I", head_bytes)
        splitter = FrameSplitter(4096, 4096, None)
        try:
            frames = splitter.feed(sealed(bytes(data)))
        except FrameError:
            refused += 1
            continue
        accepted += parse_all(frames)
    assert accepted > 500
    assert refused > 500


def test_random_maps_never_crash_the_parser() -> None:
    source = random.Random(33)
    accepted = 0
    for _ in range(20_000):
        head = bytearray(source.randbytes(source.randrange(1, 40)))
        head[0] = 0x80 | source.randrange(4)
        for position in range(1, len(head), 2):
            head[position] = source.choice((0xA0, 0xA1, 0x90, 0x92, 0x80, 0x81, 0xC0, 0xC4, 0xD9, head[position]))
        [frame] = make_splitter().feed(raw_frame(41, bytes(head)))
        accepted += parse_all([frame])
    assert accepted > 10


def test_random_cuts_of_random_streams_always_agree() -> None:
    source = random.Random(34)
    for _ in range(300):
        chosen = [source.randrange(len(SAMPLE_FRAMES)) for _ in range(source.randrange(1, 12))]
        stream = b"".join(SAMPLE_FRAMES[index] for index in chosen)
        splitter = make_splitter()
        frames = []
        position = 0
        while position < len(stream):
            size = source.choice((1, 3, 20, 64, 200, 1000))
            frames += splitter.feed(stream[position : position + size])
            position += size
        assert [facts(frame) for frame in frames] == [SAMPLE_FACTS[index] for index in chosen]
