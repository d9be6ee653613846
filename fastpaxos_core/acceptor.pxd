"""The acceptor: what this replica promised and accepted."""

from fastpaxos_core.learner cimport Learner
from fastpaxos_core.state cimport Peer, ReplicaState
from fastpaxos_core.types cimport BatchDescriptor, ballot_t, slot_t, ticket_t, uint32_t, uint64_t
from fastpaxos_core.wire cimport Frame

# An accepted batch whose Accepted has not been sent yet.
cdef struct Acceptance:
    ticket_t ticket
    ballot_t ballot
    slot_t slot_begin
    slot_t slot_end
    uint32_t value_crc

cdef class Acceptor:
    cdef ReplicaState state
    cdef Learner learner
    cdef readonly list unknown               # [(slot_begin, slot_end)] corrupt on this disk and not accepted again
    # Ownership: malloc'd FIFO of acceptances in journal order, [first, first + count) in use.
    cdef Acceptance* _waiting
    cdef size_t _capacity, _first, _count
    cdef bint _answer_commit                 # the proposer asked below commit_index: tell it (rule 5.1)

    cdef int handle_prepare(self, Peer peer, Frame frame) except -1
    cdef int handle_accept(self, Peer peer, Frame frame) except -1
    cdef int handle_heartbeat(self, Peer peer, Frame frame) except -1
    cdef int handle_commit(self, Peer peer, Frame frame) except -1
    cdef int flush_accepted(self) except -1
    cdef int send_nack(self, Peer peer, ballot_t rejected) except -1
    cdef list promise_frames(self, ballot_t ballot, uint32_t proposer_boot, slot_t slot_begin)
    cdef int note_acceptance(self, ticket_t ticket, ballot_t ballot, slot_t slot_begin, slot_t slot_end,
                             uint32_t value_crc) except -1
    cdef int _accept(self, const BatchDescriptor* entry, bytes owner, uint64_t offset) except -1
    cdef int forget_unknown(self, slot_t slot_begin, slot_t slot_end) except -1
