"""The command line, part by part, and what misuse looks like. tests/integration runs it against real replicas."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram

from fastpaxos.cli import main
from fastpaxos.cli.bench import make_report, show
from fastpaxos.cli.cluster_process import ClusterProcess, ReplicaDied, check_room, free_ports, work_folder
from fastpaxos.cli.latency import LatencyHistogram, bucket_end, bucket_of
from fastpaxos.cli.ledger import IDENTITY_BYTES, Ledger, decode_identities, identity_commands
from fastpaxos.cli.lines import LineFormat, LineFormatError
from fastpaxos.cli.load import LoadPlan, LoadResult
from fastpaxos.cli.load_processes import split_plan
from fastpaxos.cli.replay import judge, replay
from fastpaxos.cli.status import is_settled, leader_of
from fastpaxos.errors import ConfigError, CorruptionError
from fastpaxos_core.block import BlockView, build_block, build_control, build_noop
from fastpaxos_core.hashchain import HashChainState

RUN = 7
CLUSTER = "1=127.0.0.1:7001,2=127.0.0.1:7002,3=127.0.0.1:7003"


# Latencies


def test_histogram_reads_back_within_one_thousandth() -> None:
    chance = random.Random(1)
    values = sorted(int(10 ** chance.uniform(0, 10)) for _ in range(5000))
    histogram = LatencyHistogram()
    histogram.record(values)
    for percent in (1.0, 50.0, 90.0, 99.0, 99.9):
        exact = values[max(1, int(np.ceil(len(values) * percent / 100))) - 1]
        assert exact <= histogram.percentile_ns(percent) <= exact * 1.001 + 1
    assert histogram.percentile_ns(100.0) == histogram.max_ns == values[-1]
    assert histogram.samples == len(values)


def test_every_value_lies_in_its_bucket() -> None:
    values = np.array(
        [0, 1, 1023, 1024, 2047, 2048, 2049, 2050, 4095, 4096, 10**6, 10**9, 2**40, 2**62], dtype=np.int64
    )
    buckets = bucket_of(values)
    for value, bucket in zip(values.tolist(), buckets.tolist(), strict=True):
        assert value <= bucket_end(bucket)
        assert bucket == 0 or bucket_end(bucket - 1) < value


def test_histograms_merge_and_travel() -> None:
    first, second = LatencyHistogram(), LatencyHistogram()
    first.record([1000, 2000, 3000])
    second.record(np.array([500_000], dtype=np.int64))
    travelled = LatencyHistogram.from_sparse(json.loads(json.dumps(second.to_sparse())))
    first.merge(travelled)
    assert first.samples == 4
    assert first.max_ns == 500_000
    assert first.percentiles_us() == {"p50": 2.0, "p99": 500.0, "p999": 500.0, "max": 500.0}


def test_empty_histogram_is_zero_and_negative_latency_is_refused() -> None:
    histogram = LatencyHistogram()
    histogram.record([])
    assert histogram.percentiles_us() == {"p50": 0.0, "p99": 0.0, "p999": 0.0, "max": 0.0}
    with pytest.raises(ValueError, match="-5 ns"):
        histogram.record([1, -5])


# The ledger and the replay that judges a demonstration


@pytest.mark.parametrize("payload_bytes", [IDENTITY_BYTES, 17, 64])
def test_identities_survive_encoding(payload_bytes: int) -> None:
    commands = identity_commands(RUN, 3, 10, 14, payload_bytes)
    assert [len(command) for command in commands] == [payload_bytes] * 4
    rows = decode_identities(b"".join(commands), payload_bytes)
    assert rows[["run", "session", "counter"]].tolist() == [(RUN, 3, counter) for counter in range(10, 14)]


def test_identity_needs_room() -> None:
    with pytest.raises(ValueError, match="15 bytes"):
        identity_commands(RUN, 0, 0, 1, 15)


def test_ledger_knows_what_was_acknowledged_and_the_longest_gap() -> None:
    ledger = Ledger(RUN, 2)
    assert ledger.longest_gap_ms() == 0.0
    first = ledger.issue(1, 3)
    second = ledger.issue(1, 2)
    assert (first, second) == ((0, 3), (3, 5))
    ledger.acknowledge(1, *second, now_ns=9_000_000)
    ledger.give_up(*first)
    ledger.acknowledge(0, *ledger.issue(0, 1), now_ns=1_000_000)
    ledger.acknowledge(0, *ledger.issue(0, 1), now_ns=2_500_000)
    assert ledger.acknowledged_mask(1).tolist() == [False, False, False, True, True]
    assert (ledger.acknowledged, ledger.unknown, ledger.longest_gap_ms()) == (4, 3, 6.5)


class Log:
    """Builds the batches of one replica, as its journal would give them."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int, BlockView]] = []
        self.next_slot = 1

    def add(self, block: bytes, slots: int) -> None:
        self.batches.append((self.next_slot, self.next_slot + slots, BlockView(block)))
        self.next_slot += slots

    def add_commands(self, session: int, sequence: int, begin: int, end: int, run: int = RUN) -> None:
        commands = identity_commands(run, session, begin, end, IDENTITY_BYTES)
        self.add(build_block(commands, session_id=100 + session, first_sequence=sequence), end - begin)


