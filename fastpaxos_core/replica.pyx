"""`Replica`: one member of a cluster, sans-I/O and deterministic. Same state and same input give the same output.

Inputs: receive, submit, open_session, close_session, read, tick, synced, journal_data, campaign, step_down,
peer_connected, peer_disconnected. Outputs, to be taken after inputs in this order of duty: take_write (append to the
journal), take_messages (send), take_reads (read back from the journal), next_batch and complete_batch (apply),
take_replies and take_ready_reads (answer). What rests on durability leaves only after `synced`.
"""

import msgpack

from cpython.bytes cimport PyBytes_AS_STRING

from fastpaxos_core.block import build_control

from fastpaxos_core.errors import ConfigError, FrameError

from fastpaxos_core.ballot cimport ballot_node
from fastpaxos_core.block cimport BLOCK_COMMANDS, BlockHeader, block_check
from fastpaxos_core.journal cimport JournalRead, JournalWrite
from fastpaxos_core.journal_format cimport StoredBatch
from fastpaxos_core.messages cimport NackHead, check_entries, head_of
from fastpaxos_core.proposer cimport ROLE_FOLLOWER, ROLE_LEADER
from fastpaxos_core.state cimport Peer, ReplicaState
from fastpaxos_core.types cimport SLOTS_AHEAD_MAX, slot_t, uint8_t, uint32_t, uint64_t
from fastpaxos_core.window cimport NO_BATCH, SLOT_ACCEPTED
from fastpaxos_core.wire cimport (
    FRAME_ACCEPT,
    FRAME_ACCEPTED,
    FRAME_COMMIT,
    FRAME_FETCH,
    FRAME_HEARTBEAT,
    FRAME_HEARTBEAT_REPLY,
    FRAME_LEARN,
    FRAME_NACK,
    FRAME_PREPARE,
    FRAME_PROMISE,
    Frame,
    FrameWriter,
)

from fastpaxos_core.acceptor import Acceptor
from fastpaxos_core.applier import Applier
from fastpaxos_core.learner import Learner
from fastpaxos_core.phase1 import Phase1
from fastpaxos_core.proposer import Proposer
from fastpaxos_core.quorum import QuorumSystem
from fastpaxos_core.reads import ReadIndex
from fastpaxos_core.sessions import SessionTable
from fastpaxos_core.state import ReplicaState as _ReplicaState
from fastpaxos_core.survey import Survey
from fastpaxos_core.window import SlotWindow

cdef enum:
    STATUS_OK = 0
    STATUS_RESULT_GONE = 1
    STATUS_NOT_LEADER = 3
    STATUS_NOT_READY = 4
    STATUS_BUSY = 5
    STATUS_OUT_OF_ORDER = 6
    STATUS_TOO_LARGE = 7
    STATUS_MALFORMED = 8
    WAITERS_MAX = 1048576
    LAGGING_DIVISOR = 16

_ROLES = ("follower", "candidate", "leader")


