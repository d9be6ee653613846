"""The plan of a chaos run is its seed's, and every scene of it ends with everything mended again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

import msgpack
import pytest

from fastpaxos.testing.chaos import nemesis as nemesis_module
from fastpaxos.testing.chaos.nemesis import Nemesis
from fastpaxos.testing.chaos.processes import ChaosCluster
from fastpaxos.testing.chaos.schedule import NETWORK_SCENES, PROCESS_SCENES, Scene, Schedule, draw_schedule
from fastpaxos.testing.chaos.workload import Recorder, Requests
from fastpaxos.testing.fault_proxy import FaultNetwork

HOLD_S = 0.02


class PretendedCluster(ChaosCluster):
    """Members that are no processes: what would be done to them is written down."""

    def __init__(self, folder: Path, replicas: int) -> None:
        super().__init__(folder, replicas, {})
        self.alive = set(self.cluster)
        self.done: list[str] = []

    def running(self) -> list[int]:
        return sorted(self.alive)

    def start(self, node_id: int, **_: object) -> None:
        self.alive.add(node_id)
        self.done.append(f"start {node_id}")

    def kill(self, node_id: int) -> None:
        self.alive.discard(node_id)
        self.done.append(f"kill {node_id}")

    def end(self, node_id: int) -> None:
        self.alive.discard(node_id)
        self.done.append(f"end {node_id}")

    def pause(self, node_id: int) -> None:
        self.done.append(f"pause {node_id}")

    def resume(self, node_id: int) -> None:
        self.done.append(f"resume {node_id}")


class FailingCluster(PretendedCluster):
    """The member that runs under strace fails, and ends with `code`, or not at all."""

    code: int | None = 1

    def start_with_fsync_error(self, node_id: int, call_number: int) -> None:
        self.down.discard(node_id)
        self.failing.add(node_id)
        if self.code is None:
            self.alive.add(node_id)

    def has_fsync_error(self, node_id: int) -> bool:
        return True

    def exit_code(self, node_id: int) -> int | None:
        return self.code


async def play(cluster: PretendedCluster, kind: str, seed: int) -> tuple[Nemesis, list[str]]:
    """Play one scene, and check that nothing is broken behind it."""
    scenes = [Scene(kind, 0.0, HOLD_S, seed)]
    track = (scenes, []) if kind in PROCESS_SCENES else ([], scenes)
    said: list[str] = []
    async with FaultNetwork(cluster.cluster, Random(seed)) as network:
        cluster.network = network
        nemesis = Nemesis(Schedule(len(cluster.cluster), 1.0, {}, *track), cluster, network, lambda: 2, said.append)
        playing = asyncio.ensure_future(nemesis.play())
        was_broken = False
        while not playing.done():
            was_broken = was_broken or not network.is_whole
            await asyncio.sleep(0.001)
        await playing
        assert network.is_whole
        if kind in NETWORK_SCENES and kind != "reset_storm":
            assert was_broken
    assert not cluster.down | cluster.paused | cluster.failing
    assert cluster.running() == cluster.members
    assert nemesis.counts == {kind: 1}
    assert said
    return nemesis, said


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", [*PROCESS_SCENES, *NETWORK_SCENES])
async def test_a_scene_breaks_something_and_mends_it(
    kind: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nemesis_module, "LONELY_S", 0.0)
    cluster = FailingCluster(tmp_path, 3 + 2 * (seed % 2))
    if kind.startswith("rot"):
        for node_id in cluster.members:
            cluster.data_dir(node_id).mkdir()
    nemesis, _ = await play(cluster, kind, seed)
    assert nemesis.problems == []
    if kind.startswith("kill"):
        assert cluster.kills == sum(text.startswith("kill") for text in cluster.done) > 0
    elif kind.startswith("pause"):
        assert cluster.pauses == sum(text.startswith("pause") for text in cluster.done) > 0
    elif kind in NETWORK_SCENES:
        assert cluster.done == []
    if kind in ("kill_leader", "pause_leader", "stop_cleanly"):
        assert cluster.done[0].endswith(" 2")


@pytest.mark.parametrize(
    ("code", "problem"), [(None, "goes on although fdatasync has failed"), (0, "ended with code 0")]
)
async def test_a_replica_that_outlives_a_failed_fsync_is_a_finding(
    code: int | None, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nemesis_module, "FSYNC_STOP_S", 0.05)
    cluster = FailingCluster(tmp_path, 3)
    cluster.code = code
    nemesis, _ = await play(cluster, "fsync_error", 1)
    assert nemesis.fsync_errors == 1
    [found] = nemesis.problems
    assert problem in found


def test_a_replica_that_ends_on_its_own_is_a_finding(tmp_path: Path) -> None:
    cluster = PretendedCluster(tmp_path, 3)
    assert cluster.died() == []
    cluster.log_file(3).write_text("out of luck\n")
    cluster.alive.discard(3)
    [found] = cluster.died()
    assert "replica 3 ended on its own" in found
    assert "out of luck" in found
    cluster.down.add(3)
    assert cluster.died() == []


def test_a_seed_draws_one_schedule() -> None:
    one = draw_schedule("7/1", 60.0, 3, fsync_errors=True)
    assert one == draw_schedule("7/1", 60.0, 3, fsync_errors=True)
    assert one != draw_schedule("7/2", 60.0, 3, fsync_errors=True)
    for track in (one.process, one.network):
        assert 30.0 < sum(scene.wait_s + scene.hold_s for scene in track) <= 60.0


def test_schedules_hold_every_kind_of_scene_and_enough_kills() -> None:
    drawn = [draw_schedule(str(seed), 60.0, 3, fsync_errors=True) for seed in range(60)]
    kinds = [scene.kind for schedule in drawn for scene in (*schedule.process, *schedule.network)]
    assert {*kinds} == {*PROCESS_SCENES, *NETWORK_SCENES}
    # 500 kills in an hour are 500 in 60 rounds; scenes of several kills count once here.
    assert sum(kind.startswith("kill") for kind in kinds) >= 500
    without = [draw_schedule(str(seed), 60.0, 3, fsync_errors=False) for seed in range(60)]
    assert all(scene.kind != "fsync_error" for schedule in without for scene in schedule.process)


def test_no_two_commands_are_the_same_and_chains_go_on_from_what_was_seen() -> None:
    recorder = Recorder()
    workers = [Requests(recorder, Random(seed)) for seed in (1, 2)]
    commands = [worker.command() for _ in range(2_000) for worker in workers]
    assert len({*commands}) == len(commands)
    swap = next(command for command in commands if msgpack.unpackb(command)[0] == 3)
    call = recorder.begin("c", swap, is_query=False)
    _, key, _, value = msgpack.unpackb(swap)
    call.answer(msgpack.packb([1, True, [value, 1, 1, 1]]), call.invoked_ns + 1)
    workers[0].learn(call)
    assert workers[0]._seen[key] == value
