/* Which edges of the decoders were ever taken: included into every compiled module of the fuzzing build, whose code gcc
   instruments with one call per basic block (-fsanitize-coverage=trace-pc).

   An edge is named by two code offsets inside its module, so a run does not depend on where modules are loaded. A table
   per module remembers the edges; the count is one for all modules: it is weak, and modules are loaded globally. */
#ifndef FASTPAXOS_FUZZ_COVERAGE_H
#define FASTPAXOS_FUZZ_COVERAGE_H
#include <stdint.h>

#define FP_EDGE_CELLS (1u << 18)
#define FP_UNINSTRUMENTED __attribute__((no_sanitize_coverage, no_sanitize_address, no_sanitize_undefined))

__attribute__((weak)) uint64_t fp_edge_count;

static uint8_t fp_edges[FP_EDGE_CELLS];
static uint32_t fp_edge_from;
static const char fp_module_anchor = 0;

__attribute__((visibility("hidden"), noinline)) FP_UNINSTRUMENTED void __sanitizer_cov_trace_pc(void) {
    uint32_t here = (uint32_t)((uintptr_t)__builtin_return_address(0) - (uintptr_t)&fp_module_anchor);
    uint32_t cell = (here ^ (fp_edge_from * 0x9E3779B1u >> 13)) & (FP_EDGE_CELLS - 1);
    fp_edge_from = here;
    if (!fp_edges[cell]) {
        fp_edges[cell] = 1;
        fp_edge_count++;
    }
}
#endif
