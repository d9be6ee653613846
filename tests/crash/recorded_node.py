"""The child of a recording: one life of a node's storage, under load, that notes what it was told is durable.

`python -m crash.recorded_node LIBRARY` reads one order (JSON) per line, forks a child that carries it out, and answers
with its exit status. The history is the random one of `journal_model`; only how a write is carried out differs.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import os
import random
import sys
from dataclasses import replace
from typing import Any

import msgpack

from fastpaxos.directory import MemoryDirectory
from fastpaxos.errors import FastPaxosError
from fastpaxos.storage import Storage
from fastpaxos_core.block import build_block
from fastpaxos_core.founding import FoundingRecord
from fastpaxos_core.journal import Journal
from journal_model import NODE_ID, Batch, History, State, recovered_state

WAIT_SECONDS = 30
IN_FLIGHT_MAX = 4


class Notes:
    """Writes notes into the log of the system calls."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._blocks: dict[bytes, int] = {}

    def add(self, what: str, **facts: Any) -> None:
        data = msgpack.packb({"what": what, **facts})
        self._library.recorder_note(data, len(data))

    def batch(self, batch: Batch) -> list[Any]:
        """A batch as msgpack has it; its block is noted once, and named by a number."""
        number = self._blocks.get(batch.block)
        if number is None:
            number = self._blocks[batch.block] = len(self._blocks)
            self.add("block", number=number, block=batch.block)
        return [batch.slot_begin, batch.slot_end, batch.ballot, batch.timestamp_ns, number, batch.committed]

    def state(self, state: State) -> list[Any]:
        return [state.promised_ballot, state.commit_index, [self.batch(batch) for batch in state.batches]]


