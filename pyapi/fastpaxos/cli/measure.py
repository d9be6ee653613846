"""What the machine itself takes for one round trip and one disk sync: the yardstick that stands beside a benchmark."""

from __future__ import annotations

import multiprocessing
import os
import platform
import socket
import tempfile
import time
from pathlib import Path

import fastpaxos_core
from fastpaxos.cli.latency import LatencyHistogram, Percentiles

__all__ = ["describe_machine", "fdatasync_us", "loopback_us"]

ROUND_TRIPS = 2_000
SYNCS = 200
MESSAGE_BYTES = 128
SYNC_BYTES = 4_096


def describe_machine() -> dict[str, object]:
    """Cores, versions and build that a number was measured with."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "version": fastpaxos_core.build_info()["version"],
        "build": fastpaxos_core.build_info()["profile"],
    }


def _echo(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=10.0) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := connection.recv(MESSAGE_BYTES):
            connection.sendall(data)


def loopback_us() -> Percentiles:
    """Time a 128-byte message to another process over loopback TCP and back."""
    histogram = LatencyHistogram()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        echo = multiprocessing.get_context("spawn").Process(target=_echo, args=(listener.getsockname(),), daemon=True)
        echo.start()
        listener.settimeout(10.0)
        connection, _ = listener.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            message = bytes(MESSAGE_BYTES)
            samples = []
            for _ in range(ROUND_TRIPS):
                begin = time.perf_counter_ns()
                connection.sendall(message)
                received = 0
                while received < MESSAGE_BYTES:
                    received += len(connection.recv(MESSAGE_BYTES - received))
                samples.append(time.perf_counter_ns() - begin)
        echo.join(10.0)
    histogram.record(samples[ROUND_TRIPS // 10 :])
    return histogram.percentiles_us()


def fdatasync_us(folder: Path) -> Percentiles:
    """Time writing 4 KiB into a preallocated file of `folder`, and fdatasync."""
    histogram = LatencyHistogram()
    samples = []
    with tempfile.NamedTemporaryFile(dir=folder, prefix="fdatasync-") as file:
        block = bytes(range(256)) * (SYNC_BYTES // 256)
        # Written and synced once before, as a journal segment is, so that no size or extent changes while timing.
        os.pwrite(file.fileno(), bytes(SYNC_BYTES * SYNCS), 0)
        os.fsync(file.fileno())
        for number in range(SYNCS):
            begin = time.perf_counter_ns()
            os.pwrite(file.fileno(), block, number * SYNC_BYTES)
            os.fdatasync(file.fileno())
            samples.append(time.perf_counter_ns() - begin)
    histogram.record(samples)
    return histogram.percentiles_us()
