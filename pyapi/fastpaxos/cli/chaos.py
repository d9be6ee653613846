"""`fastpaxos chaos`: real replicas under kills, pauses, bad networks and bad disks, every operation checked."""

from __future__ import annotations

import re
import secrets
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastpaxos.cli.cluster_process import check_room, interruptible, work_folder
from fastpaxos.cli.measure import describe_machine
from fastpaxos.cli.options import json_option, print_json, progress
from fastpaxos.errors import ConfigError
from fastpaxos.runtime import run as run_loop

if TYPE_CHECKING:
    from fastpaxos.testing.chaos import ChaosPlan, RoundReport

__all__ = ["chaos"]

FREE_BYTES_MIN = 4 << 30
SEED_FORM = re.compile(r"[A-Za-z0-9_-]{1,40}")
ROUND_S = 60.0
ROUND_SECONDS_MIN = 3.0
SUMMED = (
    "operations",
    "operations_checked",
    "operations_checked_by_clients_word",
    "keys_searched",
    "searches_given_up",
    "ok",
    "not_applied",
    "unknown",
    "kills",
    "pauses",
    "partitions",
    "fsync_errors",
    "bit_flips",
    "frame_bit_flips",
    "frames_broken",
    "leader_changes",
)
GREATEST = ("longest_gap_ms", "recovery_ms")


@click.command()
@click.option("--minutes", type=click.FloatRange(0.05, 10_080.0), default=1.0, show_default=True)
@click.option("--seed", type=str, help="Draw the same faults again; by default a new one. Timing is never the same.")
@click.option(
    "--round", "first_round", type=click.IntRange(1), default=1, help="Begin with this round of the seed, not with 1."
)
@click.option("--rate", type=click.FloatRange(1.0, 5_000.0), default=300.0, show_default=True, help="Calls per second.")
@click.option("--replicas", type=click.IntRange(3, 9), help="Members of the cluster; by default 3 and 5 in turn.")
@click.option("--keep", type=click.Path(path_type=Path), metavar="DIR", help="Keep everything in this new folder.")
@click.option(
    "--check",
    "evidence",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Run nothing; judge the calls of a failed round again, which its report names.",
)
@json_option
def chaos(
    minutes: float,
    seed: str | None,
    first_round: int,
    rate: float,
    replicas: int | None,
    keep: Path | None,
    evidence: Path | None,
    as_json: bool,
) -> int:
    """Break a real cluster in every way that it promises to survive, and check every operation of every client.

    Rounds of up to a minute follow each other, each with new replicas in processes of their own, real TCP through
    proxies that lose, delay and spoil, SIGKILL, SIGSTOP, failing fsync (with strace) and rotting journals. After each
    round all is healed; then it must commit again within 20 s, and all replicas must agree. The exit code is 0 only if
    no answer contradicts the log or another answer. A round that fails is kept in ./chaos-SEED-ROUND.
    """
    if evidence is not None:
        return check_again(evidence, as_json)
    from fastpaxos.testing.chaos import ChaosPlan

    if seed is not None and not SEED_FORM.fullmatch(seed):
        raise click.BadParameter(f"{seed!r} is no seed: 1 to 40 letters, digits, - and _", param_hint="--seed")
    plan = ChaosPlan(seed or secrets.token_hex(4), rate, replicas)
    with interruptible(), work_folder(keep) as folder:
        check_room(folder, FREE_BYTES_MIN)
        reports = run_loop(run_rounds(plan, first_round, 60.0 * minutes, folder, keep is not None))
    report = make_report(plan, minutes, reports)
    print_json(report) if as_json else print_report(report)
    return 0 if report["violations"] == 0 and report["operations_checked"] == report["operations"] > 0 else 1


