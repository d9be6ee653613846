"""Which states can a journal be in after a crash, or after rot, and what does recovery make of each of them?"""

import random

import pytest

from fastpaxos.directory import MemoryDirectory, PowerLoss
from fastpaxos_core.block import build_block
from fastpaxos_core.errors import ConfigError, CorruptionError
from fastpaxos_core.journal import Journal
from fastpaxos_core.journal_recovery import Recovery, inspect, iterate_batches, verify
from journal_model import (
    INCARNATION,
    NODE_ID,
    SLOT_INFINITY,
    Batch,
    History,
    State,
    check_readable,
    covered,
    open_journal,
    read_slot,
    recovered_state,
    segment_names,
)

SLOTS_AHEAD_MAX = 1 << 20  # no replica accepts further above its commit_index


def facts(recovery: Recovery) -> tuple[State, bool, list[tuple[int, int]]]:
    return recovered_state(recovery), recovery.promised_known, recovery.unknown


def keep_some(rng: random.Random, share: float):
    return lambda kind, name: rng.random() < share


def crash_at(history: History, operations: int, keep) -> tuple[MemoryDirectory, bool]:
    """Run on until the power goes off; False when the history ended before."""
    history.directory.operations_left = operations
    try:
        history.run(200)
    except PowerLoss:
        return history.directory.crash(keep), True
    history.directory.operations_left = None
    return history.directory.crash(keep), False


def check_life(history: History, image: MemoryDirectory) -> tuple[Journal, Recovery]:
    """Recover once: nothing synced is lost, nothing unwritten appears."""
    journal, recovery = open_journal(image, history.boot + 1, history.segment_bytes)
    assert recovered_state(recovery) in history.possible_states
    assert recovery.promised_known
    assert recovery.unknown == []
    assert recovery.problems == []
    check_readable(journal, image, history.chosen, recovery.commit_index)
    return journal, recovery


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.0])
def test_power_loss_at_every_operation_keeps_what_was_synced(share):
    operations = 0
    went_off = True
    while went_off:
        history = History.start(seed=11)
        rng = random.Random(operations)
        image, went_off = crash_at(history, operations, keep_some(rng, share))
        check_life(history, image)
        operations += 1
    assert operations > 40


@pytest.mark.parametrize("seed", range(30))
def test_many_lives_of_one_journal(seed):
    rng = random.Random(seed)
    history = History.start(seed, segment_bytes=rng.choice((4096, 8192, 65536)))
    for _ in range(8):
        image, _ = crash_at(history, rng.randrange(80), keep_some(rng, rng.choice((0.0, 0.5, 0.95, 1.0))))
        journal, recovery = check_life(history, image)
        history.go_on(image, journal, recovery)
    history.run(40)
    history.write()
    check_readable(history.journal, history.directory, history.chosen, history.state.commit_index)


@pytest.mark.parametrize("seed", range(12))
def test_recovery_survives_power_loss_at_every_operation(seed):
    rng = random.Random(seed)
    history = History.start(seed, segment_bytes=4096)
    image, _ = crash_at(history, 30 + seed, keep_some(rng, 0.7))
    _, expected = open_journal(image.copy(), 2, 4096)
    operations = 0
    while True:
        attempt = image.copy()
        attempt.operations_left = operations
        try:
            open_journal(attempt, 2, 4096)
        except PowerLoss:
            attempt = attempt.crash(keep_some(rng, rng.choice((0.0, 0.5, 1.0))))
            journal, recovery = open_journal(attempt, 3, 4096)
            assert facts(recovery) == facts(expected)
            check_readable(journal, attempt, history.chosen, recovery.commit_index)
            operations += 1
        else:
            break
    assert operations >= 5


@pytest.mark.parametrize("seed", range(20))
def test_recovery_is_idempotent_and_its_result_durable(seed):
    history = History.start(seed).run(80)
    image = history.directory.copy()
    _, first = open_journal(image, 2)
    for boot in range(3, 6):
        image = image.crash()
        _, again = open_journal(image, boot)
        assert facts(again) == facts(first)
        assert again.problems == []
        assert not [name for name in image.list() if not name.endswith(".segment")]


