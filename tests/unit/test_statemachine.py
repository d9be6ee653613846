"""How a node drives a state machine: results, errors, slices, queries, loading by name."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpaxos.hashchain import HashChain
from fastpaxos.kv import KeyValueMachine
from fastpaxos.statemachine import (
    BATCH_RESULT_BYTES_MAX,
    QUERY_RESULT_BYTES_MAX,
    ApplyContext,
    BatchRun,
    NoSnapshotError,
    QueryContext,
    ResultBlob,
    StateMachine,
    apply_commands,
    cut_text,
    load_machine,
    query_machine,
)
from fastpaxos_core.block import BlockView, build_block
from fastpaxos_core.errors import ConfigError
from fastpaxos_core.results import CommandFailure, decode_results, encode_results
from fastpaxos_core.wire import ReplyStatus

COMMANDS = [b"one", b"two", b"three"]


def view_of(commands: list[bytes]) -> BlockView:
    return BlockView(build_block(commands, 7, 1))


def plain(results: list[bytes | CommandFailure]) -> list[object]:
    """Results in a form that compares by value."""
    return [result if isinstance(result, bytes) else (result.type_name, result.message) for result in results]


def run(machine: StateMachine, commands: list[bytes] = COMMANDS, slot_begin: int = 10, now_ns: int = 5) -> list[object]:
    return plain(decode_results(apply_commands(machine, view_of(commands), slot_begin, now_ns), len(commands)))


class Each(StateMachine):
    """Applies with a function and remembers what the contexts said."""

    def __init__(self, function: Callable[[bytes], Any]) -> None:
        self.function = function
        self.seen: list[tuple[int, int, int, int]] = []

    def apply(self, command: bytes, context: ApplyContext) -> Any:
        self.seen.append((context.slot, context.slot_begin, context.applied_index, context.now_ns))
        return self.function(command)

    def query(self, request: bytes, context: QueryContext) -> Any:
        return self.function(request)


class Batch(StateMachine):
    """Answers a whole batch with what a function gives."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def apply_batch(self, batch: BlockView, context: ApplyContext) -> Any:
        return self.function(batch)


