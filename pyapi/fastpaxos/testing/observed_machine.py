"""A state machine that the checkers watch."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

from fastpaxos.statemachine import BatchRun, ResultBlob, StateMachine

from .history import Violation

if TYPE_CHECKING:
    from fastpaxos.statemachine import ApplyContext
    from fastpaxos_core.block import BlockView

    from .node import SimNode

__all__ = ["ObservedMachine"]


class ObservedMachine(StateMachine):
    """A state machine whose every batch the checkers see. What the machine itself does is not changed."""

    def __init__(self, node: SimNode, inner: StateMachine) -> None:
        self._node = node
        self.inner = inner

    def apply_batch(self, batch: BlockView, context: ApplyContext) -> ResultBlob:
        run = BatchRun(self.inner, batch, context.slot_begin, context.now_ns)
        results = run.finish()
        node = self._node
        digest = self.inner.digest() or f"{zlib.crc32(results):08x}"
        try:
            node.cluster.checker.applied(
                node.node_id, context.slot_begin, context.slot_begin + len(batch), batch, digest, context.now_ns
            )
        except Violation as violation:
            node.cluster.violation = node.cluster.violation or violation
        node.batches_applied += 1
        return ResultBlob(results)

    def query(self, request: bytes, context: Any) -> Any:
        return self.inner.query(request, context)

    def digest(self) -> str:
        return self.inner.digest()
