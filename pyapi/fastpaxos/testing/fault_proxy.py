"""A network between real processes that can be taken apart: one TCP proxy for each directed pair of members.

A member reaches another one only through the proxy that belongs to the pair, and clients have proxies of their own.
What may pass is decided per direction of the bytes and not per dialler, because either side of a pair may have dialled
the one connection between them. A direction is called a way: (sender, receiver).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from types import TracebackType
from typing import Self

__all__ = ["CLIENTS", "FaultNetwork"]

CLIENTS = 0
"""The sender or receiver of a way that stands for all clients; no member has this id."""

CHUNK_BYTES = 64 * 1024
LOST = (OSError, EOFError)
# Closing with this option set sends a reset instead of an orderly end, whatever is still queued.
LINGER_NOT = struct.pack("ii", 1, 0)


@dataclass(eq=False, slots=True)
class _Way:
    """What happens to bytes that one side says to the other."""

    is_open: asyncio.Event = field(default_factory=asyncio.Event)
    is_stalled: bool = False
    delay_s: float = 0.0
    piece_bytes: int = 0
    piece_pause_s: float = 0.0
    flips: int = 0
    breaks: int = 0

    def __post_init__(self) -> None:
        self.is_open.set()

    @property
    def is_disturbed(self) -> bool:
        return not self.is_open.is_set() or self.is_stalled or bool(self.delay_s or self.piece_bytes)


@dataclass(eq=False, slots=True)
class _Passage:
    """One connection through a proxy: two streams, and the two sides at its ends."""

    dialler: int
    target: int
    inside: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    outside: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    has_lost_bytes: bool = False

    def abort(self) -> None:
        """Break it: both ends see a reset."""
        for _, writer in filter(None, (self.inside, self.outside)):
            connection = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                if connection is not None and connection.fileno() >= 0:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
            writer.transport.abort()


class FaultNetwork:
    """The proxies of one cluster. Ownership: listeners, connections and tasks; leaving the `async with` ends them.

    - `cut(a, b)`: nothing that `a` says reaches `b` any more, as if every packet were lost; connections stand, and a
      new one cannot be made. `cut` of both directions is a partition. A sender is stuck once the buffers are full.
    - `stall(a, b)`: the connections are half open: what `a` says is taken and vanishes. Mending breaks them, as a
      machine that has come back does with connections that it does not know.
    - `delay(a, b, seconds)`: what `a` says arrives later.
    - `trickle(a, b, bytes_per_second, piece_bytes)`: what `a` says arrives slowly and in small pieces, down to 1 byte.
    - `mend(a, b)`: undoes all of these; what a cut held back arrives at last, as retransmission would do.
    - `flip(a, b)`: one bit of the next bytes that pass is turned over.
    - `break_inside(a, b)`: the next bytes pass only in part, then the connection breaks: most often inside a frame.
    - `reset(a, b)`: the connections of the pair break, and what they held back is gone; they can be dialled anew.

    Args:
        members: {node id: "host:port"}, where the members really listen.
        random: where bits flip and frames break.

    Attributes:
        flipped, broken: how many bits were turned over and how many connections broke inside of what passed.
    """

    def __init__(self, members: Mapping[int, str], random: Random | None = None) -> None:
        self.members = dict(members)
        self.flipped = 0
        self.broken = 0
        self._random = random if random is not None else Random(1)
        self._listeners: dict[tuple[int, int], asyncio.Server] = {}
        self._ways: dict[tuple[int, int], _Way] = {}
        self._passages: set[_Passage] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        sides = [CLIENTS, *self.members]
        self._ways = {(one, other): _Way() for one in sides for other in sides if one != other}
        for dialler, target in self._ways:
            if target != CLIENTS:
                await self._listen(dialler, target)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for listener in self._listeners.values():
            listener.close()
        for passage in self._passages:
            passage.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for listener in self._listeners.values():
            await listener.wait_closed()

    def addresses_for(self, side: int) -> dict[int, str]:
        """The cluster as a member, or CLIENTS, must be told it: itself at its own address, others behind proxies."""
        return {
            member: address if member == side else self._address(side, member)
            for member, address in self.members.items()
        }

    @property
    def is_whole(self) -> bool:
        """Whether everything passes on every way as it should."""
        return not any(way.is_disturbed or way.flips or way.breaks for way in self._ways.values())

    # --- faults -------------------------------------------------------------------------------------------------------

    def cut(self, sender: int, receiver: int) -> None:
        """Let nothing more pass from `sender` to `receiver`."""
        self._ways[sender, receiver].is_open.clear()

    def stall(self, sender: int, receiver: int) -> None:
        """Take what `sender` says and lose it, until the way is mended."""
        self._ways[sender, receiver].is_stalled = True

    def delay(self, sender: int, receiver: int, seconds: float) -> None:
        """Let what passes wait for `seconds` first."""
        self._ways[sender, receiver].delay_s = seconds

    def trickle(self, sender: int, receiver: int, bytes_per_second: float, piece_bytes: int = 1) -> None:
        """Let bytes pass only in packets of `piece_bytes`, and no more of them than `bytes_per_second`."""
        way = self._ways[sender, receiver]
        way.piece_bytes, way.piece_pause_s = piece_bytes, piece_bytes / bytes_per_second

    def mend(self, sender: int, receiver: int) -> None:
        """Let pass again, first of all what was held back."""
        way = self._ways[sender, receiver]
        way.is_stalled = False
        way.delay_s = way.piece_pause_s = 0.0
        way.piece_bytes = way.flips = way.breaks = 0
        for passage in self._between(sender, receiver):
            if passage.has_lost_bytes:
                passage.abort()
        way.is_open.set()

    def flip(self, sender: int, receiver: int) -> None:
        """Turn over one bit of what passes next."""
        self._ways[sender, receiver].flips += 1

    def break_inside(self, sender: int, receiver: int) -> None:
        """Break the connection in the middle of what passes next."""
        self._ways[sender, receiver].breaks += 1

    def reset(self, one: int, other: int) -> None:
        """Break every connection between two sides."""
        for passage in self._between(one, other):
            passage.abort()

    def separate(self, one: int, other: int) -> None:
        """Cut both directions between two sides."""
        self.cut(one, other)
        self.cut(other, one)

    def isolate(self, node_id: int, direction: str = "both") -> None:
        """Cut a member off from all others: "both" ways, or only what is "outgoing" or "incoming" for it."""
        for other in self.members:
            if other != node_id and direction in ("both", "outgoing"):
                self.cut(node_id, other)
            if other != node_id and direction in ("both", "incoming"):
                self.cut(other, node_id)

    def heal(self, *, reset: bool = False) -> None:
        """Mend everything. With `reset`, connections over a disturbed way break first: nothing held back arrives."""
        for (sender, receiver), way in self._ways.items():
            if reset and way.is_disturbed:
                self.reset(sender, receiver)
            self.mend(sender, receiver)

    # --- connections --------------------------------------------------------------------------------------------------

    def _between(self, one: int, other: int) -> Iterator[_Passage]:
        for passage in list(self._passages):
            if {passage.dialler, passage.target} == {one, other}:
                yield passage

    async def _listen(self, dialler: int, target: int) -> None:
        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._serve(_Passage(dialler, target, (reader, writer))))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self._listeners[dialler, target] = await asyncio.start_server(accept, "127.0.0.1", 0)

    def _address(self, dialler: int, target: int) -> str:
        host, port = self._listeners[dialler, target].sockets[0].getsockname()
        return f"{host}:{port}"

    async def _serve(self, passage: _Passage) -> None:
        self._passages.add(passage)
        there, back = (passage.dialler, passage.target), (passage.target, passage.dialler)
        try:
            # The three packets that make a connection cross in both directions.
            await self._pass(there, back)
            host, port = self.members[passage.target].rsplit(":", 1)
            passage.outside = await asyncio.open_connection(host, int(port))
            inside, outside = passage.inside, passage.outside
            await asyncio.gather(
                self._pump(passage, inside[0], outside[1], there), self._pump(passage, outside[0], inside[1], back)
            )
        except LOST:
            pass  # nobody listens at the target: the dialler sees a reset
        finally:
            passage.abort()
            self._passages.discard(passage)

    async def _pump(
        self, passage: _Passage, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: tuple[int, int]
    ) -> None:
        """Carry bytes one way until that side ends. The end is a packet too: a cut holds it back like any other."""
        way = self._ways[name]
        with contextlib.suppress(*LOST):
            while data := await reader.read(CHUNK_BYTES):
                if way.delay_s:
                    await asyncio.sleep(way.delay_s)
                await self._pass(name)
                if way.is_stalled:
                    passage.has_lost_bytes = True
                    continue
                if way.flips:
                    way.flips -= 1
                    data = self._flipped(data)
                if way.breaks and len(data) > 1:
                    way.breaks -= 1
                    self.broken += 1
                    await self._write(writer, data[: self._random.randrange(1, len(data))], way)
                    passage.abort()
                    return
                await self._write(writer, data, way)
        await self._pass(name)
        writer.close()

    @staticmethod
    async def _write(writer: asyncio.StreamWriter, data: bytes, way: _Way) -> None:
        at = 0
        # The other direction may have broken the connection meanwhile.
        while at < len(data) and not writer.is_closing():
            piece_bytes = way.piece_bytes or len(data)
            writer.write(data[at : at + piece_bytes])
            await writer.drain()
            at += piece_bytes
            if way.piece_pause_s:
                await asyncio.sleep(way.piece_pause_s)

    def _flipped(self, data: bytes) -> bytes:
        place = self._random.randrange(8 * len(data))
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        self.flipped += 1
        return bytes(changed)

    async def _pass(self, *names: tuple[int, int]) -> None:
        """Return when all of the ways are open at the same moment."""
        gates = [self._ways[name].is_open for name in names]
        while not all(gate.is_set() for gate in gates):
            for gate in gates:
                await gate.wait()
