"""`fastpaxos kv`: the key-value machine from the command line."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import click

from fastpaxos.cli.lines import LineFormat
from fastpaxos.cli.options import cluster_option, json_option, print_json, progress
from fastpaxos.client import Client
from fastpaxos.kv import KeyValue, KeyValueClient
from fastpaxos.runtime import run as run_loop

__all__ = ["kv"]

LOAD_CHUNK_ITEMS = 20_000
LOAD_CHUNK_BYTES = 4 * 1024 * 1024

timeout_option = click.option(
    "--timeout", type=click.FloatRange(0.01, 3600.0), default=10.0, show_default=True, help="Seconds for each request."
)


def as_bytes(text: str) -> bytes:
    """Return an argument of the command line as the bytes that the shell gave."""
    return text.encode("utf-8", "surrogateescape")


def as_text(data: bytes) -> str:
    """Return bytes as JSON can hold them: UTF-8, with \\xNN for what is none."""
    return data.decode("utf-8", "backslashreplace")


def entry_map(entry: KeyValue) -> dict[str, Any]:
    """Return a key with all that is known of it."""
    return {
        "key": as_text(entry.key),
        "value": as_text(entry.value),
        "create_revision": entry.create_revision,
        "mod_revision": entry.mod_revision,
        "version": entry.version,
    }


def write_line(data: bytes) -> None:
    """Write bytes as they are, and a newline."""
    sys.stdout.buffer.write(data + b"\n")
    sys.stdout.buffer.flush()


def call(cluster: dict[int, str], work: Callable[[KeyValueClient], Awaitable[int]]) -> int:
    """Run `work` with a client of the cluster; return its exit code."""

    async def run() -> int:
        async with Client(cluster) as client:
            return await work(KeyValueClient(client))

    return run_loop(run())


@click.group()
def kv() -> None:
    """Read and change a cluster that serves the key-value machine."""


@kv.command()
@click.argument("key")
@cluster_option
@timeout_option
@json_option
def get(key: str, cluster: dict[int, str], timeout: float, as_json: bool) -> int:
    """Print the value of KEY. The exit code is 1 if there is none."""

    async def work(client: KeyValueClient) -> int:
        found = await client.get(as_bytes(key), timeout=timeout)
        if as_json:
            print_json({"found": found is not None} | (entry_map(found) if found else {"key": key}))
        elif found is None:
            click.echo(f"no such key: {key}", err=True)
        else:
            write_line(found.value)
        return 0 if found else 1

    return call(cluster, work)


@kv.command()
@click.argument("key")
@click.argument("value")
@cluster_option
@timeout_option
@json_option
def put(key: str, value: str, cluster: dict[int, str], timeout: float, as_json: bool) -> int:
    """Store VALUE under KEY and print the revision of this change."""

    async def work(client: KeyValueClient) -> int:
        result = await client.put(as_bytes(key), as_bytes(value), timeout=timeout)
        print_json({"revision": result.revision}) if as_json else click.echo(result.revision)
        return 0

    return call(cluster, work)


@kv.command()
@click.argument("key")
@cluster_option
@timeout_option
@json_option
def delete(key: str, cluster: dict[int, str], timeout: float, as_json: bool) -> int:
    """Remove KEY. The exit code is 1 if it was not there."""

    async def work(client: KeyValueClient) -> int:
        result = await client.delete(as_bytes(key), timeout=timeout)
        if as_json:
            print_json({"revision": result.revision, "existed": result.existed})
        elif not result.existed:
            click.echo(f"no such key: {key}", err=True)
        return 0 if result.existed else 1

    return call(cluster, work)


@kv.command()
@click.argument("key")
@click.argument("value")
@click.option("--expect", metavar="OLD", help="The value that KEY must have now; without it, KEY must be absent.")
@cluster_option
@timeout_option
@json_option
def cas(key: str, value: str, expect: str | None, cluster: dict[int, str], timeout: float, as_json: bool) -> int:
    """Store VALUE under KEY if its value is the expected one. The exit code is 1 if it is not."""

    async def work(client: KeyValueClient) -> int:
        expected = None if expect is None else as_bytes(expect)
        result = await client.compare_and_set(as_bytes(key), as_bytes(value), expected=expected, timeout=timeout)
        if as_json:
            current = entry_map(result.current) if result.current else None
            print_json({"revision": result.revision, "swapped": result.swapped, "current": current})
        elif not result.swapped:
            found = "absent" if result.current is None else f"{as_text(result.current.value)!r}"
            click.echo(f"not swapped: {key} is {found}", err=True)
        return 0 if result.swapped else 1

    return call(cluster, work)


@kv.command(context_settings={"ignore_unknown_options": True})
@click.argument("key")
@click.argument("delta", type=int, default=1)
@cluster_option
@timeout_option
@json_option
def incr(key: str, delta: int, cluster: dict[int, str], timeout: float, as_json: bool) -> int:
    """Add DELTA (default 1, may be negative) to the number at KEY and print the sum. An absent key counts as 0."""

    async def work(client: KeyValueClient) -> int:
        result = await client.increment(as_bytes(key), delta, timeout=timeout)
        if as_json:
            print_json({"revision": result.revision, "value": result.number})
        else:
            click.echo(result.number)
        return 0

    return call(cluster, work)


@kv.command()
@click.argument("prefix", default="")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many entries.")
@cluster_option
@timeout_option
@json_option
def scan(prefix: str, limit: int | None, cluster: dict[int, str], timeout: float, as_json: bool) -> int:
    """Print the entries whose keys begin with PREFIX, in order of key, as KEY<TAB>VALUE lines with escapes."""

    async def work(client: KeyValueClient) -> int:
        entries = []
        lines = LineFormat("escaped")
        async for entry in client.scan(as_bytes(prefix), limit=limit, timeout=timeout):
            if as_json:
                entries.append(entry_map(entry))
            else:
                write_line(lines.encode(entry.key, entry.value))
        if as_json:
            print_json({"entries": entries})
        return 0

    return call(cluster, work)


def format_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The two flags that choose the form of lines in `load` and `dump`."""
    command = click.option("--lines", is_flag=True, help="Whole lines as values, under their line numbers.")(command)
    return click.option("--escaped", is_flag=True, help="Escape tab, newline, return and backslash by a backslash.")(
        command
    )


