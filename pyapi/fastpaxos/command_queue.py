"""A client's commands that were not sent yet, grouped as the blocks that they will become.

Nothing in here was ever sent, so whatever is dropped from it certainly does not apply.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from fastpaxos.errors import TooLarge
from fastpaxos_core.block import longest_command
from fastpaxos_core.pending_block import PendingBlock

__all__ = [
    "NEVER_NS",
    "ClientLimits",
    "CommandQueue",
    "PendingBlock",
    "as_bytes",
    "as_commands",
    "cut_commands",
]

NEVER_NS = (1 << 63) - 1
MIB = 1 << 20
BLOCK_HEADER_BYTES = 40
LENGTH_BYTES = 4


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


class CommandQueue:
    """Groups commands in the order of submission.

    Attributes:
        limits: what one command and one block may be.
        open: the last block, as long as single commands may join it with its `add`; None otherwise.
    """

    def __init__(self, limits: ClientLimits, is_abandoned: Callable[[Any], bool] | None = None) -> None:
        self.limits = limits
        self.open: PendingBlock | None = None
        self._is_abandoned = is_abandoned
        self._blocks: deque[PendingBlock] = deque()
        self._closed_charge = 0

    def __len__(self) -> int:
        return len(self._blocks)

    def __bool__(self) -> bool:
        return bool(self._blocks)

    @property
    def charge(self) -> int:
        """Bytes held, with what each command costs beside its own bytes."""
        block = self.open
        return self._closed_charge if block is None else self._closed_charge + block.charge

    def add(self, command: bytes, waiter: Any, deadline_ns: int, room_bytes: int = NEVER_NS) -> None:
        """Append one command. Others may join it without asking here while they charge no more than is left of
        `room_bytes`. Raises TooLarge.
        """
        block = self.open
        if block is not None:
            block.room_bytes = room_bytes
            if block.add(command, waiter, deadline_ns):
                return
        self.check_command_bytes(len(command))
        self.close_open()
        limits = self.limits
        block = PendingBlock(limits.block_bytes_max, limits.command_bytes_max, limits.commands_per_block_max)
        block.room_bytes = max(room_bytes, len(command))
        block.add(command, waiter, deadline_ns)
        self.open = block
        self._blocks.append(block)

    def add_packed(self, packed: bytes, count: int, longest: int, waiter: Any, deadline_ns: int) -> None:
        """Append `count` packed commands as exactly one block with one waiter; `longest` is the bytes of the longest.

        Raises TooLarge.
        """
        limits = self.limits
        if count > limits.commands_per_block_max or len(packed) > limits.block_bytes_max:
            raise TooLarge(
                f"{count} commands make a block of {len(packed)} bytes; at most "
                f"{limits.commands_per_block_max} commands and {limits.block_bytes_max} bytes fit into one"
            )
        self.check_command_bytes(longest)
        block = PendingBlock()
        block.fill(packed, count, longest, waiter, deadline_ns)
        self.close_open()
        self._closed_charge += block.charge
        self._blocks.append(block)

    def ask_again(self) -> None:
        """What may be charged has changed: nothing joins the last block before `add` was asked."""
        if self.open is not None:
            self.open.room_bytes = -1

    def close_open(self) -> None:
        """Nothing joins the last block any more."""
        if self.open is not None:
            self._closed_charge += self.open.charge
            self.open = None

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
        if block is self.open:
            self.open = None
        else:
            self._closed_charge -= block.charge
        is_abandoned = self._is_abandoned
        if is_abandoned is not None and any(map(is_abandoned, block.waiters)):
            block.waiters = [None if is_abandoned(waiter) else waiter for waiter in block.waiters]
            return block.without_gone()
        return block

    def sweep(self, now_ns: int) -> list[Any]:
        """Drop every command whose deadline has passed and return their waiters."""
        expired: list[Any] = []
        for block in self._blocks:
            if block.deadline_ns <= now_ns:
                break
        else:
            return expired
        kept: deque[PendingBlock] = deque()
        for block in self._blocks:
            rest: PendingBlock | None = block
            if block.deadline_ns <= now_ns:
                expired += block.expire(now_ns)
                rest = block.without_gone()
                if block is self.open:
                    self.open = rest
                else:
                    self._closed_charge -= block.charge - (rest.charge if rest is not None else 0)
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
        blocks, self._blocks, self.open, self._closed_charge = self._blocks, deque(), None, 0
        for block in blocks:
            try:
                if block.is_whole:
                    self.add_packed(block.packed, block.count, block.longest, block.waiters[0], block.deadline_ns)
                    continue
            except TooLarge as error:
                refused.append((block.waiters[0], error))
                continue
            for command, waiter, deadline_ns in zip(block.commands, block.waiters, block.deadlines_ns, strict=True):
                try:
                    self.add(command, waiter, deadline_ns)
                except TooLarge as error:
                    refused.append((waiter, error))
        self.ask_again()
        return refused

    def clear(self) -> list[Any]:
        """Drop everything and return the waiters."""
        waiters = [waiter for block in self._blocks for waiter in block.live_waiters()]
        self._blocks.clear()
        self.open = None
        self._closed_charge = 0
        return waiters


def cut_commands(commands: list[bytes], limits: ClientLimits) -> Iterator[tuple[list[bytes], int]]:
    """Yield `commands` in as few parts as fit into blocks, each with the bytes of its block at most."""
    payload_max = limits.block_bytes_max - BLOCK_HEADER_BYTES
    begin = 0
    while begin < len(commands):
        part = commands[begin : begin + limits.commands_per_block_max]
        sizes = list(accumulate(len(command) + LENGTH_BYTES for command in part))
        part = part[: bisect_right(sizes, payload_max)]
        yield part, sizes[len(part) - 1] + BLOCK_HEADER_BYTES
        begin += len(part)


def as_bytes(command: object) -> bytes:
    """A command as bytes of its own. Raises TypeError."""
    if type(command) is bytes:
        return command
    if isinstance(command, bytes | bytearray | memoryview):
        return bytes(memoryview(command))  # not bytes(command): a subclass may answer that with anything
    raise TypeError(f"a command must be bytes, not {type(command).__name__}; encode it first")


def as_commands(commands: Iterable[bytes]) -> tuple[list[bytes], int]:
    """A list of its own, all bytes, and the size of the longest: what the caller does with theirs does not matter."""
    if isinstance(commands, str | bytes | bytearray | memoryview):
        raise TypeError(f"expected a list of commands, not {type(commands).__name__}")
    whole = [*commands]
    longest = longest_command(whole)
    if longest < 0:
        whole = [as_bytes(command) for command in whole]
        longest = longest_command(whole)
    return whole, longest
