"""Blocks: layout, building, checking and reading, against an encoder written with struct alone."""

from __future__ import annotations

import gc
import random
import struct
import sys
from collections.abc import Sequence
from typing import Any

import crc32c as reference
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpaxos_core.block import BlockView, build_block, build_control, build_noop, check_block, value_crc
from fastpaxos_core.errors import FrameError

HEADER = struct.Struct("<BBHIIIQQQ")
UINT64_MAX = (1 << 64) - 1
deterministic = settings(derandomize=True, database=None, deadline=None, max_examples=200)
commands_strategy = st.one_of(
    st.lists(st.binary(max_size=40), min_size=1, max_size=50),
    st.builds(
        lambda size, count: [bytes([i % 256]) * size for i in range(count)], st.integers(0, 20), st.integers(1, 50)
    ),
)


def sealed(data: bytes) -> bytes:
    """Return the block with the CRC that its other bytes ask for."""
    crc = reference.crc32c(data[8:], reference.crc32c(data[:4]))
    return data[:4] + struct.pack("<I", crc) + data[8:]


def raw_block(
    *,
    version: int = 1,
    kind: int = 0,
    flags: int = 0,
    count: int = 0,
    payload_bytes: int = 0,
    session_id: int = 0,
    first_sequence: int = 0,
    acknowledged_below: int = 0,
    rest: bytes = b"",
) -> bytes:
    return sealed(
        HEADER.pack(version, kind, flags, 0, count, payload_bytes, session_id, first_sequence, acknowledged_below)
        + rest
    )


def expected_block(commands: Sequence[bytes], session_id: int, first_sequence: int, acknowledged_below: int) -> bytes:
    lengths = [len(command) for command in commands]
    is_uniform = len(set(lengths)) == 1
    rest = b"".join(commands)
    if not is_uniform:
        rest = struct.pack(f"<{len(lengths)}I", *lengths) + rest
    return raw_block(
        flags=int(is_uniform),
        count=len(commands),
        payload_bytes=sum(lengths),
        session_id=session_id,
        first_sequence=first_sequence,
        acknowledged_below=acknowledged_below,
        rest=rest,
    )


# ---- building ----


@deterministic
@given(commands_strategy, st.integers(0, UINT64_MAX), st.integers(0, UINT64_MAX - 50), st.integers(0, UINT64_MAX))
def test_block_has_the_documented_bytes_and_reads_back(
    commands: Any, session_id: int, first_sequence: int, acknowledged_below: int
) -> None:
    data = build_block(commands, session_id, first_sequence, acknowledged_below)
    assert data == expected_block(commands, session_id, first_sequence, acknowledged_below)
    check_block(data)
    view = BlockView(data)
    assert list(view) == commands == view.commands() == [view[i] for i in range(len(view))]
    assert view.lengths().tolist() == [len(command) for command in commands]
    assert view.lengths().dtype == np.uint32
    assert bytes(view.payload_view) == b"".join(commands)
    assert (view.kind, view.command_count, view.payload_bytes) == (0, len(commands), sum(map(len, commands)))
    assert (view.session_id, view.first_sequence, view.acknowledged_below) == (
        session_id,
        first_sequence,
        acknowledged_below,
    )
    assert view.crc == HEADER.unpack_from(data)[3]
    assert view.nbytes == len(data)
    is_uniform = len({len(command) for command in commands}) == 1
    assert view.uniform_length == (len(commands[0]) if is_uniform else 0)


def test_every_bytes_like_command_and_every_sequence_gives_the_same_block() -> None:
    commands = [b"alpha", b"", b"gamma delta"]
    expected = build_block(commands, 7, 9, 3)
    assert build_block(tuple(commands), 7, 9, 3) == expected
    assert build_block([bytearray(b"alpha"), memoryview(b""), b"gamma delta"], 7, 9, 3) == expected
    assert build_block((command for command in commands), 7, 9, 3) == expected
    assert build_block([memoryview(b"a_l_p_h_a")[::2], b"", b"gamma delta"], 7, 9, 3) == expected
    assert build_block(commands, session_id=7, first_sequence=9, acknowledged_below=3) == expected


def test_build_keeps_no_reference_to_the_commands() -> None:
    command = bytes(bytearray(b"some command that is not interned"))
    before = sys.getrefcount(command)
    data = build_block([command] * 3, 1, 1)
    view = BlockView(data)
    assert list(view) == [command] * 3
    assert sys.getrefcount(command) == before


