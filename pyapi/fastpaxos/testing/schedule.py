"""Virtual time: one heap of events, integer nanoseconds, one source of randomness."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from random import Random

__all__ = ["MILLISECOND_NS", "SECOND_NS", "EndlessRunError", "Schedule"]

MILLISECOND_NS = 1_000_000
SECOND_NS = 1_000_000_000


_LOOK_NS = MILLISECOND_NS


class EndlessRunError(AssertionError):
    """A simulation makes events without end."""


class Schedule:
    """Events in virtual time. Two events of the same nanosecond run in an order that the seed decides.

    Args:
        random: the only source of randomness of a simulation; everything draws from it in the order of events.
    """

    def __init__(self, random: Random) -> None:
        self.random = random
        self.now_ns = 0
        self.events_run = 0
        self.events_max = 3_000_000
        self._heap: list[tuple[int, int, int, Callable[[], None]]] = []
        self._number = 0
        # Events of one nanosecond run in the order of this product: any order, and the seed says which.
        self._order = random.getrandbits(32) | 1

    def after(self, delay_ns: int, action: Callable[[], None]) -> None:
        """Run `action` in `delay_ns` nanoseconds (0 or more)."""
        if delay_ns < 0:
            raise ValueError(f"delay_ns is {delay_ns}; an event cannot lie in the past")
        number = self._number = self._number + 1
        heappush(self._heap, (self.now_ns + delay_ns, number * self._order & 0xFFFF_FFFF, number, action))

    def at(self, time_ns: int, action: Callable[[], None]) -> None:
        """Run `action` at `time_ns`, which does not lie in the past."""
        number = self._number = self._number + 1
        heappush(self._heap, (time_ns, number * self._order & 0xFFFF_FFFF, number, action))

    def delay(self, least_ns: int, most_ns: int) -> int:
        """Draw a time between two bounds, in nanoseconds."""
        return least_ns + int(self.random.random() * (most_ns - least_ns))

    def run_until(self, time_ns: int, stop: Callable[[], bool] | None = None) -> bool:
        """Run events up to and including `time_ns`; return True when `stop()` holds, else False at the end.

        `stop` is asked once per virtual millisecond at most. Raises EndlessRunError where time hardly passes.
        """
        heap = self._heap
        begin = self.events_run
        looked_ns = self.now_ns
        while heap and heap[0][0] <= time_ns:
            self.now_ns, _, _, action = heappop(heap)
            self.events_run += 1
            action()
            if stop is not None and self.now_ns - looked_ns >= _LOOK_NS:
                looked_ns = self.now_ns
                if stop():
                    return True
            if self.events_run - begin > self.events_max:
                raise EndlessRunError(f"{self.events_max} events and virtual time is only {self.now_ns} ns")
        self.now_ns = max(self.now_ns, time_ns)
        return False