def test_tail_in_the_page_cache_is_written_again():
    """After a failed fsync the page cache shows what the disk never got: only bytes written anew count."""
    history = History.start(seed=5, segment_bytes=1 << 20).run(50)
    history.accept()
    write = history.journal.seal(history.state.promised_ballot, history.state.commit_index)
    assert write.new_segment is None
    history.directory.write(write.segment_name, write.offset, write.buffers)
    image = history.directory
    _, recovery = open_journal(image, 2)
    assert recovered_state(recovery) == history.state
    assert recovery.rewritten == 1
    # What was never synced in the old segment is gone now.
    _, again = open_journal(image.crash(), 3)
    assert recovered_state(again) == history.state


@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_torn_last_write_is_cut_and_never_read_again(keep):
    history = History.start(seed=6, segment_bytes=1 << 20).run(50)
    history.write()
    before = history.state
    history.accept()
    history.accept()
    write = history.journal.seal(history.state.promised_ballot, history.state.commit_index)
    assert write.new_segment is None
    data = b"".join(write.buffers)
    image = history.directory.copy()
    # The head and some of the blocks reached the disk, the last sector did not.
    image.overwrite(write.segment_name, write.offset, data[:-512])
    journal, recovery = open_journal(image, 2)
    assert recovered_state(recovery) == before
    assert recovery.torn_write
    assert recovery.problems == []
    # Even if the missing sector appears later: the place is behind a cut.
    image.overwrite(write.segment_name, write.offset, data)
    _, again = open_journal(image.crash(keep_some(random.Random(1), keep)), 3)
    assert recovered_state(again) == before
    assert journal.next_ticket > write.ticket + (1 << 19)


def damaged(build, damage):
    """Recover a copy of the journal after some damage; None when it is refused by name."""
    image = build.directory.copy()
    damage(image)
    try:
        journal, recovery = open_journal(image, 2, build.segment_bytes)
    except CorruptionError as error:
        if ".segment" not in str(error):
            raise
        return None
    return image, journal, recovery


def check_damage(history: History, image: MemoryDirectory, journal: Journal, recovery: Recovery, where: object) -> None:
    """Data may become unknown, with a sentence that says so. It never becomes other data."""
    true = history.state
    found = recovered_state(recovery)
    check_readable(journal, image, history.chosen, recovery.commit_index, holes=True)
    if found == true and not recovery.unknown and recovery.promised_known:
        return
    assert recovery.problems, where
    if not recovery.promised_known:
        # Nothing good follows: the commit index and the promise are lower bounds, and everything above is unknown.
        assert found.commit_index <= true.commit_index, where
        assert found.promised_ballot <= true.promised_ballot, where
        assert recovery.unknown == [(found.commit_index + 1, SLOT_INFINITY)], where
        assert not found.batches
        return
    assert (found.promised_ballot, found.commit_index) == (true.promised_ballot, true.commit_index), where
    for batch in true.batches:
        if batch not in found.batches:
            assert covered(recovery.unknown, batch.slot_begin, batch.slot_end), where
    assert set(found.batches) <= set(true.batches), where


def named_history() -> History:
    """A few writes over three segments, all of them named by a marker at the end."""
    history = History.start(seed=21, segment_bytes=4096, block_bytes_max=150)
    while len(list(segment_names(history.directory))) < 3:
        history.step()
    while len(history.states) == history.synced:
        history.accept()
        history.accept()
        history.write()
        history.marker()
    return history


def test_every_flipped_bit_position_is_seen():
    history = named_history()
    seen = 0
    for name in segment_names(history.directory):
        content = history.directory.read(name, 0, history.directory.size(name))
        for offset in range(len(content)):
            flipped = bytes([content[offset] ^ (1 << (offset * 5 % 8))])
            result = damaged(history, lambda image, n=name, o=offset, f=flipped: image.overwrite(n, o, f))
            if result is not None:
                check_damage(history, *result, (name, offset))
                seen += bool(result[2].problems)
    assert seen > 3000


