"""CRC32C: every implementation gives the values of an independent one, for all short lengths and alignments."""

from __future__ import annotations

import random
from collections.abc import Callable

import crc32c as reference
import pytest

from fastpaxos_core import block

# Around every switch of the three-stream loops: 3 * 128 and 3 * 2048 bytes, and multiples of both.
LONG_LENGTHS = [
    base + offset
    for base in (384, 768, 3 * 2048, 3 * 2048 + 384, 6 * 2048, 9 * 2048, 65536, 200_000)
    for offset in (-9, -8, -7, -1, 0, 1, 7, 8, 9)
]


@pytest.mark.parametrize("checksum", [block.crc32c, block.crc32c_portable])
def test_known_values(checksum: Callable[..., int]) -> None:
    # The check values of RFC 3720, appendix B.4, and of the usual nine digits.
    assert checksum(b"") == 0
    assert checksum(b"123456789") == 0xE3069283
    assert checksum(bytes(32)) == 0x8A9136AA
    assert checksum(b"\xff" * 32) == 0x62A8AB43
    assert checksum(bytes(range(32))) == 0x46DD794E
    assert checksum(bytes(reversed(range(32)))) == 0x113FDB5C


@pytest.mark.parametrize("checksum", [block.crc32c, block.crc32c_portable])
def test_agrees_with_the_reference_for_all_short_lengths_and_alignments(checksum: Callable[..., int]) -> None:
    data = memoryview(random.Random(1).randbytes(1200))
    for length in range(1100):
        alignment = length % 17
        part = data[alignment : alignment + length]
        assert checksum(part) == reference.crc32c(part), f"length {length}, alignment {alignment}"
    for alignment in range(16):
        for length in (0, 1, 7, 8, 9, 63, 64, 65, 383, 384, 385):
            part = data[alignment : alignment + length]
            assert checksum(part) == reference.crc32c(part), f"length {length}, alignment {alignment}"


@pytest.mark.parametrize("checksum", [block.crc32c, block.crc32c_portable])
def test_agrees_with_the_reference_for_long_inputs(checksum: Callable[..., int]) -> None:
    data = memoryview(random.Random(2).randbytes(200_100))
    for length in LONG_LENGTHS:
        for alignment in (0, 1, 5, 8):
            part = data[alignment : alignment + length]
            assert checksum(part) == reference.crc32c(part), f"length {length}, alignment {alignment}"


@pytest.mark.parametrize("checksum", [block.crc32c, block.crc32c_portable])
def test_chaining_equals_one_pass(checksum: Callable[..., int]) -> None:
    source = random.Random(3)
    for _ in range(500):
        data = source.randbytes(source.randrange(20_000))
        cuts = sorted(source.randrange(len(data) + 1) for _ in range(source.randrange(4)))
        value = 0
        for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            value = checksum(data[begin:end], value)
        assert value == reference.crc32c(data)


def test_fast_and_portable_agree_from_any_start_value() -> None:
    source = random.Random(4)
    for _ in range(500):
        data = source.randbytes(source.randrange(8000))
        value = source.getrandbits(32)
        assert block.crc32c(data, value) == block.crc32c_portable(data, value) == reference.crc32c(data, value)


def test_implementation_has_a_name() -> None:
    assert block.crc32c_implementation() in ("x86 sse4.2 pclmul", "armv8 crc", "portable")


def test_accepts_only_bytes_like_data_and_uint32_values() -> None:
    assert block.crc32c(bytearray(b"123456789")) == block.crc32c(memoryview(b"123456789")) == 0xE3069283
    with pytest.raises(TypeError):
        block.crc32c("123456789")
    with pytest.raises(OverflowError):
        block.crc32c(b"", 1 << 32)
    with pytest.raises(OverflowError):
        block.crc32c(b"", -1)
