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


def rotten(marker: int) -> LoneReplica:
    """Restarted; the block of its only record, in slot 1, is rotten. `marker`: commit_index that its journal names."""
    lone = LoneReplica()
    lone.receive(2, "accept", B1, [OLD])
    assert lone.begin_write()
    assert lone.writing is not None
    name, offset = lone.writing.segment_name, lone.writing.offset
    lone.end_write()
    if marker:
        lone.receive(2, "commit", B1, commit_index=marker)
    lone.receive(3, "prepare", pack_ballot(1, 3), slot_begin=2)
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
        ([{**OLD, "value_crc": 1}], "value CRC"),
    ],
)
def test_a_bad_answer_is_refused(entries: list[dict[str, Any]], reason: str) -> None:
    lone = told(None, members=(1, 2, 3, 4, 5))
    to_2, *_ = survey_of(lone)
    with pytest.raises(FrameError, match=reason):
        answer(lone, to_2, *entries)
