"""Quorums: Phase 1 and Phase 2 always intersect."""

from itertools import combinations

import pytest

from fastpaxos_core.errors import ConfigError
from fastpaxos_core.quorum import QuorumSystem


@pytest.mark.parametrize("count", range(1, 8))
def test_majorities_intersect(count: int) -> None:
    system = QuorumSystem(range(1, count + 1))
    masks = range(1 << count)
    phase1 = [mask for mask in masks if system.is_phase1_quorum(mask)]
    phase2 = [mask for mask in masks if system.is_phase2_quorum(mask)]
    assert phase1
    assert phase2
    assert all(a & b for a in phase1 for b in phase2)


@pytest.mark.parametrize(("count", "phase1", "phase2"), [(3, 3, 1), (4, 3, 2), (5, 4, 2), (5, 2, 4), (6, 4, 3)])
def test_flexible_quorums_intersect(count: int, phase1: int, phase2: int) -> None:
    system = QuorumSystem(range(1, count + 1), phase1, phase2)
    bits = [1 << position for position in range(count)]
    for first in combinations(bits, phase1):
        assert system.is_phase1_quorum(sum(first))
        assert not system.is_phase1_quorum(sum(first[1:]))
        for second in combinations(bits, phase2):
            assert system.is_phase2_quorum(sum(second))
            assert sum(first) & sum(second)


@pytest.mark.parametrize(
    ("members", "phase1", "phase2"),
    [([], 0, 0), ([1, 1], 0, 0), ([0, 1], 0, 0), ([1, 70000], 0, 0), ([1, 2, 3], 1, 2), ([1, 2, 3, 4], 2, 2),
     ([1, 2, 3], 4, 1), ([1, 2, 3], -1, 3), (range(1, 40), 0, 0)],
)  # fmt: skip
def test_unsafe_configurations_are_refused(members: list[int], phase1: int, phase2: int) -> None:
    with pytest.raises(ConfigError):
        QuorumSystem(members, phase1, phase2)


def test_vote_bits_are_positions_in_the_sorted_configuration() -> None:
    system = QuorumSystem([30, 10, 20])
    assert system.members == (10, 20, 30)
    assert [system.bit_of(node_id) for node_id in (10, 20, 30)] == [1, 2, 4]
    for stranger in (11, 0, 70000):
        with pytest.raises(KeyError):
            system.bit_of(stranger)
