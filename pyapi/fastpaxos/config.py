"""What a node may be told: every setting with its default, unit and limits, checked before anything is started.

A setting comes from a keyword, else from the environment (`FASTPAXOS_ELECTION_TIMEOUT_MS=800`), else from a TOML
file, else from its default. A name that is not known anywhere is an error that offers the nearest known one.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from fastpaxos_core.errors import ConfigError

__all__ = ["DURABILITY_MODES", "Address", "NodeConfig", "format_cluster", "parse_address", "parse_cluster"]

KIB = 1024
MIB = 1024 * KIB

DURABILITY_MODES = ("fsync", "write", "memory")
NODE_ID_MAX = 65535
MEMBERS_MAX = 9

ENVIRONMENT_PREFIX = "FASTPAXOS_"
# Variables of the build and of the test suite, which share the prefix and are no settings of a node.
ENVIRONMENT_OTHER = frozenset({"FASTPAXOS_BUILD", "FASTPAXOS_JOBS"})
ENVIRONMENT_OTHER_PREFIX = "FASTPAXOS_TEST_"


class Address(NamedTuple):
    """A TCP address: `host` is a name or an IP address without brackets, `port` is 0..65535."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, what: str = "address", *, any_port: bool = False) -> Address:
    """Parse `host:port` or `[v6]:port`; `any_port` also allows port 0 (the system chooses).

    Raises ConfigError naming `what` and the text.
    """
    if not isinstance(text, str):
        raise ConfigError(f"{what} must be a string HOST:PORT, not {text!r}")
    host, separator, port_text = text.strip().rpartition(":")
    if not separator or not host:
        raise ConfigError(f"{what} {text!r} has no HOST:PORT form; write for example 127.0.0.1:7001 or [::1]:7001")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host:
            raise ConfigError(f"{what} {text!r}: brackets are for IPv6 addresses; write {host}:{port_text}")
    elif ":" in host:
        raise ConfigError(f"{what} {text!r}: put an IPv6 address in brackets, as in [{host}]:{port_text}")
    if not host or any(letter.isspace() or letter in "[]/,=@" for letter in host):
        raise ConfigError(f"{what} {text!r} has no usable host name")
    port_min = 0 if any_port else 1
    if not (port_text.isascii() and port_text.isdigit() and port_min <= int(port_text) <= 65535):
        raise ConfigError(f"{what} {text!r}: port {port_text!r} is not a number in {port_min}..65535")
    return Address(host.lower(), int(port_text))


def parse_cluster(text: str) -> dict[int, str]:
    """Parse `1=HOST:PORT,2=HOST:PORT` (the form of command line and environment) into {node id: "host:port"}."""
    cluster: dict[int, str] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        id_text, separator, address_text = part.partition("=")
        if not separator or not (id_text.strip().isascii() and id_text.strip().isdigit()):
            raise ConfigError(f"cluster member {part!r} has no ID=HOST:PORT form; write for example 1=127.0.0.1:7001")
        node_id = int(id_text)
        if node_id in cluster:
            both = f"{cluster[node_id]!r} and {address_text.strip()!r}"
            raise ConfigError(f"cluster names node id {node_id} twice: {both}")
        cluster[node_id] = address_text.strip()
    return checked_cluster(cluster)


def format_cluster(cluster: Mapping[int, str]) -> str:
    """The inverse of `parse_cluster`, in order of node id."""
    return ",".join(f"{node_id}={cluster[node_id]}" for node_id in sorted(cluster))


def checked_cluster(cluster: Mapping[int, str]) -> dict[int, str]:
    """Return `cluster` with ids as int and addresses in one spelling, in order of id. Raises ConfigError."""
    if not isinstance(cluster, Mapping) or not cluster:
        raise ConfigError(f"cluster must map node ids to HOST:PORT addresses, not {cluster!r}")
    if len(cluster) > MEMBERS_MAX:
        raise ConfigError(f"cluster has {len(cluster)} members; at most {MEMBERS_MAX} are supported")
    checked: dict[int, str] = {}
    owner_of: dict[Address, int] = {}
    for key, text in cluster.items():
        if isinstance(key, bool) or not isinstance(key, int) or not 1 <= key <= NODE_ID_MAX:
            raise ConfigError(f"cluster names node id {key!r}; ids are whole numbers in 1..{NODE_ID_MAX}")
        address = parse_address(text, f"address of node {key}")
        if address in owner_of:
            raise ConfigError(f"nodes {owner_of[address]} and {key} have the same address {address}; give each its own")
        owner_of[address] = key
        checked[key] = str(address)
    return dict(sorted(checked.items()))


