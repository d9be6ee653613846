"""A client's commands that were not sent yet, grouped as the blocks that they will become.

Nothing in here was ever sent, so whatever is dropped from it certainly does not apply.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from fastpaxos.errors import TooLarge

__all__ = [
    "NEVER_NS",
    "ClientLimits",
    "CommandQueue",
    "PendingBlock",
    "as_bytes",
    "as_commands",
    "cut_commands",
    "encoded_size",
]

NEVER_NS = (1 << 63) - 1
MIB = 1 << 20
BLOCK_HEADER_BYTES = 40
LENGTH_BYTES = 4
# A command with a waiter of its own costs about this much memory beside its bytes.
SINGLE_COMMAND_CHARGE = 64


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """What a client may send. Bytes and counts; the defaults are those of a node."""

    block_bytes_max: int = MIB
    command_bytes_max: int = MIB - 4096
    commands_per_block_max: int = 16_384
    inflight_bytes_max: int = 8 * MIB

    def lowered(self, limits: Mapping[str, Any]) -> ClientLimits:
        """These limits, none above those in a node's hello. Values that are no positive whole number are ignored."""
        lower: dict[str, int] = {}
        for name, key in (
            ("block_bytes_max", "block_bytes_max"),
            ("command_bytes_max", "command_bytes_max"),
            ("commands_per_block_max", "commands_per_block_max"),
            ("inflight_bytes_max", "inflight_bytes_per_session"),
        ):
            value = limits.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and 0 < value < getattr(self, name):
                lower[name] = value
        return replace(self, **lower) if lower else self


def encoded_size(commands: Sequence[bytes]) -> int:
    """Bytes of the block that `commands` make, at most."""
    return sum(map(len, commands)) + LENGTH_BYTES * len(commands) + BLOCK_HEADER_BYTES


class PendingBlock:
    """Commands that become, or became, one block.

    `waiters` has one entry per command, or a single one for the whole block (`is_whole`); None where the caller has
    its answer already. `deadlines_ns` runs parallel to it, `deadline_ns` is the smallest one that still matters.
    `data` is the encoded block once it was sent, and `commands` is empty from then on.
    """

    __slots__ = (
        "attempts", "charge", "commands", "count", "data", "deadline_ns", "deadlines_ns", "encoded_bytes",
        "first_sequence", "is_raw", "is_whole", "needs_send", "request_id", "waiters",
    )  # fmt: skip

    def __init__(self, *, is_whole: bool = False, is_raw: bool = False) -> None:
        self.commands: Sequence[bytes] = []
        self.waiters: list[Any] = []
        self.deadlines_ns: list[int] = []
        self.deadline_ns = NEVER_NS
        self.encoded_bytes = BLOCK_HEADER_BYTES
        self.charge = BLOCK_HEADER_BYTES
        self.count = 0
        self.is_whole = is_whole
        self.is_raw = is_raw
        self.first_sequence = 0
        self.data = b""
        self.request_id = 0
        self.attempts = 0
        self.needs_send = False

    def expire(self, now_ns: int) -> list[Any]:
        """Take out and return the waiters whose deadline has passed."""
        expired: list[Any] = []
        next_ns = NEVER_NS
        waiters = self.waiters
        for position, deadline_ns in enumerate(self.deadlines_ns):
            waiter = waiters[position]
            if waiter is None:
                continue
            if deadline_ns <= now_ns:
                expired.append(waiter)
                waiters[position] = None
            elif deadline_ns < next_ns:
                next_ns = deadline_ns
        self.deadline_ns = next_ns
        return expired

    def live_waiters(self) -> list[Any]:
        """The waiters that have no answer yet."""
        return [waiter for waiter in self.waiters if waiter is not None]


