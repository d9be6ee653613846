"""Rules 5.3 and 5.4, and the durability gate of the core contract: what is chosen, and what may be said when.

Each docstring paraphrases one sentence of the rule. Paper: Lamport, "The Part-Time Parliament" (1998), section 3.
"""

from __future__ import annotations

from typing import Any

import pytest

from fastpaxos.testing import LoneReplica, batch
from fastpaxos_core.ballot import pack_ballot
from fastpaxos_core.block import BlockView, build_block, build_noop
from fastpaxos_core.errors import ConfigError, FrameError, InvariantError
from fastpaxos_core.quorum import QuorumSystem

B2 = pack_ballot(5, 2)
B3 = pack_ballot(6, 3)


def block(text: str, count: int = 1) -> bytes:
    return build_block([f"{text}{number}".encode() for number in range(count)], 9, 1)


def leader_with_proposal(members: tuple[int, ...] = (1, 2, 3), **settings: Any) -> tuple[LoneReplica, dict[str, Any]]:
    """A ready leader that has just proposed one control batch, sent and not yet on its own disk."""
    leader = LoneReplica(members=members, **settings)
    ballot = leader.campaign()
    leader.sent()
    for peer in leader.peers:
        leader.receive(peer, "promise", ballot)
    [accept] = leader.sent("accept", to=2)
    for peer in leader.peers:
        leader.receive(peer, "accepted", ballot, accept["entries"])
    leader.sync()
    leader.apply()
    assert leader.replica.is_ready
    leader.sent()
    assert leader.replica.open_session(bytes(16), "waiter") == 0
    [accept] = leader.sent("accept", to=2)
    [entry] = accept["entries"]
    return leader, entry


# What a message may rest on


def test_4_a_promise_is_held_until_it_is_durable() -> None:
    """Core contract: a Promise leaves when a sync that started after its bytes were written has ended."""
    acceptor = LoneReplica()
    acceptor.receive(2, "prepare", B2, slot_begin=1)
    assert acceptor.sent() == []
    assert acceptor.begin_write()
    assert acceptor.sent() == []
    acceptor.end_write()
    assert [message["message"] for message in acceptor.sent()] == ["promise"]


def test_4_accepted_is_held_until_it_is_durable() -> None:
    """Core contract: so does Accepted."""
    acceptor = LoneReplica()
    acceptor.receive(2, "accept", B2, [batch(1, block("a"), B2)])
    assert acceptor.sent() == []
    assert acceptor.begin_write()
    assert acceptor.sent() == []
    acceptor.end_write()
    assert [message["message"] for message in acceptor.sent()] == ["accepted"]


def test_4_a_sync_that_started_before_the_append_releases_nothing() -> None:
    """Core contract: the ticket of a write that was already out says nothing about what came later."""
    acceptor = LoneReplica()
    acceptor.receive(2, "accept", B2, [batch(1, block("a"), B2)])
    assert acceptor.begin_write()
    acceptor.receive(2, "accept", B2, [batch(2, block("b"), B2)])
    acceptor.end_write()
    assert [[entry["slot_begin"] for entry in message["entries"]] for message in acceptor.sent("accepted")] == [[1]]
    acceptor.sync()
    assert [[entry["slot_begin"] for entry in message["entries"]] for message in acceptor.sent("accepted")] == [[2]]


def test_4_a_promise_waits_for_the_votes_that_it_lists() -> None:
    """Core contract: what a Promise claims to have accepted is on disk, too."""
    acceptor = LoneReplica()
    acceptor.receive(2, "accept", B2, [batch(1, block("a"), B2)])
    assert acceptor.begin_write()
    acceptor.receive(3, "prepare", B3, slot_begin=1)
    acceptor.end_write()
    assert acceptor.sent("promise") == []
    acceptor.sync()
    [promise] = acceptor.sent("promise")
    assert len(promise["entries"]) == 1


def test_4_a_repeated_prepare_does_not_outrun_the_first_ones_write() -> None:
    """Core contract: a repetition rests on the same bytes."""
    acceptor = LoneReplica()
    acceptor.receive(2, "prepare", B2, slot_begin=1)
    assert acceptor.begin_write()
    acceptor.receive(2, "prepare", B2, slot_begin=1)
    assert acceptor.sent() == []
    acceptor.end_write()
    assert {message["message"] for message in acceptor.sent()} == {"promise"}


def test_4_a_duplicate_accept_is_answered_under_the_first_copys_ticket() -> None:
    """Core contract: a retransmitted Accept is not acknowledged while the first copy's sync is still out."""
    acceptor = LoneReplica()
    entry = batch(1, block("a"), B2)
    acceptor.receive(2, "accept", B2, [entry])
    assert acceptor.begin_write()
    acceptor.receive(2, "accept", B2, [entry])
    assert acceptor.sent() == []
    assert not acceptor.journal.has_pending
    acceptor.end_write()
    assert len(acceptor.sent("accepted")) == 1
    acceptor.receive(2, "accept", B2, [entry])
    assert [len(message["entries"]) for message in acceptor.sent("accepted")] == [1]


