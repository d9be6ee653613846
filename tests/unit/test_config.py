"""fastpaxos.config: layers of settings, and every refusal with the values it must name."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest

from fastpaxos.config import (
    SETTINGS,
    Address,
    NodeConfig,
    format_cluster,
    parse_address,
    parse_cluster,
)
from fastpaxos_core.errors import ConfigError

CLUSTER = {1: "127.0.0.1:7001", 2: "127.0.0.1:7002", 3: "[::1]:7003"}


def config(**keywords: Any) -> NodeConfig:
    return NodeConfig(**{"node_id": 1, "cluster": CLUSTER, "data_dir": "data/1", **keywords})


def test_defaults_are_consistent_and_derived_values_follow() -> None:
    made = config()
    assert made.members == (1, 2, 3)
    assert (made.phase1_size, made.phase2_size) == (2, 2)
    assert made.ring_slots == 4 * made.window_slots
    assert made.data_dir == Path("data/1")
    assert made.listen_address == Address("127.0.0.1", 7001)
    assert made.durability == "fsync"


def test_it_is_frozen_and_can_be_copied() -> None:
    made = config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.node_id = 2  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(made)) == made
    assert dataclasses.replace(made, node_id=2).node_id == 2


def test_the_callers_mapping_is_copied() -> None:
    cluster = dict(CLUSTER)
    made = config(cluster=cluster)
    cluster[1] = "garbage"
    assert made.cluster[1] == "127.0.0.1:7001"


def test_every_setting_has_a_docstring_behind_it() -> None:
    source = Path(__import__("fastpaxos.config").config.__file__).read_text()
    body = source[source.index("class NodeConfig") : source.index("def __post_init__")]
    for name in SETTINGS:
        declaration = body.index(f"\n    {name}: ")
        following = body.index("\n", declaration + 1)
        assert body[following:].lstrip().startswith('"""'), name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:7001", Address("127.0.0.1", 7001)),
        ("Node-A.example:1", Address("node-a.example", 1)),
        ("[::1]:65535", Address("::1", 65535)),
        (" host:9 ", Address("host", 9)),
    ],
)
def test_addresses_are_parsed(text: str, expected: Address) -> None:
    assert parse_address(text) == expected
    assert parse_address(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    ["", "host", "host:", ":7001", "host:0", "host:65536", "host:-1", "host:+1", "host:7x", "::1:7001", "[::1]", "[]:1",
     "[host]:1", "ho st:1", "a/b:1", "host:٣", "u@h:1"],
)  # fmt: skip
def test_malformed_addresses_are_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="address of node 2") as caught:
        config(cluster={**CLUSTER, 2: text})
    assert repr(text) in str(caught.value)


def test_port_zero_is_for_listening_only() -> None:
    assert config(listen="0.0.0.0:0").listen_address == Address("0.0.0.0", 0)
    with pytest.raises(ConfigError, match=r"listen 'nowhere'"):
        config(listen="nowhere")


def test_cluster_text_round_trips() -> None:
    assert parse_cluster("2=127.0.0.1:7002, 1=127.0.0.1:7001,3=[::1]:7003,") == CLUSTER
    assert parse_cluster(format_cluster(CLUSTER)) == CLUSTER


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1=h:1,1=h:2", "node id 1 twice"),
        ("1=h:1,2=H:1", "nodes 1 and 2 have the same address h:1"),
        ("0=h:1", "node id 0"),
        ("65536=h:1", "node id 65536"),
        ("x=h:1", "'x=h:1' has no ID=HOST:PORT form"),
        ("h:1", "'h:1' has no ID=HOST:PORT form"),
        ("", "must map node ids"),
        (",".join(f"{i}=h:{i}" for i in range(1, 11)), "10 members; at most 9"),
    ],
)
def test_bad_clusters_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_cluster(text)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"node_id": 4}, r"node_id 4 is not in the cluster \{1=127.0.0.1:7001,"),
        ({"node_id": 0}, "node_id must be a whole number in 1"),
        ({"node_id": 70000}, "node_id is 70000"),
        ({"node_id": True}, "node_id must be a whole number"),
        ({"node_id": "1"}, "node_id must be a whole number in .* not '1'"),
        ({"cluster": {"1": "h:1"}}, "node id '1'"),
        ({"cluster": {1: 7}}, "must be a string HOST:PORT, not 7"),
        ({"cluster": {}}, "must map node ids"),
        ({"data_dir": ""}, "data_dir must be a path"),
        ({"data_dir": None}, "data_dir must be a path, not None"),
        ({"durability": "sync"}, "durability is 'sync'; choose one of fsync, write, memory"),
        ({"phase1_quorum": 4}, "quorums of 4 .* and 2 .* among 3 members"),
        ({"phase1_quorum": 1, "phase2_quorum": 2}, r"phase1_quorum 1 \+ phase2_quorum 2 must exceed the 3 members"),
        ({"phase2_quorum": 1}, r"phase1_quorum 2 \+ phase2_quorum 1 must exceed"),
        ({"heartbeat_interval_ms": 134}, "less than 3 x heartbeat_interval_ms 134,.* at least 402"),
        ({"heartbeat_interval_ms": 0}, "heartbeat_interval_ms must be a whole number in 1"),
        ({"election_timeout_ms": 1.5}, "election_timeout_ms must be a whole number"),
        ({"apply_slice_ms": 51}, "apply_slice_ms 51 exceeds heartbeat_interval_ms 50"),
        ({"window_slots": 65535}, "window_slots is 65535; use a power of two"),
        ({"window_slots": 512}, "window_slots is 512"),
        ({"commands_per_block_max": 65537}, "is 65537 but may be at most window_slots / 4 = 65536"),
        ({"command_bytes_max": 1 << 20}, "command_bytes_max is 1048576 but may be at most block_bytes_max less 4 KiB"),
        ({"block_bytes_max": 9 << 20}, "block_bytes_max is 9437184 but may be at most frame_body_bytes_max = 8388608"),
        ({"inflight_bytes_per_session": 1000}, "raise inflight_bytes_per_session"),
        ({"window_bytes": 1 << 20}, "raise window_bytes"),
        ({"segment_bytes": 1 << 20}, "raise segment_bytes"),
        ({"peer_queue_bytes_max": 8 << 20}, "raise peer_queue_bytes_max"),
        ({"frame_head_bytes_max": 100}, "frame_head_bytes_max is 100; use at least 65536"),
        ({"connections_max": 1 << 40}, "connections_max must be a whole number in 1..2147483647, not 1099511627776"),
    ],
)  # fmt: skip
def test_wrong_values_are_refused_with_the_values(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**keywords)


