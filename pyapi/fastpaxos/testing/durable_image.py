"""What one node's disk says, as the observer of a simulation keeps it, and what it promised from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .journal_view import BATCH_UNKNOWN, JournalEntry, Value

__all__ = ["DurableImage", "Observed", "Promised", "is_displaced", "overlap", "survives"]


@dataclass
class DurableImage:
    """What one node's disk says."""

    promised_ballot: int = 0
    by_slot: dict[int, JournalEntry] = field(default_factory=dict)
    """The entry that stands in each slot after later entries displaced, whole, those they overlap."""
    votes: set[tuple[int, Value]] = field(default_factory=set)
    """Every (ballot, value) that was ever durably accepted."""
    prefix: int = 0
    """Slots <= it are on this disk with the chosen value."""
    is_damaged: bool = False
    """Something on this disk rotted or was lost: it may know less than it did, and must say so."""
    may_vote: bool = True
    """False once the promises of this disk are lost."""

    def put(self, entry: JournalEntry) -> None:
        """Add an entry as recovery does: what it overlaps goes, whole."""
        for slot in range(entry.value.slot_begin, entry.value.slot_end):
            old = self.by_slot.get(slot)
            if old is not None:
                for old_slot in range(old.value.slot_begin, old.value.slot_end):
                    if self.by_slot.get(old_slot) is old:
                        del self.by_slot[old_slot]
        for slot in range(entry.value.slot_begin, entry.value.slot_end):
            self.by_slot[slot] = entry
        if not entry.learned:
            self.votes.add((entry.ballot, entry.value))


@dataclass(frozen=True)
class Promised:
    """What one acceptor promised to one ballot."""

    commit_index: int
    entries: tuple[tuple[int, Value], ...]
    """(ballot, value) of everything it had accepted above commit_index."""
    unknown: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, parts: Sequence[Mapping[str, Any]]) -> Promised:
        """Read the parts of a Promise."""
        listed = [entry for part in parts for entry in part["entries"]]
        return cls(
            parts[0]["commit_index"],
            tuple(
                (entry["ballot"], Value(entry["slot_begin"], entry["slot_end"], entry["value_crc"]))
                for entry in listed
                if not entry["flags"] & BATCH_UNKNOWN
            ),
            tuple((entry["slot_begin"], entry["slot_end"]) for entry in listed if entry["flags"] & BATCH_UNKNOWN),
        )

    @classmethod
    def of_image(cls, image: DurableImage, ballot: int) -> Promised:
        """The promise that a candidate gives itself."""
        entries = dict.fromkeys(entry for entry in image.by_slot.values() if entry.ballot < ballot)
        return cls(0, tuple((entry.ballot, entry.value) for entry in entries if not entry.learned))

    def is_unknown(self, value: Value) -> bool:
        """Tell whether a part of the value's range is unknown to this acceptor."""
        return any(begin < value.slot_end and value.slot_begin < end for begin, end in self.unknown)


def overlap(one: Value, other: Value) -> bool:
    """Tell whether two values share a slot."""
    return one.slot_begin < other.slot_end and other.slot_begin < one.slot_end


def is_displaced(ballot: int, value: Value, entries: Sequence[tuple[int, Value]]) -> bool:
    """An entry of a higher ballot overlaps it: had it been chosen, that ballot would have proposed it again."""
    return any(other > ballot and reported != value and overlap(reported, value) for other, reported in entries)


def survives(old: JournalEntry, new: JournalEntry | None, found: Mapping[int, JournalEntry]) -> bool:
    """A durable entry is there still, or something newer that overlaps it displaced it whole."""
    if new is not None and new.value == old.value:
        return new.learned or new.ballot >= old.ballot
    others = {found[slot] for slot in range(old.value.slot_begin, old.value.slot_end) if slot in found}
    return any(other.ballot > old.ballot or other.learned for other in others)


@dataclass
class Observed:
    """The last known facts of one running replica."""

    promised_ballot: int = 0
    commit_index: int = 0
    applied_index: int = 0
    applied_entries: int = 0
