"""The survey: a committed slot that nobody can read back is learned from what a Phase 1 quorum accepted there."""

from __future__ import annotations

from typing import Any

import pytest

from fastpaxos.testing import LoneReplica, batch
from fastpaxos_core.ballot import pack_ballot
from fastpaxos_core.block import build_block
from fastpaxos_core.errors import FrameError, InvariantError

B1 = pack_ballot(1, 2)
B2 = pack_ballot(2, 3)
B3 = pack_ballot(3, 2)
FLAG_COMMITTED = 1
ACCEPTED = 1
"""`kind` of a Learn that answers a survey."""


def block(text: str) -> bytes:
    return build_block([text.encode()], 9, 1)


OLD = batch(1, block("old"), B1)
CHOSEN = batch(1, block("chosen"), B2)


def survey_of(lone: LoneReplica) -> list[dict[str, Any]]:
    """Answer every Fetch with nothing until the replica surveys; return the questions, in the order of the peers."""
    for _ in range(20):
        fetches = lone.sent("fetch")
        asked = [fetch for fetch in fetches if fetch["slot_end"]]
        if asked:
            assert {(fetch["ballot"], fetch["slot_end"] - fetch["slot_begin"]) for fetch in asked} == {(0, 1)}
            return sorted(asked, key=lambda fetch: fetch["to"])
        for fetch in fetches:
            lone.receive(fetch["to"], "learn", 0, request_id=fetch["request_id"])
        lone.tick(30)
    raise AssertionError("no survey")


def answer(lone: LoneReplica, question: dict[str, Any], *entries: dict[str, Any], kind: int = ACCEPTED) -> None:
    lone.receive(question["to"], "learn", 0, entries, request_id=question["request_id"], kind=kind)


def told(accepted: dict[str, Any] | None = None, members: tuple[int, ...] = (1, 2, 3)) -> LoneReplica:
    """A replica that may have accepted something in slot 1, and hears that slot 1 is committed."""
    lone = LoneReplica(members=members)
    if accepted is not None:
        proposer = accepted["ballot"] & 0xFFFF
        lone.receive(proposer, "accept", accepted["ballot"], [accepted])
        lone.sync()
    lone.sent()
    lone.receive(2, "heartbeat", B3, commit_index=1)
    return lone


def committed(lone: LoneReplica) -> list[int]:
    """The value CRCs of what is committed in memory, by slot."""
    return [value_crc for _, _, _, value_crc, status in lone.replica.window.batches() if status == 3]


def test_one_more_answer_makes_a_quorum_of_three() -> None:
    lone = told(CHOSEN)
    to_2, to_3 = survey_of(lone)
    assert (to_2["to"], to_3["to"]) == (2, 3)
    assert lone.replica.commit_index == 0
    answer(lone, to_3)
    assert lone.replica.commit_index == 1
    assert committed(lone) == [CHOSEN["value_crc"]]


@pytest.mark.parametrize("own", [OLD, CHOSEN])
def test_the_highest_ballot_is_the_chosen_value(own: dict[str, Any]) -> None:
    lone = told(own)
    _, to_3 = survey_of(lone)
    answer(lone, to_3, CHOSEN if own is OLD else OLD)
    assert lone.replica.commit_index == 1
    assert committed(lone) == [CHOSEN["value_crc"]]


def test_what_was_learned_is_durable() -> None:
    lone = told(OLD)
    answer(lone, survey_of(lone)[1], CHOSEN)
    lone.sync()
    lone.crash()
    assert lone.replica.commit_index == 1
    lone.apply()
    assert lone.replica.applied_index == 1


def test_a_minority_of_five_is_not_enough() -> None:
    lone = told(OLD, members=(1, 2, 3, 4, 5))
    to_2, to_3, *_ = survey_of(lone)
    answer(lone, to_2)
    assert lone.replica.commit_index == 0
    # The same acceptor again is no second one.
    answer(lone, to_2)
    assert lone.replica.commit_index == 0
    answer(lone, to_3, CHOSEN)
    assert lone.replica.commit_index == 1
    assert committed(lone) == [CHOSEN["value_crc"]]


