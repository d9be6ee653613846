"""The checkers are tested too: each forged history is rejected for its own reason, and the honest one is accepted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from fastpaxos.testing import ClientHistory, JournalEntry, LogModel, ProtocolChecker, Read, Value, Violation, Write
from fastpaxos_core.ballot import pack_ballot
from fastpaxos_core.block import BlockView, build_block, build_control, build_noop, value_crc

NONCE = bytes(range(16))
SESSION = 1
B1 = pack_ballot(1, 1)
B2 = pack_ballot(2, 2)
B3 = pack_ballot(3, 3)
OPEN = build_control(msgpack.packb({"op": "open_session", "nonce": NONCE}))


def commands(first: int, count: int = 2, text: bytes = b"c") -> bytes:
    return build_block([b"%s%d" % (text, number) for number in range(first, first + count)], SESSION, first)


def entry(begin: int, block: bytes, ballot: int = B1, *, learned: bool = False, timestamp_ns: int = 5) -> JournalEntry:
    view = BlockView(block)
    end = begin + view.command_count
    return JournalEntry(
        Value(begin, end, value_crc(begin, end, timestamp_ns, view.crc)), ballot, timestamp_ns, learned, block
    )


def descriptor(item: JournalEntry, ballot: int | None = None, flags: int = 0) -> dict[str, Any]:
    return {
        "slot_begin": item.value.slot_begin,
        "slot_end": item.value.slot_end,
        "value_crc": item.value.value_crc,
        "ballot": item.ballot if ballot is None else ballot,
        "timestamp_ns": item.timestamp_ns,
        "flags": flags,
        "block": item.block,
    }


def message(name: str, ballot: int, entries: list[dict[str, Any]] | None = None, **fields: int) -> dict[str, Any]:
    defaults: dict[str, dict[str, int]] = {
        "promise": {"commit_index": 0, "slot_begin": 1, "proposer_boot": 1, "part": 0, "part_count": 1},
        "accept": {"commit_index": 0, "everywhere_durable": 0},
        "accepted": {"commit_index": 0, "durable_index": 0, "proposer_boot": 1},
        "nack": {"promised_ballot": 0, "commit_index": 0},
        "commit": {"commit_index": 0, "everywhere_durable": 0},
        "heartbeat": {"commit_index": 0, "everywhere_durable": 0, "read_round": 0},
        "heartbeat_reply": {"read_round": 0, "commit_index": 0, "applied_index": 0, "durable_index": 0},
        "learn": {"commit_index": 0, "request_id": 1},
        "prepare": {"slot_begin": 1},
    }
    built: dict[str, Any] = {"message": name, "ballot": ballot, **defaults[name], **fields}
    if name in ("promise", "accept", "accepted", "learn"):
        built["entries"] = entries or []
    return built


class Scene:
    """Three nodes; node 1 leads in B1 after a Phase 1 with nodes 1 and 2, and everything so far is honest."""

    def __init__(self) -> None:
        self.checker = ProtocolChecker((1, 2, 3), 2, 2, sessions_max=2)
        self.checker.submitted_nonces.add(NONCE)
        for node in (1, 2):
            self.write(node, B1)
        self.checker.sent(1, 1, message("prepare", B1), B1)
        self.checker.sent(2, 1, message("promise", B1), B1)

    def write(self, node: int, promised: int, *entries: JournalEntry) -> None:
        self.checker.written(node, entries)
        self.checker.durable(node, promised, entries)

    def submit(self, block: bytes) -> bytes:
        self.checker.submitted_blocks.add(block)
        return block

    def propose(self, node: int, item: JournalEntry, **fields: int) -> None:
        self.checker.sent(node, 1, message("accept", item.ballot, [descriptor(item)], **fields), item.ballot)

    def choose(self, item: JournalEntry, nodes: tuple[int, ...] = (1, 2)) -> None:
        self.propose(1, item)
        for node in nodes:
            self.write(node, item.ballot, item)

    def take_over(self, node: int, ballot: int, helper: int, *promised: JournalEntry) -> None:
        self.write(node, ballot)
        self.write(helper, ballot)
        self.checker.sent(node, 1, message("prepare", ballot), ballot)
        self.checker.sent(helper, 1, message("promise", ballot, [descriptor(item) for item in promised]), ballot)


def test_an_honest_run_is_accepted() -> None:
    scene = Scene()
    first, second = entry(1, OPEN), entry(2, scene.submit(commands(1)))
    scene.choose(first)
    scene.choose(second)
    scene.checker.sent(2, 1, message("accepted", B1, [descriptor(second)], durable_index=3), B1)
    scene.checker.observed(1, B1, 3, 0)
    scene.checker.sent(1, 1, message("commit", B1, commit_index=3), B1)
    scene.checker.applied(1, 2, 4, BlockView(second.block), b"digest")
    scene.checker.observed(1, B1, 3, 3)
    scene.checker.recovered(1, B1, 1, [second])
    assert scene.checker.log.commands == 2
    scene.take_over(3, B3, 2, first, second)
    scene.propose(3, second._replace(ballot=B3))


def test_what_a_recovered_commit_displaced_is_gone_whole() -> None:
    # Seed 35714: node 3 learned [1, 2), which displaced its [1, 4); the sync of that write failed, and it survived.
    scene = Scene()
    mine = entry(1, scene.submit(commands(1, 3)), B1)
    scene.write(3, B1, mine)
    scene.take_over(2, B2, 1)
    chosen = entry(1, build_noop(1), B2)
    scene.propose(2, chosen)
    for node in (1, 2):
        scene.write(node, B2, chosen)
    scene.checker.written(3, [chosen._replace(learned=True)])
    scene.checker.recovered(3, B2, 1, [])


def test_a_record_that_was_displaced_explains_no_recovered_commit() -> None:
    scene = Scene()
    chosen = entry(1, build_noop(1), B1)
    scene.write(3, B1, chosen)
    scene.write(3, B2, entry(1, scene.submit(commands(1, 3)), B2))
    for node in (1, 2):
        scene.write(node, B3, chosen._replace(ballot=B3))
    with pytest.raises(Violation, match="displaced"):
        scene.checker.recovered(3, B2, 1, [])


def test_the_survivor_of_a_torn_write_may_be_recovered() -> None:
    scene = Scene()
    item = entry(1, OPEN)
    scene.checker.written(3, [item])
    scene.checker.recovered(3, B1, 0, [item])
    assert (B1, item.value) in scene.checker.images[3].votes


def forge_two_values_chosen(scene: Scene) -> None:
    scene.choose(entry(1, OPEN))
    for node in (2, 3):
        scene.write(node, B2, entry(1, build_noop(1), B2))


def forge_two_extents_chosen(scene: Scene) -> None:
    scene.choose(entry(1, build_noop(2)))
    for node in (2, 3):
        scene.write(node, B2, entry(1, build_noop(1), B2))


def forge_bytes_behind_one_name(scene: Scene) -> None:
    honest = entry(1, OPEN)
    scene.write(1, B1, honest)
    scene.checker.written(2, [honest._replace(block=build_noop(1))])


def forge_unsubmitted_command(scene: Scene) -> None:
    scene.propose(1, entry(1, commands(1)))


def forge_unasked_session(scene: Scene) -> None:
    block = build_control(msgpack.packb({"op": "open_session", "nonce": bytes(16)}))
    scene.propose(1, entry(1, block))


def forge_lost_value(scene: Scene) -> None:
    scene.choose(entry(1, OPEN))
    scene.take_over(3, B3, 2, entry(1, OPEN))
    scene.propose(3, entry(1, build_noop(1), B3))


def forge_late_choice_under_another_proposal(scene: Scene) -> None:
    scene.propose(1, entry(1, OPEN))
    scene.take_over(3, B3, 2)
    scene.propose(3, entry(1, build_noop(1), B3))
    for node in (1, 2):
        scene.write(node, B3, entry(1, OPEN))


def forge_two_values_in_one_ballot(scene: Scene) -> None:
    scene.propose(1, entry(1, OPEN))
    scene.propose(1, entry(1, build_noop(1)))


def forge_overlap_in_one_ballot(scene: Scene) -> None:
    scene.propose(1, entry(2, build_noop(3)))
    scene.propose(1, entry(1, build_noop(2)))


def forge_ballot_of_another_node(scene: Scene) -> None:
    scene.checker.sent(2, 1, message("heartbeat", B1), B1)


def forge_ballot_used_after_restart(scene: Scene) -> None:
    scene.checker.sent(1, 2, message("heartbeat", B1), B1)


def forge_proposal_without_quorum(scene: Scene) -> None:
    scene.write(3, B3)
    scene.checker.sent(3, 1, message("prepare", B3), B3)
    scene.propose(3, entry(1, OPEN, B3))


def forge_prepare_before_own_promise_is_durable(scene: Scene) -> None:
    scene.checker.sent(3, 1, message("prepare", B3), B3)


def forge_promise_not_durable(scene: Scene) -> None:
    scene.checker.sent(3, 1, message("promise", B2), B2)


def forge_promise_leaves_out_a_vote(scene: Scene) -> None:
    scene.choose(entry(1, OPEN))
    scene.write(2, B2)
    scene.checker.sent(2, 1, message("promise", B2), B2)


def forge_promise_leaves_out_a_vote_in_its_second_part(scene: Scene) -> None:
    items = [entry(1, OPEN), entry(2, build_noop(1)), entry(3, build_noop(2))]
    for item in items:
        scene.write(2, B1, item)
    scene.write(2, B2)
    scene.checker.sent(2, 1, message("promise", B2, [descriptor(items[0])], part=0, part_count=2), B2)
    scene.checker.sent(2, 1, message("promise", B2, [descriptor(items[2])], part=1, part_count=2), B2)


def forge_promise_invents_a_vote(scene: Scene) -> None:
    scene.write(2, B2)
    scene.checker.sent(2, 1, message("promise", B2, [descriptor(entry(1, OPEN))]), B2)


def forge_promise_calls_sound_slots_unknown(scene: Scene) -> None:
    scene.write(2, B2)
    scene.checker.sent(2, 1, message("promise", B2, [descriptor(entry(1, OPEN), flags=2)]), B2)


def forge_promise_with_a_higher_vote(scene: Scene) -> None:
    item = entry(1, OPEN, B3)
    scene.write(2, B3, item)
    scene.checker.sent(2, 1, message("promise", B2, [descriptor(item)]), B3)


def forge_accepted_not_durable(scene: Scene) -> None:
    item = entry(1, OPEN)
    scene.checker.written(2, [item])
    scene.checker.sent(2, 1, message("accepted", B1, [descriptor(item)]), B1)


def forge_accepted_of_another_ballot(scene: Scene) -> None:
    item = entry(1, OPEN)
    scene.write(2, B1, item)
    scene.checker.sent(2, 1, message("accepted", B2, [descriptor(item)]), B2)


def forge_durable_index(scene: Scene) -> None:
    first, second = entry(1, OPEN), entry(2, build_noop(1))
    scene.choose(first, (1, 3))
    scene.choose(second, (1, 2))
    scene.checker.sent(2, 1, message("accepted", B1, durable_index=2), B1)


def forge_everywhere_durable(scene: Scene) -> None:
    scene.choose(entry(1, OPEN))
    scene.checker.sent(1, 1, message("commit", B1, everywhere_durable=1), B1)


def forge_accepted_above_promise(scene: Scene) -> None:
    scene.write(3, B1, entry(1, OPEN, B2))


def forge_lower_promise_on_disk(scene: Scene) -> None:
    scene.write(3, B2)
    scene.write(3, B1)


def forge_lower_promise_in_memory(scene: Scene) -> None:
    scene.checker.observed(1, B2, 0, 0)
    scene.checker.observed(1, B1, 0, 0)


def forge_lower_promise_after_restart(scene: Scene) -> None:
    scene.write(3, B2)
    scene.checker.recovered(3, B1, 0, [])


def forge_lost_durable_vote(scene: Scene) -> None:
    scene.write(3, B1, entry(1, OPEN))
    scene.checker.recovered(3, B1, 0, [])


def forge_durable_vote_replaced_by_an_older_one(scene: Scene) -> None:
    scene.write(3, B1, entry(1, OPEN))
    scene.write(3, B2, entry(1, build_noop(1), B2))
    scene.checker.recovered(3, B2, 0, [entry(1, OPEN)])


def forge_recovered_invention(scene: Scene) -> None:
    scene.checker.recovered(3, B1, 0, [entry(1, OPEN)])


def forge_recovered_commit(scene: Scene) -> None:
    scene.checker.recovered(3, B1, 1, [])


def forge_recovered_commit_of_what_was_never_written(scene: Scene) -> None:
    scene.choose(entry(1, OPEN))
    scene.checker.recovered(3, B1, 1, [])


def forge_commit_beyond_chosen(scene: Scene) -> None:
    scene.propose(1, entry(1, OPEN))
    scene.write(1, B1, entry(1, OPEN))
    scene.checker.observed(1, B1, 1, 0)


def forge_commit_message_beyond_chosen(scene: Scene) -> None:
    scene.checker.sent(1, 1, message("commit", B1, commit_index=1), B1)


def forge_commit_that_falls(scene: Scene) -> None:
    scene.choose(entry(1, OPEN))
    scene.checker.observed(1, B1, 1, 0)
    scene.checker.observed(1, B1, 0, 0)


def forge_applied_beyond_commit(scene: Scene) -> None:
    scene.choose(entry(1, OPEN))
    scene.checker.observed(1, B1, 0, 1)


def forge_nack_above_promise(scene: Scene) -> None:
    scene.checker.sent(2, 1, message("nack", B1, promised_ballot=B2), B1)


def forge_echo_above_durable_promise(scene: Scene) -> None:
    scene.checker.sent(3, 1, message("heartbeat_reply", B1, read_round=1), B1)


def forge_echo_above_promise(scene: Scene) -> None:
    scene.checker.sent(2, 1, message("heartbeat_reply", B2, read_round=1), B1)


def forge_applied_more_than_committed_in_a_reply(scene: Scene) -> None:
    scene.checker.sent(2, 1, message("heartbeat_reply", B1, applied_index=1), B1)


def forge_lesson_of_what_is_not_chosen(scene: Scene) -> None:
    scene.checker.sent(2, 1, message("learn", B1, [descriptor(entry(1, OPEN), flags=1)]), B1)


def chosen_log(scene: Scene) -> JournalEntry:
    item = entry(2, scene.submit(commands(1)))
    scene.choose(entry(1, OPEN))
    scene.choose(item)
    return item


def forge_applied_twice(scene: Scene) -> None:
    item = chosen_log(scene)
    for _ in range(2):
        scene.checker.applied(1, 2, 4, BlockView(item.block), b"")


def forge_applied_elsewhere(scene: Scene) -> None:
    item = chosen_log(scene)
    scene.checker.applied(1, 3, 5, BlockView(item.block), b"")


def forge_applied_other_bytes(scene: Scene) -> None:
    chosen_log(scene)
    scene.checker.applied(1, 2, 4, BlockView(commands(1, text=b"x")), b"")


def forge_other_state(scene: Scene) -> None:
    item = chosen_log(scene)
    scene.checker.applied(1, 2, 4, BlockView(item.block), b"one")
    scene.checker.applied(2, 2, 4, BlockView(item.block), b"two")


def forge_log_with_a_hole(scene: Scene) -> None:
    scene.checker.log.append(5, 6, build_noop(1))


def forge_batch_with_a_wrong_count(scene: Scene) -> None:
    scene.checker.log.append(1, 3, build_noop(1))


def forge_behind_after_settling(scene: Scene) -> None:
    chosen_log(scene)
    scene.checker.check_caught_up(3)


def forge_commit_behind_after_settling(scene: Scene) -> None:
    scene.choose(entry(1, OPEN))
    scene.checker.check_caught_up(3)


FORGERIES: list[tuple[Callable[[Scene], None], str]] = [
    (forge_two_values_chosen, "both chosen|was chosen in ballot"),
    (forge_two_extents_chosen, "both chosen"),
    (forge_bytes_behind_one_name, "two different batches"),
    (forge_unsubmitted_command, "no client submitted"),
    (forge_unasked_session, "no client asked"),
    (forge_lost_value, "was chosen in ballot|of its promises allow"),
    (forge_late_choice_under_another_proposal, "was chosen in ballot"),
    (forge_two_values_in_one_ballot, "proposes .* and"),
    (forge_overlap_in_one_ballot, "proposes .* and"),
    (forge_ballot_of_another_node, "is used by node 2"),
    (forge_ballot_used_after_restart, "boot 2"),
    (forge_proposal_without_quorum, "promised by .* only"),
    (forge_prepare_before_own_promise_is_durable, "sends Prepare"),
    (forge_promise_not_durable, "sends Promise"),
    (forge_promise_leaves_out_a_vote, "leaves out"),
    (forge_promise_leaves_out_a_vote_in_its_second_part, "leaves out"),
    (forge_promise_invents_a_vote, "not on disk"),
    (forge_promise_calls_sound_slots_unknown, "unknown"),
    (forge_promise_with_a_higher_vote, "higher ballot"),
    (forge_accepted_not_durable, "not on its disk"),
    (forge_accepted_of_another_ballot, "not on its disk"),
    (forge_durable_index, "on its disk, it has"),
    (forge_everywhere_durable, "all have slots"),
    (forge_accepted_above_promise, "above its promise"),
    (forge_lower_promise_on_disk, "wrote promised ballot"),
    (forge_lower_promise_in_memory, "lowered its promise"),
    (forge_lower_promise_after_restart, "recovered promised ballot"),
    (forge_lost_durable_vote, "lost the durable batch"),
    (forge_durable_vote_replaced_by_an_older_one, "lost the durable batch"),
    (forge_recovered_invention, "never wrote"),
    (forge_recovered_commit, "beyond the chosen"),
    (forge_recovered_commit_of_what_was_never_written, "never wrote"),
    (forge_commit_beyond_chosen, "beyond the chosen"),
    (forge_commit_message_beyond_chosen, "beyond the chosen"),
    (forge_commit_that_falls, "lowered commit_index"),
    (forge_applied_beyond_commit, "moved applied_index"),
    (forge_nack_above_promise, "refuses for ballot"),
    (forge_echo_above_durable_promise, "disk did not promise"),
    (forge_echo_above_promise, "its promise is"),
    (forge_applied_more_than_committed_in_a_reply, "says it applied"),
    (forge_lesson_of_what_is_not_chosen, "not chosen"),
    (forge_applied_twice, "nothing more is chosen"),
    (forge_applied_elsewhere, "next is"),
    (forge_applied_other_bytes, "other bytes"),
    (forge_other_state, "another state"),
    (forge_log_with_a_hole, "do not tile"),
    (forge_batch_with_a_wrong_count, "holds 1 commands"),
    (forge_behind_after_settling, "not applied"),
    (forge_commit_behind_after_settling, "is chosen"),
]


@pytest.mark.parametrize(("forge", "reason"), FORGERIES, ids=[forge.__name__ for forge, _ in FORGERIES])
def test_a_forged_run_is_rejected(forge: Callable[[Scene], None], reason: str) -> None:
    with pytest.raises(Violation, match=reason):
        forge(Scene())


def test_every_forgery_is_listed() -> None:
    named = {value for name, value in globals().items() if name.startswith("forge_")}
    assert named == {forge for forge, _ in FORGERIES}


def log_of(*blocks: bytes, sessions_max: int = 2) -> LogModel:
    log = LogModel(sessions_max)
    for block in (OPEN, *blocks):
        log.append(log.end_slot, log.end_slot + BlockView(block).command_count, block)
    return log


def a_write(first: int, invoked_ns: int, answered_ns: int | None, positions: list[int] | None) -> Write:
    return Write("client", SESSION, first, commands(first), invoked_ns, answered_ns, positions)


def history_of(*operations: Write | Read) -> ClientHistory:
    history = ClientHistory()
    history.writes += [operation for operation in operations if isinstance(operation, Write)]
    history.reads += [operation for operation in operations if isinstance(operation, Read)]
    return history


def test_an_honest_history_is_accepted() -> None:
    log = log_of(commands(1), commands(1), commands(3), commands(7), commands(5))
    assert (log.duplicates, log.commands) == (1, 6)
    history_of(
        a_write(1, 10, 20, [1, 2]),
        a_write(3, 15, 40, [3, 4]),
        a_write(5, 16, None, None),
        Read("reader", 18, 30, 4),
        Read("reader", 21, 39, 2),
        Read("reader", 41, None, None),
        Read("reader", 41, 42, 6),
    ).check(log)


HISTORIES: list[tuple[str, LogModel, ClientHistory]] = [
    ("is lost", log_of(commands(1)), history_of(a_write(3, 1, 2, [3, 4]))),
    ("told positions", log_of(commands(1)), history_of(a_write(1, 1, 2, [2, 3]))),
    ("other bytes", log_of(commands(1, text=b"x")), history_of(a_write(1, 1, 2, [1, 2]))),
    ("stands at position", log_of(commands(1)), history_of(a_write(1, 1, 2, [1, 2]), Read("r", 3, 4, 0))),
    ("stands at position", log_of(commands(1)), history_of(Read("r", 1, 2, 2), Read("r", 3, 4, 0))),
    ("stands at position", log_of(commands(1)), history_of(Read("r", 1, 2, 2), a_write(1, 3, 4, [1, 2]))),
    (
        "stands at position",
        log_of(commands(1), commands(3)),
        history_of(a_write(3, 1, 2, [3, 4]), a_write(1, 3, 4, [1, 2])),
    ),
    ("the log has", log_of(commands(1)), history_of(Read("r", 1, 2, 3))),
    ("applied at positions", log_of(commands(1), build_block([b"c1"], SESSION, 3)), history_of()),
]


@pytest.mark.parametrize(("reason", "log", "history"), HISTORIES, ids=range(len(HISTORIES)))
def test_a_forged_history_is_rejected(reason: str, log: LogModel, history: ClientHistory) -> None:
    with pytest.raises(Violation, match=reason):
        history.check(log)


def test_a_refusal_for_ever_of_what_applied_is_rejected() -> None:
    refused = a_write(1, 1, None, None)
    refused.refused = True
    history_of(refused).check(log_of(commands(3)))
    with pytest.raises(Violation, match="was refused for ever"):
        history_of(refused).check(log_of(commands(1)))


def test_the_log_model_refuses_gaps_and_overlaps_and_ended_sessions() -> None:
    log = log_of(commands(2), commands(1, 3), commands(3, 2), commands(4, 2))
    assert [(item.first_sequence, item.first_position) for item in log.applied] == [(1, 1), (4, 4)]
    log = log_of(build_control(msgpack.packb({"op": "close_session", "session_id": SESSION})), commands(1))
    assert (log.commands, log.ended) == (0, {SESSION})


def test_the_log_model_pushes_out_the_least_recently_used_session() -> None:
    def opened(number: int) -> bytes:
        return build_control(msgpack.packb({"op": "open_session", "nonce": bytes([number]) * 16}))

    log = log_of(opened(1), commands(1), opened(2))
    assert log.ended == {2}
    log = log_of(opened(1), OPEN, opened(2))
    assert log.ended == {2}
    log = log_of(opened(1), opened(2))
    assert log.ended == {SESSION}
