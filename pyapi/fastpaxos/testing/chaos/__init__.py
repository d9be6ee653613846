"""Chaos: real replica processes and real TCP under faults, every call of every client recorded and checked."""

from __future__ import annotations

from fastpaxos.testing.chaos.calls import Call, read_calls
from fastpaxos.testing.chaos.run import ChaosPlan, RoundReport, run_round
from fastpaxos.testing.chaos.verdict import Verdict, judge, read_applied

__all__ = ["Call", "ChaosPlan", "RoundReport", "Verdict", "judge", "read_applied", "read_calls", "run_round"]
