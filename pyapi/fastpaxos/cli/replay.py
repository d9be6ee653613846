"""An independent reading of a stopped replica's journal: what its state machine must have seen, and in which order.

Of all the rules of the protocol it uses one: a block is applied if and only if it starts right behind the last
sequence of its session. It shares no code with the session table that the replica itself used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fastpaxos.cli.ledger import Ledger, decode_identities
from fastpaxos.errors import CorruptionError
from fastpaxos_core.block import BlockView
from fastpaxos_core.hashchain import HashChainState

__all__ = ["Replay", "Verdict", "judge", "replay"]

BLOCK_COMMANDS = 0


@dataclass(slots=True)
class Replay:
    """What one replica applied, as its journal tells it."""

    applied_index: int = 0
    """Last slot that was read."""
    commands: int = 0
    """Commands that were applied; duplicates that the session rule dropped are not in it."""
    dropped: int = 0
    """Commands of blocks that the session rule dropped."""
    foreign: int = 0
    """Commands that nobody issued in this run."""
    counts: list[NDArray[np.uint8]] = field(default_factory=list)
    """For each session of the ledger: how often each of its counters was applied (255 stands for more)."""
    order_digest: str = ""
    """BLAKE2b over all applied commands in their order."""
    chain_digest: str = ""
    """The hash chain over the same commands, recomputed; a replica on that machine reports the same."""


def replay(batches: Iterable[tuple[int, int, BlockView]], ledger: Ledger, payload_bytes: int) -> Replay:
    """Apply batches (slot_begin, slot_end, block), which must follow each other without a gap from slot 1.

    Raises CorruptionError where they do not.
    """
    result = Replay(counts=[np.zeros(issued, dtype=np.uint8) for issued in ledger.issued])
    last_sequence: dict[int, int] = {}
    order = hashlib.blake2b(digest_size=16)
    chain = HashChainState()
    for slot_begin, slot_end, block in batches:
        if slot_begin != result.applied_index + 1 or slot_end - slot_begin != block.command_count:
            raise CorruptionError(
                f"slots {slot_begin}..{slot_end} with {block.command_count} commands follow slot {result.applied_index}"
            )
        result.applied_index = slot_end - 1
        if block.kind != BLOCK_COMMANDS:
            continue
        if block.first_sequence != last_sequence.get(block.session_id, 0) + 1:
            result.dropped += block.command_count
            continue
        last_sequence[block.session_id] = block.first_sequence + block.command_count - 1
        result.commands += block.command_count
        payload = block.payload_view
        order.update(payload)
        chain.fold(block)
        if block.uniform_length == payload_bytes:
            count_identities(result, ledger, payload, payload_bytes)
        else:
            result.foreign += block.command_count
    result.order_digest = order.hexdigest()
    result.chain_digest = chain.digest.hex()
    return result


def count_identities(result: Replay, ledger: Ledger, payload: memoryview, payload_bytes: int) -> None:
    """Add the commands of one block to the counts of their sessions."""
    identities = decode_identities(payload, payload_bytes)
    for session in np.unique(identities["session"]).tolist():
        rows = identities[identities["session"] == session]
        if session >= ledger.sessions:
            result.foreign += len(rows)
            continue
        known = (rows["run"] == ledger.run) & (rows["counter"] < ledger.issued[session])
        result.foreign += int(len(rows) - np.count_nonzero(known))
        counters, repeats = np.unique(rows["counter"][known], return_counts=True)
        counts = result.counts[session]
        counts[counters] = np.minimum(counts[counters].astype(np.int64) + repeats, 255).astype(np.uint8)


@dataclass(slots=True)
class Verdict:
    """What all replicas' journals say about the run. `is_sound` is the word for it."""

    acknowledged: int
    lost: int
    """Acknowledged commands that at least one replica has not applied."""
    duplicated: int
    """Commands that at least one replica applied more than once."""
    foreign: int
    """Commands in a journal that nobody issued."""
    digests_equal: bool
    """All replicas applied the same commands in one order, and report the digest that follows from their journals."""

    @property
    def is_sound(self) -> bool:
        """Nothing acknowledged was lost, nothing applied twice, one order everywhere."""
        return self.lost == 0 and self.duplicated == 0 and self.foreign == 0 and self.digests_equal


def judge(ledger: Ledger, replays: dict[int, Replay], reported_digests: dict[int, str]) -> Verdict:
    """Compare the replays of all replicas with the ledger and with the digests that the live replicas reported."""
    lost = duplicated = 0
    for session in range(ledger.sessions):
        counts = np.stack([replay.counts[session] for replay in replays.values()])
        acknowledged = ledger.acknowledged_mask(session)
        lost += int(np.count_nonzero((counts == 0).any(axis=0) & acknowledged))
        duplicated += int(np.count_nonzero((counts > 1).any(axis=0)))
    orders = {replay.order_digest for replay in replays.values()}
    digests_equal = len(orders) == 1 and all(
        reported_digests.get(node_id) == replay.chain_digest for node_id, replay in replays.items()
    )
    return Verdict(
        acknowledged=ledger.acknowledged,
        lost=lost,
        duplicated=duplicated,
        foreign=max((replay.foreign for replay in replays.values()), default=0),
        digests_equal=digests_equal,
    )