def usual_log() -> Log:
    log = Log()
    log.add(build_control(b"\x80"), 1)
    log.add_commands(0, 1, 0, 3)
    log.add(build_noop(5), 5)
    log.add_commands(1, 1, 0, 2)
    log.add_commands(0, 1, 0, 3)  # sent again, and dropped by the session rule
    log.add_commands(0, 4, 3, 5)
    return log


def usual_ledger() -> Ledger:
    ledger = Ledger(RUN, 2)
    ledger.acknowledge(0, *ledger.issue(0, 5), now_ns=1)
    ledger.acknowledge(1, *ledger.issue(1, 2), now_ns=2)
    return ledger


def verdict_of(logs: list[Log], ledger: Ledger) -> Any:
    replays = {node_id: replay(log.batches, ledger, IDENTITY_BYTES) for node_id, log in enumerate(logs, 1)}
    return judge(ledger, replays, {node_id: result.chain_digest for node_id, result in replays.items()})


def test_replay_applies_the_session_rule_and_recomputes_the_chain() -> None:
    ledger = usual_ledger()
    result = replay(usual_log().batches, ledger, IDENTITY_BYTES)
    assert (result.applied_index, result.commands, result.dropped, result.foreign) == (16, 7, 3, 0)
    assert [counts.tolist() for counts in result.counts] == [[1] * 5, [1] * 2]
    chain = HashChainState()
    for session, begin, end in ((0, 0, 3), (1, 0, 2), (0, 3, 5)):
        for command in identity_commands(RUN, session, begin, end, IDENTITY_BYTES):
            chain.fold_one(command)
    assert result.chain_digest == chain.digest.hex()


def test_sound_run_is_sound() -> None:
    verdict = verdict_of([usual_log(), usual_log(), usual_log()], usual_ledger())
    assert verdict.is_sound
    assert (verdict.acknowledged, verdict.lost, verdict.duplicated) == (7, 0, 0)


def test_command_missing_in_one_replica_is_lost() -> None:
    short = usual_log()
    short.batches.pop()
    verdict = verdict_of([usual_log(), short], usual_ledger())
    assert (verdict.lost, verdict.digests_equal, verdict.is_sound) == (2, False, False)


def test_unacknowledged_command_may_be_missing() -> None:
    ledger = usual_ledger()
    ledger.give_up(*ledger.issue(0, 10))
    assert verdict_of([usual_log(), usual_log()], ledger).is_sound


def test_command_under_two_sequences_is_a_duplicate() -> None:
    logs = [usual_log(), usual_log()]
    for log in logs:
        log.add_commands(1, 3, 0, 2)
    verdict = verdict_of(logs, usual_ledger())
    assert (verdict.lost, verdict.duplicated, verdict.is_sound) == (0, 2, False)


