"""The simulated disk: what is visible, what is durable, what a power cut leaves, and calls that fail."""

from __future__ import annotations

import errno
from collections import Counter
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disk_helpers import content, disk_with, durable, fails
from fastpaxos.testing.disk import DiskFault, SimDisk, SimulatedCrash

LOST = 0.0
SEEDS = 200


# Calls


def test_reads_end_with_the_file_and_unwritten_bytes_are_zero() -> None:
    disk = SimDisk()
    disk.create("a", 1000)
    disk.write("a", 100, [b"x", memoryview(b"yz")])
    assert disk.read("a", 98, 6) == b"\0\0xyz\0"
    assert disk.read("a", 990, 100) == bytes(10)
    assert disk.read("a", 1000, 10) == disk.read("a", 2000, 10) == b""
    disk.write("a", 1100, [b"end"])
    assert disk.size("a") == 1103
    assert disk.read("a", 1000, 200) == bytes(100) + b"end"


def test_names() -> None:
    disk = SimDisk()
    for name in ("b", "a"):
        disk.create(name)
    assert disk.list() == ["a", "b"]
    disk.write("b", 0, [b"moved"])
    disk.rename("b", "a")
    assert (disk.list(), content(disk)) == (["a"], b"moved")
    with fails(errno.EEXIST):
        disk.create("a")
    for call in (disk.size, disk.remove, disk.sync, lambda name: disk.rename(name, "z"), disk.written_ranges):
        with fails(errno.ENOENT):
            call("b")
    disk.remove("a")
    assert disk.list() == []


def test_counters_are_exact() -> None:
    disk = SimDisk()
    disk.create("a", 4096)
    disk.write("a", 0, [b"1234", b"56"])
    disk.write("a", 0, [b"12"])
    disk.sync("a")
    disk.rename("a", "b")
    disk.sync_directory()
    disk.read("b", 0, 10)
    disk.remove("b")
    assert (disk.operations, disk.syncs, disk.directory_syncs, disk.bytes_written) == (7, 1, 1, 8)
    assert disk.fault_counts == Counter()


def test_crash_at_stops_the_operation_of_that_number() -> None:
    disk = disk_with()
    disk.crash_at = disk.operations + 2
    disk.write("a", 0, [b"1"])
    with pytest.raises(SimulatedCrash):
        disk.write("a", 0, [b"2"])
    assert disk.read("a", 0, 1) == b"1"
    disk.crash(Random(1))
    disk.write("a", 0, [b"3"])


# Power cuts


def test_what_is_synced_survives_and_what_is_not_may_be_lost() -> None:
    disk = disk_with(b"old" * 10)
    disk.write("a", 0, [b"new"])
    disk.crash(Random(1), LOST)
    assert disk.read("a", 0, 6) == b"oldold"
    disk.write("a", 0, [b"new"])
    disk.crash(Random(1), 1.0)
    assert disk.read("a", 0, 6) == b"newold"


def test_a_name_needs_a_sync_of_the_directory_and_the_bytes_their_own() -> None:
    disk = SimDisk()
    disk.create("a", 600)
    disk.write("a", 0, [b"x"])
    disk.sync("a")
    image = disk.copy()
    image.crash(Random(1), LOST)
    assert image.list() == []
    disk.create("b", 600)
    disk.write("b", 0, [b"x"])
    disk.sync_directory()
    disk.crash(Random(1), LOST)
    assert {name: content(disk, name) for name in disk.list()} == {"a": b"x" + bytes(599), "b": b""}


@pytest.mark.parametrize("torn_bytes", [1, 512, 4096])
def test_writes_tear_at_the_unit(torn_bytes: int) -> None:
    """Within one unit all bytes are old or all are new, and every boundary between units is one at some time."""
    begin, length = 200, 12000
    boundaries: set[int] = set()
    for seed in range(SEEDS):
        disk = disk_with(b"o" * 16384)
        disk.write("a", begin, [b"n" * length])
        disk.crash(Random(seed), 0.5, torn_bytes=torn_bytes)
        after = content(disk)
        assert after[:begin] + after[begin + length :] == b"o" * (16384 - length)
        boundaries |= {place for place, (left, right) in enumerate(pairwise(after), 1) if left != right}
    inner = boundaries - {begin, begin + length}
    if torn_bytes == 1:
        assert any(place % 512 for place in inner)
    else:
        assert inner == set(range(torn_bytes, begin + length, torn_bytes))


