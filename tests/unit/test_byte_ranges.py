"""Sets of byte positions as ranges."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fastpaxos.testing.byte_ranges import ByteRanges


@given(st.lists(st.tuples(st.sampled_from(["add", "remove"]), st.integers(0, 30), st.integers(0, 12)), max_size=40))
def test_byte_ranges_against_a_set(steps: list[tuple[str, int, int]]) -> None:
    ranges, expected = ByteRanges(), set[int]()
    for step, begin, length in steps:
        overlaps = bool(expected & set(range(begin, begin + length)))
        assert ranges.overlaps(begin, begin + length) == overlaps
        gaps = [place for left, right in ranges.gaps(begin, begin + length) for place in range(left, right)]
        assert gaps == [place for place in range(begin, begin + length) if place not in expected]
        if step == "add":
            ranges.add(begin, begin + length)
            expected |= set(range(begin, begin + length))
        else:
            ranges.remove(begin, begin + length)
            expected -= set(range(begin, begin + length))
        found = list(ranges)
        assert [place for left, right in found for place in range(left, right)] == sorted(expected)
        assert all(left < right for left, right in found)
        assert all(right < left for (_, right), (left, _) in pairwise(found))
