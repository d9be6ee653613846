"""Quorums by name; a vote bit is a position in the configuration's sorted member list."""

from fastpaxos_core.types cimport node_id_t, uint32_t

cdef class QuorumSystem:
    cdef readonly tuple members          # sorted node ids; position = vote bit
    cdef readonly int phase1_size
    cdef readonly int phase2_size
    cdef node_id_t _ids[32]
    cdef int _count
    cdef int position_of(self, node_id_t node_id) noexcept nogil   # vote bit position, 32 when not a member
    cdef bint phase1_c(self, uint32_t votes) noexcept nogil
    cdef bint phase2_c(self, uint32_t votes) noexcept nogil
    cdef bint meets_phase2_c(self, uint32_t votes) noexcept nogil  # shares a member with every Phase 2 quorum
