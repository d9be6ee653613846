"""The witness check of operations: their slots are the order that explains them, so nothing has to be searched.

One sweep compares slots with real time; one pass in slot order compares every result with a register. With a log at
hand, operations of unknown outcome find their place in it too, so that none has to be guessed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from fastpaxos_core.block import BlockView

from .history import LogModel, Violation, check_order_in_time
from .linearizability import Register
from .operations import Operation, OperationKind, Outcome

__all__ = ["check_witness", "place_operations"]


def place_operations(
    operations: Iterable[Operation], log: LogModel, encode: Callable[[Operation], bytes | None]
) -> int:
    """Fill in the slots of writes from the log that was applied, and return how many are in it. Raises Violation.

    Args:
        operations: a whole history. What is in the log and was not acknowledged keeps its outcome; its slot tells
            `check_witness` that it took effect.
        encode: returns the command of a write, None if its commands are not unique.
    """
    slots = {
        command: slot for entry in log.applied for slot, command in enumerate(BlockView(entry.block), entry.slot_begin)
    }
    placed = 0
    for operation in operations:
        command = None if operation.kind is OperationKind.READ else encode(operation)
        if command is None:
            continue
        slot: int | None = slots.get(command)
        if operation.slot is not None and operation.slot != slot:
            raise Violation(f"{operation} was told slot {operation.slot}, the log has it at {slot}", checker="results")
        if slot is None and operation.is_known:
            raise Violation(f"{operation} was acknowledged and is not in the log", checker="acknowledged-lost")
        operation.slot = slot
        placed += slot is not None
    return placed


def check_witness(operations: Iterable[Operation]) -> int:
    """Judge all operations that have a slot. Returns how many were judged. Raises Violation.

    Every operation that took effect must have its slot, or a value seems to come from nowhere; only reads may lack it,
    and are left out then.
    """
    placed = []
    for operation in operations:
        operation.validate()
        if operation.slot is not None:
            placed.append(operation)
        elif operation.is_known and operation.kind is not OperationKind.READ:
            raise ValueError(f"it took effect and has no slot: {operation}")
    _check_slots(placed)
    _check_real_time(placed)
    _check_results(placed)
    return len(placed)


def _check_slots(placed: list[Operation]) -> None:
    owners: dict[int, Operation] = {}
    for operation in placed:
        if operation.kind is OperationKind.READ or operation.slot is None:
            continue
        if operation.outcome is Outcome.NOT_APPLIED:
            raise Violation(f"{operation} is in the log at slot {operation.slot}", checker="refused")
        other = owners.setdefault(operation.slot, operation)
        if other is not operation:
            raise Violation(f"one slot, {operation.slot}, holds {other} and {operation}", checker="exactly-once")


def _check_real_time(placed: list[Operation]) -> None:
    starts, ends = [], []
    for operation in placed:
        slot = operation.slot or 0
        # A write lies behind all that had ended, a read may have seen just that.
        before = slot if operation.kind is OperationKind.READ else slot - 1
        starts.append((operation.invoked_ns, before, str(operation)))
        if operation.is_known and operation.answered_ns is not None:
            ends.append((operation.answered_ns, slot, str(operation)))
    check_order_in_time(starts, ends)


def _check_results(placed: list[Operation]) -> None:
    register = Register()
    values: dict[bytes, bytes | None] = defaultdict(register.init)
    # A read saw its slot applied, so it comes behind the write there.
    for operation in sorted(placed, key=lambda item: (item.slot or 0, item.kind is OperationKind.READ)):
        value = values[operation.key]
        fits, values[operation.key] = register.step(value, operation)
        if not fits:
            raise Violation(
                f"{operation} at slot {operation.slot}: by the slots before it the value is {value!r}",
                checker="results",
            )