def test_other_order_is_noticed() -> None:
    other = Log()
    other.add(build_control(b"\x80"), 1)
    other.add_commands(1, 1, 0, 2)
    other.add_commands(0, 1, 0, 3)
    other.add_commands(0, 4, 3, 5)
    verdict = verdict_of([usual_log(), other], usual_ledger())
    assert (verdict.lost, verdict.duplicated, verdict.digests_equal) == (0, 0, False)


def test_digest_that_a_replica_misreported_is_noticed() -> None:
    ledger = usual_ledger()
    replays = {1: replay(usual_log().batches, ledger, IDENTITY_BYTES)}
    assert not judge(ledger, replays, {1: "00" * 16}).digests_equal


@pytest.mark.parametrize(("session", "counter", "run"), [(0, 50, RUN), (9, 0, RUN), (0, 0, RUN + 1)])
def test_command_that_nobody_issued_is_foreign(session: int, counter: int, run: int) -> None:
    log = usual_log()
    commands = identity_commands(run, session, counter, counter + 1, IDENTITY_BYTES)
    log.add(build_block(commands, session_id=999, first_sequence=1), 1)
    verdict = verdict_of([log, log], usual_ledger())
    assert (verdict.foreign, verdict.is_sound) == (1, False)


def test_gap_between_batches_is_corruption() -> None:
    batches = usual_log().batches
    del batches[2]
    with pytest.raises(CorruptionError, match=r"slots 10\.\.12 .* follow slot 4"):
        replay(batches, usual_ledger(), IDENTITY_BYTES)


# Lines of `kv load` and `kv dump`


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("raw", b"key\tvalue\nother\tv\twith\ttabs\nempty\t\n\xff\xfe\t\x00\\n\r\n"),
        ("escaped", b"k\\te\\ny\tv\\\\a\\rl\nplain\tvalue\n"),
        ("lines", b"any line\nwith\ttab\n\n\xff last\n"),
    ],
)
def test_lines_come_back_as_they_were(name: Any, text: bytes) -> None:
    form = LineFormat(name)
    entries = list(form.read(io.BytesIO(text), "file"))
    assert b"".join(form.encode(key, value) + b"\n" for key, value in entries) == text


def test_escaped_lines_hold_any_bytes() -> None:
    form = LineFormat("escaped")
    chance = random.Random(2)
    for _ in range(200):
        entry = tuple(bytes(chance.choices(b"\\\t\n\rtnr\x00\xffa", k=chance.randrange(12))) for _ in range(2))
        line = form.encode(*entry)
        assert not {b"\n", b"\r"} & {bytes([byte]) for byte in line}
        assert list(form.read([line + b"\n"], "file")) == [entry]


def test_last_line_needs_no_newline() -> None:
    assert list(LineFormat("raw").read([b"a\t1\n", b"b\t2"], "file")) == [(b"a", b"1"), (b"b", b"2")]


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("raw", b"no tab\n", r"words\.txt: line 2 has no tab"),
        ("escaped", b"a\tb\\x\n", r"line 2 has the unknown escape b'\\\\x'"),
        ("escaped", b"a\tb\\\n", "line 2 has the unknown escape"),
    ],
)
def test_bad_line_is_named(name: Any, line: bytes, message: str) -> None:
    with pytest.raises(LineFormatError, match=message):
        list(LineFormat(name).read([b"good\tline\n", line], "words.txt"))


@pytest.mark.parametrize("entry", [(b"a\tb", b"c"), (b"a\nb", b"c"), (b"a", b"c\nd")])
def test_entry_without_a_raw_form_is_named(entry: tuple[bytes, bytes]) -> None:
    with pytest.raises(LineFormatError, match="use --escaped"):
        LineFormat("raw").encode(*entry)


# Statuses


def entry_of(
    node_id: int, role: str = "follower", ballot: int = 1, commit: int = 5, applied: int = 5
) -> dict[str, Any]:
    indexes = {"commit_index": commit, "applied_index": applied}
    return {"id": node_id, "reachable": True, "role": role, "ballot": ballot, "digest": "00", **indexes}


