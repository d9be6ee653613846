"""Founding: how a new cluster agrees, once, on who its members are (DESIGN 5.5).

Before a node votes, it durably stores a founding record: a random cluster id, the incarnation of every initial member,
both quorums and the durability mode. The member with the lowest id makes the record as soon as it has heard, from all
of them, that they are not founded; the others take it over if it lists the very incarnation of their own data
directory. A node whose disk was lost comes back with another incarnation, which no record lists: it never votes under
its old id again.

Sans-I/O: facts of peers come in, decisions go out. Random bytes are passed in; storing and sending is the caller's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import msgpack

from fastpaxos_core.errors import ConfigError, FrameError, InvariantError

__all__ = ["Founding", "FoundingAnswer", "FoundingRecord"]

RECORD_VERSION = 1
CLUSTER_ID_BYTES = 16
DIGEST_BYTES = 16
NODE_ID_MAX = 0xFFFF
SESSIONS_MAX = 4096
RESULT_BYTES_PER_SESSION_MAX = 4 << 20
DURABILITY_MODES = ("fsync", "write", "memory")
RECORD_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class FoundingRecord:
    """Configuration 0 of a cluster. Two records are the same exactly if their digests are.

    Args:
        cluster_id: 16 random bytes.
        members: {node id: incarnation of its data directory}.
        phase1_quorum, phase2_quorum: members needed; their sum is above the number of members.
        durability: "fsync", "write" or "memory", for every member.
        sessions_max, result_bytes_per_session_max: limits of the session table. They decide what apply answers, so they
            are the same on every replica for ever, whatever a member's own settings say later.

    Raises:
        ValueError: a field is out of range.
    """

    cluster_id: bytes
    members: Mapping[int, int] = field(hash=False)
    phase1_quorum: int
    phase2_quorum: int
    durability: str
    sessions_max: int = SESSIONS_MAX
    result_bytes_per_session_max: int = RESULT_BYTES_PER_SESSION_MAX

    def __post_init__(self) -> None:
        if len(self.cluster_id) != CLUSTER_ID_BYTES:
            raise ValueError(f"cluster id of {len(self.cluster_id)} bytes; it must have {CLUSTER_ID_BYTES}")
        if not self.members:
            raise ValueError("a cluster has at least one member")
        for node_id, incarnation in self.members.items():
            if not 1 <= node_id <= NODE_ID_MAX:
                raise ValueError(f"node id {node_id} must be in 1..{NODE_ID_MAX}")
            if not 1 <= incarnation < 1 << 64:
                raise ValueError(f"incarnation {incarnation} of node {node_id} must be in 1..2**64-1")
        check_quorums(len(self.members), self.phase1_quorum, self.phase2_quorum)
        if self.durability not in DURABILITY_MODES:
            raise ValueError(f"durability {self.durability!r} is none of {', '.join(DURABILITY_MODES)}")
        for name in ("sessions_max", "result_bytes_per_session_max"):
            if not 1 <= getattr(self, name) < 1 << 31:
                raise ValueError(f"{name} {getattr(self, name)} must be in 1..2**31-1")

    def encode(self) -> bytes:
        """The record as bytes, always the same ones for the same record."""
        members = [[node_id, self.members[node_id]] for node_id in sorted(self.members)]
        quorums = [self.phase1_quorum, self.phase2_quorum]
        limits = [self.sessions_max, self.result_bytes_per_session_max]
        encoded: bytes = msgpack.packb([RECORD_VERSION, self.cluster_id, members, *quorums, self.durability, *limits])
        return encoded

    @classmethod
    def decode(cls, data: bytes) -> FoundingRecord:
        """Read a record. Raises FrameError if `data` is none, or one of an unknown version."""
        if len(data) > RECORD_BYTES_MAX:
            raise FrameError(f"founding record of {len(data)} bytes; at most {RECORD_BYTES_MAX} are allowed")
        try:
            fields = msgpack.unpackb(data)
            if fields[0] != RECORD_VERSION:
                raise FrameError(f"founding record has version {fields[0]!r:.80}; this program knows {RECORD_VERSION}")
            _, cluster_id, pairs, phase1_quorum, phase2_quorum, durability, *limits = fields
            members = dict(pairs)
            numbers = [phase1_quorum, phase2_quorum, *members, *members.values(), *limits]
            if (
                not isinstance(cluster_id, bytes)
                or not isinstance(durability, str)
                or len(members) != len(pairs)
                or len(limits) != 2
                or any(type(number) is not int for number in numbers)
            ):
                raise FrameError("founding record has a field of a wrong type")
            record = cls(cluster_id, members, phase1_quorum, phase2_quorum, durability, *limits)
        except (ValueError, TypeError, LookupError, msgpack.UnpackException) as error:
            raise FrameError(f"founding record is malformed: {error!s:.200}") from error
        if record.encode() != data:
            raise FrameError("founding record is not in its canonical form")
        return record

    @property
    def digest(self) -> bytes:
        """16 bytes that name the record."""
        return hashlib.blake2b(self.encode(), digest_size=DIGEST_BYTES, person=b"fastpaxos").digest()


def check_quorums(member_count: int, phase1_quorum: int, phase2_quorum: int) -> None:
    """Raise ValueError unless every Phase 1 quorum meets every Phase 2 quorum."""
    for name, size in (("phase1_quorum", phase1_quorum), ("phase2_quorum", phase2_quorum)):
        if not 1 <= size <= member_count:
            raise ValueError(f"{name} {size} must be in 1..{member_count}, the number of members")
    if phase1_quorum + phase2_quorum <= member_count:
        raise ValueError(
            f"phase1_quorum {phase1_quorum} + phase2_quorum {phase2_quorum} must be more than the {member_count} "
            f"members"
        )


class FoundingAnswer(Enum):
    """What to do about a peer that said hello."""

    WAIT = "wait"  # nothing yet: more must be heard, or the peer sends its record
    SEND_RECORD = "send_record"  # it is not founded and the record lists it: send it the record
    PROPOSE = "propose"  # every member was heard and none is founded: call `propose`
    AGREED = "agreed"  # it has the same record


@dataclass(frozen=True, slots=True)
class PeerFacts:
    """What a member said about itself on the connection that is open now."""

    incarnation: int
    is_founded: bool


class Founding:
    """Decides how one node gets its founding record.

    Args:
        node_id, incarnation: of this node's data directory.
        members: ids of all initial members, this node among them.
        phase1_quorum, phase2_quorum, durability, sessions_max, result_bytes_per_session_max: as configured. The limits
            count only for a record that this node makes.
        record: what the data directory has stored, or None.

    Raises:
        ConfigError: configuration and stored record differ; both values are named.
    """

    def __init__(
        self,
        *,
        node_id: int,
        incarnation: int,
        members: Iterable[int],
        phase1_quorum: int,
        phase2_quorum: int,
        durability: str,
        sessions_max: int = SESSIONS_MAX,
        result_bytes_per_session_max: int = RESULT_BYTES_PER_SESSION_MAX,
        record: FoundingRecord | None = None,
    ) -> None:
        self.node_id = node_id
        self.incarnation = incarnation
        self.members = frozenset(members)
        self.phase1_quorum = phase1_quorum
        self.phase2_quorum = phase2_quorum
        self.durability = durability
        self.sessions_max = sessions_max
        self.result_bytes_per_session_max = result_bytes_per_session_max
        self._facts: dict[int, PeerFacts] = {}
        if node_id not in self.members:
            raise ConfigError(f"node {node_id} is not among the members {_ids(self.members)}")
        try:
            check_quorums(len(self.members), phase1_quorum, phase2_quorum)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if record is not None:
            self._check_record(record, "the data directory")
        self._record = record

    @property
    def record(self) -> FoundingRecord | None:
        """The stored record; None before founding."""
        return self._record

    @property
    def digest(self) -> bytes:
        """The record's digest for hello; b"" before founding."""
        return b"" if self._record is None else self._record.digest

    @property
    def cluster_id(self) -> bytes:
        """The record's cluster id for hello; b"" before founding."""
        return b"" if self._record is None else self._record.cluster_id

    @property
    def missing(self) -> list[int]:
        """Members that must still be heard before this node can make the record."""
        return sorted(self.members - self._facts.keys() - {self.node_id})

    def hello_fields(self) -> dict[str, Any]:
        """What hello says about founding."""
        return {"founding": self.digest, "cluster_id": self.cluster_id, "incarnation": self.incarnation}

    def peer_hello(self, peer: int, incarnation: int, digest: bytes, durability: str) -> FoundingAnswer:
        """Take in what a peer says about itself, on each new connection.

        Raises:
            ConfigError: this peer and this node cannot be members of one cluster; the connection must be refused.
        """
        if peer not in self.members or peer == self.node_id:
            raise ConfigError(f"node {peer} is no other member; node {self.node_id} knows {_ids(self.members)}")
        if durability != self.durability:
            raise ConfigError(
                f"node {self.node_id} runs with durability {self.durability}, node {peer} with {durability}; all "
                f"members must use the same"
            )
        record = self._record
        if record is None:
            self._facts[peer] = PeerFacts(incarnation, bool(digest))
            return FoundingAnswer.PROPOSE if self._may_propose() else FoundingAnswer.WAIT
        if digest and digest != record.digest:
            raise ConfigError(
                f"nodes {self.node_id} and {peer} have different founding records ({record.digest.hex()} and "
                f"{digest.hex()}); one of them has a data directory of another cluster"
            )
        if record.members[peer] != incarnation:
            raise ConfigError(
                f"node {peer} was founded with incarnation {record.members[peer]:#x} but now has {incarnation:#x}: its "
                f"data directory was lost or replaced, and it must not vote again under its old id"
            )
        return FoundingAnswer.AGREED if digest else FoundingAnswer.SEND_RECORD

    def peer_disconnected(self, peer: int) -> None:
        """Forget what a peer said: what it is now must be heard again."""
        self._facts.pop(peer, None)

    def _may_propose(self) -> bool:
        return (
            self._record is None
            and self.node_id == min(self.members)
            and not self.missing
            and not any(facts.is_founded for facts in self._facts.values())
        )

    def propose(self, cluster_id: bytes) -> FoundingRecord | None:
        """Make the record if it is this node's turn; it must be stored, and then `stored` be called, before it is sent.

        Args:
            cluster_id: 16 random bytes.
        """
        if not self._may_propose():
            return None
        members = {peer: facts.incarnation for peer, facts in self._facts.items()}
        members[self.node_id] = self.incarnation
        return FoundingRecord(
            cluster_id,
            members,
            self.phase1_quorum,
            self.phase2_quorum,
            self.durability,
            self.sessions_max,
            self.result_bytes_per_session_max,
        )

    def receive_record(self, peer: int, data: bytes) -> FoundingRecord | None:
        """Judge the record that a founded peer sent; returns it if it must be stored, None if it is stored already.

        Raises:
            FrameError: `data` is no record.
            ConfigError: this node cannot be a member of that cluster and must stop; both values are named.
        """
        record = FoundingRecord.decode(data)
        if self._record is not None:
            if record.digest != self._record.digest:
                raise ConfigError(
                    f"node {peer} sent the founding record {record.digest.hex()} of another cluster; node "
                    f"{self.node_id} was founded with {self._record.digest.hex()}"
                )
            return None
        self._check_record(record, f"node {peer}")
        return record

    def stored(self, record: FoundingRecord) -> None:
        """The record is durable: from now on this node is founded.

        Raises:
            InvariantError: it is founded with another record.
        """
        if self._record is not None and self._record.digest != record.digest:
            raise InvariantError(f"node {self.node_id} would be founded a second time with another record")
        self._record = record
        self._facts.clear()

    def _check_record(self, record: FoundingRecord, source: str) -> None:
        if record.members.keys() != self.members:
            raise ConfigError(
                f"the founding record of {source} has members {_ids(record.members)}, the configuration of node "
                f"{self.node_id} has {_ids(self.members)}"
            )
        if record.members[self.node_id] != self.incarnation:
            raise ConfigError(
                f"the founding record of {source} lists node {self.node_id} with incarnation "
                f"{record.members[self.node_id]:#x}, this data directory has {self.incarnation:#x}: the disk of node "
                f"{self.node_id} was lost or is of another cluster; it must come back under a new id"
            )
        quorums = (record.phase1_quorum, record.phase2_quorum)
        if quorums != (self.phase1_quorum, self.phase2_quorum):
            raise ConfigError(
                f"the founding record of {source} has quorums {quorums[0]} (phase 1) and {quorums[1]} (phase 2), the "
                f"configuration of node {self.node_id} has {self.phase1_quorum} and {self.phase2_quorum}"
            )
        if record.durability != self.durability:
            raise ConfigError(
                f"the founding record of {source} has durability {record.durability}, the configuration of node "
                f"{self.node_id} has {self.durability}"
            )


def _ids(members: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(members)))
