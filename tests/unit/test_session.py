"""The client's protocol: batching, numbering, resending, refusals. Errors and leaders have files of their own."""

from __future__ import annotations

import pytest

from fake_node import CLUSTER_ID, Submitted
from fastpaxos.errors import Busy, Closed, CommandError, TooLarge
from fastpaxos.session import ConnectionState
from fastpaxos_core.results import CommandFailure, UniformResults
from fastpaxos_core.wire import ReplyStatus
from session_driver import FAR_NS, SessionDriver, limits


def sequences(submits: list[Submitted]) -> list[int]:
    return [submitted.block.first_sequence for submitted in submits]


# --- opening ----------------------------------------------------------------------------------------------------------


def test_hello_comes_first_and_names_the_client() -> None:
    driver = SessionDriver()
    (hello,) = driver.connect().hellos
    assert hello["kind"] == "client"
    assert (hello["protocol_min"], hello["protocol_max"], hello["cluster_id"]) == (1, 1, b"")
    assert driver.session.state is ConnectionState.GREETING


def test_nothing_but_hello_is_sent_before_the_node_has_greeted() -> None:
    driver = SessionDriver()
    driver.connect()
    sent = driver.submit(b"a")
    assert not sent.submits
    assert not sent.controls


def test_the_session_is_opened_through_the_log_before_commands_go_out() -> None:
    driver = SessionDriver()
    driver.connect()
    driver.submit(b"a")
    sent = driver.greet()
    assert not sent.submits
    (request,) = sent.controls
    assert request["op"] == "open_session"
    assert len(request["nonce"]) == 16
    (submitted,) = driver.receive(driver.opened(request["request_id"], 42)).submits
    assert (submitted.block.session_id, submitted.block.first_sequence, submitted.commands) == (42, 1, [b"a"])


def test_opening_is_repeated_with_the_same_nonce_until_it_is_answered() -> None:
    driver = SessionDriver()
    driver.connect()
    first = driver.greet().controls[0]
    driver.lose_connection()
    driver.connect()
    second = driver.greet().controls[0]
    assert second["nonce"] == first["nonce"]
    assert second["request_id"] != first["request_id"]
    driver.receive(driver.opened(first["request_id"], 9))
    assert driver.session.session_id == 0, "an answer to another request opens nothing"
    driver.receive(driver.opened(second["request_id"], 7))
    assert driver.session.session_id == 7


@pytest.mark.parametrize("status", [ReplyStatus.NOT_READY, ReplyStatus.BUSY])
def test_opening_waits_when_the_leader_cannot_yet(status: ReplyStatus) -> None:
    driver = SessionDriver()
    driver.connect()
    request = driver.greet().controls[0]
    error = driver.control(op="error", request_id=request["request_id"], status=int(status), message="not now")
    assert not driver.receive(error).controls
    again = driver.advance(20).controls
    assert [message["op"] for message in again] == ["open_session"]


def test_an_open_session_is_used_again_on_the_next_connection() -> None:
    driver = SessionDriver().open()
    driver.lose_connection()
    driver.connect()
    sent = driver.greet()
    assert not sent.controls
    (submitted,) = driver.submit(b"a").submits
    assert submitted.block.session_id == 7


def test_the_same_inputs_give_the_same_bytes() -> None:
    def run() -> list[bytes]:
        driver = SessionDriver(3).open()
        sent = driver.submit(b"a", b"bc").submits
        driver.refuse(sent[0], ReplyStatus.BUSY)
        return [submitted.data for submitted in sent + driver.advance(100).submits]

    assert run() == run()
    assert len(run()) == 2


# --- batching and numbering -------------------------------------------------------------------------------------------


def test_what_was_submitted_since_the_last_flush_is_one_block() -> None:
    driver = SessionDriver().open()
    (first,) = driver.submit(b"a", b"bb", b"").submits
    (second,) = driver.submit(b"d").submits
    assert first.commands == [b"a", b"bb", b""]
    assert second.commands == [b"d"]
    assert sequences([first, second]) == [1, 4]
    assert first.block.acknowledged_below == 1
    assert second.block.acknowledged_below == 1


