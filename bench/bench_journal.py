"""Journal: sealing group commits, recovering, reading back. The directory is in memory: no disk is timed."""

from __future__ import annotations

from typing import Any

import pytest

from fastpaxos.directory import MemoryDirectory
from fastpaxos_core.block import build_block
from fastpaxos_core.directory import perform
from fastpaxos_core.journal import Journal

SEGMENT_BYTES = 16 << 20
RECOVERED_WRITES = 200


def journal_of(directory: MemoryDirectory, boot: int = 1) -> tuple[Journal, Any]:
    return Journal.open(directory, node_id=1, incarnation=7, boot=boot, segment_bytes=SEGMENT_BYTES)


@pytest.mark.benchmark(group="journal encode")
@pytest.mark.parametrize("count", [1, 64, 1024, 4096])
def bench_journal_encode(benchmark: Any, count: int) -> None:
    """One batch appended, sealed into a group commit and reported as synced."""
    journal, _ = journal_of(MemoryDirectory())
    block = build_block([b"0123456789abcdef"] * count, 1, 1)
    slot = 1
    sealed = 0

    def encode() -> None:
        nonlocal slot, sealed
        journal.append(slot, slot + count, 65537, slot, block)
        write = journal.seal(65537, slot - 1)
        assert write is not None
        journal.synced(write.ticket)
        slot += count
        sealed += write.nbytes

    benchmark(encode)
    assert sealed >= (slot - 1) // count * len(block)
    benchmark.extra_info["commands_per_second"] = round(count / benchmark.stats.stats.median)


@pytest.mark.benchmark(group="journal recover")
@pytest.mark.parametrize("count", [1, 64, 1024, 4096])
def bench_journal_recover(benchmark: Any, count: int) -> None:
    """Open a journal of 200 group commits, then read all of it back for the state machine."""
    directory = MemoryDirectory()
    journal, _ = journal_of(directory)
    block = build_block([b"0123456789abcdef"] * count, 1, 1)
    for index in range(RECOVERED_WRITES):
        journal.append(index * count + 1, (index + 1) * count + 1, 65537, index, block)
        write = journal.seal(65537, index * count)
        assert write is not None
        perform(directory, write)
        directory.sync(write.segment_name)
        journal.synced(write.ticket)
    boot = 1

    def recover() -> tuple[int, int]:
        nonlocal boot
        boot += 1
        reopened, recovery = journal_of(directory, boot)
        slot = 1
        while slot <= recovery.commit_index:
            read = reopened.locate(slot)
            assert read is not None
            batches = reopened.parse(read, directory.read(read.segment_name, read.offset, read.length))
            slot = batches[-1].slot_end
        return recovery.commit_index, slot

    commit_index, slot = benchmark.pedantic(recover, rounds=10)
    assert commit_index == (RECOVERED_WRITES - 1) * count
    assert slot > commit_index
    benchmark.extra_info["commands_per_second"] = round(commit_index / benchmark.stats.stats.median)
