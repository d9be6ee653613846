"""Fixed-width protocol types and the one layout that wire and journal share.

Slots count from 1; 0 means "none". Ranges are half-open: slot_begin, slot_end.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

ctypedef uint64_t ballot_t       # round << 16 | node_id, 0 = none
ctypedef uint64_t slot_t         # position in the log, from 1
ctypedef uint16_t node_id_t      # 1..65535
ctypedef uint64_t session_id_t   # the slot of the entry that opened the session
ctypedef uint64_t sequence_t     # command number within a session, from 1
ctypedef uint64_t ticket_t       # number of the group-commit write that makes something durable

cdef enum:
    BATCH_COMMITTED = 1          # descriptor flag: the batch is known chosen (learned), ballot is informative
    BATCH_UNKNOWN = 2            # descriptor flag: this range is corrupt here; nothing is claimed about it
    BATCH_FLAGS_KNOWN = 3

cdef enum:
    # No replica accepts a batch that ends further than this above its commit_index. So what a corrupt journal record
    # can have held is bounded, and what it makes unknown comes to an end.
    SLOTS_AHEAD_MAX = 1048576

cdef enum:
    # Slots, write numbers and segment numbers on disk stay below 2**63, so that one more, or a bound of slots more,
    # cannot overflow.
    NUMBER_BITS = 63

# One batch without its block. 48 bytes, little-endian, no padding (docs/protocol.md, "Batch descriptor").
cdef packed struct BatchDescriptor:
    uint64_t slot_begin
    uint64_t slot_end            # half-open
    uint64_t ballot              # ballot in which it was accepted
    int64_t timestamp_ns         # UTC, given by the leader that first proposed it
    uint32_t block_bytes         # length of the block that belongs to it
    uint32_t value_crc           # CRC32C(slot_begin, slot_end, timestamp_ns, the block's own CRC)
    uint32_t flags               # BATCH_*
    uint32_t reserved            # 0
