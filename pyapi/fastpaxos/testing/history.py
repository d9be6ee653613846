"""What clients saw, judged by the log alone: exactly once, for ever, in one order that respects real time.

`LogModel` replays the chosen log with a deliberately plain session table; `ClientHistory` keeps what clients asked and
were told. Slot order is the witness of linearizability: positions in the applied order are compared with real time by
one sweep, so a history of any length is judged in O(n log n).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import msgpack

from fastpaxos_core.block import BlockView

__all__ = [
    "BLOCK_COMMANDS",
    "BLOCK_CONTROL",
    "BLOCK_NOOP",
    "AppliedEntry",
    "ClientHistory",
    "LogModel",
    "Read",
    "Violation",
    "Write",
]

BLOCK_COMMANDS = 0
BLOCK_NOOP = 1
BLOCK_CONTROL = 2


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
        self._sessions: OrderedDict[int, _Session] = OrderedDict()

    def append(self, slot_begin: int, slot_end: int, block: bytes) -> None:
        """Take in the next chosen batch."""
        if slot_begin != self.end_slot:
            raise Violation(
                f"chosen batches do not tile the log: [{slot_begin}, {slot_end}) follows slot {self.end_slot - 1}"
            )
        view = BlockView(block)
        self.end_slot = slot_end
        if view.command_count != slot_end - slot_begin:
            raise Violation(f"batch [{slot_begin}, {slot_end}) holds {view.command_count} commands")
        if view.kind == BLOCK_COMMANDS:
            self._append_commands(slot_begin, slot_end, block, view)
        elif view.kind == BLOCK_CONTROL:
            self._append_control(slot_begin, msgpack.unpackb(view[0]))

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
        entry = AppliedEntry(slot_begin, slot_end, view.session_id, view.first_sequence, self.commands + 1, block)
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
    """Position of each command in the applied order, as the results say; None while unanswered."""
    refused: bool = False
    """The client was told that the log proves it will never apply (status SESSION_UNKNOWN or INVALID_SEQUENCE)."""


@dataclass(slots=True)
class Read:
    """One linearizable read: it returns the number of commands that were applied where it was answered."""

    client: str
    invoked_ns: int
    answered_ns: int | None = None
    count: int | None = None


class ClientHistory:
    """Everything that clients asked for and were told."""

    def __init__(self) -> None:
        self.writes: list[Write] = []
        self.reads: list[Read] = []

    def answered_writes(self) -> list[Write]:
        """Writes that were acknowledged."""
        return [write for write in self.writes if write.answered_ns is not None and write.positions is not None]

    def check(self, log: LogModel) -> None:
        """Judge the whole history by the chosen log. Raises Violation."""
        self.check_acknowledged(log)
        self.check_commands_once(log)
        self.check_real_time(log)

    def check_acknowledged(self, log: LogModel) -> None:
        """An acknowledged write is in the log with exactly its bytes, and its results are those of its place."""
        for write in self.writes:
            entry = log.entry_of.get((write.session_id, write.first_sequence))
            name = f"write {write.first_sequence} of session {write.session_id} ({write.client})"
            if write.refused:
                if entry is not None and entry.block == write.block:
                    raise Violation(f"{name} was refused for ever, but it applied at slot {entry.slot_begin}")
                continue
            if write.positions is None:
                continue
            if entry is None:
                raise Violation(f"{name} was acknowledged at {write.answered_ns} ns and is lost")
            if entry.block != write.block:
                raise Violation(f"{name} was acknowledged, but other bytes took effect at slot {entry.slot_begin}")
            expected = list(range(entry.first_position, entry.last_position + 1))
            if write.positions != expected:
                raise Violation(f"{name} was told positions {write.positions}, it applied at {expected}")

    @staticmethod
    def check_commands_once(log: LogModel) -> None:
        """Commands of a simulation are unique, so each may stand in the applied order once."""
        seen: dict[bytes, int] = {}
        for entry in log.applied:
            for command in BlockView(entry.block):
                if command in seen:
                    raise Violation(f"command {command!r} applied at slots {seen[command]} and {entry.slot_begin}")
                seen[command] = entry.slot_begin

    def check_real_time(self, log: LogModel) -> None:
        """What ended before something began stands before it in the one order (linearizability)."""
        # Each operation is a point of the order: a write its positions, a read the count that it saw. Sweep by time and
        # keep the highest position that had been answered; whoever begins later may not lie below it.
        starts: list[tuple[int, int, str]] = []
        ends: list[tuple[int, int, str]] = []
        for write in self.writes:
            entry = log.entry_of.get((write.session_id, write.first_sequence))
            if write.refused or entry is None or entry.block != write.block:
                continue
            name = f"write {write.first_sequence} of session {write.session_id}"
            # A write must see every write that had ended: its first position lies above theirs.
            starts.append((write.invoked_ns, entry.first_position - 1, name))
            if write.answered_ns is not None:
                ends.append((write.answered_ns, entry.last_position, name))
        for number, read in enumerate(self.reads):
            if read.answered_ns is None or read.count is None:
                continue
            if not 0 <= read.count <= log.commands:
                raise Violation(f"read {number} saw {read.count} commands, the log has {log.commands}")
            starts.append((read.invoked_ns, read.count, f"read {number}"))
            ends.append((read.answered_ns, read.count, f"read {number}"))
        starts.sort()
        ends.sort()
        highest, who, next_end = 0, "nothing", 0
        for invoked_ns, position, name in starts:
            while next_end < len(ends) and ends[next_end][0] < invoked_ns:
                if ends[next_end][1] > highest:
                    _, highest, who = ends[next_end]
                next_end += 1
            if position < highest:
                raise Violation(
                    f"{name}, begun at {invoked_ns} ns, stands at position {position}, but {who} had ended before at "
                    f"position {highest}"
                )