@pytest.mark.parametrize("commands", [["text"], [b"a", 1], [None], "text", b"bytes", [[b"a"]], [b"a", np.zeros(3)]])
def test_other_commands_are_a_type_error_that_names_the_type(commands: Any) -> None:
    with pytest.raises(TypeError, match=r"command \d is (str|int|NoneType|list|ndarray), it must be bytes"):
        build_block(commands, 1, 1)


@pytest.mark.parametrize("commands", [[], (), iter(())])
def test_no_commands_are_refused(commands: Any) -> None:
    with pytest.raises(ValueError, match="at least one command"):
        build_block(commands, 1, 1)


def test_numbers_that_are_no_uint64_are_refused() -> None:
    for numbers in [(-1, 1, 0), (1, -1, 0), (1, 1, -1), (1 << 64, 1, 0), (1, 1 << 64, 0), (1, 1, 1 << 64)]:
        with pytest.raises(OverflowError):
            build_block([b"a"], *numbers)


def test_sequences_may_reach_the_last_number_but_not_pass_it() -> None:
    assert list(BlockView(build_block([b"a"], 1, UINT64_MAX - 1))) == [b"a"]
    with pytest.raises(ValueError, match="2 commands from sequence 18446744073709551614 pass the last"):
        build_block([b"a", b"b"], 1, UINT64_MAX - 1)


def test_a_block_above_four_gigabytes_is_refused_before_memory_is_taken() -> None:
    command = bytes(1 << 20)
    with pytest.raises(ValueError, match="4096 commands with 4294967296 bytes need a block of 4294967336 bytes"):
        build_block([command] * 4096, 1, 1)
    with pytest.raises(ValueError, match="need a block of 42949"):
        build_block([b"x", *[command] * 4096], 1, 1)


def test_noop_block() -> None:
    assert build_noop(4_000_000_000) == raw_block(kind=1, flags=1, count=4_000_000_000)
    view = BlockView(build_noop(3))
    assert (view.kind, len(view), view.payload_bytes, view.nbytes) == (1, 3, 0, 40)
    assert list(view) == [b"", b"", b""]
    with pytest.raises(ValueError, match="at least one slot"):
        build_noop(0)
    with pytest.raises(ValueError, match="4294967296 commands"):
        build_noop(1 << 32)


def test_control_block() -> None:
    data = build_control(b"\x81\xa1a\x01")
    assert data == raw_block(kind=2, flags=1, count=1, payload_bytes=4, rest=b"\x81\xa1a\x01")
    assert list(BlockView(data)) == [b"\x81\xa1a\x01"]
    for payload in (bytearray(b"x"), None, "x"):
        with pytest.raises(TypeError):
            build_control(payload)


# ---- checking ----


SMALL_BLOCKS = [
    build_block([b"one", b"three", b""], 5, 6, 7),
    build_block([b"four", b"five"], 5, 6, 7),
    build_noop(4),
    build_control(b"\x80"),
]


@pytest.mark.parametrize("data", SMALL_BLOCKS)
def test_every_truncation_and_every_extension_is_refused(data: bytes) -> None:
    for size in range(len(data)):
        for verify_crc in (True, False):
            with pytest.raises(FrameError):
                check_block(data[:size], verify_crc)
    for extra in (b"\0", b"\0\0\0\0", data):
        with pytest.raises(FrameError, match=f"block has {len(data) + len(extra)} bytes, but its header says"):
            check_block(data + extra)


@pytest.mark.parametrize("data", SMALL_BLOCKS)
def test_every_single_bit_flip_is_refused(data: bytes) -> None:
    check_block(data)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(FrameError):
            check_block(flipped)
        with pytest.raises(FrameError):
            BlockView(flipped)


