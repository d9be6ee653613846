"""`LoneReplica`: one real replica, its disk and its peers driven by hand, message by message.

For tests that read like the paper: what arrives is written as decoded messages, and so is what leaves.

    acceptor = LoneReplica(node_id=1)
    acceptor.receive(2, "prepare", ballot, slot_begin=1)
    assert acceptor.sent() == []          # the promise is not on disk yet
    acceptor.sync()
    assert acceptor.sent("promise")[0]["ballot"] == ballot
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from fastpaxos_core.block import BlockView, value_crc
from fastpaxos_core.directory import perform
from fastpaxos_core.hashchain import HashChainState
from fastpaxos_core.journal import Journal, JournalWrite
from fastpaxos_core.messages import decode_message, encode_message
from fastpaxos_core.replica import Replica
from fastpaxos_core.wire import Frame, FrameSplitter, FrameWriter

from .disk import SimDisk

__all__ = ["LoneReplica", "batch"]

_FRAME_LIMIT = 1 << 26


def batch(slot_begin: int, block: bytes, ballot: int, timestamp_ns: int = 1, flags: int = 0) -> dict[str, Any]:
    """Return one entry of an accept, promise or learn message: `block` in the slots from `slot_begin` on."""
    view = BlockView(block)
    slot_end = slot_begin + view.command_count
    return {
        "slot_begin": slot_begin,
        "slot_end": slot_end,
        "ballot": ballot,
        "timestamp_ns": timestamp_ns,
        "block_bytes": len(block),
        "value_crc": value_crc(slot_begin, slot_end, timestamp_ns, view.crc),
        "flags": flags,
        "reserved": 0,
        "block": block,
    }


class LoneReplica:
    """A replica among peers that the test plays.

    Args:
        node_id, members: the configuration; every peer is connected with boot 1.
        settings: further keywords of Replica.
    """

    def __init__(self, node_id: int = 1, members: Sequence[int] = (1, 2, 3), **settings: Any) -> None:
        self.node_id = node_id
        self.members = tuple(members)
        self.peers = [member for member in self.members if member != node_id]
        self.settings: dict[str, Any] = {
            "window_slots": 64,
            "ring_slots": 256,
            "commands_per_block_max": 64,
            **settings,
        }
        self.disk = SimDisk()
        self.cluster_id = bytes(16)
        self.boot = 0
        self.now_ns = 1_000_000_000
        self.wall_ns = 5_000_000_000
        self.writing: JournalWrite | None = None
        self._sent: list[dict[str, Any]] = []
        self.start()

    # Life

    def start(self) -> None:
        """Start (again) from the disk, and connect all peers."""
        self.boot += 1
        self.journal, self.recovery = Journal.open(
            self.disk, node_id=self.node_id, incarnation=77, boot=self.boot, segment_bytes=1 << 16
        )
        self.replica = Replica(
            node_id=self.node_id,
            boot=self.boot,
            incarnation=77,
            cluster_id=self.cluster_id,
            members=self.members,
            journal=self.journal,
            recovery=self.recovery,
            **self.settings,
        )
        self.machine = HashChainState()
        self.applied: list[tuple[int, list[bytes]]] = []
        self.writing = None
        self._sent.clear()
        self.replica.tick(self.now_ns, self.wall_ns)
        for peer in self.peers:
            self.replica.peer_connected(peer, 1)

    def crash(self, survival: float = 0.0) -> None:
        """Die and start again; of what was not synced this share of the sectors survives."""
        self.disk.crash(Random(1), survival)
        self.start()

    def tick(self, milliseconds: int = 10) -> None:
        """Let time pass."""
        self.now_ns += milliseconds * 1_000_000
        self.wall_ns += milliseconds * 1_000_000
        self.replica.tick(self.now_ns, self.wall_ns)

    # Messages

    def frame(
        self, peer: int, name: str, ballot: int, entries: Sequence[dict[str, Any]] = (), boot: int = 1, **fields: int
    ) -> Frame:
        """Build a frame of `peer` through the real writer and splitter."""
        writer = FrameWriter(peer, 1000 + peer, boot, self.cluster_id)
        if name in ("promise", "accepted"):
            # These name values; only accept and learn carry them.
            entries = [{key: value for key, value in entry.items() if key != "block"} for entry in entries]
        data = encode_message(writer, name, ballot, entries, **fields)
        [frame] = FrameSplitter(_FRAME_LIMIT, _FRAME_LIMIT, None).feed(data)
        return frame

    def receive(
        self,
        peer: int,
        name: str,
        ballot: int = 0,
        entries: Sequence[dict[str, Any]] = (),
        boot: int = 1,
        **fields: int,
    ) -> None:
        """A message of `peer` arrives. Fields that are not named are 0, but proposer_boot is that of this replica."""
        if name in ("promise", "accepted", "heartbeat_reply"):
            fields = {"proposer_boot": self.boot, **fields}
        if name == "promise":
            fields = {"part_count": 1, "slot_begin": 1, **fields}
        self.replica.receive(peer, self.frame(peer, name, ballot, entries, boot, **fields))

    def sent(self, name: str = "", to: int = 0) -> list[dict[str, Any]]:
        """Take the messages sent since the last call, decoded, with "to"; only those of one name or peer if given."""
        self._collect()
        taken, self._sent = self._sent, []
        return [message for message in taken if name in ("", message["message"]) and to in (0, message["to"])]

    def _collect(self) -> None:
        for peer, buffers in self.replica.take_messages():
            data = b"".join(bytes(buffer) for buffer in buffers)
            for frame in FrameSplitter(_FRAME_LIMIT, _FRAME_LIMIT, None).feed(data):
                self._sent.append({**decode_message(frame), "to": peer})

    # Disk

    def begin_write(self) -> bool:
        """Write what is pending without syncing it; tell whether there was anything."""
        if self.writing is not None:
            raise AssertionError("the write before is still out")
        self.writing = self.replica.take_write()
        if self.writing is not None:
            perform(self.disk, self.writing, durable=False)
        return self.writing is not None

    def end_write(self) -> None:
        """The sync of begin_write's bytes has ended."""
        if self.writing is None:
            raise AssertionError("nothing is being written")
        if self.writing.new_segment is not None:
            self.disk.sync_directory()
        self.disk.sync(self.writing.segment_name)
        ticket, self.writing = self.writing.ticket, None
        self.replica.synced(ticket)

    def sync(self) -> None:
        """Write and sync everything that waits for the disk."""
        if self.writing is not None:
            self.end_write()
        while self.begin_write():
            self.end_write()

    def write_marker(self) -> bool:
        """Write the marker that names the durable point, if one is due; it is not synced."""
        marker = self.replica.take_marker()
        if marker is not None:
            perform(self.disk, marker, durable=False)
        return marker is not None

    # State machine

    def apply(self) -> list[tuple[int, list[bytes]]]:
        """Apply what is committed, reading back from the journal what must be; return [(slot_begin, commands)]."""
        begin = len(self.applied)
        while True:
            while (handed := self.replica.next_batch()) is not None:
                self.applied.append((handed.slot_begin, handed.view.commands()))
                self.replica.complete_batch(self.machine.fold(handed.view))
            reads = self.replica.take_reads()
            for read in reads:
                self.replica.journal_data(read, self.disk.read(read.segment_name, read.offset, read.length))
            if not reads:
                return self.applied[begin:]

    # Leading

    def campaign(self, above: int = 0) -> int:
        """Begin Phase 1 in a ballot higher than `above`, make the promise durable, and return the ballot.

        Messages are left to be taken.
        """
        if above:
            self.receive(self.peers[0], "nack", promised_ballot=above)
        self.replica.campaign()
        self.sync()
        return self.replica.ballot

    def lead(self, voter: int = 0) -> int:
        """Become a leader that is ready, with one voter (the first peer by default); return the ballot."""
        voter = voter or self.peers[0]
        ballot = self.campaign()
        [prepare] = self.sent("prepare", to=voter)
        self.receive(voter, "promise", ballot, slot_begin=prepare["slot_begin"], commit_index=self.replica.commit_index)
        self.accept_all(voter)
        self.apply()
        if not self.replica.is_ready:
            raise AssertionError(f"{self.replica.role} of ballot {ballot} is not ready")
        self.sent()
        return ballot

    def accept_all(self, voter: int) -> list[dict[str, Any]]:
        """Sync, and let `voter` accept everything proposed to it; return the proposed batches."""
        self.sync()
        entries = [entry for message in self.sent("accept", to=voter) for entry in message["entries"]]
        if entries:
            self.receive(voter, "accepted", self.replica.ballot, entries)
        self.sync()
        return entries
