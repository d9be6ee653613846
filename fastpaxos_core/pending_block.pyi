from collections.abc import Sequence
from typing import Any

from typing_extensions import disjoint_base

@disjoint_base
class PendingBlock:
    commands: list[bytes]
    waiters: list[Any]
    deadlines_ns: list[int]
    packed: bytes
    data: bytes
    longest: int
    request_id: int
    first_sequence: int
    deadline_ns: int
    encoded_bytes: int
    charge: int
    room_bytes: int
    count: int
    attempts: int
    is_whole: bool
    needs_send: bool
    def __init__(
        self, block_bytes_max: int = 0, command_bytes_max: int = 0, commands_per_block_max: int = 0
    ) -> None: ...
    def add(self, command: bytes, waiter: Any, deadline_ns: int) -> bool: ...
    def fill(self, packed: bytes, count: int, longest: int, waiter: Any, deadline_ns: int) -> None: ...
    def expire(self, now_ns: int) -> list[Any]: ...
    def without_gone(self) -> PendingBlock | None: ...
    def live_waiters(self) -> list[Any]: ...

def answer_waiters(waiters: Sequence[Any], results: Sequence[Any]) -> None: ...
