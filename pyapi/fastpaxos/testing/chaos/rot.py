"""Which journal of a stopped replica may be damaged now, where, and whether an earlier damage has been repaired.

The cluster promises to survive damage on a minority, and for each slot on one of three. So before another replica is
damaged, the one before must hold a readable copy of everything again. What cannot be repaired for a long time (a head
of a record, a file that became shorter: docs/operations.md) is done to one replica of a round, and not again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from random import Random

from fastpaxos.cli.journal import journal_directory
from fastpaxos.errors import CorruptionError
from fastpaxos.testing.journal_rot import (
    SECTOR_BYTES,
    SEGMENT_HEADER_BYTES,
    JournalRecord,
    flip_bit,
    journal_records,
    segments,
    zero_sector,
)
from fastpaxos_core import journal_recovery

__all__ = ["RotBudget"]

# The very last write is outside the fault model (docs/protocol.md, "Journal"); some more keep a distance from it.
LAST_RECORDS_SPARED = 3
RECORDS_MIN = 16
LASTING_CHANCE = 0.2


class RotBudget:
    """Damages one replica's journal at a time.

    Attributes:
        count: how often.
        touched: replicas whose journal was ever damaged.
        spent: the one that was damaged for good, if there is one.
    """

    def __init__(self, data_dir_of: Callable[[int], Path]) -> None:
        self.count = 0
        self.touched: set[int] = set()
        self.spent: int | None = None
        self._data_dir_of = data_dir_of
        self._damaged: int | None = None
        self._last_slot = 0

    def damage(self, node_id: int, random: Random) -> str | None:
        """Damage the journal of a stopped replica in one place; say how, or return None if it must not be done now."""
        if self.spent == node_id or not self._may_damage(node_id):
            return None
        data_dir = self._data_dir_of(node_id)
        records = journal_records(data_dir)
        if len(records) < RECORDS_MIN:
            return None
        if self.spent is None and random.random() < LASTING_CHANCE:
            what = self._damage_for_good(data_dir, records, random)
            self.spent = node_id
        else:
            block = self._damage_block(data_dir, records, random)
            if block is None:
                return None
            what = block
        return self._note(node_id, records, what)

    def damage_uncommitted(self, node_id: int, random: Random) -> str | None:
        """Damage a block that a stopped replica has accepted and does not know to be committed.

        From then on its word is missing for these slots: it must not count as one that has nothing there.
        """
        if self.spent is not None or not self._may_damage(node_id):
            return None
        data_dir = self._data_dir_of(node_id)
        records = journal_records(data_dir)
        if len(records) < RECORDS_MIN:
            return None
        commit_index = journal_recovery.inspect(journal_directory(data_dir)).commit_index
        # The very last write is outside the fault model.
        accepted = [record for record in records[:-1] if record.batches and record.batches[0].start > commit_index]
        if not accepted:
            return None
        return self._note(node_id, records, self._damage_record(random.choice(accepted), random))

    def _note(self, node_id: int, records: list[JournalRecord], what: str) -> str:
        self._damaged = node_id
        self._last_slot = max((batch.stop - 1 for record in records for batch in record.batches), default=0)
        self.count += 1
        self.touched.add(node_id)
        return f"replica {node_id}: {what}"

    def _may_damage(self, node_id: int) -> bool:
        """Whether every other replica holds a good copy of what it should hold."""
        return self._damaged in (None, node_id) or self._is_repaired()

    def _is_repaired(self) -> bool:
        """Whether the damaged replica, which may be running, can read every slot again that it had."""
        assert self._damaged is not None
        slot = 0
        try:
            for batch in journal_recovery.iterate_batches(journal_directory(self._data_dir_of(self._damaged))):
                slot = batch.slot_end - 1
        except (CorruptionError, OSError):
            return False  # not yet, or a segment was just being made
        return slot >= self._last_slot

    @staticmethod
    def _damage_for_good(data_dir: Path, records: list[JournalRecord], random: Random) -> str:
        record = random.choice(records[:-LAST_RECORDS_SPARED])
        kind = random.randrange(3)
        if kind == 0:
            place = random.randrange(record.head_bytes)
            record.flip(place, random.randrange(8))
            return f"a bit of the head of a record flipped, {record.path.name} offset {record.offset + place}"
        if kind == 1:
            zero_sector(record.path, record.offset)
            return f"the first sector of a record is zero, {record.path.name} offset {record.offset}"
        newest = segments(data_dir)[-1]
        size = random.randrange(2 * SEGMENT_HEADER_BYTES, newest.stat().st_size)
        os.truncate(newest, size)
        return f"{newest.name} was cut to {size} bytes"

    def _damage_block(self, data_dir: Path, records: list[JournalRecord], random: Random) -> str | None:
        if random.random() < 0.15:
            path = random.choice(segments(data_dir))
            place = random.randrange(SEGMENT_HEADER_BYTES) + SEGMENT_HEADER_BYTES * random.randrange(2)
            flip_bit(path, place, random.randrange(8))
            return f"a bit of one of two copies of the header of {path.name} flipped, offset {place}"
        commit_index = journal_recovery.inspect(journal_directory(data_dir)).commit_index
        spared = LAST_RECORDS_SPARED
        if self.spent is None and random.random() < 0.3:
            # What is accepted and not known to be committed becomes unknown here: this replica's word is missing then.
            records, spared, commit_index = records[-RECORDS_MIN:], 1, 1 << 63
        whole = [
            record for record in records[:-spared] if record.batches and record.batches[-1].stop - 1 <= commit_index
        ]
        if not whole:
            return None
        return self._damage_record(random.choice(whole), random)

    @staticmethod
    def _damage_record(record: JournalRecord, random: Random) -> str:
        sectors = range(
            -(-(record.offset + record.head_bytes) // SECTOR_BYTES) * SECTOR_BYTES,
            record.offset + record.total_bytes - SECTOR_BYTES + 1,
            SECTOR_BYTES,
        )
        if sectors and random.random() < 0.5:
            at = random.choice(sectors)
            zero_sector(record.path, at)
            return f"a sector of a block is zero, {record.path.name} offset {at}, slots {record.batches}"
        place = random.randrange(record.head_bytes, record.total_bytes)
        record.flip(place, random.randrange(8))
        return f"a bit of a block flipped, {record.path.name} offset {record.offset + place}, slots {record.batches}"
