"""Linearizable reads by read index (rule 5.7)."""

from fastpaxos_core.state cimport Peer, ReplicaState
from fastpaxos_core.types cimport ballot_t, slot_t, uint64_t

cdef class ReadIndex:
    cdef ReplicaState state
    cdef readonly uint64_t round             # newest numbered round that was sent
    cdef readonly bint round_pending         # its quorum has not answered yet
    cdef slot_t round_index                  # read index of the reads that wait for it
    cdef list arrived                        # [(waiter, minimum_index)] not yet covered by a round
    cdef list in_round                       # covered by the pending round
    cdef list confirmed                      # [(waiter, read_index)] waiting for applied_index
    cdef list ready                          # [(waiter, status, read_index)]

    cdef int add(self, object waiter, slot_t minimum_index) except -1
    cdef bint begin_round(self) except -1
    cdef int confirm(self, ballot_t ballot) except -1
    cdef int release(self) except -1
    cdef int fail_all(self, int status) except -1
    cdef size_t waiting(self)
