from collections.abc import Mapping, Sequence
from typing import Any

from fastpaxos_core.wire import Frame, FrameWriter

def decode_message(frame: Frame) -> dict[str, Any]: ...
def encode_message(
    writer: FrameWriter, name: str, ballot: int = 0, entries: Sequence[Mapping[str, Any]] = (), **fields: int
) -> bytes: ...