class RecordedLife(History):
    """A history whose writes go through the storage of a node: inline, in the thread, several at once."""

    def __init__(
        self, order: dict[str, Any], storage: Storage, journal: Journal, notes: Notes, loop: asyncio.AbstractEventLoop
    ) -> None:
        # The directory of the model is not used: the storage has its own.
        super().__init__(
            random.Random(order["seed"]), MemoryDirectory(), journal, order["segment_bytes"], order["block_bytes_max"]
        )
        self.storage = storage
        self.notes = notes
        self.loop = loop
        self.in_flight: list[int] = []
        self.progress = asyncio.Event()
        self.noted_chosen = 0
        self.error: OSError | None = None

    def note_write(self, ticket: int, what: str) -> None:
        chosen = [self.notes.batch(batch) for batch in list(self.chosen.values())[self.noted_chosen :]]
        self.noted_chosen = len(self.chosen)
        self.notes.add(what, ticket=ticket, state=self.notes.state(self.state), chosen=chosen)

    def carry_out(self, write: Any, inline: bool) -> None:
        self.states.append(self.state)
        self.note_write(write.ticket, "marker" if write.is_marker else "write")
        if inline:
            self.storage.write_inline(write)
            self.finish(write.ticket)
        else:
            self.in_flight.append(write.ticket)
            self.storage.write(write, lambda error: self.completed(write.ticket, error))

    def completed(self, ticket: int, error: OSError | None) -> None:
        self.in_flight.remove(ticket)
        self.progress.set()
        if error is None and self.error is None:
            self.finish(ticket)
        self.error = self.error or error

    def finish(self, ticket: int) -> None:
        self.journal.synced(ticket)
        self.notes.add("synced", ticket=ticket)

    async def wait_for_them(self, left: int) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while len(self.in_flight) > left:
                self.progress.clear()
                await self.progress.wait()

    def wait(self, left: int = 0) -> None:
        """Until no more than `left` writes are out."""

        self.loop.run_until_complete(self.wait_for_them(left))
        if self.error is not None:
            raise self.error

    def write(self) -> None:
        write = self.journal.seal(self.state.promised_ballot, self.state.commit_index)
        if write is None:
            return
        choice = self.rng.random()
        if choice < 0.4:
            self.wait()
            self.carry_out(write, inline=True)
        else:
            self.wait(IN_FLIGHT_MAX - 1 if choice < 0.7 else 0)
            self.carry_out(write, inline=False)

    def marker(self) -> None:
        self.wait(0 if self.rng.random() < 0.8 else IN_FLIGHT_MAX)
        write = self.journal.marker(self.state.promised_ballot, self.state.commit_index)
        if write is not None:
            # In a node, it is not waited for.
            self.carry_out(write, inline=self.rng.random() < 0.3)

    def read_back(self) -> None:
        """Read a committed batch through the storage, as for a peer that fetches it."""
        self.wait()
        slots = [slot for slot in self.chosen if slot <= self.state.commit_index]
        if slots:
            read = self.journal.locate(self.rng.choice(slots))
            if read is not None:
                self.journal.parse(read, self.storage.read(read))

    def inline(self, steps: int) -> None:
        """Each write fills half of a segment, so that the thread is asked for a spare segment again and again."""
        for _ in range(steps):
            slot = self.state.batches[-1].slot_end if self.state.batches else 1
            self.clock += 1
            block = build_block([self.rng.randbytes(self.segment_bytes // 2)], 1, self.clock)
            self.state = replace(self.state, promised_ballot=1)
            self.append(Batch(slot, slot + 1, 1, self.clock, block))
            write = self.journal.seal(1, 0)
            assert write is not None
            self.carry_out(write, inline=True)

    def script(self, steps: int) -> None:
        """The same steps in every run: every kind of write, several segments, a spare one, reading back."""
        for step in range(steps):
            self.accept()
            if step % 3 == 0:
                self.change_leader()
            self.commit()
            write = self.journal.seal(self.state.promised_ballot, self.state.commit_index)
            assert write is not None
            self.carry_out(write, inline=step % 2 == 0)
            self.wait()
            if step % 4 == 1:
                self.marker()
                self.wait()
        self.read_back()


def live(order: dict[str, Any], notes: Notes) -> None:
    """Open, found, recover, work, close."""
    notes.add("opening")
    storage = Storage.open(
        order["data_dir"],
        node_id=NODE_ID,
        durability=order["durability"],
        segment_bytes=order["segment_bytes"],
        os_boot_id=order["os_boot_id"],
    )
    identity = storage.identity
    notes.add("opened", boot=identity.boot, incarnation=identity.incarnation)
    if storage.founding is None:
        record = FoundingRecord(b"cluster of a test"[:16], {NODE_ID: identity.incarnation}, 1, 1, order["durability"])
        notes.add("founding", record=record.encode())
        storage.found(record)
        notes.add("founded")
    journal, recovery = storage.open_journal()
    loop = asyncio.new_event_loop()
    life = RecordedLife(order, storage, journal, notes, loop)
    life.state = recovered_state(recovery)
    notes.add("recovered", state=notes.state(life.state), ticket=journal.next_ticket, problems=recovery.problems)
    storage.start(loop, lambda error: None)
    if order["plan"] == "script":
        life.script(order["steps"])
    elif order["plan"] == "inline":
        life.inline(order["steps"])
    else:
        for _ in range(order["steps"]):
            life.step()
            if life.rng.random() < 0.05:
                life.read_back()
        if life.rng.random() < 0.7:
            life.wait()
    if order["clean"]:
        if life.rng.random() < 0.8:
            life.write()
            life.wait()
            life.marker()
        storage.close()
        notes.add("closed")
    loop.close()


def carry_out(order: dict[str, Any], library: ctypes.CDLL) -> int:
    """Run one life; returns the exit status."""
    notes = Notes(library)
    if library.recorder_start(order["root"].encode(), order["log"].encode()) < 0:
        raise RuntimeError(f"{order['log']} cannot be written")
    for call, number, action in order["faults"]:
        library.recorder_fault(call.encode(), number, action)
    try:
        live(order, notes)
    except (OSError, FastPaxosError) as error:
        notes.add(
            "error",
            kind=type(error).__name__,
            errno=getattr(error, "errno", None),
            name=str(getattr(error, "filename", None) or ""),
            text=str(error),
        )
        return 1
    return 0


def main() -> None:
    """Serve orders until the input ends."""
    library = ctypes.CDLL(sys.argv[1])
    logging.disable()
    for line in sys.stdin.buffer:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            status = 70
            try:
                status = carry_out(order, library)
            finally:
                if status == 70:
                    sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
                os._exit(status)
        _, code = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(code)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
