"""Run the real storage code in a child process and record its system calls, in order, with what it was told is durable.

The library `recorder.c` is compiled into a temporary folder and preloaded into one server process, which forks a child
for each run: it has imported everything already. The log of a run is a list of `Event`.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, Self

import msgpack

import fastpaxos
import fastpaxos_core

PATIENCE_SECONDS = 60
SOURCE = Path(__file__).with_name("recorder.c")
RECORD = struct.Struct("<IiqQQIIII16s")
SHORT = -1
KILL = -2
HOLD = -3
EVERY = 0


class Kind(IntEnum):
    """What an event is; the numbers of recorder.c."""

    OPEN = 1
    WRITE = 2
    TRUNCATE = 3
    ALLOCATE = 4
    SYNC_BEGIN = 5
    SYNC_END = 6
    CLOSE = 7
    RENAME = 8
    UNLINK = 9
    MKDIR = 10
    NOTE = 11
    READ = 12


@dataclass(frozen=True, slots=True)
class Event:
    """One system call, or one note of the child.

    Attributes:
        kind, call: what it is, and the name of the function.
        number: it is the n-th call of that function in its run, from 1.
        descriptor: that it was made on, or that its relative name is below.
        result: what it returned, or -errno.
        offset, size: in bytes; `size` holds the flags of an open.
        name: of the file, as it was passed.
        data: what was really written, or the new name of a rename.
        injected: True when the recorder made up the result.
        note: of the child, None in a system call.
    """

    kind: Kind
    call: str
    number: int
    descriptor: int
    result: int
    offset: int
    size: int
    name: str
    data: bytes
    injected: bool
    note: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Fault:
    """The `number`-th call of `call` (EVERY: all of them; call "any": of all calls) fails with errno `action`.

    Action SHORT does half of a read or write; KILL ends the process before the call. With action HOLD, `call` is a part
    of a file name: the first open of such a file waits until other threads have made `number` calls.
    """

    call: str
    number: int
    action: int


@dataclass(frozen=True, slots=True)
class Run:
    """One life of one node over a directory.

    Attributes:
        seed: of the random history.
        steps: how many steps it takes, unless something ends it before.
        durability, segment_bytes, block_bytes_max, os_boot_id: of the storage.
        plan: "random"; "script" for one fixed run that passes every call site; "inline" for writes of half a segment,
            all of them inline.
        clean: closes the directory properly at the end, instead of just ending.
        faults: what goes wrong.
    """

    seed: int
    steps: int = 40
    durability: str = "fsync"
    segment_bytes: int = 4096
    block_bytes_max: int = 700
    os_boot_id: str = "one"
    plan: str = "random"
    clean: bool = True
    faults: Sequence[Fault] = ()


@dataclass(slots=True)
class Recording:
    """What one run left behind; `status` is the child's: 0, 1 for an error that it noted, 9 for KILL."""

    events: list[Event]
    status: int
    notes: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.notes = [event.note for event in self.events if event.note is not None]

    @property
    def error(self) -> dict[str, Any] | None:
        """The error that stopped the node, as the child noted it."""
        return next((note for note in self.notes if note["what"] == "error"), None)


@contextlib.contextmanager
def working_folder() -> Iterator[Path]:
    """A temporary folder, in memory where the system has such a place: syncs cost nothing there."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="crash-", dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


def compile_recorder(folder: Path) -> Path:
    """Build the library in `folder`. Raises CalledProcessError when there is no C compiler."""
    library = folder / "recorder.so"
    command = [os.environ.get("CC", "cc"), "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, "-o", library, SOURCE, "-ldl", "-lpthread"], check=True, timeout=PATIENCE_SECONDS)
    return library


def parse(data: bytes) -> Iterator[Event]:
    """The events of a log, up to its end or to a record that a kill cut off."""
    position = 0
    while position + RECORD.size <= len(data):
        kind, descriptor, result, offset, size, name_bytes, data_bytes, injected, number, call = RECORD.unpack_from(
            data, position
        )
        position += RECORD.size
        name = data[position : position + name_bytes].decode()
        position += name_bytes
        body = data[position : position + data_bytes]
        position += data_bytes
        note = msgpack.unpackb(body, strict_map_key=False) if kind == Kind.NOTE else None
        yield Event(
            Kind(kind), call.rstrip(b"\0").decode(), number, descriptor, result, offset, size, name, body,
            bool(injected), note,
        )  # fmt: skip


class Recorder:
    """The server process with the library; a context manager. Runs one child at a time."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "calls"
        library = compile_recorder(folder)
        paths = [
            Path(__file__).parents[1],
            *(Path(module.__file__).parents[1] for module in (fastpaxos, fastpaxos_core)),
        ]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "crash.recorded_node", str(library)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": os.pathsep.join(map(str, paths))},
        )

    def record(self, run: Run, root: Path, data_dir: Path) -> Recording:
        """Let a child live once in `data_dir`; calls on files below `root` are recorded."""
        self._log.unlink(missing_ok=True)
        order = {name: getattr(run, name) for name in run.__slots__ if name != "faults"}
        order |= {"root": str(root), "data_dir": str(data_dir), "log": str(self._log)}
        order["faults"] = [[fault.call, fault.number, fault.action] for fault in run.faults]
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the recording server ended with code {self._process.wait(PATIENCE_SECONDS)}")
        return Recording(list(parse(self._log.read_bytes())), int(answer))

    def close(self) -> None:
        """End the server."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait(PATIENCE_SECONDS)
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
