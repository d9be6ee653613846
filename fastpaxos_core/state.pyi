from fastpaxos_core.journal import Journal
from fastpaxos_core.quorum import QuorumSystem
from fastpaxos_core.window import SlotWindow
from fastpaxos_core.wire import FrameWriter

class Peer:
    node_id: int
    bit: int
    connected: bool
    boot: int
    next_slot: int
    owed_slot: int
    commit_index: int
    applied_index: int
    durable_index: int
    commit_sent: int
    bytes_in_flight: int
    last_heard_ns: int
    progress_ns: int
    read_round: int
    def __init__(self, node_id: int, bit: int) -> None: ...

class ReplicaState:
    node_id: int
    boot: int
    own_bit: int
    quorum: QuorumSystem
    window: SlotWindow
    journal: Journal
    writer: FrameWriter
    peers: dict[int, Peer]
    peer_list: list[Peer]
    now_ns: int
    wall_ns: int
    promised_ballot: int
    max_ballot_seen: int
    commit_index: int
    applied_index: int
    everywhere_durable: int
    voting: bool
    leader_ballot: int
    leader_heard_ns: int
    bytes_in_flight: int
    deposed: bool
    def __init__(
        self,
        node_id: int,
        boot: int,
        quorum: QuorumSystem,
        window: SlotWindow,
        journal: Journal,
        writer: FrameWriter,
        *,
        window_slots: int,
        window_bytes: int,
        log_memory_bytes: int,
        voting: bool,
    ) -> None: ...
