"""The regression gate: profiles, stages, comparison with the baseline, where a reference comes from, paired ratios."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fastpaxos.testing.gate import Bound, NoReferenceError, Pair, Profile, Workload, compare, run_pair
from fastpaxos.testing.gate.__main__ import GREEN, NO_VERDICT, RED, check_counts, main
from fastpaxos.testing.gate.baseline import Baseline, Verdict, metrics_of
from fastpaxos.testing.gate.callgrind import COUNTED, CallgrindError, count_workloads, parse_profile, readable_name
from fastpaxos.testing.gate.reference import check_out, reference_commit
from fastpaxos.testing.gate.stages import ALLOCATION_PRICE, REST, functions_of_stages, with_flat_memory
from fastpaxos.testing.gate.suite import load_suite
from fastpaxos.testing.gate.toolchain import describe_toolchain

ROOT = Path(__file__).parents[2]
BASELINE = ROOT / "bench" / "baseline.json"
ACCEPT = "phase2 1024: accept"
needs_valgrind = pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")

PROFILE = """\
# callgrind format
version: 1
creator: callgrind-3.19.0
positions: line
events: Ir
summary: 160

ob=(1) /lib/core.so
fl=(1) core.c
fn=(1) main
10 5
+2 3
cfn=(2) accept
calls=4 20
+1 100
* 2

fn=(2)
20 60
cfn=(3) malloc
calls=4 0
21 40

fn=(3)
cob=(2) /lib/libc.so
0 30
cfn=(4) malloc'2
calls=1 0
0 10

fn=(4)
0 10

