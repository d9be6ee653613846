"""The replicated session table (DESIGN: safety rule 9).

Every replica makes the same calls in log order, so equal logs give equal tables: nothing here depends on addresses,
hash seeds or clocks. Lookup, recency and eviction cost O(1) per block; finding a kept result costs O(log kept results).
The limits decide what is dropped, so they belong to the cluster: all replicas must use the same ones.
"""

import hashlib
import struct
from enum import IntEnum

import msgpack

from fastpaxos_core.errors import CorruptionError, InvariantError

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from fastpaxos_core.types cimport sequence_t, session_id_t, slot_t, uint32_t, uint64_t

SESSIONS_MAX_DEFAULT = 4096
RESULT_BYTES_PER_SESSION_DEFAULT = 4 << 20
RESULT_BYTES_DEFAULT = 128 << 20

cdef uint32_t SESSIONS_LIMIT = 1 << 24
cdef int STATE_VERSION = 1

cdef extern from *:
    """
    /* Fibonacci hashing; wraps on purpose. Session ids are slots, so neighbours are common. */
    static inline uint32_t fp_session_hash(uint64_t session_id) {
        return (uint32_t)((session_id * UINT64_C(0x9E3779B97F4A7C15)) >> 32);
    }
    """
    uint32_t fp_session_hash(uint64_t session_id) noexcept nogil


class Verdict(IntEnum):
    """What apply does with a block, decided by the session table alone."""

    APPLY = VERDICT_APPLY
    DUPLICATE = VERDICT_DUPLICATE
    UNKNOWN = VERDICT_UNKNOWN
    INVALID = VERDICT_INVALID


cdef inline StoredResult* result_at(Session* session, uint32_t position) noexcept nogil:
    """The only accessor of a session's ring: position 0 is the oldest kept result."""
    return &session.ring[(session.ring_head + position) & (session.ring_capacity - 1)]


cdef uint32_t first_ending_after(Session* session, sequence_t sequence) noexcept nogil:
    """Position of the first kept result that ends above `sequence` (ring_count when there is none)."""
    cdef uint32_t low = 0, high = session.ring_count, middle
    cdef StoredResult* stored
    while low < high:
        middle = low + (high - low) // 2
        stored = result_at(session, middle)
        if stored.first_sequence + (stored.count - 1) < sequence:
            low = middle + 1
        else:
            high = middle
    return low


cdef int grow_ring(Session* session) except -1:
    """Make room for one more result. The old ring stays as it is when memory is short."""
    cdef uint32_t capacity = session.ring_capacity * 2 if session.ring_capacity else 4
    cdef uint32_t position
    cdef StoredResult* ring
    if session.ring_capacity > 0x40000000:
        raise MemoryError
    ring = <StoredResult*>malloc(<size_t>capacity * sizeof(StoredResult))
    if ring == NULL:
        raise MemoryError
    for position in range(session.ring_count):
        ring[position] = result_at(session, position)[0]
    free(session.ring)
    session.ring = ring
    session.ring_head = 0
    session.ring_capacity = capacity
    return 0