def test_one_that_knows_it_to_be_committed_is_enough() -> None:
    lone = told(None, members=(1, 2, 3, 4, 5))
    to_2, to_3, *_ = survey_of(lone)
    answer(lone, to_2, CHOSEN)
    assert lone.replica.commit_index == 0
    # Its ballot says nothing: a committed value is above all ballots.
    answer(lone, to_3, {**batch(1, block("known"), B1), "flags": FLAG_COMMITTED})
    assert lone.replica.commit_index == 1
    assert committed(lone) == [batch(1, block("known"), B1)["value_crc"]]


def test_nothing_accepted_anywhere_teaches_nothing() -> None:
    lone = told()
    to_2, to_3 = survey_of(lone)
    answer(lone, to_2)
    answer(lone, to_3)
    assert lone.replica.commit_index == 0
    # It is asked again after a while.
    for _ in range(20):
        lone.tick(100)
    assert survey_of(lone)[0]["request_id"] > to_2["request_id"]


def test_an_answer_to_an_older_survey_or_of_an_older_kind_is_ignored() -> None:
    lone = told(CHOSEN)
    _, to_3 = survey_of(lone)
    answer(lone, {**to_3, "request_id": to_3["request_id"] + 1})
    assert lone.replica.commit_index == 0
    # A Learn that carries nothing, in answer to a Fetch of committed batches, does not say that nothing is accepted.
    answer(lone, to_3, kind=0)
    assert lone.replica.commit_index == 0


def test_the_slot_may_have_come_in_the_meantime() -> None:
    lone = told(CHOSEN)
    _, to_3 = survey_of(lone)
    lone.receive(2, "accept", B3, [{**CHOSEN, "ballot": B3}])
    lone.receive(2, "commit", B3, commit_index=1)
    assert lone.replica.commit_index == 1
    answer(lone, to_3, OLD)
    assert lone.replica.commit_index == 1
    assert committed(lone) == [CHOSEN["value_crc"]]


def rotten(marker: int, members: tuple[int, ...] = (1, 2, 3)) -> LoneReplica:
    """Restarted; the block of its only record, in slot 1, is rotten. `marker`: commit_index that its journal names."""
    lone = LoneReplica(members=members)
    lone.receive(2, "accept", B1, [OLD])
    assert lone.begin_write()
    assert lone.writing is not None
    name, offset = lone.writing.segment_name, lone.writing.offset
    lone.end_write()
    if marker:
        lone.receive(2, "commit", B1, commit_index=marker)
    higher = pack_ballot(2, 2) if len(members) == 2 else pack_ballot(1, 3)
    lone.receive(members[-1], "prepare", higher, slot_begin=2)
    lone.sync()
    lone.disk.corrupt(name, offset + 64 + 48 + 41)
    lone.crash()
    assert lone.replica.commit_index == marker
    lone.receive(2, "heartbeat", B3, commit_index=1)
    return lone


def test_an_acceptor_that_lost_its_record_does_not_count_itself() -> None:
    lone = rotten(0)
    to_2, to_3 = survey_of(lone)
    answer(lone, to_2, OLD)
    assert lone.replica.commit_index == 0
    answer(lone, to_3, CHOSEN)
    assert lone.replica.commit_index == 1
    assert committed(lone) == [CHOSEN["value_crc"]]


def test_a_committed_record_that_rotted_is_repaired() -> None:
    lone = rotten(1)
    lone.apply()
    to_2, to_3 = survey_of(lone)
    answer(lone, to_2, OLD)
    lone.sync()
    lone.apply()
    assert lone.replica.applied_index == 0
    answer(lone, to_3, CHOSEN)
    lone.sync()
    lone.apply()
    assert lone.replica.applied_index == 1


def ask(lone: LoneReplica, slot: int) -> list[dict[str, Any]]:
    lone.sent()
    lone.receive(2, "fetch", 0, request_id=77, slot_begin=slot, slot_end=slot + 1)
    return lone.sent("learn", to=2)


def test_an_acceptor_says_what_it_accepted() -> None:
    lone = LoneReplica()
    lone.receive(2, "accept", B1, [OLD])
    [reply] = ask(lone, 1)
    assert (reply["kind"], reply["request_id"], reply["commit_index"]) == (ACCEPTED, 77, 0)
    [entry] = reply["entries"]
    assert (entry["ballot"], entry["value_crc"], entry["flags"]) == (B1, OLD["value_crc"], 0)
    assert entry["block"] == OLD["block"]
    lone.receive(2, "commit", B1, commit_index=1)
    assert [entry["flags"] for entry in ask(lone, 1)[0]["entries"]] == [FLAG_COMMITTED]
    [reply] = ask(lone, 2)
    assert (reply["kind"], reply["entries"]) == (ACCEPTED, [])


