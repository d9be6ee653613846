"""The writer thread: order, completions, segments, and errors, which are final."""

import errno
import gc
import json
import os
import resource
import select
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from fastpaxos.directory import MemoryDirectory, OsDirectory
from fastpaxos_core.block import build_block
from fastpaxos_core.directory import perform
from fastpaxos_core.errors import ConfigError, InvariantError
from fastpaxos_core.journal_recovery import verify
from fastpaxos_core.journal_writer import JournalWriter
from journal_model import check_readable, open_journal, recovered_state

SEGMENT_BYTES = 64 << 10
WAIT_SECONDS = 20


def append(journal, slot, size=100, count=1):
    for _ in range(count):
        journal.append(slot, slot + 1, 1, slot, build_block([bytes([slot % 251]) * size], 1, slot))
        slot += 1
    return slot


def wait(writer, count):
    """Take `count` completions."""
    found = []
    while len(found) < count:
        ready, _, _ = select.select([writer], [], [], WAIT_SECONDS)
        assert ready, "no completion"
        found += writer.completions()
    return found


@pytest.fixture
def opened(tmp_path):
    directory = OsDirectory(tmp_path)
    journal, _ = open_journal(directory, 1, SEGMENT_BYTES)
    return directory, journal


@pytest.mark.parametrize("durability", ["fsync", "write", "memory"])
@pytest.mark.parametrize("inline", [False, True])
def test_files_are_those_of_the_simulated_directory(opened, tmp_path, durability, inline):
    directory, journal = opened
    simulated = MemoryDirectory()
    twin, _ = open_journal(simulated, 1, SEGMENT_BYTES)
    slot = twin_slot = 1
    with JournalWriter(str(tmp_path), durability) as writer:
        for number in range(40):
            size = (10, 3000, 9000)[number % 3]
            slot = append(journal, slot, size, count=3)
            twin_slot = append(twin, twin_slot, size, count=3)
            write = journal.seal(1, slot - 4)
            perform(simulated, twin.seal(1, slot - 4))
            if inline:
                assert (writer.write_inline(write) > 0) == (durability == "fsync")
            else:
                writer.submit(write)
                ((ticket, error, sync_ns),) = wait(writer, 1)
                assert (ticket, error) == (write.ticket, None)
                assert (sync_ns > 0) == (durability == "fsync")
            journal.synced(write.ticket)
            twin.synced(write.ticket)
    names = [name for name in directory.list() if name.endswith(".segment")]
    assert names == simulated.list()
    assert len(names) > 5
    for name in names:
        size = simulated.size(name)
        assert directory.size(name) == size
        assert directory.read(name, 0, size) == simulated.read(name, 0, size)
    assert verify(directory) == []


def test_queued_writes_are_done_in_order(opened, tmp_path):
    directory, journal = opened
    with JournalWriter(str(tmp_path), "fsync") as writer:
        for slot in range(1, 101):
            append(journal, slot, 700)
            writer.submit(journal.seal(1, 0))
        assert [(ticket, error) for ticket, error, _ in wait(writer, 100)] == [(t, None) for t in range(1, 101)]
        assert writer.completions() == []
    journal.synced(100)
    assert journal.durable_ticket == 100
    _, recovery = open_journal(directory, 2, SEGMENT_BYTES)
    assert [batch.slot_begin for batch in recovery.batches] == list(range(1, 101))


def test_more_parts_than_one_system_call_takes(opened, tmp_path):
    directory, journal = opened
    # Every large block is a part of its own: 1,500 of them need two calls.
    append(journal, 1, 5000, count=1500)
    write = journal.seal(1, 0)
    assert len(write.buffers) > 1500
    with JournalWriter(str(tmp_path), "fsync") as writer:
        writer.write_inline(write)
    journal.synced(write.ticket)
    assert verify(directory) == []
    _, recovery = open_journal(directory, 2, SEGMENT_BYTES)
    assert [batch.slot_begin for batch in recovery.batches] == list(range(1, 1501))


def test_buffers_live_until_the_completion_was_taken(opened, tmp_path):
    directory, journal = opened
    with JournalWriter(str(tmp_path), "fsync") as writer:
        block = build_block([b"x" * 20_000], 1, 1)
        journal.append(1, 2, 1, 0, block)
        write = journal.seal(1, 0)
        assert any(buffer is block for buffer in write.buffers)
        references = sys.getrefcount(block)
        writer.submit(write)
        assert sys.getrefcount(block) == references + 1
        wait(writer, 1)
        assert sys.getrefcount(block) == references
        journal.synced(1)
        del write
        gc.collect()
        assert sys.getrefcount(block) == references - 1
    assert directory.list()


