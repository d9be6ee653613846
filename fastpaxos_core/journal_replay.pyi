from typing import Self

from typing_extensions import disjoint_base

from fastpaxos_core.journal_index import JournalIndex

@disjoint_base
class Replay:
    @property
    def index(self) -> JournalIndex: ...
    @property
    def unknown(self) -> list[tuple[int, int]]: ...
    @property
    def commit_index(self) -> int: ...
    def __new__(cls) -> Self: ...
