"""Instruction counts of a workload, by callgrind: N times the work against 2 N, so that start-up cancels.

A workload is a function of a number: it does its work that many times and raises when the result is wrong. All
workloads of one run share a process, because starting Python under callgrind costs more than counting: the profile is
cut where the process calls a C function (`MARK`) that it calls between the pieces and nowhere else.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

__all__ = ["CallgrindError", "Profile", "Workload", "count_workloads", "parse_profile", "readable_name"]

MARK = "getpriority"
"""counted.py calls it through os.getpriority: every C library exports it, and nothing else here uses it."""

COUNTED = Path(__file__).with_name("counted.py")
TIMEOUT_SECONDS = 600
# One thread, one hash seed: nothing but the work may differ between two runs. Callgrind counts one instruction for each
# byte of `rep movsb`, which no processor needs: the C library is told to copy with vectors instead.
FIXED_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "LC_ALL": "C",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-ERMS,-FSRM"
    ":glibc.cpu.x86_rep_movsb_threshold=1073741824:glibc.cpu.x86_rep_stosb_threshold=1073741824"
    ":glibc.malloc.top_pad=67108864:glibc.malloc.trim_threshold=1073741824:glibc.malloc.mmap_threshold=33554432",
}
# The environment lies on the stack, and shifts everything by its length: only what Python needs is handed on.
KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH", "HOME", "TMPDIR")

_Key = TypeVar("_Key")


class CallgrindError(Exception):
    """The count could not be taken: callgrind is missing, or the counted program failed. The text has its output."""


@dataclass(frozen=True)
class Workload:
    """Work that is counted.

    Attributes:
        name: of its metrics: `name` for everything, `name: stage` for each stage.
        target: "module:function" or "path.py:function", called as function(count, *arguments). It does its work `count`
            times and raises when the result is wrong.
        repetitions: N.
        arguments: what follows the count.
        stages: {stage: names of C functions} whose shares are metrics of their own (stages.py).
    """

    name: str
    target: str
    repetitions: int
    arguments: tuple[int | str, ...] = ()
    stages: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass
class Profile:
    """Instructions by C function: `own` of the function itself, `arcs` of one function's calls of another.

    An arc counts everything until the call returns. `calls` is how often one function called the other.
    """

    total: float = 0.0
    own: dict[str, float] = field(default_factory=dict)
    arcs: dict[tuple[str, str], float] = field(default_factory=dict)
    calls: dict[tuple[str, str], float] = field(default_factory=dict)

    def inclusive(self) -> dict[str, float]:
        """Return the instructions of each function with all that it called. Means nothing for recursive functions."""
        found = dict(self.own)
        for (caller, callee), count in self.arcs.items():
            if caller != callee:
                found[caller] = found.get(caller, 0.0) + count
        return found

    def times_called(self) -> dict[str, float]:
        """Return how often each function was called."""
        found: dict[str, float] = {}
        for (_, callee), count in self.calls.items():
            found[callee] = found.get(callee, 0.0) + count
        return found

    def one_repetition(self, twice: Profile, repetitions: int) -> Profile:
        """Subtract this profile (N) from that of 2 N and divide by N: what one repetition costs, start-up cancelled."""
        return Profile(
            (twice.total - self.total) / repetitions,
            _difference(self.own, twice.own, repetitions),
            _difference(self.arcs, twice.arcs, repetitions),
            _difference(self.calls, twice.calls, repetitions),
        )


def _difference(once: Mapping[_Key, float], twice: Mapping[_Key, float], divisor: int) -> dict[_Key, float]:
    keys = {**once, **twice}
    found = {key: (twice.get(key, 0.0) - once.get(key, 0.0)) / divisor for key in keys}
    return {key: count for key, count in found.items() if count}


def count_workloads(
    workloads: Sequence[Workload], paths: Sequence[Path] = (), environment: Mapping[str, str] | None = None
) -> dict[str, Profile]:
    """Run the workloads one after the other in one process under callgrind; return {name: profile of one repetition}.

    Args:
        paths: the module path of that process, instead of this one's PYTHONPATH.
        environment: variables that it gets beside those that Python needs.

    Raises:
        CallgrindError: callgrind is missing, or a workload failed.
    """
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise CallgrindError("valgrind is not installed: apt-get install valgrind")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "profile"
        kept = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
        variables = {**kept, **(environment or {}), **FIXED_ENVIRONMENT}
        if paths:
            variables["PYTHONPATH"] = os.pathsep.join(map(str, paths))
        run = subprocess.run(
            [valgrind, "--tool=callgrind", f"--callgrind-out-file={out}", f"--dump-before={MARK}",
             sys.executable, "-P", str(COUNTED)],
            input=json.dumps([_work(workload) for workload in workloads]), env=variables,
            capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS,
        )  # fmt: skip
        if run.returncode:
            raise CallgrindError(f"the counted program failed ({run.returncode}):\n{run.stdout}{run.stderr}")
        # Part 1 ends at the first mark: it is start-up and warming up of the first workload.
        parts = [Path(f"{out}.{index + 1}") for index in range(3 * len(workloads))]
        missing = [part.name for part in parts if not part.exists()]
        if missing:
            raise CallgrindError(
                f"callgrind wrote no {', '.join(missing)}: is {MARK} not called through the C library?"
            )
        profiles = [parse_profile(part.read_text()) for part in parts]
    return {
        workload.name: profiles[3 * index + 1].one_repetition(profiles[3 * index + 2], workload.repetitions)
        for index, workload in enumerate(workloads)
    }


def _work(workload: Workload) -> dict[str, object]:
    """Return what the counted program is told."""
    return {"target": workload.target, "repetitions": workload.repetitions, "arguments": workload.arguments}


_NAME = re.compile(r"\((\d+)\)(?: (.*))?")


def parse_profile(text: str) -> Profile:
    """Read one dump of callgrind with the one event Ir and line positions. Raises CallgrindError."""
    profile = Profile()
    names: dict[str, str] = {}
    caller = callee = ""
    called = False

    def name_of(value: str) -> str:
        match = _NAME.fullmatch(value)
        if match is None:
            return value
        if match[2] is not None:
            # Recursion levels ('2) are one function to us.
            names[match[1]] = match[2].split("'")[0]
        return names[match[1]]

    for line in text.splitlines():
        if not line or line[0] == "#":
            continue
        if line[0].isdigit() or line[0] in "+-*":
            count = float(line.split()[1])
            if called:
                profile.arcs[caller, callee] = profile.arcs.get((caller, callee), 0.0) + count
                called = False
            else:
                profile.own[caller] = profile.own.get(caller, 0.0) + count
        elif line.startswith("fn="):
            caller = name_of(line[3:])
        elif line.startswith("cfn="):
            callee = name_of(line[4:])
        elif line.startswith("calls="):
            called = True
            count = float(line[6:].split()[0])
            profile.calls[caller, callee] = profile.calls.get((caller, callee), 0.0) + count
        elif line.startswith("summary:"):
            profile.total = float(line.split()[1])
        elif line.startswith("events:") and line.split()[1:] != ["Ir"]:
            raise CallgrindError(f"the profile counts {line[8:]}, expected Ir")
    return profile


_CYTHON = re.compile(r"__pyx_(pw|pf|f|fuse_\d+|tp_\w+?)_(\d.*)")


def readable_name(symbol: str) -> str:
    """Return a C symbol as people read it: "acceptor.Acceptor.handle_accept"; others as they are."""
    match = _CYTHON.fullmatch(symbol)
    if match is None:
        return symbol
    parts, rest = [], match[2]
    while (digits := re.match(r"\d+", rest)) and len(rest) > (end := len(digits[0]) + int(digits[0])):
        if rest[end] != "_":
            break
        parts.append(rest[len(digits[0]) : end])
        rest = rest[end + 1 :]
    return ".".join([*parts[1:], rest.lstrip("0123456789")])
