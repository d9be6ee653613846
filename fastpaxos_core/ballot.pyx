"""Ballots as Python sees them: pack, unpack, print."""

from fastpaxos_core.ballot cimport ballot_node, ballot_round, make_ballot
from fastpaxos_core.types cimport ballot_t, node_id_t, uint64_t

ROUND_MAX = (1 << 48) - 1


def pack_ballot(round_number: int, node_id: int) -> int:
    """Return the ballot of `node_id` in `round_number` (0..2**48-1). Raises ValueError outside these ranges."""
    if not 0 <= round_number <= ROUND_MAX:
        raise ValueError(f"round {round_number} is outside 0..{ROUND_MAX}")
    if not 1 <= node_id <= 0xFFFF:
        raise ValueError(f"node id {node_id} is outside 1..65535")
    return make_ballot(<uint64_t>round_number, <node_id_t>node_id)


def unpack_ballot(ballot: int) -> tuple[int, int]:
    """Return (round, node_id) of a ballot."""
    cdef ballot_t value = ballot
    return ballot_round(value), ballot_node(value)


def format_ballot(ballot: int) -> str:
    """Return a ballot as people read it: "round.node", or "none" for 0."""
    cdef ballot_t value = ballot
    if value == 0:
        return "none"
    return f"{ballot_round(value)}.{ballot_node(value)}"