def test_an_acceptor_that_cannot_tell_is_silent() -> None:
    """What rotted, and what is committed but not in memory any more, is not "nothing accepted"."""
    blind = rotten(0)
    assert ask(blind, 1) == []
    assert ask(blind, 2) != []
    assert ask(rotten(1), 1) == []


def test_what_was_accepted_again_is_known_again() -> None:
    lone = rotten(0)
    lone.receive(2, "accept", B3, [{**CHOSEN, "ballot": B3}])
    [reply] = ask(lone, 1)
    assert [entry["ballot"] for entry in reply["entries"]] == [B3]


def test_one_ballot_with_two_values_is_a_broken_promise_of_the_protocol() -> None:
    lone = told(CHOSEN, members=(1, 2, 3, 4, 5))
    to_2, *_ = survey_of(lone)
    with pytest.raises(InvariantError, match="two values at slot 1"):
        answer(lone, to_2, batch(1, block("other"), B2))


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([batch(2, block("x"), B1)], "asked for slot 1 and answers with"),
        ([{**OLD, "flags": 2}], "flags 0x2"),
        ([OLD, OLD], "names 2 batches"),
        ([{**OLD, "block_bytes": OLD["block_bytes"] - 1}], "in 43 bytes"),
        ([{**OLD, "value_crc": 1}], "value CRC"),
    ],
)
def test_a_bad_answer_is_refused(entries: list[dict[str, Any]], reason: str) -> None:
    lone = told(None, members=(1, 2, 3, 4, 5))
    to_2, *_ = survey_of(lone)
    with pytest.raises(FrameError, match=reason):
        answer(lone, to_2, *entries)


def test_an_answer_to_an_earlier_start_is_no_vote() -> None:
    """Request ids began anew at every start: an old "nothing", about another slot, made a quorum for a lost value."""
    lone = LoneReplica()
    lone.receive(3, "accept", B2, [CHOSEN])
    lone.sync()
    lone.sent()
    # Slot 1 was chosen by nodes 1 and 3; node 2 says honestly that it accepted nothing there.
    lone.replica.peer_committed(3, 1)
    to_2, _ = survey_of(lone)
    stale = lone.frame(2, "learn", 0, [], request_id=to_2["request_id"], kind=ACCEPTED)
    lone.replica.receive(2, stale)
    assert lone.replica.commit_index == 1
    # Node 1 alone accepts this, and nodes 2 and 3 choose something else in slot 2.
    lone.receive(3, "accept", B2, [batch(2, block("lost"), B2)])
    lone.sync()
    lone.crash()
    assert lone.replica.commit_index == 1
    lone.replica.peer_committed(2, 2)
    to_2, _ = survey_of(lone)
    assert to_2["slot_begin"] == 2
    lone.replica.receive(2, stale)
    assert lone.replica.commit_index == 1


def test_votes_of_an_earlier_survey_do_not_count() -> None:
    lone = rotten(0)
    to_2, _ = survey_of(lone)
    answer(lone, to_2)
    for _ in range(20):
        lone.tick(100)
    _, to_3 = survey_of(lone)
    answer(lone, to_3, OLD)
    assert lone.replica.commit_index == 0


def test_flexible_quorums_every_phase_2_quorum_must_be_met() -> None:
    lone = LoneReplica(members=(1, 2, 3, 4, 5), phase1_quorum=4, phase2_quorum=2)
    lone.receive(2, "accept", B1, [OLD])
    lone.sync()
    lone.sent()
    lone.receive(2, "heartbeat", B3, commit_index=1)
    to_2, to_3, to_4, _ = survey_of(lone)
    answer(lone, to_2)
    answer(lone, to_3)
    assert lone.replica.commit_index == 0
    answer(lone, to_4, CHOSEN)
    assert committed(lone) == [CHOSEN["value_crc"]]


