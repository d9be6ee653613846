"""State machines for the tests of `fastpaxos.testing.check_machine`: a clean one, and one per way to be wrong."""

from __future__ import annotations

import datetime
import random
import time
from itertools import count
from time import monotonic

from fastpaxos import ApplyContext, QueryContext, StateMachine
from fastpaxos.statemachine import SnapshotWriter

_machines_made = count(1)


class Total(StateMachine):
    """Deterministic: adds up what `add N` says."""

    def __init__(self) -> None:
        self.total = 0

    def apply(self, command: bytes, context: ApplyContext) -> bytes:
        self.total += int(command.removeprefix(b"add "))
        return b"%d" % self.total

    def query(self, request: bytes, context: QueryContext) -> bytes:
        return b"%d" % self.total

    def digest(self) -> str:
        return str(self.total)


class ReadsClock(Total):
    def apply(self, command: bytes, context: ApplyContext) -> bytes:
        return b"%d" % (time.time() // 60)


class ReadsImportedClock(Total):
    def apply(self, command: bytes, context: ApplyContext) -> bytes:
        return b"%d" % (monotonic() // 60)


class ReadsCalendar(Total):
    def apply(self, command: bytes, context: ApplyContext) -> bytes:
        today = datetime.date.today()  # noqa: DTZ011
        assert isinstance(today, datetime.date)
        return str(today).encode()


class ThrowsDice(Total):
    def apply(self, command: bytes, context: ApplyContext) -> bytes:
        return b"%d" % random.randrange(1_000)


class IteratesSet(StateMachine):
    def __init__(self) -> None:
        self.seen: set[bytes] = set()

    def apply(self, command: bytes, context: ApplyContext) -> bytes:
        self.seen.add(command)
        return b" ".join(self.seen)


class KnowsItself(Total):
    """Every machine of a process has another number, which shows in the snapshot only."""

    def __init__(self) -> None:
        super().__init__()
        self.number = next(_machines_made)

    def digest(self) -> str:
        return ""

    def snapshot(self, writer: SnapshotWriter) -> None:
        writer.write(b"%d %d" % (self.total, self.number))


class CountsQueries(Total):
    def query(self, request: bytes, context: QueryContext) -> bytes:
        self.total += 1
        return b"%d" % self.total
