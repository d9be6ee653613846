"""Every system call of a node's storage, failing: EIO, ENOSPC, EINTR, and reads and writes that do only a part.

The calls are those of one scripted life in a fresh directory and of one that starts again in it: make and lock the
directory, format, found, open the journal, write inline and in the thread, new segments, a spare one, markers, read
back, close.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from crash.ledger import Ledger
from crash.power_cut import Disk, keep_all
from crash.recording import EVERY, SHORT, Event, Fault, Kind, Recorder, Recording, Run
from crash.recovering import check_image, lay_out
from crash.scenario import DATA_PATH, follow

SEGMENT_BYTES = 4096
ACTIONS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "EINTR": errno.EINTR, "short": SHORT}
FIRST = Run(5, plan="script", steps=7, segment_bytes=SEGMENT_BYTES)
SECOND = Run(6, plan="script", steps=7, segment_bytes=SEGMENT_BYTES)
LIVES = {"first": [FIRST], "second": [FIRST, SECOND]}
PARTIAL = ("read", "pread", "write", "pwrite", "pwritev")
# An interrupted call of these has, or may have, done something: it is not repeated.
FINAL_WHEN_INTERRUPTED = ("rename", "renameat", "mkdir", "fdatasync")
SPARE = "journal-spare.temporary"


@dataclass(slots=True)
class Outcome:
    """What happened in the life with the fault, and the disk and the promises after it."""

    recording: Recording
    disk: Disk
    ledger: Ledger

    @property
    def position(self) -> int | None:
        """Of the first event that the fault touched."""
        return next((number for number, event in enumerate(self.recording.events) if event.injected), None)

    def opening(self, position: int) -> Event | None:
        """The open of the descriptor that a call was about."""
        events = self.recording.events
        wanted = events[position].descriptor
        return next(
            (event for event in events[position::-1] if event.kind == Kind.OPEN and event.result == wanted), None
        )

    def name_of(self, position: int) -> str:
        """The file that a call was about; "" when it cannot be told."""
        opening = self.opening(position)
        return os.path.basename(self.recording.events[position].name or (opening.name if opening else ""))

    def is_of_writer(self, position: int) -> bool:
        """True for a call on a descriptor of the journal's writer."""
        opening = self.opening(position)
        return opening is not None and (opening.call == "openat" or bool(opening.size & os.O_DIRECTORY))


class Bench:
    """Runs the lives of a directory, the last one with faults."""

    def __init__(self, recorder: Recorder, folder: Path) -> None:
        self.recorder = recorder
        self.root = folder / "recorded"
        self.scratch = folder / "scratch"

    def run(self, lives: list[Run], *faults: Fault) -> Outcome:
        lay_out({}, self.root)
        disk, ledger = Disk(str(self.root)), Ledger("fsync")
        for number, life in enumerate(lives):
            is_last = number == len(lives) - 1
            run = Run(life.seed, plan="script", steps=7, segment_bytes=SEGMENT_BYTES, faults=faults if is_last else ())
            recording = self.recorder.record(run, self.root, self.root / DATA_PATH)
            assert is_last or recording.status == 0, recording.error
            for event in recording.events:
                follow(event, disk, ledger)
            disk.start_process()
        return Outcome(recording, disk, ledger)

    def check_afterwards(self, outcome: Outcome) -> None:
        """Everything acknowledged is there, for a process that starts now, and after a power cut."""
        for choice in (keep_all, lambda change: False):
            check_image(outcome.disk.image(choice), DATA_PATH, outcome.ledger.now, self.scratch, "fsync", SEGMENT_BYTES)


@pytest.fixture
def bench(recorder: Recorder, folder: Path) -> Bench:
    return Bench(recorder, folder)


def is_call(event: Event) -> bool:
    return event.kind not in (Kind.NOTE, Kind.SYNC_END)


def call_counts(recording: Recording) -> Counter[str]:
    return Counter(event.call for event in recording.events if is_call(event))


def cases(counts: Counter[str]) -> Iterator[tuple[str, Fault]]:
    """Each call once with each action."""
    for call, count in sorted(counts.items()):
        for number in range(1, count + 1):
            for name, action in ACTIONS.items():
                if name != "short" or call in PARTIAL:
                    yield name, Fault(call, number, action)


def is_finished(outcome: Outcome, position: int, call: str, action: str) -> bool:
    """The call is repeated or continued, and nobody notices."""
    if action == "EINTR":
        return call not in FINAL_WHEN_INTERRUPTED and not (call == "fsync" and outcome.is_of_writer(position))
    return action == "short"


def is_tolerated(outcome: Outcome, position: int, call: str) -> bool:
    """The node may do without a spare segment; what the writer closes is synced or has failed."""
    return outcome.name_of(position) == SPARE or (call == "close" and outcome.is_of_writer(position))


