"""Which record an operation of `bench ycsb` takes: uniform, scrambled Zipfian, or the latest most often.

Paper: Cooper, Silberstein, Tam, Ramakrishnan, Sears, "Benchmarking Cloud Serving Systems with YCSB" (SoCC 2010), for
the distributions; Gray, Sundaresan, Englert, Baclawski, Weinberger, "Quickly Generating Billion-Record Synthetic
Databases" (SIGMOD 1994), for Zipfian numbers without a table.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "DISTRIBUTIONS",
    "KeyChoice",
    "Latest",
    "ScrambledZipfian",
    "Uniform",
    "Zipfian",
    "choice_of",
    "fnv_hash",
    "zeta",
]

DISTRIBUTIONS = ("zipfian", "uniform", "latest")
THETA = 0.99
# Zipfian numbers of a far larger domain are hashed onto the records, so that collisions leave next to none unreached.
SCRAMBLED_ITEMS = 10**10
DRAWS = 1024
LATEST_DRAWS = 64
ZETA_TERMS = 10_000
FNV_OFFSET, FNV_PRIME = 0xCBF29CE484222325, 0x100000001B3


def zeta(count: int, theta: float = THETA) -> float:
    """Return the sum of i ** -theta over i = 1..count; 0 < theta < 1.

    Terms beyond the first ten thousand are summed by the Euler-Maclaurin formula, whose error is below 1e-15 there.
    """
    exact = min(count, ZETA_TERMS)
    total = _summed(exact, theta)
    if count > exact:
        first, last = float(exact), float(count)
        integral = (last ** (1 - theta) - first ** (1 - theta)) / (1 - theta)
        total += integral + (last**-theta - first**-theta) / 2
        total -= theta * (last ** (-theta - 1) - first ** (-theta - 1)) / 12
    return total


@cache
def _summed(count: int, theta: float) -> float:
    return float(np.sum(np.arange(count, 0, -1, dtype=np.float64) ** -theta))


def fnv_hash(numbers: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return the 64-bit FNV-1a hash of each number's eight bytes, lowest first."""
    octets = numbers.astype("<u8").view(np.uint8).reshape(-1, 8).astype(np.uint64)
    hashed = np.full(len(octets), FNV_OFFSET, dtype=np.uint64)
    for column in octets.T:
        hashed = (hashed ^ column) * np.uint64(FNV_PRIME)
    return hashed


class Zipfian:
    """Ranks 0..count-1, of which rank r is drawn with a probability near (r + 1) ** -theta / zeta(count): exactly that
    for the first two, and by one power function for the others (Gray et al.)."""

    def __init__(self, count: int, theta: float = THETA) -> None:
        if count < 1:
            raise ValueError(f"a Zipfian distribution needs at least one item, not {count}")
        self.count = count
        self.zeta = zeta(count, theta)
        self._second = 1.0 + 0.5**theta
        self._alpha = 1.0 / (1.0 - theta)
        # With one or two items the first two cases below are all there are.
        self._eta = (1.0 - (2.0 / count) ** (1.0 - theta)) / (1.0 - zeta(2, theta) / self.zeta) if count > 2 else 0.0

    def ranks(self, chance: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the rank for each number of `chance`, which are uniform in [0, 1)."""
        scaled = chance * self.zeta
        tail = self.count * (self._eta * chance - self._eta + 1.0) ** self._alpha
        ranks = np.minimum(tail.astype(np.int64), self.count - 1)
        return np.where(scaled < 1.0, 0, np.where(scaled < self._second, min(1, self.count - 1), ranks))


class KeyChoice(ABC):
    """Gives the numbers of records that exist, one by one. It draws many at once: a call of NumPy costs as much for a
    thousand as for one."""

    def __init__(self) -> None:
        self._drawn: list[int] = []

    @abstractmethod
    def _draw(self) -> list[int]:
        """Return the next draws."""

    def choose(self) -> int:
        """Return the number of a record that exists."""
        if not self._drawn:
            self._drawn = self._draw()
        return self._drawn.pop()


class Uniform(KeyChoice):
    """Each of the loaded records as often as any other."""

    def __init__(self, records: int, random: np.random.Generator) -> None:
        super().__init__()
        self._records = records
        self._random = random

    def _draw(self) -> list[int]:
        numbers: list[int] = self._random.integers(self._records, size=DRAWS).tolist()
        return numbers


class ScrambledZipfian(KeyChoice):
    """A few of the loaded records very often, wherever they lie: Zipfian ranks, hashed onto the records."""

    def __init__(self, records: int, random: np.random.Generator) -> None:
        super().__init__()
        self._records = records
        self._random = random
        self._zipfian = Zipfian(SCRAMBLED_ITEMS)

    def _draw(self) -> list[int]:
        hashed = fnv_hash(self._zipfian.ranks(self._random.random(DRAWS)))
        numbers: list[int] = (hashed % np.uint64(self._records)).tolist()
        return numbers


class Latest(KeyChoice):
    """The records that came last most often: Zipfian by age. `inserted` grows while this is in use."""

    def __init__(self, records: int, inserted: Sequence[int], random: np.random.Generator) -> None:
        super().__init__()
        self._records = records
        self._inserted = inserted
        self._random = random

    def _draw(self) -> list[int]:
        ages = Zipfian(self._records + len(self._inserted)).ranks(self._random.random(LATEST_DRAWS))
        # Kept as ages, and turned into numbers when they are taken: what came meanwhile is the latest then.
        drawn: list[int] = ages.tolist()
        return drawn

    def choose(self) -> int:
        """Return the number of a record that exists."""
        place = self._records + len(self._inserted) - 1 - super().choose()
        return place if place < self._records else self._inserted[place - self._records]


def choice_of(distribution: str, records: int, inserted: Sequence[int], random: np.random.Generator) -> KeyChoice:
    """Return the choice with that name of `DISTRIBUTIONS`, among `records` loaded records and those in `inserted`."""
    if distribution == "latest":
        return Latest(records, inserted, random)
    return {"zipfian": ScrambledZipfian, "uniform": Uniform}[distribution](records, random)
