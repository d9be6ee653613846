import re
from collections.abc import Iterator
from typing import Any

from typing_extensions import disjoint_base

from fastpaxos_core.directory import TEMPORARY_SUFFIX as TEMPORARY_SUFFIX
from fastpaxos_core.directory import Directory
from fastpaxos_core.journal import Journal
from fastpaxos_core.journal_format import StoredBatch
from fastpaxos_core.journal_replay import Replay

SEGMENT_NAME: re.Pattern[str]

class Recovery:
    promised_ballot: int
    promised_known: bool
    commit_index: int
    batches: list[StoredBatch]
    unknown: list[tuple[int, int]]
    problems: list[str]
    writes: int
    batch_count: int
    journal_bytes: int
    last_write_number: int
    cut_segment: int
    cut_offset: int
    torn_write: bool
    rewritten: int
    segments: list[dict[str, Any]]
    def __init__(self) -> None: ...

@disjoint_base
class Scanner:
    @property
    def recovery(self) -> Recovery: ...
    @property
    def state(self) -> Replay: ...
    @property
    def void_names(self) -> list[str]: ...
    @property
    def numbers(self) -> list[int]: ...
    def __init__(self, directory: Directory, node_id: int, incarnation: int, deep: bool = False) -> None: ...

def open_journal(
    directory: Directory, node_id: int, incarnation: int, boot: int, segment_bytes: int
) -> tuple[Journal, Recovery]: ...
def inspect(directory: Directory) -> Recovery: ...
def verify(directory: Directory) -> list[str]: ...
def iterate_batches(directory: Directory) -> Iterator[StoredBatch]: ...