def test_of_two_members_one_answer_is_enough() -> None:
    """Both must accept what is chosen there: a Phase 1 quorum, which needs the rotten one, is not needed."""
    lone = rotten(1, members=(1, 2))
    lone.apply()
    [to_2] = survey_of(lone)
    answer(lone, to_2, OLD)
    lone.sync()
    lone.apply()
    assert lone.replica.applied_index == 1


def test_a_batch_of_several_slots_displaces_what_it_overlaps() -> None:
    big = batch(1, build_block([b"a", b"b", b"c"], 9, 1), B2)
    lone = LoneReplica()
    lone.receive(2, "accept", B1, [OLD, batch(2, build_block([b"y", b"z"], 9, 2), B1)])
    lone.sync()
    lone.sent()
    lone.receive(2, "heartbeat", B3, commit_index=3)
    answer(lone, survey_of(lone)[1], big)
    assert (lone.replica.commit_index, committed(lone)) == (3, [big["value_crc"]])
    lone.sync()
    lone.crash()
    assert lone.replica.commit_index == 3


def test_a_leader_that_learns_another_value_than_its_own_is_deposed() -> None:
    lone = LoneReplica()
    ballot = lone.lead()
    slot = lone.replica.commit_index + 1
    assert lone.replica.open_session(bytes(16), "waiter") == 0
    lone.sync()
    lone.sent()
    lone.replica.peer_committed(3, slot)
    answer(lone, survey_of(lone)[1], batch(slot, block("other"), ballot + (1 << 16)))
    assert (lone.replica.commit_index, lone.replica.role) == (slot, "follower")


def test_a_repair_is_surveyed_although_catching_up_goes_on() -> None:
    lone = rotten(1)
    lone.apply()
    surveyed = set()
    for slot in range(2, 60):
        lone.receive(2, "heartbeat", B3, commit_index=slot)
        for fetch in lone.sent("fetch"):
            values = [] if fetch["slot_begin"] == 1 else [batch(n, block("v"), B3, flags=1) for n in range(2, slot + 1)]
            wanted = [value for value in values if value["slot_begin"] >= fetch["slot_begin"]]
            if fetch["slot_end"]:
                surveyed.add(fetch["slot_begin"])
            else:
                lone.receive(fetch["to"], "learn", 0, wanted, request_id=fetch["request_id"], commit_index=slot)
        lone.sync()
        lone.apply()
        lone.tick(30)
    assert lone.replica.commit_index > 20
    assert 1 in surveyed


def test_what_comes_next_is_surveyed_although_a_repair_is_hopeless() -> None:
    lone = rotten(1)
    lone.apply()
    lone.receive(2, "heartbeat", B3, commit_index=2)
    for _ in range(200):
        for fetch in lone.sent("fetch"):
            if fetch["slot_end"] and fetch["slot_begin"] == 2:
                answer(lone, fetch, batch(2, block("two"), B2))
            elif not fetch["slot_end"]:
                lone.receive(fetch["to"], "learn", 0, request_id=fetch["request_id"])
        lone.sync()
        lone.apply()
        lone.tick(30)
    assert (lone.replica.commit_index, lone.replica.applied_index) == (2, 0)


def test_a_survey_is_not_begun_before_everybody_was_asked_nor_while_one_is_out() -> None:
    lone = told(OLD)
    [first] = lone.sent("fetch")
    lone.receive(first["to"], "learn", 0, request_id=first["request_id"])
    lone.tick(30)
    [second] = lone.sent("fetch")
    assert (second["slot_end"], {first["to"], second["to"]}) == (0, {2, 3})
    questions = []
    for _ in range(30):  # 300 ms: less than a survey waits for its answers
        for fetch in lone.sent("fetch"):
            if fetch["slot_end"]:
                questions.append(fetch["request_id"])
            else:
                lone.receive(fetch["to"], "learn", 0, request_id=fetch["request_id"])
        lone.receive(second["to"], "learn", 0, request_id=second["request_id"])
        lone.tick(10)
    assert len(questions) == 2
    assert len(set(questions)) == 1


def test_a_learn_of_an_unknown_kind_is_refused() -> None:
    lone = told(OLD)
    with pytest.raises(FrameError, match="unknown kind 2"):
        answer(lone, survey_of(lone)[0], kind=2)
