"""The timing tier: the core beside a fixed piece of C, and a real cluster beside the floor of the same minute."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
import zlib
from collections.abc import Mapping

import core_batches
import numpy as np

PAYLOAD_BYTES = 16
SECONDS = "1"
THROUGHPUT_LOAD = ("--clients", "4", "--pipeline", "8", "--batch", "1000")
LATENCY_LOAD = ("--clients", "1", "--pipeline", "1", "--batch", "1")
FLOOR_SETTING = ("--payload-bytes-per-frame", "65536", "--window", "16")
CORE_BATCHES = 8192
CORE_SLOTS = 1024
REFERENCE_ROUNDS = 200


def core() -> Mapping[str, float]:
    """Processor seconds of batches through three replicas; core_batches checks what was committed."""
    begin = time.process_time()
    core_batches.main(CORE_BATCHES, CORE_SLOTS)
    return {"processor_seconds": time.process_time() - begin}


def fixed_work() -> Mapping[str, float]:
    """Processor seconds of C code that is not of this project: arithmetic, memory, hashing, small objects."""
    numbers = np.arange(1 << 18, dtype=np.uint64)
    data = numbers.tobytes()
    begin = time.process_time()
    for _ in range(REFERENCE_ROUNDS):
        total = int((numbers * np.uint64(2654435761) >> np.uint64(7)).sum())
        check = zlib.crc32(data)
        digest = hashlib.blake2b(data[: 1 << 18]).digest()
        texts = sorted(map(str, range(10_000)))
    seconds = time.process_time() - begin
    if (check, len(texts)) != (zlib.crc32(numbers.tobytes()), 10_000) or total == 0 or len(digest) != 64:
        raise ValueError("the fixed work gave something else than before")
    return {"processor_seconds": seconds}


def bench(*arguments: str) -> dict[str, object]:
    """Run one `fastpaxos bench` command and return its JSON; it exits with an error when its own checks fail."""
    command = [sys.executable, "-P", "-m", "fastpaxos", "bench", *arguments, "--seconds", SECONDS, "--json"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise ValueError(f"bench {' '.join(arguments)} failed ({run.returncode}):\n{run.stdout}{run.stderr}")
    report: dict[str, object] = json.loads(run.stdout)
    return report


def cluster() -> Mapping[str, float]:
    """A cluster of three processes with fsync: throughput of batches, latency of one command at a time."""
    fast, alone = bench("closed", *THROUGHPUT_LOAD), bench("closed", *LATENCY_LOAD)
    return {"bytes_per_second": float(str(fast["commands_per_second"])) * PAYLOAD_BYTES} | latency(alone)


def floor() -> Mapping[str, float]:
    """The same hops and syncs without consensus."""
    report = bench("floor", *FLOOR_SETTING)
    return {"bytes_per_second": float(str(report["bytes_per_second"]))} | latency(report)


def latency(report: Mapping[str, object]) -> dict[str, float]:
    """Percentiles in microseconds."""
    percentiles = report["latency_us"]
    assert isinstance(percentiles, dict)
    return {name: float(percentiles[name]) for name in ("p50", "p99")}
