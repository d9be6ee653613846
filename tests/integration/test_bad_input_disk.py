"""Bad disks and bad directories, at the level of whole nodes: a clear error, and nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fastpaxos
from fastpaxos import Client, ConfigError, CorruptionError, HashChain, Node
from fastpaxos.cli.cluster_process import ClusterProcess, ReplicaDied
from fastpaxos.config import format_cluster
from fastpaxos.directory import OsDirectory
from fastpaxos.testing.journal_rot import SECTOR_BYTES, JournalRecord, journal_records, segments
from fastpaxos_core import journal_recovery
from integration.bad_input_support import FaultyDisk, chain_digest, serve_to_the_end, settled_statuses
from local_cluster import LocalCluster, closing, free_ports, until

# How far above its commit_index a replica accepts, as fastpaxos_core/types.pxd has it.
SLOTS_AHEAD_MAX = 1 << 20

# Several segments within a few hundred commands.
SMALL_SEGMENTS: dict[str, Any] = {"segment_bytes": 64 << 10, "block_bytes_max": 16 << 10, "command_bytes_max": 12 << 10}


async def execute_one_by_one(client: Client, commands: list[bytes]) -> None:
    """Each in a block and a journal write of its own."""
    for command in commands:
        await client.execute(command)


def numbered(name: str, count: int) -> list[bytes]:
    """Commands that are all different; their records take two sectors of the journal each."""
    return [b"%s %d " % (name.encode(), number) + bytes(500) for number in range(count)]


def digests(statuses: list[dict[str, Any]]) -> set[str]:
    return {status["digest"] for status in statuses}


# --- whose directory is it --------------------------------------------------------------------------------------------


async def test_serve_refuses_directories_that_are_in_use_or_not_its_own(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path, 1)
    (port,) = free_ports(1)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("precious")
    async with cluster, cluster.client() as client:
        own = ("--cluster", format_cluster(cluster.addresses), "--machine", "hashchain")
        other = ("--id", 2, "--cluster", f"2=127.0.0.1:{port}")
        used, wrong, strange = await asyncio.gather(
            serve_to_the_end("--id", 1, *own, "--data-dir", tmp_path / "1"),
            serve_to_the_end(*other, "--data-dir", tmp_path / "1", "--listen", f"127.0.0.1:{port}"),
            serve_to_the_end(*other, "--data-dir", foreign),
        )
        assert used == (
            2,
            f"error: data_dir {tmp_path / '1'} is in use by process {os.getpid()}; stop that node first\n",
        )
        assert wrong == used, "whose it is can only be read when nobody writes it"
        assert strange[0] == 2
        assert f"data_dir {foreign} is not empty ('thesis.txt' among others)" in strange[1]
        assert int.from_bytes(await client.execute(b"still here"), "little") == 1
    assert [path.name for path in foreign.iterdir() if path.name != "lock"] == ["thesis.txt"]
    with pytest.raises(ConfigError, match=f"^data_dir {tmp_path / '1'} belongs to node 1, not to node 2$"):
        await Node(cluster.config(2, cluster={2: f"127.0.0.1:{port}"}, data_dir=tmp_path / "1"), HashChain()).start()


async def test_a_directory_of_another_cluster_takes_no_part_and_harms_nothing(tmp_path: Path) -> None:
    one, two = LocalCluster(tmp_path / "one"), LocalCluster(tmp_path / "two")
    async with one, two, one.client() as client, two.client() as other_client:
        commands, other_commands = numbered("one", 20), numbered("two", 30)
        await execute_one_by_one(client, commands)
        await execute_one_by_one(other_client, other_commands)
        await asyncio.gather(one.settle(), two.settle())
        await one.stop(3)
        await two.stop(3)
        async with closing(await one.start(3, data_dir=tmp_path / "two" / "3")) as stray:
            last_slot = stray.status()["last_slot"]
            await until(lambda: len(stray.status()["refusals"]) == 2)
            ids = f"{client.cluster_id.hex()}, the other side to cluster {other_client.cluster_id.hex()}"
            for peer in (1, 2):
                assert f"this node belongs to cluster {ids}" in stray.status()["refusals"][peer]
            commands.append(b"without it")
            await client.execute(b"without it")
            assert stray.status()["role"] == "follower"
            assert stray.status()["last_slot"] == last_slot, "it took nothing of the other log"
            assert stray.status()["cluster_id"] == other_client.cluster_id
        del one.nodes[3]
        await one.start(3)
        await two.start(3)
        assert digests(await one.settle()) == {chain_digest(commands)}
        assert digests(await two.settle()) == {chain_digest(other_commands)}


# --- the end of the journal -------------------------------------------------------------------------------------------


def tear(node: Node, keep: Callable[[bytes], bytes]) -> None:
    """The next journal write reaches the disk only as far as `keep` says (zeros: never written), and the node dies."""
    storage = node._storage
    assert storage is not None
    directory = OsDirectory(storage.path)

    def write_torn(write: Any, *_: object) -> None:
        data = b"".join(map(bytes, write.buffers))
        directory.write(write.segment_name, write.offset, [keep(data)])
        raise OSError(errno.EIO, "the machine crashed in the middle of this write")

    storage.write = storage.write_inline = write_torn  # type: ignore[method-assign, assignment]


TORN = {
    "one byte": lambda data: data[:1],
    "its header": lambda data: data[:64],
    "one sector": lambda data: data[:SECTOR_BYTES],
    "half": lambda data: data[: len(data) // 2],
    "all but one sector": lambda data: data[:-SECTOR_BYTES],
    "all but the first sector": lambda data: bytes(SECTOR_BYTES) + data[SECTOR_BYTES:],
    "every other sector": lambda data: b"".join(
        data[at : at + SECTOR_BYTES] if at // SECTOR_BYTES % 2 == 0 else bytes(SECTOR_BYTES)
        for at in range(0, len(data), SECTOR_BYTES)
    ),
}


@pytest.mark.parametrize("size", [1, 3])
async def test_a_torn_last_write_is_cut_silently(tmp_path: Path, size: int, caplog: pytest.LogCaptureFixture) -> None:
    cluster = LocalCluster(tmp_path, size)
    commands = numbered("sure", 10)
    async with cluster, cluster.client() as client:
        await execute_one_by_one(client, commands)
        for name, keep in TORN.items():
            leader = await cluster.wait_for_leader()
            node_id = leader.config.node_id
            tear(leader, keep)
            # In a cluster of one nobody else can acknowledge it; among three the next leader does.
            torn = b"torn" + bytes(3000)
            outcome = asyncio.ensure_future(client.execute(torn))
            with pytest.raises(OSError, match="the machine crashed in the middle"):
                await leader.wait_closed()
            del cluster.nodes[node_id]
            before = OsDirectory(tmp_path / str(node_id))
            assert journal_recovery.verify(before) == [], f"{name}: a torn write is no corruption"
            caplog.clear()
            node = await cluster.start(node_id)
            # The client sends what was not acknowledged again, under the same sequence.
            await outcome
            await client.execute(name.encode())
            commands += [torn, name.encode()]
            assert node.status()["voting"]
            assert [entry for entry in caplog.records if entry.levelno >= logging.WARNING] == [], name
            assert digests(await cluster.settle()) == {chain_digest(commands)}, name


# --- the middle of the journal ----------------------------------------------------------------------------------------


def middle_record(data_dir: Path) -> JournalRecord:
    """A record with a block, with many good ones before and behind it."""
    records = [record for record in journal_records(data_dir) if record.batches]
    return records[len(records) // 2]


def flip_block(data_dir: Path) -> str:
    record = middle_record(data_dir)
    record.flip(record.total_bytes - 1)
    return f"slot {record.batches[-1].start}"


def flip_head(data_dir: Path) -> str:
    record = middle_record(data_dir)
    record.flip(20)
    return record.path.name


def flip_segment_header(data_dir: Path) -> str:
    path = segments(data_dir)[0]
    JournalRecord(path, 0, 0, []).flip(100)
    return f"{path.name}: the first copy of the segment header is corrupt"


def wipe_many_sectors(data_dir: Path) -> str:
    record = middle_record(data_dir)
    with record.path.open("r+b") as file:
        file.seek(record.offset)
        file.write(os.urandom(5 * SECTOR_BYTES))
    return record.path.name


def lose_oldest_segment(data_dir: Path) -> str:
    oldest, second, *_ = segments(data_dir)
    oldest.unlink()
    return f"the segment before {second.name} is missing"


@pytest.mark.parametrize("damage", [flip_block, flip_head, flip_segment_header, wipe_many_sectors, lose_oldest_segment])
async def test_a_damaged_middle_is_named_and_repaired_from_the_peers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], str]
) -> None:
    commands = numbered("sure", 200)
    cluster = LocalCluster(tmp_path, log_memory_bytes=16 << 10, **SMALL_SEGMENTS)
    async with cluster, cluster.client() as client:
        await execute_one_by_one(client, commands[:20])
        victim, other = (node.config.node_id for node in cluster.followers())
        await cluster.stop(victim)
        await cluster.start(victim)
        await execute_one_by_one(client, commands[20:])
        await cluster.settle()
        await cluster.stop(victim)
        assert len(segments(tmp_path / str(victim))) >= 3
        named = damage(tmp_path / str(victim))
        assert journal_recovery.verify(OsDirectory(tmp_path / str(victim))) != []
        caplog.clear()
        node = await cluster.start(victim)
        assert digests(await cluster.settle()) == {chain_digest(commands)}
        assert node.status()["voting"], "good writes follow the damage, and they know all promises"
        errors = [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING]
        assert any(named in error for error in errors), f"nothing of {errors} names {named!r}"
        # The repaired copy votes like any other: with the leader it makes a quorum.
        await cluster.stop(other)
        commands.append(b"after")
        await client.execute(b"after")
        assert digests(await cluster.settle()) == {chain_digest(commands)}


async def test_a_repaired_node_counts_in_elections_again_when_the_log_is_beyond_what_it_lost(tmp_path: Path) -> None:
    """A record without a head may have held any slot acceptable then; behind those the node is whole again."""
    sure, block = numbered("sure", 40), [b"x"] * 16_384
    blocks_count = SLOTS_AHEAD_MAX // len(block) + 1
    cluster = LocalCluster(tmp_path)
    async with cluster, cluster.client() as client:
        await execute_one_by_one(client, sure)
        await cluster.settle()
        victim = cluster.followers()[0].config.node_id
        await cluster.stop(victim)
        flip_head(tmp_path / str(victim))
        await cluster.start(victim)
        for _ in range(blocks_count):
            await client.execute_many(block, timeout=30)
        await cluster.settle()
        applied = len(sure) + blocks_count * len(block)
        for restarts in (False, True):
            if restarts:
                await cluster.stop(victim)
                await cluster.start(victim)
                await cluster.settle()
            # Now it is one of the two that must elect.
            gone = (await cluster.wait_for_leader()).config.node_id
            await cluster.stop(gone)
            applied += 1
            assert int.from_bytes(await client.execute(b"next leader"), "little") == applied
            await cluster.start(gone)
        assert len(digests(await cluster.settle())) == 1


@pytest.mark.parametrize("damage", [flip_block, flip_head])
async def test_what_one_disk_lost_is_never_decided_without_the_other_that_has_it(
    tmp_path: Path, damage: Callable[[Path], str]
) -> None:
    """Acknowledged by nodes 2 and 3 alone, corrupt on 3, and then 2 is away: 1 and 3 may wait, but not decide."""
    commands = numbered("sure", 10)
    cluster = LocalCluster(tmp_path)
    async with cluster, cluster.client() as client:
        await execute_one_by_one(client, commands)
        await cluster.settle()
        await cluster.stop(1)
        only_two = numbered("on two disks", 40)
        await execute_one_by_one(client, only_two)
        commands += only_two
        await cluster.settle()
        await cluster.stop(2)
        await cluster.stop(3)
        damage(tmp_path / "3")
        damaged = await cluster.start(3)
        lagging = await cluster.start(1)
        execution = asyncio.ensure_future(client.execute(b"next"))
        # They meet and elect, or try to; whatever they do, the acknowledged commands may not be replaced.
        await until(lambda: damaged.status()["peers"][0]["connected"] and lagging.status()["peers"][1]["connected"])
        await until(lambda: damaged.status()["promised_ballot"] == lagging.status()["promised_ballot"])
        assert damaged.status()["applied_index"] < damaged.status()["commit_index"] or not damaged.status()["is_ready"]
        assert not execution.done()
        await cluster.start(2)
        assert int.from_bytes(await execution, "little") == len(commands) + 1
        assert digests(await cluster.settle()) == {chain_digest([*commands, b"next"])}


async def test_a_node_that_lost_its_promises_does_not_vote_but_learns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    commands = numbered("sure", 40)
    cluster = LocalCluster(tmp_path)
    async with cluster, cluster.client() as client:
        await execute_one_by_one(client, commands)
        await cluster.settle()
        victim, other = (node.config.node_id for node in cluster.followers())
        await cluster.stop(victim)
        newest = segments(tmp_path / str(victim))[-1]
        size, kept = newest.stat().st_size, middle_record(tmp_path / str(victim)).offset
        os.truncate(newest, kept)
        node = await cluster.start(victim)
        assert digests(await cluster.settle()) == {chain_digest(commands)}
        assert not node.status()["voting"]
        assert f"{newest.name} has {kept} bytes instead of {size}: it was truncated" in caplog.text
        assert "not vote any more" in caplog.text
        # It knows everything, but it is no majority with one other node.
        await cluster.stop(other)
        with pytest.raises(fastpaxos.ClientError):
            await client.query(b"", timeout=0.5)
        await cluster.start(other)
        commands.append(b"again three")
        await client.execute(b"again three")
        assert digests(await cluster.settle()) == {chain_digest(commands)}


async def test_a_lone_node_with_a_damaged_middle_answers_nothing_that_is_wrong(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = LocalCluster(tmp_path, 1)
    async with cluster, cluster.client() as client:
        await execute_one_by_one(client, numbered("sure", 30))
    record = middle_record(tmp_path / "1")
    healthy = record.path.read_bytes()
    record.flip(record.total_bytes - 1)
    caplog.clear()
    async with cluster, cluster.client() as client:
        node = cluster.nodes[1]
        with pytest.raises(fastpaxos.ClientError):
            await client.query(b"", timeout=0.5)
        assert node.status()["applied_index"] == record.batches[-1].start - 1
        errors = [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING]
        assert any(str(record.batches[-1].start) in error for error in errors), f"nobody was told: {errors}"
    with record.path.open("r+b") as file:
        file.write(healthy)
    async with cluster, cluster.client() as client:
        assert int.from_bytes(await client.execute(b"31st"), "little") == 31


# --- directories that cannot be trusted -------------------------------------------------------------------------------


def spoil_identity(path: Path) -> None:
    data = bytearray((path / "identity").read_bytes())
    data[-3] ^= 1
    (path / "identity").write_bytes(data)


def spoil_segment_header(path: Path) -> None:
    with segments(path)[-1].open("r+b") as file:
        file.write(bytes(1024))


def swap_segments(path: Path) -> None:
    first, *_, last = segments(path)
    data = first.read_bytes()
    first.write_bytes(last.read_bytes())
    last.write_bytes(data)


UNTRUSTED: list[tuple[Callable[[Path], object], type[Exception], str]] = [
    (spoil_identity, CorruptionError, r"/identity is corrupt; this directory's data cannot be trusted"),
    (lambda path: (path / "identity").write_bytes(b""), CorruptionError, r"/identity has only 0 bytes"),
    (lambda path: (path / "identity").unlink(), ConfigError, r"is not empty .* but has no identity file"),
    (spoil_segment_header, CorruptionError, r"journal-\w+\.segment: both copies of the segment header are corrupt"),
    (lambda path: segments(path)[-1].unlink(), CorruptionError, r"journal segment \w+, which existed .*, is missing"),
    (swap_segments, CorruptionError, r"the header says that this is segment \d+; files were exchanged"),
]


async def test_an_untrustworthy_directory_is_refused_by_name_and_left_alone(tmp_path: Path) -> None:
    commands = numbered("sure", 150)
    cluster = LocalCluster(tmp_path, 1, **SMALL_SEGMENTS)
    async with cluster, cluster.client() as client:
        await execute_one_by_one(client, commands)
    async with cluster:
        # The segment that a start makes is known to the identity file.
        await cluster.wait_for_leader()
    assert len(segments(tmp_path / "1")) >= 3
    for number, (spoil, kind, message) in enumerate(UNTRUSTED):
        copy = tmp_path / f"copy {number}"
        shutil.copytree(tmp_path / "1", copy)
        spoil(copy)
        spoilt = {path.name: path.read_bytes() for path in copy.iterdir() if path.suffix == ".segment"}
        with pytest.raises(kind, match=message):
            await Node(cluster.config(1, data_dir=copy), HashChain()).start()
        assert {path.name: path.read_bytes() for path in copy.iterdir() if path.suffix == ".segment"} == spoilt
        shutil.rmtree(copy)
    # The same from the command line: what cannot be read is a failure, and stderr names it.
    shutil.copytree(tmp_path / "1", tmp_path / "copy")
    spoil_identity(tmp_path / "copy")
    code, text = await serve_to_the_end(
        "--id", 1, "--cluster", f"1={cluster.addresses[1]}", "--data-dir", tmp_path / "copy"
    )
    assert (code, f"CorruptionError: {tmp_path / 'copy' / 'identity'} is corrupt" in text) == (1, True)
    async with cluster, cluster.client() as client:
        assert int.from_bytes(await client.execute(b"151st"), "little") == 151


# --- disks that fail while the node runs ------------------------------------------------------------------------------


@pytest.fixture
def faulty_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FaultyDisk:
    """Processes that are started in this test have this disk."""
    disk = FaultyDisk(tmp_path / "disk-fault")
    for name, value in disk.environment.items():
        monkeypatch.setenv(name, value)
    return disk


async def until_dead(cluster: ClusterProcess, node_id: int) -> str:
    """Wait until a replica has ended by itself; returns how, and the end of its log."""
    await until(lambda: node_id not in cluster.running())
    with pytest.raises(ReplicaDied) as died:
        cluster.check_running()
    return str(died.value)


async def test_a_replica_whose_disk_fails_stops_and_costs_nothing(tmp_path: Path, faulty_disk: FaultyDisk) -> None:
    commands: list[bytes] = []

    async def execute(client: Client, name: str) -> None:
        more = [*numbered(name, 5), bytes(100_000)]
        await execute_one_by_one(client, more)
        commands.extend(more)

    def no_more_room(process_id: int) -> None:
        resource.prlimit(process_id, resource.RLIMIT_FSIZE, (64 << 10, 64 << 10))

    faults: list[tuple[Callable[[int], None], str]] = [
        (lambda process_id: faulty_disk.fail("fdatasync", errno.EIO, process_id), "syncing failed: Input/output error"),
        (no_more_room, "writing failed: File too large"),
    ]
    with ClusterProcess(tmp_path, 3) as cluster:
        async with Client(cluster.cluster, timeout=30) as client:
            await execute(client, "before")
            for fail, what in faults:
                leader = client.leader_id
                fail(cluster.pid(leader))
                await execute(client, what)
                ending = await until_dead(cluster, leader)
                assert f"replica {leader} (process {cluster.pid(leader)}) ended with code 1" in ending
                assert f"{what}; this node must stop: '{cluster.data_dir(leader)}/journal-" in ending
                cluster.start(leader)
                await execute(client, f"{what}, and after")
            statuses = await settled_statuses(client, cluster)
        assert digests(statuses) == {chain_digest(commands)}
        assert all(status["voting"] for status in statuses)


async def test_nothing_is_acknowledged_after_a_failure_and_all_is_there_when_the_disk_is_well(
    tmp_path: Path, faulty_disk: FaultyDisk
) -> None:
    """A cluster of one: nobody else can save it."""
    sure = numbered("sure", 10)
    possible = [sure]
    with ClusterProcess(tmp_path, 1) as cluster:
        async with Client(cluster.cluster, timeout=30) as client:
            await execute_one_by_one(client, sure)
            for call, number, at_start, while_running, at_next_start, on_file in (
                ("fdatasync", errno.EIO, "pread", "syncing failed: Input/output error", "Input/output", "identity"),
                ("pwritev", errno.ENOSPC, "fallocate", "writing failed: No space left", "reserving room", "journal-0"),
            ):
                faulty_disk.fail(call, number)
                doubtful = b"perhaps " + call.encode()
                with pytest.raises(fastpaxos.OutcomeUnknown):
                    await client.execute(doubtful, timeout=0.5)
                possible += [[*commands, doubtful] for commands in possible]
                ending = await until_dead(cluster, 1)
                assert "ended with code 1" in ending
                assert while_running in ending
                # Not well yet: it cannot begin, and says on which file.
                faulty_disk.fail(at_start, number)
                cluster.start(1)
                ending = (await until_dead(cluster, 1)).splitlines()[-1]
                assert ending.startswith("error: OSError: ")
                assert at_next_start in ending
                assert f"{cluster.data_dir(1)}/{on_file}" in ending
                faulty_disk.heal()
                cluster.start(1)
                # The client sends again what it has no answer to, then this.
                await client.execute(b"well again")
                possible = [[*commands, b"well again"] for commands in possible]
            statuses = await settled_statuses(client, cluster)
        assert digests(statuses) <= {chain_digest(commands) for commands in possible}


async def test_what_cannot_be_read_back_comes_from_another_node(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    commands = [b"%d " % number + bytes(2000) for number in range(150)]
    cluster = LocalCluster(tmp_path, log_memory_bytes=16 << 10, **SMALL_SEGMENTS)
    async with cluster, cluster.client() as client:
        leader = await cluster.wait_for_leader()
        late = cluster.followers()[0].config.node_id
        await cluster.stop(late)
        await execute_one_by_one(client, commands)
        await cluster.settle()

        def fail(read: Any) -> bytes:
            raise OSError(errno.EIO, "reading failed", read.segment_name)

        assert leader._storage is not None
        leader._storage.read = fail  # type: ignore[method-assign]
        await cluster.start(late)
        assert digests(await cluster.settle()) == {chain_digest(commands)}
        assert "reading failed" in caplog.text
