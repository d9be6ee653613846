"""What a client does once per command: joining the open block, and getting the answer."""

from __future__ import annotations

import copy
import pickle
from asyncio import AbstractEventLoop, Future, new_event_loop
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fastpaxos.answers import Results
from fastpaxos.command_queue import as_commands
from fastpaxos_core.block import BlockView, build_block, longest_command, pack_commands, stamp_block
from fastpaxos_core.pending_block import PendingBlock, answer_waiters
from fastpaxos_core.results import UniformResults, encode_results, view_results

FAR_NS = 1 << 60


@pytest.fixture
def loop() -> Iterator[AbstractEventLoop]:
    loop = new_event_loop()
    yield loop
    loop.close()


def open_block(room_bytes: int = 10_000, **limits: int) -> PendingBlock:
    block = PendingBlock(**{"block_bytes_max": 1000, "command_bytes_max": 500, "commands_per_block_max": 100} | limits)
    block.room_bytes = room_bytes
    return block


def test_add_keeps_the_books() -> None:
    block = open_block()
    assert block.add(b"abc", "first", 70)
    assert block.add(b"", "second", 50)
    assert block.add(b"d", "third", 60)
    assert (block.commands, block.waiters) == ([b"abc", b"", b"d"], ["first", "second", "third"])
    assert (block.deadlines_ns, block.deadline_ns, block.count) == ([70, 50, 60], 50, 3)
    assert block.charge == 40 + 4 + 3 * 64
    assert block.room_bytes == 10_000 - 4 - 3 * 64
    assert block.encoded_bytes == len(build_block(block.commands, 1, 1))


@pytest.mark.parametrize(
    ("block", "command"),
    [
        (open_block(command_bytes_max=3), b"four"),
        (open_block(block_bytes_max=40 + 4 + 3), b"four"),
        (open_block(commands_per_block_max=0), b""),
        (open_block(room_bytes=3), b"four"),
        (open_block(room_bytes=-1), b""),
    ],
    ids=["command", "block", "count", "room", "asked again"],
)
def test_add_refuses_what_does_not_fit_and_changes_nothing(block: PendingBlock, command: bytes) -> None:
    before = (block.room_bytes, block.encoded_bytes, block.charge)
    assert not block.add(command, "waiter", 1)
    assert (block.commands, block.waiters, block.deadlines_ns, block.count) == ([], [], [], 0)
    assert (block.room_bytes, block.encoded_bytes, block.charge) == before
    assert block.deadline_ns > FAR_NS


def test_what_is_left_without_the_gone_has_its_own_books() -> None:
    block = open_block()
    for number in range(4):
        block.add(b"x" * number, number, 100 + number)
    assert block.expire(101) == [0, 1]
    assert block.deadline_ns == 102
    rest = block.without_gone()
    assert rest is not None
    assert (rest.commands, rest.waiters, rest.deadlines_ns) == ([b"xx", b"xxx"], [2, 3], [102, 103])
    assert (rest.count, rest.charge, rest.deadline_ns) == (2, 40 + 5 + 2 * 64, 102)
    assert rest.add(b"more", "another", FAR_NS)
    assert block.expire(FAR_NS) == [2, 3]
    assert block.without_gone() is None


def test_every_waiter_gets_its_result_and_who_has_gone_is_left_alone(loop: AbstractEventLoop) -> None:
    futures: list[Future[Any]] = [loop.create_future() for _ in range(3)]
    futures[1].cancel()
    answer_waiters([*futures, None], [b"a", b"b", b"c", b"d"])
    assert (futures[0].result(), futures[2].result()) == (b"a", b"c")
    with pytest.raises(ValueError, match="1 results for 3 waiters"):
        answer_waiters(futures, [b"a"])


def test_longest_command_finds_what_is_no_bytes_object() -> None:
    assert longest_command([]) == 0
    assert longest_command([b"", b"abc", b"z"]) == 3
    for wrong in (bytearray(b"b"), "b", None):
        assert longest_command([b"a", wrong]) == -1


