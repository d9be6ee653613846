"""What a node was told is durable, and what it had begun to write: the only states that a recovery may find."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from journal_model import Batch, State


class CrashViolation(AssertionError):  # noqa: N818 - it says what was violated
    """A crash state broke a promise."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """What must hold of any state that a power cut leaves at one moment.

    Attributes:
        boot: the highest one that a message may have carried, 0 before the first.
        incarnation: of the directory, None as long as it may be drawn anew.
        founding: the founding records that may be found.
        states: what the journal may add up to; the first one is acknowledged.
        chosen: {slot_begin: Batch}: what the committed slots hold.
        ticket: a number that no later write may have: the highest one handed out.
        may_be_lost: True when the durability mode lets the directory count as lost.
    """

    boot: int = 0
    incarnation: int | None = None
    founding: tuple[bytes, ...] = (b"",)
    states: tuple[State, ...] = (State(),)
    chosen: dict[int, Batch] = field(default_factory=dict)
    ticket: int = 0
    may_be_lost: bool = False


class Ledger:
    """Follows the notes of the recorded lives of one directory."""

    def __init__(self, durability: str, expectation: Expectation | None = None) -> None:
        self._is_write_mode = durability == "write"
        self.now = expectation or Expectation()
        self._tickets: list[int] = [0]
        self._markers: set[int] = set()
        self._blocks: dict[int, bytes] = {}

    def narrow(self, state: State) -> None:
        """A recovery has found this state: every later one must find the same."""
        self.now = replace(self.now, states=(state,))
        self._tickets = [0]

    def _batch(self, values: list[Any]) -> Batch:
        slot_begin, slot_end, ballot, timestamp_ns, block, committed = values
        return Batch(slot_begin, slot_end, ballot, timestamp_ns, self._blocks[block], committed)

    def _state(self, values: list[Any]) -> State:
        promised_ballot, commit_index, batches = values
        return State(promised_ballot, commit_index, tuple(self._batch(batch) for batch in batches))

    def take(self, note: dict[str, Any]) -> bool:
        """Take one note; True when what must hold has changed."""
        before = self.now
        match note["what"]:
            case "block":
                self._blocks[note["number"]] = note["block"]
            case "opening":
                self._blocks.clear()
                self.now = replace(before, may_be_lost=self._is_write_mode)
            case "opened":
                self._opened(note)
            case "founding":
                self.now = replace(before, founding=(b"", note["record"]))
            case "founded":
                self.now = replace(before, founding=before.founding[-1:])
            case "recovered":
                self._recovered(note)
            case "write" | "marker":
                self._written(note)
            case "synced" if note["ticket"] not in self._markers:
                first = self._tickets.index(note["ticket"])
                del self._tickets[:first]
                self.now = replace(before, states=before.states[first:])
            case "closed":
                self.now = replace(before, may_be_lost=False)
        return self.now is not before

    def _opened(self, note: dict[str, Any]) -> None:
        if note["boot"] <= self.now.boot or self.now.incarnation not in (None, note["incarnation"]):
            raise CrashViolation(f"opened as {note}, after boot {self.now.boot} of {self.now.incarnation}")
        self.now = replace(self.now, boot=note["boot"], incarnation=note["incarnation"])

    def _recovered(self, note: dict[str, Any]) -> None:
        state = self._state(note["state"])
        if state not in self.now.states or note["problems"]:
            raise CrashViolation(
                f"a life recovered promised ballot {state.promised_ballot} and commit index {state.commit_index} with "
                f"problems {note['problems']}: none of the {len(self.now.states)} states that were possible"
            )
        if note["ticket"] <= self.now.ticket:
            raise CrashViolation(f"goes on with ticket {note['ticket']}, but {self.now.ticket} was used before")
        self.narrow(state)
        chosen = {slot: batch for slot, batch in self.now.chosen.items() if slot <= state.commit_index}
        self.now = replace(self.now, chosen=chosen, ticket=note["ticket"] - 1)

    def _written(self, note: dict[str, Any]) -> None:
        chosen = {batch.slot_begin: batch for batch in map(self._batch, note["chosen"])}
        self._tickets.append(note["ticket"])
        if note["what"] == "marker":
            self._markers.add(note["ticket"])
        self.now = replace(
            self.now,
            states=(*self.now.states, self._state(note["state"])),
            chosen=self.now.chosen | chosen,
            ticket=note["ticket"],
        )
