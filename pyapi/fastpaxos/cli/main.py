"""The command group, and what an error becomes: a line on stderr and an exit code.

Exit codes: 0 done, 1 failed, 2 misused (an option, a setting or a data directory that does not fit).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

import fastpaxos_core
from fastpaxos.cli.bench import bench
from fastpaxos.cli.chaos import chaos
from fastpaxos.cli.demo import demo
from fastpaxos.cli.journal import journal
from fastpaxos.cli.kv import kv
from fastpaxos.cli.serve import serve
from fastpaxos.cli.sim import sim
from fastpaxos.cli.status import status
from fastpaxos.errors import ConfigError, FastPaxosError

__all__ = ["cli", "run"]

EXIT_FAILURE = 1
EXIT_MISUSE = 2
EXIT_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(fastpaxos_core.build_info()["version"], prog_name="fastpaxos")
def cli() -> None:
    """fastpaxos: a replicated, durable log and state machine for Python programs, by Multi-Paxos."""


for command in (demo, serve, status, kv, bench, journal, sim, chaos):
    cli.add_command(command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (sys.argv if no arguments are given) and return the exit code. Never raises SystemExit."""
    try:
        code = cli.main(args=None if arguments is None else list(arguments), standalone_mode=False)
    except click.ClickException as error:
        error.show(sys.stderr)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    except ConfigError as error:
        click.echo(f"error: {error}", err=True)
        return EXIT_MISUSE
    except (FastPaxosError, OSError, TimeoutError) as error:
        click.echo(f"error: {type(error).__name__}: {error}", err=True)
        return EXIT_FAILURE
    return code if isinstance(code, int) else 0
