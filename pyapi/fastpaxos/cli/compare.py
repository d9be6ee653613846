"""`fastpaxos bench compare`: fastpaxos, its floor and other systems, on this machine, in turns."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from fastpaxos.cli.cluster_process import check_room, interruptible, journal_bytes_max, work_folder
from fastpaxos.cli.measure import describe_machine, fdatasync_us, loopback_us
from fastpaxos.cli.options import json_option, progress
from fastpaxos.cli.peers.etcd import Etcd
from fastpaxos.cli.peers.floor import Floor
from fastpaxos.cli.peers.peer import INSTALL_ALL, DisturbedError, Peer, PeerPlan
from fastpaxos.cli.peers.pysyncobj import PySyncObj
from fastpaxos.cli.peers.redis import Redis
from fastpaxos.cli.peers.replicas import FastPaxos
from fastpaxos.cli.report import html_option, show_report

__all__ = ["Row", "compare", "make_report", "take_turns"]

REPLICAS = 3
WARMUP_S_MAX = 1.0
REASON_CHARACTERS = 500
REPEATS_MAX = 3


def all_peers() -> list[Peer]:
    """A name without suffix: the fastest way of sending commands that the system has; `-single`: one by one."""
    return [
        Floor("floor", "fastpaxos", "fsync"),
        FastPaxos("fastpaxos", "fastpaxos", "fsync", blocks=True),
        FastPaxos("fastpaxos-single", "fastpaxos-single", "fsync", blocks=False),
        Floor("floor-memory", "fastpaxos-memory", "memory"),
        FastPaxos("fastpaxos-memory", "fastpaxos-memory", "memory", blocks=True),
        PySyncObj("pysyncobj", "fastpaxos", best=False),
        PySyncObj("pysyncobj-best", "fastpaxos", best=True),
        Etcd("etcd", "fastpaxos", transactions=True),
        Etcd("etcd-single", "fastpaxos-single", transactions=False),
        Redis("redis", "fastpaxos", pipelined=True),
        Redis("redis-single", "fastpaxos-single", pipelined=False),
    ]


PEER_NAMES = [peer.name for peer in all_peers()]


@dataclass(slots=True)
class Row:
    """A system and what its turns gave."""

    peer: Peer
    version: str | None = None
    install: str | None = None
    failure: str | None = None
    disturbed: list[str] = field(default_factory=list)
    commands_per_second: list[float] = field(default_factory=list)
    p50_us: list[float] = field(default_factory=list)
    p99_us: list[float] = field(default_factory=list)

    @property
    def status(self) -> str:
        """measured, not installed, or failed."""
        if self.install is not None:
            return "not installed"
        return "measured" if self.failure is None else "failed"

    def attempt(self, step: Callable[[Path, PeerPlan], None], folder: Path, plan: PeerPlan) -> None:
        """One step in a folder of its own, which goes with it; again if it was disturbed, but not for ever. What else
        the step raises becomes the row's reason, and the row gets no further step."""
        if self.status != "measured":
            return
        while True:
            try:
                with tempfile.TemporaryDirectory(dir=folder, prefix=f"{self.peer.name}-") as place:
                    step(Path(place), plan)
            except DisturbedError as error:
                self.disturbed.append(reason(error))
                if len(self.disturbed) <= REPEATS_MAX:
                    progress(f"{self.peer.name} again: {self.disturbed[-1]}")
                    continue
                self.failure = self.disturbed[-1]
            except Exception as error:
                self.failure = reason(error)
            break
        if self.failure is not None:
            progress(f"{self.peer.name} failed: {self.failure}")

    def tune(self, folder: Path, plan: PeerPlan) -> None:
        """Find out whether the peer is here, and let it choose its settings."""
        self.install = self.peer.missing()
        if self.install is None:
            self.version = self.peer.version()
            self.peer.tune(folder, plan)

    def turn(self, folder: Path, plan: PeerPlan) -> None:
        """Start the peer, measure it, and stop it. A turn counts only if all of it went well."""
        with self.peer.running(folder, plan) as running:
            commands_per_second = running.throughput()
            latency = running.latency()
        self.commands_per_second.append(commands_per_second)
        self.p50_us.append(latency["p50"])
        self.p99_us.append(latency["p99"])


def reason(error: Exception) -> str:
    """What an error says, cut to what a row can hold."""
    return f"{type(error).__name__}: {error}"[:REASON_CHARACTERS]


def take_turns(peers: Sequence[Peer], plan: PeerPlan, rounds: int, folder: Path) -> list[Row]:
    """Measure every peer once in each round, so that a machine that slows down meanwhile is unkind to all alike."""
    rows = [Row(peer) for peer in peers]
    for row in rows:
        progress(f"looking for {row.peer.name} and its settings")
        row.attempt(row.tune, folder, plan)
    for number in range(1, rounds + 1):
        for row in rows:
            progress(f"round {number} of {rounds}: {row.peer.name}")
            row.attempt(row.turn, folder, plan)
    return rows


