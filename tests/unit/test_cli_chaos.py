"""What `fastpaxos chaos` makes of its rounds: sums, exit codes, and what it says after a violation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastpaxos.cli import chaos, main
from fastpaxos.testing import chaos as chaos_package
from fastpaxos.testing.chaos import ChaosPlan, RoundReport

Rounds = list[tuple[int, float]]


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Rounds:
    """(number, seconds) of the rounds that were played; round 3 has a violation, and no round takes any time."""
    rounds: Rounds = []
    clock = [0.0]

    async def pretend(plan: ChaosPlan, number: int, seconds: float, folder: Path, *_: object) -> RoundReport:
        rounds.append((number, seconds))
        clock[0] += seconds
        (folder / "calls.jsonl").touch()
        report = RoundReport(number, 3, operations=10, operations_checked=10, kills=2, recovery_ms=number)
        report.digests_equal = True
        report.scenes = {"kill_one": 2}
        if number == 3:
            report.violations.append("it lies")
        return report

    monkeypatch.setattr(chaos_package, "run_round", pretend)
    monkeypatch.setattr(chaos.time, "monotonic", lambda: clock[0])
    monkeypatch.chdir(tmp_path)
    return rounds


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main.run(["chaos", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_rounds_add_up(capsys: pytest.CaptureFixture[str], played: Rounds, tmp_path: Path) -> None:
    code, report = run_json(capsys, "--minutes", "1.5", "--seed", "s")
    assert code == 0
    assert played == [(1, 45.0), (2, 45.0)]
    assert (report["operations"], report["operations_checked"], report["kills"], report["violations"]) == (20, 20, 4, 0)
    assert (report["rounds"], report["recovery_ms"], report["scenes"]) == (2, 2, {"kill_one": 4})
    assert report["digests_equal"]
    assert list(tmp_path.iterdir()) == []


def test_the_first_violation_ends_the_run_and_is_kept(
    capsys: pytest.CaptureFixture[str], played: Rounds, tmp_path: Path
) -> None:
    code, report = run_json(capsys, "--minutes", "10", "--seed", "s", "--rate", "50", "--replicas", "5")
    assert code == 1
    assert [number for number, _ in played] == [1, 2, 3]
    assert report["violations"] == 1
    assert report["found"] == ["round 3: it lies"]
    assert report["evidence"] == str(tmp_path / "chaos-s-3")
    assert (tmp_path / "chaos-s-3" / "calls.jsonl").exists()
    assert report["check"] == f"fastpaxos chaos --check {tmp_path / 'chaos-s-3'}"
    assert report["repeat"] == "fastpaxos chaos --minutes 1 --seed s --round 3 --rate 50 --replicas 5"
    played.clear()
    assert run_json(capsys, *report["repeat"].split()[2:])[0] == 1
    assert played == [(3, 60.0)]


def test_a_run_that_checked_too_little_fails(
    capsys: pytest.CaptureFixture[str], played: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = chaos_package.run_round

    async def forgetful(*arguments: Any) -> RoundReport:
        report = await pretended(*arguments)
        report.operations_checked -= 1
        return report

    monkeypatch.setattr(chaos_package, "run_round", forgetful)
    code, report = run_json(capsys, "--minutes", "1", "--seed", "s")
    assert (code, report["violations"]) == (1, 0)


@pytest.mark.parametrize("seed", ["../x", "", "a b", "x" * 41])
def test_a_seed_is_a_plain_word(capsys: pytest.CaptureFixture[str], seed: str) -> None:
    assert main.run(["chaos", "--seed", seed]) == 2
    assert "is no seed" in capsys.readouterr().err
