"""What clients saw, judged by the log alone: exactly once, for ever, in one order that respects real time.

`LogModel` replays the chosen log with a deliberately plain session table; `ClientHistory` keeps what clients asked and
were told. Slot order is the witness of linearizability: positions in the applied order are compared with real time by
one sweep, and all results with those of a fresh state machine that is given the log, so a history of any length is
judged in O(n log n).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import msgpack

from fastpaxos.statemachine import BatchRun, QueryContext, query_machine
from fastpaxos_core.block import BlockView
from fastpaxos_core.results import CommandFailure, decode_results
from fastpaxos_core.wire import ReplyStatus

from .operations import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastpaxos.statemachine import StateMachine

__all__ = [
    "BLOCK_COMMANDS",
    "BLOCK_CONTROL",
    "BLOCK_NOOP",
    "AppliedEntry",
    "Call",
    "ClientHistory",
    "LogModel",
    "Read",
    "Result",
    "Violation",
    "Write",
    "check_order_in_time",
]

BLOCK_COMMANDS = 0
BLOCK_NOOP = 1
BLOCK_CONTROL = 2

Result: TypeAlias = bytes | CommandFailure


class Violation(AssertionError):  # noqa: N818 - named like what it reports
    """A property that must always hold does not. The message names the property and the facts.

    Args:
        checker: short stable name of the check that found it, for tables of what each check finds.
    """

    def __init__(self, message: str, checker: str = "protocol") -> None:
        super().__init__(message)
        self.checker = checker


@dataclass(frozen=True, slots=True)
class AppliedEntry:
    """One batch whose commands every state machine must see."""

    slot_begin: int
    slot_end: int
    session_id: int
    first_sequence: int
    first_position: int
    """Number of the first command in the applied order, from 1."""
    block: bytes
    now_ns: int = 0
    """Replicated time of the batch: that of its leader, unless an earlier batch was later."""

    @property
    def last_position(self) -> int:
        return self.first_position + (self.slot_end - self.slot_begin) - 1


@dataclass(slots=True)
class _Session:
    nonce: bytes
    last_sequence: int = 0
    entries: dict[int, AppliedEntry] = field(default_factory=dict)


class LogModel:
    """The applied order that follows from the chosen log: duplicates, unknown sessions and gaps left out.

    Args:
        sessions_max: size of the replicated session table; the least recently used session makes room.
    """

    def __init__(self, sessions_max: int) -> None:
        self.sessions_max = sessions_max
        self.end_slot = 1
        """First slot that has not been taken in."""
        self.applied: list[AppliedEntry] = []
        self.commands = 0
        self.evictions = 0
        self.duplicates = 0
        self.opened: dict[bytes, int] = {}
        """Session id by nonce, over the whole log."""
        self.entry_of: dict[tuple[int, int], AppliedEntry] = {}
        """Where (session id, first sequence) took effect, over the whole log."""
        self.ended: set[int] = set()
        """Sessions that were closed or pushed out."""
        self._times: list[tuple[int, int]] = [(0, 0)]
        """(last slot, replicated time behind it) of every batch."""
        self._sessions: OrderedDict[int, _Session] = OrderedDict()

    def now_ns_at(self, slot: int) -> int:
        """Replicated time when all slots up to `slot`, the last one of a batch, are applied. Raises ValueError."""
        last_slot, now_ns = self._times[bisect_right(self._times, (slot, 1 << 64)) - 1]
        if last_slot != slot:
            raise ValueError(f"no batch ends with slot {slot}")
        return now_ns

    def append(self, slot_begin: int, slot_end: int, block: bytes, timestamp_ns: int = 0) -> None:
        """Take in the next chosen batch; `timestamp_ns` is part of the value."""
        if slot_begin != self.end_slot:
            raise Violation(
                f"chosen batches do not tile the log: [{slot_begin}, {slot_end}) follows slot {self.end_slot - 1}",
                checker="log",
            )
        view = BlockView(block)
        self.end_slot = slot_end
        if view.command_count != slot_end - slot_begin:
            raise Violation(f"batch [{slot_begin}, {slot_end}) holds {view.command_count} commands", checker="log")
        self._times.append((slot_end - 1, max(self._times[-1][1], timestamp_ns)))
        if view.kind == BLOCK_COMMANDS:
            self._append_commands(slot_begin, slot_end, block, view)
        elif view.kind == BLOCK_CONTROL:
            self._append_control(slot_begin, msgpack.unpackb(view[0]))

    def positions(self) -> dict[bytes, int]:
        """Position of every command in the applied order. Raises Violation for one that stands there twice.

        Commands of a simulation are unique.
        """
        found: dict[bytes, int] = {}
        for entry in self.applied:
            for position, command in enumerate(BlockView(entry.block), entry.first_position):
                if found.setdefault(command, position) != position:
                    raise Violation(
                        f"command {command!r} applied at positions {found[command]} and {position} (slot "
                        f"{entry.slot_begin})",
                        checker="exactly-once",
                    )
        return found

    def _append_control(self, slot: int, entry: dict[str, Any]) -> None:
        if entry["op"] == "open_session":
            nonce = bytes(entry["nonce"])
            for session_id, session in self._sessions.items():
                if session.nonce == nonce:
                    self._sessions.move_to_end(session_id)
                    return
            if len(self._sessions) >= self.sessions_max:
                evicted, _ = self._sessions.popitem(last=False)
                self.ended.add(evicted)
                self.evictions += 1
            self._sessions[slot] = _Session(nonce)
            self.opened[nonce] = slot
        elif entry["op"] == "close_session" and self._sessions.pop(entry["session_id"], None) is not None:
            self.ended.add(entry["session_id"])

    def _append_commands(self, slot_begin: int, slot_end: int, block: bytes, view: BlockView) -> None:
        session = self._sessions.get(view.session_id)
        if session is None:
            return
        if view.first_sequence <= session.last_sequence:
            if view.first_sequence + view.command_count - 1 <= session.last_sequence:
                self.duplicates += 1
                self._sessions.move_to_end(view.session_id)
            return
        if view.first_sequence != session.last_sequence + 1:
            return
        self._sessions.move_to_end(view.session_id)
        entry = AppliedEntry(
            slot_begin, slot_end, view.session_id, view.first_sequence, self.commands + 1, block, self._times[-1][1]
        )
        self.commands += view.command_count
        session.last_sequence += view.command_count
        self.applied.append(entry)
        self.entry_of[view.session_id, view.first_sequence] = entry


@dataclass(slots=True)
class Write:
    """One block of a client. Times are virtual nanoseconds."""

    client: str
    session_id: int
    first_sequence: int
    block: bytes
    invoked_ns: int
    answered_ns: int | None = None
    positions: list[int] | None = None
    """Position of each command in the applied order, where the results say that; None while unanswered."""
    refused: bool = False
    """The client was told that the log proves it will never apply (status SESSION_UNKNOWN or INVALID_SEQUENCE)."""
    results: list[Result] | None = None
    """Result of each command; None while unanswered."""

    def __str__(self) -> str:
        return f"write {self.first_sequence} of session {self.session_id} ({self.client})"

    @property
    def is_acknowledged(self) -> bool:
        """The client was told that it applied."""
        return self.positions is not None or self.results is not None

    def answer(self, results: list[Result], now_ns: int) -> None:
        """Note an answer. Raises Violation if an earlier one was another: a block takes effect once."""
        if self.results is None:
            self.results, self.answered_ns = results, now_ns
        elif results != self.results:
            raise Violation(f"{self} was answered {self.results}, and then {results}", checker="exactly-once")


@dataclass(slots=True)
class Read:
    """One linearizable read. Either it returns the number of commands that were applied where it was answered, or
    `request`, `result` and `read_index` say what was asked of which state."""

    client: str
    invoked_ns: int
    answered_ns: int | None = None
    count: int | None = None
    request: bytes = b""
    result: bytes | None = None
    read_index: int | None = None
    """Every slot up to it, and none behind it, had been applied in the state that answered."""
    status: int = ReplyStatus.OK

    def __str__(self) -> str:
        return f"the read of {self.client} at {self.invoked_ns} ns"


@dataclass(eq=False, slots=True)
class Call:
    """What one caller of a session client asked for and was told. Times are virtual nanoseconds."""

    client: str
    commands: list[bytes]
    """Unique ones; none for a query."""
    request: bytes = b""
    """The query, where there are no commands."""
    invoked_ns: int = 0
    deadline_ns: int = 0
    answered_ns: int | None = None
    outcome: Outcome = Outcome.UNKNOWN
    results: list[Any] | None = None
    error: str = ""
    """Class of the error that it was answered with."""
    commands_chosen: int = 0
    """How many commands the log had when the caller was told of an error."""
    is_abandoned: bool = False
    """Its caller has gone; the answer counts for nobody."""

    def __str__(self) -> str:
        """Return a few words for a person."""
        what = f"commands {self.commands}" if self.commands else f"query {self.request!r}"
        return f"{self.client}: {what} [{self.invoked_ns}, {self.answered_ns}] ns, {self.error or self.outcome.value}"


class ClientHistory:
    """Everything that clients asked for and were told."""

    def __init__(self) -> None:
        self.writes: list[Write] = []
        self.reads: list[Read] = []
        self.calls: list[Call] = []

    def answered_writes(self) -> list[Write]:
        """Writes that were acknowledged."""
        return [write for write in self.writes if write.answered_ns is not None and write.is_acknowledged]

    def check(self, log: LogModel, machine: StateMachine | None = None) -> None:
        """Judge the whole history by the chosen log. Raises Violation.

        Args:
            machine: a fresh state machine; it is given the log, and all results are compared with its results.
        """
        self.check_acknowledged(log)
        self.check_commands_once(log)
        self.check_calls(log)
        self.check_real_time(log)
        if machine is not None:
            self.check_results(log, machine)

    def check_acknowledged(self, log: LogModel) -> None:
        """An acknowledged write is in the log with exactly its bytes, and its results are those of its place."""
        for write in self.writes:
            entry = log.entry_of.get((write.session_id, write.first_sequence))
            if write.refused:
                if entry is not None and entry.block == write.block:
                    raise Violation(
                        f"{write} was refused for ever, but it applied at slot {entry.slot_begin}", checker="refused"
                    )
                continue
            if not write.is_acknowledged:
                continue
            if entry is None:
                raise Violation(
                    f"{write} was acknowledged at {write.answered_ns} ns and is lost", checker="acknowledged-lost"
                )
            if entry.block != write.block:
                raise Violation(
                    f"{write} was acknowledged, but other bytes took effect at slot {entry.slot_begin}",
                    checker="acknowledged-lost",
                )
            expected = list(range(entry.first_position, entry.last_position + 1))
            if write.positions is not None and write.positions != expected:
                raise Violation(
                    f"{write} was told positions {write.positions}, it applied at {expected}", checker="results"
                )

    @staticmethod
    def check_commands_once(log: LogModel) -> None:
        """Commands of a simulation are unique, so each may stand in the applied order once."""
        log.positions()

    def check_calls(self, log: LogModel) -> None:
        """What callers were told of the effect is true: OK has all commands in the log, NotApplied none, ever."""
        positions = log.positions() if self.calls else {}
        for call in self.calls:
            found = [positions[command] for command in call.commands if command in positions]
            problem = ""
            if call.outcome is Outcome.NOT_APPLIED and found:
                problem = f"applied at positions {found}"
            elif call.outcome is Outcome.OK and len(found) != len(call.commands):
                problem = f"is lost, only positions {found} of the log are its"
            elif found and found != list(range(found[0], found[0] + len(call.commands))):
                problem = f"is one block, it applied at positions {found}"
            elif call.error == "ResultGone" and call.commands and not found:
                problem = "never applied, so it had no result to lose"
            elif call.error == "SessionExpired" and found and found[-1] > call.commands_chosen:
                problem = f"applied at positions {found} after its session was over at {call.commands_chosen}"
            if problem:
                raise Violation(f"{call} {problem}", checker="outcome")

    def check_real_time(self, log: LogModel) -> None:
        """What ended before something began stands before it in the one order (linearizability)."""
        # Each operation is a point of the order: a write its positions, a read the count that it saw.
        starts: list[tuple[int, int, str]] = []
        ends: list[tuple[int, int, str]] = []
        for write in self.writes:
            entry = log.entry_of.get((write.session_id, write.first_sequence))
            if write.refused or entry is None or entry.block != write.block:
                continue
            # A write must see every write that had ended: its first position lies above theirs.
            starts.append((write.invoked_ns, entry.first_position - 1, str(write)))
            if write.answered_ns is not None:
                ends.append((write.answered_ns, entry.last_position, str(write)))
        positions = log.positions() if self.calls else {}
        for call in self.calls:
            if call.commands and call.commands[0] in positions:
                starts.append((call.invoked_ns, positions[call.commands[0]] - 1, str(call)))
                if call.outcome is Outcome.OK and call.answered_ns is not None:
                    ends.append((call.answered_ns, positions[call.commands[-1]], str(call)))
        last_slots = [entry.slot_end - 1 for entry in log.applied]
        for read in self.reads:
            if read.answered_ns is None:
                continue
            count = read.count
            if count is None and read.read_index is not None:
                if read.read_index >= log.end_slot:
                    raise Violation(
                        f"{read} saw slot {read.read_index}, the log ends at {log.end_slot}", checker="real-time"
                    )
                entries = bisect_right(last_slots, read.read_index)
                count = log.applied[entries - 1].last_position if entries else 0
            if count is None:
                continue
            if not 0 <= count <= log.commands:
                raise Violation(f"{read} saw {count} commands, the log has {log.commands}", checker="real-time")
            starts.append((read.invoked_ns, count, str(read)))
            ends.append((read.answered_ns, count, str(read)))
        check_order_in_time(starts, ends)

    def check_results(self, log: LogModel, machine: StateMachine) -> None:
        """Every result is the one that `machine`, which is fresh, gives when it applies the log."""
        writes: dict[tuple[int, int], list[Write]] = {}
        for write in self.writes:
            if write.results is not None:
                writes.setdefault((write.session_id, write.first_sequence), []).append(write)
        answered = [read for read in self.reads if read.result is not None and read.read_index is not None]
        reads = iter(sorted(answered, key=lambda read: read.read_index or 0))
        read = next(reads, None)
        for entry in log.applied:
            while read is not None and (read.read_index or 0) < entry.slot_end - 1:
                self._check_read(read, log, machine)
                read = next(reads, None)
            blob = BatchRun(machine, BlockView(entry.block), entry.slot_begin, entry.now_ns).finish()
            expected = decode_results(blob, entry.slot_end - entry.slot_begin)
            for write in writes.get((entry.session_id, entry.first_sequence), ()):
                if write.results != expected:
                    raise Violation(
                        f"{write} was told {write.results}; by the log it is {expected} at slot {entry.slot_begin}",
                        checker="results",
                    )
        while read is not None:
            self._check_read(read, log, machine)
            read = next(reads, None)

    @staticmethod
    def _check_read(read: Read, log: LogModel, machine: StateMachine) -> None:
        index = read.read_index or 0
        try:
            context = QueryContext(index, log.now_ns_at(index))
        except ValueError as error:
            raise Violation(f"{read} saw half of a batch: {error}", checker="results") from None
        status, result = query_machine(machine, read.request, context)
        if (read.status, read.result) != (status, result):
            raise Violation(
                f"{read} was told {read.result!r} (status {read.status}) of slot {index}; by the log it is {result!r} "
                f"(status {int(status)})",
                checker="results",
            )


def check_order_in_time(starts: Iterable[tuple[int, int, str]], ends: Iterable[tuple[int, int, str]]) -> None:
    """Compare one order with real time, in one sweep. Raises Violation.

    Args:
        starts: (time when it began, position, name) of operations: what had ended before lies at or below `position`.
        ends: (time when it ended, position, name) of operations: what begins later lies at or above `position`.
    """
    # Keep the highest position that had been answered; whoever begins later may not lie below it.
    ordered = sorted(ends)
    highest, who, next_end = 0, "nothing", 0
    for invoked_ns, position, name in sorted(starts):
        while next_end < len(ordered) and ordered[next_end][0] < invoked_ns:
            if ordered[next_end][1] > highest:
                _, highest, who = ordered[next_end]
            next_end += 1
        if position < highest:
            raise Violation(
                f"{name}, begun at {invoked_ns} ns, stands at position {position}, but {who} had ended before at "
                f"position {highest}",
                checker="real-time",
            )