def test_next_segment_is_prepared_when_half_of_one_is_full(opened, tmp_path):
    directory, journal = opened
    with JournalWriter(str(tmp_path), "fsync") as writer:
        slot = append(journal, 1, 20_000)
        writer.write_inline(journal.seal(1, 0))
        assert not writer.has_spare
        slot = append(journal, slot, 20_000)
        writer.write_inline(journal.seal(1, 0))
        for _ in range(5_000_000):
            if writer.has_spare:
                break
            os.sched_yield()
        assert "journal-spare.temporary" in directory.list()
        slot = append(journal, slot, 30_000)
        write = journal.seal(1, 0)
        assert write.new_segment is not None
        inode = (tmp_path / "journal-spare.temporary").stat().st_ino
        writer.write_inline(write)
        assert (tmp_path / write.segment_name).stat().st_ino == inode
        assert directory.size(write.segment_name) == SEGMENT_BYTES
    assert not [name for name in directory.list() if name.endswith(".temporary")]
    assert verify(directory) == []


def test_closing_finishes_what_was_submitted(opened, tmp_path):
    directory, journal = opened
    writer = JournalWriter(str(tmp_path), "fsync")
    for slot in range(1, 21):
        append(journal, slot)
        writer.submit(journal.seal(1, 0))
    writer.close()
    writer.close()
    assert writer.fileno() == -1
    assert [ticket for ticket, error, _ in writer.completions() if error is None] == list(range(1, 21))
    append(journal, 21)
    write = journal.seal(1, 0)
    with pytest.raises(InvariantError, match="closed"):
        writer.submit(write)
    with pytest.raises(InvariantError, match="closed"):
        writer.write_inline(write)
    assert verify(directory) == []


def test_forgotten_writer_stops_its_thread(opened, tmp_path):
    _, journal = opened
    threads = len(os.listdir("/proc/self/task"))
    descriptors = len(os.listdir("/proc/self/fd"))
    writer = JournalWriter(str(tmp_path), "fsync")
    append(journal, 1)
    writer.submit(journal.seal(1, 0))
    assert len(os.listdir("/proc/self/task")) == threads + 1
    del writer
    gc.collect()
    assert len(os.listdir("/proc/self/task")) == threads
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_bad_arguments(tmp_path):
    with pytest.raises(ConfigError, match="sometimes"):
        JournalWriter(str(tmp_path), "sometimes")
    with pytest.raises(FileNotFoundError):
        JournalWriter(str(tmp_path / "missing"), "fsync")


# --- errors ---


def expect_refusal(writer, journal, slot):
    """After one error nothing is written any more, whichever way."""
    assert writer.failed
    append(journal, slot)
    write = journal.seal(1, 0)
    with pytest.raises(OSError, match="refused after an earlier error"):
        writer.write_inline(write)
    writer.submit(write)
    ((ticket, error, _),) = wait(writer, 1)
    assert ticket == write.ticket
    assert "refused" in str(error)


@pytest.mark.parametrize("inline", [False, True])
def test_missing_segment(opened, tmp_path, inline):
    directory, journal = opened
    directory.remove(directory.list()[0])
    append(journal, 1)
    write = journal.seal(1, 0)
    with JournalWriter(str(tmp_path), "fsync") as writer:
        if inline:
            with pytest.raises(FileNotFoundError, match="opening it failed"):
                writer.write_inline(write)
        else:
            writer.submit(write)
            ((_, error, _),) = wait(writer, 1)
            assert isinstance(error, FileNotFoundError)
            assert error.filename == str(tmp_path / write.segment_name)
        expect_refusal(writer, journal, 2)
    assert directory.list() == []


def test_new_segment_that_cannot_be_named(opened, tmp_path):
    _, journal = opened
    append(journal, 1, 100_000)
    write = journal.seal(1, 0)
    (tmp_path / write.segment_name).mkdir()
    with JournalWriter(str(tmp_path), "fsync") as writer:
        with pytest.raises(IsADirectoryError, match="renaming it failed"):
            writer.write_inline(write)
        expect_refusal(writer, journal, 2)