def test_flexible_quorums_that_intersect_are_accepted() -> None:
    cluster = {number: f"h:{number}" for number in range(1, 6)}
    made = config(cluster=cluster, phase1_quorum=4, phase2_quorum=2)
    assert (made.phase1_size, made.phase2_size) == (4, 2)


TOML = """
node_id = 2
data_dir = "state"
election_timeout_ms = 900
heartbeat_interval_ms = 100

[cluster]
1 = "127.0.0.1:7001"
2 = "127.0.0.1:7002"
3 = "[::1]:7003"
"""


def test_toml_file(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(TOML)
    made = NodeConfig.from_toml(path)
    assert (made.node_id, made.election_timeout_ms, made.heartbeat_interval_ms) == (2, 900, 100)
    assert made.cluster == CLUSTER
    assert made.data_dir == tmp_path / "state"


def test_keyword_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(TOML)
    environ = {
        "FASTPAXOS_ELECTION_TIMEOUT_MS": "800",
        "FASTPAXOS_HEARTBEAT_INTERVAL_MS": "90",
        "FASTPAXOS_DURABILITY": "write",
        "FASTPAXOS_BUILD": "checked",
        "FASTPAXOS_TEST_SEED": "7",
        "HOME": "/",
    }
    made = NodeConfig.load(path, environ=environ, heartbeat_interval_ms=80, segment_bytes=None)
    assert made.heartbeat_interval_ms == 80
    assert made.election_timeout_ms == 800
    assert made.durability == "write"
    assert made.node_id == 2
    assert made.sessions_max == config().sessions_max


def test_everything_can_come_from_the_environment() -> None:
    environ = {
        "FASTPAXOS_NODE_ID": "3",
        "FASTPAXOS_CLUSTER": "1=127.0.0.1:7001,2=127.0.0.1:7002,3=[::1]:7003",
        "FASTPAXOS_DATA_DIR": "/var/lib/paxos",
    }
    made = NodeConfig.load(environ=environ)
    assert made == config(node_id=3, data_dir="/var/lib/paxos")


def test_unknown_names_are_refused_with_the_nearest_known_one(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text("electoin_timeout_ms = 5\n" + TOML)
    with pytest.raises(ConfigError, match=r"'electoin_timeout_ms' in file .*; did you mean 'election_timeout_ms'"):
        NodeConfig.from_toml(path)
    with pytest.raises(ConfigError, match=r"FASTPAXOS_WINDOW_SLOT; did you mean 'FASTPAXOS_WINDOW_SLOTS'"):
        NodeConfig.load(environ={"FASTPAXOS_WINDOW_SLOT": "1024"})
    with pytest.raises(ConfigError, match=r"'nodeid' in keyword; did you mean 'node_id'"):
        NodeConfig.load(environ={}, nodeid=1)
    with pytest.raises(ConfigError, match="unknown setting 'ring_slots'"):
        NodeConfig.load(environ={}, ring_slots=4096)


def test_unreadable_or_broken_files_and_variables_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read configuration file .*absent\.toml: No such file"):
        NodeConfig.from_toml(tmp_path / "absent.toml")
    path = tmp_path / "broken.toml"
    path.write_text("node_id = = 1")
    with pytest.raises(ConfigError, match=r"broken\.toml is no valid TOML"):
        NodeConfig.from_toml(path)
    path.write_bytes(b"node_id = '\xff'")
    with pytest.raises(ConfigError, match=r"broken\.toml is no valid TOML"):
        NodeConfig.from_toml(path)
    path.write_text('[cluster]\n1 = "h:1"\n01 = "h:2"\n')
    with pytest.raises(ConfigError, match="node id 1 twice"):
        NodeConfig.from_toml(path)
    with pytest.raises(ConfigError, match="FASTPAXOS_NODE_ID must be a whole number, not 'one'"):
        NodeConfig.load(environ={"FASTPAXOS_NODE_ID": "one"})
    with pytest.raises(ConfigError, match="missing setting node_id, cluster, data_dir"):
        NodeConfig.load(environ={})
