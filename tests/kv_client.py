"""A key-value machine behind what `KeyValueClient` needs, without a cluster."""

from __future__ import annotations

from collections.abc import Sequence

from fastpaxos.kv import KeyValueMachine
from fastpaxos.statemachine import ApplyContext, QueryContext

APPLY = ApplyContext(1, 1)
QUERY = QueryContext(1, 1)


class LocalClient:
    """Applies at once in this process: what KeyValueClient needs, and nothing else."""

    def __init__(self, machine: KeyValueMachine) -> None:
        self.machine = machine
        self.timeouts: list[float | None] = []
        self.queries = 0

    async def execute(self, command: bytes, *, timeout: float | None = None) -> bytes:
        self.timeouts.append(timeout)
        return self.machine.apply(command, APPLY)

    async def execute_many(self, commands: Sequence[bytes], *, timeout: float | None = None) -> list[bytes]:
        self.timeouts.append(timeout)
        return [self.machine.apply(command, APPLY) for command in commands]

    async def query(self, request: bytes, *, timeout: float | None = None) -> bytes:
        self.timeouts.append(timeout)
        self.queries += 1
        return self.machine.query(request, QUERY)
