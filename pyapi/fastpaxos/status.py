"""What a node says about itself when it is asked (`Node.status`, `fastpaxos status`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastpaxos.config import NodeConfig
    from fastpaxos.driver import Driver
    from fastpaxos.handshake import Identity
    from fastpaxos.statemachine import StateMachine
    from fastpaxos.storage import Storage
    from fastpaxos.transport import Transport
    from fastpaxos_core.replica import Replica

__all__ = ["node_status"]

NS_PER_MS = 1_000_000


def node_status(
    config: NodeConfig,
    identity: Identity,
    machine: StateMachine,
    *,
    replica: Replica | None,
    driver: Driver | None,
    transport: Transport | None,
    storage: Storage | None,
    now_ns: int,
) -> dict[str, Any]:
    """Return the status map: numbers, texts, bytes, lists and maps only, so that it can travel.

    Before founding, `role` is "unfounded" and everything that a replica would know is 0. `digest` is that of the state
    machine at `applied_index`, or "" while it is in the middle of a batch and between two indexes.
    """
    status: dict[str, Any] = {
        "id": config.node_id,
        "role": "unfounded",
        "ballot": 0,
        "promised_ballot": 0,
        "leader_id": 0,
        "is_ready": False,
        "voting": False,
        "commit_index": 0,
        "applied_index": 0,
        "durable_index": 0,
        "last_slot": 0,
        "digest": "",
        "log_memory_bytes": 0,
        "sessions": 0,
        "peers": [{"node_id": peer, "connected": False} for peer in config.members if peer != config.node_id],
        "cluster_id": identity.cluster_id,
        "boot": identity.boot,
        "incarnation": identity.incarnation,
        "durability": config.durability,
        "members": dict(config.cluster),
        "address": str(transport.address) if transport is not None and transport.address is not None else "",
        "connections": len(transport.clients) if transport is not None else 0,
        "refusals": dict(transport.refusals) if transport is not None else {},
        "journal_bytes": storage.journal_bytes if storage is not None else 0,
        "sync_us": storage.recent_sync_ns // 1000 if storage is not None else 0,
    }
    if replica is None:
        return status
    status.update(
        role=replica.role,
        ballot=replica.ballot,
        promised_ballot=replica.promised_ballot,
        leader_id=replica.leader_id,
        is_ready=replica.is_ready,
        voting=replica.voting,
        commit_index=replica.commit_index,
        applied_index=replica.applied_index,
        durable_index=replica.durable_index,
        last_slot=replica.last_slot,
        log_memory_bytes=replica.window.block_bytes,
        sessions=len(replica.sessions),
        peers=[_peer(peer, now_ns) for peer in replica.peer_status()],
    )
    if driver is None or not driver.is_mid_batch:
        status["digest"] = machine.digest()
    return status


def _peer(known: dict[str, Any], now_ns: int) -> dict[str, Any]:
    heard_ns = known.pop("last_heard_ns")
    silent_ms = (now_ns - heard_ns) // NS_PER_MS if heard_ns else 0
    return {"node_id": known.pop("id"), **known, "silent_ms": max(0, silent_ms)}
