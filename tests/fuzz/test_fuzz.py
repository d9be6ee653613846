"""A short run of every fuzzing target, the same on every build, and proof that a run can fail.

The long runs, under sanitizers and guided by coverage, are `make fuzz`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz import campaign, targets

SEED = 20
EXECUTIONS = 3000
NAMES = sorted(targets.all_targets())


def run(name: str, executions: int = EXECUTIONS) -> campaign.Campaign:
    return campaign.Campaign(targets.all_targets()[name], SEED).run(executions)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_found(name: str) -> None:
    done = run(name)
    assert [finding.as_dict() for finding in done.findings] == []
    report = done.report()
    # Mutants that are all refused, or all taken, test little.
    assert report["decoded"] > EXECUTIONS // 50
    assert report["decoded"] + sum(report["refused"].values()) == EXECUTIONS
    assert report["behind_checksum"] > EXECUTIONS * 3 // 10
    assert len(report["refused"]) >= 2


@pytest.mark.parametrize("name", NAMES)
def test_what_the_encoders_make_is_decoded(name: str) -> None:
    target = targets.all_targets()[name]
    done = run(name, len(target.seeds()))
    assert done.findings == []
    if name != "journal":  # its seeds were cut by crashes, and say so
        assert done.refused == {}


def test_a_seed_decides_the_run() -> None:
    for name in ("frame", "message"):
        first, second = (run(name, 800).report() for _ in range(2))
        assert {**first, "cpu_seconds": 0, "executions_per_cpu_second": 0} == {
            **second,
            "cpu_seconds": 0,
            "executions_per_cpu_second": 0,
        }


def test_a_planted_bug_is_found_and_replayed() -> None:
    done = campaign.Campaign(targets.PlantedTarget(), SEED).run(EXECUTIONS)
    [finding] = done.findings
    assert finding.problem.startswith("IndexError in judge:")
    assert campaign.replay(targets.PlantedTarget(), finding.data, finding.chance) == finding.problem
    again = campaign.Campaign(targets.PlantedTarget(), SEED).run(finding.iteration + 1)
    assert [(found.data, found.iteration) for found in again.findings] == [(finding.data, finding.iteration)]


def test_a_refusal_must_be_one_of_the_named_errors_and_short() -> None:
    class Wrong(targets.BlockTarget):
        def judge(self, data: bytearray, chance: object) -> None:
            if data[:1] == b"\x07":
                raise ValueError("not one of ours")
            if data[:1] == b"\x08":
                raise targets.FrameError("x" * 2000)

    done = campaign.Campaign(Wrong(), SEED).run(EXECUTIONS)
    assert sorted(finding.problem.split(" ")[0] for finding in done.findings) == ["AssertionError:", "ValueError"]


def test_the_command_writes_the_input_and_says_how_to_replay_it(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(root / "tests")])}
    command = [sys.executable, "-P", "-m", "fuzz"]
    found = subprocess.run(
        [*command, "run", "--target", "planted", "--executions", "2000", "--out", str(tmp_path)],
        env=environment, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60,
    )  # fmt: skip
    [kept] = (tmp_path / "findings").iterdir()
    assert found.returncode == 1, found.stderr
    assert f"--target planted --chance {kept.stem.split('-')[-1]} {kept}" in found.stderr
    replayed = subprocess.run(
        [*command, "replay", "--target", "planted", "--chance", kept.stem.split("-")[-1], str(kept)],
        env=environment, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60,
    )  # fmt: skip
    assert replayed.returncode == 1
    assert replayed.stdout.startswith("IndexError in judge:")