@pytest.fixture
def file_size_limit():
    """Sets the largest size of a file, until the test ends."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_room_for_a_segment(opened, tmp_path, file_size_limit):
    directory, journal = opened
    append(journal, 1, 100_000)
    write = journal.seal(1, 0)
    assert write.new_segment is not None
    with JournalWriter(str(tmp_path), "fsync") as writer:
        file_size_limit(SEGMENT_BYTES // 2)
        with pytest.raises(OSError, match="reserving room for it failed") as caught:
            writer.write_inline(write)
        file_size_limit(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
        assert caught.value.errno == errno.EFBIG
        expect_refusal(writer, journal, 2)
    _, recovery = open_journal(directory, 2, SEGMENT_BYTES)
    assert recovery.batches == []


def test_partial_write_is_an_error_and_a_torn_write(opened, tmp_path, file_size_limit):
    directory, journal = opened
    slot = append(journal, 1, 20_000)
    first = journal.seal(1, 0)
    slot = append(journal, slot, 30_000)
    second = journal.seal(1, 0)
    with JournalWriter(str(tmp_path), "fsync") as writer:
        writer.write_inline(first)
        file_size_limit(second.offset + 12_345)
        with pytest.raises(OSError, match="writing failed") as caught:
            writer.write_inline(second)
        file_size_limit(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
        assert caught.value.errno == errno.EFBIG
        expect_refusal(writer, journal, slot)
    assert directory.read(second.segment_name, second.offset, 12_345) == b"".join(second.buffers)[:12_345]
    _, recovery = open_journal(directory, 2, SEGMENT_BYTES)
    assert recovery.torn_write
    assert recovery.problems == []
    assert [batch.slot_begin for batch in recovery.batches] == [1]


CHILD = """
    import json, sys
    from journal_model import open_journal
    from test_journal_writer import append, wait
    from fastpaxos.directory import OsDirectory
    from fastpaxos_core.journal_writer import JournalWriter

    path, inline = sys.argv[1], sys.argv[2] == "inline"
    journal, _ = open_journal(OsDirectory(path), 1, 64 << 10)
    outcomes = []
    with JournalWriter(path, "fsync") as writer:
        for slot in range(1, 7):
            append(journal, slot, 20_000)
            write = journal.seal(1, 0)
            if inline:
                try:
                    writer.write_inline(write)
                    outcomes.append([0, ""])
                except OSError as error:
                    outcomes.append([error.errno, str(error)])
            else:
                writer.submit(write)
                ((_, error, _),) = wait(writer, 1)
                outcomes.append([error.errno if error else 0, str(error or "")])
    print(json.dumps(outcomes))
"""


def run_with_fault(tmp_path, fault, inline):
    """Six writes in a process one of whose system calls fails; (outcomes, calls of that kind that were made)."""
    call = fault.split(":")[0]
    data, trace = tmp_path / "data", tmp_path / "trace"
    data.mkdir()
    paths = [entry for entry in sys.path if entry] + [str(Path(__file__).parent)]
    run = subprocess.run(
        ["strace", "-f", "-qq", "-o", trace, "-e", f"trace={call}", "-e", f"inject={fault}", sys.executable, "-c",
         textwrap.dedent(CHILD), data, "inline" if inline else "thread"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        check=True,
        timeout=60,
    )  # fmt: skip
    return json.loads(run.stdout), trace.read_text().count(f"{call}("), OsDirectory(data)


def can_trace():
    strace = shutil.which("strace")
    return strace is not None and subprocess.run([strace, "-qq", "true"], capture_output=True).returncode == 0


needs_strace = pytest.mark.skipif(not can_trace(), reason="strace cannot be used here")


@needs_strace
@pytest.mark.parametrize("inline", [False, True])
def test_failed_fsync_is_never_tried_again(tmp_path, inline):
    outcomes, calls, directory = run_with_fault(tmp_path, "fdatasync:error=EIO:when=2", inline)
    assert [number for number, _ in outcomes] == [0, *[errno.EIO] * 5]
    assert "syncing failed" in outcomes[1][1]
    assert all("refused" in text for _, text in outcomes[2:])
    assert calls == 2
    # What the page cache shows of the failed write counts only after it was written anew.
    _, recovery = open_journal(directory, 2, SEGMENT_BYTES)
    assert recovery.rewritten == 1


@needs_strace
def test_full_disk_is_final(tmp_path):
    outcomes, calls, directory = run_with_fault(tmp_path, "fallocate:error=ENOSPC:when=1", inline=True)
    assert [number for number, _ in outcomes] == [errno.ENOSPC] * 6
    assert "reserving room for it failed: No space left on device" in outcomes[0][1]
    assert calls == 1
    _, recovery = open_journal(directory, 2, SEGMENT_BYTES)
    assert recovery.batches == []


@needs_strace
def test_interrupted_write_is_continued(tmp_path):
    outcomes, calls, directory = run_with_fault(tmp_path, "pwritev:error=EINTR:when=2..3", inline=False)
    assert [number for number, _ in outcomes] == [0] * 6
    # Six writes and one segment header, and two that were interrupted.
    assert calls == 9
    assert verify(directory) == []


@needs_strace
def test_failed_write_is_final(tmp_path):
    outcomes, calls, directory = run_with_fault(tmp_path, "pwritev:error=EIO:when=2", inline=False)
    assert [number for number, _ in outcomes] == [0, *[errno.EIO] * 5]
    assert "writing failed" in outcomes[1][1]
    assert calls == 2
    journal, recovery = open_journal(directory, 2, SEGMENT_BYTES)
    assert [batch.slot_begin for batch in recovery.batches] == [1]
    check_readable(journal, directory, {}, 0)
    assert recovered_state(recovery).promised_ballot == 1
