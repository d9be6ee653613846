"""The page and the plots of a benchmark report: all of it is in one file, and it shows what the JSON holds."""

from __future__ import annotations

import importlib.util
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram

from fastpaxos.cli import main
from fastpaxos.cli.latency import HDR_NS_MAX, LatencyHistogram
from fastpaxos.cli.page import words

VOID = {"meta", "br"}
SETUP = {
    "date": "2026-01-02T03:04:05+00:00",
    "cpu": "Test <CPU> & Co",
    "cores": 2,
    "versions": {"python": "3.11.1", "fastpaxos": "0.1.0"},
    "build": "release",
    "commit": "0123456789abcdef0123456789abcdef01234567 (dirty)",
    "durability": "fsync",
    "replicas": 3,
    "payload_bytes": 16,
    "batch": 1,
}
LATENCY = {"p50": 410.5, "p99": 1020.0, "p999": 2500.0, "max": 9000.0}


def histogram(scale: float = 1.0) -> str:
    """The samples of a skewed load."""
    recorded = LatencyHistogram()
    recorded.record((np.geomspace(200_000, 9_000_000, 3000) * scale).astype(np.int64))
    encoded = recorded.to_hdr()
    assert encoded is not None
    return encoded


def timeline(gap_ms: float) -> dict[str, Any]:
    return {
        "begin_ms": -500,
        "bucket_ms": 50,
        "gap_ms": gap_ms,
        "back_ms": 400.0,
        "answered": [50] * 10 + [0] * 6 + [50] * 30,
        "latency_us_max": [800.0] * 10 + [0.0] * 6 + [gap_ms * 1000] + [900.0] * 29,
    }


REPORTS: dict[str, dict[str, Any]] = {
    "closed": {"commands_per_second": 1_234_567, "latency_us": LATENCY, "histogram": histogram(), "verdict": True}
    | {"per_second": [1_200_000, 1_300_000]},
    "open": {"commands_per_second": 10_000, "latency_us": LATENCY, "histogram": histogram(), "verdict": False},
    "floor": {"bytes_per_second": 300_000_000, "payload_bytes_per_frame": 65_536, "window": 16}
    | {"latency_us": LATENCY, "histogram": histogram(), "frame_histogram": histogram(20.0)},
    "sweep": {
        "maximum_commands_per_second": 100_000,
        "rows": [
            {"share": share, "offered_per_second": 1000 * share, "answered_per_second": 1000 * share}
            | {"latency_us": LATENCY, "histogram": histogram(share / 10), "errors": 0}
            for share in (10, 20, 30, 50, 70, 90, 110)
        ],
    },
    "failover": {
        "gap_ms": {"p50": 290.0, "min": 250.0, "max": 612.5, "all": [290.0, 612.5, 250.0]},
        "timelines": [timeline(gap) for gap in (290.0, 612.5, 250.0)],
    },
    "recovery": {
        "empty_seconds": 0.4,
        "restarts": [
            {"commands": 10**6, "journal_bytes": 16 * 10**6, "seconds": 0.7, "commands_per_second": 3_300_000},
            {"commands": 2 * 10**6, "journal_bytes": 32 * 10**6, "seconds": 0.3, "commands_per_second": None},
        ],
    },
    "compare": {
        "rows": [
            {"name": "fastpaxos", "version": "0.1.0", "durability": "fsync", "status": "measured"}
            | {"commands_per_second": {"median": 7e6, "runs": [6e6, 7e6]}, "latency_us": {"p50": 300.0, "p99": 700.0}},
            {"name": "other", "version": "9", "durability": "memory", "status": "measured"}
            | {"commands_per_second": {"median": 7e3, "runs": [7e3]}, "latency_us": {"p50": 3000.0, "p99": 70_000.0}},
            {"name": "absent", "version": None, "status": "not installed", "install": ["apt-get install absent"]},
        ]
    },
    "payloads": {
        "rows": [
            {"payload_bytes": size, "batch": 10, "bytes_per_second": 1e8, "commands_per_second": 1e8 / size}
            for size in (16, 1024)
        ],
        "floor": {"bytes_per_second": 2e8},
    },
    "ycsb": {
        "rows": [
            {"workload": "A", "kind": kind, "operations_per_second": 50_000, "latency_us": LATENCY}
            for kind in ("read", "update", "all")
        ]
    },
    "unheard_of": {"some_figure": 42, "nested": {"value_ms": 1.5}},
}
REPORTS = {name: {"benchmark": name, "setup": SETUP} | report for name, report in REPORTS.items()}
PLOTS = {
    "closed": ["per-second", "percentiles"],
    "open": ["percentiles"],
    "floor": ["percentiles"],
    "sweep": ["percentiles", "throughput-latency"],
    "failover": ["gaps", "timeline-longest", "timeline-median"],
    "recovery": ["restart"],
    "compare": ["latency", "throughput"],
    "payloads": ["payloads", "throughput"],
    "ycsb": ["latency", "throughput"],
    "unheard_of": [],
}


