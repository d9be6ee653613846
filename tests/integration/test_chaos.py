"""`fastpaxos chaos` from end to end: a short run is clean, and whatever ends it, nothing is left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fastpaxos.cli import main
from fastpaxos.cli.cluster_process import child_environment
from fastpaxos.testing.chaos.schedule import draw_schedule
from process_helpers import children_of

# The first round of this seed has two kills, damage to a journal, an isolated leader, and bits flipped on the way.
SEED = "49817"
MINUTES = 0.1


@pytest.mark.timeout(100)
def test_a_short_run_is_clean_and_every_operation_is_checked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where a failed round would be kept
    schedule = draw_schedule(f"{SEED}/1", 60 * MINUTES, 3, fsync_errors=True)
    kinds = {scene.kind for scene in (*schedule.process, *schedule.network)}
    assert {"kill_leader", "rot", "isolate_leader", "flip_bits"} <= kinds, "another seed must be chosen"
    code = main.run(["chaos", "--minutes", str(MINUTES), "--seed", SEED, "--replicas", "3", "--json"])
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert code == 0, report
    assert report["violations"] == 0
    assert report["operations_checked"] == report["operations"] > 50  # a machine may be busy
    assert report["operations"] == report["ok"] + report["not_applied"] + report["unknown"]
    assert report["ok"] > report["operations"] / 2
    assert report["kills"] >= 2
    assert report["partitions"] >= 1
    assert report["digests_equal"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(60)
def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path) -> None:
    environment = {**child_environment(), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-P", "-m", "fastpaxos", "chaos", "--minutes", "5", "--seed", "1"]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=tmp_path
    )
    try:
        deadline = time.monotonic() + 30
        children: list[int] = []
        while len(children) < 3 or not list(tmp_path.glob("*/round-1/replica-3/journal-*")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            children = children_of(process.pid)
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130, stderr
    assert [child for child in children if Path(f"/proc/{child}").exists()] == []
    assert list(tmp_path.iterdir()) == []
