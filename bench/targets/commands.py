"""Runs the commands whose figures the table holds, each as a user would, and reads the JSON that they print."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastpaxos.cli.cluster_process import child_environment

__all__ = ["Commands", "NotMeasured", "Result", "execute"]

ROOT = Path(__file__).resolve().parents[2]
REASON_CHARACTERS = 300
FASTPAXOS = (sys.executable, "-P", "-m", "fastpaxos")


class NotMeasured(Exception):  # noqa: N818 - it says what happened
    """A figure could not be had; the message says why."""


class Result(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def execute(command: Sequence[str]) -> Result:
    """Run a command to its end. When this program is interrupted, the command is too, once, and cleans up first."""
    # A session of its own: Ctrl-C reaches only this program, and the command gets one signal and not two.
    environment = child_environment()
    # Scripts of this folder import their neighbours.
    environment["PYTHONPATH"] += os.pathsep + str(ROOT / "bench")
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            stdout, stderr = process.communicate()
        except BaseException:
            process.send_signal(signal.SIGTERM)
            process.communicate()
            raise
    return Result(process.returncode, stdout, stderr)


class Commands:
    """Runs commands one after the other and tells about each.

    Args:
        tell: is called with a line for people.
        run: runs a command; another one than `execute` only in tests.
    """

    def __init__(self, tell: Callable[[str], None], run: Callable[[Sequence[str]], Result] = execute) -> None:
        self._tell = tell
        self._run = run

    def bench(self, *arguments: str) -> dict[str, Any]:
        """The report of `fastpaxos bench ARGUMENTS`. Raises NotMeasured."""
        return self._json(bench_command(*arguments), [*FASTPAXOS, "bench", *arguments, "--json"])

    def script(self, path: str, *arguments: str) -> dict[str, Any]:
        """The report of a script of this repository. Raises NotMeasured."""
        return self._json(shlex.join(["python", path, *arguments]), [sys.executable, path, *arguments, "--json"])

    def _json(self, name: str, command: Sequence[str]) -> dict[str, Any]:
        self._tell(f"  {name}")
        result = self._run(command)
        try:
            report = json.loads(result.stdout)
        except ValueError:
            report = None
        if result.returncode == 0 and isinstance(report, dict):
            return report
        told = result.stderr.strip() or result.stdout.strip() or "it printed nothing"
        raise NotMeasured(f"`{name}` ended with code {result.returncode}: {told[-REASON_CHARACTERS:]}")


def bench_command(*arguments: str) -> str:
    """The command as a user types it."""
    return shlex.join(["fastpaxos", "bench", *arguments])
