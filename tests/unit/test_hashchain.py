"""The hash chain against its definition in plain Python, and the machine over it."""

from __future__ import annotations

import random

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpaxos.hashchain import HashChain
from fastpaxos.statemachine import ApplyContext, QueryContext, apply_commands
from fastpaxos_core.block import BlockView, build_block, build_noop
from fastpaxos_core.hashchain import HashChainState, MultisetDigest

MASK = 2**64 - 1
P0, P1, P2, P3 = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03, 0x8CB92BA72F3D8DD7, 0xAEF17502108EF2D9


def rotl(value: int, bits: int) -> int:
    return ((value << bits) | (value >> (64 - bits))) & MASK


def step(lane: int, word: int, factor: int, bits: int) -> int:
    return rotl(((lane ^ word) * factor) & MASK, bits)


def reference_chain(state: tuple[int, int], command: bytes) -> tuple[int, int]:
    """One command, as docs/protocol.md defines it."""
    x, y = (P0 + len(command)) & MASK, P1 ^ len(command)
    for index, begin in enumerate(range(0, len(command), 8)):
        word = int.from_bytes(command[begin : begin + 8], "little")
        if index % 2 == 0:
            x = step(x, word, P2, 31)
        else:
            y = step(y, word, P3, 29)
    a = step(state[0], x, P2, 27)
    b = (step(state[1], y, P3, 33) + a) & MASK
    return a, b


def reference_digest(commands: list[bytes]) -> bytes:
    state = (0, 0)
    for command in commands:
        state = reference_chain(state, command)
    return state[0].to_bytes(8, "little") + state[1].to_bytes(8, "little")


def fold_block(state: HashChainState, commands: list[bytes]) -> bytes:
    return state.fold(BlockView(build_block(commands, 1, 1)))


def expected_blob(first: int, count: int) -> bytes:
    head = bytes([1, 1, 0, 0]) + count.to_bytes(4, "little")
    return head + b"".join(number.to_bytes(8, "little") for number in range(first, first + count))


COMMANDS = st.lists(st.binary(max_size=70), min_size=1, max_size=12)
UNIFORM_COMMANDS = st.integers(0, 40).flatmap(
    lambda size: st.lists(st.binary(min_size=size, max_size=size), min_size=1, max_size=12)
)


@settings(max_examples=200, deadline=None)
@given(st.lists(COMMANDS | UNIFORM_COMMANDS, max_size=5))
def test_folding_blocks_and_commands_agrees_with_the_reference(batches: list[list[bytes]]) -> None:
    by_block, by_command = HashChainState(), HashChainState()
    applied: list[bytes] = []
    for commands in batches:
        assert fold_block(by_block, commands) == expected_blob(len(applied) + 1, len(commands))
        for command in commands:
            applied.append(command)
            assert by_command.fold_one(command) == len(applied).to_bytes(8, "little")
    assert by_block.digest == by_command.digest == reference_digest(applied)
    assert by_block.count == by_command.count == len(applied)


@pytest.mark.parametrize("size", [*range(34), 63, 64, 65, 1000])
def test_every_length_agrees_with_the_reference(size: int) -> None:
    generator = random.Random(size)
    commands = [generator.randbytes(size) for _ in range(3)]
    state = HashChainState()
    fold_block(state, commands)
    assert state.digest == reference_digest(commands)


@settings(max_examples=100, deadline=None)
@given(COMMANDS, st.data())
def test_every_byte_length_and_position_counts(commands: list[bytes], data: st.DataObject) -> None:
    chosen = data.draw(st.integers(0, len(commands) - 1))
    command = commands[chosen]
    changed = [command + b"\x00", b"\x00" + command]
    if command:
        position = data.draw(st.integers(0, len(command) - 1))
        bit = data.draw(st.integers(0, 7))
        flipped = bytearray(command)
        flipped[position] ^= 1 << bit
        changed += [bytes(flipped), command[:-1]]
    for other in changed:
        assert reference_digest([*commands[:chosen], other, *commands[chosen + 1 :]]) != reference_digest(commands)
    swapped = commands[::-1]
    if swapped != commands:
        assert reference_digest(swapped) != reference_digest(commands)
    assert reference_digest([*commands, commands[-1]]) != reference_digest(commands)
    assert reference_digest([b"".join(commands)]) != reference_digest([*commands, b""])