def test_the_unit_is_drawn() -> None:
    torn = set()
    for seed in range(SEEDS):
        disk = disk_with(b"o" * 16384)
        disk.write("a", 0, [b"n" * 16384])
        disk.crash(Random(seed), 0.5)
        after = content(disk)
        places = [place for place, (left, right) in enumerate(pairwise(after), 1) if left != right]
        torn |= {1 if place % 512 else 512 if place % 4096 else 4096 for place in places}
    assert torn == {1, 512, 4096}


def test_unsynced_writes_survive_independently() -> None:
    outcomes: Counter[bytes] = Counter()
    counts: Counter[str] = Counter()
    for seed in range(SEEDS):
        disk = disk_with(b"o" * 2048)
        disk.write("a", 0, [b"1" * 512])
        disk.write("a", 512, [b"2" * 512])
        disk.write("a", 0, [b"3" * 512])
        disk.crash(Random(seed), 0.5, torn_bytes=512)
        outcomes[disk.read("a", 0, 1024)[::512]] += 1
        counts += disk.fault_counts
    assert sorted(outcomes) == sorted(bytes((a, b)) for a in b"o13" for b in b"o2")
    assert min(outcomes.values()) > SEEDS // 20
    assert counts["reordered_write"] > SEEDS // 10
    assert counts["unsynced_write_lost"] > SEEDS


def test_an_unsynced_length_is_lost_or_kept_as_zeros() -> None:
    seen: set[tuple[int, bytes]] = set()
    for seed in range(SEEDS):
        disk = SimDisk()
        disk.create("a", 1024)
        disk.sync_directory()
        disk.write("a", 1024, [b"n" * 512])
        disk.crash(Random(seed), 0.5, torn_bytes=512)
        seen.add((disk.size("a"), content(disk)[1024:]))
    assert seen == {(0, b""), (1024, b""), (1536, bytes(512)), (1536, b"n" * 512)}


def test_a_synced_length_is_never_lost() -> None:
    for seed in range(SEEDS):
        disk = disk_with(size=0)
        disk.write("a", 4096, [b"1"])
        disk.write("a", 8192, [b"2"])
        disk.sync("a")
        disk.crash(Random(seed), 0.5)
        assert disk.size("a") == 8193


def test_changes_to_names_survive_as_a_prefix() -> None:
    seen: set[tuple[str, ...]] = set()
    for seed in range(SEEDS):
        disk = disk_with()
        disk.create("b")
        disk.rename("b", "c")
        disk.remove("a")
        disk.crash(Random(seed), reorder_names=False)
        seen.add(tuple(disk.list()))
    assert seen == {("a",), ("a", "b"), ("a", "c"), ("c",)}


def test_reordered_names_lose_an_earlier_change_but_none_that_a_kept_one_builds_upon() -> None:
    seen: set[tuple[str, ...]] = set()
    counts: Counter[str] = Counter()
    for seed in range(SEEDS):
        disk = disk_with()
        disk.create("b")
        disk.rename("b", "c")
        disk.remove("a")
        disk.create("d")
        disk.crash(Random(seed), reorder_names=True)
        seen.add(tuple(disk.list()))
        counts += disk.fault_counts
    removed = [(), ("b",), ("c",)]
    assert seen == {tuple(sorted((*a, *b, *d))) for a in ((), ("a",)) for b in removed for d in ((), ("d",))}
    assert counts["reordered_names"] > SEEDS // 4
    assert counts["lost_names"] > SEEDS // 2


def test_a_name_that_was_used_again_never_costs_the_file_that_had_it() -> None:
    seen: set[tuple[str, ...]] = set()
    for seed in range(SEEDS):
        disk = disk_with(b"precious", size=0)
        disk.rename("a", "b")
        disk.create("a")
        disk.crash(Random(seed), reorder_names=True)
        seen.add(tuple(disk.list()))
        assert b"precious" in [content(disk, name) for name in disk.list()]
    assert seen == {("a",), ("b",), ("a", "b")}


