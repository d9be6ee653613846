"""Founding records and the decisions of the nodes that agree on one."""

import random
from itertools import permutations

import msgpack
import pytest

from fastpaxos_core.errors import ConfigError, FrameError, InvariantError
from fastpaxos_core.founding import Founding, FoundingAnswer, FoundingRecord

CLUSTER_ID = bytes(range(16))
MEMBERS = {1: 0xA1, 2: 0xB2, 3: 0xC3}


def record(**changes):
    fields = {
        "cluster_id": CLUSTER_ID,
        "members": MEMBERS,
        "phase1_quorum": 2,
        "phase2_quorum": 2,
        "durability": "fsync",
        **changes,
    }
    return FoundingRecord(**fields)


def founding(node_id, incarnation=None, **changes):
    fields = {
        "members": MEMBERS,
        "phase1_quorum": 2,
        "phase2_quorum": 2,
        "durability": "fsync",
        **changes,
    }
    return Founding(node_id=node_id, incarnation=incarnation or MEMBERS[node_id], **fields)


def hello(receiver, sender):
    return receiver.peer_hello(sender.node_id, sender.incarnation, sender.digest, sender.durability)


# --- the record ---


def test_record_survives_encoding():
    decoded = FoundingRecord.decode(record().encode())
    assert decoded == record()
    assert decoded.digest == record().digest
    assert len(record().digest) == 16


def test_order_of_members_does_not_matter():
    assert record(members={3: 0xC3, 1: 0xA1, 2: 0xB2}).encode() == record().encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"cluster_id": bytes(16)},
        {"members": {**MEMBERS, 3: 0xC4}},
        {"members": {**MEMBERS, 4: 1}, "phase1_quorum": 3},
        {"phase1_quorum": 3},
        {"phase2_quorum": 3},
        {"durability": "write"},
    ],
)
def test_every_field_is_in_the_digest(changes):
    assert record(**changes).digest != record().digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cluster_id": b"short"}, "cluster id of 5 bytes"),
        ({"members": {}}, "at least one member"),
        ({"members": {0: 1}}, "node id 0"),
        ({"members": {1 << 16: 1}}, "node id 65536"),
        ({"members": {1: 0}}, "incarnation 0"),
        ({"phase1_quorum": 0}, "phase1_quorum 0"),
        ({"phase2_quorum": 4}, "phase2_quorum 4"),
        ({"phase1_quorum": 1}, "more than the 3 members"),
        ({"durability": "maybe"}, "maybe"),
    ],
)
def test_fields_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        record(**changes)


def variants():
    fields = msgpack.unpackb(record().encode())
    yield b""
    yield record().encode()[:-1]
    yield record().encode() + b"\0"
    yield msgpack.packb([2, *fields[1:]])
    yield msgpack.packb(fields[:-1])
    yield msgpack.packb({"a": 1})
    yield msgpack.packb([1, "text", *fields[2:]])
    yield msgpack.packb([*fields[:2], fields[2][::-1], *fields[3:]])
    yield msgpack.packb([*fields[:2], [*fields[2], fields[2][0]], *fields[3:]])
    yield msgpack.packb([*fields[:2], [[1, True], [2, 2], [3, 3]], *fields[3:]])
    yield msgpack.packb([*fields[:2], [[1, "x"], [2, 2], [3, 3]], *fields[3:]])
    yield msgpack.packb([*fields[:3], 1, 1, "fsync"])
    yield msgpack.packb([*fields[:3], 2.0, 2, "fsync"])
    yield msgpack.packb([*fields[:5], 7])
    yield bytes((1 << 20) + 1)


@pytest.mark.parametrize("data", list(variants()))
def test_malformed_records_are_refused(data):
    with pytest.raises(FrameError, match="founding record"):
        FoundingRecord.decode(data)


def test_any_flipped_bit_gives_another_record_or_none():
    encoded = record().encode()
    for offset in range(len(encoded)):
        for bit in range(8):
            flipped = bytearray(encoded)
            flipped[offset] ^= 1 << bit
            try:
                other = FoundingRecord.decode(bytes(flipped))
            except FrameError:
                continue
            assert other.digest != record().digest


# --- decisions ---


@pytest.mark.parametrize("order", list(permutations([1, 2, 3])))
def test_a_cluster_is_founded_whatever_the_order(order):
    nodes = {node_id: founding(node_id) for node_id in order}
    for first in order:
        for second in order:
            if first != second:
                answer = hello(nodes[first], nodes[second])
                assert (answer is FoundingAnswer.PROPOSE) == (first == 1 and not nodes[1].missing)
    made = nodes[1].propose(CLUSTER_ID)
    assert made == record()
    nodes[1].stored(made)
    for node_id in (2, 3):
        assert nodes[node_id].propose(CLUSTER_ID) is None
        assert hello(nodes[1], nodes[node_id]) is FoundingAnswer.SEND_RECORD
        taken = nodes[node_id].receive_record(1, made.encode())
        assert taken == made
        assert nodes[node_id].digest == b""
        nodes[node_id].stored(taken)
        assert nodes[node_id].receive_record(1, made.encode()) is None
    for first, second in permutations([1, 2, 3], 2):
        assert hello(nodes[first], nodes[second]) is FoundingAnswer.AGREED
        assert nodes[first].hello_fields() == {
            "founding": made.digest,
            "cluster_id": CLUSTER_ID,
            "incarnation": MEMBERS[first],
        }


