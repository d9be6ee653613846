"""Phase 1: candidacies that stalled or were given up for nothing, and answers that must not be mixed."""

from __future__ import annotations

from typing import Any

import pytest

from fastpaxos.testing import LoneReplica, batch
from fastpaxos_core.ballot import pack_ballot
from fastpaxos_core.block import build_block, build_noop

OLD = pack_ballot(1, 2)
NEWER = pack_ballot(2, 3)
SLOTS_AHEAD_MAX = 1048576


def block(text: str, count: int = 1) -> bytes:
    return build_block([f"{text}{number}".encode() for number in range(count)], 9, 1)


def proposals(candidate: LoneReplica) -> list[tuple[int, int]]:
    """Slots of what the candidate proposes to node 2 by now."""
    candidate.sync()
    accepts = candidate.sent("accept", to=2)
    return [(entry["slot_begin"], entry["slot_end"]) for accept in accepts for entry in accept["entries"]]


def learn(candidate: LoneReplica, fetch: dict[str, Any], entries: list[dict[str, Any]], commit_index: int) -> None:
    candidate.receive(fetch["to"], "learn", OLD, entries, request_id=fetch["request_id"], commit_index=commit_index)


def test_a_late_part_of_an_older_answer_completes_nothing() -> None:
    """Parts of two answers of one acceptor made one Promise, although the second lists less than the first.

    Between two such parts a batch falls out that may have been chosen. Here the newer answer's part arrives first.
    """
    candidate = LoneReplica()
    values = [batch(slot, block(f"v{slot}"), OLD) for slot in range(1, 5)]
    for slot in (0, 1):
        candidate.receive(2, "accept", OLD, [values[slot]])
    candidate.receive(2, "commit", OLD, commit_index=1)
    ballot = candidate.campaign(NEWER)
    assert candidate.replica.commit_index == 1
    candidate.sent()
    # Of slots 2 to 4 the newer answer lists [2, 3] and [4]; the older one, made at commit index 0, [1, 2] and [3, 4].
    candidate.receive(2, "promise", ballot, values[3:], slot_begin=2, part=1, part_count=2, commit_index=1)
    candidate.receive(2, "promise", ballot, values[:2], slot_begin=2, part=0, part_count=2, commit_index=0)
    assert proposals(candidate) == []
    assert candidate.replica.role == "candidate"
    candidate.receive(2, "promise", ballot, values[1:3], slot_begin=2, part=0, part_count=2, commit_index=1)
    for _ in range(3):
        for fetch in candidate.sent("fetch"):
            learn(candidate, fetch, [value for value in values if value["value_crc"] == fetch["value_crc"]], 1)
            assert fetch["slot_begin"] in (3, 4)
        if candidate.replica.role == "leader":
            break
    assert candidate.replica.role == "leader"
    assert candidate.replica.last_slot == 4


def test_a_value_that_was_committed_and_forgotten_meanwhile_does_not_stall_the_candidate() -> None:
    """The only reporter of a value had committed it and let it go: it can be learned, but no longer asked for by name.

    The plan was made again only when every value was here, which never came.
    """
    candidate = LoneReplica()
    value = batch(1, block("gone"), OLD)
    ballot = candidate.campaign(NEWER)
    candidate.sent()
    candidate.receive(2, "promise", ballot, [value])
    [named] = candidate.sent("fetch")
    assert (named["slot_begin"], named["ballot"]) == (1, OLD)
    # Not here any more; but slot 1 is committed.
    learn(candidate, named, [], 1)
    answered = False
    for fetch in candidate.sent("fetch"):
        if fetch["ballot"] == 0:
            learn(candidate, fetch, [dict(value, flags=1)], 1)
            answered = True
        else:
            learn(candidate, fetch, [], 1)
    assert answered
    assert candidate.replica.commit_index == 1
    assert proposals(candidate) == [(2, 3)]
    assert candidate.replica.role == "leader"


def test_a_candidate_that_learns_over_its_own_stale_value_goes_on() -> None:
    """Learning another value than the one accepted here ended a candidacy, though a candidate has proposed nothing."""
    candidate = LoneReplica()
    candidate.receive(2, "accept", OLD, [batch(1, block("stale"), OLD)])
    ballot = candidate.campaign(NEWER)
    candidate.sent()
    candidate.receive(2, "promise", ballot, commit_index=1)
    [fetch] = candidate.sent("fetch")
    learn(candidate, fetch, [batch(1, block("chosen"), NEWER, flags=1)], 1)
    assert candidate.replica.commit_index == 1
    assert proposals(candidate) == [(2, 3)]
    assert (candidate.replica.role, candidate.replica.ballot) == ("leader", ballot)


