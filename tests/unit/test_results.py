"""Result blobs: layout, round trips, and refusal of every blob that does not fit its block."""

from __future__ import annotations

import random
import struct
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpaxos_core.errors import FrameError
from fastpaxos_core.results import CommandFailure, decode_results, encode_results, failure_results, uniform_results

UNIFORM, HAS_ERRORS, SHARED = 1, 2, 4
deterministic = settings(derandomize=True, database=None, deadline=None, max_examples=200)
failure_strategy = st.builds(CommandFailure, st.text(max_size=20), st.text(max_size=40))
results_strategy = st.lists(st.one_of(st.binary(max_size=30), failure_strategy), min_size=1, max_size=60)


def expected_blob(results: list[bytes | CommandFailure]) -> bytes:
    parts = [
        result if isinstance(result, bytes) else msgpack.packb([result.type_name, result.message]) for result in results
    ]
    is_uniform = len({len(part) for part in parts}) == 1
    failed = [index for index, result in enumerate(results) if not isinstance(result, bytes)]
    blob = struct.pack("<BBHI", 1, is_uniform * UNIFORM + bool(failed) * HAS_ERRORS, 0, len(parts))
    if not is_uniform:
        blob += struct.pack(f"<{len(parts)}I", *map(len, parts))
    if failed:
        blob += sum(1 << index for index in failed).to_bytes((len(parts) + 7) // 8, "little")
    return blob + b"".join(parts)


@deterministic
@given(results_strategy)
def test_blob_has_the_documented_bytes_and_reads_back(results: Any) -> None:
    blob = encode_results(results)
    assert blob == expected_blob(results)
    assert decode_results(blob, len(results)) == results
    assert encode_results(tuple(results)) == encode_results(iter(results)) == blob


@deterministic
@given(st.lists(st.binary(min_size=5, max_size=5), min_size=1, max_size=40))
def test_uniform_results(results: Any) -> None:
    blob = uniform_results(len(results), b"".join(results))
    assert blob == encode_results(results)
    assert blob == struct.pack("<BBHI", 1, UNIFORM, 0, len(results)) + b"".join(results)
    assert decode_results(blob, len(results)) == results
    assert uniform_results(len(results), bytearray(b"".join(results))) == blob


def test_uniform_results_refuse_what_cannot_be_divided() -> None:
    for count, payload in [(0, b""), (0, b"a"), (2, b"abc"), (4, b"abc")]:
        with pytest.raises(ValueError, match=f"{len(payload)} payload bytes are not {count} results"):
            uniform_results(count, payload)
    with pytest.raises(OverflowError):
        uniform_results(1 << 32, b"")
    with pytest.raises(TypeError):
        uniform_results(1, "text")


@pytest.mark.parametrize("count", [1, 7, 8, 9, 1000])
def test_one_failure_for_all_is_stored_once(count: int) -> None:
    failure = CommandFailure("ValueError", "bad " * 100)
    blob = failure_results(count, failure)
    payload = msgpack.packb(["ValueError", "bad " * 100])
    bitmap = ((1 << count) - 1).to_bytes((count + 7) // 8, "little")
    assert blob == struct.pack("<BBHI", 1, SHARED | HAS_ERRORS, 0, count) + bitmap + payload
    assert decode_results(blob, count) == [failure] * count


def test_failure_results_need_a_command_and_a_failure() -> None:
    with pytest.raises(ValueError, match="at least one result"):
        failure_results(0, CommandFailure("E", "m"))
    with pytest.raises(TypeError):
        failure_results(1, None)


def test_one_shared_result_can_be_plain_bytes_too() -> None:
    blob = struct.pack("<BBHI", 1, SHARED, 0, 3) + b"same"
    assert decode_results(blob, 3) == [b"same"] * 3
    mixed = struct.pack("<BBHI", 1, SHARED | HAS_ERRORS, 0, 3) + b"\x02" + msgpack.packb(["E", "m"])
    assert decode_results(mixed, 3)[1] == CommandFailure("E", "m")


def test_results_of_another_type_are_refused() -> None:
    for results in (["text"], [b"a", None], [b"a", bytearray(b"b")], [1], b"ab"):
        with pytest.raises(TypeError, match="it must be bytes or CommandFailure"):
            encode_results(results)
    with pytest.raises(ValueError, match="at least one result"):
        encode_results([])


def test_failures_are_cut_to_whole_characters() -> None:
    failure = CommandFailure("T" * 300, "€" * 1000)
    assert failure.type_name == "T" * 256
    assert failure.message == "€" * 341
    assert len(failure.message.encode()) == 1023
    assert decode_results(encode_results([failure]), 1) == [failure]
    assert CommandFailure("E", "lone \ud800 surrogate").message == "lone ? surrogate"


def test_failures_compare_by_value() -> None:
    failure = CommandFailure("E", "m")
    assert failure == CommandFailure("E", "m")
    assert hash(failure) == hash(CommandFailure("E", "m"))
    assert failure != CommandFailure("E", "n")
    assert failure != CommandFailure("F", "m")
    assert failure != ("E", "m")
    assert repr(failure) == "CommandFailure('E', 'm')"
    with pytest.raises(AttributeError):
        failure.message = "other"
    for arguments in ((None, "m"), ("E", None), (b"E", "m"), ("E", 1)):
        with pytest.raises(TypeError):
            CommandFailure(*arguments)


def blob_of(flags: int, count: int, rest: bytes, version: int = 1, reserved: int = 0) -> bytes:
    return struct.pack("<BBHI", version, flags, reserved, count) + rest


BAD_BLOBS: list[tuple[str, bytes, int, str]] = [
    ("empty", b"", 1, "0 bytes, its header alone has 8"),
    ("short header", b"\1\1\0\0\1\0\0", 1, "7 bytes"),
    ("version", blob_of(1, 1, b"", version=2), 1, "version 2"),
    ("flags", blob_of(9, 1, b""), 1, "flags 0x09"),
    ("shared and uniform", blob_of(5, 1, b""), 1, "flags 0x05"),
    ("reserved", blob_of(1, 1, b"", reserved=256), 1, "reserved bits 0x0100"),
    ("other count", blob_of(1, 2, b"ab"), 3, "2 results for 3 commands"),
    ("no results", blob_of(1, 0, b""), 0, "0 results for 0 commands"),
    ("lengths missing", blob_of(0, 2, bytes(7)), 2, "15 bytes, 2 results need at least 16"),
    ("absurd count", blob_of(0, 0xFFFFFFFF, b""), 0xFFFFFFFF, "need at least 17179869188"),
    ("bitmap missing", blob_of(HAS_ERRORS | UNIFORM, 9, b"\0"), 9, "9 bytes, 9 results need at least 10"),
    ("lengths too long", blob_of(0, 2, struct.pack("<2I", 1, 2) + b"ab"), 2, "2 payload bytes, .* add up to 3"),
    ("lengths wrap", blob_of(0, 2, struct.pack("<2I", 0xFFFFFFFF, 3) + b"ab"), 2, "add up to 4294967298"),
    ("not divisible", blob_of(UNIFORM, 2, b"abc"), 2, "3 payload bytes for 2 results of equal length"),
    ("bit beyond", blob_of(HAS_ERRORS | UNIFORM, 2, b"\4"), 2, "failures beyond its 2 results"),
    ("failure is no msgpack", blob_of(HAS_ERRORS | UNIFORM, 1, b"\1\xc1"), 1, "failure of command 0"),
    ("failure is empty", blob_of(HAS_ERRORS | UNIFORM, 1, b"\1"), 1, "failure of command 0"),
    ("failure is a number", blob_of(HAS_ERRORS | UNIFORM, 1, b"\1\5"), 1, "not \\[type name, message\\]"),
    ("failure of bytes", blob_of(HAS_ERRORS | UNIFORM, 1, b"\1\x92\xc4\0\xc4\0"), 1, "not \\[type name, message\\]"),
    ("failure of three", blob_of(HAS_ERRORS | UNIFORM, 1, b"\1\x93\xa0\xa0\xa0"), 1, "failure of command 0"),
    ("failure with trailing bytes", blob_of(HAS_ERRORS | UNIFORM, 1, b"\1\x92\xa0\xa0\xa0"), 1, "ExtraData"),
    ("failure is not UTF-8", blob_of(HAS_ERRORS | UNIFORM, 1, b"\1\x92\xa1\xff\xa0"), 1, "UnicodeDecodeError"),
]


@pytest.mark.parametrize(
    ("blob", "count", "message"), [bad[1:] for bad in BAD_BLOBS], ids=[bad[0] for bad in BAD_BLOBS]
)
def test_bad_blobs_are_refused_with_their_values(blob: bytes, count: int, message: str) -> None:
    with pytest.raises(FrameError, match=message):
        decode_results(blob, count)


def test_every_truncation_of_a_blob_with_lengths_is_refused() -> None:
    blob = encode_results([b"one", CommandFailure("E", "m"), b"", b"four"])
    for size in range(len(blob)):
        with pytest.raises(FrameError):
            decode_results(blob[:size], 4)


def test_decode_takes_only_bytes() -> None:
    for blob in (None, bytearray(b""), "text"):
        with pytest.raises(TypeError):
            decode_results(blob, 1)


def test_mutated_blobs_are_refused_or_consistent() -> None:
    source = random.Random(21)
    originals = [
        encode_results([b"one", CommandFailure("E", "m"), b"", b"four"]),
        encode_results([b"abcd"] * 4),
        failure_results(4, CommandFailure("E", "m")),
    ]
    accepted = 0
    for _ in range(20_000):
        data = bytearray(source.choice(originals))
        for _ in range(source.randrange(1, 4)):
            data[source.randrange(len(data))] = source.choice((0, 1, 2, 4, 255, source.randrange(256)))
        del data[len(data) - source.choice((0, 0, 1, 4)) :]
        try:
            results = decode_results(bytes(data), 4)
        except FrameError:
            continue
        accepted += 1
        assert len(results) == 4
        assert all(isinstance(result, (bytes, CommandFailure)) for result in results)
    assert 100 < accepted < 19_900
