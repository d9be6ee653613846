"""Push COUNT batches of SLOTS slots through three replicas in one thread; counts what instruction counters see.

Run it under `valgrind --tool=callgrind` with two counts and subtract, so that start-up cancels (bench/instructions.py
does that). Everything is included that the core does for a batch on a leader and two followers: admit, accept, frame
encoding and splitting, block and frame checksums, journal sealing, votes, commit, deliver, session table, reply.
"""

from __future__ import annotations

import struct
import sys

from fastpaxos.testing.wired import WiredReplicas
from fastpaxos_core.block import build_block, crc32c
from fastpaxos_core.results import uniform_results

MEMBERS = [1, 2, 3]
PIPELINE = 8
"""Blocks that arrive before the loop looks at its outputs again, as under load."""


class BareCluster(WiredReplicas):
    """Applies without looking at the commands: the state machine's work is not the core's."""

    def deliver(self) -> bool:
        moved = False
        for node_id, replica in self.replicas.items():
            write = replica.take_write()
            if write is not None:
                self.unsynced[node_id].append(write.ticket)
                moved = True
            for peer, buffers in replica.take_messages():
                splitter = self.splitters[node_id, peer]
                for data in buffers:
                    for frame in splitter.feed(data):
                        self.replicas[peer].receive(node_id, frame)
                moved = True
            while (batch := replica.next_batch()) is not None:
                replica.complete_batch(RESULTS[len(batch.view)])
                moved = True
            self.replies += replica.take_replies()
        return moved


RESULTS: dict[int, bytes] = {}


def main(batch_count: int, slot_count: int) -> None:
    RESULTS[slot_count] = uniform_results(slot_count, b"r" * 8 * slot_count)
    cluster = BareCluster(MEMBERS)
    cluster.elect(1)
    session_id = cluster.open_session(1)
    first_commit = cluster.replicas[1].commit_index
    commands = [b"0123456789abcdef"] * slot_count
    template = bytearray(build_block(commands, session_id, 1))
    blocks = []
    for index in range(batch_count):
        # Encoding is the client's work: only sequence and checksum of one encoded block are changed.
        struct.pack_into("<QQ", template, 24, index * slot_count + 1, index * slot_count + 1)
        struct.pack_into("<I", template, 4, crc32c(template[8:], crc32c(template[:4])))
        blocks.append(bytes(template))
    leader = cluster.replicas[1]
    for begin in range(0, batch_count, PIPELINE):
        for block in blocks[begin : begin + PIPELINE]:
            if leader.submit(block, block) != 0:
                raise SystemExit("the leader refused a block")
        while cluster.deliver() | cluster.sync():
            pass
    cluster.run()
    committed = {replica.commit_index - first_commit for replica in cluster.replicas.values()}
    answered = cluster.replies[-1][0] is blocks[-1]
    if committed != {batch_count * slot_count} or not answered:
        raise SystemExit(f"committed {committed} slots, expected {batch_count * slot_count}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
