"""`fastpaxos sim`: what it prints, and which exit codes it ends with."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fastpaxos.cli.main import run
from fastpaxos.testing import SimCluster, Violation
from fastpaxos.testing.campaign import run_seed
from fastpaxos.testing.shrink import option_changes, shrink
from fastpaxos.testing.swarm import changed, draw_options


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(capsys.readouterr().out)
    return figures


def test_a_campaign_prints_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sim", "run", "--seeds", "3", "--from", "4", "--json"]) == 0
    figures = printed(capsys)
    assert (figures["seeds"], figures["from"], figures["failures"], figures["never_happened"]) == (3, 4, [], [])
    assert figures["events"] > 0
    assert figures["faults_and_marks"]["frames"] > 0


def test_a_replay_tells_everything_that_happens(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sim", "replay", "7", "--set", "duration_ns=300000000"]) == 0
    text = capsys.readouterr().out
    assert "node 1 starts" in text
    assert "accept 1." in text
    assert "'duration_ns': 300000000" in text


@pytest.mark.parametrize("setting", ["links.loss", "links.nonsense=1", "nonsense=1", "duration_ns.x=1"])
def test_a_setting_that_is_none_is_misuse(setting: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sim", "replay", "7", "--set", setting]) == 2
    assert setting.partition("=")[0] in capsys.readouterr().err


class Disagreement:
    """Plants a violation: whoever crashes a node breaks a property."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def crash_node(cluster: SimCluster, node_id: int) -> None:
            raise Violation(f"node {node_id} disagrees", checker="planted")

        monkeypatch.setattr(SimCluster, "crash_node", crash_node)


def a_seed_that_crashes(monkeypatch: pytest.MonkeyPatch) -> int:
    Disagreement(monkeypatch)
    for seed in range(20):
        if run_seed(seed).failure is not None:
            return seed
    raise AssertionError("no seed crashes a node")


def test_a_failure_is_told_with_its_replay_and_a_smaller_scenario(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = a_seed_that_crashes(monkeypatch)
    assert run(["sim", "run", "--seeds", "1", "--from", str(seed), "--json"]) == 1
    told = capsys.readouterr()
    assert f"seed {seed}: planted: Violation: node" in told.err
    assert f"replay: fastpaxos sim replay {seed} --set" in told.err
    [failure] = json.loads(told.out)["failures"]
    assert failure["replay"] == f"fastpaxos sim replay {seed}"
    assert run(["sim", "replay", str(seed), "--quiet"]) == 1


def test_shrinking_keeps_the_failure_and_leaves_out_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    seed = a_seed_that_crashes(monkeypatch)
    failure = run_seed(seed).failure
    assert failure is not None
    shrunk = shrink(failure)
    assert shrunk.changes
    options = draw_options(seed)
    for name, value in shrunk.changes.items():
        options = changed(options, name, value)
    assert options == shrunk.failure.options
    again = run_seed(seed, options).failure
    assert again is not None
    assert (again.checker, again.message) == ("planted", shrunk.failure.message)
    assert len(list(option_changes(options))) < len(list(option_changes(failure.options)))
