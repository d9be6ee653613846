"""Data directories: lock, identity, refusals by name, and the journal's way to the disk and back."""

import asyncio
import errno
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import msgpack
import pytest

from fastpaxos.directory import MemoryDirectory, OsDirectory, PowerLoss
from fastpaxos.identity import DirectoryIdentity, read_os_boot_id
from fastpaxos.storage import Storage
from fastpaxos_core.block import build_block, crc32c
from fastpaxos_core.errors import ConfigError, CorruptionError, InternalError, InvariantError
from fastpaxos_core.founding import FoundingRecord
from journal_model import check_readable

SEGMENT_BYTES = 64 << 10


def open_storage(path, node_id=1, durability="fsync", os_boot_id="boot-a"):
    return Storage.open(
        path, node_id=node_id, durability=durability, segment_bytes=SEGMENT_BYTES, os_boot_id=os_boot_id
    )


def abandon(storage):
    """The process is gone, without having closed anything properly."""
    storage.close(clean=False)


def record_for(storage, **changes):
    members = {storage.identity.node_id: storage.identity.incarnation, 2: 22, 3: 33}
    return FoundingRecord(**{
        "cluster_id": bytes(16), "members": members, "phase1_quorum": 2, "phase2_quorum": 2, "durability": "fsync",
        **changes,
    })  # fmt: skip


def append(journal, slot, size=100, ballot=1):
    journal.append(slot, slot + 1, ballot, slot, build_block([bytes(size)], 1, slot))


# --- identity ---


def test_each_start_counts_and_keeps_the_incarnation(tmp_path):
    path = tmp_path / "deep" / "data"
    seen = []
    for boot in range(1, 4):
        storage = open_storage(path)
        identity = storage.identity
        assert (identity.node_id, identity.boot, identity.durability, identity.clean) == (1, boot, "fsync", False)
        assert storage.founding is None
        seen.append(identity.incarnation)
        storage.close()
        assert storage.identity.clean
    assert len(set(seen)) == 1
    assert seen[0] != 0
    other = open_storage(tmp_path / "other")
    assert other.identity.incarnation != seen[0]
    other.close()


def test_identity_survives_encoding():
    identity = DirectoryIdentity(1, 2, 3, "write", "x", True, b"abc", 7)
    assert DirectoryIdentity.decode(identity.encode(), Path("identity")) == identity


def test_every_flipped_bit_of_the_identity_is_seen(tmp_path):
    data = DirectoryIdentity(1, 2, 3, "write", "x", True, b"abc", 7).encode()
    for offset in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[offset] ^= 1 << bit
            with pytest.raises(CorruptionError, match="identity"):
                DirectoryIdentity.decode(bytes(flipped), tmp_path / "identity")
    for size in range(len(data)):
        with pytest.raises(CorruptionError, match="identity"):
            DirectoryIdentity.decode(data[:size], tmp_path / "identity")


def sign(version, flags, fields):
    body = msgpack.packb(fields)
    head = DirectoryIdentity.HEADER.pack(b"FPXIDENT", version, flags, 0, len(body))
    return DirectoryIdentity.HEADER.pack(b"FPXIDENT", version, flags, crc32c(body, crc32c(head)), len(body)) + body


def test_identity_of_a_newer_program_is_refused(tmp_path):
    for version, flags in ((2, 0), (1, 4)):
        with pytest.raises(ConfigError, match="unknown to this program"):
            DirectoryIdentity.decode(sign(version, flags, {}), tmp_path / "identity")
    with pytest.raises(CorruptionError, match="fields"):
        DirectoryIdentity.decode(sign(1, 0, {"node_id": 1}), tmp_path / "identity")


def test_corrupt_identity_is_never_a_fresh_start(tmp_path):
    open_storage(tmp_path).close()
    path = tmp_path / "identity"
    good = path.read_bytes()
    for bad in (b"", good[:-1], good[:-1] + bytes([good[-1] ^ 1])):
        path.write_bytes(bad)
        with pytest.raises(CorruptionError, match="identity"):
            open_storage(tmp_path)
        assert path.read_bytes() == bad
    path.write_bytes(good)
    storage = open_storage(tmp_path)
    assert storage.identity.boot == 2
    storage.close()


