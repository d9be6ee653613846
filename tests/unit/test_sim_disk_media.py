"""Faults of a simulated disk's media: nobody is told when they happen, and the disk knows what they destroyed."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from disk_helpers import content, disk_with, durable
from fastpaxos.testing.disk import DiskFault, SimDisk

LOST = 0.0
SEEDS = 200


@pytest.mark.parametrize("cached", [False, True])
def test_a_flipped_bit(cached: bool) -> None:
    disk = disk_with(b"\x01" * 100)
    assert disk.corrupt("a", 7, 2, cached=cached) == DiskFault("bit_flip", "a", 7, 1)
    assert disk.read("a", 6, 3) == (b"\x01\x01\x01" if cached else b"\x01\x03\x01")
    assert disk.untrusted_ranges("a") == [(7, 8)]
    disk.crash(Random(1), LOST)
    assert disk.read("a", 6, 3) == b"\x01\x03\x01"
    with pytest.raises(ValueError, match="not durable"):
        disk.corrupt("a", disk.size("a"))
    disk.write("a", 0, [b"\x01" * 20])
    assert disk.untrusted_ranges("a") == [(7, 8)]
    disk.sync("a")
    assert disk.untrusted_ranges("a") == []


def test_rot_under_an_unsynced_write_is_not_seen_and_is_repaired_by_its_sync() -> None:
    disk = disk_with(b"old" * 10)
    disk.write("a", 0, [b"new"])
    disk.corrupt("a", 1)
    assert disk.read("a", 0, 3) == b"new"
    disk.sync("a")
    assert durable(disk)[:3] == b"new"


@pytest.mark.parametrize("cached", [False, True])
def test_a_zeroed_page(cached: bool) -> None:
    disk = disk_with(b"x" * 10000, size=0)
    assert disk.zero_page("a", 5000, cached=cached) == DiskFault("zero_page", "a", 4096, 4096)
    assert disk.zero_page("a", 9999, cached=cached) == DiskFault("zero_page", "a", 8192, 1808)
    damaged = b"x" * 4096 + bytes(5904)
    assert content(disk) == (b"x" * 10000 if cached else damaged)
    assert durable(disk) == damaged
    assert disk.written_ranges("a") == [(0, 10000)]


def test_a_truncated_file() -> None:
    disk = disk_with(b"x" * 1000, size=0)
    disk.write("a", 400, [b"y" * 700])
    assert disk.truncate("a", 500) == DiskFault("truncated", "a", 500, 600)
    disk.crash(Random(1), 1.0)
    assert content(disk) == b"x" * 400 + b"y" * 100
    disk.create("b", 1000)
    disk.truncate("b", 300)
    assert disk.used_bytes() == 800


@pytest.mark.parametrize("cached", [False, True])
def test_a_lost_write_is_acknowledged_and_nowhere(cached: bool) -> None:
    disk = disk_with(b"o" * 1024)
    disk.lose_next_write(cached=cached)
    disk.write("a", 0, [b"n" * 512])
    disk.write("a", 512, [b"2" * 512])
    assert disk.faults == []
    disk.sync("a")
    assert disk.faults == [DiskFault("lost_write", "a", 0, 512)]
    assert disk.read("a", 0, 1024) == (b"n" if cached else b"o") * 512 + b"2" * 512
    disk.sync("a")
    disk.crash(Random(1), 1.0)
    assert disk.read("a", 0, 1024) == b"o" * 512 + b"2" * 512
    assert disk.untrusted_ranges("a") == [(0, 512)]


def test_a_lost_write_that_is_written_again_is_there() -> None:
    disk = disk_with(b"o" * 1024)
    disk.lose_next_write()
    disk.write("a", 0, [b"n" * 512])
    disk.write("a", 0, [b"2" * 512])
    disk.sync("a")
    assert durable(disk)[:512] == b"2" * 512
    assert disk.untrusted_ranges("a") == []


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("other_file", [False, True])
def test_a_misdirected_write_hits_another_place(cached: bool, other_file: bool) -> None:
    places = Counter[int]()
    for seed in range(SEEDS):
        disk = disk_with(b"o" * 2048, size=8192)
        disk.create("b", 8192)
        disk.sync("b")
        disk.sync_directory()
        disk.misdirect_next_write(Random(seed), other_file=other_file, cached=cached)
        disk.write("a", 1024, [b"n" * 1024])
        seen, target = content(disk), "b" if other_file else "a"
        assert seen == b"o" * 1024 + b"n" * 1024 + bytes(6144)
        disk.sync("a")
        overwritten, right = disk.faults
        assert overwritten == DiskFault("overwritten", target, overwritten.offset, 1024)
        assert right == DiskFault("misdirected_write", "a", 1024, 1024)
        place = overwritten.offset
        assert place % 512 == 0
        assert 0 <= place <= 8192 - 1024
        assert other_file or place != 1024
        expected = {"a": bytearray(b"o" * 2048 + bytes(6144)), "b": bytearray(8192)}
        expected[target][place : place + 1024] = b"n" * 1024
        if cached:
            assert content(disk) == seen
            assert content(disk, "b") == bytes(8192)
        else:
            assert {name: content(disk, name) for name in disk.list()} == expected
        disk.crash(Random(seed))
        assert {name: content(disk, name) for name in disk.list()} == expected
        assert (place, place + 1024) in disk.untrusted_ranges(target) or not other_file
        places[place] += 1
    assert len(places) == (15 if other_file else 14)


def test_a_misdirected_write_prefers_places_with_data() -> None:
    hits = 0
    for seed in range(SEEDS):
        disk = disk_with(b"o" * 2048, size=1 << 20)
        disk.misdirect_next_write(Random(seed))
        disk.write("a", 1024, [b"n" * 512])
        disk.sync("a")
        hits += disk.faults[0].offset < 2048
    assert SEEDS // 3 < hits < SEEDS * 2 // 3


def test_a_misdirected_write_that_fits_nowhere_else_is_lost() -> None:
    disk = disk_with(b"o" * 512, size=512)
    disk.misdirect_next_write(Random(1))
    disk.write("a", 0, [b"n" * 512])
    disk.sync("a")
    assert disk.faults == [DiskFault("lost_write", "a", 0, 512)]
    assert durable(disk) == b"o" * 512


def test_an_unsynced_misdirected_write_that_survives_a_crash_destroys_only_where_it_lands() -> None:
    data = b"1" * 512 + b"2" * 512
    lengths: Counter[int] = Counter()
    for seed in range(SEEDS):
        disk = disk_with(b"o" * 2048, size=4096)
        disk.misdirect_next_write(Random(seed))
        disk.write("a", 0, [data])
        synced = disk.copy()
        synced.sync("a")
        place = synced.faults[0].offset
        disk.crash(Random(seed), 0.5, torn_bytes=512)
        expected = bytearray(b"o" * 2048 + bytes(2048))
        for kind, name, offset, length in disk.faults:
            assert (kind, name) == ("overwritten", "a")
            expected[offset : offset + length] = data[offset - place : offset - place + length]
        assert content(disk) == expected
        lengths[sum(fault.length for fault in disk.faults)] += 1
    assert sorted(lengths) == [0, 512, 1024]


def test_a_misdirected_write_does_not_bring_back_a_length_that_a_crash_lost() -> None:
    sizes: Counter[int] = Counter()
    for seed in range(SEEDS):
        disk = disk_with(b"o" * 512, size=512)
        disk.write("a", 7680, [b"e" * 512])
        disk.misdirect_next_write(Random(seed))
        disk.write("a", 0, [b"n" * 512])
        disk.crash(Random(seed), 0.5)
        sizes[disk.size("a")] += 1
    assert sorted(sizes) == [512, 8192]


def test_whole_disk_loss() -> None:
    disk = disk_with()
    disk.create("b")
    disk.fail_next_sync("keep")
    disk.wipe()
    assert disk.list() == []
    assert disk.faults == [DiskFault("wiped", "", 0, 0)]
    disk.create("a")
    disk.sync("a")
    disk.crash(Random(1), LOST)
    assert disk.list() == []


def test_heal_disarms_everything() -> None:
    disk = disk_with()
    disk.fail_next_sync("keep")
    disk.fail_next_directory_sync("keep")
    disk.fail_next("write")
    disk.fail_next("create")
    disk.fail_reads("a", 0, 1)
    disk.lose_next_write()
    disk.capacity_bytes = 0
    disk.heal()
    disk.create("b", 10)
    disk.write("b", 0, [b"x"])
    disk.sync("b")
    disk.sync_directory()
    disk.read("a", 0, 1)
    assert durable(disk, "b") == b"x" + bytes(9)
    assert disk.faults == []


def test_written_ranges_are_those_on_the_media() -> None:
    disk = SimDisk()
    disk.create("a", 1 << 30)
    disk.write("a", 0, [b"x" * 1024])
    disk.write("a", 1024, [b"x" * 512])
    disk.write("a", 8192, [b"x" * 512])
    assert disk.written_ranges("a") == []
    disk.sync("a")
    assert disk.written_ranges("a") == [(0, 1536), (8192, 8704)]
