"""What the roles of one replica share: configuration, window, journal, peers, and the rule of held messages."""

from fastpaxos_core.block cimport BlockHeader
from fastpaxos_core.journal cimport Journal
from fastpaxos_core.quorum cimport QuorumSystem
from fastpaxos_core.types cimport (
    BatchDescriptor,
    ballot_t,
    int64_t,
    node_id_t,
    slot_t,
    ticket_t,
    uint8_t,
    uint32_t,
    uint64_t,
)
from fastpaxos_core.window cimport SlotWindow
from fastpaxos_core.wire cimport Frame, FrameWriter

cdef class Peer:
    cdef readonly node_id_t node_id
    cdef readonly uint32_t bit               # vote bit
    cdef readonly bint connected
    cdef readonly uint32_t boot              # of the peer, from its hello
    cdef readonly slot_t next_slot           # leader: first slot not yet sent in an Accept
    cdef readonly slot_t owed_slot           # leader: first slot sent to it and not accepted, at the last tick
    cdef readonly slot_t commit_index        # last heard
    cdef readonly slot_t applied_index       # last heard
    cdef readonly slot_t durable_index       # last heard
    cdef readonly slot_t commit_sent         # leader: commit_index last told
    cdef readonly uint64_t bytes_in_flight   # leader: block bytes sent and not yet accepted or committed
    cdef readonly uint64_t last_heard_ns
    cdef readonly uint64_t progress_ns       # leader: last time that owed_slot moved, or nothing was owed
    cdef readonly uint64_t read_round        # leader: highest round echoed in the current ballot
    cdef list buffers                        # outgoing, in order

cdef class ReplicaState:
    cdef readonly node_id_t node_id
    cdef readonly uint32_t boot
    cdef readonly uint32_t own_bit
    cdef readonly QuorumSystem quorum
    cdef readonly SlotWindow window
    cdef readonly Journal journal
    cdef readonly FrameWriter writer
    cdef readonly dict peers                 # node id -> Peer
    cdef readonly list peer_list
    cdef readonly uint64_t now_ns
    cdef readonly int64_t wall_ns
    cdef int64_t last_timestamp_ns           # of the newest batch proposed or seen
    cdef readonly ballot_t promised_ballot
    cdef uint32_t promised_boot              # boot of the proposer that was promised, 0 when not known in this boot
    cdef ticket_t promise_ticket             # write that makes the promise durable
    cdef ticket_t sealed_ticket              # last write that was sealed to be synced
    cdef readonly ballot_t max_ballot_seen
    cdef readonly slot_t commit_index
    cdef readonly slot_t applied_index
    cdef readonly slot_t everywhere_durable
    cdef slot_t durable_cursor               # behind durable_index()
    cdef readonly bint voting
    cdef readonly ballot_t leader_ballot     # highest ballot whose leader was heard
    cdef readonly uint64_t leader_heard_ns
    cdef readonly uint64_t bytes_in_flight   # leader: block bytes proposed and not committed
    cdef readonly bint deposed               # a learned batch contradicts this leader's proposal: step down
    cdef uint64_t window_slots
    cdef uint64_t window_bytes
    cdef uint64_t log_memory_bytes
    cdef uint32_t reserved_batches           # entries kept free for what continues the committed prefix
    cdef object held                         # deque of (ticket, node_id, frame), tickets never fall

    cdef Peer peer(self, node_id_t node_id)
    cdef int send(self, Peer peer, int frame_type, ballot_t ballot, const void* head, size_t head_bytes) except -1
    cdef int hold(self, Peer peer, bytes frame) except -1
    cdef int release_held(self) except -1
    cdef int raise_promise(self, ballot_t ballot, uint32_t proposer_boot) except -1
    cdef int hear_leader(self, ballot_t ballot) except -1
    cdef uint32_t store(self, BatchDescriptor* descriptor, object owner, size_t block_offset, uint8_t status
                        ) except? 0xFFFFFFFF
    cdef bint make_room(self, slot_t slot_begin, slot_t slot_end) except -1
    cdef int trim_memory(self) except -1
    cdef slot_t durable_index(self) noexcept nogil
    cdef int send_batches(self, list peers, int frame_type, ballot_t ballot, const void* fixed, size_t fixed_bytes,
                          const BatchDescriptor* descriptors, size_t count, list parts) except -1

# Checks one batch of a frame against the bytes of its block; FrameError says what does not fit.
cdef int check_batch(const BatchDescriptor* descriptor, const uint8_t* block, uint64_t room, BlockHeader* header
                     ) except -1
cdef object block_part(object owner, size_t offset, size_t size)
