"""`PendingBlock`: commands of a client that become, or became, one block, and who waits for them.

Compiled because it is what a client does once per command; everything else that a client does, it does once per block.
"""

from cpython.bytes cimport PyBytes_GET_SIZE

from fastpaxos_core.types cimport int64_t

cdef enum:
    BLOCK_HEADER_BYTES = 40
    LENGTH_BYTES = 4
    # A command with a waiter of its own costs about this much memory beside its bytes.
    SINGLE_COMMAND_CHARGE = 64

cdef int64_t _NEVER_NS = 0x7FFFFFFFFFFFFFFF


cdef class PendingBlock:
    """Commands that become, or became, one block.

    Args:
        block_bytes_max, command_bytes_max, commands_per_block_max: what `add` goes by. Bytes and counts.

    Attributes:
        commands: the commands in order, empty from when the block is sent; a whole block has `packed` instead, and the
            bytes of its longest command.
        data: the encoded block once it was sent.
        waiters: one entry per command, or a single one for the whole block (`is_whole`); None where the caller has its
            answer already.
        deadlines_ns: runs parallel to `waiters`; `deadline_ns` is the smallest one that still matters.
        encoded_bytes: size of the block at most. charge: what it costs its client's limit, in bytes.
        room_bytes: what `add` may still charge.
        first_sequence, request_id, attempts, needs_send: how it was sent, and whether it must be sent again.
    """

    cdef public list commands
    cdef public list waiters
    cdef public list deadlines_ns
    cdef public bytes packed
    cdef public bytes data
    cdef public int64_t longest
    cdef public object request_id
    cdef public object first_sequence
    cdef public int64_t deadline_ns
    cdef public int64_t encoded_bytes
    cdef public int64_t charge
    cdef public int64_t room_bytes
    cdef public int64_t count
    cdef public int64_t attempts
    cdef public bint is_whole
    cdef public bint needs_send
    cdef int64_t _block_bytes_max
    cdef int64_t _command_bytes_max
    cdef int64_t _commands_per_block_max

    def __init__(self, int64_t block_bytes_max=0, int64_t command_bytes_max=0, int64_t commands_per_block_max=0):
        self.commands = []
        self.waiters = []
        self.deadlines_ns = []
        self.packed = self.data = b""
        self.request_id = 0
        self.first_sequence = 0
        self.deadline_ns = _NEVER_NS
        self.encoded_bytes = BLOCK_HEADER_BYTES
        self.charge = BLOCK_HEADER_BYTES
        self.room_bytes = 0
        self._block_bytes_max = block_bytes_max
        self._command_bytes_max = command_bytes_max
        self._commands_per_block_max = commands_per_block_max

    def add(self, bytes command not None, object waiter, int64_t deadline_ns) -> bool:
        """Append one command and its waiter. False, and nothing done, if a limit or the room does not allow it."""
        cdef int64_t size = PyBytes_GET_SIZE(command)
        if (size > self.room_bytes or size > self._command_bytes_max or self.count >= self._commands_per_block_max
                or self.encoded_bytes + size + LENGTH_BYTES > self._block_bytes_max):
            return False
        self.commands.append(command)
        self.waiters.append(waiter)
        self.deadlines_ns.append(deadline_ns)
        self.count += 1
        self.encoded_bytes += size + LENGTH_BYTES
        self.charge += size + SINGLE_COMMAND_CHARGE
        self.room_bytes -= size + SINGLE_COMMAND_CHARGE
        if deadline_ns < self.deadline_ns:
            self.deadline_ns = deadline_ns
        return True

    def fill(self, bytes packed not None, int64_t count, int64_t longest, object waiter, int64_t deadline_ns) -> None:
        """Make it the block of `count` commands that `pack_commands` has packed, with one waiter for all of them."""
        self.packed = packed
        self.longest = longest
        self.waiters = [waiter]
        self.deadlines_ns = [deadline_ns]
        self.deadline_ns = deadline_ns
        self.count = count
        self.encoded_bytes = self.charge = PyBytes_GET_SIZE(packed)
        self.is_whole = True

    def expire(self, int64_t now_ns) -> list:
        """Take out and return the waiters whose deadline has passed."""
        cdef int64_t next_ns = _NEVER_NS
        cdef int64_t deadline_ns
        cdef Py_ssize_t position
        expired = []
        for position in range(len(self.waiters)):
            waiter = self.waiters[position]
            if waiter is None:
                continue
            deadline_ns = self.deadlines_ns[position]
            if deadline_ns <= now_ns:
                expired.append(waiter)
                self.waiters[position] = None
            elif deadline_ns < next_ns:
                next_ns = deadline_ns
        self.deadline_ns = next_ns
        return expired

    def without_gone(self) -> PendingBlock | None:
        """What is left without the commands that nobody waits for any more; None if that is nothing."""
        cdef PendingBlock rest
        cdef Py_ssize_t position
        if self.is_whole:
            return self if self.waiters[0] is not None else None
        rest = PendingBlock(self._block_bytes_max, self._command_bytes_max, self._commands_per_block_max)
        # It all had room before, and what goes makes more.
        rest.room_bytes = _NEVER_NS
        for position in range(len(self.waiters)):
            waiter = self.waiters[position]
            if waiter is not None:
                rest.add(self.commands[position], waiter, self.deadlines_ns[position])
        rest.room_bytes = self.room_bytes
        return rest if rest.count else None

    def live_waiters(self) -> list:
        """The waiters that have no answer yet."""
        return [waiter for waiter in self.waiters if waiter is not None]


def answer_waiters(waiters, results) -> None:
    """Give each waiter its result with `set_result`, unless it is None or `done()`. ValueError: counts differ."""
    if len(waiters) != len(results):
        raise ValueError(f"{len(results)} results for {len(waiters)} waiters")
    for waiter, result in zip(waiters, results):
        if waiter is not None and not waiter.done():
            waiter.set_result(result)
