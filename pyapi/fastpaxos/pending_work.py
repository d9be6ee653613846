"""What a client was asked to do and has not answered, and which error its callers get. Sans-I/O.

Rule 5.10 of the design in one place: what was never sent certainly does not apply; what was sent, on any attempt, may
have, and only an answer from the log says more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastpaxos.answers import Answers, Completion
from fastpaxos.command_queue import ClientLimits, CommandQueue
from fastpaxos.errors import (
    Busy,
    Closed,
    ConnectionLost,
    DeadlineExceeded,
    NotApplied,
    OutcomeUnknown,
    Rejected,
    ResultGone,
    SessionExpired,
    TooLarge,
)
from fastpaxos.inflight import InflightBlocks, PendingQueries, PendingQuery
from fastpaxos_core.block import pack_commands
from fastpaxos_core.pending_block import PendingBlock

__all__ = ["PendingWork"]


class PendingWork:
    """Commands in the queue, blocks and queries without an answer, answers without a caller.

    `is_abandoned` tells whether a waiter's caller has gone. Waiters are given back at most once, in a `Completion`.
    A single command that the `open` block of `queue` takes with its `add` is queued as if by `submit`.
    """

    def __init__(
        self, limits: ClientLimits, blocks_in_flight_max: int, is_abandoned: Callable[[Any], bool] | None
    ) -> None:
        self._own_limits = limits
        self._is_abandoned = is_abandoned
        self._is_closing = False
        self._next_request = 1
        self.queue = CommandQueue(limits, is_abandoned)
        self._inflight = InflightBlocks(blocks_in_flight_max)
        self._queries = PendingQueries()
        self._answers = Answers()

    # --- room ---------------------------------------------------------------------------------------------------------

    @property
    def limits(self) -> ClientLimits:
        """The limits in force."""
        return self.queue.limits

    @property
    def pending_bytes(self) -> int:
        """Bytes charged for all that is queued or unanswered; a command with a waiter of its own costs 64 more."""
        return self.queue.charge + self._inflight.charge + self._queries.charge

    @property
    def room_bytes(self) -> int:
        """Bytes that may still be submitted; negative when more than allowed is pending."""
        return self._own_limits.inflight_bytes_max - self.pending_bytes

    @property
    def is_idle(self) -> bool:
        """No caller waits for anything."""
        if self.queue or self._queries:
            return False
        gone = self._is_abandoned
        return all(gone is not None and gone(waiter) for waiter in self._inflight.live_waiters())

    def has_room(self, size: int) -> bool:
        """Whether `size` more bytes may be submitted now. Anything fits when nothing is pending."""
        pending_bytes = self.queue.charge + self._inflight.charge + self._queries.charge
        return pending_bytes + size <= self._own_limits.inflight_bytes_max or not pending_bytes

    def check_room(self, size: int) -> None:
        """Raise Busy if `size` more bytes may not be submitted now, Closed if nothing may any more."""
        if self._is_closing:
            raise Closed("the client is closed and takes no more work; open a new one")
        if not self.has_room(size):
            raise Busy(
                f"{self.pending_bytes} bytes are queued or unanswered and {size} more would exceed inflight_bytes_max "
                f"{self._own_limits.inflight_bytes_max}; await answers or ready_to_submit()"
            )

    # --- work ---------------------------------------------------------------------------------------------------------

    def submit(self, command: bytes, waiter: Any, deadline_ns: int) -> None:
        """Queue one command. Raises Busy, TooLarge, Closed."""
        room_bytes = self.room_bytes
        if len(command) > room_bytes or self._is_closing:
            self.check_room(len(command))
        self.queue.add(command, waiter, deadline_ns, room_bytes)

    def submit_list(self, commands: list[bytes], waiter: Any, deadline_ns: int) -> None:
        """Queue `commands`, all of them bytes, as exactly one block with one waiter, which gets a sequence of results.

        Failed commands have a CommandError in it. Raises Busy, TooLarge, Closed, ValueError for an empty list.
        """
        self.check_room(0)
        try:
            packed, count, longest = pack_commands(commands, self.queue.limits.block_bytes_max)
        except OverflowError as error:
            raise TooLarge(str(error)) from None
        self.check_room(len(packed))
        self.queue.add_packed(packed, count, longest, waiter, deadline_ns)

    def query(self, request: bytes, waiter: Any, deadline_ns: int) -> None:
        """Ask a linearizable read. Raises Busy, TooLarge, Closed."""
        self.check_room(len(request))
        self.queue.ask_again()
        self.queue.check_command_bytes(len(request))
        self._queries.add(self._take_request_id(), PendingQuery(request, waiter, deadline_ns))

    def check_command_bytes(self, size: int) -> None:
        """Raise TooLarge if a command of `size` bytes does not fit."""
        self.queue.check_command_bytes(size)

    def close(self) -> None:
        """Take no more work. When all callers have their answers, the session is closed through the log."""
        self._is_closing = True
        self.queue.ask_again()

    def abandon(self, reason: str) -> None:
        """Give every caller an error now: Closed for what was never sent, ConnectionLost for the rest."""
        self._is_closing = True
        self._answers.fail(self.queue.clear(), lambda: Closed(f"{reason}; the command was never sent"))
        self._answers.fail(
            self._inflight.live_waiters(),
            lambda: ConnectionLost(
                f"{reason} while the command had no answer; it may have been applied, look before doing it again"
            ),
        )
        self._inflight.clear()
        for query in self._queries.clear():
            if query.attempts:
                self._answers.one(query.waiter, ConnectionLost(f"{reason} before the query was answered").of_query())
            else:
                self._answers.one(query.waiter, Closed(f"{reason}; the query was never sent"))

    def take_completions(self) -> list[Completion]:
        """Return the answers since the last call, in the order in which they came."""
        return self._answers.take() if self._answers else []

    def _take_request_id(self) -> int:
        request_id = self._next_request
        self._next_request = request_id + 1
        return request_id

    # --- which error --------------------------------------------------------------------------------------------------

    def _sweep(self, now_ns: int, address: str, not_sent: Callable[[], NotApplied]) -> None:
        """Answer every caller whose deadline has passed; `not_sent` makes the error of those who were never sent."""
        self._sweep_queue(now_ns, not_sent)
        for block in self._inflight:
            if block.deadline_ns <= now_ns:
                expired = block.expire(now_ns)
                text = (
                    f"no answer before the deadline; the command was sent {block.attempts} time(s), last to {address}, "
                    f"and may have been applied or may still be: look before doing it again"
                )
                self._answers.fail(expired, lambda text=text: DeadlineExceeded(text))  # type: ignore[misc]
        for query in self._queries.sweep(now_ns):
            if query.attempts:
                error = DeadlineExceeded(f"no answer to the query before the deadline; asked {query.attempts} time(s)")
                self._answers.one(query.waiter, error.of_query())
            else:
                self._answers.one(query.waiter, not_sent())

    def _sweep_queue(self, now_ns: int, not_sent: Callable[[], NotApplied]) -> None:
        expired = self.queue.sweep(now_ns)
        if expired:
            self._answers.fail(expired, not_sent)

    def _answer_gone(self, block: PendingBlock) -> None:
        text = "the command was applied, but the cluster no longer keeps its result; read the state to see it"
        self._answers.fail(block.waiters, lambda: ResultGone(text))
        self._inflight.remove(block)

    def _answer_refused(self, block: PendingBlock, text: str, *, is_too_large: bool) -> None:
        """A node will never take this block. Only if it was the first attempt, nothing can have been applied."""
        if block.attempts > 1:
            self._answers.fail(block.waiters, lambda: OutcomeUnknown(f"{text}, an earlier attempt may have applied"))
        elif is_too_large:
            self._answers.fail(block.waiters, lambda: TooLarge(f"{text}; submit less at once"))
        else:
            self._answers.fail(block.waiters, lambda: Rejected(text))
        self._inflight.remove(block)

    def _answer_session_over(self, reason: str) -> None:
        """Nothing in flight can apply any more, but it may have; what is queued goes into the next session."""
        text = f"{reason} before the command was answered; it may have been applied, look before doing it again"
        self._answers.fail(self._inflight.live_waiters(), lambda: SessionExpired(text))
        self._inflight.clear()

    def _answer_not_sent(self, make_error: Callable[[], Exception]) -> None:
        """Give up on the queue and on all queries."""
        self._answers.fail(self.queue.clear(), make_error)
        self._answers.fail([query.waiter for query in self._queries.clear()], make_error)
