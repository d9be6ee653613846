"""The abstract directory that the journal lives in: real files, or a simulated disk, under the same core code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from fastpaxos_core.journal import JournalWrite

__all__ = ["TEMPORARY_SUFFIX", "Directory", "perform"]

TEMPORARY_SUFFIX = ".temporary"
"""Files with this suffix were not finished; they are ignored, and removed at the next start."""


class Directory(Protocol):
    """One flat directory. Every method may raise OSError; after a failed `sync` nothing may be written any more."""

    def list(self) -> Sequence[str]:
        """Return the names of all files, in any order."""

    def size(self, name: str) -> int:
        """Return the size of a file in bytes."""

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Return `length` bytes at `offset`; fewer only where the file ends."""

    def create(self, name: str, size: int) -> None:
        """Create a file of `size` zero bytes; it must not exist."""

    def write(self, name: str, offset: int, buffers: Sequence[bytes | memoryview]) -> None:
        """Write all buffers, one behind the other, from `offset` on. Nothing is durable before `sync`."""

    def sync(self, name: str) -> None:
        """Make the contents and the size of a file durable (not its name)."""

    def rename(self, old: str, new: str) -> None:
        """Rename a file atomically. Durable after `sync_directory`."""

    def remove(self, name: str) -> None:
        """Remove a file. Durable after `sync_directory`."""

    def sync_directory(self) -> None:
        """Make all names durable."""


def perform(directory: Directory, write: JournalWrite, durable: bool = True) -> None:
    """Carry out one journal write: its new segment if it needs one, its bytes, and its sync.

    The journal's own writer does the same with system calls; this is for simulators and tests.
    """
    if write.new_segment is not None:
        name, header, size = write.new_segment
        create_segment(directory, name, size, [header], durable)
    directory.write(write.segment_name, write.offset, write.buffers)
    if write.needs_sync and durable:
        directory.sync(write.segment_name)


def create_segment(
    directory: Directory, name: str, size: int, buffers: Sequence[bytes | memoryview], durable: bool = True
) -> None:
    """Create a segment under a temporary name and give it its own name when its contents are durable."""
    temporary = name + TEMPORARY_SUFFIX
    if temporary in directory.list():
        directory.remove(temporary)
    directory.create(temporary, size)
    directory.write(temporary, 0, buffers)
    if durable:
        directory.sync(temporary)
    directory.rename(temporary, name)
    if durable:
        directory.sync_directory()
