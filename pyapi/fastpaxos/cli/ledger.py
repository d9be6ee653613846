"""Commands that can be told apart, and the book of what was issued and what was acknowledged."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["IDENTITY_BYTES", "Ledger", "decode_identities", "identity_commands"]

IDENTITY = np.dtype([("run", "<u4"), ("session", "<u4"), ("counter", "<u8")])
IDENTITY_BYTES = IDENTITY.itemsize


def identity_commands(run: int, session: int, begin: int, end: int, payload_bytes: int) -> list[bytes]:
    """Return the commands begin..end (half-open) of one session: (run, session, counter), then zeros up to
    `payload_bytes` (16 or more)."""
    if payload_bytes < IDENTITY_BYTES:
        raise ValueError(f"a command of {payload_bytes} bytes cannot hold its identity of {IDENTITY_BYTES}")
    records = np.zeros(end - begin, dtype=IDENTITY)
    records["run"], records["session"] = run, session
    records["counter"] = np.arange(begin, end, dtype=np.uint64)
    packed = records.tobytes()
    padding = bytes(payload_bytes - IDENTITY_BYTES)
    return [packed[at : at + IDENTITY_BYTES] + padding for at in range(0, len(packed), IDENTITY_BYTES)]


def decode_identities(payload: bytes | memoryview, payload_bytes: int) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    """Return the identities of equally long commands that lie back to back in `payload`."""
    padding = ("padding", f"V{payload_bytes - IDENTITY_BYTES}")
    layout = np.dtype([("run", "<u4"), ("session", "<u4"), ("counter", "<u8"), padding])
    return np.frombuffer(payload, dtype=layout)


class Ledger:
    """What the sessions of one run issued, what was acknowledged to them, and when."""

    def __init__(self, run: int, sessions: int) -> None:
        self.run = run
        self.issued = [0] * sessions
        self.acknowledged = 0
        self.unknown = 0
        self._acknowledged_ranges: list[list[tuple[int, int]]] = [[] for _ in range(sessions)]
        self._acknowledged_at_ns: list[int] = []

    @property
    def sessions(self) -> int:
        """How many sessions the run has; they are numbered from 0."""
        return len(self.issued)

    def issue(self, session: int, count: int) -> tuple[int, int]:
        """Take the next `count` counters of a session; return them as a half-open range."""
        begin = self.issued[session]
        self.issued[session] = begin + count
        return begin, begin + count

    def acknowledge(self, session: int, begin: int, end: int, now_ns: int) -> None:
        """Note that every command of the range was answered at `now_ns`."""
        self._acknowledged_ranges[session].append((begin, end))
        self._acknowledged_at_ns.append(now_ns)
        self.acknowledged += end - begin

    def give_up(self, begin: int, end: int) -> None:
        """Note that nobody could say what became of these commands: they may be applied, once, or never."""
        self.unknown += end - begin

    def acknowledged_mask(self, session: int) -> NDArray[np.bool_]:
        """Return, for every counter that the session issued, whether it was acknowledged."""
        mask = np.zeros(self.issued[session], dtype=np.bool_)
        for begin, end in self._acknowledged_ranges[session]:
            mask[begin:end] = True
        return mask

    def longest_gap_ms(self) -> float:
        """Return the longest time between two acknowledgements that followed each other, over all sessions."""
        if len(self._acknowledged_at_ns) < 2:
            return 0.0
        times = np.sort(np.asarray(self._acknowledged_at_ns, dtype=np.int64))
        return round(float(np.diff(times).max()) / 1e6, 1)
