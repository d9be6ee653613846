"""The key-value machine against a dict, its limits and errors, and the client over a fake."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpaxos import kv
from fastpaxos.kv import (
    CasResult,
    DeleteResult,
    IncrementResult,
    InvalidCommand,
    KeyValue,
    KeyValueClient,
    KeyValueMachine,
    NotAnInteger,
    OutOfRange,
    PutResult,
    SortedKeys,
    prefix_end,
)
from fastpaxos.statemachine import apply_commands
from fastpaxos_core.block import BlockView, build_block
from fastpaxos_core.results import CommandFailure, decode_results
from kv_client import APPLY, QUERY, LocalClient


def apply(machine: KeyValueMachine, command: bytes) -> Any:
    return msgpack.unpackb(machine.apply(command, APPLY))


def scan(machine: KeyValueMachine, start: bytes = b"", end: bytes | None = None, limit: int = 10_000) -> Any:
    return msgpack.unpackb(machine.query(kv.encode_scan(start, end, limit), QUERY))


class Model:
    """The same semantics in the plainest form: key -> [value, create, mod, version]."""

    def __init__(self) -> None:
        self.revision = 0
        self.map: dict[bytes, list[Any]] = {}

    def store(self, key: bytes, value: bytes) -> None:
        self.revision += 1
        old = self.map.get(key)
        created, version = (old[1], old[3] + 1) if old else (self.revision, 1)
        self.map[key] = [value, created, self.revision, version]

    def run(self, name: str, key: bytes, value: bytes, number: int, flag: bool) -> Any:
        old = self.map.get(key)
        if name == "put":
            self.store(key, value)
            return [self.revision, old if flag else None]
        if name == "delete":
            if old is None:
                return [self.revision, False, None]
            self.revision += 1
            del self.map[key]
            return [self.revision, True, old if flag else None]
        if name == "cas":
            swapped = (old[0] if old else None) == (value if flag else None)
            if swapped:
                self.store(key, b"swapped")
            return [self.revision, swapped, self.map.get(key)]
        if name == "cas_revision":
            swapped = (old[2] if old else 0) == number
            if swapped:
                self.store(key, value)
            return [self.revision, swapped, self.map.get(key)]
        try:
            base = int(old[0]) if old else 0
        except ValueError:
            return NotAnInteger
        if not -(2**63) <= base + number < 2**63:
            return OutOfRange
        self.store(key, str(base + number).encode())
        return [self.revision, base + number]


def command_of(name: str, key: bytes, value: bytes, number: int, flag: bool) -> bytes:
    if name == "put":
        return kv.encode_put(key, value, flag)
    if name == "delete":
        return kv.encode_delete(key, flag)
    if name == "cas":
        return kv.encode_compare_and_set(key, value if flag else None, b"swapped")
    if name == "cas_revision":
        return kv.encode_compare_revision_and_set(key, max(0, number), value)
    return kv.encode_increment(key, number)


KEYS = st.sampled_from([b"a", b"ab", b"abc", b"b", b"\x00", b"\xff", b"\xff\xff", b"k" * 40])
VALUES = st.sampled_from([b"", b"x", b"swapped", b"7", b"-3", b"9223372036854775800"])
NUMBERS = st.sampled_from([0, 1, 2, 3, 5, 8, 1000, 2**63 - 1])
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "delete", "cas", "cas_revision", "increment"]),
        KEYS,
        VALUES,
        NUMBERS,
        st.booleans(),
    ),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(OPERATIONS)
def test_agrees_with_a_dict(operations: list[tuple[str, bytes, bytes, int, bool]]) -> None:
    machine, model = KeyValueMachine(), Model()
    for operation in operations:
        expected = model.run(*operation)
        if isinstance(expected, type):
            before = machine.digest()
            with pytest.raises(expected):
                machine.apply(command_of(*operation), APPLY)
            assert machine.digest() == before
        else:
            assert apply(machine, command_of(*operation)) == expected
        assert machine.revision == model.revision
        assert len(machine) == len(model.map)
    assert scan(machine) == [model.revision, [[key, *model.map[key]] for key in sorted(model.map)], None]
    for key in [b"a", b"abc", b"nowhere"]:
        assert msgpack.unpackb(machine.query(kv.encode_get(key), QUERY)) == [model.revision, model.map.get(key)]


@settings(max_examples=60, deadline=None)
@given(OPERATIONS)
def test_batches_and_single_commands_agree(operations: list[tuple[str, bytes, bytes, int, bool]]) -> None:
    commands = [command_of(*operation) for operation in operations] or [b"\xc0"]
    single, batched = KeyValueMachine(), KeyValueMachine()
    expected: list[object] = []
    for command in commands:
        try:
            expected.append(single.apply(command, APPLY))
        except ValueError as error:
            expected.append((type(error).__name__, str(error)))
    blob = apply_commands(batched, BlockView(build_block(commands, 1, 1)), 1, 1)
    results = [
        (result.type_name, result.message) if isinstance(result, CommandFailure) else result
        for result in decode_results(blob, len(commands))
    ]
    assert results == expected
    assert batched.digest() == single.digest()


def test_versions_and_revisions_tell_a_keys_history() -> None:
    machine = KeyValueMachine()
    assert apply(machine, kv.encode_put(b"k", b"1")) == [1, None]
    assert apply(machine, kv.encode_put(b"other", b"1")) == [2, None]
    assert apply(machine, kv.encode_put(b"k", b"2", want_previous=True)) == [3, [b"1", 1, 1, 1]]
    assert msgpack.unpackb(machine.query(kv.encode_get(b"k"), QUERY)) == [3, [b"2", 1, 3, 2]]
    assert apply(machine, kv.encode_delete(b"k", want_previous=True)) == [4, True, [b"2", 1, 3, 2]]
    assert apply(machine, kv.encode_delete(b"k")) == [4, False, None], "a delete of nothing is no change"
    assert apply(machine, kv.encode_put(b"k", b"3")) == [5, None]
    assert msgpack.unpackb(machine.query(kv.encode_get(b"k"), QUERY)) == [5, [b"3", 5, 5, 1]]


@pytest.mark.parametrize(
    "value",
    [b"", b"-", b"+1", b" 1", b"1 ", b"1_0", b"01", b"-0", b"0x1", b"1.0", b"\xd9\xa1", b"9223372036854775808",
     b"-9223372036854775809", b"1\n", b"9" * 30],
)  # fmt: skip
def test_only_plain_decimal_numbers_are_incremented(value: bytes) -> None:
    machine = KeyValueMachine()
    apply(machine, kv.encode_put(b"n", value))
    with pytest.raises(NotAnInteger, match="no signed 64-bit decimal integer"):
        machine.apply(kv.encode_increment(b"n"), APPLY)
    assert machine.revision == 1


def test_increments_end_at_the_signed_64_bit_range() -> None:
    machine = KeyValueMachine()
    assert apply(machine, kv.encode_increment(b"n", 2**63 - 1)) == [1, 2**63 - 1]
    with pytest.raises(OutOfRange, match="9223372036854775808"):
        machine.apply(kv.encode_increment(b"n", 1), APPLY)
    assert apply(machine, kv.encode_increment(b"n", -(2**63))) == [2, -1]
    assert apply(machine, kv.encode_increment(b"n", -(2**63) + 1)) == [3, -(2**63)]
    with pytest.raises(OutOfRange):
        machine.apply(kv.encode_increment(b"n", -1), APPLY)
    assert apply(machine, kv.encode_increment(b"n", 0)) == [4, -(2**63)]
    assert apply(machine, kv.encode_compare_and_set(b"n", b"-9223372036854775808", b"5"))[1] is True


BAD_COMMANDS = [
    b"",
    b"\xc1",
    b"garbage",
    b"\xdd\xff\xff\xff\xff",
    b"\x91" * 3000,
    msgpack.packb([]),
    msgpack.packb({}),
    msgpack.packb({1: 2}),
    msgpack.packb(3),
    msgpack.packb([99]),
    msgpack.packb([True, b"k", b"v", False]),
    msgpack.packb([1.0, b"k", b"v", False]),
    msgpack.packb([[1], b"k", b"v", False]),
    msgpack.packb([kv.GET, b"k"]),
    msgpack.packb([kv.PUT, b"k", b"v"]),
    msgpack.packb([kv.PUT, b"k", b"v", False, 1]),
    msgpack.packb([kv.PUT, "k", b"v", False]),
    msgpack.packb([kv.PUT, b"k", "v", False]),
    msgpack.packb([kv.PUT, b"k", None, False]),
    msgpack.packb([kv.PUT, b"", b"v", False]),
    msgpack.packb([kv.PUT, b"k" * 33, b"v", False]),
    msgpack.packb([kv.PUT, b"k", b"v" * 65, False]),
    msgpack.packb([kv.DELETE, None, False]),
    msgpack.packb([kv.CAS, b"there", 5, b"v"]),
    msgpack.packb([kv.CAS, b"there", b"no", 5]),
    msgpack.packb([kv.CAS, b"there", b"no", b"v" * 65]),
    msgpack.packb([kv.CAS_REVISION, b"k", -1, b"v"]),
    msgpack.packb([kv.CAS_REVISION, b"k", None, b"v"]),
    msgpack.packb([kv.CAS_REVISION, b"k", False, b"v"]),
    msgpack.packb([kv.INCREMENT, b"n", 2**63]),
    msgpack.packb([kv.INCREMENT, b"n", -(2**63), 0]),
    msgpack.packb([kv.INCREMENT, b"n", True]),
    msgpack.packb([kv.INCREMENT, b"n", b"1"]),
    msgpack.packb([kv.PUT, b"k", b"v", False]) + b"\x00",
]
BAD_QUERIES = [
    b"",
    msgpack.packb([kv.PUT, b"k", b"v", False]),
    msgpack.packb([kv.GET]),
    msgpack.packb([kv.GET, "k"]),
    msgpack.packb([kv.GET, b""]),
    msgpack.packb([kv.SCAN, b"", None, 0, False]),
    msgpack.packb([kv.SCAN, b"", None, True, False]),
    msgpack.packb([kv.SCAN, None, None, 1, False]),
    msgpack.packb([kv.SCAN, b"", 1, 1, False]),
    msgpack.packb([kv.SCAN, b"", None, 1]),
]


def test_bad_commands_and_queries_change_nothing() -> None:
    machine = KeyValueMachine(key_bytes_max=32, value_bytes_max=64)
    apply(machine, kv.encode_put(b"there", b"x"))
    before = machine.digest()
    for command in BAD_COMMANDS:
        with pytest.raises(InvalidCommand):
            machine.apply(command, APPLY)
    for request in BAD_QUERIES:
        with pytest.raises(InvalidCommand):
            machine.query(request, QUERY)
    assert machine.digest() == before
    assert scan(machine) == [1, [[b"there", b"x", 1, 1, 1]], None]
    blob = apply_commands(machine, BlockView(build_block([*BAD_COMMANDS, kv.encode_put(b"k", b"v")], 1, 1)), 1, 1)
    *failures, last = decode_results(blob, len(BAD_COMMANDS) + 1)
    assert {failure.type_name for failure in failures if isinstance(failure, CommandFailure)} == {"InvalidCommand"}
    assert len(failures) == len(BAD_COMMANDS)
    assert not isinstance(last, CommandFailure)
    assert msgpack.unpackb(last) == [2, None]


def test_limits_are_inclusive() -> None:
    machine = KeyValueMachine(key_bytes_max=32, value_bytes_max=64)
    assert apply(machine, kv.encode_put(b"k" * 32, b"v" * 64)) == [1, None]
    with pytest.raises(InvalidCommand, match=r"1\.\.32 bytes, got 33"):
        machine.apply(kv.encode_put(b"k" * 33, b""), APPLY)
    with pytest.raises(InvalidCommand, match="at most 64 bytes, got 65"):
        machine.apply(kv.encode_put(b"k", b"v" * 65), APPLY)


def test_scans_respect_bounds_and_pages() -> None:
    machine = KeyValueMachine()
    keys = [b"%03d" % number for number in range(50)]
    for key in reversed(keys):
        apply(machine, kv.encode_put(key, b""))

    def names(*arguments: Any) -> list[bytes]:
        return [entry[0] for entry in scan(machine, *arguments)[1]]

    assert names() == keys
    assert names(b"010", b"013") == [b"010", b"011", b"012"]
    assert names(b"0105", b"0125") == [b"011", b"012"]
    assert names(b"048") == [b"048", b"049"]
    assert names(b"013", b"010") == []
    assert names(b"zzz") == []
    _, page, next_start = scan(machine, b"", None, 7)
    assert [entry[0] for entry in page] == keys[:7]
    assert next_start == keys[7]
    assert scan(machine, b"", b"007", 7)[2] is None, "nothing is left, so there is no next page"
    keys_only = msgpack.unpackb(machine.query(kv.encode_scan(b"045", None, 3, keys_only=True), QUERY))
    assert keys_only == [50, [b"045", b"046", b"047"], b"048"]


def test_a_page_is_limited_in_bytes_but_never_empty() -> None:
    machine = KeyValueMachine()
    for key in (b"a", b"b", b"c", b"d"):
        apply(machine, kv.encode_put(key, bytes(kv.VALUE_BYTES_MAX if key == b"a" else 100_000)))
    pages, start = [], b""
    while start is not None:
        _, page, start = scan(machine, start)
        pages.append([entry[0] for entry in page])
    assert pages == [[b"a"], [b"b", b"c"], [b"d"]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 60)), max_size=200), st.integers(0, 60), st.integers(0, 60))
def test_sorted_keys_agree_with_a_sorted_list(steps: list[tuple[bool, int]], low: int, high: int) -> None:
    class Small(SortedKeys):
        PIECE = 2

    keys, expected = Small(), set()
    for adds, number in steps:
        key = b"%02d" % number
        if adds and key not in expected:
            keys.add(key)
            expected.add(key)
        elif not adds and key in expected:
            keys.remove(key)
            expected.remove(key)
        assert list(keys.range(b"", None)) == sorted(expected)
    start, end = b"%02d" % low, b"%02d" % high
    assert list(keys.range(start, end)) == [key for key in sorted(expected) if start <= key < end]
    assert list(keys.range(start, None)) == [key for key in sorted(expected) if start <= key]


@pytest.mark.parametrize("order", ["ascending", "descending", "shuffled"])
def test_many_keys_stay_sorted_and_pieces_stay_small(order: str) -> None:
    numbers = list(range(20_000))
    if order == "shuffled":
        random.Random(5).shuffle(numbers)
    if order == "descending":
        numbers.reverse()
    keys = SortedKeys()
    for number in numbers:
        keys.add(b"%05d" % number)
    assert list(keys.range(b"", None)) == [b"%05d" % number for number in range(20_000)]
    assert max(len(piece) for piece in keys._pieces) <= 2 * SortedKeys.PIECE
    assert len(keys._pieces) <= 20_000 // SortedKeys.PIECE + 1
    for number in numbers:
        keys.remove(b"%05d" % number)
    assert list(keys.range(b"", None)) == []
    assert keys._pieces == [[]]


def test_equal_states_have_equal_digests_and_others_have_not() -> None:
    def machine_of(*commands: bytes) -> KeyValueMachine:
        machine = KeyValueMachine()
        for command in commands:
            machine.apply(command, APPLY)
        return machine

    one = machine_of(kv.encode_put(b"a", b"1"), kv.encode_put(b"b", b"2"))
    assert one.digest() == machine_of(kv.encode_put(b"a", b"1"), kv.encode_put(b"b", b"2")).digest()
    others = [
        machine_of(),
        machine_of(kv.encode_put(b"b", b"2"), kv.encode_put(b"a", b"1")),
        machine_of(kv.encode_put(b"a", b"1"), kv.encode_put(b"b", b"3")),
        machine_of(kv.encode_put(b"a", b"1"), kv.encode_put(b"c", b"2")),
        machine_of(kv.encode_put(b"a", b"1"), kv.encode_put(b"b", b"2"), kv.encode_put(b"b", b"2")),
        machine_of(kv.encode_put(b"x", b"1"), kv.encode_delete(b"x")),
    ]
    assert len({machine.digest() for machine in [one, *others]}) == len(others) + 1
    assert others[-1].digest() != others[0].digest(), "the revision is part of the state"


SEED_PROGRAM = """
import random
from fastpaxos import kv
from fastpaxos.kv import KeyValueMachine
from fastpaxos.statemachine import ApplyContext, QueryContext
generator, machine, context = random.Random(7), KeyValueMachine(), ApplyContext(1, 1)
for number in range(3000):
    key = b"%d" % generator.randrange(400)
    command = generator.choice([kv.encode_put(key, b"%d" % number), kv.encode_delete(key), kv.encode_increment(key)])
    machine.apply(command, context)
