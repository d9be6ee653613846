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
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import msgpack

from fastpaxos.directory import MemoryDirectory, OsDirectory, naming
from fastpaxos_core.block import crc32c
from fastpaxos_core.errors import ConfigError, CorruptionError, FrameError, InternalError, InvariantError
from fastpaxos_core.founding import DURABILITY_MODES, FoundingRecord
from fastpaxos_core.journal import Journal, JournalRead, JournalWrite
from fastpaxos_core.journal_recovery import Recovery
from fastpaxos_core.journal_writer import JournalWriter

__all__ = ["DirectoryIdentity", "MemoryDirectory", "OsDirectory", "Storage"]

logger = logging.getLogger(__name__)

IDENTITY_NAME = "identity"
LOCK_NAME = "lock"
TEMPORARY_SUFFIX = ".temporary"
BOOT_ID_PATH = Path("/proc/sys/kernel/random/boot_id")
READ_WAIT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class DirectoryIdentity:
    """What the file `identity` says about a data directory.

    Attributes:
        node_id: the one node that it belongs to.
        incarnation: random, drawn when the directory was formatted; names this copy of the data.
        boot: counts the starts, from 1.
        durability: "fsync", "write" or "memory".
        os_boot_id: the start of the operating system in which it was last opened; "" where there is none.
        clean: True when it was closed properly since.
        founding: encoded FoundingRecord, b"" before founding.
        journal_segment: the newest journal segment that surely exists, 0 before the first.
    """

    node_id: int
    incarnation: int
    boot: int
    durability: str
    os_boot_id: str
    clean: bool
    founding: bytes
    journal_segment: int

    MAGIC = b"FPXIDENT"
    VERSION = 1
    # magic, version, flags, CRC32C of everything else, length of the msgpack map that follows
    HEADER = struct.Struct("<8sHHII")
    BYTES_MAX = 1 << 21

    def encode(self) -> bytes:
        """The file's contents."""
        body: bytes = msgpack.packb({name: getattr(self, name) for name in self.__slots__})
        head = self.HEADER.pack(self.MAGIC, self.VERSION, 0, 0, len(body))
        crc = crc32c(body, crc32c(head))
        return self.HEADER.pack(self.MAGIC, self.VERSION, 0, crc, len(body)) + body

    @classmethod
    def decode(cls, data: bytes, path: Path) -> DirectoryIdentity:
        """Read the file's contents.

        Raises:
            CorruptionError: they are not what was written.
            ConfigError: a newer program wrote them.
        """
        if len(data) < cls.HEADER.size:
            raise CorruptionError(f"{path} has only {len(data)} bytes; this directory's data cannot be trusted")
        magic, version, flags, crc, size = cls.HEADER.unpack_from(data)
        body = data[cls.HEADER.size :]
        head = cls.HEADER.pack(magic, version, flags, 0, size)
        if magic != cls.MAGIC or size != len(body) or crc32c(body, crc32c(head)) != crc:
            raise CorruptionError(f"{path} is corrupt; this directory's data cannot be trusted")
        if version != cls.VERSION or flags:
            raise ConfigError(f"{path} has version {version} and flags {flags:#x}, unknown to this program")
        fields = msgpack.unpackb(body)
        if not isinstance(fields, dict) or fields.keys() != set(cls.__slots__):
            raise CorruptionError(f"{path} does not have the fields of an identity")
        return cls(**fields)


def read_os_boot_id() -> str:
    """Name of this start of the operating system, or "" where it has none."""
    try:
        return BOOT_ID_PATH.read_text().strip()
    except OSError:
        return ""


