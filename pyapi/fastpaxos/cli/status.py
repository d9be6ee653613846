"""`fastpaxos status`: what every member of a cluster says of itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

import click

from fastpaxos.cli.options import cluster_option, json_option, print_json
from fastpaxos.client import Client
from fastpaxos.errors import FastPaxosError
from fastpaxos.runtime import run as run_loop
from fastpaxos_core.ballot import format_ballot

__all__ = ["is_settled", "leader_of", "read_statuses", "status", "wait_for"]

ALWAYS_GIVEN = ("role", "ballot", "commit_index", "applied_index", "digest")
COLUMNS = ("id", "address", "role", "ballot", "commit_index", "applied_index", "journal_bytes", "digest")
POLL_INTERVAL_S = 0.05

Statuses = list[dict[str, Any]]


async def read_statuses(client: Client, cluster: Mapping[int, str], timeout: float = 1.0) -> Statuses:
    """Ask every member at once. A member that gives no answer within `timeout` seconds is "reachable": False, and
    what it would have said is None."""

    async def ask(node_id: int) -> dict[str, Any]:
        entry: dict[str, Any] = {"id": node_id, "address": cluster[node_id], "reachable": False}
        try:
            answer = await client.status(node_id, timeout=timeout)
        except (FastPaxosError, OSError, TimeoutError) as error:
            entry |= dict.fromkeys(ALWAYS_GIVEN)
            return entry | {"error": f"{type(error).__name__}: {error}"}
        said: dict[str, Any] = plain(answer)
        entry |= dict.fromkeys(ALWAYS_GIVEN)
        return entry | said | {"id": node_id, "reachable": True}

    return list(await asyncio.gather(*(ask(node_id) for node_id in sorted(cluster))))


def plain(value: Any) -> Any:
    """Return `value` as JSON can hold it: bytes as hexadecimal digits, keys as text."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def leader_of(statuses: Statuses) -> int | None:
    """The id of the ready leader with the highest ballot among those that can be reached, or None."""
    leading = [entry for entry in statuses if entry["reachable"] and entry["role"] == "leader"]
    leaders = [entry for entry in leading if entry.get("is_ready", True)]
    return max(leaders, key=lambda entry: entry["ballot"])["id"] if leaders else None


def is_settled(statuses: Statuses) -> bool:
    """Every replica is there, in the middle of nothing, and all have committed and applied the same slots."""
    if not statuses or not all(entry["reachable"] and entry["digest"] for entry in statuses):
        return False
    return len({entry[name] for entry in statuses for name in ("commit_index", "applied_index")}) == 1


async def wait_for(client: Client, cluster: Mapping[int, str], what: str, timeout: float, *, leader: bool) -> Statuses:
    """Poll until there is a leader (`leader`), or until all replicas have applied the same slots, twice in a row.

    Raises FastPaxosError that says what was seen last after `timeout` seconds.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    before: Statuses = []
    while True:
        statuses = await read_statuses(client, cluster)
        if leader and leader_of(statuses) is not None:
            return statuses
        # Replicas are asked at slightly different moments: equal once may be chance, equal and still is not.
        if not leader and is_settled(statuses) and is_settled([*before, *statuses]):
            return statuses
        if loop.time() > deadline:
            seen = "; ".join(describe(entry) for entry in statuses)
            raise FastPaxosError(f"{what} did not happen within {timeout:g} s; last seen: {seen}")
        before = statuses
        await asyncio.sleep(POLL_INTERVAL_S)


def describe(entry: Mapping[str, Any]) -> str:
    """One replica in a few words."""
    if not entry["reachable"]:
        return f"replica {entry['id']} gives no answer"
    return f"replica {entry['id']} {entry['role']}, committed {entry['commit_index']}, applied {entry['applied_index']}"


@click.command()
@cluster_option
@click.option("--timeout", type=click.FloatRange(0.01, 600.0), default=2.0, show_default=True, help="Seconds to wait.")
@json_option
def status(cluster: dict[int, str], timeout: float, as_json: bool) -> int:
    """Show role, ballot, commit index, applied index, digest, journal size and peers of every member.

    The exit code is 1 if no member answers.
    """

    async def ask() -> int:
        async with Client(cluster) as client:
            statuses = await read_statuses(client, cluster, timeout)
        if as_json:
            print_json({"replicas": statuses, "leader": leader_of(statuses)})
        else:
            print_table(statuses)
        return 0 if any(entry["reachable"] for entry in statuses) else 1

    return run_loop(ask())


def print_table(statuses: Iterable[Mapping[str, Any]]) -> None:
    """Print one line per replica on stdout, and on stderr who cannot be reached, by us or by its peers."""
    rows = [list(COLUMNS)]
    troubles = []
    for entry in statuses:
        cells = {**entry, "role": entry["role"] if entry["reachable"] else "unreachable"}
        if entry["reachable"]:
            cells["ballot"] = format_ballot(entry["ballot"])
        else:
            troubles.append(f"replica {entry['id']}: {entry['error']}")
        rows.append(["" if cells.get(column) is None else str(cells[column]) for column in COLUMNS])
        down = [peer for peer in entry.get("peers") or [] if not peer.get("connected", True)]
        troubles += [f"replica {entry['id']} has no connection to replica {peer.get('node_id')}" for peer in down]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for trouble in troubles:
        click.echo(trouble, err=True)