def test_directory_of_another_node_is_refused(tmp_path):
    open_storage(tmp_path).close()
    with pytest.raises(ConfigError, match="belongs to node 1, not to node 2"):
        open_storage(tmp_path, node_id=2)


def test_directory_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"precious\.txt"):
        open_storage(tmp_path)
    # A lost identity beside a journal is no fresh start either.
    other = tmp_path / "data"
    storage = open_storage(other)
    storage.open_journal()
    storage.close()
    (other / "identity").unlink()
    with pytest.raises(ConfigError, match="no identity"):
        open_storage(other)


def test_unfinished_first_start_is_no_obstacle(tmp_path):
    (tmp_path / "lock").touch()
    (tmp_path / "identity.temporary").write_bytes(b"half of it")
    storage = open_storage(tmp_path)
    assert storage.identity.boot == 1
    storage.close()


def test_file_instead_of_a_directory_is_refused(tmp_path):
    (tmp_path / "data").touch()
    with pytest.raises(ConfigError, match="no directory"):
        open_storage(tmp_path / "data")


def test_other_durability_mode_is_refused(tmp_path):
    open_storage(tmp_path).close()
    with pytest.raises(ConfigError, match="'fsync', not 'write'"):
        open_storage(tmp_path, durability="write")
    with pytest.raises(ConfigError, match="'never'"):
        open_storage(tmp_path, durability="never")


def test_os_boot_id_is_known_here():
    assert len(read_os_boot_id()) == 36


# --- lost data ---


@pytest.mark.parametrize("clean", [False, True])
def test_mode_memory_counts_as_lost_after_any_restart(tmp_path, clean):
    open_storage(tmp_path, durability="memory").close(clean=clean)
    with pytest.raises(ConfigError, match="new id"):
        open_storage(tmp_path, durability="memory")


def test_mode_write_survives_the_process_but_not_the_machine(tmp_path):
    abandon(open_storage(tmp_path, durability="write", os_boot_id="boot-a"))
    abandon(open_storage(tmp_path, durability="write", os_boot_id="boot-a"))
    for os_boot_id in ("boot-b", ""):
        with pytest.raises(ConfigError, match="new id"):
            open_storage(tmp_path, durability="write", os_boot_id=os_boot_id)
    open_storage(tmp_path, durability="write", os_boot_id="boot-a").close(clean=True)
    # A clean stop has synced everything.
    storage = open_storage(tmp_path, durability="write", os_boot_id="boot-b")
    assert storage.identity.boot == 4
    storage.close()


def test_mode_fsync_survives_the_machine(tmp_path):
    abandon(open_storage(tmp_path, os_boot_id="boot-a"))
    open_storage(tmp_path, os_boot_id="boot-b").close()


# --- lock ---


def test_second_opener_is_refused_and_told_who_holds_it(tmp_path):
    storage = open_storage(tmp_path)
    with pytest.raises(ConfigError, match=f"process {os.getpid()}"):
        open_storage(tmp_path)
    storage.close()
    storage.close()
    open_storage(tmp_path).close()


