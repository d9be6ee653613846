"""The rows P1 to P12: what each runs, and which figures it takes from the reports.

Three replicas, fsync, the hash-chain machine (compiled, one fold per batch, 8-byte results) unless a row says
otherwise. A ratio to the floor compares bytes of whole blocks per second with bytes of payload of the floor's frames.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from bench.targets.commands import Commands, NotMeasured, bench_command
from bench.targets.figures import Line, Wanted, block_bytes_per_second
from bench.targets.settings import Settings

__all__ = ["ROWS", "Run", "measure_row"]

MB = 1e6
MIB = 1 << 20
ONE_FRAME = ("--payload-bytes-per-frame", "56", "--window", "1", "--sync", "inline")
ONE_COMMAND = ("--clients", "1", "--pipeline", "1", "--batch", "1")
THOUSAND_TASKS = ("--clients", "1", "--pipeline", "1000", "--batch", "1")
CONNECTIONS = ("--clients", "64", "--pipeline", "1", "--batch", "1", "--load-processes", "4")
OPEN_SHARE = 0.7
FLOOR_EXCEEDED = 1.05
"""A ratio beyond it is no better than one below: the floor was measured badly."""
RATE_HELD = 0.97
"""Of the offered rate. Below it the load was more than the cluster takes, and percentiles say nothing."""
KILLS = 50
SOAK_SECONDS, SOAK_EDGE_SECONDS = 60, 10
PEERS = ("fastpaxos", "pysyncobj-best")


@dataclass
class Run:
    """How rows are measured: `rounds` times, `seconds` each."""

    commands: Commands
    settings: Settings
    rounds: int
    seconds: float
    tell: Callable[[str], None]
    singles: list[dict[str, Any]] = field(default_factory=list)
    """Reports of 1,000 tasks, one per round, once there are any."""

    def turns(self) -> Iterator[int]:
        """Count the rounds and tell about them."""
        for number in range(1, self.rounds + 1):
            self.tell(f"  round {number} of {self.rounds}")
            yield number

    def seconds_option(self) -> tuple[str, str]:
        return "--seconds", f"{self.seconds:g}"


def measure_row(run: Run, name: str) -> list[Line]:
    """Measure one of `ROWS`. A command that fails makes the lines of its row that need it "not measured"."""
    lines, measure = ROWS[name]()
    try:
        measure(run, lines)
    except NotMeasured as problem:
        for line in lines:
            if len(line.figures) < run.rounds:
                line.give_up(str(problem))
    return lines


Row = tuple[list[Line], Callable[[Run, list[Line]], None]]


def throughput(run: Run, line: Line, floor: tuple[str, ...], load: tuple[str, ...]) -> None:
    """One pair: the floor, then the cluster."""
    floor += run.seconds_option()
    load += run.seconds_option()
    reference = run.commands.bench("floor", *floor)
    report = run.commands.bench("closed", *load)
    line.commands = [bench_command("closed", *load), bench_command("floor", *floor)]
    line.add(block_bytes_per_second(report) / MB, reference["bytes_per_second"] / MB)
    speeds = line.details.setdefault("commands_per_second", [])
    speeds.append(report["commands_per_second"])
    line.notes = f"{statistics.median(speeds):,.0f} commands/s"


def check_floor(*lines: Line) -> str:
    """Why the floor of these lines is none, or "": it does less than the cluster, so it must not be slower."""
    for line in lines:
        if (line.ratio or 0.0) > FLOOR_EXCEEDED:
            return f"the cluster had {line.ratio:.3g} of its floor, which was not at its best; measure again"
    return ""


def row_p1() -> Row:
    return throughput_row("P1", "16-byte commands by execute_many", Wanted(0.70, 0.90), "fsync")


def row_p2() -> Row:
    return throughput_row("P2", "the same, durability memory", Wanted(0.30, 0.50), "memory")


def throughput_row(name: str, what: str, wanted: Wanted, durability: str) -> Row:
    def measure(run: Run, lines: list[Line]) -> None:
        floor = run.settings.floor(3, durability)
        load = run.settings.load(durability, 16)
        for _ in run.turns():
            throughput(run, lines[0], floor, load)
        lines[0].reason = check_floor(*lines)

    return [Line(name, what, wanted, "MB/s")], measure


def row_p3() -> Row:
    def measure(run: Run, lines: list[Line]) -> None:
        (line,) = lines
        floor, load = ONE_FRAME + run.seconds_option(), ONE_COMMAND + run.seconds_option()
        line.commands = [bench_command("closed", *load), bench_command("floor", *floor)]
        for _ in run.turns():
            reference = run.commands.bench("floor", *floor)
            report = run.commands.bench("closed", *load)
            line.add(report["latency_us"]["p50"], reference["latency_us"]["p50"])

    return [Line("P3", "latency of one command alone, p50", Wanted(1.30, 1.10, is_at_least=False), "us")], measure


def measure_singles(run: Run) -> list[dict[str, Any]]:
    """Reports of 1,000 tasks; measured once, as P4 and P5 both need them."""
    if not run.singles:
        load = THOUSAND_TASKS + run.seconds_option()
        run.singles = [run.commands.bench("closed", *load) for _ in run.turns()]
    return run.singles


def row_p4() -> Row:
    def measure(run: Run, lines: list[Line]) -> None:
        (line,) = lines
        line.commands = [bench_command("closed", *THOUSAND_TASKS, *run.seconds_option())]
        for report in measure_singles(run):
            line.add(report["commands_per_second"])

    wanted = Wanted(150_000, 300_000)
    return [Line("P4", "1,000 tasks of one client, each awaits execute", wanted, "commands/s")], measure


def row_p5() -> Row:
    def measure(run: Run, lines: list[Line]) -> None:
        (line,) = lines
        singles = measure_singles(run)
        rate = round(OPEN_SHARE * statistics.median(report["commands_per_second"] for report in singles))
        load = ("--clients", "1", "--rate", str(rate), *run.seconds_option())
        line.commands = [bench_command("open", *load)]
        answered, late_ms = [], []
        for _ in run.turns():
            report = run.commands.bench("open", *load)
            line.add(report["latency_us"]["p99"], report["latency_us"]["p50"])
            answered.append(report["commands_per_second"])
            late_ms.append(report["late_ms_max"])
        line.details = {"rate": rate, "answered_per_second": answered, "late_ms_max": late_ms}
        line.notes = f"the load was late by {statistics.median(late_ms):.3g} ms at worst"
        line.reason = overload(
            line, rate, statistics.median(answered), statistics.median(each["latency_us"]["p50"] for each in singles)
        )

    what = "open loop at 70 % of the maximum of P4: p99 to p50"
    return [Line("P5", what, Wanted(5, 3, is_at_least=False), "us")], measure


def overload(line: Line, rate: float, answered: float, p50_at_maximum: float) -> str:
    """Why the open load was more than this machine takes, or "": with a queue in front of everything, p99 is near p50,
    and the row would look best where it is worst."""
    if answered < RATE_HELD * rate:
        return f"overload: {answered:,.0f} of {rate:,} commands/s were answered"
    p50 = statistics.median(line.references)
    if p50 > p50_at_maximum:
        return f"overload: p50 {p50:,.0f} us is above the {p50_at_maximum:,.0f} us of the maximum itself"
    return ""


def row_p6() -> Row:
    def measure(run: Run, lines: list[Line]) -> None:
        (line,) = lines
        script = ("bench/instructions.py", "--slots", "1024")
        line.commands = [" ".join(("python", *script))]
        (batch,) = run.commands.script(*script)["batches"]
        # Counted, not timed: every round would give the same.
        line.add(batch["phase2_per_slot_and_replica"])

    what = "core: accept + vote + commit + deliver, batch of 1,024, instructions per slot and replica"
    return [Line("P6", what, Wanted(10, 3, is_at_least=False), "")], measure


def row_p7() -> Row:
    def measure(run: Run, lines: list[Line]) -> None:
        (line,) = lines
        load = CONNECTIONS + run.seconds_option()
        line.commands = [bench_command("closed", *load)]
        for _ in run.turns():
            report = run.commands.bench("closed", *load)
            line.add(report["commands_per_second"])
            line.details.setdefault("latency_us", []).append(report["latency_us"])

    what = "64 connections, one command at a time each"
    return [Line("P7", what, Wanted(60_000, 120_000), "commands/s")], measure


def row_p8() -> Row:
    def measure(run: Run, lines: list[Line]) -> None:
        only = [part for name in PEERS for part in ("--only", name)]
        command = ("compare", *only, "--rounds", str(run.rounds), *run.seconds_option())
        report = run.commands.bench(*command)
        rows = {row["name"]: row for row in report["rows"]}
        for name in PEERS:
            if rows[name]["status"] != "measured":
                told = rows[name].get("reason") or " && ".join(rows[name].get("install", []))
                raise NotMeasured(f"{name} is {rows[name]['status']}: {told}")
        ours, theirs = (rows[name] for name in PEERS)
        for line, key, runs in zip(lines, ("commands_per_second", "latency_us"), ("runs", "p50_runs"), strict=True):
            line.commands = [bench_command(*command)]
            for figure, reference in zip(ours[key][runs], theirs[key][runs], strict=True):
                line.add(figure, reference)

    what = "with fsync against PySyncObj at its best, which is in memory"
    return [
        Line("P8 throughput", f"{what}: throughput", Wanted(50, 100), "commands/s"),
        Line("P8 latency", f"{what}: p50 of one command", Wanted(1, is_at_least=False), "us"),
    ], measure


def row_p9() -> Row:
    def measure(run: Run, lines: list[Line]) -> None:
        command = ("failover", "--kills", str(KILLS))
        gaps = run.commands.bench(*command)["gap_ms"]
        for line, key in zip(lines, ("p50", "max"), strict=True):
            line.commands = [bench_command(*command)]
            line.add(gaps[key])
            line.details = {"gaps_ms": gaps["all"]}

    what = f"unavailability at a leader kill, default settings, {KILLS} kills"
    return [
        Line("P9 p50", f"{what}: p50", Wanted(600, 300, is_at_least=False), "ms"),
        Line("P9 max", f"{what}: longest", Wanted(1500, is_at_least=False), "ms"),
    ], measure


def row_p10() -> Row:
    def measure(run: Run, lines: list[Line]) -> None:
        (line,) = lines
        command = ("recovery", "--rounds", str(run.rounds), "--seconds", "3")
        line.commands = [bench_command(*command)]
        restarts = run.commands.bench(*command)["restarts"]
        line.details = {"restarts": restarts}
        if None in (speeds := [step["commands_per_second"] for step in restarts]):
            raise NotMeasured("a restart took no longer than one with an empty journal; give it more --seconds")
        for speed in speeds:
            line.add(speed)
        line.notes = f"journals up to {max(step['journal_bytes'] for step in restarts) / MB:,.0f} MB"

    return [Line("P10", "restart: journal replay", Wanted(3_000_000), "commands/s")], measure


def row_p11() -> Row:
    def measure(run: Run, lines: list[Line]) -> None:
        of_five, *of_payloads = lines
        for line, payload in zip(of_payloads, (1024, 65_536), strict=True):
            floor, load = run.settings.floor(3, "fsync"), run.settings.load("fsync", payload)
            for _ in run.turns():
                throughput(run, line, floor, load)
            line.reason = check_floor(line)
        measure_five(run, of_five)

    return [
        Line("P11 replicas", "5 replicas to their floor, over 3 replicas to theirs", Wanted(0.9, 1), "of the floor"),
        Line("P11 1 KiB", "commands of 1 KiB by execute_many", Wanted(0.8, 0.9), "MB/s"),
        Line("P11 64 KiB", "commands of 64 KiB by execute_many", Wanted(0.8, 0.9), "MB/s"),
    ], measure


def measure_five(run: Run, line: Line) -> None:
    """Four runs a round: both floors and both clusters."""
    floors = {replicas: run.settings.floor(replicas, "fsync") for replicas in (3, 5)}
    load = run.settings.load("fsync", 16)
    pairs = {replicas: Line("", "", line.wanted, "MB/s") for replicas in floors}
    for _ in run.turns():
        for replicas, pair in pairs.items():
            throughput(run, pair, floors[replicas], (*load, "--replicas", str(replicas)))
        line.add(pairs[5].ratios[-1], pairs[3].ratios[-1])
    line.commands = pairs[5].commands + pairs[3].commands
    line.details = {f"{replicas}_replicas": pair.to_map()["rounds"] for replicas, pair in pairs.items()}
    line.reason = check_floor(*pairs.values())


def row_p12() -> Row:
    def measure(run: Run, lines: list[Line]) -> None:
        speed, memory = lines
        load = (*run.settings.load("fsync", 16), "--seconds", str(SOAK_SECONDS), "--warmup", "3")
        speed.commands = memory.commands = [bench_command("closed", *load)]
        report = run.commands.bench("closed", *load)
        counts = report["per_second"]
        first, last = sum(counts[:SOAK_EDGE_SECONDS]), sum(counts[-SOAK_EDGE_SECONDS:])
        speed.add(last / SOAK_EDGE_SECONDS, first / SOAK_EDGE_SECONDS)
        speed.details = {"per_second": counts}
        # The window is full before the measured time begins: what comes on top during it is growth.
        memory.add(max(growth(entry) for entry in report["replicas"]) / MIB)
        memory.details = {"replicas": report["replicas"]}

    what = f"{SOAK_SECONDS} s at full speed"
    return [
        Line("P12 throughput", f"{what}: last {SOAK_EDGE_SECONDS} s to the first", Wanted(0.95, 1), "commands/s"),
        Line("P12 memory", f"{what}: growth of a replica's memory", Wanted(64, is_at_least=False), "MiB"),
    ], measure


def growth(replica: dict[str, Any]) -> int:
    """Bytes that a replica has resident at the end of the measured time beyond those at its begin."""
    return int(replica["resident_bytes_end"] - replica["resident_bytes_start"])


ROWS: dict[str, Callable[[], Row]] = {
    f"P{number}": row
    for number, row in enumerate(
        (row_p1, row_p2, row_p3, row_p4, row_p5, row_p6, row_p7, row_p8, row_p9, row_p10, row_p11, row_p12), 1
    )
}