def test_leader_is_the_one_with_the_highest_ballot() -> None:
    gone = {"id": 4, "reachable": False, "role": None}
    assert leader_of([entry_of(1, "leader", 65537), entry_of(2, "leader", 131074), gone]) == 2
    assert leader_of([entry_of(1), gone]) is None


def test_settled_means_all_have_applied_all() -> None:
    assert is_settled([entry_of(1), entry_of(2)])
    assert not is_settled([entry_of(1), entry_of(2, applied=4)])
    assert not is_settled([entry_of(1), {"id": 2, "reachable": False}])
    assert not is_settled([entry_of(1), entry_of(2) | {"digest": ""}])
    assert not is_settled([])


# The report of a benchmark


def test_sessions_are_shared_among_load_processes() -> None:
    plan = LoadPlan({1: "127.0.0.1:1"}, 10, 2, 3, 16, 1.0, 0.5)
    plans = split_plan(plan, 4)
    assert [part.clients for part in plans] == [3, 3, 2, 2]
    assert [part.seed for part in plans] == [1, 2, 3, 4]
    assert {part.batch for part in plans} == {3}
    rates = [part.rate for part in split_plan(replace(plan, rate=1000.0), 4)]
    assert rates == [300.0, 300.0, 200.0, 200.0]


def report_of(applied: int, errors: int = 0, digests_equal: bool = True) -> dict[str, Any]:
    histogram = LatencyHistogram()
    histogram.record([1000] * 10)
    result = LoadResult(acknowledged=100, measured=80, errors=errors, latency=histogram.to_sparse())
    report = make_report([result, result], seconds=2.0, setup={"clients": 2}, applied=applied)
    return report | {"replicas": [], "digests_equal": digests_equal}


def test_report_joins_load_processes(capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of(applied=200)
    assert (report["commands_per_second"], report["acknowledged"], report["blocks_measured"]) == (80, 200, 20)
    assert show(report, as_json=True) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {"commands_per_second", "latency_us", "acknowledged", "errors", "setup"} <= set(printed)
    assert HdrHistogram.decode(printed["histogram"]).get_total_count() == 20
    assert set(printed["latency_us"]) == {"p50", "p99", "p999", "max"}


@pytest.mark.parametrize(
    "report", [report_of(199), report_of(201), report_of(200, errors=1), report_of(200, digests_equal=False)]
)
def test_report_fails_unless_applied_is_acknowledged(
    report: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert show(report, as_json=False) == 1
    assert "commands/s" in capsys.readouterr().out


# Processes and folders


def test_free_ports_are_different_and_free() -> None:
    ports = free_ports(9)
    assert len(set(ports)) == 9
    for port in ports:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))


def test_work_folder_goes_unless_it_is_kept(tmp_path: Path) -> None:
    with work_folder(None) as folder:
        (folder / "file").write_text("data")
    assert not folder.exists()
    with work_folder(tmp_path / "kept") as folder:
        (folder / "file").write_text("data")
    assert (tmp_path / "kept" / "file").read_text() == "data"
    with pytest.raises(ConfigError, match="is not empty"), work_folder(tmp_path / "kept"):
        pass


def test_full_disk_is_refused_with_the_figures(tmp_path: Path) -> None:
    check_room(tmp_path, 1)
    with pytest.raises(ConfigError, match=r"MiB free and this run may write \d+ MiB"):
        check_room(tmp_path, 2**60)


def test_replica_that_cannot_start_is_reported_with_its_log(tmp_path: Path) -> None:
    with ClusterProcess(tmp_path, 1, machine="no_such_module:Machine") as processes:
        os.waitid(os.P_PID, processes.pid(1), os.WEXITED | os.WNOWAIT)
        with pytest.raises(ReplicaDied, match="no_such_module"):
            processes.check_running()
    assert processes.running() == []


