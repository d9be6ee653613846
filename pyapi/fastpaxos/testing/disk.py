"""A simulated disk: bytes and names are durable only when a sync says so, and a crash keeps what it likes of the rest.

`SimDisk` has the methods of a journal directory (see `fastpaxos_core.directory.Directory`). It keeps two images of
everything: the visible one, which a running process sees (the page cache), and the durable one, which a power cut
leaves. `crash` is a power cut; a process that merely dies leaves the disk as it is.

Faults are armed by methods of their own (`fail_next_sync`, `misdirect_next_write`, ...), each for one effect.
The disk draws nothing by itself: wherever there is a choice, the caller passes the generator.
"""

from __future__ import annotations

import copy
import errno
import os
from collections import Counter
from collections.abc import Iterable
from random import Random
from typing import Literal, NamedTuple

from .disk_file import PAGE_BYTES, SECTOR_BYTES, DiskFile, Image, Misplacement

__all__ = ["PAGE_BYTES", "SECTOR_BYTES", "DiskFault", "SimDisk", "SimulatedCrash", "SyncFailure"]

SyncFailure = Literal["keep", "revert"]
"""What a failed sync shows: it can "keep" the new bytes, marked clean (ext4, XFS), or "revert" to the durable ones."""

_Operation = Literal["create", "write", "rename", "remove"]
_TORN_BYTES = (SECTOR_BYTES, PAGE_BYTES, 1)


class SimulatedCrash(Exception):  # noqa: N818 - it is no error
    """The simulated process dies here: raised by SimDisk where a test asked for it, and caught by nobody under test."""


class DiskFault(NamedTuple):
    """Bytes that a media fault destroyed: nobody may trust them, and nobody was told.

    `kind` is "bit_flip", "zero_page", "truncated", "lost_write", "misdirected_write" (the place that kept its old
    bytes), "overwritten" (the place that such a write hit instead), or "wiped" (all files; the name is empty).
    """

    kind: str
    name: str
    offset: int
    length: int


