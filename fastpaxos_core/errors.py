"""Errors that the core itself raises. `fastpaxos.errors` re-exports them and draws the whole tree."""

from __future__ import annotations

__all__ = ["ConfigError", "CorruptionError", "FastPaxosError", "FrameError", "InternalError", "InvariantError"]


class FastPaxosError(Exception):
    """Root of every error that fastpaxos raises on purpose."""


class ConfigError(FastPaxosError):
    """A setting, an address or a data directory does not fit; nothing was started."""


class CorruptionError(FastPaxosError):
    """Bytes on disk are not what was written there."""


class FrameError(FastPaxosError):
    """A peer or client sent bytes that are no valid frame; the connection is closed."""


class InternalError(FastPaxosError):
    """A bug in fastpaxos. Please report it with the message."""


class InvariantError(InternalError):
    """A safety rule of the protocol would have been broken; the node stops instead."""
