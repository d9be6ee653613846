"""The register check raises no false alarm and finds what the search finds, on thousands of small histories."""

from __future__ import annotations

from random import Random

import pytest

from fastpaxos.testing import Violation
from fastpaxos.testing.linearizability import Register, Verdict, search
from fastpaxos.testing.operations import Operation
from fastpaxos.testing.register_check import check_registers
from histories import CAS, READ, cas, delete, legal_history, not_applied, read, spoiled, write

A, B, C, D = b"a", b"b", b"c", b"d"


def is_accepted(history: list[Operation]) -> bool:
    try:
        assert check_registers(history) == len(history)
    except Violation:
        return False
    return True


@pytest.mark.parametrize("deletes", [False, True])
@pytest.mark.parametrize("unknown", [0, 0.2, 0.5])
def test_the_check_agrees_with_the_search(deletes: bool, unknown: float) -> None:
    illegal = missed = 0
    for number in range(2000):
        seed = f"register {deletes} {unknown} {number}"
        random = Random(seed)
        history = legal_history(random, random.randint(1, 8), deletes=deletes, unknown=unknown)
        if number % 4:
            history = spoiled(random, history)
        is_legal = search(history, Register()).verdict is Verdict.LINEARIZABLE
        accepted = is_accepted(history)
        assert accepted or not is_legal, f"seed {seed}: a false alarm\n{history}"
        illegal += not is_legal
        if accepted and not is_legal:
            missed += 1
            # It may miss only what names no value.
            is_exact = not deletes and not any(item.kind is CAS and item.result is False for item in history)
            assert not is_exact, f"seed {seed}: missed\n{history}"
    assert illegal > 400
    assert missed <= (0.03 if deletes else 0.005) * illegal, f"{missed} of {illegal} are missed"


def test_a_long_legal_history_is_accepted_and_one_changed_read_is_seen() -> None:
    random = Random(1)
    history = legal_history(random, 3000, deletes=True, unknown=0.1, span=3000, duration=16)
    assert check_registers(history) == 3000
    reads = [item for item in history if item.kind is READ and item.is_known and isinstance(item.result, bytes)]
    late = max(reads, key=lambda item: item.invoked_ns)
    late.result = next(item.result for item in reads if item.invoked_ns + 100 < late.invoked_ns)
    assert not is_accepted(history)


REJECTED: dict[str, tuple[str, list[Operation]]] = {
    "stale read": ("must each come first", [write(0, 1, A), write(2, 3, B), read(4, 5, A)]),
    "lost write": ("must each come first", [write(0, 1, A), read(2, 3, None)]),
    "new then old": ("must each come first", [write(0, 10, A), read(1, 3, A), read(4, 6, None)]),
    "two orders": (
        "must each come first",
        [write(0, 9, A), write(0, 9, B), read(10, 11, A), read(12, 13, B), read(14, 15, A)],
    ),
    "read from the future": ("comes after", [read(0, 1, A), write(2, 3, A)]),
    "phantom": ("nobody wrote", [read(0, 1, A)]),
    "phantom swap": ("nobody wrote", [cas(0, 1, A, B)]),
    "what did not apply is seen": ("did not take effect", [not_applied(write(0, 1, A)), read(2, 3, A)]),
    "a failed swap is seen": ("did not take effect", [write(0, 1, A), cas(2, 3, D, B, swapped=False), read(4, 5, B)]),
    "fork": ("a fork", [write(0, 1, A), cas(2, 9, A, B), cas(2, 9, A, C)]),
    "fork by an unanswered swap that was seen": (
        "a fork",
        [write(0, 1, A), cas(2, None, A, B), cas(2, 9, A, C), read(2, 9, B)],
    ),
    "fork of the absence": ("a fork", [cas(0, 9, None, A), cas(0, 9, None, B)]),
    "ring of swaps": ("no beginning", [cas(0, 9, A, B), cas(0, 9, B, A)]),
    "lost update": (
        "must each come first",
        [write(0, 1, A), write(2, 3, B), cas(4, 5, A, C)],
    ),
    "a write breaks into a line": (
        "must each come first",
        [write(0, 1, A), write(2, 3, B), read(4, 5, B), read(6, 7, A), cas(0, 9, A, C), read(10, 11, C)],
    ),
    "old value of a line": ("comes after", [write(0, 1, A), cas(2, 3, A, B), read(4, 5, A)]),
    "a swap before its value": ("comes after", [cas(0, 1, A, B), write(2, 3, A)]),
    "a failure that should have swapped": (
        "another value was there",
        [write(0, 1, A), cas(2, 3, A, B, swapped=False), read(4, 5, A)],
    ),
    "an insertion failed without a key": ("the key existed", [cas(0, 1, None, A, swapped=False), write(2, 3, B)]),
    "an unanswered swap cannot explain a failure, as it never happened": (
        "another value was there",
        [write(0, 1, A), cas(0, None, D, B), cas(2, 3, A, C, swapped=False)],
    ),
    "an unanswered write takes effect twice": (
        "must each come first",
        [write(0, None, A), read(1, 2, A), write(3, 4, B), read(5, 6, B), read(7, 8, A)],
    ),
    "deleted and back": ("must each come first", [write(0, 1, A), delete(2, 3), read(4, 5, A)]),
    "a delete found nothing": ("the key was absent", [write(0, 1, A), delete(2, 3, existed=False), delete(4, 5)]),
    "a delete found something": ("more than had been created", [delete(0, 1, existed=True), write(2, 3, A)]),
    "two deletes of one value": (
        "more than had been created",
        [write(0, 1, A), delete(2, 3, existed=True), delete(4, 5, existed=True)],
    ),
    "inserted twice": ("more than had been absences", [delete(0, 1), *(cas(2, 9, None, value) for value in (A, B, C))]),
    "inserted over a value": (
        "the key was absent",
        [delete(0, 1), write(2, 3, A), cas(4, 5, None, B), read(6, 7, B)],
    ),
    "absent without a delete": ("the key was absent", [write(0, 1, A), read(2, 3, None), delete(4, 5)]),
}

