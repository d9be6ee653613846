"""One directory through several lives, power cuts and failures, and every state in which a power cut can leave it."""

from __future__ import annotations

import errno
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from crash.ledger import CrashViolation, Expectation, Ledger
from crash.power_cut import Disk, Image, choices, fingerprint
from crash.recording import EVERY, KILL, Event, Fault, Recorder, Recording, Run
from crash.recovering import lay_out, recover
from journal_model import recovered_state

DATA_PATH = "nodes/three"
LIVES = 3
FAILING_CALLS = ("pwritev", "fdatasync", "fsync", "fallocate", "openat", "renameat", "pwrite", "rename", "ftruncate")


@dataclass(frozen=True, slots=True)
class CrashState:
    """What a power cut can leave at one moment, and what must then hold.

    Attributes:
        image: the files.
        expected: what must hold.
        durability, segment_bytes: of the storage.
        place: of this state, for people: life, event, choice.
    """

    image: Image
    expected: Expectation
    durability: str
    segment_bytes: int
    place: str


class Scenario:
    """Draws everything from `seed`; `states` yields each state once. The folder is used for files."""

    def __init__(self, seed: int, recorder: Recorder, folder: Path, depth: int) -> None:
        self.rng = random.Random(seed)
        self.recorder = recorder
        self.root = folder / "recorded"
        self.scratch = folder / "scratch"
        self.depth = depth
        self.counts: Counter[str] = Counter()
        rng = self.rng
        self.run = Run(
            seed,
            durability="write" if rng.random() < 0.1 else "fsync",
            segment_bytes=rng.choice((4096, 4096, 8192, 16384)),
            block_bytes_max=rng.choice((150, 700, 3000)),
        )
        self._cannot_allocate = rng.random() < 0.15
        self._kept: CrashState | None = None
        self._seen = 0

    def states(self) -> Iterator[CrashState]:
        """Every state of every life, in order.

        Raises:
            CrashViolation: a life itself found something wrong.
        """
        # Somebody else has made the directory, or the node does it.
        image: Image = {"nodes": None, DATA_PATH: None} if self.rng.random() < 0.3 else {}
        disk = Disk(str(self.root), image)
        ledger = Ledger(self.run.durability)
        lay_out(image, self.root)
        for life in range(LIVES):
            recording = self._live(life)
            self._kept, self._seen = None, 0
            yield from self._follow(life, recording, disk, ledger)
            if disk.image() != read_image(self.root):
                raise CrashViolation("the recorder missed a system call: its disk is not the real one")
            if self.rng.random() < 0.6 and self._kept is not None and self.run.durability == "fsync":
                disk, ledger = self._cut_power(self._kept)
            disk.start_process()

    def _live(self, life: int) -> Recording:
        rng = self.rng
        faults = [Fault("fallocate", EVERY, errno.EOPNOTSUPP)] if self._cannot_allocate else []
        kind = rng.random()
        if kind < 0.35:
            faults.append(Fault("any", rng.randint(1, rng.choice((30, 90, 200))), KILL))
        elif kind < 0.5:
            number = rng.choice((errno.EIO, errno.ENOSPC, errno.EDQUOT))
            faults.append(Fault(rng.choice(FAILING_CALLS), rng.randint(1, 12), number))
        run = replace(
            self.run, seed=self.run.seed * LIVES + life, steps=rng.randint(5, 50), clean=kind > 0.7, faults=faults
        )
        recording = self.recorder.record(run, self.root, self.root / DATA_PATH)
        self.counts["lives"] += 1
        self.counts["killed lives"] += recording.status == 9
        self.counts["lives ended by an error"] += recording.status == 1
        if recording.status not in (0, 1, 9):
            raise CrashViolation(f"life {life} ended with status {recording.status}")
        return recording

    def _follow(self, life: int, recording: Recording, disk: Disk, ledger: Ledger) -> Iterator[CrashState]:
        for number, event in enumerate(recording.events):
            if follow(event, disk, ledger):
                self.counts["boundaries"] += 1
                yield from self._cuts(f"life {life} event {number}", disk, ledger)

    def _cuts(self, place: str, disk: Disk, ledger: Ledger) -> Iterator[CrashState]:
        done = set()
        for number, choice in enumerate(choices(self.rng, disk.pending(), self.depth)):
            image = disk.image(choice)
            mark = fingerprint(image)
            if mark not in done:
                done.add(mark)
                state = CrashState(
                    image, ledger.now, self.run.durability, self.run.segment_bytes, f"{place} choice {number}"
                )
                self._seen += 1
                if self.rng.random() * self._seen < 1:
                    self._kept = state
                yield state

    def _cut_power(self, state: CrashState) -> tuple[Disk, Ledger]:
        """Go on with one of the states. What a recovery finds there, every later one must find, however it is cut."""
        lay_out(state.image, self.scratch)
        found = recover(self.scratch / DATA_PATH, state.durability, state.segment_bytes)
        lay_out(state.image, self.root)
        ledger = Ledger(state.durability, state.expected)
        ledger.narrow(recovered_state(found.recovery))
        self.counts["power cuts gone on from"] += 1
        return Disk(str(self.root), state.image), ledger


def follow(event: Event, disk: Disk, ledger: Ledger) -> bool:
    """Take one event; True when other states are possible now, or when other things must hold of them."""
    if event.note is not None:
        return ledger.take(event.note)
    return disk.apply(event)


def read_image(root: Path) -> Image:
    """The files below a real directory."""
    return {path.relative_to(root).as_posix(): None if path.is_dir() else path.read_bytes() for path in root.rglob("*")}