def test_single_node_founds_itself():
    alone = founding(1, members=[1], phase1_quorum=1, phase2_quorum=1)
    made = alone.propose(CLUSTER_ID)
    assert made.members == {1: MEMBERS[1]}
    alone.stored(made)
    assert alone.propose(CLUSTER_ID) is None


def test_nothing_is_proposed_before_every_member_was_heard():
    first = founding(1)
    assert first.missing == [2, 3]
    assert hello(first, founding(2)) is FoundingAnswer.WAIT
    assert first.propose(CLUSTER_ID) is None
    assert hello(first, founding(3)) is FoundingAnswer.PROPOSE
    first.peer_disconnected(2)
    assert first.missing == [2]
    assert first.propose(CLUSTER_ID) is None
    # A node that came back with an empty disk in the meantime is taken as it is now.
    assert hello(first, founding(2, 0xB3)) is FoundingAnswer.PROPOSE
    assert first.propose(CLUSTER_ID).members == {**MEMBERS, 2: 0xB3}


def test_nothing_is_proposed_while_a_peer_is_founded():
    first = founding(1)
    hello(first, founding(2))
    assert hello(first, founding(3, record=record())) is FoundingAnswer.WAIT
    assert first.propose(CLUSTER_ID) is None


def test_wiped_first_node_neither_founds_again_nor_joins():
    wiped = founding(1, 0xDEAD)
    founded = founding(2, record=record())
    assert hello(wiped, founded) is FoundingAnswer.WAIT
    hello(wiped, founding(3))
    assert wiped.propose(bytes(16)) is None
    with pytest.raises(ConfigError, match="new id"):
        wiped.receive_record(2, record().encode())
    with pytest.raises(ConfigError, match="lost or replaced"):
        hello(founded, wiped)


def test_founded_node_that_lost_its_disk_is_refused_even_when_founded_elsewhere():
    other = record(members={**MEMBERS, 2: 0xDEAD})
    with pytest.raises(ConfigError, match="different founding records"):
        hello(founding(1, record=record()), founding(2, 0xDEAD, record=other))


def test_record_of_another_cluster_is_refused_by_a_founded_node():
    node = founding(2, record=record())
    with pytest.raises(ConfigError, match="another cluster"):
        node.receive_record(1, record(cluster_id=bytes(16)).encode())
    with pytest.raises(InvariantError, match="second time"):
        node.stored(record(cluster_id=bytes(16)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": {**MEMBERS, 4: 4}, "phase1_quorum": 3}, "has members 1, 2, 3, 4"),
        ({"members": {1: 0xA1, 2: 0xB2}}, "has members 1, 2"),
        ({"members": {**MEMBERS, 2: 7}}, "lists node 2 with incarnation 0x7"),
        ({"phase1_quorum": 3}, "quorums 3"),
        ({"phase2_quorum": 3}, "and 3"),
        ({"durability": "write"}, "durability write"),
    ],
)
def test_record_that_does_not_fit_is_refused_by_name(changes, message):
    unfounded = founding(2)
    with pytest.raises(ConfigError, match=message):
        unfounded.receive_record(1, record(**changes).encode())
    assert unfounded.record is None
    with pytest.raises(ConfigError, match=message):
        founding(2, record=record(**changes))


def test_peers_that_do_not_fit_are_refused():
    node = founding(1)
    with pytest.raises(ConfigError, match="node 9 is no other member"):
        node.peer_hello(9, 1, b"", "fsync")
    with pytest.raises(ConfigError, match="node 1 is no other member"):
        node.peer_hello(1, 1, b"", "fsync")
    with pytest.raises(ConfigError, match="durability fsync, node 2 with memory"):
        node.peer_hello(2, 1, b"", "memory")
    assert node.missing == [2, 3]


def test_configuration_that_makes_no_sense_is_refused():
    with pytest.raises(ConfigError, match="not among the members"):
        founding(1, members=[2, 3])
    with pytest.raises(ConfigError, match="more than the 3 members"):
        founding(1, phase1_quorum=1)


@pytest.mark.parametrize("seed", range(50))
def test_no_two_different_records_ever_reach_a_quorum(seed):
    """Crashes, wiped disks and lost messages, before and while a cluster is founded: never two clusters."""
    rng = random.Random(seed)
    incarnations = dict(MEMBERS)
    disks = dict.fromkeys(MEMBERS)
    nodes = {node_id: founding(node_id) for node_id in MEMBERS}
    voters = set()
    for _ in range(120):
        first, second = rng.sample(sorted(MEMBERS), 2)
        roll = rng.random()
        if roll < 0.04 and sum(disk is not None for disk in disks.values()) == 0:
            # Nobody has voted yet, so a wiped disk loses nothing.
            incarnations[first] = rng.randrange(1, 1 << 64)
            nodes[first] = founding(first, incarnations[first])
            for other in nodes.values():
                other.peer_disconnected(first)
        elif roll < 0.15:
            nodes[first] = founding(first, incarnations[first], record=disks[first])
            for other in nodes.values():
                other.peer_disconnected(first)
        else:
            answer = hello(nodes[first], nodes[second])
            made = nodes[first].propose(rng.randbytes(16)) if answer is FoundingAnswer.PROPOSE else None
            if answer is FoundingAnswer.SEND_RECORD and rng.random() < 0.7:
                taken = nodes[second].receive_record(first, nodes[first].record.encode())
                first, made = second, taken
            if made is not None and rng.random() < 0.8:
                disks[first] = made
                nodes[first].stored(made)
        voters |= {(node_id, disk.digest) for node_id, disk in disks.items() if disk is not None}
    assert len({digest for _, digest in voters}) <= 1
    assert {digest for _, digest in voters}
