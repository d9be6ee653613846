"""fastpaxos.driver: the order of duty, over a core and a storage that record what is asked of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from fastpaxos.driver import INLINE_SYNC_NS_MAX, INLINE_WRITE_BYTES_MAX, Driver
from fastpaxos.hashchain import HashChain
from fastpaxos.statemachine import ApplyContext, StateMachine
from fastpaxos_core.block import BlockView, build_block
from fastpaxos_core.errors import InvariantError


def make_write(ticket: int, nbytes: int = 512, new_segment: object = None) -> SimpleNamespace:
    return SimpleNamespace(ticket=ticket, nbytes=nbytes, new_segment=new_segment)


class FakeReplica:
    """Gives out what a test put in, and writes down what the driver does."""

    def __init__(self, log: list[Any]) -> None:
        self.log = log
        self.writes: list[Any] = []
        self.messages: list[Any] = []
        self.after_sync: list[Any] = []
        self.reads: list[Any] = []
        self.batches: list[Any] = []
        self.marker: Any = None
        self.journal = SimpleNamespace(has_pending=False)
        self.problem: Exception | None = None

    def take_write(self) -> Any:
        if self.problem is not None:
            raise self.problem
        return self.writes.pop(0) if self.writes else None

    def take_marker(self) -> Any:
        marker, self.marker = self.marker, None
        return marker

    def take_messages(self) -> list[Any]:
        messages, self.messages = self.messages, []
        return messages

    def take_reads(self) -> list[Any]:
        reads, self.reads = self.reads, []
        return reads

    def synced(self, ticket: int) -> None:
        self.log.append(("synced", ticket))
        self.messages += self.after_sync
        self.after_sync = []

    def journal_data(self, read: Any, data: bytes) -> None:
        self.log.append(("data", read, data))

    def has_work(self) -> bool:
        return bool(self.batches)

    def next_batch(self) -> Any:
        return self.batches[0] if self.batches else None

    def complete_batch(self, results: bytes) -> None:
        self.log.append(("applied", self.batches.pop(0).slot_begin))


class FakeStorage:
    def __init__(self, log: list[Any]) -> None:
        self.log = log
        self.recent_sync_ns = 0
        self.error: OSError | None = None
        self.under_way: list[tuple[int, Callable[[OSError | None], None]]] = []
        self.data: bytes | Exception = b"data"

    def write_inline(self, write: Any) -> None:
        self.log.append(("inline", write.ticket))
        if self.error is not None:
            raise self.error

    def write(self, write: Any, done: Callable[[OSError | None], None]) -> None:
        self.log.append(("thread", write.ticket))
        self.under_way.append((write.ticket, done))

    def read(self, read: Any) -> bytes:
        if isinstance(self.data, Exception):
            raise self.data
        return self.data


class FakeService:
    def __init__(self, log: list[Any]) -> None:
        self.log = log

    def answer_blocks(self) -> None:
        self.log.append("blocks")

    def answer_queries(self) -> None:
        self.log.append("queries")

    def flush(self) -> None:
        self.log.append("flush")


class Peer:
    def __init__(self, log: list[Any], node_id: int) -> None:
        self.log, self.node_id = log, node_id

    def send(self, buffers: list[bytes]) -> None:
        self.log.append(("send", self.node_id, *buffers))


class World:
    def __init__(self, machine: StateMachine | None = None) -> None:
        self.log: list[Any] = []
        self.now_ns = 0
        self.errors: list[BaseException] = []
        self.replica, self.storage, self.service = FakeReplica(self.log), FakeStorage(self.log), FakeService(self.log)
        self.executor = ThreadPoolExecutor(1)
        self.driver = Driver(
            self.replica,  # type: ignore[arg-type]
            self.storage,
            machine or HashChain(),
            self.service,  # type: ignore[arg-type]
            {2: Peer(self.log, 2)},
            apply_slice_ms=2,
            loop=asyncio.get_running_loop(),
            read_executor=self.executor,
            clock_ns=self.clock_ns,
            failed=self.errors.append,
        )

    def clock_ns(self) -> int:
        return self.now_ns

    async def turn(self, count: int = 1) -> list[Any]:
        """Wake the driver, let `count` turns pass, and return what was done besides answering."""
        self.driver.wake()
        self.driver.wake()
        for _ in range(count):
            await asyncio.sleep(0)
        return self.done()

    def done(self) -> list[Any]:
        log = [entry for entry in self.log if isinstance(entry, tuple)]
        self.log.clear()
        return log

    def add_batch(self, slot_begin: int, commands: list[bytes]) -> None:
        view = BlockView(build_block(commands, 5, 1))
        self.replica.batches.append(SimpleNamespace(view=view, slot_begin=slot_begin, now_ns=0))


async def test_one_wake_is_one_turn_in_the_order_of_duty() -> None:
    world = World()
    world.replica.writes = [make_write(1, nbytes=1 << 20)]
    world.replica.messages = [(2, [b"accept"]), (3, [b"to nobody"])]
    world.add_batch(1, [b"command"])
    world.driver.wake()
    world.driver.wake()
    await asyncio.sleep(0)
    assert world.log == [("thread", 1), ("send", 2, b"accept"), ("applied", 1), "blocks", "queries", "flush"]
    world.log.clear()
    await asyncio.sleep(0)
    assert world.log == []


async def test_a_small_write_on_a_quick_disk_is_synced_here_after_the_accepts_have_left() -> None:
    world = World()
    world.replica.writes = [make_write(1)]
    world.replica.messages = [(2, [b"accept"])]
    world.replica.after_sync = [(2, [b"accepted"])]
    assert await world.turn() == [
        ("send", 2, b"accept"),
        ("inline", 1),
        ("synced", 1),
        ("send", 2, b"accepted"),
    ]


@pytest.mark.parametrize("why", ["large", "slow disk", "new segment"])
async def test_other_writes_go_to_the_thread_and_their_end_takes_a_turn(why: str) -> None:
    world = World()
    nbytes = INLINE_WRITE_BYTES_MAX + (512 if why == "large" else 0)
    world.storage.recent_sync_ns = INLINE_SYNC_NS_MAX - (0 if why == "slow disk" else 1)
    world.replica.writes = [make_write(7, nbytes, ("name", b"", 0) if why == "new segment" else None)]
    world.replica.after_sync = [(2, [b"promise"])]
    world.now_ns = 10
    assert await world.turn() == [("thread", 7)]
    world.now_ns = 25
    assert world.driver.write_stalled_ns(world.now_ns) == 15
    ((_, done),) = world.storage.under_way
    done(None)
    assert world.done() == [("synced", 7), ("send", 2, b"promise")]
    assert world.driver.write_stalled_ns(world.now_ns) == 0


async def test_what_became_pending_during_an_inline_sync_is_written_in_the_next_turn() -> None:
    world = World()
    world.replica.writes = [make_write(1), make_write(2)]
    world.replica.journal.has_pending = True
    world.driver.wake()
    await asyncio.sleep(0)
    world.replica.journal.has_pending = False
    assert world.done() == [("inline", 1), ("synced", 1)]
    await asyncio.sleep(0)
    assert world.done() == [("inline", 2), ("synced", 2)]
    await asyncio.sleep(0)
    assert world.done() == []


@pytest.mark.parametrize("inline", [True, False])
async def test_a_failed_write_stops_everything(inline: bool) -> None:
    world = World()
    problem = OSError(5, "EIO")
    world.replica.writes = [make_write(1, 512 if inline else 1 << 20), make_write(2)]
    world.storage.error = problem
    await world.turn()
    if not inline:
        world.storage.under_way[0][1](problem)
    assert world.errors == [problem]
    world.done()
    world.replica.messages = [(2, [b"never"])]
    assert await world.turn(3) == []
    assert world.errors == [problem]


async def test_a_broken_invariant_stops_everything_and_is_reported_once() -> None:
    world = World()
    world.replica.problem = InvariantError("two values for one slot")
    await world.turn(3)
    assert world.errors == [world.replica.problem]


async def test_the_completion_of_a_write_after_the_stop_is_ignored() -> None:
    world = World()
    world.replica.writes = [make_write(1, 1 << 20)]
    assert await world.turn() == [("thread", 1)]
    world.driver.stop()
    world.storage.under_way[0][1](None)
    world.storage.under_way[0][1](OSError(5, "EIO"))
    assert world.done() == []
    assert world.errors == []


async def read_back(world: World, data: bytes | Exception, *, is_corrupt: bool = False) -> None:
    """Let the core ask for one piece of the journal, which the storage answers with `data`, and wait for the end."""
    world.storage.data = data
    world.replica.reads = [SimpleNamespace(slot=9, is_corrupt=is_corrupt, segment_name="segment", offset=512)]
    await world.turn()
    async with asyncio.timeout(20):
        while not world.log and not world.errors:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_journal_reads_run_in_threads_and_unreadable_pieces_are_empty(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    for data, expected in ((b"bytes", b"bytes"), (OSError(5, "EIO"), b"")):
        await read_back(world, data)
        ((what, read, given),) = world.done()
        assert (what, read.slot, given) == ("data", 9, expected)
    assert caplog.text.count("slot 9") == 1
    assert world.errors == []
    await read_back(world, ZeroDivisionError("bug"))
    assert isinstance(world.errors[0], ZeroDivisionError)


async def test_a_corrupt_place_is_told_once_per_slot(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    for _ in range(3):
        await read_back(world, b"bytes", is_corrupt=True)
        world.done()
    assert caplog.text.count("the record is corrupt") == 1


class Ticking(StateMachine):
    """Each command takes 1 ms of the test's clock."""

    def __init__(self) -> None:
        self.world: World | None = None
        self.applied = 0

    def apply(self, command: bytes, context: ApplyContext) -> bytes:
        assert self.world is not None
        self.world.now_ns += 1_000_000
        self.applied += 1
        return b""


