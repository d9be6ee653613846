"""Which error a caller of a session gets, and when: decided over all attempts (rule 5.10)."""

from __future__ import annotations

import msgpack
import pytest

from fake_node import CLUSTER_ID, INCARNATION
from fastpaxos.errors import (
    Busy,
    Closed,
    CommandError,
    ConnectionLost,
    DeadlineExceeded,
    NoLeader,
    NotApplied,
    OutcomeUnknown,
    Rejected,
    ResultGone,
    SessionExpired,
    TooLarge,
)
from fastpaxos.session import ConnectionState
from fastpaxos_core.wire import FrameWriter, ReplyStatus
from session_driver import FAR_NS, MS, SessionDriver

# --- deadlines --------------------------------------------------------------------------------------------------------


def test_deadline_before_anything_was_sent_is_not_applied() -> None:
    driver = SessionDriver()
    driver.session.connect_failed(ConnectionRefusedError("refused by the host"), driver.now_ns)
    driver.submit(b"a", timeout_ms=100)
    driver.advance(90)
    assert driver.answers == {}
    driver.advance(10)
    error = driver.answers[b"a"]
    assert isinstance(error, NoLeader)
    assert "a:1: refused by the host" in str(error)
    assert not error.may_have_applied
    driver.open()
    assert not driver.advance(100).submits, "a dropped command is never sent later"


def test_deadline_in_the_queue_of_a_leader_that_is_reached_is_busy() -> None:
    driver = SessionDriver(blocks_in_flight_max=1).open()
    driver.submit(b"a", timeout_ms=10_000)
    driver.submit(b"b", timeout_ms=50)
    driver.advance(50)
    assert isinstance(driver.answers[b"b"], Busy)
    assert b"a" not in driver.answers


def test_a_deadline_that_passed_before_the_flush_keeps_the_command_unsent() -> None:
    driver = SessionDriver().open()
    driver.session.submit(b"late", b"late", driver.now_ns + 5)
    driver.now_ns += 10
    assert not driver.flush().submits
    assert isinstance(driver.answers[b"late"], NotApplied)


def test_deadline_after_sending_is_unknown_but_the_block_is_sent_again_all_the_same() -> None:
    driver = SessionDriver().open()
    (first,) = driver.submit(b"a", timeout_ms=50).submits
    driver.advance(60)
    error = driver.answers[b"a"]
    assert isinstance(error, DeadlineExceeded)
    assert error.may_have_applied
    assert "sent 1 time(s), last to a:1" in str(error)
    (second,) = driver.submit(b"b").submits
    driver.lose_connection()
    driver.connect(2)
    again = driver.greet().submits
    assert [submitted.data for submitted in again] == [first.data, second.data]
    for submitted in again:
        driver.ok(submitted)
    assert driver.order == [b"a", b"b"], "the late answer has nobody to go to"


def test_only_the_late_commands_of_a_block_fail() -> None:
    driver = SessionDriver().open()
    for command, timeout_ms in ((b"a", 300), (b"b", 50), (b"c", 100)):
        driver.session.submit(command, command, driver.now_ns + timeout_ms * MS)
    (sent,) = driver.flush().submits
    driver.advance(60)
    assert driver.order == [b"b"]
    driver.advance(50)
    assert driver.order == [b"b", b"c"]
    driver.ok(sent)
    assert driver.answers[b"a"] == b"a"
    assert len(driver.answers) == 3


def test_only_the_late_commands_of_the_queue_are_dropped() -> None:
    driver = SessionDriver()
    for command, timeout_ms in ((b"a", 300), (b"b", 50), (b"c", 100)):
        driver.session.submit(command, command, driver.now_ns + timeout_ms * MS)
    driver.session.submit_list([b"l"], "late list", driver.now_ns + 50 * MS)
    driver.session.submit_list([b"m"], "list", FAR_NS)
    driver.advance(110)
    assert driver.order == [b"b", "late list", b"c"]
    driver.connect()
    (request,) = driver.greet().controls
    sent = driver.receive(driver.opened(request["request_id"])).submits
    assert [submitted.commands for submitted in sent] == [[b"a"], [b"m"]]


