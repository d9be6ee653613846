"""Processes that a test has started, or that those have started: which there are, and that they are gone."""

from __future__ import annotations

import os
import select
from pathlib import Path

__all__ = ["children_of", "wait_for_end"]

END_TIMEOUT_MS = 20_000


def children_of(process_id: int) -> list[int]:
    """The processes that a process has started and that live."""
    text = Path(f"/proc/{process_id}/task/{process_id}/children").read_text()
    return [int(word) for word in text.split()]


def wait_for_end(process_id: int) -> None:
    """Wait until a process has ended, a child of this one or not. Fails the test if it stays."""
    try:
        descriptor = os.pidfd_open(process_id)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        assert poll.poll(END_TIMEOUT_MS), f"process {process_id} lives"
    finally:
        os.close(descriptor)