class CommandQueue:
    """Groups commands in the order of submission.

    Attributes:
        limits: what one command and one block may be.
        charge: bytes held, with what each command costs beside its own bytes.
    """

    def __init__(self, limits: ClientLimits, is_abandoned: Callable[[Any], bool] | None = None) -> None:
        self.limits = limits
        self.charge = 0
        self._is_abandoned = is_abandoned
        self._blocks: deque[PendingBlock] = deque()
        self._open: PendingBlock | None = None

    def __len__(self) -> int:
        return len(self._blocks)

    def __bool__(self) -> bool:
        return bool(self._blocks)

    def add(self, command: bytes, waiter: Any, deadline_ns: int) -> None:
        """Append one command. Raises TooLarge."""
        size = len(command)
        block = self._open
        limits = self.limits
        encoded_bytes = size + LENGTH_BYTES
        if (
            block is None
            or block.encoded_bytes + encoded_bytes > limits.block_bytes_max
            or block.count >= limits.commands_per_block_max
        ):
            self.check_command_bytes(size)
            block = self._open = PendingBlock()
            self._blocks.append(block)
            self.charge += block.charge
        elif size > limits.command_bytes_max:
            self.check_command_bytes(size)
        block.commands.append(command)  # type: ignore[attr-defined]
        block.waiters.append(waiter)
        block.deadlines_ns.append(deadline_ns)
        block.encoded_bytes += encoded_bytes
        block.count += 1
        charge = size + SINGLE_COMMAND_CHARGE
        block.charge += charge
        self.charge += charge
        if deadline_ns < block.deadline_ns:
            block.deadline_ns = deadline_ns

    def add_list(
        self, commands: Sequence[bytes], waiter: Any, deadline_ns: int, encoded_bytes: int, *, is_raw: bool = False
    ) -> None:
        """Append `commands`, all of them bytes, as exactly one block with one waiter. Raises TooLarge, ValueError.

        `encoded_bytes` is `encoded_size(commands)`.
        """
        count = len(commands)
        if not count:
            raise ValueError("a block needs at least one command")
        limits = self.limits
        block = PendingBlock(is_whole=True, is_raw=is_raw)
        block.encoded_bytes = encoded_bytes
        if count > limits.commands_per_block_max or block.encoded_bytes > limits.block_bytes_max:
            raise TooLarge(
                f"{count} commands make a block of {block.encoded_bytes} bytes; at most "
                f"{limits.commands_per_block_max} commands and {limits.block_bytes_max} bytes fit into one"
            )
        if block.encoded_bytes > limits.command_bytes_max:
            self.check_command_bytes(max(map(len, commands)))
        block.commands = commands
        block.count = count
        block.waiters.append(waiter)
        block.deadlines_ns.append(deadline_ns)
        block.deadline_ns = deadline_ns
        block.charge = block.encoded_bytes
        self.charge += block.charge
        self._blocks.append(block)
        self._open = None

    def check_command_bytes(self, size: int) -> None:
        """Raise TooLarge if a command of `size` bytes does not fit."""
        limits = self.limits
        most = min(limits.command_bytes_max, limits.block_bytes_max - BLOCK_HEADER_BYTES - LENGTH_BYTES)
        if size > most:
            raise TooLarge(
                f"the command has {size} bytes, at most {most} are allowed; split it, or raise command_bytes_max and "
                f"block_bytes_max on all nodes"
            )

    def front_bytes(self) -> int:
        """Bytes of the next block at most; 0 when the queue is empty."""
        return self._blocks[0].encoded_bytes if self._blocks else 0

    def pop(self) -> PendingBlock | None:
        """Take the next block, without the commands whose caller has gone; None if nothing is left of it."""
        block = self._blocks.popleft()
        self.charge -= block.charge
        if block is self._open:
            self._open = None
        is_abandoned = self._is_abandoned
        if is_abandoned is not None and any(map(is_abandoned, block.waiters)):
            block.waiters = [None if is_abandoned(waiter) else waiter for waiter in block.waiters]
            return self._without_gone(block)
        return block

    def sweep(self, now_ns: int) -> list[Any]:
        """Drop every command whose deadline has passed and return their waiters."""
        expired: list[Any] = []
        if not self._blocks or min(block.deadline_ns for block in self._blocks) > now_ns:
            return expired
        kept: deque[PendingBlock] = deque()
        for block in self._blocks:
            rest: PendingBlock | None = block
            if block.deadline_ns <= now_ns:
                expired += block.expire(now_ns)
                rest = self._without_gone(block)
                self.charge -= block.charge - (rest.charge if rest is not None else 0)
                if block is self._open:
                    self._open = rest
            if rest is not None:
                kept.append(rest)
        self._blocks = kept
        return expired

    def set_limits(self, limits: ClientLimits) -> list[tuple[Any, TooLarge]]:
        """Adopt other limits and regroup. Returns the waiters of what does not fit any more, with the reason."""
        if limits == self.limits:
            return []
        self.limits = limits
        refused: list[tuple[Any, TooLarge]] = []
        blocks, self._blocks, self._open, self.charge = self._blocks, deque(), None, 0
        for block in blocks:
            try:
                if block.is_whole:
                    waiter, size = block.waiters[0], block.encoded_bytes
                    self.add_list(block.commands, waiter, block.deadline_ns, size, is_raw=block.is_raw)
                    continue
            except TooLarge as error:
                refused.append((block.waiters[0], error))
                continue
            for command, waiter, deadline_ns in zip(block.commands, block.waiters, block.deadlines_ns, strict=True):
                try:
                    self.add(command, waiter, deadline_ns)
                except TooLarge as error:
                    refused.append((waiter, error))
        return refused

    def clear(self) -> list[Any]:
        """Drop everything and return the waiters."""
        waiters = [waiter for block in self._blocks for waiter in block.live_waiters()]
        self._blocks.clear()
        self._open = None
        self.charge = 0
        return waiters

    @staticmethod
    def _without_gone(block: PendingBlock) -> PendingBlock | None:
        """A copy of `block` that keeps only the commands that somebody waits for; None if there is none."""
        if block.is_whole:
            return block if block.waiters[0] is not None else None
        rest = PendingBlock()
        commands: list[bytes] = []
        for command, waiter, deadline_ns in zip(block.commands, block.waiters, block.deadlines_ns, strict=True):
            if waiter is not None:
                commands.append(command)
                rest.waiters.append(waiter)
                rest.deadlines_ns.append(deadline_ns)
                rest.encoded_bytes += len(command) + LENGTH_BYTES
                rest.charge += len(command) + SINGLE_COMMAND_CHARGE
        if not commands:
            return None
        rest.commands = commands
        rest.count = len(commands)
        rest.deadline_ns = min(rest.deadlines_ns)
        return rest