cdef class Replica:
    """One replica of a cluster.

    Args:
        node_id: own id, one of `members`.
        boot: number of this start of the data directory.
        incarnation: id of the formatted data directory.
        cluster_id: 16 bytes.
        members: node ids of the configuration.
        phase1_quorum, phase2_quorum: sizes, 0 = majority.
        journal, recovery: as Journal.open returned them.
        window_slots: slots above commit_index that a leader may have in flight.
        ring_slots: cells of the slot ring, a power of two >= 2 x window_slots.
        window_bytes: block bytes that may be in flight.
        log_memory_bytes: committed log kept in memory for lagging peers; older batches come from the journal.
        batch_capacity: batches in memory at once.
        block_bytes_max, commands_per_block_max: larger blocks are refused.
        sessions_max, result_bytes_per_session_max: limits of the replicated session table; equal on all replicas.
        heartbeat_interval_ns, resend_timeout_ns, fetch_timeout_ns: timers, in nanoseconds of tick()'s clock.

    Raises:
        ConfigError: a setting does not fit, or the recovered window does not fit into the ring.
        InvariantError: (from any method) a safety rule would be broken; the node must stop.
    """

    def __init__(
        self,
        *,
        node_id,
        boot,
        incarnation,
        cluster_id,
        members,
        journal,
        recovery,
        phase1_quorum=0,
        phase2_quorum=0,
        window_slots=65536,
        ring_slots=262144,
        window_bytes=64 << 20,
        log_memory_bytes=64 << 20,
        batch_capacity=65536,
        block_bytes_max=1 << 20,
        commands_per_block_max=16384,
        sessions_max=4096,
        result_bytes_per_session_max=4 << 20,
        heartbeat_interval_ns=50_000_000,
        resend_timeout_ns=200_000_000,
        fetch_timeout_ns=500_000_000,
    ):
        if not 2 * window_slots <= ring_slots <= SLOTS_AHEAD_MAX:
            raise ConfigError(
                f"ring_slots {ring_slots} must be at least twice window_slots {window_slots}, and at most "
                f"{SLOTS_AHEAD_MAX}"
            )
        if commands_per_block_max > window_slots or block_bytes_max > window_bytes:
            raise ConfigError(
                f"a block of {commands_per_block_max} commands and {block_bytes_max} bytes must fit into the window of "
                f"{window_slots} slots and {window_bytes} bytes"
            )
        if node_id not in members:
            raise ConfigError(f"node {node_id} is no member of {sorted(members)}")
        writer = FrameWriter(node_id, incarnation, boot, cluster_id)
        self.state = _ReplicaState(
            node_id, boot, QuorumSystem(members, phase1_quorum, phase2_quorum), SlotWindow(ring_slots, batch_capacity),
            journal, writer, window_slots=window_slots, window_bytes=window_bytes, log_memory_bytes=log_memory_bytes,
            voting=recovery.promised_known,
        )
        self.learner = Learner(self.state, fetch_timeout_ns)
        self.acceptor = Acceptor(self.state, self.learner, list(recovery.unknown))
        self.reads = ReadIndex(self.state)
        self.proposer = Proposer(self.state, self.learner, self.reads, heartbeat_interval_ns, resend_timeout_ns)
        self.phase1 = Phase1(self.state, self.acceptor, self.learner, self.proposer, resend_timeout_ns)
        self.survey = Survey(self.state, self.acceptor, self.learner, fetch_timeout_ns)
        self.applier = Applier(self.state, self.learner, SessionTable(sessions_max, result_bytes_per_session_max))
        self.admitted = {}
        self.orphans = []
        self.block_bytes_max = block_bytes_max
        self.commands_per_block_max = commands_per_block_max
        self.admission_slots = window_slots
        self.admission_bytes = window_bytes
        self._recover(recovery)

    cdef int _recover(self, object recovery) except -1:
        """Put what the journal gave back into the window: everything above commit_index, as accepted."""
        cdef ReplicaState state = self.state
        cdef StoredBatch stored
        state.promised_ballot = recovery.promised_ballot
        state.commit_index = recovery.commit_index
        state.window.restart_at(state.commit_index + 1)
        for stored in recovery.batches:
            stored.descriptor.flags = 0
            # A batch that was learned names a ballot that may never have been promised here; a Promise lists only
            # what lies below it.
            state.promised_ballot = max(state.promised_ballot, stored.descriptor.ballot)
            if state.window.place(&stored.descriptor, stored.owner, stored.offset, 0, SLOT_ACCEPTED) == NO_BATCH:
                raise ConfigError(
                    f"the journal holds uncommitted slots up to {stored.descriptor.slot_end}, which do not fit into a "
                    f"ring of {state.window.slot_capacity} slots and {state.window.batch_capacity} batches above slot "
                    f"{state.commit_index}: start with the limits it was written with"
                )
            state.last_timestamp_ns = max(state.last_timestamp_ns, stored.descriptor.timestamp_ns)
        state.max_ballot_seen = state.promised_ballot
        return 0

    # ---- inputs ------------------------------------------------------------------------------------------------------

    def tick(self, monotonic_ns: int, wall_ns: int) -> None:
        """Tell the time: nanoseconds of a monotonic clock, and UTC nanoseconds for timestamps. Runs all timers."""
        cdef ReplicaState state = self.state
        if monotonic_ns > state.now_ns:
            state.now_ns = monotonic_ns
        state.wall_ns = wall_ns
        self.learner.tick()
        self.survey.tick()
        self.phase1.tick()
        self.proposer.tick()
        self._set_admission()

    def peer_connected(self, int peer, uint32_t boot) -> None:
        """A connection to a member stands; `boot` is from its hello. Everything unanswered is sent again."""
        cdef Peer found = self._peer(peer)
        if found.boot != boot:
            # What it knew before it started again it may not know any more; what was durable still is.
            found.commit_index = 0
            found.applied_index = 0
        found.connected = True
        found.boot = boot
        found.buffers = []
        found.bytes_in_flight = 0
        found.commit_sent = 0
        found.next_slot = found.owed_slot = self.state.commit_index + 1
        found.last_heard_ns = found.progress_ns = self.state.now_ns
        self.proposer.heartbeat_ns = 0
        self.phase1.sent_ns = 0
        self.learner.waits = False

    def peer_committed(self, int peer, slot_t commit_index) -> None:
        """A member says, outside the replica messages, that slots <= commit_index are committed: a reason to fetch.

        A follower that cannot hear the leader learns from the answers to its pre-votes what it misses.
        """
        self.learner.hint(self._peer(peer), commit_index)

    def peer_disconnected(self, int peer) -> None:
        """The connection to a member broke."""
        cdef Peer found = self._peer(peer)
        found.connected = False
        found.buffers = []
        if self.learner.fetch_id and self.learner.fetch_node == peer:
            self.learner.fetch_id = 0

    def _peer(self, int peer):
        found = self.state.peers.get(peer)
        if found is None:
            raise FrameError(f"node {peer} is no peer of node {self.state.node_id} in {self.state.quorum.members}")
        return found

    def receive(self, int peer, Frame frame not None) -> None:
        """Take one replica message of a connected peer. Raises FrameError when it is malformed: drop the connection."""
        cdef Peer found = self._peer(peer)
        if frame.boot != found.boot or not found.connected:
            return
        found.last_heard_ns = self.state.now_ns
        if frame.ballot > self.state.max_ballot_seen:
            self.state.max_ballot_seen = frame.ballot
        try:
            self._dispatch(found, frame)
        finally:
            self._check_leadership()

    cdef int _dispatch(self, Peer peer, Frame frame) except -1:
        """The one table of replica messages."""
        cdef int frame_type = frame.type
        if frame_type == FRAME_ACCEPT:
            return self.acceptor.handle_accept(peer, frame)
        if frame_type == FRAME_ACCEPTED:
            return self.proposer.handle_accepted(peer, frame)
        if frame_type == FRAME_COMMIT:
            return self.acceptor.handle_commit(peer, frame)
        if frame_type == FRAME_HEARTBEAT:
            return self.acceptor.handle_heartbeat(peer, frame)
        if frame_type == FRAME_HEARTBEAT_REPLY:
            return self.proposer.handle_heartbeat_reply(peer, frame)
        if frame_type == FRAME_PREPARE:
            return self.acceptor.handle_prepare(peer, frame)
        if frame_type == FRAME_PROMISE:
            return self.phase1.handle_promise(peer, frame)
        if frame_type == FRAME_NACK:
            return self._handle_nack(peer, frame)
        if frame_type == FRAME_FETCH:
            return 0 if self.survey.handle_fetch(peer, frame) else self.learner.handle_fetch(peer, frame)
        if frame_type == FRAME_LEARN:
            if self.survey.handle_learn(peer, frame) or self.phase1.handle_learn(peer, frame):
                return 0
            return self.learner.handle_learn(peer, frame)
        raise FrameError(f"frame type {frame_type} is no replica message")

    def _handle_nack(self, Peer peer, Frame frame):
        """Somebody promised a higher ballot: this ballot is over."""
        cdef const NackHead* head = <const NackHead*>head_of(frame, sizeof(NackHead))
        check_entries(frame, sizeof(NackHead), 0, 0)
        self.state.max_ballot_seen = max(self.state.max_ballot_seen, head.promised_ballot)
        self.learner.hint(peer, head.commit_index)
        if (self.proposer.role != ROLE_FOLLOWER and frame.ballot == self.proposer.ballot
                and head.promised_ballot > frame.ballot):
            self._step_down()
        return 0

    cdef int _check_leadership(self) except -1:
        """Leadership ends where this acceptor promised more, or learned what its own ballot cannot have chosen."""
        cdef ReplicaState state = self.state
        if self.proposer.role != ROLE_FOLLOWER and (
            state.promised_ballot > self.proposer.ballot
            or (self.proposer.role == ROLE_LEADER and state.deposed)
            or (self.proposer.role == ROLE_LEADER and state.commit_index >= self.proposer.next_slot)
        ):
            self._step_down()
        state.deposed = False
        return 0

    cdef int _step_down(self) except -1:
        """Waiters stay: their commands may still be chosen, and are answered when they are applied (rule 5.10)."""
        self.phase1.abandon()
        self.proposer.follow()
        self.orphans = list(self.applier.waiters)
        self.reads.fail_all(STATUS_NOT_LEADER)
        self.admitted = {}
        return 0

    def campaign(self) -> None:
        """Try to become leader: Phase 1 with a new ballot. Does nothing on a replica that may not vote."""
        if self.state.voting:
            if self.proposer.role == ROLE_LEADER:
                self._step_down()
            self.phase1.campaign()

    def step_down(self) -> None:
        """Stop leading or campaigning."""
        if self.proposer.role != ROLE_FOLLOWER:
            self._step_down()

    def synced(self, uint64_t ticket) -> None:
        """The journal write `ticket`, whose sync started after its bytes were written, is durable."""
        self.writing = False
        self.state.journal.synced(ticket)
        self.state.release_held()
        self.proposer.count_own_votes()
        self.learner.waits = False
        self.state.trim_memory()

    def journal_data(self, JournalRead read not None, bytes data not None) -> None:
        """The bytes that take_reads asked for."""
        purpose = self.learner.read_purposes.pop(read)
        stored = self.state.journal.parse(read, data)
        if purpose[0] == "apply":
            self.applier.supply(stored, read)
            return
        _, node_id, request_id, bytes_max = purpose
        if stored or self.learner.request_read(read.slot, purpose, read) is None:
            self.learner.serve_stored(self._peer(node_id), request_id, stored, bytes_max)

    def submit(self, bytes block not None, waiter: object) -> int:
        """Admit a client's block; the answer comes through take_replies unless a ReplyStatus other than OK returns.

        Rule 5.9: a session's blocks are admitted in order, and a refusal refuses what follows. A block that runs or ran
        already is attached to that attempt, or answered from the session table. Submitting a block again replaces its
        waiter: the earlier one is not answered any more.
        """
        cdef BlockHeader header
        cdef uint64_t size = len(block)
        cdef uint64_t expected
        if self.proposer.role != ROLE_LEADER:
            return STATUS_NOT_LEADER
        if not self.proposer.is_ready():
            return STATUS_NOT_READY
        if size > self.block_bytes_max:
            return STATUS_TOO_LARGE
        if block_check(<const uint8_t*>PyBytes_AS_STRING(block), size, &header, 1) < 0:
            return STATUS_MALFORMED
        if header.kind != BLOCK_COMMANDS or header.session_id == 0 or header.first_sequence == 0:
            return STATUS_MALFORMED
        if header.command_count > self.commands_per_block_max:
            return STATUS_TOO_LARGE
        key = (header.session_id, header.first_sequence)
        known = self.admitted.get(header.session_id)
        if known is not None:
            expected = known
        elif self.applier.sessions.contains_c(header.session_id):
            expected = self.applier.sessions.last_sequence_c(header.session_id) + 1
        else:
            # Only the log can prove that a session is gone: let apply say so.
            expected = header.first_sequence
        if header.first_sequence > expected:
            return STATUS_OUT_OF_ORDER
        if header.first_sequence < expected:
            if key in self.applier.waiters:
                self.applier.waiters[key] = waiter
                return STATUS_OK
            if header.first_sequence + header.command_count - 1 <= \
                    self.applier.sessions.last_sequence_c(header.session_id):
                results = self.applier.sessions.result_c(header.session_id, header.first_sequence)
                self.applier.replies.append((
                    waiter, STATUS_OK if results is not None else STATUS_RESULT_GONE, header.session_id,
                    header.first_sequence, header.command_count, 0, results or b""
                ))
                return STATUS_OK
        if not self._has_room(header.command_count, size):
            return STATUS_BUSY
        if self.proposer.propose(block, 0, size, header.command_count, header.crc, self._timestamp()) == NO_BATCH:
            return STATUS_BUSY
        if self.applier.sessions.contains_c(header.session_id):
            self._note_admitted(header.session_id, max(expected, header.first_sequence + header.command_count))
        self.applier.waiters[key] = waiter
        return STATUS_OK

    def _note_admitted(self, uint64_t session_id, uint64_t next_sequence):
        self.admitted[session_id] = next_sequence
        if len(self.admitted) > 2 * self.applier.sessions.sessions_max:
            self.admitted = {
                known: sequence for known, sequence in self.admitted.items()
                if self.applier.sessions.contains_c(known)
            }

    def _has_room(self, uint64_t slot_count, uint64_t size):
        cdef uint64_t in_flight = self.proposer.next_slot - self.state.commit_index - 1
        return (in_flight + slot_count <= max(self.admission_slots, slot_count)
                and self.state.bytes_in_flight + size <= max(self.admission_bytes, size)
                and len(self.applier.waiters) < WAITERS_MAX)

    def _timestamp(self):
        return max(self.state.last_timestamp_ns, self.applier.now_ns, self.state.wall_ns)

    def open_session(self, bytes nonce not None, waiter: object) -> int:
        """Open the session of a 16-byte nonce through the log. Returns a ReplyStatus, the answer comes as a reply."""
        if len(nonce) != 16:
            return STATUS_MALFORMED
        return self._propose_control(nonce, {"op": "open_session", "nonce": nonce}, waiter)

    def close_session(self, uint64_t session_id, waiter: object) -> int:
        """Close a session through the log. Returns a ReplyStatus, the answer comes as a reply."""
        return self._propose_control(
            ("close", session_id), {"op": "close_session", "session_id": session_id}, waiter
        )

    cdef int _propose_control(self, object key, dict entry, object waiter) except -1:
        cdef BlockHeader header
        if self.proposer.role != ROLE_LEADER:
            return STATUS_NOT_LEADER
        if not self.proposer.is_ready():
            return STATUS_NOT_READY
        block = build_control(msgpack.packb(entry))
        block_check(<const uint8_t*>PyBytes_AS_STRING(block), len(block), &header, 0)
        if not self._has_room(1, len(block)):
            return STATUS_BUSY
        if self.proposer.propose(block, 0, len(block), 1, header.crc, self._timestamp()) == NO_BATCH:
            return STATUS_BUSY
        self.applier.waiters[key] = waiter
        return STATUS_OK

    def read(self, waiter: object, slot_t minimum_index=0) -> int:
        """Queue a linearizable read. Returns a ReplyStatus; take_ready_reads says when the state may be read."""
        if self.proposer.role != ROLE_LEADER:
            return STATUS_NOT_LEADER
        if not self.proposer.is_ready():
            return STATUS_NOT_READY
        if minimum_index > self.state.commit_index + self.state.window_slots:
            # Nobody can have seen such a slot acknowledged.
            return STATUS_MALFORMED
        self.reads.add(waiter, minimum_index)
        return STATUS_OK

    # ---- outputs -----------------------------------------------------------------------------------------------------

    cdef int _advance(self) except -1:
        """Take every step that the inputs so far allow."""
        self._check_leadership()
        self.phase1.progress()
        self.learner.fetch_missing()
        self.survey.progress()
        self.acceptor.flush_accepted()
        if self.learner.repaired:
            self.applier.supply(self.learner.repaired, None)
            self.learner.repaired = []
        if self.proposer.role == ROLE_LEADER:
            # A gap that closed by learning may have freed what was chosen behind it.
            self.proposer.commit_chosen()
        if self.orphans and self.proposer.is_ready():
            self._release_orphans()
        if self.proposer.role == ROLE_LEADER:
            if self.reads.begin_round():
                self.proposer.send_heartbeats()
                self.reads.confirm(self.proposer.ballot)
            self.proposer.send_accepts()
        return 0

    def _release_orphans(self):
        """Phase 1 has decided every slot of earlier leaderships: what was not applied by now was never chosen.

        Their clients are told to send again, which is safe whatever became of it: apply alone decides.
        """
        orphans, self.orphans = self.orphans, []
        for key in orphans:
            if isinstance(key, tuple) and key[0] != "close":
                self.applier.answer(key, STATUS_OUT_OF_ORDER, key[0], key[1], 0, 0, b"")
            else:
                self.applier.answer(key, STATUS_NOT_READY, 0, 0, 0, 0, b"")

    def take_write(self) -> JournalWrite | None:
        """Seal everything that waits for the journal into one group commit; None while one is out or nothing waits."""
        self._advance()
        if self.writing or not self.state.journal.has_pending:
            return None
        write = self.state.journal.seal(self.state.promised_ballot, self.state.commit_index)
        if write is not None:
            self.writing = True
            self.state.sealed_ticket = write.ticket
        return write

    def take_marker(self) -> JournalWrite | None:
        """The marker that names the durable point, once nothing else waits; it is written, and not waited for."""
        if self.writing or self.state.journal.has_pending:
            return None
        return self.state.journal.marker(self.state.promised_ballot, self.state.commit_index)

    def take_messages(self) -> list[tuple[int, list[bytes]]]:
        """Return [(peer, buffers in order)] to be sent now."""
        cdef Peer peer
        self._advance()
        messages = []
        for peer in self.state.peer_list:
            if peer.buffers:
                messages.append((peer.node_id, peer.buffers))
                peer.buffers = []
        return messages

    def take_reads(self) -> list[JournalRead]:
        """Return the pieces of the journal to read; each is answered by journal_data."""
        if not self.learner.reads:
            return []
        reads, self.learner.reads = self.learner.reads, []
        return reads

    def next_batch(self):
        """Return the next batch (AppliedBatch) for the state machine, or None; complete_batch must follow."""
        return self.applier.next_batch()

    def complete_batch(self, bytes results not None) -> None:
        """The state machine applied the batch of next_batch; `results` is its result blob."""
        self.applier.complete(results)
        self.state.trim_memory()

    def take_replies(self) -> list[tuple[object, int, int, int, int, int, bytes]]:
        """Return [(waiter, status, session_id, first_sequence, command_count, slot_begin, results)]."""
        if not self.applier.replies:
            return []
        replies, self.applier.replies = self.applier.replies, []
        return replies

    def take_ready_reads(self) -> list[tuple[object, int, int]]:
        """Return [(waiter, status, read_index)]: with status OK the state machine may be queried now."""
        self.reads.release()
        if not self.reads.ready:
            return []
        ready, self.reads.ready = self.reads.ready, []
        return ready

    # ---- facts -------------------------------------------------------------------------------------------------------

    cdef int _set_admission(self) except -1:
        """A leader slows down while fewer than a quorum plus one are inside their ring, so that who lags catches up."""
        cdef ReplicaState state = self.state
        cdef Peer peer
        cdef int connected = 1
        cdef int inside = 1
        self.admission_slots = state.window_slots
        self.admission_bytes = state.window_bytes
        for peer in state.peer_list:
            if peer.connected:
                connected += 1
                if peer.commit_index + state.window.slot_capacity // 2 >= state.commit_index:
                    inside += 1
        if inside < min(state.quorum.phase2_size + 1, connected):
            self.admission_slots = max(state.window_slots // LAGGING_DIVISOR, <uint64_t>1)
            self.admission_bytes = max(state.window_bytes // LAGGING_DIVISOR, <uint64_t>1)
        return 0

    @property
    def node_id(self) -> int:
        return self.state.node_id

    @property
    def role(self) -> str:
        """ "follower", "candidate" or "leader"."""
        return _ROLES[self.proposer.role]

    @property
    def is_ready(self) -> bool:
        """A leader that has committed and applied in its own ballot, and therefore takes commands and reads."""
        return self.proposer.is_ready()

    @property
    def ballot(self) -> int:
        """The own ballot while campaigning or leading, else the ballot of the leader last heard."""
        return self.proposer.ballot or self.state.leader_ballot

    @property
    def promised_ballot(self) -> int:
        return self.state.promised_ballot

    @property
    def max_ballot_seen(self) -> int:
        return self.state.max_ballot_seen

    @property
    def leader_id(self) -> int:
        """Node id of the leader as far as this replica knows, 0 when it knows none."""
        if self.proposer.role == ROLE_LEADER:
            return self.state.node_id
        leader = ballot_node(self.state.leader_ballot)
        return 0 if self.state.leader_ballot < self.state.promised_ballot or leader == self.state.node_id else leader

    @property
    def last_leader_contact_ns(self) -> int:
        """tick() time at which a leader's frame last arrived; 0 = never."""
        return self.state.leader_heard_ns

    @property
    def quorum_contact_ns(self) -> int:
        """Leader: tick() time by which a Phase 2 quorum, itself included, had last been heard from."""
        return self.proposer.quorum_heard_ns

    @property
    def candidate_since_ns(self) -> int:
        """Candidate: tick() time at which the candidacy began; 0 when there is none."""
        return self.phase1.started_ns if self.phase1.active else 0

    @property
    def commit_index(self) -> int:
        return self.state.commit_index

    @property
    def applied_index(self) -> int:
        return self.state.applied_index

    @property
    def durable_index(self) -> int:
        """Committed slots <= it are on this disk."""
        return self.state.durable_index()

    @property
    def everywhere_durable(self) -> int:
        """Slots <= it are on every member's disk, as far as the leader has told."""
        return self.state.everywhere_durable

    @property
    def last_slot(self) -> int:
        """Highest slot that holds a batch here."""
        return self.state.window.slot_end_max - 1

    @property
    def voting(self) -> bool:
        """False when the journal lost its promises: this replica learns and applies, and never votes."""
        return self.state.voting

    @property
    def unknown(self) -> list[tuple[int, int]]:
        """Slot ranges that the journal made unreadable and that were not accepted again."""
        cdef slot_t floor = self.state.commit_index + 1
        return [(max(begin, floor), end) for begin, end in self.acceptor.unknown if end > floor]

    @property
    def surveys_learned(self) -> int:
        """Committed batches that nobody could read back, learned from what others accepted."""
        return self.survey.learned

    @property
    def now_ns(self) -> int:
        """Replicated time of the newest batch that was applied, UTC nanoseconds."""
        return self.applier.now_ns

    @property
    def window(self):
        """The SlotWindow, for looking at its arrays."""
        return self.state.window

    @property
    def journal(self):
        return self.state.journal

    @property
    def sessions(self):
        """The replicated SessionTable. Read it, never change it."""
        return self.applier.sessions

    @property
    def members(self) -> tuple[int, ...]:
        return self.state.quorum.members

    @property
    def bytes_in_flight(self) -> int:
        """Leader: block bytes proposed and not yet committed."""
        return self.state.bytes_in_flight

    @property
    def window_is_filling(self) -> bool:
        """Leader: more than three quarters of what may be in flight is; a good time to stop reading from clients."""
        if self.proposer.role != ROLE_LEADER:
            return False
        return (4 * (self.proposer.next_slot - self.state.commit_index - 1) > 3 * self.admission_slots
                or 4 * self.state.bytes_in_flight > 3 * self.admission_bytes)

    def has_work(self) -> bool:
        """Tell whether batches wait to be applied."""
        return self.state.applied_index < self.state.commit_index

    def peer_status(self) -> list[dict[str, object]]:
        """Return what is known of each peer: id, connected, commit_index, applied_index, durable_index, next_slot."""
        cdef Peer peer
        return [
            {
                "id": peer.node_id,
                "connected": peer.connected,
                "boot": peer.boot,
                "commit_index": peer.commit_index,
                "applied_index": peer.applied_index,
                "durable_index": peer.durable_index,
                "next_slot": peer.next_slot if self.proposer.role == ROLE_LEADER else 0,
                "bytes_in_flight": peer.bytes_in_flight,
                "last_heard_ns": peer.last_heard_ns,
            }
            for peer in self.state.peer_list
        ]
