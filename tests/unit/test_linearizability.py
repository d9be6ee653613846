"""The search agrees with trying every order, on thousands of small histories, and tells what it found."""

from __future__ import annotations

from random import Random

import pytest

from fastpaxos.testing import Violation
from fastpaxos.testing.linearizability import Register, Verdict, check_linearizable, search
from fastpaxos.testing.operations import Operation, Outcome
from histories import (
    KEY,
    UNKNOWN,
    brute_force,
    cas,
    delete,
    legal_history,
    not_applied,
    precedes,
    read,
    spoiled,
    write,
)

A, B, C = b"a", b"b", b"c"


def explains(order: list[Operation], operations: list[Operation]) -> bool:
    """Whether `order` holds all known operations, respects real time and gives every result."""
    state: bytes | None = None
    for index, operation in enumerate(order):
        fits, state = Register().step(state, operation)
        if not fits or any(precedes(later, operation) for later in order[index + 1 :]):
            return False
    known = [operation for operation in operations if operation.outcome is Outcome.OK]
    placed = {id(operation) for operation in order}
    return len(placed) == len(order) and all(id(operation) in placed for operation in known)


@pytest.mark.parametrize("part", range(8))
def test_the_search_agrees_with_brute_force(part: int) -> None:
    verdicts = {True: 0, False: 0}
    for number in range(1000):
        seed = part * 1000 + number
        random = Random(f"linearizability {seed}")
        history = legal_history(
            random, random.randint(1, 7), deletes=random.random() < 0.5, unknown=random.choice([0, 0.2, 0.5])
        )
        if number % 4:
            history = spoiled(random, history)
        found = search(history, Register())
        expected = brute_force(history)
        assert (found.verdict is Verdict.LINEARIZABLE) == expected, f"seed {seed}: {found.explain()}\n{history}"
        assert not expected or explains(found.order, history), f"seed {seed}: {found.explain()}\n{history}"
        assert number % 4 or expected, f"seed {seed}: the generator made an illegal history"
        verdicts[expected] += 1
    assert min(verdicts.values()) > 200, verdicts


LEGAL = {
    "nothing": [],
    "a value nobody wrote is absent": [read(1, 2, None)],
    "concurrent reads see the new value and, later begun, still the old one is illegal; the other way round": [
        write(0, 10, A),
        read(1, 3, None),
        read(4, 6, A),
    ],
    "two concurrent reads of a concurrent write differ": [write(0, 10, A), read(1, 9, A), read(2, 8, None)],
    "equal times count as concurrent": [write(0, 5, A), read(5, 6, None)],
    "an unanswered write is seen much later": [write(0, None, A), read(50, 51, None), read(60, 61, A)],
    "an unanswered write is never seen": [write(0, None, A), write(1, 2, B), read(50, 51, B)],
    "an unanswered write overwrites a later one": [write(0, None, A), write(1, 2, B), read(3, 4, B), read(5, 6, A)],
    "an unanswered compare and set explains a failed one": [
        write(0, 1, A),
        cas(2, None, A, B),
        cas(3, 4, A, C, swapped=False),
    ],
    "an unanswered delete explains an absent key": [write(0, 1, A), delete(2, None), read(9, 10, None)],
    "a delete of nothing": [delete(0, 1, existed=False), delete(2, 3), read(4, 5, None)],
    "a chain of compare and set, all concurrent": [
        cas(0, 9, B, C),
        cas(0, 9, A, B),
        cas(0, 9, None, A),
        read(0, 9, B),
        read(10, 11, C),
    ],
    "what did not apply is not seen": [not_applied(write(0, 1, A)), read(2, 3, None)],
}

