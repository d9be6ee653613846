"""Phase 1: from a new ballot to a leader that has re-proposed everything that may have been chosen."""

from fastpaxos_core.acceptor cimport Acceptor
from fastpaxos_core.learner cimport Learner
from fastpaxos_core.proposer cimport Proposer
from fastpaxos_core.state cimport Peer, ReplicaState
from fastpaxos_core.types cimport ballot_t, slot_t, uint32_t, uint64_t
from fastpaxos_core.wire cimport Frame

cdef class Phase1:
    cdef ReplicaState state
    cdef Acceptor acceptor
    cdef Learner learner
    cdef Proposer proposer
    cdef readonly bint active
    cdef readonly ballot_t ballot
    cdef slot_t slot_begin                   # first slot asked for in Prepare
    cdef dict promises                       # node id -> Promise
    cdef uint64_t sent_ns
    cdef readonly uint64_t started_ns
    cdef uint64_t resend_timeout_ns
    cdef list plan                           # chosen-or-free values in slot order, once selected
    cdef size_t plan_next
    cdef dict wanted                         # request id -> Entry whose bytes are being fetched

    cdef int campaign(self) except -1
    cdef int abandon(self) except -1
    cdef int send_prepare(self, bint hold) except -1
    cdef int handle_promise(self, Peer peer, Frame frame) except -1
    cdef bint handle_learn(self, Peer peer, Frame frame) except -1
    cdef int progress(self) except -1
    cdef bint _has_quorum(self) except -1
    cdef int _select(self) except -1
    cdef int _fetch_values(self) except -1
    cdef int _propose_plan(self) except -1
    cdef int tick(self) except -1
