"""Swarm options: each seed draws what is done to its cluster, so that no kind of trouble hides another.

Seven worlds of eight are small (about a second, few commands): they find most bugs, and are quick to read. The others
are large. Every fault is off in some runs and strong in others.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from random import Random
from typing import Any

from .clients import ClientOptions
from .network import LinkOptions
from .options import DiskOptions, NemesisOptions, SimOptions
from .schedule import MILLISECOND_NS

__all__ = ["changed", "draw_options"]


class _Draw:
    """One generator and the two ways in which options are drawn from it."""

    def __init__(self, seed: int) -> None:
        self.random = Random(f"swarm {seed}")

    def sometimes(self, value: float, share: float = 0.5) -> float:
        """`value` in this share of the runs, else 0."""
        return value if self.random.random() < share else 0.0

    def one_of(self, *values: Any) -> Any:
        """One of these."""
        return self.random.choice(values)


def draw_options(seed: int, *, small: bool | None = None, **overrides: object) -> SimOptions:
    """Draw the options of one seed.

    Args:
        seed: of the run; the run itself draws from a generator of its own.
        small: a small world (True), a large one (False), or as the seed says.
        overrides: fields of SimOptions that are not to be drawn.
    """
    draw = _Draw(seed)
    is_small = draw.random.random() < 0.88
    if small is not None:
        is_small = small
    nodes = draw.one_of(3, 3, 3, 3, 3, 5, 5, 4, 7, 6, 2, 1)
    phase1, phase2 = 0, 0
    if nodes >= 3 and draw.random.random() < 0.2:
        phase2 = draw.random.randint(1, nodes)
        phase1 = nodes + 1 - phase2
    window_slots = draw.one_of(16, 64, 256)
    client_links = LinkOptions(
        loss=draw.sometimes(0.05),
        duplicate=draw.sometimes(0.05),
        reorder=draw.sometimes(0.1),
        replay=draw.sometimes(0.02),
        corrupt=draw.sometimes(0.01, 0.2),
    )
    values: dict[str, object] = {
        "nodes": nodes,
        "phase1_quorum": phase1,
        "phase2_quorum": phase2,
        "duration_ns": draw.one_of(400, 700, 1_200) * MILLISECOND_NS if is_small else 4_000 * MILLISECOND_NS,
        "clients": draw.one_of(1, 1, 2, 2, 4),
        "election_timeout_ms": draw.one_of(200, 400, 400, 1_000),
        "session_clients": draw.one_of(0, 1, 1) if is_small else draw.one_of(0, 1, 3),
        "machine": "hashchain",
        "turn_max_ns": draw.one_of(0, 0, MILLISECOND_NS),
        "apply_delay_max_ns": draw.one_of(0, 0, 0, 5 * MILLISECOND_NS, 50 * MILLISECOND_NS),
        "apply_step_ns": draw.one_of(0, 0, MILLISECOND_NS),
        "clock_drift_ppm": draw.one_of(200, 200, 50_000),
        "core_only": draw.random.random() < 0.4,
        "window_slots": window_slots,
        "ring_slots": 4 * window_slots,
        "log_memory_bytes": draw.one_of(0, 4 << 10, 1 << 20),
        "batch_capacity": draw.one_of(256, 256, 16),
        "segment_bytes": draw.one_of(4 << 10, 8 << 10, 64 << 10),
        "sessions_max": draw.one_of(64, 64, 64, 2),
        "links": _links(draw),
        "client_links": client_links,
        "disk": DiskOptions(
            sync_max_ns=draw.one_of(1, 10, 50) * MILLISECOND_NS,
            stall=draw.sometimes(0.01),
            inline=draw.one_of(False, True),
        ),
        "client": ClientOptions(
            pipeline=draw.one_of(1, 4, 16),
            commands_per_block_max=draw.one_of(1, 8, 16),
            think_ns=draw.one_of(10, 20, 50) * MILLISECOND_NS,
            reads=draw.one_of(0.2, 0.2, 0.6),
            command_bytes_max=draw.one_of(40, 40, 40, 200),
            retry_ns=draw.one_of(50, 100, 400) * MILLISECOND_NS,
            duplicate=draw.sometimes(0.1),
            frames_rot=client_links.corrupt > 0,
            reopen=draw.sometimes(0.02, 0.3),
        ),
        "nemesis": _nemesis(draw, is_small),
    }
    values.update(_clients(draw, values))
    values.update(overrides)
    return SimOptions(**values)  # type: ignore[arg-type]


def _clients(draw: _Draw, values: dict[str, Any]) -> dict[str, object]:
    """What session clients meet; and in some runs there are no others, and they use the key-value machine."""
    changes: dict[str, object] = {}
    if draw.random.random() < 0.15:
        changes = {"machine": "kv", "clients": 0, "session_clients": draw.random.randint(1, 4)}
    if {**values, **changes}["session_clients"]:
        changes["session_links"] = LinkOptions(
            delay_max_ns=draw.one_of(1, 1, 10) * MILLISECOND_NS, tail=draw.sometimes(0.02)
        )
        changes["nemesis"] = replace(
            values["nemesis"], reset_client=draw.sometimes(1.0), cut_client=draw.sometimes(0.7)
        )
    return changes


def _links(draw: _Draw) -> LinkOptions:
    return LinkOptions(
        delay_max_ns=draw.one_of(1, 5, 20) * MILLISECOND_NS,
        tail=draw.sometimes(0.02),
        loss=draw.sometimes(draw.random.uniform(0.0, 0.3), 0.4),
        duplicate=draw.sometimes(draw.random.uniform(0.0, 0.5), 0.4),
        reorder=draw.sometimes(draw.random.uniform(0.0, 0.3), 0.4),
        replay=draw.sometimes(draw.one_of(0.02, 0.1), 0.4),
        corrupt=draw.sometimes(0.01, 0.2),
    )


def _nemesis(draw: _Draw, is_small: bool) -> NemesisOptions:
    interval_ns = draw.one_of(30, 80, 150) if is_small else draw.one_of(50, 150, 500)
    common: dict[str, Any] = {
        "interval_ns": interval_ns * MILLISECOND_NS,
        "kill": draw.sometimes(1.0, 0.4),
        "crash_between_effects": draw.sometimes(1.0),
        "reset_connection": draw.sometimes(1.0, 0.4),
        "wall_clock_jump": draw.sometimes(0.3),
        "fail_sync": draw.sometimes(0.5, 0.25),
        "fail_write": draw.sometimes(0.5, 0.2),
        "fail_read": draw.sometimes(0.5, 0.2),
        "fill_disk": draw.sometimes(0.3, 0.15),
        "rot": draw.sometimes(draw.one_of(0.5, 2.0), 0.3),
        "rot_where": draw.one_of("minority", "minority", "striped", "everywhere"),
        "lose_disk": draw.sometimes(0.1, 0.2),
    }
    if draw.random.random() < 0.08:
        # A partial partition that lasts: only one node, or only neighbours, see each other.
        return NemesisOptions(
            interval_ns=1_500 * MILLISECOND_NS,
            crash=draw.sometimes(0.2),
            hub=1.0,
            chain=draw.sometimes(1.0),
            partial_cut=draw.sometimes(1.0),
            one_way_cut=draw.sometimes(1.0),
            heal=0.3,
            reset_connection=0.1,
        )
    if draw.random.random() < 0.3:
        # Leaders that follow each other quickly, each cut off with its proposals half accepted.
        return NemesisOptions(
            **{**common, "interval_ns": draw.one_of(30, 100) * MILLISECOND_NS},
            crash=draw.sometimes(0.3),
            partition=2.0,
            one_way_cut=draw.sometimes(1.0),
            isolate_leader=2.0,
            heal=1.5,
            pause=draw.sometimes(0.5),
            campaign=3.0,
        )
    return NemesisOptions(
        **common,
        crash=draw.sometimes(1.0, 0.7),
        crash_all=draw.sometimes(0.3, 0.3),
        partition=draw.sometimes(1.0),
        one_way_cut=draw.sometimes(0.7),
        partial_cut=draw.sometimes(0.5, 0.3),
        chain=draw.sometimes(0.3, 0.2),
        hub=draw.sometimes(0.3, 0.2),
        flap=draw.sometimes(0.3, 0.2),
        swizzle=draw.sometimes(0.3, 0.2),
        isolate_leader=draw.sometimes(1.0),
        pause=draw.sometimes(0.7),
        campaign=draw.sometimes(1.0, 0.4),
        step_down=draw.sometimes(0.5, 0.3),
    )


def changed(options: SimOptions, name: str, value: object) -> SimOptions:
    """Return options in which one field has another value; `name` is "duration_ns" or, inside a part, "links.loss".

    Raises ValueError for a name that is none.
    """
    part_name, _, field_name = name.rpartition(".")
    part: Any = getattr(options, part_name, None) if part_name else options
    if not is_dataclass(part) or field_name not in {field.name for field in fields(part)}:
        raise ValueError(f"{name!r} is no option of a simulation")
    part = replace(part, **{field_name: value})  # type: ignore[type-var]
    return replace(options, **{part_name: part}) if part_name else part
