"""The processes of `bench floor`: a client, a leader and followers that move and sync bytes, and agree on nothing.

The same hops as a cluster makes: client to leader, leader to disk and followers, followers to disk, votes back, answer
to the client. Each process writes what it received, syncs it, checks the checksum of each frame once, and each frame is
answered; there are no ballots, no slots, no sessions and no state machine. What a cluster takes beyond this is the
price of consensus.

A stream is a sequence of frames; positions in it are counted in bytes. Followers tell how much of the stream their disk
holds, and the leader answers every frame that ends at or below what a quorum holds.
"""

from __future__ import annotations

import os
import queue
import select
import socket
import struct
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from fastpaxos.cli.latency import LatencyHistogram
from fastpaxos_core.block import crc32c

__all__ = ["FloorPlan", "run_client", "run_follower", "run_leader"]

HEADER = struct.Struct("<II")  # payload bytes, CRC-32C of the payload
POSITION = struct.Struct("<Q")
REPLY_BYTES = 64  # of one answer: what a small frame of results takes
READ_BYTES = 1 << 20
PIECES_MAX = 256  # of one sendmsg or pwritev
FILE_BYTES = 1 << 26  # written round and round: longer runs need no more room
CONNECT_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class FloorPlan:
    """One run: `window` frames of `payload_bytes` in flight for `warmup_s` and then `seconds`."""

    payload_bytes: int
    window: int
    seconds: float
    warmup_s: float


class FrameChecker:
    """Checks the frames of a stream as it arrives in pieces, cut anywhere. `ends` collects where frames end."""

    def __init__(self) -> None:
        self.position = 0
        self.ends: deque[int] = deque()
        self._header = b""
        self._left = 0
        self._crc = self._wanted = 0

    def take(self, piece: bytes) -> None:
        """Raises ValueError for a payload that does not fit its checksum."""
        view = memoryview(piece)
        offset = 0
        while offset < len(piece):
            if not self._left:
                part = piece[offset : offset + HEADER.size - len(self._header)]
                self._header += part
                offset += len(part)
                if len(self._header) == HEADER.size:
                    self._left, self._wanted = HEADER.unpack(self._header)
                    self._header, self._crc = b"", 0
                continue
            payload = view[offset : offset + self._left]
            self._crc = crc32c(payload, self._crc)
            offset += len(payload)
            self._left -= len(payload)
            if not self._left:
                if self._crc != self._wanted:
                    raise ValueError(f"the frame that ends at byte {self.position + offset} is not what was sent")
                self.ends.append(self.position + offset)
        self.position += len(piece)


