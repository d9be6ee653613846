"""The replicated session table: exactly once by (session, sequence). DESIGN: safety rule 9."""

from cpython.object cimport PyObject

from fastpaxos_core.types cimport sequence_t, session_id_t, slot_t, uint8_t, uint32_t, uint64_t

cdef enum:
    VERDICT_APPLY = 0            # the next block of its session
    VERDICT_DUPLICATE = 1        # applied before; its results may be kept
    VERDICT_UNKNOWN = 2          # no such session: never opened, closed or expired
    VERDICT_INVALID = 3          # gap, partial overlap, other block boundaries, or no sequences at all
    SESSION_NONE = 0xFFFFFFFF    # index that names no session
    NONCE_BYTES = 16
    RESULT_OVERHEAD_BYTES = 64   # charged per kept result beside its own bytes, so that empty results are bounded too

# The result of one applied block. Ownership: `results` is a counted reference to a bytes object.
cdef struct StoredResult:
    sequence_t first_sequence
    uint32_t count
    PyObject* results

# One open session. Its results form a ring in order of sequence: oldest at ring_head.
cdef struct Session:
    session_id_t session_id
    sequence_t last_sequence
    sequence_t acknowledged_below
    slot_t used_slot
    uint64_t kept_bytes
    StoredResult* ring
    uint32_t ring_head
    uint32_t ring_count
    uint32_t ring_capacity       # a power of two, or 0 before the first result
    uint32_t older               # neighbours in the recency list
    uint32_t newer               # of a free cell: the next free cell
    uint8_t nonce[NONCE_BYTES]

cdef class SessionTable:
    cdef readonly uint32_t sessions_max
    cdef readonly uint64_t result_bytes_per_session_max
    cdef readonly uint64_t result_bytes_max
    cdef readonly uint64_t kept_bytes    # results kept by all sessions, overhead included
    cdef Session* _sessions
    cdef uint32_t* _buckets              # open addressing by session id: index + 1, 0 = empty
    cdef uint32_t _bucket_mask
    cdef uint32_t _count
    cdef uint32_t _free                  # first cell of the free list
    cdef uint32_t _unused                # cells from here on were never used
    cdef uint32_t _oldest
    cdef uint32_t _newest
    cdef uint32_t _keeper                # sessions older than this one keep no results
    cdef slot_t _last_slot
    cdef dict _by_nonce

    # For the apply path: no Python objects are made, except that record_c keeps `results`.
    cdef int classify_c(self, session_id_t session_id, sequence_t first_sequence, uint32_t count) noexcept nogil
    cdef int record_c(self, session_id_t session_id, sequence_t first_sequence, uint32_t count, bytes results,
                      sequence_t acknowledged_below, slot_t slot) except -1
    cdef bytes result_c(self, session_id_t session_id, sequence_t first_sequence)   # None when not kept
    cdef int touch_c(self, session_id_t session_id, slot_t slot) except -1          # 1 when the session exists
    cdef sequence_t last_sequence_c(self, session_id_t session_id) noexcept nogil   # 0 when unknown or fresh
    cdef bint contains_c(self, session_id_t session_id) noexcept nogil
    cpdef session_id_t open(self, bytes nonce, slot_t slot) except 0
    cpdef bint close(self, session_id_t session_id) except -1

    cdef uint32_t _find(self, session_id_t session_id) noexcept nogil
    cdef int _insert_bucket(self, uint32_t index) noexcept nogil
    cdef int _remove_bucket(self, uint32_t index) noexcept nogil
    cdef int _unlink(self, uint32_t index) noexcept nogil
    cdef int _append(self, uint32_t index) noexcept nogil
    cdef int _check_slot(self, slot_t slot) except -1
    cdef uint32_t _take_cell(self, session_id_t session_id, bytes nonce, slot_t slot) except? 0
    cdef int _remove(self, uint32_t index) except -1
    cdef int _drop_oldest(self, Session* session) noexcept
    cdef int _keep(self, Session* session, sequence_t first_sequence, uint32_t count, bytes results) except -1
    cdef int _enforce_total(self) noexcept
    cdef list _state_of(self, Session* session)
    cdef int _restore_session(self, object state) except -1
