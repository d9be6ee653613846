"""fastpaxos.open_files: the limit of open files is raised as far as needed and allowed, never lowered."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fastpaxos import open_files

INFINITY = -1


class Limits:
    def __init__(self, soft: int, hard: int, *, refuses: bool = False) -> None:
        self.values = (soft, hard)
        self.refuses = refuses
        self.module = SimpleNamespace(
            RLIMIT_NOFILE=7, RLIM_INFINITY=INFINITY, getrlimit=lambda what: self.values, setrlimit=self.set
        )

    def set(self, what: int, values: tuple[int, int]) -> None:
        if self.refuses:
            raise ValueError("not allowed")
        self.values = values


@pytest.mark.parametrize(
    ("before", "after", "given"),
    [
        ((1024, 4096), (3000, 4096), 3000),
        ((1024, INFINITY), (3000, INFINITY), 3000),
        ((1024, 2000), (2000, 2000), 2000),
        ((1024, 1024), (1024, 1024), 1024),
        ((5000, 9000), (5000, 9000), 3000),
        ((INFINITY, INFINITY), (INFINITY, INFINITY), 3000),
    ],
)
def test_raised_as_far_as_needed_and_allowed(
    monkeypatch: pytest.MonkeyPatch, before: tuple[int, int], after: tuple[int, int], given: int
) -> None:
    limits = Limits(*before)
    monkeypatch.setattr(open_files, "resource", limits.module)
    assert open_files.raise_open_files(3000) == given
    assert limits.values == after


def test_a_system_that_refuses_or_has_no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_files, "resource", Limits(1024, 4096, refuses=True).module)
    assert open_files.raise_open_files(3000) == 1024
    monkeypatch.setattr(open_files, "resource", None)
    assert open_files.raise_open_files(3000) == 3000
