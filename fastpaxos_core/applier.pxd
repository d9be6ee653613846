"""The applier: committed batches in slot order, exactly once per session sequence, answers to waiters."""

from fastpaxos_core.block cimport BlockHeader, BlockView
from fastpaxos_core.learner cimport Learner
from fastpaxos_core.sessions cimport SessionTable
from fastpaxos_core.state cimport ReplicaState
from fastpaxos_core.types cimport BatchDescriptor, int64_t, sequence_t, session_id_t, slot_t, uint32_t

cdef class AppliedBatch:
    cdef readonly BlockView view             # the commands
    cdef readonly slot_t slot_begin
    cdef readonly slot_t slot_end
    cdef readonly int64_t now_ns             # replicated time

cdef class Applier:
    cdef ReplicaState state
    cdef Learner learner
    cdef readonly SessionTable sessions
    cdef dict waiters                        # (session_id, first_sequence) or nonce -> waiter
    cdef list replies
    cdef readonly int64_t now_ns
    cdef AppliedBatch current                # handed out, not completed yet
    cdef list replay                         # StoredBatches read back from the journal, in slot order
    cdef size_t replay_next
    cdef object reading                      # the outstanding JournalRead, None when there is none

    cdef AppliedBatch next_batch(self)
    cdef AppliedBatch _take(self, const BatchDescriptor* descriptor, object owner, size_t offset)
    cdef int complete(self, bytes results) except -1
    cdef int answer(self, object key, int status, session_id_t session_id, sequence_t first_sequence, uint32_t count,
                    slot_t slot, bytes results) except -1
    cdef int read_back(self, slot_t slot, object before) except -1
    cdef int supply(self, list stored, object read) except -1
    cdef int _apply_control(self, const BatchDescriptor* descriptor, BlockView view) except -1
