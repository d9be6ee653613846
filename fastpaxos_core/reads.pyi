from fastpaxos_core.state import ReplicaState

class ReadIndex:
    round: int
    round_pending: bool
    def __init__(self, state: ReplicaState) -> None: ...
