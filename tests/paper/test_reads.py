"""Rule 5.7, linearizable reads without clocks: read index by a numbered round.

Each docstring paraphrases one sentence of the rule. Paper: Ongaro, "Consensus" (2014), section 6.4.
"""

from __future__ import annotations

from fastpaxos.testing import LoneReplica, batch
from fastpaxos_core.ballot import pack_ballot
from fastpaxos_core.block import build_block
from fastpaxos_core.wire import ReplyStatus


def round_of(leader: LoneReplica, to: int = 2) -> int:
    """The newest read round that the leader asks `to` for."""
    return max((message["read_round"] for message in leader.sent("heartbeat", to=to)), default=0)


def test_57_a_follower_answers_no_read() -> None:
    """5.7: reads are the leader's."""
    assert LoneReplica().replica.read("reader") == ReplyStatus.NOT_LEADER


def test_57_a_leader_that_has_not_committed_in_its_own_ballot_answers_no_read() -> None:
    """5.7: the leader has committed in its own ballot, or it does not know what is committed."""
    leader = LoneReplica()
    ballot = leader.campaign()
    assert leader.replica.read("reader") == ReplyStatus.NOT_LEADER
    leader.receive(2, "promise", ballot)
    leader.sync()
    assert leader.replica.role == "leader"
    assert leader.replica.read("reader") == ReplyStatus.NOT_READY
    leader.accept_all(2)
    leader.apply()
    assert leader.replica.read("reader") == ReplyStatus.OK


def test_57_a_leader_answers_no_read_before_all_that_it_took_over_is_applied() -> None:
    """5.7: what it proposed again may have been acknowledged by an earlier leader, up to the very last slot."""
    old = pack_ballot(1, 2)
    values = [batch(slot, build_block([b"v%d" % slot], 9, slot), old) for slot in (1, 2)]
    leader = LoneReplica()
    leader.receive(2, "accept", old, values)
    ballot = leader.campaign()
    leader.receive(3, "promise", ballot)
    leader.sync()
    assert leader.replica.role == "leader"
    for value, status in zip(values, (ReplyStatus.NOT_READY, ReplyStatus.OK), strict=True):
        leader.receive(3, "accepted", ballot, [{**value, "ballot": ballot}])
        leader.apply()
        assert leader.replica.commit_index == leader.replica.applied_index == value["slot_begin"]
        assert leader.replica.read("reader") == status


def test_57_a_quorum_must_echo_the_round() -> None:
    """5.7: the round is echoed by a Phase 2 quorum."""
    leader = LoneReplica(members=(1, 2, 3))
    ballot = leader.lead()
    leader.replica.read("reader")
    number = round_of(leader)
    assert number > 0
    assert leader.replica.take_ready_reads() == []
    leader.receive(2, "heartbeat_reply", ballot, read_round=number)
    assert leader.replica.take_ready_reads() == [("reader", ReplyStatus.OK, 1)]
    assert leader.replica.take_ready_reads() == []


def test_57_one_echo_is_one_vote() -> None:
    """5.7: a quorum of members, not of messages."""
    leader = LoneReplica(members=(1, 2, 3), phase1_quorum=1, phase2_quorum=3)
    ballot = leader.campaign()
    [first, second] = [message["entries"] for message in leader.sent("accept")]
    leader.receive(2, "accepted", ballot, first)
    leader.receive(3, "accepted", ballot, second)
    leader.apply()
    assert leader.replica.read("reader") == ReplyStatus.OK
    number = round_of(leader)
    for _ in range(3):
        leader.receive(2, "heartbeat_reply", ballot, read_round=number)
    assert leader.replica.take_ready_reads() == []
    leader.receive(3, "heartbeat_reply", ballot, read_round=number)
    assert [status for _, status, _ in leader.replica.take_ready_reads()] == [ReplyStatus.OK]


def test_57_an_echo_of_an_older_round_proves_nothing() -> None:
    """5.7: the round must have been sent after the read arrived."""
    leader = LoneReplica()
    ballot = leader.lead()
    leader.replica.read("early")
    early = round_of(leader)
    leader.replica.read("late")
    leader.receive(2, "heartbeat_reply", ballot, read_round=early)
    assert [waiter for waiter, _, _ in leader.replica.take_ready_reads()] == ["early"]
    late = round_of(leader)
    assert late > early
    leader.receive(2, "heartbeat_reply", ballot, read_round=early)
    assert leader.replica.take_ready_reads() == []
    leader.receive(2, "heartbeat_reply", ballot, read_round=late)
    assert [waiter for waiter, _, _ in leader.replica.take_ready_reads()] == ["late"]


