"""Phase 2 in the core: propose, accept, vote, commit and deliver, at several batch sizes. No network, no disk."""

from __future__ import annotations

from typing import Any

import pytest

from fastpaxos.testing.wired import WiredReplicas
from fastpaxos_core.block import build_block
from fastpaxos_core.messages import decode_message, encode_message
from fastpaxos_core.results import uniform_results
from fastpaxos_core.wire import Frame, FrameSplitter, FrameWriter

MEMBERS = [1, 2, 3]
LEADER, FOLLOWER, OTHER = MEMBERS
ROUNDS = 200
BATCH_SIZES = [1, 64, 1024, 4096]
PAYLOAD = b"0123456789abcdef"


class Phase2:
    """Three replicas whose messages are carried by hand, so that one step of one batch can be timed alone."""

    def __init__(self, slot_count: int) -> None:
        self.slot_count = slot_count
        self.cluster = WiredReplicas(MEMBERS)
        self.cluster.elect(LEADER)
        self.session_id = self.cluster.open_session(LEADER)
        self.replicas = self.cluster.replicas
        self.leader = self.replicas[LEADER]
        self.follower = self.replicas[FOLLOWER]
        self.first_commit = self.leader.commit_index
        self.sequence = 1
        self.results = uniform_results(slot_count, bytes(8 * slot_count))
        self.splitters = {
            (sender, receiver): FrameSplitter(1 << 20, 64 << 20, None) for sender in MEMBERS for receiver in MEMBERS
        }

    def block(self) -> bytes:
        block = build_block([PAYLOAD] * self.slot_count, self.session_id, self.sequence, self.sequence)
        self.sequence += self.slot_count
        return block

    def sync(self, node_id: int) -> None:
        """Let the journal of a node be durable."""
        write = self.replicas[node_id].take_write()
        if write is not None:
            self.replicas[node_id].synced(write.ticket)

    def frames(self, node_id: int) -> dict[int, list[Frame]]:
        """What a node sends now, by receiver."""
        found: dict[int, list[Frame]] = {receiver: [] for receiver in MEMBERS}
        for receiver, buffers in self.replicas[node_id].take_messages():
            found[receiver] += self.splitters[node_id, receiver].feed(b"".join(buffers))
        return found

    def propose(self) -> dict[int, list[Frame]]:
        """Submit a batch, durable at the leader; return its Accept by receiver."""
        assert self.leader.submit(self.block(), None) == 0
        self.sync(LEADER)
        return self.frames(LEADER)

    def vote_of(self, node_id: int, accepts: dict[int, list[Frame]]) -> Frame:
        """Let a follower accept and sync; return its one Accepted."""
        for frame in accepts[node_id]:
            self.replicas[node_id].receive(LEADER, frame)
        self.sync(node_id)
        (frame,) = self.frames(node_id)[LEADER]
        return frame

    def commit_frame(self) -> Frame:
        """The Commit by which the leader tells its commit_index."""
        writer = FrameWriter(LEADER, 1000 + LEADER, 1, b"test-cluster-id!")
        frame = encode_message(writer, "commit", self.leader.ballot, commit_index=self.leader.commit_index)
        return self.splitters[LEADER, LEADER].feed(frame)[0]

    def apply(self) -> None:
        """Apply what is committed, on every replica, and drop the answers."""
        for replica in self.replicas.values():
            while replica.next_batch() is not None:
                replica.complete_batch(self.results)
            replica.take_replies()

    def finish_round(self) -> None:
        """Bring all replicas to the same point: the next round begins as this one did."""
        for node_id in (FOLLOWER, OTHER):
            self.replicas[node_id].receive(LEADER, self.commit_frame())
            self.sync(node_id)
            self.frames(node_id)
        self.frames(LEADER)
        self.apply()

    @property
    def committed_batches(self) -> float:
        return (self.leader.commit_index - self.first_commit) / self.slot_count


@pytest.fixture(params=BATCH_SIZES)
def phase2(request: pytest.FixtureRequest, benchmark: Any) -> Phase2:
    benchmark.extra_info["slots_per_batch"] = request.param
    benchmark.extra_info["payload_bytes"] = len(PAYLOAD)
    return Phase2(request.param)


def per_slot(benchmark: Any, phase2: Phase2) -> None:
    benchmark.extra_info["ns_per_slot"] = round(benchmark.stats.stats.median * 1e9 / phase2.slot_count, 2)


@pytest.mark.benchmark(group="propose")
def bench_propose(benchmark: Any, phase2: Phase2) -> None:
    """The leader admits a block and accepts it itself: session order, block checksum, slot arrays, journal record."""

    def setup() -> tuple[tuple[bytes, None], dict[str, Any]]:
        if phase2.leader.last_slot > phase2.first_commit:
            phase2.sync(LEADER)
            accepts = phase2.frames(LEADER)
            phase2.leader.receive(OTHER, phase2.vote_of(OTHER, accepts))
            phase2.vote_of(FOLLOWER, accepts)
            phase2.finish_round()
        return (phase2.block(), None), {}

    assert benchmark.pedantic(phase2.leader.submit, setup=setup, rounds=ROUNDS) == 0
    assert phase2.leader.last_slot == phase2.first_commit + ROUNDS * phase2.slot_count
    assert phase2.committed_batches == ROUNDS - 1
    per_slot(benchmark, phase2)


