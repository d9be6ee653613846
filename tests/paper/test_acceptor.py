"""Rule 5.1, the acceptor: what it may promise and accept, what it says, and what it remembers.

Each docstring paraphrases one sentence of the rule. Paper: Lamport, "Paxos Made Simple" (2001), P1 and P1a.
"""

from __future__ import annotations

from typing import Any

import pytest

from fastpaxos.testing import LoneReplica, batch
from fastpaxos_core.ballot import pack_ballot
from fastpaxos_core.block import build_block, build_noop
from fastpaxos_core.errors import FrameError, InvariantError

LOW = pack_ballot(1, 2)
MIDDLE = pack_ballot(2, 3)
HIGH = pack_ballot(3, 2)


def block(text: str, count: int = 1) -> bytes:
    return build_block([f"{text}{number}".encode() for number in range(count)], 9, 1)


def accepted_names(messages: list[dict[str, Any]]) -> list[tuple[int, int, int]]:
    return [
        (entry["slot_begin"], entry["slot_end"], entry["value_crc"])
        for message in messages
        for entry in message["entries"]
    ]


def name_of(entry: dict[str, Any]) -> tuple[int, int, int]:
    return entry["slot_begin"], entry["slot_end"], entry["value_crc"]


def test_51_a_prepare_above_the_promise_is_promised() -> None:
    """5.1: Prepare(b) is promised if b is above what was promised."""
    acceptor = LoneReplica()
    acceptor.receive(2, "prepare", LOW, slot_begin=1)
    acceptor.sync()
    [promise] = acceptor.sent("promise")
    assert (promise["ballot"], promise["to"], promise["proposer_boot"], promise["entries"]) == (LOW, 2, 1, [])
    assert acceptor.replica.promised_ballot == LOW


def test_51_a_prepare_below_the_promise_is_refused_with_the_higher_ballot() -> None:
    """5.1: the promised ballot never falls; the Nack names it."""
    acceptor = LoneReplica()
    acceptor.receive(3, "prepare", MIDDLE, slot_begin=1)
    acceptor.sync()
    acceptor.sent()
    acceptor.receive(2, "prepare", LOW, slot_begin=1)
    [nack] = acceptor.sent()
    assert (nack["message"], nack["ballot"], nack["promised_ballot"]) == ("nack", LOW, MIDDLE)
    assert acceptor.replica.promised_ballot == MIDDLE


def test_51_a_repeated_prepare_of_the_same_boot_is_promised_again() -> None:
    """5.1: b == promised is promised again to the same boot of the same proposer."""
    acceptor = LoneReplica()
    for _ in range(2):
        acceptor.receive(2, "prepare", LOW, slot_begin=1)
        acceptor.sync()
        assert len(acceptor.sent("promise")) == 1


def test_51_a_repeated_prepare_of_another_boot_is_refused() -> None:
    """5.1: b == promised from another boot of the proposer is a reused ballot, and not promised."""
    acceptor = LoneReplica()
    acceptor.receive(2, "prepare", LOW, slot_begin=1)
    acceptor.sync()
    acceptor.sent()
    acceptor.replica.peer_disconnected(2)
    acceptor.replica.peer_connected(2, 2)
    acceptor.receive(2, "prepare", LOW, boot=2, slot_begin=1)
    acceptor.sync()
    assert [message["message"] for message in acceptor.sent()] == ["nack"]


def test_51_a_promise_survives_a_crash() -> None:
    """5.1: the promised ballot never falls, restarts included."""
    acceptor = LoneReplica()
    acceptor.receive(3, "prepare", MIDDLE, slot_begin=1)
    acceptor.sync()
    acceptor.crash()
    assert acceptor.replica.promised_ballot == MIDDLE
    acceptor.receive(2, "prepare", LOW, slot_begin=1)
    acceptor.sync()
    assert [message["message"] for message in acceptor.sent()] == ["nack"]


def test_51_a_promise_that_was_not_sent_may_be_forgotten() -> None:
    """5.1 rests on the disk alone: an unsynced promise that nobody heard of is gone after a crash, and may be."""
    acceptor = LoneReplica()
    acceptor.receive(3, "prepare", MIDDLE, slot_begin=1)
    acceptor.begin_write()
    assert acceptor.sent("promise") == []
    acceptor.crash()
    assert acceptor.replica.promised_ballot == 0


def test_51_only_ballots_at_or_above_the_promise_are_accepted() -> None:
    """5.1: only ballots >= the promise are accepted."""
    acceptor = LoneReplica()
    acceptor.receive(3, "prepare", MIDDLE, slot_begin=1)
    acceptor.sync()
    acceptor.sent()
    acceptor.receive(2, "accept", LOW, [batch(1, block("a"), LOW)])
    acceptor.sync()
    assert [(message["message"], message["ballot"]) for message in acceptor.sent()] == [("nack", LOW)]
    assert acceptor.replica.window.batches() == []
    entry = batch(1, block("b"), MIDDLE)
    acceptor.receive(3, "accept", MIDDLE, [entry])
    acceptor.sync()
    assert accepted_names(acceptor.sent("accepted")) == [name_of(entry)]


