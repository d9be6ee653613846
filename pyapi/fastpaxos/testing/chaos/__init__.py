"""Chaos: real replica processes and real TCP under faults, every call of every client recorded and checked."""

from __future__ import annotations

from fastpaxos.testing.chaos.calls import Call
from fastpaxos.testing.chaos.run import ChaosPlan, RoundReport, run_round
from fastpaxos.testing.chaos.verdict import Verdict, judge, read_evidence

__all__ = ["Call", "ChaosPlan", "RoundReport", "Verdict", "judge", "read_evidence", "run_round"]
