"""The leader's Phase 2: proposing, counting votes by slot range, per-peer progress."""

from fastpaxos_core.learner cimport Learner
from fastpaxos_core.reads cimport ReadIndex
from fastpaxos_core.state cimport Peer, ReplicaState
from fastpaxos_core.types cimport BatchDescriptor, ballot_t, int64_t, slot_t, uint32_t, uint64_t
from fastpaxos_core.wire cimport Frame

cdef enum:
    ROLE_FOLLOWER = 0
    ROLE_CANDIDATE = 1
    ROLE_LEADER = 2

cdef class Proposer:
    cdef ReplicaState state
    cdef Learner learner
    cdef ReadIndex reads
    cdef readonly int role
    cdef readonly ballot_t ballot            # own ballot, 0 when following
    cdef readonly slot_t next_slot           # first slot not proposed yet
    cdef readonly slot_t recovered_end       # end of what Phase 1 re-proposed; 0 while that goes on
    cdef slot_t own_next                     # first own proposal whose own vote is not counted
    cdef readonly uint64_t quorum_heard_ns
    cdef uint64_t heartbeat_ns
    cdef uint64_t heartbeat_interval_ns
    cdef uint64_t resend_timeout_ns
    # Ownership: malloc'd scratch for the descriptors of one outgoing frame.
    cdef BatchDescriptor* _scratch

    cdef int lead(self, ballot_t ballot) except -1
    cdef int follow(self) except -1
    cdef bint is_ready(self) noexcept
    cdef uint32_t propose(self, object owner, size_t offset, uint32_t block_bytes, uint32_t slot_count,
                          uint32_t block_crc, int64_t timestamp_ns) except? 0xFFFFFFFF
    cdef int count_vote(self, uint32_t reference, uint32_t bit) except -1
    cdef int count_own_votes(self) except -1
    cdef int commit_chosen(self) except -1
    cdef int handle_accepted(self, Peer peer, Frame frame) except -1
    cdef int handle_heartbeat_reply(self, Peer peer, Frame frame) except -1
    cdef int send_accepts(self) except -1
    cdef int _send_accepts_from(self, slot_t slot, list peers) except -1
    cdef int send_heartbeats(self) except -1
    cdef int send_commits(self) except -1
    cdef int tick(self) except -1
    cdef int update_quorum_contact(self) except -1
    cdef slot_t everywhere_durable(self) except? 0xFFFFFFFFFFFFFFFF
