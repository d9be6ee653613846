"""One file of a simulated disk: the bytes that are seen, the bytes that are safe, and the writes between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from random import Random
from typing import NamedTuple

from .byte_ranges import ByteRanges

__all__ = ["PAGE_BYTES", "SECTOR_BYTES", "DiskFile", "Image", "Misplacement"]

SECTOR_BYTES = 512
PAGE_BYTES = 4096
_CUTS_MAX = 3


class Image:
    """Bytes of a file up to `size`; what was never written is zero and takes no memory behind the last write."""

    __slots__ = ("_data", "ranges", "size")

    def __init__(self, size: int = 0) -> None:
        self._data = bytearray()
        self.size = size
        self.ranges = ByteRanges()

    def put(self, offset: int, data: bytes) -> None:
        """Write bytes; the file grows if need be."""
        end = offset + len(data)
        self.poke(offset, data)
        if end > self.size:
            self.size = end
        self.ranges.add(offset, end)

    def poke(self, offset: int, data: bytes) -> None:
        """Change bytes within the file without counting them as written."""
        length = len(self._data)
        if offset > length:
            self._data.extend(bytes(offset - length))
        self._data[offset : offset + len(data)] = data

    def peek(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes, zeros behind the end."""
        data = bytes(memoryview(self._data)[offset : offset + length])
        return data + bytes(length - len(data)) if len(data) < length else data

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the file, fewer than `length` at its end."""
        return self.peek(offset, max(0, min(length, self.size - offset)))

    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes; it must not be shorter."""
        del self._data[size:]
        self.ranges.remove(size, self.size)
        self.size = size

    def copy(self) -> Image:
        """Return an independent copy."""
        other = Image(self.size)
        other._data = self._data.copy()
        other.ranges = self.ranges.copy()
        return other


class Misplacement(NamedTuple):
    """Where the media put a write instead of its place: somewhere in a file, or (no file) nowhere.

    `cached`: the page cache goes on showing the bytes where they belong.
    """

    file: DiskFile | None
    offset: int
    cached: bool


Misplaced = Callable[["DiskFile", int, bytes, Misplacement, bool], None]
"""Called when a misplaced write reaches the media, with its file, its right offset, its bytes, where they go, and
whether a sync covered it."""


