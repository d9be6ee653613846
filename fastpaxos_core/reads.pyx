"""Read index: a numbered round, sent after the read arrived, is echoed by a Phase 2 quorum (rule 5.7).

No clock takes part. Reads that arrive while a round is out share the next one.
Paper: Ongaro, "Consensus: Bridging Theory and Practice" (2014), section 6.4, carried over to ballots.
"""

from fastpaxos_core.state cimport Peer, ReplicaState
from fastpaxos_core.types cimport ballot_t, slot_t, uint32_t

cdef enum:
    STATUS_OK = 0


cdef class ReadIndex:
    """The reads of one leader."""

    def __init__(self, ReplicaState state):
        self.state = state
        self.arrived = []
        self.in_round = []
        self.confirmed = []
        self.ready = []

    cdef int add(self, object waiter, slot_t minimum_index) except -1:
        self.arrived.append((waiter, minimum_index))
        return 0

    cdef bint begin_round(self) except -1:
        """Start a round for what has arrived, if none is out; True when the caller must send it to the peers."""
        if self.round_pending or not self.arrived:
            return False
        self.round += 1
        self.round_pending = True
        self.round_index = self.state.commit_index
        self.in_round = self.arrived
        self.arrived = []
        return True

    cdef int confirm(self, ballot_t ballot) except -1:
        """Count who echoed the pending round in this ballot; the leader counts while it promised nothing higher."""
        cdef ReplicaState state = self.state
        cdef uint32_t votes = 0
        cdef Peer peer
        if not self.round_pending:
            return 0
        if state.promised_ballot == ballot:
            votes = state.own_bit
        for peer in state.peer_list:
            if peer.read_round >= self.round:
                votes |= peer.bit
        if not state.quorum.phase2_c(votes):
            return 0
        self.round_pending = False
        for waiter, minimum_index in self.in_round:
            self.confirmed.append((waiter, max(<slot_t>minimum_index, self.round_index)))
        self.in_round = []
        return 0

    cdef int release(self) except -1:
        """Answer the reads whose index has been applied here."""
        if not self.confirmed:
            return 0
        waiting = []
        for waiter, read_index in self.confirmed:
            if read_index <= self.state.applied_index:
                self.ready.append((waiter, STATUS_OK, read_index))
            else:
                waiting.append((waiter, read_index))
        self.confirmed = waiting
        return 0

    cdef int fail_all(self, int status) except -1:
        """Leadership is over: nothing that is not confirmed and applied may be answered."""
        for group in (self.arrived, self.in_round, self.confirmed):
            for waiter, _ in group:
                self.ready.append((waiter, status, 0))
        self.arrived = []
        self.in_round = []
        self.confirmed = []
        self.round_pending = False
        return 0

    cdef size_t waiting(self):
        return len(self.arrived) + len(self.in_round) + len(self.confirmed)