def test_51_accepting_raises_the_promise() -> None:
    """5.1: accepting raises the promise, without any Prepare, and durably."""
    acceptor = LoneReplica()
    acceptor.receive(3, "accept", MIDDLE, [batch(1, block("a"), MIDDLE)])
    acceptor.sync()
    acceptor.crash()
    assert acceptor.replica.promised_ballot == MIDDLE
    acceptor.receive(2, "accept", LOW, [batch(1, block("b"), LOW)])
    assert [message["message"] for message in acceptor.sent()] == ["nack"]


def test_51_promised_and_accepted_ballots_are_different_things() -> None:
    """5.1: a batch keeps the ballot in which it was accepted when a higher one is promised."""
    acceptor = LoneReplica()
    entry = batch(1, block("a"), LOW)
    acceptor.receive(2, "accept", LOW, [entry])
    acceptor.receive(2, "prepare", HIGH, slot_begin=1)
    acceptor.sync()
    [promise] = acceptor.sent("promise")
    assert promise["ballot"] == HIGH
    assert [(item["ballot"], *name_of(item)) for item in promise["entries"]] == [(LOW, *name_of(entry))]
    acceptor.crash()
    assert [item[2] for item in acceptor.replica.window.batches()] == [LOW]


def test_51_an_accept_below_commit_index_is_answered_committed() -> None:
    """5.1: an Accept at or below commit_index is answered with commit_index, and never as accepted."""
    acceptor = LoneReplica()
    entry = batch(1, block("a"), LOW)
    acceptor.receive(2, "accept", LOW, [entry])
    acceptor.receive(2, "commit", LOW, commit_index=1)
    acceptor.sync()
    acceptor.sent()
    acceptor.receive(3, "accept", MIDDLE, [batch(1, block("b"), MIDDLE)])
    acceptor.sync()
    [answer] = acceptor.sent("accepted")
    assert (answer["ballot"], answer["commit_index"], answer["entries"]) == (MIDDLE, 1, [])


def test_51_a_newer_batch_drops_whole_the_older_ones_that_it_overlaps() -> None:
    """5.1: what a new batch overlaps goes as a whole, so that accepted batches never half exist."""
    acceptor = LoneReplica()
    older = [batch(1, block("a", 3), LOW), batch(4, block("b", 2), LOW), batch(6, block("c"), LOW)]
    acceptor.receive(2, "accept", LOW, older)
    newer = batch(3, block("d", 2), MIDDLE)
    acceptor.receive(3, "accept", MIDDLE, [newer])
    assert [(item[0], item[1]) for item in acceptor.replica.window.batches()] == [(3, 5), (6, 7)]
    acceptor.sync()
    acceptor.sent()
    acceptor.receive(2, "prepare", HIGH, slot_begin=1)
    acceptor.sync()
    [promise] = acceptor.sent("promise")
    assert [name_of(item) for item in promise["entries"]] == [name_of(newer), name_of(older[2])]


def test_51_recovery_replays_the_dropping() -> None:
    """5.1: after a crash the same batches stand and the same are gone."""
    acceptor = LoneReplica()
    acceptor.receive(2, "accept", LOW, [batch(1, block("a", 3), LOW), batch(4, block("b", 2), LOW)])
    acceptor.sync()
    acceptor.receive(3, "accept", MIDDLE, [batch(3, block("d", 2), MIDDLE)])
    acceptor.sync()
    before = acceptor.replica.window.batches()
    acceptor.crash()
    assert [item[:4] for item in acceptor.replica.window.batches()] == [item[:4] for item in before]


def test_51_a_learned_batch_drops_what_it_overlaps_too() -> None:
    """5.1: learning displaces like accepting."""
    acceptor = LoneReplica()
    acceptor.receive(2, "accept", LOW, [batch(2, block("a", 3), LOW)])
    acceptor.receive(3, "heartbeat", MIDDLE, commit_index=3)
    acceptor.sync()
    [fetch] = acceptor.sent("fetch")
    learned = [batch(1, build_noop(2), MIDDLE, flags=1), batch(3, build_noop(1), MIDDLE, flags=1)]
    acceptor.receive(3, "learn", MIDDLE, learned, request_id=fetch["request_id"], commit_index=3)
    assert acceptor.replica.commit_index == 3
    assert [(item[0], item[1]) for item in acceptor.replica.window.batches()] == [(1, 3), (3, 4)]


def test_51_two_values_for_one_ballot_and_slot_stop_the_node() -> None:
    """5.1: two different values for one (ballot, slot) are an InvariantError."""
    acceptor = LoneReplica()
    acceptor.receive(2, "accept", LOW, [batch(1, block("a"), LOW)])
    with pytest.raises(InvariantError, match="two values"):
        acceptor.receive(2, "accept", LOW, [batch(1, block("b"), LOW)])


