"""The verdict of a chaos run condemns what it must: each kind of wrong answer, and only those."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from fastpaxos.cli import main
from fastpaxos.errors import CommandError, DeadlineExceeded, NoLeader
from fastpaxos.kv import (
    KeyValueMachine,
    encode_compare_and_set,
    encode_get,
    encode_increment,
    encode_put,
)
from fastpaxos.statemachine import ApplyContext, QueryContext
from fastpaxos.testing.chaos.calls import Call, to_operation
from fastpaxos.testing.chaos.verdict import judge, read_evidence, write_evidence
from fastpaxos.testing.chaos.witness import Applied
from fastpaxos.testing.operations import Operation, OperationKind, Outcome


class Scene:
    """A machine, its log, and calls that were answered as it answers. Each call takes 10 ns, one after the other."""

    def __init__(self) -> None:
        self.machine = KeyValueMachine()
        self.log: list[Applied] = []
        self.calls: list[Call] = []
        self.now_ns = 0

    def begin(self, request: bytes, *, is_query: bool = False) -> Call:
        self.now_ns += 5
        call = Call("c", request, is_query, self.now_ns)
        self.now_ns += 5
        self.calls.append(call)
        return call

    def apply(self, command: bytes) -> bytes:
        self.log.append(Applied(len(self.log) + 1, command))
        return self.machine.apply(command, ApplyContext(len(self.log), 0))

    def do(self, command: bytes) -> Call:
        """A command that is applied and answered."""
        call = self.begin(command)
        try:
            call.answer(self.apply(command), self.now_ns)
        except ValueError as error:
            call.fail(CommandError(type(error).__name__, str(error)), self.now_ns)
        return call

    def read(self, key: bytes) -> Call:
        call = self.begin(encode_get(key), is_query=True)
        call.answer(self.machine.query(call.request, QueryContext(len(self.log), 0)), self.now_ns)
        return call

    def problems(self) -> list[str]:
        verdict = judge(self.calls, {1: self.log, 2: list(self.log)}, dict.fromkeys((1, 2), self.machine.digest()))
        assert verdict.checked == len(self.calls)
        return verdict.problems


def sound_scene() -> Scene:
    """Every kind of call and every kind of outcome. `calls` is numbered by the comments."""
    scene = Scene()
    scene.do(encode_put(b"a", b"1"))  # 0
    scene.do(encode_compare_and_set(b"a", b"1", b"2"))  # 1
    scene.do(encode_compare_and_set(b"a", b"1", b"3"))  # 2: it does not swap
    scene.read(b"a")  # 3
    scene.do(encode_increment(b"count 0", 5))  # 4
    scene.do(encode_put(b"text", b"no number"))  # 5
    scene.do(encode_increment(b"text", 6))  # 6: an error of the machine
    applied_late = scene.begin(encode_put(b"b", b"7"))  # 7
    applied_late.fail(DeadlineExceeded("no answer"), scene.now_ns)
    scene.begin(encode_put(b"b", b"8")).fail(NoLeader("never sent"), scene.now_ns)  # 8
    scene.read(b"b")  # 9: nothing yet
    scene.apply(applied_late.request)
    scene.read(b"b")  # 10
    scene.begin(encode_put(b"b", b"11")).give_up("cancelled")  # 11: never applied
    scene.begin(encode_get(b"b"), is_query=True).fail(DeadlineExceeded("no answer").of_query(), scene.now_ns)  # 12
    return scene


def sound_register_scene() -> Scene:
    """One key, written and read in turn."""
    scene = Scene()
    for number in range(5):
        scene.do(encode_put(b"a", b"%d" % number))
        scene.read(b"a")
    return scene


def test_a_sound_history_passes() -> None:
    scene = sound_scene()
    verdict = judge(scene.calls, {1: scene.log}, {})
    assert verdict.problems == []
    assert verdict.checked == len(scene.calls)
    assert 0 < verdict.checked_by_clients_word < len(scene.calls)


def lose(scene: Scene) -> None:
    scene.begin(encode_put(b"z", b"99")).answer(b"\x92\x06\xc0", scene.now_ns)


def refuse_what_applied(scene: Scene) -> None:
    scene.calls[7].fail(NoLeader("never sent"), scene.now_ns)


def answer_wrongly(scene: Scene) -> None:
    scene.calls[4].result = scene.calls[0].result


def raise_another_error(scene: Scene) -> None:
    scene.calls[6].error = "InvalidCommand: no"


def forget_to_issue(scene: Scene) -> None:
    del scene.calls[4]


def apply_twice(scene: Scene) -> None:
    scene.apply(scene.calls[4].request)


def read_stale(scene: Scene) -> None:
    scene.begin(encode_get(b"b"), is_query=True).answer(scene.calls[9].result or b"", scene.now_ns)


def read_another_value(scene: Scene) -> None:
    scene.calls[3].result = (scene.calls[3].result or b"").replace(b"2", b"1")


def read_the_future(scene: Scene) -> None:
    call = scene.calls[9]
    call.result = scene.calls[10].result
    scene.calls[7].invoked_ns = (call.answered_ns or 0) + 1


def write_before_its_time(scene: Scene) -> None:
    scene.calls[0].invoked_ns = scene.now_ns + 1
    scene.calls[0].answered_ns = scene.now_ns + 2


def issue_the_same_twice(scene: Scene) -> None:
    scene.calls.append(scene.calls[0])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lose, "acknowledged and lost"),
        (refuse_what_applied, "refused, and yet it took effect"),
        (answer_wrongly, "not what was told"),
        (raise_another_error, "not what was told"),
        (forget_to_issue, "nobody issued"),
        (apply_twice, "took effect at slots"),
        (read_stale, "had ended before"),
        (read_another_value, "the log says"),
        (read_the_future, "had ended before"),
        (write_before_its_time, "had ended before"),
        (issue_the_same_twice, "two calls have the same command"),
    ],
)
def test_a_wrong_answer_is_condemned(spoil: Callable[[Scene], None], message: str) -> None:
    scene = sound_scene()
    spoil(scene)
    problems = scene.problems()
    assert any(re.search(message, problem) for problem in problems), problems


def test_replicas_that_differ_are_condemned() -> None:
    scene = sound_register_scene()
    digest = scene.machine.digest()
    swapped = [scene.log[1], scene.log[0], *scene.log[2:]]
    for logs, digests in (
        ({1: scene.log, 2: swapped}, {1: digest}),
        ({1: scene.log, 2: scene.log[:-1]}, {1: digest}),
        ({1: scene.log, 2: scene.log}, {1: digest, 2: KeyValueMachine().digest()}),
    ):
        assert judge(scene.calls, logs, digests).problems


def test_a_log_that_all_replicas_agree_on_and_that_is_wrong_is_condemned_by_clients_words() -> None:
    """Two reads are told each other's value: no order explains that, whatever a log says."""
    scene = sound_register_scene()
    scene.calls[5].result, scene.calls[9].result = scene.calls[9].result, scene.calls[5].result
    problems = judge(scene.calls, {1: scene.log}, {}).problems
    assert any("key b'a'" in problem for problem in problems), problems


