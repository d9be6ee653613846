"""As much of gRPC as a load needs: unary calls over HTTP/2 to one method, many at a time, on a connection of its own.

A client library would be what is measured: this one builds its header block once and looks at nothing in an answer but
that there is one. A call that fails has an answer without a message, by which it is known.
"""

from __future__ import annotations

import struct
import time
from collections import deque

from fastpaxos.cli.peers.lane import Lane, LaneLoad
from fastpaxos.cli.peers.peer import PeerError

__all__ = ["GrpcLane"]

# RFC 9113: frame types, flags, settings.
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
HEADER_TABLE_SIZE, INITIAL_WINDOW_SIZE = 1, 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_HEADER_BYTES = 9
FRAME_BYTES_MAX = 16_384
WINDOW_BYTES = 65_535
WINDOW_BYTES_MAX = (1 << 31) - 1
SETTING = struct.Struct(">HI")
NUMBER = struct.Struct(">I")
# RFC 7541: whole fields and names of the static table by their index.
METHOD_POST, SCHEME_HTTP = b"\x83", b"\x86"
AUTHORITY, PATH = 1, 4


class GrpcLane(Lane):
    """Keeps `depth` calls of a method in flight."""

    def __init__(self, load: LaneLoad, number: int, method: str, depth: int) -> None:
        super().__init__(load, number)
        self._depth = depth
        self._header_block = header_block(method)
        self._stream_id = -1
        self._received = b""
        self._begin_ns: dict[int, int] = {}
        self._answered: set[int] = set()  # streams whose message has come, and not yet their end
        # What the server is ready to take: over the connection, in a new stream, in the streams that still send.
        self._window = self._window_initial = WINDOW_BYTES
        self._windows: dict[int, int] = {}
        self._unsent: deque[tuple[int, bytes]] = deque()
        self._frames: list[bytes] = []  # go out together

    def start(self) -> None:
        """Open the connection for answers without end, and the first calls."""
        settings = SETTING.pack(HEADER_TABLE_SIZE, 0) + SETTING.pack(INITIAL_WINDOW_SIZE, WINDOW_BYTES_MAX)
        self._frames.append(PREFACE + frame(SETTINGS, 0, 0, settings))
        self._frames.append(frame(WINDOW_UPDATE, 0, 0, NUMBER.pack(WINDOW_BYTES_MAX - WINDOW_BYTES)))
        for _ in range(self._depth):
            self._call(time.perf_counter_ns())
        self._flush()

    def take(self, data: bytes) -> None:
        received = self._received + data
        offset = 0
        while len(received) - offset >= FRAME_HEADER_BYTES:
            end = offset + FRAME_HEADER_BYTES + int.from_bytes(received[offset : offset + 3], "big")
            if len(received) < end:
                break
            kind, flags = received[offset + 3], received[offset + 4]
            stream_id = int.from_bytes(received[offset + 5 : offset + FRAME_HEADER_BYTES], "big")
            self._handle(kind, flags, stream_id, received[offset + FRAME_HEADER_BYTES : end])
            offset = end
        self._received = received[offset:]
        self._flush()

    def _handle(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if kind == DATA and payload:
            self._answered.add(stream_id)
        elif kind == WINDOW_UPDATE:
            (more,) = NUMBER.unpack(payload)
            if stream_id == 0:
                self._window += more
            elif stream_id in self._windows:
                self._windows[stream_id] += more
            self._send()
        elif kind == SETTINGS and not flags & ACK:
            self._handle_settings(payload)
        elif kind == PING and not flags & ACK:
            self._frames.append(frame(PING, ACK, 0, payload))
        elif kind in (RST_STREAM, GOAWAY):
            raise PeerError(f"the server ended a stream or the connection: {payload!r}")
        if kind in (DATA, HEADERS) and flags & END_STREAM:
            self._handle_end(stream_id)

    def _handle_settings(self, payload: bytes) -> None:
        for setting, value in SETTING.iter_unpack(payload):
            if setting == INITIAL_WINDOW_SIZE:
                for stream_id in self._windows:
                    self._windows[stream_id] += value - self._window_initial
                self._window_initial = value
        self._frames.append(frame(SETTINGS, ACK, 0, b""))
        self._send()

    def _handle_end(self, stream_id: int) -> None:
        if stream_id not in self._answered:
            raise PeerError("the server answered a call with an error")
        self._answered.discard(stream_id)
        now_ns = time.perf_counter_ns()
        self.load.count(self._begin_ns.pop(stream_id), now_ns)
        if now_ns < self.load.end_ns:
            self._call(now_ns)
        elif not self._begin_ns:
            self.finish()

    def _call(self, now_ns: int) -> None:
        self._stream_id += 2
        self._begin_ns[self._stream_id] = now_ns
        message = self.next_request()
        self._windows[self._stream_id] = self._window_initial
        self._unsent.append((self._stream_id, b"\0" + NUMBER.pack(len(message)) + message))
        self._frames.append(frame(HEADERS, END_HEADERS, self._stream_id, self._header_block))
        self._send()

    def _send(self) -> None:
        """Send of the messages, the oldest first, what the windows allow."""
        while self._unsent:
            stream_id, message = self._unsent[0]
            size = min(len(message), self._window, self._windows[stream_id], FRAME_BYTES_MAX)
            if size <= 0:
                return
            self._window -= size
            self._windows[stream_id] -= size
            if size == len(message):
                self._frames.append(frame(DATA, END_STREAM, stream_id, message))
                self._unsent.popleft()
                del self._windows[stream_id]
            else:
                self._frames.append(frame(DATA, 0, stream_id, message[:size]))
                self._unsent[0] = (stream_id, message[size:])

    def _flush(self) -> None:
        if self._frames:
            self.write(b"".join(self._frames))
            self._frames.clear()


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    """A frame of HTTP/2."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + NUMBER.pack(stream_id) + payload


def header_block(method: str) -> bytes:
    """The fields of a call, none of which the server has to remember."""
    block = METHOD_POST + SCHEME_HTTP
    block += bytes((PATH,)) + text(method) + bytes((AUTHORITY,)) + text("localhost")
    for name, value in (("content-type", "application/grpc"), ("te", "trailers")):
        block += b"\0" + text(name) + text(value)
    return block


def text(value: str) -> bytes:
    """A string of less than 127 bytes, as it is."""
    return bytes((len(value),)) + value.encode()
