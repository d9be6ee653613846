"""What a simulation does to its cluster: one record, drawn from the seed and printed in full when a run fails."""

from __future__ import annotations

from dataclasses import dataclass, field

from .clients import ClientOptions
from .network import LinkOptions
from .schedule import MILLISECOND_NS

__all__ = ["DiskOptions", "NemesisOptions", "SimOptions"]


@dataclass(frozen=True)
class DiskOptions:
    """How long syncs and reads take, in nanoseconds."""

    sync_min_ns: int = MILLISECOND_NS // 10
    sync_max_ns: int = 2 * MILLISECOND_NS
    stall: float = 0.0
    """Probability that a sync takes up to `stall_max_ns`."""
    stall_max_ns: int = 600 * MILLISECOND_NS
    read_max_ns: int = MILLISECOND_NS
    inline: bool = False
    """The disk counts as quick: small writes are synced on the node's own loop."""


@dataclass(frozen=True)
class NemesisOptions:
    """How often (per action drawn, relative weights) each thing is done to the cluster. 0 leaves it out."""

    interval_ns: int = 150 * MILLISECOND_NS
    """Longest pause between two actions."""
    crash: float = 1.0
    crash_all: float = 0.0
    restart: float = 2.0
    crash_in_recovery: float = 0.2
    """Probability that a restart dies at a random disk operation of its recovery."""
    partition: float = 1.0
    one_way_cut: float = 0.5
    isolate_leader: float = 0.5
    heal: float = 2.0
    reset_connection: float = 1.0
    pause: float = 0.5
    resume: float = 2.0
    campaign: float = 0.0
    """A node campaigns although its election did not say so: bad liveness decisions must never cost safety."""
    step_down: float = 0.0
    wall_clock_jump: float = 0.3
    kill: float = 0.0
    """SIGKILL: the process dies, what it wrote stays visible."""
    crash_between_effects: float = 0.0
    """The power of one node fails between two of its next writes, messages or answers."""
    partial_cut: float = 0.0
    """Two nodes lose each other, and all others see both."""
    chain: float = 0.0
    """The nodes are left in a row: each sees its neighbours only."""
    hub: float = 0.0
    """Only one node sees the others."""
    flap: float = 0.0
    """A link goes up and down a few times."""
    swizzle: float = 0.0
    """Nodes are cut off one by one, and come back in another order."""
    reset_client: float = 0.0
    """A connection of a session client breaks, what is on its way is lost."""
    cut_client: float = 0.0
    """Some nodes are out of reach for a session client, until the next `heal`."""
    fail_sync: float = 0.0
    fail_write: float = 0.0
    fail_read: float = 0.0
    fill_disk: float = 0.0
    rot: float = 0.0
    """Bits flip, writes turn out lost or misdirected, on the disks that `rot_where` allows."""
    lose_disk: float = 0.0
    """One disk is lost for good, with everything on it."""
    rot_where: str = "minority"
    """"minority": on as many nodes as the cluster can lose, anything; "striped": on every node, but each slot's batch
    on a minority only; "everywhere": on all nodes, so that the cluster may halt, but never lie."""


@dataclass(frozen=True)
class SimOptions:
    """One simulated cluster. Sizes are small, so that every limit is met."""

    nodes: int = 3
    phase1_quorum: int = 0
    phase2_quorum: int = 0
    clients: int = 3
    session_clients: int = 0
    """Clients that run the shipped `fastpaxos.session` over connections; `clients` are independent ones."""
    machine: str = "hashchain"
    """Name of the state machine: "hashchain", "kv" (session clients only), or one of the caller's own."""
    duration_ns: int = 4_000 * MILLISECOND_NS
    tick_ns: int = 20 * MILLISECOND_NS
    heartbeat_interval_ms: int = 50
    election_timeout_ms: int = 400
    resend_timeout_ms: int = 100
    fetch_timeout_ms: int = 200
    turn_max_ns: int = 0
    """Longest time for which a node collects inputs before it takes its outputs; 0 = after every input."""
    apply_delay_max_ns: int = 0
    """Longest time for which the loop is busy after the state machine was called."""
    apply_step_ns: int = 0
    """What one look at the clock costs while commands are applied: beyond 0, batches are applied in slices."""
    clock_drift_ppm: int = 200
    core_only: bool = False
    """The liveness phase heals a random quorum only; everything else stays as broken as it is."""
    window_slots: int = 64
    ring_slots: int = 256
    window_bytes: int = 16 << 10
    log_memory_bytes: int = 4 << 10
    batch_capacity: int = 256
    segment_bytes: int = 8 << 10
    sessions_max: int = 64
    result_bytes_per_session_max: int = 1 << 20
    links: LinkOptions = field(default_factory=LinkOptions)
    client_links: LinkOptions = field(default_factory=LinkOptions)
    session_links: LinkOptions = field(default_factory=LinkOptions)
    """Delays on the connections of session clients, which lose, change and repeat nothing."""
    disk: DiskOptions = field(default_factory=DiskOptions)
    client: ClientOptions = field(default_factory=ClientOptions)
    nemesis: NemesisOptions = field(default_factory=NemesisOptions)
