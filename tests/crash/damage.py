"""Damage that no power cut does: rot, lost and misdirected writes, truncation, files of other directories.

After any damage, a start either finds everything, or says by name what it does not know, or refuses the directory. It
never finds other data, and never silently less. The one excluded case (DESIGN 5.11): the damage hit the very last
writes, and everything behind them that could have named them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from crash.ledger import CrashViolation, Expectation, Ledger
from crash.power_cut import PAGE_BYTES, SECTOR_BYTES, Disk, Image
from crash.recording import Recorder, Run
from crash.recovering import Recovered, brief, describe, lay_out, recover
from crash.scenario import DATA_PATH, follow, read_image
from fastpaxos.errors import ConfigError, CorruptionError
from journal_model import SLOT_INFINITY, State, check_readable, covered

LIVES = 3
SLOTS_AHEAD_MAX = 1 << 20  # no replica accepts further above its commit_index
CASES_PER_IMAGE = 120
FIRST_WRITE_OFFSET = 1024
WRITE_MAGIC = b"FPJW"
SEGMENT_SUFFIX = ".segment"


@dataclass(frozen=True, slots=True)
class Record:
    """One write in a sound image: where it stands, and the state that it leads to."""

    path: str
    begin: int
    end: int
    number: int
    is_marker: bool


@dataclass(frozen=True, slots=True)
class SoundImage:
    """A directory after a clean stop.

    Attributes:
        image: the files.
        foreign: those of a directory of the same node with another incarnation.
        identities: the identity file as each start before the last one left it.
        expected: what must hold; one state.
        states: {write number: state after it}.
        records: all writes that a start reads, in order.
        segment_bytes: of the storage.
        place: of this image, for people.
    """

    image: Image
    foreign: Image
    identities: list[bytes]
    expected: Expectation
    states: dict[int, State]
    records: list[Record]
    segment_bytes: int
    place: str


@dataclass(frozen=True, slots=True)
class Damage:
    """What was done, for people: its kind, the file, and where."""

    kind: str
    path: str
    offset: int


@dataclass(frozen=True, slots=True)
class DamagedImage:
    """One case.

    Attributes:
        image: the files after the damage.
        expected: what held before it; `states` begins with the true state, and goes on with those that the excluded
            case allows.
        excuse: what the verdict is called if it is one of those.
        damage: what was done.
        segment_bytes: of the storage.
        place: of this case, for people.
    """

    image: Image
    expected: Expectation
    excuse: str
    damage: Damage
    segment_bytes: int
    place: str


# --- sound images -----------------------------------------------------------------------------------------------------


def sound_images(seed: int, recorder: Recorder, folder: Path) -> Iterator[SoundImage]:
    """A directory after each of its lives, all of which end cleanly."""
    rng = random.Random(seed)
    run = Run(seed, segment_bytes=rng.choice((4096, 8192, 16384)), block_bytes_max=rng.choice((150, 700, 3000)))
    foreign_root, root = folder / "foreign", folder / "recorded"
    for path in (foreign_root, root):
        lay_out({}, path)
    disk, ledger = Disk(str(root)), Ledger("fsync")
    states: dict[int, State] = {}
    identities: list[bytes] = []
    for life in range(LIVES):
        steps = rng.randint(10, 40)
        recorder.record(
            replace(run, seed=-1 - seed * LIVES - life, steps=steps), foreign_root, foreign_root / DATA_PATH
        )
        recording = recorder.record(replace(run, seed=seed * LIVES + life, steps=steps), root, root / DATA_PATH)
        if recording.status != 0:
            raise CrashViolation(f"a life of seed {seed} without faults ended by {recording.error}")
        for event in recording.events:
            follow(event, disk, ledger)
            if event.note is not None and "state" in event.note:
                # A last write that is carried over by a start has the number before the first one that is handed out.
                states[event.note["ticket"] - (event.note["what"] == "recovered")] = ledger.now.states[-1]
        disk.start_process()
        image = read_image(root)
        expected = replace(ledger.now, states=ledger.now.states[-1:])
        yield SoundImage(
            image, read_image(foreign_root), identities.copy(), expected, states, find_records(image),
            run.segment_bytes, f"seed {seed} after life {life}",
        )  # fmt: skip
        identities.append(image[DATA_PATH + "/identity"] or b"")


def find_records(image: Image) -> list[Record]:
    """All writes, found by their magic."""
    records: list[Record] = []
    for path in segments(image):
        content = image[path] or b""
        for offset in range(FIRST_WRITE_OFFSET, len(content), SECTOR_BYTES):
            if content[offset : offset + 4] == WRITE_MAGIC:
                total = int.from_bytes(content[offset + 16 : offset + 24], "little")
                number = int.from_bytes(content[offset + 24 : offset + 32], "little")
                # Of two with one number, or in a wrong order, the first one stands behind a cut.
                records = [record for record in records if record.number < number]
                records.append(Record(path, offset, offset + total, number, content[offset + 5] == 1))
    return records


def segments(image: Image) -> list[str]:
    return sorted(path for path in image if path.endswith(SEGMENT_SUFFIX))


# --- damage -----------------------------------------------------------------------------------------------------------


class Vandal:
    """Draws one damage at a time for a sound image."""

    def __init__(self, sound: SoundImage, rng: random.Random) -> None:
        self.sound = sound
        self.rng = rng
        self.segments = segments(sound.image)

    def content(self, path: str) -> bytearray:
        return bytearray(self.sound.image[path] or b"")

    def place(self) -> tuple[str, int]:
        """A file and an offset in it, mostly where something stands."""
        rng = self.rng
        if rng.random() < 0.75 and self.sound.records:
            record = rng.choice(self.sound.records[-4:] if rng.random() < 0.3 else self.sound.records)
            return record.path, rng.randrange(record.begin, record.end)
        path = rng.choice([*self.segments, DATA_PATH + "/identity"])
        size = len(self.content(path))
        if rng.random() < 0.5:
            size = min(size, FIRST_WRITE_OFFSET)
        return path, rng.randrange(size)

    def overwrite(self, path: str, begin: int, data: bytes) -> Image:
        content = self.content(path)
        data = data[: len(content) - begin]
        content[begin : begin + len(data)] = data
        return {**self.sound.image, path: bytes(content)}

    def sector(self, path: str, offset: int) -> bytes:
        return bytes(self.content(path)[offset : offset + SECTOR_BYTES])

    # One method for each kind: (image, path, offset).

    def flip_bit(self) -> tuple[Image, str, int]:
        path, offset = self.place()
        flipped = bytes([self.content(path)[offset] ^ 1 << self.rng.randrange(8)])
        return self.overwrite(path, offset, flipped), path, offset

    def flip_many(self) -> tuple[Image, str, int]:
        path, offset = self.place()
        return self.overwrite(path, offset, self.rng.randbytes(self.rng.randint(2, 64))), path, offset

    def zero_sector(self) -> tuple[Image, str, int]:
        path, offset = self.place()
        offset -= offset % SECTOR_BYTES
        return self.overwrite(path, offset, bytes(SECTOR_BYTES)), path, offset

    def zero_page(self) -> tuple[Image, str, int]:
        path, offset = self.place()
        offset -= offset % PAGE_BYTES
        return self.overwrite(path, offset, bytes(PAGE_BYTES)), path, offset

    def garbage_sector(self) -> tuple[Image, str, int]:
        path, offset = self.place()
        offset -= offset % SECTOR_BYTES
        return self.overwrite(path, offset, self.rng.randbytes(SECTOR_BYTES)), path, offset

    def truncate(self) -> tuple[Image, str, int]:
        path, offset = self.place()
        return {**self.sound.image, path: bytes(self.content(path)[:offset])}, path, offset

    def swap_sectors(self) -> tuple[Image, str, int]:
        (path, offset), (other_path, other) = self.place(), self.place()
        offset -= offset % SECTOR_BYTES
        other -= other % SECTOR_BYTES
        first, second = self.sector(path, offset), self.sector(other_path, other)
        image = self.overwrite(path, offset, second)
        content = bytearray(image[other_path] or b"")
        content[other : other + len(first)] = first[: len(content) - other]
        return {**image, other_path: bytes(content)}, path, offset

    def misdirect_write(self) -> tuple[Image, str, int]:
        """The sectors of one write also stand where another one was."""
        record = self.rng.choice(self.sound.records)
        path, offset = self.place()
        offset -= offset % SECTOR_BYTES
        return self.overwrite(path, offset, bytes(self.content(record.path)[record.begin : record.end])), path, offset

    def lose_write(self) -> tuple[Image, str, int]:
        """What the disk said it had written is not there: the old bytes, which were zeros, are."""
        record = self.rng.choice(self.sound.records)
        return self.overwrite(record.path, record.begin, bytes(record.end - record.begin)), record.path, record.begin

    def take_foreign_segment(self) -> tuple[Image, str, int]:
        path = self.rng.choice(self.segments)
        others = segments(self.sound.foreign)
        other = path if path in others and self.rng.random() < 0.7 else self.rng.choice(others)
        return {**self.sound.image, path: self.sound.foreign[other]}, path, 0

    def take_foreign_sectors(self) -> tuple[Image, str, int]:
        """Recycled sectors of an earlier file: the same place of another incarnation."""
        path, offset = self.place()
        offset -= offset % SECTOR_BYTES
        others = self.sound.foreign.get(path) or b""
        size = SECTOR_BYTES * self.rng.randint(1, 4)
        return self.overwrite(path, offset, others[offset : offset + size] or bytes(size)), path, offset

    def exchange_segments(self) -> tuple[Image, str, int]:
        path, other = self.rng.choice(self.segments), self.rng.choice(self.segments)
        image = {**self.sound.image, path: self.sound.image[other], other: self.sound.image[path]}
        return image, path, 0

    def take_old_identity(self) -> tuple[Image, str, int]:
        """The identity file as it was some starts ago: the last ones were lost, or somebody copied it back."""
        path = DATA_PATH + "/identity"
        old = self.rng.choice(self.sound.identities or [self.sound.image[path] or b""])
        return {**self.sound.image, path: old}, path, 0

    def remove_file(self) -> tuple[Image, str, int]:
        path = self.rng.choice([*self.segments, DATA_PATH + "/identity"])
        return {name: content for name, content in self.sound.image.items() if name != path}, path, 0

    KINDS = (
        flip_bit, flip_bit, flip_many, zero_sector, zero_page, garbage_sector, truncate, swap_sectors, misdirect_write,
        lose_write, take_foreign_segment, take_foreign_sectors, exchange_segments, take_old_identity, remove_file,
    )  # fmt: skip


def damages(sound: SoundImage, rng: random.Random) -> Iterator[DamagedImage]:
    """Cases of every kind; those that change nothing are left out."""
    vandal = Vandal(sound, rng)
    for number in range(CASES_PER_IMAGE if sound.records else 0):
        act = vandal.KINDS[number % len(vandal.KINDS)]
        image, path, offset = act(vandal)
        if image == sound.image:
            continue
        excused, excuse = excused_states(sound, image)
        expected = replace(sound.expected, states=(*sound.expected.states, *excused))
        damage = Damage(act.__name__, path, offset)
        yield DamagedImage(image, expected, excuse, damage, sound.segment_bytes, f"{sound.place}, {damage}")


def excused_states(sound: SoundImage, image: Image) -> tuple[list[State], str]:
    """Where the excluded case may lead: the last writes were all hit, and nothing names them that was not.

    Also says whether that is the very last write without a marker, or whether the damage took more than one of them.
    """

    def is_hit(record: Record) -> bool:
        before, after = sound.image[record.path] or b"", image.get(record.path) or b""
        return before[record.begin : record.end] != after[record.begin : record.end]

    states: list[State] = []
    for record in reversed(sound.records):
        if record.path in image and len(image[record.path] or b"") < len(sound.image[record.path] or b""):
            # A file that is too short is seen; only one that is not there at all is not.
            return [], ""
        states.append(sound.states[record.number])
        if not is_hit(record):
            break
    else:
        states.append(State())
    is_one = len(states) == 2 and not sound.records[-1].is_marker
    excuse = "excluded" if is_one else "excluded, all at the end was hit"
    return (states, excuse) if len(states) > 1 else ([], "")


# --- what a start makes of it -----------------------------------------------------------------------------------------


def check_damage(case: DamagedImage, root: Path) -> str:
    """Start on a damaged image. Returns "whole", "reported", "refused" or the excuse.

    Raises:
        CrashViolation: it lies.
    """
    lay_out(case.image, root)
    try:
        found = recover(root / DATA_PATH, "fsync", case.segment_bytes)
    except (CorruptionError, ConfigError) as error:
        if not any(name in str(error) for name in ("identity", SEGMENT_SUFFIX, "journal segment")):
            raise CrashViolation(f"refused without a name: {error}") from error
        return "refused"
    expected = case.expected
    founding = found.founding.encode() if found.founding else b""
    if found.boot <= expected.boot or found.incarnation != expected.incarnation or (founding,) != expected.founding:
        raise CrashViolation(f"taken for boot {found.boot} of {found.incarnation}, founded {founding!r}")
    try:
        check_readable(found.journal, found.directory, expected.chosen, found.recovery.commit_index, holes=True)
    except AssertionError as error:
        raise CrashViolation(f"other data is read: {error}") from error
    check_again(found, recover(root / DATA_PATH, "fsync", case.segment_bytes))
    true, *excused = expected.states
    verdict = judge(found, true)
    if verdict is not None:
        return verdict
    if any(judge(found, state) is not None for state in excused):
        return case.excuse
    raise CrashViolation(f"found {describe(found)} with {found.recovery.problems}, but true is {brief(true)}")


def check_again(found: Recovered, again: Recovered) -> None:
    """The next start knows as little as this one, of all slots that any replica can have accepted.

    (The upper end of what is unknown comes from the next good commit index: of a marker, that may be behind the cut
    afterwards, or of the header of the segment that the start itself makes.)
    """
    (state, known, unknown), (next_state, next_known, next_unknown) = found.facts, again.facts
    end_max = state.commit_index + 1 + SLOTS_AHEAD_MAX
    is_same = (state, known) == (next_state, next_known) and all(
        covered(next_unknown, begin, min(end, end_max)) for begin, end in unknown
    )
    if not is_same or (not found.is_whole and not again.recovery.problems):
        raise CrashViolation(f"found {describe(found)} with {found.recovery.problems}, the next time {describe(again)}")


def judge(found: Recovered, true: State) -> str | None:
    """What recovery says, measured by one state; None when it is less than that, and nobody is told."""
    state, promised_known, unknown = found.facts
    if state == true and found.is_whole:
        return "whole"
    if not found.recovery.problems:
        return None
    if not promised_known:
        # Promise and commit index are lower bounds, and everything above is unknown.
        is_lower = state.commit_index <= true.commit_index and state.promised_ballot <= true.promised_ballot
        is_open = unknown == [(state.commit_index + 1, SLOT_INFINITY)] and not state.batches
        return "reported" if is_lower and is_open else None
    is_same = (state.promised_ballot, state.commit_index) == (true.promised_ballot, true.commit_index)
    lost = [batch for batch in true.batches if batch not in state.batches]
    is_named = all(covered(unknown, batch.slot_begin, batch.slot_end) for batch in lost)
    return "reported" if is_same and is_named and set(state.batches) <= set(true.batches) else None
