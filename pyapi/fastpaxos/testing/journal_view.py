"""Journal writes read as docs/protocol.md draws them, independently of the core's own reader."""

from __future__ import annotations

import struct
from typing import NamedTuple

__all__ = ["BATCH_UNKNOWN", "WRITE_HEADER_BYTES", "JournalEntry", "Value", "block_ranges", "parse_write"]

_WRITE_HEADER = struct.Struct("<IBBHIIQQQQQQ")
_DESCRIPTOR = struct.Struct("<QQQqIIII")
_COMMITTED = 1
BATCH_UNKNOWN = 2
WRITE_HEADER_BYTES = _WRITE_HEADER.size


class Value(NamedTuple):
    """Names one value: the slots it fills and its CRC, which covers slots, timestamp and block."""

    slot_begin: int
    slot_end: int
    value_crc: int

    def __str__(self) -> str:
        return f"[{self.slot_begin}, {self.slot_end}) {self.value_crc:#010x}"


class JournalEntry(NamedTuple):
    """One batch record of a journal. `learned` marks a batch that was fetched as committed: no vote."""

    value: Value
    ballot: int
    timestamp_ns: int
    learned: bool
    block: bytes


def parse_write(data: bytes) -> tuple[int, int, list[JournalEntry]]:
    """Read one group-commit write: (promised ballot, commit index, entries)."""
    _, _, _, _, _, count, _, _, _, promised_ballot, commit_index, _ = _WRITE_HEADER.unpack_from(data)
    offset = _WRITE_HEADER.size + count * _DESCRIPTOR.size
    entries = []
    for number in range(count):
        begin, end, ballot, timestamp_ns, block_bytes, value_crc, flags, _ = _DESCRIPTOR.unpack_from(
            data, _WRITE_HEADER.size + number * _DESCRIPTOR.size
        )
        block = data[offset : offset + block_bytes]
        offset += block_bytes
        entries.append(
            JournalEntry(Value(begin, end, value_crc), ballot, timestamp_ns, bool(flags & _COMMITTED), block)
        )
    return promised_ballot, commit_index, entries


def block_ranges(entries: list[JournalEntry]) -> list[tuple[int, int]]:
    """Where the block of each entry lies in its write: (offset in the write, length)."""
    ranges = []
    offset = _WRITE_HEADER.size + len(entries) * _DESCRIPTOR.size
    for entry in entries:
        ranges.append((offset, len(entry.block)))
        offset += len(entry.block)
    return ranges