cdef class SessionTable:
    """Open sessions, the last sequence applied in each, and the results that clients have not acknowledged yet.

    Args:
        sessions_max: open sessions, 1..2**24. One more evicts the least recently used one.
        result_bytes_per_session_max: bytes of results kept per session. The oldest are dropped first; a result that
            alone is larger is not kept. Each kept result is charged 64 bytes beside its own.
        result_bytes_max: the same for all sessions together. The least recently used session loses results first.

    Ownership: the table owns its cells, its rings, and one reference to each kept result. Slots given to `open`,
    `record` and `touch` never fall: calls are made in log order.

    Raises:
        ValueError: a limit outside its range.
    """

    def __cinit__(
        self,
        sessions_max: int = SESSIONS_MAX_DEFAULT,
        result_bytes_per_session_max: int = RESULT_BYTES_PER_SESSION_DEFAULT,
        result_bytes_max: int = RESULT_BYTES_DEFAULT,
    ):
        cdef uint32_t buckets = 8
        if not 1 <= sessions_max <= SESSIONS_LIMIT:
            raise ValueError(f"sessions_max {sessions_max} is outside 1..{SESSIONS_LIMIT}")
        if not 0 <= result_bytes_per_session_max < 1 << 40 or not 0 <= result_bytes_max < 1 << 48:
            raise ValueError(f"result byte limits {result_bytes_per_session_max}, {result_bytes_max} are out of range")
        self.sessions_max = sessions_max
        self.result_bytes_per_session_max = result_bytes_per_session_max
        self.result_bytes_max = result_bytes_max
        while buckets < 2 * self.sessions_max:
            buckets *= 2
        self._bucket_mask = buckets - 1
        self._free = self._oldest = self._newest = self._keeper = SESSION_NONE
        self._by_nonce = {}
        self._sessions = <Session*>calloc(self.sessions_max, sizeof(Session))
        self._buckets = <uint32_t*>calloc(buckets, sizeof(uint32_t))
        if self._sessions == NULL or self._buckets == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef uint32_t index = self._oldest
        cdef Session* session
        if self._sessions != NULL and self._buckets != NULL:
            while index != SESSION_NONE:
                session = &self._sessions[index]
                while session.ring_count:
                    self._drop_oldest(session)
                free(session.ring)
                index = session.newer
        free(self._sessions)
        free(self._buckets)

    def __len__(self) -> int:
        return self._count

    def __contains__(self, session_id: int) -> bool:
        return self.contains_c(session_id)

    # --- sessions -------------------------------------------------------------------------------------------------

    cpdef session_id_t open(self, bytes nonce, slot_t slot) except 0:
        """Open a session in the log entry at `slot` and return its id.

        The same 16-byte nonce returns the same session as long as it is open; else the new session is named by its
        slot. Raises ValueError for a nonce of another length, InvariantError for a slot that falls or is taken.
        """
        cdef uint32_t index
        if nonce is None or PyBytes_GET_SIZE(nonce) != NONCE_BYTES:
            raise ValueError(f"a session nonce has {NONCE_BYTES} bytes, got {nonce!r}")
        self._check_slot(slot)
        known = self._by_nonce.get(nonce)
        if known is not None:
            self.touch_c(known, slot)
            return known
        if self._find(slot) != SESSION_NONE:
            raise InvariantError(f"slot {slot} already opened a session with another nonce")
        if self._count == self.sessions_max:
            self._remove(self._oldest)
        index = self._take_cell(slot, nonce, slot)
        self._last_slot = slot
        return self._sessions[index].session_id

    cpdef bint close(self, session_id_t session_id) except -1:
        """End a session and forget its results. Returns False when it is not open."""
        cdef uint32_t index = self._find(session_id)
        if index == SESSION_NONE:
            return False
        self._remove(index)
        return True

    def touch(self, session_id_t session_id, slot_t slot) -> bool:
        """Mark a session as used at `slot` (for duplicates; `record` does it itself). False when it is not open."""
        return self.touch_c(session_id, slot) == 1

    def last_sequence(self, session_id_t session_id):
        """Return the last applied sequence of a session (0 when it is fresh), or None when it is not open."""
        return self.last_sequence_c(session_id) if self.contains_c(session_id) else None

    def acknowledged_below(self, session_id_t session_id):
        """Return the sequence below which the client has every result, or None when the session is not open."""
        cdef uint32_t index = self._find(session_id)
        return None if index == SESSION_NONE else self._sessions[index].acknowledged_below

    def session_ids(self) -> list:
        """Return the ids of all open sessions, least recently used first."""
        cdef list ids = []
        cdef uint32_t index = self._oldest
        while index != SESSION_NONE:
            ids.append(self._sessions[index].session_id)
            index = self._sessions[index].newer
        return ids

    # --- blocks ---------------------------------------------------------------------------------------------------

    def classify(self, session_id_t session_id, sequence_t first_sequence, uint32_t count) -> int:
        """Return the Verdict (as int) for the block of `count` commands from `first_sequence`. Changes nothing."""
        return self.classify_c(session_id, first_sequence, count)

    def result(self, session_id_t session_id, sequence_t first_sequence):
        """Return the result blob of exactly the block that began at `first_sequence`, or None when it is not kept."""
        return self.result_c(session_id, first_sequence)

    def record(
        self,
        session_id_t session_id,
        sequence_t first_sequence,
        uint32_t count,
        bytes results not None,
        sequence_t acknowledged_below,
        slot_t slot,
    ) -> None:
        """Take note that a block was applied at `slot`, keep its results, and free what the client acknowledged.

        Raises InvariantError when `classify` does not say APPLY for it, or the slot falls.
        """
        self.record_c(session_id, first_sequence, count, results, acknowledged_below, slot)

    cdef int classify_c(self, session_id_t session_id, sequence_t first_sequence, uint32_t count) noexcept nogil:
        cdef uint32_t index = self._find(session_id)
        cdef Session* session
        cdef StoredResult* stored
        cdef sequence_t last
        cdef uint32_t position
        if index == SESSION_NONE:
            return VERDICT_UNKNOWN
        if count == 0 or first_sequence == 0 or first_sequence > <sequence_t>0xFFFFFFFFFFFFFFFF - count:
            return VERDICT_INVALID
        session = &self._sessions[index]
        if first_sequence > session.last_sequence:
            return VERDICT_APPLY if first_sequence - 1 == session.last_sequence else VERDICT_INVALID
        last = first_sequence + (count - 1)
        if last > session.last_sequence:
            return VERDICT_INVALID
        # A resent block has the boundaries of the first attempt. Where they are still known, others are refused.
        position = first_ending_after(session, first_sequence)
        if position < session.ring_count:
            stored = result_at(session, position)
            if stored.first_sequence <= last and (stored.first_sequence != first_sequence or stored.count != count):
                return VERDICT_INVALID
        return VERDICT_DUPLICATE

    cdef int record_c(self, session_id_t session_id, sequence_t first_sequence, uint32_t count, bytes results,
                      sequence_t acknowledged_below, slot_t slot) except -1:
        cdef int verdict = self.classify_c(session_id, first_sequence, count)
        cdef uint32_t index
        cdef Session* session
        cdef StoredResult* stored
        # Invariant: a block changes the state machine once, and only as the next one of its session.
        if verdict != VERDICT_APPLY:
            raise InvariantError(
                f"session {session_id}: block {first_sequence}+{count} was applied, but its verdict is {verdict}"
            )
        self._check_slot(slot)
        index = self._find(session_id)
        session = &self._sessions[index]
        if session.ring_count == session.ring_capacity:
            grow_ring(session)
        self._last_slot = slot
        session.used_slot = slot
        session.last_sequence = first_sequence + (count - 1)
        if index != self._newest:
            self._unlink(index)
            self._append(index)
        # A client cannot have the results of the block that it is only now sending.
        if acknowledged_below > first_sequence:
            acknowledged_below = first_sequence
        if acknowledged_below > session.acknowledged_below:
            session.acknowledged_below = acknowledged_below
            while session.ring_count:
                stored = result_at(session, 0)
                if stored.first_sequence + stored.count > acknowledged_below:
                    break
                self._drop_oldest(session)
        self._keep(session, first_sequence, count, results)
        return 0

    cdef bytes result_c(self, session_id_t session_id, sequence_t first_sequence):
        cdef uint32_t index = self._find(session_id), position
        cdef Session* session
        cdef StoredResult* stored
        if index == SESSION_NONE:
            return None
        session = &self._sessions[index]
        position = first_ending_after(session, first_sequence)
        if position == session.ring_count:
            return None
        stored = result_at(session, position)
        return <bytes>stored.results if stored.first_sequence == first_sequence else None

    cdef int touch_c(self, session_id_t session_id, slot_t slot) except -1:
        cdef uint32_t index = self._find(session_id)
        self._check_slot(slot)
        self._last_slot = slot
        if index == SESSION_NONE:
            return 0
        self._sessions[index].used_slot = slot
        if index != self._newest:
            self._unlink(index)
            self._append(index)
        return 1

    cdef sequence_t last_sequence_c(self, session_id_t session_id) noexcept nogil:
        cdef uint32_t index = self._find(session_id)
        return 0 if index == SESSION_NONE else self._sessions[index].last_sequence

    cdef bint contains_c(self, session_id_t session_id) noexcept nogil:
        return self._find(session_id) != SESSION_NONE

    # --- state ----------------------------------------------------------------------------------------------------

    def digest(self) -> bytes:
        """Return 16 bytes that are equal on two tables when their whole state is (limits and order included)."""
        cdef uint32_t index = self._oldest, position
        cdef Session* session
        cdef StoredResult* stored
        hasher = hashlib.blake2b(digest_size=16)
        hasher.update(
            struct.pack("<IQQQI", self.sessions_max, self.result_bytes_per_session_max, self.result_bytes_max,
                        self._last_slot, self._count)
        )
        while index != SESSION_NONE:
            session = &self._sessions[index]
            hasher.update(session.nonce[:NONCE_BYTES])
            hasher.update(
                struct.pack("<QQQQI", session.session_id, session.last_sequence, session.acknowledged_below,
                            session.used_slot, session.ring_count)
            )
            for position in range(session.ring_count):
                stored = result_at(session, position)
                results = <bytes>stored.results
                hasher.update(struct.pack("<QIQ", stored.first_sequence, stored.count, len(results)))
                hasher.update(results)
            index = session.newer
        return hasher.digest()

    def to_state(self) -> bytes:
        """Return the whole table as one msgpack array; `from_state` gives an equal table."""
        cdef list sessions = []
        cdef uint32_t index = self._oldest
        while index != SESSION_NONE:
            sessions.append(self._state_of(&self._sessions[index]))
            index = self._sessions[index].newer
        return msgpack.packb(
            [STATE_VERSION, self.sessions_max, self.result_bytes_per_session_max, self.result_bytes_max,
             self._last_slot, sessions]
        )

    @staticmethod
    def from_state(data) -> SessionTable:
        """Return the table that `to_state` described. Raises CorruptionError when the bytes are no such state."""
        cdef SessionTable table
        try:
            version, sessions_max, per_session, total, last_slot, sessions = msgpack.unpackb(data)
            if version != STATE_VERSION:
                raise ValueError(f"version {version} is unknown")
            table = SessionTable(sessions_max, per_session, total)
            for session in sessions:
                table._restore_session(session)
            if last_slot < table._last_slot:
                raise ValueError(f"last slot {last_slot} lies below a session's slot {table._last_slot}")
            table._last_slot = last_slot
        except (ValueError, TypeError, OverflowError, InvariantError) as error:
            raise CorruptionError(f"session table state of {len(data)} bytes is damaged: {error!s:.200}") from error
        return table

    cdef list _state_of(self, Session* session):
        cdef uint32_t position
        cdef StoredResult* stored
        cdef list kept = []
        for position in range(session.ring_count):
            stored = result_at(session, position)
            kept.append([stored.first_sequence, stored.count, <bytes>stored.results])
        return [session.session_id, session.nonce[:NONCE_BYTES], session.last_sequence, session.acknowledged_below,
                session.used_slot, kept]

    cdef int _restore_session(self, object state) except -1:
        cdef uint32_t index
        cdef Session* session
        cdef sequence_t begin = 1, first_sequence
        cdef uint32_t count
        cdef uint64_t expected = self.kept_bytes
        session_id, nonce, last_sequence, acknowledged_below, used_slot, kept = state
        if type(nonce) is not bytes or len(nonce) != NONCE_BYTES or nonce in self._by_nonce:
            raise ValueError(f"session {session_id} has a bad or repeated nonce")
        if self._count == self.sessions_max or self._find(session_id) != SESSION_NONE or not session_id:
            raise ValueError(f"session {session_id} is one too many, or repeated")
        if last_sequence >= <sequence_t>0xFFFFFFFFFFFFFFFF:
            raise ValueError(f"session {session_id} has used up its sequences")
        if acknowledged_below > last_sequence + 1:
            raise ValueError(f"session {session_id} acknowledges results above its last sequence {last_sequence}")
        self._check_slot(used_slot)
        index = self._take_cell(session_id, nonce, used_slot)
        self._last_slot = used_slot
        session = &self._sessions[index]
        session.last_sequence = last_sequence
        session.acknowledged_below = acknowledged_below
        for first, number, results in kept:
            first_sequence = first
            count = number
            if count == 0 or first_sequence < begin or first_sequence > session.last_sequence \
                    or <sequence_t>count - 1 > session.last_sequence - first_sequence or type(results) is not bytes:
                raise ValueError(f"session {session_id} keeps a result {first}+{number} that does not fit")
            begin = first_sequence + count
            expected += <uint64_t>PyBytes_GET_SIZE(results) + RESULT_OVERHEAD_BYTES
            if session.ring_count == session.ring_capacity:
                grow_ring(session)
            self._keep(session, first_sequence, count, results)
        if self.kept_bytes != expected:
            raise ValueError(f"session {session_id} keeps more results than its limits allow")
        return 0

    # --- cells, recency list, buckets -----------------------------------------------------------------------------

    cdef int _check_slot(self, slot_t slot) except -1:
        # Invariant: calls come in log order; recency would otherwise differ between replicas.
        if slot < self._last_slot or slot == 0:
            raise InvariantError(f"session table was used at slot {slot} after slot {self._last_slot}")
        return 0

    cdef uint32_t _take_cell(self, session_id_t session_id, bytes nonce, slot_t slot) except? 0:
        cdef uint32_t index
        cdef Session* session
        self._by_nonce[nonce] = session_id
        if self._free != SESSION_NONE:
            index = self._free
            self._free = self._sessions[index].newer
        else:
            index = self._unused
            self._unused += 1
        session = &self._sessions[index]
        session.session_id = session_id
        session.last_sequence = 0
        session.acknowledged_below = 0
        session.used_slot = slot
        session.kept_bytes = 0
        session.ring = NULL
        session.ring_head = session.ring_count = session.ring_capacity = 0
        memcpy(session.nonce, PyBytes_AS_STRING(nonce), NONCE_BYTES)
        self._insert_bucket(index)
        self._append(index)
        self._count += 1
        return index

    cdef int _remove(self, uint32_t index) except -1:
        cdef Session* session = &self._sessions[index]
        del self._by_nonce[session.nonce[:NONCE_BYTES]]
        while session.ring_count:
            self._drop_oldest(session)
        free(session.ring)
        session.ring = NULL
        self._remove_bucket(index)
        self._unlink(index)
        session.session_id = 0
        session.newer = self._free
        self._free = index
        self._count -= 1
        return 0

    cdef int _drop_oldest(self, Session* session) noexcept:
        cdef StoredResult* stored = result_at(session, 0)
        cdef PyObject* results = stored.results
        cdef uint64_t charge = <uint64_t>PyBytes_GET_SIZE(<object>results) + RESULT_OVERHEAD_BYTES
        stored.results = NULL
        session.ring_head = (session.ring_head + 1) & (session.ring_capacity - 1)
        session.ring_count -= 1
        session.kept_bytes -= charge
        self.kept_bytes -= charge
        Py_DECREF(<object>results)
        return 0

    cdef int _keep(self, Session* session, sequence_t first_sequence, uint32_t count, bytes results) except -1:
        """Append a result to a session's ring, which has room, and drop what is then over a limit."""
        cdef uint64_t charge = <uint64_t>PyBytes_GET_SIZE(results) + RESULT_OVERHEAD_BYTES
        cdef StoredResult* stored
        if charge > self.result_bytes_per_session_max:
            return 0
        while session.kept_bytes + charge > self.result_bytes_per_session_max:
            self._drop_oldest(session)
        session.ring_count += 1
        stored = result_at(session, session.ring_count - 1)
        stored.first_sequence = first_sequence
        stored.count = count
        stored.results = <PyObject*>results
        Py_INCREF(results)
        session.kept_bytes += charge
        self.kept_bytes += charge
        if self._keeper == SESSION_NONE:
            self._keeper = self._newest      # only the session just used gets results
        if self.kept_bytes > self.result_bytes_max:
            self._enforce_total()
        return 0

    cdef int _enforce_total(self) noexcept:
        """Drop results, least recently used session first. Amortised O(1): `_keeper` only moves towards newer ones."""
        cdef Session* session
        while self.kept_bytes > self.result_bytes_max and self._keeper != SESSION_NONE:
            session = &self._sessions[self._keeper]
            if session.ring_count:
                self._drop_oldest(session)
            else:
                self._keeper = session.newer
        return 0

    cdef int _append(self, uint32_t index) noexcept nogil:
        cdef Session* session = &self._sessions[index]
        session.older = self._newest
        session.newer = SESSION_NONE
        if self._newest == SESSION_NONE:
            self._oldest = index
        else:
            self._sessions[self._newest].newer = index
        self._newest = index
        return 0

    cdef int _unlink(self, uint32_t index) noexcept nogil:
        cdef Session* session = &self._sessions[index]
        if self._keeper == index:
            self._keeper = session.newer
        if session.older == SESSION_NONE:
            self._oldest = session.newer
        else:
            self._sessions[session.older].newer = session.newer
        if session.newer == SESSION_NONE:
            self._newest = session.older
        else:
            self._sessions[session.newer].older = session.older
        return 0

    cdef uint32_t _find(self, session_id_t session_id) noexcept nogil:
        cdef uint32_t position = fp_session_hash(session_id) & self._bucket_mask
        cdef uint32_t entry = self._buckets[position]
        while entry:
            if self._sessions[entry - 1].session_id == session_id:
                return entry - 1
            position = (position + 1) & self._bucket_mask
            entry = self._buckets[position]
        return SESSION_NONE

    cdef int _insert_bucket(self, uint32_t index) noexcept nogil:
        cdef uint32_t position = fp_session_hash(self._sessions[index].session_id) & self._bucket_mask
        while self._buckets[position]:
            position = (position + 1) & self._bucket_mask
        self._buckets[position] = index + 1
        return 0

    cdef int _remove_bucket(self, uint32_t index) noexcept nogil:
        cdef uint32_t mask = self._bucket_mask
        cdef uint32_t hole = fp_session_hash(self._sessions[index].session_id) & mask
        cdef uint32_t position, home
        while self._buckets[hole] != index + 1:
            hole = (hole + 1) & mask
        # Close the hole: an entry moves into it unless its own search would then begin behind it.
        position = (hole + 1) & mask
        while self._buckets[position]:
            home = fp_session_hash(self._sessions[self._buckets[position] - 1].session_id) & mask
            if ((position | (mask + 1)) - home) & mask >= ((position | (mask + 1)) - hole) & mask:
                self._buckets[hole] = self._buckets[position]
                hole = position
            position = (position + 1) & mask
        self._buckets[hole] = 0
        return 0
