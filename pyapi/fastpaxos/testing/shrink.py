"""Shrinking: the smallest scenario that still breaks the same property.

Options are what is shrunk: faults are switched off, nodes, clients and time taken away, one change after the other, as
long as the same checker still complains. Everything stays replayable by seed and options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields

from .campaign import Failure, run_seed
from .options import NemesisOptions, SimOptions
from .schedule import MILLISECOND_NS
from .swarm import changed

__all__ = ["Shrunk", "option_changes", "shrink"]

_CALM_FIELDS = (
    "links.loss",
    "links.duplicate",
    "links.reorder",
    "links.replay",
    "links.corrupt",
    "links.tail",
    "client_links.loss",
    "client_links.duplicate",
    "client_links.reorder",
    "client_links.replay",
    "client_links.corrupt",
    "disk.stall",
    "client.duplicate",
    "client.reopen",
    "client.reads",
    "turn_max_ns",
    "apply_delay_max_ns",
    "apply_step_ns",
    "session_clients",
    "clock_drift_ppm",
)
_NOT_WEIGHTS = ("interval_ns", "rot_where", "restart", "heal", "resume")


class Shrunk:
    """A failure and how far it could be made smaller.

    Attributes:
        failure: the smallest one found. changes: (option, value) against the options that the seed draws.
        tried: how many runs it took.
    """

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        self.changes: dict[str, object] = {}
        self.tried = 0

    def replay_command(self) -> str:
        """The command that runs the smallest scenario."""
        settings = "".join(f" --set {name}={value}" for name, value in self.changes.items())
        return f"fastpaxos sim replay {self.failure.seed}{settings}"


def option_changes(options: SimOptions) -> Iterator[tuple[str, object]]:
    """Every single change that makes a scenario simpler, the greatest ones first."""
    for duration_ms in (100, 300, 600, 1_000, 2_000):
        if duration_ms * MILLISECOND_NS < options.duration_ns:
            yield "duration_ns", duration_ms * MILLISECOND_NS
    for name in (field.name for field in fields(NemesisOptions)):
        if name not in _NOT_WEIGHTS and getattr(options.nemesis, name):
            yield f"nemesis.{name}", 0.0
    for name in _CALM_FIELDS:
        part_name, _, field_name = name.rpartition(".")
        part = getattr(options, part_name) if part_name else options
        if getattr(part, field_name):
            yield name, 0
    if options.core_only:
        yield "core_only", False
    if options.clients > 1:
        yield "clients", 1
    for nodes in (1, 2, 3):
        if nodes < options.nodes and not options.phase1_quorum:
            yield "nodes", nodes


def shrink(failure: Failure, tries_max: int = 200, note: Callable[[str], None] = lambda text: None) -> Shrunk:
    """Make the options of a failure smaller while the same checker complains.

    Args:
        failure: of a seed.
        tries_max: runs at most.
        note: told what could be left out.
    """
    best = Shrunk(failure)
    progressing = True
    while progressing and best.tried < tries_max:
        progressing = False
        for name, value in list(option_changes(best.failure.options)):
            if best.tried >= tries_max:
                break
            best.tried += 1
            smaller = run_seed(failure.seed, changed(best.failure.options, name, value)).failure
            if smaller is not None and smaller.checker == failure.checker:
                best.failure = smaller
                best.changes[name] = value
                note(f"{name}={value} still fails")
                progressing = True
                break
    return best
