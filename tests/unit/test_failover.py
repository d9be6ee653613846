"""The gaps of `bench failover`."""

from __future__ import annotations

from array import array

from fastpaxos.cli.failover import AFTER_MS, BEFORE_MS, BUCKET_MS, Clients, Kill, longest_gap_ms, timeline

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


def clients(answers: list[tuple[int, int]]) -> Clients:
    """What was answered, as (when in milliseconds, after how many)."""
    return Clients(array("q", [when * MS for when, _ in answers]), array("q", [taken * MS for _, taken in answers]))


def test_the_timeline_counts_from_the_kill() -> None:
    load = clients([(400, 9), (500, 1), (549, 3), (550, 2), (999, 4), (1000, 5), (1300, 310), (1301, 6), (9000, 7)])
    found = timeline(load, Kill(1000 * MS, 1250 * MS, 300.0), 2000 * MS)
    assert (found["begin_ms"], found["bucket_ms"], found["back_ms"], found["gap_ms"]) == (-500, 50, 250.0, 300.0)
    answered, worst = found["answered"], found["latency_us_max"]
    assert len(answered) == len(worst) == (BEFORE_MS + 1000) // BUCKET_MS
    filled = {place: (count, worst[place]) for place, count in enumerate(answered) if count}
    assert filled == {0: (2, 3000.0), 1: (1, 2000.0), 9: (1, 4000.0), 10: (1, 5000.0), 16: (2, 310_000.0)}
    assert worst[11] == 0


def test_the_timeline_ends_with_the_next_kill_and_at_last() -> None:
    load = clients([])
    kill = Kill(1000 * MS, 1100 * MS, 0.0)
    assert len(timeline(load, kill, 1149 * MS)["answered"]) == (BEFORE_MS + 100) // BUCKET_MS
    assert len(timeline(load, kill, 10**15)["answered"]) == (BEFORE_MS + AFTER_MS) // BUCKET_MS
