"""One simulated node: the parts of a real one, around a simulated disk, network, clock and event loop.

Shipped code does all the deciding: `IdentityFile`, `Founding`, `FoundingDriver`, `Switchboard`, `Driver`,
`ClientService`, `Election`, `Replica`, `Journal` and the state machine. `SimNode` only does what `fastpaxos.node.Node`
does with threads and sockets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from fastpaxos.config import NodeConfig
from fastpaxos.driver import Driver
from fastpaxos.founding_driver import FoundingDriver
from fastpaxos.handshake import (
    NO_CLUSTER,
    BootLedger,
    HandshakeRefusedError,
    Hello,
    Identity,
    check_hello,
    check_peer,
    check_sender,
)
from fastpaxos.identity import IdentityFile
from fastpaxos.service import ClientService
from fastpaxos.statemachine import StateMachine
from fastpaxos.switchboard import Switchboard
from fastpaxos_core.errors import ConfigError, CorruptionError, FrameError
from fastpaxos_core.founding import Founding, FoundingRecord
from fastpaxos_core.replica import Replica
from fastpaxos_core.wire import Frame, FrameType, FrameWriter, parse_mapping

from .connections import PeerLink, SimTransport
from .disk import SimDisk, SimulatedCrash
from .history import Violation
from .journal_view import JournalEntry, Value, block_ranges
from .network import accepted
from .observed_machine import ObservedMachine
from .process import SimLoop, SimStorage
from .schedule import MILLISECOND_NS

if TYPE_CHECKING:
    from fastpaxos_core.journal_recovery import Recovery

    from .cluster import SimCluster

__all__ = ["SimNode", "address_of"]

_FOUNDING_MAX_NS = 5 * MILLISECOND_NS
_READY_ROUNDS_MAX = 10_000
# The whole window of a replica is looked through once in so many turns.
_WINDOW_CHECK_TURNS = 16
_LEADER_CHECK_TURNS = 4


def address_of(node_id: int) -> str:
    """The address of a simulated node."""
    return f"node-{node_id}:7000"


class SimNode:
    """A node that can be started, killed, crashed, paused and resumed. Its disk and its clock outlive all that.

    Attributes:
        running: the process exists. paused: it does not run (SIGSTOP). busy: its loop is in one long call.
        stopped_by: the error with which the process ended by itself, None if it was killed.
        is_lost: this directory may never take part again (its disk was lost, or its identity).
        disk_lost: the directory came back empty after the cluster was founded.
        is_damaged: something was broken on its disk; the checkers allow it to know less.
        effects_left: the process dies at that many effects (writes, sends, answers) from now; None: not planned.
        records: (segment, offset, length, entries) of every journal write, oldest first.
    """

    def __init__(self, cluster: SimCluster, node_id: int) -> None:
        random = cluster.random
        options = cluster.options
        self.cluster = cluster
        self.node_id = node_id
        self.disk = SimDisk()
        self.config = NodeConfig(
            node_id=node_id,
            cluster={member: address_of(member) for member in cluster.members},
            data_dir=f"node-{node_id}",
            phase1_quorum=options.phase1_quorum,
            phase2_quorum=options.phase2_quorum,
            heartbeat_interval_ms=options.heartbeat_interval_ms,
            election_timeout_ms=options.election_timeout_ms,
            commands_per_block_max=16,
            sessions_max=options.sessions_max,
            result_bytes_per_session_max=options.result_bytes_per_session_max,
        )
        self.boot = 0
        self.life = 0
        self.running = False
        self.paused = False
        self.busy = False
        self.is_lost = False
        self.disk_lost = False
        self.is_damaged = False
        self.stopped_by: BaseException | None = None
        self.effects_left: int | None = None
        self.batches_applied = 0
        self.clock_offset_ns = random.randrange(1, 10**12)
        self.clock_drift_ppm = random.randint(-options.clock_drift_ppm, options.clock_drift_ppm)
        self.wall_offset_ns = random.randint(-(10**9), 10**9)
        self.records: list[tuple[str, int, int, list[JournalEntry]]] = []
        self.replica: Replica | None = None
        self.machine: StateMachine = cluster.make_machine()
        self.identity = Identity(node_id, 0, 0, self.config.durability)
        self.driver: Driver | None = None
        self.transport = SimTransport(self)
        self._inbox: deque[Callable[[], None]] = deque()
        self._turn_due = False
        self._spent_ns = 0
        self._turns = 0
        self._seen = (0, 0, 0)
        self._surveys = 0

    def __repr__(self) -> str:
        state = "paused" if self.paused else "running" if self.running else "down"
        return f"SimNode({self.node_id}, boot {self.boot}, {state})"

    # Life

    def start(self) -> None:
        """Start the process. Raises SimulatedCrash if the disk was told so; a disk that fails ends the process."""
        self.life += 1
        self.running = True
        self.paused = self.busy = self._turn_due = False
        self.stopped_by = None
        self.effects_left = None
        self.replica = None
        self.driver = None
        self._inbox.clear()
        self._boots = BootLedger()
        self.run_number = self.cluster.random.getrandbits(64)
        self.machine = self.cluster.make_machine()
        try:
            self._open()
        except SimulatedCrash:
            raise
        except (OSError, ConfigError, CorruptionError) as error:
            self.fail(error)

    def _open(self) -> None:
        cluster, config = self.cluster, self.config
        self.identity_file = IdentityFile.open(
            self.disk,
            f"node-{self.node_id}",
            node_id=self.node_id,
            durability=config.durability,
            os_boot_id="simulated",
            new_incarnation=lambda: cluster.random.getrandbits(63) + 1,
        )
        stored = self.identity_file.value
        self.boot = stored.boot
        cluster.checker.started(self.node_id, stored.incarnation, stored.boot)
        record = self.identity_file.founding
        self._set_identity(record)
        founding = Founding(
            node_id=self.node_id,
            incarnation=stored.incarnation,
            members=config.members,
            phase1_quorum=config.phase1_size,
            phase2_quorum=config.phase2_size,
            durability=config.durability,
            sessions_max=config.sessions_max,
            result_bytes_per_session_max=config.result_bytes_per_session_max,
            record=record,
        )
        self.loop = SimLoop(self)
        self.observed_machine = ObservedMachine(self, self.machine)
        self.service = ClientService(
            config,
            self.observed_machine,
            status=dict,
            changed=lambda: self.loop.call_soon(self.service.flush),
            clock_ns=self.monotonic_ns,
        )
        self.service.writer = self._make_writer()
        self.founding_driver = FoundingDriver(
            founding,
            make_control=lambda message: self.service.writer.control(message),
            random_bytes=cluster.random.randbytes,
        )
        self.switchboard = Switchboard(
            config,
            self.identity,
            self.service,
            self.founding_driver,
            fail=self.fail,
            clock_ns=self.monotonic_ns,
            wall_ns=self.wall_ns,
        )
        self.transport = SimTransport(self)
        self.switchboard.transport = self.transport  # type: ignore[assignment]
        if record is not None:
            self._begin(record)
        self.later(cluster.random.randrange(1, cluster.options.tick_ns), self._tick)

    def _begin(self, record: FoundingRecord) -> None:
        """The record first, then the journal; then take part. As `Node._begin` does."""
        options, config, checker = self.cluster.options, self.config, self.cluster.checker
        self.identity_file.found(record)
        checker.founded(self.node_id, self.identity_file.value.incarnation, record)
        journal, recovery = self.identity_file.open_journal(self.disk, options.segment_bytes)
        self._note_recovery(recovery)
        replica = Replica(
            node_id=self.node_id,
            boot=self.boot,
            incarnation=self.identity_file.value.incarnation,
            cluster_id=record.cluster_id,
            members=config.members,
            journal=journal,
            recovery=recovery,
            phase1_quorum=record.phase1_quorum,
            phase2_quorum=record.phase2_quorum,
            window_slots=options.window_slots,
            ring_slots=options.ring_slots,
            window_bytes=options.window_bytes,
            log_memory_bytes=options.log_memory_bytes,
            batch_capacity=options.batch_capacity,
            block_bytes_max=options.window_bytes // 4,
            commands_per_block_max=config.commands_per_block_max,
            sessions_max=record.sessions_max,
            result_bytes_per_session_max=record.result_bytes_per_session_max,
            heartbeat_interval_ns=options.heartbeat_interval_ms * MILLISECOND_NS,
            resend_timeout_ns=options.resend_timeout_ms * MILLISECOND_NS,
            fetch_timeout_ns=options.fetch_timeout_ms * MILLISECOND_NS,
        )
        self.replica = replica
        self._seen = (0, 0, 0)
        self._surveys = 0
        self.storage = SimStorage(self)
        self.driver = Driver(
            replica,
            self.storage,
            self.observed_machine,
            self.service,
            self.transport.peers,
            apply_slice_ms=config.apply_slice_ms,
            loop=self.loop,
            read_executor=None,
            clock_ns=self._apply_clock_ns,
            failed=self.fail,
        )
        self._set_identity(record)
        self.switchboard.identity = self.identity
        self.switchboard.founded(record)
        self.service.writer = self._make_writer()
        self.switchboard.begin(replica, self.driver, self.cluster.random)
        if self.switchboard.election is not None:
            self.switchboard.election.lag_slots_max = options.window_slots
        self.transport.identity_changed()

    def _note_recovery(self, recovery: Recovery) -> None:
        if (not recovery.promised_known or recovery.unknown) and not self.is_damaged:
            raise Violation(
                f"node {self.node_id} calls its sound journal damaged: {recovery} {recovery.problems}",
                checker="recovery",
            )
        marks = self.cluster.marks
        marks["torn_tail"] += recovery.torn_write
        marks["recovered_unsynced"] += recovery.rewritten > 0
        marks["promises_lost"] += not recovery.promised_known
        self.cluster.note(
            f"node {self.node_id} boot {self.boot} recovered promise {recovery.promised_ballot}, commit "
            f"{recovery.commit_index}, {len(recovery.batches)} batches, unknown {recovery.unknown}"
        )
        entries = [
            JournalEntry(
                Value(batch.slot_begin, batch.slot_end, batch.value_crc),
                batch.ballot,
                batch.timestamp_ns,
                batch.committed,
                batch.block,
            )
            for batch in recovery.batches
        ]
        self.cluster.checker.recovered(
            self.node_id,
            recovery.promised_ballot if recovery.promised_known else None,
            recovery.commit_index,
            entries,
            recovery.unknown,
        )

    def _set_identity(self, record: FoundingRecord | None) -> None:
        stored = self.identity_file.value
        self.identity = Identity(
            stored.node_id,
            stored.boot,
            stored.incarnation,
            stored.durability,
            record.cluster_id if record is not None else b"",
            record.digest if record is not None else b"",
            dict(record.members) if record is not None else {},
            self.run_number,
        )

    def _make_writer(self) -> FrameWriter:
        own = self.identity
        return FrameWriter(own.node_id, own.incarnation, own.boot, own.cluster_id)

    def kill(self) -> None:
        """The process dies here and now (SIGKILL); what it has written stays visible, synced or not."""
        self.running = False
        self.paused = self.busy = False
        self.effects_left = None
        self._inbox.clear()
        if self.driver is not None:
            self.driver.stop()
        self.transport.abort_all()

    def crash(self) -> None:
        """The power fails: the process dies, and what the disk does not hold is gone."""
        self.kill()
        self.disk.crash(self.cluster.random)

    def fail(self, error: BaseException) -> None:
        """Something happened after which the process must not go on. What is no fault of its disk is a bug."""
        if isinstance(error, SimulatedCrash):
            self.cluster.power_failed(self)
            return
        self.stopped_by = error
        self.cluster.note_stopped(self, error)

    def pause(self) -> None:
        """Stop running without dying, as SIGSTOP does."""
        self.paused = True

    def resume(self) -> None:
        """Run again: everything that happened meanwhile is waiting."""
        self.paused = False
        self._drain()

    def effect(self) -> None:
        """One more effect on the world. The process may die right here: it raises SimulatedCrash then."""
        if self.effects_left is not None:
            self.effects_left -= 1
            if self.effects_left <= 0:
                self.effects_left = None
                self.cluster.marks["crash_between_effects"] += 1
                raise SimulatedCrash(f"node {self.node_id} dies between two effects")

    # Time

    def monotonic_ns(self) -> int:
        """The node's own clock, which drifts."""
        now_ns = self.cluster.schedule.now_ns
        return self.clock_offset_ns + now_ns + now_ns * self.clock_drift_ppm // 1_000_000

    def wall_ns(self) -> int:
        """The node's idea of UTC, which may jump."""
        return 1_700_000_000_000_000_000 + self.wall_offset_ns + self.cluster.schedule.now_ns

    def _apply_clock_ns(self) -> int:
        """The clock of the driver: where applying is slow, it moves while the loop is busy."""
        self._spent_ns += self.cluster.options.apply_step_ns
        return self.monotonic_ns() + self._spent_ns

    def later(self, delay_ns: int, action: Callable[[], None]) -> None:
        """Run `action` in this life of the node only, when it runs."""
        self.cluster.schedule.after(delay_ns, partial(self._input_of, self.life, action))

    def _input_of(self, life: int, action: Callable[[], None]) -> None:
        if self.life == life:
            self.input(action)

    def disk_later(self, delay_ns: int, action: Callable[[], None]) -> None:
        """The disk goes on while the process is paused or busy, and stops when it dies."""
        life = self.life
        self.cluster.schedule.after(delay_ns, lambda: action() if self.running and self.life == life else None)

    def sync_delay_ns(self) -> int:
        """How long a system call on the disk takes now."""
        options, random = self.cluster.disk_options, self.cluster.random
        if options.stall and random.random() < options.stall:
            self.cluster.marks["disk_stall"] += 1
            return self.cluster.schedule.delay(options.sync_min_ns, options.stall_max_ns)
        return self.cluster.schedule.delay(options.sync_min_ns, options.sync_max_ns)

    def write_record(self, segment_name: str, offset: int, data: bytes, entries: list[JournalEntry]) -> None:
        """Put one journal write on the disk, and remember where."""
        self.disk.write(segment_name, offset, [data])
        self.records.append((segment_name, offset, len(data), entries))

    # Inputs

    def input(self, action: Callable[[], None]) -> None:
        """Do something in the process: at once, or when it runs again."""
        if not self.running:
            return
        if self.paused or self.busy:
            self._inbox.append(action)
            return
        try:
            action()
        except (SimulatedCrash, OSError) as error:
            self.fail(error)
        if self.cluster.violation is not None:
            raise self.cluster.violation
        if self.loop.ready and not self._turn_due and self.running:
            turn_max_ns = self.cluster.options.turn_max_ns
            if turn_max_ns:
                self._turn_due = True
                self.later(self.cluster.schedule.delay(0, turn_max_ns), self._turn)
            else:
                self._turn()

    def _turn(self) -> None:
        """Run what is ready until nothing is, as an event loop does."""
        self._turn_due = False
        applied = self.batches_applied
        self._spent_ns = 0
        for _ in range(_READY_ROUNDS_MAX):
            ready, self.loop.ready = self.loop.ready, []
            for callback in ready:
                if self.running:
                    try:
                        callback()
                    except (SimulatedCrash, OSError) as error:
                        self.fail(error)
            if self.cluster.violation is not None:
                raise self.cluster.violation
            if not self.running or not self.loop.ready:
                break
            if self._is_busy_now(applied):
                return
        else:
            raise Violation(f"node {self.node_id} spins without end", checker="livelock")
        if self.running:
            self.look()
            self._is_busy_now(applied)

    def _is_busy_now(self, applied: int) -> bool:
        """Where the state machine is slow, the loop is busy for a while after it was called."""
        slow_ns = self.cluster.options.apply_delay_max_ns
        if not slow_ns or self.batches_applied == applied:
            return False
        self.busy = True
        life = self.life

        def free() -> None:
            if self.life == life:
                self.busy = False
                self._drain()

        self.cluster.schedule.after(self.cluster.schedule.delay(1, slow_ns), free)
        return True

    def _drain(self) -> None:
        """Take what has waited, and go on with the turn that was under way."""
        if self.running and self.loop.ready and not (self.paused or self.busy or self._turn_due):
            self._turn()
        while self._inbox and self.running and not (self.paused or self.busy):
            self.input(self._inbox.popleft())

    def look(self) -> None:
        """Show the checkers what the replica says of itself."""
        replica = self.replica
        if replica is None:
            return
        commit_index = replica.commit_index
        promised_ballot = replica.promised_ballot
        seen = (promised_ballot, commit_index, replica.applied_index)
        if seen != self._seen:
            self._seen = seen
            self.cluster.checker.observed(self.node_id, *seen)
        if replica.surveys_learned != self._surveys:
            self.cluster.marks["learned_by_survey"] += replica.surveys_learned - self._surveys
            self._surveys = replica.surveys_learned
        self._turns += 1
        is_leader = self._turns % _LEADER_CHECK_TURNS == 0 and replica.role == "leader"
        if is_leader and self.cluster.leader() is not self:
            self.cluster.marks["two_leaders"] += 1
        if is_leader or self._turns % _WINDOW_CHECK_TURNS == 0:
            self._look_at_window(replica, promised_ballot, commit_index, is_leader)

    def _look_at_window(self, replica: Replica, promised_ballot: int, commit_index: int, is_leader: bool) -> None:
        votes = replica.window.vote_masks
        own_ballot = replica.ballot if is_leader else 0
        for begin, end, ballot, value_crc, _ in replica.window.batches():
            if end <= commit_index + 1:
                continue
            if ballot > promised_ballot:
                raise Violation(
                    f"node {self.node_id} holds [{begin}, {end}) of ballot {ballot} above its promise "
                    f"{promised_ballot}",
                    checker="promise",
                )
            if ballot == own_ballot:
                mask = int(votes[begin % len(votes)])
                self.cluster.checker.counted(self.node_id, ballot, Value(begin, end, value_crc), mask)

    def _tick(self) -> None:
        self.later(self.cluster.options.tick_ns, self._tick)
        if self.replica is None and self.founding_driver.decided.done():
            self._begin(self.founding_driver.decided.result())
        self.switchboard.tick()

    def greet(self, hello: Hello, dialed: int) -> None:
        """Decide whether a peer may connect. Raises HandshakeRefusedError."""
        check_peer(self.identity, hello, self.config.cluster, dialed)
        self._boots.check(hello)

    def hello(self) -> Hello:
        """What this node says hello with."""
        return check_hello(self.identity.hello("peer"))

    def peer_up(self, peer: int, epoch: int, hello: Hello) -> None:
        """A connection to a peer stands."""
        if self.cluster.epoch_of(self.node_id, peer) != epoch:
            return
        replaced = self.transport.peers.get(peer)
        if replaced is not None:
            replaced.closed = True
        link = PeerLink(self, peer, epoch, hello)
        self.transport.peers[peer] = link
        try:
            self.switchboard.peer_connected(link, hello)  # type: ignore[arg-type]
        except HandshakeRefusedError as refusal:
            self.cluster.refuse(self.node_id, peer, refusal)

    def peer_down(self, peer: int, epoch: int) -> None:
        """The connection `epoch` to a peer is gone."""
        link = self.transport.peers.get(peer)
        if link is None or link.epoch != epoch:
            return
        link.closed = True
        del self.transport.peers[peer]
        self.switchboard.peer_disconnected(peer)

    def receive(self, peer: int, epoch: int | None, frame: Frame | None) -> None:
        """A frame of a peer; `epoch` None is a replay from the past, `frame` None one that the splitter refused."""
        link = self.transport.peers.get(peer)
        if link is None or epoch not in (None, link.epoch):
            return
        try:
            frame = accepted(frame)
            hello = link.hello
            check_sender(frame, hello.node_id, hello.incarnation, hello.boot, hello.cluster_id or NO_CLUSTER)
            if frame.type == FrameType.CONTROL:
                self.switchboard.peer_control(peer, parse_mapping(frame))
            else:
                self.switchboard.peer_frame(peer, frame)
        except FrameError as error:
            options = self.cluster.options.links
            if not (options.replay or options.corrupt):
                raise Violation(
                    f"node {self.node_id} refuses a frame of node {peer}: {error}", checker="frames"
                ) from error
            self.cluster.marks["frame_refused"] += 1
            self.cluster.drop_connection(self.node_id, peer)

    # Faults

    def lose_disk(self) -> None:
        """Everything on the disk is gone for ever."""
        self.disk.wipe()
        self.records.clear()
        self.disk_lost = self.is_damaged = self.is_lost = True
        self.cluster.checker.damaged(self.node_id)

    def block_places(self, record: int) -> list[tuple[str, int, int, JournalEntry]]:
        """Where the blocks of one journal write lie: (segment, offset, length, entry)."""
        segment, offset, _, entries = self.records[record]
        return [
            (segment, offset + begin, length, entry)
            for (begin, length), entry in zip(block_ranges(entries), entries, strict=True)
        ]

    def campaign(self) -> None:
        """Campaign although the election did not say so."""
        if self.replica is not None and self.driver is not None:
            self.replica.campaign()
            self.driver.wake()

    def step_down(self) -> None:
        """Step down although the election did not say so."""
        if self.replica is not None and self.driver is not None:
            self.replica.step_down()
            self.driver.wake()

    def role(self) -> str:
        """What the replica is, "" where there is none."""
        return self.replica.role if self.running and self.replica is not None else ""

    def is_ready(self) -> bool:
        """It leads and takes commands."""
        return self.running and self.replica is not None and self.replica.is_ready
