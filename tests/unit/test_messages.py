"""Replica messages: the readable form and the C layouts agree."""

import pytest

from fastpaxos_core.block import build_block
from fastpaxos_core.errors import FrameError
from fastpaxos_core.messages import decode_message, encode_message
from fastpaxos_core.wire import Frame, FrameSplitter, FrameWriter

CLUSTER = b"c" * 16
WRITER = FrameWriter(2, 77, 5, CLUSTER)
BLOCK = build_block([b"one", b"three"], 9, 1)
ENTRY = {"slot_begin": 10, "slot_end": 12, "ballot": 65538, "timestamp_ns": -5, "value_crc": 123, "block": BLOCK}


def frame_of(data: bytes) -> Frame:
    frames = FrameSplitter(1 << 20, 1 << 20, CLUSTER).feed(data)
    assert len(frames) == 1
    return frames[0]


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("prepare", {"slot_begin": 4}),
        ("nack", {"promised_ballot": 9, "commit_index": 3}),
        ("commit", {"commit_index": 3, "everywhere_durable": 2}),
        ("heartbeat", {"commit_index": 3, "everywhere_durable": 2, "read_round": 8}),
        ("heartbeat_reply", {"read_round": 8, "commit_index": 3, "applied_index": 2, "durable_index": 1}),
        ("fetch", {"request_id": 1, "slot_begin": 4, "slot_end": 9, "bytes_max": 100, "value_crc": 7}),
    ],
)
def test_plain_messages_round_trip(name: str, fields: dict[str, int]) -> None:
    message = decode_message(frame_of(encode_message(WRITER, name, 65538, **fields)))
    assert message["message"] == name
    assert (message["ballot"], message["sender"], message["boot"]) == (65538, 2, 5)
    assert {key: message[key] for key in fields} == fields


@pytest.mark.parametrize("name", ["accept", "learn"])
def test_batches_carry_their_blocks(name: str) -> None:
    message = decode_message(frame_of(encode_message(WRITER, name, 65538, [ENTRY, ENTRY], commit_index=9)))
    assert message["entry_count"] == 2
    for entry in message["entries"]:
        assert {key: entry[key] for key in ENTRY} == ENTRY


def test_votes_and_promises_round_trip() -> None:
    ranges = [{"slot_begin": 1, "slot_end": 5, "value_crc": 6}]
    message = decode_message(frame_of(encode_message(WRITER, "accepted", 65538, ranges, durable_index=2)))
    assert message["entries"] == [{**ranges[0], "reserved": 0}]
    message = decode_message(
        frame_of(encode_message(WRITER, "promise", 65538, [{**ENTRY, "block": b""}], part_count=1))
    )
    assert message["entries"][0]["slot_begin"] == 10


def test_a_head_that_does_not_add_up_is_refused() -> None:
    for head in (b"", b"\0" * 24 + b"\1\0\0\0" + b"\0" * 4):
        with pytest.raises(FrameError):
            decode_message(frame_of(WRITER.encode(3, 65538, head)))
    with pytest.raises(FrameError, match="no replica message"):
        decode_message(frame_of(WRITER.encode(20, 0, b"\0" * 16)))
