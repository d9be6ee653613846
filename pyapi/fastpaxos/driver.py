"""The one loop that moves a node: what the core owes is done in a fixed order, once per turn of the event loop.

    1. write what waits for the journal      (one write at a time; inline if it is small and the disk is quick)
    2. send messages to peers
    3. read back from the journal            (in threads)
    4. apply what is committed               (in slices)
    5. answer clients

Whatever comes in (frames, ticks, finished writes) goes straight into the core and wakes the loop. Nothing here is a
task, so nothing can be cancelled between two steps.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from functools import partial
from typing import TYPE_CHECKING, Protocol

from fastpaxos.statemachine import BatchRun, StateMachine, begin_batch

if TYPE_CHECKING:
    from fastpaxos.service import ClientService
    from fastpaxos_core.journal import JournalRead, JournalWrite
    from fastpaxos_core.replica import Replica

__all__ = ["Driver", "JournalStorage"]

logger = logging.getLogger(__name__)

NS_PER_MS = 1_000_000
# A sync is waited for here only if it is quicker than handing it to the writer thread and back. On slower disks the
# thread is better even for a single client: the loop can act on whichever disks of the cluster are done first.
INLINE_SYNC_NS_MAX = 1_000_000
INLINE_WRITE_BYTES_MAX = 64 * 1024


class JournalStorage(Protocol):
    """Where journal writes go. See `fastpaxos.storage`."""

    @property
    def recent_sync_ns(self) -> int:
        """How long syncs took lately, in nanoseconds."""
        ...

    def write_inline(self, write: JournalWrite) -> None:
        """Write and sync on this thread. Raises OSError; the node must stop then."""
        ...

    def write(self, write: JournalWrite, done: Callable[[OSError | None], None]) -> None:
        """Write and sync on the writer thread; `done` is called on the event loop."""
        ...

    def read(self, read: JournalRead) -> bytes: ...


class TurnLoop(Protocol):
    """What the driver needs of its event loop: asyncio's, or a simulated one."""

    def call_soon(self, callback: Callable[[], None], /) -> object: ...

    def run_in_executor(
        self, executor: Executor | None, function: Callable[[JournalRead], bytes], read: JournalRead, /
    ) -> asyncio.Future[bytes]: ...


class PeerConnection(Protocol):
    def send(self, buffers: list[bytes]) -> None: ...