def test_moving_a_boundary_between_commands_changes_the_digest() -> None:
    assert reference_digest([b"ab", b"c"]) != reference_digest([b"a", b"bc"])
    assert reference_digest([b""]) != reference_digest([b"", b""])


def test_no_two_of_many_short_sequences_collide() -> None:
    seen = {
        reference_digest([bytes([first] * size), bytes([second])])
        for size in range(1, 20)
        for first in range(20)
        for second in range(10)
    }
    assert len(seen) == 19 * 20 * 10


def test_the_chain_goes_on_from_a_saved_point() -> None:
    whole, first = HashChainState(), HashChainState()
    fold_block(whole, [b"one", b"two", b"three"])
    fold_block(first, [b"one", b"two"])
    second = HashChainState(first.count, first.digest)
    assert fold_block(second, [b"three"]) == expected_blob(3, 1)
    assert second.digest == whole.digest
    with pytest.raises(ValueError, match="16 bytes, got 3"):
        HashChainState(0, b"abc")


def test_fold_takes_views_and_nothing_else() -> None:
    state = HashChainState()
    for command in (bytearray(b"abcdefghijk"), memoryview(b"abcdefghijk")):
        state.fold_one(command)
    assert state.digest == reference_digest([b"abcdefghijk"] * 2)
    for bad in (None, "text", 3):
        with pytest.raises(TypeError):
            state.fold_one(bad)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            state.fold(bad)  # type: ignore[arg-type]
    assert state.count == 2


def test_a_noop_block_folds_as_empty_commands() -> None:
    state = HashChainState()
    state.fold(BlockView(build_noop(3)))
    assert state.digest == reference_digest([b""] * 3)


ENTRY = st.tuples(
    st.binary(max_size=20), st.binary(max_size=20), st.integers(0, 2**64 - 1), st.integers(0, 9), st.integers(0, 9)
)


@settings(max_examples=100, deadline=None)
@given(st.lists(ENTRY, max_size=12, unique=True), st.randoms(use_true_random=False))
def test_the_multiset_digest_depends_on_the_entries_and_not_on_their_history(
    entries: list[tuple[bytes, bytes, int, int, int]], generator: random.Random
) -> None:
    one, other = MultisetDigest(), MultisetDigest()
    for entry in entries:
        one.add(*entry)
    detour = (b"detour", b"", 1, 2, 3)
    other.add(*detour)
    for entry in generator.sample(entries, len(entries)):
        other.add(*entry)
    assert entries == [] or one.digest != other.digest
    other.remove(*detour)
    assert one.digest == other.digest
    assert one.count == other.count == len(entries)
    for entry in entries:
        other.remove(*entry)
        assert other.digest != one.digest
        other.add(*entry)
    assert other.digest == one.digest


def test_the_multiset_digest_sees_every_field() -> None:
    def digest(*entry: bytes | int) -> bytes:
        digest = MultisetDigest()
        digest.add(*entry)  # type: ignore[arg-type]
        return digest.digest

    base = (b"key", b"value", 1, 2, 3)
    others = [(b"kex", b"value", 1, 2, 3), (b"keyv", b"alue", 1, 2, 3), (b"key", b"valuf", 1, 2, 3)]
    others += [(b"key", b"value", 2, 1, 3), (b"key", b"value", 1, 2, 4), (b"value", b"key", 1, 2, 3)]
    assert len({digest(*entry) for entry in [base, *others]}) == len(others) + 1
    with pytest.raises(ValueError, match="empty"):
        MultisetDigest().remove(b"", b"", 0, 0, 0)


def test_the_machine_gives_the_same_by_command_and_by_batch() -> None:
    commands = [b"first", b"second, which is longer", b""]
    by_batch, by_command = HashChain(), HashChain()
    view = BlockView(build_block(commands, 1, 1))
    assert apply_commands(by_batch, view, 1, 0) == expected_blob(1, 3)
    results = [by_command.apply(command, ApplyContext(slot, 0)) for slot, command in enumerate(commands, start=1)]
    assert results == [number.to_bytes(8, "little") for number in (1, 2, 3)]
    assert by_batch.digest() == by_command.digest() == reference_digest(commands).hex()
    assert by_batch.count == 3
    assert msgpack.unpackb(by_batch.query(b"", QueryContext(7, 0))) == [7, 3, reference_digest(commands).hex()]
    with pytest.raises(ValueError, match="only the empty query"):
        by_batch.query(b"what", QueryContext(7, 0))
