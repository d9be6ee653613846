from fastpaxos_core.learner import Learner
from fastpaxos_core.state import ReplicaState

class Acceptor:
    unknown: list[tuple[int, int]]
    def __init__(self, state: ReplicaState, learner: Learner, unknown: list[tuple[int, int]]) -> None: ...
