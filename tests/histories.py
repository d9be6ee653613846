"""Random histories of one key for the tests of checkers, and a checker that is too simple to be wrong."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from random import Random

import msgpack

from fastpaxos.testing.linearizability import Register
from fastpaxos.testing.operations import Operation, OperationKind, Outcome
from fastpaxos_core.block import build_control

READ, WRITE, CAS, DELETE = OperationKind.READ, OperationKind.WRITE, OperationKind.CAS, OperationKind.DELETE
OK, NOT_APPLIED, UNKNOWN = Outcome.OK, Outcome.NOT_APPLIED, Outcome.UNKNOWN
KEY = b"k"


def read(begin: int, end: int, result: bytes | None, client: str = "r") -> Operation:
    return Operation(client, KEY, READ, None, None, begin, end, OK, result)


def write(begin: int, end: int | None, value: bytes, client: str = "w") -> Operation:
    return Operation(client, KEY, WRITE, value, None, begin, end, UNKNOWN if end is None else OK)


def cas(begin: int, end: int | None, expected: bytes | None, value: bytes, swapped: bool | None = True) -> Operation:
    known = end is not None
    return Operation("c", KEY, CAS, value, expected, begin, end, OK if known else UNKNOWN, swapped if known else None)


def delete(begin: int, end: int | None, existed: bool | None = None) -> Operation:
    return Operation("d", KEY, DELETE, None, None, begin, end, UNKNOWN if end is None else OK, existed)


def not_applied(operation: Operation) -> Operation:
    return replace(operation, outcome=NOT_APPLIED, result=None)


def legal_history(
    random: Random, size: int, *, deletes: bool, unknown: float, span: int = 12, duration: int = 6
) -> list[Operation]:
    """A history that some order explains: every operation takes effect at one moment between its ends."""
    kinds = [READ, READ, READ, WRITE, WRITE, CAS, CAS, CAS] + [DELETE] * (2 * deletes)
    plans = []
    for number in range(size):
        begin = random.randrange(span)
        end = begin + random.randrange(1 + duration)
        outcome = OK
        # Twice as fine as the times, so that points may also lie between them.
        point: float = random.randint(2 * begin, 2 * end) / 2
        if random.random() < unknown:
            outcome = random.choice([NOT_APPLIED, UNKNOWN, UNKNOWN])
            point = random.choice([point, point + duration, float("inf")])
        plans.append((point, random.random(), number, begin, end, outcome, random.choice(kinds)))
    state: bytes | None = None
    operations: list[tuple[int, Operation]] = []
    values = count(1)
    written: list[bytes] = []
    for point, _, number, begin, end, outcome, kind in sorted(plans, key=lambda plan: plan[:3]):
        value = b"v%d" % next(values) if kind in (WRITE, CAS) else None
        if value is not None:
            written.append(value)
        is_likely = random.random() < 0.7
        expected = (state if is_likely else random.choice([None, *written[:-1]])) if kind is CAS else None
        operation = Operation(f"c{number}", KEY, kind, value, expected, begin, end, outcome)
        if outcome is not OK:
            operation.answered_ns = random.choice([None, end])
        if outcome is not NOT_APPLIED and point != float("inf"):
            result, state = effect(operation, state, random)
            operation.result = result if outcome is OK else None
        operations.append((number, operation))
    return [operation for _, operation in sorted(operations, key=lambda pair: pair[0])]


def effect(operation: Operation, state: bytes | None, random: Random) -> tuple[bytes | bool | None, bytes | None]:
    """Result and new state, told apart from `Register.step` on purpose."""
    if operation.kind is READ:
        return state, state
    if operation.kind is WRITE:
        return None, operation.value
    if operation.kind is DELETE:
        return random.choice([state is not None, state is not None, None]), None
    return (True, operation.value) if state == operation.expected else (False, state)


def spoiled(random: Random, operations: list[Operation]) -> list[Operation]:
    """The same history with one fact changed; it may be legal still."""
    changed = [replace(operation) for operation in operations]
    known = [operation for operation in changed if operation.outcome is OK]
    if not known:
        return changed
    victim = random.choice(known)
    if random.random() < 0.3:
        shift = random.choice([-6, -4, 4, 6])
        victim.invoked_ns += shift
        victim.answered_ns = (victim.answered_ns or 0) + shift
    elif victim.kind is READ:
        victim.result = random.choice([None, b"phantom", *(item.value for item in changed if item.value is not None)])
    elif victim.kind is CAS or (victim.kind is DELETE and victim.result is not None):
        victim.result = not victim.result
    elif victim.kind is WRITE and random.random() < 0.3:
        victim.outcome = NOT_APPLIED
    else:
        victim.answered_ns = victim.invoked_ns
    return changed


def brute_force(operations: list[Operation]) -> bool:
    """Try every order of every choice of the unknown ones."""
    live = [
        operation
        for operation in operations
        if operation.outcome is OK or (operation.outcome is UNKNOWN and operation.kind is not READ)
    ]
    return _any_order(live, None)


def _any_order(left: list[Operation], state: bytes | None) -> bool:
    if all(operation.outcome is UNKNOWN for operation in left):
        return True
    for index, operation in enumerate(left):
        others = left[:index] + left[index + 1 :]
        if any(precedes(other, operation) for other in others):
            continue
        fits, after = Register().step(state, operation)
        if fits and _any_order(others, after):
            return True
    return False


def precedes(one: Operation, other: Operation) -> bool:
    """`one` was answered before `other` was asked."""
    return one.outcome is OK and one.answered_ns is not None and one.answered_ns < other.invoked_ns


def opening(number: int) -> bytes:
    return build_control(msgpack.packb({"op": "open_session", "nonce": bytes([number]) * 16}))


def closing(session_id: int) -> bytes:
    return build_control(msgpack.packb({"op": "close_session", "session_id": session_id}))