@click.command()
@click.option("--payload", type=click.IntRange(1, 1_000_000), default=16, show_default=True, help="Bytes per command.")
@click.option("--rounds", type=click.IntRange(1, 1000), default=5, show_default=True, help="Turns of each system.")
@click.option(
    "--seconds", type=click.FloatRange(0.1, 60.0), default=4.0, show_default=True, help="Measured time of each turn."
)
@click.option("--clients", type=click.IntRange(1, 1024), default=64, show_default=True, help="Connections.")
@click.option("--only", type=click.Choice(PEER_NAMES), multiple=True, metavar="NAME", help="Only this one; repeatable.")
@json_option
@html_option
def compare(
    payload: int, rounds: int, seconds: float, clients: int, only: tuple[str, ...], as_json: bool, html: Path | None
) -> int:
    """Measure fastpaxos, its floor and other systems in turns: throughput, and the latency of one command alone.

    Every system runs on this machine, with the same payload, and synced to disk where it can be; each turn starts it
    anew and removes its data. Figures are medians of all rounds. A system that is not installed has a row with the
    command that installs it; the exit code is 1 if a system failed.

    \b
    NAME is one of:
      floor, floor-memory          the same hops and disk without consensus
      fastpaxos, fastpaxos-memory  blocks of commands
      fastpaxos-single             one command in flight per connection
      pysyncobj, pysyncobj-best    default settings, and the best found
      etcd, etcd-single            transactions of many puts, and single puts
      redis, redis-single          one node; pipelined, and single commands
    """
    peers = [peer for peer in all_peers() if not only or peer.name in only]
    plan = PeerPlan(payload, clients, seconds, min(WARMUP_S_MAX, seconds))
    with interruptible(), work_folder(None) as folder:
        # One system runs at a time, and its data is gone before the next.
        check_room(folder, journal_bytes_max(REPLICAS, plan.turn_s, payload))
        setup = describe_machine(folder) | {
            "replicas": REPLICAS,
            "load_generator": "processes of its own",
            "payload_bytes": payload,
            "rounds": rounds,
            "seconds": seconds,
            "clients": clients,
            "loopback_us": loopback_us(),
            "fdatasync_us": fdatasync_us(folder),
        }
        rows = take_turns(peers, plan, rounds, folder)
    report = make_report(rows, plan, setup)
    show_report(report, as_json=as_json, html=html, print_text=print_compare)
    return 0 if report["verdict"] else 1


def make_report(rows: Sequence[Row], plan: PeerPlan, setup: dict[str, object]) -> dict[str, Any]:
    """The report; each row says how much faster the fastpaxos row is that it is compared with."""
    by_name = {row.peer.name: row for row in rows}
    return {
        "benchmark": "compare",
        "rows": [describe_row(row, by_name.get(row.peer.reference), plan) for row in rows],
        "setup": setup,
        "verdict": all(row.status != "failed" for row in rows),
    }


def describe_row(row: Row, reference: Row | None, plan: PeerPlan) -> dict[str, Any]:
    """One row: what it is, and what was measured of it."""
    peer = row.peer
    described: dict[str, Any] = {"name": peer.name, "status": row.status}
    if row.install is not None:
        described["install"] = [INSTALL_ALL, row.install]
    if row.failure is not None:
        described["reason"] = row.failure
    if row.disturbed:
        described["disturbed"] = row.disturbed
    described |= {
        "version": row.version,
        "settings": peer.settings(),
        "durability": peer.durability,
        "nodes": peer.nodes,
        "load": peer.load(plan),
    }
    if not row.commands_per_second:
        return described
    described["commands_per_second"] = {
        "median": round(statistics.median(row.commands_per_second)),
        "runs": [round(value) for value in row.commands_per_second],
    }
    described["latency_us"] = {
        "p50": round(statistics.median(row.p50_us), 1),
        "p99": round(statistics.median(row.p99_us), 1),
        "p50_runs": row.p50_us,
        "p99_runs": row.p99_us,
    }
    if reference is not None and reference is not row:
        described["fastpaxos_faster"] = {
            "reference": peer.reference,
            "throughput": paired_ratio(reference.commands_per_second, row.commands_per_second),
            "p50": paired_ratio(row.p50_us, reference.p50_us),
        }
    return described


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float | None:
    """The median of the ratios within each round; None where nothing can be compared."""
    ratios = [above / below for above, below in zip(numerators, denominators, strict=False) if below > 0]
    return float(f"{statistics.median(ratios):.3g}") if ratios else None


def print_compare(report: dict[str, Any]) -> None:
    """Print the report for people."""
    columns = ("commands/s", "p50 us", "p99 us", "x faster", "x p50")
    click.echo(f"{'':<18}{'durability':>11}{'nodes':>6} " + "".join(f"{name:>13}" for name in columns))
    for row in report["rows"]:
        click.echo(f"{row['name']:<18}{row['durability']:>11}{row['nodes']:>6} " + describe_figures(row))
    click.echo(
        "x: how much faster fastpaxos is (fastpaxos-single, fastpaxos-memory) than the row; below 1 it is slower"
    )
    for row in report["rows"]:
        if row["status"] == "measured":
            click.echo(f"{row['name']} {row['version']}: {row['load']}; {row['settings']}")
    click.echo("setup:")
    for name, value in report["setup"].items():
        click.echo(f"  {name}: {value}")


def describe_figures(row: dict[str, Any]) -> str:
    """The figures of a row, or why there are none."""
    if row["status"] == "not installed":
        return f"  not installed: {', or '.join(row['install'])}"
    if row["status"] == "failed":
        return f"  failed: {row['reason']}"
    latency = row["latency_us"]
    text = f"{row['commands_per_second']['median']:>13,}{latency['p50']:>13,.1f}{latency['p99']:>13,.1f}"
    faster = row.get("fastpaxos_faster", {})
    return text + "".join(f"{faster[name]:>13,g}" for name in ("throughput", "p50") if faster.get(name) is not None)
