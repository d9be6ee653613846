"""One simulated node: Replica, Journal, Election and HashChain around a simulated disk and network."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from fastpaxos.election import ELECTION_OPS, Action, Decision, Election
from fastpaxos_core.block import BlockView
from fastpaxos_core.directory import TEMPORARY_SUFFIX
from fastpaxos_core.errors import FrameError
from fastpaxos_core.hashchain import HashChainState
from fastpaxos_core.journal import Journal, JournalRead, JournalWrite
from fastpaxos_core.messages import decode_message
from fastpaxos_core.replica import Replica
from fastpaxos_core.wire import (
    Frame,
    FrameSplitter,
    FrameType,
    FrameWriter,
    ReplyStatus,
    parse_mapping,
    parse_query,
    parse_submit,
)

from .checkers import JournalEntry, Value
from .disk import SimDisk
from .history import Violation
from .schedule import MILLISECOND_NS

if TYPE_CHECKING:
    from .cluster import SimCluster

__all__ = ["SimNode", "parse_write"]

_WRITE_HEADER = struct.Struct("<IBBHIIQQQQQQ")
_DESCRIPTOR = struct.Struct("<QQQqIIII")
_COMMITTED = 1
_FRAME_LIMIT = 1 << 24


def parse_write(data: bytes) -> tuple[int, int, list[JournalEntry]]:
    """Read one group-commit write as docs/protocol.md draws it: (promised ballot, commit index, entries)."""
    _, _, _, _, _, count, _, _, _, promised_ballot, commit_index, _ = _WRITE_HEADER.unpack_from(data)
    offset = _WRITE_HEADER.size + count * _DESCRIPTOR.size
    entries = []
    for number in range(count):
        begin, end, ballot, timestamp_ns, block_bytes, value_crc, flags, _ = _DESCRIPTOR.unpack_from(
            data, _WRITE_HEADER.size + number * _DESCRIPTOR.size
        )
        block = data[offset : offset + block_bytes]
        offset += block_bytes
        entries.append(
            JournalEntry(Value(begin, end, value_crc), ballot, timestamp_ns, bool(flags & _COMMITTED), block)
        )
    return promised_ballot, commit_index, entries


class SimNode:
    """A node that can be started, crashed, paused and resumed. Its disk and its clock outlive its crashes."""

    def __init__(self, cluster: SimCluster, node_id: int) -> None:
        random = cluster.random
        self.cluster = cluster
        self.node_id = node_id
        self.disk = SimDisk()
        self.incarnation = random.getrandbits(64)
        self.boot = 0
        self.running = False
        self.paused = False
        self.peer_epoch: dict[int, int] = {}
        self.clock_offset_ns = random.randrange(1, 10**12)
        self.clock_drift_ppm = random.randint(-200, 200)
        self.wall_offset_ns = random.randint(-(10**9), 10**9)
        self.machine = HashChainState()
        self.write_started_ns = 0
        self._inbox: list[Callable[[], None]] = []
        self._turn_due = False
        self._applying = False
        self._writing = False

    def __repr__(self) -> str:
        state = "paused" if self.paused else "running" if self.running else "down"
        return f"SimNode({self.node_id}, boot {self.boot}, {state})"

    # Life

    def start(self) -> None:
        """Open the journal and run. May raise SimulatedCrash if the disk was told so."""
        options = self.cluster.options
        self.boot += 1
        journal, recovery = Journal.open(
            self.disk,
            node_id=self.node_id,
            incarnation=self.incarnation,
            boot=self.boot,
            segment_bytes=options.segment_bytes,
        )
        if not recovery.promised_known or recovery.unknown:
            raise Violation(f"node {self.node_id} calls its sound journal damaged: {recovery} {recovery.problems}")
        self.cluster.checker.recovered(
            self.node_id,
            recovery.promised_ballot,
            recovery.commit_index,
            [
                JournalEntry(
                    Value(batch.slot_begin, batch.slot_end, batch.value_crc),
                    batch.ballot,
                    batch.timestamp_ns,
                    batch.committed,
                    batch.block,
                )
                for batch in recovery.batches
            ],
        )
        self.replica = Replica(
            node_id=self.node_id,
            boot=self.boot,
            incarnation=self.incarnation,
            cluster_id=self.cluster.cluster_id,
            members=self.cluster.members,
            journal=journal,
            recovery=recovery,
            phase1_quorum=options.phase1_quorum,
            phase2_quorum=options.phase2_quorum,
            window_slots=options.window_slots,
            ring_slots=options.ring_slots,
            window_bytes=options.window_bytes,
            log_memory_bytes=options.log_memory_bytes,
            batch_capacity=options.batch_capacity,
            block_bytes_max=options.window_bytes // 4,
            commands_per_block_max=16,
            sessions_max=options.sessions_max,
            heartbeat_interval_ns=options.heartbeat_interval_ms * MILLISECOND_NS,
            resend_timeout_ns=options.resend_timeout_ms * MILLISECOND_NS,
            fetch_timeout_ns=options.fetch_timeout_ms * MILLISECOND_NS,
        )
        self.writer = FrameWriter(self.node_id, self.incarnation, self.boot, self.cluster.cluster_id)
        self.machine = HashChainState()
        self.election = Election(
            self.replica,
            node_id=self.node_id,
            members=self.cluster.members,
            phase1_quorum=self.cluster.phase1_size,
            phase2_quorum=self.cluster.phase2_size,
            heartbeat_interval_ms=options.heartbeat_interval_ms,
            election_timeout_ms=options.election_timeout_ms,
            lag_slots_max=options.window_slots,
            random=self.cluster.random,
            now_ns=self.monotonic_ns(),
        )
        self.running = True
        self.paused = False
        self._inbox.clear()
        self._turn_due = False
        self._applying = False
        self._writing = False
        self.replica.tick(self.monotonic_ns(), self.wall_ns())
        self._later(self.cluster.random.randrange(1, options.tick_ns), self._tick)

    def crash(self) -> None:
        """Die here and now; what the disk does not hold is gone."""
        self.running = False
        self.paused = False
        self.peer_epoch.clear()
        self._inbox.clear()
        self.disk.crash(self.cluster.random)

    def pause(self) -> None:
        """Stop running without dying, as SIGSTOP does."""
        self.paused = True

    def resume(self) -> None:
        """Run again: everything that happened meanwhile is waiting."""
        self.paused = False
        inbox, self._inbox = self._inbox, []
        for action in inbox:
            self.input(action)

    def monotonic_ns(self) -> int:
        now_ns = self.cluster.schedule.now_ns
        return self.clock_offset_ns + now_ns + now_ns * self.clock_drift_ppm // 1_000_000

    def wall_ns(self) -> int:
        return 1_700_000_000_000_000_000 + self.wall_offset_ns + self.cluster.schedule.now_ns

    def _later(self, delay_ns: int, action: Callable[[], None]) -> None:
        """Run `action` in this life of the node only."""
        boot = self.boot
        self.cluster.schedule.after(delay_ns, lambda: self.input(action) if self.boot == boot else None)

    def input(self, action: Callable[[], None]) -> None:
        """Do something in the process: at once, or when it runs again."""
        if not self.running:
            return
        if self.paused:
            self._inbox.append(action)
            return
        action()
        if not self._turn_due:
            self._turn_due = True
            if self.cluster.options.turn_max_ns:
                self._later(self.cluster.random.randrange(self.cluster.options.turn_max_ns + 1), self._turn)
            else:
                self._turn()

    # Inputs

    def _tick(self) -> None:
        now_ns = self.monotonic_ns()
        self._later(self.cluster.options.tick_ns, self._tick)
        self.replica.tick(now_ns, self.wall_ns())
        stalled = (
            self._writing and now_ns - self.write_started_ns > self.cluster.options.election_timeout_ms * MILLISECOND_NS
        )
        self._decide(self.election.tick(now_ns, disk_stalled=stalled))

    def peer_up(self, peer: int, boot: int, epoch: int) -> None:
        """A connection to a peer stands."""
        if peer in self.peer_epoch:
            self.peer_down(peer, self.peer_epoch[peer])
        self.peer_epoch[peer] = epoch
        self.replica.peer_connected(peer, boot)
        self._decide(self.election.peer_connected(peer, self.monotonic_ns()))

    def peer_down(self, peer: int, epoch: int) -> None:
        """The connection `epoch` to a peer is gone."""
        if self.peer_epoch.get(peer) != epoch:
            return
        del self.peer_epoch[peer]
        self.replica.peer_disconnected(peer)
        self._decide(self.election.peer_disconnected(peer, self.monotonic_ns()))

    def receive(self, peer: int, epoch: int | None, frame: Frame) -> None:
        """A frame of a peer; `epoch` None is a replay from the past."""
        current = self.peer_epoch.get(peer)
        if current is None or epoch not in (None, current):
            return
        try:
            if frame.type == FrameType.CONTROL:
                message = parse_mapping(frame)
                if message["op"] not in ELECTION_OPS:
                    raise Violation(f"node {peer} sent the control message {message}")
                self._decide(self.election.receive(peer, message, self.monotonic_ns()))
            else:
                self.replica.receive(peer, frame)
        except FrameError as error:
            if not self.cluster.options.links.replay:
                raise Violation(f"node {self.node_id} refuses a frame of node {peer}: {error}") from error
            self.cluster.checker.marks["frame_refused"] += 1
            self.cluster.drop_connection(self.node_id, peer)

    def _decide(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            if decision.action is Action.CAMPAIGN:
                self.replica.campaign()
            elif decision.action is Action.STEP_DOWN:
                self.replica.step_down()
            elif decision.message is not None and decision.peer in self.peer_epoch:
                data = self.writer.control(decision.message)
                self.cluster.send(self.node_id, decision.peer, self.peer_epoch[decision.peer], data)

    # Outputs

    def _turn(self) -> None:
        """Take every output until there is none."""
        self._turn_due = False
        replica = self.replica
        while True:
            write = replica.take_write()
            if write is not None:
                self._begin_write(write)
            messages = replica.take_messages()
            for peer, buffers in messages:
                self._send(peer, b"".join(bytes(buffer) for buffer in buffers))
            reads = replica.take_reads()
            for read in reads:
                self._begin_read(read)
            applied = self._apply()
            self._answer()
            if write is None and not messages and not reads and not applied:
                break
        if not self._writing:
            marker = replica.take_marker()
            if marker is not None:
                self._write_marker(marker)
        self.cluster.checker.observed(
            self.node_id, replica.promised_ballot, replica.commit_index, replica.applied_index
        )
        self._check_window()

    def _check_window(self) -> None:
        for begin, end, ballot, _, _ in self.replica.window.batches():
            if ballot > self.replica.promised_ballot and end > self.replica.commit_index + 1:
                raise Violation(
                    f"node {self.node_id} holds [{begin}, {end}) of ballot {ballot} above its promise "
                    f"{self.replica.promised_ballot}"
                )

    def _send(self, peer: int, data: bytes) -> None:
        if peer not in self.peer_epoch:
            return
        splitter = FrameSplitter(_FRAME_LIMIT, _FRAME_LIMIT, self.cluster.cluster_id)
        for frame in splitter.feed(data):
            message = decode_message(frame)
            self.cluster.checker.sent(self.node_id, self.boot, message, self.replica.promised_ballot)
            self.cluster.note_message(self.node_id, peer, message)
        self.cluster.send(self.node_id, peer, self.peer_epoch[peer], data)

    # Disk

    def _begin_write(self, write: JournalWrite) -> None:
        """Create the segment if need be, write, sync; each step takes its time and may be the last one."""
        data = b"".join(bytes(buffer) for buffer in write.buffers)
        promised_ballot, _, entries = parse_write(data)
        self.cluster.checker.written(self.node_id, entries)
        self.write_started_ns = self.monotonic_ns()
        self._writing = True

        def append() -> None:
            self.disk.write(write.segment_name, write.offset, [data])
            self._disk_later(self._sync_delay_ns(), finish)

        def finish() -> None:
            self.disk.sync(write.segment_name)
            self.cluster.checker.durable(self.node_id, promised_ballot, entries)
            self.input(lambda: self._synced(write.ticket))

        def name_segment() -> None:
            self.disk.sync(temporary)
            self.disk.rename(temporary, write.segment_name)
            self._disk_later(self._sync_delay_ns(), make_name_durable)

        def make_name_durable() -> None:
            self.disk.sync_directory()
            append()

        if write.new_segment is None:
            append()
            return
        name, header, size = write.new_segment
        temporary = name + TEMPORARY_SUFFIX
        self.disk.create(temporary, size)
        self.disk.write(temporary, 0, [header])
        self._disk_later(self._sync_delay_ns(), name_segment)

    def _write_marker(self, marker: JournalWrite) -> None:
        if marker.new_segment is not None:
            raise Violation(f"node {self.node_id} begins a segment for a marker")
        self.disk.write(marker.segment_name, marker.offset, list(marker.buffers))

    def _synced(self, ticket: int) -> None:
        self._writing = False
        self.replica.synced(ticket)

    def _disk_later(self, delay_ns: int, action: Callable[[], None]) -> None:
        """The disk goes on while the process is paused, and stops when it dies."""
        boot = self.boot
        self.cluster.schedule.after(delay_ns, lambda: action() if self.running and self.boot == boot else None)

    def _sync_delay_ns(self) -> int:
        options, random = self.cluster.disk_options, self.cluster.random
        if options.stall and random.random() < options.stall:
            return random.randint(options.sync_min_ns, options.stall_max_ns)
        return random.randint(options.sync_min_ns, options.sync_max_ns)

    def _begin_read(self, read: JournalRead) -> None:
        def finish() -> None:
            self.replica.journal_data(read, self.disk.read(read.segment_name, read.offset, read.length))

        self.cluster.checker.marks["journal_read"] += 1
        self._later(self.cluster.random.randint(1, self.cluster.disk_options.read_max_ns), finish)

    # State machine

    def _apply(self) -> bool:
        """Apply what is committed, or one batch later if the state machine is slow."""
        if self._applying:
            return False
        slow_ns = self.cluster.options.apply_delay_max_ns
        worked = False
        while (batch := self.replica.next_batch()) is not None:
            if slow_ns:
                self._applying = True
                self._later(self.cluster.random.randrange(1, slow_ns), self._apply_slowly)
                return False
            self._apply_one(batch)
            worked = True
        return worked

    def _apply_slowly(self) -> None:
        self._applying = False
        batch = self.replica.next_batch()
        if batch is not None:
            self._apply_one(batch)

    def _apply_one(self, batch: Any) -> None:
        view = batch.view
        results = self.machine.fold(view)
        self.cluster.checker.applied(self.node_id, batch.slot_begin, batch.slot_end, view, self.machine.digest)
        self.replica.complete_batch(results)

    # Clients

    def receive_from_client(self, client: int, frame: Frame) -> None:
        """A frame of a client."""
        if frame.type == FrameType.SUBMIT:
            request_id, _ = parse_submit(frame)
            view = BlockView(frame.body)
            status = self.replica.submit(frame.body, ("submit", client, request_id))
            if status != ReplyStatus.OK:
                self.cluster.checker.marks[f"submit_{ReplyStatus(status).name}"] += 1
                self._reply(
                    client,
                    self.writer.reply(
                        view.session_id, view.first_sequence, request_id, view.command_count, status, self._hint(), 0
                    ),
                )
        elif frame.type == FrameType.QUERY:
            query = parse_query(frame)
            status = self.replica.read(("query", client, query.query_id), query.minimum_index)
            if status != ReplyStatus.OK:
                self._reply(client, self.writer.query_reply(query.query_id, status, self._hint(), 0))
        elif frame.type == FrameType.CONTROL:
            self._client_control(client, parse_mapping(frame))

    def _client_control(self, client: int, message: dict[str, Any]) -> None:
        if message["op"] == "open_session":
            nonce = message["nonce"]
            status = self.replica.open_session(nonce, ("open", client, message["request_id"], nonce))
        else:
            status = self.replica.close_session(message["session_id"], ("close", client, message["request_id"]))
        if status != ReplyStatus.OK:
            error = {
                "op": "error",
                "request_id": message["request_id"],
                "status": int(status),
                "leader_id": self._hint(),
            }
            self._reply(client, self.writer.control(error))

    def _hint(self) -> int:
        return self.replica.leader_id

    def _answer(self) -> None:
        for waiter, status, session_id, first_sequence, count, slot_begin, results in self.replica.take_replies():
            kind, client, request_id, *rest = waiter
            if kind == "submit":
                data = self.writer.reply(
                    session_id, first_sequence, request_id, count, status, self._hint(), slot_begin, results
                )
            elif kind == "open":
                message = {"op": "session_opened", "request_id": request_id, "session_id": session_id, "nonce": rest[0]}
                data = self.writer.control({**message, "status": int(status)})
            else:
                data = self.writer.control(
                    {"op": "session_closed", "request_id": request_id, "session_id": session_id, "status": int(status)}
                )
            self._reply(client, data)
        for waiter, status, read_index in self.replica.take_ready_reads():
            _, client, query_id = waiter
            if status == ReplyStatus.OK and self.replica.applied_index < read_index:
                raise Violation(f"node {self.node_id} answers a read before it applied slot {read_index}")
            result = self.machine.count.to_bytes(8, "little") if status == ReplyStatus.OK else b""
            self._reply(client, self.writer.query_reply(query_id, status, self._hint(), read_index, result))

    def _reply(self, client: int, data: bytes) -> None:
        self.cluster.send_to_client(self.node_id, client, data)

    def journal_entries(self) -> Iterator[JournalEntry]:
        """What the checker knows to be on this node's disk, by slot."""
        image = self.cluster.checker.images[self.node_id]
        return iter(dict.fromkeys(entry for _, entry in sorted(image.by_slot.items())))
