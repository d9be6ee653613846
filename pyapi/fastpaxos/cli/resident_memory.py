"""How much memory processes have resident while a benchmark runs, as /proc tells."""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["ResidentMemory"]

SAMPLE_INTERVAL_S = 0.25
NS_PER_S = 1_000_000_000
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class ResidentMemory:
    """Samples the resident memory of {id: process id} in a thread of its own, while the `with` block runs."""

    def __init__(self, pids: Mapping[int, int]) -> None:
        self._pids = pids
        self._times_ns: list[int] = []
        self._bytes: dict[int, list[int]] = {key: [] for key in pids}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="resident-memory", daemon=True)

    def __enter__(self) -> Self:
        self.sample(time.monotonic_ns())
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()
        self.sample(time.monotonic_ns())

    def _run(self) -> None:
        while not self._is_over.wait(SAMPLE_INTERVAL_S):
            self.sample(time.monotonic_ns())

    def sample(self, now_ns: int) -> None:
        """Note what every process has now; 0 for one that has gone."""
        self._times_ns.append(now_ns)
        for key, pid in self._pids.items():
            self._bytes[key].append(resident_bytes(pid))

    def describe(self, key: int, begin_ns: int, seconds: float) -> dict[str, object]:
        """The fields of a report for the process `key`: resident bytes at `begin_ns` of the monotonic clock, after
        each whole second, at the end of `seconds`, and the most that it ever had. All None for unknown processes."""
        if key not in self._pids:
            return dict.fromkeys(
                ("resident_bytes_start", "resident_bytes_per_second", "resident_bytes_end", "resident_bytes_max")
            )
        return {
            "resident_bytes_start": self._at(key, begin_ns),
            "resident_bytes_per_second": [
                self._at(key, begin_ns + second * NS_PER_S) for second in range(1, int(seconds) + 1)
            ],
            "resident_bytes_end": self._at(key, begin_ns + int(seconds * NS_PER_S)),
            "resident_bytes_max": resident_bytes_max(self._pids[key]),
        }

    def _at(self, key: int, time_ns: int) -> int:
        """The last sample by then, or the first one."""
        return self._bytes[key][max(0, bisect_right(self._times_ns, time_ns) - 1)]


def resident_bytes(pid: int) -> int:
    """Return the memory that a process has resident; 0 where /proc does not say."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
    except (OSError, IndexError):
        return 0


def resident_bytes_max(pid: int) -> int | None:
    """Return the most memory that a process ever had resident, or None where /proc does not say."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    return found[0] if found else None
