"""Rows of the catalogue of real bugs that wait for their feature, and faults that might hide each other."""

from __future__ import annotations

from .model import NotApplicable, Pair

__all__ = ["NOT_APPLICABLE", "PAIRS", "ROWS"]

ROWS = range(1, 66)

_LEASES = "there are no leases: every read asks a quorum"
_RECONFIGURATION = "there is one configuration, the founding record"
_SNAPSHOTS = "there are no snapshots: the whole log is kept"

NOT_APPLICABLE = (
    NotApplicable(33, f"{_SNAPSHOTS}, and no prefix of it is ever dropped"),
    NotApplicable(39, _LEASES),
    NotApplicable(40, _LEASES),
    NotApplicable(41, _LEASES),
    NotApplicable(42, _RECONFIGURATION),
    NotApplicable(43, _RECONFIGURATION),
    NotApplicable(44, _RECONFIGURATION),
    NotApplicable(47, _SNAPSHOTS),
    NotApplicable(48, _SNAPSHOTS),
    NotApplicable(49, _SNAPSHOTS),
    NotApplicable(50, _SNAPSHOTS),
    NotApplicable(51, "no state machine keeps disk state of its own: state is made again from the log"),
)

PAIRS = (
    Pair((2, 16), "messages before the sync, and the own vote before the sync"),
    Pair((26, 34), "corruption as the end of the journal, and a lost disk that votes"),
    Pair((1, 111), "a promise that is forgotten, and ballots that are used again"),
    Pair((208, 202), "Prepare before the sync, and Promises to another boot"),
    Pair((711, 1026), "an Accept below commit_index is taken, and committed batches may be dropped"),
    Pair((37, 218), "reads before a commit in the own ballot, and no proposal at the start"),
)
