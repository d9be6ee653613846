"""For the bad-input tests: a disk that fails on demand, journals as bytes, a client that sends what it should not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

from fastpaxos import Client, HashChain
from fastpaxos.cli.cluster_process import ClusterProcess, child_environment
from fastpaxos.client_handshake import client_hello
from fastpaxos.config import parse_address
from fastpaxos.statemachine import ApplyContext
from fastpaxos_core.wire import Frame, FrameSplitter, FrameType, FrameWriter, Reply, parse_mapping, parse_reply
from local_cluster import PATIENCE_S

CLIENT_INCARNATION = 0xC11E47

# --- a disk that fails ------------------------------------------------------------------------------------------------

# Stands between a process and the C library. The file $DISK_FAULT says "call errno pid": that call fails with that
# errno in that process (0: in every one), for as long as the file says so.
FAULT_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static int fault(const char *call) {
    char name[32];
    int number = 0, process = 0, count;
    FILE *file = fopen(getenv("DISK_FAULT"), "re");
    if (file == NULL)
        return 0;
    count = fscanf(file, "%31s %d %d", name, &number, &process);
    fclose(file);
    return count == 3 && strcmp(name, call) == 0 && (process == 0 || process == getpid()) ? number : 0;
}

#define GUARD(type, name, call, parameters, arguments)  \
    type name parameters {                              \
        static type (*next) parameters;                 \
        int number = fault(call);                       \
        if (number) {                                   \
            errno = number;                             \
            return -1;                                  \
        }                                               \
        if (next == NULL)                               \
            *(void **)&next = dlsym(RTLD_NEXT, #name);  \
        return next arguments;                          \
    }

GUARD(int, fdatasync, "fdatasync", (int fd), (fd))
GUARD(int, fsync, "fsync", (int fd), (fd))
GUARD(int, fallocate, "fallocate", (int fd, int mode, off_t at, off_t size), (fd, mode, at, size))
GUARD(int, fallocate64, "fallocate", (int fd, int mode, off64_t at, off64_t size), (fd, mode, at, size))
GUARD(ssize_t, pwritev, "pwritev", (int fd, const struct iovec *parts, int count, off_t at), (fd, parts, count, at))
GUARD(ssize_t, pwritev64, "pwritev", (int fd, const struct iovec *parts, int count, off64_t at), (fd, parts, count, at))
GUARD(ssize_t, pread, "pread", (int fd, void *data, size_t size, off_t at), (fd, data, size, at))
GUARD(ssize_t, pread64, "pread", (int fd, void *data, size_t size, off64_t at), (fd, data, size, at))
"""


