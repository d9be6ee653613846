"""Heads of the replica-to-replica frames (docs/protocol.md, "Replica messages"). Little-endian, no padding."""

from fastpaxos_core.types cimport int64_t, uint8_t, uint32_t, uint64_t

cdef packed struct PrepareHead:
    uint64_t slot_begin          # first slot the candidate does not know to be committed

cdef packed struct PromiseHead:
    uint64_t commit_index        # of the acceptor
    uint64_t slot_begin          # echoed
    uint32_t proposer_boot       # echoed: replies to another boot are ignored
    uint32_t part                # 0 .. part_count - 1
    uint32_t part_count
    uint32_t entry_count         # BatchDescriptors that follow

cdef packed struct AcceptHead:
    uint64_t commit_index
    uint64_t everywhere_durable  # every member has every slot <= this on disk
    uint32_t entry_count         # BatchDescriptors that follow; the body holds their blocks in the same order
    uint32_t reserved

cdef packed struct AcceptedHead:
    uint64_t commit_index        # of the acceptor: slots <= it are committed there (rule 5.1)
    uint64_t durable_index       # of the acceptor: committed slots <= it are on its disk
    uint32_t proposer_boot
    uint32_t entry_count         # AcceptedRanges that follow

cdef packed struct AcceptedRange:
    uint64_t slot_begin
    uint64_t slot_end
    uint32_t value_crc
    uint32_t reserved

cdef packed struct NackHead:
    uint64_t promised_ballot
    uint64_t commit_index

cdef packed struct CommitHead:
    uint64_t commit_index
    uint64_t everywhere_durable

cdef packed struct HeartbeatHead:
    uint64_t commit_index
    uint64_t everywhere_durable
    uint64_t read_round          # 0 = none asked for

cdef packed struct HeartbeatReplyHead:
    uint64_t read_round          # echoed
    uint64_t commit_index
    uint64_t applied_index
    uint64_t durable_index
    uint32_t proposer_boot
    uint32_t reserved

cdef packed struct FetchHead:
    uint64_t request_id
    uint64_t slot_begin
    uint64_t slot_end            # 0 = as far as bytes_max allows; of an accepted value, exact; slot_begin + 1 = survey
    uint32_t bytes_max
    uint32_t value_crc           # of the wanted accepted value; 0 when committed batches are wanted

cdef packed struct LearnHead:
    uint64_t request_id
    uint64_t commit_index        # of the sender
    uint32_t entry_count
    uint32_t kind                # LEARN_*

cdef enum:
    LEARN_FETCHED = 0            # committed batches, or the accepted value that was asked for
    LEARN_ACCEPTED = 1           # the answer to a survey: what is accepted in the slot, committed or not

# Raises FrameError unless the head holds the fixed part and exactly entry_count entries of entry_bytes.
cdef const uint8_t* head_of(object frame, size_t fixed_bytes) except NULL
cdef int check_entries(object frame, size_t fixed_bytes, uint64_t entry_count, size_t entry_bytes) except -1
