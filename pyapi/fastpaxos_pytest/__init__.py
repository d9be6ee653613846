"""pytest fixture `fastpaxos_cluster`: simulated clusters of a user's own state machine. See docs/testing.md.

    def test_counter(fastpaxos_cluster):
        cluster = fastpaxos_cluster(Counter, nodes=3)
        assert cluster.execute(b"add 2") == b"2"
        cluster.kill(cluster.leader)
        assert cluster.execute(b"add 3") == b"5"

When the test has passed, every cluster that it made is verified: all nodes are brought back and must agree, and the log
is applied again in processes with other hash seeds. A failure prints the command that replays it.

This package is apart from `fastpaxos` because pytest imports its plugins whenever it starts: nothing of fastpaxos is
imported before a test asks for the fixture.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, Protocol
from zlib import crc32

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastpaxos.statemachine import StateMachine
    from fastpaxos.testing.user_cluster import MachineCluster

__all__ = ["ClusterFactory", "fastpaxos_cluster"]


class ClusterFactory(Protocol):
    """What the fixture `fastpaxos_cluster` is; the arguments are those of `fastpaxos.testing.MachineCluster`."""

    def __call__(
        self,
        factory: Callable[[], StateMachine],
        *,
        nodes: int = 3,
        seed: int | None = None,
        hash_seeds: Iterable[int] | None = None,
    ) -> MachineCluster:
        """Make a cluster. The seed of a test that gives none comes from its name, so it is the same in every run."""
        ...


_CLUSTERS = pytest.StashKey[list[Any]]()
_FAILED = pytest.StashKey[bool]()


@pytest.fixture
def fastpaxos_cluster(request: pytest.FixtureRequest) -> Iterator[ClusterFactory]:
    """Make simulated clusters of a state machine, and verify them when the test has passed."""
    from fastpaxos.testing.user_cluster import MachineCluster

    clusters: list[MachineCluster] = []
    request.node.stash[_CLUSTERS] = clusters

    def make(
        factory: Callable[[], StateMachine],
        *,
        nodes: int = 3,
        seed: int | None = None,
        hash_seeds: Iterable[int] | None = None,
    ) -> MachineCluster:
        if seed is None:
            seed = crc32(request.node.nodeid.encode()) % 1_000_000 + 1
        cluster = MachineCluster(factory, nodes=nodes, seed=seed, hash_seeds=hash_seeds)
        clusters.append(cluster)
        return cluster

    yield make
    if not request.node.stash.get(_FAILED, False):
        for cluster in clusters:
            cluster.verify()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Add to a failure how it is replayed."""
    report: Any = yield
    clusters = item.stash.get(_CLUSTERS, None)
    if clusters is not None and call.excinfo is not None:
        item.stash[_FAILED] = True
        for cluster in clusters:
            replay = f"FASTPAXOS_SIM_SEED={cluster.seed} pytest '{item.nodeid}'"
            report.sections.append(("fastpaxos simulation", f"replay: {replay}"))
    return report