LENGTHS = struct.pack("<2I", 3, 1)
BAD_BLOCKS = [
    ("version", {"version": 2, "kind": 0, "flags": 1, "count": 1}, "version 2, kind 0"),
    ("version zero", {"version": 0, "flags": 1, "count": 1}, "version 0"),
    ("kind", {"kind": 3, "flags": 1, "count": 1}, "kind 3"),
    ("flags", {"flags": 3, "count": 1}, "flags 0x0003"),
    ("high flag", {"flags": 0x8001, "count": 1}, "flags 0x8001"),
    ("no commands", {"flags": 1}, "0 commands, 0 payload bytes, uniform"),
    ("no commands, lengths", {"flags": 0}, "0 commands, 0 payload bytes"),
    (
        "not divisible",
        {"flags": 1, "count": 2, "payload_bytes": 3, "rest": b"abc"},
        "2 commands, 3 payload bytes, uniform",
    ),
    ("more commands than bytes", {"flags": 1, "count": 9, "payload_bytes": 3, "rest": b"abc"}, "9 commands"),
    ("lengths too long", {"count": 2, "payload_bytes": 3, "rest": LENGTHS + b"abc"}, "2 commands, 3 payload bytes"),
    ("lengths too short", {"count": 2, "payload_bytes": 5, "rest": LENGTHS + b"abcde"}, "2 commands, 5 payload bytes"),
    (
        "lengths that wrap around at 32 bits",
        {"count": 2, "payload_bytes": 1, "rest": struct.pack("<2I", 0xFFFFFFFF, 2) + b"a"},
        "2 commands, 1 payload bytes",
    ),
    ("count that wraps around", {"count": 0x40000000, "payload_bytes": 4, "rest": b"abcd"}, "1073741824 commands"),
    ("absurd count", {"count": 0xFFFFFFFF, "payload_bytes": 0xFFFFFFFF}, "4294967295 commands, 4294967295 payload"),
    ("no-op with payload", {"kind": 1, "flags": 1, "count": 1, "payload_bytes": 1, "rest": b"a"}, "kind 1"),
    ("no-op with lengths", {"kind": 1, "count": 1, "rest": bytes(4)}, "kind 1"),
    ("no-op with session", {"kind": 1, "flags": 1, "count": 1, "session_id": 8}, "session 8"),
    ("control of two", {"kind": 2, "flags": 1, "count": 2, "payload_bytes": 2, "rest": b"ab"}, "kind 2"),
    ("control with lengths", {"kind": 2, "count": 1, "payload_bytes": 1, "rest": b"\1\0\0\0a"}, "kind 2"),
    ("control with session", {"kind": 2, "flags": 1, "count": 1, "session_id": 8}, "session 8"),
    ("sequence overflow", {"flags": 1, "count": 2, "first_sequence": UINT64_MAX - 1}, "first sequence 184467440737"),
]


@pytest.mark.parametrize(("fields", "message"), [bad[1:] for bad in BAD_BLOCKS], ids=[bad[0] for bad in BAD_BLOCKS])
def test_wrong_fields_under_a_right_crc_are_refused_with_their_values(fields: dict[str, Any], message: str) -> None:
    data = raw_block(**fields)
    for verify_crc in (True, False):
        with pytest.raises(FrameError, match=message):
            check_block(data, verify_crc)


def test_crc_error_names_both_values_and_can_be_left_out() -> None:
    data = bytearray(build_block([b"one", b"two"], 1, 1))
    data[-1] ^= 0xFF
    found = reference.crc32c(bytes(data[8:]), reference.crc32c(bytes(data[:4])))
    said = struct.unpack_from("<I", data, 4)[0]
    with pytest.raises(FrameError, match=f"has CRC {found:#010x}, its header says {said:#010x}"):
        check_block(data)
    check_block(data, verify_crc=False)


def test_large_blocks_are_checked_too() -> None:
    data = build_block([bytes([i % 251]) * (i % 900) for i in range(1000)], 1, 1)
    check_block(data)
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 4
    with pytest.raises(FrameError, match="CRC"):
        check_block(flipped)


def test_garbage_never_gets_through() -> None:
    source = random.Random(11)
    for _ in range(10_000):
        with pytest.raises(FrameError):
            check_block(source.randbytes(source.randrange(120)))


def test_mutated_blocks_are_refused_or_consistent() -> None:
    # The CRC is made right again, so that the fields themselves are judged.
    source = random.Random(12)
    accepted = 0
    for _ in range(20_000):
        data = bytearray(source.choice(SMALL_BLOCKS))
        for _ in range(source.randrange(1, 4)):
            data[source.randrange(len(data))] = source.choice((0, 1, 2, 3, 255, source.randrange(256)))
        del data[len(data) - source.choice((0, 0, 0, 1, 5)) :]
        mutated = sealed(bytes(data))
        try:
            view = BlockView(mutated)
        except FrameError:
            continue
        accepted += 1
        if len(view) <= 10_000:
            commands = view.commands()
            assert commands == list(view) == [view[i] for i in range(len(view))]
            assert len(commands) == view.command_count
            assert b"".join(commands) == bytes(view.payload_view)
    assert 100 < accepted < 19_900


# ---- reading ----


