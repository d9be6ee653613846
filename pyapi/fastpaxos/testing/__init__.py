"""The public simulator: a whole cluster in one thread and in virtual time, for tests of fastpaxos and its users."""

from __future__ import annotations

from .checkers import ProtocolChecker
from .clients import ClientOptions, SimClient
from .cluster import SimCluster
from .disk import SimDisk, SimulatedCrash
from .history import ClientHistory, LogModel, Read, Violation, Write
from .journal_view import JournalEntry, Value
from .linearizability import Register, Search, SequentialModel, Verdict, check_linearizable
from .lone import LoneReplica, batch
from .network import LinkOptions, SimNetwork
from .node import SimNode
from .operations import Operation, OperationKind, Outcome, read_history, write_history
from .options import DiskOptions, NemesisOptions, SimOptions
from .register_check import check_registers
from .schedule import Schedule
from .swarm import draw_options
from .user_cluster import MachineCluster, check_machine
from .witness import check_witness, place_operations

__all__ = [
    "ClientHistory",
    "ClientOptions",
    "DiskOptions",
    "JournalEntry",
    "LinkOptions",
    "LogModel",
    "LoneReplica",
    "MachineCluster",
    "NemesisOptions",
    "Operation",
    "OperationKind",
    "Outcome",
    "ProtocolChecker",
    "Read",
    "Register",
    "Schedule",
    "Search",
    "SequentialModel",
    "SimClient",
    "SimCluster",
    "SimDisk",
    "SimNetwork",
    "SimNode",
    "SimOptions",
    "SimulatedCrash",
    "Value",
    "Verdict",
    "Violation",
    "Write",
    "batch",
    "draw_options",
    "check_linearizable",
    "check_machine",
    "check_registers",
    "check_witness",
    "place_operations",
    "read_history",
    "write_history",
]