def test_every_truncation_is_seen():
    history = named_history()
    names = list(segment_names(history.directory))
    for name in names:
        for size in range(0, history.directory.size(name), 3):
            result = damaged(history, lambda image, n=name, s=size: image.truncate(n, s))
            if size < 512:
                assert result is None
                continue
            assert result is not None
            assert result[2].problems, (name, size)
            check_damage(history, *result, (name, size))
            if name == names[-1]:
                # Nobody knows what was behind the end.
                assert not result[2].promised_known


def test_truncation_behind_the_last_head_stays_known_over_restarts():
    """One write fills a segment to its end, and the end of its block is gone: every head is good."""
    history = History.start(seed=21, segment_bytes=4096)
    history.write()
    batch = Batch(1, 2, 1, 1, build_block([bytes(6000)], 1, 1))
    history.state = State(promised_ballot=1)
    history.append(batch)
    history.write()
    name = list(segment_names(history.directory))[-1]
    image = history.directory.copy()
    image.truncate(name, 4000)
    _, first = open_journal(image, 2, 4096)
    assert first.problems
    assert not first.promised_known
    assert first.unknown == [(1, SLOT_INFINITY)]
    for boot in (3, 4):
        image = image.crash()
        _, again = open_journal(image, boot, 4096)
        assert facts(again) == facts(first)
        assert again.problems


@pytest.mark.parametrize("position", [0, 1, 2])
def test_missing_segment_is_corruption(position):
    history = named_history()
    name = list(segment_names(history.directory))[position]
    if name == list(segment_names(history.directory))[-1]:
        return
    result = damaged(history, lambda image: image.remove(name))
    assert result is not None
    assert any("missing" in problem for problem in result[2].problems)
    check_damage(history, *result, name)


def writes_of(history: History) -> list[tuple[str, int, bytes]]:
    """(segment, offset, bytes) of every write that stands in the directory, found by its magic."""
    places = []
    for name in segment_names(history.directory):
        content = history.directory.read(name, 0, history.directory.size(name))
        offsets = [offset for offset in range(1024, len(content), 512) if content[offset : offset + 4] == b"FPJW"]
        for offset in offsets:
            size = int.from_bytes(content[offset + 16 : offset + 24], "little")
            places.append((name, offset, content[offset : offset + size]))
    return places