def test_stop_ends_replicas_that_ignore_sigterm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastpaxos.cli.cluster_process.STOP_TIMEOUT_S", 0.05)
    processes = ClusterProcess(tmp_path, 1)
    deaf = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", deaf], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    processes._processes[1] = process
    assert processes.stop() == {1: -signal.SIGKILL}
    process.stdout.close()


# Misuse and failure, as a user meets them


def run_cli(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main.run(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    "command",
    [
        (),
        ("demo",),
        ("serve",),
        ("status",),
        ("kv",),
        *(("kv", name) for name in ("get", "put", "delete", "cas", "incr", "scan", "load", "dump")),
        ("bench",),
        ("bench", "closed"),
        ("bench", "open"),
        ("bench", "floor"),
        ("bench", "failover"),
        ("bench", "recovery"),
        ("bench", "sweep"),
        ("bench", "report"),
        ("bench", "ycsb"),
        ("bench", "payloads"),
        ("journal",),
        ("journal", "inspect"),
        ("journal", "verify"),
    ],
    ids=" ".join,
)
def test_every_command_has_help(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run_cli(capsys, *command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith("Usage: ")
    assert "--help" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nonsense",), "No such command"),
        (("status",), "Missing option '--cluster'"),
        (("status", "--cluster", "1=nowhere"), "has no HOST:PORT form"),
        (("status", "--cluster", "1=127.0.0.1:1,1=127.0.0.1:2"), "twice"),
        (("kv", "get", "--cluster", CLUSTER), "Missing argument 'KEY'"),
        (("kv", "load", "/no/such/file", "--cluster", CLUSTER), "No such file"),
        (("kv", "dump", "--escaped", "--lines", "--cluster", CLUSTER), "not both"),
        (("serve", "--id", "1", "--cluster", CLUSTER), "data_dir"),
        (("serve", "--id", "9", "--cluster", CLUSTER, "--data-dir", "d"), "node_id 9 is not in the cluster"),
        (("serve", "--id", "1", "--cluster", CLUSTER, "--data-dir", "d", "--durability", "maybe"), "'maybe'"),
        (("serve", "--id", "1", "--cluster", CLUSTER, "--data-dir", "d", "--machine", "none:Such"), "'none:Such'"),
        (("bench", "closed", "--batch", "16384", "--payload", "1000"), "lower --batch"),
        (("bench", "closed", "--clients", "2", "--load-processes", "3"), "load processes"),
        (("bench", "open"), "Missing option '--rate'"),
        (("bench", "floor", "--durability", "memory", "--sync", "thread"), "never syncs"),
        (("bench", "sweep", "--shares", "50,many"), "no list of percentages"),
        (("bench", "sweep", "--shares", "0"), "outside 1..1000"),
        (("bench", "sweep", "--clients", "2", "--load-processes", "3"), "load processes"),
        (("demo", "--payload", "15"), "15 is not in the range"),
        (("demo", "--replicas", "2"), "2 is not in the range"),
        (("journal", "verify", "/no/such/folder"), "does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_misuse_is_explained_on_stderr_with_code_2(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in [name for name in os.environ if name.startswith("FASTPAXOS_") and "TEST" not in name]:
        monkeypatch.delenv(variable)
    code, out, err = run_cli(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_folder_without_a_journal_is_misuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run_cli(capsys, "journal", "inspect", str(tmp_path))
    assert (code, out) == (2, "")
    assert "holds no journal" in err


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_cli(capsys, "--version")
    assert code == 0
    assert out.strip() == "fastpaxos, version 0.1.0"


def test_cluster_without_any_member_up_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = ",".join(f"{node_id}=127.0.0.1:{port}" for node_id, port in enumerate(free_ports(3), 1))
    code, out, _ = run_cli(capsys, "status", "--cluster", cluster, "--json", "--timeout", "0.3")
    assert code == 1
    report = json.loads(out)
    assert [entry["id"] for entry in report["replicas"]] == [1, 2, 3]
    assert [entry["reachable"] for entry in report["replicas"]] == [False] * 3
    code, out, err = run_cli(capsys, "kv", "get", "key", "--cluster", cluster, "--timeout", "0.3")
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
