from fastpaxos_core.learner import Learner
from fastpaxos_core.reads import ReadIndex
from fastpaxos_core.state import ReplicaState

class Proposer:
    role: int
    ballot: int
    next_slot: int
    recovered_end: int
    quorum_heard_ns: int
    def __init__(
        self,
        state: ReplicaState,
        learner: Learner,
        reads: ReadIndex,
        heartbeat_interval_ns: int,
        resend_timeout_ns: int,
    ) -> None: ...