def test_misdirected_write_is_never_taken_for_the_one_that_belongs_there():
    history = named_history()
    places = writes_of(history)
    assert len(places) > 8
    for name, offset, data in places:
        for other_name, other_offset, other in places:
            if (name, offset) == (other_name, other_offset):
                continue
            padded = other + bytes(-len(other) % 512)
            room = -(-len(data) // 512) * 512
            result = damaged(history, lambda image, n=name, o=offset, d=padded[:room]: image.overwrite(n, o, d))
            assert result is not None
            check_damage(history, *result, (name, offset, other_name, other_offset))


def test_lost_write_in_the_middle_is_corruption():
    """A sector range that silently kept its old contents (zeros) below a durable point."""
    history = named_history()
    places = writes_of(history)
    lost = 0
    for name, offset, data in places[:-2]:
        result = damaged(history, lambda image, n=name, o=offset, d=data: image.overwrite(n, o, bytes(len(d))))
        assert result is not None
        check_damage(history, *result, (name, offset))
        is_marker = data[5] == 1
        assert bool(result[2].problems) != is_marker, (name, offset)
        lost += 1
    assert lost > 6


def test_corruption_stays_known_over_restarts():
    history = named_history()
    for name, offset, _ in writes_of(history):
        result = damaged(history, lambda image, n=name, o=offset: image.overwrite(n, o, b"\xff" * 64))
        assert result is not None
        image, _, first = result
        if not first.problems:
            continue
        for boot in (3, 4):
            image = image.crash()
            _, again = open_journal(image, boot, history.segment_bytes)
            assert facts(again) == facts(first)
            assert again.problems


def test_truncated_newest_segment_leaves_the_promise_unknown_until_repaired():
    history = named_history()
    name = list(segment_names(history.directory))[-1]
    result = damaged(history, lambda image: image.truncate(name, 1024))
    assert result is not None
    image, journal, recovery = result
    assert not recovery.promised_known
    image = image.crash()
    journal, recovery = open_journal(image, 3, history.segment_bytes)
    assert not recovery.promised_known
    # The node goes on as a learner; what it writes says that the promise is only a lower bound.
    assert not journal.promised_known
    life = History(random.Random(1), image, journal, history.segment_bytes, boot=3)
    life.state = recovered_state(recovery)
    life.learn()
    life.write()
    _, again = open_journal(image.crash(), 4, history.segment_bytes)
    assert not again.promised_known
    assert again.commit_index == life.state.commit_index
    # Once repaired, a write says so.
    journal, recovery = open_journal(image, 5, history.segment_bytes)
    journal.promised_known = True
    life.go_on(image, journal, recovery)
    life.learn()
    life.write()
    _, repaired = open_journal(image.crash(), 6, history.segment_bytes)
    assert repaired.promised_known


def test_corrupt_record_is_never_replaced_by_an_older_value():
    """Slot 1 was accepted twice; the record of the chosen value rots. The older value must not be read."""
    for part in ("head", "block"):
        directory = MemoryDirectory()
        history = History(random.Random(3), directory, open_journal(directory, 1)[0])
        history.append(history.make_batch(1, 1, 1))
        history.write()
        history.state = State(2, 0, history.state.batches)
        chosen = history.make_batch(1, 1, 2)
        history.append(chosen)
        history.write()
        history.state = history.state.commit(1)
        history.journal.touch()
        history.write()
        name, offset, data = writes_of(history)[1]
        place = 20 if part == "head" else len(data) - 1
        directory.overwrite(name, offset + place, bytes([data[place] ^ 1]))
        # Neither by the running node, whose index still knows all three writes as one piece, nor after a restart.
        assert read_slot(history.journal, directory, 1) == []
        journal, recovery = open_journal(directory, 2)
        assert recovery.commit_index == 1
        read = journal.locate(1)
        if read is not None:
            assert journal.parse(read, directory.read(read.segment_name, read.offset, read.length)) == []
            assert read.is_corrupt
            assert journal.locate(1, before=read) is None
        with pytest.raises(CorruptionError, match="slot 1"):
            list(iterate_batches(directory))
        assert verify(directory)
        # A refill from a peer makes it readable again, also after a restart.
        life = History(random.Random(4), directory, journal, boot=2)
        life.state = recovered_state(recovery)
        life.append(chosen)
        life.write()
        check_readable(journal, directory, {1: chosen}, 1)
        image = directory.crash()
        journal, recovery = open_journal(image, 3)
        check_readable(journal, image, {1: chosen}, 1)


def test_same_value_of_an_older_record_stands_in_for_a_corrupt_one():
    directory = MemoryDirectory()
    history = History(random.Random(3), directory, open_journal(directory, 1)[0])
    history.journal.index.entry_bytes_min = 512
    value = history.make_batch(1, 1, 1)
    history.append(value)
    history.write()
    history.state = State(2, 0, history.state.batches)
    history.append(value)
    history.write()
    history.append(history.make_batch(2, 1, 2))
    history.write()
    name, offset, data = writes_of(history)[1]
    directory.overwrite(name, offset + len(data) - 1, bytes([data[-1] ^ 1]))
    read = history.journal.locate(1)
    assert read is not None
    assert history.journal.parse(read, directory.read(name, read.offset, read.length)) == []
    check_readable(history.journal, directory, {1: value}, 1)


@pytest.mark.parametrize("entry_bytes", [512, 1 << 20])
@pytest.mark.parametrize("first_is_same", [False, True])
def test_other_value_of_an_older_record_is_passed_over(entry_bytes, first_is_same):
    directory = MemoryDirectory()
    history = History(random.Random(3), directory, open_journal(directory, 1)[0])
    history.journal.index.entry_bytes_min = entry_bytes
    chosen, other, another = (history.make_batch(1, 1, 1) for _ in range(3))
    for ballot, batch in enumerate([chosen if first_is_same else another, other, chosen], 1):
        history.state = State(ballot, 0, history.state.batches)
        history.append(batch)
        history.write()
    name, offset, data = writes_of(history)[2]
    directory.overwrite(name, offset + len(data) - 1, bytes([data[-1] ^ 1]))
    if first_is_same:
        check_readable(history.journal, directory, {1: chosen}, 1)
    else:
        assert read_slot(history.journal, directory, 1) == []


def three_writes() -> tuple[MemoryDirectory, list[tuple[str, int, bytes]]]:
    directory = MemoryDirectory()
    history = History(random.Random(3), directory, open_journal(directory, 1)[0])
    for slot, count in ((1, 1), (2, 1), (4, 2)):
        history.append(history.make_batch(slot, count, 1))
        history.write()
    history.marker()
    return directory, writes_of(history)


def test_what_is_accepted_again_behind_a_corrupt_record_is_known():
    directory, places = three_writes()
    directory.overwrite(places[1][0], places[1][1], b"\xff" * 64)
    _, recovery = open_journal(directory, 2)
    assert recovery.unknown == [(1, 4), (6, 1 + SLOTS_AHEAD_MAX)]
    assert [batch.slot_begin for batch in recovery.batches] == [4]
    assert recovery.promised_known


def test_corrupt_block_makes_only_its_own_slots_unknown():
    directory, places = three_writes()
    name, offset, data = places[1]
    directory.overwrite(name, offset + len(data) - 1, bytes([data[-1] ^ 1]))
    _, recovery = open_journal(directory, 2)
    assert recovery.unknown == [(2, 3)]
    assert [batch.slot_begin for batch in recovery.batches] == [1, 4]
    assert len(recovery.problems) == 1


def test_files_of_another_directory_are_refused_by_name():
    history = named_history()
    for node_id, incarnation in ((NODE_ID + 1, INCARNATION), (NODE_ID, INCARNATION + 1)):
        with pytest.raises(ConfigError, match=f"belongs to node {NODE_ID}"):
            Journal.open(history.directory.copy(), node_id=node_id, incarnation=incarnation, boot=2)


def test_exchanged_files_are_refused():
    history = named_history()
    first, second, *_ = segment_names(history.directory)
    image = history.directory.copy()
    image.rename(first, "other")
    image.rename(second, first)
    image.rename("other", second)
    with pytest.raises(CorruptionError, match="exchanged"):
        open_journal(image, 2, history.segment_bytes)


def test_a_start_that_does_not_count_up_is_refused():
    """The identity file was set back: boot numbers that stand in messages would be used again."""
    history = named_history()
    image = history.directory.copy()
    open_journal(image, 7, history.segment_bytes)
    for boot in (6, 7):
        with pytest.raises(CorruptionError, match=rf"written by start 7 of this node, .* counts as start {boot}"):
            open_journal(image.copy(), boot, history.segment_bytes)
    open_journal(image.copy(), 8, history.segment_bytes)


def test_recycled_segment_of_an_earlier_life_is_not_read():
    """Old bytes of another incarnation at the very same place of the very same segment do not count."""
    old = Journal.open(directory := MemoryDirectory(), node_id=NODE_ID, incarnation=99, boot=1, segment_bytes=8192)[0]
    stale = History(random.Random(1), directory, old)
    stale.accept()
    stale.write()
    name, offset, data = writes_of(stale)[0]
    history = History.start(seed=1)
    image = history.directory.copy()
    image.overwrite(name, offset, data)
    _, recovery = open_journal(image, 2)
    assert recovered_state(recovery) == State()
    assert recovery.writes == 0


def test_reading_helpers_change_nothing():
    history = named_history()
    image = history.directory.copy()
    recovery = inspect(image)
    assert recovered_state(recovery) == history.state
    assert [segment["name"] for segment in recovery.segments] == list(segment_names(image))
    assert verify(image) == []
    batches = list(iterate_batches(image))
    assert [batch.slot_begin for batch in batches] == sorted(
        slot for slot in history.chosen if slot <= history.state.commit_index
    )
    assert all(batch.block == history.chosen[batch.slot_begin].block for batch in batches)
    assert image.operations == 0


def test_verify_finds_every_rotten_block():
    history = named_history()
    for name, offset, data in writes_of(history):
        if data[5] == 1 or int.from_bytes(data[12:16], "little") == 0:
            continue
        image = history.directory.copy()
        image.overwrite(name, offset + len(data) - 1, bytes([data[-1] ^ 1]))
        assert any("corrupt" in problem for problem in verify(image)), (name, offset)
