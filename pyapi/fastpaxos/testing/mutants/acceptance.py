"""Faults of the acceptor: what it promises, what it accepts, and what it says before its disk is done (rule 5.1)."""

from __future__ import annotations

from .model import Mutant, core
from .worlds import DUELS

__all__ = ["MUTANTS"]

RULE = "tests/paper/test_journal_rule.py::"

MUTANTS = (
    Mutant(
        1,
        "the promise is forgotten on restart",
        (
            core(
                "journal_recovery",
                "        recovery.promised_ballot = state.promised_ballot\n",
                "        recovery.promised_ballot = 0 if MUTANT(1) else state.promised_ballot\n",
            ),
        ),
        rows=(1,),
        origin="PySyncObj #201, #202",
        rules=("5.1",),
    ),
    Mutant(
        101,
        "a new promise asks for no journal write of its own",
        (
            core(
                "state",
                "            self.promised_ballot = ballot\n            self.journal.touch()\n",
                "            self.promised_ballot = ballot\n            if not MUTANT(101):\n"
                "                self.journal.touch()\n",
            ),
        ),
        rows=(1, 17),
        origin="class",
        rules=("5.1", "5.11"),
        gate="promise is journalled",
    ),
    Mutant(
        2,
        "messages that rest on the disk leave before the sync returned",
        (
            core(
                "state",
                "        if ticket > self.journal.durable_ticket:\n            self.held",
                "        if ticket > self.journal.durable_ticket and not MUTANT(2):\n            self.held",
            ),
        ),
        rows=(2,),
        origin="efficient/epaxos #28",
        gate="held messages",
    ),
    Mutant(
        102,
        "Accepted is sent before the sync returned",
        (
            core(
                "acceptor",
                "        while ready < self._count and self._waiting[self._first + ready].ticket <= "
                "state.journal.durable_ticket:\n",
                "        while ready < self._count and (MUTANT(102) or self._waiting[self._first + ready].ticket\n"
                "                                       <= state.journal.durable_ticket):\n",
            ),
        ),
        rows=(2,),
        origin="efficient/epaxos #28",
        rules=("5.3",),
        gate="Accepted",
    ),
    Mutant(
        202,
        "Prepare is sent before the candidate's own promise is durable",
        (
            core(
                "phase1",
                "        return self.send_prepare(True)\n",
                "        return self.send_prepare(not MUTANT(202))\n",
            ),
        ),
        rows=(2, 11),
        origin="class",
        gate="Prepare",
    ),
    Mutant(
        302,
        "a read round is echoed before the promise that the echo implies is durable",
        (
            core(
                "acceptor",
                "        if promised and state.promise_ticket > state.journal.durable_ticket:\n",
                "        if not MUTANT(302) and promised and state.promise_ticket > state.journal.durable_ticket:\n",
            ),
        ),
        rows=(2,),
        origin="class",
        rules=("5.7",),
        gate="echo",
    ),
    Mutant(
        402,
        "Promise is sent before the sync returned",
        (
            core(
                "acceptor",
                "            state.hold(peer, promise)\n",
                "            if MUTANT(402):\n                peer.buffers.append(promise)\n"
                "            else:\n                state.hold(peer, promise)\n",
            ),
        ),
        rows=(2,),
        origin="efficient/epaxos #28",
        gate="Promise",
    ),
    Mutant(
        3,
        "a duplicate Accept is answered at once although the first copy is not durable",
        (
            core(
                "acceptor",
                "        cdef BatchDescriptor copy\n",
                "        cdef BatchDescriptor copy\n        cdef Acceptance first\n",
            ),
            core(
                "acceptor",
                "                if batch.ticket <= state.journal.durable_ticket:\n",
                "                if MUTANT(3) and self._count:\n"
                "                    # The answer jumps the queue.\n"
                "                    self.note_acceptance(0, entry.ballot, entry.slot_begin, entry.slot_end,\n"
                "                                         entry.value_crc)\n"
                "                    first = self._waiting[self._first]\n"
                "                    self._waiting[self._first] = self._waiting[self._first + self._count - 1]\n"
                "                    self._waiting[self._first + self._count - 1] = first\n"
                "                elif batch.ticket <= state.journal.durable_ticket:\n",
            ),
        ),
        rows=(3,),
        origin="YugabyteDB #32875",
        gate="duplicate Accept",
        rules=("5.1",),
    ),
    Mutant(
        5,
        "a message that waits for what is being appended is released by the sync that is under way",
        (
            core(
                "state",
                "self.journal.next_ticket if self.journal.has_pending else self.sealed_ticket\n",
                "self.journal.next_ticket if self.journal.has_pending and not MUTANT(5) else self.sealed_ticket\n",
            ),
        ),
        rows=(5,),
        origin="class of 3 and 4",
        gate="ticket of held messages",
    ),
    Mutant(
        105,
        "an acceptance is released by the sync that was under way when it was appended",
        (
            core(
                "acceptor",
                "        cdef ticket_t ticket = state.journal.next_ticket\n",
                "        cdef ticket_t ticket = state.sealed_ticket if MUTANT(105) else state.journal.next_ticket\n",
            ),
        ),
        rows=(5,),
        origin="class of 3 and 4",
        gate="ticket of Accepted",
    ),
    Mutant(
        205,
        "two journal writes are under way at once, and the later one may be done first",
        (
            core(
                "replica",
                "        if self.writing or not self.state.journal.has_pending:\n            return None\n"
                "        write = self",
                "        if (self.writing and not MUTANT(205)) or not self.state.journal.has_pending:\n"
                "            return None\n        write = self",
            ),
        ),
        rows=(5,),
        origin="class: thread pools",
        rules=("5.11",),
        gate="one write at a time",
    ),
    Mutant(
        6,
        "one variable for promised and accepted ballot: a new promise relabels what was accepted",
        (
            core(
                "state",
                "        if ballot > self.promised_ballot:\n            self.promised_ballot = ballot\n",
                "        if ballot > self.promised_ballot:\n"
                "            slot = self.commit_index + 1\n"
                "            while MUTANT(6) and slot < self.window.slot_end_max:\n"
                "                if self.window.find(slot) != NO_BATCH:\n"
                "                    self.window.at(self.window.find(slot)).descriptor.ballot = self.promised_ballot\n"
                "                slot += 1\n"
                "            self.promised_ballot = ballot\n",
            ),
        ),
        rows=(6,),
        origin="EPaxos (Sutra 2019)",
        rules=("5.1",),
    ),
    Mutant(
        10,
        "the acceptor accepts below its promise",
        (
            core(
                "acceptor",
                "        if ballot < state.promised_ballot:\n            return self.send_nack(peer, ballot)\n"
                "        # Everything",
                "        if ballot < state.promised_ballot and not MUTANT(10):\n"
                "            return self.send_nack(peer, ballot)\n        # Everything",
            ),
            core(
                "acceptor",
                "        state.raise_promise(ballot, frame.boot)\n        state.hear_leader(ballot)\n",
                "        if not (MUTANT(10) and ballot < state.promised_ballot):\n"
                "            state.raise_promise(ballot, frame.boot)\n        state.hear_leader(ballot)\n",
            ),
        ),
        rows=(10,),
        origin="MyPaxos #19",
        rules=("5.1",),
        options=DUELS,
    ),
    Mutant(
        110,
        "accepting does not raise the promise",
        (
            core(
                "acceptor",
                "        if not (MUTANT(10) and ballot < state.promised_ballot):\n",
                "        if not (MUTANT(10) and ballot < state.promised_ballot) and not MUTANT(110):\n",
            ),
        ),
        rows=(10,),
        origin="MyPaxos #19",
        rules=("5.1",),
    ),
    Mutant(
        310,
        "a promise may fall: a lower Prepare is promised",
        (
            core(
                "acceptor",
                "        if ballot < state.promised_ballot or (ballot == state.promised_ballot and "
                "state.promised_boot != frame.boot):\n",
                "        if (ballot < state.promised_ballot and not MUTANT(310)) or (\n"
                "                ballot == state.promised_ballot and state.promised_boot != frame.boot):\n",
            ),
            core(
                "state",
                '        if ballot < self.promised_ballot:\n            raise InvariantError(f"promised ballot would',
                "        if MUTANT(310) and ballot < self.promised_ballot:\n"
                "            self.promised_ballot = ballot\n            self.journal.touch()\n"
                '        if ballot < self.promised_ballot:\n            raise InvariantError(f"promised ballot would',
            ),
        ),
        rows=(10,),
        origin="class",
        rules=("5.1",),
    ),
    Mutant(
        410,
        "Prepare of the same ballot is promised again to another boot of its proposer",
        (
            core(
                "acceptor",
                "state.promised_boot != frame.boot):\n",
                "state.promised_boot != frame.boot and not MUTANT(410)):\n",
            ),
        ),
        rows=(11,),
        origin="class",
        rules=("5.1",),
        layers=("tests/paper/test_acceptor.py::test_51_a_repeated_prepare_of_another_boot_is_refused",),
    ),
    Mutant(
        14,
        "the acceptor answers in the new ballot for what it accepted in an older one",
        (
            core(
                "acceptor",
                "            if entry.ballot != state.promised_ballot:\n                continue\n",
                "            if entry.ballot != state.promised_ballot and not MUTANT(14):\n                continue\n",
            ),
        ),
        rows=(14,),
        origin="CCF #6016",
        rules=("5.3",),
        options=DUELS,
    ),
    Mutant(
        15,
        "a new promise truncates the newest accepted batch",
        (
            core(
                "acceptor",
                "        state.raise_promise(ballot, frame.boot)\n        for promise in",
                "        if (MUTANT(15) and state.window.slot_end_max > state.commit_index + 1\n"
                "                and state.window.find(state.window.slot_end_max - 1) != NO_BATCH):\n"
                "            state.window.drop(state.window.find(state.window.slot_end_max - 1))\n"
                "        state.raise_promise(ballot, frame.boot)\n        for promise in",
            ),
        ),
        rows=(15,),
        origin="CCF #5674, TigerBeetle #364",
        rules=("5.1",),
    ),
    Mutant(
        45,
        "a replica whose promises are lost votes in Phase 1 all the same",
        (
            core(
                "acceptor",
                "        if not state.voting:\n            return 0\n",
                "        if not state.voting and not MUTANT(45):\n            return 0\n",
            ),
        ),
        rows=(45,),
        origin="redisraft #94 kin",
        rules=("5.11",),
        layers=(f"{RULE}test_511_a_corrupt_write_with_nothing_good_behind_it_silences_the_acceptor",),
    ),
    Mutant(
        27,
        "what is corrupt on this disk is answered as nothing accepted",
        (
            core(
                "acceptor",
                "        for begin, end in self.unknown:\n            if end > max(",
                "        for begin, end in ([] if MUTANT(27) else self.unknown):\n            if end > max(",
            ),
        ),
        rows=(27,),
        origin="PAR (FAST'18)",
        rules=("5.2", "5.11"),
        layers=(f"{RULE}test_511_a_bad_record_below_a_durable_point_is_corruption_and_never_a_nack",),
    ),
    Mutant(
        711,
        "an Accept at or below commit_index is taken like any other",
        (
            core(
                "acceptor",
                "        if entry.slot_begin <= state.commit_index:\n",
                "        if entry.slot_begin <= state.commit_index and not MUTANT(711):\n",
            ),
        ),
        rules=("5.1",),
        origin="DESIGN 5.1",
    ),
    Mutant(
        712,
        "an Accept at or below commit_index is not answered",
        (
            core(
                "acceptor",
                "            self._answer_commit = True\n",
                "            self._answer_commit = not MUTANT(712)\n",
            ),
        ),
        rules=("5.1",),
        origin="DESIGN 5.1",
        layers=("tests/paper/test_acceptor.py::test_51_an_accept_below_commit_index_is_answered_committed",),
    ),
    Mutant(
        713,
        "an accepted batch leaves standing what it overlaps",
        (
            core(
                "state",
                "        self.window.drop_overlapping(descriptor.slot_begin, descriptor.slot_end, descriptor.ballot)\n",
                "        if not MUTANT(713):\n"
                "            self.window.drop_overlapping(descriptor.slot_begin, descriptor.slot_end, "
                "descriptor.ballot)\n",
            ),
        ),
        rules=("5.1",),
        origin="DESIGN 5.1",
        options=DUELS,
    ),
    Mutant(
        714,
        "recovery leaves standing what a later record overlaps",
        (
            core(
                "journal_replay",
                "        while position > 0 and self.located[self.first + position - 1].descriptor.slot_end > "
                "descriptor.slot_begin:\n",
                "        while not MUTANT(714) and position > 0 and (\n"
                "                self.located[self.first + position - 1].descriptor.slot_end > "
                "descriptor.slot_begin):\n",
            ),
        ),
        rules=("5.1",),
        origin="DESIGN 5.1",
        layers=(
            "tests/paper/test_acceptor.py::test_51_recovery_replays_the_dropping",
            "sim",
        ),
    ),
    Mutant(
        709,
        "two overlapping batches of one ballot are no error",
        (
            core(
                "window",
                "            if batch.descriptor.ballot == ballot:\n                raise InvariantError(\n"
                '                    f"ballot {ballot} proposes',
                "            if batch.descriptor.ballot == ballot and not MUTANT(709):\n"
                "                raise InvariantError(\n"
                '                    f"ballot {ballot} proposes',
            ),
        ),
        rules=("5.1", "5.2"),
        origin="DESIGN 5.1",
        layers=("tests/paper/test_acceptor.py::test_51_overlapping_batches_of_one_ballot_stop_the_node",),
    ),
    Mutant(
        710,
        "two values for one ballot and slot are no error at the acceptor",
        (
            core(
                "acceptor",
                "                        or batch.descriptor.value_crc != entry.value_crc):\n"
                '                    raise InvariantError(\n                        f"ballot {entry.ballot} proposes',
                "                        or batch.descriptor.value_crc != entry.value_crc) and not MUTANT(710):\n"
                '                    raise InvariantError(\n                        f"ballot {entry.ballot} proposes',
            ),
        ),
        rules=("5.1",),
        origin="DESIGN 5.1",
        layers=("tests/paper/test_acceptor.py::test_51_two_values_for_one_ballot_and_slot_stop_the_node",),
    ),
)
