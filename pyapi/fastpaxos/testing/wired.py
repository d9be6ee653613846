"""Replicas wired together in memory, with a disk that syncs when told: for message-level tests and core benchmarks."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

from fastpaxos_core.block import build_block
from fastpaxos_core.journal import Journal
from fastpaxos_core.replica import Replica
from fastpaxos_core.results import encode_results
from fastpaxos_core.wire import FrameSplitter

CLUSTER_ID = b"test-cluster-id!"
SECOND_NS = 1_000_000_000


def empty_recovery() -> Any:
    """What Journal.open reports of a directory that never held anything."""
    return SimpleNamespace(promised_ballot=0, promised_known=True, commit_index=0, batches=[], unknown=[])


class WiredReplicas:
    """Replicas without a network or a disk: `run` carries messages and syncs journals until nothing moves.

    `cut` holds directed links (from, to) that lose everything; `stuck` holds nodes whose disk never finishes a sync.
    Every applied command is echoed as its own result, and is recorded in `applied`.
    """

    def __init__(self, members: list[int], **options: Any) -> None:
        self.now_ns = SECOND_NS
        self.replicas: dict[int, Replica] = {}
        self.splitters: dict[tuple[int, int], FrameSplitter] = {}
        self.cut: set[tuple[int, int]] = set()
        self.stuck: set[int] = set()
        self.unsynced: dict[int, list[int]] = {}
        self.applied: dict[int, list[bytes]] = {}
        self.replies: list[tuple[Any, ...]] = []
        self.ready_reads: list[tuple[Any, ...]] = []
        for node_id in members:
            self.replicas[node_id] = Replica(
                node_id=node_id,
                boot=1,
                incarnation=1000 + node_id,
                cluster_id=CLUSTER_ID,
                members=members,
                journal=Journal(node_id, 1000 + node_id, 1, 64 << 20),
                recovery=empty_recovery(),
                **options,
            )
            self.unsynced[node_id] = []
            self.applied[node_id] = []
            for other in members:
                if other != node_id:
                    self.splitters[node_id, other] = FrameSplitter(16 << 20, 64 << 20, CLUSTER_ID)
        self.tick(0)
        for node_id, replica in self.replicas.items():
            for other in members:
                if other != node_id:
                    replica.peer_connected(other, 1)

    def tick(self, elapsed_ms: int = 60) -> None:
        self.now_ns += elapsed_ms * 1_000_000
        for replica in self.replicas.values():
            replica.tick(self.now_ns, 10**18 + self.now_ns)

    def deliver(self) -> bool:
        """Carry out every output once; tell whether anything moved."""
        moved = False
        for node_id, replica in self.replicas.items():
            write = replica.take_write()
            if write is not None:
                self.unsynced[node_id].append(write.ticket)
                moved = True
            for peer, buffers in replica.take_messages():
                moved = True
                if (node_id, peer) in self.cut:
                    continue
                for frame in self.splitters[node_id, peer].feed(b"".join(buffers)):
                    self.replicas[peer].receive(node_id, frame)
            while (batch := replica.next_batch()) is not None:
                commands = list(batch.view)
                self.applied[node_id] += commands
                replica.complete_batch(encode_results(commands))
                moved = True
            self.replies += replica.take_replies()
            self.ready_reads += replica.take_ready_reads()
        return moved

    def sync(self) -> bool:
        """Finish one sync on every node whose disk is not stuck; tell whether there was one."""
        moved = False
        for node_id, tickets in self.unsynced.items():
            if tickets and node_id not in self.stuck:
                self.replicas[node_id].synced(tickets.pop(0))
                moved = True
        return moved

    def run(self) -> None:
        """Deliver and sync until nothing moves, with one tick so that late commit news travel too."""
        for elapsed_ms in (0, 60, 0):
            self.tick(elapsed_ms)
            while self.deliver() | self.sync():
                pass

    def elect(self, node_id: int) -> None:
        self.replicas[node_id].campaign()
        self.run()
        assert self.replicas[node_id].is_ready

    def open_session(self, leader: int, nonce: int = 1) -> int:
        waiter = object()
        assert self.replicas[leader].open_session(struct.pack("<QQ", nonce, 0), waiter) == 0
        self.run()
        (reply,) = [reply for reply in self.replies if reply[0] is waiter]
        session_id: int = reply[2]
        return session_id

    def submit(self, leader: int, session_id: int, sequence: int, commands: list[bytes], waiter: object = None) -> int:
        block = build_block(commands, session_id, sequence)
        return self.replicas[leader].submit(block, waiter if waiter is not None else (session_id, sequence))
