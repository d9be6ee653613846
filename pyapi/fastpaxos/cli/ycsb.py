"""`fastpaxos bench ycsb`: the six core workloads of the Yahoo! Cloud Serving Benchmark on the key-value machine."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from fastpaxos.cli.cluster_process import (
    ClusterProcess,
    check_room,
    interruptible,
    journal_bytes_max,
    work_folder,
)
from fastpaxos.cli.key_choice import DISTRIBUTIONS
from fastpaxos.cli.kv import load_items
from fastpaxos.cli.latency import LatencyHistogram
from fastpaxos.cli.load_processes import (
    SETTLE_TIMEOUT_S,
    START_TIMEOUT_S,
    run_plan,
    run_processes,
)
from fastpaxos.cli.measure import describe_machine, fdatasync_us, loopback_us
from fastpaxos.cli.options import json_option, progress
from fastpaxos.cli.report import html_option, show_report
from fastpaxos.cli.status import wait_for
from fastpaxos.cli.ycsb_load import WRITE_BACKS, YcsbPlan, YcsbResult, run_ycsb_load
from fastpaxos.cli.ycsb_records import KEY_PREFIX, WORKLOADS, RecordForm, keys_of
from fastpaxos.client import Client
from fastpaxos.config import DURABILITY_MODES
from fastpaxos.kv import VALUE_BYTES_MAX, KeyValue, KeyValueClient
from fastpaxos.runtime import run as run_loop
from fastpaxos_core.block import crc32c

__all__ = ["ycsb", "ycsb_load"]

LOAD_TIMEOUT_S = 120.0
ALL = "all"


@click.command()
@click.option(
    "--workload",
    type=click.Choice([*sorted(WORKLOADS), ALL], case_sensitive=False),
    default=ALL,
    show_default=True,
    help=f"{ALL}: {', '.join(WORKLOADS)}, in this order.",
)
@click.option("--records", type=click.IntRange(1, 10_000_000), default=100_000, show_default=True, help="To load.")
@click.option("--fields", type=click.IntRange(1, 1000), default=10, show_default=True, help="Fields of a record.")
@click.option(
    "--field-bytes", type=click.IntRange(8, VALUE_BYTES_MAX), default=100, show_default=True, help="Bytes of a field."
)
@click.option("--distribution", type=click.Choice(DISTRIBUTIONS), help="Instead of the workload's own.")
@click.option(
    "--write-back",
    type=click.Choice(WRITE_BACKS),
    default=WRITE_BACKS[0],
    show_default=True,
    help="Of a read-modify-write: if unchanged, else again; or in any case, as YCSB itself.",
)
@click.option("--clients", type=click.IntRange(1, 4096), default=16, show_default=True, help="Sessions.")
@click.option(
    "--pipeline", type=click.IntRange(1, 4096), default=8, show_default=True, help="Operations each has open."
)
@click.option("--seconds", type=click.FloatRange(0.1, 3600.0), default=10.0, show_default=True, help="Measured time.")
@click.option("--warmup", type=click.FloatRange(0.0, 60.0), default=1.0, show_default=True, help="Seconds before it.")
@click.option("--replicas", type=click.IntRange(1, 9), default=3, show_default=True)
@click.option("--durability", type=click.Choice(DURABILITY_MODES), default="fsync", show_default=True)
@click.option("--load-processes", type=click.IntRange(1, 64), default=1, show_default=True)
@click.option("--keep", type=click.Path(path_type=Path), help="Keep data and logs in this new folder.")
@json_option
@html_option
def ycsb(
    workload: str,
    records: int,
    fields: int,
    field_bytes: int,
    distribution: str | None,
    write_back: str,
    clients: int,
    pipeline: int,
    seconds: float,
    warmup: float,
    replicas: int,
    durability: str,
    load_processes: int,
    keep: Path | None,
    as_json: bool,
    html: Path | None,
) -> int:
    """Run YCSB workloads A to F on the key-value machine; each on a new cluster that is loaded with RECORDS first.

    \b
    A  50% read, 50% update        D  95% read the latest, 5% insert
    B  95% read, 5% update         E  95% scan 1 to 100 records, 5% insert
    C  100% read                   F  50% read, 50% read-modify-write

    Reads and scans are linearizable. A record is one value: an update writes all of it; a read-modify-write replaces
    one field and stores the record if its revision is still the one that was read, else it tries again: hot records
    are fought for. Replicas and load run in processes of their own. The exit code is 1 if an operation failed, if an
    answer contradicts what was acknowledged, or if in the end the records are not exactly those that were
    acknowledged, on all replicas.
    """
    if load_processes > clients:
        raise click.UsageError(f"{load_processes} load processes need as many --clients, not {clients}")
    if fields * field_bytes > VALUE_BYTES_MAX:
        raise click.UsageError(f"a record of {fields} x {field_bytes} bytes exceeds {VALUE_BYTES_MAX} bytes")
    names = [*WORKLOADS] if workload == ALL else [workload]
    plan = YcsbPlan(
        {}, "", distribution or "", records, fields, field_bytes, clients, pipeline, seconds, warmup, write_back
    )
    with interruptible(), work_folder(keep) as folder:
        setup = describe_machine(folder) | {
            "records": records,
            "record_bytes": fields * field_bytes,
            "fields": fields,
            "write_back": write_back,
            "clients": clients,
            "pipeline": pipeline,
            "seconds": seconds,
            "warmup_seconds": warmup,
            "load_generator": "processes of its own",
            "load_processes": load_processes,
            "replicas": replicas,
            "durability": durability,
            "reads": "linearizable",
            "loopback_us": loopback_us(),
            "fdatasync_us": fdatasync_us(folder),
        }
        runs = []
        for name in names:
            home = folder / f"workload-{name.lower()}"
            home.mkdir()
            check_room(home, bytes_max(plan, replicas))
            with ClusterProcess(home, replicas, "kv", durability) as processes:
                this = replace(
                    plan,
                    cluster=processes.cluster,
                    workload=name,
                    distribution=distribution or WORKLOADS[name].distribution,
                )
                runs.append(measure_workload(this, load_processes))
                processes.check_running()
            if keep is None:
                shutil.rmtree(home)
    report = {
        "benchmark": "ycsb",
        "rows": [row for run in runs for row in run.pop("rows")],
        "workloads": runs,
        "verdict": all(run["verdict"] for run in runs),
        "setup": setup,
    }
    show_report(report, as_json=as_json, html=html, print_text=print_ycsb)
    return 0 if report["verdict"] else 1


@click.command("ycsb-load", hidden=True)
@click.argument("plan_json")
def ycsb_load(plan_json: str) -> int:
    """Run one load process of `bench ycsb`; the result is JSON on stdout."""

    async def work(fields: dict[str, Any]) -> dict[str, Any]:
        return (await run_ycsb_load(YcsbPlan(**fields))).to_map()

    return run_plan(plan_json, work)


def bytes_max(plan: YcsbPlan, replicas: int) -> int:
    """What the load phase and the workload may write, generously: single operations do not fill a disk."""
    record_bytes = plan.fields * plan.field_bytes
    return (
        replicas * plan.records * (record_bytes + 128)
        + journal_bytes_max(replicas, plan.seconds + plan.warmup_s, record_bytes) // 4
    )


def split_ycsb_plan(plan: YcsbPlan, processes: int) -> list[YcsbPlan]:
    """Share the sessions of a plan among load processes, as evenly as they go."""
    return [
        replace(
            plan,
            clients=plan.clients // processes + (number < plan.clients % processes),
            process=number,
            processes=processes,
        )
        for number in range(processes)
    ]


def measure_workload(plan: YcsbPlan, load_processes: int) -> dict[str, Any]:
    """Load the records, run the workload, look for all that was acknowledged; the operations are under "rows"."""
    progress(f"workload {plan.workload}: loading {plan.records:,} records")
    load_s = run_loop(load_records(plan))
    progress(f"workload {plan.workload}: measuring for {plan.seconds:g} s")
    found = run_processes("ycsb-load", [asdict(part) for part in split_ycsb_plan(plan, load_processes)])
    results = [YcsbResult.from_map(fields) for fields in found]
    rows = describe_rows(plan, results)
    check = run_loop(check_records(plan, results))
    errors = rows[-1]["errors"]
    measured = {row["kind"]: row["operations"] for row in rows}
    report: dict[str, Any] = {
        "workload": plan.workload,
        "distribution": plan.distribution,
        "load_seconds": round(load_s, 3),
        "loaded_per_second": round(plan.records / load_s),
        "errors": errors,
        "error_texts": [text for result in results for text in result.error_texts],
        "retries": sum(result.retries for result in results),
    }
    if scans := measured.get("scan"):
        report["entries_per_scan"] = round(sum(result.entries for result in results) / scans, 1)
    return report | check | {"verdict": is_right(errors, check), "rows": rows}


async def load_records(plan: YcsbPlan) -> float:
    """Put all records in order; return the seconds that it took."""
    async with Client(plan.cluster) as client:
        await wait_for(client, plan.cluster, "the election of a leader", START_TIMEOUT_S, leader=True)
        begin = time.perf_counter()
        items = RecordForm(plan.fields, plan.field_bytes).loaded(plan.records)
        await load_items(KeyValueClient(client), items, LOAD_TIMEOUT_S)
        return time.perf_counter() - begin


def describe_rows(plan: YcsbPlan, results: list[YcsbResult]) -> list[dict[str, Any]]:
    """One row for each kind of operation of the workload, and one for all."""
    rows = []
    total = LatencyHistogram()
    for kind in WORKLOADS[plan.workload].mix:
        histogram = LatencyHistogram()
        parts = [result.kinds[kind] for result in results]
        for part in parts:
            histogram.merge(LatencyHistogram.from_sparse(part.latency))
        total.merge(histogram)
        measured, errors = sum(part.measured for part in parts), sum(part.errors for part in parts)
        rows.append(describe_row(plan, kind, measured, errors, histogram))
    measured, errors = (sum(row[name] for row in rows) for name in ("operations", "errors"))
    return [*rows, describe_row(plan, "all", measured, errors, total)]


def describe_row(plan: YcsbPlan, kind: str, measured: int, errors: int, histogram: LatencyHistogram) -> dict[str, Any]:
    """One kind of operation of one workload."""
    return {
        "workload": plan.workload,
        "kind": kind,
        "operations": measured,
        "operations_per_second": round(measured / plan.seconds),
        "latency_us": histogram.percentiles_us(),
        "histogram": histogram.to_hdr(),
        "errors": errors,
    }


# --- what must be there in the end ------------------------------------------------------------------------------------


def is_right(errors: int, check: Mapping[str, Any]) -> bool:
    """Every operation was answered, and the records are exactly what was acknowledged, everywhere."""
    return errors == 0 and check["wrong"] == 0 and check["changes"] == check["acknowledged"] and check["digests_equal"]


async def check_records(plan: YcsbPlan, results: list[YcsbResult]) -> dict[str, Any]:
    """Read every record back and compare it with what was acknowledged last, by revision and content."""
    async with Client(plan.cluster) as client:
        statuses = await wait_for(client, plan.cluster, "catching up", SETTLE_TIMEOUT_S, leader=False)
        entries = [entry async for entry in KeyValueClient(client).scan(KEY_PREFIX, timeout=LOAD_TIMEOUT_S)]
    return {
        "acknowledged": plan.records + sum(result.changes for result in results),
        # Nothing is deleted, so that versions count all changes there ever were.
        "changes": sum(entry.version for entry in entries),
        "records_checked": len(entries),
        "wrong": count_wrong(entries, expected_records(plan, results)),
        "digests_equal": len({entry["digest"] for entry in statuses}) == 1,
    }


def expected_records(plan: YcsbPlan, results: list[YcsbResult]) -> dict[bytes, tuple[int, int]]:
    """The (revision, CRC32C of the value) of each key after its last acknowledged change."""
    form = RecordForm(plan.fields, plan.field_bytes)
    # One client loaded the records in order into an empty machine: that gave the revisions.
    known = {number: (number + 1, crc32c(value)) for number, (_, value) in enumerate(form.loaded(plan.records))}
    for result in results:
        for number, revision, crc in result.written:
            known[number] = max(known.get(number, (0, 0)), (revision, crc))
    return dict(zip(keys_of(known), known.values(), strict=True))


def count_wrong(entries: Iterable[KeyValue], expected: dict[bytes, tuple[int, int]]) -> int:
    """How many records are missing, are there without being expected, or are not what they should be."""
    missing = dict(expected)
    wrong = 0
    for entry in entries:
        wrong += missing.pop(entry.key, None) != (entry.mod_revision, crc32c(entry.value))
    return wrong + len(missing)


def print_ycsb(report: dict[str, Any]) -> None:
    """Print the report for people."""
    columns = ("ops/s", "p50 us", "p99 us", "p99.9 us", "max us", "errors")
    click.echo(f"{'':<3}{'operation':<18}" + " ".join(f"{name:>11}" for name in columns))
    for row in report["rows"]:
        latency = row["latency_us"]
        click.echo(
            f"{row['workload']:<3}{row['kind']:<18}{row['operations_per_second']:>11,} "
            + " ".join(f"{latency[name]:>11,.0f}" for name in ("p50", "p99", "p999", "max"))
            + f" {row['errors']:>11,}"
        )
    for run in report["workloads"]:
        click.echo(
            f"{run['workload']}: {run['loaded_per_second']:,} records/s loaded, {run['acknowledged']:,} changes "
            f"acknowledged, {run['changes']:,} there, {run['records_checked']:,} records read back, "
            f"{run['wrong']:,} wrong, {run['retries']:,} swaps tried again"
        )
        for text in run["error_texts"]:
            click.echo(f"   {text}")
    click.echo("setup:")
    for name, value in report["setup"].items():
        click.echo(f"  {name}: {value}")
