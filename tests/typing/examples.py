"""Typical programs against the public API. mypy --strict checks this file (`make check`); nothing here is run.

The lines marked with an expected error are the other half of the check: an unused `type: ignore` is an error too.
"""

from __future__ import annotations

import asyncio
from typing import assert_type

import fastpaxos
from fastpaxos.kv import CasResult, KeyValue, KeyValueClient, KeyValueMachine

CLUSTER = {1: "127.0.0.1:7001", 2: "127.0.0.1:7002", 3: "127.0.0.1:7003"}


class Counter(fastpaxos.StateMachine):
    """A machine that applies one command at a time."""

    value = 0

    def apply(self, command: bytes, context: fastpaxos.ApplyContext) -> bytes:
        assert_type(context.now_ns, int)
        self.value += int(command)
        return b"%d" % self.value

    def query(self, request: bytes, context: fastpaxos.QueryContext) -> bytes:
        assert_type(context.applied_index, int)
        return b"%d" % self.value


class WrongMachine(fastpaxos.StateMachine):
    """A result is bytes."""

    def apply(self, command: bytes, context: fastpaxos.ApplyContext) -> str:  # type: ignore[override]
        return "text"


async def embedded_node() -> bytes:
    config = fastpaxos.NodeConfig(node_id=1, cluster=CLUSTER, data_dir="data/1", durability="fsync")
    async with fastpaxos.Node(config, Counter()) as node:
        client = node.client()
        return await client.execute(b"1", timeout=1.0)


async def remote_client() -> None:
    async with fastpaxos.Client(CLUSTER) as client:
        assert_type(await client.execute(b"add 1", timeout=1.0), bytes)
        assert_type(await client.query(b"get", timeout=1.0), bytes)
        future: asyncio.Future[bytes] = client.submit(b"add 1")
        await future
        await client.execute("text")  # type: ignore[arg-type]


def blocking_client() -> bytes:
    with fastpaxos.BlockingClient(CLUSTER) as client:
        try:
            assert_type(client.execute(b"add 1", timeout=1.0), bytes)
        except fastpaxos.NotApplied as error:
            assert_type(error.may_have_applied, bool)
        except fastpaxos.OutcomeUnknown:
            return b""
        return client.query(b"get", timeout=1.0)


async def key_values() -> None:
    async with fastpaxos.Client(CLUSTER) as client:
        store = KeyValueClient(client)
        found = await store.get(b"key")
        assert_type(found, KeyValue | None)
        result = await store.compare_and_set(b"key", b"new", expected=b"old")
        assert_type(result, CasResult)
        async for entry in store.scan(b"prefix"):
            assert_type(entry.key, bytes)


def machines() -> list[fastpaxos.StateMachine]:
    return [Counter(), KeyValueMachine(), fastpaxos.HashChain()]