ACCEPTED: dict[str, list[Operation]] = {
    "nothing": [],
    "equal times count as concurrent": [write(0, 5, A), read(5, 6, None)],
    "two concurrent reads of a concurrent write differ": [write(0, 10, A), read(1, 9, A), read(2, 8, None)],
    "an unanswered write is seen much later": [write(0, None, A), read(50, 51, None), read(60, 61, A)],
    "an unanswered write overwrites a later one": [write(0, None, A), write(1, 2, B), read(3, 4, B), read(5, 6, A)],
    "an unanswered swap that only another unanswered one saw": [
        write(0, 1, A),
        cas(2, None, A, B),
        cas(3, None, B, C),
        read(9, 10, C),
    ],
    "an unanswered swap explains a failure": [write(0, 1, A), cas(2, None, A, B), cas(3, 4, A, C, swapped=False)],
    "an unanswered write explains a failure": [write(0, 1, A), write(2, None, B), cas(3, 4, A, C, swapped=False)],
    "an unanswered delete explains a failure": [write(0, 1, A), delete(2, None), cas(3, 4, A, C, swapped=False)],
    "a value tried again after a failed swap": [
        write(0, 1, A),
        cas(2, 3, D, B, swapped=False),
        cas(4, 5, A, B),
        read(6, 7, B),
    ],
    "a line, all concurrent": [cas(0, 9, B, C), cas(0, 9, A, B), cas(0, 9, None, A), read(0, 9, B), read(10, 11, C)],
    "inserted, deleted, inserted": [
        cas(0, 1, None, A),
        delete(2, 3, existed=True),
        delete(4, 5, existed=False),
        cas(6, 7, None, B),
        read(8, 9, B),
    ],
}


@pytest.mark.parametrize(("reason", "history"), REJECTED.values(), ids=REJECTED)
def test_illegal_histories_are_rejected(reason: str, history: list[Operation]) -> None:
    assert search(history, Register()).verdict is Verdict.NOT_LINEARIZABLE
    with pytest.raises(Violation, match=reason) as caught:
        check_registers(history)
    assert caught.value.checker == "register"


@pytest.mark.parametrize("history", ACCEPTED.values(), ids=ACCEPTED)
def test_odd_but_legal_histories_are_accepted(history: list[Operation]) -> None:
    assert search(history, Register()).verdict is Verdict.LINEARIZABLE
    assert check_registers(history) == len(history)


def test_a_value_that_is_written_twice_cannot_be_judged() -> None:
    with pytest.raises(ValueError, match="two operations write the value"):
        check_registers([write(0, 1, A), write(2, 3, A)])


def test_keys_are_judged_one_by_one() -> None:
    other = write(0, 1, A)
    other.key = b"other"
    assert check_registers([other, read(2, 3, None)]) == 2
