"""What is on the disk does not stay in the page cache."""

from __future__ import annotations

import ctypes
import mmap
import os
import select
from pathlib import Path

import pytest

from fastpaxos.directory import OsDirectory
from fastpaxos_core.block import build_block
from fastpaxos_core.journal_writer import JournalWriter
from journal_model import open_journal

MIB = 1 << 20
SEGMENT_BYTES = 32 * MIB
WAIT_SECONDS = 20
LIBC = ctypes.CDLL(None, use_errno=True)


def cached_bytes(path: Path) -> int:
    """How much of a file is in the page cache."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        pages = -(-len(mapped) // mmap.PAGESIZE)
        vector = (ctypes.c_ubyte * pages)()
        begin = ctypes.c_char.from_buffer(mapped)
        try:
            if LIBC.mincore(ctypes.byref(begin), ctypes.c_size_t(len(mapped)), vector):
                raise OSError(ctypes.get_errno(), "mincore")
        finally:
            del begin
        return sum(page & 1 for page in vector) * mmap.PAGESIZE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder on a file system that drops pages when it is asked to."""
    probe = tmp_path / "probe"
    probe.write_bytes(bytes(4 * MIB))
    with probe.open("r+b") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached_bytes(probe) > MIB:
        pytest.skip("this file system keeps its files in memory")
    probe.unlink()
    return tmp_path


@pytest.mark.parametrize(("durability", "most"), [("fsync", 2 * MIB), ("write", 24 * MIB), ("memory", 24 * MIB)])
def test_the_page_cache_does_not_keep_a_long_journal(folder: Path, durability: str, most: int) -> None:
    journal, _ = open_journal(OsDirectory(folder), 1, SEGMENT_BYTES)
    with JournalWriter(str(folder), durability) as writer:
        for slot in range(1, 2 * 2 * 30):
            journal.append(slot, slot + 1, 1, slot, build_block([bytes(MIB // 2)], 1, slot))
            write = journal.seal(1, slot - 1)
            if durability == "fsync":
                writer.write_inline(write)
            else:
                writer.submit(write)  # on the loop nobody may wait for the disk in these modes
                while not writer.completions():
                    assert select.select([writer], [], [], WAIT_SECONDS)[0], "no completion"
            journal.synced(write.ticket)
            if durability != "fsync" and slot % 8 == 0:
                os.sync()  # the kernel has had time to write
    sizes = {path.name: cached_bytes(path) for path in folder.glob("journal*")}
    assert len(sizes) >= 2
    assert sum(sizes.values()) <= most, sizes