def test_files_keep_everything(tmp_path: Path) -> None:
    scene = sound_scene()
    logs, digests = {1: scene.log, 2: scene.log[:3]}, {1: "ab", 2: "cd"}
    write_evidence(tmp_path, scene.calls, logs, digests)
    calls, *others = read_evidence(tmp_path)
    assert others == [logs, digests]
    assert list(map(str, calls)) == list(map(str, scene.calls))
    assert [call.error for call in calls] == [call.error for call in scene.calls]
    (tmp_path / "calls.jsonl").write_text('{"client": 1}\n')
    with pytest.raises(ValueError, match="no call"):
        read_evidence(tmp_path)


def test_the_command_line_judges_files_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = sound_scene()
    logs, digests = {1: scene.log, 2: scene.log}, dict.fromkeys((1, 2), scene.machine.digest())
    write_evidence(tmp_path, scene.calls, logs, digests)
    assert main.run(["chaos", "--check", str(tmp_path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"operations": 13, "operations_checked": 13, "violations": 0, "found": []}
    lose(scene)
    write_evidence(tmp_path, scene.calls, logs, digests)
    assert main.run(["chaos", "--check", str(tmp_path)]) == 1
    assert "VIOLATION acknowledged and lost" in capsys.readouterr().err
    (tmp_path / "digests.json").unlink()
    assert main.run(["chaos", "--check", str(tmp_path)]) == 2


def test_calls_become_operations_on_registers() -> None:
    scene = sound_scene()
    swap = to_operation(scene.calls[1])
    assert swap == Operation("c", b"a", OperationKind.CAS, b"2", b"1", 15, 20, Outcome.OK, True)
    failed = to_operation(scene.calls[2])
    assert failed is not None
    assert failed.result is False
    read = to_operation(scene.calls[3])
    assert read is not None
    assert (read.kind, read.result) == (OperationKind.READ, b"2")
    assert to_operation(scene.calls[4]) is None
    unread = to_operation(scene.calls[12])
    assert unread is not None
    assert unread.outcome is Outcome.NOT_APPLIED


def test_what_is_said_of_a_long_value_is_short() -> None:
    scene = Scene()
    scene.do(encode_put(b"a", b"x" * 2_000))
    scene.read(b"a").result = b"\x92\x01\xc0"
    del scene.log[0]
    [lost] = [problem for problem in scene.problems() if "acknowledged and lost" in problem]
    assert len(lost) < 300
