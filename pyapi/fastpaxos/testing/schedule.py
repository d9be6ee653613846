"""Virtual time: one heap of events, integer nanoseconds, one source of randomness."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random

__all__ = ["MILLISECOND_NS", "SECOND_NS", "Schedule"]

MILLISECOND_NS = 1_000_000
SECOND_NS = 1_000_000_000


class Schedule:
    """Events in virtual time. Two events of the same nanosecond run in an order that the seed decides.

    Args:
        random: the only source of randomness of a simulation; everything draws from it in the order of events.
    """

    def __init__(self, random: Random) -> None:
        self.random = random
        self.now_ns = 0
        self.events_run = 0
        self._heap: list[tuple[int, int, int, Callable[[], None]]] = []
        self._number = 0

    def after(self, delay_ns: int, action: Callable[[], None]) -> None:
        """Run `action` in `delay_ns` nanoseconds (0 or more)."""
        if delay_ns < 0:
            raise ValueError(f"delay_ns is {delay_ns}; an event cannot lie in the past")
        self.at(self.now_ns + delay_ns, action)

    def at(self, time_ns: int, action: Callable[[], None]) -> None:
        """Run `action` at `time_ns`, which does not lie in the past."""
        self._number += 1
        heapq.heappush(self._heap, (time_ns, self.random.getrandbits(32), self._number, action))

    def run_until(self, time_ns: int, stop: Callable[[], bool] | None = None) -> bool:
        """Run events up to and including `time_ns`; return True as soon as `stop()` holds, else False at the end."""
        heap = self._heap
        while heap and heap[0][0] <= time_ns:
            self.now_ns, _, _, action = heapq.heappop(heap)
            self.events_run += 1
            action()
            if stop is not None and stop():
                return True
        self.now_ns = max(self.now_ns, time_ns)
        return False
