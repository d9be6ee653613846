"""The learner: which accepted batches are committed, and fetching those that are missing here."""

from fastpaxos_core.state cimport Peer, ReplicaState
from fastpaxos_core.types cimport BatchDescriptor, ballot_t, node_id_t, slot_t, uint32_t, uint64_t
from fastpaxos_core.wire cimport Frame

cdef class Learner:
    cdef ReplicaState state
    cdef readonly slot_t commit_hint         # highest commit_index heard from anybody
    cdef node_id_t hint_node
    cdef ballot_t told_ballot                # the newest commit message of a leader, to go on after a fetch
    cdef slot_t told_commit
    cdef uint64_t next_request_id
    cdef readonly uint64_t fetch_id          # outstanding Fetch, 0 = none
    cdef slot_t fetch_slot
    cdef node_id_t fetch_node
    cdef bint fetch_repairs                  # the outstanding Fetch is for repair_slot, not for what comes next
    cdef uint32_t failures                   # Fetches of what comes next that failed in a row
    cdef uint32_t repair_failures            # the same of repair_slot
    cdef bint source_failed                  # hint_node is the next in turn, not who was heard last
    cdef uint64_t fetch_sent_ns
    cdef bint waits                          # no room or no source: go on at the next sync or tick
    cdef uint64_t fetch_timeout_ns
    cdef readonly slot_t repair_slot         # committed slot whose record is unreadable here, 0 = none
    cdef uint64_t repair_since_ns            # when it was last found to be unreadable
    cdef bint repair_failed                  # the last answer did not have repair_slot: catch up once in between
    cdef list repaired                       # StoredBatch-like tuples for the applier
    cdef readonly list reads                 # JournalReads to do
    cdef dict read_purposes                  # JournalRead -> purpose

    cdef int heard_commit(self, Peer peer, ballot_t ballot, slot_t commit_index, slot_t everywhere_durable) except -1
    cdef int ask_for_repair(self, slot_t slot) except -1
    cdef int hint(self, Peer peer, slot_t commit_index) except -1
    cdef int advance(self, ballot_t ballot, slot_t commit_index) except -1
    cdef int commit_batch(self, uint32_t reference) except -1
    cdef bint _learn(self, const BatchDescriptor* entry, bytes owner, uint64_t offset) except -1
    cdef int _repair(self, const BatchDescriptor* entry, bytes owner, uint64_t offset) except -1
    cdef Peer _source(self, slot_t slot)
    cdef int _try_another_source(self) except -1
    cdef int fetch_missing(self) except -1
    cdef int handle_fetch(self, Peer peer, Frame frame) except -1
    cdef int handle_learn(self, Peer peer, Frame frame) except -1
    cdef bint learn_surveyed(self, const BatchDescriptor* entry, bytes owner, uint64_t offset) except -1
    cdef int tick(self) except -1
    cdef int serve(self, Peer peer, uint64_t request_id, slot_t slot_begin, uint64_t bytes_max) except -1
    cdef int serve_stored(self, Peer peer, uint64_t request_id, list stored, uint64_t bytes_max) except -1
    cdef object request_read(self, slot_t slot, tuple purpose, object before)
    cdef uint64_t request_id(self) except 0
