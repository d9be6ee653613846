"""What all tests share: which build runs is printed first, and nothing is random but by a printed seed."""

from __future__ import annotations

import logging

import pytest
from hypothesis import settings

from fastpaxos_core import build_info
from fastpaxos_core.block import crc32c_implementation

# Hypothesis draws the same examples in every run of a version; a failure prints the example itself.
settings.register_profile("deterministic", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("deterministic")


def pytest_report_header() -> str:
    build = build_info()
    return (
        f"fastpaxos {build['version']}: {build['profile']} build, ring checks {'on' if build['checked'] else 'off'}, "
        f"CRC32C by {crc32c_implementation()}"
    )


@pytest.fixture
def quiet_elections() -> None:
    """Keep the simulator's thousands of elections out of the captured log."""
    logging.getLogger("fastpaxos.election").setLevel(logging.ERROR)
