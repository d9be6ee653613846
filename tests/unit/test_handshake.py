"""fastpaxos.handshake: what a hello must say, and who is refused why. Over sockets: test_transport.py."""

from __future__ import annotations

import dataclasses

import pytest

from fastpaxos.handshake import HandshakeRefusedError, check_hello, check_peer, check_protocol
from fastpaxos_core.errors import FrameError
from transport_helpers import CLUSTER_ID, identity


@pytest.mark.parametrize("key", [key for key in identity(2).hello("peer") if key not in ("features", "run")])
def test_every_field_of_a_hello_is_needed(key: str) -> None:
    mapping = identity(2).hello("peer")
    assert check_hello(mapping).node_id == 2
    del mapping[key]
    with pytest.raises(FrameError, match=f"hello has {key}=None"):
        check_hello(mapping)


def test_an_older_peer_whose_range_overlaps_is_accepted() -> None:
    cluster = {1: "a:1", 2: "b:1"}
    hello = check_hello({**identity(2).hello("peer"), "protocol_min": 0, "protocol_max": 9, "unknown_key": 1})
    check_peer(identity(1), hello, cluster)
    with pytest.raises(HandshakeRefusedError) as caught:
        check_peer(identity(1), dataclasses.replace(hello, protocol_max=0), cluster)
    assert caught.value.reason == "protocol"


def test_a_founded_node_refuses_an_empty_directory_under_a_known_id() -> None:
    empty = identity(2, incarnation=5, founding=b"", cluster_id=b"", incarnations={})
    with pytest.raises(HandshakeRefusedError, match="founded with incarnation 202 but now has 5") as caught:
        check_peer(identity(1), check_hello(empty.hello("peer")), {1: "a:1", 2: "b:1"})
    assert caught.value.reason == "incarnation"
    # The other way round it is the founded one that knows, and refuses.
    check_peer(empty, check_hello(identity(1).hello("peer")), {1: "a:1", 2: "b:1"})


def test_the_member_at_a_dialled_address_must_be_the_expected_one() -> None:
    hello = check_hello(identity(1).hello("peer"))
    with pytest.raises(HandshakeRefusedError, match=r"at c:1 node 2 expected node 3 but found node 1"):
        check_peer(identity(2), hello, {1: "a:1", 2: "b:1", 3: "c:1"}, 3)


def test_a_client_that_knows_no_cluster_is_welcome_and_one_of_another_cluster_is_not() -> None:
    hello = check_hello({**identity(2).hello("client"), "cluster_id": b""})
    check_protocol(hello, CLUSTER_ID)
    with pytest.raises(HandshakeRefusedError, match="check the addresses"):
        check_protocol(dataclasses.replace(hello, cluster_id=bytes(16)), CLUSTER_ID)


@pytest.mark.parametrize(
    ("key", "value"),
    [("node_id", 1 << 16), ("boot", -1), ("incarnation", 1 << 64), ("group_id", True), ("durability", "x" * 65)],
)
def test_fields_out_of_range_are_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(FrameError, match=f"hello has {key}="):
        check_hello({**identity(2).hello("peer"), key: value})
