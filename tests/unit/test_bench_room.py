"""Benchmarks refuse to start where the disk has no room, leave nothing behind, and show a person how far they are."""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import pytest

from fastpaxos.cli import cluster_process, failover, floor, main, options, recovery, ycsb
from fastpaxos.cli.cluster_process import (
    REPLICA_BYTES_BASE,
    REPLICA_BYTES_PER_SECOND_MAX,
    SEGMENT_BYTES,
    journal_bytes_max,
)

MB = 1_000_000
COMMANDS = [
    ("closed",),
    ("open", "--rate", "1000"),
    ("sweep",),
    ("failover",),
    ("recovery",),
    ("floor",),
    ("ycsb", "--workload", "A"),
    ("payloads", "--no-floor"),
]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of temporary folders, with nothing in it; the probes of the machine are left out."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for module in ("bench", "sweep", "floor", "payloads", "ycsb"):
        for probe in ("loopback_us", "fdatasync_us"):
            monkeypatch.setattr(f"fastpaxos.cli.{module}.{probe}", lambda *_: {})
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_no_room_no_start(
    command: tuple[str, ...], temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: object, **__: object) -> NoReturn:
        raise AssertionError("a process was started")

    free = shutil.disk_usage(temporary)._replace(free=10 * MB)
    monkeypatch.setattr(cluster_process.shutil, "disk_usage", lambda folder: free)
    for place in (failover, recovery, ycsb, cluster_process):
        monkeypatch.setattr(place, "ClusterProcess", never)
    monkeypatch.setattr("fastpaxos.cli.load_processes.ClusterProcess", never)
    monkeypatch.setattr(floor, "measure_floor", never)
    assert main.run(["bench", *command]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "has 9 MiB free and this run may write" in captured.err
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_nothing_is_left_of_a_run_that_is_interrupted(
    command: tuple[str, ...], temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written: list[Path] = []

    def interrupted(folder: Path, *_: object, **__: object) -> NoReturn:
        written.append(folder / "replica-1" / "journal")
        written[0].parent.mkdir()
        written[0].write_bytes(bytes(1000))
        raise KeyboardInterrupt

    free = shutil.disk_usage(temporary)._replace(free=2**50)
    monkeypatch.setattr(cluster_process.shutil, "disk_usage", lambda folder: free)
    for place in (failover, recovery, ycsb):
        monkeypatch.setattr(place, "ClusterProcess", interrupted)
    monkeypatch.setattr("fastpaxos.cli.load_processes.ClusterProcess", interrupted)
    monkeypatch.setattr(floor, "measure_floor", interrupted)
    assert main.run(["bench", *command]) == 130
    assert len(written) == 1
    assert capsys.readouterr().out == ""
    assert list(temporary.iterdir()) == []


# How much is enough: payload, batch, and the bytes/s that the journal of one replica was seen to grow by.
MEASURED = [
    (16, 1000, 8_326_000 * 16.13),
    (16, 1, 344_375 * 20.0),
    (65_536, 15, 2_692 * 65_600.0),
    (1000, 1000, 116_500 * 1000.2),
]


@pytest.mark.parametrize(("payload", "batch", "bytes_per_second"), MEASURED)
def test_the_estimate_covers_what_is_written(payload: int, batch: int, bytes_per_second: float) -> None:
    estimate = (journal_bytes_max(3, 100.0, payload, batch) - journal_bytes_max(3, 0.0, payload, batch)) / 300
    assert bytes_per_second <= estimate <= 2**20 * 256
    if batch > 1 and payload == 16:
        assert estimate <= 1.5 * bytes_per_second, "generous is good, twice as much turns people away"


def test_the_estimate_of_single_commands_covers_one_block_for_each() -> None:
    # 120,000 blocks of one command of 16 bytes, each with the headers of block and record.
    second = (journal_bytes_max(1, 10.0, 16, 1) - journal_bytes_max(1, 0.0, 16, 1)) / 10
    assert 120_000 * (16 + 120) <= second <= 32 * MB


def test_a_rate_and_restarts_count() -> None:
    base = journal_bytes_max(3, 0.0, 16)
    assert base == 3 * REPLICA_BYTES_BASE
    assert journal_bytes_max(3, 10.0, 100, 1, rate=1000.0) - base == 3 * 10 * 1000 * (100 + 256)
    assert journal_bytes_max(3, 0.0, 16, restarts=5) - base == 5 * SEGMENT_BYTES
    assert journal_bytes_max(1, 1.0, 1_000_000, 1) - REPLICA_BYTES_BASE == REPLICA_BYTES_PER_SECOND_MAX


def test_a_block_that_is_too_large_is_refused_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["bench", "recovery", "--payload", "65536"]) == 2
    assert "a block of 1000 x 65536 bytes exceeds" in " ".join(capsys.readouterr().err.split())


# Progress


class Terminal(io.StringIO):
    """Standard error as a person sees it."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("is_watched", [True, False])
def test_a_phase_is_shown_to_a_person_and_to_nobody_else(is_watched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: Any = Terminal() if is_watched else io.StringIO()
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    with options.phase("measuring 7 of 9", 12.5):
        options.progress("a line")
    for part in ("measuring 7 of 9", "of 12.5 s", "a line"):
        assert (part in shown.getvalue()) == is_watched
