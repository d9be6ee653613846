"""`bench compare`: turns, medians and ratios, rows of what is missing or fails, and that nothing is left behind."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastpaxos.cli import compare, main
from fastpaxos.cli.compare import make_report, take_turns
from fastpaxos.cli.latency import Percentiles
from fastpaxos.cli.peers.peer import DisturbedError, PeerError, PeerPlan
from fastpaxos.errors import ConfigError

PLAN = PeerPlan(payload_bytes=16, clients=2, seconds=1.0, warmup_s=0.5)


class FakePeer:
    """Tells the journal what is asked of it, and answers or raises, in each turn, what the test wants."""

    durability = "memory"
    nodes = 1

    def __init__(
        self,
        name: str,
        journal: list[str],
        speeds: list[float | BaseException],
        *,
        p50_us: float = 10.0,
        reference: str = "fastpaxos",
        install: str | None = None,
        failure: dict[str, BaseException] | None = None,
    ) -> None:
        self.name = name
        self.reference = reference
        self._journal = journal
        self._speeds = speeds
        self._p50_us = p50_us
        self._install = install
        self._failure = failure or {}

    def _happens(self, step: str) -> None:
        self._journal.append(f"{self.name} {step}")
        if step in self._failure:
            raise self._failure[step]

    def missing(self) -> str | None:
        return self._install

    def version(self) -> str:
        self._happens("version")
        return "1.2"

    def settings(self) -> str:
        return "as it is"

    def load(self, plan: PeerPlan) -> str:
        return f"{plan.clients} connections"

    def tune(self, folder: Path, plan: PeerPlan) -> None:
        self._happens("tune")

    @contextlib.contextmanager
    def running(self, folder: Path, plan: PeerPlan) -> Iterator[FakePeer]:
        (folder / "data").write_bytes(b"data")
        self._happens("start")
        try:
            yield self
            self._happens("check")
        finally:
            self._journal.append(f"{self.name} stop")

    def throughput(self) -> float:
        speed = self._speeds.pop(0)
        if isinstance(speed, BaseException):
            raise speed
        return speed

    def latency(self) -> Percentiles:
        self._p50_us += 1
        return {"p50": self._p50_us, "p99": 2 * self._p50_us, "p999": 0.0, "max": 0.0}


def rows_of(folder: Path, *peers: FakePeer, rounds: int) -> dict[str, dict[str, Any]]:
    report = make_report(take_turns(peers, PLAN, rounds, folder), PLAN, {})
    assert list(folder.iterdir()) == []
    return {row["name"]: row for row in report["rows"]}


def test_every_round_gives_each_system_one_turn_in_the_same_order(tmp_path: Path) -> None:
    journal: list[str] = []
    peers = [FakePeer(name, journal, [1.0, 2.0, 3.0]) for name in ("a", "b")]
    rows_of(tmp_path, *peers, rounds=3)
    turns = [entry for entry in journal if entry.endswith(("start", "stop"))]
    assert turns == ["a start", "a stop", "b start", "b stop"] * 3
    assert journal[:4] == ["a version", "a tune", "b version", "b tune"]


def test_medians_runs_and_ratios_within_each_round(tmp_path: Path) -> None:
    ours = FakePeer("fastpaxos", [], [100.0, 1000.0, 400.0], p50_us=9.0)
    other = FakePeer("other", [], [10.0, 500.0, 20.0], p50_us=99.0)
    rows = rows_of(tmp_path, ours, other, rounds=3)
    assert rows["fastpaxos"]["commands_per_second"] == {"median": 400, "runs": [100, 1000, 400]}
    assert rows["other"]["commands_per_second"] == {"median": 20, "runs": [10, 500, 20]}
    assert rows["other"]["latency_us"] == {
        "p50": 101.0,
        "p99": 202.0,
        "p50_runs": [100.0, 101.0, 102.0],
        "p99_runs": [200.0, 202.0, 204.0],
    }
    # Of the rounds 10, 2 and 20 the median is 10; the ratio of the medians would be 20.
    assert rows["other"]["fastpaxos_faster"] == {"reference": "fastpaxos", "throughput": 10.0, "p50": 9.18}
    assert "fastpaxos_faster" not in rows["fastpaxos"]


def test_without_the_reference_there_is_no_ratio(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, FakePeer("other", [], [10.0]), rounds=1)
    assert "fastpaxos_faster" not in rows["other"]


def test_nothing_is_divided_by_zero(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, FakePeer("fastpaxos", [], [5.0]), FakePeer("other", [], [0.0]), rounds=1)
    assert rows["other"]["fastpaxos_faster"]["throughput"] is None


def test_what_is_not_installed_has_a_row_with_the_command(tmp_path: Path) -> None:
    journal: list[str] = []
    rows = rows_of(tmp_path, FakePeer("gone", journal, [], install="apt-get install gone"), rounds=2)
    assert rows["gone"]["status"] == "not installed"
    assert rows["gone"]["install"] == ["make bench-peers", "apt-get install gone"]
    assert "commands_per_second" not in rows["gone"]
    assert journal == []


@pytest.mark.parametrize("step", ["version", "tune", "start", "check"])
def test_a_failure_is_a_row_with_the_reason(tmp_path: Path, step: str) -> None:
    journal: list[str] = []
    bad = FakePeer("bad", journal, [1.0, 2.0], failure={step: OSError("no port is free")})
    rows = rows_of(tmp_path, bad, FakePeer("good", [], [3.0, 4.0]), rounds=2)
    assert rows["bad"]["status"] == "failed"
    assert rows["bad"]["reason"] == "OSError: no port is free"
    # A turn whose end is not right gives no figure, and there is no second one.
    assert "commands_per_second" not in rows["bad"]
    assert journal.count(f"bad {step}") == 1
    assert rows["good"]["commands_per_second"]["runs"] == [3, 4]


def test_a_failure_in_a_later_round_keeps_what_was_measured(tmp_path: Path) -> None:
    journal: list[str] = []
    bad = FakePeer("bad", journal, [7.0, PeerError("lost its data"), 8.0])
    rows = rows_of(tmp_path, bad, rounds=3)
    assert (rows["bad"]["status"], rows["bad"]["reason"]) == ("failed", "PeerError: lost its data")
    assert rows["bad"]["commands_per_second"]["runs"] == [7]
    assert journal.count("bad start") == journal.count("bad stop") == 2


def test_a_disturbed_turn_is_repeated_and_told(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, FakePeer("shaky", [], [1.0, DisturbedError("election"), 2.0]), rounds=2)
    assert rows["shaky"]["status"] == "measured"
    assert rows["shaky"]["disturbed"] == ["DisturbedError: election"]
    assert rows["shaky"]["commands_per_second"]["runs"] == [1, 2]


def test_a_system_that_is_always_disturbed_fails(tmp_path: Path) -> None:
    speeds: list[float | BaseException] = [DisturbedError(f"election {number}") for number in range(10)]
    rows = rows_of(tmp_path, FakePeer("shaky", [], speeds), rounds=5)
    assert (rows["shaky"]["status"], rows["shaky"]["reason"]) == ("failed", "DisturbedError: election 3")
    assert len(speeds) == 10 - 1 - compare.REPEATS_MAX


def test_ctrl_c_stops_the_system_and_removes_its_data(tmp_path: Path) -> None:
    journal: list[str] = []
    peers = [FakePeer("a", journal, [KeyboardInterrupt()]), FakePeer("b", journal, [1.0])]
    with pytest.raises(KeyboardInterrupt):
        take_turns(peers, PLAN, 1, tmp_path)
    assert journal[-2:] == ["a start", "a stop"]
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def quick_setup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "loopback_us", lambda: {"p50": 1.0})
    monkeypatch.setattr(compare, "fdatasync_us", lambda _folder: {"p50": 1.0})


def run_command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main.run(["bench", "compare", *arguments])
    return code, *capsys.readouterr()


@pytest.mark.usefixtures("quick_setup")
def test_the_command_prints_one_object_and_says_by_its_code_whether_something_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speeds: list[float | BaseException] = [2.0, 3.0]
    peers = [FakePeer("fastpaxos", [], speeds), FakePeer("etcd", [], [], install="apt-get install etcd-server")]
    monkeypatch.setattr(compare, "all_peers", lambda: peers)
    code, output, errors = run_command(capsys, "--json", "--rounds", "2", "--payload", "5")
    report = json.loads(output)
    assert (code, errors, report["benchmark"], report["verdict"]) == (0, "", "compare", True)
    assert {"cores", "versions", "rounds", "payload_bytes", "loopback_us", "fdatasync_us"} <= set(report["setup"])
    assert [row["status"] for row in report["rows"]] == ["measured", "not installed"]
    assert {"name", "version", "settings", "durability", "nodes", "load"} <= set(report["rows"][1])
    speeds.append(PeerError("broken"))
    code, output, _ = run_command(capsys, "--rounds", "1", "--only", "fastpaxos")
    assert code == 1
    assert "failed: PeerError: broken" in output
    assert "etcd" not in output


@pytest.mark.usefixtures("quick_setup")
def test_people_get_a_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    peers = [
        FakePeer("fastpaxos", [], [3_000_000.0], p50_us=99.0),
        FakePeer("redis", [], [500_000.0], p50_us=299.0),
        FakePeer("etcd", [], [], install="apt-get install etcd-server"),
    ]
    monkeypatch.setattr(compare, "all_peers", lambda: peers)
    code, output, _ = run_command(capsys, "--rounds", "1")
    lines = {line.split()[0]: line.split() for line in output.splitlines()[:4]}
    assert code == 0
    assert lines["fastpaxos"][1:] == ["memory", "1", "3,000,000", "100.0", "200.0"]
    assert lines["redis"][1:] == ["memory", "1", "500,000", "300.0", "600.0", "6", "3"]
    assert "not installed: make bench-peers, or apt-get install etcd-server" in output


@pytest.mark.usefixtures("quick_setup")
def test_it_does_not_start_without_room(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def no_room(_folder: Path, needed_bytes: int) -> None:
        assert needed_bytes > 1 << 30
        raise ConfigError("the disk is full")

    journal: list[str] = []
    monkeypatch.setattr(compare, "check_room", no_room)
    monkeypatch.setattr(compare, "all_peers", lambda: [FakePeer("fastpaxos", journal, [])])
    code, _, errors = run_command(capsys)
    assert (code, errors, journal) == (2, "error: the disk is full\n", [])


def test_every_row_is_compared_with_a_row_that_exists() -> None:
    peers = {peer.name: peer for peer in compare.all_peers()}
    assert len(peers) == len(compare.PEER_NAMES)
    for peer in peers.values():
        assert peer.reference in peers
        assert peer.settings()
        assert peer.load(PLAN)
