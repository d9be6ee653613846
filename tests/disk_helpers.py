"""What the tests of the simulated disk share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import pytest

from fastpaxos.testing.disk import SimDisk


def disk_with(data: bytes = b"old" * 1000, size: int = 16384) -> SimDisk:
    """A disk with one durable file."""
    disk = SimDisk()
    disk.create("a", size)
    disk.write("a", 0, [data])
    disk.sync("a")
    disk.sync_directory()
    return disk


def content(disk: SimDisk, name: str = "a") -> bytes:
    return disk.read(name, 0, disk.size(name))


def durable(disk: SimDisk, name: str = "a") -> bytes:
    """What would be left if nothing unsynced survived."""
    image = disk.copy()
    image.crash(Random(0), 0.0)
    return content(image, name)


@contextmanager
def fails(number: int) -> Iterator[None]:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is checked
        yield
    assert caught.value.errno == number
