"""Every operation of a chaos run as its caller saw it: asked when, told what, and when."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from fastpaxos.errors import ClientError, CommandError, NotApplied
from fastpaxos.kv import CAS, GET, INCREMENT, PUT
from fastpaxos.testing.operations import Operation, OperationKind, Outcome

__all__ = ["Call", "call_from_json", "read_calls", "shown", "to_operation", "write_calls"]


SHOWN_MAX = 120


@dataclass(slots=True, eq=False)
class Call:
    """One command or query. Times are those of the monotonic clock of the recording process.

    No two commands of a round have the same bytes, so a log tells which call each of its commands belongs to.
    """

    client: str
    request: bytes
    is_query: bool
    invoked_ns: int
    answered_ns: int | None = None
    outcome: Outcome = Outcome.UNKNOWN
    result: bytes | None = None
    """What was answered; None for an error, the machine's included."""
    error: str = ""
    """"ClassName: message" of an error. With outcome OK it is the machine's, and its class the state machine's."""

    def answer(self, result: bytes, now_ns: int) -> None:
        """Note the answer."""
        self.result, self.answered_ns, self.outcome = result, now_ns, Outcome.OK

    def fail(self, error: ClientError, now_ns: int) -> None:
        """Note what the error says about the effect."""
        if isinstance(error, CommandError):
            self.outcome, self.answered_ns, self.error = Outcome.OK, now_ns, f"{error.type_name}: {error.message}"
            return
        self.error = f"{type(error).__name__}: {error}"
        if isinstance(error, NotApplied) or not error.may_have_applied:
            self.outcome, self.answered_ns = Outcome.NOT_APPLIED, now_ns

    def give_up(self, why: str) -> None:
        """Note that the caller did not wait for an answer."""
        self.error = why

    def to_json(self) -> str:
        """Return one line of JSON, without its end."""
        return json.dumps(
            {
                "client": self.client,
                "request": self.request.hex(),
                "is_query": self.is_query,
                "invoked_ns": self.invoked_ns,
                "answered_ns": self.answered_ns,
                "outcome": self.outcome.value,
                "result": None if self.result is None else self.result.hex(),
                "error": self.error,
            }
        )

    def __str__(self) -> str:
        told = self.outcome.value
        if self.result is not None:
            told = shown(self.result)
        elif self.error:
            told += f" ({self.error[:80]})"
        return f"{self.client}: {shown(self.request)} = {told} [{self.invoked_ns}, {self.answered_ns}] ns"


def shown(packed: bytes) -> str:
    """What a command or a result says, for a person: long values are cut."""
    text = repr(msgpack.unpackb(packed))
    return text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}..."


def call_from_json(line: str) -> Call:
    """Return the call of one line. Raises ValueError."""
    try:
        fields: dict[str, Any] = json.loads(line)
        result = fields["result"]
        return Call(
            client=fields["client"],
            request=bytes.fromhex(fields["request"]),
            is_query=bool(fields["is_query"]),
            invoked_ns=fields["invoked_ns"],
            answered_ns=fields["answered_ns"],
            outcome=Outcome(fields["outcome"]),
            result=None if result is None else bytes.fromhex(result),
            error=fields["error"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"no call: {line.strip()[:200]!r}: {error}") from error


def write_calls(path: Path, calls: Iterable[Call]) -> None:
    """Write one line per call."""
    with path.open("w", encoding="ascii") as file:
        file.writelines(f"{call.to_json()}\n" for call in calls)


def read_calls(path: Path) -> Iterator[Call]:
    """Give the calls of a file in order. Raises ValueError."""
    with path.open(encoding="ascii") as file:
        for line in file:
            yield call_from_json(line)


def to_operation(call: Call) -> Operation | None:
    """The call as an operation on a register; None for increments and for what the machine refused."""
    operation, key, *fields = msgpack.unpackb(call.request)
    if operation == INCREMENT or (call.outcome is Outcome.OK and call.result is None):
        return None
    answer = None if call.result is None else msgpack.unpackb(call.result)
    value: bytes | None = None
    expected: bytes | None = None
    result: bytes | bool | None = None
    if operation == GET:
        kind = OperationKind.READ
        if answer is not None and answer[1] is not None:
            result = answer[1][0]
    elif operation == PUT:
        kind, value = OperationKind.WRITE, fields[0]
    else:
        assert operation == CAS
        kind, (expected, value) = OperationKind.CAS, fields
        if answer is not None:
            result = bool(answer[1])
    return Operation(
        client=call.client,
        key=key,
        kind=kind,
        value=value,
        expected=expected,
        invoked_ns=call.invoked_ns,
        answered_ns=call.answered_ns,
        outcome=call.outcome,
        result=result,
    )