class SimDisk:
    """One node's directory. Survives the node's crashes.

    Args:
        capacity_bytes: see below.
        preallocates: whether `create` takes up the room at once (fallocate) or each write does (a sparse file).

    Attributes:
        operations: number of changing calls so far (create, write, sync, rename, remove, sync_directory).
        syncs, directory_syncs: how many of them were calls of `sync` and of `sync_directory`.
        bytes_written: bytes that writes have taken so far, those of writes that failed half-way included.
        crash_at: when set, the operation with this number raises SimulatedCrash before it takes effect.
        capacity_bytes: room for the contents of files, None for no limit; what does not fit fails with ENOSPC. May be
            changed at any time.
        faults: every media fault that took effect so far, in order; names are those of that time.
        fault_counts: how often each kind of fault took effect, errors and effects of crashes included.
    """

    def __init__(self, capacity_bytes: int | None = None, *, preallocates: bool = True) -> None:
        self.operations = 0
        self.syncs = 0
        self.directory_syncs = 0
        self.bytes_written = 0
        self.crash_at: int | None = None
        self.capacity_bytes = capacity_bytes
        self.preallocates = preallocates
        self.faults: list[DiskFault] = []
        self.fault_counts: Counter[str] = Counter()
        self._names: dict[str, DiskFile] = {}
        self._durable_names: dict[str, DiskFile] = {}
        self._name_log: list[_NameChange] = []
        self._clean_names: list[_NameChange] = []  # not durable, but no sync will write them
        self._evicted: list[tuple[DiskFile, int, int]] = []
        self._disarm()

    # Power cuts

    def crash(
        self,
        random: Random,
        survival: float | None = None,
        *,
        torn_bytes: int | None = None,
        reorder_names: bool | None = None,
    ) -> None:
        """Power fails: names and bytes go back to what is durable, plus a random part of what was on its way.

        Unsynced writes survive or not independently of each other, whole or in parts. Of changes to names a prefix
        survives; when they are reordered, any choice that leaves out no change that a kept one builds upon.

        Args:
            random: draws everything that is not given.
            survival: share of the unsynced bytes that survive, 0 and 1 stand for none and all of the changes to names
                as well; drawn for every file when it is None.
            torn_bytes: 512, 4096 or 1: what is written whole or not at all.
            reorder_names: whether changes to names may survive without earlier ones.
        """
        self.crash_at = None
        if torn_bytes is None:
            torn_bytes = random.choice(_TORN_BYTES)
        if reorder_names is None:
            reorder_names = random.random() < 0.25
        for change in self._surviving_changes(random, survival, reorder_names):
            change.apply(self._durable_names)
        self._name_log.clear()
        self._clean_names.clear()
        self._names = dict(self._durable_names)
        for name in sorted(self._names):
            file = self._names[name]
            file.name = name
            share = random.choice((0.0, 0.5, 0.9, 1.0)) if survival is None else survival
            file.crash(random, share, torn_bytes, self.fault_counts, self._misplaced)
        for file in self._names.values():
            file.show_durable()
        self._evicted.clear()

    def _surviving_changes(self, random: Random, survival: float | None, reorder: bool) -> list[_NameChange]:
        if survival in (0.0, 1.0):
            survivors = self._name_log.copy() if survival else []
        elif not reorder:
            survivors = self._name_log[: random.randrange(len(self._name_log) + 1)]
        else:
            survivors = []
            lost: set[str] = set()
            for change in self._name_log:
                if lost.isdisjoint(change.names()) and random.random() < 0.5:
                    survivors.append(change)
                else:
                    lost.update(change.names())
            if survivors != self._name_log[: len(survivors)]:
                self.fault_counts["reordered_names"] += 1
        if len(survivors) < len(self._name_log):
            self.fault_counts["lost_names"] += 1
        return survivors

    def wipe(self) -> None:
        """Lose the whole disk: every file and every name, at once and for good. Pending faults go with it."""
        self._names.clear()
        self._durable_names.clear()
        self._name_log.clear()
        self._clean_names.clear()
        self._record("wiped", "", 0, 0)
        self._disarm()

    def copy(self) -> SimDisk:
        """Return an independent copy of this disk in its present state, what is unsynced and armed included."""
        return copy.deepcopy(self)

    # Faults of calls

    def heal(self) -> None:
        """Disarm all faults and lift the limit of capacity. What was destroyed stays destroyed."""
        self.capacity_bytes = None
        self._disarm()
        changed = [change.file for change in self._clean_names + self._name_log]
        for file in [*self._names.values(), *self._durable_names.values(), *changed]:
            file.unreadable.clear()

    def _disarm(self) -> None:
        self._failing_sync: tuple[SyncFailure, Random | None] | None = None
        self._failing_directory_sync: SyncFailure | None = None
        self._failing: dict[_Operation, tuple[int, Random | None]] = {}
        self._astray: tuple[Random | None, bool, bool] | None = None

    def fail_next_sync(self, kind: SyncFailure, random: Random | None = None) -> None:
        """Let the next `sync` fail with EIO.

        Either way the file counts as clean afterwards: later syncs succeed without making durable what this one
        should have, unless it is written again.

        Args:
            kind: what stays visible, see `SyncFailure`.
            random: if given, it draws which part of the bytes became durable nevertheless; none otherwise.
        """
        self._failing_sync = (kind, random)

    def fail_next_directory_sync(self, kind: SyncFailure) -> None:
        """Let the next `sync_directory` fail with EIO.

        With "keep" changes to names stay visible and the directory counts as clean: they become durable only by a sync
        after a further change, which writes the directory again. With "revert" they are undone.
        """
        self._failing_directory_sync = kind

    def fail_next(self, operation: _Operation, error: int = errno.EIO, random: Random | None = None) -> None:
        """Let the next create, write, rename or remove fail with an error number.

        With `random` a part of a failing write, of any length, is written before.
        """
        self._failing[operation] = (error, random)

    def fail_reads(self, name: str, offset: int, length: int, *, sticky: bool = True) -> None:
        """Let reads that touch these bytes fail with EIO: once, or (`sticky`) until `heal`, under whatever name."""
        self._file(name).unreadable.append((offset, offset + length, sticky))

    # Faults of the media, which nobody is told

    def written_ranges(self, name: str) -> list[tuple[int, int]]:
        """Where durable bytes of a file lie that were written, as sorted (begin, end); elsewhere it reads as zeros."""
        return list(self._file(name).durable.ranges)

    def untrusted_ranges(self, name: str) -> list[tuple[int, int]]:
        """What media faults destroyed in a file and no later write has repaired, as sorted (begin, end)."""
        return list(self._file(name).damage)

    def corrupt(self, name: str, offset: int, mask: int = 0xFF, *, cached: bool = False) -> DiskFault:
        """Flip bits of one durable byte of a file where it lies, as rot does.

        Args:
            name, offset: the byte; it must be durable (ValueError).
            mask: bits to flip.
            cached: the page cache still has the right byte, so that it is seen only after a crash.
        """
        byte = self._durable_image(name, offset).peek(offset, 1)[0]
        return self._rot("bit_flip", name, offset, bytes([byte ^ mask]), cached)

    def zero_page(self, name: str, offset: int, *, cached: bool = False) -> DiskFault:
        """Turn the page of 4096 bytes around a durable byte into zeros; see `corrupt`."""
        begin = offset - offset % PAGE_BYTES
        length = min(PAGE_BYTES, self._durable_image(name, offset).size - begin)
        return self._rot("zero_page", name, begin, bytes(length), cached)

    def overwrite(self, name: str, offset: int, data: bytes, *, cached: bool = False) -> DiskFault:
        """Put other bytes over durable ones: an old write that was lost or misdirected shows them; see `corrupt`."""
        self._durable_image(name, offset)
        return self._rot("overwritten", name, offset, data, cached)

    def read_durable(self, name: str, offset: int, length: int) -> bytes:
        """What a power cut would leave of these bytes now, zeros behind the end."""
        return self._file(name).durable.peek(offset, length)

    def is_durable(self, name: str, offset: int, length: int) -> bool:
        """Tell whether a file exists whose visible bytes here are all durable."""
        file = self._names.get(name)
        return (
            file is not None
            and offset + length <= file.durable.size
            and file.durable.peek(offset, length) == file.visible.peek(offset, length)
        )

    def truncate(self, name: str, size: int) -> DiskFault:
        """Lose the end of a file, as a broken file system does."""
        file = self._file(name)
        length = max(0, file.visible.size - size)
        file.truncate(size)
        return self._damaged("truncated", file, size, length)

    def misdirect_next_write(self, random: Random, *, other_file: bool = False, cached: bool = True) -> None:
        """Let the next write succeed, and its sync too, while its bytes go to another place on the media.

        They land at another multiple of 512 bytes of the same file or, with `other_file`, somewhere in another one.
        The right place keeps its old bytes. A write that fits nowhere else is lost instead.

        Args:
            random: draws the place.
            other_file: hit another file, if there is one.
            cached: the page cache shows the bytes where they belong until the next crash; otherwise everybody sees
                what the media have as soon as they have it.
        """
        self._astray = (random, other_file, cached)

    def lose_next_write(self, *, cached: bool = True) -> None:
        """Let the next write succeed, and its sync too, while nothing ever reaches the media."""
        self._astray = (None, False, cached)

    def _durable_image(self, name: str, offset: int) -> Image:
        image = self._file(name).durable
        if not 0 <= offset < image.size:
            raise ValueError(f"byte {offset} of {name!r} is not durable; {image.size} bytes are")
        return image

    def _record(self, kind: str, name: str, offset: int, length: int) -> DiskFault:
        fault = DiskFault(kind, name, offset, length)
        self.faults.append(fault)
        self.fault_counts[kind] += 1
        return fault

    def _damaged(self, kind: str, file: DiskFile, offset: int, length: int) -> DiskFault:
        file.damage.add(offset, offset + length)
        return self._record(kind, file.name, offset, length)

    def _rot(self, kind: str, name: str, offset: int, data: bytes, cached: bool) -> DiskFault:
        file = self._file(name)
        file.durable.poke(offset, data)
        file.diverged = True
        if not cached:
            file.show_durable_range(offset, len(data))
        return self._damaged(kind, file, offset, len(data))

    def _misplace(self, file: DiskFile, offset: int, length: int) -> Misplacement | None:
        """Where the media put the next write of a file: None for where it belongs."""
        if self._astray is None:
            return None
        (random, other_file, cached), self._astray = self._astray, None
        if random is None:
            return Misplacement(None, 0, cached)
        others = [self._names[name] for name in sorted(self._names) if self._names[name] is not file]
        target, size = file, max(file.visible.size, offset + length)
        if other_file and others:
            target = random.choice(others)
            size = target.durable.size
        place = target.draw_place(random, size, length, avoid=offset if target is file else None)
        return Misplacement(None if place is None else target, place or 0, cached)

    def _misplaced(self, file: DiskFile, offset: int, data: bytes, misplacement: Misplacement, synced: bool) -> None:
        """A misplaced write (or a part of one that survived a crash, which no sync covered) reaches the media."""
        target, place, cached = misplacement
        if target is not None and (landing := data[: max(0, target.durable.size - place)]):
            target.durable.put(place, landing)
            target.diverged = True
            self._damaged("overwritten", target, place, len(landing))
            if not cached:
                self._evicted.append((target, place, len(landing)))
        if synced:
            file.diverged = True
            self._damaged("lost_write" if target is None else "misdirected_write", file, offset, len(data))
            if not cached:
                self._evicted.append((file, offset, len(data)))

    def _read_evicted(self) -> None:
        """Show what the media have in places that the page cache no longer holds."""
        for file, offset, length in self._evicted:
            file.show_durable_range(offset, length)
        self._evicted.clear()

    # The interface of a journal directory

    def _begin(self, operation: _Operation | None = None) -> None:
        self.operations += 1
        if self.crash_at is not None and self.operations >= self.crash_at:
            raise SimulatedCrash(f"at disk operation {self.operations}")
        if operation is not None and operation in self._failing:
            raise self._failure(operation, self._failing.pop(operation)[0])

    def _failure(self, operation: str, error: int, name: str = "") -> OSError:
        self.fault_counts[f"{operation}_{errno.errorcode[error]}"] += 1
        return OSError(error, os.strerror(error), name) if name else OSError(error, os.strerror(error))

    def _file(self, name: str) -> DiskFile:
        try:
            return self._names[name]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from None

    def _change_names(self, old: str | None, new: str | None, file: DiskFile) -> None:
        change = _NameChange(old, new, file)
        change.apply(self._names)
        self._name_log += [*self._clean_names, change]
        self._clean_names.clear()

    def used_bytes(self) -> int:
        """Room that the contents of all files take up."""
        return sum(file.room() for file in self._names.values())

    def list(self) -> list[str]:
        """Names of all files, sorted."""
        return sorted(self._names)

    def size(self, name: str) -> int:
        """Length of a file in bytes."""
        return self._file(name).visible.size

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Bytes of a file; fewer than `length` at its end. Raises OSError where a test asked for it."""
        file = self._file(name)
        if file.unreadable and file.is_unreadable(offset, offset + length):
            raise self._failure("read", errno.EIO, name)
        return file.visible.read(offset, length)

    def create(self, name: str, size: int = 0) -> None:
        """Create a file of `size` zero bytes. Raises FileExistsError when the name is taken, OSError when full."""
        self._begin("create")
        if name in self._names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        needed = size if self.preallocates else 0
        if self.capacity_bytes is not None and self.used_bytes() + max(1, needed) > self.capacity_bytes:
            raise self._failure("create", errno.ENOSPC, name)
        self._change_names(None, name, DiskFile(name, size, needed))

    def write(self, name: str, offset: int, buffers: Iterable[bytes | memoryview]) -> None:
        """Write buffers one behind the other from `offset` on. After an OSError a part of them may be written."""
        self._begin()
        file = self._file(name)
        data = b"".join(buffers)
        error, accepted = 0, len(data)
        if self._failing and "write" in self._failing:
            error, random = self._failing.pop("write")
            accepted = 0 if random is None else random.randrange(len(data) + 1)
        if self.capacity_bytes is not None:
            fitting = file.fitting(offset, accepted, self.capacity_bytes - self.used_bytes())
            if fitting < accepted:
                error, accepted = errno.ENOSPC, fitting
        if error:
            data = data[:accepted]
        if data:
            self.bytes_written += len(data)
            misplacement = None if self._astray is None else self._misplace(file, offset, len(data))
            file.write(offset, data, misplacement)
        if error:
            raise self._failure("write", error, name)

    def sync(self, name: str) -> None:
        """Make a file's bytes and its size durable (its name needs sync_directory)."""
        self._begin()
        self.syncs += 1
        file = self._file(name)
        if self._failing_sync is not None:
            (kind, random), self._failing_sync = self._failing_sync, None
            file.fail_sync(random, keep=kind == "keep", misplaced=self._misplaced)
            self._read_evicted()
            raise self._failure(f"sync_{kind}", errno.EIO, name)
        file.sync(self._misplaced)
        if self._evicted:
            self._read_evicted()

    def rename(self, old: str, new: str) -> None:
        """Rename a file; an existing target is replaced."""
        self._begin("rename")
        self._change_names(old, new, self._file(old))

    def remove(self, name: str) -> None:
        """Remove a file."""
        self._begin("remove")
        self._change_names(name, None, self._file(name))

    def sync_directory(self) -> None:
        """Make all names durable."""
        self._begin()
        self.directory_syncs += 1
        failing, self._failing_directory_sync = self._failing_directory_sync, None
        if failing is None:
            for change in self._name_log:
                change.apply(self._durable_names)
        elif failing == "keep":
            self._clean_names += self._name_log
        else:
            self._names = dict(self._durable_names)
            self._clean_names.clear()
        self._name_log.clear()
        if failing is not None:
            raise self._failure(f"sync_directory_{failing}", errno.EIO)


class _NameChange(NamedTuple):
    """One change to the names of a directory: a creation (no old name), a removal (no new one) or a renaming."""

    old: str | None
    new: str | None
    file: DiskFile

    def names(self) -> list[str]:
        return [name for name in (self.old, self.new) if name is not None]

    def apply(self, names: dict[str, DiskFile]) -> None:
        if self.old is not None:
            del names[self.old]
        if self.new is not None:
            names[self.new] = self.file
            self.file.name = self.new