def test_the_block_that_is_being_filled_goes_on_after_a_deadline() -> None:
    driver = SessionDriver()
    driver.submit(b"late", timeout_ms=50)
    driver.submit(b"kept", timeout_ms=5_000)
    driver.advance(60)
    driver.submit(b"next")
    driver.connect()
    (request,) = driver.greet().controls
    (sent,) = driver.receive(driver.opened(request["request_id"])).submits
    assert sent.commands == [b"kept", b"next"]


# --- cancellation -----------------------------------------------------------------------------------------------------


def test_a_command_whose_caller_has_gone_is_not_sent() -> None:
    driver = SessionDriver()
    driver.submit(b"a", b"b", b"c")
    driver.session.submit_list([b"l"], "list", FAR_NS)
    driver.abandoned |= {b"b", "list"}
    driver.connect()
    (request,) = driver.greet().controls
    (sent,) = driver.receive(driver.opened(request["request_id"])).submits
    assert sent.commands == [b"a", b"c"]
    driver.ok(sent)
    (after,) = driver.submit(b"d").submits
    assert after.block.first_sequence == 3, "what was never sent takes no sequence"


def test_a_block_of_which_nothing_is_left_is_not_sent() -> None:
    driver = SessionDriver()
    driver.submit(b"a")
    driver.abandoned.add(b"a")
    driver.open()
    assert driver.session.pending_bytes == 0
    (sent,) = driver.submit(b"b").submits
    assert sent.block.first_sequence == 1


def test_cancelling_after_sending_leaves_the_session_alone() -> None:
    driver = SessionDriver().open()
    (sent,) = driver.submit(b"a", b"b").submits
    driver.abandoned.add(b"a")
    driver.lose_connection()
    driver.connect()
    (again,) = driver.greet().submits
    assert again.data == sent.data
    driver.ok(again)
    assert driver.answers[b"b"] == b"b"


# --- the session ends -------------------------------------------------------------------------------------------------


def test_an_unknown_session_makes_what_was_sent_unknown_and_the_rest_goes_into_a_new_one() -> None:
    driver = SessionDriver(blocks_in_flight_max=2)
    driver.connect()
    (first_open,) = driver.greet().controls
    driver.receive(driver.opened(first_open["request_id"], 7))
    sent = driver.submit(b"a").submits + driver.submit(b"b").submits
    driver.submit(b"c")
    (second_open,) = driver.refuse(sent[0], ReplyStatus.SESSION_UNKNOWN).controls
    assert second_open["op"] == "open_session"
    assert second_open["nonce"] != first_open["nonce"]
    assert isinstance(driver.answers[b"a"], SessionExpired)
    assert isinstance(driver.answers[b"b"], SessionExpired)
    assert driver.answers[b"a"] is not driver.answers[b"b"]
    driver.refuse(sent[1], ReplyStatus.SESSION_UNKNOWN)
    (moved,) = driver.receive(driver.opened(second_open["request_id"], 8)).submits
    assert (moved.block.session_id, moved.block.first_sequence, moved.commands) == (8, 1, [b"c"])
    driver.ok(moved)
    assert driver.answers[b"c"] == b"c"


def test_a_result_that_is_gone_says_that_the_command_was_applied() -> None:
    driver = SessionDriver().open()
    (sent,) = driver.submit(b"a").submits
    driver.refuse(sent, ReplyStatus.RESULT_GONE)
    error = driver.answers[b"a"]
    assert isinstance(error, ResultGone)
    assert "was applied" in str(error)
    assert error.may_have_applied
    assert driver.session.pending_bytes == 0


@pytest.mark.parametrize(("status", "kind"), [(ReplyStatus.TOO_LARGE, TooLarge), (ReplyStatus.MALFORMED, Rejected)])
def test_a_block_refused_at_its_first_attempt_is_not_applied_and_ends_the_session(
    status: ReplyStatus, kind: type[NotApplied]
) -> None:
    driver = SessionDriver().open()
    first, second = driver.submit(b"a").submits + driver.submit(b"b").submits
    sent = driver.refuse(first, status)
    assert type(driver.answers[b"a"]) is kind
    assert isinstance(driver.answers[b"b"], OutcomeUnknown)
    assert [message["op"] for message in sent.controls] == ["close_session", "open_session"]
    driver.refuse(second, ReplyStatus.OUT_OF_ORDER)
    assert driver.session.state is ConnectionState.OPENING


