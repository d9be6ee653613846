"""Answers on their way from a client's session to its callers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, chain
from operator import eq
from typing import Any, NamedTuple, overload

import msgpack

from fastpaxos.errors import CommandError, FrameError
from fastpaxos_core.pending_block import PendingBlock
from fastpaxos_core.results import CommandFailure, decode_results, view_results
from fastpaxos_core.wire import Reply

__all__ = ["Answers", "Completion", "Results", "ResultsWithErrors", "parse_command_error"]

HAS_ERRORS = 2  # flag of a result blob: some command failed


class Completion(NamedTuple):
    """Answers to hand out: `results[i]` belongs to `waiters[i]`, which is None if that caller has gone.

    With `has_errors`, results that are exceptions are to be raised at their callers; otherwise there are none.
    """

    waiters: Sequence[Any]
    results: Sequence[Any]
    has_errors: bool


class Results(Sequence[Any]):
    """The results of many commands, in order: a read-only sequence; `list(results)` makes a list.

    Results are made when they are asked for, so the answer to a million commands costs little before somebody looks.
    """

    __slots__ = ("_ends", "_parts")

    def __init__(self, parts: Sequence[Sequence[Any]]) -> None:
        self._parts = parts
        self._ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"result {index} of {len(self)}")
        part = bisect_right(self._ends, position)
        return self._parts[part][position - (self._ends[part - 1] if part else 0)]

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(self._parts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Results | list):
            return NotImplemented
        return len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3]))
        return f"Results([{shown}{', ...' if len(self) > 3 else ''}], {len(self)} in all)"


class ResultsWithErrors(list[Any]):
    """The results of one block, in order, at least one of which is a CommandError."""

    __slots__ = ()


class Answers:
    """Collects completions in the order in which they are decided."""

    def __init__(self) -> None:
        self._completions: list[Completion] = []

    def __bool__(self) -> bool:
        return bool(self._completions)

    def take(self) -> list[Completion]:
        """Return everything collected since the last call."""
        completions, self._completions = self._completions, []
        return completions

    def block(self, block: PendingBlock, reply: Reply) -> None:
        """The block was applied. Raises FrameError if the results are not those of this block."""
        if reply.command_count != block.count:
            raise FrameError(f"a reply has {reply.command_count} results for a block of {block.count} commands")
        results = reply.results
        has_errors = bool(results[1] & HAS_ERRORS) if len(results) > 1 else False
        if block.is_whole and not has_errors:
            self._completions.append(Completion(block.waiters, (view_results(results, block.count),), False))
            return
        values: list[Any] = decode_results(results, block.count)
        if has_errors:
            values = [_raised(value) if isinstance(value, CommandFailure) else value for value in values]
        if block.is_whole:
            self._completions.append(Completion(block.waiters, (ResultsWithErrors(values),), False))
        else:
            self._completions.append(Completion(block.waiters, values, has_errors))

    def one(self, waiter: Any, result: bytes | Exception) -> None:
        """A single caller has its answer."""
        self._completions.append(Completion((waiter,), (result,), isinstance(result, Exception)))

    def fail(self, waiters: Iterable[Any], make_error: Callable[[], Exception]) -> None:
        """Each waiter that is still there gets an error of its own: one exception object is raised only once."""
        live = [waiter for waiter in waiters if waiter is not None]
        if live:
            self._completions.append(Completion(live, [make_error() for _ in live], True))


def parse_command_error(data: bytes) -> CommandError:
    """Read the result of a query that raised. Raises FrameError."""
    try:
        parts = msgpack.unpackb(data, raw=False, max_array_len=2, max_map_len=0, max_ext_len=0, max_bin_len=0)
    except (ValueError, msgpack.UnpackException) as problem:
        raise FrameError(f"{len(data)} bytes are no [type name, message]: {problem}") from None
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise FrameError("the error of a query is not [type name, message]")
    return CommandError(parts[0], parts[1]).of_query()


def _raised(failure: CommandFailure) -> CommandError:
    return CommandError(failure.type_name, failure.message)