class StreamFile:
    """A preallocated file, written round and round, with one group of writes under way at a time.

    `sync` says who makes bytes durable: "inline" the loop that reads the sockets, "thread" a thread of its own; "none":
    they are written and never synced (durability "write"); "off": not even written (durability "memory").
    `durable` says up to which byte of the stream it holds everything. In "thread" mode `done` becomes readable when a
    group is finished; call `finish` then.
    """

    def __init__(self, path: Path, sync: str) -> None:
        self.durable = 0
        self.done, self._notice = socket.socketpair()
        self._sync = sync
        self._pending: list[bytes] = []
        self._is_busy = False
        self._offset = 0
        self._work: queue.SimpleQueue[list[bytes] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        if sync == "off":
            return
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # Written once, so that no extent changes while timing: a journal recycles its segments at best.
        for offset in range(os.fstat(self._file).st_size, FILE_BYTES, READ_BYTES):
            os.pwrite(self._file, bytes(READ_BYTES), offset)
        os.fsync(self._file)
        if sync == "thread":
            self._thread.start()

    def close(self) -> None:
        """End the thread and close the file."""
        if self._thread.is_alive():
            self._work.put(None)
            self._thread.join()
        if self._sync != "off":
            os.close(self._file)
        self.done.close()
        self._notice.close()

    def append(self, piece: bytes) -> None:
        """Take the next piece of the stream; `flush` makes it durable."""
        self._pending.append(piece)

    def flush(self) -> None:
        """Make durable what has arrived: here and now, or in the thread when it is free."""
        if not self._pending or self._is_busy:
            return
        pieces, self._pending = self._pending, []
        if self._sync == "thread":
            self._is_busy = True
            self._work.put(pieces)
        else:
            self.durable += self._write(pieces)

    def finish(self) -> None:
        """The thread has made a group durable."""
        (size,) = POSITION.unpack(self.done.recv(POSITION.size))
        self.durable += size
        self._is_busy = False
        self.flush()

    def _write(self, pieces: list[bytes]) -> int:
        total = 0
        for begin in range(0, len(pieces), PIECES_MAX):
            group = pieces[begin : begin + PIECES_MAX]
            size = sum(map(len, group))
            total += size
            if self._sync == "off":
                continue
            if self._offset + size > FILE_BYTES:
                self._offset = 0
            if os.pwritev(self._file, group, self._offset) != size:
                raise OSError(f"the disk took less than {size} bytes")
            self._offset += size
        if self._sync in ("inline", "thread"):
            os.fdatasync(self._file)
        return total

    def _run(self) -> None:
        while (pieces := self._work.get()) is not None:
            self._notice.sendall(POSITION.pack(self._write(pieces)))


class Outbox:
    """What waits to be sent on one socket that does not block."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection = connection
        self._pieces: deque[bytes | memoryview] = deque()

    def add(self, piece: bytes) -> None:
        """Queue bytes."""
        self._pieces.append(piece)

    def send(self) -> bool:
        """Send what the socket takes; tell whether something is left."""
        pieces = self._pieces
        while pieces:
            group = [pieces[index] for index in range(min(len(pieces), PIECES_MAX))]
            try:
                sent = self.connection.sendmsg(group)
            except BlockingIOError:
                return True
            while sent:
                first = pieces.popleft()
                if sent < len(first):
                    pieces.appendleft(memoryview(first)[sent:])
                    break
                sent -= len(first)
        return False


def _tuned(connection: socket.socket) -> socket.socket:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    return connection


def run_follower(path: Path, sync: str, leader: tuple[str, int]) -> None:
    """Store the stream of the leader in the file `path`, and tell how much is durable. Ends when the leader goes."""
    file = StreamFile(path, sync)
    connection = _tuned(socket.create_connection(leader, timeout=CONNECT_TIMEOUT_S))
    outbox = Outbox(connection)
    frames = FrameChecker()
    told = 0
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    poll.register(file.done, select.POLLIN)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == file.done.fileno():
                file.finish()
                continue
            piece = connection.recv(READ_BYTES)
            if not piece:
                return
            frames.take(piece)
            frames.ends.clear()
            file.append(piece)
            file.flush()
        if file.durable > told:
            told = file.durable
            outbox.add(POSITION.pack(told))
            outbox.send()


class _Leader:
    """The leader's loop: forwards, stores, counts, answers. Clients come one after the other."""

    def __init__(self, replicas: int, path: Path, sync: str, listener: socket.socket) -> None:
        self.quorum = replicas // 2 + 1
        self.file = StreamFile(path, sync)
        self.frames = FrameChecker()
        self.followers = [Outbox(_tuned(listener.accept()[0])) for _ in range(replicas - 1)]
        self.client: Outbox
        self.durable = {follower.connection.fileno(): 0 for follower in self.followers}
        self._poll = select.poll()
        self._votes = dict.fromkeys(self.durable, b"")
        for follower in self.followers:
            self._poll.register(follower.connection, select.POLLIN)
        self._poll.register(self.file.done, select.POLLIN)

    def serve(self, connection: socket.socket) -> None:
        """Serve one client until it goes, which it does between two frames and with all its answers."""
        self.client = Outbox(_tuned(connection))
        self._poll.register(connection, select.POLLIN)
        connections = {outbox.connection.fileno(): outbox.connection for outbox in (self.client, *self.followers)}
        client = connection.fileno()
        while True:
            for descriptor, events in self._poll.poll():
                if descriptor == self.file.done.fileno():
                    self.file.finish()
                elif events & select.POLLIN:
                    piece = connections[descriptor].recv(READ_BYTES)
                    if not piece and descriptor == client:
                        self._poll.unregister(connection)
                        return
                    if descriptor == client:
                        self._take(piece)
                    else:
                        self._count(descriptor, piece)
            for outbox in (*self.followers, self.client):
                mask = select.POLLIN | (select.POLLOUT if outbox.send() else 0)
                self._poll.modify(outbox.connection, mask)
            # Followers work while this disk syncs.
            self.file.flush()
            self._answer()

    def _take(self, piece: bytes) -> None:
        self.frames.take(piece)
        self.file.append(piece)
        for follower in self.followers:
            follower.add(piece)

    def _count(self, descriptor: int, piece: bytes) -> None:
        data = self._votes[descriptor] + piece
        whole = len(data) - len(data) % POSITION.size
        self._votes[descriptor] = data[whole:]
        if whole:
            (self.durable[descriptor],) = POSITION.unpack_from(data, whole - POSITION.size)

    def _answer(self) -> None:
        held = sorted((self.file.durable, *self.durable.values()), reverse=True)[self.quorum - 1]
        ends = self.frames.ends
        answers = 0
        while ends and ends[0] <= held:
            ends.popleft()
            answers += 1
        if answers:
            self.client.add(bytes(REPLY_BYTES * answers))
            if self.client.send():
                self._poll.modify(self.client.connection, select.POLLIN | select.POLLOUT)


def run_leader(replicas: int, path: Path, sync: str, followers: socket.socket, clients: socket.socket) -> None:
    """Take the followers and then one client after the other, until this process is killed."""
    leader = _Leader(replicas, path, sync, followers)
    while True:
        with clients.accept()[0] as connection:
            leader.serve(connection)


def _some(connection: socket.socket) -> bytes:
    data = connection.recv(READ_BYTES)
    if not data:
        raise ConnectionError("the leader of the floor has gone")
    return data


def run_client(plan: FloorPlan, leader: tuple[str, int]) -> tuple[int, LatencyHistogram]:
    """Keep the window full; return the frames answered in the measured time and the latency of each."""
    connection = _tuned(socket.create_connection(leader, timeout=CONNECT_TIMEOUT_S))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    payload = os.urandom(plan.payload_bytes)
    frame = HEADER.pack(len(payload), crc32c(payload)) + payload
    clock = time.perf_counter_ns
    connection.sendall(frame)
    answered_bytes = -REPLY_BYTES
    while answered_bytes < 0:  # the first answer says that all replicas have started
        answered_bytes += len(_some(connection))
    measure_from = clock() + int(plan.warmup_s * 1e9)
    end = measure_from + int(plan.seconds * 1e9)
    histogram = LatencyHistogram()
    sent: deque[int] = deque()
    samples: list[int] = []
    counted = 0
    now = clock()
    while now < end or sent:
        while len(sent) < plan.window and now < end:
            sent.append(clock())
            connection.sendall(frame)
        answered_bytes += len(_some(connection))
        now = clock()
        answers, answered_bytes = divmod(answered_bytes, REPLY_BYTES)
        for _ in range(answers):
            begun = sent.popleft()
            if begun >= measure_from:
                samples.append(now - begun)
        if measure_from <= now <= end:
            counted += answers
    histogram.record(samples)
    connection.close()
    return counted, histogram
