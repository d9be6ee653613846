"""`fastpaxos demo`: real replicas under load lose their leader to SIGKILL, and nothing else.

The verdict does not trust the replicas: when they are stopped, their journals are read by `replay` and compared with
what the load had acknowledged to it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from fastpaxos.cli.cluster_process import ClusterProcess, check_room, interruptible, journal_bytes_max, work_folder
from fastpaxos.cli.demo_run import FREE_BYTES_MIN, DemoRun, run_demo
from fastpaxos.cli.demo_view import DemoView, print_verdict
from fastpaxos.cli.journal import replica_batches
from fastpaxos.cli.latency import LatencyHistogram
from fastpaxos.cli.ledger import IDENTITY_BYTES, Ledger
from fastpaxos.cli.measure import describe_machine
from fastpaxos.cli.options import json_option, print_json
from fastpaxos.cli.replay import Replay, judge, replay
from fastpaxos.cli.status import Statuses
from fastpaxos.errors import FastPaxosError
from fastpaxos.runtime import run as run_loop

__all__ = ["demo"]

SESSIONS = 4
DURABILITY = "fsync"


@click.command()
@click.option("--replicas", type=click.IntRange(3, 9), default=3, show_default=True)
@click.option("--seconds", type=click.FloatRange(2.0, 600.0), default=10.0, show_default=True, help="Time under load.")
@click.option(
    "--payload",
    type=click.IntRange(IDENTITY_BYTES, 64 * 1024),
    default=16,
    show_default=True,
    help="Bytes per command; the first 16 make it unique.",
)
@click.option("--no-kill-leader", is_flag=True, help="Let the leader live.")
@click.option("--keep", type=click.Path(path_type=Path), metavar="DIR", help="Keep data and logs in this new folder.")
@json_option
def demo(replicas: int, seconds: float, payload: int, no_kill_leader: bool, keep: Path | None, as_json: bool) -> int:
    """Run replicas in processes of their own, with fsync, under load; kill the leader; show that nothing is lost.

    The leader gets SIGKILL in the middle and is restarted from its disk later. At the end every acknowledged command
    must be in every replica exactly once, in one order: the exit code is 0 only then.
    """
    with interruptible(), work_folder(keep) as folder:
        check_room(folder, FREE_BYTES_MIN + journal_bytes_max(replicas, seconds, payload))
        with ClusterProcess(folder, replicas, "hashchain", DURABILITY) as processes:
            ledger = Ledger(run=int.from_bytes(os.urandom(4), "little"), sessions=SESSIONS)
            run = DemoRun(processes, ledger, payload, seconds, kill_leader=not no_kill_leader)
            with DemoView(run) as view:
                final = run_loop(run_demo(run, view))
                processes.check_running()
                view.say("stopping the replicas")
                exit_codes = processes.stop()
                view.say("reading their journals")
                replays = read_journals(run, final)
        report = make_report(run, final, replays)
        report["clean_stops"] = sum(code == 0 for code in exit_codes.values())
        if keep is not None:
            report["kept_in"] = str(folder)
    print_json(report) if as_json else print_verdict(report)
    return 0 if report["verdict"] == "passed" else 1


def read_journals(run: DemoRun, final: Statuses) -> dict[int, Replay]:
    """Replay what every replica applied, from its disk."""
    replays = {}
    for entry in final:
        node_id, applied_index = entry["id"], entry["applied_index"]
        batches = replica_batches(run.processes.data_dir(node_id), applied_index)
        result = replay(batches, run.ledger, run.payload_bytes)
        if result.applied_index != applied_index:
            raise FastPaxosError(
                f"replica {node_id} had applied {applied_index} slots, its journal holds {result.applied_index}"
            )
        replays[node_id] = result
    return replays


def make_report(run: DemoRun, final: Statuses, replays: dict[int, Replay]) -> dict[str, Any]:
    """Join what the load saw, what the replicas said and what their journals hold."""
    histogram = LatencyHistogram()
    histogram.record(run.latencies_ns)
    verdict = judge(run.ledger, replays, {entry["id"]: entry["digest"] for entry in final})
    passed = verdict.is_sound and verdict.acknowledged > 0 and (run.leader_kills >= 1 or not run.kill_leader)
    return {
        "verdict": "passed" if passed else "failed",
        "acknowledged": verdict.acknowledged,
        "lost": verdict.lost,
        "duplicated": verdict.duplicated,
        "foreign": verdict.foreign,
        "digests_equal": verdict.digests_equal,
        "outcome_unknown": run.ledger.unknown,
        "leader_kills": run.leader_kills,
        "unavailable_ms": run.ledger.longest_gap_ms(),
        "commands_per_second": round(verdict.acknowledged / run.load_seconds),
        "latency_us": histogram.percentiles_us(),
        "durability": DURABILITY,
        "replicas": len(run.processes.cluster),
        "payload_bytes": run.payload_bytes,
        "resent_and_dropped": max(result.dropped for result in replays.values()),
        "applied_index": final[0]["applied_index"],
        "digest": final[0]["digest"],
        "setup": describe_machine() | {"seconds": run.seconds} | run.load_setup(),
    }
