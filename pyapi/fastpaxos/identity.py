"""The file `identity` of a data directory: whose data it is, how often it was started, and the founding record.

It works on the abstract `Directory` of the core, so that the simulator runs it over simulated disks. Nothing
unreadable is ever taken for a fresh start, and every change is durable before the caller goes on.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import msgpack

from fastpaxos_core.block import crc32c
from fastpaxos_core.directory import TEMPORARY_SUFFIX, Directory
from fastpaxos_core.errors import ConfigError, CorruptionError, FrameError, InvariantError
from fastpaxos_core.founding import DURABILITY_MODES, FoundingRecord
from fastpaxos_core.journal import Journal
from fastpaxos_core.journal_recovery import Recovery

__all__ = ["IDENTITY_NAME", "LOCK_NAME", "DirectoryIdentity", "IdentityFile", "read_os_boot_id"]

IDENTITY_NAME = "identity"
LOCK_NAME = "lock"
BOOT_ID_PATH = Path("/proc/sys/kernel/random/boot_id")


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
    def decode(cls, data: bytes, where: str | Path) -> DirectoryIdentity:
        """Read the file's contents.

        Raises:
            CorruptionError: they are not what was written.
            ConfigError: a newer program wrote them.
        """
        if len(data) < cls.HEADER.size:
            raise CorruptionError(f"{where} has only {len(data)} bytes; this directory's data cannot be trusted")
        magic, version, flags, crc, size = cls.HEADER.unpack_from(data)
        body = data[cls.HEADER.size :]
        head = cls.HEADER.pack(magic, version, flags, 0, size)
        if magic != cls.MAGIC or size != len(body) or crc32c(body, crc32c(head)) != crc:
            raise CorruptionError(f"{where} is corrupt; this directory's data cannot be trusted")
        if version != cls.VERSION or flags:
            raise ConfigError(f"{where} has version {version} and flags {flags:#x}, unknown to this program")
        try:
            fields = msgpack.unpackb(body)
        except (ValueError, msgpack.UnpackException) as error:
            raise CorruptionError(f"{where} holds no msgpack map: {type(error).__name__}: {error}") from error
        if not isinstance(fields, dict) or fields.keys() != set(cls.__slots__):
            raise CorruptionError(f"{where} does not have the fields of an identity")
        identity = cls(**fields)
        if not identity._is_sound():
            raise CorruptionError(f"{where} has a field of a wrong type or out of range: {identity!r:.500}")
        return identity

    def _is_sound(self) -> bool:
        numbers = ((self.node_id, 1, 1 << 16), (self.incarnation, 1, 1 << 64), (self.boot, 1, 1 << 32))
        return (
            all(type(number) is int and low <= number < high for number, low, high in numbers)
            and self.durability in DURABILITY_MODES
            and isinstance(self.os_boot_id, str)
            and isinstance(self.clean, bool)
            and isinstance(self.founding, bytes)
            and type(self.journal_segment) is int
            and 0 <= self.journal_segment < 1 << 63
        )


def read_os_boot_id() -> str:
    """Name of this start of the operating system, or "" where it has none."""
    try:
        return BOOT_ID_PATH.read_text().strip()
    except OSError:
        return ""


class IdentityFile:
    """The identity of one open data directory. Made by `IdentityFile.open`.

    Attributes:
        value: what the file says now, durably.
    """

    def __init__(self, directory: Directory, where: str | Path, value: DirectoryIdentity) -> None:
        self.value = value
        self._directory = directory
        self._where = Path(where)

    @classmethod
    def open(
        cls,
        directory: Directory,
        where: str | Path,
        *,
        node_id: int,
        durability: str,
        os_boot_id: str,
        new_incarnation: Callable[[], int],
    ) -> Self:
        """Format an empty directory, or check what is there, and count one more start.

        Args:
            directory: locked by the caller.
            where: its path, for messages.
            node_id, durability: of this node.
            os_boot_id: names this start of the operating system, "" where it has none.
            new_incarnation: draws a random incarnation, 1..2**64-1, for an empty directory.

        Raises:
            ConfigError: the directory is not empty and not ours, belongs to another node, has another durability mode,
                or lost data as its durability mode allows.
            CorruptionError: the file is unreadable.
            OSError: the disk refuses.
        """
        stored = _read(directory, Path(where))
        if stored is None:
            value = DirectoryIdentity(node_id, new_incarnation(), 1, durability, os_boot_id, False, b"", 0)
        else:
            _check(where, stored, node_id, durability, os_boot_id)
            value = replace(stored, boot=stored.boot + 1, os_boot_id=os_boot_id, clean=False)
        identity = cls(directory, where, value)
        identity.founding  # noqa: B018 - an unreadable record is refused before anything changes
        identity._store(value)
        return identity

    @property
    def founding(self) -> FoundingRecord | None:
        """The founding record, or None. Raises CorruptionError if it is unreadable."""
        if not self.value.founding:
            return None
        try:
            return FoundingRecord.decode(self.value.founding)
        except FrameError as error:
            raise CorruptionError(f"{self._where / IDENTITY_NAME}: {error}") from error

    def found(self, record: FoundingRecord) -> None:
        """Store the founding record durably.

        Raises:
            InvariantError: another one is stored.
            OSError: the disk refuses; the node must stop.
        """
        encoded = record.encode()
        if self.value.founding == encoded:
            return
        if self.value.founding:
            raise InvariantError(f"{self._where} would be founded a second time with another record")
        self._store(replace(self.value, founding=encoded))

    def open_journal(self, directory: Directory, segment_bytes: int) -> tuple[Journal, Recovery]:
        """Recover the journal that lies in `directory`, and remember the segment that this start made.

        Raises:
            CorruptionError: the journal, or its newest segment, is missing or unreadable.
            ConfigError: it belongs to another directory, or a newer program wrote it.
            OSError: the disk refuses.
        """
        value = self.value
        expected = value.journal_segment
        if expected and f"journal-{expected:016x}.segment" not in directory.list():
            raise CorruptionError(
                f"{self._where}: journal segment {expected:016x}, which existed when this node last started, is missing"
            )
        journal, recovery = Journal.open(
            directory,
            node_id=value.node_id,
            incarnation=value.incarnation,
            boot=value.boot,
            segment_bytes=segment_bytes,
        )
        self._store(replace(value, journal_segment=journal.segment_number))
        return journal, recovery

    def mark_clean(self) -> None:
        """Everything is on disk and the node ends in order."""
        self._store(replace(self.value, clean=True))

    def _store(self, value: DirectoryIdentity) -> None:
        directory = self._directory
        temporary = IDENTITY_NAME + TEMPORARY_SUFFIX
        if temporary in directory.list():
            directory.remove(temporary)
        directory.create(temporary, 0)
        directory.write(temporary, 0, [value.encode()])
        directory.sync(temporary)
        directory.rename(temporary, IDENTITY_NAME)
        directory.sync_directory()
        self.value = value


def _read(directory: Directory, where: Path) -> DirectoryIdentity | None:
    """The stored identity, or None in an empty directory."""
    names = set(directory.list())
    if IDENTITY_NAME in names:
        data = directory.read(IDENTITY_NAME, 0, DirectoryIdentity.BYTES_MAX)
        return DirectoryIdentity.decode(data, where / IDENTITY_NAME)
    others = names - {LOCK_NAME, IDENTITY_NAME + TEMPORARY_SUFFIX}
    if others:
        raise ConfigError(
            f"data_dir {where} is not empty ({min(others)!r} among others) but has no identity file; it is not a data "
            f"directory of fastpaxos, or it lost its identity"
        )
    return None


def _check(where: str | Path, stored: DirectoryIdentity, node_id: int, durability: str, os_boot_id: str) -> None:
    if stored.node_id != node_id:
        raise ConfigError(f"data_dir {where} belongs to node {stored.node_id}, not to node {node_id}")
    if stored.durability != durability:
        raise ConfigError(
            f"data_dir {where} was written with durability {stored.durability!r}, not {durability!r}; the mode of a "
            f"data directory cannot be changed"
        )
    lost = ""
    if durability == "memory":
        lost = "durability 'memory' keeps nothing over a restart"
    elif durability == "write" and not stored.clean and (not os_boot_id or stored.os_boot_id != os_boot_id):
        lost = "the machine was restarted while the node ran with durability 'write', which syncs nothing"
    if lost:
        raise ConfigError(
            f"data_dir {where}: {lost}; the disk counts as lost. Give this node a new id and an empty directory"
        )
