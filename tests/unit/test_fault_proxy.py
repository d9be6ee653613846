"""The fault proxy does to bytes what it says, per direction, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from random import Random

import pytest

from fastpaxos.testing.fault_proxy import CLIENTS, FaultNetwork

pytestmark = pytest.mark.timeout(30)

MESSAGE = bytes(range(256)) * 8


class Ends:
    """One connection from member 1 to member 2 through the proxy, and both of its ends."""

    def __init__(self, network: FaultNetwork) -> None:
        self.network = network
        self.accepted: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self._writers: list[asyncio.StreamWriter] = []

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        self.accepted.put_nowait((reader, writer))

    async def dial(self, dialler: int = 1) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self.network.addresses_for(dialler)[2].rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        self._writers.append(writer)
        return reader, writer

    async def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def ends() -> AsyncIterator[Ends]:
    """A network of members 1 and 2, of which 2 listens."""
    opened: list[Ends] = []
    server = await asyncio.start_server(lambda *streams: opened[0].accept(*streams), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        async with FaultNetwork({1: "127.0.0.1:1", 2: f"127.0.0.1:{port}"}, Random(7)) as network:
            opened.append(Ends(network))
            yield opened[0]
            await opened[0].close()
    finally:
        server.close()
        await server.wait_closed()


async def silence(reader: asyncio.StreamReader) -> None:
    """Nothing comes. What has been sent before is given many turns of the loop to arrive."""
    reading = asyncio.ensure_future(reader.read(1))
    done, _ = await asyncio.wait([reading], timeout=0.05)
    assert not done, f"{reading.result()!r} came"
    reading.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await reading


async def test_bytes_pass_unchanged_in_both_directions() -> None:
    async with ends() as pair:
        near_reader, near_writer = await pair.dial()
        far_reader, far_writer = await pair.accepted.get()
        near_writer.write(MESSAGE)
        assert await far_reader.readexactly(len(MESSAGE)) == MESSAGE
        far_writer.write(MESSAGE)
        assert await near_reader.readexactly(len(MESSAGE)) == MESSAGE
        near_writer.close()
        assert await far_reader.read() == b""


async def test_a_cut_holds_one_direction_back_and_mending_delivers_it() -> None:
    async with ends() as pair:
        near_reader, near_writer = await pair.dial()
        far_reader, far_writer = await pair.accepted.get()
        pair.network.cut(1, 2)
        near_writer.write(MESSAGE)
        await silence(far_reader)
        far_writer.write(b"other way")
        assert await near_reader.readexactly(9) == b"other way"
        pair.network.mend(1, 2)
        assert await far_reader.readexactly(len(MESSAGE)) == MESSAGE


async def test_clients_have_ways_of_their_own() -> None:
    async with ends() as pair:
        pair.network.isolate(2)
        reader, writer = await pair.dial(CLIENTS)
        far_reader, far_writer = await pair.accepted.get()
        writer.write(b"question")
        assert await far_reader.readexactly(8) == b"question"
        pair.network.cut(2, CLIENTS)
        far_writer.write(b"answer")
        await silence(reader)
        pair.network.heal()
        assert await reader.readexactly(6) == b"answer"


async def test_a_stalled_way_loses_what_is_said_and_its_connections_break_when_it_is_mended() -> None:
    async with ends() as pair:
        near_reader, near_writer = await pair.dial()
        far_reader, far_writer = await pair.accepted.get()
        pair.network.stall(1, 2)
        for _ in range(64):
            near_writer.write(MESSAGE)
            await near_writer.drain()  # nothing holds the sender up
        await silence(far_reader)
        far_writer.write(b"other way")
        assert await near_reader.readexactly(9) == b"other way"
        pair.network.mend(1, 2)
        with pytest.raises(ConnectionResetError):
            await far_reader.read()
        with pytest.raises(ConnectionResetError):
            await near_reader.read()


async def test_a_delayed_way_delivers_later_and_whole() -> None:
    async with ends() as pair:
        _, near_writer = await pair.dial()
        far_reader, _ = await pair.accepted.get()
        loop = asyncio.get_running_loop()
        pair.network.delay(1, 2, 0.05)
        begin = loop.time()
        near_writer.write(MESSAGE)
        assert await far_reader.readexactly(len(MESSAGE)) == MESSAGE
        assert loop.time() - begin >= 0.05


async def test_a_trickle_delivers_small_pieces_and_no_more_than_its_rate() -> None:
    async with ends() as pair:
        _, near_writer = await pair.dial()
        far_reader, _ = await pair.accepted.get()
        pair.network.trickle(1, 2, bytes_per_second=2_000.0, piece_bytes=1)
        loop = asyncio.get_running_loop()
        begin = loop.time()
        near_writer.write(MESSAGE[:100])
        first = await far_reader.read(100)
        assert len(first) < 100
        assert first + await far_reader.readexactly(100 - len(first)) == MESSAGE[:100]
        assert loop.time() - begin >= 99 / 2_000.0


async def test_one_bit_flips_for_each_order() -> None:
    async with ends() as pair:
        _, near_writer = await pair.dial()
        far_reader, _ = await pair.accepted.get()
        pair.network.flip(1, 2)
        near_writer.write(MESSAGE)
        received = await far_reader.readexactly(len(MESSAGE))
        difference = int.from_bytes(received, "big") ^ int.from_bytes(MESSAGE, "big")
        assert difference.bit_count() == 1
        assert pair.network.flipped == 1
        near_writer.write(MESSAGE)
        assert await far_reader.readexactly(len(MESSAGE)) == MESSAGE


async def test_a_connection_breaks_inside_of_what_passes() -> None:
    async with ends() as pair:
        near_reader, near_writer = await pair.dial()
        far_reader, _ = await pair.accepted.get()
        pair.network.break_inside(1, 2)
        near_writer.write(MESSAGE)
        received = bytearray()
        with contextlib.suppress(ConnectionResetError):
            while data := await far_reader.read(1 << 16):
                received += data
        assert len(received) < len(MESSAGE)
        assert MESSAGE.startswith(received)
        with pytest.raises(ConnectionResetError):
            await near_reader.read()
        assert pair.network.broken == 1
        _, again = await pair.dial()
        far_reader, _ = await pair.accepted.get()
        again.write(b"anew")
        assert await far_reader.readexactly(4) == b"anew"


async def test_healing_undoes_every_fault() -> None:
    async with ends() as pair:
        pair.network.separate(1, 2)
        pair.network.stall(1, 2)
        pair.network.delay(1, 2, 60.0)
        pair.network.trickle(1, 2, 1.0)
        pair.network.flip(1, 2)
        pair.network.break_inside(1, 2)
        assert not pair.network.is_whole
        pair.network.heal(reset=True)
        assert pair.network.is_whole
        _, near_writer = await pair.dial()
        far_reader, _ = await pair.accepted.get()
        near_writer.write(MESSAGE)
        assert await far_reader.readexactly(len(MESSAGE)) == MESSAGE
