"""What is going to happen in a round of chaos, drawn from its seed before anything has begun.

Two tracks run side by side: one for processes and disks, one for the network. Each is a list of scenes: wait, break
something, hold it, mend it. Whom a scene concerns is decided when it begins ("the leader"), from its own numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

__all__ = ["NETWORK_SCENES", "PROCESS_SCENES", "Scene", "Schedule", "draw_schedule"]

# Name of the scene: how often it comes, in relation to the others of its track.
PROCESS_SCENES: Mapping[str, int] = {
    "kill_one": 24,
    "kill_leader": 24,
    "kill_all": 6,
    "kill_majority": 6,
    "kill_while_starting": 8,
    "stop_cleanly": 3,
    "pause_one": 6,
    "pause_leader": 8,
    "pause_leader_alone": 6,
    "fsync_error": 7,
    "rot": 10,
    "rot_uncommitted": 6,
}
NETWORK_SCENES: Mapping[str, int] = {
    "split": 10,
    "isolate_leader": 10,
    "isolate_one": 4,
    "one_way": 8,
    "partial": 8,
    "chained": 6,
    "flapping": 6,
    "clients_cut_off": 4,
    "delay": 6,
    "trickle": 6,
    "stall": 6,
    "break_frames": 8,
    "flip_bits": 10,
    "reset_storm": 6,
}
WAIT_S = {"process": (0.3, 2.2), "network": (0.3, 2.5)}
HOLD_S = {"process": (0.1, 2.5), "network": (0.4, 4.0)}


@dataclass(frozen=True, slots=True)
class Scene:
    """Wait `wait_s` after the scene before, then do `kind`, and mend it after `hold_s`."""

    kind: str
    wait_s: float
    hold_s: float
    seed: int
    """What is decided when the scene begins comes from this number."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """One round: its scenes and the settings of its replicas."""

    replicas: int
    seconds: float
    settings: dict[str, object]
    process: list[Scene]
    network: list[Scene]


def draw_schedule(seed: str, seconds: float, replicas: int, *, fsync_errors: bool) -> Schedule:
    """Return the round of a seed. Without `fsync_errors` the scenes that need strace are other ones."""
    random = Random(f"fastpaxos chaos {seed}")
    kinds = dict(PROCESS_SCENES)
    if not fsync_errors:
        del kinds["fsync_error"]
    settings: dict[str, object] = {
        # Small, so that segments end, old batches are read back from disk, and each start does not reserve much.
        "segment_bytes": random.choice((256 << 10, 1 << 20, 4 << 20)),
        "log_memory_bytes": random.choice((64 << 10, 1 << 20, 64 << 20)),
        "block_bytes_max": 64 << 10,
        "command_bytes_max": 32 << 10,
        "election_timeout_ms": random.choice((300, 400, 600)),
    }
    return Schedule(
        replicas,
        seconds,
        settings,
        _draw(random, "process", kinds, seconds),
        _draw(random, "network", NETWORK_SCENES, seconds),
    )


def _draw(random: Random, track: str, kinds: Mapping[str, int], seconds: float) -> list[Scene]:
    scenes: list[Scene] = []
    at = 0.0
    while True:
        wait_s, hold_s = random.uniform(*WAIT_S[track]), random.uniform(*HOLD_S[track])
        if at + wait_s + hold_s > seconds:
            return scenes
        [kind] = random.choices([*kinds], [*kinds.values()])
        scenes.append(Scene(kind, wait_s, hold_s, random.getrandbits(32)))
        at += wait_s + hold_s
