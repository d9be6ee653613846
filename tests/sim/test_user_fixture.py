"""`check_machine`, `MachineCluster` and the pytest fixture: every planted mistake is found and named."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest
from hypothesis import strategies

import planted_machines
from fastpaxos import CommandError, StateMachine
from fastpaxos.testing import MachineCluster, Violation, check_machine

pytestmark = pytest.mark.usefixtures("quiet_elections")

ROOT = Path(__file__).parents[2]
PLANTED = {
    planted_machines.ReadsClock: "time.time",
    planted_machines.ReadsImportedClock: "time.monotonic",
    planted_machines.ReadsCalendar: "date.today",
    planted_machines.ThrowsDice: "random",
}


def add(random: Random) -> bytes:
    return b"add %d" % random.randrange(1, 10)


@pytest.fixture(autouse=True)
def _no_chosen_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTPAXOS_SIM_SEED", raising=False)


def test_a_clean_machine_passes() -> None:
    check_machine(planted_machines.Total, add, queries=lambda _: b"", seeds=3, hash_seeds=(5,))


@pytest.mark.parametrize("machine", PLANTED, ids=lambda machine: machine.__name__)
def test_clocks_and_chance_are_caught(machine: type[StateMachine]) -> None:
    message = rf"diverge at slot \d+: the result of the command b'add \d' is .* the machine used {PLANTED[machine]}"
    with pytest.raises(Violation, match=message) as caught:
        check_machine(machine, add, seeds=5, hash_seeds=())
    assert "FASTPAXOS_SIM_SEED=" in caught.value.__notes__[0]
    assert "pytest 'tests/sim/test_user_fixture.py::test_clocks_and_chance_are_caught" in caught.value.__notes__[0]


def test_hash_order_is_caught() -> None:
    with pytest.raises(Violation, match=r"result of the command b'add \d' at slot \d+ .* depends on hash order"):
        check_machine(planted_machines.IteratesSet, add, seeds=1, hash_seeds=(1,))


def test_state_of_the_process_is_caught() -> None:
    with pytest.raises(Violation, match=r"diverge at slot \d+: after the command b'add \d' the digest or the snapshot"):
        check_machine(planted_machines.KnowsItself, add, seeds=5, hash_seeds=())


def test_a_query_that_changes_the_state_is_caught() -> None:
    with pytest.raises(Violation, match="the query b'get' changed the state"):
        check_machine(planted_machines.CountsQueries, add, queries=lambda _: b"get", seeds=5, hash_seeds=())


def test_the_chosen_seed_replays_the_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def failure() -> str:
        with pytest.raises(Violation) as caught:
            check_machine(planted_machines.ThrowsDice, add, seeds=5, hash_seeds=())
        return f"{caught.value} {caught.value.__notes__}"

    monkeypatch.setenv("FASTPAXOS_SIM_SEED", "17")
    assert "FASTPAXOS_SIM_SEED=17" in failure()
    assert failure() == failure()


def test_commands_may_come_from_a_strategy() -> None:
    commands = strategies.integers(1, 9).map(lambda number: b"add %d" % number)
    with pytest.raises(Violation, match="the machine used random"):
        check_machine(planted_machines.ThrowsDice, commands, seeds=2, hash_seeds=())


def test_a_machine_that_no_process_can_import_is_refused() -> None:
    class Local(planted_machines.Total):
        pass

    with pytest.raises(ValueError, match="define it at the top of a module"):
        check_machine(Local, add, seeds=1)
    check_machine(Local, add, seeds=1, hash_seeds=())


def test_a_cluster_by_hand() -> None:
    clock, chance = time.time, random.getstate()
    cluster = MachineCluster(planted_machines.Total, nodes=3, seed=7, hash_seeds=())
    assert cluster.execute(b"add 2") == b"2"
    first = cluster.leader
    cluster.partition([first], [node for node in cluster.nodes if node != first])
    assert cluster.execute(b"add 3", timeout_ms=20_000) == b"5"
    cluster.heal()
    cluster.advance(1_000)
    second = cluster.leader
    assert second != first
    cluster.pause(first)
    cluster.crash(second)
    cluster.restart(second)
    cluster.resume(first)
    assert cluster.query() == b"5"
    cluster.kill(first)
    with pytest.raises(CommandError, match="invalid literal"):
        cluster.execute(b"add nothing")
    cluster.settle()
    assert {cluster.machine(node).total for node in cluster.nodes} == {5}
    assert time.time is clock
    assert random.getstate() == chance


INNER = """
from planted_machines import IteratesSet, ThrowsDice, Total

def test_clean(fastpaxos_cluster):
    assert fastpaxos_cluster(Total, hash_seeds=[]).execute(b"add 2") == b"2"

def test_wrong(fastpaxos_cluster):
    cluster = fastpaxos_cluster(ThrowsDice, seed=9)
    cluster.execute(b"add 2")
    cluster.settle()

def test_hashes(fastpaxos_cluster):
    cluster = fastpaxos_cluster(IteratesSet, hash_seeds=[1])
    for number in range(9):
        cluster.execute(b"%d" % number)

def test_unused():
    pass
"""
SECTION = re.compile(r"^## Testing your own state machine$(.*?)^## ", re.M | re.S)
EXAMPLE = re.compile(r"^```python$(.*?)^```$", re.M | re.S)
STARTS_LIGHT = "import fastpaxos_pytest, sys; sys.exit('fastpaxos' in sys.modules)"


def test_the_fixture_in_a_pytest_of_its_own(tmp_path: Path) -> None:
    """With the examples of docs/testing.md as they stand."""
    [section] = SECTION.findall((ROOT / "docs" / "testing.md").read_text())
    (tmp_path / "test_inner.py").write_text(INNER)
    (tmp_path / "test_raffle.py").write_text("".join(EXAMPLE.findall(section)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("pyapi", "", "tests"))}
    options = ["-p", "fastpaxos_pytest", "-p", "no:cacheprovider"]
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", *options],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    output = ended.stdout
    assert ended.returncode == 1, output + ended.stderr
    assert "2 failed, 4 passed, 1 error" in output, output
    assert "replay: FASTPAXOS_SIM_SEED=1 pytest 'test_raffle.py::test_raffle'" in output
    assert "the machine used random there" in output
    assert "replicas diverge at slot" in output
    assert "replay: FASTPAXOS_SIM_SEED=9 pytest 'test_inner.py::test_wrong'" in output
    assert "depends on hash order" in output
    light = subprocess.run([sys.executable, "-P", "-c", STARTS_LIGHT], env=environment, timeout=60, check=False)
    assert light.returncode == 0, "the plugin imports fastpaxos when pytest starts"
