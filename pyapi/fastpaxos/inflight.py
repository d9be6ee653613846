"""What a client has sent and has no answer to: numbered blocks, and queries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastpaxos.command_queue import NEVER_NS, CommandQueue
from fastpaxos_core.block import pack_commands, stamp_block
from fastpaxos_core.pending_block import PendingBlock

__all__ = ["InflightBlocks", "PendingQueries", "PendingQuery"]

QUERY_CHARGE = 64


class InflightBlocks:
    """The unanswered blocks of one session, in order of their sequences.

    A block in here has been sent and keeps its bytes: it is sent again until it is answered or the session ends, even
    when nobody waits for it any more, because the sequences after it depend on it.

    Attributes:
        next_sequence: what the next command gets; the first command of a session has 1.
        bytes: size of all blocks. charge: what they cost their client's limit.
        needs_resend: some block must be sent again.
    """

    def __init__(self, blocks_max: int) -> None:
        self.blocks_max = blocks_max
        self.next_sequence = 1
        self.bytes = 0
        self.charge = 0
        self.needs_resend = False
        self._blocks: dict[int, PendingBlock] = {}

    def __len__(self) -> int:
        return len(self._blocks)

    def __bool__(self) -> bool:
        return bool(self._blocks)

    def __iter__(self) -> Iterator[PendingBlock]:
        return iter(self._blocks.values())

    def get(self, first_sequence: int) -> PendingBlock | None:
        """The unanswered block that begins with this sequence."""
        return self._blocks.get(first_sequence)

    def cut(self, queue: CommandQueue, session_id: int) -> PendingBlock | None:
        """Number and encode the next block of the queue; None if it is empty or the limits forbid another one."""
        blocks = self._blocks
        while queue and len(blocks) < self.blocks_max:
            if blocks and self.bytes + queue.front_bytes() > queue.limits.inflight_bytes_max:
                return None
            block = queue.pop()
            if block is None:
                continue
            first_sequence = self.next_sequence
            acknowledged_below = next(iter(blocks)) if blocks else first_sequence
            data = block.packed if block.is_whole else pack_commands(block.commands)[0]
            stamp_block(data, session_id, first_sequence, acknowledged_below)
            block.data = data
            block.packed, block.commands = b"", []
            block.first_sequence = first_sequence
            self.next_sequence = first_sequence + block.count
            self.bytes += len(block.data)
            self.charge += block.charge
            blocks[first_sequence] = block
            return block
        return None

    def remove(self, block: PendingBlock) -> None:
        """The block has its answer."""
        del self._blocks[block.first_sequence]
        self.bytes -= len(block.data)
        self.charge -= block.charge

    def mark_for_resend(self, first_sequence: int = 0) -> None:
        """Every block from `first_sequence` on must be sent again."""
        for block in self._blocks.values():
            if block.first_sequence >= first_sequence:
                block.needs_send = self.needs_resend = True

    def take_resends(self) -> list[PendingBlock]:
        """The blocks to be sent again, oldest first."""
        self.needs_resend = False
        return [block for block in self._blocks.values() if block.needs_send]

    def is_owed(self) -> bool:
        """Whether some block is on its way and has neither answer nor refusal."""
        if not self.needs_resend:
            return bool(self._blocks)
        return any(not block.needs_send for block in self._blocks.values())

    def live_waiters(self) -> list[Any]:
        """Everybody who waits for a block."""
        return [waiter for block in self._blocks.values() for waiter in block.waiters if waiter is not None]

    def clear(self) -> list[PendingBlock]:
        """The session is over: forget everything, begin with sequence 1. Returns the blocks."""
        blocks = list(self._blocks.values())
        self._blocks.clear()
        self.next_sequence = 1
        self.bytes = self.charge = 0
        self.needs_resend = False
        return blocks


class PendingQuery:
    """One read: it changes nothing, so it may be asked again at will."""

    __slots__ = ("attempts", "charge", "deadline_ns", "needs_send", "request", "waiter")

    def __init__(self, request: bytes, waiter: Any, deadline_ns: int) -> None:
        self.request = request
        self.waiter = waiter
        self.deadline_ns = deadline_ns
        self.charge = len(request) + QUERY_CHARGE
        self.attempts = 0
        self.needs_send = True


class PendingQueries:
    """The unanswered queries by id. `charge` is what they cost their client's limit, in bytes."""

    def __init__(self) -> None:
        self.charge = 0
        self.to_send = 0
        self._earliest_ns = NEVER_NS
        self._queries: dict[int, PendingQuery] = {}

    def __len__(self) -> int:
        return len(self._queries)

    def __bool__(self) -> bool:
        return bool(self._queries)

    def add(self, query_id: int, query: PendingQuery) -> None:
        """A new query, to be sent."""
        self._queries[query_id] = query
        self.charge += query.charge
        self.to_send += 1
        self._earliest_ns = min(self._earliest_ns, query.deadline_ns)

    def get(self, query_id: int) -> PendingQuery | None:
        """The unanswered query with this id."""
        return self._queries.get(query_id)

    def remove(self, query_id: int) -> PendingQuery:
        """The query has its answer."""
        query = self._queries.pop(query_id)
        self.charge -= query.charge
        self.to_send -= query.needs_send
        return query

    def take_sends(self) -> list[tuple[int, PendingQuery]]:
        """The queries to be sent now, oldest first."""
        self.to_send = 0
        sends = [(query_id, query) for query_id, query in self._queries.items() if query.needs_send]
        for _, query in sends:
            query.needs_send = False
            query.attempts += 1
        return sends

    def mark_for_resend(self, query: PendingQuery) -> None:
        """This query must be sent again."""
        if not query.needs_send:
            query.needs_send = True
            self.to_send += 1

    def mark_all_for_resend(self) -> None:
        """Every query must be sent again."""
        for query in self._queries.values():
            query.needs_send = True
        self.to_send = len(self._queries)

    def is_owed(self) -> bool:
        """Whether some query is on its way."""
        return self.to_send < len(self._queries)

    def sweep(self, now_ns: int) -> list[PendingQuery]:
        """Take out the queries whose deadline has passed."""
        if now_ns < self._earliest_ns:
            return []
        late = [query_id for query_id, query in self._queries.items() if query.deadline_ns <= now_ns]
        expired = [self.remove(query_id) for query_id in late]
        self._earliest_ns = min((query.deadline_ns for query in self._queries.values()), default=NEVER_NS)
        return expired

    def clear(self) -> list[PendingQuery]:
        """Take out all queries."""
        queries = list(self._queries.values())
        self._queries.clear()
        self.charge = self.to_send = 0
        return queries
