"""Which build of the core is loaded: the profile is compiled in, so it cannot disagree with the machine code."""

cdef extern from "checks.h":
    const char* FASTPAXOS_PROFILE
    int FASTPAXOS_CHECKED

cdef extern from *:
    unsigned long CYTHON_HEX_VERSION

PROFILE = FASTPAXOS_PROFILE.decode("ascii")
CHECKED = FASTPAXOS_CHECKED != 0
CYTHON = f"{CYTHON_HEX_VERSION >> 24}.{CYTHON_HEX_VERSION >> 16 & 255}.{CYTHON_HEX_VERSION >> 8 & 255}"
