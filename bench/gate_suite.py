"""What `make bench-gate` guards. Any project's gate is a file like this one: docs/benchmarks.md."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import timed_pairs

from fastpaxos.testing.gate import Bound, Pair, Workload

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
REPLICAS = 3

BASELINE = BENCH / "baseline.json"

STAGES = {
    "admit": ("replica.Replica.submit",),
    "accept": ("proposer.Proposer.propose", "acceptor.Acceptor.handle_accept"),
    "vote": (
        "acceptor.Acceptor.flush_accepted", "proposer.Proposer.handle_accepted", "proposer.Proposer.count_own_votes",
    ),
    "commit": ("learner.Learner.heard_commit", "learner.Learner.commit_batch", "proposer.Proposer.commit_chosen"),
    "deliver": ("replica.Replica.next_batch", "replica.Replica.complete_batch", "replica.Replica.take_replies"),
    "frames": ("wire.FrameSplitter.feed", "wire.FrameWriter.encode_c", "proposer.Proposer.send_accepts"),
    "journal": ("journal.Journal.seal", "journal.Journal.synced"),
    "turn": (
        "replica.Replica.receive", "replica.Replica.take_write", "replica.Replica.take_messages",
        "replica.Replica.synced",
    ),
}  # fmt: skip
"""Functions of the core by stage. What they call belongs to them, down to what another stage names."""


def phase2(slot_count: int) -> Workload:
    """Batches of so many slots through three replicas, by stage."""
    batches = 256 if slot_count < 1024 else 64
    return Workload(f"phase2 {slot_count}", f"{BENCH / 'core_batches.py'}:main", batches, (slot_count,), stages=STAGES)


def phase2_small(slot_count: int) -> Workload:
    """The same with the core as one stage: of few slots, what stages share is too large a part of each to divide up."""
    return replace(phase2(slot_count), stages={"core": [name for names in STAGES.values() for name in names]})


def loop(function: str, repetitions: int, *arguments: int) -> Workload:
    """One of workloads.py, named by its function and arguments."""
    name = " ".join(map(str, [function, *arguments]))
    return Workload(name, f"{BENCH / 'workloads.py'}:{function}", repetitions, arguments)


WORKLOADS = (
    phase2_small(1), phase2_small(64), phase2(1024), phase2(4096),
    loop("encode", 512, 1, 1), loop("encode", 256, 64, 1), loop("encode", 32, 1024, 1), loop("encode", 32, 1024, 0),
    loop("decode", 512, 1), loop("decode", 64, 64), loop("decode", 8, 1024),
    loop("split", 64, 1, 1 << 20), loop("split", 32, 1024, 1 << 20), loop("split", 8, 1024, 1448),
    loop("seal", 256, 1), loop("seal", 128, 1024),
    loop("recover", 2, 16, 64), loop("recover", 2, 1024, 64),
    loop("sessions", 512, 1), loop("sessions", 512, 1024),
    loop("results", 512, 1), loop("results", 8, 1024),
    loop("put", 128, 1), loop("put", 1, 256),
    loop("fold", 256, 1), loop("fold", 64, 1024),
)  # fmt: skip

PAIRS = (
    Pair("core", timed_pairs.core, timed_pairs.fixed_work, (Bound("processor_seconds", at_most=1.2),)),
    Pair("cluster", timed_pairs.cluster, timed_pairs.floor, (
        Bound("bytes_per_second", at_least=0.15), Bound("p50", at_most=4.0), Bound("p99", at_most=10.0),
    )),
)  # fmt: skip
"""Bounds are two to three times off what two shared cores show: 0.47; 0.30, 1.4 and 3.4."""


def module_path(tree: Path) -> list[Path]:
    """What goes on the module path to count the tree of another checkout."""
    return [tree / "pyapi", tree]


def build_tree(tree: Path) -> None:
    """Build the release core of another checkout in place, with the compiler and the Cython of this environment."""
    jobs = str(os.cpu_count() or 1)
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace", "--parallel", jobs],
        cwd=tree, env={**os.environ, "FASTPAXOS_BUILD": "release", "FASTPAXOS_JOBS": jobs}, check=True,
    )  # fmt: skip
