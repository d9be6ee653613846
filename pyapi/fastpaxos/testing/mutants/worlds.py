"""Settings under which small worlds meet some faults often. Each is a part of what the swarm draws anyway.

`options` of a mutant are fields of `SimOptions`; what they leave out is drawn from the seed as always.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..clients import ClientOptions
from ..network import LinkOptions
from ..options import NemesisOptions
from ..schedule import MILLISECOND_NS

__all__ = ["DUELS", "LONE", "READS", "RESENDS", "SLOW_ECHOES"]

_MAJORITY = {"phase1_quorum": 0, "phase2_quorum": 0}
_CLIENTS = {"clients": 4, "machine": "hashchain", "client_links": LinkOptions()}

LONE: Mapping[str, object] = {"nodes": 1, **_MAJORITY}
"""One replica."""

DUELS: Mapping[str, object] = {
    "nodes": 3,
    **_MAJORITY,
    "links": LinkOptions(loss=0.2, reorder=0.2, delay_max_ns=5 * MILLISECOND_NS),
    "nemesis": NemesisOptions(
        interval_ns=30 * MILLISECOND_NS,
        partition=2.0,
        isolate_leader=2.0,
        heal=1.5,
        campaign=3.0,
        crash=0.1,
        step_down=0.5,
    ),
}
"""Leaders that follow each other quickly, with their proposals half accepted."""

RESENDS: Mapping[str, object] = {
    **DUELS,
    "small": False,
    **_CLIENTS,
    "client": ClientOptions(retry_ns=40 * MILLISECOND_NS, think_ns=10 * MILLISECOND_NS, pipeline=16, reads=0.0),
    "links": LinkOptions(loss=0.1, reorder=0.2, delay_max_ns=5 * MILLISECOND_NS),
    "nemesis": NemesisOptions(
        interval_ns=60 * MILLISECOND_NS,
        partition=2.0,
        isolate_leader=2.0,
        heal=1.5,
        campaign=3.0,
        crash=0.1,
        step_down=0.5,
    ),
}
"""Duels in which clients send everything again to the next leader at once: the log gets duplicates and gaps."""

READS: Mapping[str, object] = {
    "nodes": 3,
    **_MAJORITY,
    **_CLIENTS,
    "election_timeout_ms": 1_000,
    "client": ClientOptions(reads=0.5, think_ns=5 * MILLISECOND_NS, pipeline=4, retry_ns=40 * MILLISECOND_NS),
    "links": LinkOptions(),
    "nemesis": NemesisOptions(
        interval_ns=40 * MILLISECOND_NS,
        isolate_leader=2.0,
        heal=1.5,
        partition=1.0,
        one_way_cut=2.0,
        campaign=3.0,
        pause=1.0,
        resume=3.0,
        crash=0.0,
        reset_connection=0.0,
    ),
}
"""Deposed leaders that do not know it yet, and clients that read there while others write at the new one."""

SLOW_ECHOES: Mapping[str, object] = {
    **READS,
    "links": LinkOptions(tail=0.3, tail_max_ns=300 * MILLISECOND_NS, reorder=0.3),
}
"""The same with answers that are long on their way."""
