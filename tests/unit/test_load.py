"""The open load of `bench`: what was due while nothing moved counts from then (no coordinated omission)."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from fastpaxos.cli.load import Load, LoadPlan
from fastpaxos.errors import OutcomeUnknown


class FakeClient:
    """Answers at once, but hangs for a while at its first command: the loop, or only the answers."""

    def __init__(self, hang_s: float, *, blocks_loop: bool) -> None:
        self.hang_s = hang_s
        self.blocks_loop = blocks_loop
        self.ready_at = 0.0
        self.calls = 0

    async def execute(self, command: bytes, timeout: float) -> bytes:
        self.calls += 1
        if self.calls == 1:
            self.ready_at = time.monotonic() + self.hang_s
            if self.blocks_loop:
                time.sleep(self.hang_s)  # noqa: ASYNC251 - the loop hangs
        await asyncio.sleep(max(0.0, self.ready_at - time.monotonic()))
        return b""


def run(client: Any, rate: float, arrivals: str = "uniform", seconds: float = 0.5) -> Load:
    load = Load(LoadPlan({}, 1, 1, 1, 8, seconds, 0.0, rate=rate, arrivals=arrivals))

    async def work() -> None:
        begin = time.perf_counter_ns()
        await load._arrive([client], begin, begin + int(seconds * 1e9))

    asyncio.run(work())
    load.histogram.record(load._samples)
    return load


@pytest.mark.parametrize("blocks_loop", [True, False])
def test_a_pause_is_seen_by_all_that_was_due_meanwhile(blocks_loop: bool) -> None:
    load = run(FakeClient(0.25, blocks_loop=blocks_loop), rate=200)
    assert 98 <= load.result.acknowledged <= 102
    assert load.histogram.samples == load.result.acknowledged == load.result.measured
    # Half of the commands were due in the pause: evenly between 0 and 250 ms before its end.
    assert load.histogram.percentile_ns(95) >= 150e6
    assert load.histogram.percentile_ns(75) >= 50e6
    assert (load.result.late_ns_max >= 150e6) == blocks_loop


def test_arrivals_by_chance_have_the_rate() -> None:
    load = run(FakeClient(0.0, blocks_loop=False), rate=2000, arrivals="poisson")
    assert 850 <= load.result.acknowledged <= 1150


def test_errors_are_counted_and_no_latency() -> None:
    class Broken:
        async def execute(self, command: bytes, timeout: float) -> bytes:
            raise OutcomeUnknown("gone")

    load = run(Broken(), rate=100)
    assert load.result.errors >= 49
    assert (load.result.acknowledged, load.histogram.samples) == (0, 0)
    assert load.result.error_texts[0].startswith("OutcomeUnknown")