def test_4_an_echo_waits_for_the_promise_that_it_implies() -> None:
    """Core contract with 5.7: a heartbeat of a higher ballot is a promise, and its echo waits for it."""
    acceptor = LoneReplica()
    acceptor.receive(2, "heartbeat", B2, read_round=4)
    assert acceptor.sent("heartbeat_reply") == []
    acceptor.sync()
    assert [message["read_round"] for message in acceptor.sent("heartbeat_reply")] == [4]


def test_4_the_leaders_own_vote_waits_for_its_own_disk() -> None:
    """Core contract: the leader sends before its disk is done, and counts its vote when it is."""
    leader, entry = leader_with_proposal()
    commit_index = leader.replica.commit_index
    assert leader.begin_write()
    leader.sent()
    assert leader.replica.commit_index == commit_index
    leader.receive(2, "accepted", leader.replica.ballot, [entry])
    assert leader.replica.commit_index == commit_index
    leader.end_write()
    assert leader.replica.commit_index == entry["slot_end"] - 1


def test_4_a_quorum_of_others_needs_no_own_disk() -> None:
    """5.3: commit may run ahead of this replica's own durability."""
    leader, entry = leader_with_proposal()
    for peer in (2, 3):
        leader.receive(peer, "accepted", leader.replica.ballot, [entry])
    assert leader.replica.commit_index == entry["slot_end"] - 1
    assert leader.replica.durable_index < leader.replica.commit_index


def test_4_a_lone_replica_commits_when_its_disk_is_done() -> None:
    """5.3 for one member: its own durable vote is the quorum."""
    replica = LoneReplica(members=(1,))
    replica.replica.campaign()
    assert replica.replica.commit_index == 0
    replica.sync()
    assert replica.replica.commit_index == 1
    replica.apply()
    assert replica.replica.open_session(bytes(16), "waiter") == 0
    assert replica.begin_write()
    assert replica.replica.commit_index == 1
    replica.end_write()
    assert replica.replica.commit_index == 2


# What is chosen


def test_53_a_batch_is_chosen_by_a_quorum_in_the_same_ballot() -> None:
    """5.3: votes of other ballots do not count."""
    leader, entry = leader_with_proposal((1, 2, 3, 4, 5))
    ballot, commit_index = leader.replica.ballot, leader.replica.commit_index
    leader.sync()
    leader.receive(2, "accepted", ballot, [entry])
    leader.receive(3, "accepted", ballot - (1 << 16), [entry])
    assert leader.replica.commit_index == commit_index
    leader.receive(3, "accepted", ballot, [entry])
    assert leader.replica.commit_index == entry["slot_end"] - 1


def test_53_each_acceptor_counts_once() -> None:
    """5.2 and 5.3: an acceptor that answers twice is one vote."""
    leader, entry = leader_with_proposal((1, 2, 3, 4, 5))
    leader.sync()
    for _ in range(3):
        leader.receive(2, "accepted", leader.replica.ballot, [entry])
    assert leader.replica.commit_index < entry["slot_begin"]


def test_53_answers_to_another_boot_are_ignored() -> None:
    """5.3: Accepted names the boot of the proposer."""
    leader, entry = leader_with_proposal()
    leader.sync()
    leader.receive(2, "accepted", leader.replica.ballot, [entry], proposer_boot=99)
    assert leader.replica.commit_index < entry["slot_begin"]


def test_53_accepted_names_half_open_ranges_never_up_to() -> None:
    """5.3: a vote for a later batch says nothing about an earlier one."""
    leader, first = leader_with_proposal()
    assert leader.replica.open_session(bytes(range(16)), "other") == 0
    [second] = leader.sent("accept", to=2)[0]["entries"]
    leader.sync()
    leader.receive(2, "accepted", leader.replica.ballot, [second])
    assert leader.replica.commit_index < first["slot_begin"]
    leader.receive(2, "accepted", leader.replica.ballot, [first])
    assert leader.replica.commit_index == second["slot_end"] - 1


def test_53_a_vote_for_another_value_stops_the_leader() -> None:
    """5.3 and 5.1: Accepted names the value; another one in this ballot is an InvariantError."""
    leader, entry = leader_with_proposal()
    with pytest.raises(InvariantError):
        leader.receive(2, "accepted", leader.replica.ballot, [{**entry, "value_crc": entry["value_crc"] ^ 1}])


