"""HashChain: folds every applied command into a rolling digest, so that replicas can be compared.

Two replicas with equal `applied_index` must have equal digests. The digest covers each command's bytes, its length and
the order of all commands, and not how they were batched (docs/protocol.md, "Hash chain").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgpack

from fastpaxos.statemachine import ApplyContext, QueryContext, ResultBlob, StateMachine
from fastpaxos_core.block import BlockView
from fastpaxos_core.hashchain import HashChainState

if TYPE_CHECKING:
    from fastpaxos.statemachine import BatchResults

__all__ = ["HashChain"]


class HashChain(StateMachine):
    """The cheapest machine that notices everything: a lost, repeated, changed or misplaced command.

    The result of each command is the number of commands after it, 8 bytes little-endian. The empty query
    answers msgpack [applied_index, count, digest as 32 hexadecimal digits].
    """

    def __init__(self) -> None:
        self._chain = HashChainState()

    @property
    def count(self) -> int:
        """How many commands were applied."""
        return self._chain.count

    def apply(self, command: bytes, context: ApplyContext) -> bytes:
        """Fold one command."""
        return self._chain.fold_one(command)

    def apply_batch(self, batch: BlockView, context: ApplyContext) -> BatchResults:
        """Fold all commands of a block in one compiled pass."""
        return ResultBlob(self._chain.fold(batch))

    def query(self, request: bytes, context: QueryContext) -> bytes:
        """Answer the empty request. Raises ValueError for any other."""
        if request:
            raise ValueError(f"the hash chain answers only the empty query, not {len(request)} bytes")
        state: bytes = msgpack.packb([context.applied_index, self._chain.count, self.digest()])
        return state

    def digest(self) -> str:
        """Return the digest as 32 hexadecimal digits."""
        return self._chain.digest.hex()
