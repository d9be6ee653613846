"""The table of the targets P1 to P12: which figures it takes from recorded reports, and what it makes of them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

# Behind everything else: the release build in the source tree must not hide the build that is tested.
sys.path.append(str(Path(__file__).parents[2]))

from bench.targets.__main__ import main
from bench.targets.commands import Commands, NotMeasured, Result, execute
from bench.targets.figures import Line, Wanted, block_bytes_per_second, markdown_table, shown
from bench.targets.rows import ROWS, Run, measure_row
from bench.targets.settings import Settings, batches

Answer = Callable[[dict[str, str]], dict[str, Any] | Result]


def options_of(command: Sequence[str]) -> tuple[str, dict[str, str]]:
    """The subcommand of `fastpaxos bench` (or the script) and its options."""
    words = [*command]
    words = words[words.index("bench") + 1 :] if "bench" in words else words[1:]
    assert words[-1] == "--json"
    return words[0], dict(zip(words[1:-1:2], words[2:-1:2], strict=True))


class Recorded:
    """Answers commands with recorded reports, and remembers the commands."""

    def __init__(self, **answers: Answer) -> None:
        self.answers = answers
        self.commands: list[tuple[str, dict[str, str]]] = []

    def __call__(self, command: Sequence[str]) -> Result:
        name, options = options_of(command)
        self.commands.append((name, options))
        report = self.answers[name.removeprefix("bench/").removesuffix(".py")](options)
        return report if isinstance(report, Result) else Result(0, json.dumps(report), "")

    def run(self, rounds: int = 3) -> Run:
        commands = Commands(lambda _text: None, self)
        return Run(commands, Settings(commands, lambda _text: None), rounds, 2.0, lambda _text: None)


def floor_report(speed: float = 200e6, p50: float = 400.0) -> dict[str, Any]:
    best = {"payload_bytes_per_frame": 262_144, "window": 16, "sync": "thread"}
    return best | {"bytes_per_second": speed, "latency_us": {"p50": p50, "p99": 900.0}}


def load_report(options: dict[str, str], speed: int, **more: Any) -> dict[str, Any]:
    setup = {"batch": int(options.get("--batch", "1000")), "payload_bytes": int(options.get("--payload", "16"))}
    return {"commands_per_second": speed, "latency_us": {"p50": 500.0, "p99": 1000.0}, "setup": setup} | more


# Figures


@pytest.mark.parametrize(
    ("figures", "references", "ratio", "figure", "is_met"),
    [
        ([70.0, 80.0, 60.0], [100.0, 100.0, 100.0], 0.7, 70.0, True),
        ([69.0, 80.0, 60.0], [100.0, 100.0, 100.0], 0.69, 69.0, False),
        # The median of the ratios is 0.5; the ratio of the medians would be 1.
        ([10.0, 100.0, 1000.0], [100.0, 200.0, 20.0], 0.5, 100.0, False),
        ([0.7], [], None, 0.7, True),
        ([0.6, 0.9], [], None, 0.75, True),
        ([], [], None, None, None),
    ],
)
def test_what_is_judged_is_the_median_of_the_ratios_or_of_the_figures(
    figures: list[float], references: list[float], ratio: float | None, figure: float | None, is_met: bool | None
) -> None:
    line = Line("P0", "something", Wanted(0.7, 0.9), "MB/s", figures=figures, references=references)
    assert (line.ratio, line.figure, line.is_met) == (pytest.approx(ratio), figure, is_met)


@pytest.mark.parametrize(
    ("wanted", "value", "verdict"),
    [
        (Wanted(5, 3), 4.9, "**not met**"),
        (Wanted(5, 7), 5.0, "met"),
        (Wanted(5, 7), 7.0, "met, and the dream"),
        (Wanted(5, 3, is_at_least=False), 5.1, "**not met**"),
        (Wanted(5, 3, is_at_least=False), 5.0, "met"),
        (Wanted(5, 3, is_at_least=False), 3.0, "met, and the dream"),
        (Wanted(5), 100.0, "met"),
    ],
)
def test_verdicts(wanted: Wanted, value: float, verdict: str) -> None:
    line = Line("P0", "something", wanted, "", figures=[value])
    assert line.verdict == verdict
    line.reason = "it does not count"
    assert (line.is_met, line.verdict) == (False, "**not met**: it does not count")
    line.give_up("the disk is full")
    assert (line.is_met, line.verdict) == (None, "not measured: the disk is full")


def test_block_bytes_have_the_header_and_the_commands() -> None:
    # A header of 40 bytes and 1,000 commands of 16: no lengths, as all are equal.
    assert block_bytes_per_second(load_report({}, 2_000_000)) == 2000 * 16_040
    assert block_bytes_per_second(load_report({"--batch": "1"}, 10)) == 560


def test_table_and_numbers() -> None:
    assert [shown(value) for value in (None, 1234567.8, 100.4, 3.0, 0.7512, 12.345)] == [
        "", "1,234,568", "100", "3", "0.751", "12.3",
    ]  # fmt: skip
    line = Line("P1", "a|b", Wanted(0.7), "MB/s", ["one --x 1", "two"], [80.0], [100.0], notes="fast")
    table = markdown_table([line, Line("P2", "c", Wanted(1), "ms", reason="no\ndisk")])
    assert table.splitlines()[2:] == [
        "| P1 | a\\|b | `one --x 1`<br>`two` | 80 MB/s (fast) | 100 MB/s | 0.8 | >= 0.7 | met |",
        "| P2 | c |  |  |  |  | >= 1 ms | not measured: no disk |",
    ]


@pytest.mark.parametrize(("payload", "sizes"), [(16, [1000, 4000, 16_000]), (1024, [243, 972]), (65_536, [3, 15])])
def test_batches_fit_into_a_block(payload: int, sizes: list[int]) -> None:
    assert batches(payload) == sizes


# Rows


def test_throughput_rows_search_once_and_then_take_turns() -> None:
    floors = iter([90e6, 80e6, 100e6, 200e6, 400e6])
    # The setting that is best in one short trial is not the one that is best in two.
    speeds = iter([4, 3, 2, 1, 1, 5, 1, 1, 1, *[1, 5, 2], *[5, 5, 5]])
    recorded = Recorded(
        floor=lambda _: floor_report(next(floors)) | {"window": len(recorded.commands)},
        closed=lambda options: load_report(options, next(speeds) * 1_000_000),
    )
    (line,) = measure_row(recorded.run(), "P1")
    names = [name for name, _ in recorded.commands]
    assert names == ["floor"] * 2 + ["closed"] * 12 + ["floor", "closed"] * 3
    _, floor = recorded.commands[-2]
    # The better of both searches, which was the first command.
    assert (floor["--payload-bytes-per-frame"], floor["--window"], floor["--sync"]) == ("262144", "1", "thread")
    setting = ("--batch", "--clients", "--pipeline")
    trials = [tuple(options[name] for name in setting) for _, options in recorded.commands[2:14]]
    assert len(set(trials[:9])) == 9
    assert trials[9:] == [trials[5], trials[0], trials[1]]
    _, load = recorded.commands[-1]
    assert tuple(load[name] for name in setting) == trials[0]
    assert (load["--durability"], load["--seconds"]) == ("fsync", "2")
    assert line.figures == [5000 * 16_040 / 1e6] * 3
    assert line.ratio == pytest.approx(0.401)
    assert line.commands[0].startswith("fastpaxos bench closed --durability fsync --payload 16")
    assert "--json" not in line.commands[0]


def test_floor_below_the_cluster_does_not_count() -> None:
    recorded = Recorded(floor=lambda _: floor_report(100e6), closed=lambda options: load_report(options, 7_000_000))
    for name in ("P1", "P2", "P11"):
        for line in measure_row(recorded.run(), name):
            assert line.is_met is False
            assert "of its floor, which was not at its best" in line.reason


def test_memory_has_a_floor_of_its_own_that_never_syncs() -> None:
    recorded = Recorded(
        floor=lambda options: floor_report() | {"sync": "off"} if "--sync" not in options else pytest.fail("--sync"),
        closed=lambda options: load_report(options, 4_000_000),
    )
    (line,) = measure_row(recorded.run(), "P2")
    assert {options["--durability"] for _, options in recorded.commands} == {"memory"}
    assert line.is_met is True


def test_latency_of_one_command_is_that_of_a_frame_of_its_size() -> None:
    recorded = Recorded(floor=lambda _: floor_report(p50=400.0), closed=lambda options: load_report(options, 2000))
    (line,) = measure_row(recorded.run(), "P3")
    assert (line.ratio, line.is_met) == (1.25, True)
    assert recorded.commands[0][1]["--payload-bytes-per-frame"] == "56"
    assert recorded.commands[1][1] | {"--seconds": ""} == {
        "--clients": "1", "--pipeline": "1", "--batch": "1", "--seconds": "",
    }  # fmt: skip


def open_report(speed: int, p50: float, p99: float) -> dict[str, Any]:
    return {"commands_per_second": speed, "latency_us": {"p50": p50, "p99": p99}, "late_ms_max": 1.0}


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        (open_report(140_000, 300.0, 1200.0), ""),
        # Percentiles of an overloaded cluster lie close together; that must not look good.
        (open_report(130_000, 300.0, 1200.0), "overload: 130,000 of 140,000"),
        (open_report(140_000, 90_000.0, 100_000.0), "overload: p50 90,000 us is above the 500 us"),
    ],
)
def test_open_load_counts_only_below_overload(report: dict[str, Any], reason: str) -> None:
    recorded = Recorded(closed=lambda options: load_report(options, 200_000), open=lambda _: report)
    run = recorded.run()
    (maximum,) = measure_row(run, "P4")
    (line,) = measure_row(run, "P5")
    assert [name for name, _ in recorded.commands] == ["closed"] * 3 + ["open"] * 3
    assert recorded.commands[-1][1]["--rate"] == "140000"
    assert (maximum.figure, maximum.is_met) == (200_000, True)
    assert line.reason.startswith(reason)
    assert line.is_met == (not reason)


def test_rows_of_one_command_each() -> None:
    gaps = {"p50": 400.0, "min": 300.0, "max": 1600.0, "all": [400.0] * 50}
    restarts = [{"commands_per_second": speed, "journal_bytes": 10**9} for speed in (2_000_000, 4_000_000, 3_500_000)]
    recorded = Recorded(
        instructions=lambda _: {"batches": [{"slots_per_batch": 1024, "phase2_per_slot_and_replica": 2.5}]},
        closed=lambda options: load_report(options, 59_000),
        failover=lambda _: {"gap_ms": gaps},
        recovery=lambda _: {"restarts": restarts},
    )
    run = recorded.run()
    (core,) = measure_row(run, "P6")
    assert (core.figure, core.verdict) == (2.5, "met, and the dream")
    assert core.commands == ["python bench/instructions.py --slots 1024"]
    (connections,) = measure_row(run, "P7")
    assert (connections.figure, connections.is_met) == (59_000, False)
    assert recorded.commands[-1][1]["--load-processes"] == "4"
    middle, longest = measure_row(run, "P9")
    assert (middle.figure, middle.is_met, longest.figure, longest.is_met) == (400.0, True, 1600.0, False)
    assert recorded.commands[-1] == ("failover", {"--kills": "50"})
    (restart,) = measure_row(run, "P10")
    assert (restart.figure, restart.is_met) == (3_500_000, True)


def test_restart_that_cannot_be_told_from_an_empty_one_is_not_measured() -> None:
    restarts = [{"commands_per_second": speed, "journal_bytes": 1000} for speed in (2_000_000, None, 4_000_000)]
    (line,) = measure_row(Recorded(recovery=lambda _: {"restarts": restarts}).run(), "P10")
    assert line.verdict.startswith("not measured: a restart took no longer")


def peer_row(name: str, speeds: list[int], p50s: list[float]) -> dict[str, Any]:
    speed, latency = {"median": sorted(speeds)[1], "runs": speeds}, {"p50": sorted(p50s)[1], "p50_runs": p50s}
    return {"name": name, "status": "measured", "commands_per_second": speed, "latency_us": latency}


def test_peers_are_compared_round_by_round() -> None:
    ours = peer_row("fastpaxos", [6_000_000, 5_000_000, 100], [500.0, 600.0, 700.0])
    theirs = peer_row("pysyncobj-best", [60_000, 100_000, 1], [1000.0, 500.0, 1400.0])
    recorded = Recorded(compare=lambda _: {"rows": [theirs, ours]})
    throughput, latency = measure_row(recorded.run(), "P8")
    assert (throughput.ratios, throughput.is_met) == ([100.0, 50.0, 100.0], True)
    assert (latency.ratio, latency.is_met) == (0.5, True)


def test_peer_that_is_not_installed_is_told_with_the_command_that_installs_it() -> None:
    ours = peer_row("fastpaxos", [1, 2, 3], [1.0, 2.0, 3.0])
    theirs = {"name": "pysyncobj-best", "status": "not installed", "install": ["make peers", "pip install pysyncobj"]}
    for line in measure_row(Recorded(compare=lambda _: {"rows": [ours, theirs]}).run(), "P8"):
        assert line.verdict == "not measured: pysyncobj-best is not installed: make peers && pip install pysyncobj"


def test_five_replicas_are_judged_by_how_their_ratio_stands_to_that_of_three() -> None:
    speeds = {"3": 4_000_000, "5": 1_900_000}
    floors = {"3": 100e6, "5": 50e6}
    recorded = Recorded(
        floor=lambda options: floor_report(floors[options["--replicas"]]),
        closed=lambda options: load_report(options, speeds[options.get("--replicas", "3")]),
    )
    replicas, small, large = measure_row(recorded.run(), "P11")
    assert replicas.ratio == pytest.approx(0.95)
    assert (len(small.ratios), len(large.ratios), replicas.is_met) == (3, 3, True)
    assert {options["--payload"] for name, options in recorded.commands if name == "closed"} == {"16", "1024", "65536"}
    assert len(replicas.commands) == 4


def test_long_run_compares_its_end_with_its_begin() -> None:
    counts = [100] * 10 + [120] * 40 + [94] * 10
    replicas = [
        {"id": number, "resident_bytes_start": 60 << 20, "resident_bytes_end": (60 + grown) << 20}
        for number, grown in enumerate((1, 63, 2), 1)
    ]
    recorded = Recorded(closed=lambda options: load_report(options, 5_000_000, per_second=counts, replicas=replicas))
    speed, memory = measure_row(recorded.run(), "P12")
    assert (speed.ratio, speed.is_met) == (0.94, False)
    assert (memory.figure, memory.is_met) == (63.0, True)
    assert recorded.commands[-1][1]["--seconds"] == "60"


# What goes wrong


NO_ROOM = "error: /somewhere has 9000 MiB free and this run may write 30000 MiB; choose another place"


@pytest.mark.parametrize("name", ROWS)
def test_a_command_that_fails_leaves_its_row_not_measured(name: str) -> None:
    def fails(_options: dict[str, str]) -> Result:
        return Result(2, "", NO_ROOM)

    names = ("floor", "closed", "open", "failover", "recovery", "compare", "instructions")
    lines = measure_row(Recorded(**dict.fromkeys(names, fails)).run(), name)
    for line in lines:
        assert line.is_met is None
        assert line.verdict.startswith("not measured: `")
        assert line.verdict.endswith(f"ended with code 2: {NO_ROOM}")


def test_a_failure_in_the_last_round_drops_what_the_others_gave() -> None:
    answers = iter([*[load_report({}, 100)] * 2, Result(1, '{"verdict": false}', "")])
    (line,) = measure_row(Recorded(closed=lambda _: next(answers)).run(), "P7")
    assert (line.figures, line.is_met) == ([], None)
    assert '"verdict": false' in line.reason


@pytest.mark.parametrize("stdout", ["", "no json", "[]"])
def test_a_command_that_prints_no_report_is_told(stdout: str) -> None:
    commands = Commands(lambda _text: None, lambda _command: Result(0, stdout, ""))
    with pytest.raises(NotMeasured, match="`fastpaxos bench closed --seconds 1` ended with code 0"):
        commands.bench("closed", "--seconds", "1")


# The program


def tiny(run: Callable[[Sequence[str]], Result]) -> Commands:
    return Commands(lambda _text: None, run)


def test_program_writes_json_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded = Recorded(closed=lambda options: load_report(options, 200_000))
    file = tmp_path / "targets.json"
    assert main(["--only", "p7,P4", "--rounds", "2", "--json", str(file)], tiny(recorded)) == 0
    report = json.loads(file.read_text())
    assert [(row["name"], row["met"], len(row["rounds"])) for row in report["rows"]] == [
        ("P4", True, 2),
        ("P7", True, 2),
    ]
    assert (report["benchmark"], report["verdict"], report["setup"]["rounds"]) == ("targets", True, 2)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in printed] == ["| P", "|---|---|---|---|---|---|---|---|", "| P4", "| P7"]


def test_program_fails_where_a_row_is_not_met_or_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "P7"], tiny(Recorded(closed=lambda options: load_report(options, 50_000)))) == 1
    assert main(["--only", "P7"], tiny(lambda _command: Result(1, "", "broken"))) == 1
    assert "not measured: `fastpaxos bench closed" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--only", "P13"], tiny(Recorded()))
    assert "P13 is no row; rows are P1, P2" in capsys.readouterr().err


def test_an_interrupt_keeps_the_rows_that_are_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_options: dict[str, str]) -> Result:
        raise KeyboardInterrupt

    recorded = Recorded(closed=lambda options: load_report(options, 200_000), open=interrupted)
    file = tmp_path / "targets.json"
    assert main(["--only", "P4,P5,P7", "--json", str(file)], tiny(recorded)) == 130
    assert [row["name"] for row in json.loads(file.read_text())["rows"]] == ["P4"]
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1].startswith("| P4 |")
    assert "interrupted" in captured.err


def test_a_command_is_stopped_once_and_cleans_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An interrupt while a command runs: it gets SIGTERM, and its end is waited for."""
    told = tmp_path / "told"
    script = (
        "import pathlib, signal, sys\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(told)!r}).write_text('clean'), sys.exit(3)))\n"
        "print(flush=True)\n"
        "signal.pause()\n"
    )
    communicate = subprocess.Popen.communicate

    def interrupted(process: subprocess.Popen[str], *arguments: Any) -> Any:
        monkeypatch.setattr(subprocess.Popen, "communicate", communicate)
        assert process.stdout is not None
        process.stdout.readline()  # its handler is in place
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        execute([sys.executable, "-c", script])
    assert told.read_text() == "clean"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_real_command_and_its_failure() -> None:
    commands = Commands(lambda _text: None)
    with pytest.raises(NotMeasured, match="lower --batch"):
        commands.bench("closed", "--batch", "16384", "--payload", "1000")
