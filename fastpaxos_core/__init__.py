"""The compiled, sans-I/O core of fastpaxos: no sockets, no clock, no chance, no event loop.

`fastpaxos` is built on it. Use it directly to bring your own transport: `Replica` is one member of a cluster,
`Journal.open` its write-ahead log over any `Directory`, `FrameSplitter` and `FrameWriter` speak the wire format, and
docs/protocol.md has the rules. Same state and same input give the same output.
"""

from __future__ import annotations

from typing import TypedDict

try:
    from fastpaxos_core.build import CHECKED, CYTHON, PROFILE
except ImportError as _error:
    raise ImportError(
        "fastpaxos_core is not built for this Python: run `make build` in a source tree, or `pip install .`"
    ) from _error

from fastpaxos_core.ballot import format_ballot, pack_ballot, unpack_ballot
from fastpaxos_core.block import BlockView, build_block, build_control, build_noop, check_block, crc32c
from fastpaxos_core.directory import Directory
from fastpaxos_core.errors import (
    ConfigError,
    CorruptionError,
    FastPaxosError,
    FrameError,
    InternalError,
    InvariantError,
)
from fastpaxos_core.founding import Founding, FoundingRecord
from fastpaxos_core.hashchain import HashChainState
from fastpaxos_core.journal import Journal
from fastpaxos_core.quorum import QuorumSystem
from fastpaxos_core.replica import Replica
from fastpaxos_core.results import CommandFailure, decode_results, encode_results
from fastpaxos_core.sessions import SessionTable
from fastpaxos_core.window import SlotWindow
from fastpaxos_core.wire import Frame, FrameSplitter, FrameType, FrameWriter, ReplyStatus

__all__ = [
    "BlockView",
    "BuildInfo",
    "CommandFailure",
    "ConfigError",
    "CorruptionError",
    "Directory",
    "FastPaxosError",
    "Founding",
    "FoundingRecord",
    "Frame",
    "FrameError",
    "FrameSplitter",
    "FrameType",
    "FrameWriter",
    "HashChainState",
    "InternalError",
    "InvariantError",
    "Journal",
    "QuorumSystem",
    "Replica",
    "ReplyStatus",
    "SessionTable",
    "SlotWindow",
    "build_block",
    "build_control",
    "build_info",
    "build_noop",
    "check_block",
    "crc32c",
    "decode_results",
    "encode_results",
    "format_ballot",
    "pack_ballot",
    "unpack_ballot",
]

__version__ = "0.1.0"


class BuildInfo(TypedDict):
    """What `build_info` returns."""

    version: str
    profile: str
    checked: bool
    cython: str


def build_info() -> BuildInfo:
    """Return the version, the build profile ("release", "checked", "coverage" or "asan"), whether ring accesses are
    checked in C, and the version of Cython that compiled it."""
    return {"version": __version__, "profile": PROFILE, "checked": CHECKED, "cython": CYTHON}