def test_both_ways_of_losing_names_are_drawn() -> None:
    counts: Counter[str] = Counter()
    for seed in range(SEEDS):
        disk = disk_with()
        for name in ("b", "c", "d"):
            disk.create(name)
        disk.crash(Random(seed))
        counts += disk.fault_counts
    assert 0 < counts["reordered_names"] < counts["lost_names"] < SEEDS


def test_a_file_that_was_removed_or_replaced_comes_back_with_its_durable_bytes() -> None:
    disk = disk_with(b"old", size=0)
    disk.create("b")
    disk.write("b", 0, [b"replacement"])
    disk.sync("b")
    disk.rename("b", "a")
    disk.crash(Random(1), LOST)
    assert (disk.list(), content(disk)) == (["a"], b"old")
    disk.write("a", 0, [b"new"])
    disk.remove("a")
    disk.crash(Random(1), LOST)
    assert content(disk) == b"old"


def test_a_copy_is_independent() -> None:
    disk = disk_with()
    disk.write("a", 0, [b"new"])
    image = disk.copy()
    image.write("a", 0, [b"two"])
    image.create("b")
    image.sync("a")
    assert disk.read("a", 0, 3) == b"new"
    assert disk.list() == ["a"]
    assert durable(disk)[:3] == b"old"
    assert durable(image)[:3] == b"two"


def test_a_crash_is_determined_by_its_generator() -> None:
    def run() -> tuple[bytes, list[DiskFault], Counter[str]]:
        random = Random(7)
        disk = disk_with()
        disk.create("b", 4096)
        for number in range(20):
            if number % 5 == 2:
                disk.misdirect_next_write(random, other_file=bool(number % 2))
            disk.write("a", number * 300, [bytes([number]) * 700])
            if number % 7 == 3:
                disk.sync("a")
        disk.crash(random)
        return content(disk), disk.faults, disk.fault_counts

    assert run() == run()


# Failing syncs


def test_after_a_failed_sync_that_keeps_later_ones_lie() -> None:
    disk = disk_with(b"o" * 8192)
    disk.write("a", 0, [b"n" * 4096])
    disk.fail_next_sync("keep")
    with fails(errno.EIO):
        disk.sync("a")
    assert disk.read("a", 0, 1) == b"n"
    disk.sync("a")
    assert disk.read("a", 0, 1) == b"n"
    assert durable(disk) == b"o" * 8192 + bytes(8192)
    # Only what is written again gets there.
    disk.write("a", 512, [b"N" * 512])
    disk.sync("a")
    disk.crash(Random(1), 1.0)
    assert content(disk) == b"o" * 512 + b"N" * 512 + b"o" * 7168 + bytes(8192)
    assert disk.fault_counts["sync_keep_EIO"] == 1


def test_a_failed_sync_that_reverts_shows_the_durable_bytes() -> None:
    disk = disk_with(b"o" * 1024, size=0)
    disk.write("a", 512, [b"n" * 1024])
    disk.fail_next_sync("revert")
    with fails(errno.EIO):
        disk.sync("a")
    assert content(disk) == b"o" * 1024
    disk.sync("a")
    assert durable(disk) == b"o" * 1024
    disk.write("a", 512, [b"n" * 1024])
    disk.sync("a")
    assert durable(disk) == b"o" * 512 + b"n" * 1024


def test_a_failed_sync_may_have_made_a_part_durable() -> None:
    seen: set[bytes] = set()
    for seed in range(50):
        disk = disk_with(b"o" * 8192)
        disk.write("a", 0, [b"n" * 8192])
        disk.fail_next_sync("keep", Random(seed))
        with fails(errno.EIO):
            disk.sync("a")
        assert content(disk)[:8192] == b"n" * 8192
        seen.add(durable(disk)[:8192:4096])
    assert seen == {b"oo", b"on", b"no", b"nn"}


