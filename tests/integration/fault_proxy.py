"""A network between replica processes that a test can take apart: one TCP proxy for each directed pair of members.

A member reaches another one only through the proxy that belongs to the pair. What may pass is decided per direction of
the bytes and not per dialler, because either side of a pair may have dialled the one connection between them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

CHUNK_BYTES = 64 * 1024
LOST = (OSError, EOFError)


@dataclass(eq=False, slots=True)
class Passage:
    """One connection through a proxy: two streams, and the two members at its ends."""

    dialler: int
    target: int
    inside: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    outside: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def abort(self) -> None:
        """Break it: both ends see a reset."""
        for _, writer in filter(None, (self.inside, self.outside)):
            writer.transport.abort()


class FaultNetwork:
    """The proxies of one cluster. Ownership: listeners, connections and tasks; leaving the `async with` ends them.

    - `cut(a, b)`: nothing that `a` says reaches `b` any more, as if every packet were lost; connections stand, and a
      new one cannot be made. `cut` of both directions is a partition.
    - `mend(a, b)`: what was held back arrives at last, as retransmission would do.
    - `reset(a, b)`: the connections of the pair break, and what they held back is gone; they can be dialled anew.
    """

    def __init__(self, members: Mapping[int, str]) -> None:
        self.members = dict(members)
        self._listeners: dict[tuple[int, int], asyncio.Server] = {}
        self._open: dict[tuple[int, int], asyncio.Event] = {}
        self._passages: set[Passage] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        for dialler in self.members:
            for target in self.members:
                if dialler != target:
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

    def addresses_for(self, node_id: int) -> dict[int, str]:
        """The cluster as `node_id` must be told it: itself at its own address, the others behind their proxies."""
        return {
            member: address if member == node_id else self._address(node_id, member)
            for member, address in self.members.items()
        }

    def cut(self, sender: int, receiver: int) -> None:
        """Let nothing more pass from `sender` to `receiver`."""
        self._open[sender, receiver].clear()

    def mend(self, sender: int, receiver: int) -> None:
        """Let pass again, first of all what was held back."""
        self._open[sender, receiver].set()

    def reset(self, one: int, other: int) -> None:
        """Break every connection between two members."""
        for passage in list(self._passages):
            if {passage.dialler, passage.target} == {one, other}:
                passage.abort()

    def separate(self, one: int, other: int) -> None:
        """Cut both directions between two members."""
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
        """Mend everything. With `reset`, connections over a cut direction break first: nothing held back arrives."""
        closed = [pair for pair, gate in self._open.items() if not gate.is_set()]
        for sender, receiver in closed:
            if reset:
                self.reset(sender, receiver)
            self.mend(sender, receiver)

    async def _listen(self, dialler: int, target: int) -> None:
        self._open[dialler, target] = asyncio.Event()
        self._open[dialler, target].set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._serve(Passage(dialler, target, (reader, writer))))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self._listeners[dialler, target] = await asyncio.start_server(accept, "127.0.0.1", 0)

    def _address(self, dialler: int, target: int) -> str:
        host, port = self._listeners[dialler, target].sockets[0].getsockname()
        return f"{host}:{port}"

    async def _serve(self, passage: Passage) -> None:
        self._passages.add(passage)
        there, back = (passage.dialler, passage.target), (passage.target, passage.dialler)
        try:
            # The three packets that make a connection cross in both directions.
            await self._pass(there, back)
            host, port = self.members[passage.target].rsplit(":", 1)
            passage.outside = await asyncio.open_connection(host, int(port))
            inside, outside = passage.inside, passage.outside
            await asyncio.gather(self._pump(inside[0], outside[1], there), self._pump(outside[0], inside[1], back))
        except LOST:
            pass  # nobody listens at the target: the dialler sees a reset
        finally:
            passage.abort()
            self._passages.discard(passage)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: tuple[int, int]) -> None:
        """Carry bytes one way until that side ends. The end is a packet too: a cut holds it back like any other."""
        with contextlib.suppress(*LOST):
            while data := await reader.read(CHUNK_BYTES):
                await self._pass(way)
                writer.write(data)
                await writer.drain()
        await self._pass(way)
        writer.close()

    async def _pass(self, *ways: tuple[int, int]) -> None:
        """Return when all of the ways are open at the same moment."""
        gates = [self._open[way] for way in ways]
        while not all(gate.is_set() for gate in gates):
            for gate in gates:
                await gate.wait()
