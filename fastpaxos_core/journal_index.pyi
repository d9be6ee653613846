from typing import Self

from typing_extensions import disjoint_base

@disjoint_base
class JournalIndex:
    entry_bytes_min: int
    def __new__(cls) -> Self: ...
    def __len__(self) -> int: ...

@disjoint_base
class Piece: ...
