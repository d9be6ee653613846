"""`fastpaxos bench report` and the option `--html`: what a benchmark prints, and the page that is made of it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import click

from fastpaxos.cli.options import print_json, progress

__all__ = ["html_option", "report_command", "show_report", "write_page"]

LIBRARIES = {"matplotlib": "matplotlib", "hdrh": "hdrhistogram"}  # module: what it is called where it is installed
PNG_FOLDER = click.Path(file_okay=False, path_type=Path)


def check_libraries() -> None:
    """Raise UsageError unless plots can be drawn: before a benchmark runs, not after it."""
    missing = [name for module, name in LIBRARIES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise click.UsageError(f"a report needs {' and '.join(missing)}: pip install 'fastpaxos[bench]'")


def check_html(_context: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    """The callback of `--html`."""
    if value is None:
        return None
    if not value.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder {value.parent}", param=parameter)
    check_libraries()
    return value


html_option = click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=check_html,
    metavar="FILE",
    help="Write the report as a page that needs nothing else.",
)


def show_report(
    report: dict[str, Any], *, as_json: bool, html: Path | None, print_text: Callable[[dict[str, Any]], None]
) -> None:
    """Print the report of one benchmark, as JSON or for people, and write its page if one is wanted."""
    if as_json:
        print_json(report)
    else:
        print_text(report)
    if html is not None:
        write_page([report], html, None)


def write_page(reports: Sequence[dict[str, Any]], html: Path | None, png: Path | None) -> None:
    """Write the reports as one page, and every plot as a PNG file into the folder `png`, which is made if needed."""
    from fastpaxos.cli.page import make_page
    from fastpaxos.cli.plots import plots_of, to_png

    plots = [plots_of(report) for report in reports]
    if html is not None:
        html.write_text(make_page(reports, plots), encoding="utf-8")
        progress(f"wrote {html}")
    if png is not None:
        png.mkdir(parents=True, exist_ok=True)
        for number, (report, drawn) in enumerate(zip(reports, plots, strict=True), 1):
            for plot in drawn:
                to_png(plot, png / f"{number}-{report['benchmark']}-{plot.name}.png")
        progress(f"wrote {sum(map(len, plots))} PNG files into {png}")


def read_reports(file: TextIO) -> list[dict[str, Any]]:
    """The reports in a file: one object as a benchmark prints it, or a list of such. Raises UsageError."""
    try:
        found = json.load(file)
    except ValueError as error:
        raise click.UsageError(f"{file.name} is no JSON: {error}") from error
    reports = found if isinstance(found, list) else [found]
    if not reports or not all(isinstance(report, dict) and "benchmark" in report for report in reports):
        raise click.UsageError(f"{file.name} is not what `fastpaxos bench ... --json` prints: it names no benchmark")
    return reports


@click.command("report")
@click.argument("files", nargs=-1, required=True, type=click.File("r", encoding="utf-8"))
@html_option
@click.option("--png", type=PNG_FOLDER, metavar="FOLDER", help="Write every plot as a PNG file into this folder.")
def report_command(files: Sequence[TextIO], html: Path | None, png: Path | None) -> int:
    """Make one page, or PNG files, of the JSON that benchmarks printed; `-` is standard input.

    The page needs no network and no other file. It has the figures, the plots and the setup of each benchmark.
    """
    if html is None and png is None:
        raise click.UsageError("name what to write: --html FILE, --png FOLDER or both")
    check_libraries()
    write_page([report for file in files for report in read_reports(file)], html, png)
    return 0
