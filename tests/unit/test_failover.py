"""The gaps of `bench failover`."""

from __future__ import annotations

from array import array

from fastpaxos.cli.failover import longest_gap_ms

MS = 1_000_000


def test_the_gap_begins_with_the_last_answer_before_the_kill() -> None:
    answered = array("q", [number * MS for number in (0, 500, 501, 502, 802, 803, 1000)])
    assert longest_gap_ms(answered, 600 * MS) == 300.0
    assert longest_gap_ms(answered, 802 * MS) == 197.0
    assert longest_gap_ms(answered, 900 * MS) == 197.0
    assert longest_gap_ms(answered, 1000 * MS) == 0.0
    assert longest_gap_ms(answered, 0) == 500.0


def test_no_answer_is_no_gap() -> None:
    assert longest_gap_ms(array("q"), 5) == 0.0