@pytest.mark.parametrize("kind", ["keep", "revert"])
def test_a_failed_sync_of_the_directory_forgets_names(kind: str) -> None:
    disk = disk_with()
    disk.create("b")
    disk.rename("a", "c")
    disk.fail_next_directory_sync("keep" if kind == "keep" else "revert")
    with fails(errno.EIO):
        disk.sync_directory()
    assert disk.list() == (["b", "c"] if kind == "keep" else ["a"])
    disk.sync_directory()
    image = disk.copy()
    image.crash(Random(1), 1.0)
    assert image.list() == ["a"]
    # A further change writes the directory again, with all names that it shows.
    disk.create("e")
    disk.sync_directory()
    disk.crash(Random(1), LOST)
    assert disk.list() == (["b", "c", "e"] if kind == "keep" else ["a", "e"])


# Failing calls


def test_a_full_disk_takes_a_part_and_goes_on_when_there_is_room() -> None:
    disk = SimDisk(1000)
    disk.create("a")
    disk.write("a", 0, [b"x" * 900])
    with fails(errno.ENOSPC):
        disk.write("a", 850, [b"y" * 300])
    assert content(disk) == b"x" * 850 + b"y" * 150
    assert (disk.used_bytes(), disk.bytes_written) == (1000, 1050)
    with fails(errno.ENOSPC):
        disk.create("b")
    # What has its room already is written still.
    disk.write("a", 0, [b"z" * 1000])
    disk.capacity_bytes = 1100
    disk.create("b", 100)
    with fails(errno.ENOSPC):
        disk.write("b", 100, [b"x"])
    disk.capacity_bytes = 0
    disk.remove("a")
    with fails(errno.ENOSPC):
        disk.write("b", 100, [b"x"])
    disk.heal()
    disk.write("b", 100, [b"x"])
    assert disk.fault_counts == {"write_ENOSPC": 3, "create_ENOSPC": 1}


@pytest.mark.parametrize("preallocates", [True, False])
def test_room_is_taken_by_create_or_by_each_write(preallocates: bool) -> None:
    disk = SimDisk(4096, preallocates=preallocates)
    if preallocates:
        with fails(errno.ENOSPC):
            disk.create("a", 4097)
        assert disk.list() == []
    disk.create("a", 4096 if preallocates else 1 << 20)
    if preallocates:
        assert disk.used_bytes() == 4096
        disk.write("a", 0, [bytes(4096)])
    else:
        assert disk.used_bytes() == 0
        disk.write("a", 1 << 10, [b"x" * 4000])
        with fails(errno.ENOSPC):
            disk.write("a", 1 << 16, [b"x" * 4000])
        assert disk.read("a", 1 << 16, 100) == b"x" * 96 + bytes(4)


def test_what_lies_between_written_ranges_takes_its_room() -> None:
    disk = SimDisk(1000)
    disk.create("a")
    disk.write("a", 100, [b"x" * 100])
    disk.write("a", 300, [b"x" * 100])
    disk.capacity_bytes = 350
    with fails(errno.ENOSPC):
        disk.write("a", 0, [b"y" * 500])
    # The 150 bytes went to [0, 100) and [200, 250); what lies between had its room.
    assert content(disk) == b"y" * 250 + bytes(50) + b"x" * 100
    assert disk.used_bytes() == 350


def test_a_crash_gives_back_the_room_of_what_is_lost() -> None:
    disk = SimDisk(1000)
    disk.create("a")
    disk.sync_directory()
    disk.write("a", 0, [bytes(900)])
    disk.create("b", 100)
    disk.crash(Random(1), LOST)
    assert disk.used_bytes() == 0


def test_any_call_can_fail_once() -> None:
    disk = disk_with()
    before = content(disk)
    disk.fail_next("create", errno.ENOSPC)
    with fails(errno.ENOSPC):
        disk.create("b")
    disk.fail_next("rename")
    with fails(errno.EIO):
        disk.rename("a", "b")
    disk.fail_next("remove", errno.EROFS)
    with fails(errno.EROFS):
        disk.remove("a")
    disk.fail_next("write")
    with fails(errno.EIO):
        disk.write("a", 0, [b"new"])
    assert (disk.list(), content(disk)) == (["a"], before)
    disk.rename("a", "b")
    disk.write("b", 0, [b"new"])