@pytest.mark.parametrize(("begin", "count"), [(1, 3), (2, 2), (3, 1), (2, 1)])
def test_51_overlapping_batches_of_one_ballot_stop_the_node(begin: int, count: int) -> None:
    """5.2, seen by the acceptor: a ballot never proposes two overlapping batches."""
    acceptor = LoneReplica()
    acceptor.receive(2, "accept", LOW, [batch(2, block("a", 2), LOW)])
    with pytest.raises(InvariantError):
        acceptor.receive(2, "accept", LOW, [batch(begin, block("b", count), LOW)])


def test_51_a_promise_lists_every_accepted_batch_from_the_slot_asked_for() -> None:
    """5.2, acceptor side: commit_index and (range, ballot, value CRC) of everything accepted above it."""
    acceptor = LoneReplica()
    entries = [batch(slot, block(f"v{slot}"), LOW) for slot in (1, 2, 4, 9)]
    acceptor.receive(2, "accept", LOW, entries, commit_index=1)
    acceptor.receive(2, "prepare", HIGH, slot_begin=1)
    acceptor.sync()
    [promise] = acceptor.sent("promise")
    assert promise["commit_index"] == 1
    assert [name_of(item) for item in promise["entries"]] == [name_of(entry) for entry in entries[1:]]


def test_51_a_batch_that_straddles_the_slot_asked_for_is_listed_whole() -> None:
    """5.1 and 5.2: batches are whole; one that begins below the candidate's slot still reaches above it."""
    acceptor = LoneReplica()
    entry = batch(1, block("a", 4), LOW)
    acceptor.receive(2, "accept", LOW, [entry])
    acceptor.receive(2, "prepare", HIGH, slot_begin=3)
    acceptor.sync()
    [promise] = acceptor.sent("promise")
    assert [name_of(item) for item in promise["entries"]] == [name_of(entry)]


def test_51_a_long_promise_comes_in_parts() -> None:
    """5.2: a Promise lists what was accepted in parts, which together are complete."""
    count = 5000
    acceptor = LoneReplica(window_slots=8192, ring_slots=32768)
    entries = [batch(slot, build_noop(1), LOW, timestamp_ns=slot) for slot in range(1, count + 1)]
    acceptor.receive(2, "accept", LOW, entries)
    acceptor.receive(2, "prepare", HIGH, slot_begin=1)
    acceptor.sync()
    promises = acceptor.sent("promise")
    assert len(promises) > 1
    assert [promise["part"] for promise in promises] == list(range(len(promises)))
    assert {promise["part_count"] for promise in promises} == {len(promises)}
    assert [name_of(item) for promise in promises for item in promise["entries"]] == [name_of(item) for item in entries]


def test_51_an_accept_beyond_the_ring_is_met_with_silence() -> None:
    """Design, data: an acceptor that is asked beyond its ring stays silent, and fetches."""
    acceptor = LoneReplica(window_slots=8, ring_slots=16, commands_per_block_max=8)
    acceptor.receive(2, "accept", LOW, [batch(17, block("a"), LOW)], commit_index=16)
    acceptor.sync()
    assert accepted_names(acceptor.sent("accepted")) == []
    acceptor.tick(600)
    assert acceptor.replica.window.batches() == []


def test_51_a_ballot_of_another_node_is_refused_as_a_bad_frame() -> None:
    """A ballot belongs to one proposer: nobody prepares or proposes in another node's ballot."""
    acceptor = LoneReplica()
    with pytest.raises(FrameError):
        acceptor.receive(3, "prepare", LOW, slot_begin=1)
    with pytest.raises(FrameError):
        acceptor.receive(3, "accept", LOW, [batch(1, block("a"), LOW)])
    with pytest.raises(FrameError):
        acceptor.receive(3, "heartbeat", LOW)
    with pytest.raises(FrameError):
        acceptor.receive(3, "commit", LOW)


@pytest.mark.parametrize("field", ["value_crc", "slot_end", "block_bytes", "timestamp_ns", "ballot", "flags"])
def test_51_a_batch_that_contradicts_its_block_is_refused(field: str) -> None:
    """Design, data: the value is named by slots, timestamp and block; what does not fit is no batch."""
    acceptor = LoneReplica()
    entry = batch(1, block("a"), LOW)
    entry[field] += 1
    with pytest.raises(FrameError):
        acceptor.receive(2, "accept", LOW, [entry])
    assert acceptor.replica.window.batches() == []


def test_51_frames_of_another_boot_than_the_connected_one_are_ignored() -> None:
    """5.2: messages of another boot are ignored."""
    acceptor = LoneReplica()
    acceptor.receive(2, "prepare", LOW, boot=2, slot_begin=1)
    acceptor.sync()
    assert acceptor.sent() == []
    assert acceptor.replica.promised_ballot == 0
