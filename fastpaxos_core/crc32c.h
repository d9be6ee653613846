/* CRC32C (Castagnoli, polynomial 0x1EDC6F41, reflected), callable without the GIL.
 *
 *   fp_crc32c(0, "123456789", 9) == 0xE3069283, and fp_crc32c(fp_crc32c(0, a, n), b, m) is the CRC of a followed by b.
 *
 * Three implementations give the same values: x86-64 with SSE4.2 and PCLMULQDQ (found at load time, no -march needed),
 * ARMv8 with the CRC extension (chosen when compiling), and a portable table. All state is filled in once by a
 * constructor, which runs when the extension module is loaded and before any thread can call in, and is only read
 * afterwards.
 */
#ifndef FASTPAXOS_CRC32C_H
#define FASTPAXOS_CRC32C_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "fastpaxos reads and writes little-endian layouts in place; this platform is not little-endian"
#endif

#define FP_CRC32C_POLYNOMIAL 0x82F63B78u /* bit 31 is the coefficient of x^0 */

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define FP_CRC32C_X86 1
#include <nmmintrin.h>
#include <wmmintrin.h>
#else
#define FP_CRC32C_X86 0
#endif

#if defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
#define FP_CRC32C_ARM 1
#include <arm_acle.h>
#else
#define FP_CRC32C_ARM 0
#endif

/* Row k holds the CRC of one byte followed by k zero bytes, so eight bytes are eight independent look-ups. */
static uint32_t fp_crc32c_table[8][256];

static inline uint64_t fp_crc32c_load64(const uint8_t *data) {
    uint64_t word;
    memcpy(&word, data, sizeof word);
    return word;
}

/* `state` is the CRC register, without the inversions at begin and end. */
static uint32_t fp_crc32c_update_portable(uint32_t state, const uint8_t *data, size_t size) {
    while (size >= 8) {
        uint64_t word = fp_crc32c_load64(data) ^ state;
        state = fp_crc32c_table[7][word & 0xFF] ^ fp_crc32c_table[6][(word >> 8) & 0xFF] ^
                fp_crc32c_table[5][(word >> 16) & 0xFF] ^ fp_crc32c_table[4][(word >> 24) & 0xFF] ^
                fp_crc32c_table[3][(word >> 32) & 0xFF] ^ fp_crc32c_table[2][(word >> 40) & 0xFF] ^
                fp_crc32c_table[1][(word >> 48) & 0xFF] ^ fp_crc32c_table[0][word >> 56];
        data += 8;
        size -= 8;
    }
    while (size--) state = (state >> 8) ^ fp_crc32c_table[0][(state ^ *data++) & 0xFF];
    return state;
}

#if FP_CRC32C_X86

/* One CRC32 instruction takes three cycles but a new one can start in every cycle: long inputs run as three streams
 * side by side. The streams are joined by multiplying the earlier ones by x^(8 * bytes that follow) modulo P.
 * A carry-less product of two reflected 32-bit values, fed to the CRC32 instruction as one word, comes out multiplied
 * by a further x^33; so the factors below are x^(8 * bytes - 33). */
enum { FP_CRC32C_LONG = 2048, FP_CRC32C_SHORT = 128 }; /* bytes per stream */

static uint32_t fp_crc32c_long_factors[2];  /* for one and for two streams that follow */
static uint32_t fp_crc32c_short_factors[2];

__attribute__((target("sse4.2,pclmul"))) static inline uint64_t fp_crc32c_shift(uint64_t state, uint32_t factor) {
    __m128i product = _mm_clmulepi64_si128(_mm_cvtsi64_si128((long long)state), _mm_cvtsi32_si128((int)factor), 0);
    return _mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(product));
}

/* Consumes 3 * `stream_bytes` bytes. */
__attribute__((target("sse4.2,pclmul"))) static inline uint64_t fp_crc32c_three_streams(
    uint64_t state, const uint8_t *data, size_t stream_bytes, const uint32_t factors[2]) {
    uint64_t second = 0, third = 0;
    for (size_t offset = 0; offset < stream_bytes; offset += 8) {
        state = _mm_crc32_u64(state, fp_crc32c_load64(data + offset));
        second = _mm_crc32_u64(second, fp_crc32c_load64(data + offset + stream_bytes));
        third = _mm_crc32_u64(third, fp_crc32c_load64(data + offset + 2 * stream_bytes));
    }
    return fp_crc32c_shift(state, factors[1]) ^ fp_crc32c_shift(second, factors[0]) ^ third;
}

