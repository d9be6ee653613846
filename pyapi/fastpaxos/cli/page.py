"""The page of a benchmark report: one HTML file with everything in it, which a browser reads without any network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from fastpaxos.cli.plots import Plot, to_svg

__all__ = ["make_page"]

TITLES = {
    "closed": "Closed load: a fixed number of blocks in flight",
    "open": "Open load: commands come at a rate",
    "sweep": "Sweep: latency at shares of the maximum",
    "failover": "Failover: the leader fails under load",
    "recovery": "Recovery: restart against journal size",
    "floor": "Floor: the same bytes, hops and disk without consensus",
    "compare": "Comparison: the same load on other systems",
    "ycsb": "YCSB: key-value workloads",
    "payloads": "Payloads: throughput and latency by size of a command",
}
PLOTTED = {"timelines", "histogram"}  # shown as plots, and far too long for a table
LIST_ITEMS_MAX = 12
TEXT_LETTERS_MAX = 44
UNIT = re.compile(r"_(us|ms|ns|bytes)(?=_max\b|\b)")
WORDS = {
    "p999": "p99.9",
    "cpu": "CPU",
}
TILES = (
    ("commands_per_second", "commands/s"),
    ("maximum_commands_per_second", "commands/s at most"),
    ("bytes_per_second", "bytes/s"),
    ("latency_us p50", "latency p50"),
    ("latency_us p99", "latency p99"),
    ("latency_us p999", "latency p99.9"),
    ("latency_us max", "latency max"),
    ("gap_ms p50", "gap p50"),
    ("gap_ms max", "gap max"),
    ("empty_seconds", "restart, empty journal"),
)
STYLE = """
:root { --ground: #ffffff; --card: #f6f8fa; --ink: #24292f; --muted: #5f6873; --grid: #d8dee4; --good: #1a7f4b;
  --bad: #c2293d; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ground: #14181d; --card: #1d232a; --ink: #e4e8ec; --muted: #9aa4af;
  --grid: #353d47; --good: #5cc592; --bad: #ff7b8a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); line-height: 1.5;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; } h2 { font-size: 1.25rem; margin: 0 0 .75rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p.sub { color: var(--muted); margin: 0 0 1.5rem; } a { color: inherit; }
section { border-top: 1px solid var(--grid); padding: 1.75rem 0 .5rem; margin-top: 1.75rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; padding: 0; margin: 0 0 1rem; }
.badge { font-size: .8rem; font-weight: 600; border: 1px solid currentColor; border-radius: 1rem; padding: .1rem .6rem;
  margin-left: .5rem; vertical-align: middle; white-space: nowrap; }
.good { color: var(--good); } .bad { color: var(--bad); }
.tiles { display: flex; flex-wrap: wrap; gap: .75rem; margin: 0 0 1rem; padding: 0; }
.tiles div { background: var(--card); border-radius: .5rem; padding: .6rem 1rem; min-width: 8.5rem; }
.tiles dt { color: var(--muted); font-size: .8rem; } .tiles dd { margin: 0; font-size: 1.3rem; font-weight: 600;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(32rem, 100%), 1fr)); gap: 1.25rem; }
figure { max-width: 46rem; margin: 0; padding: .75rem; align-self: start;
  background: var(--card); border-radius: .5rem; }
svg { display: block; width: 100%; height: auto; }
.pairs { columns: 30rem 2; column-gap: 2.5rem; margin: .5rem 0; font-size: .87rem; }
.pairs div { display: grid; grid-template-columns: 11rem 1fr; gap: .75rem; padding: .3rem 0; break-inside: avoid;
  border-bottom: 1px solid var(--grid); } .pairs dt { color: var(--muted); font-weight: 600; }
.pairs dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .87rem; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--grid); vertical-align: top;
  white-space: nowrap; }