fn=(5) idle
jump=3 4
7 50
"""


def test_a_profile_is_read_with_its_abbreviations() -> None:
    profile = parse_profile(PROFILE)
    assert profile.total == 160
    assert profile.own == {"main": 10, "accept": 60, "malloc": 40, "idle": 50}
    assert profile.arcs == {("main", "accept"): 100, ("accept", "malloc"): 40, ("malloc", "malloc"): 10}
    assert profile.times_called() == {"accept": 4, "malloc": 5}
    assert profile.inclusive() == {"main": 110, "accept": 100, "malloc": 40, "idle": 50}


def test_a_profile_of_other_events_is_refused() -> None:
    with pytest.raises(CallgrindError, match="counts Ir Dr, expected Ir"):
        parse_profile(PROFILE.replace("events: Ir", "events: Ir Dr"))


def test_start_up_cancels() -> None:
    once = Profile(1100, {"start": 1000, "work": 100}, {("start", "work"): 100}, {("start", "work"): 10})
    twice = Profile(1200, {"start": 1000, "work": 200}, {("start", "work"): 200}, {("start", "work"): 20})
    one = once.one_repetition(twice, 10)
    assert (one.total, one.own, one.arcs) == (10, {"work": 10}, {("start", "work"): 10})
    assert one.times_called() == {"work": 1}


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("__pyx_f_14fastpaxos_core_8acceptor_8Acceptor_handle_accept", "acceptor.Acceptor.handle_accept"),
        ("__pyx_pw_14fastpaxos_core_7replica_7Replica_15receive", "replica.Replica.receive"),
        ("__pyx_f_14fastpaxos_core_4wire__consume", "wire._consume"),
        ("memcpy", "memcpy"),
    ],
)
def test_symbols_are_named_as_in_the_source(symbol: str, name: str) -> None:
    assert readable_name(symbol) == name


def test_functions_belong_to_the_nearest_stage_above_them() -> None:
    profile = Profile(
        total=300,
        own={"main": 50, "accept": 80, "commit": 20, "crc": 90, "copy": 60},
        arcs={
            ("main", "accept"): 190,
            ("accept", "commit"): 20,
            ("accept", "crc"): 60,
            ("main", "crc"): 30,
            ("crc", "copy"): 45,
            ("main", "copy"): 15,
        },
    )
    parts = functions_of_stages(profile, {"accept": ["accept"], "commit": ["commit"]})
    assert parts["commit"] == {"commit": 20}
    assert parts["accept"] == pytest.approx({"accept": 80, "crc": 60, "copy": 30})
    assert parts[REST] == pytest.approx({"main": 50, "crc": 30, "copy": 30})
    assert sum(sum(functions.values()) for functions in parts.values()) == pytest.approx(profile.total)


def test_an_allocation_counts_the_same_wherever_memory_lies() -> None:
    def profile(dear: float) -> Profile:
        return Profile(
            total=100 + dear,
            own={"work": 100, "malloc": 10, "_int_malloc": dear - 10},
            arcs={("work", "malloc"): dear, ("malloc", "_int_malloc"): dear - 10},
            calls={("work", "malloc"): 2, ("malloc", "_int_malloc"): 2},
        )

    cheap, dear = with_flat_memory(profile(50)), with_flat_memory(profile(500))
    assert cheap.total == dear.total == 100 + 2 * ALLOCATION_PRICE
    one_more = profile(50)
    one_more.calls["work", "malloc"] = 3
    assert with_flat_memory(one_more).total == 100 + 3 * ALLOCATION_PRICE


def test_a_stage_whose_function_never_ran_is_an_error() -> None:
    workload = Workload("work", "module:function", 1, stages={"accept": ["accept", "renamed"]})
    with pytest.raises(ValueError, match="work: renamed never ran"):
        metrics_of(workload, Profile(10, {"accept": 10}))


# --- the comparison ---


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [(1.05, Verdict.WORSE), (1.01, Verdict.SAME), (0.99, Verdict.SAME), (0.95, Verdict.BETTER)],
)
def test_the_recorded_counts_with_a_change_in_accept(factor: float, verdict: Verdict) -> None:
    before = Baseline.load(BASELINE).counts
    now = {**before, ACCEPT: before[ACCEPT] * factor}
    comparisons = {item.metric: item for item in compare(before, now)}
    assert comparisons[ACCEPT].verdict is verdict
    assert comparisons[ACCEPT].change == pytest.approx(factor - 1)
    assert verdict.is_red == (factor == 1.05)
    assert {item.verdict for metric, item in comparisons.items() if metric != ACCEPT} == {Verdict.SAME}


def test_metrics_that_come_or_go_are_red_until_the_baseline_is_renewed() -> None:
    verdicts = {item.metric: item.verdict for item in compare({"old": 1.0, "kept": 1.0}, {"kept": 1.0, "new": 1.0})}
    assert verdicts == {"old": Verdict.GONE, "kept": Verdict.SAME, "new": Verdict.NEW}
    assert Verdict.GONE.is_red
    assert Verdict.NEW.is_red


def test_a_baseline_names_its_toolchain(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    Baseline({"compiler": "one", "libc": "a"}, {"accept": 10.04}).save(path)
    loaded = Baseline.load(path)
    assert loaded.counts == {"accept": 10.0}
    assert loaded.differences({"compiler": "one", "libc": "a"}) == []
    assert loaded.differences({"compiler": "two", "libc": "a"}) == ["compiler: one -> two"]
    path.write_text('{"format": 2}')
    with pytest.raises(ValueError, match="format 2"):
        Baseline.load(path)


def test_the_committed_baseline_has_what_the_suite_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = load_suite(ROOT / "bench" / "gate_suite.py")
    expected = set()
    for workload in suite.workloads:
        expected |= {workload.name, *(f"{workload.name}: {stage}" for stage in workload.stages)}
    baseline = Baseline.load(BASELINE)
    assert set(baseline.counts) == expected
    assert set(baseline.toolchain) == set(describe_toolchain())
    assert ACCEPT in expected


# --- the reference of another toolchain ---

GIT_IDENTITY = ("-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
Git = Callable[..., str]


@pytest.fixture
def git(tmp_path: Path) -> Git:
    def run(folder: Path, *arguments: str) -> str:
        command = ["git", "-C", str(folder), *GIT_IDENTITY, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    return run


@pytest.fixture
def project(tmp_path: Path, git: Git) -> Path:
    """A checkout whose baseline was committed with its code, and whose code changed afterwards."""
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "work.py").write_text(WORK.format(factor=10))
    (folder / "suite.py").write_text(SUITE)
    counts = {"loop": 1.0}
    Baseline({"compiler": "another"}, counts).save(folder / "baseline.json")
    (folder / ".gitignore").write_text("build/\n__pycache__/\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "code and baseline")
    (folder / "work.py").write_text(WORK.format(factor=11))
    git(folder, "commit", "-qam", "slower")
    return folder


WORK = """
def loop(count):
    total = 0
    for _ in range(count):
        for number in range({factor} * 100):
            total += number
    if total == 0:
        raise ValueError("nothing was added")
