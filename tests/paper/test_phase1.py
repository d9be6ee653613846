"""Rule 5.2, Phase 1: from a new ballot to the values that a new leader must propose.

Each docstring paraphrases one sentence of the rule. Paper: Lamport, "Paxos Made Simple" (2001), section 2.2 and 3.
"""

from __future__ import annotations

from typing import Any

import pytest

from fastpaxos.testing import LoneReplica, batch
from fastpaxos_core.ballot import pack_ballot, unpack_ballot
from fastpaxos_core.block import BlockView, build_block, build_noop
from fastpaxos_core.errors import FrameError, InvariantError
from fastpaxos_core.wire import ReplyStatus

OLD = pack_ballot(1, 2)
OLDER = pack_ballot(1, 1)
NEWER = pack_ballot(2, 3)
NOOP = 1


def block(text: str, count: int = 1) -> bytes:
    return build_block([f"{text}{number}".encode() for number in range(count)], 9, 1)


def place(entry: dict[str, Any]) -> tuple[int, int, bytes]:
    return entry["slot_begin"], entry["slot_end"], entry["block"]


def proposed(candidate: LoneReplica, to: int = 2) -> list[dict[str, Any]]:
    candidate.sync()
    return [entry for message in candidate.sent("accept", to=to) for entry in message["entries"]]