class Driver:
    """Carries out what one replica wants, in order of duty.

    `failed` is called once with whatever must stop the node. `loop` calls the turns, and
    runs journal reads in `read_executor`.
    """

    def __init__(
        self,
        replica: Replica,
        storage: JournalStorage,
        machine: StateMachine,
        service: ClientService,
        peers: Mapping[int, PeerConnection],
        *,
        apply_slice_ms: int,
        loop: TurnLoop,
        read_executor: Executor | None,
        clock_ns: Callable[[], int],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._replica = replica
        self._storage = storage
        self._machine = machine
        self._service = service
        self._peers = peers
        self._apply_slice_ns = apply_slice_ms * NS_PER_MS
        self._read_executor = read_executor
        self._clock_ns = clock_ns
        self._failed = failed
        self._loop = loop
        self._is_awake = False
        self._is_stopped = False
        self._run: BatchRun | None = None
        self._write_started_ns: int | None = None
        self._wrote_since_tick = False
        self._unreadable_slot = 0

    def wake(self) -> None:
        """Something came in: take a turn as soon as the loop has read what else is there."""
        if not self._is_awake and not self._is_stopped:
            self._is_awake = True
            self._loop.call_soon(self._drive)

    def stop(self) -> None:
        """Do nothing any more, whatever still comes in."""
        self._is_stopped = True

    def write_stalled_ns(self, now_ns: int) -> int:
        """How long the write that is under way has taken so far; 0 if there is none."""
        return 0 if self._write_started_ns is None else now_ns - self._write_started_ns

    @property
    def is_mid_batch(self) -> bool:
        """The state machine has applied a part of a batch: its state belongs to no applied_index."""
        return self._run is not None

    def _drive(self) -> None:
        self._is_awake = False
        if self._is_stopped:
            return
        try:
            self._turn()
        except BaseException as error:
            self._fail(error)
            if not isinstance(error, Exception):
                raise

    def _turn(self) -> None:
        replica, service = self._replica, self._service
        write = replica.take_write()
        if write is not None:
            self._wrote_since_tick = True
            if not self._may_sync_inline(write):
                self._start_write(write)
                write = None
        self._send()
        if write is not None:
            # The Accepts of a leader have left already: the other disks work at the same time.
            self._storage.write_inline(write)
            replica.synced(write.ticket)
            self._send()
        self._start_reads()
        has_more = self._apply()
        self._start_reads()  # what apply must have read back first
        service.answer_blocks()
        if self._run is None:
            service.answer_queries()
        service.flush()
        if has_more or (self._write_started_ns is None and replica.journal.has_pending):
            self.wake()

    # 1. Journal

    def _may_sync_inline(self, write: JournalWrite) -> bool:
        return (
            write.nbytes <= INLINE_WRITE_BYTES_MAX
            and write.new_segment is None
            and self._storage.recent_sync_ns < INLINE_SYNC_NS_MAX
        )

    def _start_write(self, write: JournalWrite) -> None:
        self._write_started_ns = self._clock_ns()
        self._storage.write(write, partial(self._written, write.ticket))

    def _written(self, ticket: int, error: OSError | None) -> None:
        self._write_started_ns = None
        if self._is_stopped:
            return
        if error is not None:
            self._fail(error)
            return
        try:
            self._replica.synced(ticket)
        except BaseException as problem:
            self._fail(problem)
            if not isinstance(problem, Exception):
                raise
        # The loop is here anyway: what the disk held back need not wait for another round of it.
        self._is_awake = True
        self._drive()

    def write_marker(self) -> None:
        """Nothing was written for a whole tick: name the durable point on disk. Nobody waits for this write."""
        if self._is_stopped or self._write_started_ns is not None:
            return
        if self._wrote_since_tick:
            self._wrote_since_tick = False
            return
        marker = self._replica.take_marker()
        if marker is not None:
            self._storage.write_inline(marker)

    # 2. Messages

    def _send(self) -> None:
        peers = self._peers
        for peer, buffers in self._replica.take_messages():
            connection = peers.get(peer)
            if connection is not None:
                connection.send(buffers)

    # 3. Reading back

    def _start_reads(self) -> None:
        for read in self._replica.take_reads():
            future = self._loop.run_in_executor(self._read_executor, self._storage.read, read)
            future.add_done_callback(partial(self._read_done, read))

    def _read_done(self, read: JournalRead, future: asyncio.Future[bytes]) -> None:
        if future.cancelled():
            return
        if self._is_stopped:
            future.exception()  # looked at, so that nobody complains that it was not
            return
        try:
            self._take_read(read, future)
        except BaseException as problem:
            self._fail(problem)
            if not isinstance(problem, Exception):
                raise
        self.wake()

    def _take_read(self, read: JournalRead, future: asyncio.Future[bytes]) -> None:
        try:
            data = future.result()
        except OSError as error:
            # Unreadable here is not lost: the core asks its peers for what the journal does not give.
            self._tell_unreadable(read, str(error))
            data = b""
        self._replica.journal_data(read, data)
        if read.is_corrupt:
            self._tell_unreadable(read, "the record is corrupt")

    def _tell_unreadable(self, read: JournalRead, why: str) -> None:
        """Once per slot: the core asks for it again and again until a peer has sent it."""
        if read.slot != self._unreadable_slot:
            self._unreadable_slot = read.slot
            logger.error(
                "journal: slot %d cannot be read back from %s at offset %d (%s); it is fetched from the other members",
                read.slot,
                read.segment_name,
                read.offset,
                why,
            )

    # 4. Apply

    def _apply(self) -> bool:
        """Run committed batches for one slice; True if there is more to do."""
        replica, machine, clock_ns = self._replica, self._machine, self._clock_ns
        run = self._run
        if run is None and not replica.has_work():
            return False
        now_ns = clock_ns()
        deadline_ns = now_ns + self._apply_slice_ns
        while True:
            if run is None:
                batch = replica.next_batch()
                if batch is None:
                    # All was no-ops, or the next batch must be read back first.
                    self._run = None
                    return False
                begun = begin_batch(machine, batch.view, batch.slot_begin, batch.now_ns)
            else:
                begun = run
            if isinstance(begun, BatchRun):
                if run is None:
                    run, now_ns = begun, clock_ns()  # beginning may have taken a while
                results = run.step(clock_ns, max(1, deadline_ns - now_ns))
                if results is None:
                    self._run = run
                    return True
                run = None
            else:
                results = begun
            replica.complete_batch(results)
            now_ns = clock_ns()
            if now_ns >= deadline_ns:
                self._run = None
                return replica.has_work()

    def _fail(self, error: BaseException) -> None:
        if not self._is_stopped:
            self._is_stopped = True
            self._failed(error)