class Storage:
    """One open data directory. Made by `Storage.open`; use it on one event loop.

    `read` may be called from any thread; everything else belongs to the thread of the loop.
    """

    def __init__(self, path: Path, lock: int, identity: DirectoryIdentity, segment_bytes: int) -> None:
        self.path = path
        self.identity = identity
        self.recent_sync_ns = 0
        self._lock = lock
        self._segment_bytes = segment_bytes
        self._directory = OsDirectory(path, durable=identity.durability != "memory")
        self._is_memory = identity.durability == "memory"
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
            stored = _read_identity(path)
            if stored is None:
                incarnation = int.from_bytes(os.urandom(8), "little") or 1
                identity = DirectoryIdentity(node_id, incarnation, 1, durability, os_boot_id, False, b"", 0)
            else:
                _check_identity(path, stored, node_id, durability, os_boot_id)
                identity = replace(stored, boot=stored.boot + 1, os_boot_id=os_boot_id, clean=False)
            storage = cls(path, lock, identity, segment_bytes)
            storage.founding  # noqa: B018 - an unreadable record is refused before anything changes
            storage._store_identity(identity)
        except BaseException:
            os.close(lock)
            raise
        return storage

    # --- identity ---

    @property
    def founding(self) -> FoundingRecord | None:
        """The founding record, or None. Raises CorruptionError if it is unreadable."""
        if not self.identity.founding:
            return None
        try:
            return FoundingRecord.decode(self.identity.founding)
        except FrameError as error:
            raise CorruptionError(f"{self.path / IDENTITY_NAME}: {error}") from error

    def found(self, record: FoundingRecord) -> None:
        """Store the founding record durably.

        Raises:
            InvariantError: another one is stored.
            OSError: the disk refuses; the node must stop.
        """
        encoded = record.encode()
        if self.identity.founding == encoded:
            return
        if self.identity.founding:
            raise InvariantError(f"{self.path} would be founded a second time with another record")
        self._store_identity(replace(self.identity, founding=encoded))

    def _store_identity(self, identity: DirectoryIdentity) -> None:
        temporary = self.path / (IDENTITY_NAME + TEMPORARY_SUFFIX)
        with naming(temporary, "writing"), temporary.open("wb") as file:
            file.write(identity.encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self.path / IDENTITY_NAME)
        _sync_path(self.path)
        self.identity = identity

    # --- journal ---

    def open_journal(self) -> tuple[Journal, Recovery]:
        """Recover the journal. Blocks for as long as reading its heads takes.

        Raises:
            CorruptionError: the journal, or its newest segment, is missing or unreadable.
            ConfigError: it belongs to another directory, or a newer program wrote it.
            OSError: the disk refuses.
        """
        expected = self.identity.journal_segment
        if expected and f"journal-{expected:016x}.segment" not in self._directory.list():
            raise CorruptionError(
                f"{self.path}: journal segment {expected:016x}, which existed when this node last started, is missing"
            )
        identity = self.identity
        journal, recovery = Journal.open(
            self._directory,
            node_id=identity.node_id,
            incarnation=identity.incarnation,
            boot=identity.boot,
            segment_bytes=self._segment_bytes,
        )
        self._journal = journal
        self._store_identity(replace(identity, journal_segment=journal.segment_number))
        for problem in recovery.problems:
            logger.error("node %d: journal: %s", identity.node_id, problem)
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
                self._store_identity(replace(self.identity, clean=True))
        finally:
            os.close(self._lock)
            self._lock = -1

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


def _sync_path(path: Path) -> None:
    with naming(path, "syncing"):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _make_directory(path: Path) -> None:
    """Create the directory and make its name durable."""
    missing = [path]
    while not missing[-1].exists():
        missing.append(missing[-1].parent)
    for directory in reversed(missing[:-1]):
        directory.mkdir(mode=0o700, exist_ok=True)
        _sync_path(directory.parent)
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
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def _read_identity(path: Path) -> DirectoryIdentity | None:
    """The stored identity, or None in an empty directory."""
    names = set(os.listdir(path))
    if IDENTITY_NAME in names:
        with (path / IDENTITY_NAME).open("rb") as file:
            return DirectoryIdentity.decode(file.read(DirectoryIdentity.BYTES_MAX), path / IDENTITY_NAME)
    others = names - {LOCK_NAME, IDENTITY_NAME + TEMPORARY_SUFFIX}
    if others:
        raise ConfigError(
            f"data_dir {path} is not empty ({min(others)!r} among others) but has no identity file; it is not a data "
            f"directory of fastpaxos, or it lost its identity"
        )
    return None


def _check_identity(path: Path, stored: DirectoryIdentity, node_id: int, durability: str, os_boot_id: str) -> None:
    if stored.node_id != node_id:
        raise ConfigError(f"data_dir {path} belongs to node {stored.node_id}, not to node {node_id}")
    if stored.durability != durability:
        raise ConfigError(
            f"data_dir {path} was written with durability {stored.durability!r}, not {durability!r}; the mode of a "
            f"data directory cannot be changed"
        )
    lost: Any = None
    if durability == "memory":
        lost = "durability 'memory' keeps nothing over a restart"
    elif durability == "write" and not stored.clean and (not os_boot_id or stored.os_boot_id != os_boot_id):
        lost = "the machine was restarted while the node ran with durability 'write', which syncs nothing"
    if lost:
        raise ConfigError(
            f"data_dir {path}: {lost}; the disk counts as lost. Give this node a new id and an empty directory"
        )
