"""Damage to journals: the parser that needs none of the replica's code finds every record, and the budget is kept."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from fastpaxos.cli.journal import journal_directory
from fastpaxos.testing.chaos.rot import RotBudget
from fastpaxos.testing.journal_rot import journal_records, segments
from fastpaxos_core import journal_recovery
from local_cluster import LocalCluster

pytestmark = pytest.mark.timeout(60)

# Several segments within some dozen commands.
SETTINGS: dict[str, Any] = {"segment_bytes": 64 << 10, "block_bytes_max": 16 << 10, "command_bytes_max": 12 << 10}
COMMAND_BYTES = 1500


async def fill(cluster: LocalCluster, count: int) -> None:
    """Each command in a record of its own."""
    async with cluster.client() as client:
        for number in range(count):
            await client.execute(b"%d " % number + b"x" * COMMAND_BYTES)


async def restart_all(cluster: LocalCluster) -> None:
    for node_id in (1, 2, 3):
        await cluster.start(node_id)


async def stop_all(cluster: LocalCluster) -> None:
    for node_id in (1, 2, 3):
        await cluster.stop(node_id)


async def test_the_parser_finds_what_recovery_finds(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path, **SETTINGS)
    async with cluster:
        await fill(cluster, 60)
        await cluster.settle()
        await cluster.stop(3)
        await cluster.start(3)  # with a cut, and a last write that is written again behind it
        await fill(cluster, 5)
        await cluster.settle()
    for node_id in (1, 2, 3):
        found = journal_recovery.inspect(journal_directory(tmp_path / str(node_id)))
        records = journal_records(tmp_path / str(node_id))
        assert len(records) == found.writes
        assert sum(len(record.batches) for record in records) == found.batch_count
        assert len(segments(tmp_path / str(node_id))) >= 2


@pytest.mark.parametrize("seed", [1, 2])  # damage for good, and a block
async def test_no_second_replica_is_damaged_before_the_first_is_repaired(tmp_path: Path, seed: int) -> None:
    cluster = LocalCluster(tmp_path, **SETTINGS)
    random = Random(seed)
    async with cluster:
        await fill(cluster, 40)
        await cluster.settle()
        await stop_all(cluster)
        budget = RotBudget(lambda node_id: tmp_path / str(node_id))
        done = budget.damage(1, random)
        assert done is not None
        assert journal_recovery.verify(journal_directory(tmp_path / "1")) != [], done
        # A damaged copy of a segment's header takes no slot away, so nothing is left to be repaired.
        if "copies" not in done:
            assert budget.damage(2, random) is None
            assert budget.touched == {1}
        await restart_all(cluster)
        await fill(cluster, 3)
        await cluster.settle()
        await stop_all(cluster)
        assert budget.damage(2, random) is not None
        assert budget.touched == {1, 2}
        await restart_all(cluster)
        await cluster.settle()


async def test_only_one_replica_is_damaged_for_good(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path, **SETTINGS)
    async with cluster:
        await fill(cluster, 40)
        await cluster.settle()
        await stop_all(cluster)
        budget = RotBudget(lambda node_id: tmp_path / str(node_id))
        seed = 0
        while budget.spent is None:
            budget.damage(1, Random(seed))
            seed += 1
        count = budget.count
        assert budget.damage(1, Random(seed)) is None
        assert (budget.spent, budget.count) == (1, count)