def check_outcome(bench: Bench, outcome: Outcome, action: str, fault: Fault) -> str:
    """What became of one fault; "unreached" when the two threads took another order in this run."""
    recording, position = outcome.recording, outcome.position
    bench.check_afterwards(outcome)
    if position is None:
        assert recording.status == 0, (fault, recording.error)
        return "unreached"
    must_finish = is_finished(outcome, position, fault.call, action)
    if recording.status == 0:
        assert must_finish or is_tolerated(outcome, position, fault.call), (fault, outcome.name_of(position))
        assert recording.notes[-1]["what"] == "closed"
        return "finished" if must_finish else "tolerated"
    error = recording.error
    assert error is not None, (fault, recording.status)
    assert not must_finish, (fault, error)
    check_error(bench, action, error)
    check_silence(outcome, position)
    return "stopped"


def check_error(bench: Bench, action: str, error: dict[str, object]) -> None:
    """It says what happened, and to which file."""
    assert error["errno"] == ACTIONS[action], error
    assert os.strerror(ACTIONS[action]) in str(error["text"]), error
    assert str(error["name"]).startswith(str(bench.root)), error
    assert str(error["name"]) in str(error["text"]), error


def check_silence(outcome: Outcome, position: int) -> None:
    """After the failure nothing is acknowledged, written, renamed or synced, and so no sync is tried again."""
    for event in outcome.recording.events[position + 1 :]:
        if event.note is not None:
            assert event.note["what"] == "error", event
        elif event.kind in (Kind.WRITE, Kind.RENAME, Kind.SYNC_BEGIN, Kind.TRUNCATE, Kind.ALLOCATE):
            pytest.fail(f"after the failure: {event}")


def check_all(bench: Bench, life: str, part: int, parts: int) -> Counter[str]:
    """Every `parts`-th case of a life, from the `part`-th on."""
    baseline = bench.run(LIVES[life])
    assert baseline.recording.status == 0, baseline.recording.error
    found: Counter[str] = Counter()
    for number, (action, fault) in enumerate(cases(call_counts(baseline.recording))):
        if number % parts == part:
            outcome = bench.run(LIVES[life], fault)
            found[check_outcome(bench, outcome, action, fault)] += 1
    return found


@pytest.mark.parametrize("life", LIVES)
def test_calls_that_fail_once(bench: Bench, life: str) -> None:
    found = check_all(bench, life, part=0, parts=7)
    assert found["finished"] > 5
    assert found["stopped"] > 20


@pytest.mark.slow
@pytest.mark.parametrize("life", LIVES)
@pytest.mark.parametrize("part", range(1, 7))
def test_every_call_that_fails_once(bench: Bench, life: str, part: int) -> None:
    check_all(bench, life, part, parts=7)


@pytest.mark.parametrize("number", range(1, 12))
def test_a_disk_that_becomes_full_in_the_middle_of_a_write(bench: Bench, number: int) -> None:
    """The kernel first writes what fits, and refuses the rest."""
    outcome = bench.run([FIRST], Fault("pwritev", number, SHORT), Fault("pwritev", number + 1, errno.ENOSPC))
    bench.check_afterwards(outcome)
    assert outcome.recording.error is not None
    assert outcome.recording.error["errno"] == errno.ENOSPC
    assert "writing failed: No space left on device; this node must stop" in outcome.recording.error["text"]


@pytest.mark.parametrize("call", ["pwritev", "pwrite"])
def test_writes_that_are_all_short(bench: Bench, call: str) -> None:
    """Each does half of what is left: the files are the same."""
    whole, short = bench.run([FIRST]), bench.run([FIRST], Fault(call, EVERY, SHORT))
    assert short.recording.status == 0
    bench.check_afterwards(short)
    assert call_counts(short.recording)[call] > 3 * call_counts(whole.recording)[call]
    assert short.ledger.now.states == whole.ledger.now.states


def test_a_file_system_without_fallocate(bench: Bench) -> None:
    outcome = bench.run([FIRST], Fault("fallocate", EVERY, errno.EOPNOTSUPP))
    assert outcome.recording.status == 0
    assert call_counts(outcome.recording)["ftruncate"] > call_counts(bench.run([FIRST]).recording)["ftruncate"]
    bench.check_afterwards(outcome)


@pytest.mark.parametrize("number", range(1, 8))
def test_after_a_failed_sync_the_next_start_believes_nothing_that_it_sees(bench: Bench, number: int) -> None:
    """The page cache shows what the disk may never get, and later syncs say nothing about it."""
    outcome = bench.run([FIRST], Fault("fdatasync", number, errno.EIO))
    assert outcome.recording.status == 1
    disk, ledger = outcome.disk, outcome.ledger
    again = bench.recorder.record(SECOND, bench.root, bench.root / DATA_PATH)
    assert again.status == 0, again.error
    for event in again.events:
        if follow(event, disk, ledger):
            image = disk.image(lambda change: False)
            check_image(image, DATA_PATH, ledger.now, bench.scratch, "fsync", SEGMENT_BYTES)
