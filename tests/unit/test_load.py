"""The loads of `bench`: what was due while nothing moved counts from then (no coordinated omission), and every answer
is counted in the second in which it came."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import pytest

from fastpaxos.cli.load import COMMAND_CHARGE_BYTES, AnsweredCommands, Load, LoadPlan, LoadResult
from fastpaxos.errors import CommandError, OutcomeUnknown

SECOND = 1_000_000_000


class FakeClient:
    """Answers at once, but hangs for a while at its first command: the loop, or only the answers.

    There is room for `room` commands without an answer.
    """

    def __init__(self, hang_s: float = 0.0, *, blocks_loop: bool = False, room: int = 1 << 30) -> None:
        self.hang_s = hang_s
        self.blocks_loop = blocks_loop
        self.room = room
        self.ready_at = 0.0
        self.calls = 0
        self.unanswered = self.unanswered_max = 0

    @property
    def room_bytes(self) -> int:
        # What the load takes one command of 8 bytes to need.
        return (self.room - self.unanswered) * (40 + 8 + COMMAND_CHARGE_BYTES)

    def submit_for(self, waiter: Any, command: bytes, deadline_ns: int) -> None:
        assert deadline_ns > time.monotonic_ns()
        assert not waiter.done()
        self.calls += 1
        self.unanswered += 1
        self.unanswered_max = max(self.unanswered, self.unanswered_max)
        if self.calls == 1:
            self.ready_at = time.monotonic() + self.hang_s
            if self.blocks_loop:
                time.sleep(self.hang_s)
        pause = max(0.0, self.ready_at - time.monotonic())
        asyncio.get_running_loop().call_later(pause, self.answer, waiter)

    def answer(self, waiter: Any) -> None:
        self.unanswered -= 1
        waiter.set_result(b"")


def run(client: Any, plan: LoadPlan) -> Load:
    load = Load(plan)
    asyncio.run(load._measure([client] * plan.clients, time.monotonic_ns()))
    load._record()
    return load


def open_load(rate: float, arrivals: str = "uniform", batch: int = 1) -> LoadPlan:
    return LoadPlan({}, 1, 1, batch, 8, 0.5, 0.0, rate=rate, arrivals=arrivals)


@pytest.mark.parametrize("blocks_loop", [True, False])
def test_a_pause_is_seen_by_all_that_was_due_meanwhile(blocks_loop: bool) -> None:
    load = run(FakeClient(0.25, blocks_loop=blocks_loop), open_load(200))
    assert 98 <= load.result.acknowledged <= 102
    assert load.histogram.samples == load.result.acknowledged
    # Half of the commands were due in the pause: evenly between 0 and 250 ms before its end.
    assert load.histogram.percentile_ns(95) >= 150e6
    assert load.histogram.percentile_ns(75) >= 50e6
    assert (load.result.late_ns_max >= 150e6) == blocks_loop


def test_commands_wait_for_room_and_their_time_runs() -> None:
    client = FakeClient(0.25, blocks_loop=False, room=3)
    load = run(client, open_load(200))
    assert (client.unanswered_max, load.result.errors) == (3, 0)
    assert 98 <= load.result.acknowledged <= 102
    assert load.histogram.percentile_ns(75) >= 50e6
    # It was not the load that was late.
    assert load.result.late_ns_max < 150e6


def test_arrivals_by_chance_have_the_rate() -> None:
    load = run(FakeClient(), open_load(2000, "poisson"))
    assert 850 <= load.result.acknowledged <= 1150


def test_arrivals_come_from_the_seed() -> None:
    def due_times(seed: int, count: int) -> list[int]:
        times = Load(LoadPlan({}, 1, 1, 1, 8, 1.0, 0.0, seed=seed, rate=1000.0))._due_times(7)
        return [next(times) for _ in range(count)]

    assert due_times(1, 10_000) == due_times(1, 10_000) != due_times(2, 10_000)
    assert 0.9 < due_times(1, 10_000)[-1] / (10 * SECOND) < 1.1
    assert due_times(1, 10_000) == sorted(due_times(1, 10_000))


def test_errors_are_counted_and_no_latency() -> None:
    class Broken(FakeClient):
        def answer(self, waiter: Any) -> None:
            waiter.set_exception(OutcomeUnknown("gone"))

    load = run(Broken(), open_load(100))
    assert load.result.errors >= 49
    assert (load.result.acknowledged, load.histogram.samples) == (0, 0)
    assert load.result.error_texts[0].startswith("OutcomeUnknown")


class FakeCalls:
    """Answers every kind of call in the next turn of the loop."""

    def __init__(self) -> None:
        self.called: set[str] = set()

    async def execute(self, command: bytes) -> bytes:
        self.called.add(f"execute {type(command).__name__}")
        await asyncio.sleep(0)
        return b""

    async def execute_many(self, commands: list[bytes]) -> list[bytes]:
        self.called.add(f"execute_many {len(commands)}")
        await asyncio.sleep(0)
        return [b""] * len(commands)


@pytest.mark.parametrize(("batch", "called"), [(1, "execute bytes"), (5, "execute_many 5")])
def test_a_closed_load_makes_the_call_of_its_batch(batch: int, called: str) -> None:
    client = FakeCalls()
    load = run(client, LoadPlan({}, 1, 3, batch, 8, 0.05, 0.0))
    assert client.called == {called}
    # Each of the three callers may get its last answer after the end.
    assert load.result.acknowledged - 3 * batch <= load.result.measured <= load.result.acknowledged
    assert load.result.acknowledged == load.histogram.samples * batch > 0


@pytest.mark.parametrize("rate", [0.0, 200.0])
def test_a_batch_with_a_failed_command_is_an_error(rate: float) -> None:
    class Failing(FakeCalls):
        room_bytes = 1 << 20

        async def execute_many(self, commands: list[bytes]) -> list[bytes]:
            await asyncio.sleep(0)
            raise CommandError("HashChain", "a command failed")

    load = run(Failing(), LoadPlan({}, 1, 1, 5, 8, 0.05, 0.0, rate=rate))
    assert load.result.errors > 0 == load.result.acknowledged
    assert load.result.error_texts[0].startswith(CommandError.__name__)


def count(times: list[float], seconds: float) -> LoadResult:
    """Count one command at each time, in seconds from the begin of the measured time."""
    answered = AnsweredCommands(10 * SECOND, seconds)
    for answer in times:
        now = 10 * SECOND + int(answer * SECOND)
        if now >= answered.until_ns:
            answered.turn(now)
        answered.commands += 1
    result = LoadResult()
    answered.store(result)
    return result


CASES: list[tuple[list[float], float, int, list[int]]] = [
    ([], 2.0, 0, [0, 0]),
    ([-0.5, 0.0, 0.5, 0.999, 1.0, 1.5], 2.0, 5, [3, 2]),
    ([0.5, 2.0, 2.5], 2.0, 1, [1, 0]),
    ([2.5], 2.0, 0, [0, 0]),
    ([0.5, 3.5, 3.6, 4.5], 4.0, 3, [1, 0, 0, 2]),
    ([0.5, 1.1, 1.4, 1.6], 1.5, 3, [1]),
    ([0.1, 0.2, 0.4], 0.3, 2, []),
]


@pytest.mark.parametrize(("times", "seconds", "measured", "per_second"), CASES)
def test_every_answer_is_counted_in_its_second(
    times: list[float], seconds: float, measured: int, per_second: list[int]
) -> None:
    result = count(times, seconds)
    assert (result.acknowledged, result.measured, result.per_second) == (len(times), measured, per_second)


def test_counts_agree_with_counting_one_by_one() -> None:
    chance = random.Random(4)
    times = sorted(chance.uniform(-1.0, 7.0) for _ in range(5000))
    result = count(times, 5.0)
    assert result.per_second == [sum(second <= moment < second + 1 for moment in times) for second in range(5)]
    assert (result.acknowledged, result.measured) == (5000, sum(result.per_second))
