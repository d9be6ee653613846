"""The verdict by the log: every call against the order in which the replicas applied the commands.

The order of the log is the witness of linearizability. Every answer must be the one that follows from it by replay,
every acknowledged command stands in it once, what was refused stands nowhere, and what ended before something else
began stands before it. One sweep judges a history of any length in O(n log n).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from fastpaxos.cli.journal import journal_directory
from fastpaxos.errors import CorruptionError
from fastpaxos.kv import KeyValueMachine, encode_get
from fastpaxos.statemachine import ApplyContext, QueryContext
from fastpaxos.testing.chaos.calls import Call, shown
from fastpaxos.testing.history import LogModel, Violation
from fastpaxos.testing.operations import Outcome
from fastpaxos_core import journal_recovery
from fastpaxos_core.block import BlockView

__all__ = ["Applied", "CallCheck", "applied_commands", "check_calls", "check_replicas", "read_log"]

SESSIONS_MAX = 4096  # the default of NodeConfig, which the replicas run with


@dataclass(frozen=True, slots=True)
class Applied:
    """One command that took effect, in the order of the log."""

    slot: int
    command: bytes

    def __str__(self) -> str:
        return f"{shown(self.command)} at slot {self.slot}"


def read_log(data_dir: Path, applied_index: int) -> LogModel:
    """What a stopped replica applied, by its journal and a plain session table. Raises Violation if it cannot be read.

    A journal may know a lower commit index than its replica did: what it accepted last follows then.
    """
    log = LogModel(SESSIONS_MAX)
    directory = journal_directory(data_dir)
    try:
        accepted = journal_recovery.inspect(directory).batches
        for batch in (*journal_recovery.iterate_batches(directory), *accepted):
            if log.end_slot <= batch.slot_begin and batch.slot_end - 1 <= applied_index:
                log.append(batch.slot_begin, batch.slot_end, bytes(batch.block))
    except CorruptionError as error:
        raise Violation(f"{data_dir.name}: {error}") from error
    if log.end_slot != applied_index + 1:
        raise Violation(f"{data_dir.name} applied {applied_index} slots, but its journal has {log.end_slot - 1}")
    return log


def applied_commands(log: LogModel) -> list[Applied]:
    """The commands that took effect, in their order."""
    return [
        Applied(entry.slot_begin + offset, command)
        for entry in log.applied
        for offset, command in enumerate(BlockView(entry.block))
    ]


def check_replicas(logs: Mapping[int, Sequence[Applied]], digests: Mapping[int, str]) -> list[str]:
    """All replicas applied the same commands in one order, and report the digest that follows from it."""
    problems: list[str] = []
    if not logs:
        return ["no replica has a log"]
    first, *others = logs
    for other in others:
        for number, (mine, theirs) in enumerate(zip(logs[first], logs[other], strict=False), 1):
            if mine != theirs:
                problems.append(f"command {number} is {mine} at replica {first} and {theirs} at replica {other}")
                break
        if len(logs[first]) != len(logs[other]):
            problems.append(f"replica {first} applied {len(logs[first])} commands, replica {other} {len(logs[other])}")
    replay = Replay(logs[first])
    for node_id, digest in digests.items():
        if digest != replay.digest:
            problems.append(f"replica {node_id} reports digest {digest}, by the log it is {replay.digest}")
    return problems


class Replay:
    """The key-value machine run over a log, with what it answered and every state that it went through.

    Attributes:
        answers: what each command gave, by position - 1: the result, or "ClassName: message" of the machine's error.
        revisions: the revision after each command, by position - 1.
    """

    def __init__(self, log: Sequence[Applied]) -> None:
        self.answers: list[bytes | str] = []
        self.revisions: list[int] = []
        self._states: dict[bytes, tuple[list[int], list[Any]]] = {}
        machine = KeyValueMachine()
        for applied in log:
            try:
                self.answers.append(machine.apply(applied.command, ApplyContext(applied.slot, 0)))
            except ValueError as error:
                self.answers.append(f"{type(error).__name__}: {error}")
            self.revisions.append(machine.revision)
            key = msgpack.unpackb(applied.command)[1]
            _, entry = msgpack.unpackb(machine.query(encode_get(key), QueryContext(applied.slot, 0)))
            revisions, entries = self._states.setdefault(key, ([], []))
            if entry is not None and (not entries or entry != entries[-1]):
                revisions.append(machine.revision)
                entries.append(entry)
        self.digest = machine.digest()

    @property
    def last_revision(self) -> int:
        """The revision at the end of the log."""
        return self.revisions[-1] if self.revisions else 0

    def state_at(self, key: bytes, revision: int) -> Any:
        """What a read of `key` finds at a revision."""
        revisions, entries = self._states.get(key, ([], []))
        number = bisect_right(revisions, revision)
        return entries[number - 1] if number else None

    def positions_at(self, revision: int) -> tuple[int, int]:
        """Behind how many commands, at least and at most, a state has this revision."""
        first = bisect_left(self.revisions, revision) + 1 if revision else 0
        return first, bisect_right(self.revisions, revision)


class CallCheck:
    """Judges calls by the log. `problems` has a sentence for each wrong one, `checked` counts all."""

    def __init__(self, calls: Sequence[Call], log: Sequence[Applied]) -> None:
        self.checked = 0
        self.problems: list[str] = []
        self._calls = calls
        self._log = log
        self._replay = Replay(log)
        self._positions: dict[bytes, int] = {}
        self._begins: list[tuple[int, int, Call]] = []
        self._ends: list[tuple[int, int, Call]] = []

    def run(self) -> CallCheck:
        """Judge every call."""
        issued = {call.request for call in self._calls if not call.is_query}
        if len(issued) != sum(not call.is_query for call in self._calls):
            self.problems.append("two calls have the same command: the run itself is wrong")
        for position, applied in enumerate(self._log, 1):
            if applied.command in self._positions:
                first = self._log[self._positions[applied.command] - 1].slot
                self.problems.append(
                    f"command {shown(applied.command)} took effect at slots {first} and {applied.slot}"
                )
            elif applied.command not in issued:
                self.problems.append(
                    f"slot {applied.slot} holds a command that nobody issued: {shown(applied.command)}"
                )
            self._positions[applied.command] = position
        for call in self._calls:
            if call.is_query:
                self._check_query(call)
            else:
                self._check_command(call)
            self.checked += 1
        self._check_real_time()
        return self

    def _check_command(self, call: Call) -> None:
        position = self._positions.get(call.request)
        if position is None:
            if call.outcome is Outcome.OK:
                self.problems.append(f"acknowledged and lost: {call}")
            return
        slot = self._log[position - 1].slot
        if call.outcome is Outcome.NOT_APPLIED:
            self.problems.append(f"refused, and yet it took effect at slot {slot}: {call}")
        self._begins.append((call.invoked_ns, position, call))
        if call.outcome is Outcome.OK:
            assert call.answered_ns is not None
            self._ends.append((call.answered_ns, position, call))
            told = call.error if call.result is None else call.result
            if told != self._replay.answers[position - 1]:
                answer = self._replay.answers[position - 1]
                self.problems.append(f"slot {slot} gives {answer!r:.200}, which is not what was told: {call}")

    def _check_query(self, call: Call) -> None:
        if call.outcome is not Outcome.OK:
            return
        if call.result is None or call.answered_ns is None:
            self.problems.append(f"a read has no result: {call}")
            return
        revision, found = msgpack.unpackb(call.result)
        if revision > self._replay.last_revision:
            self.problems.append(f"a read of a revision that the log does not reach: {call}")
            return
        expected = self._replay.state_at(msgpack.unpackb(call.request)[1], revision)
        if found != expected:
            self.problems.append(f"at revision {revision} the log says {expected!r:.200}: {call}")
        first, last = self._replay.positions_at(revision)
        self._begins.append((call.invoked_ns, last, call))
        self._ends.append((call.answered_ns, first, call))

    def _check_real_time(self) -> None:
        """What ended before something began stands before it: a read at the last place that fits, if it began, and at
        the first one, if it ended."""
        self._begins.sort(key=lambda entry: entry[0])
        self._ends.sort(key=lambda entry: entry[0])
        highest, witness, next_end = 0, None, 0
        for invoked_ns, position, call in self._begins:
            while next_end < len(self._ends) and self._ends[next_end][0] < invoked_ns:
                if self._ends[next_end][1] > highest:
                    _, highest, witness = self._ends[next_end]
                next_end += 1
            if position < highest or (position == highest and not call.is_query):
                self.problems.append(
                    f"stands at position {position}, but at {highest} had ended before: {call}; {witness}"
                )


def check_calls(calls: Sequence[Call], log: Sequence[Applied]) -> CallCheck:
    """Judge every call by the log."""
    return CallCheck(calls, log).run()
