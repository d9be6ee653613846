"""Registers judged by client data alone, in O(n log n): for whole runs, and independent of any log.

It needs every written value of a key to be unique, so that a result names the operation that it saw. Then a value, its
readers, and the compare and set that replaced it stand together in every order: values that were swapped into each
other form a *line*, and a line is one block that no other write can break into. With `first_answer` and `last_call` of
all operations of a line, line X must come before line Y exactly when X.first_answer < Y.last_call; an order of lines
exists exactly when no two must come before each other. (Gibbons & Korach, "Testing Shared Memories", 1997, section on
unique values and read-mapping; lines extend it to compare and set.)

What names no value is judged one by one: a compare and set that failed ("some other value was there"), and everything
about an absent key once there are deletes, as every delete writes the same. Each must fit somewhere by itself. So the
check raises no false alarm; it is complete without such operations, and misses only histories in which these fit one
by one but not together.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from .history import Violation
from .operations import Operation, OperationKind, Outcome

__all__ = ["check_registers"]

# Before and after every time of a history.
_ALWAYS_NS = -(1 << 63)
_NEVER_NS = 1 << 63

READ, WRITE, CAS, DELETE = OperationKind.READ, OperationKind.WRITE, OperationKind.CAS, OperationKind.DELETE


def check_registers(operations: Iterable[Operation]) -> int:
    """Judge one history; every key begins absent. Returns how many operations were judged. Raises Violation.

    Raises ValueError if a value is written twice to one key: such a history cannot be judged here.
    """
    by_key: dict[bytes, list[Operation]] = defaultdict(list)
    count = 0
    for operation in operations:
        operation.validate()
        by_key[operation.key].append(operation)
        count += 1
    for of_key in by_key.values():
        _KeyCheck(of_key).check()
    return count


def _violation(operation: Operation, message: str) -> Violation:
    return Violation(f"key {operation.key!r}: {message}", checker="register")


@dataclass(eq=False, slots=True)
class _Span:
    """The first answer and the last call of some operations, each with the operation."""

    first_answer: int = _NEVER_NS
    last_call: int = _ALWAYS_NS
    answered: Operation | None = None
    called: Operation | None = None

    def add(self, operation: Operation) -> None:
        """Add one operation that took effect; without a known outcome it may have done so at any later time."""
        answered_ns = _answered_ns(operation)
        if answered_ns < self.first_answer:
            self.first_answer, self.answered = answered_ns, operation
        if operation.invoked_ns > self.last_call:
            self.last_call, self.called = operation.invoked_ns, operation

    def merge(self, other: _Span) -> None:
        """Add all operations of another span."""
        if other.first_answer < self.first_answer:
            self.first_answer, self.answered = other.first_answer, other.answered
        if other.last_call > self.last_call:
            self.last_call, self.called = other.last_call, other.called


@dataclass(eq=False, slots=True)
class _Segment:
    """One value: from what wrote it to what replaced it."""

    value: bytes | None
    writer: Operation | None
    """None for the absence in the beginning."""
    readers: _Span = field(default_factory=_Span)
    replaced_by: _Segment | None = None
    """By compare and set."""
    is_root: bool = True
    line: _Line | None = None
    last_call_before: int = _ALWAYS_NS
    """Last call of the line up to the writer of this value."""
    first_answer_after: int = _NEVER_NS
    """First answer of the line behind the readers of this value."""


@dataclass(eq=False, slots=True)
class _Line:
    """Values that were swapped into each other, in their order."""

    root: _Segment
    span: _Span = field(default_factory=_Span)

    def segments(self) -> Iterator[_Segment]:
        segment: _Segment | None = self.root
        while segment is not None:
            yield segment
            segment = segment.replaced_by


class _LineOrder:
    """Finds a line that would have to stand both before and behind a span."""

    def __init__(self, lines: Iterable[_Line]) -> None:
        ordered = sorted(lines, key=lambda line: line.span.first_answer)
        self._first_answers = [line.span.first_answer for line in ordered]
        # Of the first lines by answer, the three with the latest calls, as up to two are left out of a question.
        self._latest: list[list[_Line]] = [[]]
        for line in ordered:
            latest = [*self._latest[-1], line]
            self._latest.append(sorted(latest, key=lambda line: line.span.last_call, reverse=True)[:3])

    def conflict(self, first_answer: int, last_call: int, *own: _Line) -> _Line | None:
        """Return a line, none of `own`, that the span can stand neither before nor behind, if there is one."""
        for line in self._latest[bisect_left(self._first_answers, last_call)]:
            if line not in own:
                return line if first_answer < line.span.last_call else None
        return None


class _KeyCheck:
    """The check of one key."""

    def __init__(self, operations: list[Operation]) -> None:
        self.operations = operations
        self.writers: dict[bytes, Operation] = {}
        self.disowned: dict[bytes, Operation] = {}
        """By value, writes of which the client was told that they did not apply, or that failed to swap."""
        self.absence = _Segment(None, None)
        self.absence.readers.first_answer = _ALWAYS_NS
        self.segments: dict[bytes, _Segment] = {}
        self.deletes = [operation for operation in operations if operation.kind is DELETE and _may_apply(operation)]
        self.absences = [self.absence]
        """The segments of an absent key: the beginning and each delete."""
        self.unplaced: list[Operation] = []
        """Operations whose result does not say which value was there."""
        self.unused: list[Operation] = []
        """Of unknown outcome, and nobody saw its effect."""

    def check(self) -> None:
        """Raise Violation if no order explains the results."""
        self._find_writers()
        self._find_effective()
        self._attach()
        lines = self._build_lines()
        order = _LineOrder(lines)
        for line in lines:
            other = order.conflict(line.span.first_answer, line.span.last_call, line)
            if other is not None:
                raise _violation(self.operations[0], _describe(line, other))
        if self.deletes:
            self._count_creations(lines)
        if self.unplaced:
            _Placing(self, order).check()

    def _count_creations(self, lines: list[_Line]) -> None:
        """Every delete that found the key took one line or unknown write; every insertion took one absence."""
        roots = [line.root.writer for line in lines if line.root.value is not None and line.root.writer is not None]
        unused = [operation for operation in self.unused if operation.kind is WRITE or operation.expected is None]
        removals = [item for item in self.deletes if item.outcome is Outcome.OK and item.result is True]
        self._check_supply(removals, [*roots, *unused], 0, "found the key, more than had been created")
        inserts = [item for item in roots if item.kind is CAS and item.outcome is Outcome.OK]
        self._check_supply(inserts, self.deletes, 1, "found no key, more than had been absences")

    @staticmethod
    def _check_supply(takers: list[Operation], givers: list[Operation], given: int, message: str) -> None:
        """At no time more has been taken than may have been given."""
        calls = sorted(operation.invoked_ns for operation in givers)
        for taken, operation in enumerate(sorted(takers, key=_answered_ns), 1):
            if taken > given + bisect_right(calls, _answered_ns(operation)):
                raise _violation(operation, f"{taken} operations up to {operation} {message}")

    def _find_writers(self) -> None:
        for operation in self.operations:
            value = operation.value
            if value is None:
                continue
            if not _may_apply(operation):
                self.disowned[value] = operation
            elif self.writers.setdefault(value, operation) is not operation:
                raise ValueError(f"two operations write the value {value!r} to key {operation.key!r}")

    def _find_effective(self) -> None:
        """Make the segments of all values that were certainly there: known writes, and unknown ones that were seen."""
        todo: list[tuple[bytes, Operation | None]] = []
        for value, writer in self.writers.items():
            if writer.outcome is Outcome.OK:
                todo.append((value, None))
        for operation in self.operations:
            seen = _seen_value(operation)
            if seen is not None:
                todo.append((seen, operation))
        while todo:
            value, witness = todo.pop()
            if value in self.segments:
                continue
            writer = self._writer_of(value, witness)
            self.segments[value] = _Segment(value, writer)
            if writer.kind is CAS and writer.expected is not None:
                todo.append((writer.expected, writer))
        self.unused = [writer for value, writer in self.writers.items() if value not in self.segments]

    def _writer_of(self, value: bytes, witness: Operation | None) -> Operation:
        writer = self.writers.get(value)
        if writer is not None:
            return writer
        assert witness is not None
        if (disowned := self.disowned.get(value)) is not None:
            raise _violation(witness, f"{witness} saw the value of {disowned}, which did not take effect")
        raise _violation(witness, f"{witness} saw a value that nobody wrote")

    def _attach(self) -> None:
        """Put every operation that took effect to the value that it saw."""
        for segment in self.segments.values():
            writer = segment.writer
            if writer is None or writer.kind is not CAS:
                continue
            if writer.expected is None and self.deletes:
                self.unplaced.append(writer)
                continue
            before = self.absence if writer.expected is None else self.segments[writer.expected]
            if before.replaced_by is not None:
                raise _violation(writer, f"a fork: {before.replaced_by.writer} and {writer} both swapped one value")
            before.replaced_by, segment.is_root = segment, False
        for operation in self.operations:
            if operation.outcome is not Outcome.OK:
                continue
            if operation.kind is READ:
                self._attach_read(operation, operation.result)
            elif operation.kind is CAS and operation.result is False:
                self.unplaced.append(operation)
            elif operation.kind is DELETE:
                self._attach_delete(operation)

    def _attach_read(self, operation: Operation, seen: object) -> None:
        if isinstance(seen, bytes):
            self.segments[seen].readers.add(operation)
        elif self.deletes:
            self.unplaced.append(operation)
        else:
            self.absence.readers.add(operation)

    def _attach_delete(self, operation: Operation) -> None:
        if operation.result is False:
            self._attach_read(operation, None)
            return
        self.absences.append(_Segment(None, operation))
        if operation.result is True:
            self.unplaced.append(operation)

    def _build_lines(self) -> list[_Line]:
        """Join the segments to lines, and check the order within each."""
        lines = []
        count = 0
        for root in (*self.absences, *self.segments.values()):
            if root.is_root:
                line = _Line(root)
                lines.append(line)
                count += self._check_line(line)
        if count < len(self.segments) + len(self.absences):
            lost = next(segment for segment in self.segments.values() if segment.line is None)
            raise _violation(self.operations[0], f"{lost.writer} is part of a ring of swaps that has no beginning")
        return lines

    def _check_line(self, line: _Line) -> int:
        """Fill in the spans of a line; raise if an operation was answered before an earlier one was asked."""
        segments = list(line.segments())
        span = line.span
        for segment in segments:
            segment.line = line
            writer = _Span()
            if segment.writer is not None:
                writer.add(segment.writer)
            for part in (writer, segment.readers):
                if part.first_answer < span.last_call:
                    raise _violation(
                        self.operations[0],
                        f"{part.answered} comes after {span.called} in every order, but was answered before that was "
                        "asked",
                    )
                if part is writer:
                    span.merge(part)
                    segment.last_call_before = span.last_call
            span.merge(segment.readers)
        after = _Span()
        for segment in reversed(segments):
            segment.first_answer_after = after.first_answer
            after.merge(segment.readers)
            if segment.writer is not None:
                after.add(segment.writer)
        return len(segments)


class _Placing:
    """Looks for a place for each operation whose result does not say which value was there."""

    def __init__(self, key_check: _KeyCheck, order: _LineOrder) -> None:
        self.unplaced = key_check.unplaced
        self.segments = key_check.segments
        self.order = order
        self.absences = _by_call(key_check.absences)
        self.present = _by_call(key_check.segments.values())
        self.ends = _by_call(segment for segment in key_check.segments.values() if segment.replaced_by is None)
        unused = sorted(key_check.unused, key=_invoked_ns)
        self.unknown_deletes = sorted(
            (operation for operation in key_check.deletes if operation.outcome is not Outcome.OK), key=_invoked_ns
        )
        self.unknown_writes = [operation for operation in unused if operation.kind is WRITE]
        self.unknown_swaps = list(self._possible_swaps(key_check, unused))

    @staticmethod
    def _possible_swaps(
        key_check: _KeyCheck, unused: list[Operation]
    ) -> Iterator[tuple[Operation, int, _Segment | None]]:
        """Give the swaps that nobody saw and that may have happened.

        Each with the last call of the unseen operations up to it, and the value that the first of them replaced: None
        if that was a write, or an absence of which there are several.
        """
        writers = {operation.value: operation for operation in unused}
        found: dict[bytes | None, tuple[Operation, int]] = {}
        for swap in unused:
            if swap.kind is not CAS:
                continue
            chain = [swap]
            while chain[-1].expected in writers and chain[-1].value not in found and len(chain) <= len(writers):
                chain.append(writers[chain[-1].expected])
            first, last_call = found.get(chain[-1].value, (chain[-1], chain[-1].invoked_ns))
            for operation in reversed(chain):
                last_call = max(last_call, operation.invoked_ns)
                found[operation.value] = first, last_call
            before: _Segment | None = None
            if first.expected is not None:
                before = key_check.segments.get(first.expected)
                if before is None:
                    continue
            elif first.kind is CAS and not key_check.deletes:
                before = key_check.absence
            # A value is swapped once.
            if before is None or before.replaced_by is None:
                yield swap, last_call, before

    def check(self) -> None:
        """Raise Violation if one fits nowhere."""
        for operation in self.unplaced:
            if operation.kind is CAS and _may_apply(operation):
                fits, state = self._fits_insertion(operation), "the key was absent"
            elif operation.kind is DELETE and operation.result is True:
                fits, state = self._fits_removal(operation), "the key existed"
            elif operation.kind is CAS:
                fits = self._fits_elsewhere(operation)
                state = "the key existed" if operation.expected is None else "another value was there"
            else:
                fits = self._fits(operation, self.absences) or self._fits_alone(operation, self.unknown_deletes)
                state = "the key was absent"
            if not fits:
                raise _violation(operation, f"at no moment during {operation} {state}")

    def _fits_insertion(self, operation: Operation) -> bool:
        """Whether the line that it begins may stand right behind an absence."""
        line = self._line_of(operation.value)
        if self.unknown_deletes and self.unknown_deletes[0].invoked_ns <= line.span.first_answer:
            last_call = max(line.span.last_call, self.unknown_deletes[0].invoked_ns)
            if self.order.conflict(line.span.first_answer, last_call, line) is None:
                return True
        return any(self._fits_behind(line.span, segment, line) for segment in _near(operation, self.absences))

    def _fits_removal(self, operation: Operation) -> bool:
        """Whether it may stand right behind a line, which it ends."""
        span = _Span()
        span.add(operation)
        return any(
            self._fits_behind(span, segment) for segment in _near(operation, self.ends)
        ) or self._fits_behind_unknown(operation)

    def _fits_elsewhere(self, operation: Operation) -> bool:
        """Whether some other value than `expected` may have been there; None for an absent key."""
        if self._fits(operation, self.present) or self._fits_behind_unknown(operation):
            return True
        return operation.expected is not None and (
            self._fits(operation, self.absences) or self._fits_alone(operation, self.unknown_deletes)
        )

    def _fits_behind_unknown(self, operation: Operation) -> bool:
        """Whether it may stand behind a write or swap of unknown outcome that nobody else saw."""
        # All but the one that writes the very value are alike, and the one that was asked first is the best.
        others = [write for write in self.unknown_writes[:2] if write.value != operation.expected]
        return self._fits_alone(operation, others) or any(
            self._fits_behind_swap(operation, last_call, before)
            for swap, last_call, before in self.unknown_swaps
            if swap.value != operation.expected
        )

    def _fits_behind_swap(self, operation: Operation, last_call: int, before: _Segment | None) -> bool:
        answered_ns = _answered_ns(operation)
        if last_call > answered_ns:
            return False
        span = _Span(answered_ns, max(last_call, operation.invoked_ns))
        return self._fits_behind(span, before) if before is not None else self._stands(span)

    def _fits_alone(self, operation: Operation, unknown: list[Operation]) -> bool:
        """Whether it may stand behind the first of these, without any other."""
        if not unknown or unknown[0].invoked_ns > _answered_ns(operation):
            return False
        return self._stands(_Span(_answered_ns(operation), max(unknown[0].invoked_ns, operation.invoked_ns)))

    def _fits_behind(self, span: _Span, segment: _Segment, *own: _Line) -> bool:
        """Whether a span may stand right behind the line that ends with `segment`."""
        line = self._line(segment)
        if line in own or span.first_answer < line.span.last_call:
            return False
        joined = _Span(min(span.first_answer, line.span.first_answer), max(span.last_call, line.span.last_call))
        return self._stands(joined, line, *own)

    def _fits(self, operation: Operation, segments: _Segments) -> bool:
        """Whether it may be one more reader of one of the segments."""
        answered_ns, invoked_ns = _answered_ns(operation), operation.invoked_ns
        for segment in _near(operation, segments):
            if segment.value is not None and segment.value == operation.expected:
                continue
            if segment.last_call_before <= answered_ns and invoked_ns <= segment.first_answer_after:
                line = self._line(segment)
                span = line.span
                if self._stands(_Span(min(span.first_answer, answered_ns), max(span.last_call, invoked_ns)), line):
                    return True
        return False

    def _stands(self, span: _Span, *own: _Line) -> bool:
        return self.order.conflict(span.first_answer, span.last_call, *own) is None

    def _line_of(self, value: bytes | None) -> _Line:
        return self._line(self.segments[value or b""])

    @staticmethod
    def _line(segment: _Segment) -> _Line:
        assert segment.line is not None
        return segment.line


_Segments: TypeAlias = tuple[list[int], list[_Segment]]


def _near(operation: Operation, segments: _Segments) -> Iterator[_Segment]:
    """Give all segments; those that were written about when the operation was asked come first."""
    calls, ordered = segments
    behind = bisect_left(calls, operation.invoked_ns)
    before = behind - 1
    while before >= 0 or behind < len(ordered):
        if before >= 0:
            yield ordered[before]
        if behind < len(ordered):
            yield ordered[behind]
        before, behind = before - 1, behind + 1


def _by_call(segments: Iterable[_Segment]) -> _Segments:
    """Return segments by the time when their writer was asked, and these times."""
    ordered = sorted(segments, key=_written_ns)
    return [_written_ns(segment) for segment in ordered], ordered


def _written_ns(segment: _Segment) -> int:
    return _ALWAYS_NS if segment.writer is None else segment.writer.invoked_ns


def _invoked_ns(operation: Operation) -> int:
    return operation.invoked_ns


def _answered_ns(operation: Operation) -> int:
    if operation.outcome is not Outcome.OK or operation.answered_ns is None:
        return _NEVER_NS
    return operation.answered_ns


def _may_apply(operation: Operation) -> bool:
    """Whether it may have changed the key."""
    if operation.outcome is Outcome.OK:
        return operation.kind is not READ and operation.result is not False
    return operation.outcome is Outcome.UNKNOWN and operation.kind is not READ


def _seen_value(operation: Operation) -> bytes | None:
    """The value that a result proves was there, None for none."""
    if operation.outcome is not Outcome.OK:
        return None
    if operation.kind is READ:
        return operation.result if isinstance(operation.result, bytes) else None
    return operation.expected if operation.kind is CAS and operation.result is True else None


def _describe(line: _Line, other: _Line) -> str:
    one, two = line.span, other.span
    return (
        f"lines {line.root.value!r} and {other.root.value!r} must each come first: {one.answered or 'the beginning'} "
        f"was answered before {two.called}, and {two.answered or 'the beginning'} before {one.called}"
    )
