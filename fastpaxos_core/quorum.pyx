"""Phase 1 and Phase 2 quorums (DESIGN: safety rule 4). Majority by default, flexible where q1 + q2 > N.

Paper: Howard, Malkhi, Spiegelman, "Flexible Paxos" (2016), section 3: only quorums of different phases must intersect.
"""

from fastpaxos_core.errors import ConfigError

from fastpaxos_core.types cimport node_id_t, uint32_t

MEMBERS_MAX = 32


cdef extern from *:
    """
    #define fp_popcount(x) __builtin_popcount(x)
    """
    int fp_popcount(uint32_t x) noexcept nogil


cdef class QuorumSystem:
    """The quorums of one configuration.

    Args:
        members: node ids, 1..65535, without duplicates, at most 32.
        phase1_size, phase2_size: quorum sizes; 0 means majority. Their sum must exceed the number of members.

    Raises:
        ConfigError: the members or sizes cannot form a safe quorum system.
    """

    def __init__(self, members, phase1_size: int = 0, phase2_size: int = 0):
        ids = sorted(members)
        if not ids or len(ids) > MEMBERS_MAX:
            raise ConfigError(f"a configuration needs 1..{MEMBERS_MAX} members, got {len(ids)}")
        if len(set(ids)) != len(ids) or not all(1 <= node_id <= 0xFFFF for node_id in ids):
            raise ConfigError(f"member ids must be distinct and in 1..65535, got {ids}")
        majority = len(ids) // 2 + 1
        phase1 = phase1_size or majority
        phase2 = phase2_size or majority
        if not (1 <= phase1 <= len(ids) and 1 <= phase2 <= len(ids)):
            raise ConfigError(f"quorum sizes {phase1} and {phase2} must lie in 1..{len(ids)}")
        # Invariant: every Phase 1 quorum meets every Phase 2 quorum.
        if phase1 + phase2 <= len(ids):
            raise ConfigError(
                f"phase 1 quorum {phase1} + phase 2 quorum {phase2} must exceed {len(ids)} members, "
                "or two leaders could choose different values"
            )
        self.members = tuple(ids)
        self.phase1_size = phase1
        self.phase2_size = phase2
        self._count = len(ids)
        for position, node_id in enumerate(ids):
            self._ids[<int>position] = node_id

    cdef int position_of(self, node_id_t node_id) noexcept nogil:
        cdef int position
        for position in range(self._count):
            if self._ids[position] == node_id:
                return position
        return 32

    cdef bint phase1_c(self, uint32_t votes) noexcept nogil:
        return fp_popcount(votes) >= self.phase1_size

    cdef bint phase2_c(self, uint32_t votes) noexcept nogil:
        return fp_popcount(votes) >= self.phase2_size

    cdef bint meets_phase2_c(self, uint32_t votes) noexcept nogil:
        return fp_popcount(votes) > self._count - self.phase2_size

    def bit_of(self, node_id: int) -> int:
        """Return the vote bit of a member. Raises KeyError for anybody else."""
        if node_id not in self.members:
            raise KeyError(node_id)
        return 1 << self.position_of(<node_id_t>node_id)

    def is_phase1_quorum(self, votes: int) -> bool:
        """Tell whether the members whose bits are set in `votes` form a Phase 1 quorum."""
        return self.phase1_c(<uint32_t>votes)

    def is_phase2_quorum(self, votes: int) -> bool:
        """Tell whether the members whose bits are set in `votes` form a Phase 2 quorum."""
        return self.phase2_c(<uint32_t>votes)

    def meets_phase2_quorums(self, votes: int) -> bool:
        """Tell whether the members whose bits are set in `votes` share one with every Phase 2 quorum.

        A Phase 1 quorum does; where there are more than needed, fewer members do as well.
        """
        return self.meets_phase2_c(<uint32_t>votes)
