"""A simulated cluster for tests of a user's own state machine: `MachineCluster` by hand, `check_machine` at random.

Every node applies the log to a machine of its own, in an environment of its own: clocks and the global random generator
differ from node to node. Results, digests and snapshots of all nodes are compared batch by batch, and the log is
applied again in processes with other hash seeds. Whatever makes replicas diverge in production shows up here first,
with the slot and the command.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from fastpaxos.errors import NoLeader
from fastpaxos.statemachine import FATAL_ERRORS, ApplyContext, BatchRun, QueryContext, ResultBlob, StateMachine
from fastpaxos_core.block import BlockView, build_block
from fastpaxos_core.results import decode_results

from .cluster import SimCluster
from .environment import Environment
from .history import Call, LogModel, Violation
from .node import SimNode
from .options import NemesisOptions, SimOptions
from .replay import AppliedBatch, check_hash_order, importable_name, state_of
from .schedule import MILLISECOND_NS
from .session_client import Manner, SimSessionClient
from .swarm import draw_options

__all__ = ["MachineCluster", "check_machine"]

SEED_VARIABLE = "FASTPAXOS_SIM_SEED"
_SETTLE_TIMEOUTS = 40
_POOL = 200
_NODE_CLOCK_STEP_NS = 31 * 3_600 * 1_000_000_000
_CALM = NemesisOptions(crash=0, restart=0, partition=0, one_way_cut=0, isolate_leader=0, heal=0, reset_connection=0)
_PATIENT = Manner(
    think_ns=MILLISECOND_NS,
    callers=1,
    burst=1,
    deadline_min_ms=1,
    deadline_max_ms=1,
    reads=0.0,
    lists=0.0,
    cancel=0.0,
    reopen=0.0,
    die=0.0,
    blocks_in_flight_max=32,
    silence_timeout_ms=500,
    inflight_bytes_max=8 << 20,
    names_nodes=True,
)
# What a user's machine has to do with: nodes that stop, start, hang and lose each other, not disks that rot.
_NO_ROT: dict[str, Any] = {
    "rot": 0.0,
    "lose_disk": 0.0,
    "fail_sync": 0.0,
    "fail_write": 0.0,
    "fail_read": 0.0,
    "fill_disk": 0.0,
}
_SIZES: dict[str, Any] = {"window_bytes": 1 << 20, "log_memory_bytes": 1 << 20, "segment_bytes": 1 << 20}


@dataclass(frozen=True)
class _First:
    """What the first node that applied a batch made of it."""

    node: str
    batch: AppliedBatch
    used: list[str]


class _WatchedMachine(StateMachine):
    """One node's machine in that node's environment; every batch is compared with what other nodes made of it."""

    def __init__(self, cluster: _Simulation, inner: StateMachine, number: int) -> None:
        self.inner = inner
        self._cluster = cluster
        self._number = number
        self._environment = Environment(inner, self._wall_ns, self._monotonic_ns, f"{cluster.seed} {number}")

    def _node(self) -> SimNode:
        return next(node for node in self._cluster.nodes.values() if node.machine is self)

    def _wall_ns(self) -> int:
        node = self._node()
        return node.wall_ns() + node.node_id * _NODE_CLOCK_STEP_NS

    def _monotonic_ns(self) -> int:
        return self._node().monotonic_ns()

    def apply_batch(self, batch: BlockView, context: ApplyContext) -> ResultBlob:
        node = self._node()
        name = f"node {node.node_id}" + (f" (start {node.boot})" if node.boot > 1 else "")
        try:
            with self._environment.inside():
                blob = BatchRun(self.inner, batch, context.slot_begin, context.now_ns).finish()
                state = state_of(self.inner)
        except FATAL_ERRORS as error:
            self._cluster.fail(
                f"the machine of {name} raised {error!r} at slot {context.slot_begin}: a node stops then"
            )
            raise
        block = build_block(batch.commands(), batch.session_id, batch.first_sequence)
        results: list[Any] = decode_results(blob, len(batch))
        made = AppliedBatch(context.slot_begin, context.now_ns, block, results, state)
        first = self._cluster.applied.setdefault(context.slot_begin, _First(name, made, self._environment.used))
        self._compare(first, made, name)
        return ResultBlob(blob)

    def _compare(self, first: _First, made: AppliedBatch, name: str) -> None:
        if (first.batch.results, first.batch.state) == (made.results, made.state):
            return
        used = ", ".join(dict.fromkeys([*first.used, *self._environment.used]))
        hint = f"; the machine used {used} there, which is not the same everywhere" if used else ""
        commands = BlockView(made.block).commands()
        for offset, (theirs, ours) in enumerate(zip(first.batch.results, made.results, strict=True)):
            if theirs != ours:
                self._cluster.fail(
                    f"replicas diverge at slot {made.slot_begin + offset}: the result of the command "
                    f"{commands[offset]!r} is {theirs!r} on {first.node} and {ours!r} on {name}{hint}"
                )
                return
        self._cluster.fail(
            f"replicas diverge at slot {made.slot_begin + len(commands) - 1}: after the command {commands[-1]!r} the "
            f"digest or the snapshot of {first.node} and of {name} differ{hint}"
        )

    def query(self, request: bytes, context: QueryContext) -> Any:
        with self._environment.inside():
            before = state_of(self.inner)
            try:
                return self.inner.query(request, context)
            finally:
                if state_of(self.inner) != before:
                    self._cluster.fail(f"the query {request!r} changed the state; it runs on one replica only")

    def digest(self) -> str:
        with self._environment.inside():
            return self.inner.digest()


class _Commands:
    """A workload of the user's own commands."""

    def __init__(self, random: Random, command: Callable[[Random], bytes], query: Callable[[Random], bytes] | None):
        self._random = random
        self._command = command
        self._query = query

    def write(self, client: str, commands: int) -> Call:
        return Call(client, [self._command(self._random) for _ in range(commands)])

    def read(self, client: str) -> Call:
        if self._query is None:
            return self.write(client, 1)
        return Call(client, [], self._query(self._random))

    def answered(self, call: Call) -> None:
        """What the machine answers is compared between nodes, not here."""

    def check(self, log: LogModel) -> None:
        """Nothing is known of the user's results."""