th { color: var(--muted); font-weight: 600; } td.long { white-space: normal; min-width: 18rem; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
 details { margin: 1rem 0; } summary { cursor: pointer; font-weight: 600; }
@media print { details > * { display: block; } figure, .tiles div { break-inside: avoid; } }
"""
HEAD = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>fastpaxos benchmark report</title>
<style>{STYLE}</style>
</head>
<body>
<main>
"""


def make_page(reports: Sequence[Mapping[str, Any]], plots: Sequence[Sequence[Plot]]) -> str:
    """The page of several reports and the plots of each. What all their setups have in common stands on top, once."""
    setups = [report.get("setup", {}) for report in reports]
    shared = {name: value for name, value in setups[0].items() if all(setup.get(name) == value for setup in setups)}
    parts = [HEAD, "<h1>fastpaxos benchmark report</h1>\n", f'<p class="sub">{describe_run(setups)}</p>\n']
    if len(reports) > 1:
        links = "".join(
            f'<li><a href="#b{number}">{escape(title_of(report))}</a></li>' for number, report in enumerate(reports, 1)
        )
        parts.append(f"<nav><ul>{links}</ul></nav>\n<h3>Setup of all</h3>\n{pairs_table(shared.items())}")
    for number, (report, setup, drawn) in enumerate(zip(reports, setups, plots, strict=True), 1):
        own = setup if len(reports) == 1 else {name: value for name, value in setup.items() if name not in shared}
        parts.append(section(number, report, own, drawn))
    parts.append("</main>\n</body>\n</html>\n")
    return "".join(parts)


def title_of(report: Mapping[str, Any]) -> str:
    """What a benchmark is called on the page."""
    return TITLES.get(str(report["benchmark"]), str(report["benchmark"]))


def describe_run(setups: Sequence[Mapping[str, Any]]) -> str:
    """When and where, in one line; of several machines each."""
    lines = []
    for setup in setups:
        words = [
            setup.get("date"),
            setup.get("cpu"),
            f"{setup['cores']} cores" if "cores" in setup else None,
            setup.get("system"),
            f"fastpaxos {setup['versions']['fastpaxos']}" if "versions" in setup else None,
            f"{setup['build']} build" if "build" in setup else None,
            f"commit {setup['commit'][:12]}{setup['commit'][40:]}" if setup.get("commit") else None,
        ]
        line = " · ".join(escape(str(word)) for word in words[1:] if word)
        if line and line not in lines:
            lines.append(line)
    dates = [str(setup["date"]) for setup in setups if setup.get("date")]
    return "<br>\n".join([*lines, *([escape(min(dates))] if dates else [])])


def section(number: int, report: Mapping[str, Any], setup: Mapping[str, Any], drawn: Iterable[Plot]) -> str:
    """One benchmark: verdict, figures, plots, tables, setup."""
    parts = [f'<section id="b{number}">\n<h2>{escape(title_of(report))}{badge(report.get("verdict"))}</h2>\n']
    figures = flat({name: value for name, value in report.items() if name not in ("setup", "benchmark", "verdict")})
    tiles = [(label, show_tile(key, figures[key])) for key, label in TILES if figures.get(key) is not None]
    if tiles:
        cells = "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in tiles)
        parts.append(f'<dl class="tiles">{cells}</dl>\n')
    figures_html = "".join(f"<figure>{to_svg(plot)}</figure>\n" for plot in renamed(drawn, number))
    if figures_html:
        parts.append(f'<div class="plots">\n{figures_html}</div>\n')
    for name, rows in report.items():
        if name not in PLOTTED and is_table(rows):
            parts.append(f"<h3>{escape(words(name)).capitalize()}</h3>\n{rows_table(rows)}")
    if figures:
        parts.append(f"<details><summary>All figures</summary>\n{pairs_table(figures.items())}</details>\n")
    if setup:
        parts.append(f"<details open><summary>Setup</summary>\n{pairs_table(setup.items())}</details>\n")
    return "".join(parts) + "</section>\n"


def renamed(drawn: Iterable[Plot], number: int) -> list[Plot]:
    """The same plots under names that no other section of the page has: the parts of an <svg> are named after it."""
    return [Plot(f"{number}-{plot.name}", plot.title, plot.figure) for plot in drawn]


def badge(verdict: object) -> str:
    """Whether what was measured is right."""
    if verdict is None:
        return ""
    return '<span class="badge good">passed</span>' if verdict else '<span class="badge bad">FAILED</span>'


def is_table(value: object) -> bool:
    """A list of objects."""
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a b": 1}; without tables and without what is only plotted."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        if name in PLOTTED or name.endswith("_histogram") or is_table(value):
            continue
        if isinstance(value, dict):
            result |= flat(value, f"{before}{name} ")
        else:
            result[before + name] = value
    return result


def words(name: str) -> str:
    """A key as people read it: "payload_bytes" is "payload (bytes)"."""
    unit = UNIT.search(name)
    text = UNIT.sub("", name, count=1).replace("_per_second", "/s")
    text = " ".join(WORDS.get(word, word) for word in text.split(" ")).replace("_", " ")
    return f"{text} ({unit[1]})" if unit else text


def show_value(value: object) -> str:
    """A value as text."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.6g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, list):
        shown = ", ".join(show_value(item) for item in value[:LIST_ITEMS_MAX])
        return shown + (f", ... ({len(value)} in all)" if len(value) > LIST_ITEMS_MAX else "")
    if isinstance(value, dict):
        return ", ".join(f"{words(name)} {show_value(item)}" for name, item in value.items())
    return str(value)


def show_tile(name: str, value: float) -> str:
    """A figure with the unit that keeps it short."""
    if name.startswith("latency_us"):
        return f"{value / 1000:,.2f} ms" if value >= 1000 else f"{value:,.0f} us"
    if name.startswith("gap_ms"):
        return f"{value:,.0f} ms"
    if name == "bytes_per_second":
        return f"{value / 1e6:,.1f} MB/s"
    if name.endswith("seconds"):
        return f"{value:,.3f} s"
    return f"{value:,.0f}"


def pairs_table(pairs: Iterable[tuple[str, Any]]) -> str:
    """Names and values, in two columns where there is room."""
    rows = "".join(
        f"<div><dt>{escape(words(name))}</dt><dd>{escape(show_value(value))}</dd></div>\n" for name, value in pairs
    )
    return f'<dl class="pairs">\n{rows}</dl>\n'


def rows_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line for each row, one column for each value that any of them has."""
    flattened = [flat(row) for row in rows]
    names = dict.fromkeys(name for row in flattened for name in row)
    columns = {name: [row.get(name) for row in flattened] for name in names}
    columns = {name: values for name, values in columns.items() if any(value is not None for value in values)}
    head = "".join(f"<th{kind_of(values)}>{escape(words(name))}</th>" for name, values in columns.items())
    lines = "".join(
        "<tr>"
        + "".join(f"<td{kind_of(values)}>{escape(show_value(values[place]))}</td>" for values in columns.values())
        + "</tr>\n"
        for place in range(len(rows))
    )
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}</tbody></table></div>\n'


def kind_of(values: Sequence[object]) -> str:
    """The class of a column: numbers stand at its right side, long texts may be broken."""
    if all(isinstance(value, int | float | None) and not isinstance(value, bool) for value in values):
        return ' class="number"'
    return ' class="long"' if max(len(show_value(value)) for value in values) > TEXT_LETTERS_MAX else ""
