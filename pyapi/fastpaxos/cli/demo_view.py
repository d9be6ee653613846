"""The demonstration on a terminal: a table while it runs, a verdict at its end."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fastpaxos.cli.demo_run import DemoRun

__all__ = ["DemoView", "print_verdict"]

EVENTS_SHOWN = 6


class DemoView:
    """Live figures on stderr if it is a terminal, nothing otherwise: stdout belongs to the verdict."""

    def __init__(self, run: DemoRun) -> None:
        self._run = run
        self._began = time.monotonic()
        self._events: list[str] = []
        self._rate = 0.0
        self._last = (time.perf_counter_ns(), 0)
        console = Console(file=sys.stderr)
        # Refreshed by hand: a thread of rich's own would take time from the load.
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> DemoView:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, event: str) -> None:
        """Show what happens now."""
        self._events.append(f"{time.monotonic() - self._began:6.1f} s  {event}")
        self.refresh()

    def refresh(self) -> None:
        """Draw the table again."""
        now, acknowledged = time.perf_counter_ns(), self._run.ledger.acknowledged
        before, acknowledged_before = self._last
        if self._run.ended_ns:
            self._rate = acknowledged / self._run.load_seconds
        elif now - before > 100_000_000:
            self._rate = (acknowledged - acknowledged_before) * 1e9 / (now - before)
            self._last = now, acknowledged
        if self._live is not None:
            self._live.update(self._draw(), refresh=True)

    def _draw(self) -> Group:
        table = Table(title="fastpaxos demo", title_justify="left", min_width=60)
        table.add_column("replica", justify="right")
        table.add_column("role")
        for column in ("commit index", "applied index", "journal MiB"):
            table.add_column(column, justify="right")
        for entry in self._run.statuses:
            if entry["reachable"]:
                journal_mib = f"{(entry.get('journal_bytes') or 0) / 2**20:,.1f}"
                indexes = f"{entry['commit_index']:,}", f"{entry['applied_index']:,}"
                style = "bold green" if entry["role"] == "leader" else ""
                table.add_row(str(entry["id"]), entry["role"], *indexes, journal_mib, style=style)
            else:
                table.add_row(str(entry["id"]), "gone", "", "", "", style="red")
        ledger = self._run.ledger
        figures = Text(f"{self._rate:>12,.0f} commands/s   {ledger.acknowledged:>14,} acknowledged")
        return Group(table, figures, *(Text(event) for event in self._events[-EVENTS_SHOWN:]))


def print_verdict(report: dict[str, Any]) -> None:
    """Print the report for people, on stdout."""
    latency, setup = report["latency_us"], report["setup"]
    equal = "equal" if report["digests_equal"] else "DIFFERENT"
    facts = [
        (f"{report['acknowledged']:,}", f"commands acknowledged, {report['commands_per_second']:,} per second"),
        (f"{report['leader_kills']:,}", "leaders killed by SIGKILL and restarted from disk"),
        (f"{report['unavailable_ms']:,.0f} ms", "longest time without an acknowledgement"),
        (f"{report['lost']:,}", "lost"),
        (f"{report['duplicated']:,}", "applied more than once"),
        (f"{report['outcome_unknown']:,}", "without an answer"),
        (equal, f"order and digests of all replicas at slot {report['applied_index']:,}: {report['digest']}"),
        *((f"{latency[name] / 1000:,.2f} ms", f"block latency {name}") for name in ("p50", "p99", "p999", "max")),
    ]
    print(
        f"{report['replicas']} replicas, durability {report['durability']}, {report['payload_bytes']}-byte commands, "
        f"{setup['sessions']} sessions x {setup['pipeline']} blocks of {setup['batch']}, {setup['seconds']:g} s, "
        f"{setup['cores']} cores, {setup['build']} build\n"
    )
    lines = [f"{figure:>16}  {meaning}" for figure, meaning in facts]
    lines.append("")
    if report["verdict"] == "passed":
        lines.append("Every acknowledged command is in every replica exactly once, in one order.")
    else:
        lines.append("FAILED: see the lines above.")
    if "kept_in" in report:
        lines.append(f"Data and logs are kept in {report['kept_in']}.")
    print("\n".join(lines))
