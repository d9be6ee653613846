"""A cluster of real replica processes on this machine, for `demo` and `bench`, and the folder that they live in.

Each replica is a process group of its own, so that a Ctrl-C in the terminal reaches the program that started it
and not the replica; it also watches its standard input and ends when that program is gone, however it went.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType

import fastpaxos_core
from fastpaxos.config import format_cluster
from fastpaxos.errors import ConfigError, FastPaxosError

__all__ = [
    "ClusterProcess",
    "ReplicaDied",
    "check_room",
    "free_ports",
    "interruptible",
    "journal_bytes_max",
    "work_folder",
]

MIB = 1024 * 1024
# Below the range that Linux takes for outgoing connections, so that nobody's client occupies a dead replica's port.
PORT_MIN, PORT_MAX = 15_000, 32_000
STOP_TIMEOUT_S = 10.0
REPLICA_BYTES_BASE = 256 * MIB
REPLICA_BYTES_PER_SECOND_MAX = 256 * MIB
SEGMENT_BYTES = 64 * MIB  # each restart begins a new one, preallocated
# More than was ever measured: of commands in large blocks, of commands or blocks that come one by one, of what headers
# of blocks and records take in all.
COMMANDS_PER_SECOND_MAX = 11_000_000
SINGLE_COMMANDS_PER_SECOND_MAX = 500_000
HEADER_BYTES = 256
HEADER_BYTES_PER_SECOND_MAX = 16 * MIB
LOG_TAIL_LINES = 15


class ReplicaDied(FastPaxosError):  # noqa: N818 - it says what happened
    """A replica process ended although nobody asked it to; the message has the end of its log."""


def free_ports(count: int) -> list[int]:
    """Return `count` different TCP ports on 127.0.0.1 that nothing listens on at this moment."""
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        # Two clusters that start at once must not walk through the ports in the same order.
        candidates = random.SystemRandom().sample(range(PORT_MIN, PORT_MAX), 512)
        for port in candidates:
            listener = held.enter_context(socket.socket())
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            ports.append(port)
            if len(ports) == count:
                return ports
    raise FastPaxosError(f"found only {len(ports)} free ports of {count} in {PORT_MIN}..{PORT_MAX} on 127.0.0.1")


def journal_bytes_max(
    replicas: int,
    seconds: float,
    payload_bytes: int,
    batch: int = 1000,
    *,
    rate: float | None = None,
    restarts: int = 0,
) -> int:
    """Return what a load may write in `seconds`, generously: running out of disk is worse than refusing.

    Commands come in blocks of `batch`, `rate` of them per second or as fast as any cluster takes them; `restarts`
    counts those of all replicas.
    """
    commands = min(COMMANDS_PER_SECOND_MAX, SINGLE_COMMANDS_PER_SECOND_MAX * batch, rate or COMMANDS_PER_SECOND_MAX)
    headers = min(HEADER_BYTES_PER_SECOND_MAX, commands / batch * HEADER_BYTES)
    bytes_per_second = min(commands * payload_bytes + headers, REPLICA_BYTES_PER_SECOND_MAX)
    return int(replicas * (REPLICA_BYTES_BASE + seconds * bytes_per_second) + restarts * SEGMENT_BYTES)


def check_room(folder: Path, needed_bytes: int) -> None:
    """Raise ConfigError unless the file system of `folder` has `needed_bytes` left."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise ConfigError(
            f"{folder} has {free // MIB} MiB free and this run may write {needed_bytes // MIB} MiB; "
            f"choose another place with TMPDIR=... or run for fewer --seconds"
        )