async def test_apply_is_cut_into_slices_and_queries_wait_for_the_end_of_the_batch() -> None:
    machine = Ticking()
    world = World(machine)
    machine.world = world
    world.add_batch(1, [b"x"] * 7)
    world.add_batch(8, [b"y"])
    world.driver.wake()
    await asyncio.sleep(0)
    assert 2 <= machine.applied < 7
    assert world.driver.is_mid_batch
    assert world.log == ["blocks", "flush"]
    for _ in range(10):
        await asyncio.sleep(0)
    assert machine.applied == 8
    assert not world.driver.is_mid_batch
    assert [entry for entry in world.log if isinstance(entry, tuple)] == [("applied", 1), ("applied", 8)]
    assert world.log[-2:] == ["queries", "flush"]


async def test_an_error_of_the_process_in_the_machine_stops_everything() -> None:
    class Exhausted(StateMachine):
        def apply(self, command: bytes, context: ApplyContext) -> bytes:
            raise MemoryError

    world = World(Exhausted())
    world.add_batch(1, [b"x"])
    await world.turn()
    assert isinstance(world.errors[0], MemoryError)


async def test_the_marker_is_written_after_a_whole_tick_without_a_write() -> None:
    world = World()
    world.replica.writes = [make_write(1)]
    world.replica.marker = make_write(2)
    await world.turn()
    world.driver.write_marker()
    assert world.done() == []
    world.driver.write_marker()
    assert world.done() == [("inline", 2)]
    world.driver.write_marker()
    assert world.done() == []
    world.replica.writes = [make_write(3, 1 << 20)]
    await world.turn()
    world.replica.marker = make_write(4)
    for _ in range(3):
        world.driver.write_marker()
    assert world.done() == [], "nothing may overtake the write that is under way"