class _Simulation(SimCluster):
    """A simulated cluster whose machines are watched."""

    def __init__(
        self, seed: int, options: SimOptions, factory: Callable[[], StateMachine], workload: _Commands
    ) -> None:
        self.applied: dict[int, _First] = {}
        self._workload_of_user = workload
        self._machines = 0

        def make() -> StateMachine:
            self._machines += 1
            return _WatchedMachine(self, factory(), self._machines)

        super().__init__(seed, options, make)

    def fail(self, message: str) -> None:
        """A machine is not deterministic. Raised at the end of the event; what follows from it is no news."""
        if self.violation is None:
            self.violation = Violation(message, checker="determinism")

    def _make_workload(self) -> _Commands:
        return self._workload_of_user

    def _check_history(self) -> None:
        """Commands of users may be equal, so what was applied is compared by `_WatchedMachine` alone."""

    @property
    def log(self) -> list[AppliedBatch]:
        """Everything that was applied, in order."""
        return [first.batch for _, first in sorted(self.applied.items())]

    def is_settled(self) -> bool:
        """All nodes run, and have applied the same."""
        return self._is_quiet()


class _Caller(SimSessionClient):
    """A session client for calls made by hand."""

    def __init__(self, cluster: SimCluster, number: int, workload: _Commands) -> None:
        super().__init__(cluster, number, workload, _PATIENT)
        self.answers: dict[Call, Any] = {}
        self.stop()

    def _answer(self, call: Call, result: Any) -> None:
        self.answers[call] = result
        super()._answer(call, result)


