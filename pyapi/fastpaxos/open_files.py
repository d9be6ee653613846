"""How many files, connections among them, this process may have open."""

from __future__ import annotations

import contextlib

try:
    import resource
except ImportError:  # not a Unix: there is no such limit to raise
    resource = None  # type: ignore[assignment]

__all__ = ["raise_open_files"]


def raise_open_files(wanted: int) -> int:
    """Make room for `wanted` open files if the system allows, and return how many there may be, at most `wanted`.

    Only the soft limit is raised, and only when it is too low. Its usual 1,024 is kept for programs that call select(),
    which an event loop does not.
    """
    if resource is None:
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        soft = raised
    return min(soft, wanted)