def test_a_failing_write_may_have_written_a_part() -> None:
    lengths = set()
    for seed in range(SEEDS):
        disk = disk_with(b"o" * 10)
        disk.fail_next("write", errno.EIO, Random(seed))
        with fails(errno.EIO):
            disk.write("a", 0, [b"n" * 10])
        after = disk.read("a", 0, 10)
        lengths.add(after.count(b"n"))
        assert after == b"n" * after.count(b"n") + b"o" * after.count(b"o")
    assert lengths == set(range(11))


def test_reads_fail_where_they_meet_bad_bytes() -> None:
    disk = disk_with()
    disk.fail_reads("a", 1000, 24)
    for offset, length in ((1000, 1), (1023, 1), (0, 1001), (0, 4096)):
        with fails(errno.EIO):
            disk.read("a", offset, length)
    assert len(disk.read("a", 0, 1000) + disk.read("a", 1024, 100)) == 1100
    disk.rename("a", "b")
    with fails(errno.EIO):
        disk.read("b", 1000, 1)
    disk.heal()
    disk.read("b", 1000, 1)
    disk.fail_reads("b", 0, 1, sticky=False)
    disk.fail_reads("b", 8, 1, sticky=False)
    disk.read("b", 1, 7)
    with fails(errno.EIO):
        disk.read("b", 0, 1)
    disk.read("b", 0, 1)
    with fails(errno.EIO):
        disk.read("b", 0, 9)


# Against a simple model


class ListOfWrites:
    """The dumb model of one file: for every byte the values it may have after a crash, the last of them visible."""

    def __init__(self, size: int) -> None:
        self.bytes = [[0] for _ in range(size)]
        self.sizes = [0, size]

    def write(self, offset: int, data: bytes) -> None:
        while len(self.bytes) < offset + len(data):
            self.bytes.append([0])
        for place, value in enumerate(data, offset):
            self.bytes[place].append(value)
        self.sizes.append(max(self.sizes[-1], offset + len(data)))

    def visible(self) -> bytes:
        return bytes(values[-1] for values in self.bytes[: self.sizes[-1]])

    def sync(self) -> None:
        self.bytes = [[values[-1]] for values in self.bytes]
        self.sizes = self.sizes[-1:]

    def crash(self, after: bytes) -> None:
        """Check what a crash left, and go on from there."""
        assert len(after) in self.sizes
        for place, value in enumerate(after):
            assert value in self.bytes[place], place
        self.bytes = [[value] for value in after]
        self.sizes = [len(after)]


_STEPS = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 3000), st.integers(1, 2500)),
    st.tuples(st.just("sync"), st.just(0), st.just(0)),
    st.tuples(st.just("crash"), st.integers(0, 1 << 30), st.sampled_from([-1, 0, 50, 100])),
)


@settings(max_examples=150)
@given(size=st.sampled_from([0, 100, 4096]), steps=st.lists(_STEPS, max_size=25))
def test_against_a_list_of_writes(size: int, steps: list[tuple[str, int, int]]) -> None:
    """After a crash every byte is the last durable one or one of the unsynced ones; after a sync it is the last one."""
    disk, model = SimDisk(), ListOfWrites(size)
    disk.create("a", size)
    disk.sync_directory()
    for number, (step, first, second) in enumerate(steps, 1):
        if step == "write":
            data = bytes([number]) * second
            disk.write("a", first, [data[: second // 3], data[second // 3 :]])
            model.write(first, data)
        elif step == "sync":
            disk.sync("a")
            model.sync()
            assert durable(disk) == model.visible()
        else:
            everything = model.visible()
            kept = durable(disk)
            disk.crash(Random(first), None if second < 0 else second / 100)
            model.crash(content(disk))
            if second == 0:
                assert content(disk) == kept
            elif second == 100:
                assert content(disk) == everything
            assert durable(disk) == content(disk)
        assert content(disk) == model.visible()
        assert disk.read("a", 700, 900) == model.visible()[700:1600]