def test_blocks_are_cut_by_count_and_by_bytes() -> None:
    driver = SessionDriver(limits=limits(commands_per_block_max=3, block_bytes_max=100, command_bytes_max=50)).open()
    sent = driver.submit(*[bytes([65 + i]) for i in range(7)]).submits
    assert [submitted.block.command_count for submitted in sent] == [3, 3, 1]
    for submitted in sent:
        driver.ok(submitted)
    sent = driver.submit(b"x" * 25, b"y" * 26, b"z").submits
    assert [submitted.commands for submitted in sent] == [[b"x" * 25, b"y" * 26], [b"z"]]
    assert all(len(submitted.data) <= 100 for submitted in sent)


def test_the_number_of_blocks_in_flight_is_limited_and_the_queue_grows_into_one_block() -> None:
    driver = SessionDriver(blocks_in_flight_max=2).open()
    first, second = driver.submit(b"a").submits + driver.submit(b"b").submits
    for command in (b"c", b"d", b"e"):
        assert not driver.submit(command).submits
    (third,) = driver.ok(first).submits
    assert third.commands == [b"c", b"d", b"e"]
    assert sequences([first, second, third]) == [1, 2, 3]


def test_bytes_in_flight_are_limited_by_the_node_too() -> None:
    driver = SessionDriver().open(limits={"inflight_bytes_per_session": 200})
    (first,) = driver.submit(b"x" * 150).submits
    assert not driver.submit(b"y" * 100).submits
    assert driver.ok(first).submits[0].commands == [b"y" * 100]


def test_one_block_may_exceed_the_bytes_in_flight_when_it_is_alone() -> None:
    driver = SessionDriver().open(limits={"inflight_bytes_per_session": 50})
    (only,) = driver.submit(b"x" * 100).submits
    assert only.commands == [b"x" * 100]


def test_acknowledged_below_is_the_oldest_unanswered_sequence() -> None:
    driver = SessionDriver().open()
    first, second = driver.submit(b"a", b"b").submits + driver.submit(b"c").submits
    driver.ok(second)
    (third,) = driver.submit(b"d").submits
    assert third.block.acknowledged_below == first.block.first_sequence == 1
    driver.ok(first)
    (fourth,) = driver.submit(b"e").submits
    assert fourth.block.acknowledged_below == third.block.first_sequence == 4


def test_a_list_is_exactly_one_block_and_keeps_its_place_between_single_commands() -> None:
    driver = SessionDriver().open()
    driver.session.submit(b"before", "before", FAR_NS)
    driver.session.submit_list([b"l1", b"l2"], "list", FAR_NS)
    driver.session.submit(b"after", "after", FAR_NS)
    sent = driver.flush().submits
    assert [submitted.commands for submitted in sent] == [[b"before"], [b"l1", b"l2"], [b"after"]]
    for submitted in sent:
        driver.ok(submitted)
    driver.answers["list"] = [*driver.answers["list"]]
    assert driver.answers == {"before": b"before", "list": [b"l1", b"l2"], "after": b"after"}


def test_the_results_of_a_list_are_made_when_they_are_asked_for() -> None:
    driver = SessionDriver().open()
    driver.session.submit_list([b"l1", b"l2"], "list", FAR_NS)
    (submitted,) = driver.flush().submits
    driver.ok(submitted)
    results = driver.answers["list"]
    assert isinstance(results, UniformResults)
    assert (len(results), results[1], results[-2], results[0:5], list(results)) == (
        2, b"l2", b"l1", [b"l1", b"l2"], [b"l1", b"l2"],
    )  # fmt: skip
    with pytest.raises(IndexError, match="result 2 of 2"):
        results[2]


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one command"):
        SessionDriver().session.submit_list([], "list", FAR_NS)


# --- results ----------------------------------------------------------------------------------------------------------


