"""Simulated clients that run the shipped client protocol: `fastpaxos.session.Session` and its `LeaderChoice`.

A `SimSessionClient` is what `fastpaxos.client.Client` is on asyncio: it connects where the session wants to go, hands
frames and time to it, and gives out its answers. What it asks for, and how impatiently, is drawn from the seed; every
answer is checked on the spot for what needs no log: one answer per caller, in time, and byte-identical retries.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from fastpaxos.command_queue import ClientLimits
from fastpaxos.errors import ClientError, Closed, CommandError, NotApplied, OutcomeUnknown, Rejected
from fastpaxos.leader_choice import LeaderChoice
from fastpaxos.session import ConnectionState, Session
from fastpaxos_core.block import BlockView
from fastpaxos_core.wire import Frame, FrameType, parse_mapping

from .history import Call, Violation
from .network import parse_frames
from .node import address_of
from .operations import Outcome
from .schedule import MILLISECOND_NS

if TYPE_CHECKING:
    from .cluster import SimCluster
    from .workloads import Workload

__all__ = ["Manner", "SimSessionClient", "draw_manner"]

_FIRST_ADDRESS = 1_000
_TICK_NS = 10 * MILLISECOND_NS
_PATIENCE_MS = 300
_CLOSE_TIMEOUT_NS = 1_000 * MILLISECOND_NS
_INFLIGHT_BYTES_MAX = 64 << 10
# A caller hears of its deadline at the next tick.
_LATENESS_MAX_NS = _TICK_NS


@dataclass(frozen=True)
class Manner:
    """How one client behaves. Probabilities are per thought, in 0..1."""

    think_ns: int
    """Longest pause between two thoughts."""
    callers: int
    """Closed loop: calls that wait at a time. 0: an open loop, calls come however many are unanswered."""
    burst: int
    deadline_min_ms: int
    deadline_max_ms: int
    reads: float
    lists: float
    """Share of the writes that hand over several commands as one block."""
    cancel: float
    reopen: float
    """The session is closed when all have their answers, or after a second, and another one is opened."""
    die: float
    """The client forgets everything, as a process does that is killed."""
    blocks_in_flight_max: int
    silence_timeout_ms: int
    inflight_bytes_max: int
    names_nodes: bool
    """It knows the ids of all nodes; else it knows one address, and learns."""

    @property
    def is_hasty(self) -> bool:
        """It waits for a moment only."""
        return self.deadline_min_ms < _PATIENCE_MS


def draw_manner(random: Random) -> Manner:
    """Draw how one client behaves."""
    is_hasty = random.random() < 0.3
    return Manner(
        think_ns=random.choice((20, 50, 100)) * MILLISECOND_NS,
        callers=random.choice((0, 1, 4)),
        burst=random.choice((1, 1, 2, 6)),
        deadline_min_ms=50 if is_hasty else _PATIENCE_MS,
        deadline_max_ms=random.choice((60, 200)) if is_hasty else 2_000,
        reads=random.choice((0.1, 0.3)),
        lists=random.choice((0.0, 0.3)),
        cancel=random.choice((0.0, 0.05)),
        reopen=random.choice((0.0, 0.0, 0.03)),
        die=random.choice((0.0, 0.0, 0.02)),
        blocks_in_flight_max=random.choice((1, 4, 32)),
        silence_timeout_ms=random.choice((150, 400, 1_000)),
        inflight_bytes_max=random.choice((1 << 10, _INFLIGHT_BYTES_MAX, _INFLIGHT_BYTES_MAX)),
        names_nodes=random.random() < 0.7,
    )


class SimSessionClient:
    """One client, with one session at a time.

    `stop()` ends new work; everything that waits still gets its answer, at the latest by its deadline.

    Attributes:
        address: of this client, below 0.
        dialing: epoch of the connection that is being made, 0 for none.
        sessions_lost: ids of sessions of which it was told that they are over.
        acknowledged: calls that were answered with a result.
    """

    def __init__(self, cluster: SimCluster, number: int, workload: Workload, manner: Manner | None = None) -> None:
        self.cluster = cluster
        self.name = f"session client {number}"
        self.address = -(_FIRST_ADDRESS + number)
        self.workload = workload
        self.manner = draw_manner(cluster.random) if manner is None else manner
        self.dialing = 0
        self.sessions_lost: list[int] = []
        self.acknowledged = 0
        self._random = cluster.random
        self._schedule = cluster.schedule
        self._node_of = {address_of(node_id): node_id for node_id in cluster.members}
        self._waiting: dict[Call, None] = {}
        self._blocks: dict[tuple[int, int], bytes] = {}
        self._epoch = 0
        self._life = 0
        self._is_stopped = self._is_closing = self._is_tick_due = False
        self._begin()
        self._schedule.after(self._random.randrange(1, self.manner.think_ns + 1), self._think)

    def __repr__(self) -> str:
        session = self._session
        return (
            f"{self.name} ({session.state.value}, node {session.node_id}, session {session.session_id}, dials "
            f"{self.dialing}, {session.choice.describe_errors()})"
        )

    @property
    def is_idle(self) -> bool:
        """Nobody waits for an answer."""
        return not self._waiting

    @property
    def waiting(self) -> list[str]:
        """What is unanswered, for a person."""
        return [str(call) for call in self._waiting]

    def stop(self) -> None:
        """Begin nothing new."""
        self._is_stopped = True

    # A life of the client: from opening to closing

    def _begin(self) -> None:
        manner = self.manner
        self._life += 1
        members = {node_id: address for address, node_id in self._node_of.items()}
        seeds = [] if manner.names_nodes else [self._random.choice([*self._node_of])]
        self._session = Session(
            LeaderChoice(members if manner.names_nodes else {}, seeds, random=self._random),
            random=self._random,
            limits=ClientLimits(commands_per_block_max=32, inflight_bytes_max=manner.inflight_bytes_max),
            blocks_in_flight_max=manner.blocks_in_flight_max,
            silence_timeout_ms=manner.silence_timeout_ms,
            is_abandoned=_is_abandoned,
        )
        self._session_id = 0
        self._is_closing = False
        self._blocks.clear()
        self._dial_later()

    def _end(self, reason: str) -> None:
        """Give all callers an error, drop the connection, and begin anew."""
        self._session.abandon(reason)
        self._take_answers()
        if self._waiting:
            raise Violation(f"{self.name} was closed and left {self.waiting} without an answer", checker="answers")
        self.dialing = 0
        if self._epoch:
            epoch, self._epoch = self._epoch, 0
            self.cluster.client_connections.left_by_client(epoch)
        self._begin()

    def _close(self) -> None:
        """As `Client.aclose` does."""
        self.cluster.marks["session_closing"] += 1
        self._is_closing = True
        self._session.close()
        life = self._life

        def give_up() -> None:
            if self._life == life:
                self._end("the client was closed")

        self._schedule.after(_CLOSE_TIMEOUT_NS, give_up)
        self._flush()

    def _is_closed(self) -> bool:
        session = self._session
        states = (ConnectionState.READY, ConnectionState.OPENING)
        if session.is_session_closed:
            self.cluster.marks["session_closed"] += 1
            return True
        return session.is_idle and session.state not in states

    # Work

    def _think(self) -> None:
        if self._is_stopped:
            return
        random, manner = self._random, self.manner
        self._schedule.after(random.randrange(1, manner.think_ns + 1), self._think)
        if self._is_closing:
            return
        if manner.die and random.random() < manner.die:
            self.cluster.marks["client_killed"] += 1
            self._end("the client was killed")
        elif manner.reopen and random.random() < manner.reopen:
            self._close()
        if self._waiting and manner.cancel and random.random() < manner.cancel:
            self._cancel(random.choice([*self._waiting]))
        if not self._is_closing and (not manner.callers or len(self._waiting) < manner.callers):
            for _ in range(random.randint(1, manner.burst)):
                self._call()
            self._flush()

    def _cancel(self, call: Call) -> None:
        """Its caller is not interested any more."""
        self.cluster.marks["call_cancelled"] += 1
        call.is_abandoned = True
        del self._waiting[call]

    def _call(self) -> None:
        random, manner = self._random, self.manner
        deadline_ms = random.randint(manner.deadline_min_ms, manner.deadline_max_ms)
        if random.random() < manner.reads:
            call = self.workload.read(self.name)
        else:
            call = self.workload.write(self.name, random.randint(2, 8) if random.random() < manner.lists else 1)
        self._begin_call(call, deadline_ms * MILLISECOND_NS)

    def _begin_call(self, call: Call, timeout_ns: int) -> None:
        session = self._session
        call.invoked_ns = self._schedule.now_ns
        call.deadline_ns = call.invoked_ns + timeout_ns
        self._waiting[call] = None
        try:
            if not call.commands:
                session.query(call.request, call, call.deadline_ns)
            elif len(call.commands) == 1:
                session.submit(call.commands[0], call, call.deadline_ns)
            else:
                session.submit_list(call.commands, call, call.deadline_ns)
        except NotApplied as error:
            self._answer(call, error)

    def call(self, call: Call, timeout_ns: int) -> None:
        """Ask for something by hand."""
        self._begin_call(call, timeout_ns)
        self._flush()

    # Answers

    def _take_answers(self) -> None:
        for waiters, results, _ in self._session.take_completions():
            for call, result in zip(waiters, results, strict=True):
                if call is not None:
                    self._answer(call, result)

    def _answer(self, call: Call, result: Any) -> None:
        """A caller has its answer, and must not get another."""
        now_ns = self._schedule.now_ns
        if call.answered_ns is not None:
            raise Violation(f"{call} was answered a second time", checker="answers")
        call.answered_ns = now_ns
        if call.is_abandoned:
            return
        del self._waiting[call]
        if now_ns > call.deadline_ns + _LATENESS_MAX_NS:
            raise Violation(f"{call} was answered {now_ns - call.deadline_ns} ns late", checker="answers")
        if isinstance(result, ClientError) and not isinstance(result, CommandError):
            call.outcome = self._outcome_of(call, result)
            call.error = type(result).__name__
            call.commands_chosen = self.cluster.checker.log.commands
            self.cluster.marks[f"answer_{call.error}"] += 1
        else:
            self.acknowledged += 1
            call.outcome = Outcome.OK
            call.results = [*result] if len(call.commands) > 1 else [result]
        self.workload.answered(call)

    def _outcome_of(self, call: Call, error: ClientError) -> Outcome:
        if isinstance(error, Rejected):
            raise Violation(f"{call} was refused for good: {error}", checker="answers")
        if error.may_have_applied and not call.commands:
            raise Violation(f"{call} is a query and may have changed something: {error!r}", checker="answers")
        if isinstance(error, OutcomeUnknown):
            return Outcome.UNKNOWN
        if isinstance(error, NotApplied | Closed):
            return Outcome.NOT_APPLIED
        raise Violation(f"{call} was answered with {error!r}", checker="answers")

    # The connection

    def _dial_later(self) -> None:
        """Connect to where the session wants to go, when it wants to."""
        life = self._life
        self.dialing = -1

        def dial() -> None:
            if self._life != life:
                return
            wait_ns = self._session.wait_ns(self._schedule.now_ns)
            if wait_ns:
                self._schedule.after(wait_ns, dial)
            else:
                self.dialing = self.cluster.client_connections.dial(self, self._node_of[self._session.address])

        dial()

    def connected(self, epoch: int) -> None:
        """The connection that was asked for stands."""
        self.dialing = 0
        self._epoch = epoch
        self._session.connected(self._schedule.now_ns)
        self._flush()

    def connect_failed(self, epoch: int, error: Exception) -> None:
        """The node cannot be reached."""
        if self.dialing == epoch:
            self.dialing = 0
            self._session.connect_failed(error, self._schedule.now_ns)
            self._settle()

    def disconnected(self, epoch: int) -> None:
        """The other end is gone."""
        if self._epoch == epoch:
            self._epoch = 0
            self._session.disconnected(None, self._schedule.now_ns)
            self._settle()

    def receive(self, epoch: int, frame: Frame) -> None:
        """One frame of the node."""
        if self._epoch == epoch:
            self._session.receive(frame, self._schedule.now_ns)
            self._flush()

    def _flush(self) -> None:
        if self._epoch:
            buffers = self._session.flush(self._schedule.now_ns)
            if buffers:
                self._note_sent(buffers)
                self.cluster.client_connections.send_from_client(self._epoch, buffers)
        self._settle()

    def _settle(self) -> None:
        """Give out answers, leave a connection that the session has left, keep the clock running while it matters."""
        session = self._session
        self._take_answers()
        if session.session_id != self._session_id:
            if self._session_id:
                self.sessions_lost.append(self._session_id)
            self._session_id = session.session_id
        if self._epoch and not session.is_connected:
            epoch, self._epoch = self._epoch, 0
            self.cluster.client_connections.left_by_client(epoch)
        if self._is_closing and self._is_closed():
            self._end("the client was closed")
            return
        if not self._epoch and not self.dialing:
            self._dial_later()
        if not self._is_tick_due and session.needs_ticks:
            self._is_tick_due = True
            self._schedule.after(_TICK_NS, self._tick)

    def _tick(self) -> None:
        self._is_tick_due = False
        self._session.tick(self._schedule.now_ns)
        self._flush()

    def _note_sent(self, buffers: list[bytes]) -> None:
        """Tell the checkers what leaves, and see that a block that is sent again has not changed."""
        for _, frame in parse_frames(b"".join(buffers)):
            if frame.type == FrameType.SUBMIT:
                block = frame.body
                view = BlockView(block)
                key = (view.session_id, view.first_sequence)
                if self._blocks.setdefault(key, block) != block:
                    raise Violation(f"{self.name} sent two different blocks as {key}", checker="retries")
                self.cluster.note_submitted(block)
            elif frame.type == FrameType.CONTROL:
                message = parse_mapping(frame)
                if message["op"] == "open_session":
                    self.cluster.note_nonce(message["nonce"])


def _is_abandoned(call: Call) -> bool:
    return call.is_abandoned
