"""The applier (rules 5.9, 5.12, 5.13): hands committed batches to the state machine and answers who waits for them.

Apply alone decides duplicates, from the replicated session table. Batches that memory no longer holds, as after a
restart, are read back from the journal; what the journal cannot give back is fetched from peers.
"""

import msgpack

from fastpaxos_core.errors import InvariantError

from fastpaxos_core.block cimport (
    BLOCK_COMMANDS,
    BLOCK_CONTROL,
    BlockHeader,
    BlockView,
)
from fastpaxos_core.journal_format cimport StoredBatch
from fastpaxos_core.sessions cimport VERDICT_APPLY, VERDICT_DUPLICATE, VERDICT_UNKNOWN
from fastpaxos_core.state cimport ReplicaState
from fastpaxos_core.types cimport BatchDescriptor, sequence_t, session_id_t, slot_t, uint32_t
from fastpaxos_core.window cimport NO_BATCH, SLOT_COMMITTED, Batch
from fastpaxos_core.wire import ReplyStatus

cdef enum:
    STATUS_OK = 0
    STATUS_RESULT_GONE = 1
    STATUS_SESSION_UNKNOWN = 2
    STATUS_INVALID_SEQUENCE = 11

assert (ReplyStatus.OK, ReplyStatus.RESULT_GONE, ReplyStatus.SESSION_UNKNOWN, ReplyStatus.INVALID_SEQUENCE) == (
    STATUS_OK, STATUS_RESULT_GONE, STATUS_SESSION_UNKNOWN, STATUS_INVALID_SEQUENCE
)


cdef class AppliedBatch:
    """The commands of one committed batch: apply all of view, in order, then call Replica.complete_batch."""