class Clock:
    """A clock that only the machine under test moves."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


def test_apply_gets_every_command_with_its_context() -> None:
    machine = Each(bytes.upper)
    assert run(machine) == [b"ONE", b"TWO", b"THREE"]
    assert machine.seen == [(10, 10, 9, 5), (11, 10, 10, 5), (12, 10, 11, 5)]


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_any_bytes_like_result_will_do(make: Callable[[bytes], Any]) -> None:
    assert run(Each(make)) == COMMANDS
    assert run(Batch(lambda batch: [make(command) for command in batch])) == COMMANDS


@pytest.mark.parametrize("result", [None, "text", 3, [b"list"]])
def test_other_results_are_failures_of_their_command(result: Any) -> None:
    machine = Each(lambda command: result if command == b"two" else command)
    name = type(result).__name__
    failure = ("TypeError", f"apply must return a bytes-like result, not {name}")
    assert run(machine) == [b"one", failure, b"three"]


def raise_on(command_to_fail: bytes, error: BaseException) -> Callable[[bytes], bytes]:
    def function(command: bytes) -> bytes:
        if command == command_to_fail:
            raise error
        return command

    return function


def test_an_exception_is_the_result_of_its_command_alone() -> None:
    assert run(Each(raise_on(b"two", KeyError("gone")))) == [b"one", ("KeyError", "'gone'"), b"three"]
    assert run(Each(raise_on(b"one", StopIteration("odd")))) == [("StopIteration", "odd"), b"two", b"three"]


class UnreadableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


def test_messages_are_cut_and_always_readable() -> None:
    (_, long, _) = run(Each(raise_on(b"two", ValueError("é" * 2000))))
    assert long == ("ValueError", "é" * 512)
    (_, odd, _) = run(Each(raise_on(b"two", ValueError("lone \ud800"))))
    assert odd == ("ValueError", "lone \\ud800")
    (_, unreadable, _) = run(Each(raise_on(b"two", UnreadableError())))
    assert unreadable == ("UnreadableError", "(the message of this exception cannot be read)")
    assert cut_text("aé", 2) == "a"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RecursionError(),
        OSError("disk"),
        TimeoutError(),
        KeyboardInterrupt(),
        SystemExit(),
        GeneratorExit(),
    ],
)
def test_errors_of_the_process_stop_the_node(error: BaseException) -> None:
    with pytest.raises(type(error)):
        run(Each(raise_on(b"two", error)))
    with pytest.raises(type(error)):
        run(Batch(lambda batch: [raise_on(b"two", error)(command) for command in batch]))
    with pytest.raises(type(error)):
        query_machine(Each(raise_on(b"two", error)), b"two", QueryContext(1, 1))


def test_a_failing_batch_fails_every_command() -> None:
    def function(batch: Any) -> Any:
        raise ValueError("no")

    assert run(Batch(function)) == [("ValueError", "no")] * 3

    def generator(batch: Any) -> Iterator[bytes]:
        yield b"first"
        raise ValueError("later")

    assert run(Batch(generator)) == [("ValueError", "later")] * 3


def test_a_batch_may_fail_single_commands() -> None:
    machine = Batch(lambda batch: [b"fine", CommandFailure("Odd", "x" * 5000), b"fine"])
    assert run(machine) == [b"fine", ("Odd", "x" * 1024), b"fine"]


@pytest.mark.parametrize("given_results", [[], [b"1", b"2"], [b"1"] * 4, [b"1"] * 50])
@pytest.mark.parametrize("kind", [list, tuple, iter])
def test_a_wrong_number_of_results_fails_every_command(given_results: list[bytes], kind: Callable[[Any], Any]) -> None:
    number = len(given_results) if len(given_results) < 3 else "more"
    failure = ("ValueError", f"apply_batch gave {number} results for 3 commands")
    assert run(Batch(lambda batch: kind(given_results))) == [failure] * 3


@pytest.mark.parametrize("returned", [None, b"123", "123", bytearray(b"123"), {b"1", b"2", b"3"}, {1: 2}, 3])
def test_a_batch_result_of_another_kind_fails_every_command(returned: Any) -> None:
    name = type(returned).__name__
    failure = ("TypeError", f"apply_batch must return a sequence of results, not {name}")
    assert run(Batch(lambda batch: returned)) == [failure] * 3


def test_an_endless_generator_is_left_after_one_result_too_many() -> None:
    taken: list[int] = []

    def endless(batch: Any) -> Iterator[bytes]:
        while True:
            taken.append(1)
            yield b"again"

    assert run(Batch(endless)) == [("ValueError", "apply_batch gave more results for 3 commands")] * 3
    assert len(taken) == 4


@pytest.mark.parametrize(
    "results", [[b"12", b"34", b"56"], [b"1", b"", b"56"], [b"1", CommandFailure("Odd", "no"), b""]]
)
def test_a_ready_blob_is_passed_on(results: list[bytes | CommandFailure]) -> None:
    blob = encode_results(results)
    assert apply_commands(Batch(lambda batch: ResultBlob(blob)), view_of(COMMANDS), 1, 1) == blob


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01\x01\x00\x00\x03\x00\x00\x00ab",
        encode_results([b"1", b"2"]),
        encode_results([b"1", b"2", b"333"])[:-1],
        b"\x02\x01\x00\x00\x03\x00\x00\x00",
        bytes(BATCH_RESULT_BYTES_MAX + 100),
    ],
)
def test_a_damaged_blob_fails_every_command(data: bytes) -> None:
    results = run(Batch(lambda batch: ResultBlob(data)))
    assert len(results) == 3
    assert all(isinstance(result, tuple) and result[0] == "ValueError" for result in results)


def test_results_of_a_batch_are_limited_together() -> None:
    size = BATCH_RESULT_BYTES_MAX // 2
    machine = Each(lambda command: bytes(size) if command != b"small" else b"small")
    results = run(machine, [b"a", b"b", b"c", b"small", b"d"])
    too_large = ("ResultTooLarge", "applied, but the results of its batch are too large")
    assert results == [bytes(size), bytes(size), too_large, too_large, too_large]
    count = 16_384
    many = [b"x"] * count
    assert len(apply_commands(Each(raise_on(b"x", ValueError("m" * 2000))), view_of(many), 1, 1)) < 4 << 20

    def fail(batch: Any) -> Any:
        raise ValueError("m" * 2000)

    assert len(apply_commands(Batch(fail), view_of(many), 1, 1)) < 4 << 20


def test_the_base_batch_applies_one_by_one() -> None:
    class Careful(Each):
        def apply_batch(self, batch: BlockView, context: ApplyContext) -> Any:
            return super().apply_batch(batch, context)

    machine = Careful(bytes.upper)
    assert run(machine) == [b"ONE", b"TWO", b"THREE"]
    assert machine.seen == [(10, 10, 9, 5), (11, 10, 10, 5), (12, 10, 11, 5)]


def test_slow_commands_are_interrupted_between_calls() -> None:
    clock = Clock()

    def slow(command: bytes) -> bytes:
        clock.now_ns += 1_000_000
        return command

    commands = [b"%d" % number for number in range(40)]
    batch_run = BatchRun(Each(slow), view_of(commands), 1, 1)
    longest = steps = 0
    while batch_run.results is None:
        before = clock.now_ns
        batch_run.step(clock, 2_000_000)
        longest = max(longest, clock.now_ns - before)
        steps += 1
    assert longest <= 2_000_000
    assert steps == 20
    assert decode_results(batch_run.results, 40) == commands


def test_quick_commands_share_a_slice() -> None:
    clock = Clock()

    def quick(command: bytes) -> bytes:
        clock.now_ns += 1_000
        return command

    commands = [b"%d" % number for number in range(5000)]
    batch_run = BatchRun(Each(quick), view_of(commands), 1, 1)
    steps = 0
    while batch_run.step(clock, 2_000_000) is None:
        assert clock.now_ns <= (steps + 1) * 2_600_000, "a slice overruns by at most the last stride"
        steps += 1
    assert 1 <= steps <= 3
    assert decode_results(batch_run.results or b"", 5000) == commands


def test_a_generator_is_paused_between_slices() -> None:
    clock = Clock()

    def generator(batch: Any) -> Iterator[bytes]:
        for command in batch:
            clock.now_ns += 1_000_000
            yield command

    commands = [b"%d" % number for number in range(10)]
    batch_run = BatchRun(Batch(generator), view_of(commands), 1, 1)
    assert batch_run.step(clock) is None
    assert clock.now_ns == 2_000_000
    assert decode_results(batch_run.finish(), 10) == commands
    assert batch_run.step(clock) == batch_run.results, "a finished run stays finished"
    assert clock.now_ns == 10_000_000


OUTCOMES = st.lists(st.tuples(st.sampled_from(["bytes", "none", "error", "failure"]), st.integers(0, 3)), min_size=1)


@settings(max_examples=80, deadline=None)
@given(OUTCOMES, st.integers(1, 10), st.booleans())
def test_slicing_never_changes_results(outcomes: list[tuple[str, int]], slice_ns: int, by_generator: bool) -> None:
    commands = [b"%d" % number for number in range(len(outcomes))]

    def machine(clock: Clock) -> StateMachine:
        def function(command: bytes) -> Any:
            kind, took = outcomes[int(command)]
            clock.now_ns += took
            if kind == "error" and not by_generator:
                raise ValueError(command.decode())
            answers: dict[str, Any] = {"bytes": command, "none": None, "error": CommandFailure("E", "e")}
            return answers.get(kind, CommandFailure("Failed", "x"))

        return Batch(lambda batch: (function(command) for command in batch)) if by_generator else Each(function)

    whole = apply_commands(machine(Clock()), view_of(commands), 1, 1)
    clock = Clock()
    batch_run = BatchRun(machine(clock), view_of(commands), 1, 1)
    while batch_run.step(clock, slice_ns) is None:
        pass
    assert batch_run.results == whole


def test_queries_answer_or_fail() -> None:
    context = QueryContext(applied_index=4, now_ns=9)
    assert query_machine(Each(bytes.upper), b"get", context) == (ReplyStatus.OK, b"GET")
    assert query_machine(Each(bytearray), b"get", context) == (ReplyStatus.OK, b"get")
    status, answer = query_machine(Each(raise_on(b"get", KeyError("x"))), b"get", context)
    assert (status, msgpack.unpackb(answer)) == (ReplyStatus.COMMAND_ERROR, ["KeyError", "'x'"])
    status, answer = query_machine(Each(lambda request: None), b"get", context)
    assert (status, msgpack.unpackb(answer)[0]) == (ReplyStatus.COMMAND_ERROR, "TypeError")
    status, answer = query_machine(Each(lambda request: bytes(QUERY_RESULT_BYTES_MAX + 1)), b"get", context)
    assert (status, msgpack.unpackb(answer)[0]) == (ReplyStatus.COMMAND_ERROR, "ResultTooLarge")
    status, answer = query_machine(Batch(list), b"get", context)
    assert msgpack.unpackb(answer) == ["ValueError", "Batch answers no queries"]


def test_a_machine_must_apply_something_and_not_async() -> None:
    with pytest.raises(TypeError, match="StateMachine must define apply or apply_batch"):
        StateMachine()

    class Asynchronous(StateMachine):
        async def apply(self, command: bytes, context: ApplyContext) -> bytes:  # type: ignore[override]
            return command

    with pytest.raises(TypeError, match=r"Asynchronous\.apply must be a plain method"):
        Asynchronous()
    with pytest.raises(TypeError, match="whole batches only"):
        Batch(list).apply(b"", ApplyContext(1, 1))


def test_the_base_has_no_snapshot_and_says_so() -> None:
    machine = Each(bytes)
    assert machine.digest() == ""
    with pytest.raises(NoSnapshotError, match="Each has no snapshot"):
        machine.snapshot(None)  # type: ignore[arg-type]
    with pytest.raises(NoSnapshotError, match="Each cannot be restored"):
        machine.restore(None)  # type: ignore[arg-type]


def test_machines_load_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(load_machine("kv")(), KeyValueMachine)
    assert isinstance(load_machine("hashchain")(), HashChain)

    class Good(Each):
        def __init__(self, size: int = 3) -> None:
            super().__init__(bytes)

    module = types.ModuleType("machines_of_a_test")
    module.Good, module.Needy, module.Outer = Good, Each, types.SimpleNamespace(Good=Good)  # type: ignore[attr-defined]
    module.value = 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "machines_of_a_test", module)
    assert isinstance(load_machine("machines_of_a_test:Good")(), Good)
    assert load_machine("machines_of_a_test:Outer.Good") is Good
    for spec, message in [
        ("", "'' is unknown; use kv, hashchain or MODULE:CLASS"),
        ("redis", "'redis' is unknown"),
        (":Good", "unknown"),
        ("module:", "unknown"),
        ("no_such_module_here:Good", "cannot be imported: ModuleNotFoundError"),
        ("machines_of_a_test:Bad", "has no 'Bad'"),
        ("machines_of_a_test:value", "is no subclass"),
        ("json:loads", "is no subclass"),
        ("machines_of_a_test:Needy", r"Needy\(\) must need no arguments: missing a required argument: 'function'"),
        ("..x:Good", "cannot be imported"),
    ]:
        with pytest.raises(ConfigError, match=message):
            load_machine(spec)
