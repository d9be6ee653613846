"""What a power cut can leave behind: a page cache and a disk, for bytes, sizes and names, fed by recorded system calls.

Every change stays *pending* until a sync that began after it has succeeded. A power cut keeps any subset of the
pending changes; a kept write may be torn. Changes that a failed sync was about stay pending for ever: no later sync
says anything about them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from crash.recording import Event, Kind

SECTOR_BYTES = 512
PAGE_BYTES = 4096
# Nothing is read from it, and nothing is promised about it.
LOCK_NAME = "lock"

Ranges = list[tuple[int, int]]


@dataclass(eq=False, slots=True)
class Change:
    """One change of a file (`size`, or `data` at `offset`) or a folder (name `old` goes, name `new` means `node`)."""

    number: int
    owner: File | Folder
    offset: int = 0
    data: bytes = b""
    size: int | None = None
    old: str | None = None
    new: str | None = None
    node: File | Folder | None = None
    durable: bool = False
    doubtful: bool = False


Choice = Callable[[Change], bool | Ranges]
"""Says of a pending change whether it is on the disk; of data also which half-open ranges of it are."""


def keep_all(change: Change) -> bool:
    """Nothing is lost: what a process sees that starts after another one was killed."""
    return True


@dataclass(eq=False, slots=True)
class File:
    """One inode: the bytes on the disk, and the changes since."""

    base: bytearray = field(default_factory=bytearray)
    changes: list[Change] = field(default_factory=list)
    size: int = 0

    def content(self, choice: Choice) -> bytes:
        if not self.changes:
            return bytes(self.base)
        image = bytearray(self.base)
        for change in self.changes:
            kept = True if change.durable else choice(change)
            if kept is not False:
                put(image, change, [(0, len(change.data))] if kept is True else kept)
        return bytes(image)

    def settle(self) -> None:
        """Fold into the base what is durable, as far as nothing doubtful lies before it."""
        while self.changes and self.changes[0].durable:
            change = self.changes.pop(0)
            put(self.base, change, [(0, len(change.data))])


def put(image: bytearray, change: Change, ranges: Ranges) -> None:
    """Data never makes a file longer: its size is a change of its own."""
    if change.size is not None:
        del image[change.size :]
        image.extend(bytes(change.size - len(image)))
    for begin, end in ranges:
        end = min(end, len(image) - change.offset)
        if begin < end:
            image[change.offset + begin : change.offset + end] = change.data[begin:end]


@dataclass(eq=False, slots=True)
class Folder:
    """One directory: the names on the disk, the names that are seen, and the changes between them."""

    base: dict[str, File | Folder] = field(default_factory=dict)
    seen: dict[str, File | Folder] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)

    def names(self, choice: Choice) -> dict[str, File | Folder]:
        names = self.base.copy()
        for change in self.changes:
            if change.durable or choice(change):
                rename(names, change)
        return names

    def settle(self) -> None:
        while self.changes and self.changes[0].durable:
            rename(self.base, self.changes.pop(0))


def rename(names: dict[str, File | Folder], change: Change) -> None:
    if change.old is not None:
        names.pop(change.old, None)
    if change.new is not None and change.node is not None:
        names[change.new] = change.node


Image = dict[str, bytes | None]
"""{path relative to the root: contents of a file, None for a directory}."""


def fingerprint(image: Image) -> bytes:
    """Names an image: the same bytes under the same names."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(image):
        content = image[path]
        digest.update(f"{path}\0{-1 if content is None else len(content)}\0".encode())
        digest.update(content or b"")
    return digest.digest()


