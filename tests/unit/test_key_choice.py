"""The distributions of `bench ycsb` against their closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from fastpaxos.cli.key_choice import (
    DISTRIBUTIONS,
    SCRAMBLED_ITEMS,
    THETA,
    Latest,
    ScrambledZipfian,
    Uniform,
    Zipfian,
    choice_of,
    fnv_hash,
    zeta,
)

DRAWS = 200_000
# A frequency of DRAWS draws is within five standard deviations of its probability.
TOLERANCE = 5 * 0.5 / DRAWS**0.5


def generator() -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(4))


def frequencies(choice: Uniform | ScrambledZipfian | Latest, records: int) -> np.ndarray:
    drawn = [choice.choose() for _ in range(DRAWS)]
    assert 0 <= min(drawn) <= max(drawn) < records
    return np.bincount(drawn, minlength=records) / DRAWS


@pytest.mark.parametrize("count", [1, 2, 3, 9_999, 10_000, 10_001, 300_000])
def test_zeta_is_the_sum_of_its_terms(count: int) -> None:
    assert zeta(count) == pytest.approx(sum(i**-THETA for i in range(count, 0, -1)), rel=1e-12)


def test_zeta_of_the_domain_that_ycsb_scrambles_is_the_published_number() -> None:
    assert zeta(SCRAMBLED_ITEMS) == pytest.approx(26.46902820178302, rel=1e-9)


@pytest.mark.parametrize("number", [0, 1, 123_456_789, 2**62 + 5])
def test_hash_is_fnv_1a_by_its_definition(number: int) -> None:
    plain = 0xCBF29CE484222325
    for octet in number.to_bytes(8, "little"):
        plain = (plain ^ octet) * 0x100000001B3 % 2**64
    assert fnv_hash(np.array([number])).tolist() == [plain]


@pytest.mark.parametrize("count", [1, 2, 3, 10, 1_000, 100_000])
def test_ranks_are_zipfian(count: int) -> None:
    ranks = Zipfian(count).ranks(generator().random(DRAWS))
    assert ranks.min() == 0
    assert ranks.max() <= count - 1
    for below in (1, 2, 3, 10, 100, 1_000, 10_000):
        if below <= count:
            # Beyond the second rank the method itself is off by up to 0.012: it follows a curve, not the steps.
            allowed = TOLERANCE + (0.012 if below > 2 else 0)
            assert np.mean(ranks < below) == pytest.approx(zeta(below) / zeta(count), abs=allowed), below


@pytest.mark.parametrize("count", [3, 1_000, 100_000])
def test_ranks_follow_the_curve_of_the_method(count: int) -> None:
    """P(rank < k) solved from rank = count * (eta * u - eta + 1) ** alpha, for k beyond the first two."""
    eta = (1 - (2 / count) ** (1 - THETA)) / (1 - zeta(2) / zeta(count))
    ranks = Zipfian(count).ranks(generator().random(DRAWS))
    for below in (3, 10, 100, 1_000, 10_000):
        if below <= count:
            expected = 1 - (1 - (below / count) ** (1 - THETA)) / eta
            assert np.mean(ranks < below) == pytest.approx(expected, abs=TOLERANCE), below


def test_the_largest_chance_is_still_a_rank() -> None:
    ranks = Zipfian(1_000).ranks(np.array([0.0, np.nextafter(1.0, 0.0)]))
    assert ranks.tolist() == [0, 999]
    with pytest.raises(ValueError, match="at least one"):
        Zipfian(0)


def test_scrambled_ranks_lie_where_their_hashes_say() -> None:
    records = 1_000
    found = frequencies(ScrambledZipfian(records, generator()), records)
    # The popular ranks one by one; what is left of the domain falls on all records alike.
    popular = 1_000
    expected = np.zeros(records)
    weights = np.arange(1, popular + 1) ** -THETA / zeta(SCRAMBLED_ITEMS)
    np.add.at(expected, (fnv_hash(np.arange(popular)) % np.uint64(records)).astype(int), weights)
    expected += (1 - weights.sum()) / records
    assert np.abs(found - expected).max() < TOLERANCE
    top = int(fnv_hash(np.array([0]))[0] % records)
    assert found.argmax() == top
    assert found[top] > 0.037
    assert (found > 0).all()


def test_uniform_takes_all_alike() -> None:
    found = frequencies(Uniform(50, generator()), 50)
    assert np.abs(found - 1 / 50).max() < TOLERANCE


def test_latest_takes_the_newest_most_often_and_follows_inserts() -> None:
    inserted: list[int] = []
    choice = Latest(100, inserted, generator())
    found = frequencies(choice, 100)
    assert found[99] == pytest.approx(1 / zeta(100), abs=TOLERANCE)
    assert found[98] == pytest.approx(0.5**THETA / zeta(100), abs=TOLERANCE)
    inserted += [700, 501]
    drawn = [choice.choose() for _ in range(DRAWS)]
    # Numbers of inserted records need not follow each other: the order of insertion counts.
    assert np.mean([number == 501 for number in drawn]) == pytest.approx(1 / zeta(102), abs=TOLERANCE)
    assert np.mean([number == 700 for number in drawn]) == pytest.approx(0.5**THETA / zeta(102), abs=TOLERANCE)
    assert {number for number in drawn if number >= 100} == {700, 501}


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_equal_seeds_give_equal_choices(distribution: str) -> None:
    choices = [choice_of(distribution, 1_000, [], generator()) for _ in range(2)]
    first, second = ([choice.choose() for _ in range(3_000)] for choice in choices)
    assert first == second
    assert len(set(first)) > 100
