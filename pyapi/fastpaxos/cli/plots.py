"""The plots of a benchmark report, drawn from its JSON. matplotlib is imported here and nowhere else.

Colours mean the same in every plot: see `SERIES` and `DURABILITY`. Ink and grid are replaced by the page's own colours
where a plot stands in a page, so that it reads on a dark ground as well.
"""

from __future__ import annotations

import io
import math
import re
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, FixedFormatter, FixedLocator, NullFormatter, NullLocator

from fastpaxos.cli.latency import LatencyHistogram

__all__ = ["Plot", "plots_of", "to_png", "to_svg"]

INK, MUTED, GRID = "#24292f", "#6e7781", "#d8dee4"
PAGE_COLOURS = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)"}
BLUE, ORANGE, RED, GREEN, VIOLET, TEAL = "#3b7dd8", "#e08a2c", "#d1495b", "#2f9e6e", "#8f6fc4", "#2a9db0"
SERIES = {"p50": BLUE, "p99": ORANGE, "p999": RED, "max": VIOLET}
SERIES_NAMES = {"p50": "p50", "p99": "p99", "p999": "p99.9", "max": "maximum"}
DURABILITY = {"fsync": BLUE, "write": GREEN, "memory": ORANGE}
CYCLE = (BLUE, ORANGE, GREEN, RED, VIOLET, TEAL)
LIGHT_TO_DARK = LinearSegmentedColormap.from_list("shares", ["#7fb2f0", BLUE, VIOLET, RED])
STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 24,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.8,
    "svg.fonttype": "path",
    "svg.hashsalt": "fastpaxos",
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}
WIDTH, HEIGHT = 7.6, 3.9
ROWS_HEIGHT, ROW_HEIGHT = 1.5, 0.45  # of bars: for all of them, and for each
PNG_DOTS_PER_INCH = 160
PERCENTILE_POINTS = 400
ROW_RESULTS = {"status", "durability", "histogram"}
ROW_SETTINGS = {"payload_bytes": "{:,} bytes", "batch": "batch {:,}", "clients": "{:,} clients"}
RATES = ("commands_per_second", "operations_per_second")
LABEL_LETTERS_MAX = 40
LABEL_STEPS_BELOW, MORE_STEPS_BELOW = 400.0, 8.0  # times that a logarithmic axis spans
LOG_SCALE_FROM = 20.0  # bars whose lengths differ by more stand on a logarithmic axis
SECONDS = EngFormatter(unit="s")
RATE = EngFormatter(sep="")
SHORT_RATE = EngFormatter(sep="", places=1)


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot: `name` is fit for a file name, `title` says what it shows."""

    name: str
    title: str
    figure: Figure


def plots_of(report: Mapping[str, Any]) -> list[Plot]:
    """Every plot that the report of one benchmark has data for."""
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]  # the stubs list every key by name
        plots = PLOTS.get(str(report["benchmark"]), other_plots)(report)
        for plot in plots:
            # A PNG file goes where no page says what it was measured with.
            plot.figure.axes[0].annotate(
                describe_setup(report.get("setup", {})),
                (0, 1),
                xycoords="axes fraction",
                xytext=(0, 8),
                textcoords="offset points",
                color=MUTED,
                fontsize=7.5,
            )
    return plots


def describe_setup(setup: Mapping[str, Any]) -> str:
    """What a figure depends on most, in one line."""
    words = [
        f"{setup['replicas']} replica{'s' * (setup['replicas'] != 1)}" if "replicas" in setup else None,
        setup.get("durability"),
        f"{setup['payload_bytes']:,} bytes" if "payload_bytes" in setup else None,
        f"batch {setup['batch']:,}" if "batch" in setup else None,
        setup.get("cpu"),
        f"{setup['cores']} cores" if "cores" in setup else None,
        f"{setup['build']} build" if "build" in setup else None,
        setup["commit"][:9] + setup["commit"][40:] if setup.get("commit") else None,
    ]
    return " \N{MIDDLE DOT} ".join(str(word) for word in words if word)


def to_svg(plot: Plot) -> str:
    """The plot as an <svg> element for a page that defines --ink, --muted and --grid."""
    text = io.StringIO()
    with mpl.rc_context(STYLE | {"svg.hashsalt": f"fastpaxos {plot.name}"}):  # type: ignore[arg-type]
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        plot.figure.savefig(text, format="svg", facecolor="none", metadata=nothing)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{escape(plot.title)}" ', 1)
    for colour, variable in PAGE_COLOURS.items():
        svg = svg.replace(colour, variable)
    return re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)


def to_png(plot: Plot, file: Path) -> None:
    """Write the plot on a white ground."""
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        plot.figure.savefig(file, format="png", facecolor="white", dpi=PNG_DOTS_PER_INCH)


def one_axes(title: str, height: float = HEIGHT) -> tuple[Figure, Axes]:
    """A figure with one pair of axes."""
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_subplot()
    axes.set_title(title)
    return figure, axes


def latency_axis(axes: Axes, label: str = "latency") -> None:
    """A logarithmic axis of seconds up the side."""
    axes.set_yscale("log")
    axes.set_ylim(logarithmic_ticks(axes.yaxis, *axes.get_ylim()))
    axes.set_ylabel(label)


def logarithmic_ticks(axis: Axis, low: float, high: float) -> tuple[float, float]:
    """Label 1, 2 and 5 of each power of ten where there is room, else the powers; return the limits to set."""
    steps: tuple[int, ...] = (1,)
    if high / low < LABEL_STEPS_BELOW:
        steps = (1, 2, 5) if high / low > MORE_STEPS_BELOW else (1, 2, 3, 5, 7)
    axis.set_major_locator(FixedLocator([step * 10.0**power for power in range(-9, 5) for step in steps]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(SECONDS)
    return low, high


def percentile_plot(named: Mapping[str, str], title: str, name: str = "percentiles") -> list[Plot]:
    """Latency against percentile, one line for each encoded histogram; nothing without any."""
    histograms = {label: LatencyHistogram.from_hdr(text) for label, text in named.items() if text}
    histograms = {label: histogram for label, histogram in histograms.items() if histogram.samples}
    if not histograms:
        return []
    figure, axes = one_axes(title)
    last = 10.0
    for number, (label, histogram) in enumerate(histograms.items()):
        # Against 1 / (1 - quantile) each further nine takes the same width.
        end = 2.0 * histogram.samples
        last = max(last, end)
        inverse = np.geomspace(1.0, end, PERCENTILE_POINTS)
        values = np.array(histogram.percentiles_ns((100.0 - 100.0 / inverse).tolist())) / 1e9
        many = len(histograms) > len(CYCLE)
        colour = LIGHT_TO_DARK(number / (len(histograms) - 1)) if many else CYCLE[number]
        axes.step(inverse, values, where="post", label=label, color=colour)
    axes.set_xscale("log")
    ticks = [1.0, 2.0, *(10.0**power for power in range(1, math.floor(math.log10(last)) + 1))]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{100.0 - 100.0 / tick:.8g}%" for tick in ticks]))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(1.0, last)
    axes.set_xlabel("percentile")
    latency_axis(axes)
    if len(histograms) > 1:
        figure.legend(loc="outside lower center", ncols=min(4, len(histograms)))
    return [Plot(name, title, figure)]


def load_plots(report: Mapping[str, Any]) -> list[Plot]:
    """`closed` and `open`."""
    what = "block" if report["setup"].get("batch", 1) > 1 else "command"
    if report["benchmark"] == "open":
        what = f"{what}, from when it was due"
    plots = percentile_plot({"all": report.get("histogram") or ""}, f"Latency of a {what}")
    per_second = report.get("per_second", [])
    if len(per_second) > 1:
        title = "Throughput, second by second"
        figure, axes = one_axes(title)
        axes.stairs(per_second, np.arange(len(per_second) + 1), fill=True, color=BLUE, alpha=0.35)
        axes.stairs(per_second, np.arange(len(per_second) + 1), color=BLUE)
        axes.set_xlim(0, len(per_second))
        axes.set_ylim(0, max(1, *per_second) * 1.15)
        axes.yaxis.set_major_formatter(RATE)
        axes.set_xlabel("measured time (s)")
        axes.set_ylabel("commands/s")
        plots.append(Plot("per-second", title, figure))
    return plots


def floor_plots(report: Mapping[str, Any]) -> list[Plot]:
    """`floor`."""
    named = {
        f"{report['window']} frames of {report['payload_bytes_per_frame']:,} bytes in flight": report.get(
            "frame_histogram"
        ),
        "one small frame at a time": report.get("histogram"),
    }
    return percentile_plot({label: text or "" for label, text in named.items()}, "Latency of a frame without consensus")


def sweep_plots(report: Mapping[str, Any]) -> list[Plot]:
    """`sweep`: latency against throughput, and the percentiles at each share."""
    title = "Latency against throughput"
    figure, axes = one_axes(title)
    rows = sorted(report["rows"], key=lambda row: row["offered_per_second"])
    rates = [row["answered_per_second"] for row in rows]
    for percentile, colour in SERIES.items():
        if percentile != "max":
            values = [row["latency_us"][percentile] / 1e6 for row in rows]
            axes.plot(rates, values, marker="o", markersize=4, color=colour, label=SERIES_NAMES[percentile])
    maximum = report["maximum_commands_per_second"]
    axes.axvline(maximum, color=MUTED, linestyle="--", linewidth=1.2, label="maximum, closed load")
    axes.set_xlim(0, max([maximum, *rates]) * 1.05)
    axes.xaxis.set_major_formatter(RATE)
    axes.set_xlabel("commands answered per second")
    latency_axis(axes, "latency, from when it was due")
    figure.legend(loc="outside lower center", ncols=4)
    named = {f"{row['share']} %": row.get("histogram") or "" for row in rows}
    return [
        Plot("throughput-latency", title, figure),
        *percentile_plot(named, "Latency at shares of the highest throughput"),
    ]


def failover_plots(report: Mapping[str, Any]) -> list[Plot]:
    """`failover`: the timeline around the kill of the median and of the longest gap, and all gaps in order."""
    plots = []
    timelines = sorted(report.get("timelines", []), key=lambda timeline: timeline["gap_ms"])
    how = "stopped" if report["setup"].get("signal") == "SIGSTOP" else "killed"
    if timelines:
        median = timelines[(len(timelines) - 1) // 2]
        plots.append(timeline_plot(median, "timeline-median", f"Leader {how}: the median gap", how))
        if len(timelines) > 1:
            plots.append(timeline_plot(timelines[-1], "timeline-longest", f"Leader {how}: the longest gap", how))
    gaps = sorted(report["gap_ms"]["all"])
    title = f"Time without an answer, {len(gaps)} kills"
    figure, axes = one_axes(title, HEIGHT * 0.75)
    shares = np.arange(1, len(gaps) + 1) / len(gaps) * 100
    axes.step([gap / 1e3 for gap in gaps], shares, where="post", color=BLUE, marker="o", markersize=4)
    axes.axvline(statistics.median(gaps) / 1e3, color=ORANGE, linestyle="--", linewidth=1.2, label="median")
    axes.xaxis.set_major_formatter(SECONDS)
    axes.set_xlim(left=0)
    axes.set_ylim(0, 105)
    axes.set_xlabel("longest time between two answers")
    axes.set_ylabel("kills, cumulative (%)")
    axes.legend(loc="lower right")
    plots.append(Plot("gaps", title, figure))
    return plots


def timeline_plot(timeline: Mapping[str, Any], name: str, title: str, how: str) -> Plot:
    """What was answered, and how late, before and after one kill."""
    bucket_s = timeline["bucket_ms"] / 1e3
    figure = Figure(figsize=(WIDTH, HEIGHT * 1.25))
    rate, latency = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    rate.set_title(f"{title} ({timeline['gap_ms']:,.0f} ms)")
    answered = np.array(timeline["answered"]) / bucket_s
    edges = timeline["begin_ms"] / 1e3 + bucket_s * np.arange(len(answered) + 1)
    rate.stairs(answered, edges, fill=True, color=BLUE, alpha=0.35)
    rate.stairs(answered, edges, color=BLUE, linewidth=1.4)
    rate.set_ylim(0, max(1.0, float(answered.max(initial=0.0))) * 1.15)
    rate.yaxis.set_major_formatter(RATE)
    rate.set_ylabel("commands/s")
    worst = np.array(timeline["latency_us_max"], dtype=float) / 1e6
    middles = (edges[:-1] + edges[1:]) / 2
    latency.plot(middles[worst > 0], worst[worst > 0], color=VIOLET, marker="o", markersize=3, linestyle="none")
    latency_axis(latency, "latency, maximum")
    latency.set_xlabel(f"seconds since the leader was {how}, in steps of {timeline['bucket_ms']} ms")
    latency.set_xlim(edges[0], edges[-1])
    for axes in (rate, latency):
        axes.axvline(0.0, color=RED, linewidth=1.4, label=f"leader {how}")
        if timeline["back_ms"] / 1e3 < edges[-1]:
            axes.axvline(timeline["back_ms"] / 1e3, color=GREEN, linestyle="--", linewidth=1.2, label="brought back")
    figure.legend(*rate.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return Plot(name, title, figure)


def recovery_plots(report: Mapping[str, Any]) -> list[Plot]:
    """`recovery`: restart time against journal size."""
    title = "Restart time against journal size"
    figure, axes = one_axes(title)
    steps = report["restarts"]
    sizes = [step["journal_bytes"] for step in steps]
    times = [step["seconds"] for step in steps]
    axes.plot(sizes, times, marker="o", color=BLUE, label="killed, until it answers reads again")
    axes.axhline(report["empty_seconds"], color=MUTED, linestyle="--", linewidth=1.2, label="empty journal")
    for step in steps:
        if step["commands_per_second"]:
            text = f"{SHORT_RATE(step['commands_per_second'])}/s"
            place = (step["journal_bytes"], step["seconds"])
            axes.annotate(text, place, xytext=(0, 8), textcoords="offset points", ha="center", color=MUTED)
    axes.xaxis.set_major_formatter(EngFormatter(unit="B"))
    axes.set_xlim(0, max(sizes, default=1) * 1.1)
    axes.set_ylim(0, max([report["empty_seconds"], *times]) * 1.25)
    axes.set_xlabel("journal (labels: commands replayed per second)")
    axes.set_ylabel("restart (s)")
    axes.legend(loc="lower right")
    return [Plot("restart", title, figure)]


def payload_plots(report: Mapping[str, Any]) -> list[Plot]:
    """`payloads`: bytes per second against the size of a command, beside the floor; then as any other benchmark."""
    title = "Payload bytes per second by size of a command"
    figure, axes = one_axes(title)
    rows = sorted(report["rows"], key=lambda row: row["payload_bytes"])
    sizes = [row["payload_bytes"] for row in rows]
    axes.plot(sizes, [row["bytes_per_second"] for row in rows], marker="o", color=BLUE, label="commands")
    if report.get("floor"):
        axes.axhline(report["floor"]["bytes_per_second"], color=MUTED, linestyle="--", linewidth=1.2, label="floor")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{size:,}" for size in sizes]))
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(EngFormatter(unit="B/s"))
    axes.set_xlabel("bytes per command")
    axes.set_ylabel("payload")
    figure.legend(loc="outside lower center", ncols=2)
    return [Plot("payloads", title, figure), *other_plots(report)]


def other_plots(report: Mapping[str, Any]) -> list[Plot]:
    """`compare`, and every benchmark that is not known here: bars of its rows, percentiles of its histograms."""
    rows = [row for row in report.get("rows", []) if isinstance(row, dict)]
    labelled = list(zip(row_labels(rows), rows, strict=True))
    named = {label.replace("\n", " "): row.get("histogram") or "" for label, row in whole_rows(labelled)}
    if not any(named.values()):
        named = {"all": report.get("histogram") or ""}
    return [*throughput_bars(labelled), *latency_bars(labelled), *percentile_plot(named, "Latency by percentile")]


def row_labels(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What tells the rows apart: name, version and nodes; of rows without a name their texts and settings. Made unique
    by a number."""
    labels: list[str] = []
    for row in rows:
        if row.get("name"):
            label = " ".join(str(row[key]) for key in ("name", "version") if row.get(key))
            if nodes := row.get("nodes"):
                label += f"\n{nodes} node{'s' * (nodes != 1)}"
        else:
            texts = [value for key, value in row.items() if isinstance(value, str) and value and key not in ROW_RESULTS]
            numbers = [form.format(row[key]) for key, form in ROW_SETTINGS.items() if isinstance(row.get(key), int)]
            label = textwrap.shorten(", ".join([*texts, *numbers]), LABEL_LETTERS_MAX, placeholder=" ...") or "row"
        labels.append(label if label not in labels else f"{label} #{len(labels) + 1}")
    return labels


