"""Faults between the journal and the disk: syncs, names, errors, the data directory (rules 5.5, 5.8, 5.11)."""

from __future__ import annotations

from .model import Edit, Mutant, core, package

__all__ = ["MUTANTS"]

CRASH = "tests/crash/test_journal_crash.py::"
WRITER = "tests/unit/test_journal_writer.py::"
STORAGE = "tests/unit/test_storage.py::"
FOUNDING = "tests/unit/test_founding.py::"


def directory(original: str, mutated: str) -> Edit:
    """An edit of `fastpaxos_core/directory.py`, the journal's work on an abstract directory."""
    return core("directory.py", original, mutated)


MUTANTS = (
    Mutant(
        23,
        "a failed fsync is ignored",
        (
            core(
                "journal_writer",
                "        if fdatasync(state.segment) != 0:\n",
                "        if fdatasync(state.segment) != 0 and not MUTANT(23):\n",
            ),
        ),
        rows=(23,),
        origin="fsyncgate, ATC'20",
        rules=("5.11",),
        gate="fsync error",
        layers=(f"{WRITER}test_failed_fsync_is_never_tried_again",),
    ),
    Mutant(
        123,
        "a failed fsync is tried again until it succeeds",
        (
            core(
                "journal_writer",
                "        if fdatasync(state.segment) != 0 and not MUTANT(23):\n",
                "        if (fdatasync(state.segment) != 0 and not MUTANT(23)\n"
                "                and not (MUTANT(123) and fdatasync(state.segment) == 0)):\n",
            ),
        ),
        rows=(23,),
        origin="fsyncgate",
        rules=("5.11",),
        gate="fsync error",
        layers=(f"{WRITER}test_failed_fsync_is_never_tried_again",),
    ),
    Mutant(
        223,
        "the driver goes on after a failed write",
        (
            package(
                "driver",
                "        if error is not None:\n            self._fail(error)\n            return\n",
                "        if error is not None and not mutant(223):\n            self._fail(error)\n            "
                "return\n",
            ),
        ),
        rows=(23,),
        origin="fsyncgate",
        rules=("5.11",),
        gate="fsync error",
        layers=("sim",),
    ),
    Mutant(
        323,
        "the writer syncs nothing",
        (
            core(
                "journal_writer",
                "    if error == 0 and job.needs_sync and state.durable:\n",
                "    if error == 0 and job.needs_sync and state.durable and not MUTANT(323):\n",
            ),
        ),
        rows=(2, 23),
        origin="PySyncObj 0.3.17, NATS",
        rules=("5.8", "5.11"),
        gate="fsync",
        layers=(f"{WRITER}test_failed_fsync_is_never_tried_again",),
    ),
    Mutant(
        423,
        "the writer goes on after its first error",
        (
            core(
                "journal_writer",
                "    if state.error:\n        return fail(job, STAGE_REFUSED, state.error)\n",
                "    if state.error and not MUTANT(423):\n        return fail(job, STAGE_REFUSED, state.error)\n",
            ),
        ),
        rows=(23,),
        origin="fsyncgate",
        rules=("5.11",),
        gate="fsync error",
        layers=(f"{WRITER}test_failed_fsync_is_never_tried_again",),
    ),
    Mutant(
        28,
        "the directory is not synced after a new segment was named",
        (
            directory(
                "    directory.rename(temporary, name)\n    if durable:\n",
                "    directory.rename(temporary, name)\n    if durable and not mutant(28):\n",
            ),
        ),
        rows=(28,),
        origin="etcd #6368 (ALICE)",
        rules=("5.11",),
        gate="directory sync",
        layers=("sim", f"{CRASH}test_power_loss_at_every_operation_keeps_what_was_synced"),
    ),
    Mutant(
        128,
        "the writer does not sync the directory after it named a new segment",
        (
            core(
                "journal_writer",
                "    if state.durable and fsync(state.directory) != 0:\n",
                "    if state.durable and not MUTANT(128) and fsync(state.directory) != 0:\n",
            ),
        ),
        rows=(28,),
        origin="etcd #6368 (ALICE)",
        rules=("5.11",),
        gate="directory sync",
        layers=("tests/crash",),
    ),
    Mutant(
        228,
        "the directory is not synced after the identity file was replaced",
        (
            package(
                "identity",
                "        directory.rename(temporary, IDENTITY_NAME)\n        directory.sync_directory()\n",
                "        directory.rename(temporary, IDENTITY_NAME)\n        if not mutant(228):\n"
                "            directory.sync_directory()\n",
            ),
        ),
        rows=(28,),
        origin="etcd #6368 (ALICE)",
        rules=("5.5", "5.11"),
        gate="identity is durable",
        layers=("sim", "tests/crash"),
    ),
    Mutant(
        29,
        "a new segment is named before its header is synced",
        (
            directory(
                "    if durable:\n        directory.sync(temporary)\n",
                "    if durable and not mutant(29):\n        directory.sync(temporary)\n",
            ),
        ),
        rows=(29,),
        origin="PySyncObj MetaStorer 0.3.17",
        rules=("5.11",),
        gate="sync before rename",
        layers=("sim", f"{CRASH}test_power_loss_at_every_operation_keeps_what_was_synced"),
    ),
    Mutant(
        129,
        "the identity file is named before its contents are synced",
        (
            package(
                "identity",
                "        directory.sync(temporary)\n",
                "        if not mutant(129):\n            directory.sync(temporary)\n",
            ),
        ),
        rows=(29,),
        origin="PySyncObj MetaStorer 0.3.17",
        rules=("5.5", "5.11"),
        gate="identity is durable",
        layers=("sim", "tests/crash"),
    ),
    Mutant(
        229,
        "the writer names a new segment before its header is synced",
        (
            core(
                "journal_writer",
                "    if state.durable and fsync(state.segment) != 0:\n",
                "    if state.durable and not MUTANT(229) and fsync(state.segment) != 0:\n",
            ),
        ),
        rows=(29,),
        origin="PySyncObj MetaStorer 0.3.17",
        rules=("5.11",),
        gate="sync before rename",
        layers=("tests/crash",),
    ),
    Mutant(
        329,
        "a journal write that should be synced is only written",
        (
            directory(
                "    if write.needs_sync and durable:\n",
                "    if write.needs_sync and durable and not mutant(329):\n",
            ),
        ),
        rows=(2,),
        origin="class",
        rules=("5.11",),
        gate="fsync",
        layers=("sim", f"{CRASH}test_power_loss_at_every_operation_keeps_what_was_synced"),
    ),
    Mutant(
        30,
        "an unreadable identity file is a fresh start",
        (
            package(
                "identity",
                "        return DirectoryIdentity.decode(data, where / IDENTITY_NAME)\n    others",
                "        try:\n            return DirectoryIdentity.decode(data, where / IDENTITY_NAME)\n"
                "        except CorruptionError:\n            if not mutant(30):\n                raise\n"
                "            return None\n    others",
            ),
        ),
        rows=(30,),
        origin="PySyncObj getMeta, NATS #7556",
        rules=("5.5", "5.11"),
        layers=(f"{STORAGE}test_corrupt_identity_is_never_a_fresh_start", "sim"),
    ),
    Mutant(
        130,
        "a journal whose newest segment is missing is opened",
        (
            package(
                "identity",
                '        if expected and f"journal-',
                '        if expected and not mutant(130) and f"journal-',
            ),
        ),
        rows=(30,),
        origin="NATS #7556",
        rules=("5.5", "5.11"),
        layers=("tests/unit/test_storage.py", "tests/integration/test_bad_input_disk.py"),
    ),
    Mutant(
        230,
        "a directory with a journal and without an identity is formatted",
        (
            package(
                "identity",
                "    if others:\n        raise ConfigError(\n",
                "    if others and not mutant(230):\n        raise ConfigError(\n",
            ),
        ),
        rows=(30, 34),
        origin="class",
        rules=("5.5",),
        layers=(f"{STORAGE}test_directory_of_somebody_else_is_refused",),
    ),
    Mutant(
        32,
        "an interrupted write is an error",
        (
            core(
                "journal_writer",
                "        written = pwritev(descriptor, parts, min(count, <int>IOV_MAX), <int64_t>offset)\n"
                "        if written < 0:\n            if errno == EINTR:\n",
                "        written = pwritev(descriptor, parts, min(count, <int>IOV_MAX), <int64_t>offset)\n"
                "        if written < 0:\n            if errno == EINTR and not MUTANT(32):\n",
            ),
        ),
        rows=(32,),
        origin="OSDI'14",
        rules=("5.11",),
        layers=(f"{WRITER}test_interrupted_write_is_continued",),
    ),
    Mutant(
        132,
        "a short write counts as a whole one",
        (
            core(
                "journal_writer",
                "        offset += <uint64_t>written\n        left = <size_t>written\n",
                "        if MUTANT(132):\n            return 0\n"
                "        offset += <uint64_t>written\n        left = <size_t>written\n",
            ),
        ),
        rows=(32,),
        origin="OSDI'14",
        rules=("5.11",),
        gate="whole writes",
        layers=(f"{WRITER}test_partial_write_is_an_error_and_a_torn_write",),
    ),
    Mutant(
        232,
        "a failed write is acknowledged",
        (
            core(
                "journal_writer",
                "        if error:\n            fail(job, STAGE_WRITE, error)\n    if error == 0 and job.needs_sync",
                "        if error and not MUTANT(232):\n            fail(job, STAGE_WRITE, error)\n"
                "    if error == 0 and job.needs_sync",
            ),
        ),
        rows=(32,),
        origin="OSDI'14",
        rules=("5.11",),
        gate="write error",
        layers=(f"{WRITER}test_failed_write_is_final",),
    ),
    Mutant(
        332,
        "a full disk while a segment is made is not seen",
        (
            core(
                "journal_writer",
                "        if error:\n            return fail(job, STAGE_PREALLOCATE, error)\n    part.iov_base",
                "        if error and not MUTANT(332):\n            return fail(job, STAGE_PREALLOCATE, error)\n"
                "    part.iov_base",
            ),
        ),
        rows=(32,),
        origin="OSDI'14",
        rules=("5.11",),
        layers=(f"{WRITER}test_no_room_for_a_segment",),
    ),
    Mutant(
        34,
        "a member whose disk was lost votes again under its old id",
        (
            core(
                "founding.py",
                "        if record.members[peer] != incarnation:\n",
                "        if record.members[peer] != incarnation and not mutant(34):\n",
            ),
            core(
                "founding.py",
                "        if record.members[self.node_id] != self.incarnation:\n",
                "        if record.members[self.node_id] != self.incarnation and not mutant(34):\n",
            ),
            package(
                "handshake",
                "    if hello.incarnation != incarnation:\n",
                "    if hello.incarnation != incarnation and not mutant(34):\n",
            ),
        ),
        rows=(34,),
        origin="TigerBeetle #2996, RethinkDB 2.2.3",
        rules=("5.5",),
        layers=(f"{FOUNDING}test_founded_node_that_lost_its_disk_is_refused_even_when_founded_elsewhere", "sim"),
    ),
    Mutant(
        134,
        "a founding record that lists another incarnation of this node is taken over",
        (
            core(
                "founding.py",
                '        self._check_record(record, f"node {peer}")\n        return record\n',
                '        if not mutant(134):\n            self._check_record(record, f"node {peer}")\n        '
                "return record\n",
            ),
        ),
        rows=(34,),
        origin="TigerBeetle #2996",
        rules=("5.5",),
        layers=(f"{FOUNDING}test_wiped_first_node_neither_founds_again_nor_joins",),
    ),
    Mutant(
        234,
        "a founded member talks to a peer whose disk was lost",
        (
            package(
                "handshake",
                "    if not own.founding:\n        return\n",
                "    if not own.founding or mutant(234):\n        return\n",
            ),
        ),
        rows=(34,),
        origin="openraft FAQ",
        rules=("5.5",),
        layers=("tests/unit/test_handshake.py::test_a_founded_node_refuses_an_empty_directory_under_a_known_id",),
    ),
    Mutant(
        334,
        "an empty directory founds although another member is founded",
        (
            core(
                "founding.py",
                "            and not any(facts.is_founded for facts in self._facts.values())\n",
                "            and (mutant(334) or not any(facts.is_founded for facts in self._facts.values()))\n",
            ),
        ),
        rows=(34,),
        origin="DESIGN 5.5",
        rules=("5.5",),
        layers=(f"{FOUNDING}test_nothing_is_proposed_while_a_peer_is_founded", "sim"),
    ),
    Mutant(
        434,
        "the lowest member founds without having heard all others",
        (
            core(
                "founding.py",
                "            and not self.missing\n",
                "            and (mutant(434) or not self.missing)\n",
            ),
        ),
        rows=(34,),
        origin="DESIGN 5.5",
        rules=("5.5",),
        layers=(f"{FOUNDING}test_nothing_is_proposed_before_every_member_was_heard", "sim"),
    ),
    Mutant(
        534,
        "a node takes part before its founding record is durable",
        (
            package(
                "identity",
                "        self._store(replace(self.value, founding=encoded))\n",
                "        if mutant(534):\n            self.value = replace(self.value, founding=encoded)\n      "
                "      return\n"
                "        self._store(replace(self.value, founding=encoded))\n",
            ),
        ),
        rows=(34, 2),
        origin="DESIGN 5.5",
        rules=("5.5",),
        gate="founding record",
        layers=(f"{STORAGE}test_founding_record_is_stored_once", "sim"),
    ),
    Mutant(
        35,
        "two processes open one data directory",
        (
            package(
                "storage",
                "        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
                "        if not mutant(35):\n            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
            ),
        ),
        rows=(35,),
        origin="class",
        rules=("5.11",),
        layers=(f"{STORAGE}test_second_opener_is_refused_and_told_who_holds_it",),
    ),
    Mutant(
        135,
        "the data directory of another node is opened",
        (
            package(
                "identity",
                "    if stored.node_id != node_id:\n",
                "    if stored.node_id != node_id and not mutant(135):\n",
            ),
        ),
        rows=(35,),
        origin="class",
        rules=("5.5", "5.11"),
        layers=(f"{STORAGE}test_directory_of_another_node_is_refused",),
    ),
    Mutant(
        46,
        "the members of the start-up list count, not those of the founding record",
        (
            core(
                "founding.py",
                "        if record.members.keys() != self.members:\n",
                "        if record.members.keys() != self.members and not mutant(46):\n",
            ),
        ),
        rows=(46,),
        origin="PySyncObj #133",
        rules=("5.5",),
        layers=(f"{FOUNDING}test_record_that_does_not_fit_is_refused_by_name",),
    ),
    Mutant(
        731,
        "durability modes are mixed in one cluster",
        (
            package(
                "handshake",
                "    if hello.durability != own.durability:\n",
                "    if hello.durability != own.durability and not mutant(731):\n",
            ),
            core(
                "founding.py",
                "        if durability != self.durability:\n",
                "        if durability != self.durability and not mutant(731):\n",
            ),
        ),
        origin="DESIGN 5.8",
        rules=("5.8",),
        layers=("tests/paper/test_journal_rule.py::test_58_mixed_durability_modes_are_refused",),
    ),
    Mutant(
        732,
        "mode memory comes back after a restart as if nothing was lost",
        (
            package(
                "identity",
                '    if durability == "memory":\n',
                '    if durability == "memory" and not mutant(732):\n',
            ),
        ),
        origin="DESIGN 5.8",
        rules=("5.8",),
        layers=(f"{STORAGE}test_mode_memory_counts_as_lost_after_any_restart",),
    ),
    Mutant(
        733,
        "mode write comes back after a restart of the machine as if nothing was lost",
        (
            package(
                "identity",
                '    elif durability == "write" and not stored.clean and',
                '    elif durability == "write" and not mutant(733) and not stored.clean and',
            ),
        ),
        origin="DESIGN 5.8",
        rules=("5.8",),
        layers=(f"{STORAGE}test_mode_write_survives_the_process_but_not_the_machine",),
    ),
    Mutant(
        734,
        "the durability mode of a directory may be changed",
        (
            package(
                "identity",
                "    if stored.durability != durability:\n",
                "    if stored.durability != durability and not mutant(734):\n",
            ),
        ),
        origin="DESIGN 5.8",
        rules=("5.8",),
        layers=(f"{STORAGE}test_other_durability_mode_is_refused",),
    ),
)
