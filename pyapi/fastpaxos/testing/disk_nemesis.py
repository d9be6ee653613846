"""What the nemesis does to disks: failing calls, full disks, rot, writes that were lost or misdirected, lost disks.

Rot keeps to the fault model (docs/protocol.md, "Journal"): never the last writes of a journal, whose loss nothing would
show; and on at most as many replicas per slot as the cluster can lose, unless the options say "everywhere".
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from .disk import SyncFailure
from .journal_view import WRITE_HEADER_BYTES

if TYPE_CHECKING:
    from .cluster import SimCluster
    from .node import SimNode

__all__ = ["DiskNemesis"]

# Writes at the end of a journal that are left alone: they are the evidence that those before them were durable.
_SPARED_WRITES = 3
_STRIPE_SLOTS = 16
_PAGE_BYTES = 4096
_ROOM_MAX_BYTES = 8192


class DiskNemesis:
    """Breaks the disks of one cluster."""

    def __init__(self, cluster: SimCluster) -> None:
        self._cluster = cluster
        losses = min(cluster.losses_max, cluster.options.nodes)
        where = cluster.options.nemesis.rot_where
        self.faulty = (
            set(cluster.members) if where != "minority" else set(cluster.random.sample(cluster.members, losses))
        )
        """Nodes whose disks may be damaged for good."""

    def actions(self) -> list[tuple[float, Callable[[], None]]]:
        """(weight, action) of everything that can be done."""
        options = self._cluster.options.nemesis
        return [
            (options.fail_sync, self._fail_sync),
            (options.fail_write, self._fail_write),
            (options.fail_read, self._fail_read),
            (options.fill_disk, self._fill_disk),
            (options.rot, self._rot),
            (options.lose_disk if options.rot_where == "minority" else 0.0, self._lose_disk),
        ]

    def _note(self, kind: str, text: str) -> None:
        self._cluster.marks[kind] += 1
        self._cluster.note(text)

    def _running(self) -> SimNode | None:
        nodes = [node for node in self._cluster.nodes.values() if node.running]
        return self._cluster.random.choice(nodes) if nodes else None

    # Calls that fail: the node stops by itself, and may start again

    def _fail_sync(self) -> None:
        node = self._running()
        if node is None:
            return
        random = self._cluster.random
        kind: SyncFailure = random.choice(("keep", "revert"))
        if random.random() < 0.2:
            node.disk.fail_next_directory_sync(kind)
        else:
            node.disk.fail_next_sync(kind)
        self._note(f"sync_failure_{kind}", f"the next sync of node {node.node_id} fails and its pages are marked clean")

    def _fail_write(self) -> None:
        node = self._running()
        if node is not None:
            error = self._cluster.random.choice((errno.EIO, errno.ENOSPC))
            node.disk.fail_next("write", error, self._cluster.random)
            self._note("write_failure", f"the next write of node {node.node_id} fails with {errno.errorcode[error]}")

    def _fail_read(self) -> None:
        """Reading back fails; the node asks its peers. Reads of a start are spared: they would only delay it."""
        node = self._running()
        if node is None or not node.records:
            return
        segment, offset, length, _ = self._cluster.random.choice(node.records)
        if segment in node.disk.list():
            node.disk.fail_reads(segment, offset, length, sticky=False)
            self._note("read_failure", f"node {node.node_id} cannot read {segment} at {offset}")

    def _fill_disk(self) -> None:
        """Little room is left; the nemesis makes room when it fills the disk next, and the calm does at its end."""
        node = self._cluster.random.choice(list(self._cluster.nodes.values()))
        if node.disk.capacity_bytes is not None:
            node.disk.capacity_bytes = None
            return
        node.disk.capacity_bytes = node.disk.used_bytes() + self._cluster.random.randrange(_ROOM_MAX_BYTES)
        self._note("full_disk", f"the disk of node {node.node_id} is nearly full")

    # Damage that stays

    def _rot(self) -> None:
        if self._cluster.options.nemesis.rot_where == "striped":
            self._rot_striped()
        else:
            self._rot_anything()

    def _old_records(self, node: SimNode) -> range:
        return range(max(0, len(node.records) - _SPARED_WRITES))

    def _rot_anything(self) -> None:
        random = self._cluster.random
        nodes = [self._cluster.nodes[node_id] for node_id in sorted(self.faulty)]
        nodes = [node for node in nodes if len(node.records) > _SPARED_WRITES and not node.disk_lost]
        if not nodes:
            return
        node = random.choice(nodes)
        index = random.choice(self._old_records(node))
        segment, offset, length, _ = node.records[index]
        if not node.disk.is_durable(segment, offset, length):
            return
        kind = random.choice(("bits", "head", "lost", "misdirected", "page", "truncated"))
        spared = [(name, begin, begin + size) for name, begin, size, _ in node.records[-_SPARED_WRITES:]]
        if kind == "bits":
            for _ in range(random.choice((1, 1, 1, 8))):
                node.disk.corrupt(segment, offset + random.randrange(length), 1 << random.randrange(8))
        elif kind == "head":
            node.disk.corrupt(segment, offset + random.randrange(WRITE_HEADER_BYTES), 1 << random.randrange(8))
        elif kind == "truncated":
            newest = node.records[-1][0]
            if node.running or newest not in node.disk.list():
                return
            node.disk.truncate(newest, random.randrange(1024, max(1025, node.disk.size(newest))))
        elif kind == "lost":
            node.disk.overwrite(segment, offset, bytes(length))
        elif kind == "misdirected":
            # Another old write's bytes lie where these should be; the others' place keeps what it had.
            other_segment, other_offset, other_length, _ = node.records[random.choice(self._old_records(node))]
            if other_segment not in node.disk.list():
                return
            moved = node.disk.read_durable(other_segment, other_offset, min(length, other_length))
            node.disk.overwrite(segment, offset, moved)
        else:
            begin = offset - offset % _PAGE_BYTES
            if any(name == segment and low < begin + _PAGE_BYTES and begin < high for name, low, high in spared):
                return
            node.disk.zero_page(segment, begin)
        self._damage(node, f"{kind} of the write at {offset} of {segment}")

    def _rot_striped(self) -> None:
        """A block rots whose slots only a few nodes may lose, whatever each of them knows about it."""
        random, cluster = self._cluster.random, self._cluster
        node = random.choice(list(cluster.nodes.values()))
        if len(node.records) <= _SPARED_WRITES or not cluster.losses_max:
            return
        for segment, offset, length, entry in node.block_places(random.choice(self._old_records(node))):
            stripe = entry.value.slot_begin // _STRIPE_SLOTS
            is_one = stripe == (entry.value.slot_end - 1) // _STRIPE_SLOTS
            owners = {(stripe + shift) % len(cluster.members) + 1 for shift in range(cluster.losses_max)}
            if is_one and node.node_id in owners and length and node.disk.is_durable(segment, offset, length):
                node.disk.corrupt(segment, offset + random.randrange(length), 1 << random.randrange(8))
                self._damage(node, f"the block of {entry.value} at {offset} of {segment}")

    def _damage(self, node: SimNode, what: str) -> None:
        node.is_damaged = True
        self._cluster.checker.damaged(node.node_id)
        self._note("rot", f"rot on the disk of node {node.node_id}: {what}")

    def _lose_disk(self) -> None:
        """A disk is gone: the node comes back empty under its old number, and must not take part."""
        cluster = self._cluster
        nodes = [cluster.nodes[node_id] for node_id in sorted(self.faulty) if not cluster.nodes[node_id].disk_lost]
        if not nodes or len(cluster.checker.founded_nodes) < len(cluster.members):
            return
        node = cluster.random.choice(nodes)
        if node.running:
            cluster.crash_node(node.node_id)
        node.lose_disk()
        self._note("disk_lost", f"node {node.node_id} loses its disk")