def test_57_many_reads_share_one_round() -> None:
    """5.7: reads that arrive while a round is out share the next one."""
    leader = LoneReplica()
    ballot = leader.lead()
    readers = [f"reader {number}" for number in range(100)]
    leader.replica.read("first")
    number = round_of(leader)
    for reader in readers:
        leader.replica.read(reader)
    leader.receive(2, "heartbeat_reply", ballot, read_round=number)
    leader.replica.take_ready_reads()
    number = round_of(leader)
    leader.receive(2, "heartbeat_reply", ballot, read_round=number)
    assert [waiter for waiter, _, _ in leader.replica.take_ready_reads()] == readers


def test_57_an_echo_in_another_ballot_is_not_counted() -> None:
    """5.7: the acceptor's promised ballot equals the leader's."""
    leader = LoneReplica()
    ballot = leader.lead()
    leader.replica.read("reader")
    number = round_of(leader)
    for other in (ballot - (1 << 16), ballot + (1 << 16)):
        leader.receive(2, "heartbeat_reply", other, read_round=number)
    leader.receive(2, "heartbeat_reply", ballot, read_round=number, proposer_boot=9)
    assert leader.replica.take_ready_reads() == []


def test_57_an_acceptor_echoes_only_the_ballot_that_it_promised() -> None:
    """5.7: whoever promised more refuses, and says so."""
    acceptor = LoneReplica()
    acceptor.receive(3, "prepare", pack_ballot(4, 3), slot_begin=1)
    acceptor.sync()
    acceptor.sent()
    acceptor.receive(2, "heartbeat", pack_ballot(3, 2), read_round=8)
    acceptor.sync()
    assert [message["message"] for message in acceptor.sent()] == ["nack"]


def test_57_a_leader_that_promised_more_fails_its_reads() -> None:
    """5.7: the leader's own promise must be its ballot, too."""
    leader = LoneReplica()
    leader.lead()
    leader.replica.read("reader")
    leader.receive(3, "prepare", pack_ballot(9, 3), slot_begin=1)
    assert leader.replica.take_ready_reads() == [("reader", ReplyStatus.NOT_LEADER, 0)]


def test_57_the_answer_waits_for_apply() -> None:
    """5.7: the answer waits until applied_index reaches the read index."""
    leader = LoneReplica()
    ballot = leader.lead()
    leader.replica.open_session(bytes(16), "opener")
    entries = leader.accept_all(2)
    assert leader.replica.commit_index == entries[-1]["slot_end"] - 1
    applied = leader.replica.applied_index
    leader.replica.read("reader")
    leader.receive(2, "heartbeat_reply", ballot, read_round=round_of(leader))
    assert leader.replica.applied_index == applied
    assert leader.replica.take_ready_reads() == []
    leader.apply()
    assert leader.replica.take_ready_reads() == [("reader", ReplyStatus.OK, leader.replica.commit_index)]


def test_57_a_minimum_index_is_waited_for() -> None:
    """Design, data: a query has room for a minimum index, below which it is not answered."""
    leader = LoneReplica()
    ballot = leader.lead()
    leader.replica.read("reader", 2)
    leader.receive(2, "heartbeat_reply", ballot, read_round=round_of(leader))
    assert leader.replica.take_ready_reads() == []
    leader.replica.open_session(bytes(16), "opener")
    leader.accept_all(2)
    leader.apply()
    assert leader.replica.take_ready_reads() == [("reader", ReplyStatus.OK, 2)]


def test_57_a_lone_replica_is_its_own_quorum() -> None:
    """5.7 for one member: its own promise is the quorum."""
    replica = LoneReplica(members=(1,))
    replica.campaign()
    replica.sync()
    replica.apply()
    assert replica.replica.read("reader") == ReplyStatus.OK
    replica.sent()
    assert [status for _, status, _ in replica.replica.take_ready_reads()] == [ReplyStatus.OK]


def test_57_a_read_that_waits_for_apply_falls_with_the_leadership() -> None:
    """5.7: confirmed and not yet applied is not answered by a leader that is none any more."""
    leader = LoneReplica()
    ballot = leader.lead()
    leader.replica.read("reader", 50)
    leader.receive(2, "heartbeat_reply", ballot, read_round=round_of(leader))
    leader.replica.step_down()
    assert leader.replica.take_ready_reads() == [("reader", ReplyStatus.NOT_LEADER, 0)]


def test_57_a_read_that_arrives_while_a_round_is_out_waits_for_the_next_one() -> None:
    """5.7: the round is sent after the read arrived."""
    leader = LoneReplica()
    ballot = leader.lead()
    leader.replica.read("early")
    number = round_of(leader)
    leader.replica.read("late")
    leader.replica.take_messages()
    leader.receive(2, "heartbeat_reply", ballot, read_round=number)
    assert [waiter for waiter, *_ in leader.replica.take_ready_reads()] == ["early"]
    following = round_of(leader)
    assert following > number
    leader.receive(2, "heartbeat_reply", ballot, read_round=following)
    assert [waiter for waiter, *_ in leader.replica.take_ready_reads()] == ["late"]
