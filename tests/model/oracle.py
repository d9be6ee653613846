"""Multi-Paxos on purpose without any cleverness: dicts per slot, sets of votes, lists of everything that was ever said.

`OracleAcceptor` says what a correct acceptor and learner would do; `choose_values` says which values a candidate must
propose. Nothing here is taken over from fastpaxos_core: slow, plain and separately written is the point.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import NamedTuple


class Batch(NamedTuple):
    """One accepted value: its slots, the ballot it was accepted in, and its name."""

    slot_begin: int
    slot_end: int
    ballot: int
    value_crc: int

    def slots(self) -> range:
        return range(self.slot_begin, self.slot_end)


class Promised(NamedTuple):
    ballot: int
    commit_index: int
    entries: tuple[Batch, ...]


class Refused(NamedTuple):
    ballot: int
    promised_ballot: int
    commit_index: int


@dataclass
class OracleAcceptor:
    """What one acceptor and learner holds. `cells` maps each slot to the batch that stands in it."""

    promised_ballot: int = 0
    promised_boot: int | None = None
    commit_index: int = 0
    cells: dict[int, Batch] = field(default_factory=dict)

    def durable_copy(self) -> OracleAcceptor:
        return copy.deepcopy(self)

    def batches_above(self, slot: int) -> list[Batch]:
        """Batches that reach above `slot`, by slot."""
        return sorted({batch for batch in self.cells.values() if batch.slot_end - 1 > slot})

    def prepare(self, ballot: int, boot: int, slot_begin: int) -> Promised | Refused:
        if ballot < self.promised_ballot or (ballot == self.promised_ballot and boot != self.promised_boot):
            return Refused(ballot, self.promised_ballot, self.commit_index)
        self.promised_ballot, self.promised_boot = ballot, boot
        entries = self.batches_above(max(self.commit_index, slot_begin - 1))
        return Promised(ballot, self.commit_index, tuple(entries))

    def accept(self, ballot: int, boot: int, offered: list[Batch]) -> list[Batch] | Refused:
        """Return what was newly accepted, or is accepted already in this ballot: all that must be answered."""
        if ballot < self.promised_ballot:
            return Refused(ballot, self.promised_ballot, self.commit_index)
        self.promised_ballot, self.promised_boot = ballot, boot
        answered = []
        for batch in offered:
            if batch.slot_begin <= self.commit_index:
                continue
            if self.cells.get(batch.slot_begin) != batch:
                self.put(batch)
            answered.append(batch)
        return answered

    def heartbeat(self, ballot: int, boot: int) -> Refused | None:
        if ballot < self.promised_ballot:
            return Refused(ballot, self.promised_ballot, self.commit_index)
        self.promised_ballot, self.promised_boot = ballot, boot
        return None

    def put(self, batch: Batch) -> None:
        """Place a batch; what it overlaps goes whole."""
        for slot in batch.slots():
            old = self.cells.get(slot)
            if old is not None:
                for old_slot in old.slots():
                    self.cells.pop(old_slot, None)
        for slot in batch.slots():
            self.cells[slot] = batch

    def commit_reach(self, told: dict[int, int]) -> int:
        """How far commit_index may go when the leaders of these ballots said these commit indexes."""
        reach = self.commit_index
        while (batch := self.cells.get(reach + 1)) is not None:
            if batch.slot_begin != reach + 1 or batch.slot_end - 1 > told.get(batch.ballot, 0):
                break
            reach = batch.slot_end - 1
        return reach

    def learn(self, batch: Batch) -> None:
        """A peer knows this batch to be committed, and it is the next one."""
        if batch.slot_begin == self.commit_index + 1:
            old = self.cells.get(batch.slot_begin)
            if old is None or old[:2] != batch[:2] or old.value_crc != batch.value_crc:
                self.put(batch)
            self.commit_index = batch.slot_end - 1


def choose_values(reports: dict[int, list[Batch]], commit_index: int) -> list[Batch]:
    """What a candidate must propose again: from the highest ballot down, without what overlaps one taken."""
    taken: list[Batch] = []
    everything = {batch for entries in reports.values() for batch in entries}
    for batch in sorted(everything, key=lambda item: -item.ballot):
        occupied = {slot for other in taken for slot in other.slots()}
        if batch.slot_begin > commit_index and not occupied.intersection(batch.slots()):
            taken.append(batch)
    return sorted(taken)


def chosen_values(votes: dict[int, set[Batch]], quorum: int) -> set[tuple[int, int, int]]:
    """(slot_begin, slot_end, value_crc) of what at least `quorum` members accepted in one and the same ballot."""
    return {
        (item.slot_begin, item.slot_end, item.value_crc)
        for accepted in votes.values()
        for item in accepted
        if sum(item in others for others in votes.values()) >= quorum
    }
