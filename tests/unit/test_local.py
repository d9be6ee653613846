"""fastpaxos.local: two protocols back to back see what they would see over TCP."""

from __future__ import annotations

import asyncio

import pytest

from fastpaxos.local import HIGH_WATER_BYTES, LOW_WATER_BYTES, LocalTransport, connect_locally


class Recorder(asyncio.BufferedProtocol):
    def __init__(self, buffer_bytes: int = 4096) -> None:
        self.buffer = bytearray(buffer_bytes)
        self.received = b""
        self.calls: list[str] = []
        self.transport: LocalTransport | None = None
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, LocalTransport)
        self.transport = transport

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.received += self.buffer[:nbytes]

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set_result(error)


def pair(buffer_bytes: int = 4096) -> tuple[Recorder, Recorder]:
    client, server = Recorder(buffer_bytes), Recorder(buffer_bytes)
    end = connect_locally(asyncio.get_running_loop(), client, server)
    assert end is client.transport
    return client, server


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_bytes_arrive_in_order_in_a_later_turn_and_in_pieces_of_the_buffer() -> None:
    client, server = pair(buffer_bytes=7)
    assert client.transport is not None
    assert server.transport is not None
    mutable = bytearray(b"mutable ")
    client.transport.write(mutable)
    mutable[:] = b"changed!"
    client.transport.writelines([b"first ", b"", b"second ", b"x" * 100])
    server.transport.write(b"answer")
    assert (client.received, server.received) == (b"", b"")
    await turns()
    assert server.received == b"mutable first second " + b"x" * 100
    assert client.received == b"answer"


async def test_a_side_that_does_not_read_stops_the_other_at_the_high_water_mark() -> None:
    client, server = pair()
    assert client.transport is not None
    assert server.transport is not None
    server.transport.pause_reading()
    assert not server.transport.is_reading()
    block = bytes(HIGH_WATER_BYTES // 4)
    for _ in range(5):
        client.transport.write(block)
    await turns()
    assert server.received == b""
    assert client.calls == ["pause"]
    assert client.transport.get_write_buffer_size() == 5 * len(block) > LOW_WATER_BYTES
    server.transport.resume_reading()
    await turns()
    assert len(server.received) == 5 * len(block)
    assert client.calls == ["pause", "resume"]
    assert client.transport.get_write_buffer_size() == 0


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_what_was_written_before_the_end_still_arrives(how: str) -> None:
    client, server = pair()
    assert client.transport is not None
    assert server.transport is not None
    client.transport.write(b"last words")
    getattr(client.transport, how)()
    client.transport.write(b"too late")
    server.transport.write(b"nobody listens")
    assert client.transport.is_closing()
    await turns(6)
    assert server.received == b"last words"
    assert client.received == b""
    assert client.lost.done()
    assert server.lost.done()
    client.transport.close()
    server.transport.abort()
    await turns()


async def test_a_protocol_that_closes_while_it_receives_gets_nothing_more() -> None:
    client, server = pair(buffer_bytes=4)
    assert client.transport is not None

    def close_at_once(nbytes: int) -> None:
        server.received += server.buffer[:nbytes]
        assert server.transport is not None
        server.transport.close()

    server.buffer_updated = close_at_once  # type: ignore[method-assign]
    client.transport.write(b"12345678")
    client.transport.write(b"9")
    await turns(6)
    assert server.received == b"1234"
    assert client.lost.done()
