"""Applies a log again in processes of its own with other hash seeds, and compares every result.

`str` and `bytes` hash differently in every Python process, and with them sets are ordered differently: a machine that
depends on it diverges in production, where every node is a process, and never within one. The child runs `main`: it
reads one request from its standard input, and writes its results.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import msgpack

from fastpaxos.statemachine import BatchRun, StateMachine
from fastpaxos_core.block import BlockView
from fastpaxos_core.results import decode_results

from .history import Violation

__all__ = ["AppliedBatch", "check_hash_order", "importable_name", "main", "state_of"]

_CHILD_TIMEOUT_S = 300


@dataclass(frozen=True)
class AppliedBatch:
    """One batch of a log and what came of it. `state` is what `state_of` says after it."""

    slot_begin: int
    now_ns: int
    block: bytes
    results: list[Any]
    state: bytes


def state_of(machine: StateMachine) -> bytes:
    """Return what can be compared of a machine's state: its digest and its snapshot, as far as it has them."""
    parts = [machine.digest().encode()]
    if type(machine).snapshot is not StateMachine.snapshot:
        snapshot = BytesIO()
        machine.snapshot(snapshot)
        parts.append(snapshot.getvalue())
    return b"\n".join(parts)


def importable_name(factory: Callable[[], StateMachine]) -> list[str]:
    """Return module, name and file of a class or function, for another process. Raises ValueError if it has no name."""
    module_name, name = getattr(factory, "__module__", ""), getattr(factory, "__qualname__", "")
    module = sys.modules.get(module_name)
    try:
        found = attrgetter(name)(module)
    except AttributeError:
        found = None
    if found is not factory:
        raise ValueError(
            f"{factory!r} cannot be made in another process, so nobody can tell whether it depends on hash order: "
            f"define it at the top of a module, or leave that check out with hash_seeds=()"
        )
    file = getattr(module, "__file__", None)
    return [module_name, name, "" if file is None else str(Path(file).resolve())]


def load_factory(module_name: str, name: str, file: str) -> Callable[[], StateMachine]:
    """Return what `importable_name` named, in another process."""
    # The main program would run again under its own name.
    module = _load_module("__mp_main__" if module_name == "__main__" else module_name, file)
    factory: Callable[[], StateMachine] = attrgetter(name)(module)
    return factory


def _load_module(module_name: str, file: str) -> ModuleType:
    """Import a module by its name, or else (test modules often have none that can be imported) by its file."""
    try:
        return importlib.import_module(module_name)
    except ImportError:
        if not file:
            raise
    specification = importlib.util.spec_from_file_location(module_name, file)
    if specification is None or specification.loader is None:
        raise ImportError(f"{file} cannot be loaded as {module_name}")
    module = importlib.util.module_from_spec(specification)
    sys.modules[module_name] = module
    specification.loader.exec_module(module)
    return module


def apply_logs(factory: Callable[[], StateMachine], logs: list[list[tuple[int, int, bytes]]]) -> Any:
    """Apply every log to a machine of its own; returns per batch its results, as text, and the state after it."""
    answers = []
    for log in logs:
        machine = factory()
        of_log = []
        for slot_begin, now_ns, block in log:
            view = BlockView(block)
            results = decode_results(BatchRun(machine, view, slot_begin, now_ns).finish(), len(view))
            of_log.append(([repr(result) for result in results], state_of(machine)))
        answers.append(of_log)
    return answers


def check_hash_order(
    factory: Callable[[], StateMachine], logs: Sequence[Sequence[AppliedBatch]], hash_seeds: Sequence[int]
) -> None:
    """Apply the logs again, once in a process per hash seed. Raises Violation where anything differs.

    Args:
        factory: makes a fresh machine.
        logs: what simulated clusters applied.
        hash_seeds: values of PYTHONHASHSEED.
    """
    if not hash_seeds:
        return
    plain = [[(batch.slot_begin, batch.now_ns, batch.block) for batch in log] for log in logs]
    request: bytes = msgpack.packb([importable_name(factory), plain])
    answers = _run_children(request, hash_seeds)
    for hash_seed, of_seed in zip(hash_seeds, answers, strict=True):
        for log, of_log in zip(logs, of_seed, strict=True):
            _compare(log, of_log, hash_seed)


def _run_children(request: bytes, hash_seeds: Sequence[int]) -> list[Any]:
    """Run one process per hash seed, all at a time, and return what each one answers."""
    answers: list[Any] = []
    with ExitStack() as stack:
        children = [stack.enter_context(_start_child(hash_seed)) for hash_seed in hash_seeds]
        for child in children:
            stack.callback(child.kill)
        for hash_seed, child in zip(hash_seeds, children, strict=True):
            output, errors = child.communicate(request, timeout=_CHILD_TIMEOUT_S)
            if child.returncode:
                text = errors.decode(errors="replace")
                raise Violation(f"no replay with PYTHONHASHSEED={hash_seed}:\n{text}", checker="hash-order")
            answers.append(msgpack.unpackb(output))
    return answers


def _start_child(hash_seed: int) -> subprocess.Popen[bytes]:
    paths = os.pathsep.join(path or os.curdir for path in sys.path)
    return subprocess.Popen(
        [sys.executable, "-P", "-c", "from fastpaxos.testing.replay import main; main()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": paths},
    )


def _compare(log: Sequence[AppliedBatch], answers: Any, hash_seed: int) -> None:
    for batch, (results, state) in zip(log, answers, strict=True):
        for offset, (ours, theirs) in enumerate(zip(map(repr, batch.results), results, strict=True)):
            if ours != theirs:
                raise Violation(
                    f"the result of the command {BlockView(batch.block)[offset]!r} at slot {batch.slot_begin + offset} "
                    f"is {ours} here and {theirs} in a process with PYTHONHASHSEED={hash_seed}: it depends on hash "
                    f"order, or on something else of the process",
                    checker="hash-order",
                )
        if batch.state != state:
            raise Violation(
                f"after the command {BlockView(batch.block)[len(batch.results) - 1]!r} at slot "
                f"{batch.slot_begin + len(batch.results) - 1} the digest or the snapshot is another one in a process "
                f"with PYTHONHASHSEED={hash_seed}: it depends on hash order, or on something else of the process",
                checker="hash-order",
            )


def main() -> None:
    """Be the child."""
    output, sys.stdout = sys.stdout.buffer, sys.stderr  # a machine may print
    name, logs = msgpack.unpackb(sys.stdin.buffer.read())
    answers = apply_logs(load_factory(*name), logs)
    output.write(msgpack.packb(answers))