class Page(HTMLParser):
    """Checks that elements are closed in order and fetch nothing, and collects the text and the names of elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "data", "action"):
                self.links.append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = main.run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def save(folder: Path, *reports: dict[str, Any]) -> list[Path]:
    files = []
    for number, report in enumerate(reports):
        files.append(folder / f"{number}.json")
        files[-1].write_text(json.dumps(report))
    return files


@pytest.mark.parametrize("name", REPORTS)
def test_page_and_plots_of_a_benchmark(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    html, png = tmp_path / "page.html", tmp_path / "new" / "png"
    (file,) = save(tmp_path, REPORTS[name])
    assert run(capsys, "bench", "report", file, "--html", html, "--png", png) == (0, "", "")
    files = sorted(png.iterdir())
    assert [path.name for path in files] == [f"1-{name}-{plot}.png" for plot in PLOTS[name]]
    assert all(path.read_bytes().startswith(b"\x89PNG\r\n") for path in files)
    text = html.read_text(encoding="utf-8")
    page = Page(text)
    assert page.seen.count("svg") == len(PLOTS[name])
    assert "Test <CPU> & Co" in page.text
    assert "0123456789abcdef0123456789abcdef01234567 (dirty)" in page.text
    assert ("passed" in page.text, "FAILED" in page.text) == (name == "closed", name == "open")
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(svg)


def test_page_of_several_needs_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reports = [REPORTS[name] | {"setup": SETUP | {"own": name}} for name in ("open", "floor", "recovery")]
    files = save(tmp_path, *reports)
    html = tmp_path / "page.html"
    assert run(capsys, "bench", "report", *files, "--html", html)[0] == 0
    text = html.read_text(encoding="utf-8")
    page = Page(text)
    assert {"script", "link", "img", "iframe", "object"} & set(page.seen) == set()
    assert [link for link in page.links if not link.startswith("#")] == []
    # What an address is needed for is the name of a format, never something to be fetched.
    assert set(re.findall(r"https?://[^\"' ]+", text)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    assert "prefers-color-scheme: dark" in text
    # In a dark page dark ink must not be left over.
    assert re.search(r"(?:fill|stroke): #24292f", text) is None
    # Setups are told once where they agree.
    assert page.text.count("0123456789abcdef0123456789abcdef01234567 (dirty)") == 1
    clips = [name for name in page.ids if re.fullmatch(r"p[0-9a-f]{10}", name)]
    assert clips
    assert len(set(clips)) == len(clips)


def test_reports_of_one_file_and_of_standard_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "several.json"
    file.write_text(json.dumps([REPORTS["open"], REPORTS["unheard_of"]]))
    with file.open() as standard_input:
        monkeypatch.setattr("sys.stdin", standard_input)
        assert run(capsys, "bench", "report", "-", "--html", tmp_path / "page.html")[0] == 0
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert page.seen.count("section") == 2
    assert "nested value (ms)" in page.text


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("{", ["--png", "p"], "is no JSON"),
        ("[]", ["--png", "p"], "names no benchmark"),
        ('{"rows": []}', ["--png", "p"], "names no benchmark"),
        ('{"benchmark": "x"}', [], "name what to write"),
        ('{"benchmark": "x"}', ["--html", "no/such/folder/page.html"], "there is no folder no/such/folder"),
    ],
)
def test_misuse_of_report_is_explained(
    content: str, options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file.json").write_text(content)
    code, out, err = run(capsys, "bench", "report", tmp_path / "file.json", *options)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())


def test_missing_library_is_named_before_a_benchmark_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else found(name))
    for command in (["closed"], ["sweep"], ["failover"], ["recovery"], ["floor"], ["open", "--rate", "9"]):
        code, out, err = run(capsys, "bench", *command, "--html", tmp_path / "page.html")
        assert (code, out) == (2, "")
        assert "needs matplotlib: pip install 'fastpaxos[bench]'" in " ".join(err.split())
    assert list(tmp_path.iterdir()) == []


# Histograms in the standard form


def test_the_library_reads_what_was_recorded() -> None:
    recorded = LatencyHistogram()
    recorded.record(np.geomspace(1, 10**10, 20_000).astype(np.int64))
    encoded = recorded.to_hdr()
    assert encoded is not None
    decoded = HdrHistogram.decode(encoded)
    assert decoded.get_total_count() == recorded.samples == 20_000
    for percent in (1.0, 50.0, 99.0, 99.9):
        assert decoded.get_value_at_percentile(percent) == recorded.percentile_ns(percent)
    again = LatencyHistogram.from_hdr(encoded)
    assert np.array_equal(again.counts, recorded.counts)
    assert recorded.max_ns <= again.max_ns <= recorded.max_ns * 1.001


def test_more_than_an_hour_counts_as_an_hour() -> None:
    recorded = LatencyHistogram()
    recorded.record([1000, 5 * HDR_NS_MAX])
    encoded = recorded.to_hdr()
    assert encoded is not None
    decoded = HdrHistogram.decode(encoded)
    assert decoded.get_total_count() == 2
    assert decoded.get_max_value() >= HDR_NS_MAX * 0.999


def test_a_histogram_with_other_buckets_is_refused() -> None:
    with pytest.raises(ValueError, match="256 sub-buckets is none of ours"):
        LatencyHistogram.from_hdr(HdrHistogram(1, 10**9, 2).encode().decode())


def test_without_the_library_there_is_no_histogram(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "hdrh.histogram", None)
    assert LatencyHistogram().to_hdr() is None


def test_keys_are_shown_in_words() -> None:
    names = ["latency_us p999", "late_ms_max", "commands_per_second median", "payload_bytes", "gap_ms all", "cpu"]
    shown = ["latency p99.9 (us)", "late max (ms)", "commands/s median", "payload (bytes)", "gap all (ms)", "CPU"]
    assert [words(name) for name in names] == shown
