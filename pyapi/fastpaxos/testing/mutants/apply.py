"""Faults of sessions, of apply and of answers (rules 5.9, 5.10, 5.12, 5.13)."""

from __future__ import annotations

from .model import Mutant, core, package
from .worlds import RESENDS

__all__ = ["MUTANTS"]

PAPER = "tests/paper/test_sessions.py::"
ERRORS = "tests/unit/test_session_errors.py::"

MUTANTS = (
    Mutant(
        21,
        "after a second read from the journal the apply cursor skips a batch",
        (
            core(
                "applier",
                "                self.replay_next = 0\n        elif read",
                "                self.replay_next = (\n"
                "                    1 if MUTANT(21) and self.state.applied_index and len(self.replay) > 1 else 0)\n"
                "        elif read",
            ),
            core(
                "applier",
                "                if stored.descriptor.slot_begin != slot:\n",
                "                if stored.descriptor.slot_begin != slot and not MUTANT(21):\n",
            ),
        ),
        rows=(21,),
        origin="etcd-raft #10063, cockroach #28918",
        rules=("5.12",),
    ),
    Mutant(
        53,
        "waiters are keyed by slot: whoever waits at a slot is told OK when anything is applied there",
        (
            core(
                "replica",
                "        self.applier.waiters[key] = waiter\n        return STATUS_OK\n\n    def _note_admitted",
                "        if MUTANT(53):\n"
                '            self.applier.waiters[("slot", self.proposer.next_slot - header.command_count)] = (\n'
                "                waiter, key, header.command_count)\n"
                "            return STATUS_OK\n"
                "        self.applier.waiters[key] = waiter\n        return STATUS_OK\n\n    def _note_admitted",
            ),
            core(
                "replica",
                "        self.orphans = list(self.applier.waiters)\n",
                "        self.orphans = [] if MUTANT(53) else list(self.applier.waiters)\n",
            ),
            core(
                "applier",
                "        if self.waiters:\n            self.answer(",
                "        if MUTANT(53):\n"
                '            found = self.waiters.pop(("slot", batch.slot_begin), None)\n'
                "            if found is not None:\n"
                "                self.replies.append((found[0], STATUS_OK, found[1][0], found[1][1], "
                "header.command_count,\n"
                "                                     batch.slot_begin, results))\n"
                "        elif self.waiters:\n            self.answer(",
            ),
        ),
        rows=(53,),
        origin="class; redisraft aborted reads",
        rules=("5.10",),
    ),
    Mutant(
        153,
        "a deposed leader tells its waiters that their commands will never apply",
        (
            core(
                "replica",
                "        self.phase1.abandon()\n        self.proposer.follow()\n",
                "        if MUTANT(153):\n"
                "            for key in list(self.applier.waiters):\n"
                '                if isinstance(key, tuple) and key[0] != "close":\n'
                '                    self.applier.answer(key, 2, key[0], key[1], 0, 0, b"")\n'
                "        self.phase1.abandon()\n        self.proposer.follow()\n",
            ),
        ),
        rows=(53,),
        origin="class",
        rules=("5.10",),
    ),
    Mutant(
        253,
        "a block that is refused at a later attempt is said not to have been applied",
        (
            package(
                "pending_work",
                "        if block.attempts > 1:\n            self._answers.fail(block.waiters, lambda: OutcomeUnknown",
                "        if block.attempts > 1 and not mutant(253):\n"
                "            self._answers.fail(block.waiters, lambda: OutcomeUnknown",
            ),
        ),
        rows=(53,),
        origin="class",
        rules=("5.10",),
        layers=(f"{ERRORS}test_a_block_refused_at_a_later_attempt_is_unknown",),
    ),
    Mutant(
        353,
        "a deadline after sending is said not to have been applied",
        (
            package(
                "pending_work",
                "                self._answers.fail(expired, lambda text=text: DeadlineExceeded(text))",
                "                self._answers.fail(expired, not_sent if mutant(353) else "
                "lambda text=text: DeadlineExceeded(text))",
            ),
        ),
        rows=(53,),
        origin="class",
        rules=("5.10",),
        layers=(f"{ERRORS}test_deadline_after_sending_is_unknown_but_the_block_is_sent_again_all_the_same",),
    ),
    Mutant(
        453,
        "a session that is over is said not to have applied what was in flight",
        (
            package(
                "pending_work",
                "        self._answers.fail(self._inflight.live_waiters(), lambda: SessionExpired(text))\n",
                "        self._answers.fail(\n"
                "            self._inflight.live_waiters(), lambda: Rejected(text) if mutant(453) else "
                "SessionExpired(text)\n"
                "        )\n",
            ),
        ),
        rows=(53,),
        origin="class",
        rules=("5.10",),
        layers=(f"{ERRORS}test_an_unknown_session_makes_what_was_sent_unknown_and_the_rest_goes_into_a_new_one",),
    ),
    Mutant(
        54,
        "replicated time is the replica's own clock",
        (
            core(
                "applier",
                "        if descriptor.timestamp_ns > self.now_ns:\n            self.now_ns = "
                "descriptor.timestamp_ns\n",
                "        if MUTANT(54):\n            self.now_ns = max(self.now_ns, self.state.wall_ns)\n"
                "        elif descriptor.timestamp_ns > self.now_ns:\n"
                "            self.now_ns = descriptor.timestamp_ns\n",
            ),
        ),
        rows=(54,),
        origin="class",
        rules=("5.13",),
        layers=("sim", f"{PAPER}test_513_replicated_time_never_falls"),
    ),
    Mutant(
        154,
        "a command that raises has no result",
        (
            package(
                "statemachine",
                "            except Exception as error:\n                add(failure_of(error))\n            else:\n",
                '            except Exception as error:\n                add(b"" if mutant(154) else '
                "failure_of(error))\n            else:\n",
            ),
        ),
        rows=(54,),
        origin="class",
        rules=("5.12",),
        layers=("tests/unit/test_statemachine.py",),
    ),
    Mutant(
        254,
        "replicated time may fall",
        (
            core(
                "applier",
                "        elif descriptor.timestamp_ns > self.now_ns:\n",
                "        elif descriptor.timestamp_ns > self.now_ns or MUTANT(254):\n",
            ),
        ),
        rows=(54,),
        origin="DESIGN 5.13",
        rules=("5.13",),
        layers=(f"{PAPER}test_513_replicated_time_never_falls",),
    ),
    Mutant(
        354,
        "a leader stamps batches with its own clock alone",
        (
            core(
                "replica",
                "        return max(self.state.last_timestamp_ns, self.applier.now_ns, self.state.wall_ns)\n",
                "        if MUTANT(354):\n            return self.state.wall_ns\n"
                "        return max(self.state.last_timestamp_ns, self.applier.now_ns, self.state.wall_ns)\n",
            ),
        ),
        rows=(54,),
        origin="DESIGN 5.13",
        rules=("5.13",),
        layers=(f"{PAPER}test_513_a_leader_with_a_slow_clock_gives_no_older_timestamps",),
    ),
    Mutant(
        454,
        "MemoryError of user code is a result",
        (
            package(
                "statemachine",
                "            try:\n                result = apply(command, context)\n            except FATAL_ERRORS:\n"
                "                raise\n",
                "            try:\n                result = apply(command, context)\n            except FATAL_ERRORS:\n"
                '                if not mutant(454):\n                    raise\n                add(b"")\n',
            ),
        ),
        rows=(54,),
        origin="DESIGN 5.12",
        rules=("5.12",),
        layers=("tests/unit/test_statemachine.py",),
    ),
    Mutant(
        59,
        "a duplicate whose results are no longer kept runs again",
        (
            core(
                "sessions",
                "                return VERDICT_INVALID\n        return VERDICT_DUPLICATE\n",
                "                return VERDICT_INVALID\n"
                "        elif MUTANT(59):\n            return VERDICT_APPLY\n"
                "        return VERDICT_DUPLICATE\n",
            ),
        ),
        rows=(59,),
        origin="TigerBeetle StateChecker",
        rules=("5.9",),
        layers=(
            "tests/unit/test_sessions.py::test_a_block_applied_in_part_is_invalid_even_where_no_result_is_kept",
            "sim",
        ),
        options=RESENDS,
    ),
    Mutant(
        159,
        "apply does not decide duplicates",
        (
            core(
                "sessions",
                "            return VERDICT_APPLY\n        return VERDICT_DUPLICATE\n",
                "            return VERDICT_APPLY\n        return VERDICT_APPLY if MUTANT(159) else "
                "VERDICT_DUPLICATE\n",
            ),
        ),
        rows=(59,),
        origin="class",
        rules=("5.9",),
        options=RESENDS,
    ),
    Mutant(
        259,
        "a block behind a gap is applied",
        (
            core(
                "sessions",
                "            return VERDICT_APPLY if first_sequence - 1 == session.last_sequence else "
                "VERDICT_INVALID\n",
                "            return (VERDICT_APPLY if first_sequence - 1 == session.last_sequence or MUTANT(259)\n"
                "                    else VERDICT_INVALID)\n",
            ),
        ),
        rows=(59,),
        origin="DESIGN 5.9",
        rules=("5.9",),
        layers=("sim", f"{PAPER}test_59_gaps_and_partial_overlaps_are_refused_deterministically"),
        options=RESENDS,
    ),
    Mutant(
        359,
        "one session too many evicts the newest one",
        (
            core(
                "sessions",
                "            self._remove(self._oldest)\n",
                "            self._remove(self._newest if MUTANT(359) else self._oldest)\n",
            ),
        ),
        rows=(59,),
        origin="TigerBeetle StateChecker",
        rules=("5.9",),
        options={"sessions_max": 2},
    ),
    Mutant(
        459,
        "a duplicate does not count as use of its session",
        (
            core(
                "applier",
                "            self.sessions.touch_c(header.session_id, slot)\n",
                "            if not MUTANT(459):\n                self.sessions.touch_c(header.session_id, slot)\n",
            ),
        ),
        rows=(59,),
        origin="DESIGN 5.9",
        rules=("5.9",),
        layers=("tests/paper/test_sessions.py::test_59_a_duplicate_counts_as_use_of_its_session", "sim"),
        options={**RESENDS, "sessions_max": 2},
    ),
    Mutant(
        559,
        "results are let go before the client has acknowledged them",
        (
            core(
                "sessions",
                "        if acknowledged_below > first_sequence:\n",
                "        if acknowledged_below > first_sequence or MUTANT(559):\n",
            ),
        ),
        rows=(59,),
        origin="class",
        rules=("5.9",),
    ),
    Mutant(
        659,
        "opening a session again opens another one",
        (
            core(
                "sessions",
                "        known = self._by_nonce.get(nonce)\n",
                "        known = None if MUTANT(659) else self._by_nonce.get(nonce)\n",
            ),
        ),
        rows=(52, 59),
        origin="class",
        rules=("5.9",),
    ),
    Mutant(
        759,
        "the leader admits blocks of a session out of order",
        (
            core(
                "replica",
                "        if header.first_sequence > expected:\n            return STATUS_OUT_OF_ORDER\n",
                "        if header.first_sequence > expected and not MUTANT(759):\n"
                "            return STATUS_OUT_OF_ORDER\n",
            ),
        ),
        rows=(59,),
        origin="DESIGN 5.9",
        rules=("5.9",),
        layers=(f"{PAPER}test_59_blocks_are_admitted_in_order",),
    ),
    Mutant(
        859,
        "a block of a session that is not open is applied",
        (
            core(
                "applier",
                "            if verdict == VERDICT_APPLY:\n",
                "            if verdict == VERDICT_APPLY or (MUTANT(859) and verdict == VERDICT_UNKNOWN):\n",
            ),
        ),
        rows=(59,),
        origin="DESIGN 5.9",
        rules=("5.9",),
        options={"sessions_max": 2},
    ),
    Mutant(
        959,
        "after a change of leaders waiters of what was never chosen get no answer",
        (
            core(
                "replica",
                "        if self.orphans and self.proposer.is_ready():\n",
                "        if self.orphans and not MUTANT(959) and self.proposer.is_ready():\n",
            ),
        ),
        rows=(58,),
        origin="class (lost waiter)",
        rules=("5.10",),
        layers=(
            (
                "tests/unit/test_replica.py::"
                "test_who_waits_for_what_was_never_chosen_is_answered_when_the_node_leads_again"
            ),
        ),
    ),
)
