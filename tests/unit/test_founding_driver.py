"""fastpaxos.founding_driver: several members of which some have a record, without sockets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgpack
import pytest

from fastpaxos.founding_driver import FoundingDriver
from fastpaxos.handshake import HandshakeRefusedError, Identity, check_hello
from fastpaxos_core.errors import ConfigError, FrameError
from fastpaxos_core.founding import Founding, FoundingRecord

INCARNATIONS = {1: 11, 2: 22, 3: 33}
RECORD = FoundingRecord(b"c" * 16, INCARNATIONS, 2, 2, "fsync")
OTHER = FoundingRecord(b"d" * 16, INCARNATIONS, 2, 2, "fsync")


class Wire:
    """A connection that keeps what is sent."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    def send(self, buffers: list[bytes]) -> None:
        self.messages += [msgpack.unpackb(buffer) for buffer in buffers]


def pack(message: Mapping[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(message)
    return packed


def member(node_id: int, record: FoundingRecord | None = None, members: Any = INCARNATIONS) -> FoundingDriver:
    founding = Founding(
        node_id=node_id,
        incarnation=INCARNATIONS[node_id],
        members=members,
        phase1_quorum=len(members) // 2 + 1,
        phase2_quorum=len(members) // 2 + 1,
        durability="fsync",
        record=record,
    )
    return FoundingDriver(founding, make_control=pack, random_bytes=lambda size: b"r" * size)


def hello(node_id: int, record: FoundingRecord | None = None, **changes: Any) -> Any:
    values = {"node_id": node_id, "boot": 1, "incarnation": INCARNATIONS[node_id], "durability": "fsync"}
    if record is not None:
        values |= {"founding": record.digest, "cluster_id": record.cluster_id}
    return check_hello(Identity(**{**values, **changes}).hello("peer"))


async def test_a_cluster_of_one_founds_itself_at_once() -> None:
    alone = member(1, members={1: 11})
    assert alone.decided.result().members == {1: 11}
    assert alone.decided.result().cluster_id == b"r" * 16


async def test_the_lowest_id_makes_the_record_when_it_has_heard_all_others() -> None:
    one = member(1)
    one.connected(Wire(), hello(2))
    assert not one.decided.done()
    one.connected(Wire(), hello(3))
    record = one.decided.result()
    assert record.members == INCARNATIONS
    two = member(2)
    two.connected(Wire(), hello(1))
    two.connected(Wire(), hello(3))
    assert not two.decided.done(), "only the lowest id makes it"


async def test_what_a_disconnected_member_said_does_not_count() -> None:
    one = member(1)
    one.connected(Wire(), hello(2))
    one.disconnected(2)
    one.connected(Wire(), hello(3))
    assert not one.decided.done()
    one.connected(Wire(), hello(2))
    assert one.decided.done()


async def test_whoever_has_the_record_sends_it_to_members_without_one() -> None:
    two, three = member(2, RECORD), member(3)
    assert two.decided.result() == RECORD
    wire = Wire()
    two.connected(wire, hello(3))
    (message,) = wire.messages
    assert message["op"] == "founding"
    three.control(2, message)
    assert three.decided.result() == RECORD
    three.control(1, message)
    two.control(3, message)
    wire = Wire()
    two.connected(wire, hello(3, RECORD))
    assert wire.messages == []


async def test_the_lowest_id_founds_nothing_when_somebody_is_founded() -> None:
    one = member(1)
    one.connected(Wire(), hello(2, RECORD))
    one.connected(Wire(), hello(3))
    assert not one.decided.done()
    one.control(2, {"op": "founding", "record": RECORD.encode()})
    assert one.decided.result() == RECORD


async def test_a_record_that_does_not_list_this_directory_stops_an_empty_node_only() -> None:
    stranger = FoundingRecord(b"c" * 16, {**INCARNATIONS, 3: 99}, 2, 2, "fsync")
    with pytest.raises(ConfigError, match="must come back under a new id"):
        member(3).control(1, {"op": "founding", "record": stranger.encode()})
    founded = member(3, RECORD)
    for record in (stranger, OTHER):
        with pytest.raises(FrameError, match="founding record of another cluster"):
            founded.control(1, {"op": "founding", "record": record.encode()})


async def test_who_cannot_be_a_member_is_refused() -> None:
    with pytest.raises(HandshakeRefusedError, match="durability") as caught:
        member(1).connected(Wire(), hello(2, durability="memory"))
    assert caught.value.reason == "founding"
    with pytest.raises(HandshakeRefusedError, match="its data directory was lost"):
        member(1, RECORD).connected(Wire(), hello(2, incarnation=7))


@pytest.mark.parametrize("record", [None, "text", 5, b"", b"\xc1", RECORD.encode()[:-1]])
async def test_a_malformed_record_is_refused(record: object) -> None:
    with pytest.raises(FrameError, match="founding"):
        member(3).control(1, {"op": "founding", "record": record})
