"""What stands beside every figure of a benchmark: the machine, the software, and what the machine itself takes for one
round trip and one disk sync."""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import platform
import socket
import subprocess
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import fastpaxos
import fastpaxos_core
from fastpaxos.cli.latency import LatencyHistogram, Percentiles

__all__ = ["describe_machine", "fdatasync_us", "loopback_us"]

ROUND_TRIPS = 2_000
SYNCS = 200
MESSAGE_BYTES = 128
SYNC_BYTES = 4_096


def describe_machine(folder: Path | None = None) -> dict[str, object]:
    """Date, machine, operating system, event loop, versions, build and commit that a number was measured with; with a
    `folder`, the file system that it lies on."""
    build = fastpaxos_core.build_info()
    setup: dict[str, object] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "event_loop": event_loop(),
        "versions": {
            "python": platform.python_version(),
            "fastpaxos": build["version"],
            "cython": build["cython"],
            **{name: version_of(name) for name in ("numpy", "uvloop", "msgpack")},
        },
        "build": build["profile"],
        "commit": git_commit(Path(fastpaxos.__file__ or "").resolve().parents[2]),
    }
    if folder is not None:
        setup["file_system"] = file_system(folder)
    return setup


def cpu_model() -> str | None:
    """The name of the first processor as Linux gives it, or None where it gives none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.processor() or None


def event_loop() -> str:
    """The loop that `fastpaxos.runtime.run` takes, with its version."""
    version = version_of("uvloop")
    return f"asyncio {platform.python_version()}" if version is None else f"uvloop {version}"


def version_of(distribution: str) -> str | None:
    """The installed version, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_commit(root: Path) -> str | None:
    """The commit of the source tree `root`, with " (dirty)" if files differ from it; None if it is no source tree."""
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        changed = subprocess.run(
            [*git, "--no-optional-locks", "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + (" (dirty)" if changed.stdout.strip() else "")


def file_system(folder: Path) -> str | None:
    """The type of the file system of `folder` ("ext4"), or None where Linux does not tell."""
    device = os.stat(folder).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    except OSError:
        return None
    # Behind a variable number of fields stands a dash, and then the type.
    types = [fields[fields.index("-") + 1] for fields in mounts if fields[2] == wanted]
    return types[0] if types else None


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
