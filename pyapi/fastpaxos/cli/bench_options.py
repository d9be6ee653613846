"""What all loads of `bench` have in common: the options of cluster, load processes and measured time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click

from fastpaxos.cli.options import CLUSTER_FORM, json_option, parse_cluster_option
from fastpaxos.cli.report import html_option
from fastpaxos.config import DURABILITY_MODES

__all__ = ["Bench", "bench_options"]


@dataclass(frozen=True, slots=True)
class Bench:
    """What every load has in common: the cluster, the load processes, the measured time."""

    clients: int
    payload: int
    seconds: float
    warmup: float
    replicas: int
    durability: str
    load_processes: int
    connect: dict[int, str] | None
    keep: Path | None
    as_json: bool
    html: Path | None


def bench_options(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command the options of `Bench`; it is called with a Bench and its own options."""

    @functools.wraps(command)
    def with_bench(**options: Any) -> int:
        own = {field.name: options.pop(field.name) for field in fields(Bench)}
        common = Bench(**own)
        if common.load_processes > common.clients:
            raise click.UsageError(
                f"{common.load_processes} load processes need as many --clients, not {common.clients}"
            )
        return command(common, **options)

    for option in reversed(
        (
            click.option(
                "--payload", type=click.IntRange(0, 1_000_000), default=16, show_default=True, help="Bytes per command."
            ),
            click.option(
                "--seconds", type=click.FloatRange(0.1, 3600.0), default=10.0, show_default=True, help="Measured time."
            ),
            click.option(
                "--warmup", type=click.FloatRange(0.0, 60.0), default=1.0, show_default=True, help="Seconds before it."
            ),
            click.option("--replicas", type=click.IntRange(1, 9), default=3, show_default=True),
            click.option("--durability", type=click.Choice(DURABILITY_MODES), default="fsync", show_default=True),
            click.option("--load-processes", type=click.IntRange(1, 64), default=1, show_default=True),
            click.option(
                "--connect",
                callback=parse_cluster_option,
                metavar=CLUSTER_FORM,
                help="Load this cluster (hashchain machine).",
            ),
            click.option("--keep", type=click.Path(path_type=Path), help="Keep data and logs in this new folder."),
            json_option,
            html_option,
        )
    ):
        with_bench = option(with_bench)
    return with_bench
