"""The floor as a row: how many commands would fit into the bytes that the machine moves and syncs without consensus."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastpaxos.cli.floor import measure_floor
from fastpaxos.cli.latency import Percentiles
from fastpaxos.cli.peers.peer import PeerPlan, payloads
from fastpaxos.cli.peers.replicas import commands_per_block
from fastpaxos_core import build_info
from fastpaxos_core.block import build_block

__all__ = ["Floor"]

TUNE_S = 0.2


class Floor:
    """`bench floor` with the best frame size and window, which the first round chooses."""

    nodes = 3

    def __init__(self, name: str, reference: str, durability: str) -> None:
        self.name = name
        self.reference = reference
        self.durability = durability
        self._payload: int | None = None
        self._window: int | None = None

    def missing(self) -> str | None:
        return None

    def version(self) -> str:
        return str(build_info()["version"])

    def settings(self) -> str:
        return (
            f"no consensus: the same hops and the same disk, frames of {self._payload} bytes; "
            f"a command counts as many bytes as in a block of fastpaxos; latency: frames of 64 bytes"
        )

    def load(self, plan: PeerPlan) -> str:
        return f"1 connection, {self._window} frames in flight"

    def tune(self, folder: Path, plan: PeerPlan) -> None:
        report = measure_floor(folder, self.nodes, self.durability, TUNE_S)
        self._payload, self._window = report["payload_bytes_per_frame"], report["window"]

    @contextlib.contextmanager
    def running(self, folder: Path, plan: PeerPlan) -> Iterator[RunningFloor]:
        yield RunningFloor(
            measure_floor(folder, self.nodes, self.durability, plan.seconds, self._payload, self._window),
            block_bytes_per_command(plan.payload_bytes),
        )


class RunningFloor:
    """Both figures come from one measurement."""

    def __init__(self, report: dict[str, Any], command_bytes: float) -> None:
        self._report = report
        self._command_bytes = command_bytes

    def throughput(self) -> float:
        return float(self._report["bytes_per_second"]) / self._command_bytes

    def latency(self) -> Percentiles:
        latency: Percentiles = self._report["latency_us"]
        return latency


def block_bytes_per_command(payload_bytes: int) -> float:
    """What a command takes in a block of the size that the row "fastpaxos" sends."""
    count = commands_per_block(payload_bytes)
    return len(build_block(payloads(count, payload_bytes), 1, 1)) / count
