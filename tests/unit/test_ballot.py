"""Ballots: one total order, unique, printable."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpaxos_core.ballot import ROUND_MAX, format_ballot, pack_ballot, unpack_ballot

ROUNDS = st.integers(0, ROUND_MAX)
NODES = st.integers(1, 0xFFFF)


@given(ROUNDS, NODES)
def test_pack_and_unpack_are_inverse(round_number: int, node_id: int) -> None:
    assert unpack_ballot(pack_ballot(round_number, node_id)) == (round_number, node_id)


@given(ROUNDS, NODES, ROUNDS, NODES)
def test_ballots_order_by_round_then_node(round_a: int, node_a: int, round_b: int, node_b: int) -> None:
    assert (pack_ballot(round_a, node_a) < pack_ballot(round_b, node_b)) == ((round_a, node_a) < (round_b, node_b))


@pytest.mark.parametrize(("round_number", "node_id"), [(-1, 1), (ROUND_MAX + 1, 1), (0, 0), (0, 65536)])
def test_values_out_of_range_are_refused(round_number: int, node_id: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        pack_ballot(round_number, node_id)


def test_format() -> None:
    assert format_ballot(0) == "none"
    assert format_ballot(pack_ballot(7, 3)) == "7.3"
