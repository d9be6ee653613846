from fastpaxos_core.acceptor import Acceptor
from fastpaxos_core.learner import Learner
from fastpaxos_core.proposer import Proposer
from fastpaxos_core.state import ReplicaState

class Promise:
    part_count: int
    parts: set[int]
    commit_index: int
    entries: list[Entry]
    unknown: list[tuple[int, int]]
    def __init__(self, part_count: int, commit_index: int) -> None: ...
    @property
    def is_whole(self) -> bool: ...

class Entry:
    slot_begin: int
    slot_end: int
    ballot: int
    timestamp_ns: int
    block_bytes: int
    value_crc: int
    reporters: list[int]
    owner: bytes | None
    offset: int
    def __init__(
        self,
        slot_begin: int,
        slot_end: int,
        ballot: int,
        timestamp_ns: int,
        block_bytes: int,
        value_crc: int,
        reporter: int,
    ) -> None: ...

def select_values(entries: list[Entry], commit_index: int) -> list[Entry]: ...

class Phase1:
    active: bool
    ballot: int
    started_ns: int
    def __init__(
        self,
        state: ReplicaState,
        acceptor: Acceptor,
        learner: Learner,
        proposer: Proposer,
        resend_timeout_ns: int,
    ) -> None: ...
