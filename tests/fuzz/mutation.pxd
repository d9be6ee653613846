"""What exact.pyx calls of mutation.py without Python in between."""

cdef class Chance:
    cdef unsigned long long state
    cpdef unsigned long long word(self)
    cpdef unsigned long long below(self, unsigned long long limit)
    cpdef unsigned long long wide(self)

cdef unsigned long long interesting(Chance chance, unsigned long long old, size_t width, size_t size)
