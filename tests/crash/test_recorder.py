"""Does the recorder see every system call, and what the writer thread and an inline write do at the same time?"""

from __future__ import annotations

import os
from pathlib import Path

from crash.ledger import Ledger
from crash.power_cut import Disk
from crash.recording import HOLD, Event, Fault, Kind, Recorder, Run
from crash.recovering import check_recovered, recover
from crash.scenario import DATA_PATH, follow, read_image

SPARE = "journal-spare.temporary"


def test_the_disk_of_the_model_is_the_real_one(recorder: Recorder, tmp_path: Path) -> None:
    """A call that the recorder does not see, or an order that is not the true one, would show here."""
    disk = Disk(str(tmp_path))
    for seed in range(10):
        recording = recorder.record(Run(seed, plan="script" if seed == 0 else "random"), tmp_path, tmp_path / DATA_PATH)
        assert recording.status == 0, recording.error
        for event in recording.events:
            disk.apply(event)
        assert disk.image() == read_image(tmp_path)
        disk.start_process()


def test_a_spare_segment_is_never_prepared_over_one_that_is_ready(recorder: Recorder, tmp_path: Path) -> None:
    """While the thread prepares a spare, inline writes fill the next segment to its half and ask for one once more.

    A second one under the same name would empty the first, whose descriptor the next inline write may be writing to.
    """
    run = Run(1, plan="inline", steps=12, segment_bytes=16384, faults=[Fault("journal-spare", 10, HOLD)])
    recording = recorder.record(run, tmp_path, tmp_path / DATA_PATH)
    assert recording.status == 0, recording.error
    ready = False
    opened = 0
    for event in recording.events:
        if is_spare(event, Kind.OPEN):
            assert event.size & os.O_TRUNC
            assert not ready, "the spare segment that was ready is emptied"
            ready = True
            opened += 1
        elif is_spare(event, Kind.RENAME) or is_spare(event, Kind.UNLINK):
            ready = False
    assert opened >= 2
    disk, ledger = Disk(str(tmp_path)), Ledger("fsync")
    for event in recording.events:
        follow(event, disk, ledger)
    check_recovered(recover(tmp_path / DATA_PATH, "fsync", 16384), ledger.now)


def is_spare(event: Event, kind: Kind) -> bool:
    return event.kind == kind and event.name == SPARE and event.result >= 0
