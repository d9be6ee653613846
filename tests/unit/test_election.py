"""fastpaxos.election, one Election object at a time: what it answers and when it acts."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from fastpaxos.election import Action, Decision, Election
from fastpaxos_core.errors import FrameError

MS = 1_000_000
HEARTBEAT_MS = 50
TIMEOUT_MS = 400
TICK_NS = 10 * MS


class Facts:
    role = "follower"
    promised_ballot = 0
    leader_id = 0
    voting = True
    commit_index = 0
    last_slot = 0
    last_leader_contact_ns = -(10**18)
    quorum_contact_ns = -(10**18)


def single(facts: Facts, *, members: int = 3, quorum: int = 2, random: Random | None = None) -> Election:
    election = Election(
        facts,
        node_id=1,
        members=range(1, members + 1),
        phase1_quorum=quorum,
        phase2_quorum=quorum,
        heartbeat_interval_ms=HEARTBEAT_MS,
        election_timeout_ms=TIMEOUT_MS,
        lag_slots_max=1000,
        random=random or Random(1),
        now_ns=0,
    )
    for peer in range(2, members + 1):
        election.peer_connected(peer, 0)
    return election


def tick_until(
    election: Election, wanted: Action, now_ns: int, limit_ms: int = 10 * TIMEOUT_MS
) -> tuple[int, list[Decision]]:
    for _ in range(limit_ms * MS // TICK_NS):
        now_ns += TICK_NS
        decisions = election.tick(now_ns)
        if any(decision.action is wanted for decision in decisions):
            return now_ns, decisions
    raise AssertionError(f"no {wanted} within {limit_ms} ms")


def question_of(decisions: list[Decision]) -> int:
    questions = [d.message["question"] for d in decisions if d.message is not None and d.message["op"] == "pre_vote"]
    assert questions
    return int(questions[0])


def reply(question: int, *, granted: bool = True, commit_index: int = 0) -> dict[str, Any]:
    return {"op": "pre_vote_reply", "question": question, "granted": granted, "commit_index": commit_index}


def ask(election: Election, now_ns: int) -> bool:
    (decision,) = election.receive(2, {"op": "pre_vote", "question": 7, "commit_index": 0}, now_ns)
    assert decision.peer == 2
    assert decision.message is not None
    assert decision.message["question"] == 7
    granted = decision.message["granted"]
    assert isinstance(granted, bool)
    return granted


def test_one_yes_of_another_member_makes_a_quorum_of_three_but_not_of_five() -> None:
    for members, quorum, enough in ((3, 2, True), (5, 3, False)):
        election = single(Facts(), members=members, quorum=quorum)
        now_ns, decisions = tick_until(election, Action.SEND, 0)
        assert {d.peer for d in decisions} == set(range(2, members + 1))
        answer = election.receive(2, reply(question_of(decisions)), now_ns)
        assert (answer == [Decision(Action.CAMPAIGN)]) is enough
        again = election.receive(2, reply(question_of(decisions)), now_ns)
        assert again == [], "the same member counts once"


def test_stale_refused_and_withdrawn_answers_do_not_count() -> None:
    election = single(Facts(), members=5, quorum=3)
    now_ns, decisions = tick_until(election, Action.SEND, 0)
    question = question_of(decisions)
    assert election.receive(2, reply(question - 1), now_ns) == []
    assert election.receive(3, reply(question - 1), now_ns) == []
    assert election.receive(2, reply(question), now_ns) == []
    assert election.receive(2, reply(question, granted=False), now_ns) == []
    assert election.receive(3, reply(question), now_ns) == []
    late_ns = now_ns + TIMEOUT_MS * MS
    assert election.receive(4, reply(question), late_ns) == [], "the yes of member 3 is too old by now"
    assert election.receive(9, reply(question), late_ns) == [], "no member"
    assert election.receive(5, reply(question), late_ns) == [Decision(Action.CAMPAIGN)]


def test_a_member_that_was_disconnected_takes_its_yes_with_it() -> None:
    election = single(Facts(), members=5, quorum=3)
    now_ns, decisions = tick_until(election, Action.SEND, 0)
    question = question_of(decisions)
    election.receive(2, reply(question), now_ns)
    election.peer_disconnected(2, now_ns)
    assert election.receive(3, reply(question), now_ns) == []
    (asked,) = election.peer_connected(2, now_ns)
    assert asked.message is not None
    assert asked.message["question"] == question


def test_flexible_quorums_need_the_larger_of_both() -> None:
    election = Election(
        Facts(),
        node_id=1,
        members=[1, 2, 3, 4, 5],
        phase1_quorum=4,
        phase2_quorum=2,
        heartbeat_interval_ms=50,
        election_timeout_ms=400,
        lag_slots_max=1,
        random=Random(0),
        now_ns=0,
    )
    assert election.votes_needed == 4


def test_who_refuses_a_pre_vote() -> None:
    facts = Facts()
    election = single(facts)
    assert ask(election, 0)
    now_ns = 10_000 * MS
    facts.leader_id, facts.promised_ballot = 3, 1 << 16 | 3
    facts.last_leader_contact_ns = now_ns
    assert not ask(election, now_ns)
    assert not ask(election, now_ns + 399 * MS), "the leader was heard"
    assert ask(election, now_ns + 401 * MS), "and then no more"
    facts.last_leader_contact_ns = now_ns + 500 * MS
    assert not ask(election, now_ns + 500 * MS)
    election.receive(3, {"op": "resigned", "ballot": 1 << 16 | 3}, now_ns + 500 * MS)
    assert ask(election, now_ns + 500 * MS), "the leader has resigned"

    facts = Facts()
    election = single(facts)
    facts.role, facts.promised_ballot, facts.quorum_contact_ns = "leader", 1 << 16 | 1, now_ns
    assert not ask(election, now_ns + 399 * MS), "it leads and a quorum says so"
    assert ask(election, now_ns + 400 * MS)
    facts.role, facts.voting = "follower", False
    assert not ask(election, now_ns + 999 * MS), "it may not vote"


def test_the_courtesy_to_a_candidate_ends_with_its_connection_or_after_a_timeout() -> None:
    facts = Facts()
    election = single(facts)
    facts.promised_ballot = 5 << 16 | 3
    assert not ask(election, 1000 * MS)
    assert not ask(election, 1399 * MS)
    assert ask(election, 1400 * MS)
    facts.promised_ballot = 6 << 16 | 3
    assert not ask(election, 2000 * MS)
    election.peer_disconnected(3, 2000 * MS)
    assert ask(election, 2000 * MS)


def test_only_the_owner_of_a_ballot_can_resign_it() -> None:
    facts = Facts()
    election = single(facts)
    facts.leader_id, facts.promised_ballot, facts.last_leader_contact_ns = 3, 1 << 16 | 3, 100 * MS
    election.receive(2, {"op": "resigned", "ballot": 1 << 16 | 3}, 100 * MS)
    assert election.hears_leader(100 * MS)
    election.receive(3, {"op": "resigned", "ballot": 1 << 16 | 3}, 100 * MS)
    assert not election.hears_leader(100 * MS)
    facts.promised_ballot, facts.last_leader_contact_ns = 2 << 16 | 3, 200 * MS
    assert election.hears_leader(200 * MS), "a later ballot of the same member is another leadership"


def test_a_member_that_lags_by_far_waits_one_more_timeout_and_then_goes_ahead() -> None:
    election = single(Facts())
    now_ns, decisions = tick_until(election, Action.SEND, 0)
    assert election.receive(2, reply(question_of(decisions), commit_index=5000), now_ns) == []
    later_ns, decisions = tick_until(election, Action.SEND, now_ns)
    assert later_ns - now_ns >= TIMEOUT_MS * MS
    assert election.receive(2, reply(question_of(decisions), commit_index=5000), later_ns) == [
        Decision(Action.CAMPAIGN)
    ]


def test_a_process_that_was_paused_first_reads_what_arrived() -> None:
    facts = Facts()
    facts.leader_id, facts.last_leader_contact_ns = 2, 0
    election = single(facts)
    resumed_ns = 60_000 * MS
    assert election.tick(resumed_ns) == []
    assert election.tick(resumed_ns + TICK_NS) == []
    facts.last_leader_contact_ns = resumed_ns + TICK_NS
    for step in range(2, 30):
        assert election.tick(resumed_ns + step * TICK_NS) == []

    facts = Facts()
    facts.role, facts.quorum_contact_ns = "leader", 0
    election = single(facts)
    assert election.tick(resumed_ns) == []
    assert tick_until(election, Action.STEP_DOWN, resumed_ns)[0] <= resumed_ns + 2 * HEARTBEAT_MS * MS + TICK_NS


def test_a_hung_disk_never_campaigns_and_gives_up_a_leadership_that_chooses_nothing() -> None:
    facts = Facts()
    election = single(facts)
    now_ns = 0
    for _ in range(300):
        now_ns += TICK_NS
        assert election.tick(now_ns, disk_stalled=True) == []
    facts.role, facts.last_slot, facts.promised_ballot = "leader", 10, 1 << 16 | 1
    stalled_since_ns = now_ns
    while True:
        now_ns += TICK_NS
        facts.quorum_contact_ns = now_ns
        decisions = election.tick(now_ns, disk_stalled=True)
        if decisions:
            break
    assert decisions[0] == Decision(Action.STEP_DOWN)
    assert [d.peer for d in decisions[1:]] == [2, 3]
    assert now_ns - stalled_since_ns == pytest.approx(2 * TIMEOUT_MS * MS, abs=3 * TICK_NS)

    facts.commit_index = 0
    election = single(facts)
    for _ in range(300):
        now_ns += TICK_NS
        facts.quorum_contact_ns = now_ns
        facts.commit_index += 1
        facts.last_slot = facts.commit_index + 5
        assert election.tick(now_ns, disk_stalled=True) == [], "the other disks do the work"


class Late(Random):
    """Draws nearly the longest wait every time."""

    def random(self) -> float:
        return 0.9


def test_a_campaign_without_progress_is_given_up_and_the_next_waits_longer() -> None:
    facts = Facts()
    election = single(facts, random=Late())
    now_ns = 0
    waits = []
    for attempt in range(1, 5):
        started_ns = now_ns
        now_ns, decisions = tick_until(election, Action.SEND, now_ns, limit_ms=20 * TIMEOUT_MS)
        waits.append(now_ns - started_ns)
        assert election.receive(2, reply(question_of(decisions)), now_ns) == [Decision(Action.CAMPAIGN)]
        facts.role, facts.promised_ballot = "candidate", attempt << 16 | 1
        given_up_ns, _ = tick_until(election, Action.STEP_DOWN, now_ns)
        assert given_up_ns - now_ns > 2 * TIMEOUT_MS * MS
        facts.role = "follower"
        now_ns = given_up_ns
    assert 2 * TIMEOUT_MS * MS < waits[1] < waits[2]
    assert max(waits) <= 8 * TIMEOUT_MS * MS + TICK_NS


def test_a_campaign_that_fetches_is_not_given_up() -> None:
    facts = Facts()
    election = single(facts)
    now_ns, decisions = tick_until(election, Action.SEND, 0)
    election.receive(2, reply(question_of(decisions)), now_ns)
    facts.role, facts.promised_ballot = "candidate", 1 << 16 | 1
    for _ in range(1000):
        now_ns += TICK_NS
        facts.commit_index += 1
        assert election.tick(now_ns) == []


@pytest.mark.parametrize(
    "message",
    [
        {"op": "pre_vote", "question": -1, "commit_index": 0},
        {"op": "pre_vote", "question": 1},
        {"op": "pre_vote", "question": True, "commit_index": 0},
        {"op": "pre_vote_reply", "question": 1, "commit_index": 0, "granted": 1},
        {"op": "pre_vote_reply", "question": "1", "commit_index": 0, "granted": True},
        {"op": "resigned"},
        {"op": "resigned", "ballot": b"1"},
        {"op": "coup"},
    ],
)
def test_malformed_messages_are_refused_by_name(message: dict[str, Any]) -> None:
    with pytest.raises(FrameError, match="node 2"):
        single(Facts()).receive(2, message, 0)
