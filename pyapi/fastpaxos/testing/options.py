"""What a simulation does to its cluster: one record, drawn from the seed and printed in full when a run fails."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from .clients import ClientOptions
from .network import LinkOptions
from .schedule import MILLISECOND_NS

__all__ = ["DiskOptions", "NemesisOptions", "SimOptions"]


@dataclass(frozen=True)
class DiskOptions:
    """How long syncs and reads take, in nanoseconds."""

    sync_min_ns: int = MILLISECOND_NS // 10
    sync_max_ns: int = 2 * MILLISECOND_NS
    stall: float = 0.0
    """Probability that a sync takes up to `stall_max_ns`."""
    stall_max_ns: int = 600 * MILLISECOND_NS
    read_max_ns: int = MILLISECOND_NS


@dataclass(frozen=True)
class NemesisOptions:
    """How often (per action drawn, relative weights) each thing is done to the cluster. 0 leaves it out."""

    interval_ns: int = 150 * MILLISECOND_NS
    """Longest pause between two actions."""
    crash: float = 1.0
    crash_all: float = 0.0
    restart: float = 2.0
    crash_in_recovery: float = 0.2
    """Probability that a restart dies at a random disk operation of its recovery."""
    partition: float = 1.0
    one_way_cut: float = 0.5
    isolate_leader: float = 0.5
    heal: float = 2.0
    reset_connection: float = 1.0
    pause: float = 0.5
    resume: float = 2.0
    campaign: float = 0.0
    """A node campaigns although its election did not say so: bad liveness decisions must never cost safety."""
    step_down: float = 0.0
    wall_clock_jump: float = 0.3


@dataclass(frozen=True)
class SimOptions:
    """One simulated cluster. Sizes are small, so that every limit is met."""

    nodes: int = 3
    phase1_quorum: int = 0
    phase2_quorum: int = 0
    clients: int = 3
    duration_ns: int = 4_000 * MILLISECOND_NS
    tick_ns: int = 10 * MILLISECOND_NS
    heartbeat_interval_ms: int = 50
    election_timeout_ms: int = 400
    resend_timeout_ms: int = 100
    fetch_timeout_ms: int = 200
    turn_max_ns: int = 0
    """Longest time for which a node collects inputs before it takes its outputs; 0 = after every input."""
    apply_delay_max_ns: int = 0
    """Longest time that a batch waits for the state machine."""
    window_slots: int = 64
    ring_slots: int = 256
    window_bytes: int = 16 << 10
    log_memory_bytes: int = 4 << 10
    batch_capacity: int = 256
    segment_bytes: int = 8 << 10
    sessions_max: int = 64
    links: LinkOptions = field(default_factory=LinkOptions)
    client_links: LinkOptions = field(default_factory=LinkOptions)
    disk: DiskOptions = field(default_factory=DiskOptions)
    client: ClientOptions = field(default_factory=ClientOptions)
    nemesis: NemesisOptions = field(default_factory=NemesisOptions)

    @classmethod
    def swarm(cls, random: Random, **overrides: object) -> SimOptions:
        """Draw options: every kind of trouble is on in some runs and off in others, so that none hides another."""

        def sometimes(value: float, share: float = 0.5) -> float:
            return value if random.random() < share else 0.0

        nodes = random.choice((3, 3, 3, 3, 5, 5, 2, 1))
        phase1, phase2 = 0, 0
        if nodes >= 3 and random.random() < 0.2:
            phase2 = random.randint(1, nodes)
            phase1 = nodes + 1 - phase2
        values: dict[str, object] = {
            "nodes": nodes,
            "phase1_quorum": phase1,
            "phase2_quorum": phase2,
            "clients": random.randint(1, 4),
            "turn_max_ns": random.choice((0, 0, MILLISECOND_NS)),
            "apply_delay_max_ns": random.choice((0, 0, 5 * MILLISECOND_NS, 50 * MILLISECOND_NS)),
            "window_slots": random.choice((16, 64, 256)),
            "log_memory_bytes": random.choice((0, 4 << 10, 1 << 20)),
            "segment_bytes": random.choice((4 << 10, 8 << 10, 64 << 10)),
            "sessions_max": random.choice((64, 64, 64, 2)),
            "links": LinkOptions(
                delay_max_ns=random.choice((MILLISECOND_NS, 20 * MILLISECOND_NS)),
                tail=sometimes(0.02),
                loss=sometimes(random.uniform(0.0, 0.2)),
                duplicate=sometimes(random.uniform(0.0, 0.3)),
                reorder=sometimes(random.uniform(0.0, 0.3)),
                replay=sometimes(0.02),
            ),
            "client_links": LinkOptions(
                loss=sometimes(0.05), duplicate=sometimes(0.05), reorder=sometimes(0.1), replay=sometimes(0.02)
            ),
            "disk": DiskOptions(
                sync_max_ns=random.choice((MILLISECOND_NS, 10 * MILLISECOND_NS, 50 * MILLISECOND_NS)),
                stall=sometimes(0.01),
            ),
            "client": ClientOptions(
                pipeline=random.choice((1, 4, 16)),
                commands_per_block_max=random.choice((1, 8, 16)),
                think_ns=random.choice((5, 20, 50)) * MILLISECOND_NS,
                duplicate=sometimes(0.1),
                reopen=sometimes(0.02, 0.3),
            ),
            "nemesis": NemesisOptions(
                interval_ns=random.choice((50, 150, 500)) * MILLISECOND_NS,
                crash=sometimes(1.0, 0.7),
                crash_all=sometimes(0.3, 0.3),
                partition=sometimes(1.0),
                one_way_cut=sometimes(0.7),
                isolate_leader=sometimes(1.0),
                reset_connection=sometimes(1.0),
                pause=sometimes(0.7),
                campaign=sometimes(1.0, 0.4),
                step_down=sometimes(0.5, 0.3),
            ),
        }
        if random.random() < 0.3:
            # Leaders that follow each other quickly, each cut off with its proposals half accepted.
            values["nemesis"] = NemesisOptions(
                interval_ns=random.choice((30, 100)) * MILLISECOND_NS,
                crash=sometimes(0.3),
                partition=2.0,
                one_way_cut=sometimes(1.0),
                isolate_leader=2.0,
                heal=1.5,
                reset_connection=0.5,
                pause=sometimes(0.5),
                campaign=3.0,
            )
        values["ring_slots"] = 4 * int(str(values["window_slots"]))
        values.update(overrides)
        return cls(**values)  # type: ignore[arg-type]
