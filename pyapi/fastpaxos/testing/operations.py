"""What one client asked of one key and was told: the common record of simulations, chaos runs and their checkers.

A history is a list of `Operation`. In a file each is one line of JSON, so that a run that failed can be kept and judged
again; bytes are written as hexadecimal digits, and lines are checked when they are read back.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any

__all__ = ["Operation", "OperationKind", "Outcome", "operation_from_json", "read_history", "write_history"]


class OperationKind(Enum):
    """What was asked."""

    READ = "read"
    WRITE = "write"
    CAS = "cas"
    """Compare and set: store `value` if the key has the value `expected` (None: if there is no such key)."""
    DELETE = "delete"


_RESULTS: dict[OperationKind, tuple[type, ...]] = {
    OperationKind.READ: (bytes, NoneType),
    OperationKind.WRITE: (NoneType,),
    OperationKind.CAS: (bool,),
    OperationKind.DELETE: (bool, NoneType),
}


class Outcome(Enum):
    """What the client knows of the effect."""

    OK = "ok"
    NOT_APPLIED = "not_applied"
    """The client was told that it never took effect and never will."""
    UNKNOWN = "unknown"
    """No answer, or OutcomeUnknown: it takes effect at any later time, once, or never."""


@dataclass(slots=True)
class Operation:
    """One operation on one key. Times are nanoseconds on one clock that all clients of the history share."""

    client: str
    key: bytes
    kind: OperationKind
    value: bytes | None
    """What is written; None for READ and DELETE."""
    expected: bytes | None
    """CAS: the value that must be there; None for an absent key, and for every other kind."""
    invoked_ns: int
    answered_ns: int | None = None
    outcome: Outcome = Outcome.UNKNOWN
    result: bytes | bool | None = None
    """READ: the value, None if the key was absent. CAS: whether it swapped. DELETE: whether the key was there, None if
    that was not told. WRITE: None."""
    slot: int | None = None
    """Where the log put it, if that is known. READ: the last slot that had been applied where it was answered."""

    @property
    def is_known(self) -> bool:
        """It took effect, and the client has its result."""
        return self.outcome is Outcome.OK

    def validate(self) -> None:
        """Raise ValueError if this is no record of an operation: answered before it was asked, a wrong type, a lack."""
        writes = self.kind in (OperationKind.WRITE, OperationKind.CAS)
        if writes is (self.value is None):
            raise ValueError(f"{'no value' if writes else 'a value'}: {self}")
        if self.answered_ns is not None and self.answered_ns < self.invoked_ns:
            raise ValueError(f"answered at {self.answered_ns} ns, asked at {self.invoked_ns} ns: {self}")
        if self.is_known:
            if self.answered_ns is None:
                raise ValueError(f"no time of the answer: {self}")
            if not isinstance(self.result, _RESULTS[self.kind]):
                raise ValueError(f"a result of another type: {self}")

    def to_json(self) -> str:
        """Return one line of JSON, without its end."""
        result = self.result
        return json.dumps(
            {
                "client": self.client,
                "key": self.key.hex(),
                "kind": self.kind.value,
                "value": _hex(self.value),
                "expected": _hex(self.expected),
                "invoked_ns": self.invoked_ns,
                "answered_ns": self.answered_ns,
                "outcome": self.outcome.value,
                "result": result if isinstance(result, bool) else _hex(result),
                "slot": self.slot,
            }
        )

    def __str__(self) -> str:
        """Return one line for a person."""
        what = f"{self.kind.value} {self.key!r}"
        if self.kind is OperationKind.CAS:
            what += f" {self.expected!r} -> {self.value!r}"
        elif self.kind is OperationKind.WRITE:
            what += f" {self.value!r}"
        told = self.outcome.value
        if self.is_known and self.kind is not OperationKind.WRITE:
            told = repr(self.result)
        return f"{self.client}: {what} = {told} [{self.invoked_ns}, {self.answered_ns}] ns"


def operation_from_json(line: str) -> Operation:
    """Return the operation of one line. Raises ValueError that names what is wrong with it."""
    try:
        fields: dict[str, Any] = json.loads(line)
        result = fields["result"]
        operation = Operation(
            client=fields["client"],
            key=bytes.fromhex(fields["key"]),
            kind=OperationKind(fields["kind"]),
            value=_bytes(fields["value"]),
            expected=_bytes(fields["expected"]),
            invoked_ns=fields["invoked_ns"],
            answered_ns=fields["answered_ns"],
            outcome=Outcome(fields["outcome"]),
            result=result if isinstance(result, bool) else _bytes(result),
            slot=fields["slot"],
        )
        operation.validate()
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"no operation: {line.strip()[:200]!r}: {error}") from error
    return operation


def write_history(path: Path, operations: Iterable[Operation]) -> None:
    """Write one line per operation, in the order given."""
    with path.open("w", encoding="ascii") as file:
        file.writelines(f"{operation.to_json()}\n" for operation in operations)


def read_history(path: Path) -> Iterator[Operation]:
    """Give the operations of a file in order. Raises ValueError with the number of the line that is wrong."""
    with path.open(encoding="ascii") as file:
        for number, line in enumerate(file, 1):
            try:
                yield operation_from_json(line)
            except ValueError as error:
                raise ValueError(f"{path.name}, line {number}: {error}") from error


def _hex(value: bytes | None) -> str | None:
    return None if value is None else value.hex()


def _bytes(digits: str | None) -> bytes | None:
    return None if digits is None else bytes.fromhex(digits)
