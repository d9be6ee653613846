"""The gRPC client of `bench compare`, against a server that is strict about HTTP/2."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from typing import cast

import pytest

from fastpaxos.cli.peers.grpc import GrpcLane, frame
from fastpaxos.cli.peers.lane import LaneLoad, run_lanes
from fastpaxos.cli.peers.peer import PeerError

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
HEADER_BLOCK = (
    b"\x83\x86\x04\x05/s/Do\x01\x09localhost"
    b"\x00\x0ccontent-type\x10application/grpc"
    b"\x00\x02te\x08trailers"
)  # fmt: skip


class StrictServer(asyncio.Protocol):
    """Answers each call when its message is complete, last one first, and asserts what RFC 9113 demands of a client.

    New streams may send `window` bytes; more is granted for each frame that has come. Answers arrive in pieces.
    """

    def __init__(self, window: int, behaviour: str) -> None:
        self.messages: list[bytes] = []
        self.acknowledged = 0
        self.pongs: list[bytes] = []
        self.streams_max = 0
        self._window = window
        self._behaviour = behaviour
        self._rest = b""
        self._has_preface = False
        self._connection_window = 65_535
        self._stream_windows: dict[int, int] = {}
        self._bodies: dict[int, bytes] = {}
        self._last_stream = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, self._window)))
        self._transport.write(frame(PING, 0, 0, b"12345678"))

    def data_received(self, data: bytes) -> None:
        self._rest += data
        if not self._has_preface:
            if len(self._rest) < len(PREFACE):
                return
            assert self._rest.startswith(PREFACE)
            self._rest, self._has_preface = self._rest[len(PREFACE) :], True
        complete: list[int] = []
        while len(self._rest) >= 9 and len(self._rest) >= 9 + int.from_bytes(self._rest[:3], "big"):
            size = int.from_bytes(self._rest[:3], "big")
            kind, flags, stream_id = struct.unpack(">BBI", self._rest[3:9])
            payload, self._rest = self._rest[9 : 9 + size], self._rest[9 + size :]
            if self._handle(kind, flags, stream_id, payload):
                complete.append(stream_id)
        for stream_id in reversed(complete):
            self._answer(stream_id)

    def _handle(self, kind: int, flags: int, stream_id: int, payload: bytes) -> bool:
        assert len(payload) <= 16_384
        if kind == SETTINGS and flags:
            self.acknowledged += 1
        elif kind == PING:
            assert flags == 1
            self.pongs.append(payload)
        elif kind == HEADERS:
            assert (flags, payload) == (4, HEADER_BLOCK)
            assert stream_id % 2 == 1
            assert stream_id > self._last_stream
            self._last_stream = stream_id
            # Until the client has acknowledged the settings, it knows the standard's window.
            self._stream_windows[stream_id] = self._window if self.acknowledged else 65_535
            self._bodies[stream_id] = b""
            self.streams_max = max(self.streams_max, len(self._bodies))
        elif kind == DATA:
            self._connection_window -= len(payload)
            self._stream_windows[stream_id] -= len(payload)
            assert self._connection_window >= 0
            assert self._stream_windows[stream_id] >= 0
            self._bodies[stream_id] += payload
            if not flags & 1:
                self._grant(stream_id, len(payload))
            self._grant(0, len(payload))
            return bool(flags & 1)
        return False

    def _grant(self, stream_id: int, size: int) -> None:
        if stream_id:
            self._stream_windows[stream_id] += size
        else:
            self._connection_window += size
        if size:
            self._transport.write(frame(WINDOW_UPDATE, 0, stream_id, struct.pack(">I", size)))

    def _answer(self, stream_id: int) -> None:
        body = self._bodies.pop(stream_id)
        flag, size = struct.unpack(">BI", body[:5])
        assert (flag, size) == (0, len(body) - 5)
        self.messages.append(body[5:])
        head, trailer = frame(HEADERS, 4, stream_id, b"\x88"), frame(HEADERS, 5, stream_id, b"grpc-status")
        if self._behaviour == "error":
            self._transport.write(trailer)
        elif self._behaviour == "reset":
            self._transport.write(frame(RST_STREAM, 0, stream_id, struct.pack(">I", 8)))
        else:
            answer = head + frame(DATA, 0, stream_id, b"\0\0\0\0\1x") + trailer
            for begin in range(0, len(answer), 7):
                self._transport.write(answer[begin : begin + 7])


@contextlib.asynccontextmanager
async def strict_server(window: int, behaviour: str = "good") -> AsyncIterator[tuple[int, StrictServer]]:
    server = StrictServer(window, behaviour)
    listener = await asyncio.get_running_loop().create_server(lambda: server, "127.0.0.1", 0)
    async with listener:
        yield listener.sockets[0].getsockname()[1], server


@pytest.mark.parametrize("depth", [1, 5])
@pytest.mark.parametrize(("message_bytes", "window"), [(20, 65_535), (100, 30), (200_000, 65_535), (200_000, 1 << 20)])
async def test_calls_are_kept_in_flight_within_the_windows(depth: int, message_bytes: int, window: int) -> None:
    load = LaneLoad([b"%d" % number * message_bytes for number in range(5)], 1, 0.1, 0.05)
    async with strict_server(window) as (port, server):
        await run_lanes(port, 1, load, lambda first: GrpcLane(load, first, "/s/Do", depth))
    assert load.answered == len(server.messages) >= depth
    assert set(server.messages) <= set(load.requests)
    assert (server.acknowledged, server.pongs) == (1, [b"12345678"])
    assert server.streams_max == depth


@pytest.mark.parametrize(("behaviour", "text"), [("error", "with an error"), ("reset", "ended a stream")])
async def test_a_call_that_fails_ends_the_load(behaviour: str, text: str) -> None:
    load = LaneLoad([b"message"], 1, 10.0, 0.0)
    async with strict_server(65_535, behaviour) as (port, _):
        with pytest.raises(PeerError, match=text):
            await run_lanes(port, 1, load, lambda first: GrpcLane(load, first, "/s/Do", 2))
    assert load.answered == 0