@dataclass(frozen=True, kw_only=True)
class NodeConfig:
    """Settings of one node. Immutable; raises ConfigError at construction if anything does not fit.

    Times are in milliseconds and sizes in bytes; the unit is the last word of a setting's name.
    """

    node_id: int
    """This node's number in `cluster`, 1..65535. It never changes and is never given to another data directory."""

    cluster: Mapping[int, str]
    """{node id: "host:port"} of all initial members, this node included; 1 to 9 of them, the same on every node."""

    data_dir: str | os.PathLike[str]
    """Directory of the journal; created if missing. It belongs to one node of one cluster for ever."""

    listen: str = ""
    """Address to listen on if it is not the one in `cluster` (say `0.0.0.0:7001`); port 0 lets the system choose."""

    durability: str = "fsync"
    """What an acknowledgement means: "fsync" (on a quorum of disks), "write" (survives a process crash, not a crash
    of the machine), "memory" (survives no restart). All members must use the same."""

    phase1_quorum: int = 0
    """Members that must promise before a node may lead; 0 = majority. phase1_quorum + phase2_quorum > members."""

    phase2_quorum: int = 0
    """Members that must have accepted a command durably before it is acknowledged; 0 = majority."""

    heartbeat_interval_ms: int = 50
    """How often an idle leader shows that it lives; at most a third of `election_timeout_ms`."""

    election_timeout_ms: int = 400
    """Silence of the leader after which a node asks for an election: a random time in [1, 2) x this."""

    resend_timeout_ms: int = 200
    """A peer that has not answered an Accept or Prepare for this long gets it again."""

    fetch_timeout_ms: int = 500
    """A peer that has not answered a request for missing batches for this long is given up for another one."""

    handshake_timeout_ms: int = 5_000
    """A new connection that has not said hello within this time is closed."""

    apply_slice_ms: int = 2
    """How long the state machine may work before the loop looks at the network again. One call is never cut short."""

    window_slots: int = 262_144
    """Slots above commit_index that may be in flight; a power of two, 1,024 or more."""

    window_bytes: int = 64 * MIB
    """Bytes of blocks above commit_index that may be in flight."""

    log_memory_bytes: int = 64 * MIB
    """Bytes of committed blocks kept in memory for peers that lag a little; older ones are read from the journal."""

    block_bytes_max: int = 1 * MIB
    """Largest block (many commands of one client) that is accepted."""

    command_bytes_max: int = 1 * MIB - 4 * KIB
    """Largest single command that is accepted; it must fit into one block with its header."""

    commands_per_block_max: int = 16_384
    """Most commands in one block; at most a quarter of `window_slots`, so that blocks can be in flight together."""

    inflight_bytes_per_session: int = 8 * MIB
    """Bytes of blocks that one client session may have unanswered at the leader; more is answered Busy."""

    sessions_max: int = 4_096
    """Client sessions in the replicated table; the least recently used one makes room. Fixed at founding
    (the setting of the member with the lowest id); later values are ignored."""

    result_bytes_per_session_max: int = 4 * MIB
    """Results kept per session for a client that lost the answer. Fixed at founding, like `sessions_max`."""

    queries_pending_max: int = 65_536
    """Reads that may wait for their read round at this node; more are answered Busy."""

    connections_max: int = 2_048
    """Client connections; further ones are refused with a message. Peers do not count."""

    peer_queue_bytes_max: int = 64 * MIB
    """Bytes waiting to be sent to one peer; beyond it the connection is dropped and the core resends what is needed."""

    segment_bytes: int = 64 * MIB
    """Size of one preallocated journal segment."""

    frame_head_bytes_max: int = 1 * MIB
    """Largest frame head that is accepted after the handshake."""

    frame_body_bytes_max: int = 8 * MIB
    """Largest frame body that is accepted after the handshake."""

    ring_slots: int = field(init=False)
    """Cells of the slot ring: 4 x window_slots (derived)."""

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        set_field(self, "cluster", checked_cluster(self.cluster))
        if not isinstance(self.data_dir, str | os.PathLike) or not os.fspath(self.data_dir):
            raise ConfigError(f"data_dir must be a path, not {self.data_dir!r}")
        set_field(self, "data_dir", Path(self.data_dir))
        self._check_numbers()
        set_field(self, "ring_slots", 4 * self.window_slots)
        self._check_identity()
        self._check_quorums()
        self._check_times()
        self._check_sizes()

    @property
    def members(self) -> tuple[int, ...]:
        """Node ids of the initial members, ascending. A member's vote bit is its position here."""
        return tuple(self.cluster)

    @property
    def phase1_size(self) -> int:
        """Members in a phase 1 quorum, with 0 resolved to a majority."""
        return self.phase1_quorum or len(self.cluster) // 2 + 1

    @property
    def phase2_size(self) -> int:
        """Members in a phase 2 quorum, with 0 resolved to a majority."""
        return self.phase2_quorum or len(self.cluster) // 2 + 1

    @property
    def listen_address(self) -> Address:
        """Where this node listens: `listen`, else its address in `cluster`."""
        return parse_address(self.listen or self.cluster[self.node_id], "listen", any_port=bool(self.listen))

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str], **keywords: Any) -> NodeConfig:
        """Read settings from a TOML file; keywords override it, the environment is not looked at.

        The file has the settings at its top level and a table `[cluster]` with lines `1 = "host:port"`. A relative
        `data_dir` in it is relative to the file.
        """
        return cls._from_layers([(f"file {os.fspath(path)}", _read_toml(path)), ("keyword", keywords)])

    @classmethod
    def load(
        cls, path: str | os.PathLike[str] | None = None, *, environ: Mapping[str, str] | None = None, **keywords: Any
    ) -> NodeConfig:
        """Merge keyword > environment (`FASTPAXOS_<SETTING>`) > TOML file > default.

        A keyword that is None does not count. `environ` stands in for the process's environment.
        """
        layers: list[tuple[str, Mapping[str, Any]]] = []
        if path is not None:
            layers.append((f"file {os.fspath(path)}", _read_toml(path)))
        layers.append(("environment", _read_environment(os.environ if environ is None else environ)))
        layers.append(("keyword", {name: value for name, value in keywords.items() if value is not None}))
        return cls._from_layers(layers)

    @classmethod
    def _from_layers(cls, layers: list[tuple[str, Mapping[str, Any]]]) -> NodeConfig:
        settings: dict[str, Any] = {}
        for source, values in layers:
            for name, value in values.items():
                if name not in SETTINGS:
                    raise ConfigError(f"unknown setting {name!r} in {source}{_nearest(name, SETTINGS)}")
                settings[name] = value
        missing = [name for name in REQUIRED if name not in settings]
        if missing:
            raise ConfigError(
                f"missing setting {', '.join(missing)}: give it as keyword, in the environment or in the file"
            )
        return cls(**settings)

    def _check_numbers(self) -> None:
        for name in NUMBERS:
            value = getattr(self, name)
            minimum = 0 if name in ("phase1_quorum", "phase2_quorum") else 1
            if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value < 2**31:
                raise ConfigError(f"{name} must be a whole number in {minimum}..{2**31 - 1}, not {value!r}")

    def _check_identity(self) -> None:
        if self.node_id > NODE_ID_MAX:
            raise ConfigError(f"node_id is {self.node_id}; ids are whole numbers in 1..{NODE_ID_MAX}")
        if self.node_id not in self.cluster:
            members = format_cluster(self.cluster)
            raise ConfigError(f"node_id {self.node_id} is not in the cluster {{{members}}}; add its address")
        if self.durability not in DURABILITY_MODES:
            raise ConfigError(f"durability is {self.durability!r}; choose one of {', '.join(DURABILITY_MODES)}")
        if not isinstance(self.listen, str):
            raise ConfigError(f"listen must be a string HOST:PORT, not {self.listen!r}")
        _ = self.listen_address

    def _check_quorums(self) -> None:
        members, phase1, phase2 = len(self.cluster), self.phase1_size, self.phase2_size
        if phase1 > members or phase2 > members:
            raise ConfigError(
                f"quorums of {phase1} (phase 1) and {phase2} (phase 2) do not exist among {members} members; lower them"
            )
        if phase1 + phase2 <= members:
            raise ConfigError(
                f"phase1_quorum {phase1} + phase2_quorum {phase2} must exceed the {members} members, or two leaders "
                f"could choose different commands; raise one of them"
            )

    def _check_times(self) -> None:
        if self.heartbeat_interval_ms * 3 > self.election_timeout_ms:
            raise ConfigError(
                f"election_timeout_ms {self.election_timeout_ms} is less than 3 x heartbeat_interval_ms "
                f"{self.heartbeat_interval_ms}, so one late heartbeat would cost the leadership; use at least "
                f"{3 * self.heartbeat_interval_ms} or a shorter heartbeat"
            )
        if self.apply_slice_ms > self.heartbeat_interval_ms:
            raise ConfigError(
                f"apply_slice_ms {self.apply_slice_ms} exceeds heartbeat_interval_ms {self.heartbeat_interval_ms}, so "
                f"applying would delay heartbeats; use less"
            )

    def _check_sizes(self) -> None:
        if self.window_slots & (self.window_slots - 1) or not 1024 <= self.window_slots <= 2**18:
            raise ConfigError(f"window_slots is {self.window_slots}; use a power of two in 1024..{2**18}")
        at_most = (
            ("command_bytes_max", "block_bytes_max", self.block_bytes_max - 4 * KIB, "less 4 KiB for its header"),
            ("commands_per_block_max", "window_slots", self.window_slots // 4, "/ 4"),
            ("block_bytes_max", "frame_body_bytes_max", self.frame_body_bytes_max, ""),
            ("block_bytes_max", "inflight_bytes_per_session", self.inflight_bytes_per_session, ""),
            ("block_bytes_max", "window_bytes", self.window_bytes // 4, "/ 4"),
            ("block_bytes_max", "segment_bytes", self.segment_bytes // 4, "/ 4"),
            ("frame_body_bytes_max", "peer_queue_bytes_max", self.peer_queue_bytes_max // 2, "/ 2"),
        )
        for name, limit_name, limit, how in at_most:
            value = getattr(self, name)
            if value > limit:
                bound = f"{limit_name} {how}".strip()
                raise ConfigError(
                    f"{name} is {value} but may be at most {bound} = {limit}; lower {name} or raise {limit_name}"
                )
        if self.frame_head_bytes_max < 64 * KIB:
            raise ConfigError(f"frame_head_bytes_max is {self.frame_head_bytes_max}; use at least {64 * KIB}")


SETTINGS = tuple(item.name for item in fields(NodeConfig) if item.init)
REQUIRED = tuple(item.name for item in fields(NodeConfig) if item.init and item.default is MISSING)
NUMBERS = tuple(item.name for item in fields(NodeConfig) if item.init and item.type == "int")


def _nearest(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"; did you mean {close[0]!r}?" if close else ""


def _read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read configuration file {os.fspath(path)}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file {os.fspath(path)} is no valid TOML: {error}") from error
    cluster = values.get("cluster")
    if isinstance(cluster, str):
        values["cluster"] = parse_cluster(cluster)
    elif isinstance(cluster, dict):
        # TOML keys are text, so 1 and 01 are different keys that would name one node.
        parts = [f"{key}={address}" for key, address in cluster.items()]
        values["cluster"] = parse_cluster(",".join(parts))
    data_dir = values.get("data_dir")
    if isinstance(data_dir, str) and data_dir:
        values["data_dir"] = Path(path).parent / data_dir
    return values


def _read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for variable, text in environ.items():
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        if variable in ENVIRONMENT_OTHER or variable.startswith(ENVIRONMENT_OTHER_PREFIX):
            continue
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if name not in SETTINGS:
            known = tuple(ENVIRONMENT_PREFIX + setting.upper() for setting in SETTINGS)
            raise ConfigError(f"unknown environment variable {variable}{_nearest(variable, known)}")
        if name in NUMBERS:
            try:
                values[name] = int(text)
            except ValueError:
                raise ConfigError(f"environment variable {variable} must be a whole number, not {text!r}") from None
        else:
            values[name] = parse_cluster(text) if name == "cluster" else text
    return values
