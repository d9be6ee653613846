"""The learner: what it fetches in which order, and what it does when there is little room."""

from __future__ import annotations

from typing import Any

import pytest

from fastpaxos.testing import LoneReplica, batch
from fastpaxos_core.ballot import pack_ballot
from fastpaxos_core.block import build_block

BALLOT = pack_ballot(1, 2)
HIGHER = pack_ballot(2, 3)


def block(text: str, count: int = 1) -> bytes:
    return build_block([f"{text}{number}".encode() for number in range(count)], 9, 1)


def learn(lone: LoneReplica, fetch: dict[str, Any], entries: list[dict[str, Any]], commit_index: int) -> None:
    """Answer a fetch with committed batches."""
    committed = [dict(entry, flags=1) for entry in entries]
    lone.receive(fetch["to"], "learn", 0, committed, request_id=fetch["request_id"], commit_index=commit_index)


def rotten_replica() -> LoneReplica:
    """Restarted with slot 1 committed; its only record is rotten."""
    lone = LoneReplica()
    lone.receive(2, "accept", BALLOT, [batch(1, block("one"), BALLOT)])
    assert lone.begin_write()
    assert lone.writing is not None
    name, offset = lone.writing.segment_name, lone.writing.offset
    lone.end_write()
    lone.receive(2, "commit", BALLOT, commit_index=1)
    lone.receive(3, "prepare", HIGHER, slot_begin=2)
    lone.sync()
    lone.disk.corrupt(name, offset + 64 + 48 + 41)
    lone.crash()
    assert lone.replica.commit_index == 1
    return lone


def test_a_repair_that_nobody_can_give_takes_turns_with_catching_up() -> None:
    """A rotten record that no peer has either was asked for for ever, and nothing new was fetched in between."""
    lone = rotten_replica()
    lone.receive(3, "heartbeat", HIGHER, commit_index=6)
    values = {slot: batch(slot, block(f"v{slot}"), HIGHER) for slot in range(2, 7)}
    asked = []
    for _ in range(40):
        lone.apply()
        for fetch in lone.sent("fetch"):
            asked.append(fetch["slot_begin"])
            value = values.get(fetch["slot_begin"])
            learn(lone, fetch, [value] if value else [], 6)
        lone.sync()
        lone.tick(100)
    assert lone.replica.commit_index == 6
    assert set(asked) == set(range(1, 7))
    # Slot 1 is still wanted, and applied as soon as a peer gives it.
    assert asked.count(1) > 2
    assert lone.replica.applied_index == 0
    for _ in range(4):
        lone.tick(100)
        for fetch in lone.sent("fetch"):
            if fetch["slot_begin"] == 1:
                learn(lone, fetch, [batch(1, block("one"), BALLOT)], 6)
        lone.sync()
        lone.apply()
    assert lone.replica.applied_index == 6


def test_durable_index_stops_at_a_slot_that_was_fetched_late() -> None:
    """Slots do not become durable in slot order: a fetched one was skipped, and durable_index named it too early.

    What leaves memory or is reported as durable everywhere rests on that number.
    """
    lone = LoneReplica()
    lone.receive(2, "accept", BALLOT, [batch(2, block("two"), BALLOT)])
    lone.sync()
    lone.receive(2, "commit", BALLOT, commit_index=2)
    [fetch] = lone.sent("fetch")
    learn(lone, fetch, [batch(1, block("one"), BALLOT)], 2)
    lone.sent()
    assert lone.replica.commit_index == 2
    assert lone.replica.durable_index == 0
    lone.receive(2, "heartbeat", BALLOT, commit_index=2)
    assert [reply["durable_index"] for reply in lone.sent("heartbeat_reply")] == [0]
    lone.sync()
    assert lone.replica.durable_index == 2


@pytest.mark.parametrize("capacity", [16, 32, 100])
def test_a_full_batch_table_leaves_room_for_the_batch_that_closes_a_gap(capacity: int) -> None:
    """Batches accepted above a gap took every entry of the table; the one below them never found a place again."""
    lone = LoneReplica(batch_capacity=capacity)
    values = {slot: batch(slot, block(f"v{slot}"), BALLOT) for slot in range(1, capacity + 10)}
    for slot in range(2, capacity + 10):
        lone.receive(2, "accept", BALLOT, [values[slot]])
    lone.sync()
    assert lone.replica.window.batch_count >= capacity // 2
    lone.receive(2, "heartbeat", BALLOT, commit_index=capacity + 9)
    for _ in range(2 * capacity):
        for fetch in lone.sent("fetch"):
            learn(lone, fetch, [values[fetch["slot_begin"]]], capacity + 9)
        lone.sync()
        lone.apply()
        lone.tick(100)
    assert lone.replica.commit_index == capacity + 9


def test_a_full_batch_table_lets_a_quarter_of_it_through_at_a_time() -> None:
    """One batch came through with each Fetch (seed 81366): a replica that lagged did not catch up in time."""
    lone = LoneReplica(batch_capacity=16, log_memory_bytes=1 << 20)
    values = [batch(slot, block(f"v{slot}"), BALLOT) for slot in range(1, 100)]
    for value in values[60:]:
        lone.receive(2, "accept", BALLOT, [value])
    lone.sync()
    lone.receive(2, "heartbeat", BALLOT, commit_index=60)
    fetches = 0
    for _ in range(100):
        for fetch in lone.sent("fetch"):
            fetches += 1
            learn(lone, fetch, values[fetch["slot_begin"] - 1 : 60], 60)
        lone.sync()
        lone.apply()
        lone.tick(100)
    assert lone.replica.commit_index == 60
    assert fetches <= 60 / 4 + 1