def answer_fetches(candidate: LoneReplica, values: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give the candidate the bytes of values that it asks for; return all that it sent."""
    messages: list[dict[str, Any]] = []
    while sent := candidate.sent():
        messages += sent
        for fetch in sent:
            if fetch["message"] == "fetch" and fetch["ballot"]:
                found = [value for value in values if value["value_crc"] == fetch["value_crc"]]
                candidate.receive(fetch["to"], "learn", OLD, found[:1], request_id=fetch["request_id"])
    return messages


def proposals_to(messages: list[dict[str, Any]], to: int = 2) -> list[dict[str, Any]]:
    accepts = [message for message in messages if message["message"] == "accept" and message["to"] == to]
    return [entry for message in accepts for entry in message["entries"]]


def recovery_of(candidate: LoneReplica, reports: dict[int, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Run a candidacy against these reports by peer; return what is proposed to node 2, in order."""
    ballot = candidate.campaign(NEWER)
    candidate.sent()
    for peer, entries in reports.items():
        candidate.receive(peer, "promise", ballot, entries)
    messages = answer_fetches(candidate, [entry for entries in reports.values() for entry in entries])
    assert {entry["ballot"] for entry in proposals_to(messages)} == {ballot}
    return proposals_to(messages)


def test_52_a_ballot_is_new_above_everything_seen_and_names_its_node() -> None:
    """5.2: a process leads only in a ballot that it created since it started, above every ballot it knows."""
    candidate = LoneReplica()
    candidate.receive(3, "prepare", NEWER, slot_begin=1)
    ballot = candidate.campaign()
    assert unpack_ballot(ballot) == (3, 1)
    assert {message["ballot"] for message in candidate.sent("prepare")} == {ballot}


def test_52_a_ballot_is_not_reused_after_a_crash() -> None:
    """5.2: above every ballot in its journal, so never one of its own past."""
    candidate = LoneReplica()
    first = candidate.campaign()
    candidate.crash()
    assert candidate.replica.role == "follower"
    assert candidate.campaign() > first


def test_52_prepare_waits_for_the_candidates_own_durable_promise() -> None:
    """Design, core contract: Prepare rests on the candidate's own promise, and is held until that is on disk."""
    candidate = LoneReplica()
    candidate.replica.campaign()
    assert candidate.begin_write()
    assert candidate.sent() == []
    candidate.end_write()
    assert [message["to"] for message in candidate.sent("prepare")] == [2, 3]


def test_52_phase_1_asks_for_all_slots_above_commit_index() -> None:
    """5.2: once per leadership, for all slots above commit_index."""
    candidate = LoneReplica()
    candidate.receive(2, "accept", OLD, [batch(1, block("a", 3), OLD)])
    candidate.receive(2, "commit", OLD, commit_index=3)
    candidate.campaign()
    assert {message["slot_begin"] for message in candidate.sent("prepare")} == {4}


def test_52_without_a_quorum_of_promises_nothing_is_proposed() -> None:
    """5.2 and 5.4: a Phase 1 quorum must have promised."""
    candidate = LoneReplica(members=(1, 2, 3, 4, 5))
    ballot = candidate.campaign(NEWER)
    candidate.receive(2, "promise", ballot)
    assert proposed(candidate) == []
    candidate.receive(3, "promise", ballot)
    assert len(proposed(candidate)) == 1


def test_52_each_acceptor_counts_once() -> None:
    """5.2: a promise that arrives twice is one promise."""
    candidate = LoneReplica(members=(1, 2, 3, 4, 5))
    ballot = candidate.campaign(NEWER)
    for _ in range(3):
        candidate.receive(2, "promise", ballot)
    assert proposed(candidate) == []


@pytest.mark.parametrize("fields", [{"ballot": OLD}, {"proposer_boot": 7}, {"slot_begin": 5}])
def test_52_promises_of_another_ballot_or_boot_are_ignored(fields: dict[str, int]) -> None:
    """5.2: replies of another ballot or boot are ignored."""
    candidate = LoneReplica()
    ballot = candidate.campaign(NEWER)
    candidate.receive(2, "promise", fields.pop("ballot", ballot), **fields)
    assert proposed(candidate) == []
    candidate.receive(2, "promise", ballot)
    assert len(proposed(candidate)) == 1


def test_52_a_promise_counts_when_all_its_parts_are_here() -> None:
    """5.2: a Promise comes in parts, and is nothing before the last one."""
    candidate = LoneReplica()
    ballot = candidate.campaign(NEWER)
    candidate.sent()
    candidate.receive(2, "promise", ballot, part=1, part_count=2)
    candidate.receive(2, "promise", ballot, part=1, part_count=2)
    assert proposed(candidate) == []
    candidate.receive(2, "promise", ballot, part=0, part_count=2)
    assert len(proposed(candidate)) == 1


def test_52_parts_of_two_different_answers_are_not_one_promise() -> None:
    """5.2: an acceptor that committed something between two answers cuts its list differently; parts do not mix."""
    candidate = LoneReplica()
    ballot = candidate.campaign(NEWER)
    candidate.sent()
    values = [batch(slot, block(f"v{slot}"), OLD) for slot in range(1, 5)]
    # The first answer is [1, 2] + [3, 4]; the second, after slot 1 was committed, is [2, 3] + [4].
    candidate.receive(2, "promise", ballot, values[:2], part=0, part_count=2, commit_index=0)
    candidate.receive(2, "promise", ballot, values[3:], part=1, part_count=2, commit_index=1)
    for fetch in candidate.sent("fetch"):
        candidate.receive(2, "learn", OLD, [dict(values[0], flags=1)], request_id=fetch["request_id"], commit_index=1)
    assert proposals_to(answer_fetches(candidate, values)) == []
    candidate.receive(2, "promise", ballot, values[1:3], part=0, part_count=2, commit_index=1)
    proposals = proposals_to(answer_fetches(candidate, values))
    assert [place(entry) for entry in proposals] == [place(value) for value in values[1:]]


def test_52_the_candidate_fetches_committed_batches_first() -> None:
    """5.2: first it fetches committed batches up to the highest commit_index promised."""
    candidate = LoneReplica()
    ballot = candidate.campaign(NEWER)
    candidate.sent()
    known = [batch(1, block("a", 2), OLD, flags=1), batch(3, block("b"), OLD, flags=1)]
    candidate.receive(2, "promise", ballot, commit_index=3)
    [fetch] = candidate.sent()
    assert (fetch["message"], fetch["ballot"], fetch["slot_begin"], fetch["to"]) == ("fetch", 0, 1, 2)
    candidate.receive(2, "learn", OLD, known, request_id=fetch["request_id"], commit_index=3)
    assert candidate.replica.commit_index == 3
    [first] = proposed(candidate)
    assert first["slot_begin"] == 4


def test_52_the_value_of_the_highest_ballot_wins() -> None:
    """5.2: reported batches are taken from the highest ballot down."""
    low, high = batch(1, block("low"), OLDER), batch(1, block("high"), OLD)
    for reports in ({2: [low], 3: [high]}, {2: [high], 3: [low]}):
        candidate = LoneReplica(members=(1, 2, 3, 4, 5))
        assert [place(entry) for entry in recovery_of(candidate, reports)] == [place(high)]


def test_52_the_candidates_own_accepted_batches_count() -> None:
    """5.2: the candidate is an acceptor like the others."""
    candidate = LoneReplica()
    own = batch(1, block("own"), NEWER)
    candidate.receive(3, "accept", NEWER, [own])
    candidate.sync()
    candidate.sent()
    assert [place(entry) for entry in recovery_of(candidate, {2: [batch(1, block("other"), OLD)]})] == [place(own)]


def test_52_a_reproposed_value_keeps_slots_timestamp_and_bytes() -> None:
    """Design, data: (slots, timestamp, block) is the value; a later leader proposes it unchanged."""
    value = batch(1, block("v", 3), OLD, timestamp_ns=123)
    [entry] = recovery_of(LoneReplica(), {2: [value]})
    assert {key: entry[key] for key in ("slot_begin", "slot_end", "timestamp_ns", "value_crc", "block")} == {
        key: value[key] for key in ("slot_begin", "slot_end", "timestamp_ns", "value_crc", "block")
    }


def test_52_an_overlapping_batch_of_a_lower_ballot_is_dropped_whole() -> None:
    """5.2: what overlaps a batch already taken is dropped whole, and its other slots become gaps."""
    high, low = batch(3, block("high", 2), OLD), batch(1, block("low", 3), OLDER)
    later = batch(5, block("later"), OLDER)
    entries = recovery_of(LoneReplica(), {2: [low, high, later]})
    assert [place(entry) for entry in entries[1:]] == [place(high), place(later)]
    assert (entries[0]["slot_begin"], entries[0]["slot_end"]) == (1, 3)
    assert BlockView(entries[0]["block"]).kind == NOOP


def test_52_gaps_are_filled_with_noops() -> None:
    """5.2: gaps are filled with no-op batches."""
    values = [batch(2, block("a"), OLD), batch(6, block("b", 2), OLD)]
    entries = recovery_of(LoneReplica(), {2: values})
    assert [(entry["slot_begin"], entry["slot_end"], BlockView(entry["block"]).kind) for entry in entries] == [
        (1, 2, NOOP),
        (2, 3, 0),
        (3, 6, NOOP),
        (6, 8, 0),
    ]


def test_52_at_least_one_slot_is_proposed() -> None:
    """5.2: it always proposes at least one slot, so that it commits in its own ballot."""
    [entry] = recovery_of(LoneReplica(), {2: []})
    assert (entry["slot_begin"], entry["slot_end"], entry["block"]) == (1, 2, build_noop(1))


def test_52_no_new_command_before_recovery_is_committed() -> None:
    """5.2: only then does it add new commands."""
    candidate = LoneReplica()
    candidate.campaign(NEWER)
    assert candidate.replica.open_session(bytes(16), "waiter") == ReplyStatus.NOT_LEADER
    ballot = candidate.replica.ballot
    candidate.receive(2, "promise", ballot, [batch(1, block("v"), OLD)])
    assert candidate.replica.open_session(bytes(16), "waiter") == ReplyStatus.NOT_LEADER
    recovered = proposals_to(answer_fetches(candidate, [batch(1, block("v"), OLD)]))
    assert candidate.replica.open_session(bytes(16), "waiter") == ReplyStatus.NOT_READY
    candidate.sync()
    candidate.receive(2, "accepted", ballot, recovered)
    candidate.apply()
    assert candidate.replica.open_session(bytes(16), "waiter") == ReplyStatus.OK


def test_52_two_values_for_one_ballot_and_slot_stop_the_candidate() -> None:
    """5.1: two different values reported for one (ballot, slot) are an InvariantError."""
    candidate = LoneReplica(members=(1, 2, 3, 4, 5))
    ballot = candidate.campaign(NEWER)
    candidate.receive(2, "promise", ballot, [batch(1, block("a"), OLD)])
    candidate.receive(3, "promise", ballot, [batch(1, block("b"), OLD)])
    with pytest.raises(InvariantError):
        candidate.sent()


def test_52_an_unknown_range_does_not_count_toward_its_quorum() -> None:
    """5.2: unknown (corrupt on that disk) never counts toward that range's quorum."""
    unknown = {"slot_begin": 1, "slot_end": 4, "flags": 2}
    candidate = LoneReplica(members=(1, 2, 3))
    ballot = candidate.campaign(NEWER)
    candidate.receive(2, "promise", ballot, [unknown])
    assert proposed(candidate) == []
    candidate.receive(3, "promise", ballot)
    assert len(proposed(candidate)) == 1


def test_52_an_unknown_range_below_commit_index_harms_nobody() -> None:
    """5.2: what is committed is fetched, not voted on."""
    candidate = LoneReplica()
    candidate.receive(3, "accept", OLDER + 2, [batch(1, block("a", 3), OLDER + 2)])
    candidate.receive(3, "commit", OLDER + 2, commit_index=3)
    ballot = candidate.campaign(NEWER)
    candidate.receive(2, "promise", ballot, [{"slot_begin": 1, "slot_end": 4, "flags": 2}], slot_begin=4)
    assert len(proposed(candidate)) == 1


def test_52_values_that_overlap_what_was_committed_meanwhile_are_dropped() -> None:
    """5.2: the plan is made above commit_index; what reaches below it lost."""
    candidate = LoneReplica()
    ballot = candidate.campaign(NEWER)
    candidate.sent()
    stale = batch(2, block("stale", 2), OLDER)
    candidate.receive(3, "heartbeat_reply", ballot, commit_index=2)
    fetches = candidate.sent("fetch")
    known = [batch(1, block("a", 2), OLD, flags=1)]
    candidate.receive(2, "promise", ballot, [stale], commit_index=0)
    for fetch in fetches:
        candidate.receive(3, "learn", OLD, known, request_id=fetch["request_id"], commit_index=2)
    assert candidate.replica.commit_index == 2
    [entry] = proposed(candidate)
    assert (entry["slot_begin"], entry["slot_end"], BlockView(entry["block"]).kind) == (3, 4, NOOP)


def test_52_a_wrong_value_in_answer_to_a_fetch_is_refused() -> None:
    """5.2: the value fetched is the one that was promised."""
    candidate = LoneReplica()
    ballot = candidate.campaign(NEWER)
    candidate.sent()
    candidate.receive(2, "promise", ballot, [batch(1, block("a"), OLD)])
    [fetch] = candidate.sent("fetch")
    with pytest.raises(FrameError):
        candidate.receive(2, "learn", OLD, [batch(1, block("b"), OLD)], request_id=fetch["request_id"])


def test_52_a_candidate_that_is_told_of_a_higher_promise_gives_up() -> None:
    """5.2 with Nack: a higher promised ballot ends the candidacy, and the next ballot is above it."""
    candidate = LoneReplica()
    ballot = candidate.campaign(NEWER)
    candidate.receive(3, "nack", ballot, promised_ballot=pack_ballot(9, 3))
    assert candidate.replica.role == "follower"
    candidate.receive(2, "promise", ballot)
    assert proposed(candidate) == []
    assert unpack_ballot(candidate.campaign()) == (10, 1)


def test_52_a_candidate_that_promises_more_gives_up() -> None:
    """5.1 and 5.2: who promised a higher ballot no longer proposes in its own."""
    candidate = LoneReplica()
    ballot = candidate.campaign(NEWER)
    candidate.receive(3, "prepare", pack_ballot(9, 3), slot_begin=1)
    candidate.receive(2, "promise", ballot)
    candidate.sync()
    assert [message["message"] for message in candidate.sent() if message["message"] != "prepare"] == ["promise"]
    assert candidate.replica.role == "follower"


def test_52_prepare_is_repeated_to_whoever_has_not_promised() -> None:
    """Design, core contract: the core owns resending."""
    candidate = LoneReplica(members=(1, 2, 3, 4, 5))
    ballot = candidate.campaign(NEWER)
    candidate.sent()
    candidate.receive(2, "promise", ballot)
    candidate.tick(500)
    assert {message["to"] for message in candidate.sent("prepare")} == {3, 4, 5}


def test_52_a_promise_with_a_batch_of_its_own_ballot_or_above_is_a_bad_frame() -> None:
    """5.1: what is accepted at a promise of b has a lower ballot than b."""
    candidate = LoneReplica()
    ballot = candidate.campaign(NEWER)
    with pytest.raises(FrameError):
        candidate.receive(2, "promise", ballot, [batch(1, block("a"), ballot + (1 << 16))])
