"""The memory that replicas have resident during a benchmark."""

from __future__ import annotations

import os

import pytest

from fastpaxos.cli import resident_memory
from fastpaxos.cli.resident_memory import ResidentMemory, resident_bytes, resident_bytes_max

SECOND = 1_000_000_000


def test_each_time_has_the_sample_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([100, 1, 200, 2, 300, 3, 400, 4])
    monkeypatch.setattr(resident_memory, "resident_bytes", lambda pid: next(sizes))
    monkeypatch.setattr(resident_memory, "resident_bytes_max", lambda pid: 1000 + pid)
    memory = ResidentMemory({1: 11, 2: 12})
    for moment in (0.0, 1.0, 2.5, 9.0):
        memory.sample(int((10 + moment) * SECOND))
    assert memory.describe(1, 11 * SECOND, 2.5) == {
        "resident_bytes_start": 200,
        "resident_bytes_per_second": [200, 300],
        "resident_bytes_end": 300,
        "resident_bytes_max": 1011,
    }
    # Before the first sample there is only the first.
    assert memory.describe(2, 5 * SECOND, 1.0)["resident_bytes_start"] == 1
    assert set(memory.describe(3, 0, 1.0).values()) == {None}


def test_a_running_process_is_sampled() -> None:
    with ResidentMemory({7: os.getpid()}) as memory:
        pass
    fields = memory.describe(7, 0, 1.0)
    assert 1 << 20 < fields["resident_bytes_start"] <= fields["resident_bytes_max"]  # type: ignore[operator]


def test_a_process_that_has_gone_has_nothing() -> None:
    assert (resident_bytes(1 << 30), resident_bytes_max(1 << 30)) == (0, None)