@pytest.mark.parametrize("commands", [[b""], [b"0123456789abcdef"] * 3, [b"ab", b"cd"], [b"a", b"", b"ccc"]])
def test_a_packed_block_is_stamped_once(commands: list[bytes]) -> None:
    packed, count, longest = pack_commands(commands, len(build_block(commands, 1, 1)))
    assert (count, longest) == (len(commands), max(map(len, commands)))
    with pytest.raises(OverflowError, match=f"make a block of {len(packed)} bytes"):
        pack_commands(commands, len(packed) - 1)
    stamp_block(packed, 7, 11, 5)
    assert packed == build_block(commands, 7, 11, 5)
    view = BlockView(packed)
    assert (list(view), view.session_id, view.first_sequence, view.acknowledged_below) == (commands, 7, 11, 5)
    for block in (packed, packed[:39], b""):
        with pytest.raises(ValueError, match="only a block that pack_commands has made"):
            stamp_block(block, 7, 11)


def test_a_block_cannot_pass_the_last_sequence() -> None:
    packed, _, _ = pack_commands([b"a", b"b"])
    with pytest.raises(ValueError, match="pass the last sequence"):
        stamp_block(packed, 7, (1 << 64) - 2)


def test_commands_are_taken_as_bytes_of_their_own() -> None:
    class Odd(bytes):
        pass

    mine = [b"a", bytearray(b"bcd"), memoryview(b"ef"), Odd(b"g")]
    whole, longest = as_commands(mine)  # type: ignore[arg-type]
    assert (whole, longest) == ([b"a", b"bcd", b"ef", b"g"], 3)
    assert {type(each) for each in whole} == {bytes}
    with pytest.raises(TypeError, match="not int"):
        as_commands([1])  # type: ignore[list-item]


def test_uniform_results_are_made_when_asked_for() -> None:
    view = view_results(encode_results([b"ab", b"cd", b"ef"]), 3)
    assert isinstance(view, UniformResults)
    assert (len(view), view[0], view[-1], view[1:], list(view)) == (
        3,
        b"ab",
        b"ef",
        [b"cd", b"ef"],
        [b"ab", b"cd", b"ef"],
    )
    for index in (3, -4):
        with pytest.raises(IndexError):
            view[index]
    assert len(UniformResults()) == 0
    assert view_results(encode_results([b"a", b"bc"]), 2) == [b"a", b"bc"]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_results_can_be_copied_and_sent_elsewhere(copied: Callable[[Any], Any]) -> None:
    values = [b"ab", b"cd", b"ef"]
    for results in (view_results(encode_results(values), 3), Results([view_results(encode_results(values), 3)])):
        another = copied(results)
        assert type(another) is type(results)
        assert list(another) == values
    assert list(copied(UniformResults())) == []


def test_a_subclass_of_bytes_cannot_answer_with_what_it_likes() -> None:
    class Odd(bytes):
        def __bytes__(self) -> Odd:
            return self

    commands = [Odd(b"x" * 100), b"y", Odd(b"")]
    expected = [b"x" * 100, b"y", b""]
    assert list(BlockView(build_block(commands, 1, 1))) == expected
    whole, longest = as_commands(commands)
    assert (whole, longest, {type(each) for each in whole}) == (expected, 100, {bytes})


def test_results_of_many_blocks_are_one_sequence() -> None:
    values = [b"%02d" % number for number in range(25)]
    results = Results([view_results(encode_results(values[:10]), 10), values[10:20], values[20:]])
    assert (len(results), results[9], results[10], results[-1]) == (25, b"09", b"10", b"24")
    assert results[8:12] == values[8:12]
    assert results == values
    assert results == Results([values])
    assert results != values[1:]
    assert results != [*values[1:], b""]
    assert repr(results) == "Results([b'00', b'01', b'02', ...], 25 in all)"
    for index in (25, -26):
        with pytest.raises(IndexError, match=f"result {index} of 25"):
            results[index]
    assert (len(Results([])), list(Results([]))) == (0, [])
