"""Digests over what was applied: one that depends on order (HashChainState), one that does not (MultisetDigest)."""

from fastpaxos_core.block cimport BlockView
from fastpaxos_core.types cimport uint64_t

cdef extern from *:
    """
    #ifndef FP_LANES_DEFINED
    #define FP_LANES_DEFINED
    #include <stdint.h>
    typedef struct { uint64_t a, b; } fp_lanes;
    #endif
    """
    ctypedef struct fp_lanes:
        uint64_t a
        uint64_t b

cdef class HashChainState:
    cdef fp_lanes _lanes
    cdef uint64_t _count
    cpdef bytes fold(self, BlockView block_view)
    cpdef bytes fold_one(self, object command)

cdef class MultisetDigest:
    cdef fp_lanes _lanes
    cdef uint64_t _count
