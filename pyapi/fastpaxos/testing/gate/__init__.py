"""A regression gate for a noisy machine: instruction counts against a baseline, and paired ratios. docs/benchmarks.md.

    python -m fastpaxos.testing.gate SUITE.py

A suite is a Python file with `WORKLOADS` (counted by callgrind), `BASELINE` (where their counts are kept) and, if it
wants, `PAIRS` (timed beside a reference). It works for any project; nothing in it needs a cluster.
"""

from __future__ import annotations

from .baseline import Baseline, Comparison, Verdict, compare
from .callgrind import CallgrindError, Profile, Workload, count_workloads
from .pairs import Bound, Pair, PairResult, run_pair
from .reference import NoReferenceError
from .stages import functions_of_stages

__all__ = [
    "Baseline",
    "Bound",
    "CallgrindError",
    "Comparison",
    "Pair",
    "PairResult",
    "Profile",
    "NoReferenceError",
    "Verdict",
    "Workload",
    "compare",
    "count_workloads",
    "functions_of_stages",
    "run_pair",
]
