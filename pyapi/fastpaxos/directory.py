"""Directories that a journal can live in: a real one, and one in memory that forgets what a power loss would lose."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["MemoryDirectory", "OsDirectory", "PowerLoss", "naming"]

SECTOR_BYTES = 512


@contextmanager
def naming(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """System calls on descriptors fail without saying on which file: add its name, and what was tried."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, f"{what} failed: {error.strerror or error}", os.fspath(path)) from error


@contextmanager
def opened(path: Path, flags: int, what: str) -> Iterator[int]:
    """A descriptor of a file, for one thing to do with it; errors name both."""
    with naming(path, what):
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
        try:
            yield descriptor
        finally:
            # It is closed even if that was interrupted, and must not be closed twice.
            with suppress(InterruptedError):
                os.close(descriptor)


class OsDirectory:
    """A directory of the operating system (see `fastpaxos_core.directory.Directory`).

    Args:
        path: the directory; it must exist.
        durable: False leaves out every sync, for the durability modes that do not promise one.
    """

    def __init__(self, path: str | os.PathLike[str], *, durable: bool = True) -> None:
        self.path = Path(path)
        self.durable = durable

    def list(self) -> list[str]:
        """Return the names of all files."""
        return sorted(os.listdir(self.path))

    def size(self, name: str) -> int:
        """Return the size of a file in bytes."""
        return (self.path / name).stat().st_size

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Return `length` bytes at `offset`; fewer only where the file ends."""
        with opened(self.path / name, os.O_RDONLY, "reading") as descriptor:
            # A length from a damaged file is no reason to allocate that much.
            length = max(0, min(length, os.fstat(descriptor).st_size - offset))
            data = os.pread(descriptor, length, offset)
            while len(data) < length:
                more = os.pread(descriptor, length - len(data), offset + len(data))
                if not more:
                    break
                data += more
            return data

    def create(self, name: str, size: int) -> None:
        """Create a file of `size` zero bytes that take no room yet; it must not exist."""
        with opened(self.path / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, "creating") as descriptor:
            os.ftruncate(descriptor, size)

    def write(self, name: str, offset: int, buffers: Sequence[bytes | memoryview]) -> None:
        """Write all buffers, one behind the other, from `offset` on."""
        with opened(self.path / name, os.O_WRONLY, "writing") as descriptor:
            for buffer in buffers:
                view = memoryview(buffer)
                while view:
                    written = os.pwrite(descriptor, view, offset)
                    view = view[written:]
                    offset += written

    def sync(self, name: str) -> None:
        """Make the contents and the size of a file durable."""
        if self.durable:
            self._fsync(self.path / name)

    def rename(self, old: str, new: str) -> None:
        """Rename a file atomically, over an existing one if need be."""
        os.rename(self.path / old, self.path / new)

    def remove(self, name: str) -> None:
        """Remove a file."""
        os.unlink(self.path / name)

    def sync_directory(self) -> None:
        """Make all names durable."""
        if self.durable:
            self._fsync(self.path)

    @staticmethod
    def _fsync(path: Path) -> None:
        with opened(path, os.O_RDONLY, "syncing") as descriptor:
            os.fsync(descriptor)


class PowerLoss(Exception):  # noqa: N818 - it is an event, not an error of the directory
    """Raised by a `MemoryDirectory` whose `operations_left` has come down to zero."""


class _Inode:
    """Contents of one file: what a reader sees, what is on the disk, and what is on its way there."""

    __slots__ = ("content", "durable", "unsynced")

    def __init__(self, size: int) -> None:
        self.content = bytearray(size)
        self.durable: bytearray | None = None  # None: not even its size is on the disk
        self.unsynced: list[tuple[int, bytes]] = []

    def write(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        if end > len(self.content):
            self.content.extend(bytes(end - len(self.content)))
        self.content[offset:end] = data
        self.unsynced.append((offset, data))

    def sync(self) -> None:
        if self.durable is None:
            self.durable = self.content.copy()
        else:
            self.durable.extend(bytes(len(self.content) - len(self.durable)))
            for offset, data in self.unsynced:
                self.durable[offset : offset + len(data)] = data
        self.unsynced.clear()

    def after_crash(self, name: str, keep: Callable[[str, str], bool]) -> _Inode:
        image = bytearray() if self.durable is None else self.durable.copy()
        if len(image) < len(self.content) and keep("size", name):
            image.extend(bytes(len(self.content) - len(image)))
        for offset, data in self.unsynced:
            # A sector is written whole or not at all, in any order within one file.
            begin = offset
            while begin < offset + len(data):
                end = min((begin // SECTOR_BYTES + 1) * SECTOR_BYTES, offset + len(data))
                if end <= len(image) and keep("sector", name):
                    image[begin:end] = data[begin - offset : end - offset]
                begin = end
        survivor = _Inode(0)
        survivor.content = image
        survivor.sync()
        return survivor


class MemoryDirectory:
    """A simulated disk with a page cache: reads see every write, a crash keeps what was synced and some of the rest.

    Names are durable after `sync_directory`, contents and size of a file after `sync` of it, each without the other.

    Attributes:
        operations: number of changing calls (create, write, sync, rename, remove, sync_directory) so far.
        operations_left: None, or how many changing calls are carried out before PowerLoss is raised.
        full_after: None, or how many bytes of files there is room for (OSError ENOSPC beyond).
        failing_syncs: names of files whose sync fails with EIO; "" stands for the directory.
    """

    def __init__(self) -> None:
        self.operations = 0
        self.operations_left: int | None = None
        self.full_after: int | None = None
        self.failing_syncs: set[str] = set()
        self._names: dict[str, _Inode] = {}
        self._durable_names: dict[str, _Inode] = {}
        self._unsynced_names: list[tuple[str, str | None, str | None, _Inode]] = []

    def _step(self) -> None:
        if self.operations_left is not None:
            if self.operations_left == 0:
                raise PowerLoss("the simulated machine lost power")
            self.operations_left -= 1
        self.operations += 1

    def _inode(self, name: str) -> _Inode:
        try:
            return self._names[name]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from None

    def _check_room(self, more: int) -> None:
        if self.full_after is not None:
            used = sum(len(inode.content) for inode in self._names.values())
            if used + more > self.full_after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def list(self) -> list[str]:
        """Return the names of all files."""
        return sorted(self._names)

    def size(self, name: str) -> int:
        """Return the size of a file in bytes."""
        return len(self._inode(name).content)

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Return `length` bytes at `offset`; fewer only where the file ends."""
        return bytes(self._inode(name).content[offset : offset + length])

    def create(self, name: str, size: int) -> None:
        """Create a file of `size` zero bytes; it must not exist."""
        self._step()
        if name in self._names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        self._check_room(size)
        self._names[name] = _Inode(size)
        self._unsynced_names.append(("create", None, name, self._names[name]))

    def write(self, name: str, offset: int, buffers: Sequence[bytes | memoryview]) -> None:
        """Write all buffers, one behind the other, from `offset` on."""
        self._step()
        data = b"".join(buffers)
        inode = self._inode(name)
        self._check_room(max(0, offset + len(data) - len(inode.content)))
        inode.write(offset, data)

    def sync(self, name: str) -> None:
        """Make the contents and the size of a file durable."""
        self._step()
        if name in self.failing_syncs:
            raise OSError(errno.EIO, os.strerror(errno.EIO), name)
        self._inode(name).sync()

    def rename(self, old: str, new: str) -> None:
        """Rename a file atomically, over an existing one if need be."""
        self._step()
        inode = self._inode(old)
        del self._names[old]
        self._names[new] = inode
        self._unsynced_names.append(("rename", old, new, inode))

    def remove(self, name: str) -> None:
        """Remove a file."""
        self._step()
        inode = self._inode(name)
        del self._names[name]
        self._unsynced_names.append(("remove", name, None, inode))

    def sync_directory(self) -> None:
        """Make all names durable."""
        self._step()
        if "" in self.failing_syncs:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._durable_names = self._names.copy()
        self._unsynced_names.clear()

    def crash(self, keep: Callable[[str, str], bool] = lambda kind, name: False) -> MemoryDirectory:
        """Return what is on the disk after a power loss.

        Args:
            keep: asked in a fixed order for everything that was not synced, with ("name", file name) for each create,
                rename and remove, ("size", file name) and ("sector", file name) for each 512-byte sector of each write;
                True keeps it.
        """
        names = self._durable_names.copy()
        for _, old, new, inode in self._unsynced_names:
            if keep("name", new or old or ""):
                if old is not None:
                    names.pop(old, None)
                if new is not None:
                    names[new] = inode
        survivor = MemoryDirectory()
        copies: dict[int, _Inode] = {}
        for name in sorted(names):
            inode = names[name]
            if id(inode) not in copies:
                copies[id(inode)] = inode.after_crash(name, keep)
            survivor._names[name] = copies[id(inode)]
        survivor._durable_names = survivor._names.copy()
        return survivor

    def copy(self) -> MemoryDirectory:
        """Return an independent copy, as if everything had been synced (a process crash loses nothing)."""
        return self.crash(lambda kind, name: True)

    def overwrite(self, name: str, offset: int, data: bytes) -> None:
        """Change bytes behind everybody's back, on the disk as well: rot, or a misdirected write."""
        inode = self._inode(name)
        for image in (inode.content, inode.durable):
            if image is not None:
                image[offset : offset + len(data)] = data

    def truncate(self, name: str, size: int) -> None:
        """Shorten a file behind everybody's back."""
        inode = self._inode(name)
        for image in (inode.content, inode.durable):
            if image is not None:
                del image[size:]