def test_results_go_to_their_callers() -> None:
    driver = SessionDriver().open()
    (submitted,) = driver.submit(b"a", b"b").submits
    driver.ok(submitted, [b"result of a", b""])
    assert driver.answers == {b"a": b"result of a", b"b": b""}


def test_a_failed_command_raises_only_at_its_own_caller() -> None:
    driver = SessionDriver().open()
    (submitted,) = driver.submit(b"a", b"b").submits
    driver.ok(submitted, [b"fine", CommandFailure("ValueError", "odd")])
    assert driver.answers[b"a"] == b"fine"
    error = driver.answers[b"b"]
    assert isinstance(error, CommandError)
    assert (error.type_name, error.message) == ("ValueError", "odd")


def test_a_failed_command_of_a_list_stands_in_the_list() -> None:
    driver = SessionDriver().open()
    driver.session.submit_list([b"a", b"b"], "list", FAR_NS)
    (submitted,) = driver.flush().submits
    driver.ok(submitted, [CommandFailure("ValueError", "odd"), b"fine"])
    error, fine = driver.answers["list"]
    assert isinstance(error, CommandError)
    assert fine == b"fine"


def test_a_second_answer_is_ignored() -> None:
    driver = SessionDriver().open()
    (submitted,) = driver.submit(b"a").submits
    driver.ok(submitted)
    driver.ok(submitted, [b"another"])
    assert driver.answers == {b"a": b"a"}
    assert driver.session.is_connected


def test_an_answer_in_another_session_is_ignored() -> None:
    driver = SessionDriver().open()
    (submitted,) = driver.submit(b"a").submits
    driver.receive(b"".join(driver.end.writer.reply(8, 1, submitted.request_id, 1, ReplyStatus.OK, 0, 1, b"")))
    assert driver.answers == {}
    assert driver.session.is_connected


# --- resending --------------------------------------------------------------------------------------------------------


def test_unanswered_blocks_are_sent_again_byte_identical_and_oldest_first() -> None:
    driver = SessionDriver().open()
    sent = driver.submit(b"a", b"b").submits + driver.submit(b"c").submits + driver.submit(b"d").submits
    driver.ok(sent[1])
    driver.lose_connection()
    driver.session.submit(b"new", b"new", FAR_NS)
    driver.connect(2)
    again = driver.greet().submits
    assert [submitted.data for submitted in again[:2]] == [sent[0].data, sent[2].data]
    assert again[2].commands == [b"new"], "new work goes behind what is unanswered"
    assert len({submitted.request_id for submitted in sent + again}) == len(sent) + len(again)
    for submitted in again:
        driver.ok(submitted)
    assert driver.order == [b"c", b"a", b"b", b"d", b"new"]


def test_not_ready_is_retried_after_ten_milliseconds() -> None:
    driver = SessionDriver().open()
    first, second = driver.submit(b"a").submits + driver.submit(b"b").submits
    assert not driver.refuse(first, ReplyStatus.NOT_READY).submits
    assert not driver.refuse(second, ReplyStatus.NOT_READY).submits
    assert not driver.submit(b"c").submits
    assert not driver.advance(9).submits
    again = driver.advance(1).submits
    assert [submitted.data for submitted in again[:2]] == [first.data, second.data]
    assert again[2].commands == [b"c"]


def test_busy_sends_again_from_the_refused_block_on() -> None:
    driver = SessionDriver().open()
    first, second, third = (driver.submit(command).submits[0] for command in (b"a", b"b", b"c"))
    driver.refuse(second, ReplyStatus.BUSY)
    driver.refuse(third, ReplyStatus.OUT_OF_ORDER)
    again = driver.advance(40).submits
    assert [submitted.data for submitted in again] == [second.data, third.data], "the first one runs there"
    for submitted in (first, *again):
        driver.ok(submitted)
    assert driver.order == [b"a", b"b", b"c"]


