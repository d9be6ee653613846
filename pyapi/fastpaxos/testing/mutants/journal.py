"""Faults of the journal's format, of recovery and of reading back (rule 5.11)."""

from __future__ import annotations

from .model import Mutant, core

__all__ = ["MUTANTS"]

CRASH = "tests/crash/test_journal_crash.py::"
RULE = "tests/paper/test_journal_rule.py::"
UNIT = "tests/unit/test_journal.py::"

MUTANTS = (
    Mutant(
        17,
        "a write that holds batches carries the promise of the write before it",
        (
            core(
                "journal",
                "        header.promised_ballot = promised_ballot\n",
                "        header.promised_ballot = (\n"
                "            self.sealed_promised_ballot if MUTANT(17) and self.pending_count else promised_ballot)\n",
            ),
        ),
        rows=(17,),
        origin="ZOOKEEPER-4643",
        rules=("5.1", "5.11"),
        gate="promise is journalled",
    ),
    Mutant(
        117,
        "an accepted batch is not journalled at all",
        (
            core(
                "state",
                "        self.journal.append_batch(descriptor, <bytes>owner, block_offset)\n",
                "        if not MUTANT(117) or descriptor.ballot & 0xFFFF == self.node_id:\n"
                "            self.journal.append_batch(descriptor, <bytes>owner, block_offset)\n"
                "        else:\n            self.journal.touch()\n",
            ),
        ),
        rows=(17,),
        origin="class",
        rules=("5.3", "5.11"),
        gate="batch is journalled",
    ),
    Mutant(
        217,
        "a write claims a commit index above the batches that it follows",
        (
            core(
                "journal",
                "        header.commit_index = commit_index\n        padded = ",
                "        header.commit_index = commit_index + (1 if MUTANT(217) else 0)\n        padded = ",
            ),
        ),
        rows=(17, 13),
        origin="DESIGN 5.11",
        rules=("5.11",),
    ),
    Mutant(
        24,
        "what the page cache shows of the last write is trusted and not written again",
        (
            core(
                "journal_recovery",
                "    tail = scanner.take_tail()\n    # The header",
                "    if MUTANT(24) and scanner.tail_head is not None and scanner.tail_is_whole():\n"
                "        scanner.settle_tail()\n"
                "    tail = scanner.take_tail()\n    # The header",
            ),
        ),
        rows=(24,),
        origin="ATC'20",
        rules=("5.11",),
        gate="tail is written again",
        layers=(f"{CRASH}test_tail_in_the_page_cache_is_written_again", "sim"),
    ),
    Mutant(
        25,
        "the blocks of the last write are not checked: a torn write counts",
        (
            core(
                "journal_recovery",
                "        return self.first_bad_block(self.tail_head, data) == 0\n",
                "        return MUTANT(25) or self.first_bad_block(self.tail_head, data) == 0\n",
            ),
        ),
        rows=(25,),
        origin="etcd #14098, valkey #3951",
        rules=("5.11",),
        layers=("sim", f"{CRASH}test_torn_last_write_is_cut_and_never_read_again"),
    ),
    Mutant(
        125,
        "a torn write makes the journal unreadable",
        (
            core(
                "journal_recovery",
                "            self.tail_head = None\n            self.recovery.torn_write = True\n            "
                "return None\n",
                '            if MUTANT(125):\n                raise CorruptionError("the last write is torn")\n'
                "            self.tail_head = None\n            self.recovery.torn_write = True\n            "
                "return None\n",
            ),
        ),
        rows=(25,),
        origin="mysticeti #219",
        rules=("5.11",),
    ),
    Mutant(
        225,
        "the checksum of a write's head is not verified",
        (
            core(
                "journal_format",
                "    if write_crc(incarnation, segment_number, offset, data, head_bytes) != header.crc:\n",
                "    if write_crc(incarnation, segment_number, offset, data, head_bytes) != header.crc and not "
                "MUTANT(225):\n",
            ),
        ),
        rows=(25, 31),
        origin="valkey #3951",
        rules=("5.11",),
        layers=("sim", f"{CRASH}test_every_flipped_bit_position_is_seen"),
    ),
    Mutant(
        26,
        "corruption in the middle is taken for the end of the journal",
        (
            core(
                "journal_recovery",
                "            if found == 0:\n                break\n",
                "            if found == 0 or MUTANT(26):\n                break\n",
            ),
            core(
                "journal_recovery",
                "        elif not header.flags & SEGMENT_START and before != self.last_number and not (\n",
                "        elif not header.flags & SEGMENT_START and not MUTANT(26) and before != "
                "self.last_number and not (\n",
            ),
            core(
                "journal_recovery",
                "        elif self.durable_number > self.last_number:\n",
                "        elif self.durable_number > self.last_number and not MUTANT(26):\n",
            ),
            core(
                "journal_recovery",
                "            if offset < file.end or file.is_cut_unknown:\n",
                "            if (offset < file.end or file.is_cut_unknown) and not MUTANT(26):\n",
            ),
        ),
        rows=(26,),
        origin="pebble #453, camunda #6098, NATS #7549",
        rules=("5.11",),
        layers=(
            f"{RULE}test_511_a_record_whose_range_is_unreadable_hides_everything_above_the_commit_index_before_it",
            "sim",
        ),
    ),
    Mutant(
        126,
        "a bad last record below a known durable point is taken for a torn write",
        (
            core(
                "journal_recovery",
                "        elif self.durable_number > self.last_number and not MUTANT(26):\n",
                "        elif self.durable_number > self.last_number and not MUTANT(26) and not MUTANT(126):\n",
            ),
        ),
        rows=(26,),
        origin="PAR (FAST'18)",
        rules=("5.11",),
        layers=(f"{UNIT}test_a_corrupt_write_that_a_start_carried_over_is_no_torn_write",),
    ),
    Mutant(
        226,
        "a missing segment is no corruption",
        (
            core(
                "journal_recovery",
                "        if file.missing_before:\n",
                "        if file.missing_before and not MUTANT(226):\n",
            ),
        ),
        rows=(26, 30),
        origin="class",
        rules=("5.11",),
        layers=(f"{CRASH}test_missing_segment_is_corruption", "sim"),
    ),
    Mutant(
        227,
        "a batch with a corrupt block is dropped without a word",
        (
            core(
                "journal_replay",
                "                self.unknown = merge_range(self.unknown, slots)\n",
                "                if not MUTANT(227):\n"
                "                    self.unknown = merge_range(self.unknown, slots)\n",
            ),
        ),
        rows=(27,),
        origin="TigerBeetle: never nack corrupt",
        rules=("5.11",),
        layers=(f"{CRASH}test_corrupt_block_makes_only_its_own_slots_unknown", "sim"),
    ),
    Mutant(
        327,
        "behind a corrupt record nothing is unknown",
        (
            core(
                "journal_replay",
                "        self.unknown = [(self.commit_index + 1, SLOT_INFINITY)]\n",
                "        self.unknown = [] if MUTANT(327) else [(self.commit_index + 1, SLOT_INFINITY)]\n",
            ),
        ),
        rows=(27,),
        origin="PAR (FAST'18)",
        rules=("5.11",),
        layers=(
            f"{RULE}test_511_a_record_whose_range_is_unreadable_hides_everything_above_the_commit_index_before_it",
            "sim",
        ),
    ),
    Mutant(
        427,
        "a corrupt end of the journal leaves the promise known",
        (
            core(
                "journal_replay",
                "        self.promised_known = False\n        self.bound_is_open = True\n",
                "        self.promised_known = MUTANT(427)\n        self.bound_is_open = True\n",
            ),
        ),
        rows=(27, 1),
        origin="DESIGN 5.11",
        rules=("5.11",),
        layers=(
            f"{RULE}test_511_a_corrupt_write_with_nothing_good_behind_it_silences_the_acceptor",
            "sim",
        ),
    ),
    Mutant(
        527,
        "what was unknown is known again after the next start",
        (
            core(
                "journal_recovery",
                "        self.cut_segment, self.cut_offset = segment_number, end\n        return 0\n",
                "        if not MUTANT(527):\n"
                "            self.cut_segment, self.cut_offset = segment_number, end\n        return 0\n",
            ),
        ),
        rows=(27,),
        origin="DESIGN 5.11",
        rules=("5.11",),
        layers=(f"{CRASH}test_corruption_stays_known_over_restarts", "sim"),
    ),
    Mutant(
        31,
        "checksums of writes do not cover where they stand",
        (
            core(
                "journal_format",
                "    crc = fp_crc32c(0, <const void*>place, sizeof(place))\n",
                "    if MUTANT(31):\n        place[0] = place[1] = place[2] = 0\n"
                "    crc = fp_crc32c(0, <const void*>place, sizeof(place))\n",
            ),
        ),
        rows=(31,),
        origin="TigerBeetle #2711",
        rules=("5.11",),
        layers=(
            f"{CRASH}test_recycled_segment_of_an_earlier_life_is_not_read",
            f"{CRASH}test_misdirected_write_is_never_taken_for_the_one_that_belongs_there",
            "sim",
        ),
    ),
    Mutant(
        131,
        "a block need not be the one that its descriptor names",
        (
            core(
                "journal_format",
                "        return False\n    return descriptor.value_crc == value_crc(\n",
                "        return False\n    return MUTANT(131) or descriptor.value_crc == value_crc(\n",
            ),
        ),
        rows=(31,),
        origin="TigerBeetle #2711",
        rules=("5.11",),
        layers=(f"{UNIT}test_a_good_block_of_another_batch_is_not_read_in_its_place", "sim"),
    ),
    Mutant(
        231,
        "write numbers are used again after a restart",
        (
            core(
                "journal_recovery",
                "    header.first_write_number = scanner.highest_number + WRITE_NUMBER_STEP if scanner.numbers "
                "else 1\n",
                "    header.first_write_number = (\n"
                "        scanner.highest_number + (1 if MUTANT(231) else WRITE_NUMBER_STEP) if scanner.numbers "
                "else 1)\n",
            ),
        ),
        rows=(31,),
        origin="class (recycled data)",
        rules=("5.11",),
        layers=(
            f"{RULE}test_511_write_numbers_are_never_reused",
            f"{UNIT}test_numbers_leave_room_for_lost_writes_after_a_restart",
        ),
    ),
    Mutant(
        331,
        "bytes behind a cut are read again",
        (
            core(
                "journal_recovery",
                "                    file.end = newer.header.cut_offset\n                    file.is_cut = True\n",
                "                    if not MUTANT(331):\n"
                "                        file.end = newer.header.cut_offset\n                        "
                "file.is_cut = True\n",
            ),
        ),
        rows=(25, 31),
        origin="DESIGN 5.11",
        rules=("5.11",),
        layers=("sim", CRASH.rstrip(":")),
    ),
    Mutant(
        431,
        "a record that cannot be read is replaced by an older value",
        (
            core(
                "journal",
                "            if before.outcome != READ_ABSENT and not (before.outcome == READ_CORRUPT and "
                "has_wanted):\n",
                "            if (before.outcome != READ_ABSENT and not (before.outcome == READ_CORRUPT and "
                "has_wanted)\n"
                "                    and not MUTANT(431)):\n",
            ),
            core(
                "journal",
                "                        read.has_wanted = True\n",
                "                        while MUTANT(431) and record >= 0 and not (\n"
                "                                piece.descriptors[record].slot_begin == slot\n"
                "                                and piece.is_readable(record, data)):\n"
                "                            record -= 1\n"
                "                        if MUTANT(431):\n"
                "                            if record < 0:\n                                break\n"
                "                            batches.append(StoredBatch.make(\n"
                "                                &piece.descriptors[record], data, piece.offsets[record]))\n"
                "                            read.outcome = READ_FOUND\n"
                "                            break\n"
                "                        read.has_wanted = True\n",
            ),
        ),
        rows=(31, 19),
        origin="class",
        rules=("5.11",),
        layers=(
            f"{CRASH}test_corrupt_record_is_never_replaced_by_an_older_value",
            "sim",
        ),
    ),
    Mutant(
        531,
        "the first record of a slot is read back, not the last",
        (
            core(
                "journal_index",
                "        low -= 1\n        while low >= 0 and not self.descriptors[low].slot_begin <= slot < "
                "self.descriptors[low].slot_end:\n            low -= 1\n        return low\n",
                "        low -= 1\n        if MUTANT(531):\n            middle = 0\n"
                "            while middle < low and not (\n"
                "                    self.descriptors[middle].slot_begin <= slot < "
                "self.descriptors[middle].slot_end):\n"
                "                middle += 1\n            low = middle\n"
                "        while low >= 0 and not self.descriptors[low].slot_begin <= slot < "
                "self.descriptors[low].slot_end:\n            low -= 1\n        return low\n",
            ),
        ),
        rows=(19,),
        origin="class",
        rules=("5.11",),
    ),
    Mutant(
        65,
        "the version of a journal write is not looked at",
        (
            core(
                "journal_format",
                "    if (header.version != WRITE_VERSION or",
                "    if not MUTANT(65) and (header.version != WRITE_VERSION or",
            ),
        ),
        rows=(65,),
        origin="TigerBeetle 0.16.25-26",
        rules=("5.11",),
        layers=(f"{UNIT}test_unknown_write_version_kind_or_flag_is_refused_by_name",),
    ),
    Mutant(
        165,
        "the version of a segment is not looked at",
        (
            core(
                "journal_segment",
                "        if self.header.version != SEGMENT_VERSION or",
                "        if not MUTANT(165) and self.header.version != SEGMENT_VERSION or",
            ),
        ),
        rows=(65,),
        origin="TigerBeetle 0.16.25-26",
        rules=("5.11",),
        layers=(f"{UNIT}test_unknown_segment_version_or_flag_is_refused_by_name",),
    ),
    Mutant(
        211,
        "a start that does not count up opens the journal",
        (
            core(
                "journal_recovery",
                "            if newest.header.boot >= boot:\n",
                "            if newest.header.boot >= boot and not MUTANT(211):\n",
            ),
        ),
        rows=(11, 35),
        origin="class (copied directory)",
        rules=("5.2", "5.11"),
        layers=(f"{CRASH}test_a_start_that_does_not_count_up_is_refused",),
    ),
    Mutant(
        235,
        "a journal of another node or incarnation is opened",
        (
            core(
                "journal_recovery",
                "        if file.header.node_id != self.node_id or file.header.incarnation != self.incarnation:\n",
                "        if (file.header.node_id != self.node_id or file.header.incarnation != self.incarnation\n"
                "                ) and not MUTANT(235):\n",
            ),
        ),
        rows=(35,),
        origin="class",
        rules=("5.11",),
        layers=(f"{CRASH}test_files_of_another_directory_are_refused_by_name",),
    ),
    Mutant(
        335,
        "exchanged segment files are read",
        (
            core(
                "journal_segment",
                "        if self.header.segment_number != number:\n",
                "        if self.header.segment_number != number and not MUTANT(335):\n",
            ),
        ),
        rows=(31, 35),
        origin="class",
        rules=("5.11",),
        layers=(f"{CRASH}test_exchanged_files_are_refused",),
    ),
)
