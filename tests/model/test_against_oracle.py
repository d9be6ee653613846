"""The real replica against the plain oracle: the same messages go to both, and both must say the same.

Hypothesis drives: prepares, accepts, commits, heartbeats, lessons, duplicates, syncs and crashes in any order. The
peers that it plays are honest (`Honest`): in a ballot they propose one value per slot, and they say committed only of
slots whose values every higher ballot keeps.
"""

from __future__ import annotations

from collections import deque
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fastpaxos.testing import LoneReplica, batch
from fastpaxos_core.ballot import pack_ballot
from fastpaxos_core.block import BlockView, build_block
from model.oracle import Batch, OracleAcceptor, Promised, Refused, choose_values, chosen_values

PEERS = (2, 3)
SLOTS = 24
FETCH_TIMEOUT_NS = 500_000_000


def block(text: str, count: int) -> bytes:
    return build_block([f"{text}/{number}".encode() for number in range(count)], 9, 1)


class Honest:
    """What the leaders of a fixed schedule of ballots propose and know to be committed."""

    def __init__(self, seed: int) -> None:
        random = Random(seed)
        self.ballots = [pack_ballot(number // 2 + 1, PEERS[number % 2]) for number in range(8)]
        self.chosen = self._tile(random, "chosen", 1, 0)
        borders = sorted(random.randrange(len(self.chosen) + 1) for _ in self.ballots)
        self.known: dict[int, int] = {}
        self.proposals: dict[int, list[dict[str, Any]]] = {}
        for ballot, border in zip(self.ballots, borders, strict=True):
            kept = [dict(item, ballot=ballot) for item in self.chosen[:border]]
            known = kept[-1]["slot_end"] - 1 if kept else 0
            self.known[ballot] = known
            self.proposals[ballot] = kept + self._tile(random, f"{ballot:x}", known + 1, ballot)

    @staticmethod
    def _tile(random: Random, text: str, slot: int, ballot: int) -> list[dict[str, Any]]:
        tiles = []
        while slot <= SLOTS:
            tiles.append(batch(slot, block(f"{text}{slot}", random.randint(1, 3)), ballot, timestamp_ns=slot))
            slot = tiles[-1]["slot_end"]
        return tiles

    def borders(self, ballot: int) -> list[int]:
        """Commit indexes that the leader of a ballot may name."""
        return [
            0,
            *(item["slot_end"] - 1 for item in self.proposals[ballot] if item["slot_end"] - 1 <= self.known[ballot]),
        ]

    def lessons(self, slot: int, upto: int) -> list[dict[str, Any]]:
        """Committed batches from `slot` on, as a peer that knows slots <= upto teaches them."""
        teacher = next(ballot for ballot in self.ballots if self.known[ballot] >= upto)
        return [
            dict(item, ballot=teacher, flags=1)
            for item in self.chosen
            if item["slot_begin"] >= slot and item["slot_end"] - 1 <= upto
        ]


def as_batch(entry: dict[str, Any], ballot: int | None = None) -> Batch:
    return Batch(
        entry["slot_begin"], entry["slot_end"], entry["ballot"] if ballot is None else ballot, entry["value_crc"]
    )


class AcceptorAgainstOracle(RuleBasedStateMachine):
    """Node 1 as acceptor and learner of nodes 2 and 3."""

    @initialize(seed=st.integers(0, 10_000))
    def begin(self, seed: int) -> None:
        self.honest = Honest(seed)
        self.real = LoneReplica()
        self.oracle = OracleAcceptor()
        self.durable = OracleAcceptor()
        self.sealed: OracleAcceptor | None = None
        self.version = self.durable_version = self.sealed_version = 0
        self.told: dict[int, int] = {}
        self.promises: deque[tuple[int, Promised]] = deque()
        self.owed: set[Batch] = set()
        self.fetches: list[dict[str, Any]] = []
        self.surveys: list[dict[str, Any]] = []
        self.history: list[tuple[str, int, list[dict[str, Any]], dict[str, int]]] = []

    # What arrives

    @rule(number=st.integers(0, 7), slot=st.integers(1, SLOTS))
    def prepare(self, number: int, slot: int) -> None:
        self.deliver("prepare", self.honest.ballots[number], [], {"slot_begin": slot})

    @rule(number=st.integers(0, 7), first=st.integers(0, 23), count=st.integers(0, 4), border=st.integers(0, 30))
    def accept(self, number: int, first: int, count: int, border: int) -> None:
        ballot = self.honest.ballots[number]
        borders = self.honest.borders(ballot)
        entries = self.honest.proposals[ballot][first : first + count]
        self.deliver("accept", ballot, entries, {"commit_index": borders[border % len(borders)]})

    @rule(number=st.integers(0, 7), border=st.integers(0, 30), name=st.sampled_from(["commit", "heartbeat"]))
    def commit(self, number: int, border: int, name: str) -> None:
        ballot = self.honest.ballots[number]
        borders = self.honest.borders(ballot)
        self.deliver(name, ballot, [], {"commit_index": borders[border % len(borders)]})

    @precondition(lambda self: self.history)
    @rule(number=st.integers(0, 1000))
    def repeat(self, number: int) -> None:
        self.deliver(*self.history[number % len(self.history)])

    @precondition(lambda self: self.fetches)
    @rule(count=st.integers(0, 3))
    def teach(self, count: int) -> None:
        fetch = self.fetches.pop()
        upto = max(self.told.values(), default=0)
        entries = self.honest.lessons(fetch["slot_begin"], upto)[:count]
        ballot = self.honest.ballots[0]
        self.real.receive(fetch["to"], "learn", ballot, entries, request_id=fetch["request_id"], commit_index=upto)
        if fetch["request_id"] == self.newest_fetch:
            for entry in entries:
                before = self.oracle.durable_copy()
                self.oracle.learn(as_batch(entry))
                self.version += self.oracle.cells != before.cells
        self.newest_fetch = 0
        self.settle_commit(())

    @precondition(lambda self: self.surveys)
    @rule(knows=st.booleans())
    def answer_survey(self, knows: bool) -> None:
        """A peer answers with the chosen value, which it knows to be committed or accepted in a ballot that kept it."""
        question = self.surveys.pop()
        upto = max(self.told.values(), default=0)
        for entry in self.honest.lessons(question["slot_begin"], upto)[:1]:
            said = dict(entry, flags=int(knows))
            fields = {"request_id": question["request_id"], "commit_index": upto if knows else 0, "kind": 1}
            self.real.receive(question["to"], "learn", self.honest.ballots[0], [said], **fields)
            is_newest = question["request_id"] == self.newest_survey
            is_late = self.real.now_ns - self.survey_sent_ns > FETCH_TIMEOUT_NS
            if is_newest and not is_late and entry["slot_begin"] == self.oracle.commit_index + 1:
                before = self.oracle.durable_copy()
                self.oracle.learn(as_batch(entry))
                self.version += self.oracle.cells != before.cells
                self.newest_survey = 0
        self.settle_commit(())

    def deliver(self, name: str, ballot: int, entries: list[dict[str, Any]], fields: dict[str, int]) -> None:
        """Give one message to the real acceptor and to the oracle, and compare what follows at once."""
        self.history.append((name, ballot, entries, fields))
        self.real.receive(ballot & 0xFFFF, name, ballot, entries, **fields)
        before = self.oracle.durable_copy()
        refused: Refused | Promised | list[Batch] | None = None
        if name == "prepare":
            refused = self.oracle.prepare(ballot, 1, fields["slot_begin"])
        elif name == "accept":
            refused = self.oracle.accept(ballot, 1, [as_batch(entry) for entry in entries])
        elif name == "heartbeat":
            refused = self.oracle.heartbeat(ballot, 1)
        self.version += (before.promised_ballot, before.cells) != (self.oracle.promised_ballot, self.oracle.cells)
        if isinstance(refused, Promised):
            self.promises.append((self.version, refused))
        if isinstance(refused, list):
            self.owed.update(refused)
        if "commit_index" in fields and not isinstance(refused, Refused):
            self.told[ballot] = max(self.told.get(ballot, 0), fields["commit_index"])
        self.settle_commit([refused] if isinstance(refused, Refused) else [])

    def settle_commit(self, refused: Any) -> None:
        """Compare what is said at once, and how far the real one committed: nothing that the oracle does not allow."""
        self.compare_messages(list(refused))
        reach = self.oracle.commit_reach(self.told)
        assert self.oracle.commit_index <= self.real.replica.commit_index <= reach
        self.oracle.commit_index = self.real.replica.commit_index

    # Disk

    @precondition(lambda self: self.sealed is None)
    @rule()
    def begin_write(self) -> None:
        if self.real.begin_write():
            self.sealed = self.oracle.durable_copy()
            self.sealed_version = self.version
        else:
            assert self.version == self.durable_version
        self.compare_messages([])

    @precondition(lambda self: self.sealed is not None)
    @rule()
    def end_write(self) -> None:
        assert self.sealed is not None
        self.real.end_write()
        self.durable, self.sealed = self.sealed, None
        self.durable_version = self.sealed_version
        self.compare_messages([])
        assert all(version > self.durable_version for version, _ in self.promises)

    @rule()
    def sync(self) -> None:
        """Everything becomes durable: then nothing that is owed may be left unsaid."""
        if self.sealed is not None:
            self.end_write()
        self.begin_write()
        if self.sealed is not None:
            self.end_write()
        assert not self.promises
        unsaid = {item for item in self.owed if item.ballot == self.oracle.promised_ballot}
        assert {item for item in unsaid if item.slot_begin > self.oracle.commit_index} == set()

    @rule(survives=st.booleans())
    def crash(self, survives: bool) -> None:
        if survives and self.sealed is not None:
            self.durable = self.sealed
        self.sealed = None
        self.real.crash(1.0 if survives else 0.0)
        assert self.real.recovery.problems == []
        assert self.real.replica.commit_index <= self.oracle.commit_index
        self.oracle = self.durable.durable_copy()
        self.oracle.promised_boot = None
        self.oracle.commit_index = self.real.replica.commit_index
        standing = self.oracle.batches_above(self.oracle.commit_index)
        # What was learned names the ballot of its teacher, which this acceptor now counts as promised.
        self.oracle.promised_ballot = max([self.oracle.promised_ballot, *(item.ballot for item in standing)])
        self.version = self.durable_version = self.sealed_version = 0
        self.told.clear()
        self.promises.clear()
        self.owed.clear()
        self.fetches.clear()
        self.surveys.clear()

    @rule(milliseconds=st.sampled_from([10, 600]))
    def tick(self, milliseconds: int) -> None:
        self.real.tick(milliseconds)
        self.settle_commit(())

    # What leaves

    def compare_messages(self, refused: list[Refused]) -> None:
        said_refused = []
        for message in self.real.sent():
            name = message["message"]
            if name == "promise":
                self.compare_promise(message)
            elif name == "accepted":
                self.compare_accepted(message)
            elif name == "nack":
                said_refused.append(Refused(message["ballot"], message["promised_ballot"], message["commit_index"]))
            elif name == "heartbeat_reply":
                assert message["ballot"] <= self.durable.promised_ballot
            elif name == "fetch" and message["slot_end"]:
                assert message["slot_begin"] == self.real.replica.commit_index + 1
                self.surveys.append(message)
                self.newest_survey = message["request_id"]
                self.survey_sent_ns = self.real.now_ns
            elif name == "fetch":
                assert message["slot_begin"] == self.real.replica.commit_index + 1
                assert message["slot_begin"] <= max(self.told.values())
                self.fetches.append(message)
                self.newest_fetch = message["request_id"]
            else:
                raise AssertionError(f"an acceptor sent {message}")
        assert said_refused == refused

    def compare_promise(self, message: dict[str, Any]) -> None:
        # Promises to one candidate leave in order; those to different ones may leave in one turn, in any order.
        version, expected = next(item for item in self.promises if item[1].ballot & 0xFFFF == message["to"])
        self.promises.remove((version, expected))
        assert version <= self.durable_version
        said = Promised(
            message["ballot"], message["commit_index"], tuple(as_batch(entry) for entry in message["entries"])
        )
        assert said == expected

    def compare_accepted(self, message: dict[str, Any]) -> None:
        said = {as_batch(entry, message["ballot"]) for entry in message["entries"]}
        assert said <= self.owed
        self.owed -= said
        for item in said:
            assert self.durable.cells.get(item.slot_begin) == item or item.slot_begin <= self.oracle.commit_index
        assert message["commit_index"] <= self.real.replica.commit_index

    @invariant()
    def same_state(self) -> None:
        if not hasattr(self, "oracle"):
            return
        assert self.real.replica.promised_ballot == self.oracle.promised_ballot
        commit_index = self.oracle.commit_index
        standing = [Batch(*item[:4]) for item in self.real.replica.window.batches() if item[1] - 1 > commit_index]
        assert standing == self.oracle.batches_above(commit_index)


AcceptorAgainstOracle.TestCase.settings = settings(max_examples=150, stateful_step_count=60)
TestAcceptorAgainstOracle = AcceptorAgainstOracle.TestCase


class PlainCluster:
    """A few plain acceptors under a few ballots: makes honest votes, and knows all of them."""

    def __init__(self, random: Random, members: tuple[int, ...]) -> None:
        self.acceptors = {node: OracleAcceptor() for node in members}
        self.votes: dict[int, set[Batch]] = {node: set() for node in members}
        self.values: dict[int, dict[str, Any]] = {}
        self.proposed: list[tuple[int, list[Batch]]] = []
        self.quorum = len(members) // 2 + 1
        rounds = random.randint(1, 4)
        for number in range(1, rounds + 1):
            # Node 1 will be the real candidate, and a replica takes no proposals from itself.
            self._one_ballot(random, pack_ballot(number, random.choice(members[1:])))

    def _one_ballot(self, random: Random, ballot: int) -> None:
        voters = random.sample(sorted(self.acceptors), random.randint(self.quorum, len(self.acceptors)))
        reports = {}
        for node in voters:
            promise = self.acceptors[node].prepare(ballot, 1, 1)
            assert isinstance(promise, Promised)
            reports[node] = list(promise.entries)
        kept = choose_values(reports, 0)
        proposals = []
        slot = 1
        for old in [*kept, None]:
            end = old.slot_begin if old is not None else slot + random.randint(0, 3)
            while slot < end:
                item = batch(slot, block(f"{ballot:x}.{slot}", min(random.randint(1, 3), end - slot)), ballot, slot)
                proposals.append(item)
                slot = item["slot_end"]
            if old is not None:
                proposals.append(dict(self.values[old.value_crc], ballot=ballot))
                slot = old.slot_end
        self.proposed.append((ballot, [as_batch(item) for item in proposals]))
        for item in proposals:
            self.values[item["value_crc"]] = item
            for node in random.sample(sorted(self.acceptors), random.randint(0, len(self.acceptors))):
                self._offer(node, ballot, [as_batch(item)])

    def _offer(self, node: int, ballot: int, items: list[Batch]) -> None:
        answer = self.acceptors[node].accept(ballot, 1, items)
        if isinstance(answer, list):
            self.votes[node].update(answer)

    def deliver_late(self, nodes: set[int]) -> None:
        """Whatever was ever proposed arrives at these nodes now: they accept what their promises still allow."""
        for ballot, items in self.proposed:
            for node in nodes:
                self._offer(node, ballot, items)


@settings(max_examples=300)
@given(seed=st.integers(0, 1_000_000), size=st.sampled_from([3, 5]))
def test_the_proposer_chooses_like_the_oracle(seed: int, size: int) -> None:
    random = Random(seed)
    members = tuple(range(1, size + 1))
    cluster = PlainCluster(random, members)
    promised = {1, *random.sample(range(2, size + 1), cluster.quorum - 1)}
    real = LoneReplica(members=members)
    own = sorted(cluster.acceptors[1].batches_above(0), key=lambda item: item.ballot)
    for item in own:
        entry = dict(cluster.values[item.value_crc], ballot=item.ballot)
        real.receive(item.ballot & 0xFFFF, "accept", item.ballot, [entry])
    reports = {node: cluster.acceptors[node].batches_above(0) for node in promised}
    proposals = drive_phase_1(real, {node: reports[node] for node in promised - {1}}, cluster.values)
    expected = choose_values(reports, 0)
    kept = [item for item in proposals if BlockView(item["block"]).kind == 0]
    assert [(item["slot_begin"], item["slot_end"], item["value_crc"]) for item in kept] == [
        (item.slot_begin, item.slot_end, item.value_crc) for item in expected
    ]
    # The proposals tile the log from slot 1 on, and at least one slot is proposed.
    assert [item["slot_begin"] for item in proposals] == [1, *(item["slot_end"] for item in proposals[:-1])]
    # Brute force: whatever was chosen, or still will be by those who did not promise, is among them.
    cluster.deliver_late(set(members) - promised)
    chosen = chosen_values(cluster.votes, cluster.quorum)
    assert chosen <= {(item["slot_begin"], item["slot_end"], item["value_crc"]) for item in proposals}


def drive_phase_1(
    real: LoneReplica, reports: dict[int, list[Batch]], values: dict[int, dict[str, Any]]
) -> list[dict[str, Any]]:
    """Run the real candidate against these Promises; return what it proposes."""
    ballot = real.campaign(above=pack_ballot(90, 2))
    real.sent()
    for node, entries in reports.items():
        real.receive(node, "promise", ballot, [dict(values[item.value_crc], ballot=item.ballot) for item in entries])
    proposals = []
    while messages := real.sent():
        for message in messages:
            if message["message"] == "accept" and message["to"] == 2:
                proposals += message["entries"]
            elif message["message"] == "fetch":
                found = dict(values[message["value_crc"]], ballot=message["ballot"])
                real.receive(message["to"], "learn", ballot, [found], request_id=message["request_id"])
    return proposals


def test_the_oracle_knows_what_is_chosen() -> None:
    """The brute force itself, on a case small enough to see."""
    first, second, third = Batch(1, 2, 10, 1), Batch(1, 2, 20, 1), Batch(2, 3, 20, 2)
    assert chosen_values({1: {first}, 2: {second}, 3: {third}}, 2) == set()
    assert chosen_values({1: {first}, 2: {first, third}, 3: {third}}, 2) == {(1, 2, 1), (2, 3, 2)}


def test_the_oracle_drops_whole_what_overlaps() -> None:
    acceptor = OracleAcceptor()
    acceptor.put(Batch(1, 4, 10, 1))
    acceptor.put(Batch(4, 6, 10, 2))
    acceptor.put(Batch(3, 5, 20, 3))
    assert acceptor.batches_above(0) == [Batch(3, 5, 20, 3)]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_acceptor_against_oracle_for_long() -> None:
    run_state_machine_as_test(AcceptorAgainstOracle, settings=settings(max_examples=1500, stateful_step_count=100))
