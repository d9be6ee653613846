"""What session clients ask for: commands that can be told apart, so that every answer can be judged.

`HashChainWorkload` writes anything that is unique. `KeyValueWorkload` uses a few keys of the key-value machine, with
unique values, which are also judged as `Operation`s, without looking at any log.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from operator import itemgetter
from random import Random
from typing import Any, Protocol

import msgpack

from fastpaxos.kv import (
    CAS,
    DELETE,
    GET,
    PUT,
    KeyValueMachine,
    encode_compare_and_set,
    encode_get,
    encode_increment,
    encode_put,
)
from fastpaxos.statemachine import ApplyContext, QueryContext
from fastpaxos_core.block import BlockView

from .history import Call, ClientHistory, LogModel, Read, Violation, check_order_in_time
from .linearizability import check_linearizable
from .operations import Operation, OperationKind, Outcome
from .register_check import check_registers

__all__ = ["HashChainWorkload", "KeyValueWorkload", "Workload"]

_KEYS = 4
_COUNTERS = 2
_COMMAND_BYTES_MAX = 40
_STEPS_MAX = 20_000
_KINDS = {
    PUT: OperationKind.WRITE,
    CAS: OperationKind.CAS,
    DELETE: OperationKind.DELETE,
    GET: OperationKind.READ,
}


class Workload(Protocol):
    """Makes the calls of all session clients of a simulation, and judges their answers."""

    def write(self, client: str, commands: int) -> Call:
        """Return a call of that many commands."""

    def read(self, client: str) -> Call:
        """Return a query."""

    def answered(self, call: Call) -> None:
        """A call has its answer."""

    def check(self, log: LogModel) -> None:
        """Judge everything. Raises Violation."""


class HashChainWorkload:
    """Unique commands for the hash chain, whose results are their positions in the applied order."""

    def __init__(self, history: ClientHistory, random: Random) -> None:
        self._history = history
        self._random = random
        self._number = 0

    def write(self, client: str, commands: int) -> Call:
        """Return a call of that many commands."""
        made = []
        for _ in range(commands):
            self._number += 1
            made.append(b"s%d:" % self._number + bytes(self._random.randrange(_COMMAND_BYTES_MAX)))
        call = Call(client, made)
        self._history.calls.append(call)
        return call

    def read(self, client: str) -> Call:
        """Ask how many commands were applied."""
        return Call(client, [])

    def answered(self, call: Call) -> None:
        """Keep what a read saw."""
        if not call.commands and call.results is not None:
            result = call.results[0]
            if not isinstance(result, bytes):
                raise Violation(f"{call} failed: {result!r}", checker="results")
            _, count, _ = msgpack.unpackb(result)
            self._history.reads.append(Read(call.client, call.invoked_ns, call.answered_ns, count))

    def check(self, log: LogModel) -> None:
        """Every result is the position at which the log has the command."""
        positions = log.positions()
        for call in self._history.calls:
            if call.commands and call.results is not None:
                told = [int.from_bytes(result, "little") for result in call.results]
                expected = [positions.get(command) for command in call.commands]
                if told != expected:
                    raise Violation(f"{call} was told positions {told}, it stands at {expected}", checker="results")


class KeyValueWorkload:
    """put, compare and set, delete, increment and get on a few keys.

    What clients were told is judged three times: by a replay of the log, by the order of revisions in real time, and
    (registers only) without any log.
    """

    def __init__(self, history: ClientHistory, random: Random) -> None:
        self._history = history
        self._random = random
        self._number = 0
        self._seen: dict[bytes, bytes | None] = {}

    def write(self, client: str, commands: int) -> Call:
        """Return a call of that many commands."""
        call = Call(client, [self._command() for _ in range(commands)])
        self._history.calls.append(call)
        return call

    def read(self, client: str) -> Call:
        """Ask for one key."""
        call = Call(client, [], encode_get(self._key()))
        self._history.calls.append(call)
        return call

    def _key(self) -> bytes:
        return b"key-%d" % self._random.randrange(_KEYS)

    def _command(self) -> bytes:
        """A command unlike any other: by its value, its increment, or a truthy number where delete takes a flag."""
        random = self._random
        self._number += 1
        value = b"%d" % self._number
        what = random.random()
        key = self._key()
        if what < 0.4:
            return encode_put(key, value, want_previous=random.random() < 0.5)
        if what < 0.7:
            return encode_compare_and_set(key, self._seen.get(key), value)
        if what < 0.8:
            delete: bytes = msgpack.packb([DELETE, key, self._number])
            return delete
        return encode_increment(b"counter-%d" % random.randrange(_COUNTERS), self._number)

    def answered(self, call: Call) -> None:
        """Learn which values there are, so that some compare and set succeed."""
        for command, result in zip(call.commands or [call.request], call.results or [], strict=False):
            if isinstance(result, bytes):
                fields: list[Any] = msgpack.unpackb(command)
                told: list[Any] = msgpack.unpackb(result)
                if fields[0] == PUT:
                    self._seen[fields[1]] = fields[2]
                elif fields[0] in (CAS, GET):
                    self._seen[fields[1]] = told[-1] and told[-1][0]

    def operations(self) -> list[Operation]:
        """What became of each operation on a register, as its client saw it."""
        made = []
        for call in self._history.calls:
            commands = call.commands or [call.request]
            results = call.results or [None] * len(commands)
            for command, result in zip(commands, results, strict=True):
                operation = _operation(call, msgpack.unpackb(command), result)
                if operation is not None:
                    made.append(operation)
        return made

    def check(self, log: LogModel) -> None:
        """Every result is what a machine of the same kind gives that is fed the log, and what clients saw fits."""
        replay = _Replay(log)
        starts: list[tuple[int, int, str]] = []
        ends: list[tuple[int, int, str]] = []
        for call in self._history.calls:
            if call.results is None or call.answered_ns is None:
                continue
            revisions = []
            for command, result in zip(call.commands or [call.request], call.results, strict=True):
                replay.check(call, command, result)
                if isinstance(result, bytes):
                    revisions.append(msgpack.unpackb(result)[0])
            if revisions:
                starts.append((call.invoked_ns, revisions[0], str(call)))
                ends.append((call.answered_ns, revisions[-1], str(call)))
        check_order_in_time(starts, ends)
        operations = self.operations()
        check_registers(operations)
        check_linearizable(operations, steps_max=_STEPS_MAX)


def _operation(call: Call, fields: list[Any], result: Any) -> Operation | None:
    """One command as an operation on a register; None for an increment, which is none."""
    kind = _KINDS.get(fields[0])
    if kind is None:
        return None
    value = fields[-1] if kind is OperationKind.CAS else fields[2] if kind is OperationKind.WRITE else None
    expected = fields[2] if kind is OperationKind.CAS else None
    operation = Operation(call.client, fields[1], kind, value, expected, call.invoked_ns, outcome=call.outcome)
    if call.outcome is not Outcome.UNKNOWN:
        operation.answered_ns = call.answered_ns
    if call.outcome is Outcome.OK:
        if not isinstance(result, bytes):
            raise Violation(f"{call} failed: {result!r}", checker="results")
        told = msgpack.unpackb(result)
        if kind is OperationKind.READ:
            operation.result = told[1] and told[1][0]
        elif kind is not OperationKind.WRITE:
            operation.result = told[1]
    return operation


class _Replay:
    """The results of all commands of a log, and every value that a key had, by a machine of its own."""

    def __init__(self, log: LogModel) -> None:
        machine = KeyValueMachine()
        self._results: dict[bytes, bytes] = {}
        self._values: dict[bytes, list[tuple[int, Any]]] = defaultdict(list)
        for entry in log.applied:
            for command in BlockView(entry.block):
                key = msgpack.unpackb(command)[1]
                self._results[command] = machine.apply(command, ApplyContext(entry.slot_begin, 0))
                _, found = msgpack.unpackb(machine.query(encode_get(key), QueryContext(entry.slot_begin, 0)))
                self._values[key].append((machine.revision, found))

    def check(self, call: Call, command: bytes, result: Any) -> None:
        """Compare what a client was told. Raises Violation."""
        fields = msgpack.unpackb(command)
        if fields[0] != GET:
            expected: Any = self._results.get(command)
        else:
            revision, _ = msgpack.unpackb(result)
            values = self._values[fields[1]]
            number = bisect_right(values, revision, key=itemgetter(0))
            expected = msgpack.packb([revision, values[number - 1][1] if number else None])
        if result != expected:
            raise Violation(f"{call} was told {result!r}, a replay of the log gives {expected!r}", checker="results")