@pytest.mark.parametrize("commands", [[b"a", b"bcd", b""], [b"ab", b"cd", b"ef"]])
def test_indexes(commands: Any) -> None:
    view = BlockView(build_block(commands, 1, 1))
    assert len(view) == 3
    assert [view[-3], view[-2], view[-1]] == commands
    for index in (3, -4, 1 << 40, -(1 << 40)):
        with pytest.raises(IndexError, match="the block has 3 commands"):
            view[index]
    for index in ("0", None, slice(0, 1), 0.0):
        with pytest.raises(TypeError):
            view[index]


def test_iterators_are_independent_and_stay_exhausted() -> None:
    view = BlockView(build_block([b"a", b"bcd"], 1, 1))
    first, second = iter(view), iter(view)
    assert next(first) == b"a"
    assert list(second) == [b"a", b"bcd"]
    assert iter(first) is first
    assert list(first) == [b"bcd"]
    assert list(first) == []


def test_iterator_and_payload_view_keep_the_bytes_alive() -> None:
    iterator = iter(BlockView(bytes(bytearray(build_block([b"a" * 5000, b"b" * 6000], 1, 1)))))
    payload_view = BlockView(bytes(bytearray(build_block([b"c" * 5000, b"d" * 6000], 1, 1)))).payload_view
    gc.collect()
    assert list(iterator) == [b"a" * 5000, b"b" * 6000]
    assert bytes(payload_view) == b"c" * 5000 + b"d" * 6000
    assert payload_view.readonly


def test_view_borrows_bytes_but_copies_what_can_change() -> None:
    data = build_block([b"one", b"three"], 1, 1)
    before = sys.getrefcount(data)
    view = BlockView(data)
    assert sys.getrefcount(data) > before
    assert view.payload_view.obj is data
    del view
    assert sys.getrefcount(data) == before
    changing = bytearray(data)
    view = BlockView(changing)
    changing[40:] = b"\xff" * len(changing[40:])
    changing.clear()
    assert list(view) == [b"one", b"three"]
    shared = bytearray(data)
    view = BlockView(memoryview(shared).toreadonly())
    shared[40:44] = b"\xff" * 4
    assert list(view) == [b"one", b"three"]


def test_view_of_a_part_of_a_larger_buffer() -> None:
    data = build_block([b"one", b"three"], 1, 1)
    buffer = b"before" + data + b"after"
    view = BlockView(memoryview(buffer)[6 : 6 + len(data)])
    assert list(view) == [b"one", b"three"]
    assert bytes(view.payload_view) == b"onethree"
    assert view.lengths().tolist() == [3, 5]
    spread = memoryview(bytes(byte for byte in data for _ in range(2)))[::2]
    assert list(BlockView(spread)) == [b"one", b"three"]


def test_a_view_that_failed_or_was_not_initialised_is_empty() -> None:
    view = BlockView.__new__(BlockView)
    assert (len(view), list(view), view.commands(), bytes(view.payload_view)) == (0, [], [], b"")
    with pytest.raises(FrameError):
        view.__init__(b"no block")
    assert (len(view), view.nbytes) == (0, 0)
    data = build_block([b"one"], 1, 1)
    view.__init__(data)
    assert list(view) == [b"one"]
    with pytest.raises(TypeError, match="only once"):
        view.__init__(data)
    with pytest.raises(TypeError):
        BlockView("text")


def test_repr_names_the_block() -> None:
    assert repr(BlockView(build_block([b"one", b"two"], 4, 5))) == (
        "BlockView(kind=0, command_count=2, payload_bytes=6, session_id=4, first_sequence=5)"
    )


# ---- value CRC ----


@deterministic
@given(
    st.integers(0, UINT64_MAX),
    st.integers(0, UINT64_MAX),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.integers(0, (1 << 32) - 1),
)
def test_value_crc_is_the_crc_of_the_packed_fields(
    slot_begin: int, slot_end: int, timestamp_ns: int, block_crc: int
) -> None:
    packed = struct.pack("<QQqI", slot_begin, slot_end, timestamp_ns, block_crc)
    assert value_crc(slot_begin, slot_end, timestamp_ns, block_crc) == reference.crc32c(packed)


def test_value_crc_refuses_numbers_that_do_not_fit() -> None:
    for numbers in [(-1, 1, 1, 1), (1, 1 << 64, 1, 1), (1, 1, 1 << 63, 1), (1, 1, 1, 1 << 32)]:
        with pytest.raises(OverflowError):
            value_crc(*numbers)