class Disk:
    """A disk under the directory `root`, which itself is durable. `apply` follows the system calls of a recording."""

    def __init__(self, root: str, image: Image | None = None) -> None:
        self.root = root
        self.top = Folder()
        self._nodes: list[File | Folder] = [self.top]
        self._open: dict[int, File | Folder] = {}
        self._syncing: dict[int, int] = {}
        self._number = 0
        for path in sorted(image or {}):
            content = (image or {})[path]
            folder, name = self._locate(path)
            node = Folder() if content is None else File(bytearray(content), size=len(content))
            self._nodes.append(node)
            folder.base[name] = folder.seen[name] = node

    def start_process(self) -> None:
        """The last process is gone, and with it its descriptors."""
        self._open.clear()
        self._syncing.clear()

    # --- following the calls ---

    def apply(self, event: Event) -> bool:
        """Take one event; True when what a power cut can leave has changed."""
        if event.kind == Kind.SYNC_BEGIN:
            self._syncing[event.descriptor] = self._number
            return False
        if event.kind == Kind.SYNC_END:
            return self._sync(event)
        if event.result < 0 and event.kind != Kind.CLOSE:
            return False
        before = self._number
        match event.kind:
            case Kind.OPEN:
                self._open[event.result] = self._opened(event)
            case Kind.CLOSE:
                self._open.pop(event.descriptor, None)
            case Kind.WRITE:
                file = self._file(event)
                end = event.offset + len(event.data)
                if end > file.size:
                    self._resize(file, end)
                self._change(file, offset=event.offset, data=event.data)
            case Kind.TRUNCATE:
                self._resize(self._file(event), event.size)
            case Kind.ALLOCATE:
                file = self._file(event)
                self._resize(file, max(file.size, event.offset + event.size))
            case Kind.MKDIR:
                self._link(self._path(event.descriptor, event.name), Folder())
            case Kind.RENAME:
                self._rename(event)
            case Kind.UNLINK:
                folder, name = self._locate(self._path(event.descriptor, event.name))
                del folder.seen[name]
                self._change(folder, old=name)
        return self._number != before

    def is_folder(self, descriptor: int) -> bool:
        """True when the descriptor is open, and on a directory."""
        return isinstance(self._open.get(descriptor), Folder)

    def _change(self, owner: File | Folder, **what: object) -> None:
        self._number += 1
        owner.changes.append(Change(self._number, owner, **what))  # type: ignore[arg-type]

    def _resize(self, file: File, size: int) -> None:
        if size != file.size:
            file.size = size
            self._change(file, size=size)

    def _file(self, event: Event) -> File:
        file = self._open[event.descriptor]
        assert isinstance(file, File)
        return file

    def _path(self, descriptor: int, name: str) -> str:
        """Of a name, relative to the root."""
        if os.path.isabs(name):
            return os.path.relpath(name, self.root)
        return os.path.join(self._path_of(self._open[descriptor]), name)

    def _path_of(self, node: File | Folder) -> str:
        def search(folder: Folder, path: str) -> Iterator[str]:
            for name, child in folder.seen.items():
                if child is node:
                    yield os.path.join(path, name)
                if isinstance(child, Folder):
                    yield from search(child, os.path.join(path, name))

        return "" if node is self.top else next(search(self.top, ""))

    def _locate(self, path: str) -> tuple[Folder, str]:
        *folders, name = path.split("/")
        folder = self.top
        for part in folders:
            child = folder.seen[part]
            assert isinstance(child, Folder)
            folder = child
        return folder, name

    def _link(self, path: str, node: File | Folder) -> None:
        folder, name = self._locate(path)
        self._nodes.append(node)
        folder.seen[name] = node
        self._change(folder, new=name, node=node)

    def _opened(self, event: Event) -> File | Folder:
        path = self._path(event.descriptor, event.name)
        if path == ".":
            return self.top
        folder, name = self._locate(path)
        if name not in folder.seen:
            assert event.size & os.O_CREAT, f"{event} opened what was never made"
            self._link(path, File())
        node = folder.seen[name]
        if event.size & os.O_TRUNC and isinstance(node, File):
            self._resize(node, 0)
        return node

    def _rename(self, event: Event) -> None:
        old_folder, old = self._locate(self._path(event.descriptor, event.name))
        folder, new = self._locate(self._path(event.descriptor, event.data.decode()))
        assert folder is old_folder, "the journal never renames from one directory to another"
        node = folder.seen.pop(old)
        folder.seen[new] = node
        self._change(folder, old=old, new=new, node=node)

    def _sync(self, event: Event) -> bool:
        if event.result == -errno.EINTR:
            # It has done nothing, and reported nothing.
            return False
        node = self._open[event.descriptor]
        covered = [change for change in node.changes if change.number <= self._syncing[event.descriptor]]
        for change in covered:
            if event.result < 0:
                change.doubtful = True
            elif not change.doubtful:
                change.durable = True
        node.settle()
        return bool(covered)

    # --- what may be left ---

    def pending(self) -> list[Change]:
        """All changes that a power cut may lose, oldest first."""
        lock = self._lock()
        changes = [change for node in self._nodes if node is not lock for change in node.changes if not change.durable]
        return sorted(changes, key=lambda change: change.number)

    def _lock(self) -> File | Folder | None:
        return next(
            (node.seen[LOCK_NAME] for node in self._nodes if isinstance(node, Folder) and LOCK_NAME in node.seen), None
        )

    def image(self, choice: Choice = keep_all) -> Image:
        """The disk after a power cut that kept what `choice` says."""
        image: Image = {}
        lock = self._lock()

        def walk(folder: Folder, path: str) -> None:
            for name, node in folder.names(choice).items():
                if isinstance(node, Folder):
                    image[path + name] = None
                    walk(node, path + name + "/")
                else:
                    image[path + name] = node.content(keep_all if node is lock else choice)

        walk(self.top, "")
        return image


