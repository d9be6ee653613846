"""Each forged history is rejected by the check that is there for it; the honest ones, odd as they are, are accepted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import pytest

from fastpaxos import ApplyContext, QueryContext, StateMachine
from fastpaxos.kv import KeyValueMachine, encode_compare_and_set, encode_delete, encode_get, encode_put
from fastpaxos.statemachine import BatchRun, query_machine
from fastpaxos.testing import (
    ClientHistory,
    LogModel,
    Operation,
    OperationKind,
    Outcome,
    Read,
    Violation,
    Write,
    check_linearizable,
    check_registers,
    check_witness,
    place_operations,
)
from fastpaxos_core.block import BlockView, build_block, build_noop
from fastpaxos_core.results import CommandFailure, decode_results
from fastpaxos_core.wire import ReplyStatus
from histories import CAS, DELETE, READ, WRITE, closing, opening

ALICE, BOB = 1, 2  # session ids: the slots that opened them
K, J = b"k", b"j"


class Clock(StateMachine):
    """Its results and answers are the replicated time."""

    def apply(self, command: bytes, context: ApplyContext) -> bytes:
        return b"%d" % context.now_ns

    def query(self, request: bytes, context: QueryContext) -> bytes:
        return b"%d" % context.now_ns


class Scene:
    """A cluster that is honest: a log, what a machine made of it, and what two clients saw.

    Slots 1 and 2 open the sessions. Every later batch takes ten nanoseconds: its write is asked at the beginning and
    answered at the end, so that the batches are ordered in real time.
    """

    def __init__(self, machine: Callable[[], StateMachine] = KeyValueMachine, sessions_max: int = 2) -> None:
        self.machine = machine
        self.log = LogModel(sessions_max)
        self.replica = machine()
        self.history = ClientHistory()
        self.operations: list[Operation] = []
        self.now_ns = 0
        self.sequences = {ALICE: 1, BOB: 1}
        for number in (1, 2):
            self.choose(opening(number))

    def choose(self, block: bytes, timestamp_ns: int = 0) -> None:
        end = self.log.end_slot + BlockView(block).command_count
        self.log.append(self.log.end_slot, end, block, timestamp_ns)
        self.now_ns += 10

    def write(self, session_id: int, *commands: bytes, timestamp_ns: int = 0) -> Write:
        """One block is chosen, applied and answered."""
        sequence = self.sequences[session_id]
        self.sequences[session_id] += len(commands)
        write = Write("client", session_id, sequence, build_block(commands, session_id, sequence), self.now_ns + 1)
        self.choose(write.block, timestamp_ns)
        entry = self.log.entry_of[session_id, sequence]
        blob = BatchRun(self.replica, BlockView(write.block), entry.slot_begin, entry.now_ns).finish()
        write.answer(decode_results(blob, len(commands)), self.now_ns - 1)
        self.history.writes.append(write)
        return write

    def read(self, request: bytes) -> Read:
        index = self.log.end_slot - 1
        status, result = query_machine(self.replica, request, QueryContext(index, self.log.now_ns_at(index)))
        read = Read("reader", self.now_ns + 1, self.now_ns + 4, None, request, result, index, int(status))
        self.history.reads.append(read)
        self.now_ns += 5
        return read

    def check(self) -> None:
        """All that is checked of blocks."""
        self.history.check(self.log, self.machine())

    # Operations of one key each, for the checks that know what they mean

    def run(self, operation: Operation, outcome: Outcome = Outcome.OK) -> Operation:
        """One operation on a key goes through the log."""
        if operation.kind is READ:
            read = self.read(encode_get(operation.key))
            found = msgpack.unpackb(read.result)[1]
            operation.result = None if found is None else found[0]
            operation.invoked_ns, operation.answered_ns, operation.slot = (
                self.now_ns - 4,
                self.now_ns - 1,
                read.read_index,
            )
        else:
            write = self.write(ALICE, encode(operation) or encode_delete(operation.key))
            assert write.results is not None
            told = msgpack.unpackb(write.results[0])
            operation.result = told[1] if operation.kind in (CAS, DELETE) else None
            operation.invoked_ns, operation.answered_ns = write.invoked_ns, write.answered_ns
            operation.slot = self.log.end_slot - 1
        operation.outcome = outcome
        if outcome is not Outcome.OK:
            operation.result = operation.answered_ns = None
        self.operations.append(operation)
        return operation

    def check_operations(self) -> None:
        """All three judge the same operations."""
        place_operations(self.operations, self.log, encode)
        check_witness(self.operations)
        check_registers(self.operations)
        check_linearizable(self.operations)


def asked(kind: OperationKind, value: bytes | None = None, expected: bytes | None = None, key: bytes = K) -> Operation:
    return Operation("client", key, kind, value, expected, 0)


def encode(operation: Operation) -> bytes | None:
    if operation.kind is WRITE and operation.value is not None:
        return encode_put(operation.key, operation.value)
    if operation.kind is CAS and operation.value is not None:
        return encode_compare_and_set(operation.key, operation.expected, operation.value)
    return None


# --- blocks, their results, and reads at an index ---------------------------------------------------------------------


def busy_scene() -> Scene:
    scene = Scene()
    scene.write(ALICE, encode_put(K, b"a1"), encode_put(K, b"a2"))
    scene.read(encode_get(K))
    scene.write(BOB, encode_compare_and_set(K, b"a2", b"b1"))
    scene.choose(build_noop(3))
    scene.read(encode_get(K))
    scene.write(ALICE, encode_put(J, b"a3"))
    scene.write(BOB, encode_compare_and_set(K, b"a2", b"b2"))
    scene.read(encode_get(K))
    return scene


def test_the_honest_scene_is_accepted() -> None:
    scene = busy_scene()
    scene.check()
    assert [msgpack.unpackb(read.result or b"")[1][0] for read in scene.history.reads] == [b"a2", b"b1", b"b1"]
    assert scene.history.writes[-1].results == [msgpack.packb((4, False, (b"b1", 1, 3, 3)))]


def forge_lost_acknowledgement(scene: Scene) -> None:
    write = scene.history.writes[-1]
    scene.history.writes.append(
        Write("client", BOB, 3, build_block([b"lost"], BOB, 3), write.invoked_ns, write.answered_ns, results=[b""])
    )


def forge_acknowledgement_of_a_gap(scene: Scene) -> None:
    block = build_block([b"late"], BOB, 9)
    scene.choose(block)
    scene.history.writes.append(Write("client", BOB, 9, block, 500, 501, results=[b""]))


def forge_acknowledgement_after_the_close(scene: Scene) -> None:
    block = build_block([b"late"], BOB, 3)
    scene.choose(closing(BOB))
    scene.choose(block)
    scene.history.writes.append(Write("client", BOB, 3, block, 500, 501, results=[b""]))


def forge_acknowledgement_after_the_eviction(scene: Scene) -> None:
    block = build_block([b"late"], ALICE, 4)
    scene.choose(opening(3))
    scene.choose(block)
    scene.history.writes.append(Write("client", ALICE, 4, block, 500, 501, results=[b""]))


def forge_other_bytes_took_effect(scene: Scene) -> None:
    scene.history.writes[0].block = build_block([b"x", b"y"], ALICE, 1)


def forge_command_applied_twice(scene: Scene) -> None:
    scene.write(ALICE, encode_put(K, b"a1"))


def forge_refused_and_applied(scene: Scene) -> None:
    scene.history.writes[1].refused = True


def forge_second_answer(scene: Scene) -> None:
    write = scene.history.writes[1]
    assert write.results is not None
    write.answer([*write.results], 500)
    write.answer([b"other"], 501)


def forge_result(scene: Scene) -> None:
    scene.history.writes[2].results = [msgpack.packb((5, None))]


def forge_results_of_each_other(scene: Scene) -> None:
    write = scene.history.writes[0]
    assert write.results is not None
    write.results.reverse()


def forge_result_of_another_block(scene: Scene) -> None:
    scene.history.writes[1].results = scene.history.writes[3].results


def forge_too_few_results(scene: Scene) -> None:
    write = scene.history.writes[0]
    assert write.results is not None
    write.results.pop()


def forge_failure(scene: Scene) -> None:
    scene.history.writes[2].results = [CommandFailure("ValueError", "no")]


def forge_swap_that_failed(scene: Scene) -> None:
    scene.history.writes[3].results = [msgpack.packb((4, True, (b"b2", 1, 4, 4)))]


def forge_positions(scene: Scene) -> None:
    scene.history.writes[0].positions = [2, 3]


def forge_read_of_an_older_state(scene: Scene) -> None:
    first, second, _ = scene.history.reads
    second.result = first.result


def forge_read_of_a_later_state(scene: Scene) -> None:
    first, second, _ = scene.history.reads
    first.result = second.result


def forge_read_that_names_a_later_state(scene: Scene) -> None:
    first, second, _ = scene.history.reads
    first.read_index = second.read_index


def forge_read_of_half_a_batch(scene: Scene) -> None:
    scene.history.reads[0].read_index = 3
    scene.history.reads[0].invoked_ns = scene.history.writes[0].invoked_ns


def forge_read_with_another_status(scene: Scene) -> None:
    scene.history.reads[0].status = ReplyStatus.COMMAND_ERROR


def forge_read_beyond_the_log(scene: Scene) -> None:
    scene.history.reads[2].read_index = scene.log.end_slot


def forge_stale_read(scene: Scene) -> None:
    first, second, _ = scene.history.reads
    second.read_index, second.result = first.read_index, first.result


def forge_stale_count(scene: Scene) -> None:
    scene.history.reads.append(Read("counter", 500, 501, count=4))


def forge_count_beyond_the_log(scene: Scene) -> None:
    scene.history.reads.append(Read("counter", 500, 501, count=6))


def forge_reads_that_go_back(scene: Scene) -> None:
    first, second, _ = scene.history.reads
    for write in scene.history.writes:
        write.answered_ns, write.results = None, None
    second.answered_ns, first.invoked_ns, first.answered_ns = 1, 2, 3
    second.invoked_ns = 0


def forge_write_before_what_had_ended(scene: Scene) -> None:
    first, second = scene.history.writes[0], scene.history.writes[2]
    first.invoked_ns, first.answered_ns = 500, 501
    assert second.answered_ns is not None


def forge_write_seen_before_it_was_asked(scene: Scene) -> None:
    read = scene.history.reads[0]
    scene.history.writes[0].invoked_ns, scene.history.writes[0].answered_ns = read.invoked_ns + 4, read.invoked_ns + 5
    scene.history.writes[1].invoked_ns = 500
    scene.history.writes[1].answered_ns = 501


def forge_hole_in_the_log(scene: Scene) -> None:
    scene.log.append(scene.log.end_slot + 1, scene.log.end_slot + 2, build_noop(1))


def forge_overlap_in_the_log(scene: Scene) -> None:
    scene.log.append(scene.log.end_slot - 1, scene.log.end_slot, build_noop(1))


def forge_batch_of_another_length(scene: Scene) -> None:
    scene.log.append(scene.log.end_slot, scene.log.end_slot + 2, build_noop(1))


BLOCK_FORGERIES: list[tuple[Callable[[Scene], None], str]] = [
    (forge_lost_acknowledgement, "acknowledged-lost"),
    (forge_acknowledgement_of_a_gap, "acknowledged-lost"),
    (forge_acknowledgement_after_the_close, "acknowledged-lost"),
    (forge_acknowledgement_after_the_eviction, "acknowledged-lost"),
    (forge_other_bytes_took_effect, "acknowledged-lost"),
    (forge_command_applied_twice, "exactly-once"),
    (forge_second_answer, "exactly-once"),
    (forge_refused_and_applied, "refused"),
    (forge_result, "results"),
    (forge_results_of_each_other, "results"),
    (forge_result_of_another_block, "results"),
    (forge_too_few_results, "results"),
    (forge_failure, "results"),
    (forge_swap_that_failed, "results"),
    (forge_positions, "results"),
    (forge_read_of_an_older_state, "results"),
    (forge_read_of_a_later_state, "results"),
    (forge_read_of_half_a_batch, "results"),
    (forge_read_with_another_status, "results"),
    (forge_read_that_names_a_later_state, "real-time"),
    (forge_read_beyond_the_log, "real-time"),
    (forge_stale_read, "real-time"),
    (forge_stale_count, "real-time"),
    (forge_count_beyond_the_log, "real-time"),
    (forge_reads_that_go_back, "real-time"),
    (forge_write_before_what_had_ended, "real-time"),
    (forge_write_seen_before_it_was_asked, "real-time"),
    (forge_hole_in_the_log, "log"),
    (forge_overlap_in_the_log, "log"),
    (forge_batch_of_another_length, "log"),
]


@pytest.mark.parametrize(("forge", "checker"), BLOCK_FORGERIES, ids=[forge.__name__ for forge, _ in BLOCK_FORGERIES])
def test_a_forged_history_of_blocks_is_rejected(forge: Callable[[Scene], None], checker: str) -> None:
    scene = busy_scene()

    def judge() -> None:
        forge(scene)
        scene.check()

    with pytest.raises(Violation) as caught:
        judge()
    assert caught.value.checker == checker, caught.value


def test_replicated_time_is_the_leaders_and_never_falls() -> None:
    scene = Scene(Clock)
    for timestamp_ns in (50, 40, 60):
        scene.write(ALICE, b"%d" % timestamp_ns, timestamp_ns=timestamp_ns)
    scene.choose(build_noop(1), timestamp_ns=70)
    read = scene.read(b"")
    scene.check()
    assert [write.results for write in scene.history.writes] == [[b"50"], [b"50"], [b"60"]]
    assert read.result == b"70"
    scene.history.writes[1].results = [b"40"]
    with pytest.raises(Violation) as caught:
        scene.check()
    assert caught.value.checker == "results"


def test_odd_but_honest_blocks_are_accepted() -> None:
    scene = busy_scene()
    first = scene.history.writes[0]
    # A block that was sent again stands in the log twice and applied once; both answers are the same.
    scene.choose(first.block)
    assert first.results is not None
    first.answer(list(first.results), 500)
    # A block that nobody answered applied; another one is nowhere; one was refused and is in the log without effect.
    unanswered = scene.write(ALICE, encode_put(K, b"unanswered"))
    unanswered.answered_ns, unanswered.results = None, None
    scene.history.writes.append(Write("client", ALICE, 5, build_block([b"nowhere"], ALICE, 5), 3))
    gap = build_block([b"gap"], BOB, 7)
    scene.choose(gap)
    scene.history.writes.append(Write("client", BOB, 7, gap, 3, refused=True))
    # A read that runs while a write does may see either state, a read without an answer none.
    scene.history.reads[0].invoked_ns = 0
    scene.history.reads.append(Read("reader", 600, 601, None, b"not a query", *failed_query(scene)))
    scene.history.reads.append(Read("reader", 600))
    scene.check()
    assert scene.log.duplicates == 1


def failed_query(scene: Scene) -> tuple[bytes, int, int]:
    index = scene.log.end_slot - 1
    status, result = query_machine(scene.replica, b"not a query", QueryContext(index, 0))
    assert status == ReplyStatus.COMMAND_ERROR
    return result, index, int(status)


# --- operations of one key each ---------------------------------------------------------------------------------------


def key_scene() -> Scene:
    scene = Scene()
    for operation in (
        asked(READ),
        asked(CAS, b"v1", None),
        asked(READ),
        asked(WRITE, b"v2"),
        asked(CAS, b"v3", b"v2"),
        asked(CAS, b"v4", b"v2"),
        asked(READ),
        asked(WRITE, b"w1", key=J),
        asked(WRITE, b"v5"),
        asked(READ),
    ):
        scene.run(operation)
    return scene


def test_the_honest_operations_are_accepted() -> None:
    scene = key_scene()
    scene.check_operations()
    assert [operation.result for operation in scene.operations if operation.kind is READ] == [None, b"v1", b"v3", b"v5"]
    assert check_witness(scene.operations) == check_registers(scene.operations) == 10


def test_odd_but_honest_operations_are_accepted() -> None:
    scene = key_scene()
    scene.run(asked(WRITE, b"v6"), Outcome.UNKNOWN)
    scene.run(asked(CAS, b"v7", b"v6"), Outcome.UNKNOWN)
    scene.run(asked(READ))
    scene.operations.append(replace(asked(WRITE, b"v8"), invoked_ns=5, outcome=Outcome.NOT_APPLIED))
    scene.operations.append(replace(asked(WRITE, b"v9"), invoked_ns=5))
    scene.operations.append(replace(asked(READ), invoked_ns=5))
    # A delete, and the key is new again: by slots these are told apart too.
    for operation in (asked(DELETE), asked(DELETE), asked(READ), asked(CAS, b"v10", None), asked(READ)):
        scene.run(operation)
    scene.check_operations()
    assert [operation.result for operation in scene.operations[-5:]] == [True, False, None, True, b"v10"]


Forge = Callable[[list[Operation]], Any]


def forge_read(index: int, result: bytes | None) -> Forge:
    def forge(operations: list[Operation]) -> None:
        assert operations[index].kind is READ
        operations[index].result = result

    return forge


def forge_swap(index: int, swapped: bool) -> Forge:
    def forge(operations: list[Operation]) -> None:
        assert operations[index].result is not swapped
        operations[index].result = swapped

    return forge


def forge_outcome(index: int) -> Forge:
    def forge(operations: list[Operation]) -> None:
        operations[index] = replace(operations[index], outcome=Outcome.NOT_APPLIED, result=None)

    return forge


def forge_time(index: int, begin: int, end: int) -> Forge:
    def forge(operations: list[Operation]) -> None:
        operations[index].invoked_ns, operations[index].answered_ns = begin, end

    return forge


def forge_deleted_before(index: int) -> Forge:
    """A delete that was acknowledged just before operation `index`, and took no effect."""

    def forge(operations: list[Operation]) -> None:
        at_ns = operations[index].invoked_ns - 1
        operations.append(replace(asked(DELETE), invoked_ns=at_ns, answered_ns=at_ns, outcome=Outcome.OK))

    return forge


def forge_lost_write(operations: list[Operation]) -> None:
    last = operations[-1]
    at_ns = last.invoked_ns - 1
    operations.append(replace(asked(WRITE, b"lost"), invoked_ns=at_ns, answered_ns=at_ns, outcome=Outcome.OK))


# What clients alone can see: each of these must be found without any slot, by both checks.
CLIENT_FORGERIES: dict[str, Forge] = {
    "stale read": forge_read(9, b"v3"),
    "stale read of the absence": forge_read(2, None),
    "read from the future": forge_read(2, b"v2"),
    "read of a write that began later": forge_read(0, b"v1"),
    "phantom read": forge_read(6, b"phantom"),
    "read of a swap that failed": forge_read(6, b"v4"),
    "read of another key": forge_read(6, b"w1"),
    "value that was overwritten is back": forge_read(6, b"v1"),
    "value that was swapped is back": forge_read(6, b"v2"),
    "fork": forge_swap(5, True),
    "failed swap of what was there": forge_swap(4, False),
    "failed insertion": forge_swap(1, False),
    "NOT_APPLIED write is seen": forge_outcome(3),
    "NOT_APPLIED swap is seen": forge_outcome(4),
    "NOT_APPLIED insertion is seen": forge_outcome(1),
    "swap before its value was written": forge_time(4, 1, 2),
    "write after what saw it": forge_time(8, 500, 501),
    "insertion after an overwrite": forge_time(1, 70, 71),
    "acknowledged write is lost": forge_lost_write,
    "deleted value is back": forge_deleted_before(6),
    "swap of a deleted value": forge_deleted_before(4),
}


@pytest.mark.parametrize("forge", CLIENT_FORGERIES.values(), ids=CLIENT_FORGERIES)
def test_a_forged_history_of_operations_is_rejected_by_what_clients_saw(forge: Forge) -> None:
    operations = [replace(operation, slot=None) for operation in key_scene().operations]
    forge(operations)
    with pytest.raises(Violation) as caught:
        check_registers(operations)
    assert caught.value.checker == "register"
    with pytest.raises(Violation) as caught:
        check_linearizable(operations)
    assert caught.value.checker == "linearizability"


def forge_shared_slot(operations: list[Operation]) -> None:
    operations[4].slot = operations[3].slot


def forge_read_index(operations: list[Operation]) -> None:
    operations[9].slot = operations[8].slot - 1 if operations[8].slot else None


def forge_early_read_index(operations: list[Operation]) -> None:
    operations[2].slot = operations[3].slot


WITNESS_FORGERIES: dict[str, tuple[Forge, str]] = {
    "stale read": (forge_read(9, b"v3"), "results"),
    "read from the future": (forge_read(2, b"v2"), "results"),
    "phantom read": (forge_read(6, b"phantom"), "results"),
    "read of another key": (forge_read(6, b"w1"), "results"),
    "fork": (forge_swap(5, True), "results"),
    "failed swap of what was there": (forge_swap(4, False), "results"),
    "NOT_APPLIED that applied, and nobody saw it": (forge_outcome(7), "refused"),
    "stale index": (forge_read_index, "real-time"),
    "index from the future": (forge_early_read_index, "real-time"),
    "written after what lies behind it": (forge_time(7, 500, 501), "real-time"),
    "one slot for two": (forge_shared_slot, "exactly-once"),
}


@pytest.mark.parametrize(("forge", "checker"), WITNESS_FORGERIES.values(), ids=WITNESS_FORGERIES)
def test_a_forged_history_of_operations_is_rejected_by_its_slots(forge: Forge, checker: str) -> None:
    operations = key_scene().operations
    forge(operations)
    with pytest.raises(Violation) as caught:
        check_witness(operations)
    assert caught.value.checker == checker, caught.value


def test_what_was_acknowledged_must_be_in_the_log_at_the_slot_that_was_told() -> None:
    scene = key_scene()
    unplaced = [
        replace(operation, slot=operation.slot if operation.kind is READ else None) for operation in scene.operations
    ]
    assert place_operations(unplaced, scene.log, encode) == 6
    assert unplaced == scene.operations
    scene.operations[3].slot = 99
    with pytest.raises(Violation, match="told slot 99") as caught:
        place_operations(scene.operations, scene.log, encode)
    assert caught.value.checker == "results"
    lost = replace(asked(WRITE, b"lost"), answered_ns=1, outcome=Outcome.OK)
    with pytest.raises(Violation, match="not in the log") as caught:
        place_operations([lost], scene.log, encode)
    assert caught.value.checker == "acknowledged-lost"


def test_operations_that_took_effect_without_a_slot_cannot_be_judged_by_slots() -> None:
    with pytest.raises(ValueError, match="has no slot"):
        check_witness([replace(asked(WRITE, b"v"), answered_ns=1, outcome=Outcome.OK)])


def test_every_forgery_is_listed() -> None:
    named = {value for name, value in globals().items() if name.startswith("forge_")}
    makers = {forge_read, forge_swap, forge_outcome, forge_time, forge_deleted_before}
    listed = {forge for forge, _ in BLOCK_FORGERIES} | {forge_shared_slot, forge_read_index, forge_early_read_index}
    assert named == listed | makers | {forge_lost_write}
    assert len(BLOCK_FORGERIES) + len(CLIENT_FORGERIES) + len(WITNESS_FORGERIES) >= 60