cdef class Applier:
    """Walks applied_index up to commit_index."""

    def __init__(self, ReplicaState state, learner, sessions):
        self.state = state
        self.learner = learner
        self.sessions = sessions
        self.waiters = {}
        self.replies = []
        self.replay = []

    cdef AppliedBatch next_batch(self):
        """Return the next batch whose commands must run, or None when there is none (yet)."""
        cdef ReplicaState state = self.state
        cdef uint32_t reference
        cdef Batch* batch
        cdef StoredBatch stored
        cdef slot_t slot
        cdef AppliedBatch found
        if self.current is not None:
            return self.current
        while state.applied_index < state.commit_index:
            slot = state.applied_index + 1
            if slot >= state.window.memory_begin:
                reference = state.window.find(slot)
                if reference == NO_BATCH:
                    raise InvariantError(f"committed slot {slot} is not in memory")
                batch = state.window.at(reference)
                if batch.descriptor.slot_begin != slot or batch.status != SLOT_COMMITTED:
                    raise InvariantError(f"slot {slot} would be applied out of order or before it is committed")
                found = self._take(&batch.descriptor, <object>batch.owner, batch.block_offset)
            else:
                if self.replay_next >= <size_t>len(self.replay):
                    self.replay = []
                    self.replay_next = 0
                    # While a peer is asked for it, the journal is not read for it again.
                    if self.reading is None and self.learner.repair_slot == 0:
                        self.read_back(slot, None)
                    return None
                stored = <StoredBatch>self.replay[self.replay_next]
                self.replay_next += 1
                if stored.descriptor.slot_begin != slot:
                    # Memory caught up with part of what was read back: the rest of it is stale.
                    self.replay = []
                    self.replay_next = 0
                    continue
                found = self._take(&stored.descriptor, stored.owner, stored.offset)
            if found is not None:
                self.current = found
                return found
        return None

    cdef AppliedBatch _take(self, const BatchDescriptor* descriptor, object owner, size_t offset):
        """Deal with no-ops, control entries and duplicates here; return what the state machine must see."""
        cdef BlockView view = BlockView.from_owner(owner, offset, descriptor.block_bytes)
        cdef BlockHeader* header = &view._header
        cdef AppliedBatch found
        cdef int verdict
        if descriptor.timestamp_ns > self.now_ns:
            self.now_ns = descriptor.timestamp_ns
        if header.kind == BLOCK_COMMANDS:
            verdict = self.sessions.classify_c(header.session_id, header.first_sequence, header.command_count)
            if verdict == VERDICT_APPLY:
                found = AppliedBatch.__new__(AppliedBatch)
                found.view = view
                found.slot_begin = descriptor.slot_begin
                found.slot_end = descriptor.slot_end
                found.now_ns = self.now_ns
                return found
            self._refuse(verdict, view, descriptor.slot_begin)
        elif header.kind == BLOCK_CONTROL:
            self._apply_control(descriptor, view)
        self.state.applied_index = descriptor.slot_end - 1
        return None

    def _refuse(self, int verdict, BlockView view, slot_t slot):
        """A block that apply must not run (again): answer from the table, or say why not."""
        cdef BlockHeader* header = &view._header
        cdef int status = STATUS_INVALID_SEQUENCE
        cdef bytes results = None
        if verdict == VERDICT_DUPLICATE:
            self.sessions.touch_c(header.session_id, slot)
            results = self.sessions.result_c(header.session_id, header.first_sequence)
            status = STATUS_OK if results is not None else STATUS_RESULT_GONE
        elif verdict == VERDICT_UNKNOWN:
            status = STATUS_SESSION_UNKNOWN
        self.answer((header.session_id, header.first_sequence), status, header.session_id, header.first_sequence,
                    header.command_count, slot, results or b"")

    cdef int complete(self, bytes results) except -1:
        """The state machine ran the current batch: record, answer, move on."""
        cdef AppliedBatch batch = self.current
        if batch is None:
            raise InvariantError("no batch is being applied")
        cdef BlockHeader* header = &batch.view._header
        if batch.slot_begin != self.state.applied_index + 1:
            raise InvariantError(f"slot {batch.slot_begin} applied after slot {self.state.applied_index}")
        self.sessions.record_c(header.session_id, header.first_sequence, header.command_count, results,
                               header.acknowledged_below, batch.slot_begin)
        self.state.applied_index = batch.slot_end - 1
        self.current = None
        if self.waiters:
            self.answer((header.session_id, header.first_sequence), STATUS_OK, header.session_id,
                        header.first_sequence, header.command_count, batch.slot_begin, results)
        return 0

    cdef int answer(self, object key, int status, session_id_t session_id, sequence_t first_sequence, uint32_t count,
                    slot_t slot, bytes results) except -1:
        """Rule 5.10: waiters are keyed by (session, sequence), never by slot."""
        waiter = self.waiters.pop(key, None)
        if waiter is not None:
            self.replies.append((waiter, status, session_id, first_sequence, count, slot, results))
        return 0

    cdef int _apply_control(self, const BatchDescriptor* descriptor, BlockView view) except -1:
        """Session entries; an entry that this version does not understand changes nothing, on every replica alike."""
        cdef session_id_t session_id
        try:
            entry = msgpack.unpackb(view[0], raw=False)
            operation = entry["op"]
            if operation == "open_session":
                nonce = entry["nonce"]
                if type(nonce) is not bytes:
                    # bytes(number) would take that many bytes, on every replica alike.
                    return 0
                session_id = self.sessions.open(nonce, descriptor.slot_begin)
                self.answer(nonce, STATUS_OK, session_id, 0, 0, descriptor.slot_begin, b"")
            elif operation == "close_session":
                session_id = entry["session_id"]
                self.sessions.close(session_id)
                self.answer(("close", session_id), STATUS_OK, session_id, 0, 0, descriptor.slot_begin, b"")
        except (ValueError, KeyError, TypeError, OverflowError, msgpack.UnpackException):
            return 0
        return 0

    cdef int read_back(self, slot_t slot, object before) except -1:
        """Read a committed slot from the journal; when no record of it is readable, have it fetched from a peer."""
        self.reading = self.learner.request_read(slot, ("apply",), before)
        if self.reading is None:
            self.learner.repair_slot = slot
        return 0

    cdef int supply(self, list stored, object read) except -1:
        """Batches read back (from `read`), or repaired by a peer (read is None).

        The answer to a read that is not the outstanding one is about another slot: it is dropped.
        """
        cdef slot_t slot = self.state.applied_index + 1
        cdef StoredBatch first
        if read is not None and read is not self.reading:
            return 0
        self.reading = None
        if self.current is not None:
            slot = self.current.slot_end
        if stored:
            first = <StoredBatch>stored[0]
            if first.descriptor.slot_begin == slot:
                self.replay = [batch for batch in stored if (<StoredBatch>batch).descriptor.slot_end
                               <= self.state.commit_index + 1]
                self.replay_next = 0
        elif read is not None and slot < self.state.window.memory_begin:
            self.read_back(slot, read)
        return 0
