"""One recorder for all tests of crash states."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from crash.recording import Recorder, working_folder


@pytest.fixture(scope="session")
def recorder() -> Iterator[Recorder]:
    with working_folder() as folder, Recorder(folder) as running:
        yield running


@pytest.fixture
def folder() -> Iterator[Path]:
    """For many small files that are synced again and again."""
    with working_folder() as path:
        yield path