def test_53_a_vote_for_what_was_never_proposed_is_a_bad_frame() -> None:
    """5.3: nobody can have accepted what was not proposed."""
    leader, entry = leader_with_proposal()
    with pytest.raises(FrameError):
        leader.receive(2, "accepted", leader.replica.ballot, [{**entry, "slot_begin": 50, "slot_end": 51}])


def test_53_a_learner_commits_only_what_it_accepted_in_the_leaders_ballot() -> None:
    """5.3: told commit_index by the leader of ballot b, it commits batches accepted in b and fetches the others."""
    learner = LoneReplica()
    stale, fresh = batch(1, block("stale"), B2), batch(2, block("fresh"), B3)
    learner.receive(2, "accept", B2, [stale])
    learner.receive(3, "accept", B3, [fresh], commit_index=2)
    assert learner.replica.commit_index == 0
    learner.sync()
    [fetch] = learner.sent("fetch")
    assert (fetch["to"], fetch["slot_begin"]) == (3, 1)
    chosen = batch(1, block("chosen"), B3, flags=1)
    learner.receive(3, "learn", B3, [chosen], request_id=fetch["request_id"], commit_index=2)
    learner.sent()
    assert learner.replica.commit_index == 2
    assert [item[:3] for item in learner.replica.window.batches()] == [(1, 2, B3), (2, 3, B3)]


def test_53_a_learner_takes_nothing_uncommitted_as_a_lesson() -> None:
    """5.3: what is fetched below commit_index is said to be committed, or it is a bad frame."""
    learner = LoneReplica()
    learner.receive(3, "heartbeat", B3, commit_index=1)
    learner.sync()
    [fetch] = learner.sent("fetch")
    with pytest.raises(FrameError):
        learner.receive(3, "learn", B3, [batch(1, block("a"), B3)], request_id=fetch["request_id"], commit_index=1)


def test_53_a_commit_index_of_an_older_leader_commits_its_own_batches_only() -> None:
    """5.3: commit news and accepted ballot must be of the same ballot, whatever the order of arrival."""
    learner = LoneReplica()
    learner.receive(3, "accept", B3, [batch(1, block("new"), B3)])
    learner.receive(2, "commit", B2, commit_index=1)
    assert learner.replica.commit_index == 0
    learner.receive(3, "commit", B3, commit_index=1)
    assert learner.replica.commit_index == 1


def test_53_half_a_batch_is_never_committed() -> None:
    """Design, data: committed batches tile the log; a commit_index inside a batch commits nothing of it."""
    learner = LoneReplica()
    learner.receive(2, "accept", B2, [batch(1, block("a", 3), B2)])
    learner.receive(2, "commit", B2, commit_index=2)
    assert learner.replica.commit_index == 0
    learner.receive(2, "commit", B2, commit_index=3)
    assert learner.replica.commit_index == 3


def test_53_durable_index_counts_what_is_durable_without_a_gap() -> None:
    """5.14 and witness: a later batch on disk says nothing about an earlier one that is not."""
    learner = LoneReplica()
    learner.receive(3, "accept", B3, [batch(2, block("b"), B3)])
    learner.sync()
    learner.receive(3, "heartbeat", B3, commit_index=2)
    [fetch] = learner.sent("fetch")
    learner.receive(3, "learn", B3, [batch(1, block("a"), B3, flags=1)], request_id=fetch["request_id"], commit_index=2)
    learner.sent()
    assert (learner.replica.commit_index, learner.replica.durable_index) == (2, 0)
    learner.sync()
    assert learner.replica.durable_index == 2


def test_53_an_unanswered_accept_is_sent_again() -> None:
    """Design, core contract: the core owns resending; the bytes are the same."""
    leader, entry = leader_with_proposal((1, 2, 3, 4, 5))
    leader.sync()
    leader.receive(3, "accepted", leader.replica.ballot, [entry])
    leader.tick(10)
    assert leader.sent("accept") == []
    leader.tick(300)
    again = leader.sent("accept")
    assert {message["to"] for message in again} == {2, 4, 5}
    assert [message["entries"] for message in again] == [[entry]] * 3


def test_53_a_lost_accept_is_sent_again_while_later_ones_go_through() -> None:
    """Design, core contract: progress behind a gap is none (simulation seed 22: nothing was committed any more)."""
    leader, lost = leader_with_proposal()
    leader.sync()
    leader.sent()
    sent_again = []
    for number in range(1, 11):
        assert leader.replica.open_session(bytes([number]) * 16, number) == 0
        leader.sync()
        entries = [entry for message in leader.sent("accept", to=2) for entry in message["entries"]]
        sent_again += [entry for entry in entries if entry == lost]
        leader.receive(2, "accepted", leader.replica.ballot, [entry for entry in entries if entry != lost])
        leader.tick(50)
    assert len(sent_again) in (1, 2)
    assert leader.replica.commit_index < lost["slot_begin"]
    leader.receive(2, "accepted", leader.replica.ballot, [lost])
    assert leader.replica.commit_index >= lost["slot_begin"] + 10


