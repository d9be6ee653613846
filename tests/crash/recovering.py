"""Recover what a power cut left with the real code, and compare it with what the node was promised."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

from crash.ledger import CrashViolation, Expectation
from crash.power_cut import Image
from fastpaxos.directory import MemoryDirectory, OsDirectory, PowerLoss
from fastpaxos.errors import ConfigError, FastPaxosError
from fastpaxos.identity import IdentityFile
from fastpaxos.storage import Storage
from fastpaxos_core.founding import FoundingRecord
from fastpaxos_core.journal import Journal
from fastpaxos_core.journal_recovery import Recovery
from journal_model import NODE_ID, Batch, State, read_slot, recovered_state, same_value

Facts = tuple[State, bool, list[tuple[int, int]]]

LAST_OS_BOOT_ID = "after the power cut"


@dataclass(frozen=True, slots=True)
class Recovered:
    """One recovery of one image.

    Attributes:
        journal, recovery, directory: the open journal, what was found, and where it is.
        boot, incarnation, founding: of the directory.
        committed: {slot_begin: Batch}, read back; up to the first slot that cannot be.
    """

    journal: Journal
    recovery: Recovery
    directory: OsDirectory
    boot: int
    incarnation: int
    founding: FoundingRecord | None
    committed: dict[int, Batch]

    @property
    def facts(self) -> Facts:
        return facts(self.recovery)

    @property
    def is_whole(self) -> bool:
        """True when nothing is unknown."""
        return self.recovery.promised_known and not self.recovery.unknown


def facts(recovery: Recovery) -> Facts:
    return recovered_state(recovery), recovery.promised_known, recovery.unknown


def brief(state: State) -> str:
    """A state without the bytes of its blocks."""
    batches = ", ".join(f"[{batch.slot_begin}, {batch.slot_end}) in {batch.ballot}" for batch in state.batches)
    return f"<promised {state.promised_ballot}, committed {state.commit_index}, batches {batches or 'none'}>"


def describe(found: Recovered) -> str:
    """What a recovery found, for people."""
    state, promised_known, unknown = found.facts
    return f"{brief(state)}, promised ballot {'' if promised_known else 'un'}known, unknown slots {unknown}"


def lay_out(image: Image, root: Path) -> None:
    """Make the files of an image below `root`, which is emptied before."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for path in sorted(image):
        content = image[path]
        if content is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(content)


def recover(data_dir: Path, durability: str, segment_bytes: int) -> Recovered:
    """Start a node's storage as after a restart of the machine, and release it again."""
    storage = Storage.open(
        data_dir, node_id=NODE_ID, durability=durability, segment_bytes=segment_bytes, os_boot_id=LAST_OS_BOOT_ID
    )
    try:
        journal, recovery = storage.open_journal()
        identity = storage.identity
        directory = OsDirectory(data_dir)
        committed = read_committed(journal, directory, recovery.commit_index)
        return Recovered(journal, recovery, directory, identity.boot, identity.incarnation, storage.founding, committed)
    finally:
        storage.close(clean=False)


def read_committed(journal: Journal, directory: OsDirectory, commit_index: int) -> dict[int, Batch]:
    """All committed batches, up to the first one that is not readable."""
    committed: dict[int, Batch] = {}
    slot = 1
    while slot <= commit_index and (batches := read_slot(journal, directory, slot)):
        for batch in batches:
            if batch.slot_end - 1 <= commit_index:
                committed[batch.slot_begin] = batch
        if batches[0].slot_end - 1 > commit_index:
            break
        slot = max(batch.slot_end for batch in committed.values())
    return committed


def check_committed(found: Recovered, chosen: dict[int, Batch], commit_index: int) -> None:
    """The committed batches tile the log up to the commit index, and are those that were chosen."""
    slot = 1
    for batch in found.committed.values():
        if batch.slot_begin != slot:
            break
        slot = batch.slot_end
        if batch.slot_begin not in chosen or not same_value(batch, chosen[batch.slot_begin]):
            raise CrashViolation(f"slots [{batch.slot_begin}, {batch.slot_end}) hold what was never chosen")
    if slot != commit_index + 1:
        raise CrashViolation(f"slot {slot} is committed, but not readable; the commit index is {commit_index}")


