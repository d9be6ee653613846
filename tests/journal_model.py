"""A deliberately dumb model of a journal, and a random history that drives the real one and the model together."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from fastpaxos.directory import MemoryDirectory
from fastpaxos_core.block import build_block
from fastpaxos_core.directory import Directory, perform
from fastpaxos_core.journal import Journal
from fastpaxos_core.journal_recovery import Recovery

NODE_ID = 3
INCARNATION = 0x1122334455667788
SEGMENT_BYTES = 8192

SLOT_INFINITY = (1 << 64) - 1


@dataclass(frozen=True)
class Batch:
    """One accepted or learned batch."""

    slot_begin: int
    slot_end: int
    ballot: int
    timestamp_ns: int
    block: bytes
    committed: bool = False


@dataclass(frozen=True)
class State:
    """What the journal must add up to after some write."""

    promised_ballot: int = 0
    commit_index: int = 0
    batches: tuple[Batch, ...] = ()

    def add(self, batch: Batch) -> State:
        """Accept or learn a batch: older uncommitted ones that it overlaps are dropped whole."""
        if batch.slot_end - 1 <= self.commit_index:
            return self
        kept = [old for old in self.batches if old.slot_end <= batch.slot_begin or old.slot_begin >= batch.slot_end]
        return replace(self, batches=tuple(sorted([*kept, batch], key=lambda entry: entry.slot_begin)))

    def commit(self, commit_index: int) -> State:
        """Slots up to commit_index are known chosen."""
        return replace(
            self,
            commit_index=commit_index,
            batches=tuple(batch for batch in self.batches if batch.slot_begin > commit_index),
        )


def open_journal(directory: Directory, boot: int, segment_bytes: int = SEGMENT_BYTES) -> tuple[Journal, Recovery]:
    return Journal.open(directory, node_id=NODE_ID, incarnation=INCARNATION, boot=boot, segment_bytes=segment_bytes)


def recovered_state(recovery: Recovery) -> State:
    return State(
        recovery.promised_ballot,
        recovery.commit_index,
        tuple(
            Batch(
                stored.slot_begin, stored.slot_end, stored.ballot, stored.timestamp_ns, stored.block, stored.committed
            )
            for stored in recovery.batches
        ),
    )


def read_slot(journal: Journal, directory: Directory, slot: int) -> list[Batch]:
    """The batches that the journal gives back from `slot` on; empty when a peer must be asked."""
    read = journal.locate(slot)
    while read is not None:
        stored = journal.parse(read, directory.read(read.segment_name, read.offset, read.length))
        if stored:
            return [
                Batch(batch.slot_begin, batch.slot_end, batch.ballot, batch.timestamp_ns, batch.block, batch.committed)
                for batch in stored
            ]
        read = journal.locate(slot, before=read)
    return []


def same_value(first: Batch, second: Batch) -> bool:
    """Ballots may differ: a later leader proposes the same value again."""
    return (first.slot_begin, first.slot_end, first.timestamp_ns, first.block) == (
        second.slot_begin,
        second.slot_end,
        second.timestamp_ns,
        second.block,
    )


def check_readable(
    journal: Journal, directory: Directory, chosen: dict[int, Batch], commit_index: int, *, holes: bool = False
) -> int:
    """Compare every committed batch with what is read back; returns how many were unreadable (only with `holes`)."""
    unreadable = 0
    for slot, batch in chosen.items():
        if slot > commit_index:
            continue
        found = read_slot(journal, directory, slot)
        if not found:
            assert holes, f"slot {slot} is not readable"
            unreadable += 1
            continue
        assert same_value(found[0], batch), f"slot {slot} reads {found[0]}, chosen was {batch}"
        for entry in found:
            if entry.slot_end - 1 <= commit_index:
                assert same_value(entry, chosen[entry.slot_begin])
    return unreadable


@dataclass
class History:
    """A random run of one acceptor over a directory.

    Attributes:
        states: the state after each write; `synced` of them are durable for sure.
        chosen: {slot_begin: Batch} of all that was committed.
    """

    rng: random.Random
    directory: MemoryDirectory
    journal: Journal
    segment_bytes: int = SEGMENT_BYTES
    block_bytes_max: int = 700
    boot: int = 1
    state: State = field(default_factory=State)
    states: list[State] = field(default_factory=lambda: [State()])
    synced: int = 1
    chosen: dict[int, Batch] = field(default_factory=dict)
    clock: int = 0

    @classmethod
    def start(cls, seed: int, segment_bytes: int = SEGMENT_BYTES, **options: int) -> History:
        directory = MemoryDirectory()
        journal, _ = open_journal(directory, 1, segment_bytes)
        return cls(random.Random(seed), directory, journal, segment_bytes, **options)

    # --- one step of each kind ---

    def make_batch(self, slot_begin: int, slot_count: int, ballot: int, committed: bool = False) -> Batch:
        self.clock += 1
        size = self.rng.choice((0, 1, 7, 100, self.block_bytes_max))
        commands = [self.rng.randbytes(size) for _ in range(slot_count)]
        block = build_block(commands, 1, self.clock)
        return Batch(slot_begin, slot_begin + slot_count, ballot, self.clock, block, committed)

    def append(self, batch: Batch) -> None:
        self.journal.append(
            batch.slot_begin, batch.slot_end, batch.ballot, batch.timestamp_ns, batch.block, batch.committed
        )
        self.state = self.state.add(batch)

    def accept(self) -> None:
        """Accept a batch behind the last one."""
        last = self.state.batches[-1].slot_end if self.state.batches else self.state.commit_index + 1
        ballot = max(self.state.promised_ballot, 1)
        self.state = replace(self.state, promised_ballot=ballot)
        self.append(self.make_batch(last, self.rng.randint(1, 3), ballot))

    def change_leader(self) -> None:
        """Promise a higher ballot; the new leader proposes some of the uncommitted slots, cut in another way.

        Some of its proposals never arrive here.
        """
        self.state = replace(self.state, promised_ballot=self.state.promised_ballot + 1 + self.rng.randint(0, 2))
        self.journal.touch()
        end = self.state.batches[-1].slot_end if self.state.batches else self.state.commit_index + 1
        slot = self.state.commit_index + 1
        while slot < end and self.rng.random() < 0.8:
            same = next((batch for batch in self.state.batches if batch.slot_begin == slot), None)
            if same is not None and self.rng.random() < 0.5:
                batch = replace(same, ballot=self.state.promised_ballot)
            else:
                batch = self.make_batch(slot, self.rng.randint(1, 4), self.state.promised_ballot)
            if self.rng.random() < 0.8:
                self.append(batch)
            slot = batch.slot_end

    def commit(self) -> None:
        """Commit some of the batches that follow the commit index without a gap."""
        commit_index = self.state.commit_index
        for batch in self.state.batches:
            if batch.slot_begin != commit_index + 1 or self.rng.random() < 0.3:
                break
            self.chosen[batch.slot_begin] = batch
            commit_index = batch.slot_end - 1
        self.state = self.state.commit(commit_index)

    def learn(self) -> None:
        """Learn another chosen batch for the next slots from a peer."""
        batch = self.make_batch(
            self.state.commit_index + 1, self.rng.randint(1, 3), self.rng.randint(1, 9), committed=True
        )
        self.append(batch)
        self.chosen[batch.slot_begin] = batch
        self.state = self.state.commit(batch.slot_end - 1)

    def refill(self) -> None:
        """Write an old committed batch again, as after a corrupt record."""
        old = [slot for slot, batch in self.chosen.items() if batch.slot_end - 1 <= self.state.commit_index]
        if old:
            self.append(replace(self.chosen[self.rng.choice(old)], committed=True))

    def write(self) -> None:
        """One group commit, carried out and synced."""
        write = self.journal.seal(self.state.promised_ballot, self.state.commit_index)
        if write is not None:
            self.states.append(self.state)
            perform(self.directory, write)
            self.journal.synced(write.ticket)
            self.synced = len(self.states)

    def marker(self) -> None:
        write = self.journal.marker(self.state.promised_ballot, self.state.commit_index)
        if write is not None:
            self.states.append(self.state)
            perform(self.directory, write)
            self.journal.synced(write.ticket)

    def step(self) -> None:
        actions = (self.accept, self.change_leader, self.commit, self.learn, self.refill, self.write, self.marker)
        self.rng.choices(actions, (10, 2, 5, 2, 1, 8, 2))[0]()

    def run(self, steps: int) -> History:
        for _ in range(steps):
            self.step()
        return self

    # --- the end of a life ---

    @property
    def possible_states(self) -> list[State]:
        """What may be found after a crash right now: everything synced, perhaps a little more."""
        return self.states[self.synced - 1 :]

    def go_on(self, directory: MemoryDirectory, journal: Journal, recovery: Recovery) -> None:
        """Continue as the process that was started after a crash."""
        self.boot += 1
        self.directory = directory
        self.journal = journal
        self.state = recovered_state(recovery)
        self.states = [self.state]
        self.synced = 1
        self.chosen = {slot: batch for slot, batch in self.chosen.items() if slot <= self.state.commit_index}


def covered(slots: list[tuple[int, int]], slot_begin: int, slot_end: int) -> bool:
    """True when the half-open range lies inside one of the ranges."""
    return any(begin <= slot_begin and slot_end <= end for begin, end in slots)


def segment_names(directory: Directory) -> Iterator[str]:
    yield from (name for name in sorted(directory.list()) if name.endswith(".segment"))
