import enum
from collections.abc import Mapping
from typing import Any, NamedTuple, Never

from typing_extensions import Buffer, disjoint_base

class FrameType(enum.IntEnum):
    PREPARE = 1
    PROMISE = 2
    ACCEPT = 3
    ACCEPTED = 4
    NACK = 5
    COMMIT = 6
    HEARTBEAT = 7
    HEARTBEAT_REPLY = 8
    FETCH = 9
    LEARN = 10
    SUBMIT = 20
    REPLY = 21
    QUERY = 22
    QUERY_REPLY = 23
    HELLO = 40
    CONTROL = 41

class ReplyStatus(enum.IntEnum):
    OK = 0
    RESULT_GONE = 1
    SESSION_UNKNOWN = 2
    NOT_LEADER = 3
    NOT_READY = 4
    BUSY = 5
    OUT_OF_ORDER = 6
    TOO_LARGE = 7
    MALFORMED = 8
    COMMAND_ERROR = 9
    CLOSING = 10
    INVALID_SEQUENCE = 11

@disjoint_base
class Frame:
    def __init__(self, *args: Never, **kwargs: Never) -> None: ...
    @property
    def type(self) -> int: ...
    @property
    def flags(self) -> int: ...
    @property
    def group_id(self) -> int: ...
    @property
    def cluster_id(self) -> bytes: ...
    @property
    def incarnation(self) -> int: ...
    @property
    def boot(self) -> int: ...
    @property
    def sender(self) -> int: ...
    @property
    def ballot(self) -> int: ...
    @property
    def head(self) -> bytes: ...
    @property
    def body(self) -> bytes: ...

@disjoint_base
class FrameWriter:
    def __new__(
        cls, node_id: int, incarnation: int, boot: int, cluster_id: bytes | None = b"", group_id: int = 0
    ) -> FrameWriter: ...
    @property
    def node_id(self) -> int: ...
    @property
    def incarnation(self) -> int: ...
    @property
    def boot(self) -> int: ...
    @property
    def group_id(self) -> int: ...
    @property
    def cluster_id(self) -> bytes: ...
    @cluster_id.setter
    def cluster_id(self, value: bytes | None) -> None: ...
    def encode(self, frame_type: int, ballot: int, head: bytes, body: bytes = b"") -> bytes: ...
    def submit(self, block: bytes, request_id: int, deadline_ms: int = 0) -> list[bytes]: ...
    def reply(
        self,
        session_id: int,
        first_sequence: int,
        request_id: int,
        command_count: int,
        status: int,
        leader_hint: int,
        slot_begin: int,
        results: bytes = b"",
    ) -> list[bytes]: ...
    def query(
        self, query_id: int, request: bytes, deadline_ms: int = 0, read_mode: int = 0, minimum_index: int = 0
    ) -> bytes: ...
    def query_reply(
        self, query_id: int, status: int, leader_hint: int, read_index: int, result: bytes = b""
    ) -> bytes: ...
    def hello(self, mapping: Mapping[str, Any]) -> bytes: ...
    def control(self, mapping: Mapping[str, Any]) -> bytes: ...

@disjoint_base
class FrameSplitter:
    def __new__(
        cls,
        head_bytes_max: int,
        body_bytes_max: int,
        expected_cluster: bytes | None = None,
        receive_buffer: bytearray | None = None,
    ) -> FrameSplitter: ...
    @property
    def head_bytes_max(self) -> int: ...
    @property
    def body_bytes_max(self) -> int: ...
    @property
    def expected_cluster(self) -> bytes | None: ...
    @expected_cluster.setter
    def expected_cluster(self, value: bytes | None) -> None: ...
    @property
    def pending_bytes(self) -> int: ...
    def feed(self, data: Buffer) -> list[Frame]: ...
    def get_buffer(self, size_hint: int = -1) -> memoryview: ...
    def buffer_updated(self, byte_count: int) -> list[Frame]: ...

class Reply(NamedTuple):
    session_id: int
    first_sequence: int
    request_id: int
    command_count: int
    status: int
    leader_hint: int
    slot_begin: int
    results: bytes

class Query(NamedTuple):
    query_id: int
    deadline_ms: int
    read_mode: int
    minimum_index: int
    request: bytes

class QueryReply(NamedTuple):
    query_id: int
    status: int
    leader_hint: int
    read_index: int
    result: bytes

def parse_submit(frame: Frame) -> tuple[int, int]: ...
def parse_reply(frame: Frame) -> Reply: ...
def parse_query(frame: Frame) -> Query: ...
def parse_query_reply(frame: Frame) -> QueryReply: ...
def parse_mapping(frame: Frame) -> dict[str, Any]: ...
