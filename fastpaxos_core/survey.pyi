from fastpaxos_core.acceptor import Acceptor
from fastpaxos_core.learner import Learner
from fastpaxos_core.state import ReplicaState

class Survey:
    def __init__(self, state: ReplicaState, acceptor: Acceptor, learner: Learner, timeout_ns: int) -> None: ...