async def run_rounds(plan: ChaosPlan, first_round: int, seconds: float, folder: Path, keep: bool) -> list[RoundReport]:
    """Play rounds until the time is over; the first one that finds a violation is the last."""
    from fastpaxos.testing.chaos import run_round

    reports: list[RoundReport] = []
    end = time.monotonic() + seconds
    while not reports or end - time.monotonic() > ROUND_SECONDS_MIN:
        number = first_round + len(reports)
        left = end - time.monotonic()
        # The last two share what is left, so that no round is too short to mean something.
        length = ROUND_S if left > 2 * ROUND_S else min(ROUND_S, left if left < 1.2 * ROUND_S else left / 2)
        place = folder / f"round-{number}"
        place.mkdir()
        report = await run_round(plan, number, length, place, progress)
        reports.append(report)
        progress(
            f"round {number}: {report.operations} operations, {report.operations_checked} checked, "
            f"{report.kills} kills, {len(report.violations)} violations"
        )
        if report.violations:
            keep_evidence(plan, number, place)
            break
        if not keep:
            shutil.rmtree(place)
    return reports


def evidence_folder(plan: ChaosPlan, number: int) -> Path:
    """Where a failed round is kept."""
    return Path.cwd() / f"chaos-{plan.seed}-{number}"


def repeat_command(plan: ChaosPlan, number: int) -> str:
    """The command that plays a round again: the same faults at the same times, though never the same interleaving."""
    replicas = f" --replicas {plan.replicas}" if plan.replicas is not None else ""
    return f"fastpaxos chaos --minutes 1 --seed {plan.seed} --round {number} --rate {plan.rate:g}{replicas}"


def keep_evidence(plan: ChaosPlan, number: int, place: Path) -> None:
    """Copy a failed round to where it stays: calls, log, events, the replicas' journals and logs."""
    shutil.copytree(place, evidence_folder(plan, number), dirs_exist_ok=True)


def make_report(plan: ChaosPlan, minutes: float, reports: list[RoundReport]) -> dict[str, Any]:
    """Add the rounds up."""
    maps = [report.to_map() for report in reports]
    violations = [f"round {report.number}: {text}" for report in reports for text in report.violations]
    scenes: dict[str, int] = {}
    for each in maps:
        for kind, count in each["scenes"].items():
            scenes[kind] = scenes.get(kind, 0) + count
    result: dict[str, Any] = {
        "minutes": minutes,
        "seconds": round(sum(each["seconds"] for each in maps), 1),
        "seed": plan.seed,
        "rate": plan.rate,
        "rounds": len(reports),
        "violations": len(violations),
        **{name: sum(each[name] for each in maps) for name in SUMMED},
        **{name: max(each[name] for each in maps) for name in GREATEST},
        "digests_equal": all(each["digests_equal"] for each in maps),
        "scenes": dict(sorted(scenes.items())),
        "setup": describe_machine(),
    }
    if strace_is_missing():
        result["note"] = "no fsync error was injected: strace is not installed, or may not trace processes here"
    if violations:
        folder = evidence_folder(plan, reports[-1].number)
        result |= {
            "found": violations,
            "evidence": str(folder),
            "check": f"fastpaxos chaos --check {folder}",
            "repeat": repeat_command(plan, reports[-1].number),
        }
    return result


def strace_is_missing() -> bool:
    """Whether fsync errors could not be injected."""
    from fastpaxos.testing.chaos.processes import strace_command

    return strace_command() is None


def print_report(report: dict[str, Any]) -> None:
    """Say the same to a person."""
    for name, value in report.items():
        if name not in ("setup", "found", "scenes"):
            click.echo(f"{name}: {value}")
    for text in report.get("found", ()):
        click.echo(f"VIOLATION {text}", err=True)


def check_again(folder: Path, as_json: bool) -> int:
    """Judge the calls that a round left behind, by the logs that it left behind."""
    from fastpaxos.testing.chaos import judge, read_evidence

    try:
        calls, logs, digests = read_evidence(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} does not hold what a failed round of chaos leaves behind: {error}") from error
    verdict = judge(calls, logs, digests)
    if as_json:
        print_json(
            {
                "operations": len(calls),
                "operations_checked": verdict.checked,
                "violations": len(verdict.problems),
                "found": verdict.problems,
            }
        )
    else:
        click.echo(f"{len(calls)} operations, {verdict.checked} checked, {len(verdict.problems)} violations")
        for problem in verdict.problems:
            click.echo(f"VIOLATION {problem}", err=True)
    return 1 if verdict.problems else 0
