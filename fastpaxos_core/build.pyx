"""Which build of the core is loaded: the profile is compiled in, so it cannot disagree with the machine code."""

cdef extern from "checks.h":
    const char* FASTPAXOS_PROFILE
    int FASTPAXOS_CHECKED

PROFILE = FASTPAXOS_PROFILE.decode("ascii")
CHECKED = FASTPAXOS_CHECKED != 0
