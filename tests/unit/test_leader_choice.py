"""Which node a client talks to: redirects, silence, refusals, rotation and waits."""

from __future__ import annotations

import random

import pytest

from fake_node import CLUSTER_ID, OTHER_CLUSTER_ID
from fastpaxos.errors import ConfigError, DeadlineExceeded, NoLeader
from fastpaxos.leader_choice import LeaderChoice
from fastpaxos.session import ConnectionState
from fastpaxos_core.wire import ReplyStatus
from session_driver import FAR_NS, MEMBERS, MS, SessionDriver


def choice(seed: int = 1) -> LeaderChoice:
    return LeaderChoice(MEMBERS, random=random.Random(seed))


# --- the choice alone -------------------------------------------------------------------------------------------------


def test_addresses_are_tried_in_turn() -> None:
    chosen = choice()
    tried = []
    for _ in range(7):
        tried.append(chosen.target)
        chosen.failed(chosen.target, OSError("no"), 0)
    assert tried == ["a:1", "b:2", "c:3", "a:1", "b:2", "c:3", "a:1"]


def test_the_first_failure_after_progress_is_followed_up_at_once_and_waits_grow_by_round() -> None:
    chosen = choice()
    waits_ms = []
    for attempt in range(60):
        chosen.failed(chosen.target, OSError("no"), attempt)
        waits_ms.append(chosen.wait_ns(attempt) / MS)
    assert waits_ms[0] == 0
    for attempt, wait_ms in enumerate(waits_ms[1:], 1):
        middle_ms = min(10 * 2 ** (attempt // 3), 250)
        assert middle_ms / 2 <= wait_ms <= middle_ms * 1.5
    chosen.progressed(chosen.target)
    chosen.failed(chosen.target, OSError("no"), 100)
    assert chosen.wait_ns(100) == 0


def test_waits_are_jittered_but_reproducible() -> None:
    def waits(seed: int) -> list[int]:
        chosen = choice(seed)
        result = []
        for _ in range(10):
            chosen.failed(chosen.target, OSError("no"), 0)
            result.append(chosen.wait_ns(0))
        return result

    assert waits(1) == waits(1)
    assert waits(1) != waits(2)


def test_a_hint_is_followed_by_its_configured_address() -> None:
    chosen = choice()
    assert chosen.redirect(3, "somewhere:9", 0)
    assert chosen.target == "c:3"
    assert chosen.leader_id == 3


def test_a_hint_to_an_unknown_node_needs_an_address() -> None:
    chosen = choice()
    assert not chosen.redirect(9, "", 0)
    assert chosen.redirect(9, "somewhere:9", 0)
    assert chosen.target == "somewhere:9"
    chosen.failed("somewhere:9", OSError("no"), 0)
    assert chosen.target == "a:1"


def test_a_hint_to_what_failed_a_moment_ago_is_not_followed() -> None:
    chosen = choice()
    chosen.failed("c:3", OSError("no"), 0)
    assert not chosen.redirect(3, "", 249 * MS)
    assert chosen.redirect(3, "", 250 * MS)


def test_a_node_that_only_knew_no_leader_may_become_it() -> None:
    chosen = choice()
    chosen.failed("a:1", NoLeader("not me"), 0)
    assert chosen.target == "b:2"
    assert chosen.redirect(1, "", 1)
    assert chosen.target == "a:1"


def test_hints_in_a_circle_come_to_an_end() -> None:
    chosen = choice()
    followed = sum(chosen.redirect(1 + step % 2, "", 0) for step in range(1_000))
    assert followed < 10


def test_what_nodes_say_about_members_is_bounded_and_overrules_nothing() -> None:
    chosen = choice()
    chosen.learn({node_id: f"host:{node_id}" for node_id in range(1, 1_000)})
    assert chosen.members[1] == "a:1"
    assert chosen.members[4] == "host:4"
    assert len(chosen.members) == 16
    for port in range(10_000):
        chosen.failed(f"nowhere:{port}", OSError("no"), 0)
    assert len(chosen.errors) < 100


def test_seeds_without_ids_learn_them() -> None:
    chosen = LeaderChoice({}, ["x:1", "y:2"], random=random.Random(1))
    assert chosen.target == "x:1"
    chosen.learn({1: "a:1", 2: "y:2"})
    assert chosen.addresses == ["x:1", "y:2", "a:1"]
    assert chosen.redirect(2, "", 0)
    assert chosen.target == "y:2"


def test_a_client_needs_an_address() -> None:
    with pytest.raises(ValueError, match="at least one address"):
        LeaderChoice({}, random=random.Random(1))


# --- the session at a node that does not lead -------------------------------------------------------------------------


def test_a_hello_that_names_another_leader_is_followed_at_once() -> None:
    driver = SessionDriver()
    driver.connect(1)
    driver.submit(b"a")
    driver.greet(3)
    assert not driver.session.is_connected
    assert driver.session.address == "c:3"
    assert driver.session.wait_ns(driver.now_ns) == 0
    assert driver.session.choice.leader_id == 3


def test_not_leader_is_followed_and_everything_is_sent_there() -> None:
    driver = SessionDriver().open()
    first, second = driver.submit(b"a").submits + driver.submit(b"b").submits
    driver.refuse(first, ReplyStatus.NOT_LEADER, leader_hint=2)
    assert not driver.session.is_connected
    assert driver.session.address == "b:2"
    driver.connect(2)
    again = driver.greet().submits
    assert [submitted.data for submitted in again] == [first.data, second.data]
    for submitted in again:
        driver.ok(submitted)
    assert driver.order == [b"a", b"b"]


def test_a_query_is_redirected_too() -> None:
    driver = SessionDriver().open()
    (query,) = driver.query(b"get").queries
    driver.receive(driver.end.writer.query_reply(query.query_id, ReplyStatus.NOT_LEADER, 2, 0))
    assert driver.session.address == "b:2"
    driver.connect(2)
    assert [again.query_id for again in driver.greet().queries] == [query.query_id]


def test_opening_a_session_is_redirected_too() -> None:
    driver = SessionDriver()
    driver.connect()
    (request,) = driver.greet().controls
    error = {"op": "error", "request_id": request["request_id"], "status": int(ReplyStatus.NOT_LEADER)}
    driver.receive(driver.control(**error, leader_id=3, leader_address="c:3", message="not here"))
    assert driver.session.address == "c:3"


def test_without_a_known_leader_the_client_waits_for_news() -> None:
    driver = SessionDriver()
    driver.connect(1)
    driver.submit(b"a")
    sent = driver.greet(0)
    assert driver.session.state is ConnectionState.WAITING
    assert not sent.submits
    assert not sent.controls
    (request,) = driver.receive(driver.control(op="leader_changed", leader_id=1, leader_address="a:1")).controls
    assert request["op"] == "open_session"


def test_patience_with_a_node_that_knows_no_leader_is_short() -> None:
    driver = SessionDriver()
    driver.connect(1)
    driver.greet(0)
    driver.advance(100)
    assert driver.session.is_connected
    driver.advance(10)
    assert not driver.session.is_connected
    assert driver.session.address == "b:2"


def test_a_leader_that_steps_down_is_not_sent_anything_more() -> None:
    driver = SessionDriver().open()
    (sent,) = driver.submit(b"a").submits
    driver.receive(driver.control(op="leader_changed", leader_id=0, leader_address=""))
    assert driver.session.state is ConnectionState.WAITING
    assert not driver.submit(b"b").submits
    driver.ok(sent)
    assert driver.answers == {b"a": b"a"}, "an answer on its way still counts"
    (after,) = driver.receive(driver.control(op="leader_changed", leader_id=1, leader_address="")).submits
    assert after.commands == [b"b"]


def test_a_hint_to_a_dead_leader_does_not_make_the_client_bounce() -> None:
    driver = SessionDriver().open()
    driver.lose_connection()
    assert driver.session.address == "b:2"
    driver.connect(2)
    driver.greet(1)
    assert driver.session.state is ConnectionState.WAITING, "node 1 was lost a moment ago"
    driver.receive(driver.control(op="leader_changed", leader_id=3, leader_address="c:3"))
    assert driver.session.address == "c:3"


def test_a_node_that_shuts_down_is_left() -> None:
    driver = SessionDriver().open()
    (sent,) = driver.submit(b"a").submits
    driver.refuse(sent, ReplyStatus.CLOSING)
    assert not driver.session.is_connected
    assert driver.session.address == "b:2"


def test_not_leader_that_names_the_node_itself_is_retried_there() -> None:
    driver = SessionDriver().open()
    (sent,) = driver.submit(b"a").submits
    driver.refuse(sent, ReplyStatus.NOT_LEADER, leader_hint=1)
    assert driver.session.is_connected
    (again,) = driver.advance(10).submits
    assert again.data == sent.data


# --- silence ----------------------------------------------------------------------------------------------------------


def test_a_node_that_owes_an_answer_and_is_silent_is_left() -> None:
    driver = SessionDriver(silence_timeout_ms=300).open()
    driver.advance(10_000)
    assert driver.session.is_connected, "an idle connection may be silent"
    (sent,) = driver.submit(b"a", timeout_ms=20_000).submits
    driver.advance(300)
    assert driver.session.is_connected
    driver.advance(10)
    assert not driver.session.is_connected
    driver.connect(2)
    assert driver.greet().submits[0].data == sent.data


def test_patience_doubles_while_nothing_is_answered() -> None:
    driver = SessionDriver(silence_timeout_ms=300).open()
    driver.submit(b"a", timeout_ms=900_000)
    patience_ms = []
    for attempt in range(8):
        begin_ns = driver.now_ns
        while driver.session.is_connected:
            driver.advance(10)
        patience_ms.append((driver.now_ns - begin_ns) // MS)
        driver.connect(1 + attempt % 3)
        driver.greet()
    assert patience_ms == [310, 610, 1_210, 2_410, 4_810, 8_010, 8_010, 8_010]


def test_a_node_that_never_says_hello_is_left() -> None:
    driver = SessionDriver(silence_timeout_ms=300)
    driver.connect()
    driver.advance(310)
    assert not driver.session.is_connected


def test_a_silent_query_is_asked_elsewhere() -> None:
    driver = SessionDriver(silence_timeout_ms=300).open()
    (query,) = driver.query(b"get", timeout_ms=500).queries
    driver.advance(310)
    driver.connect(2)
    assert [again.query_id for again in driver.greet().queries] == [query.query_id]
    driver.advance(500)
    assert isinstance(driver.answers[b"get"], DeadlineExceeded)


# --- nodes that cannot be worked with ---------------------------------------------------------------------------------


def refuse_hello(driver: SessionDriver, reason: str) -> None:
    driver.connect()
    driver.receive(driver.control(op="refused", reason=reason, message=f"no {reason}"))


def test_a_cluster_that_is_another_one_everywhere_fails_what_was_not_sent() -> None:
    driver = SessionDriver(members={1: "a:1"}).open()
    (sent,) = driver.submit(b"sent").submits
    driver.lose_connection()
    driver.session.submit(b"queued", b"queued", FAR_NS)
    driver.connect()
    driver.query(b"get")
    driver.greet(cluster_id=OTHER_CLUSTER_ID)
    assert not driver.session.is_connected
    for waiter in (b"queued", b"get"):
        error = driver.answers[waiter]
        assert isinstance(error, ConfigError)
        assert CLUSTER_ID.hex() in str(error)
        assert OTHER_CLUSTER_ID.hex() in str(error)
    assert b"sent" not in driver.answers, "what was sent may have been applied"
    driver.connect()
    assert driver.greet().submits[0].data == sent.data
    assert driver.session.unusable == ""


def test_one_wrong_address_among_good_ones_does_no_harm() -> None:
    driver = SessionDriver().open()
    driver.lose_connection()
    driver.submit(b"a")
    driver.connect(2)
    driver.greet(cluster_id=OTHER_CLUSTER_ID)
    assert driver.answers == {}
    assert driver.session.address == "c:3"


@pytest.mark.parametrize("fields", [{"protocol_min": 2, "protocol_max": 3}, {"group_id": 5}])
def test_protocol_and_group_must_fit(fields: dict[str, int]) -> None:
    driver = SessionDriver(members={1: "a:1"})
    driver.submit(b"a")
    driver.connect()
    driver.greet(**fields)
    assert isinstance(driver.answers[b"a"], ConfigError)
    assert driver.session.unusable


@pytest.mark.parametrize("reason", ["cluster", "protocol", "group", "kind"])
def test_a_refusal_that_will_not_go_away_is_told_to_callers(reason: str) -> None:
    driver = SessionDriver(members={1: "a:1"})
    driver.submit(b"a")
    refuse_hello(driver, reason)
    error = driver.answers[b"a"]
    assert isinstance(error, ConfigError)
    assert f"a:1 refused this client ({reason}): no {reason}" in str(error)


def test_a_refusal_for_now_is_tried_again_elsewhere() -> None:
    driver = SessionDriver()
    driver.submit(b"a", timeout_ms=100)
    refuse_hello(driver, "connections")
    assert driver.answers == {}
    assert driver.session.address == "b:2"
    driver.advance(110)
    error = driver.answers[b"a"]
    assert isinstance(error, NoLeader)
    assert "a:1 refused this client (connections)" in str(error)


def test_an_unfounded_node_teaches_no_cluster_id() -> None:
    driver = SessionDriver()
    driver.connect()
    driver.greet(0, cluster_id=b"")
    assert driver.session.cluster_id == b""
    assert driver.session.state is ConnectionState.WAITING


@pytest.mark.parametrize("step", ["control", "reply", "hello twice", "bad hello"])
def test_a_conversation_that_does_not_begin_with_one_hello_ends(step: str) -> None:
    driver = SessionDriver()
    driver.connect()
    if step == "control":
        driver.receive(driver.control(op="leader_changed", leader_id=1))
    elif step == "reply":
        driver.receive(b"".join(driver.end.writer.reply(1, 1, 1, 1, 0, 0, 1, b"")))
    elif step == "hello twice":
        driver.greet()
        driver.greet()
    else:
        driver.greet(node_id="one")
    assert not driver.session.is_connected
    assert driver.session.address == "b:2"


def test_members_in_a_hello_are_taken_with_care() -> None:
    driver = SessionDriver(members={1: "a:1"})
    driver.connect()
    driver.greet(members={1: "other:1", 2: "b:2", 0: "zero:0", 70000: "large:1", 3: 5})
    assert driver.session.choice.members == {1: "a:1", 2: "b:2"}


def test_ticks_are_needed_only_while_time_matters() -> None:
    driver = SessionDriver()
    assert not driver.session.needs_ticks
    driver.connect()
    assert driver.session.needs_ticks
    (request,) = driver.greet().controls
    assert driver.session.needs_ticks
    driver.receive(driver.opened(request["request_id"]))
    assert not driver.session.needs_ticks
    (sent,) = driver.submit(b"a").submits
    assert driver.session.needs_ticks
    driver.ok(sent)
    assert not driver.session.needs_ticks
