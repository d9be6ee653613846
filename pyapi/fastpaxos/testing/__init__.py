"""The public simulator: a whole cluster in one thread and in virtual time, for tests of fastpaxos and its users."""

from __future__ import annotations

from .checkers import ProtocolChecker
from .clients import ClientOptions, SimClient
from .cluster import SimCluster
from .disk import SimDisk, SimulatedCrash
from .history import ClientHistory, LogModel, Read, Violation, Write
from .journal_view import JournalEntry, Value
from .lone import LoneReplica, batch
from .network import LinkOptions, SimNetwork
from .node import SimNode
from .options import DiskOptions, NemesisOptions, SimOptions
from .schedule import Schedule
from .swarm import draw_options

__all__ = [
    "ClientHistory",
    "ClientOptions",
    "DiskOptions",
    "JournalEntry",
    "LinkOptions",
    "LogModel",
    "LoneReplica",
    "NemesisOptions",
    "ProtocolChecker",
    "Read",
    "Schedule",
    "SimClient",
    "SimCluster",
    "SimDisk",
    "SimNetwork",
    "SimNode",
    "SimOptions",
    "SimulatedCrash",
    "Value",
    "Violation",
    "Write",
    "batch",
    "draw_options",
]
