"""What `bench compare` asks of a system: whether it is here, and to run, be loaded, and be gone without a trace."""

from __future__ import annotations

import random
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fastpaxos.cli.latency import Percentiles
from fastpaxos.errors import FastPaxosError

__all__ = ["INSTALL_ALL", "DisturbedError", "Peer", "PeerError", "PeerPlan", "RunningPeer", "payloads"]

# Installs everything that can be missing; each peer also names its own line.
INSTALL_ALL = "make bench-peers"
SEED = 1


class PeerError(FastPaxosError):
    """A system that is measured did not start, answered with an error, or did not hold what it acknowledged."""


class DisturbedError(PeerError):
    """The system was not itself in this turn, for a reason that is known and rare: the turn is repeated."""


@dataclass(frozen=True, slots=True)
class PeerPlan:
    """What every system is asked for: commands of `payload_bytes`, `clients` connections, `seconds` of throughput after
    `warmup_s`, and half of both for the latency of one command alone."""

    payload_bytes: int
    clients: int
    seconds: float
    warmup_s: float

    @property
    def turn_s(self) -> float:
        """How long a system is loaded in one turn."""
        return 1.5 * (self.seconds + self.warmup_s)


class RunningPeer(Protocol):
    """A system that has started."""

    def throughput(self) -> float:
        """Load it fully; return commands per second."""

    def latency(self) -> Percentiles:
        """Send one command, wait for its answer, and so on, with nothing else running."""


class Peer(Protocol):
    """A row of the comparison. All methods may raise; what they raise becomes the row's reason."""

    name: str
    durability: str
    nodes: int
    # The row that this one is compared with: the same way of sending commands, by fastpaxos.
    reference: str

    def missing(self) -> str | None:
        """Return the command that installs the system, or None if it is here."""

    def version(self) -> str:
        """Return the version that is measured."""

    def settings(self) -> str:
        """Say how it is configured and loaded, as chosen by now."""

    def load(self, plan: PeerPlan) -> str:
        """Say how many connections it has and how much each has in flight."""

    def tune(self, folder: Path, plan: PeerPlan) -> None:
        """Choose settings in short trials, before the first round."""

    def running(self, folder: Path, plan: PeerPlan) -> AbstractContextManager[RunningPeer]:
        """Start the system with its data in `folder`, check at the end what it holds, and stop it, however it went."""


def payloads(count: int, payload_bytes: int) -> list[bytes]:
    """The same random commands for every system."""
    chance = random.Random(SEED)
    return [chance.randbytes(payload_bytes) for _ in range(count)]
