"""A server of somebody else as a child process: started with its output in a file, and killed whatever happens."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from fastpaxos.cli.peers.peer import PeerError

__all__ = ["first_line", "server", "wait_until"]

START_TIMEOUT_S = 30.0
PAUSE_S = 0.02
LOG_TAIL_LINES = 5


@contextlib.contextmanager
def server(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the end of the block. Its data is thrown away, so it ends by SIGKILL.

    Where util-linux is installed, the kernel also ends it when this program is killed and can do nothing more.
    """
    guard = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*guard, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Ask again and again until the server is ready. OSError counts as "not yet".

    Raises PeerError with the end of the log if the server ends, or takes too long.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        if process.poll() is not None:
            raise PeerError(f"the server ended with code {process.returncode}: {log_tail(log)}")
        with contextlib.suppress(OSError):
            if ready():
                return
        if time.monotonic() > deadline:
            raise PeerError(f"the server is not ready after {START_TIMEOUT_S:g} s: {log_tail(log)}")
        time.sleep(PAUSE_S)


def log_tail(log: Path) -> str:
    """The last lines that a server wrote."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])


def first_line(command: Sequence[str]) -> str:
    """Run a command that tells its version; return its first line."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=True)
    return done.stdout.splitlines()[0].strip()