@pytest.mark.parametrize("status", [ReplyStatus.OUT_OF_ORDER, ReplyStatus.INVALID_SEQUENCE])
def test_a_lost_predecessor_makes_everything_be_sent_again(status: ReplyStatus) -> None:
    driver = SessionDriver().open()
    first, second = driver.submit(b"a").submits + driver.submit(b"b").submits
    driver.refuse(second, status)
    again = driver.advance(40).submits
    assert [submitted.data for submitted in again] == [first.data, second.data]
    assert driver.answers == {}, "such refusals are never shown to a caller"


def refuse_and_wait(driver: SessionDriver, sent: Submitted) -> tuple[Submitted, int]:
    """Answer Busy; return the next attempt and after how many milliseconds it came."""
    driver.refuse(sent, ReplyStatus.BUSY)
    for waited_ms in range(1, 1_000):
        for again in driver.advance(1).submits:
            return again, waited_ms
    raise AssertionError("it was not sent again")


def test_the_wait_doubles_up_to_a_cap_and_starts_again_after_progress() -> None:
    driver = SessionDriver().open()
    (sent,) = driver.submit(b"a", timeout_ms=500_000).submits
    for attempt in range(12):
        sent, waited_ms = refuse_and_wait(driver, sent)
        middle_ms = min(10 * 2**attempt, 500)
        assert middle_ms // 2 <= waited_ms <= middle_ms * 3 // 2 + 1
    driver.ok(sent)
    (sent,) = driver.submit(b"b").submits
    assert refuse_and_wait(driver, sent)[1] <= 16


def test_a_refusal_of_an_earlier_attempt_is_ignored() -> None:
    driver = SessionDriver().open()
    (sent,) = driver.submit(b"a").submits
    driver.refuse(sent, ReplyStatus.NOT_READY)
    (again,) = driver.advance(10).submits
    driver.refuse(sent, ReplyStatus.BUSY)
    assert not driver.advance(100).submits
    driver.ok(again)
    assert driver.answers == {b"a": b"a"}


# --- limits -----------------------------------------------------------------------------------------------------------


def test_too_large_is_decided_before_anything_is_sent() -> None:
    driver = SessionDriver(limits=limits(command_bytes_max=10))
    with pytest.raises(TooLarge, match="11 bytes, at most 10"):
        driver.session.submit(b"x" * 11, "w", FAR_NS)
    driver.session.submit(b"x", "small", FAR_NS)
    with pytest.raises(TooLarge, match="11 bytes, at most 10"):
        driver.session.submit(b"x" * 11, "w", FAR_NS)
    with pytest.raises(TooLarge, match="11 bytes, at most 10"):
        driver.session.submit_list([b"", b"x" * 11], "w", FAR_NS)
    with pytest.raises(TooLarge, match="11 bytes, at most 10"):
        driver.session.query(b"x" * 11, "w", FAR_NS)


def test_a_list_that_fits_no_block_is_too_large() -> None:
    driver = SessionDriver(limits=limits(commands_per_block_max=2, block_bytes_max=60))
    with pytest.raises(TooLarge, match="3 commands"):
        driver.session.submit_list([b"", b"", b""], "w", FAR_NS)
    with pytest.raises(TooLarge, match="61 bytes"):
        driver.session.submit_list([b"", b"x" * 13], "w", FAR_NS)


def test_lower_limits_of_a_node_regroup_what_is_queued() -> None:
    driver = SessionDriver()
    for command in (b"a", b"b", b"c", b"x" * 30):
        driver.session.submit(command, command, FAR_NS)
    driver.session.submit_list([b"1", b"2", b"3"], "list", FAR_NS)
    driver.session.submit(b"d", b"d", FAR_NS)
    driver.connect()
    lower = {"commands_per_block_max": 2, "command_bytes_max": 20, "block_bytes_max": 1000}
    (request,) = driver.greet(limits=lower).controls
    assert isinstance(driver.answers[b"x" * 30], TooLarge)
    assert isinstance(driver.answers["list"], TooLarge)
    sent = driver.receive(driver.opened(request["request_id"])).submits
    assert [submitted.commands for submitted in sent] == [[b"a", b"b"], [b"c", b"d"]]
    assert driver.session.limits == limits(**lower)


