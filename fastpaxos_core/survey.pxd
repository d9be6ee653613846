"""The survey: what was chosen in a committed slot that nobody can read back."""

from fastpaxos_core.acceptor cimport Acceptor
from fastpaxos_core.learner cimport Learner
from fastpaxos_core.messages cimport FetchHead
from fastpaxos_core.state cimport Peer, ReplicaState
from fastpaxos_core.types cimport BatchDescriptor, slot_t, uint32_t, uint64_t
from fastpaxos_core.wire cimport Frame

cdef class Survey:
    cdef ReplicaState state
    cdef Acceptor acceptor
    cdef Learner learner
    cdef uint64_t timeout_ns
    cdef slot_t slot                         # the slot that is asked for, 0 = none
    cdef uint64_t request_id
    cdef uint64_t sent_ns
    cdef uint32_t votes                      # members whose acceptor has answered
    cdef BatchDescriptor best                # accepted in the highest ballot so far
    cdef object owner                        # where its block is, None = nobody accepted anything
    cdef size_t offset
    cdef bint was_repair                     # the last one asked for a committed slot that cannot be read back
    cdef uint64_t learned                    # batches learned this way since the start

    cdef int progress(self) except -1
    cdef int tick(self) except -1
    cdef bint handle_fetch(self, Peer peer, Frame frame) except -1
    cdef bint handle_learn(self, Peer peer, Frame frame) except -1
    cdef int _begin(self, slot_t slot) except -1
    cdef bint _is_blind(self, slot_t slot) except -1
    cdef int _take(self, const BatchDescriptor* entry, object owner, size_t offset) except -1
    cdef int _conclude(self) except -1
    cdef int _answer(self, Peer peer, const FetchHead* asked) except -1