@contextlib.contextmanager
def work_folder(keep: Path | None) -> Iterator[Path]:
    """A folder for data and logs: a temporary one, removed at the end, or `keep`, which must be new or empty."""
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="fastpaxos-", ignore_cleanup_errors=True) as name:
            yield Path(name)
        return
    keep.mkdir(parents=True, exist_ok=True)
    if any(keep.iterdir()):
        raise ConfigError(f"folder {keep} is not empty; name a new one")
    yield keep.resolve()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the program as Ctrl-C does, so that replicas are stopped and folders removed."""

    def interrupt(_number: int, frame: FrameType | None) -> None:
        # An event loop that runs has a handler of its own, which cancels its main task: the safe way out of it.
        on_ctrl_c = signal.getsignal(signal.SIGINT)
        if not callable(on_ctrl_c):
            raise KeyboardInterrupt
        on_ctrl_c(signal.SIGINT, frame)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def child_environment() -> dict[str, str]:
    """The environment in which a child imports exactly the modules that this process imported."""
    import fastpaxos

    roots = [Path(fastpaxos.__file__ or "").parents[1], Path(fastpaxos_core.__file__).parents[1]]
    paths = [str(root.resolve()) for root in dict.fromkeys(roots)]
    paths += filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "PYTHONSAFEPATH": "1"}
    # One thread per replica is busy; the thread pools of numeric libraries would only take memory.
    environment.setdefault("OPENBLAS_NUM_THREADS", "1")
    return environment


class ClusterProcess:
    """Replica processes 1..replicas with their data, logs and addresses under `folder`.

    Ownership: the processes. Leaving the `with` block stops every one of them, by force where SIGTERM is not enough;
    the folder belongs to the caller. `settings` are further settings of `NodeConfig`, by name.
    """

    def __init__(
        self,
        folder: Path,
        replicas: int,
        machine: str = "hashchain",
        durability: str = "fsync",
        settings: Mapping[str, object] | None = None,
    ) -> None:
        self.folder = folder
        self.machine = machine
        self.durability = durability
        self.cluster = {node_id: f"127.0.0.1:{port}" for node_id, port in enumerate(free_ports(replicas), start=1)}
        self._environment = child_environment()
        for name, value in (settings or {}).items():
            self._environment[f"FASTPAXOS_{name.upper()}"] = str(value)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> ClusterProcess:
        try:
            for node_id in self.cluster:
                self.start(node_id)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def data_dir(self, node_id: int) -> Path:
        """Where replica `node_id` keeps its journal."""
        return self.folder / f"replica-{node_id}"

    def log_file(self, node_id: int) -> Path:
        """Where replica `node_id` writes its log; restarts append."""
        return self.folder / f"replica-{node_id}.log"

    def pid(self, node_id: int) -> int:
        """The process id of replica `node_id`, also after its end."""
        return self._processes[node_id].pid

    def running(self) -> list[int]:
        """The ids of the replicas whose process lives."""
        return [node_id for node_id, process in self._processes.items() if process.poll() is None]

    def start(self, node_id: int, *, tracer: Sequence[str] = ()) -> None:
        """Start replica `node_id`, or start it again on what its disk holds. `tracer` is a command that runs it."""
        if node_id in self.running():
            raise ValueError(f"replica {node_id} runs already")
        dead = self._processes.get(node_id)
        if dead is not None and dead.stdin is not None:
            dead.stdin.close()
        command = [*tracer, sys.executable, "-P", "-m", "fastpaxos", "serve", "--stop-at-end-of-input"]
        command += ["--id", str(node_id), "--cluster", format_cluster(self.cluster)]
        command += ["--data-dir", str(self.data_dir(node_id)), "--machine", self.machine]
        command += ["--durability", self.durability]
        with self.log_file(node_id).open("ab") as log:
            self._processes[node_id] = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )

    def kill(self, node_id: int) -> None:
        """SIGKILL replica `node_id`, as a power switch would, and wait until it is gone."""
        process = self._processes[node_id]
        self._signal(node_id, signal.SIGKILL)
        process.wait(STOP_TIMEOUT_S)
        if process.stdin is not None:
            process.stdin.close()

    def pause(self, node_id: int) -> None:
        """SIGSTOP replica `node_id`; `resume` lets it go on."""
        self._signal(node_id, signal.SIGSTOP)

    def resume(self, node_id: int) -> None:
        """SIGCONT replica `node_id`."""
        self._signal(node_id, signal.SIGCONT)

    def check_running(self) -> None:
        """Raise ReplicaDied if a replica ended on its own."""
        for node_id, process in self._processes.items():
            if process.poll() is not None and process.returncode != -signal.SIGKILL:
                raise ReplicaDied(
                    f"replica {node_id} (process {process.pid}) ended with code {process.returncode}; "
                    f"the end of its log:\n{self.log_tail(node_id)}"
                )

    def log_tail(self, node_id: int) -> str:
        """The last lines that replica `node_id` logged."""
        lines = self.log_file(node_id).read_text(errors="replace").splitlines()
        return "\n".join(lines[-LOG_TAIL_LINES:])

    def stop(self) -> dict[int, int]:
        """End every replica by SIGTERM, then by SIGKILL; return {node id: exit code}. Safe to call twice."""
        for node_id in self.running():
            # A paused replica would not notice SIGTERM.
            self._signal(node_id, signal.SIGTERM)
            self._signal(node_id, signal.SIGCONT)
        codes: dict[int, int] = {}
        for node_id, process in self._processes.items():
            try:
                codes[node_id] = process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._signal(node_id, signal.SIGKILL)
                codes[node_id] = process.wait()
            finally:
                if process.stdin is not None:
                    process.stdin.close()
        return codes

    def _signal(self, node_id: int, number: signal.Signals) -> None:
        process = self._processes[node_id]
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