class DiskFile:
    """One inode. Its images differ by the unsynced writes, and by what faults did (`diverged`).

    Attributes:
        name: the last name it had.
        visible, durable: its two images.
        damage: durable bytes that a media fault destroyed and no write has repaired since.
        unreadable: (begin, end, sticky) of bytes that cannot be read.
        diverged: the visible image may differ from the durable one by more than the unsynced writes.
    """

    __slots__ = ("_reserved", "_sizes", "_unsynced", "damage", "diverged", "durable", "name", "unreadable", "visible")

    def __init__(self, name: str, size: int, reserved: int) -> None:
        self.name = name
        self.visible = Image(size)
        self.durable = Image()
        self.damage = ByteRanges()
        self.unreadable: list[tuple[int, int, bool]] = []
        self.diverged = False
        self._reserved = reserved
        self._sizes: list[int] = [size] if size else []  # lengths that it had since the last sync
        self._unsynced: list[tuple[int, bytes, Misplacement | None]] = []

    # What a process does

    def write(self, offset: int, data: bytes, misplacement: Misplacement | None) -> None:
        """Take a write into the page cache."""
        size = self.visible.size
        self.visible.put(offset, data)
        if self.visible.size != size:
            self._sizes.append(self.visible.size)
        self._unsynced.append((offset, data, misplacement))

    def sync(self, misplaced: Misplaced) -> None:
        """Make everything durable, each write where the media put it."""
        self.durable.size = self.visible.size
        self._sizes.clear()
        for offset, data, misplacement in self._unsynced:
            if misplacement is None:
                self._settle(offset, data)
            else:
                misplaced(self, offset, data, misplacement, True)
        self._unsynced.clear()

    def fail_sync(self, random: Random | None, *, keep: bool, misplaced: Misplaced) -> None:
        """Forget what was unsynced, except a part that `random` draws; its bytes stay visible if `keep`."""
        if random is not None:
            self._survive(random, 0.5, PAGE_BYTES, Counter(), misplaced)
        self._unsynced.clear()
        self.diverged = True
        if not keep:
            self.show_durable()

    def is_unreadable(self, begin: int, end: int) -> bool:
        """Tell whether a read meets bad bytes; those that fail only once are good afterwards."""
        met = [bad for bad in self.unreadable if bad[0] < end and begin < bad[1]]
        self.unreadable = [bad for bad in self.unreadable if bad[2] or bad not in met]
        return bool(met)

    # What power cuts and media do

    def crash(
        self, random: Random, survival: float, torn_bytes: int, counts: Counter[str], misplaced: Misplaced
    ) -> None:
        """Add a random part of the unsynced writes to the durable image. `show_durable` must follow."""
        self._survive_size(random, survival, counts)
        self._survive(random, survival, torn_bytes, counts, misplaced)
        self.diverged = self.diverged or bool(self._unsynced)
        self._unsynced.clear()

    def show_durable(self) -> None:
        """Forget the page cache: from now on the durable image is seen, and nothing is unsynced."""
        if self.diverged or self.visible.size != self.durable.size:
            self.visible = self.durable.copy()
        self.diverged = False
        self._unsynced.clear()
        self._sizes.clear()

    def show_durable_range(self, offset: int, length: int) -> None:
        """Read a part of the page cache again from the media, except for what is still to be written there."""
        length = min(length, self.visible.size - offset)
        if length > 0:
            self.visible.poke(offset, self.durable.peek(offset, length))
            for begin, data, _ in self._unsynced:
                self.visible.poke(begin, data)

    def truncate(self, size: int) -> None:
        """Cut both images, and what was on its way behind the end."""
        for image in (self.visible, self.durable):
            if image.size > size:
                image.truncate(size)
        self._sizes = [min(size, known) for known in self._sizes]
        self._reserved = min(size, self._reserved)
        self._unsynced = [
            (offset, data[: size - offset], misplacement)
            for offset, data, misplacement in self._unsynced
            if offset < size
        ]

    def draw_place(self, random: Random, size: int, length: int, avoid: int | None) -> int | None:
        """Draw a multiple of 512 bytes within `size` where `length` bytes fit, half the time one with data."""
        last = (size - length) // SECTOR_BYTES
        if last < 0 or (last == 0 and avoid == 0):
            return None
        written = [(begin, min(end, size - length + 1)) for begin, end in self.durable.ranges]
        written = [(begin, end) for begin, end in written if begin < end]
        place = random.randrange(last + 1)
        if written and random.random() < 0.5:
            begin, end = random.choice(written)
            place = random.randrange(begin, end) // SECTOR_BYTES
        if place * SECTOR_BYTES == avoid:
            place = (place + 1) % (last + 1)
        return place * SECTOR_BYTES

    # Room

    def room(self) -> int:
        """Bytes of disk space that this file takes up."""
        reserved = self._reserved
        return reserved + sum(max(0, end - max(begin, reserved)) for begin, end in self.visible.ranges)

    def fitting(self, offset: int, length: int, free: int) -> int:
        """How many of `length` bytes can be written at `offset` with `free` bytes of disk space left."""
        for begin, end in self.visible.ranges.gaps(max(offset, self._reserved), offset + length):
            if end - begin > free:
                return begin + max(0, free) - offset
            free -= end - begin
        return length

    # Inner parts

    def _settle(self, offset: int, data: bytes) -> None:
        self.durable.put(offset, data)
        if self.damage:
            self.damage.remove(offset, offset + len(data))

    def _survive_size(self, random: Random, survival: float, counts: Counter[str]) -> None:
        if not self._sizes:
            return
        choices = [self.durable.size, *self._sizes]
        size = choices[-1] if survival and random.random() < survival else choices[0]
        if 0.0 < survival < 1.0 and len(choices) > 2 and random.random() < 0.5:
            size = random.choice(choices)
        if size < choices[-1]:
            counts["lost_length"] += 1
        self.durable.size = size
        self._sizes.clear()

    def _survive(
        self, random: Random, survival: float, torn_bytes: int, counts: Counter[str], misplaced: Misplaced
    ) -> None:
        """Make a random part of the unsynced writes durable, within the size that is."""
        lost = False
        for offset, data, misplacement in self._unsynced:
            kept = 0
            for begin, end in _surviving_parts(random, survival, torn_bytes, offset, len(data)):
                part = data[begin : min(end, max(begin, self.durable.size - offset))]
                if not part:
                    continue
                kept += len(part)
                if misplacement is None:
                    self._settle(offset + begin, part)
                else:
                    there = misplacement._replace(offset=misplacement.offset + begin)
                    misplaced(self, offset + begin, part, there, False)
            if kept and lost:
                counts["reordered_write"] += 1
            if kept < len(data):
                counts["torn_write" if kept else "unsynced_write_lost"] += 1
            lost = lost or not kept


def _surviving_parts(
    random: Random, survival: float, torn_bytes: int, offset: int, length: int
) -> Iterator[tuple[int, int]]:
    """Parts (begin, end) of one unsynced write that a power cut leaves: all of it, none of it, or torn."""
    if survival in (0.0, 1.0) or random.random() < 0.5:
        if survival == 1.0 or (survival and random.random() < survival):
            yield 0, length
        return
    for begin, end in _pieces(random, torn_bytes, offset, length):
        if random.random() < survival:
            yield begin, end


def _pieces(random: Random, torn_bytes: int, offset: int, length: int) -> Iterator[tuple[int, int]]:
    """Pieces that are written whole or not at all; a write that may tear anywhere does so at a few random bytes."""
    if torn_bytes == 1:
        cuts = sorted(random.randrange(length + 1) for _ in range(random.randint(1, _CUTS_MAX)))
    else:
        cuts = list(range(torn_bytes - offset % torn_bytes, length, torn_bytes))
    begin = 0
    for end in [*cuts, length]:
        if begin < end:
            yield begin, end
        begin = end
