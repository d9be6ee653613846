"""`fastpaxos journal`: what the disk of a stopped replica holds, and whether it is sound."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from fastpaxos.cli.options import json_option, print_json
from fastpaxos.directory import OsDirectory
from fastpaxos.errors import ConfigError, CorruptionError, FrameError
from fastpaxos.identity import IDENTITY_NAME, DirectoryIdentity
from fastpaxos_core import journal_recovery
from fastpaxos_core.ballot import format_ballot
from fastpaxos_core.block import BlockView
from fastpaxos_core.founding import FoundingRecord

__all__ = ["journal", "journal_directory", "replica_batches"]

UNKNOWN_SHOWN_MAX = 20

directory_argument = click.argument(
    "directory", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path)
)


def journal_directory(path: Path) -> OsDirectory:
    """Return the journal in a data directory, for reading. Raises ConfigError if there is none."""
    if any(path.glob("journal-*.segment")):
        return OsDirectory(path, durable=False)
    raise ConfigError(f"{path} holds no journal; name the --data-dir of a replica")


def replica_batches(path: Path, applied_index: int) -> Iterator[tuple[int, int, BlockView]]:
    """Give (slot_begin, slot_end, block) of everything that a stopped replica applied, which is up to `applied_index`.

    The journal may know a lower commit index than the replica did: its last accepted batches follow then.
    """
    directory = journal_directory(path)
    end = 0
    for batch in journal_recovery.iterate_batches(directory):
        if batch.slot_end - 1 > applied_index:
            return
        end = batch.slot_end - 1
        yield batch.slot_begin, batch.slot_end, BlockView(batch.block)
    for batch in journal_recovery.inspect(directory).batches:
        if end < batch.slot_begin and batch.slot_end - 1 <= applied_index:
            yield batch.slot_begin, batch.slot_end, BlockView(batch.block)


@click.group()
def journal() -> None:
    """Read the journal of a stopped replica. Nothing is changed."""


@journal.command()
@directory_argument
@json_option
def inspect(directory: Path, as_json: bool) -> int:
    """Say what the journal in DIR holds: segments, writes, batches, promise, commit index, what is torn or unknown."""
    report = describe_journal(directory)
    if as_json:
        print_json(report)
    else:
        for name, value in report.items():
            if isinstance(value, list) and value and isinstance(value[0], dict):
                click.echo(f"{name}: {len(value)}")
                for item in value:
                    click.echo("  " + " ".join(f"{key}={field}" for key, field in item.items()))
            else:
                click.echo(f"{name}: {' '.join(map(str, value)) or 'none' if isinstance(value, list) else value}")
    return 0


def describe_journal(path: Path) -> dict[str, Any]:
    """Return what `inspect` prints."""
    recovery = journal_recovery.inspect(journal_directory(path))
    return {
        "directory": str(path),
        **describe_owner(path),
        "commit_index": recovery.commit_index,
        "promised_ballot": recovery.promised_ballot,
        "promised_ballot_text": format_ballot(recovery.promised_ballot),
        "promised_ballot_known": recovery.promised_known,
        "writes": recovery.writes,
        "batches": recovery.batch_count,
        "journal_bytes": recovery.journal_bytes,
        "last_write_number": recovery.last_write_number,
        "torn_write": recovery.torn_write,
        "uncommitted": [
            {
                "slot_begin": batch.slot_begin,
                "slot_end": batch.slot_end,
                "ballot": format_ballot(batch.ballot),
                "block_bytes": batch.block_bytes,
            }
            for batch in recovery.batches
        ],
        "unknown": [
            {"slot_begin": slot_begin, "slot_end": slot_end}
            for slot_begin, slot_end in recovery.unknown[:UNKNOWN_SHOWN_MAX]
        ],
        "problems": list(recovery.problems),
        "segments": [dict(segment) for segment in recovery.segments],
    }


def read_identity(path: Path) -> DirectoryIdentity:
    """Return the identity of a data directory. Raises CorruptionError, also if it is missing beside a journal."""
    try:
        data = (path / IDENTITY_NAME).read_bytes()
    except FileNotFoundError as error:
        raise CorruptionError(f"{path / IDENTITY_NAME} is missing: nothing says whose journal this is") from error
    return DirectoryIdentity.decode(data, path / IDENTITY_NAME)


def describe_owner(path: Path) -> dict[str, Any]:
    """Return to whom a data directory belongs."""
    identity = read_identity(path)
    founding = FoundingRecord.decode(identity.founding) if identity.founding else None
    return {
        "node_id": identity.node_id,
        "cluster_id": founding.cluster_id.hex() if founding else None,
        "members": sorted(founding.members) if founding else [],
        "phase1_quorum": founding.phase1_quorum if founding else None,
        "phase2_quorum": founding.phase2_quorum if founding else None,
        "incarnation": f"{identity.incarnation:016x}",
        "boot": identity.boot,
        "durability": identity.durability,
        "closed_cleanly": identity.clean,
    }


@journal.command()
@directory_argument
@json_option
def verify(directory: Path, as_json: bool) -> int:
    """Check every byte that matters in the journal in DIR. The exit code is 1 if any of them is bad.

    A torn last write is what a crash leaves behind; it is sound.
    """
    problems = journal_recovery.verify(journal_directory(directory))
    try:
        describe_owner(directory)
    except (CorruptionError, FrameError) as error:
        problems.insert(0, str(error))
    if as_json:
        print_json({"directory": str(directory), "sound": not problems, "problems": problems})
    elif problems:
        click.echo(f"{directory}: not sound, {len(problems)} problems", err=True)
        for problem in problems:
            click.echo(f"  {problem}", err=True)
    else:
        click.echo(f"{directory}: sound")
    return 1 if problems else 0
