"""The compiled, sans-I/O core of fastpaxos: no sockets, no clock, no chance, no event loop.

`fastpaxos` is built on it. Use it directly to bring your own transport: `Replica` is one member of a cluster,
`Journal.open` its write-ahead log over any `Directory`, `FrameSplitter` and `FrameWriter` speak the wire format, and
docs/protocol.md has the rules. Same state and same input give the same output.
"""

from __future__ import annotations

from typing import TypedDict

try:
    from fastpaxos_core.build import CHECKED, PROFILE
except ImportError as _error:
    raise ImportError(
        "fastpaxos_core is not built for this Python: run `make build` in a source tree, or `pip install .`"
    ) from _error

__all__ = ["BuildInfo", "build_info"]

__version__ = "0.1.0"


class BuildInfo(TypedDict):
    """What `build_info` returns."""

    version: str
    profile: str
    checked: bool


def build_info() -> BuildInfo:
    """Return the version, the build profile ("release", "checked", "coverage" or "asan") and whether ring accesses
    are checked in C."""
    return {"version": __version__, "profile": PROFILE, "checked": CHECKED}
