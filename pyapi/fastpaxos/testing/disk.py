"""A simulated disk: bytes and names are durable only when a sync says so, and a crash keeps what it likes of the rest.

`SimDisk` has the methods of a journal directory (append-free positional writes, sync, read, list, create, rename,
remove, sync_directory). It keeps two images of everything: what a running process sees, and what a power cut leaves.
Units of loss are sectors of 512 bytes for data, and single directory operations, of which a prefix survives.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from fastpaxos_core.errors import ConfigError

__all__ = ["SECTOR_BYTES", "SimDisk", "SimulatedCrash"]

SECTOR_BYTES = 512


class SimulatedCrash(Exception):  # noqa: N818 - it is no error
    """The simulated process dies here: raised by SimDisk where a test asked for it, and caught by nobody under test."""


class _File:
    """One inode: the bytes that are seen, the bytes that are safe, and the writes between them."""

    __slots__ = ("durable", "unsynced", "visible")

    def __init__(self) -> None:
        self.visible = bytearray()
        self.durable = bytearray()
        self.unsynced: list[tuple[int, bytes]] = []

    def write(self, offset: int, data: bytes) -> None:
        _put(self.visible, offset, data)
        self.unsynced.append((offset, data))

    def sync(self) -> None:
        self.unsynced.clear()
        self.durable = bytearray(self.visible)

    def crash(self, random: Random, survival: float) -> None:
        """Keep, sector by sector, a random part of what was not synced."""
        for offset, data in self.unsynced:
            position = 0
            while position < len(data):
                end = min(len(data), position + SECTOR_BYTES - (offset + position) % SECTOR_BYTES)
                if random.random() < survival:
                    _put(self.durable, offset + position, data[position:end])
                position = end
        self.unsynced.clear()
        self.visible = bytearray(self.durable)


def _put(target: bytearray, offset: int, data: bytes) -> None:
    if len(target) < offset:
        target.extend(bytes(offset - len(target)))
    target[offset : offset + len(data)] = data


class SimDisk:
    """One node's directory. Survives the node's crashes.

    Attributes:
        operations: number of operations so far.
        crash_at: when set, the operation with this number raises SimulatedCrash before it takes effect.
    """

    def __init__(self) -> None:
        self.operations = 0
        self.crash_at: int | None = None
        self._names: dict[str, _File] = {}
        self._durable_names: dict[str, _File] = {}
        self._name_log: list[dict[str, _File]] = []

    def crash(self, random: Random, survival: float | None = None) -> None:
        """Power fails: names and bytes go back to what is durable, plus a random part of what was on its way.

        `survival` is the share of unsynced sectors that survive; drawn for every file when it is None.
        """
        self.crash_at = None
        kept = random.randrange(len(self._name_log) + 1)
        if survival in (0.0, 1.0):
            kept = len(self._name_log) if survival else 0
        if kept:
            self._durable_names = self._name_log[kept - 1]
        self._name_log.clear()
        self._names = dict(self._durable_names)
        for file in self._names.values():
            file.crash(random, random.choice((0.0, 0.5, 0.9, 1.0)) if survival is None else survival)

    def corrupt(self, name: str, offset: int, mask: int = 0xFF) -> None:
        """Flip bits of one byte of a file where it lies, as rot does."""
        file = self._file(name)
        for image in (file.visible, file.durable):
            if offset < len(image):
                image[offset] ^= mask

    def truncate(self, name: str, size: int) -> None:
        """Lose the end of a file, as a broken file system does."""
        file = self._file(name)
        del file.visible[size:]
        del file.durable[size:]

    def _begin(self) -> None:
        self.operations += 1
        if self.crash_at is not None and self.operations >= self.crash_at:
            raise SimulatedCrash(f"at disk operation {self.operations}")

    def _file(self, name: str) -> _File:
        try:
            return self._names[name]
        except KeyError:
            raise FileNotFoundError(f"no file {name!r} on this disk") from None

    def _changed_names(self) -> None:
        self._name_log.append(dict(self._names))

    # The interface of a journal directory

    def list(self) -> list[str]:
        """Names of all files, sorted."""
        return sorted(self._names)

    def size(self, name: str) -> int:
        """Length of a file in bytes."""
        return len(self._file(name).visible)

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Bytes of a file; fewer than `length` at its end."""
        return bytes(self._file(name).visible[offset : offset + length])

    def create(self, name: str, size: int = 0) -> None:
        """Create a file of `size` zero bytes. Raises ConfigError when the name is taken."""
        self._begin()
        if name in self._names:
            raise ConfigError(f"file {name!r} exists already")
        self._names[name] = _File()
        if size:
            self._names[name].write(0, bytes(size))
        self._changed_names()

    def write(self, name: str, offset: int, buffers: Iterable[bytes | memoryview]) -> None:
        """Write buffers one behind the other from `offset` on."""
        self._begin()
        self._file(name).write(offset, b"".join(bytes(buffer) for buffer in buffers))

    def sync(self, name: str) -> None:
        """Make a file's bytes durable (its name needs sync_directory)."""
        self._begin()
        self._file(name).sync()

    def rename(self, old: str, new: str) -> None:
        """Rename a file; an existing target is replaced."""
        self._begin()
        self._names[new] = self._names.pop(old)
        self._changed_names()

    def remove(self, name: str) -> None:
        """Remove a file."""
        self._begin()
        del self._names[name]
        self._changed_names()

    def sync_directory(self) -> None:
        """Make all names durable."""
        self._begin()
        self._durable_names = dict(self._names)
        self._name_log.clear()