def test_53_a_reconnected_peer_is_sent_everything_that_is_open() -> None:
    """Design, core contract: a connection may have lost anything."""
    leader, entry = leader_with_proposal()
    leader.sync()
    leader.sent()
    leader.replica.peer_disconnected(2)
    leader.replica.peer_connected(2, 1)
    assert [item["slot_begin"] for message in leader.sent("accept", to=2) for item in message["entries"]] == [
        entry["slot_begin"]
    ]


def test_53_a_leader_never_proposes_after_promising_more() -> None:
    """5.1 and 5.3: a leader that promised a higher ballot has stopped leading."""
    leader, _ = leader_with_proposal()
    leader.receive(3, "prepare", pack_ballot(9, 3), slot_begin=1)
    assert leader.replica.role == "follower"
    assert leader.replica.open_session(bytes(16), "waiter") == 3
    leader.sync()
    assert leader.sent("accept") == []


def test_53_a_later_leader_of_the_same_node_uses_another_ballot() -> None:
    """5.2: Phase 1 runs once per leadership, each in a ballot of its own."""
    leader = LoneReplica()
    first = leader.lead()
    leader.replica.step_down()
    second = leader.lead()
    assert second > first


# Quorums


@pytest.mark.parametrize(("members", "phase1", "phase2"), [(3, 2, 2), (5, 3, 3), (5, 4, 2), (5, 1, 5), (4, 3, 2)])
def test_54_every_phase_1_quorum_meets_every_phase_2_quorum(members: int, phase1: int, phase2: int) -> None:
    """5.4: q1 + q2 > N. Brute force over all pairs of vote sets."""
    quorum = QuorumSystem(range(1, members + 1), phase1, phase2)
    sets = range(1 << members)
    for first in sets:
        for second in sets:
            if quorum.is_phase1_quorum(first) and quorum.is_phase2_quorum(second):
                assert first & second


@pytest.mark.parametrize(("members", "phase1", "phase2"), [(3, 1, 2), (4, 2, 2), (5, 2, 3), (3, 4, 1)])
def test_54_quorums_that_do_not_meet_are_refused(members: int, phase1: int, phase2: int) -> None:
    """5.4: such a configuration could choose twice."""
    with pytest.raises(ConfigError):
        QuorumSystem(range(1, members + 1), phase1, phase2)


def test_54_a_flexible_leader_counts_by_its_own_sizes() -> None:
    """5.4: with q1 = 4 and q2 = 2 of five, four promises are needed and two votes choose."""
    leader = LoneReplica(members=(1, 2, 3, 4, 5), phase1_quorum=4, phase2_quorum=2)
    ballot = leader.campaign()
    leader.sent()
    for peer in (2, 3):
        leader.receive(peer, "promise", ballot)
    assert leader.sent("accept") == []
    leader.receive(4, "promise", ballot)
    [accept] = leader.sent("accept", to=5)
    assert BlockView(accept["entries"][0]["block"]).kind == 1
    leader.sync()
    assert leader.replica.commit_index == 0
    leader.receive(5, "accepted", ballot, accept["entries"])
    assert leader.replica.commit_index == 1


def test_54_votes_of_strangers_are_refused() -> None:
    """5.4: a vote bit is a position in the configuration; whoever is not in it has none."""
    leader = LoneReplica()
    leader.lead()
    with pytest.raises(FrameError):
        leader.receive(4, "accepted", leader.replica.ballot, [batch(2, build_noop(1), leader.replica.ballot)])
    with pytest.raises(KeyError):
        QuorumSystem((1, 2, 3)).bit_of(4)


def test_53_what_is_chosen_is_committed_when_the_gap_before_it_closes_by_learning() -> None:
    """5.3: commit_index passes everything chosen without a gap, however the gap was closed."""
    leader = LoneReplica()
    first, second = batch(1, block("first"), B2), batch(2, block("second"), B2)
    leader.receive(2, "accept", B2, [first, second])
    ballot = leader.campaign()
    leader.sent()
    leader.receive(2, "promise", ballot)
    [accept] = leader.sent("accept", to=2)
    leader.sync()
    leader.receive(3, "accepted", ballot, accept["entries"][1:])
    leader.receive(2, "accepted", ballot, accept["entries"][1:])
    assert leader.replica.commit_index == 0
    leader.receive(3, "heartbeat_reply", ballot, commit_index=1)
    [fetch] = leader.sent("fetch")
    leader.receive(3, "learn", ballot, [{**first, "flags": 1}], request_id=fetch["request_id"], commit_index=1)
    leader.sent()
    assert (leader.replica.role, leader.replica.commit_index) == ("leader", 2)
