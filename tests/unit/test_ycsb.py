"""The workloads of `bench ycsb` on a machine in this process, and what its checks must refuse."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import count, islice
from typing import Any

import msgpack
import pytest

from fastpaxos import kv
from fastpaxos.cli import main
from fastpaxos.cli.latency import LatencyHistogram
from fastpaxos.cli.ycsb import bytes_max, count_wrong, describe_rows, expected_records, is_right, split_ycsb_plan
from fastpaxos.cli.ycsb_load import STAMPS_PER_PROCESS, KindResult, WrongAnswer, YcsbLoad, YcsbPlan, YcsbResult
from fastpaxos.cli.ycsb_records import (
    INSERT,
    READ,
    READ_MODIFY_WRITE,
    SCAN,
    SCAN_ENTRIES_MAX,
    UPDATE,
    WORKLOADS,
    RecordForm,
    keys_of,
)
from fastpaxos.kv import KeyValue, KeyValueClient, KeyValueMachine
from kv_client import APPLY, LocalClient

PLAN = YcsbPlan({}, "A", "zipfian", 200, 4, 16, 1, 1, 1.0, 0.0)
FORM = RecordForm(4, 16)


class MeddlingClient(LocalClient):
    """`meddle` is called before each command, and `forge` changes the answers of reads."""

    def __init__(self) -> None:
        super().__init__(KeyValueMachine())
        self.meddle: Callable[[], None] = lambda: None
        self.forge: Callable[[Any], Any] = lambda answer: answer

    async def execute(self, command: bytes, *, timeout: float | None = None) -> bytes:
        self.meddle()
        return await super().execute(command, timeout=timeout)

    async def query(self, request: bytes, *, timeout: float | None = None) -> bytes:
        answer = msgpack.unpackb(await super().query(request, timeout=timeout))
        forged: bytes = msgpack.packb(self.forge(answer))
        return forged


def loaded_client() -> tuple[MeddlingClient, KeyValueClient]:
    client = MeddlingClient()
    typed = KeyValueClient(client)
    asyncio.run(typed.put_many(FORM.loaded(PLAN.records)))
    return client, typed


def entries_of(client: KeyValueClient) -> list[KeyValue]:
    async def read() -> list[KeyValue]:
        return [entry async for entry in client.scan(b"user")]

    return asyncio.run(read())


def repeat(load: YcsbLoad, kind: str, client: KeyValueClient, times: int = 1) -> int:
    """Run one kind of operation; return what the last one gave."""

    async def run() -> int:
        given = 0
        for _ in range(times):
            given = await load.operations[kind](client)
        return given

    return asyncio.run(run())


# Records


def test_keys_are_different_and_of_one_size() -> None:
    keys = list(keys_of(range(5_000)))
    assert len(set(keys)) == 5_000
    assert {len(key) for key in keys} == {24}
    assert keys != sorted(keys)
    assert list(islice(keys_of(count(3, 2)), 2_000)) == list(keys_of(range(3, 4_003, 2)))


def test_content_follows_from_the_stamp() -> None:
    contents = [FORM.record(stamp) for stamp in (0, 1, 65_536, STAMPS_PER_PROCESS, STAMPS_PER_PROCESS + 65_536)]
    assert len(set(contents)) == 5
    assert {len(content) for content in contents} == {FORM.record_bytes} == {64}
    assert RecordForm(4, 16).record(65_536) == contents[2]
    with pytest.raises(ValueError, match="needs 8 bytes"):
        RecordForm(1, 7)


@pytest.mark.parametrize("stamp", range(8))
def test_a_new_field_leaves_the_others(stamp: int) -> None:
    before = FORM.record(99)
    after = FORM.with_new_field(before, stamp)
    fields = [(before[begin : begin + 16], after[begin : begin + 16]) for begin in range(0, 64, 16)]
    assert len(after) == 64
    assert [old != new for old, new in fields] == [number == stamp % 4 for number in range(4)]


# Mixes


def test_core_workloads_are_those_of_ycsb() -> None:
    assert list(WORKLOADS) == ["A", "B", "C", "F", "D", "E"]
    assert {name: dict(workload.mix) for name, workload in WORKLOADS.items()} == {
        "A": {READ: 50, UPDATE: 50},
        "B": {READ: 95, UPDATE: 5},
        "C": {READ: 100},
        "D": {READ: 95, INSERT: 5},
        "E": {SCAN: 95, INSERT: 5},
        "F": {READ: 50, READ_MODIFY_WRITE: 50},
    }
    assert {name for name, workload in WORKLOADS.items() if workload.distribution == "latest"} == {"D"}


@pytest.mark.parametrize("name", WORKLOADS)
def test_operations_come_in_their_shares(name: str) -> None:
    load = YcsbLoad(replace(PLAN, workload=name))
    found = Counter(load.next_kind() for _ in range(20_000))
    mix = WORKLOADS[name].mix
    assert set(found) == set(mix)
    # Five standard deviations of a share of one half.
    assert all(abs(found[kind] / 20_000 - percent / 100) < 5 * 0.5 / 20_000**0.5 for kind, percent in mix.items())


def test_load_processes_share_the_sessions_and_insert_different_records() -> None:
    plans = split_ycsb_plan(replace(PLAN, clients=5), 3)
    assert [(part.clients, part.process, part.processes) for part in plans] == [(2, 0, 3), (2, 1, 3), (1, 2, 3)]
    _, client = loaded_client()
    inserted = []
    for part in plans:
        load = YcsbLoad(part)
        repeat(load, INSERT, client, times=4)
        inserted += load.inserted
    assert sorted(inserted) == list(range(200, 212))
    assert len({entry.value for entry in entries_of(client)}) == 212


# Operations, and that what they leave is what the check expects


@pytest.mark.parametrize("distribution", ["zipfian", "uniform", "latest"])
def test_what_was_acknowledged_is_what_the_check_expects(distribution: str) -> None:
    _, client = loaded_client()
    load = YcsbLoad(replace(PLAN, distribution=distribution))
    for _ in range(30):
        for kind in (READ, UPDATE, INSERT, SCAN, READ_MODIFY_WRITE):
            repeat(load, kind, client)
    load.result.written = [[number, *known] for number, known in load.written.items()]
    entries = entries_of(client)
    expected = expected_records(PLAN, [load.result])
    assert len(entries) == len(expected) == 230
    assert count_wrong(entries, expected) == 0
    assert sum(entry.version for entry in entries) == PLAN.records + load.result.changes == 290
    # A lost change, a lost record, one too many and changed content are all seen.
    first = entries[0]
    assert count_wrong(entries[1:], expected) == 1
    assert count_wrong([*entries, replace(first, key=b"user-other")], expected) == 1
    assert count_wrong([replace(first, mod_revision=first.mod_revision - 1), *entries[1:]], expected) == 1
    assert count_wrong([replace(first, value=bytes(64)), *entries[1:]], expected) == 1


def test_the_last_change_of_all_processes_counts() -> None:
    results = [YcsbResult(written=[[5, 300, 1], [7, 310, 2]]), YcsbResult(written=[[5, 299, 3], [201, 320, 4]])]
    expected = expected_records(PLAN, results)
    keys = list(keys_of([5, 7, 201]))
    assert [expected[key] for key in keys] == [(300, 1), (310, 2), (320, 4)]
    assert len(expected) == 201


def test_a_scan_gives_up_to_its_limit_in_order() -> None:
    _, client = loaded_client()
    load = YcsbLoad(replace(PLAN, distribution="uniform"))
    given = [repeat(load, SCAN, client) for _ in range(200)]
    assert 1 <= min(given) < 20
    assert 60 < max(given) <= SCAN_ENTRIES_MAX


def test_a_swap_that_another_session_forestalls_is_tried_again() -> None:
    raw, client = loaded_client()
    load = YcsbLoad(PLAN)
    others = 3

    def meddle() -> None:
        nonlocal others
        if others:
            others -= 1
            for key, value in FORM.loaded(PLAN.records):
                raw.machine.apply(kv.encode_put(key, value), APPLY)

    raw.meddle = meddle
    repeat(load, READ_MODIFY_WRITE, client)
    assert (load.result.retries, load.result.changes) == (3, 1)
    ((number, (revision, _)),) = load.written.items()
    found = asyncio.run(client.get(next(keys_of([number]))))
    assert found is not None
    assert (found.mod_revision, found.version) == (revision, 5)
    others = 1
    repeat(YcsbLoad(replace(PLAN, write_back="put")), READ_MODIFY_WRITE, client)
    assert others == 0
    assert load.result.retries == 3


@pytest.mark.parametrize(
    ("forged", "message"),
    [
        (None, "is missing"),
        ([b"short", 1, 900, 9], "has 5 bytes, not 64"),
        ([bytes(64), 1, 200, 1], "after 201 was known"),
        ([bytes(64), 1, 201, 2], "does not hold at revision 201"),
    ],
)
def test_answers_that_contradict_what_was_acknowledged_are_refused(forged: Any, message: str) -> None:
    raw, client = loaded_client()
    # One record only, so that the read is of what was updated.
    load = YcsbLoad(replace(PLAN, records=1))
    repeat(load, UPDATE, client)
    assert repeat(load, READ, client) == 0
    raw.forge = lambda answer: [answer[0], forged]
    with pytest.raises(WrongAnswer, match=message):
        repeat(load, READ, client)


def test_a_scan_that_leaves_out_its_first_record_is_refused() -> None:
    raw, client = loaded_client()
    raw.forge = lambda answer: [answer[0], answer[1][1:], answer[2]]
    with pytest.raises(WrongAnswer, match="is missing"):
        repeat(YcsbLoad(PLAN), SCAN, client)


# The report


def test_rows_join_load_processes_and_kinds() -> None:
    histogram = LatencyHistogram()
    histogram.record([2_000] * 10)
    part = KindResult(measured=10, errors=1, latency=histogram.to_sparse())
    results = [YcsbResult.from_map(YcsbResult(kinds={READ: part, UPDATE: part}).to_map()) for _ in range(2)]
    rows = describe_rows(replace(PLAN, seconds=2.0), results)
    assert [(row["kind"], row["operations"], row["operations_per_second"], row["errors"]) for row in rows] == [
        (READ, 20, 10, 2),
        (UPDATE, 20, 10, 2),
        ("all", 40, 20, 4),
    ]
    assert all(row["latency_us"]["p50"] == pytest.approx(2.0, rel=0.01) for row in rows)


def test_anything_wrong_is_a_failure() -> None:
    right = {"wrong": 0, "changes": 7, "acknowledged": 7, "digests_equal": True}
    assert is_right(0, right)
    assert not is_right(1, right)
    for wrong in ({"wrong": 1}, {"changes": 6}, {"changes": 8}, {"digests_equal": False}):
        assert not is_right(0, right | wrong)


def test_room_grows_with_what_is_loaded() -> None:
    assert bytes_max(replace(PLAN, records=1_000_200), 3) - bytes_max(PLAN, 3) == 3 * 1_000_000 * (64 + 128)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--workload", "G"), "'G' is not one of"),
        (("--clients", "2", "--load-processes", "3"), "load processes"),
        (("--fields", "100", "--field-bytes", "6000"), "exceeds 524288 bytes"),
        (("--field-bytes", "7"), "7 is not in the range"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_misuse_is_explained(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(("bench", "ycsb", *arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
