"""Phase 2 in the core: accept, vote, commit and deliver, at several batch sizes. No network, no disk."""

from __future__ import annotations

from typing import Any

import pytest

from fastpaxos.testing.wired import WiredReplicas
from fastpaxos_core.block import build_block
from fastpaxos_core.messages import decode_message, encode_message
from fastpaxos_core.results import uniform_results
from fastpaxos_core.wire import Frame, FrameSplitter, FrameWriter

MEMBERS = [1, 2, 3]
ROUNDS = 200
BATCH_SIZES = [1, 16, 256, 1024, 4096]


class Phase2:
    """A leader (node 1) and a follower (node 2) whose messages are kept instead of delivered."""

    def __init__(self, slot_count: int) -> None:
        self.slot_count = slot_count
        self.cluster = WiredReplicas(MEMBERS)
        self.cluster.elect(1)
        self.session_id = self.cluster.open_session(1)
        self.leader = self.cluster.replicas[1]
        self.follower = self.cluster.replicas[2]
        self.first_commit = self.leader.commit_index
        self.sequence = 1
        self.results = uniform_results(slot_count, bytes(8 * slot_count))
        self.splitter = FrameSplitter(1 << 20, 64 << 20, None)

    def block(self) -> bytes:
        block = build_block([b"0123456789abcdef"] * self.slot_count, self.session_id, self.sequence, self.sequence)
        self.sequence += self.slot_count
        return block

    def frames_to(self, peer: int) -> list[Frame]:
        frames = []
        for target, buffers in self.leader.take_messages():
            if target == peer:
                frames += self.splitter.feed(b"".join(buffers))
        return frames

    def sync(self, replica: Any) -> None:
        write = replica.take_write()
        if write is not None:
            replica.synced(write.ticket)


@pytest.fixture(params=BATCH_SIZES)
def phase2(request: pytest.FixtureRequest, benchmark: Any) -> Phase2:
    benchmark.extra_info["slots_per_batch"] = request.param
    benchmark.extra_info["payload_bytes"] = 16
    return Phase2(request.param)


def per_slot(benchmark: Any, phase2: Phase2) -> None:
    benchmark.extra_info["ns_per_slot"] = round(benchmark.stats.stats.median * 1e9 / phase2.slot_count, 2)


@pytest.mark.benchmark(group="accept")
def bench_accept(benchmark: Any, phase2: Phase2) -> None:
    """A follower accepts one batch: CRC check, slot arrays, journal record."""

    def setup() -> tuple[tuple[Frame], dict[str, Any]]:
        phase2.sync(phase2.follower)
        phase2.follower.take_messages()
        assert phase2.leader.submit(phase2.block(), None) == 0
        phase2.sync(phase2.leader)
        (frame,) = phase2.frames_to(2)
        vote = {"slot_begin": phase2.leader.last_slot - phase2.slot_count + 1, "slot_end": phase2.leader.last_slot + 1}
        entry = decode_message(frame)["entries"][0]
        answer = encode_message(
            FrameWriter(3, 1003, 1, b"test-cluster-id!"), "accepted", frame.ballot,
            [{**vote, "value_crc": entry["value_crc"]}], proposer_boot=1,
        )  # fmt: skip
        phase2.leader.receive(3, phase2.splitter.feed(answer)[0])
        while phase2.leader.next_batch() is not None:
            phase2.leader.complete_batch(phase2.results)
        return (frame,), {}

    benchmark.pedantic(lambda frame: phase2.follower.receive(1, frame), setup=setup, rounds=ROUNDS)
    assert phase2.follower.last_slot == phase2.first_commit + ROUNDS * phase2.slot_count
    per_slot(benchmark, phase2)


@pytest.mark.benchmark(group="vote and commit")
def bench_vote(benchmark: Any, phase2: Phase2) -> None:
    """The leader counts the vote that completes a quorum, and commits."""
    writer = FrameWriter(3, 1003, 1, b"test-cluster-id!")

    def setup() -> tuple[tuple[Frame], dict[str, Any]]:
        while phase2.leader.next_batch() is not None:
            phase2.leader.complete_batch(phase2.results)
        phase2.leader.take_replies()
        assert phase2.leader.submit(phase2.block(), None) == 0
        phase2.sync(phase2.leader)
        entry = decode_message(phase2.frames_to(2)[-1])["entries"][-1]
        answer = encode_message(writer, "accepted", phase2.leader.ballot, [entry | {"reserved": 0}], proposer_boot=1)
        return (phase2.splitter.feed(answer)[0],), {}

    benchmark.pedantic(lambda frame: phase2.leader.receive(3, frame), setup=setup, rounds=ROUNDS)
    assert phase2.leader.commit_index == phase2.first_commit + ROUNDS * phase2.slot_count
    per_slot(benchmark, phase2)


@pytest.mark.benchmark(group="deliver")
def bench_deliver(benchmark: Any, phase2: Phase2) -> None:
    """Hand a committed batch to the state machine, record its results in the session table, answer the waiter."""
    writer = FrameWriter(3, 1003, 1, b"test-cluster-id!")
    answered = 0

    def setup() -> None:
        assert phase2.leader.submit(phase2.block(), None) == 0
        phase2.sync(phase2.leader)
        entry = decode_message(phase2.frames_to(2)[-1])["entries"][-1]
        answer = encode_message(writer, "accepted", phase2.leader.ballot, [entry | {"reserved": 0}], proposer_boot=1)
        phase2.leader.receive(3, phase2.splitter.feed(answer)[0])

    def deliver() -> None:
        nonlocal answered
        batch = phase2.leader.next_batch()
        assert batch is not None
        phase2.leader.complete_batch(phase2.results)
        answered += 1

    benchmark.pedantic(deliver, setup=setup, rounds=ROUNDS)
    assert phase2.leader.applied_index == phase2.first_commit + answered * phase2.slot_count
    assert answered == ROUNDS
    per_slot(benchmark, phase2)
