"""Answers on their way from a client's session to its callers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgpack

from fastpaxos.command_queue import PendingBlock
from fastpaxos.errors import CommandError, FrameError
from fastpaxos_core.results import CommandFailure, decode_results
from fastpaxos_core.wire import Reply

__all__ = ["Answers", "BlockReply", "Completion", "ResultsWithErrors", "parse_command_error"]

HAS_ERRORS = 2  # flag of a result blob: some command failed


class Completion(NamedTuple):
    """Answers to hand out: `results[i]` belongs to `waiters[i]`, which is None if that caller has gone.

    With `has_errors`, results that are exceptions are to be raised at their callers; otherwise there are none.
    """

    waiters: Sequence[Any]
    results: Sequence[Any]
    has_errors: bool


class BlockReply(NamedTuple):
    """The undecoded answer to one block: its commands have slots slot_begin .. slot_begin + command_count - 1.

    `slot_begin` is 0 when the answer came from the session table. `results` is a result blob
    (`fastpaxos_core.results.decode_results` reads it).
    """

    command_count: int
    slot_begin: int
    results: bytes


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
        if block.is_raw:
            raw = BlockReply(reply.command_count, reply.slot_begin, results)
            self._completions.append(Completion(block.waiters, (raw,), False))
            return
        values: list[Any] = decode_results(results, block.count)
        has_errors = bool(results[1] & HAS_ERRORS)
        if has_errors:
            values = [_raised(value) if isinstance(value, CommandFailure) else value for value in values]
        if block.is_whole:
            self._completions.append(
                Completion(block.waiters, (ResultsWithErrors(values) if has_errors else values,), False)
            )
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