# --- choices ----------------------------------------------------------------------------------------------------------


def torn(rng: random.Random, change: Change, unit: int) -> Ranges:
    """Some of the units of a write, aligned in the file as sectors are: its beginning, its end, or any of them."""
    size = len(change.data)
    if unit == 1:
        begin, end = sorted((rng.randint(0, size), rng.randint(0, size)))
        return rng.choice(([(0, end)], [(begin, size)], [(0, begin), (end, size)]))
    first = change.offset // unit
    count = (change.offset + size - 1) // unit - first + 1
    cut, share = rng.randint(0, count), rng.choice((0.2, 0.5, 0.8))
    keeps: Callable[[int], bool] = rng.choice(
        (lambda number: number < cut, lambda number: number >= cut, lambda number: rng.random() < share)
    )
    return [
        (max(0, (first + number) * unit - change.offset), min(size, (first + number + 1) * unit - change.offset))
        for number in range(count)
        if keeps(number)
    ]


def some(rng: random.Random, changes: list[Change]) -> Choice:
    """Random changes, some of them torn. Names in order within each folder, or each for itself."""
    share = rng.choice((0.2, 0.5, 0.8))
    kept: dict[Change, bool | Ranges] = {}
    for change in changes:
        kept[change] = rng.random() < share
        if change.data and kept[change] and rng.random() < 0.5:
            kept[change] = torn(rng, change, rng.choice((SECTOR_BYTES, PAGE_BYTES, 1)))
    if rng.random() < 0.5:
        lost: set[int] = set()
        for change in changes:
            if isinstance(change.owner, Folder):
                if not kept[change]:
                    lost.add(id(change.owner))
                if id(change.owner) in lost:
                    kept[change] = False
    return lambda change: kept.get(change, True)


def choices(rng: random.Random, changes: list[Change], depth: int) -> Iterator[Choice]:
    """What a power cut may keep of the pending changes; `depth` says how many random ones there are of each kind."""
    yield keep_all
    if not changes:
        return
    yield lambda change: False
    if len(changes) > 1:
        for one in changes:
            yield lambda change, one=one: change is not one  # type: ignore[misc]
            yield lambda change, one=one: change is one  # type: ignore[misc]
    for one in changes:
        for unit in (SECTOR_BYTES, PAGE_BYTES, 1):
            for _ in range(depth if one.data else 0):
                ranges = torn(rng, one, unit)
                yield lambda change, one=one, ranges=ranges: ranges if change is one else True  # type: ignore[misc]
    for _ in range(depth if len(changes) > 1 else 0):
        yield some(rng, changes)