class FaultyDisk:
    """Lets system calls of processes that start from now on fail. `environment` is what they need."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        library = folder / "disk-fault.so"
        command = [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-o", str(library), "-x", "c", "-", "-ldl"]
        subprocess.run(command, input=FAULT_SOURCE.encode(), check=True, capture_output=True, timeout=PATIENCE_S)
        self._order = folder / "order"
        self.environment = {"LD_PRELOAD": str(library), "DISK_FAULT": str(self._order)}

    def fail(self, call: str, number: int, process_id: int = 0) -> None:
        """From now on `call` fails with errno `number`, in one process or in all of them."""
        prepared = self._order.with_suffix(".new")
        prepared.write_text(f"{call} {number} {process_id}")
        prepared.rename(self._order)

    def heal(self) -> None:
        self._order.unlink()


# --- processes --------------------------------------------------------------------------------------------------------


async def serve_to_the_end(*arguments: object) -> tuple[int, str]:
    """Run `fastpaxos serve` with arguments that do not let it stay; return (exit code, stderr)."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fastpaxos", "serve", "--stop-at-end-of-input", *map(str, arguments)),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=child_environment(),
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            assert process.stderr is not None
            output = (await process.stderr.read()).decode()
            return await process.wait(), output
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def settled_statuses(client: Client, cluster: ClusterProcess) -> list[dict[str, Any]]:
    """Wait until all replicas of `cluster` have applied the same log to its end, and return their statuses."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(OSError, TimeoutError):
                statuses = [await client.status(node_id, timeout=1.0) for node_id in cluster.cluster]
                if len({(each["applied_index"], each["last_slot"], each["digest"]) for each in statuses}) == 1:
                    return statuses
            cluster.check_running()
            await asyncio.sleep(0.02)


def resident_bytes(process_id: int) -> int:
    """Memory that a process has in RAM now."""
    for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {process_id} has no VmRSS")


# --- what must be there -----------------------------------------------------------------------------------------------


def chain_digest(commands: Iterable[bytes]) -> str:
    """The digest of a HashChain that applied exactly these commands in this order."""
    machine = HashChain()
    for command in commands:
        machine.apply(command, ApplyContext(1, 0))
    return machine.digest()


# --- raw connections --------------------------------------------------------------------------------------------------


class RawClient:
    """A client that sends any bytes at all. Use `raw_client`, which closes it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cluster_id: bytes) -> None:
        self.frames = FrameWriter(0, CLIENT_INCARNATION, 0, cluster_id)
        self.cluster_id = cluster_id
        self._reader = reader
        self._writer = writer
        self._splitter = FrameSplitter(1 << 20, 1 << 23)
        self._received: list[Frame] = []

    @property
    def port(self) -> int:
        """This end's port: by it the node's log names the connection."""
        port: int = self._writer.get_extra_info("sockname")[1]
        return port

    def hello(self) -> bytes:
        return self.frames.hello(client_hello(CLIENT_INCARNATION, self.cluster_id))

    def open_session(self, nonce: bytes) -> bytes:
        return self.frames.control({"op": "open_session", "request_id": 1, "nonce": nonce})

    async def send(self, data: bytes) -> None:
        """Send and give the node its chance to look at it before anything else is sent."""
        self._writer.write(data)
        await self._writer.drain()

    async def send_in_pieces(self, data: bytes, size: int) -> None:
        """Send `size` bytes at a time, each in a packet of its own that the node reads by itself."""
        for begin in range(0, len(data), size):
            await self.send(data[begin : begin + size])
            await asyncio.sleep(0)

    async def frame(self, frame_type: FrameType) -> Frame:
        """The next frame of a type; others wait. Raises ConnectionError when the node closes instead."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for index, frame in enumerate(self._received):
                    if frame.type == frame_type:
                        return self._received.pop(index)
                data = await self._reader.read(1 << 16)
                if not data:
                    raise ConnectionResetError("the node closed the connection")
                self._received += self._splitter.feed(data)

    async def control(self, *operations: str) -> dict[str, Any]:
        """The next control message with one of these operations."""
        while True:
            message = parse_mapping(await self.frame(FrameType.CONTROL))
            if message["op"] in operations:
                return message

    async def reply(self) -> Reply:
        return parse_reply(await self.frame(FrameType.REPLY))

    async def greeting(self) -> None:
        """Take the node's hello: from now on frames name its cluster, as they must."""
        frame = await self.frame(FrameType.HELLO)
        self.cluster_id = self.frames.cluster_id = frame.cluster_id

    async def greet(self) -> None:
        """Say hello and take the node's."""
        await self.send(self.hello())
        await self.greeting()

    async def begin_session(self, nonce: bytes) -> int:
        """Say hello, and open a session at a node that leads."""
        await self.greet()
        while True:
            await self.send(self.open_session(nonce))
            message = await self.control("session_opened", "error")
            if message["op"] == "session_opened":
                session_id: int = message["session_id"]
                return session_id
            await asyncio.sleep(0.01)

    async def until_closed(self) -> None:
        """Wait until the node has closed or broken the connection."""
        async with asyncio.timeout(PATIENCE_S):
            with contextlib.suppress(ConnectionError):
                while await self._reader.read(1 << 16):
                    pass

    @staticmethod
    def hello_without_connection() -> bytes:
        """The hello of a client that knows no cluster yet."""
        return FrameWriter(0, CLIENT_INCARNATION, 0).hello(client_hello(CLIENT_INCARNATION, b""))

    def abort(self) -> None:
        """Break the connection at once."""
        self._writer.transport.abort()

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


@contextlib.asynccontextmanager
async def raw_client(address: str, cluster_id: bytes = b"") -> AsyncIterator[RawClient]:
    """Connect to "host:port"; nothing is said yet."""
    where = parse_address(address)
    reader, writer = await asyncio.open_connection(where.host, where.port)
    client = RawClient(reader, writer, cluster_id)
    try:
        yield client
    finally:
        await client.close()