__attribute__((target("sse4.2,pclmul"))) static uint32_t fp_crc32c_update_x86(uint32_t state32, const uint8_t *data,
                                                                             size_t size) {
    uint64_t state = state32;
    while (size >= 3 * FP_CRC32C_LONG) {
        state = fp_crc32c_three_streams(state, data, FP_CRC32C_LONG, fp_crc32c_long_factors);
        data += 3 * FP_CRC32C_LONG;
        size -= 3 * FP_CRC32C_LONG;
    }
    while (size >= 3 * FP_CRC32C_SHORT) {
        state = fp_crc32c_three_streams(state, data, FP_CRC32C_SHORT, fp_crc32c_short_factors);
        data += 3 * FP_CRC32C_SHORT;
        size -= 3 * FP_CRC32C_SHORT;
    }
    while (size >= 8) {
        state = _mm_crc32_u64(state, fp_crc32c_load64(data));
        data += 8;
        size -= 8;
    }
    while (size--) state = _mm_crc32_u8((uint32_t)state, *data++);
    return (uint32_t)state;
}

/* a * b modulo P, all reflected. */
static uint32_t fp_crc32c_multiply(uint32_t a, uint32_t b) {
    uint32_t product = 0;
    for (uint32_t bit = 0x80000000u; bit; bit >>= 1) {
        if (a & bit) product ^= b;
        b = (b >> 1) ^ ((b & 1) ? FP_CRC32C_POLYNOMIAL : 0);
    }
    return product;
}

/* x^exponent modulo P, reflected, by repeated squaring. */
static uint32_t fp_crc32c_power(uint32_t exponent) {
    uint32_t result = 0x80000000u, base = 0x40000000u;
    for (; exponent; exponent >>= 1) {
        if (exponent & 1) result = fp_crc32c_multiply(result, base);
        base = fp_crc32c_multiply(base, base);
    }
    return result;
}

#endif

#if FP_CRC32C_ARM
static uint32_t fp_crc32c_update_arm(uint32_t state, const uint8_t *data, size_t size) {
    while (size >= 8) {
        state = __crc32cd(state, fp_crc32c_load64(data));
        data += 8;
        size -= 8;
    }
    while (size--) state = __crc32cb(state, *data++);
    return state;
}
#endif

static uint32_t (*fp_crc32c_update)(uint32_t, const uint8_t *, size_t) = fp_crc32c_update_portable;
static const char *fp_crc32c_implementation = "portable";

__attribute__((constructor)) static void fp_crc32c_initialise(void) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t state = byte;
        for (int bit = 0; bit < 8; bit++) state = (state >> 1) ^ ((state & 1) ? FP_CRC32C_POLYNOMIAL : 0);
        fp_crc32c_table[0][byte] = state;
    }
    for (int row = 1; row < 8; row++)
        for (int byte = 0; byte < 256; byte++) {
            uint32_t before = fp_crc32c_table[row - 1][byte];
            fp_crc32c_table[row][byte] = (before >> 8) ^ fp_crc32c_table[0][before & 0xFF];
        }
#if FP_CRC32C_X86
    for (uint32_t streams = 1; streams <= 2; streams++) {
        fp_crc32c_long_factors[streams - 1] = fp_crc32c_power(8 * streams * FP_CRC32C_LONG - 33);
        fp_crc32c_short_factors[streams - 1] = fp_crc32c_power(8 * streams * FP_CRC32C_SHORT - 33);
    }
    __builtin_cpu_init();
    if (__builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul")) {
        fp_crc32c_update = fp_crc32c_update_x86;
        fp_crc32c_implementation = "x86 sse4.2 pclmul";
    }
#elif FP_CRC32C_ARM
    fp_crc32c_update = fp_crc32c_update_arm;
    fp_crc32c_implementation = "armv8 crc";
#endif
}

/* The CRC32C of `size` bytes at `data`, continuing from the CRC32C `crc` of what stands before them (0 at first). */
static inline uint32_t fp_crc32c(uint32_t crc, const void *data, size_t size) {
    return ~fp_crc32c_update(~crc, (const uint8_t *)data, size);
}

/* The same by tables only; slower, for platforms without the instructions and to test the others against. */
static inline uint32_t fp_crc32c_portable(uint32_t crc, const void *data, size_t size) {
    return ~fp_crc32c_update_portable(~crc, (const uint8_t *)data, size);
}

#endif
