"""The judge of the fault tests condemns what it must: each kind of wrong answer, and only those."""

from __future__ import annotations

from collections.abc import Callable

import msgpack
import pytest

from fastpaxos import DeadlineExceeded, NoLeader
from fastpaxos.testing import LogModel, Violation
from fastpaxos_core.block import build_block, build_control
from fastpaxos_core.hashchain import HashChainState
from integration.history_check import CallHistory, ReadCall, WriteCall, chain_digest, check_replicas_agree

SESSION = 1  # the slot in which it was opened


def make_log(*blocks: tuple[int, list[bytes]]) -> LogModel:
    """A log of one session and these (first sequence, commands)."""
    log = LogModel(16)
    log.append(SESSION, SESSION + 1, build_control(msgpack.packb({"op": "open_session", "nonce": bytes(16)})))
    for first_sequence, commands in blocks:
        slot = log.end_slot
        log.append(slot, slot + len(commands), build_block(commands, SESSION, first_sequence))
    return log


def digest_of(*commands: bytes) -> str:
    chain = HashChainState()
    for command in commands:
        chain.fold_one(command)
    return chain.digest.hex()


def make_history() -> CallHistory:
    """Commands a; b and c in one block; a read in between; then d, whose answer never came. The log has all of them."""
    history = CallHistory()
    history.writes = [
        WriteCall("w", [b"a"], invoked_ns=10, answered_ns=20, positions=[1]),
        WriteCall("w", [b"b", b"c"], invoked_ns=50, answered_ns=60, positions=[2, 3]),
        WriteCall("w", [b"d"], invoked_ns=70, error=DeadlineExceeded("no answer")),
        WriteCall("w", [b"e"], invoked_ns=80, error=NoLeader("never sent")),
    ]
    history.reads = [ReadCall("r", 30, 40, applied_index=2, count=1, digest=digest_of(b"a"))]
    return history


LOG = ((1, [b"a"]), (2, [b"b", b"c"]), (4, [b"d"]))


def test_a_sound_history_passes() -> None:
    make_history().check(make_log(*LOG))


def test_a_block_that_was_sent_twice_counts_once() -> None:
    make_history().check(make_log(LOG[0], LOG[1], LOG[1], LOG[2]))


def lose(history: CallHistory) -> None:
    history.writes.append(WriteCall("w", [b"f"], invoked_ns=90, answered_ns=95, positions=[5]))


def misplace(history: CallHistory) -> None:
    history.writes[1].positions = [3, 2]


def refuse_what_applied(history: CallHistory) -> None:
    history.writes[2].error = NoLeader("never sent")


def forget_to_issue(history: CallHistory) -> None:
    del history.writes[2]


def read_stale(history: CallHistory) -> None:
    history.reads.append(ReadCall("r", 65, 68, applied_index=2, count=1, digest=digest_of(b"a")))


def read_the_future(history: CallHistory) -> None:
    history.reads.insert(0, ReadCall("r", 1, 5, applied_index=5, count=4, digest=digest_of(b"a", b"b", b"c", b"d")))


def read_another_state(history: CallHistory) -> None:
    history.reads[0].digest = digest_of(b"b")


def read_half_a_block(history: CallHistory) -> None:
    history.reads.append(ReadCall("r", 55, 68, applied_index=3, count=2, digest=digest_of(b"a", b"b")))


@pytest.mark.parametrize(
    "spoil",
    [
        lose,
        misplace,
        refuse_what_applied,
        forget_to_issue,
        read_stale,
        read_the_future,
        read_another_state,
        read_half_a_block,
    ],
)
def test_a_wrong_answer_is_condemned(spoil: Callable[[CallHistory], None]) -> None:
    history = make_history()
    spoil(history)
    with pytest.raises(Violation):
        history.check(make_log(*LOG))


def test_a_command_that_applied_twice_is_condemned() -> None:
    with pytest.raises(Violation, match="applied at positions"):
        make_history().check(make_log(*LOG, (5, [b"a"])))


def test_a_write_before_its_time_is_condemned() -> None:
    # b and c ended before d began, and yet d stands before them.
    history = make_history()
    history.writes[1].positions = [3, 4]
    with pytest.raises(Violation, match="had ended before"):
        history.check(make_log((1, [b"a"]), (2, [b"d"]), (3, [b"b", b"c"])))


def test_replicas_that_differ_are_condemned() -> None:
    log, swapped, shorter = make_log(*LOG), make_log((1, [b"b", b"c"]), (3, [b"a"]), (4, [b"d"])), make_log(LOG[0])
    assert check_replicas_agree({1: log, 2: make_log(*LOG)}, dict.fromkeys((1, 2), chain_digest(log))) is log
    for other in (swapped, shorter):
        with pytest.raises(Violation):
            check_replicas_agree({1: log, 2: other}, {1: chain_digest(log), 2: chain_digest(other)})
    with pytest.raises(Violation, match="says digest"):
        check_replicas_agree({1: log, 2: make_log(*LOG)}, {1: chain_digest(log), 2: chain_digest(shorter)})
