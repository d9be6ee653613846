"""A connection within one process: two asyncio transports back to back, without a socket.

What one side writes is copied into the other side's receive buffer in a later turn of the loop, so neither side can
tell the difference from TCP, except by the time it takes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Any

__all__ = ["LocalTransport", "connect_locally"]

HIGH_WATER_BYTES = 1 << 20
LOW_WATER_BYTES = HIGH_WATER_BYTES // 4


class LocalTransport(asyncio.Transport):
    """One end. What is written here arrives at the protocol of the other end, in order."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.BufferedProtocol) -> None:
        super().__init__()
        self._loop = loop
        self._protocol = protocol
        self._other: LocalTransport | None = None
        self._waiting: deque[bytes] = deque()  # written by the other end, not delivered yet
        self._waiting_bytes = 0
        self._is_reading = True
        self._is_scheduled = False
        self._is_closing = False
        self._is_lost = False
        self._ended = False  # the other end is closed: after what is waiting comes the end
        self._told_pause = False

    def join(self, other: LocalTransport) -> None:
        """Make `other` the other end."""
        self._other = other

    # Writing

    def write(self, data: Any) -> None:
        self.writelines((data,))

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        other = self._other
        if self._is_closing or other is None:
            return
        for data in list_of_data:
            if data:
                other._waiting.append(data if type(data) is bytes else bytes(data))
                other._waiting_bytes += len(data)
        other._schedule()
        if other._waiting_bytes > HIGH_WATER_BYTES and not self._told_pause:
            self._told_pause = True
            self._protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        return self._other._waiting_bytes if self._other is not None else 0

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return LOW_WATER_BYTES, HIGH_WATER_BYTES

    def can_write_eof(self) -> bool:
        return False

    # Reading

    def is_reading(self) -> bool:
        return self._is_reading and not self._is_closing

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        self._is_reading = True
        self._schedule()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        """Hand over what was waiting when this turn began; what comes meanwhile waits for the next one."""
        self._is_scheduled = False
        turn = len(self._waiting)
        while turn and self._is_reading and not self._is_closing:
            turn -= 1
            data = memoryview(self._waiting.popleft())
            self._waiting_bytes -= len(data)
            while data and not self._is_closing:
                buffer = memoryview(self._protocol.get_buffer(len(data)))
                size = min(len(buffer), len(data))
                buffer[:size] = data[:size]
                self._protocol.buffer_updated(size)
                data = data[size:]
        other = self._other
        if other is not None and other._told_pause and self._waiting_bytes <= LOW_WATER_BYTES:
            other._told_pause = False
            other._protocol.resume_writing()
        if self._waiting:
            if self._is_reading and not self._is_closing:
                self._schedule()
        elif self._ended and not self._is_closing:
            self.abort()

    # Ending

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        """End this side; what it has written still arrives."""
        if not self._is_closing:
            self._is_closing = True
            self._loop.call_soon(self._lose)

    def abort(self) -> None:
        """The same as `close`: what was written is at the other end already."""
        self.close()

    def _lose(self) -> None:
        if self._is_lost:
            return
        self._is_lost = True
        self._waiting.clear()
        self._waiting_bytes = 0
        other, self._other = self._other, None
        self._protocol.connection_lost(None)
        if other is not None:
            other._ended = True
            other._schedule()

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("this process", 0) if name == "peername" else default


def connect_locally(
    loop: asyncio.AbstractEventLoop, client: asyncio.BufferedProtocol, server: asyncio.BufferedProtocol
) -> LocalTransport:
    """Connect two protocols; returns the client's end. Both have had `connection_made` then."""
    client_end, server_end = LocalTransport(loop, client), LocalTransport(loop, server)
    client_end.join(server_end)
    server_end.join(client_end)
    server.connection_made(server_end)
    client.connection_made(client_end)
    return client_end