class MachineCluster:
    """A cluster of a user's state machine in one thread and in virtual time; trouble comes only when it is made.

        cluster = MachineCluster(MyMachine, nodes=3, seed=7)
        assert cluster.execute(b"add 1") == b"1"
        cluster.partition([cluster.leader], [node for node in cluster.nodes if node != cluster.leader])
        assert cluster.execute(b"add 1") == b"2"
        cluster.settle()                     # all is mended, all nodes agree, or it raises Violation

    Args:
        factory: makes a fresh machine; called for every start of every node. A class, or a function of no arguments.
        nodes: how many replicas, from 1.
        seed: everything random comes from it. The environment variable FASTPAXOS_SIM_SEED, if it is set, wins.
        hash_seeds: values of PYTHONHASHSEED under which the log is applied again by `verify`; none: not at all.

    Raises:
        ValueError: the factory cannot be imported by another process, and `hash_seeds` are wanted.
        Violation: in any method, when replicas diverge.
    """

    def __init__(
        self,
        factory: Callable[[], StateMachine],
        *,
        nodes: int = 3,
        seed: int = 1,
        hash_seeds: Iterable[int] | None = None,
    ) -> None:
        self.seed = replay_seed(seed)
        self._factory = factory
        self._hash_seeds = _hash_seeds(hash_seeds, self.seed)
        if self._hash_seeds:
            importable_name(factory)
        workload = _Commands(Random(self.seed), lambda _: b"", None)
        options = SimOptions(nodes=nodes, clients=0, nemesis=_CALM, machine="", **_SIZES)
        self._cluster = _Simulation(self.seed, options, factory, workload)
        self._caller = _Caller(self._cluster, 1, workload)
        self._cluster.session_clients.append(self._caller)
        self._advance_until(_SETTLE_TIMEOUTS * options.election_timeout_ms, lambda: self._cluster.leader() is not None)

    @property
    def nodes(self) -> list[int]:
        """Ids of all nodes."""
        return [*self._cluster.members]

    @property
    def leader(self) -> int:
        """Id of a node that leads, or believes so; 0 if there is none."""
        leader = self._cluster.leader()
        return leader.node_id if leader is not None else 0

    def machine(self, node: int) -> Any:
        """The user's machine on a node, to look at."""
        machine = self._cluster.nodes[node].machine
        assert isinstance(machine, _WatchedMachine)
        return machine.inner

    # Calls

    def execute(self, command: bytes, timeout_ms: int = 5_000) -> bytes:
        """Replicate a command and return its result, in virtual time. Raises what `fastpaxos.Client.execute` raises."""
        return self._ask(Call(self._caller.name, [command]), timeout_ms)

    def query(self, request: bytes = b"", timeout_ms: int = 5_000) -> bytes:
        """Ask a linearizable read. Raises what `fastpaxos.Client.query` raises."""
        return self._ask(Call(self._caller.name, [], request), timeout_ms)

    def _ask(self, call: Call, timeout_ms: int) -> bytes:
        self._caller.call(call, timeout_ms * MILLISECOND_NS)
        self._advance_until(2 * timeout_ms, lambda: call in self._caller.answers)
        result: Any = self._caller.answers.pop(call, None)
        if result is None:
            raise NoLeader("the call was not answered")
        if isinstance(result, Exception):
            raise result
        answer: bytes = result
        return answer

    # Time and trouble

    def advance(self, milliseconds: float) -> None:
        """Let virtual time pass."""
        self._cluster.run_for(int(milliseconds * MILLISECOND_NS))
        self._raise()

    def partition(self, *groups: Iterable[int]) -> None:
        """Nodes of different groups lose each other; the client still reaches all of them."""
        self._cluster.network.partition(groups)

    def heal(self) -> None:
        """Mend all links. Nodes that are down or paused stay so."""
        self._cluster.network.heal()

    def kill(self, node: int) -> None:
        """Kill a node's process (SIGKILL); its machine is gone, its disk keeps what was written."""
        self._cluster.kill_node(node)

    def crash(self, node: int) -> None:
        """Cut a node's power: the process is gone, and everything that was not synced."""
        self._cluster.crash_node(node)

    def restart(self, node: int) -> None:
        """Start a node that is down; it applies its log to a fresh machine."""
        if not self._cluster.nodes[node].running:
            self._cluster.start_node(node)

    def pause(self, node: int) -> None:
        """Stop a node without killing it (SIGSTOP)."""
        self._cluster.nodes[node].pause()

    def resume(self, node: int) -> None:
        """Let a paused node go on."""
        if self._cluster.nodes[node].paused:
            self._cluster.nodes[node].resume()

    def settle(self) -> None:
        """Mend links, start and resume nodes, and wait until all have applied the same. Raises Violation if not."""
        self.heal()
        for node in self.nodes:
            self.restart(node)
            self.resume(node)
        timeout_ms = _SETTLE_TIMEOUTS * self._cluster.options.election_timeout_ms
        if not self._advance_until(timeout_ms, self._cluster.is_settled):
            raise Violation(f"the cluster did not converge within {timeout_ms} ms", checker="convergence")
        self._cluster.check()
        self._raise()

    def verify(self) -> None:
        """Settle, and apply the log again in processes with other hash seeds. Raises Violation."""
        self.settle()
        check_hash_order(self._factory, [self._cluster.log], self._hash_seeds)

    def _advance_until(self, milliseconds: int, stop: Callable[[], bool]) -> bool:
        until_ns = self._cluster.schedule.now_ns + milliseconds * MILLISECOND_NS
        done = stop() or self._cluster.schedule.run_until(until_ns, stop)
        self._raise()
        return done

    def _raise(self) -> None:
        if self._cluster.violation is not None:
            raise self._cluster.violation