def test_what_was_not_written_when_a_connection_ends_is_not_written_at_all() -> None:
    driver = SessionDriver().open()
    (sent,) = driver.submit(b"a").submits
    refusal = driver.end.refuse(sent, ReplyStatus.TOO_LARGE)  # the session is to be closed there
    sent_after = driver.receive(refusal + driver.control(op="leader_changed", leader_id=2, leader_address="b:2"))
    assert not driver.session.is_connected
    assert not sent_after.controls


def test_a_block_refused_at_a_later_attempt_is_unknown() -> None:
    driver = SessionDriver().open()
    driver.submit(b"a")
    driver.lose_connection()
    driver.connect(2)
    (again,) = driver.greet().submits
    driver.refuse(again, ReplyStatus.TOO_LARGE)
    assert type(driver.answers[b"a"]) is OutcomeUnknown


def test_abandon_tells_what_was_sent_from_what_was_not() -> None:
    driver = SessionDriver(blocks_in_flight_max=1).open()
    driver.submit(b"sent")
    driver.submit(b"queued")
    driver.query(b"asked")
    driver.session.query(b"not asked", b"not asked", FAR_NS)
    driver.session.abandon("the test ended")
    driver.flush()
    kinds = {waiter: type(error) for waiter, error in driver.answers.items()}
    assert kinds == {b"sent": ConnectionLost, b"queued": Closed, b"asked": ConnectionLost, b"not asked": Closed}
    assert {waiter: error.may_have_applied for waiter, error in driver.answers.items()} == {
        b"sent": True,
        b"queued": False,
        b"asked": False,
        b"not asked": False,
    }
    assert driver.session.is_idle


# --- queries ----------------------------------------------------------------------------------------------------------


def reply(driver: SessionDriver, query_id: int, status: int, result: bytes = b"", leader_hint: int = 0) -> bytes:
    return driver.end.writer.query_reply(query_id, status, leader_hint, 1, result)


def test_a_query_needs_no_session() -> None:
    driver = SessionDriver()
    driver.connect()
    driver.query(b"get")
    (query,) = driver.greet().queries
    assert query.request == b"get"
    assert 4_900 <= query.deadline_ms <= 5_000
    driver.receive(reply(driver, query.query_id, ReplyStatus.OK, b"value"))
    assert driver.answers == {b"get": b"value"}
    driver.receive(reply(driver, query.query_id, ReplyStatus.OK, b"again"))
    assert driver.session.is_connected


def test_a_query_is_asked_again_after_reconnecting() -> None:
    driver = SessionDriver().open()
    (query,) = driver.query(b"get").queries
    driver.lose_connection()
    driver.connect(2)
    (again,) = driver.greet().queries
    assert (again.query_id, again.request) == (query.query_id, b"get")


@pytest.mark.parametrize("status", [ReplyStatus.NOT_READY, ReplyStatus.BUSY])
def test_a_refused_query_is_asked_again_later_and_holds_no_commands_back(status: ReplyStatus) -> None:
    driver = SessionDriver().open()
    (query,) = driver.query(b"get").queries
    assert not driver.receive(reply(driver, query.query_id, status)).queries
    assert driver.submit(b"a").submits
    assert [again.query_id for again in driver.advance(20).queries] == [query.query_id]


def test_a_query_that_raises() -> None:
    driver = SessionDriver().open()
    (query,) = driver.query(b"get").queries
    packed = msgpack.packb(["KeyError", "nothing here"])
    driver.receive(reply(driver, query.query_id, ReplyStatus.COMMAND_ERROR, packed))
    error = driver.answers[b"get"]
    assert isinstance(error, CommandError)
    assert (error.type_name, error.message, error.may_have_applied) == ("KeyError", "nothing here", False)