page = machine.query(kv.encode_scan(b"", None, 1000), QueryContext(1, 1))
print(machine.digest(), page.hex())
"""


def test_state_does_not_depend_on_the_hash_seed() -> None:
    outputs = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        completed = subprocess.run(
            [sys.executable, "-c", SEED_PROGRAM],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        outputs.append(completed.stdout)
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) > 1000


@pytest.mark.parametrize(
    ("prefix", "end"),
    [(b"a", b"b"), (b"a\xff", b"b"), (b"\xff", None), (b"\xff\xff", None), (b"", None), (b"ab\xff\xff", b"ac")],
)
def test_prefix_end_bounds_exactly_the_prefix(prefix: bytes, end: bytes | None) -> None:
    assert prefix_end(prefix) == end
    for key in [prefix, prefix + b"\x00", prefix + b"\xff" * 5]:
        assert end is None or key < end


@pytest.fixture
def local() -> LocalClient:
    return LocalClient(KeyValueMachine())


@pytest.fixture
def client(local: LocalClient) -> KeyValueClient:
    return KeyValueClient(local)


async def test_client_reads_what_it_wrote(client: KeyValueClient) -> None:
    assert await client.get(b"k") is None
    assert await client.put(b"k", b"1") == PutResult(revision=1)
    assert await client.put(b"k", b"2", want_previous=True) == PutResult(2, KeyValue(b"k", b"1", 1, 1, 1))
    assert await client.get(b"k") == KeyValue(b"k", b"2", create_revision=1, mod_revision=2, version=2)
    assert await client.increment(b"k", 40) == IncrementResult(3, 42)
    assert await client.increment(b"new") == IncrementResult(4, 1)
    assert await client.delete(b"k", want_previous=True) == DeleteResult(5, True, KeyValue(b"k", b"42", 1, 3, 3))
    assert await client.delete(b"k") == DeleteResult(5, False)


async def test_client_compares_and_sets(client: KeyValueClient) -> None:
    first = await client.compare_and_set(b"k", b"1")
    assert first == CasResult(1, True, KeyValue(b"k", b"1", 1, 1, 1))
    assert await client.compare_and_set(b"k", b"2") == CasResult(1, False, first.current)
    assert (await client.compare_and_set(b"k", b"2", expected=b"1")).swapped
    assert not (await client.compare_and_set(b"k", b"3", expected_revision=1)).swapped
    assert (await client.compare_and_set(b"k", b"3", expected_revision=2)).swapped
    assert (await client.compare_and_set(b"other", b"1", expected_revision=0)).swapped
    assert await client.compare_and_set(b"gone", b"1", expected=b"x") == CasResult(4, False, None)
    with pytest.raises(ValueError, match="not both"):
        await client.compare_and_set(b"k", b"1", expected=b"1", expected_revision=1)


async def test_client_scans_in_pages(client: KeyValueClient, local: LocalClient) -> None:
    items = [(b"key/%04d" % number, b"%d" % number) for number in range(95)]
    results = await client.put_many([*items, (b"kez", b""), (b"kex", b"")])
    assert [result.revision for result in results] == list(range(1, 98))
    found = [entry async for entry in client.scan(b"key/", page_entries=10)]
    assert [(entry.key, entry.value) for entry in found] == items
    assert local.queries == 10
    assert [entry.key async for entry in client.scan(start=b"key/0093", end=b"kez")] == [b"key/0093", b"key/0094"]
    assert len([entry async for entry in client.scan(limit=23, page_entries=10)]) == 23
    assert [entry async for entry in client.scan(limit=0)] == []
    assert [key async for key in client.scan_keys(limit=2)] == [b"kex", b"key/0000"]
    assert [key async for key in client.scan_keys()] == [b"kex", *(key for key, _ in items), b"kez"]
    assert [entry async for entry in client.scan(b"nothing")] == []
    with pytest.raises(ValueError, match="not both"):
        await anext(client.scan(b"a", start=b"b"))


async def test_client_passes_timeouts_and_errors_on(client: KeyValueClient, local: LocalClient) -> None:
    await client.put(b"k", b"text", timeout=1.5)
    await client.get(b"k", timeout=2.5)
    await client.put_many([(b"a", b"b")], timeout=3.5)
    assert [entry.key async for entry in client.scan(timeout=4.5)] == [b"a", b"k"]
    assert local.timeouts == [1.5, 2.5, 3.5, 4.5]
    with pytest.raises(NotAnInteger):
        await client.increment(b"k")
    with pytest.raises(InvalidCommand):
        await client.put(b"k", bytes(kv.VALUE_BYTES_MAX + 1))


async def test_put_many_raises_the_first_error(local: LocalClient) -> None:
    class Failing(LocalClient):
        async def execute_many(self, commands: Sequence[bytes], *, timeout: float | None = None) -> list[Any]:
            return [msgpack.packb([1, None]), InvalidCommand("first"), InvalidCommand("second")]

    with pytest.raises(InvalidCommand, match="first"):
        await KeyValueClient(Failing(local.machine)).put_many([(b"a", b"")] * 3)


async def test_client_takes_views_and_refuses_text(client: KeyValueClient) -> None:
    await client.put(bytearray(b"k"), memoryview(b"v"))  # type: ignore[arg-type]
    found = await client.get(memoryview(b"k"))  # type: ignore[arg-type]
    assert found == KeyValue(b"k", b"v", 1, 1, 1)
    for bad in ("text", None, 3):
        with pytest.raises(TypeError, match="keys and values are bytes"):
            await client.put(b"k", bad)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="keys and values are bytes"):
            await client.get(bad)  # type: ignore[arg-type]
