"""`fastpaxos serve`: one replica in this process, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from pathlib import Path

import click

from fastpaxos.cli.options import CLUSTER_FORM, parse_cluster_option
from fastpaxos.config import DURABILITY_MODES, NodeConfig
from fastpaxos.errors import FastPaxosError
from fastpaxos.node import Node
from fastpaxos.runtime import run
from fastpaxos.statemachine import load_machine

__all__ = ["serve"]


@click.command()
@click.option("--id", "node_id", type=click.IntRange(1, 65535), help="This replica's number in the cluster.")
@click.option("--cluster", callback=parse_cluster_option, metavar=CLUSTER_FORM, help="All members, this one included.")
@click.option(
    "--data-dir", type=click.Path(file_okay=False, path_type=Path), help="Folder of the journal; made if missing."
)
@click.option("--machine", default="kv", show_default=True, metavar="kv|hashchain|MODULE:CLASS")
@click.option("--durability", type=click.Choice(DURABILITY_MODES), help="What an acknowledgement means [fsync].")
@click.option("--listen", metavar="HOST:PORT", help="Address to listen on, if not the one in the cluster.")
@click.option(
    "--config",
    "config_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML file with any setting; options and FASTPAXOS_... variables override it.",
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info")
@click.option("--stop-at-end-of-input", is_flag=True, help="Also stop when standard input ends: die with the parent.")
def serve(
    node_id: int | None,
    cluster: dict[int, str] | None,
    data_dir: Path | None,
    machine: str,
    durability: str | None,
    listen: str | None,
    config_file: Path | None,
    log_level: str,
    stop_at_end_of_input: bool,
) -> int:
    """Run one replica. SIGTERM or Ctrl-C ends it cleanly.

    Every setting can also stand in a TOML file (--config) or in a variable such as FASTPAXOS_ELECTION_TIMEOUT_MS.
    """
    logging.basicConfig(
        stream=sys.stderr, level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    config = NodeConfig.load(
        config_file, node_id=node_id, cluster=cluster, data_dir=data_dir, durability=durability, listen=listen
    )
    # A state machine of the user's own usually lies in the folder that the command is given in.
    sys.path.append(os.getcwd())
    node = Node(config, load_machine(machine)())
    return run(serve_until_stopped(node, config, stop_at_end_of_input))


async def serve_until_stopped(node: Node, config: NodeConfig, stop_at_end_of_input: bool) -> int:
    """Run the node until a signal, the end of standard input, or its own failure; return the exit code."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if stop_at_end_of_input:
        loop.add_reader(sys.stdin.fileno(), read_to_end, loop, stop)
    async with node:
        address = config.cluster[config.node_id]
        click.echo(f"replica {config.node_id} serves on {address}, process {os.getpid()}", err=True)
        stopping = asyncio.ensure_future(stop.wait())
        failing = asyncio.ensure_future(node.wait_closed())
        await asyncio.wait((stopping, failing), return_when=asyncio.FIRST_COMPLETED)
        if failing.done():
            stopping.cancel()
            error = failing.exception()
            raise error if error is not None else FastPaxosError(f"replica {config.node_id} stopped on its own")
        failing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await failing
    click.echo(f"replica {config.node_id} stopped", err=True)
    return 0


def read_to_end(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Drop what comes on standard input; set `stop` at its end."""
    if not os.read(sys.stdin.fileno(), 4096):
        loop.remove_reader(sys.stdin.fileno())
        stop.set()