def test_other_process_is_refused_until_the_holder_dies(tmp_path):
    code = (
        "import sys; from fastpaxos.storage import Storage\n"
        "Storage.open(sys.argv[1], node_id=1, os_boot_id='boot-a'); print('open', flush=True); sys.stdin.read()\n"
        "import os; os._exit(9)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(ConfigError, match=f"process {holder.pid}"):
            open_storage(tmp_path)
        holder.kill()
        holder.wait()
        storage = open_storage(tmp_path)
        assert storage.identity.boot == 2
        storage.close()


def test_refused_directory_is_unlocked_again(tmp_path):
    open_storage(tmp_path).close()
    for _ in range(2):
        with pytest.raises(ConfigError, match="belongs to node 1"):
            open_storage(tmp_path, node_id=2)
    open_storage(tmp_path).close()


# --- founding ---


def test_founding_record_is_stored_once(tmp_path):
    storage = open_storage(tmp_path)
    record = record_for(storage)
    storage.found(record)
    storage.found(record)
    with pytest.raises(InvariantError, match="second time"):
        storage.found(record_for(storage, cluster_id=bytes(range(16))))
    abandon(storage)
    storage = open_storage(tmp_path)
    assert storage.founding == record
    storage.close()


def test_unreadable_founding_record_is_corruption(tmp_path):
    open_storage(tmp_path).close()
    path = tmp_path / "identity"
    identity = DirectoryIdentity.decode(path.read_bytes(), path)
    bad = replace(identity, founding=b"nonsense").encode()
    path.write_bytes(bad)
    with pytest.raises(CorruptionError, match="founding record"):
        open_storage(tmp_path)
    assert path.read_bytes() == bad


# --- journal ---


class Completions:
    """Collects what storage reports on the loop."""

    def __init__(self):
        self.found = []
        self.failures = []
        self.changed = asyncio.Event()

    def done(self, ticket):
        def called(error):
            self.found.append((ticket, error))
            self.changed.set()

        return called

    async def wait(self, count):
        async with asyncio.timeout(20):
            while len(self.found) < count:
                self.changed.clear()
                await self.changed.wait()


@pytest.mark.parametrize("durability", ["fsync", "write"])
async def test_write_read_and_recover(tmp_path, durability):
    storage = open_storage(tmp_path, durability=durability)
    journal, recovery = storage.open_journal()
    assert recovery.batches == []
    completions = Completions()
    storage.start(asyncio.get_running_loop(), completions.failures.append)
    with pytest.raises(InternalError, match="started"):
        storage.start(asyncio.get_running_loop(), completions.failures.append)
    for slot in range(1, 61):
        append(journal, slot, 3000)
        write = journal.seal(1, slot - 1)
        if slot % 2:
            storage.write(write, completions.done(write.ticket))
            assert storage.is_writing
            await completions.wait(slot // 2 + 1)
            assert completions.found[-1] == (write.ticket, None)
        else:
            storage.write_inline(write)
        journal.synced(write.ticket)
    assert (storage.recent_sync_ns > 0) == (durability == "fsync")
    assert not storage.is_writing
    assert storage.journal_bytes == journal.journal_bytes > 60 * 3000
    read = journal.locate(7)
    data = await asyncio.to_thread(storage.read, read)
    assert journal.parse(read, data)[0].slot_begin == 7
    storage.close()
    assert completions.failures == []
    storage = open_storage(tmp_path, durability=durability, os_boot_id="boot-b")
    journal, recovery = storage.open_journal()
    assert recovery.commit_index == 59
    assert [batch.slot_begin for batch in recovery.batches] == [60]
    assert recovery.problems == []
    check_readable(journal, OsDirectory(tmp_path), {}, 59)
    storage.close()


async def test_mode_memory_waits_for_nothing_but_reads_what_was_written(tmp_path):
    storage = open_storage(tmp_path, durability="memory")
    journal, _ = storage.open_journal()
    completions = Completions()
    storage.start(asyncio.get_running_loop(), completions.failures.append)
    for slot in range(1, 41):
        append(journal, slot, 3000)
        write = journal.seal(1, slot - 1)
        if slot % 2:
            storage.write_inline(write)
        else:
            storage.write(write, completions.done(write.ticket))
        journal.synced(write.ticket)
    assert completions.found == []
    read = journal.locate(39)
    data = await asyncio.to_thread(storage.read, read)
    assert journal.parse(read, data)[0].slot_begin == 39
    await completions.wait(20)
    assert all(error is None for _, error in completions.found)
    storage.close()


async def test_failed_write_is_reported_once_and_leaves_no_clean_mark(tmp_path):
    storage = open_storage(tmp_path)
    journal, _ = storage.open_journal()
    completions = Completions()
    storage.start(asyncio.get_running_loop(), completions.failures.append)
    segment = next(tmp_path.glob("*.segment"))
    segment.unlink()
    for slot in (1, 2):
        append(journal, slot)
        write = journal.seal(1, 0)
        storage.write(write, completions.done(write.ticket))
    await completions.wait(2)
    assert [error.errno for _, error in completions.found] == [errno.ENOENT] * 2
    assert completions.failures == [completions.found[0][1]]
    append(journal, 3)
    with pytest.raises(OSError, match="refused"):
        storage.write_inline(journal.seal(1, 0))
    storage.close()
    assert not storage.identity.clean
    # The newest segment is gone: that is no empty journal.
    storage = open_storage(tmp_path)
    with pytest.raises(CorruptionError, match="missing"):
        storage.open_journal()
    storage.close()


async def test_nothing_is_called_after_close(tmp_path):
    storage = open_storage(tmp_path)
    journal, _ = storage.open_journal()
    completions = Completions()
    storage.start(asyncio.get_running_loop(), completions.failures.append)
    threads = threading.active_count()
    append(journal, 1)
    write = journal.seal(1, 0)
    storage.write(write, completions.done(write.ticket))
    storage.close()
    await asyncio.sleep(0)
    assert completions.found == []
    with pytest.raises(InternalError, match="closed"):
        storage.write(write, completions.done(write.ticket))
    assert threading.active_count() == threads
    storage = open_storage(tmp_path)
    _, recovery = storage.open_journal()
    assert len(recovery.batches) == 1
    storage.close()


async def test_problems_of_the_journal_are_logged(tmp_path, caplog):
    storage = open_storage(tmp_path)
    storage.open_journal()
    storage.close()
    segment = next(tmp_path.glob("*.segment"))
    segment.write_bytes(b"\xff" + segment.read_bytes()[1:])
    storage = open_storage(tmp_path)
    _, recovery = storage.open_journal()
    assert recovery.problems
    assert recovery.problems[0] in caplog.text
    storage.close()


# --- directories ---


def test_os_directory(tmp_path):
    directory = OsDirectory(tmp_path)
    directory.create("a", 1000)
    with pytest.raises(FileExistsError):
        directory.create("a", 1)
    directory.write("a", 998, [b"12", memoryview(b"34")])
    directory.sync("a")
    directory.rename("a", "b")
    directory.sync_directory()
    assert (directory.list(), directory.size("b")) == (["b"], 1002)
    assert directory.read("b", 996, 100) == b"\0\x001234"
    assert directory.read("b", 2000, 5) == b""
    directory.remove("b")
    assert directory.list() == []
    for call in (lambda: directory.size("b"), lambda: directory.read("b", 0, 1), lambda: directory.remove("b")):
        with pytest.raises(FileNotFoundError):
            call()


def test_memory_directory_forgets_what_was_not_synced():
    directory = MemoryDirectory()
    directory.create("a", 2048)
    directory.write("a", 0, [b"x" * 1024])
    assert directory.crash().list() == []
    directory.sync_directory()
    assert (directory.crash().list(), directory.crash().size("a")) == (["a"], 0)
    directory.sync("a")
    directory.write("a", 512, [b"y" * 1024])
    assert directory.read("a", 0, 2048) == b"x" * 512 + b"y" * 1024 + bytes(512)
    assert directory.crash().read("a", 0, 2048) == b"x" * 1024 + bytes(1024)
    # Torn: the second of two sectors only.
    answers = iter([False, True])
    torn = directory.crash(lambda kind, name: next(answers))
    assert torn.read("a", 0, 2048) == b"x" * 1024 + b"y" * 512 + bytes(512)
    assert directory.copy().read("a", 0, 2048) == directory.read("a", 0, 2048)
    directory.rename("a", "b")
    assert directory.crash().list() == ["a"]
    directory.sync_directory()
    directory.remove("b")
    assert directory.crash().list() == ["b"]
    assert directory.crash(lambda kind, name: kind == "name").list() == []


def test_memory_directory_faults():
    directory = MemoryDirectory()
    directory.create("a", 1000)
    directory.full_after = 1500
    with pytest.raises(OSError, match="No space") as caught:
        directory.create("b", 501)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="No space"):
        directory.write("a", 1000, [bytes(501)])
    directory.write("a", 1000, [bytes(500)])
    directory.failing_syncs |= {"a", ""}
    for sync in (lambda: directory.sync("a"), directory.sync_directory):
        with pytest.raises(OSError, match="Input/output"):
            sync()
    directory.operations_left = 1
    directory.remove("a")
    with pytest.raises(PowerLoss):
        directory.create("c", 1)
    with pytest.raises(FileNotFoundError):
        directory.size("a")


def test_journal_on_a_full_simulated_disk_is_refused_untouched():
    from journal_model import History, open_journal

    history = History.start(3).run(60)
    image = history.directory.copy()
    image.full_after = sum(image.size(name) for name in image.list()) + 100
    before = {name: image.read(name, 0, image.size(name)) for name in image.list()}
    with pytest.raises(OSError, match="No space"):
        open_journal(image, 2)
    assert {name: image.read(name, 0, image.size(name)) for name in image.list()} == before