def rate_of(row: Mapping[str, Any]) -> tuple[float, list[float]] | None:
    """(median, runs) of a row's commands or operations per second, or None if it has none."""
    found = next((row[key] for key in RATES if row.get(key) is not None), None)
    measured: dict[str, Any] = found if isinstance(found, dict) else {"median": found}
    rate, runs = measured.get("median"), [float(run) for run in measured.get("runs", [])]
    return (float(rate), runs) if isinstance(rate, int | float) and rate > 0 else None


def whole_rows(labelled: Sequence[tuple[str, Mapping[str, Any]]]) -> Sequence[tuple[str, Mapping[str, Any]]]:
    """The rows that count all kinds of operations, where there are such; else all rows."""
    return [(label, row) for label, row in labelled if row.get("kind") == "all"] or labelled


def throughput_bars(labelled: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Plot]:
    """A bar for each row with a rate."""
    whole = whole_rows(labelled)
    rates = [(label, str(row.get("durability")), rate) for label, row in whole if (rate := rate_of(row))]
    if not rates:
        return []
    title = "Throughput"
    figure, axes = one_axes(title, ROWS_HEIGHT + ROW_HEIGHT * len(rates))
    values = [median for _, _, (median, _) in rates]
    is_wide = max(values) / min(values) > LOG_SCALE_FROM
    if is_wide:
        axes.set_xscale("log")
        axes.set_xlim(10 ** math.floor(math.log10(min(values) / 2)), max(values) * 6)
    else:
        axes.set_xlim(0, max(values) * 1.2)
    known = [durability for durability in DURABILITY if any(durability == used for _, used, _ in rates)]
    for place, (_, durability, (median, runs)) in enumerate(rates):
        axes.barh(place, median, height=0.62, color=DURABILITY.get(durability, BLUE), alpha=0.85)
        axes.plot(runs, [place] * len(runs), linestyle="none", marker="|", markersize=9, color=INK)
        end = max([median, *runs])
        axes.annotate(f"{median:,.0f}", (end, place), xytext=(6, 0), textcoords="offset points", va="center")
    unit = "operations/s" if any("operations_per_second" in row for _, row in whole) else "commands/s"
    runs_shown = ", median and single runs" if any(runs for _, _, (_, runs) in rates) else ""
    finish_rows(axes, [label for label, _, _ in rates], f"{unit}{runs_shown}{' (logarithmic)' if is_wide else ''}")
    axes.xaxis.set_major_formatter(RATE)
    if known:
        handles = [Patch(color=DURABILITY[durability], alpha=0.85) for durability in known]
        figure.legend(handles, [f"durability {name}" for name in known], loc="outside lower center", ncols=len(known))
    return [Plot("throughput", title, figure)]