ILLEGAL = {
    "stale read": [write(0, 1, A), write(2, 3, B), read(4, 5, A)],
    "lost write": [write(0, 1, A), read(2, 3, None)],
    "read from the future": [read(0, 1, A), write(2, 3, A)],
    "phantom": [read(0, 1, A)],
    "new then old, while the write runs": [write(0, 10, A), read(1, 3, A), read(4, 6, None)],
    "two clients swap from one value": [write(0, 1, A), cas(2, 9, A, B), cas(2, 9, A, C)],
    "a swap that should have failed": [write(0, 1, A), cas(2, 3, B, C)],
    "a failure that should have swapped": [write(0, 1, A), cas(2, 3, A, B, swapped=False)],
    "an unanswered write takes effect twice": [
        write(0, None, A),
        read(1, 2, A),
        write(3, 4, B),
        read(5, 6, B),
        read(7, 8, A),
    ],
    "what did not apply is seen": [not_applied(write(0, 1, A)), read(2, 3, A)],
    "an unanswered write takes effect before it was asked": [read(0, 1, A), write(2, None, A)],
    "a deleted value is back": [write(0, 1, A), delete(2, 3, existed=True), read(4, 5, A)],
    "a delete found nothing": [write(0, 1, A), delete(2, 3, existed=False)],
}


@pytest.mark.parametrize("history", LEGAL.values(), ids=LEGAL)
def test_odd_but_legal_histories_are_accepted(history: list[Operation]) -> None:
    assert brute_force(history)
    check_linearizable(history)


@pytest.mark.parametrize("history", ILLEGAL.values(), ids=ILLEGAL)
def test_illegal_histories_are_rejected(history: list[Operation]) -> None:
    assert not brute_force(history)
    with pytest.raises(Violation, match="not linearizable") as caught:
        check_linearizable(history)
    assert caught.value.checker == "linearizability"


def test_the_longest_order_and_what_is_stuck_are_told() -> None:
    history = [write(0, 1, A), write(2, 3, B), read(4, 5, A), read(6, 7, B)]
    found = search(history, Register())
    assert found.verdict is Verdict.NOT_LINEARIZABLE
    assert (found.order, found.stuck) == (history[:2], [history[2]])
    assert "cannot follow: r: read b'k' = b'a' [4, 5] ns" in found.explain()


def test_keys_are_judged_one_by_one() -> None:
    other = write(0, 1, A)
    other.key = b"other"
    assert {key: found.verdict for key, found in check_linearizable([other, read(2, 3, None)]).items()} == {
        KEY: Verdict.LINEARIZABLE,
        b"other": Verdict.LINEARIZABLE,
    }


def test_the_budget_ends_a_search_without_a_verdict() -> None:
    # Ten swaps at the same time and a read that none of them explains: every order must be tried.
    history = [cas(0, 9, A if number % 2 else B, B if number % 2 else A, swapped=False) for number in range(10)]
    history += [write(0, 9, b"%d" % number) for number in range(10)] + [read(10, 11, C)]
    assert search(history, Register(), steps_max=500).verdict is Verdict.UNKNOWN
    assert check_linearizable(history, steps_max=500)[KEY].verdict is Verdict.UNKNOWN


def test_a_history_may_begin_with_a_value() -> None:
    with pytest.raises(Violation):
        check_linearizable([read(0, 1, A)])
    check_linearizable([read(0, 1, A)], Register(initial=A))


def test_an_answer_before_the_question_is_refused() -> None:
    with pytest.raises(ValueError, match="answered at 1 ns, asked at 2 ns"):
        search([write(2, 1, A)], Register())


@pytest.mark.parametrize("size", [500, 2000])
def test_a_long_history_with_unanswered_operations_is_searched_in_few_steps(size: int) -> None:
    # About eight operations are in flight at a time.
    random = Random(size)
    history = legal_history(random, size, deletes=False, unknown=0.1, span=size, duration=16)
    assert sum(operation.outcome is UNKNOWN for operation in history) > size // 20
    found = search(history, Register(), steps_max=50 * size)
    assert found.verdict is Verdict.LINEARIZABLE, found.explain()