def check_recovered(found: Recovered, expected: Expectation) -> None:
    """Nothing that was acknowledged is lost, nothing that was not written appears, no number is used twice.

    Raises:
        CrashViolation: otherwise.
    """
    state, promised_known, unknown = found.facts
    if found.boot <= expected.boot:
        raise CrashViolation(f"boot {found.boot} starts, but messages of boot {expected.boot} may be on their way")
    if expected.incarnation not in (None, found.incarnation):
        raise CrashViolation(f"the directory was incarnation {expected.incarnation}, and is {found.incarnation} now")
    founding = found.founding.encode() if found.founding else b""
    if founding not in expected.founding:
        raise CrashViolation(f"the founding record is {founding!r}, possible were {expected.founding}")
    if found.recovery.problems or unknown or not promised_known:
        raise CrashViolation(
            f"a power cut alone counts as corruption: {found.recovery.problems}, unknown {unknown}, promised ballot "
            f"known: {promised_known}"
        )
    if state not in expected.states:
        possible = "; ".join(map(brief, expected.states))
        raise CrashViolation(f"recovered {describe(found)}; possible were, the first one acknowledged: {possible}")
    if found.journal.next_ticket <= expected.ticket:
        raise CrashViolation(f"ticket {found.journal.next_ticket} is next, but {expected.ticket} was used before")
    check_committed(found, expected.chosen, state.commit_index)


def check_image(
    image: Image, data_path: str, expected: Expectation, root: Path, durability: str, segment_bytes: int
) -> Recovered | None:
    """Recover an image below `root` and check it; None when it was rightly refused as lost.

    Raises:
        CrashViolation: it breaks a promise.
    """
    lay_out(image, root)
    try:
        found = recover(root / data_path, durability, segment_bytes)
    except ConfigError as error:
        if expected.may_be_lost and "the disk counts as lost" in str(error):
            return None
        raise CrashViolation(f"a power cut made the directory unusable: {error}") from error
    except FastPaxosError as error:
        raise CrashViolation(f"a power cut alone counts as corruption: {type(error).__name__}: {error}") from error
    check_recovered(found, expected)
    return found


# --- power cuts during recovery ---------------------------------------------------------------------------------------


def directory_in_memory(image: Image, data_path: str) -> MemoryDirectory:
    """The files of the data directory of an image, all of them durable."""
    directory = MemoryDirectory()
    prefix = data_path + "/"
    for path, content in image.items():
        if path.startswith(prefix) and content is not None:
            directory.create(path.removeprefix(prefix), len(content))
            directory.write(path.removeprefix(prefix), 0, [content])
    return directory.copy()


@dataclass(slots=True)
class Restart:
    """A start over a directory in memory, as far as it comes before the power goes off."""

    directory: MemoryDirectory
    durability: str
    segment_bytes: int
    identity: IdentityFile | None = None
    recovery: Recovery | None = None

    def run(self) -> None:
        self.identity = IdentityFile.open(
            self.directory,
            "memory",
            node_id=NODE_ID,
            durability=self.durability,
            os_boot_id=LAST_OS_BOOT_ID,
            new_incarnation=lambda: 1,
        )
        _, self.recovery = self.identity.open_journal(self.directory, self.segment_bytes)


def check_interrupted(
    image: Image, data_path: str, found: Recovered, durability: str, segment_bytes: int, rng: random.Random
) -> int:
    """Cut the power again at every operation of the start: the next one finds the same. Returns how many cuts.

    Raises:
        CrashViolation: it finds something else, or takes a boot number for the second time.
    """
    pristine = directory_in_memory(image, data_path)
    may_be_lost = durability == "write"
    cuts = 0
    operations = 0
    is_cut = True
    while is_cut:
        first = Restart(pristine.copy(), durability, segment_bytes)
        first.directory.operations_left = operations
        try:
            first.run()
            first.directory.operations_left = None
            is_cut = False
        except PowerLoss:
            operations += 1
        for share in (0.0, 1.0, rng.random()):
            left = first.directory.crash(lambda kind, name, share=share: rng.random() < share)  # type: ignore[misc]
            second = Restart(left, durability, segment_bytes)
            try:
                second.run()
            except ConfigError:
                if not may_be_lost:
                    raise
                continue
            check_same(found, first, second, f"a power cut at operation {operations} of the start")
            cuts += 1
    return cuts


def check_same(found: Recovered, first: Restart, second: Restart, when: str) -> None:
    """The second start finds what an undisturbed one finds, under a boot number that the first one cannot have used."""
    assert second.identity is not None
    assert second.recovery is not None
    if facts(second.recovery) != found.facts or second.recovery.problems != found.recovery.problems:
        raise CrashViolation(
            f"{when}: then {brief(recovered_state(second.recovery))} is found with {second.recovery.problems}, before "
            f"{describe(found)} with {found.recovery.problems}"
        )
    if first.identity is not None and second.identity.value.boot <= first.identity.value.boot:
        raise CrashViolation(f"{when}: boot {second.identity.value.boot} starts for the second time")
    if second.identity.founding != found.founding:
        raise CrashViolation(f"{when}: founded as {second.identity.founding}, before as {found.founding}")
