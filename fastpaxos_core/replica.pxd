"""The replica: the roles composed by the core contract."""

from fastpaxos_core.acceptor cimport Acceptor
from fastpaxos_core.applier cimport Applier
from fastpaxos_core.learner cimport Learner
from fastpaxos_core.phase1 cimport Phase1
from fastpaxos_core.proposer cimport Proposer
from fastpaxos_core.reads cimport ReadIndex
from fastpaxos_core.state cimport Peer, ReplicaState
from fastpaxos_core.survey cimport Survey
from fastpaxos_core.types cimport slot_t, uint32_t, uint64_t
from fastpaxos_core.wire cimport Frame

cdef class Replica:
    cdef ReplicaState state
    cdef Acceptor acceptor
    cdef Learner learner
    cdef Proposer proposer
    cdef Phase1 phase1
    cdef Survey survey
    cdef ReadIndex reads
    cdef Applier applier
    cdef list orphans                        # waiters of leaderships that ended: keys
    cdef dict admitted                       # session_id -> next sequence this leader admits
    cdef uint64_t block_bytes_max
    cdef uint32_t commands_per_block_max
    cdef uint64_t admission_slots            # slots that may be in flight now: the window, less while a peer lags
    cdef uint64_t admission_bytes
    cdef bint writing                        # a sealed write has not been reported as synced

    cdef int _dispatch(self, Peer peer, Frame frame) except -1
    cdef int _check_leadership(self) except -1
    cdef int _step_down(self) except -1
    cdef int _advance(self) except -1
    cdef int _recover(self, object recovery) except -1
    cdef int _set_admission(self) except -1
    cdef int _propose_control(self, object key, dict entry, object waiter) except -1