"""
SUITE = """
from pathlib import Path
from fastpaxos.testing.gate import Workload

HERE = Path(__file__).parent
BASELINE = HERE / "baseline.json"
WORKLOADS = [Workload("loop", f"{HERE / 'work.py'}:loop", 8)]
"""


def test_the_reference_is_the_last_commit_of_the_baseline(project: Path, tmp_path: Path, git: Git) -> None:
    commit = reference_commit(project / "baseline.json")
    assert commit == git(project, "rev-parse", "HEAD~1")
    check_out(project, commit, tmp_path / "tree")
    assert "range(10 * 100)" in (tmp_path / "tree" / "work.py").read_text()


def test_without_history_there_is_no_verdict(project: Path, tmp_path: Path, git: Git) -> None:
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{project}", "shallow")
    with pytest.raises(NoReferenceError, match="git fetch --unshallow"):
        reference_commit(tmp_path / "shallow" / "baseline.json")
    git(tmp_path, "clone", "-q", "--depth", "2", f"file://{project}", "deeper")
    with pytest.raises(NoReferenceError, match="git fetch --unshallow"):
        reference_commit(tmp_path / "deeper" / "baseline.json")


def test_a_baseline_that_was_never_committed_is_no_reference(project: Path, tmp_path: Path) -> None:
    (project / "other.json").write_text("{}")
    with pytest.raises(NoReferenceError, match="never committed"):
        reference_commit(project / "other.json")
    with pytest.raises(NoReferenceError, match="not a git repository"):
        reference_commit(tmp_path / "other.json")


@needs_valgrind
def test_counts_of_another_toolchain_are_not_used(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The recorded count of another toolchain is far off; the commit that it was taken from is counted instead.
    assert check_counts(load_suite(project / "suite.py"), None, use_reference=False, show_all=True) == RED
    printed = capsys.readouterr().out
    assert "the baseline is of another toolchain: compiler: another" in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("loop ")]
    change = float(line.split()[3].rstrip("%"))
    assert 8.0 < change < 12.0, line


@needs_valgrind
@pytest.mark.slow
def test_a_renewed_baseline_is_green_and_a_slower_loop_is_red(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = str(project / "suite.py")
    assert main([suite, "--renew"]) == GREEN
    assert main([suite]) == GREEN
    (project / "work.py").write_text(WORK.format(factor=11.55).replace("11.55 * 100", "1155"))
    assert main([suite]) == RED
    assert "WORSE" in capsys.readouterr().out


def test_a_suite_without_a_baseline_gets_no_verdict(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "suite.py").write_text("WORKLOADS = []\n")
    assert main([str(project / "suite.py")]) == NO_VERDICT
    assert "does not define BASELINE" in capsys.readouterr().err


def test_work_that_gives_a_wrong_result_is_not_counted(tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text("def wrong(count):\n    raise ValueError('the sum is wrong')\n")
    work = json.dumps([{"target": f"{tmp_path / 'work.py'}:wrong", "repetitions": 1, "arguments": []}])
    run = subprocess.run([sys.executable, "-P", str(COUNTED)], input=work, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "ValueError: the sum is wrong" in run.stderr


def test_without_valgrind_there_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CallgrindError, match="apt-get install valgrind"):
        count_workloads([Workload("work", "module:function", 1)])


# --- paired ratios ---


def test_pairs_alternate_and_are_judged_by_the_median() -> None:
    order: list[str] = []

    def subject() -> dict[str, float]:
        order.append("subject")
        return {"seconds": 100.0 if len(order) < 3 else 2.0, "rate": 3.0}

    def reference() -> dict[str, float]:
        order.append("reference")
        return {"seconds": 1.0, "rate": 4.0}

    bounds = (Bound("seconds", at_most=2.5), Bound("rate", at_least=0.8))
    result = run_pair(Pair("pair", subject, reference, bounds, rounds=3))
    assert order == ["subject", "reference", "reference", "subject", "subject", "reference"]
    assert result.ratios == {"seconds": (100.0, 2.0, 2.0), "rate": (0.75, 0.75, 0.75)}
    assert result.median("seconds") == 2.0
    assert result.broken == [bounds[1]]
    assert str(bounds[0]) == "<= 2.5"
