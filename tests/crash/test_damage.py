"""Damage that no power cut does: a slice of the campaign, and proof that it finds a recovery that lies."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from crash.campaign import Campaign
from crash.damage import Damage, DamagedImage, SoundImage, Vandal, check_damage, damages, sound_images
from crash.ledger import CrashViolation
from crash.recording import Recorder
from journal_model import State


@pytest.mark.parametrize("seed", [1, 2])
def test_damage_is_repaired_reported_or_refused(recorder: Recorder, folder: Path, seed: int) -> None:
    campaign = Campaign(recorder, folder, depth=1)
    campaign.search_damage(seed, 300)
    assert campaign.violations == [], f"python -m crash.campaign --seed {seed} --states 0 --corruptions 300"
    verdicts = Counter[str]()
    for name, count in campaign.counts.items():
        if name.startswith("damage "):
            verdicts[name.partition(": ")[2].partition(",")[0]] += count
    assert min(verdicts["whole"], verdicts["reported"], verdicts["refused"]) > 20
    assert verdicts["excluded"] < sum(verdicts.values()) // 4


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 20))
def test_damage_of_more_seeds(recorder: Recorder, folder: Path, seed: int) -> None:
    campaign = Campaign(recorder, folder, depth=1)
    campaign.search_damage(seed, 1000)
    assert campaign.violations == [], f"python -m crash.campaign --seed {seed} --states 0 --corruptions 1000"


@pytest.fixture
def sound(recorder: Recorder, folder: Path) -> SoundImage:
    _, second, _ = sound_images(4, recorder, folder)
    return second


def test_every_kind_of_damage_is_drawn(sound: SoundImage) -> None:
    kinds = {case.damage.kind for case in damages(sound, random.Random(1))}
    assert kinds == {kind.__name__ for kind in Vandal.KINDS}


def forged(sound: SoundImage, **changes: object) -> DamagedImage:
    """A directory without damage, about which something else is believed than what it holds."""
    expected = replace(sound.expected, **changes)  # type: ignore[arg-type]
    return DamagedImage(sound.image, expected, "", Damage("none", "", 0), sound.segment_bytes, "forged")


def test_a_start_that_lies_is_found(sound: SoundImage, folder: Path) -> None:
    (true,) = sound.expected.states
    assert check_damage(forged(sound), folder / "scratch") == "whole"
    lies: list[dict[str, object]] = [
        {"states": (replace(true, promised_ballot=true.promised_ballot + 1),)},
        {"states": (replace(true, commit_index=true.commit_index + 1),)},
        {"states": (replace(true, batches=true.batches[1:]),)} if true.batches else {"states": (State(),)},
        {"boot": sound.expected.boot + 1},
        {"incarnation": 1},
        {"founding": (b"",)},
        {"chosen": {slot: replace(batch, timestamp_ns=0) for slot, batch in sound.expected.chosen.items()}},
    ]
    for lie in lies:
        with pytest.raises(CrashViolation):
            check_damage(forged(sound, **lie), folder / "scratch")
