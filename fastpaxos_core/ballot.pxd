"""Ballots: round << 16 | node_id, one total order; 0 means none (docs/protocol.md, "Ballots")."""

from fastpaxos_core.types cimport ballot_t, node_id_t, uint64_t

cdef inline ballot_t make_ballot(uint64_t ballot_round, node_id_t node_id) noexcept nogil:
    return (ballot_round << 16) | node_id

cdef inline uint64_t ballot_round(ballot_t ballot) noexcept nogil:
    return ballot >> 16

cdef inline node_id_t ballot_node(ballot_t ballot) noexcept nogil:
    return <node_id_t>(ballot & 0xFFFF)
