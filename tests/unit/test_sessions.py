"""The session table against a deliberately dumb model, its limits, and its state round trip."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpaxos_core.errors import CorruptionError, InvariantError
from fastpaxos_core.sessions import SessionTable, Verdict

OVERHEAD = 64


def nonce(number: int) -> bytes:
    return number.to_bytes(16, "little")


@dataclass
class ModelSession:
    session_id: int
    nonce: bytes
    last: int = 0
    acknowledged: int = 0
    kept: list[tuple[int, int, bytes]] = field(default_factory=list)

    def kept_bytes(self) -> int:
        return sum(len(results) + OVERHEAD for _, _, results in self.kept)


class Model:
    """What the table should do, written as lists and loops. `sessions` is in order of last use."""

    def __init__(self, sessions_max: int, per_session: int, total: int) -> None:
        self.sessions_max, self.per_session, self.total = sessions_max, per_session, total
        self.sessions: list[ModelSession] = []

    def find(self, session_id: int) -> ModelSession | None:
        return next((session for session in self.sessions if session.session_id == session_id), None)

    def touch(self, session: ModelSession) -> None:
        self.sessions.remove(session)
        self.sessions.append(session)

    def open(self, name: bytes, slot: int) -> int:
        for session in self.sessions:
            if session.nonce == name:
                self.touch(session)
                return session.session_id
        if len(self.sessions) == self.sessions_max:
            self.sessions.pop(0)
        self.sessions.append(ModelSession(slot, name))
        return slot

    def close(self, session_id: int) -> bool:
        session = self.find(session_id)
        if session is None:
            return False
        self.sessions.remove(session)
        return True

    def classify(self, session_id: int, first: int, count: int) -> Verdict:
        session = self.find(session_id)
        if session is None:
            return Verdict.UNKNOWN
        if not first or not count:
            return Verdict.INVALID
        if first == session.last + 1:
            return Verdict.APPLY
        wanted = set(range(first, first + count))
        if max(wanted) > session.last:
            return Verdict.INVALID
        for kept_first, kept_count, _ in session.kept:
            kept = set(range(kept_first, kept_first + kept_count))
            if kept & wanted and kept != wanted:
                return Verdict.INVALID
        return Verdict.DUPLICATE

    def result(self, session_id: int, first: int) -> bytes | None:
        session = self.find(session_id)
        if session is None:
            return None
        return next((results for kept_first, _, results in session.kept if kept_first == first), None)

    def record(self, session_id: int, first: int, count: int, results: bytes, acknowledged: int) -> None:
        session = self.find(session_id)
        assert session is not None
        self.touch(session)
        session.last = first + count - 1
        session.acknowledged = max(session.acknowledged, min(acknowledged, first))
        session.kept = [entry for entry in session.kept if entry[0] + entry[1] > session.acknowledged]
        if len(results) + OVERHEAD > self.per_session:
            return
        session.kept.append((first, count, results))
        while session.kept_bytes() > self.per_session:
            session.kept.pop(0)
        while sum(each.kept_bytes() for each in self.sessions) > self.total:
            next(each for each in self.sessions if each.kept).kept.pop(0)


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("open"), st.integers(0, 6)),
        st.tuples(st.just("close"), st.integers(0, 5)),
        st.tuples(st.just("touch"), st.integers(0, 5)),
        # which session, first sequence relative to its next one, count, result bytes, acknowledged relative to first
        st.tuples(
            st.just("block"),
            st.integers(0, 5),
            st.sampled_from([0, 0, 0, 0, -1, -2, -3, -5, 1, 2]),
            st.integers(0, 4),
            st.integers(0, 90),
            st.integers(-6, 3),
        ),
    ),
    max_size=60,
)


def check_equal(table: SessionTable, model: Model) -> None:
    assert table.session_ids() == [session.session_id for session in model.sessions]
    assert len(table) == len(model.sessions)
    assert table.kept_bytes == sum(session.kept_bytes() for session in model.sessions)
    for session in model.sessions:
        assert session.session_id in table
        assert table.last_sequence(session.session_id) == session.last
        assert table.acknowledged_below(session.session_id) == session.acknowledged
        for first in range(session.last + 2):
            assert table.result(session.session_id, first) == model.result(session.session_id, first)


def run(operations: list[tuple[object, ...]], table: SessionTable, model: Model) -> None:
    """Apply the same operations to both and compare every answer. Slots rise by one per operation."""
    known = [0]  # ids ever seen, closed and evicted ones too; 0 was never opened
    for slot, (name, *arguments) in enumerate(operations, start=1):
        numbers = [int(str(argument)) for argument in arguments]
        if name == "open":
            opened = table.open(nonce(numbers[0]), slot)
            assert opened == model.open(nonce(numbers[0]), slot)
            known.append(opened)
            continue
        session_id = known[-1 - numbers[0] % len(known)]
        session = model.find(session_id)
        if name == "close":
            assert table.close(session_id) == model.close(session_id)
        elif name == "touch":
            assert table.touch(session_id, slot) == (session is not None)
            if session is not None:
                model.touch(session)
        else:
            _, offset, count, size, acknowledged = numbers
            first = max(0, (session.last if session else 0) + 1 + offset)
            verdict = model.classify(session_id, first, count)
            assert table.classify(session_id, first, count) == verdict
            results = bytes([slot % 256]) * size
            if verdict is Verdict.APPLY:
                table.record(session_id, first, count, results, max(0, first + acknowledged), slot)
                model.record(session_id, first, count, results, max(0, first + acknowledged))
            else:
                before = table.digest()
                with pytest.raises(InvariantError):
                    table.record(session_id, first, count, results, 0, slot)
                assert table.digest() == before
        check_equal(table, model)


@settings(max_examples=150, deadline=None)
@given(OPERATIONS, st.integers(1, 4), st.sampled_from([0, 64, 150, 400]), st.sampled_from([0, 200, 500, 10_000]))
def test_agrees_with_the_model(
    operations: list[tuple[object, ...]], sessions_max: int, per_session: int, total: int
) -> None:
    table = SessionTable(sessions_max, per_session, total)
    run(operations, table, Model(sessions_max, per_session, total))
    again = SessionTable(sessions_max, per_session, total)
    run(operations, again, Model(sessions_max, per_session, total))
    assert again.digest() == table.digest()
    assert again.to_state() == table.to_state()


@settings(max_examples=60, deadline=None)
@given(OPERATIONS, OPERATIONS)
def test_state_round_trip_is_exact_and_the_copy_behaves_the_same(
    before: list[tuple[object, ...]], after: list[tuple[object, ...]]
) -> None:
    table = SessionTable(3, 300, 600)
    run(before, table, Model(3, 300, 600))
    copy = SessionTable.from_state(table.to_state())
    assert copy.to_state() == table.to_state()
    assert copy.digest() == table.digest()
    assert copy.session_ids() == table.session_ids()
    assert (copy.sessions_max, copy.result_bytes_per_session_max, copy.result_bytes_max) == (3, 300, 600)
    assert copy.kept_bytes == table.kept_bytes
    for slot, (name, *arguments) in enumerate(after, start=1000):
        number = int(str(arguments[0]))
        if name == "open":
            assert copy.open(nonce(number), slot) == table.open(nonce(number), slot)
        elif table.session_ids():
            session_id = table.session_ids()[number % len(table)]
            first = (table.last_sequence(session_id) or 0) + 1
            for each in (table, copy):
                each.record(session_id, first, 2, bytes(number * 20), 0, slot)
    assert copy.digest() == table.digest()


def test_the_same_nonce_reopens_the_same_session() -> None:
    table = SessionTable()
    session_id = table.open(nonce(1), 5)
    table.record(session_id, 1, 2, b"results", 0, 6)
    assert session_id == 5
    assert table.open(nonce(1), 7) == session_id
    assert table.last_sequence(session_id) == 2
    assert table.open(nonce(2), 8) == 8
    assert table.close(session_id)
    assert not table.close(session_id)
    assert table.last_sequence(session_id) is None
    assert table.open(nonce(1), 9) == 9


def test_least_recently_used_session_expires() -> None:
    table = SessionTable(sessions_max=2)
    first, second = table.open(nonce(1), 1), table.open(nonce(2), 2)
    assert table.touch(first, 3)
    third = table.open(nonce(3), 4)
    assert table.session_ids() == [first, third]
    assert table.classify(second, 1, 1) == Verdict.UNKNOWN
    table.record(first, 1, 1, b"", 0, 5)
    table.open(nonce(4), 6)
    assert table.classify(third, 1, 1) == Verdict.UNKNOWN
    assert table.classify(first, 1, 1) == Verdict.DUPLICATE


def test_a_duplicate_whose_result_was_dropped_is_still_a_duplicate() -> None:
    table = SessionTable(result_bytes_per_session_max=2 * (OVERHEAD + 10))
    session_id = table.open(nonce(1), 1)
    for number in range(3):
        table.record(session_id, number + 1, 1, bytes([number]) * 10, 0, number + 2)
    assert table.classify(session_id, 1, 1) == Verdict.DUPLICATE
    assert table.result(session_id, 1) is None
    assert table.result(session_id, 2) == b"\x01" * 10
    table.record(session_id, 4, 1, bytes(200), 0, 9)
    assert table.result(session_id, 4) is None
    assert table.result(session_id, 3) == b"\x02" * 10, "a result that cannot be kept pushes no other one out"


def test_a_block_applied_in_part_is_invalid_even_where_no_result_is_kept() -> None:
    table = SessionTable(result_bytes_per_session_max=0)
    session_id = table.open(nonce(1), 1)
    table.record(session_id, 1, 2, b"", 0, 2)
    assert table.result(session_id, 1) is None
    assert table.classify(session_id, 1, 2) == Verdict.DUPLICATE
    assert table.classify(session_id, 2, 2) == Verdict.INVALID


def test_acknowledged_results_are_freed_whole() -> None:
    table = SessionTable()
    session_id = table.open(nonce(1), 1)
    table.record(session_id, 1, 3, b"one", 0, 2)
    table.record(session_id, 4, 3, b"two", 3, 3)
    assert table.result(session_id, 1) == b"one", "sequence 3 is not acknowledged yet"
    table.record(session_id, 7, 1, b"three", 4, 4)
    assert table.result(session_id, 1) is None
    assert table.result(session_id, 4) == b"two"
    table.record(session_id, 8, 1, b"four", 2**64 - 1, 5)
    assert table.result(session_id, 7) is None
    assert table.result(session_id, 8) == b"four", "nobody has the results of a block that is only now applied"
    assert table.acknowledged_below(session_id) == 8


def test_extreme_sequences_do_not_wrap() -> None:
    table = SessionTable()
    session_id = table.open(nonce(1), 1)
    for first, count in [(2**64 - 1, 1), (2**64 - 1, 2**32 - 1), (2**64 - 2**31, 2**32 - 1), (0, 1), (1, 0)]:
        assert table.classify(session_id, first, count) == Verdict.INVALID
    assert table.classify(0, 1, 1) == Verdict.UNKNOWN
    state = msgpack.unpackb(table.to_state())
    state[5][0][2] = 2**64 - 3
    table = SessionTable.from_state(msgpack.packb(state))
    assert table.classify(session_id, 2**64 - 2, 1) == Verdict.APPLY
    assert table.classify(session_id, 2**64 - 2, 2) == Verdict.INVALID
    table.record(session_id, 2**64 - 2, 1, b"last", 2**64 - 1, 2)
    assert table.result(session_id, 2**64 - 2) == b"last"
    assert table.classify(session_id, 2**64 - 1, 1) == Verdict.INVALID, "the last sequence is never used up"


def test_many_sessions_come_and_go() -> None:
    table = SessionTable(sessions_max=64)
    model = Model(64, 1 << 20, 1 << 20)
    for slot in range(1, 3000):
        assert table.open(nonce(slot), slot * 64) == model.open(nonce(slot), slot * 64)
        if slot % 3 == 0:
            victim = model.sessions[slot % len(model.sessions)].session_id
            assert table.close(victim)
            assert model.close(victim)
    assert table.session_ids() == [session.session_id for session in model.sessions]
    assert all(session_id in table for session_id in table.session_ids())


@pytest.mark.parametrize("bad", [b"", b"short", bytes(17)])
def test_a_nonce_has_sixteen_bytes(bad: bytes) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        SessionTable().open(bad, 1)


def test_slots_never_fall() -> None:
    table = SessionTable()
    session_id = table.open(nonce(1), 10)
    with pytest.raises(InvariantError, match="slot 9 after slot 10"):
        table.open(nonce(2), 9)
    with pytest.raises(InvariantError, match="slot 9 after slot 10"):
        table.touch(session_id, 9)
    with pytest.raises(InvariantError, match="slot 9 after slot 10"):
        table.record(session_id, 1, 1, b"", 0, 9)
    with pytest.raises(InvariantError, match="another nonce"):
        table.open(nonce(2), 10)
    with pytest.raises(InvariantError, match="slot 0"):
        SessionTable().open(nonce(1), 0)


@pytest.mark.parametrize("limits", [(0,), (2**24 + 1,), (1, -1), (1, 1, -1), (1, 2**40), (1, 1, 2**48)])
def test_limits_outside_their_range_are_refused(limits: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"outside|out of range"):
        SessionTable(*limits)


def damaged_states() -> list[bytes]:
    table = SessionTable(2, 1000, 1000)
    session_id = table.open(nonce(1), 1)
    table.record(session_id, 1, 2, b"abc", 0, 2)
    table.record(session_id, 3, 2, b"def", 0, 3)
    good = table.to_state()
    states = [good[:-1], good + b"\x00", b"", b"\xc0", msgpack.packb([9, 2, 0, 0, 1, []])]

    def change(path: list[int], value: object) -> None:
        state = msgpack.unpackb(good)
        inner = state
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = value
        states.append(msgpack.packb(state))

    change([1], 0)
    change([2], 70)  # the limit does not allow both results
    change([3], 70)
    change([4], 2)  # last slot below the session's
    change([5, 0, 0], 0)
    change([5, 0, 1], b"short")
    change([5, 0, 2], 2**64 - 1)
    change([5, 0, 2], 3)  # a kept result above the last sequence
    change([5, 0, 3], 6)  # acknowledged above the last sequence
    change([5, 0, 4], 0)
    change([5, 0, 5, 0, 1], 0)
    change([5, 0, 5, 0, 1], 3)  # overlaps the next one
    change([5, 0, 5, 1, 0], 2)
    change([5, 0, 5, 1, 2], "text")
    change([5, 0, 5, 0], [1, 2])
    state = msgpack.unpackb(good)
    change([5], state[5] * 2)  # the same session twice
    return states


@pytest.mark.parametrize("state", damaged_states())
def test_damaged_state_is_refused(state: bytes) -> None:
    with pytest.raises(CorruptionError, match="damaged"):
        SessionTable.from_state(state)
