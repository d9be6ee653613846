"""The first frame of every connection: who is it, and may it talk to us? (docs/protocol.md, "Hello")

Sans-I/O: maps in, a decision or a `HandshakeRefusedError` with a reason and the values out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastpaxos_core.errors import FastPaxosError, FrameError
from fastpaxos_core.wire import Frame

__all__ = [
    "PROTOCOL_MAX",
    "PROTOCOL_MIN",
    "BootLedger",
    "HandshakeRefusedError",
    "Hello",
    "Identity",
    "check_hello",
    "check_peer",
    "check_sender",
]

PROTOCOL_MIN = 1
PROTOCOL_MAX = 1
GROUP_ID = 0
KINDS = ("client", "peer", "node")
CLUSTER_ID_BYTES = 16
NO_CLUSTER = bytes(CLUSTER_ID_BYTES)


class HandshakeRefusedError(FastPaxosError):
    """This connection cannot be: `reason` is a fixed word, the text names the values on both sides."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a node is. `cluster_id` and `founding` are b"" until the founding record is stored.

    `founding` is the digest of the founding record, `incarnations` what the record says: {node id: incarnation}. `run`
    is the random number of this very process: two that have one boot number work on copies of one directory.
    """

    node_id: int
    boot: int
    incarnation: int
    durability: str
    cluster_id: bytes = b""
    founding: bytes = b""
    incarnations: Mapping[int, int] = field(default_factory=dict)
    run: int = 0

    def hello(self, kind: str) -> dict[str, Any]:
        """The map that this node says hello with."""
        return {
            "protocol_min": PROTOCOL_MIN,
            "protocol_max": PROTOCOL_MAX,
            "kind": kind,
            "features": 0,
            "group_id": GROUP_ID,
            "node_id": self.node_id,
            "boot": self.boot,
            "run": self.run,
            "incarnation": self.incarnation,
            "durability": self.durability,
            "founding": self.founding,
            "cluster_id": self.cluster_id,
        }


@dataclass(frozen=True, slots=True)
class Hello:
    """A hello whose fields have the agreed types and ranges; nothing else is known about it yet."""

    kind: str
    protocol_min: int
    protocol_max: int
    group_id: int
    node_id: int
    boot: int
    incarnation: int
    durability: str
    founding: bytes
    cluster_id: bytes
    run: int
    mapping: Mapping[str, Any]


def check_hello(mapping: Mapping[str, Any]) -> Hello:
    """Return the hello of a map. Raises FrameError if a field is missing or of the wrong type.

    Unknown keys are left alone: later versions may say more.
    """
    hello = Hello(
        kind=_text(mapping, "kind"),
        protocol_min=_number(mapping, "protocol_min", 2**16),
        protocol_max=_number(mapping, "protocol_max", 2**16),
        group_id=_number(mapping, "group_id", 2**32),
        node_id=_number(mapping, "node_id", 2**16),
        boot=_number(mapping, "boot", 2**32),
        incarnation=_number(mapping, "incarnation", 2**64),
        durability=_text(mapping, "durability"),
        founding=_bytes(mapping, "founding"),
        cluster_id=_bytes(mapping, "cluster_id"),
        run=_number(mapping, "run", 2**64) if "run" in mapping else 0,
        mapping=mapping,
    )
    if hello.kind not in KINDS:
        raise FrameError(f"hello has kind {hello.kind!r:.80}; expected one of {', '.join(KINDS)}")
    if hello.cluster_id and len(hello.cluster_id) != CLUSTER_ID_BYTES:
        raise FrameError(f"hello has a cluster id of {len(hello.cluster_id)} bytes; expected {CLUSTER_ID_BYTES}")
    return hello


def check_protocol(hello: Hello, cluster_id: bytes) -> None:
    """What holds for clients and peers alike. Raises HandshakeRefusedError."""
    if hello.protocol_min > PROTOCOL_MAX or hello.protocol_max < PROTOCOL_MIN:
        raise HandshakeRefusedError(
            "protocol",
            f"this node speaks protocol {PROTOCOL_MIN}..{PROTOCOL_MAX}, the other side "
            f"{hello.protocol_min}..{hello.protocol_max}; upgrade the older one",
        )
    if hello.group_id != GROUP_ID:
        raise HandshakeRefusedError("group", f"this node serves group {GROUP_ID}, not group {hello.group_id}")
    if hello.cluster_id and cluster_id and hello.cluster_id != cluster_id:
        raise HandshakeRefusedError(
            "cluster",
            f"this node belongs to cluster {cluster_id.hex()}, the other side to cluster {hello.cluster_id.hex()}; "
            f"check the addresses",
        )


def check_peer(own: Identity, hello: Hello, cluster: Mapping[int, str], expected_node_id: int = 0) -> None:
    """Decide whether the sender of `hello` is the member it claims to be. Raises HandshakeRefusedError.

    `expected_node_id` is the member whose address was dialled, 0 when the other side dialled. Nodes of which at least
    one is not founded yet may talk, but only about founding.
    """
    check_protocol(hello, own.cluster_id)
    if hello.kind != "peer":
        raise HandshakeRefusedError("kind", f"node {own.node_id} expected a peer, not a {hello.kind}")
    if expected_node_id and hello.node_id != expected_node_id:
        raise HandshakeRefusedError(
            "node_id",
            f"at {cluster[expected_node_id]} node {own.node_id} expected node {expected_node_id} but found node "
            f"{hello.node_id}; check the addresses in the cluster",
        )
    if hello.node_id == own.node_id:
        raise HandshakeRefusedError("node_id", f"two processes claim to be node {own.node_id}; stop one of them")
    if hello.node_id not in cluster:
        members = ", ".join(map(str, cluster))
        raise HandshakeRefusedError("node_id", f"node {hello.node_id} is no member; node {own.node_id} knows {members}")
    if hello.durability != own.durability:
        raise HandshakeRefusedError(
            "durability",
            f"node {own.node_id} runs with durability {own.durability}, node {hello.node_id} with {hello.durability}; "
            f"all members must use the same",
        )
    if not own.founding:
        return
    if hello.founding and hello.founding != own.founding:
        raise HandshakeRefusedError(
            "founding",
            f"nodes {own.node_id} and {hello.node_id} have different founding records ({own.founding.hex()} and "
            f"{hello.founding.hex()}); one of them has a data directory of another cluster",
        )
    incarnation = own.incarnations.get(hello.node_id)
    if hello.incarnation != incarnation:
        raise HandshakeRefusedError(
            "incarnation",
            f"node {hello.node_id} was founded with incarnation {incarnation} but now has {hello.incarnation}: its "
            f"data directory was lost or replaced, and it must not vote again under its old id",
        )


class BootLedger:
    """The newest start of each member that was met. An older one, or a second process at the same one, is a copy."""

    def __init__(self) -> None:
        self._newest: dict[tuple[int, int], tuple[int, int]] = {}

    def check(self, hello: Hello) -> None:
        """Take in the hello of a member. Raises HandshakeRefusedError if it runs on a copy of a directory."""
        key = (hello.node_id, hello.incarnation)
        boot, run = self._newest.get(key, (0, 0))
        if hello.boot < boot or (hello.boot == boot and hello.run != run):
            another = "another process at " if hello.boot == boot else ""
            raise HandshakeRefusedError(
                "boot",
                f"node {hello.node_id} says it is at boot {hello.boot}, but {another}boot {boot} of it was here "
                f"already; it may run on a copy of that node's data directory",
            )
        self._newest[key] = (hello.boot, hello.run)


def check_sender(frame: Frame, sender: int, incarnation: int, boot: int, cluster_id: bytes | None) -> None:
    """Every frame of a connection names who said hello on it; `cluster_id` None is not looked at. Raises FrameError."""
    if (
        frame.incarnation != incarnation
        or frame.boot != boot
        or frame.sender != sender
        or (cluster_id is not None and frame.cluster_id != cluster_id)
    ):
        raise FrameError(
            f"a frame of another sender than the hello: {frame!r}, incarnation {frame.incarnation}, cluster "
            f"{frame.cluster_id.hex()}; expected node {sender}, incarnation {incarnation}, boot {boot}, "
            f"cluster {cluster_id.hex() if cluster_id is not None else 'any'}"
        )


def _number(mapping: Mapping[str, Any], key: str, limit: int) -> int:
    value = mapping.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < limit:
        raise FrameError(f"hello has {key}={value!r:.80}; expected a whole number below {limit}")
    return value


def _text(mapping: Mapping[str, Any], key: str) -> str:
    value = mapping.get(key)
    if not isinstance(value, str) or len(value) > 64:
        raise FrameError(f"hello has {key}={value!r:.80}; expected a short text")
    return value


def _bytes(mapping: Mapping[str, Any], key: str) -> bytes:
    value = mapping.get(key)
    if not isinstance(value, bytes) or len(value) > 64:
        raise FrameError(f"hello has {key}={value!r:.80}; expected at most 64 bytes")
    return value