@pytest.mark.parametrize("result", [b"", b"\xc1", msgpack.packb(["one"]), msgpack.packb([1, 2]), msgpack.packb({})])
def test_garbage_as_the_error_of_a_query_ends_the_connection(result: bytes) -> None:
    driver = SessionDriver().open()
    (query,) = driver.query(b"get").queries
    driver.receive(reply(driver, query.query_id, ReplyStatus.COMMAND_ERROR, result))
    assert not driver.session.is_connected
    assert driver.answers == {}


@pytest.mark.parametrize(("status", "kind"), [(ReplyStatus.TOO_LARGE, TooLarge), (ReplyStatus.MALFORMED, Rejected)])
def test_a_query_that_is_refused_for_good(status: ReplyStatus, kind: type[NotApplied]) -> None:
    driver = SessionDriver().open()
    (query,) = driver.query(b"get").queries
    driver.receive(reply(driver, query.query_id, status))
    assert isinstance(driver.answers[b"get"], kind)


def test_deadlines_of_queries() -> None:
    driver = SessionDriver()
    driver.query(b"never asked", timeout_ms=50)
    driver.advance(60)
    assert isinstance(driver.answers[b"never asked"], NoLeader)
    driver.open()
    driver.query(b"asked", timeout_ms=50)
    driver.query(b"later", timeout_ms=200)
    driver.advance(60)
    error = driver.answers[b"asked"]
    assert isinstance(error, DeadlineExceeded)
    assert (error.may_have_applied, error.retryable) == (False, True)
    assert b"later" not in driver.answers
    driver.advance(150)
    assert isinstance(driver.answers[b"later"], DeadlineExceeded)


# --- frames that do not fit -------------------------------------------------------------------------------------------


def test_results_that_do_not_fit_the_block_end_the_connection_and_the_block_is_sent_again() -> None:
    driver = SessionDriver().open()
    (sent,) = driver.submit(b"a", b"b").submits
    block = sent.block
    writer = driver.end.writer
    driver.receive(b"".join(writer.reply(block.session_id, 1, sent.request_id, 3, ReplyStatus.OK, 0, 1, b"")))
    assert not driver.session.is_connected
    driver.connect()
    (again,) = driver.greet().submits
    driver.receive(b"".join(writer.reply(block.session_id, 1, again.request_id, 2, ReplyStatus.OK, 0, 1, b"garbage")))
    assert not driver.session.is_connected
    assert driver.answers == {}
    driver.connect()
    (again,) = driver.greet().submits
    assert again.data == sent.data


def test_a_reply_must_have_the_count_of_its_block() -> None:
    driver = SessionDriver().open()
    driver.session.submit_list([b"a", b"b"], "list", FAR_NS)
    (sent,) = driver.flush().submits
    driver.receive(b"".join(driver.end.writer.reply(7, 1, sent.request_id, 3, ReplyStatus.OK, 0, 1, b"")))
    assert not driver.session.is_connected
    assert driver.answers == {}


@pytest.mark.parametrize("status", [ReplyStatus.COMMAND_ERROR, 99])
def test_a_status_that_does_not_fit_ends_the_connection(status: int) -> None:
    driver = SessionDriver().open()
    (sent,) = driver.submit(b"a").submits
    driver.refuse(sent, status)
    assert not driver.session.is_connected
    assert driver.answers == {}


@pytest.mark.parametrize("session_id", [0, -1, "7", None, True])
def test_a_senseless_session_id_ends_the_connection(session_id: object) -> None:
    driver = SessionDriver()
    driver.connect()
    (request,) = driver.greet().controls
    message = {"op": "session_opened", "request_id": request["request_id"], "session_id": session_id, "status": 0}
    driver.receive(driver.control(**message))
    assert not driver.session.is_connected
    assert driver.session.session_id == 0


def test_frames_that_no_node_sends_to_a_client_end_the_connection() -> None:
    driver = SessionDriver().open()
    driver.receive(FrameWriter(1, INCARNATION, 1, CLUSTER_ID).query(1, b"what?"))
    assert not driver.session.is_connected


def test_unknown_control_messages_are_left_alone() -> None:
    driver = SessionDriver().open()
    driver.receive(driver.control(op="news", text="of a later version"))
    driver.receive(driver.control(op="error", request_id=12345, status=3))
    driver.receive(driver.control(op="session_closed", request_id="x", status=0))
    assert driver.session.state is ConnectionState.READY
