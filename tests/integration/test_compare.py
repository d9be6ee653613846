"""`bench compare` with the real systems, as far as they are installed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fastpaxos.cli.cluster_process import child_environment
from fastpaxos.cli.compare import PEER_NAMES, all_peers
from process_helpers import children_of, wait_for_end

COMMAND = [sys.executable, "-P", "-m", "fastpaxos", "bench", "compare"]
TIMEOUT_S = 30.0


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    environment = child_environment() | {"TMPDIR": str(folder)}
    return subprocess.Popen([*COMMAND, *arguments, "--json"], env=environment, stdout=subprocess.PIPE)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_installed_system_is_measured(tmp_path: Path) -> None:
    with start(tmp_path, "--rounds", "1", "--seconds", "1", "--clients", "8") as process:
        output, _ = process.communicate()
    report: dict[str, Any] = json.loads(output)
    rows = {row["name"]: row for row in report["rows"]}
    assert list(rows) == PEER_NAMES
    missing = {peer.name for peer in all_peers() if peer.missing()}
    assert {name: row.get("reason") for name, row in rows.items() if row["status"] == "failed"} == {}
    assert {name for name, row in rows.items() if row["status"] == "not installed"} == missing
    for name in rows.keys() - missing:
        row = rows[name]
        assert row["commands_per_second"]["median"] > 0
        assert 0 < row["latency_us"]["p50"] <= row["latency_us"]["p99"]
        if not name.startswith("fastpaxos"):
            assert row["fastpaxos_faster"]["throughput"] > 0
            assert row["fastpaxos_faster"]["p50"] > 0
    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["fastpaxos", "pysyncobj", "etcd", "redis"])
def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, name: str, number: signal.Signals) -> None:
    peer = next(peer for peer in all_peers() if peer.name == name)
    if peer.missing():
        pytest.skip(f"{name} is not installed")
    with start(tmp_path, "--seconds", "60", "--only", name) as process:
        deadline = time.monotonic() + TIMEOUT_S
        children: list[int] = []
        while len(children) < peer.nodes or not list(tmp_path.glob(f"*/{name}-*")):
            assert time.monotonic() < deadline, "the system does not start"
            children = children_of(process.pid)
            time.sleep(0.05)
        process.send_signal(number)
        output, _ = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, output) == (130, b"")
    assert list(tmp_path.iterdir()) == []
    for child in children:
        wait_for_end(child)