def test_senseless_limits_of_a_node_are_ignored() -> None:
    driver = SessionDriver().open(limits={"block_bytes_max": -1, "command_bytes_max": "x", "commands_per_block_max": 0})
    assert driver.session.limits == limits()


def test_back_pressure_counts_what_is_queued_and_what_is_unanswered() -> None:
    driver = SessionDriver(limits=limits(inflight_bytes_max=400, block_bytes_max=400)).open()
    (sent,) = driver.submit(b"x" * 100).submits
    driver.session.submit(b"y" * 20, "y", FAR_NS)
    assert driver.session.pending_bytes == 40 + 164 + 40 + 84
    assert not driver.session.has_room(100)
    with pytest.raises(Busy, match="inflight_bytes_max 400"):
        driver.session.submit(b"z" * 100, "z", FAR_NS)
    with pytest.raises(Busy):
        driver.session.submit_list([b"z" * 100], "z", FAR_NS)
    with pytest.raises(Busy):
        driver.session.query(b"z" * 100, "z", FAR_NS)
    driver.ok(sent)
    driver.session.submit(b"z" * 100, "z", FAR_NS)


def test_room_comes_back_completely() -> None:
    driver = SessionDriver().open()
    room = driver.session.room_bytes
    sent = driver.submit(b"a", b"bb").submits
    driver.session.submit_list([b"c"], "list", FAR_NS)
    sent += driver.flush().submits
    (query,) = driver.query(b"q").queries
    driver.submit(b"late", timeout_ms=0)
    assert driver.session.room_bytes < room
    for submitted in sent:
        driver.ok(submitted)
    driver.receive(driver.end.writer.query_reply(query.query_id, ReplyStatus.OK, 0, 1, b""))
    driver.advance(10)
    assert driver.session.room_bytes == room


# --- closing ----------------------------------------------------------------------------------------------------------


def test_close_waits_for_answers_and_then_closes_the_session_through_the_log() -> None:
    driver = SessionDriver().open()
    (sent,) = driver.submit(b"a").submits
    driver.session.close()
    with pytest.raises(Closed):
        driver.session.submit(b"b", b"b", FAR_NS)
    assert not driver.flush().controls
    (request,) = driver.ok(sent).controls
    assert (request["op"], request["session_id"]) == ("close_session", 7)
    assert not driver.session.is_session_closed
    driver.receive(driver.control(op="session_closed", request_id=request["request_id"], status=0))
    assert driver.session.is_session_closed
    assert not driver.flush().controls


def test_close_is_sent_again_where_it_was_refused() -> None:
    driver = SessionDriver().open()
    driver.session.close()
    (request,) = driver.flush().controls
    driver.receive(driver.control(op="error", request_id=request["request_id"], status=int(ReplyStatus.NOT_READY)))
    assert not driver.session.is_session_closed
    assert [message["op"] for message in driver.advance(20).controls] == ["close_session"]


def test_close_without_a_session_is_done_at_once() -> None:
    driver = SessionDriver()
    driver.session.close()
    driver.flush()
    assert driver.session.is_session_closed


def test_nobody_waits_for_abandoned_commands_at_close() -> None:
    driver = SessionDriver().open()
    driver.submit(b"a")
    driver.abandoned.add(b"a")
    driver.session.close()
    assert [message["op"] for message in driver.flush().controls] == ["close_session"]


def test_frames_name_the_cluster_once_it_is_known() -> None:
    driver = SessionDriver().open()
    assert driver.session.cluster_id == CLUSTER_ID
    driver.session.submit(b"a", b"a", FAR_NS)
    (frame,) = driver.end.splitter.feed(b"".join(driver.session.flush(driver.now_ns)))
    assert frame.cluster_id == CLUSTER_ID
    driver.lose_connection()
    assert driver.connect().hellos[0]["cluster_id"] == CLUSTER_ID