def chosen_format(escaped: bool, lines: bool) -> LineFormat:
    """The format that the flags ask for."""
    if escaped and lines:
        raise click.UsageError("give --escaped or --lines, not both")
    return LineFormat("escaped" if escaped else "lines" if lines else "raw")


@kv.command()
@click.argument("file", type=click.File("rb"))
@format_options
@cluster_option
@timeout_option
@json_option
def load(file: BinaryIO, escaped: bool, lines: bool, cluster: dict[int, str], timeout: float, as_json: bool) -> int:
    """Store every KEY<TAB>VALUE line of FILE (- for standard input), in order.

    By default a line is taken as it is: the key ends at the first tab, the value at the newline, and any other bytes
    are data. A key that stands on two lines keeps the last value. It is safe to run again after a failure: puts can
    be repeated. `dump` writes the file back, in the order in which the keys were created.
    """
    form = chosen_format(escaped, lines)

    async def work(client: KeyValueClient) -> int:
        loaded, repeated = await load_items(client, form.read(file, file.name), timeout)
        if as_json:
            print_json({"loaded": loaded, "repeated_keys": repeated})
        else:
            click.echo(f"{loaded} lines loaded", err=True)
        if repeated:
            click.echo(f"{repeated} lines had a key that came before: the last value counts", err=True)
        return 0

    return call(cluster, work)


async def load_items(client: KeyValueClient, items: Iterable[tuple[bytes, bytes]], timeout: float) -> tuple[int, int]:
    """Put all items in order; return how many, and how many of them had a key that came before."""
    seen: set[bytes] = set()
    count = 0
    for chunk in chunks(items):
        # One call after the other keeps the order; within a call, many blocks are in flight.
        await client.put_many(chunk, timeout=timeout)
        count += len(chunk)
        seen.update(key for key, _ in chunk)
        progress(f"{count:,} lines")
    return count, count - len(seen)


def chunks(items: Iterable[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    """Cut items into lists of a size that the client takes well."""
    chunk: list[tuple[bytes, bytes]] = []
    size = 0
    for key, value in items:
        chunk.append((key, value))
        size += len(key) + len(value)
        if len(chunk) >= LOAD_CHUNK_ITEMS or size >= LOAD_CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


@kv.command()
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path), default="-")
@format_options
@click.option("--by-key", is_flag=True, help="In order of key, not in the order in which keys were created.")
@cluster_option
@timeout_option
def dump(file: Path, escaped: bool, lines: bool, by_key: bool, cluster: dict[int, str], timeout: float) -> int:
    """Write every entry as a KEY<TAB>VALUE line to FILE (default: standard output).

    The order is that in which the keys were created, so that a loaded file with unique keys comes back as it was.
    """
    form = chosen_format(escaped, lines)

    async def work(client: KeyValueClient) -> int:
        entries = [entry async for entry in client.scan(timeout=timeout)]
        if not by_key:
            entries.sort(key=lambda entry: entry.create_revision)
        # Everything is encoded before the file is opened: a value that has no form here must not cost the old file.
        encoded = [form.encode(entry.key, entry.value) for entry in entries]
        with output(file) as stream:
            stream.writelines(line + b"\n" for line in encoded)
        return 0

    return call(cluster, work)


@contextlib.contextmanager
def output(file: Path) -> Iterator[BinaryIO]:
    """The binary stream to write to: a file, or standard output for "-"."""
    if str(file) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    else:
        with file.open("wb") as stream:
            yield stream