def latency_bars(labelled: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Plot]:
    """p50 and what lies above it, one line for each row that has latencies."""
    timed = [(label, row["latency_us"]) for label, row in labelled if isinstance(row.get("latency_us"), dict)]
    timed = [(label, latency) for label, latency in timed if latency.get("p50")]
    if not timed:
        return []
    title = "Latency"
    figure, axes = one_axes(title, ROWS_HEIGHT + ROW_HEIGHT * len(timed))
    shown = [name for name in SERIES if any(latency.get(name) for _, latency in timed)]
    for place, (_, latency) in enumerate(timed):
        known = [latency[name] / 1e6 for name in shown if latency.get(name)]
        axes.plot([min(known), max(known)], [place, place], color=MUTED, linewidth=1.2)
    for name in shown:
        points = [(latency[name] / 1e6, place) for place, (_, latency) in enumerate(timed) if latency.get(name)]
        times, places = [time for time, _ in points], [place for _, place in points]
        axes.plot(times, places, linestyle="none", marker="o", color=SERIES[name], label=SERIES_NAMES[name])
    axes.set_xscale("log")
    axes.set_xlim(logarithmic_ticks(axes.xaxis, *axes.get_xlim()))
    finish_rows(axes, [label for label, _ in timed], "latency (logarithmic)")
    figure.legend(loc="outside lower center", ncols=len(shown))
    return [Plot("latency", title, figure)]


def finish_rows(axes: Axes, labels: Sequence[str], label: str) -> None:
    """Names down the side, the first on top, and no lines across."""
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(label)


PLOTS: dict[str, Callable[[Mapping[str, Any]], list[Plot]]] = {
    "closed": load_plots,
    "open": load_plots,
    "floor": floor_plots,
    "sweep": sweep_plots,
    "failover": failover_plots,
    "recovery": recovery_plots,
    "payloads": payload_plots,
}
