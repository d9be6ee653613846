"""A node's data directory: lock, identity file, founding record, journal.

A directory belongs to one incarnation of one node of one cluster, and is opened by one process at a time. Everything
that does not fit is refused by name; nothing unreadable is ever taken for a fresh start.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

from fastpaxos.directory import MemoryDirectory, OsDirectory, naming
from fastpaxos.identity import IDENTITY_NAME, LOCK_NAME, DirectoryIdentity, IdentityFile, read_os_boot_id
from fastpaxos_core.errors import ConfigError, InternalError
from fastpaxos_core.founding import DURABILITY_MODES, FoundingRecord
from fastpaxos_core.journal import Journal, JournalRead, JournalWrite
from fastpaxos_core.journal_recovery import Recovery
from fastpaxos_core.journal_writer import JournalWriter

__all__ = ["MemoryDirectory", "OsDirectory", "Storage"]

logger = logging.getLogger(__name__)

READ_WAIT_SECONDS = 60.0


class Storage:
    """One open data directory. Made by `Storage.open`; use it on one event loop.

    `read` may be called from any thread; everything else belongs to the thread of the loop.
    """

    def __init__(self, path: Path, lock: int, identity_file: IdentityFile, segment_bytes: int) -> None:
        self.path = path
        self._identity_file = identity_file
        self.recent_sync_ns = 0
        self._lock = lock
        self._segment_bytes = segment_bytes
        self._is_memory = identity_file.value.durability == "memory"
        self._directory = OsDirectory(path, durable=not self._is_memory)
        self._journal: Journal | None = None
        self._writer: JournalWriter | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_failure: Callable[[OSError], None] | None = None
        self._callbacks: dict[int, Callable[[OSError | None], None]] = {}
        self._failure: OSError | None = None
        # In mode memory, what is "durable" may not even be written yet: reads wait for it.
        self._written = threading.Condition()
        self._submitted_count = 0
        self._written_count = 0

    @classmethod
    def open(
        cls,
        data_dir: str | os.PathLike[str],
        *,
        node_id: int,
        durability: str = "fsync",
        segment_bytes: int = 64 << 20,
        os_boot_id: str | None = None,
    ) -> Self:
        """Lock a data directory, format it if it is empty, and count one more start.

        Args:
            data_dir: created if missing.
            node_id: of this node.
            durability: "fsync", "write" or "memory".
            segment_bytes: size of one journal segment, a multiple of 512.
            os_boot_id: names this start of the operating system; None asks it.

        Raises:
            ConfigError: the directory is in use, is not empty and not ours, belongs to another node, has another
                durability mode, or lost data as its durability mode allows.
            CorruptionError: its identity file is unreadable.
            OSError: the disk refuses.
        """
        if durability not in DURABILITY_MODES:
            raise ConfigError(f"durability {durability!r} is none of {', '.join(DURABILITY_MODES)}")
        path = Path(data_dir)
        if os_boot_id is None:
            os_boot_id = read_os_boot_id()
        _make_directory(path)
        lock = _lock_directory(path)
        try:
            identity_file = IdentityFile.open(
                OsDirectory(path),
                path,
                node_id=node_id,
                durability=durability,
                os_boot_id=os_boot_id,
                new_incarnation=lambda: int.from_bytes(os.urandom(8), "little") or 1,
            )
        except BaseException:
            os.close(lock)
            raise
        return cls(path, lock, identity_file, segment_bytes)

    # --- identity ---

    @property
    def identity(self) -> DirectoryIdentity:
        """What the identity file says now."""
        return self._identity_file.value

    @property
    def founding(self) -> FoundingRecord | None:
        """The founding record, or None. Raises CorruptionError if it is unreadable."""
        return self._identity_file.founding

    def found(self, record: FoundingRecord) -> None:
        """Store the founding record durably.

        Raises:
            InvariantError: another one is stored.
            OSError: the disk refuses; the node must stop.
        """
        self._identity_file.found(record)

    # --- journal ---

    def open_journal(self) -> tuple[Journal, Recovery]:
        """Recover the journal. Blocks for as long as reading its heads takes.

        Raises:
            CorruptionError: the journal, or its newest segment, is missing or unreadable.
            ConfigError: it belongs to another directory, or a newer program wrote it.
            OSError: the disk refuses.
        """
        journal, recovery = self._identity_file.open_journal(self._directory, self._segment_bytes)
        self._journal = journal
        for problem in recovery.problems:
            logger.error("node %d: journal: %s", self.identity.node_id, problem)
        return journal, recovery

    def start(self, loop: asyncio.AbstractEventLoop, on_failure: Callable[[OSError], None]) -> None:
        """Start the writer thread. `on_failure` is called once, on the loop, if a write fails: the node must stop."""
        if self._writer is not None:
            raise InternalError("storage is started already")
        self._writer = JournalWriter(str(self.path), self.identity.durability)
        self._loop = loop
        self._on_failure = on_failure
        loop.add_reader(self._writer.fileno(), self._collect)

    def write(self, write: JournalWrite, done: Callable[[OSError | None], None]) -> None:
        """Write and sync in the writer thread; `done(None)` or `done(error)` is called on the loop, never before this
        returns. In mode memory it does not wait for the disk."""
        writer = self._running_writer()
        if self._is_memory:
            self._submit(writer, write)
            assert self._loop is not None
            self._loop.call_soon(done, None)
        else:
            self._callbacks[write.ticket] = done
            self._submit(writer, write)

    def write_inline(self, write: JournalWrite) -> None:
        """Write and sync on this thread; everything handed to `write` must be done. In mode memory it does not wait.

        Raises:
            OSError: it failed; the node must stop.
        """
        writer = self._running_writer()
        if self._is_memory:
            self._submit(writer, write)
            return
        try:
            self._note_sync(writer.write_inline(write))
        except OSError as error:
            self._failure = error
            raise

    def read(self, read: JournalRead) -> bytes:
        """Return the bytes of one piece of the journal; blocks, so call it in another thread.

        Raises:
            OSError: the disk refuses.
        """
        if self._is_memory:
            with self._written:
                target = self._submitted_count
                if not self._written.wait_for(lambda: self._written_count >= target, READ_WAIT_SECONDS):
                    raise TimeoutError(f"the journal writer has not finished for {READ_WAIT_SECONDS} s")
        return self._directory.read(read.segment_name, read.offset, read.length)

    @property
    def journal_bytes(self) -> int:
        """Bytes of the journal written so far."""
        return 0 if self._journal is None else self._journal.journal_bytes

    @property
    def is_writing(self) -> bool:
        """True while the writer thread has something to do."""
        return self._written_count < self._submitted_count

    def _running_writer(self) -> JournalWriter:
        if self._writer is None:
            raise InternalError("storage is not started, or closed")
        return self._writer

    def _submit(self, writer: JournalWriter, write: JournalWrite) -> None:
        with self._written:
            self._submitted_count += 1
        writer.submit(write)

    def _note_sync(self, sync_ns: int) -> None:
        if sync_ns:
            recent = self.recent_sync_ns
            self.recent_sync_ns = recent + (sync_ns - recent) // 8 if recent else sync_ns

    def _collect(self) -> None:
        """The writer thread has finished something."""
        if self._writer is None:
            return
        for ticket, error, sync_ns in self._writer.completions():
            with self._written:
                self._written_count += 1
                self._written.notify_all()
            self._note_sync(sync_ns)
            if error is not None:
                self._fail(error)
            done = self._callbacks.pop(ticket, None)
            if done is not None:
                done(error)

    def _fail(self, error: OSError) -> None:
        if self._failure is None:
            self._failure = error
            if self._on_failure is not None:
                self._on_failure(error)

    def close(self, clean: bool = True) -> None:
        """Finish what was handed over, stop the thread and release the directory. Callbacks are no longer called.

        Args:
            clean: record that nothing was lost; not done after a failed write, nor if the disk refuses.
        """
        if self._lock < 0:
            return
        try:
            self._stop_writer()
            if clean and self._failure is None:
                if self.identity.durability == "write":
                    self._sync_journal()
                self._identity_file.mark_clean()
        finally:
            lock, self._lock = self._lock, -1
            with naming(self.path / LOCK_NAME, "closing"), contextlib.suppress(InterruptedError):
                os.close(lock)

    def _stop_writer(self) -> None:
        writer, self._writer = self._writer, None
        self._callbacks.clear()
        if writer is None:
            return
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):
            # The loop may be closed already.
            self._loop.remove_reader(writer.fileno())
        writer.close()
        for _, error, _ in writer.completions():
            self._failure = self._failure or error
        with self._written:
            self._written_count = self._submitted_count
            self._written.notify_all()

    def _sync_journal(self) -> None:
        """Mode write syncs nothing while it runs: a clean stop makes up for it."""
        for name in self._directory.list():
            if name.startswith("journal-"):
                self._directory.sync(name)
        self._directory.sync_directory()


def _make_directory(path: Path) -> None:
    """Create the directory and make its name durable."""
    missing = [path]
    while not missing[-1].exists():
        missing.append(missing[-1].parent)
    if not (path / IDENTITY_NAME).exists():
        # Whoever made what is there may have been killed before its name was durable. A parent that may not be read is
        # none of ours.
        with contextlib.suppress(PermissionError):
            OsDirectory(missing[-1].parent).sync_directory()
    for directory in reversed(missing[:-1]):
        directory.mkdir(mode=0o700, exist_ok=True)
        try:
            OsDirectory(directory.parent).sync_directory()
        except OSError:
            # No later sync would say anything about this name: the next start shall make it anew.
            with contextlib.suppress(OSError):
                directory.rmdir()
            raise
    if not path.is_dir():
        raise ConfigError(f"data_dir {path} is no directory")


def _lock_directory(path: Path) -> int:
    lock = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
        os.close(lock)
        raise ConfigError(
            f"data_dir {path} is in use" + (f" by process {holder}" if holder else "") + "; stop that node first"
        ) from None
    except BaseException:
        os.close(lock)
        raise
    try:
        with naming(path / LOCK_NAME, "writing"):
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except OSError:
        os.close(lock)
        raise
    return lock
