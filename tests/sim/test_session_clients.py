"""Simulated clients that run the shipped client protocol, and the judges of what they were told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

import msgpack
import pytest

from fastpaxos.kv import encode_put
from fastpaxos.testing import ClientHistory, LinkOptions, LogModel, NemesisOptions, SimCluster, SimOptions, Violation
from fastpaxos.testing.history import Call
from fastpaxos.testing.operations import Outcome
from fastpaxos.testing.schedule import MILLISECOND_NS
from fastpaxos.testing.session_client import Manner
from fastpaxos.testing.swarm import draw_options
from fastpaxos.testing.workloads import HashChainWorkload, KeyValueWorkload
from fastpaxos_core.block import build_block, build_control

pytestmark = pytest.mark.usefixtures("quiet_elections")

CALM = NemesisOptions(crash=0, restart=0, partition=0, one_way_cut=0, isolate_leader=0, heal=1, reset_connection=0)
MUST_HAPPEN = (
    "client_half_open",
    "client_reset",
    "client_cut",
    "client_killed",
    "session_closed",
    "call_cancelled",
    "answer_NoLeader",
    "answer_DeadlineExceeded",
    "answer_Busy",
    "answer_ConnectionLost",
)


def calm_cluster(**options: object) -> SimCluster:
    values = {"clients": 0, "session_clients": 2, "nemesis": CALM, "duration_ns": 1_000 * MILLISECOND_NS, **options}
    return SimCluster(5, SimOptions(**values))  # type: ignore[arg-type]


@pytest.mark.parametrize("machine", ["hashchain", "kv"])
def test_session_clients_alone_make_a_cluster_work(machine: str) -> None:
    cluster = calm_cluster(machine=machine)
    cluster.run()
    assert cluster.report()["acknowledged"] > 10
    assert cluster.marks["client_reset"] == cluster.marks["client_half_open"] == 0
    if machine == "kv":
        assert isinstance(cluster.workload, KeyValueWorkload)
        outcomes = Counter(operation.outcome for operation in cluster.workload.operations())
        assert outcomes[Outcome.OK] > 10


def test_a_client_whose_node_is_cut_off_goes_elsewhere_and_comes_back() -> None:
    """The leader is out of one client's reach: its calls end by their deadlines, and go on when it is back."""
    cluster = calm_cluster(session_clients=1, duration_ns=1)
    cluster.run_for(2_000 * MILLISECOND_NS)
    leader, [client] = cluster.leader(), cluster.session_clients
    assert leader is not None
    assert client.acknowledged > 0
    cluster.client_connections.cut(client, leader.node_id)
    cluster.run_for(4_000 * MILLISECOND_NS)
    before = client.acknowledged
    cluster.run_for(1_000 * MILLISECOND_NS)
    assert client.acknowledged == before
    cluster.client_connections.heal()
    cluster.run_for(3_000 * MILLISECOND_NS)
    assert client.acknowledged > before
    assert cluster.settle()
    cluster.check()


def test_session_clients_meet_every_trouble() -> None:
    """A simulation in which clients have an easy life proves nothing about them."""
    totals: Counter[str] = Counter()
    for seed in range(2_000, 2_020):
        options = draw_options(seed, small=True, session_clients=3, duration_ns=800 * MILLISECOND_NS)
        cluster = SimCluster(seed, options)
        try:
            cluster.run()
        except BaseException as error:
            error.add_note(f"seed {seed}: {options}")
            raise
        totals.update(cluster.marks)
    assert [name for name in MUST_HAPPEN if not totals[name]] == []


def test_the_same_seed_gives_the_same_run() -> None:
    def run() -> dict[str, object]:
        options = SimOptions(
            machine="kv",
            clients=0,
            session_clients=2,
            duration_ns=600 * MILLISECOND_NS,
            session_links=LinkOptions(tail=0.02),
        )
        cluster = SimCluster(11, options)
        cluster.run()
        return cluster.report()

    assert run() == run()


# --- forged histories: each must be rejected --------------------------------------------------------------------------


def log_of(*commands: bytes) -> LogModel:
    """A log in which one session applied these commands, one block each."""
    log = LogModel(4)
    control = msgpack.packb({"op": "open_session", "nonce": bytes(16)})
    log.append(1, 2, build_control(control))
    for number, command in enumerate(commands, 1):
        log.append(number + 1, number + 2, build_block([command], 1, number, number))
    return log


def history_of(*calls: Call) -> ClientHistory:
    history = ClientHistory()
    history.calls += calls
    return history


def call(command: bytes, invoked_ns: int, answered_ns: int | None, outcome: Outcome, **fields: object) -> Call:
    made = Call("client", [command], invoked_ns=invoked_ns, answered_ns=answered_ns, outcome=outcome)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def position(number: int) -> list[bytes]:
    return [number.to_bytes(8, "little")]


def judge(history: ClientHistory, log: LogModel) -> None:
    history.check(log)
    HashChainWorkload(history, Random(1)).check(log)


FORGED: dict[str, tuple[Callable[[], list[Call]], str]] = {
    "not applied, but it was": (lambda: [call(b"a", 1, 2, Outcome.NOT_APPLIED)], "applied at"),
    "acknowledged and lost": (lambda: [call(b"c", 1, 2, Outcome.OK, results=position(3))], "is lost"),
    "the result of another place": (lambda: [call(b"a", 1, 2, Outcome.OK, results=position(2))], "was told positions"),
    "against real time": (
        lambda: [
            call(b"b", 1, 2, Outcome.OK, results=position(2)),
            call(b"a", 3, 4, Outcome.OK, results=position(1)),
        ],
        "had ended before",
    ),
    "applied after the session was over": (
        lambda: [call(b"b", 1, 2, Outcome.UNKNOWN, error="SessionExpired", commands_chosen=1)],
        "after its session was over",
    ),
    "a result that never was is gone": (lambda: [call(b"c", 1, 2, Outcome.UNKNOWN, error="ResultGone")], "never"),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_answers_are_rejected(name: str) -> None:
    make, message = FORGED[name]
    history = history_of(*make())
    log = log_of(b"a", b"b")
    with pytest.raises(Violation, match=message):
        judge(history, log)


def test_honest_answers_are_accepted() -> None:
    history = history_of(
        call(b"a", 1, 2, Outcome.OK, results=position(1)),
        call(b"b", 1, 5, Outcome.UNKNOWN, error="SessionExpired", commands_chosen=2),
        call(b"c", 1, 9, Outcome.NOT_APPLIED, error="NoLeader"),
        call(b"d", 1, None, Outcome.UNKNOWN),
    )
    judge(history, log_of(b"a", b"b"))


def test_a_wrong_result_of_the_key_value_machine_is_rejected() -> None:
    command = encode_put(b"k", b"v")
    log = log_of(command)
    honest = history_of(call(command, 1, 2, Outcome.OK, results=[msgpack.packb([1, None])]))
    KeyValueWorkload(honest, Random(1)).check(log)
    forged = history_of(call(command, 1, 2, Outcome.OK, results=[msgpack.packb([2, None])]))
    with pytest.raises(Violation, match="a replay of the log gives"):
        KeyValueWorkload(forged, Random(1)).check(log)


def test_a_caller_that_is_answered_twice_is_a_violation() -> None:
    cluster = calm_cluster(session_clients=1)
    [client] = cluster.session_clients
    assert isinstance(client.manner, Manner)
    twice = call(b"x", 0, None, Outcome.UNKNOWN, is_abandoned=True)
    client._answer(twice, b"")
    with pytest.raises(Violation, match="a second time"):
        client._answer(twice, b"")