def check_machine(
    factory: Callable[[], StateMachine],
    commands: Any,
    *,
    queries: Any = None,
    seeds: int = 50,
    hash_seeds: Iterable[int] | None = None,
) -> None:
    """Run random commands of a state machine in many simulated clusters with trouble, and see that it is deterministic.

        def command(random):
            return random.choice([b"add", b"remove"]) + b" %d" % random.randrange(10)

        def test_my_machine():
            check_machine(MyMachine, command, seeds=20)

    Each seed draws a cluster and what is done to it: nodes are killed, lose their power, hang and lose each other.

    Args:
        factory: makes a fresh machine; see `MachineCluster`.
        commands: `(random) -> bytes`, which takes all chance from its argument, or a hypothesis strategy for bytes.
        queries: the same for reads; none by default.
        seeds: how many clusters. If the environment variable FASTPAXOS_SIM_SEED is set, that seed alone is run.
        hash_seeds: see `MachineCluster`.

    Raises:
        Violation: replicas diverged, or a result depends on time, chance, hash order or the process. Its notes name the
            seed and what replays it.
    """
    chosen = os.environ.get(SEED_VARIABLE)
    all_seeds = [int(chosen)] if chosen else [*range(1, seeds + 1)]
    hash_seeds = None if hash_seeds is None else [*hash_seeds]
    if _hash_seeds(hash_seeds, 0):
        importable_name(factory)
    logs = []
    for seed in all_seeds:
        try:
            logs.append(_run_seed(factory, seed, _generator(commands, seed), queries and _generator(queries, seed)))
        except Violation as violation:
            violation.add_note(f"replay: {replay_command(seed)}")
            raise
    try:
        check_hash_order(factory, logs, _hash_seeds(hash_seeds, all_seeds[0]))
    except Violation as violation:
        # Which of the logs it was is found by its commands: a replay of all of them is as quick.
        violation.add_note("replay: run the same test again")
        raise


def _run_seed(
    factory: Callable[[], StateMachine],
    seed: int,
    command: Callable[[Random], bytes],
    query: Callable[[Random], bytes] | None,
) -> list[AppliedBatch]:
    options = draw_options(seed, small=True, clients=0, session_clients=2, machine="", **_SIZES)
    options = replace(options, apply_delay_max_ns=0, nemesis=replace(options.nemesis, **_NO_ROT))
    cluster = _Simulation(seed, options, factory, _Commands(Random(f"commands {seed}"), command, query))
    cluster.run()
    return cluster.log


def _generator(source: Any, seed: int) -> Callable[[Random], bytes]:
    """Return a function that draws commands: `source` itself, or one that draws from examples of a strategy."""
    if not hasattr(source, "example"):
        draw: Callable[[Random], bytes] = source
        return draw
    import hypothesis

    pool: list[bytes] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=_POOL, database=None, deadline=None, phases=[hypothesis.Phase.generate], derandomize=False
    )
    @hypothesis.given(source)
    def collect(command: bytes) -> None:
        pool.append(command)

    collect()
    return lambda random: random.choice(pool)


def replay_seed(seed: int) -> int:
    """Return the seed that FASTPAXOS_SIM_SEED asks for, else `seed`."""
    return int(os.environ.get(SEED_VARIABLE) or seed)


def replay_command(seed: int) -> str:
    """Return the command that runs the current test again with one seed."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    return f"{SEED_VARIABLE}={seed} " + (f"pytest '{test}'" if test else "and the same program again")


def _hash_seeds(hash_seeds: Iterable[int] | None, seed: int) -> list[int]:
    return [0, 1, Random(f"hash {seed}").getrandbits(32)] if hash_seeds is None else [*hash_seeds]
