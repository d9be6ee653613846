from fastpaxos_core.block import BlockView
from fastpaxos_core.learner import Learner
from fastpaxos_core.sessions import SessionTable
from fastpaxos_core.state import ReplicaState

class AppliedBatch:
    view: BlockView
    slot_begin: int
    slot_end: int
    now_ns: int

class Applier:
    sessions: SessionTable
    now_ns: int
    def __init__(self, state: ReplicaState, learner: Learner, sessions: SessionTable) -> None: ...
