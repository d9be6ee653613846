"""What a power cut can leave at every recorded system call: a slice of the campaign, and proof that it finds faults."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from crash.campaign import Campaign, load_case, save
from crash.ledger import CrashViolation, Ledger
from crash.power_cut import Disk, choices, keep_all
from crash.recording import KILL, Event, Fault, Kind, Recorder, Run
from crash.recovering import check_image, lay_out
from crash.scenario import DATA_PATH, CrashState, Scenario, follow

SEGMENT_BYTES = 4096


def search(recorder: Recorder, folder: Path, seed: int, states: int) -> Campaign:
    campaign = Campaign(recorder, folder, depth=3)
    campaign.search_states(seed, states)
    return campaign


@pytest.mark.parametrize("seed", range(1, 5))
def test_every_crash_state_keeps_what_was_acknowledged(recorder: Recorder, folder: Path, seed: int) -> None:
    campaign = search(recorder, folder, seed, 200)
    assert campaign.violations == [], f"python -m crash.campaign --seed {seed} --states 200 --corruptions 0"
    assert campaign.counts["states"] > 100


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 110))
def test_every_crash_state_of_more_seeds(recorder: Recorder, folder: Path, seed: int) -> None:
    campaign = search(recorder, folder, seed, 5000)
    assert campaign.violations == [], f"python -m crash.campaign --seed {seed} --states 5000 --corruptions 0"


def test_a_directory_whose_making_was_interrupted_is_made_durable(recorder: Recorder, folder: Path) -> None:
    """A process is killed while it makes its directory. The next one finds it, but its name may not be on the disk."""
    root = folder / "recorded"
    for number in range(1, 16):
        disk, ledger = Disk(str(root)), Ledger("fsync")
        lay_out({}, root)
        for faults in ([Fault("any", number, KILL)], []):
            recording = recorder.record(Run(1, steps=5, faults=faults), root, root / DATA_PATH)
            assert recording.status == (9 if faults else 0)
            for event in recording.events:
                follow(event, disk, ledger)
            disk.start_process()
        image = disk.image(lambda change: False)
        check_image(image, DATA_PATH, ledger.now, folder / "scratch", "fsync", SEGMENT_BYTES)


@pytest.mark.parametrize("number", [1, 2])
def test_a_directory_whose_name_could_not_be_synced_is_made_anew(recorder: Recorder, folder: Path, number: int) -> None:
    """Syncing the folder above a second time proves nothing."""
    root = folder / "recorded"
    disk, ledger = Disk(str(root)), Ledger("fsync")
    lay_out({}, root)
    for faults in ([Fault("fsync", number, errno.EIO)], []):
        recording = recorder.record(Run(1, steps=5, faults=faults), root, root / DATA_PATH)
        assert recording.status == (1 if faults else 0), recording.error
        for event in recording.events:
            follow(event, disk, ledger)
        disk.start_process()
    image = disk.image(lambda change: False)
    check_image(image, DATA_PATH, ledger.now, folder / "scratch", "fsync", SEGMENT_BYTES)


# --- does it find faults? ---------------------------------------------------------------------------------------------


Forgets = Callable[[Event, Disk], bool]


def nth_of(call: str, number: int) -> Forgets:
    return lambda event, disk: (event.call, event.number) == (call, number)


# Which sync is left out. In a fresh directory: fsync 1 is of the folder above, 2 and 3 are of the identity file and its
# name, 4 and 5 of the founding record, 6 of the first segment. Its name is also durable by the next sync of the
# directory, which comes before anything is written to it.
FORGOTTEN: dict[str, Forgets] = {
    "every sync of a write": lambda event, disk: event.call == "fdatasync",
    "the sync of one write": nth_of("fdatasync", 5),
    "the identity file": nth_of("fsync", 2),
    "the name of the identity file": nth_of("fsync", 3),
    "the founding record": nth_of("fsync", 4),
    "the name of the founding record": nth_of("fsync", 5),
    "the first segment": nth_of("fsync", 6),
    "the headers of later segments": lambda event, disk: (
        event.call == "fsync" and event.number > 9 and not disk.is_folder(event.descriptor)
    ),
    "the names of later segments": lambda event, disk: event.number > 9 and disk.is_folder(event.descriptor),
    "all names": lambda event, disk: disk.is_folder(event.descriptor),
}


@pytest.mark.parametrize("forgotten", FORGOTTEN)
def test_a_forgotten_sync_is_found(recorder: Recorder, folder: Path, forgotten: str) -> None:
    root = folder / "recorded"
    image = {"nodes": None, DATA_PATH: None}
    lay_out(image, root)
    disk, ledger = Disk(str(root), image), Ledger("fsync")
    recording = recorder.record(Run(3, plan="script", steps=8), root, root / DATA_PATH)

    def check_all() -> None:
        for event in recording.events:
            if event.kind in (Kind.SYNC_BEGIN, Kind.SYNC_END) and FORGOTTEN[forgotten](event, disk):
                continue
            if follow(event, disk, ledger):
                for choice in (lambda change: False, keep_all):
                    check_image(disk.image(choice), DATA_PATH, ledger.now, folder / "scratch", "fsync", SEGMENT_BYTES)

    with pytest.raises(CrashViolation):
        check_all()


def test_a_violation_is_saved_and_replayed(
    recorder: Recorder, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    states = list(Scenario(1, recorder, folder, depth=1).states())
    later = next(state for state in states if len(state.expected.states) == 1 and state.expected.states[0].commit_index)
    # An early image under what holds later: everything is lost.
    forged = CrashState(states[40].image, later.expected, later.durability, later.segment_bytes, "a forged state")
    with pytest.raises(CrashViolation) as caught:
        check_image(forged.image, DATA_PATH, forged.expected, folder / "scratch", forged.durability, 4096)
    path = save(forged, caught.value, "forged")
    case, error = load_case(path)
    assert (case, error) == (forged, str(caught.value))


def test_the_same_seed_enumerates_the_same_choices(recorder: Recorder, folder: Path) -> None:
    """For one recording; two recordings may differ in what two threads did at once."""
    lay_out({}, folder / "recorded")
    recording = recorder.record(Run(7, plan="script", steps=6), folder / "recorded", folder / "recorded" / DATA_PATH)
    images = []
    for _ in range(2):
        disk, rng = Disk(str(folder / "recorded")), random.Random(7)
        found = []
        for event in recording.events:
            if disk.apply(event):
                found += [disk.image(choice) for choice in choices(rng, disk.pending(), 2)]
        images.append(found)
    assert images[0] == images[1]
    assert len(images[0]) > 100