@pytest.mark.benchmark(group="accept")
def bench_accept(benchmark: Any, phase2: Phase2) -> None:
    """A follower accepts one batch: block checksum, slot arrays, journal record."""

    def setup() -> tuple[tuple[int, Frame], dict[str, Any]]:
        phase2.finish_round()
        accepts = phase2.propose()
        phase2.leader.receive(OTHER, phase2.vote_of(OTHER, accepts))
        (frame,) = accepts[FOLLOWER]
        return (LEADER, frame), {}

    benchmark.pedantic(phase2.follower.receive, setup=setup, rounds=ROUNDS)
    assert phase2.follower.last_slot == phase2.first_commit + ROUNDS * phase2.slot_count
    assert phase2.committed_batches == ROUNDS
    per_slot(benchmark, phase2)


@pytest.mark.benchmark(group="vote, follower")
def bench_vote(benchmark: Any, phase2: Phase2) -> None:
    """A follower whose sync has ended answers with its vote: the frame that goes to the leader."""
    votes: list[Frame] = []

    def setup() -> tuple[tuple[int], dict[str, Any]]:
        phase2.finish_round()
        accepts = phase2.propose()
        phase2.leader.receive(OTHER, phase2.vote_of(OTHER, accepts))
        for frame in accepts[FOLLOWER]:
            phase2.follower.receive(LEADER, frame)
        write = phase2.follower.take_write()
        assert write is not None
        return (write.ticket,), {}

    def vote(ticket: int) -> None:
        phase2.follower.synced(ticket)
        ((_, buffers),) = phase2.follower.take_messages()
        votes.append(phase2.splitters[FOLLOWER, LEADER].feed(b"".join(buffers))[0])

    benchmark.pedantic(vote, setup=setup, rounds=ROUNDS)
    ranges = [entry for frame in votes for entry in decode_message(frame)["entries"]]
    assert [entry["slot_end"] - entry["slot_begin"] for entry in ranges] == [phase2.slot_count] * ROUNDS
    assert ranges[-1]["slot_end"] == phase2.first_commit + ROUNDS * phase2.slot_count + 1
    per_slot(benchmark, phase2)


@pytest.mark.benchmark(group="vote and commit, leader")
def bench_count_vote(benchmark: Any, phase2: Phase2) -> None:
    """The leader counts the vote that completes a quorum, and commits."""

    def setup() -> tuple[tuple[int, Frame], dict[str, Any]]:
        phase2.finish_round()
        return (OTHER, phase2.vote_of(OTHER, phase2.propose())), {}

    benchmark.pedantic(phase2.leader.receive, setup=setup, rounds=ROUNDS)
    assert phase2.committed_batches == ROUNDS
    per_slot(benchmark, phase2)


@pytest.mark.benchmark(group="commit, follower")
def bench_commit(benchmark: Any, phase2: Phase2) -> None:
    """A follower that has accepted a batch hears that it is committed."""

    def setup() -> tuple[tuple[int, Frame], dict[str, Any]]:
        phase2.finish_round()
        accepts = phase2.propose()
        phase2.leader.receive(OTHER, phase2.vote_of(OTHER, accepts))
        phase2.vote_of(FOLLOWER, accepts)
        assert phase2.follower.commit_index == phase2.leader.commit_index - phase2.slot_count
        return (LEADER, phase2.commit_frame()), {}

    benchmark.pedantic(phase2.follower.receive, setup=setup, rounds=ROUNDS)
    assert phase2.follower.commit_index == phase2.leader.commit_index
    assert phase2.committed_batches == ROUNDS
    per_slot(benchmark, phase2)


@pytest.mark.benchmark(group="deliver")
def bench_deliver(benchmark: Any, phase2: Phase2) -> None:
    """Hand a committed batch to the state machine, record its results in the session table, answer the waiter."""

    def setup() -> None:
        phase2.finish_round()
        phase2.leader.receive(OTHER, phase2.vote_of(OTHER, phase2.propose()))

    def deliver() -> None:
        assert phase2.leader.next_batch() is not None
        phase2.leader.complete_batch(phase2.results)

    benchmark.pedantic(deliver, setup=setup, rounds=ROUNDS)
    assert phase2.leader.applied_index == phase2.leader.commit_index
    assert phase2.committed_batches == ROUNDS
    assert phase2.leader.sessions.last_sequence(phase2.session_id) == ROUNDS * phase2.slot_count
    per_slot(benchmark, phase2)
