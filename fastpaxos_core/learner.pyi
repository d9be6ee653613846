from fastpaxos_core.journal import JournalRead
from fastpaxos_core.state import ReplicaState

class Learner:
    commit_hint: int
    fetch_id: int
    repair_slot: int
    reads: list[JournalRead]
    def __init__(self, state: ReplicaState, fetch_timeout_ns: int) -> None: ...
