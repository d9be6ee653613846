"""A set of byte positions, kept as sorted ranges that neither touch nor overlap."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

__all__ = ["ByteRanges"]


class ByteRanges:
    """Positions as half-open ranges [begin, end). Adding behind the last range is O(1), the rest is a bisection."""

    __slots__ = ("_begins", "_ends")

    def __init__(self) -> None:
        self._begins: list[int] = []
        self._ends: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._begins)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield (begin, end) in order."""
        return iter(list(zip(self._begins, self._ends, strict=True)))

    def copy(self) -> ByteRanges:
        """Return an independent copy."""
        other = ByteRanges()
        other._begins = self._begins.copy()
        other._ends = self._ends.copy()
        return other

    def add(self, begin: int, end: int) -> None:
        """Add [begin, end)."""
        if begin >= end:
            return
        if self._ends and self._ends[-1] == begin:
            self._ends[-1] = end
            return
        first = bisect_left(self._ends, begin)
        last = bisect_right(self._begins, end)
        if first < last:
            begin = min(begin, self._begins[first])
            end = max(end, self._ends[last - 1])
        self._begins[first:last] = [begin]
        self._ends[first:last] = [end]

    def remove(self, begin: int, end: int) -> None:
        """Take [begin, end) out."""
        first = bisect_right(self._ends, begin)
        last = bisect_left(self._begins, end)
        if begin >= end or first >= last:
            return
        rest = [(self._begins[first], begin), (end, self._ends[last - 1])]
        kept = [(left, right) for left, right in rest if left < right]
        self._begins[first:last] = [left for left, _ in kept]
        self._ends[first:last] = [right for _, right in kept]

    def overlaps(self, begin: int, end: int) -> bool:
        """Tell whether any position of [begin, end) is in the set."""
        first = bisect_right(self._ends, begin)
        return begin < end and first < len(self._begins) and self._begins[first] < end

    def gaps(self, begin: int, end: int) -> list[tuple[int, int]]:
        """Parts of [begin, end) that are not in the set, in order."""
        found = []
        for left, right in self:
            if left >= end:
                break
            if begin < left:
                found.append((begin, left))
            begin = max(begin, right)
        if begin < end:
            found.append((begin, end))
        return found
