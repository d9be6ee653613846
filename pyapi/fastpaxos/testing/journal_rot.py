"""Damage to the journal files of a stopped replica: where its records stand, and bits and sectors that go bad.

The files are parsed here by the layout of docs/protocol.md ("Journal"), without the code that reads them in a replica.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastpaxos_core.block import crc32c

__all__ = [
    "SECTOR_BYTES",
    "SEGMENT_HEADER_BYTES",
    "JournalRecord",
    "flip_bit",
    "journal_records",
    "segments",
    "zero_sector",
]

SEGMENT_HEADER = struct.Struct("<QHHIQQQQQQQQQQQ")
SEGMENT_HEADER_BYTES = 512
SEGMENT_STARTS = 1
WRITE_HEADER = struct.Struct("<IBBHIIQQQQQQ")
WRITE_MAGIC = 0x574A5046
DESCRIPTOR = struct.Struct("<QQQqIIII")
SECTOR_BYTES = 512


@dataclass(frozen=True)
class JournalRecord:
    """One group-commit write of a journal, and where its parts stand in the file."""

    path: Path
    offset: int
    total_bytes: int
    batches: list[range]
    """The slots of each batch; none: it is a marker, or tells only a promise."""

    @property
    def head_bytes(self) -> int:
        """Bytes of its header and descriptors; the blocks follow."""
        return WRITE_HEADER.size + len(self.batches) * DESCRIPTOR.size

    @property
    def end(self) -> int:
        """Where the next record stands."""
        return self.offset + -(-self.total_bytes // SECTOR_BYTES) * SECTOR_BYTES

    def flip(self, place: int, bit: int = 4) -> None:
        """Turn over one bit of the byte `place` of this record."""
        flip_bit(self.path, self.offset + place, bit)


def segments(data_dir: Path) -> list[Path]:
    """The segment files of a journal, oldest first."""
    return sorted(data_dir.glob("journal-*.segment"))


def journal_records(data_dir: Path) -> list[JournalRecord]:
    """The records of a journal in order, without what stands behind a cut. Damaged ones end their segment's list."""
    paths = segments(data_dir)
    records: list[JournalRecord] = []
    for path, cut in zip(paths, _cuts(paths), strict=True):
        records += _records_of(path, cut)
    return records


def _cuts(paths: list[Path]) -> list[int]:
    """For each segment, where it ends by the word of a later start; the size of the file if nobody says so."""
    ends = {path.name: path.stat().st_size for path in paths}
    for path in paths:
        _, _, flags, _, _, _, _, number, _, _, _, cut_segment, cut_offset, _, _ = _segment_header(path)
        if not flags & SEGMENT_STARTS:
            continue
        for older in paths:
            older_number = int(older.stem.partition("-")[2], 16)
            if cut_segment < older_number < number:
                ends[older.name] = 0
            elif older_number == cut_segment:
                ends[older.name] = min(ends[older.name], cut_offset)
    return [ends[path.name] for path in paths]


def _segment_header(path: Path) -> tuple[int, ...]:
    """The fields of a segment's header, from whichever copy is good."""
    with path.open("rb") as file:
        copies = [file.read(SEGMENT_HEADER_BYTES) for _ in range(2)]
    for copy in copies:
        fields = SEGMENT_HEADER.unpack_from(copy)
        if fields[3] == crc32c(copy[:12] + copy[16:]):
            return fields
    raise ValueError(f"both copies of the header of {path.name} are bad")


def _records_of(path: Path, end: int) -> Iterator[JournalRecord]:
    data = path.read_bytes()[:end]
    offset = 2 * SEGMENT_HEADER_BYTES
    while offset + WRITE_HEADER.size <= len(data):
        magic, _, _, _, _, count, total_bytes, *_ = WRITE_HEADER.unpack_from(data, offset)
        head_bytes = WRITE_HEADER.size + count * DESCRIPTOR.size
        if magic != WRITE_MAGIC or not head_bytes <= total_bytes <= len(data) - offset:
            return
        descriptors = DESCRIPTOR.iter_unpack(data[offset + WRITE_HEADER.size : offset + head_bytes])
        batches = [range(slot_begin, slot_end) for slot_begin, slot_end, *_ in descriptors]
        record = JournalRecord(path, offset, total_bytes, batches)
        yield record
        offset = record.end


def flip_bit(path: Path, offset: int, bit: int) -> None:
    """Turn over one bit of the byte at `offset` of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


def zero_sector(path: Path, offset: int) -> None:
    """Overwrite the sector at `offset` with zeros, as a drive may that has remapped it."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(SECTOR_BYTES))