def cut_commands(commands: list[bytes], limits: ClientLimits) -> Iterator[tuple[list[bytes], int]]:
    """Yield `commands` in as few parts as fit into blocks, each with the bytes of its block."""
    payload_max = limits.block_bytes_max - BLOCK_HEADER_BYTES
    count_max = limits.commands_per_block_max
    begin = 0
    while begin < len(commands):
        part = commands[begin : begin + count_max]
        part_bytes = sum(map(len, part)) + LENGTH_BYTES * len(part)
        if part_bytes > payload_max:
            sizes = list(accumulate(len(command) + LENGTH_BYTES for command in part))
            part = part[: bisect_right(sizes, payload_max)]
            part_bytes = sizes[len(part) - 1]
        yield part, part_bytes + BLOCK_HEADER_BYTES
        begin += len(part)


def as_bytes(command: object) -> bytes:
    """A command as bytes of its own. Raises TypeError."""
    if isinstance(command, bytes):
        return command
    if isinstance(command, bytearray | memoryview):
        return bytes(command)
    raise TypeError(f"a command must be bytes, not {type(command).__name__}; encode it first")


def as_commands(commands: Iterable[bytes]) -> list[bytes]:
    """A list of its own, all bytes: what the caller does with theirs afterwards does not matter."""
    if isinstance(commands, str | bytes | bytearray | memoryview):
        raise TypeError(f"expected a list of commands, not {type(commands).__name__}")
    whole = [*commands]
    return whole if set(map(type, whole)) <= {bytes} else [as_bytes(command) for command in whole]