def rotten_replica() -> LoneReplica:
    """Restarted on a journal whose second of three writes has a rotten head; slot 3 is accepted, nothing committed."""
    lone = LoneReplica(ring_slots=SLOTS_AHEAD_MAX, window_slots=SLOTS_AHEAD_MAX // 2)
    places = []
    for slot in (1, 2, 3, 4):
        lone.receive(2, "accept", OLD, [batch(slot, block(f"v{slot}"), OLD)])
        assert lone.begin_write()
        assert lone.writing is not None
        places.append((lone.writing.segment_name, lone.writing.offset + 20))
        lone.end_write()
        lone.write_marker()
    lone.disk.corrupt(*places[1])
    lone.crash()
    assert lone.replica.voting
    return lone


def commit_up_to(lone: LoneReplica, slot: int) -> None:
    """Accept and commit everything up to `slot`."""
    for begin in (1, 2, 3, 4):
        lone.receive(2, "accept", OLD, [batch(begin, block(f"v{begin}"), OLD)])
    begin = 5
    while begin <= slot:
        count = min(slot + 1 - begin, 1 << 18)
        lone.receive(2, "accept", OLD, [batch(begin, build_noop(count), OLD)])
        begin += count
        lone.receive(2, "commit", OLD, commit_index=begin - 1)
        lone.sync()
        lone.apply()
    lone.sent()
    assert lone.replica.commit_index == slot


def unknown_of_promise(lone: LoneReplica, ballot: int) -> list[tuple[int, int]]:
    lone.receive(3, "prepare", ballot, slot_begin=1)
    lone.sync()
    [promise] = lone.sent("promise")
    return [(entry["slot_begin"], entry["slot_end"]) for entry in promise["entries"] if entry["flags"]]


def test_what_a_rotten_head_makes_unknown_comes_to_an_end() -> None:
    """An unknown range reached to the end of all slots, and no number of commits could give the node its vote back.

    Nobody accepts further than SLOTS_AHEAD_MAX above its commit index, and the next good write bounds that index.
    """
    lone = rotten_replica()
    assert lone.recovery.unknown == [(1, 3), (5, 1 + SLOTS_AHEAD_MAX)]
    assert unknown_of_promise(lone, NEWER) == lone.recovery.unknown


@pytest.mark.parametrize("with_marker", [False, True])
def test_the_end_of_what_is_unknown_survives_more_starts(with_marker: bool) -> None:
    """The bound came from the last write, which a start carries over, or from a marker: the second start forgot it."""
    lone = LoneReplica()
    lone.receive(2, "accept", OLD, [batch(1, block("lost"), OLD)])
    assert lone.begin_write()
    assert lone.writing is not None
    name, offset = lone.writing.segment_name, lone.writing.offset
    lone.end_write()
    if with_marker:
        assert lone.write_marker()
    else:
        lone.receive(2, "accept", OLD, [batch(2, block("last"), OLD)])
        lone.sync()
    lone.disk.corrupt(name, offset + 20)
    bounds = []
    for _ in range(4):
        lone.crash(survival=1.0)
        assert lone.replica.voting
        bounds.append(lone.recovery.unknown)
    assert bounds[0][-1][1] == 1 + SLOTS_AHEAD_MAX
    assert bounds == bounds[:1] * 4


def test_a_node_counts_again_when_its_commit_index_has_passed_what_was_unknown() -> None:
    """The blind node, together with one other of three, can elect again; before, two of three never could."""
    lone = rotten_replica()
    ballot = lone.campaign(NEWER)
    lone.sent()
    lone.receive(2, "promise", ballot)
    assert proposals(lone) == []
    lone.replica.step_down()
    # As an acceptor of somebody else's ballot it goes on.
    lone = rotten_replica()
    commit_up_to(lone, SLOTS_AHEAD_MAX + 1)
    assert lone.replica.unknown == []
    ballot = lone.campaign(NEWER)
    lone.sent()
    lone.receive(2, "promise", ballot, slot_begin=SLOTS_AHEAD_MAX + 2, commit_index=SLOTS_AHEAD_MAX + 1)
    assert proposals(lone) == [(SLOTS_AHEAD_MAX + 2, SLOTS_AHEAD_MAX + 3)]
    assert unknown_of_promise(lone, pack_ballot(9, 3)) == []


def test_nobody_accepts_beyond_what_a_lost_record_is_assumed_to_hold() -> None:
    """The bound on unknown ranges is only right while every acceptor keeps to it, whatever its ring has room for."""
    lone = LoneReplica(ring_slots=SLOTS_AHEAD_MAX, window_slots=SLOTS_AHEAD_MAX // 2)
    lone.receive(2, "accept", OLD, [batch(SLOTS_AHEAD_MAX, block("last", 1), OLD)])
    assert lone.replica.last_slot == SLOTS_AHEAD_MAX
    lone.receive(2, "accept", OLD, [batch(SLOTS_AHEAD_MAX + 1, block("beyond", 1), OLD)])
    assert lone.replica.last_slot == SLOTS_AHEAD_MAX
