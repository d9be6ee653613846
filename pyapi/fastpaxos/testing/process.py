"""What a simulated process has of its operating system: an event loop, and a journal on a simulated disk.

The node's own driver (`fastpaxos.driver`) runs on both, as it runs on asyncio and on the writer thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastpaxos_core.directory import TEMPORARY_SUFFIX

from .history import Violation
from .journal_view import parse_write
from .schedule import MILLISECOND_NS

if TYPE_CHECKING:
    from fastpaxos_core.journal import JournalRead, JournalWrite

    from .node import SimNode

__all__ = ["SimLoop", "SimStorage"]

# Reported as the time of recent syncs where the driver is to use the writer thread.
_SLOW_NS = 1_000 * MILLISECOND_NS


class _ReadBack:
    """The future of one journal read. Done, with its data or an error, when it calls back."""

    def __init__(self) -> None:
        self.data = b""
        self.error: OSError | None = None
        self.callback: Callable[[Any], None] | None = None

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self.callback = callback

    def cancelled(self) -> bool:
        return False

    def exception(self) -> OSError | None:
        return self.error

    def result(self) -> bytes:
        if self.error is not None:
            raise self.error
        return self.data


class SimLoop:
    """The event loop of one life of a node: callbacks run at the end of an input, or a little later."""

    def __init__(self, node: SimNode) -> None:
        self._node = node
        self.ready: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None], /) -> None:
        """Run `callback` in the next turn."""
        self.ready.append(callback)

    def run_in_executor(self, _executor: object, function: Callable[[JournalRead], bytes], read: JournalRead, /) -> Any:
        """Run a journal read after the time that the disk takes."""
        future = _ReadBack()
        node = self._node

        def finish() -> None:
            try:
                future.data = function(read)
            except OSError as error:
                future.error = error
            if future.callback is not None:
                future.callback(future)

        node.cluster.marks["journal_read"] += 1
        node.later(node.cluster.schedule.delay(1, node.cluster.disk_options.read_max_ns), finish)
        return future


class SimStorage:
    """Where the journal writes of one life of a node go. Each step may be the last one: see `SimNode.effect`."""

    def __init__(self, node: SimNode) -> None:
        self._node = node
        self._is_writing = False

    @property
    def recent_sync_ns(self) -> int:
        """What the driver decides by whether it syncs on its own loop."""
        return 0 if self._node.cluster.options.disk.inline else _SLOW_NS

    def read(self, read: JournalRead) -> bytes:
        """Bytes of the journal."""
        return self._node.disk.read(read.segment_name, read.offset, read.length)

    def write_inline(self, write: JournalWrite) -> None:
        """Write, and sync if the write asks for it, at once."""
        node = self._node
        if self._is_writing:
            raise Violation(f"node {node.node_id} writes two things at a time", checker="one-write")
        if write.new_segment is not None:
            raise Violation(f"node {node.node_id} begins a segment on its loop", checker="one-write")
        data = b"".join(bytes(buffer) for buffer in write.buffers)
        promised_ballot, _, entries = parse_write(data)
        node.cluster.checker.written(node.node_id, entries)
        node.effect()
        node.write_record(write.segment_name, write.offset, data, entries)
        node.effect()
        if write.needs_sync:
            node.disk.sync(write.segment_name)
            node.cluster.checker.durable(node.node_id, promised_ballot, entries)
            node.effect()

    def write(self, write: JournalWrite, done: Callable[[OSError | None], None]) -> None:
        """Create the segment if need be, write, sync; each step takes its time. The writer thread of a real node."""
        node = self._node
        if self._is_writing:
            raise Violation(f"node {node.node_id} writes two things at a time", checker="one-write")
        self._is_writing = True
        data = b"".join(bytes(buffer) for buffer in write.buffers)
        promised_ballot, _, entries = parse_write(data)
        node.cluster.checker.written(node.node_id, entries)

        def end(error: OSError | None) -> None:
            self._is_writing = False
            done(error)

        def step(action: Callable[[], None], then: Callable[[], None] | None) -> None:
            """One system call, then (after the time that it takes) the next one."""
            try:
                action()
            except OSError as error:
                failure = error
                node.input(lambda: end(failure))
                return
            if then is not None:
                node.disk_later(node.sync_delay_ns(), then)
            else:
                node.input(lambda: end(None))

        def append() -> None:
            step(lambda: node.write_record(write.segment_name, write.offset, data, entries), sync)

        def sync() -> None:
            def act() -> None:
                node.disk.sync(write.segment_name)
                node.cluster.checker.durable(node.node_id, promised_ballot, entries)

            step(act, None)

        if write.new_segment is None:
            append()
            return
        name, header, size = write.new_segment
        temporary = name + TEMPORARY_SUFFIX

        def create() -> None:
            node.disk.create(temporary, size)
            node.disk.write(temporary, 0, [header])

        def name_segment() -> None:
            node.disk.sync(temporary)
            node.disk.rename(temporary, name)

        step(
            create,
            lambda: step(name_segment, lambda: step(node.disk.sync_directory, append)),
        )
