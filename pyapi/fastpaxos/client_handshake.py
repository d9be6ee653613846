"""What a client and a node say about themselves before they work together. Sans-I/O, maps in and values out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastpaxos.errors import ConfigError, FrameError
from fastpaxos.handshake import GROUP_ID, PROTOCOL_MAX, PROTOCOL_MIN, Hello

__all__ = ["check_node_hello", "client_hello", "leader_of", "members_of", "refusal_error"]

ADDRESS_LENGTH_MAX = 256
MEMBERS_MAX = 64
# A refusal with one of these reasons does not go away by trying again.
CONFIG_REASONS = frozenset({"cluster", "group", "kind", "protocol"})


def client_hello(incarnation: int, cluster_id: bytes) -> dict[str, Any]:
    """The map that a client says hello with; `cluster_id` is b"" as long as it does not know it."""
    return {
        "protocol_min": PROTOCOL_MIN,
        "protocol_max": PROTOCOL_MAX,
        "kind": "client",
        "features": 0,
        "group_id": GROUP_ID,
        "node_id": 0,
        "boot": 0,
        "incarnation": incarnation,
        "durability": "",
        "founding": b"",
        "cluster_id": cluster_id,
    }


def check_node_hello(hello: Hello, address: str, cluster_id: bytes) -> None:
    """Decide whether a client of `cluster_id` (b"": any) can work with the node at `address`. Raises ConfigError."""
    if hello.protocol_min > PROTOCOL_MAX or hello.protocol_max < PROTOCOL_MIN:
        raise ConfigError(
            f"{address} speaks protocol {hello.protocol_min}..{hello.protocol_max}, this client "
            f"{PROTOCOL_MIN}..{PROTOCOL_MAX}; upgrade the older one"
        )
    if hello.group_id != GROUP_ID:
        raise ConfigError(f"{address} serves group {hello.group_id}, this client uses group {GROUP_ID}")
    if cluster_id and hello.cluster_id and hello.cluster_id != cluster_id:
        raise ConfigError(
            f"{address} belongs to cluster {hello.cluster_id.hex()}, but this client talks to cluster "
            f"{cluster_id.hex()}; check the addresses"
        )


def refusal_error(message: Mapping[str, Any], address: str) -> ConfigError | FrameError:
    """The error for a "refused" control message: ConfigError if trying again cannot help."""
    reason = message.get("reason")
    text = f"{address} refused this client ({reason}): {message.get('message')}"
    return ConfigError(text) if reason in CONFIG_REASONS else FrameError(text)


def leader_of(message: Mapping[str, Any]) -> tuple[int, str]:
    """The node id and address of the leader that a message names; 0 and "" where it names none."""
    return _node_id(message.get("leader_id")), _address(message.get("leader_address"))


def members_of(message: Mapping[str, Any]) -> dict[int, str]:
    """{node id: address} of a hello's members, without what has no sensible form."""
    members = message.get("members")
    if not isinstance(members, Mapping) or len(members) > MEMBERS_MAX:
        return {}
    known = {_node_id(key): _address(value) for key, value in members.items()}
    return {node_id: address for node_id, address in known.items() if node_id and address}


def _node_id(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 16 else 0


def _address(value: object) -> str:
    return value if isinstance(value, str) and len(value) <= ADDRESS_LENGTH_MAX else ""
