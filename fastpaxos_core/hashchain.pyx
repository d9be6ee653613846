"""Rolling digests, fast enough to fold every applied command (docs/protocol.md, "Hash chain").

They compare replicas and find bugs and broken disks; they are not meant to resist somebody who chooses the commands.

The chain, per command of n bytes, with all arithmetic modulo 2**64 and bytes read as little-endian words, the last one
padded with zeros (P0..P3 odd constants, rotl = rotate left):

    x = P0 + n;  y = P1 ^ n
    even words w:  x = rotl((x ^ w) * P2, 31)        odd words w:  y = rotl((y ^ w) * P3, 29)
    a = rotl((a ^ x) * P2, 27)
    b = rotl((b ^ y) * P3, 33) + a

Each step is one-to-one in the state and in the word, so changing one word, or any words of a command of up to 16 bytes,
always changes the digest, and equal commands behind it never cancel the difference. The chain is defined per command:
it does not matter how commands were batched.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize

from fastpaxos_core.block cimport BlockView
from fastpaxos_core.types cimport uint8_t, uint32_t, uint64_t

cdef extern from *:
    """
    #include <stddef.h>
    #include <string.h>

    #define FP_P0 UINT64_C(0x9E3779B97F4A7C15)
    #define FP_P1 UINT64_C(0xD1B54A32D192ED03)
    #define FP_P2 UINT64_C(0x8CB92BA72F3D8DD7)
    #define FP_P3 UINT64_C(0xAEF17502108EF2D9)

    static inline uint64_t fp_rotl(uint64_t value, int bits) {
        return (value << bits) | (value >> (64 - bits));
    }

    static inline uint64_t fp_word(const uint8_t* data) {
        uint64_t word;
        memcpy(&word, data, 8);
    #if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        word = __builtin_bswap64(word);
    #endif
        return word;
    }

    /* The last `size` (1..7) bytes that end at `end`, padded with zeros. `total` bytes before `end` may be read. */
    static inline uint64_t fp_tail(const uint8_t* end, size_t size, size_t total) {
        uint64_t word = 0;
        size_t i;
        if (total >= 8)
            return fp_word(end - 8) >> (64 - 8 * size);
        for (i = 0; i < size; i++)
            word |= (uint64_t)end[(ptrdiff_t)i - (ptrdiff_t)size] << (8 * i);
        return word;
    }

    static inline fp_lanes fp_command_lanes(const uint8_t* data, size_t size) {
        const uint8_t* end = data + size;
        uint64_t x = FP_P0 + (uint64_t)size, y = FP_P1 ^ (uint64_t)size;
        size_t left = size;
        fp_lanes lanes;
        while (left >= 16) {
            x = fp_rotl((x ^ fp_word(data)) * FP_P2, 31);
            y = fp_rotl((y ^ fp_word(data + 8)) * FP_P3, 29);
            data += 16;
            left -= 16;
        }
        if (left >= 8) {
            x = fp_rotl((x ^ fp_word(data)) * FP_P2, 31);
            if (left > 8)
                y = fp_rotl((y ^ fp_tail(end, left - 8, size)) * FP_P3, 29);
        } else if (left) {
            x = fp_rotl((x ^ fp_tail(end, left, size)) * FP_P2, 31);
        }
        lanes.a = x;
        lanes.b = y;
        return lanes;
    }

    static inline void fp_chain(fp_lanes* chain, const uint8_t* data, size_t size) {
        fp_lanes lanes = fp_command_lanes(data, size);
        chain->a = fp_rotl((chain->a ^ lanes.a) * FP_P2, 27);
        chain->b = fp_rotl((chain->b ^ lanes.b) * FP_P3, 33) + chain->a;
    }

    static inline void fp_store64(uint8_t* out, uint64_t value) {
    #if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        value = __builtin_bswap64(value);
    #endif
        memcpy(out, &value, 8);
    }

    static inline uint32_t fp_length_at(const uint8_t* lengths, size_t index) {
        uint32_t length;
        memcpy(&length, lengths + 4 * index, 4);
    #if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        length = __builtin_bswap32(length);
    #endif
        return length;
    }

    /* Folds every command of a block and writes the running count after each; one pass, no Python.
       `lengths` is NULL when every command has uniform_length bytes. */
    static void fp_fold_block(fp_lanes* chain, uint64_t* count, const uint8_t* payload, const uint8_t* lengths,
                              uint32_t uniform_length, uint32_t commands, uint8_t* results) {
        fp_lanes local = *chain;
        uint64_t number = *count;
        uint32_t index;
        if (lengths == NULL && uniform_length == 16) {
            for (index = 0; index < commands; index++, payload += 16, results += 8) {
                fp_chain(&local, payload, 16);
                fp_store64(results, ++number);
            }
        } else {
            for (index = 0; index < commands; index++, results += 8) {
                size_t length = lengths == NULL ? uniform_length : fp_length_at(lengths, index);
                fp_chain(&local, payload, length);
                payload += length;
                fp_store64(results, ++number);
            }
        }
        *chain = local;
        *count = number;
    }

    /* One state entry: two chained byte strings, three numbers, then a finaliser, because entries are only summed. */
    static inline uint64_t fp_final(uint64_t value) {
        value = (value ^ (value >> 32)) * FP_P2;
        value = (value ^ (value >> 29)) * FP_P3;
        return value ^ (value >> 32);
    }

    static fp_lanes fp_entry(const uint8_t* key, size_t key_size, const uint8_t* value, size_t value_size,
                             uint64_t first, uint64_t second, uint64_t third) {
        fp_lanes lanes = {FP_P1, FP_P0};
        uint8_t numbers[24];
        uint64_t a;
        fp_store64(numbers, first);
        fp_store64(numbers + 8, second);
        fp_store64(numbers + 16, third);
        fp_chain(&lanes, key, key_size);
        fp_chain(&lanes, value, value_size);
        fp_chain(&lanes, numbers, 24);
        a = lanes.a;
        lanes.a = fp_final(a ^ fp_rotl(lanes.b, 32));
        lanes.b = fp_final(lanes.b + fp_rotl(a, 17));
        return lanes;
    }

    static inline void fp_lanes_add(fp_lanes* sum, fp_lanes entry) {
        sum->a += entry.a;
        sum->b += entry.b;
    }

    static inline void fp_lanes_subtract(fp_lanes* sum, fp_lanes entry) {
        sum->a -= entry.a;
        sum->b -= entry.b;
    }
    """
    void fp_chain(fp_lanes* chain, const uint8_t* data, size_t size) noexcept nogil
    void fp_fold_block(fp_lanes* chain, uint64_t* count, const uint8_t* payload, const uint8_t* lengths,
                       uint32_t uniform_length, uint32_t commands, uint8_t* results) noexcept nogil
    fp_lanes fp_entry(const uint8_t* key, size_t key_size, const uint8_t* value, size_t value_size,
                      uint64_t first, uint64_t second, uint64_t third) noexcept nogil
    void fp_lanes_add(fp_lanes* total, fp_lanes entry) noexcept nogil
    void fp_lanes_subtract(fp_lanes* total, fp_lanes entry) noexcept nogil
    void fp_store64(uint8_t* out, uint64_t value) noexcept nogil
    uint64_t fp_word(const uint8_t* data) noexcept nogil

cdef enum:
    RESULT_HEADER_BYTES = 8
    RESULT_VERSION = 1
    RESULT_UNIFORM = 1


cdef bytes lanes_bytes(fp_lanes lanes):
    cdef uint8_t out[16]
    fp_store64(out, lanes.a)
    fp_store64(out + 8, lanes.b)
    return PyBytes_FromStringAndSize(<char*>out, 16)


cdef class HashChainState:
    """The digest of a sequence of commands: 128 bits, and how many were folded.

    Args:
        count, digest: go on from this point (digest: 16 bytes as returned by `digest`); the empty chain by default.

    Raises:
        ValueError: the digest does not have 16 bytes.
    """

    def __cinit__(self, count: int = 0, digest: bytes = bytes(16)):
        cdef const uint8_t* data
        if len(digest) != 16:
            raise ValueError(f"a chain digest has 16 bytes, got {len(digest)}")
        data = <const uint8_t*>PyBytes_AS_STRING(digest)
        self._lanes.a = fp_word(data)
        self._lanes.b = fp_word(data + 8)
        self._count = count

    @property
    def count(self) -> int:
        """How many commands were folded."""
        return self._count

    @property
    def digest(self) -> bytes:
        """The 16 bytes of the digest after `count` commands."""
        return lanes_bytes(self._lanes)

    cpdef bytes fold(self, BlockView block_view):
        """Fold every command of a block, in order.

        Returns a whole result blob (docs/protocol.md, "Result blob"), uniform: each command's result is the count
        after it, 8 bytes little-endian.
        """
        cdef uint32_t commands
        cdef bytes blob
        cdef uint8_t* out
        if block_view is None:
            raise TypeError("fold needs a BlockView, not None")
        commands = block_view._header.command_count
        blob = PyBytes_FromStringAndSize(NULL, RESULT_HEADER_BYTES + 8 * <Py_ssize_t>commands)
        out = <uint8_t*>PyBytes_AS_STRING(blob)
        out[0] = RESULT_VERSION
        out[1] = RESULT_UNIFORM
        out[2] = 0
        out[3] = 0
        out[4] = commands & 0xFF
        out[5] = (commands >> 8) & 0xFF
        out[6] = (commands >> 16) & 0xFF
        out[7] = commands >> 24
        fp_fold_block(&self._lanes, &self._count, block_view._payload, block_view._lengths,
                      block_view._uniform_length, commands, out + RESULT_HEADER_BYTES)
        return blob

    cpdef bytes fold_one(self, object command):
        """Fold one bytes-like command and return its result: the count after it, 8 bytes little-endian."""
        cdef uint8_t out[8]
        cdef Py_buffer buffer
        PyObject_GetBuffer(command, &buffer, PyBUF_SIMPLE)
        fp_chain(&self._lanes, <const uint8_t*>buffer.buf, buffer.len)
        PyBuffer_Release(&buffer)
        self._count += 1
        fp_store64(out, self._count)
        return PyBytes_FromStringAndSize(<char*>out, 8)


cdef class MultisetDigest:
    """The digest of a set of entries (key, value, three numbers 0..2**64-1), whatever the order they came in.

    It is the sum of the entries' own digests, so adding and removing cost one entry each. Removing what was never
    added is not noticed. Equal sets of entries have equal digests.
    """

    @property
    def count(self) -> int:
        """How many entries are in the set."""
        return self._count

    @property
    def digest(self) -> bytes:
        """The 16 bytes of the digest; zeros for the empty set."""
        return lanes_bytes(self._lanes)

    def add(self, bytes key not None, bytes value not None, uint64_t first, uint64_t second, uint64_t third) -> None:
        """Put an entry into the set."""
        fp_lanes_add(&self._lanes, fp_entry(<const uint8_t*>PyBytes_AS_STRING(key), len(key),
                                            <const uint8_t*>PyBytes_AS_STRING(value), len(value),
                                            first, second, third))
        self._count += 1

    def remove(self, bytes key not None, bytes value not None, uint64_t first, uint64_t second, uint64_t third) -> None:
        """Take an entry out that was put in with exactly these fields. Raises ValueError when the set is empty."""
        if self._count == 0:
            raise ValueError("an empty digest holds no entry to remove")
        fp_lanes_subtract(&self._lanes, fp_entry(<const uint8_t*>PyBytes_AS_STRING(key), len(key),
                                                 <const uint8_t*>PyBytes_AS_STRING(value), len(value),
                                                 first, second, third))
        self._count -= 1
