"""What the subcommands have in common: the form of a cluster, JSON on stdout, progress on a terminal's stderr."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

from fastpaxos.config import parse_cluster
from fastpaxos.errors import ConfigError

__all__ = [
    "CLUSTER_FORM",
    "cluster_option",
    "json_option",
    "parse_cluster_option",
    "parse_numbers",
    "phase",
    "print_json",
    "progress",
]

CLUSTER_FORM = "1=HOST:PORT,2=HOST:PORT,..."


def parse_cluster_option(
    _context: click.Context, parameter: click.Parameter, value: str | None
) -> dict[int, str] | None:
    """The callback of `--cluster`: text in, {node id: "host:port"} out. What ConfigError says is a misuse."""
    if value is None:
        return None
    try:
        return parse_cluster(value)
    except ConfigError as error:
        raise click.BadParameter(str(error), param=parameter) from error


def parse_numbers(what: str, low: int, high: int) -> Callable[[click.Context, click.Parameter, str], list[int]]:
    """Return the callback of an option that takes numbers low..high, separated by commas; `what` is one of them."""

    def parse(_context: click.Context, _parameter: click.Parameter, value: str) -> list[int]:
        try:
            numbers = [int(part) for part in value.split(",")]
        except ValueError:
            raise click.BadParameter(f"{value!r} is no list of {what}s such as {low},{high}") from None
        if not all(low <= number <= high for number in numbers):
            raise click.BadParameter(f"{value!r} has a {what} outside {low}..{high}")
        return numbers

    return parse


cluster_option = click.option(
    "--cluster",
    callback=parse_cluster_option,
    required=True,
    envvar="FASTPAXOS_CLUSTER",
    metavar=CLUSTER_FORM,
    help="Members of the cluster; FASTPAXOS_CLUSTER stands in for it.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout and nothing else.")


def print_json(result: dict[str, Any]) -> None:
    """Print one object on stdout."""
    click.echo(json.dumps(result, ensure_ascii=False))


def progress(text: str) -> None:
    """Tell a person who watches what happens now; nobody else."""
    if sys.stderr.isatty():
        click.echo(text, err=True)


@contextlib.contextmanager
def phase(text: str, seconds: float) -> Iterator[None]:
    """Show a person who watches how far something is that takes `seconds`; it is silent for anybody else.

    The bar is drawn twice a second: what runs meanwhile is being measured.
    """
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
    from rich.progress_bar import ProgressBar

    class TimeBar(ProgressColumn):
        """The share of the time that is over; the work itself says nothing while it runs."""

        def render(self, task: Task) -> ProgressBar:
            return ProgressBar(total=seconds, completed=min(task.elapsed or 0.0, seconds), width=40)

    columns = (TextColumn("{task.description}"), TimeBar(), TimeElapsedColumn(), TextColumn(f"of {seconds:g} s"))
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=2, transient=True) as shown:
        shown.add_task(text, total=None)
        yield
