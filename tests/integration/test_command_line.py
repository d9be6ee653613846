"""The command line against real replica processes: every command once, and what its JSON holds."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fastpaxos.cli import main
from fastpaxos.cli.cluster_process import ClusterProcess, child_environment
from fastpaxos.config import format_cluster

LINES = 100_000
SHORT = ("--seconds", "0.3", "--warmup", "0.1")


class Result(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: bytes
    stderr: bytes


def run_process(*arguments: str | Path) -> Result:
    """Run a command in a process of its own."""
    command = [sys.executable, "-P", "-m", "fastpaxos", *map(str, arguments)]
    done = subprocess.run(command, env=child_environment(), capture_output=True, timeout=90, check=False)
    return Result(done.returncode, done.stdout, done.stderr)


class CommandLine:
    """Runs commands in this process, which saves the time that Python needs to start."""

    def __init__(self, captured: pytest.CaptureFixture[bytes]) -> None:
        self._captured = captured

    def run(self, *arguments: str | Path) -> Result:
        code = main.run([str(argument) for argument in arguments])
        return Result(code, *self._captured.readouterr())

    def json(self, *arguments: str | Path) -> dict[str, Any]:
        return parse(self.run(*arguments, "--json"))

    def wait_for_leader(self, cluster: str) -> dict[str, Any]:
        """Change something, which waits for a leader, and return the statuses then."""
        assert self.run("kv", "delete", "nothing", "--cluster", cluster, "--timeout", "20").returncode == 1
        return self.json("status", "--cluster", cluster)


def parse(result: Result) -> dict[str, Any]:
    """The JSON of a command that succeeded and wrote one object on stdout and nothing anywhere else."""
    assert (result.returncode, result.stderr) == (0, b""), result
    report: dict[str, Any] = json.loads(result.stdout)
    return report


@pytest.fixture
def cli(capsysbinary: pytest.CaptureFixture[bytes]) -> CommandLine:
    return CommandLine(capsysbinary)


@pytest.fixture
def kv_cluster(tmp_path: Path) -> Iterator[ClusterProcess]:
    with ClusterProcess(tmp_path, 3, "kv") as processes:
        yield processes


SETUP = {"cpu", "cores", "memory_bytes", "system", "file_system", "event_loop", "versions", "build", "commit"}
SETUP |= {"date", "durability", "payload_bytes", "load_generator", "replicas"}


def check_described(report: dict[str, Any], benchmark: str) -> None:
    """A report says what it is and what it was measured with."""
    assert report["benchmark"] == benchmark
    assert SETUP - set(report["setup"]) == set()


def test_demo_loses_its_leader_and_nothing_else() -> None:
    report = parse(run_process("demo", "--seconds", "2", "--json"))
    assert report["verdict"] == "passed"
    assert (report["lost"], report["duplicated"], report["digests_equal"]) == (0, 0, True)
    assert report["leader_kills"] == 1
    assert report["acknowledged"] > 0
    # The last slots are session entries and no-ops as well.
    assert report["applied_index"] > report["acknowledged"]
    assert report["unavailable_ms"] > 0
    assert set(report["latency_us"]) == {"p50", "p99", "p999", "max"}
    assert (report["durability"], report["replicas"], report["payload_bytes"]) == ("fsync", 3, 16)
    assert report["clean_stops"] == 3


def test_demo_can_spare_the_leader_and_keep_its_data(cli: CommandLine, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    report = cli.json("demo", "--seconds", "2", "--payload", "100", "--no-kill-leader", "--keep", kept)
    assert (report["leader_kills"], report["verdict"], report["kept_in"]) == (0, "passed", str(kept))
    assert cli.json("journal", "verify", kept / "replica-2") == {
        "directory": str(kept / "replica-2"),
        "sound": True,
        "problems": [],
    }
    inspected = cli.json("journal", "inspect", kept / "replica-3")
    assert (inspected["node_id"], inspected["members"], inspected["closed_cleanly"]) == (3, [1, 2, 3], True)
    assert inspected["commit_index"] >= report["acknowledged"]
    segment = min((kept / "replica-2").glob("journal-*.segment"))
    with segment.open("r+b") as file:
        file.seek(10_000)
        damaged = bytes(byte ^ 0xFF for byte in file.read(64))
        file.seek(10_000)
        file.write(damaged)
    result = cli.run("journal", "verify", kept / "replica-2")
    assert (result.returncode, result.stdout) == (1, b"")
    assert b"not sound" in result.stderr


def test_benchmark_applies_what_it_acknowledges(cli: CommandLine) -> None:
    report = cli.json("bench", "closed", "--seconds", "0.5", "--warmup", "0.1", "--clients", "3", "--batch", "50")
    assert report["applied"] == report["acknowledged"] > 0
    assert (report["errors"], report["digests_equal"]) == (0, True)
    assert report["commands_per_second"] > 0
    check_described(report, "closed")
    assert (report["setup"]["clients"], report["setup"]["batch"], report["setup"]["durability"]) == (3, 50, "fsync")
    assert report["setup"]["loopback_us"]["p50"] > 0
    assert report["setup"]["fdatasync_us"]["p50"] > 0
    assert report["per_second"] == []  # no whole second
    assert all(entry["resident_bytes_max"] >= entry["resident_bytes_end"] > 0 for entry in report["replicas"])


def test_benchmark_counts_each_second(cli: CommandLine) -> None:
    options = ("--seconds", "1", "--warmup", "0.1", "--replicas", "1", "--batch", "50")
    report = cli.json("bench", "closed", *options)
    assert report["per_second"] == [report["commands_per_second"]]
    assert report["setup"]["call"] == "execute_many"
    assert len(report["replicas"][0]["resident_bytes_per_second"]) == 1


def test_open_load_sends_at_its_rate(cli: CommandLine) -> None:
    report = cli.json("bench", "open", "--rate", "500", "--seconds", "1", "--warmup", "0.1", "--arrivals", "uniform")
    assert report["applied"] == report["acknowledged"] > 0
    assert 490 <= report["commands_per_second"] <= 510
    check_described(report, "open")
    assert report["latency_us"]["p50"] > 0


def test_a_killed_leader_loses_nothing_and_the_gap_is_told(cli: CommandLine) -> None:
    report = cli.json("bench", "failover", "--kills", "1", "--clients", "2")
    assert report["verdict"]
    assert report["acknowledged"] > 0
    assert 0 < report["gap_ms"]["p50"] == report["gap_ms"]["max"] < 20_000
    check_described(report, "failover")
    (timeline,) = report["timelines"]
    assert timeline["gap_ms"] == report["gap_ms"]["max"]
    # Answers before the kill, and after it.
    kill = -timeline["begin_ms"] // timeline["bucket_ms"]
    assert sum(timeline["answered"][:kill]) > 0 < sum(timeline["answered"][kill + 1 :]) <= report["acknowledged"]


def test_a_restarted_replica_has_what_was_acknowledged(cli: CommandLine) -> None:
    report = cli.json("bench", "recovery", "--rounds", "2", "--seconds", "0.3", "--batch", "50")
    assert report["verdict"]
    check_described(report, "recovery")
    first, second = report["restarts"]
    assert 0 < first["commands"] < second["commands"]
    # What was written, not the room that was reserved: 16 bytes for each command, and the headers of blocks of 50.
    assert all(16 < step["journal_bytes"] / step["commands"] < 24 for step in report["restarts"])


def test_a_sweep_shows_each_share_and_makes_a_page(cli: CommandLine, tmp_path: Path) -> None:
    options = ("--seconds", "0.3", "--warmup", "0.1", "--clients", "2", "--callers", "20")
    report = cli.json("bench", "sweep", "--shares", "10,50", *options, "--html", tmp_path / "page.html")
    check_described(report, "sweep")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2
    assert f"{report['maximum_commands_per_second']:,}" in page
    assert report["verdict"]
    assert [row["share"] for row in report["rows"]] == [10, 50]
    assert report["acknowledged"] == report["applied"]
    assert all(row["latency_us"]["p50"] > 0 for row in report["rows"])


def test_the_floor_moves_bytes(cli: CommandLine) -> None:
    report = cli.json("bench", "floor", "--seconds", "0.3", "--payload-bytes-per-frame", "20000", "--window", "4")
    assert report["bytes_per_second"] > 0
    assert (report["payload_bytes_per_frame"], report["window"]) == (20_000, 4)
    assert report["latency_us"]["p50"] > report["setup"]["loopback_us"]["p50"]
    check_described(report, "floor")


def test_benchmark_of_a_cluster_that_runs(cli: CommandLine, tmp_path: Path) -> None:
    with ClusterProcess(tmp_path, 3, "hashchain", "memory") as processes:
        options = ("--seconds", "0.3", "--warmup", "0", "--load-processes", "2", "--clients", "4", "--batch", "1")
        for _ in range(2):  # what is there already does not count
            report = cli.json("bench", "closed", "--connect", format_cluster(processes.cluster), *options)
            assert report["applied"] == report["acknowledged"] > 0
            assert report["setup"]["durability"] == "memory"


def test_a_workload_leaves_exactly_what_was_acknowledged(cli: CommandLine) -> None:
    sizes = ("--records", "500", "--fields", "2", "--field-bytes", "16", "--clients", "3", "--pipeline", "4")
    report = cli.json("bench", "ycsb", "--workload", "f", *sizes, *SHORT)
    assert (report["benchmark"], report["verdict"], report["setup"]["reads"]) == ("ycsb", True, "linearizable")
    rows = {row["kind"]: row for row in report["rows"]}
    assert set(rows) == {"read", "read_modify_write", "all"}
    assert all(row["operations"] > 0 and row["latency_us"]["p50"] > 0 for row in rows.values())
    (run,) = report["workloads"]
    assert (run["workload"], run["distribution"], run["errors"], run["wrong"]) == ("F", "zipfian", 0, 0)
    assert run["changes"] == run["acknowledged"] > 500 == run["records_checked"]


@pytest.mark.slow
def test_all_workloads_run_each_on_its_own_records(cli: CommandLine, tmp_path: Path) -> None:
    report = cli.json(
        "bench", "ycsb", "--records", "2000", "--load-processes", "2", *SHORT, "--keep", tmp_path / "kept"
    )
    assert report["verdict"]
    assert [run["workload"] for run in report["workloads"]] == ["A", "B", "C", "F", "D", "E"]
    assert [run["distribution"] for run in report["workloads"]][-2:] == ["latest", "zipfian"]
    inserted = {run["workload"]: run["records_checked"] - 2000 for run in report["workloads"]}
    assert [name for name, count in inserted.items() if count] == ["D", "E"]
    assert 1 <= report["workloads"][-1]["entries_per_scan"] <= 100
    assert {path.name for path in (tmp_path / "kept").iterdir()} >= {"workload-a", "workload-f"}


def test_sizes_of_payloads_are_measured_one_by_one(cli: CommandLine) -> None:
    report = cli.json("bench", "payloads", "--sizes", "3000", "--batch", "20", "--no-floor", "--rounds", "1", *SHORT)
    assert (report["benchmark"], report["verdict"], report["floor"]) == ("payloads", True, None)
    assert [(row["payload_bytes"], row["batch"]) for row in report["rows"]] == [(3000, 20)]
    for row in report["rows"]:
        assert row["applied"] == row["acknowledged"] > 0
        assert row["latency_us"]["p50"] > 0 < row["alone_latency_us"]["p50"]
        assert row["bytes_per_second"] == pytest.approx(row["commands_per_second"] * row["payload_bytes"], rel=0.01)


@pytest.mark.slow
def test_sizes_of_payloads_stand_beside_the_floor(cli: CommandLine) -> None:
    report = cli.json("bench", "payloads", "--sizes", "1000", "--rounds", "2", *SHORT)
    assert report["verdict"]
    (row,) = report["rows"]
    assert row["batch"] > 1
    assert row["ratio_to_floor"] > 0
    assert len(row["rounds"]["ratio_to_floor"]) == len(report["floor"]["rounds"]["bytes_per_second"]) == 2


def test_load_and_dump_give_back_the_file_while_replicas_die(
    cli: CommandLine, kv_cluster: ClusterProcess, tmp_path: Path
) -> None:
    chance = random.Random(5)
    alphabet = bytes(byte for byte in range(256) if byte != ord("\n"))
    source, copy = tmp_path / "source.tsv", tmp_path / "copy.tsv"
    keys = [b"%08x" % number for number in chance.sample(range(2**32), LINES)]
    values = (bytes(chance.choices(alphabet, k=chance.randrange(40))) for _ in keys)
    source.write_bytes(b"".join(b"%s\t%s\n" % entry for entry in zip(keys, values, strict=True)))
    cluster = format_cluster(kv_cluster.cluster)
    (leader,) = [entry["id"] for entry in cli.wait_for_leader(cluster)["replicas"] if entry["role"] == "leader"]
    follower = leader % 3 + 1

    def disturb() -> None:
        kv_cluster.kill(follower)
        kv_cluster.start(follower)
        kv_cluster.kill(leader)
        kv_cluster.start(leader)

    disturbance = threading.Thread(target=disturb)
    disturbance.start()
    loaded = cli.json("kv", "load", source, "--cluster", cluster, "--timeout", "60")
    disturbance.join()
    assert loaded == {"loaded": LINES, "repeated_keys": 0}
    dumped = cli.run("kv", "dump", copy, "--cluster", cluster, "--timeout", "60")
    assert (dumped.returncode, dumped.stderr) == (0, b"")
    assert copy.read_bytes() == source.read_bytes()


def test_single_keys(cli: CommandLine, kv_cluster: ClusterProcess, tmp_path: Path) -> None:
    cluster = ("--cluster", format_cluster(kv_cluster.cluster))
    assert cli.json("kv", "put", "color", "red", *cluster, "--timeout", "20") == {"revision": 1}
    assert cli.run("kv", "get", "color", *cluster).stdout == b"red\n"
    assert cli.run("kv", "get", "sound", *cluster).returncode == 1
    assert cli.run("kv", "cas", "color", "blue", "--expect", "green", *cluster).returncode == 1
    swapped = cli.json("kv", "cas", "color", "blue", "--expect", "red", *cluster)
    assert (swapped["swapped"], swapped["current"]["value"]) == (True, "blue")
    assert cli.run("kv", "cas", "new", "first", *cluster).returncode == 0
    assert cli.run("kv", "incr", "count", *cluster).stdout == b"1\n"
    assert cli.json("kv", "incr", "count", "-11", *cluster) == {"revision": 5, "value": -10}
    wrong = cli.run("kv", "incr", "color", *cluster)
    assert wrong.returncode == 1
    assert b"NotAnInteger" in wrong.stderr
    escaped = tmp_path / "escaped.tsv"
    escaped.write_bytes(b"tab\\tkey\ttwo\\nlines\n")
    assert cli.run("kv", "load", "--escaped", escaped, *cluster).returncode == 0
    assert cli.run("kv", "scan", *cluster).stdout == b"color\tblue\ncount\t-10\nnew\tfirst\ntab\\tkey\ttwo\\nlines\n"
    assert [entry["key"] for entry in cli.json("kv", "scan", "co", "--limit", "1", *cluster)["entries"]] == ["color"]
    refused = cli.run("kv", "dump", *cluster)
    assert (refused.returncode, refused.stdout) == (1, b"")
    assert b"--escaped" in refused.stderr
    assert cli.json("kv", "delete", "color", *cluster)["existed"]
    assert cli.run("kv", "delete", "color", *cluster).returncode == 1


def test_status_names_every_member_also_the_dead(cli: CommandLine, kv_cluster: ClusterProcess) -> None:
    cluster = format_cluster(kv_cluster.cluster)
    statuses = cli.wait_for_leader(cluster)
    followers = [entry["id"] for entry in statuses["replicas"] if entry["role"] == "follower"]
    assert len(followers) == 2
    kv_cluster.kill(followers[0])
    statuses = cli.json("status", "--cluster", cluster)
    assert [entry["id"] for entry in statuses["replicas"]] == [1, 2, 3]
    assert [entry["reachable"] for entry in statuses["replicas"]].count(False) == 1
    for entry in statuses["replicas"]:
        assert {"id", "reachable", "role", "ballot", "commit_index", "applied_index", "digest"} <= set(entry)
    table = cli.run("status", "--cluster", cluster)
    assert table.returncode == 0
    assert table.stdout.splitlines()[0].split()[:3] == [b"id", b"address", b"role"]
    assert b"unreachable" in table.stdout
    assert f"replica {followers[0]}: ".encode() in table.stderr
    kv_cluster.start(followers[0])


def test_replica_stops_cleanly_on_sigterm_and_when_its_parent_dies(
    cli: CommandLine, kv_cluster: ClusterProcess
) -> None:
    cli.wait_for_leader(format_cluster(kv_cluster.cluster))
    kv_cluster._signal(1, signal.SIGTERM)
    stdin = kv_cluster._processes[2].stdin
    assert stdin is not None
    stdin.close()
    assert [kv_cluster._processes[node_id].wait(20) for node_id in (1, 2)] == [0, 0]
    assert kv_cluster.log_tail(1).splitlines()[-1] == "replica 1 stopped"


def test_second_replica_on_a_data_directory_is_refused(cli: CommandLine, kv_cluster: ClusterProcess) -> None:
    cluster = format_cluster(kv_cluster.cluster)
    cli.wait_for_leader(cluster)
    result = cli.run("serve", "--id", "1", "--cluster", cluster, "--data-dir", kv_cluster.data_dir(1))
    assert (result.returncode, result.stdout) == (2, b"")
    assert b"in use" in result.stderr
