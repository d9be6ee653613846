"""The omniscient observer of a simulation: it sees every disk, every frame and every apply, and no replica's opinion.

`ProtocolChecker` derives by itself what is chosen, from what is durable where, and judges the replicas by it:

1. Agreement: per slot at most one value is ever chosen, over all ballots, replicas and incarnations, bytes included.
2. Only values that a client submitted, no-ops and session entries are proposed.
3. Once a value is chosen, every higher ballot proposes it and nothing else there (Paper: "Paxos Made Simple", P2b).
4. A promised ballot never falls, over restarts included, and is never below an accepted one.
5. One value per (ballot, slot); a ballot belongs to one start of one node, which a Phase 1 quorum promised.
6. What a Promise or an Accepted says is on the sender's disk when it is sent, and a Promise leaves nothing out.
7. No commit_index, of a replica or in a frame, lies beyond what is chosen; none falls while the process lives.
8. Every replica applies the same batches in slot order without gap or repeat, with equal digests at equal places.
9. Recovery gives back all that was durable and nothing that was never written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgpack

from fastpaxos_core.block import BlockView
from fastpaxos_core.founding import FoundingRecord
from fastpaxos_core.wire import QueryReply, Reply, ReplyStatus

from .durable_image import DurableImage, Observed, Promised, is_displaced, overlap, survives
from .history import BLOCK_COMMANDS, BLOCK_CONTROL, BLOCK_NOOP, LogModel, Violation
from .journal_view import BATCH_UNKNOWN, JournalEntry, Value

__all__ = ["ProtocolChecker"]

_MESSAGES = (
    "prepare",
    "promise",
    "accept",
    "accepted",
    "nack",
    "commit",
    "heartbeat",
    "heartbeat_reply",
    "fetch",
    "learn",
)


def _content(view: BlockView) -> tuple[int, int, list[bytes]]:
    return view.session_id, view.first_sequence, view.commands()


class ProtocolChecker:
    """Judges one cluster. Every method raises Violation as soon as a property is broken.

    Args:
        members: node ids of the configuration.
        phase1_size, phase2_size: quorum sizes.
        sessions_max: size of the replicated session table.
    """

    def __init__(
        self,
        members: Iterable[int],
        phase1_size: int,
        phase2_size: int,
        sessions_max: int,
        marks: defaultdict[str, int] | None = None,
    ) -> None:
        self.members = tuple(members)
        self.phase1_size = phase1_size
        self.phase2_size = phase2_size
        self.log = LogModel(sessions_max)
        self.images = {node: DurableImage() for node in self.members}
        self.submitted_blocks: set[bytes] = set()
        self.submitted_nonces: set[bytes] = set()
        self.chosen: dict[int, tuple[Value, int]] = {}
        """Per slot the chosen value and the lowest ballot in which it is known to be chosen."""
        self.proposals: dict[int, dict[int, Value]] = defaultdict(dict)
        """Per ballot and slot what was proposed."""
        self.marks: defaultdict[str, int] = defaultdict(int) if marks is None else marks
        """How often interesting things happened, to see that a campaign is not vacuous."""
        self._values: dict[Value, tuple[int, bytes]] = {}
        self._voters: dict[tuple[int, Value], set[int]] = defaultdict(set)
        self._written: dict[int, dict[tuple[int, Value, bool], JournalEntry]] = {node: {} for node in self.members}
        self._written_values: dict[int, dict[Value, JournalEntry]] = {node: {} for node in self.members}
        self._ballot_owner: dict[int, tuple[int, int]] = {}
        self._promised_by: dict[int, set[int]] = defaultdict(set)
        self._promise_parts: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
        self._accepted_by: defaultdict[Value, set[int]] = defaultdict(set)
        self._lowest_ballot: dict[Value, int] = {}
        self._proposed_end = 0
        self._promises: defaultdict[int, dict[int, Promised]] = defaultdict(dict)
        self._replicated_ns = 0
        self._now_ns: dict[int, int] = {}
        self.acknowledged_index = 0
        """Highest slot that any client was told to be applied."""
        self._checks: dict[str, tuple[str, Callable[[int, int, Mapping[str, Any], int], None] | None]] = {
            name: (f"sent_{name}", getattr(self, f"_sent_{name}", None)) for name in _MESSAGES
        }
        self.founding: FoundingRecord | None = None
        self.founded_nodes: set[int] = set()
        self._boots: dict[tuple[int, int], int] = {}
        self._observed = {node: Observed() for node in self.members}
        self._digests: dict[int, object] = {}

    # Disk

    def written(self, node: int, entries: Iterable[JournalEntry]) -> None:
        """`node` handed these entries to its disk; nothing is durable yet."""
        for entry in entries:
            if entry.learned and entry.value.slot_begin <= self.images[node].prefix:
                self.marks["record_repaired"] += 1
            self._check_value(entry.value, entry.timestamp_ns, entry.block)
            self._written[node][entry.ballot, entry.value, entry.learned] = entry
            self._written_values[node][entry.value] = entry

    def durable(self, node: int, promised_ballot: int, entries: Iterable[JournalEntry]) -> None:
        """A write of `node` with this promised ballot and these entries is durable now."""
        image = self.images[node]
        if image.may_vote and promised_ballot < image.promised_ballot:
            raise Violation(f"node {node} wrote promised ballot {promised_ballot} after {image.promised_ballot}")
        image.promised_ballot = max(promised_ballot, image.promised_ballot)
        for entry in entries:
            if entry.ballot > promised_ballot and not entry.learned:
                raise Violation(
                    f"node {node} accepted {entry.value} in ballot {entry.ballot} above its promise {promised_ballot}"
                )
            image.put(entry)
            if not entry.learned:
                self._count_vote(node, entry)
        self._advance_prefix(image)

    def started(self, node: int, incarnation: int, boot: int) -> None:
        """A process of `node` begins; its identity file says so durably."""
        newest = self._boots.get((node, incarnation), 0)
        if boot <= newest:
            raise Violation(f"node {node} starts with boot {boot}, boot {newest} was used already", checker="boot")
        self._boots[node, incarnation] = boot

    def founded(self, node: int, incarnation: int, record: FoundingRecord) -> None:
        """`node` takes part in the cluster of this founding record, which its disk holds."""
        if self.founding is None:
            self.founding = record
        self.founded_nodes.add(node)
        if record.digest != self.founding.digest:
            raise Violation(f"node {node} takes part in another cluster: {record}, {self.founding}", checker="founding")
        if record.members.get(node) != incarnation:
            raise Violation(
                f"node {node} takes part with incarnation {incarnation}, the record lists {record.members}",
                checker="founding",
            )

    def damaged(self, node: int) -> None:
        """Bits of this node's disk rotted: it may call unknown what it held, and must not miss it silently."""
        self.images[node].is_damaged = True

    def recovered(
        self,
        node: int,
        promised_ballot: int | None,
        commit_index: int,
        entries: Iterable[JournalEntry],
        unknown: Sequence[tuple[int, int]] = (),
    ) -> None:
        """`node` was started; its journal gave back this promise (None: unknown), commit_index, the entries above
        commit_index, and the ranges [begin, end) of which it knows nothing."""
        image = self.images[node]
        told_ballot = promised_ballot or 0
        if promised_ballot is None:
            image.may_vote = False
            promised_ballot = image.promised_ballot
        elif promised_ballot < image.promised_ballot:
            raise Violation(
                f"node {node} recovered promised ballot {promised_ballot}, {image.promised_ballot} was durable",
                checker="recovery",
            )
        self._check_commit(node, commit_index, "recovered")
        found: dict[int, JournalEntry] = {}
        for entry in entries:
            if (entry.ballot, entry.value, entry.learned) not in self._written[node]:
                raise Violation(
                    f"node {node} recovered {entry.value} of ballot {entry.ballot}, which it never wrote",
                    checker="recovery",
                )
            for slot in range(entry.value.slot_begin, entry.value.slot_end):
                if slot in found:
                    raise Violation(
                        f"node {node} recovered {found[slot].value} of ballot {found[slot].ballot} and {entry.value} "
                        f"of ballot {entry.ballot}: one displaced the other whole",
                        checker="recovery",
                    )
                found[slot] = entry
        self._recover_committed(node, image, commit_index)
        lost: list[JournalEntry] = []
        for slot, old in sorted(image.by_slot.items()):
            if slot <= commit_index:
                continue
            new = found.get(slot)
            if survives(old, new, found):
                continue
            if not image.is_damaged or not any(begin <= slot < end for begin, end in unknown):
                raise Violation(
                    f"node {node} lost the durable batch {old.value} of ballot {old.ballot} (found {new}, unknown "
                    f"{unknown})",
                    checker="recovery",
                )
            lost.append(old)
        image.promised_ballot = promised_ballot
        for slot in [slot for slot in image.by_slot if slot > commit_index]:
            del image.by_slot[slot]
        # What rotted stays in the image: the node owes an "unknown" there until something newer displaces it.
        for entry in [*dict.fromkeys(lost), *dict.fromkeys(found.values())]:
            image.put(entry)
            if not entry.learned:
                self._count_vote(node, entry)
        self._advance_prefix(image)
        self._observed[node] = Observed(promised_ballot=told_ballot, commit_index=commit_index)

    def _recover_committed(self, node: int, image: DurableImage, commit_index: int) -> None:
        """A recovered commit_index may rest on a write that survived without a sync: it displaced others, whole."""
        slot = image.prefix + 1
        while slot <= commit_index:
            value = self.chosen[slot][0]
            entry = self._written_values[node].get(value)
            if entry is None:
                raise Violation(f"node {node} recovered commit_index {commit_index}, but never wrote {value}")
            old = image.by_slot.get(slot, entry)
            if old.value != value and not entry.learned and entry.ballot < old.ballot:
                raise Violation(
                    f"node {node} recovered commit_index {commit_index}, but {old.value} of ballot {old.ballot} "
                    f"displaced its {value} of ballot {entry.ballot}",
                    checker="recovery",
                )
            if old.value != value or slot not in image.by_slot:
                image.put(entry)
            slot = value.slot_end

    # Votes

    def _check_value(self, value: Value, timestamp_ns: int, block: bytes) -> None:
        known = self._values.setdefault(value, (timestamp_ns, block))
        if known != (timestamp_ns, block):
            raise Violation(f"two different batches are named {value}")

    def _count_vote(self, node: int, entry: JournalEntry) -> None:
        voters = self._voters[entry.ballot, entry.value]
        if node in voters:
            return
        voters.add(node)
        self._accepted_by[entry.value].add(node)
        if len(voters) == self.phase2_size:
            self._choose(entry.ballot, entry.value)

    def _choose(self, ballot: int, value: Value) -> None:
        """A Phase 2 quorum has it on disk in one ballot: it is chosen, whatever anybody knows."""
        for slot in range(value.slot_begin, value.slot_end):
            old = self.chosen.get(slot)
            if old is not None and old[0] != value:
                raise Violation(
                    f"slot {slot} has {old[0]} (ballot {old[1]}) and {value} (ballot {ballot}) both chosen",
                    checker="agreement",
                )
            self.chosen[slot] = (value, ballot if old is None else min(ballot, old[1]))
        for higher, slots in self.proposals.items():
            if higher > ballot:
                for slot in range(value.slot_begin, value.slot_end):
                    if slots.get(slot, value) != value:
                        raise Violation(
                            f"ballot {higher} proposed {slots[slot]}, but {value} was chosen in ballot {ballot}",
                            checker="p2b",
                        )
        while self.log.end_slot in self.chosen:
            value = self.chosen[self.log.end_slot][0]
            timestamp_ns, chosen_block = self._values[value]
            self._replicated_ns = max(self._replicated_ns, timestamp_ns)
            self._now_ns[value.slot_begin] = self._replicated_ns
            self.log.append(value.slot_begin, value.slot_end, chosen_block, timestamp_ns)
        for image in self.images.values():
            self._advance_prefix(image)

    def _advance_prefix(self, image: DurableImage) -> None:
        while True:
            slot = image.prefix + 1
            entry = image.by_slot.get(slot)
            if entry is None or slot not in self.chosen or self.chosen[slot][0] != entry.value:
                return
            image.prefix = entry.value.slot_end - 1

    def counted(self, node: int, ballot: int, value: Value, mask: int) -> None:
        """The leader `node` of `ballot` has counted the votes of these members (by position) for its proposal."""
        durable = self._voters.get((ballot, value), ())
        for position, member in enumerate(self.members):
            if mask >> position & 1 and member not in durable:
                raise Violation(
                    f"node {node} counts a vote of node {member} for {value} in ballot {ballot}; durable are those of "
                    f"{sorted(durable)}",
                    checker="votes",
                )

    # Frames

    def sent(self, node: int, boot: int, message: Mapping[str, Any], promised: int) -> None:
        """`node` in its start number `boot`, whose memory says `promised`, sends a replica message now.

        `message` is what `fastpaxos_core.messages.decode_message` returns.
        """
        name = message["message"]
        commit_index = message.get("commit_index", 0)
        if commit_index >= self.log.end_slot:
            self._check_commit(node, commit_index, f"sent in {name}")
        if message.get("everywhere_durable"):
            self._check_everywhere(node, message["everywhere_durable"])
        mark, check = self._checks[name]
        self.marks[mark] += 1
        if check is None:
            return
        try:
            check(node, boot, message, promised)
        except Violation as violation:
            if violation.checker == "protocol":
                violation.checker = mark.replace("_", "-")
            raise

    def _sent_prepare(self, node: int, boot: int, message: Mapping[str, Any], _promised: int) -> None:
        ballot = message["ballot"]
        self._check_owner(node, boot, ballot)
        if self.images[node].promised_ballot < ballot:
            raise Violation(
                f"node {node} sends Prepare {ballot} while its disk promises {self.images[node].promised_ballot}"
            )

    def _sent_promise(self, node: int, boot: int, message: Mapping[str, Any], _promised: int) -> None:
        ballot = message["ballot"]
        image = self.images[node]
        self._check_may_vote(node, image)
        if image.promised_ballot < ballot:
            raise Violation(f"node {node} sends Promise {ballot} while its disk promises {image.promised_ballot}")
        for entry in message["entries"]:
            value = Value(entry["slot_begin"], entry["slot_end"], entry["value_crc"])
            if entry["flags"] & BATCH_UNKNOWN:
                if not image.is_damaged:
                    raise Violation(f"node {node} calls {value} unknown, but its disk is sound")
                self.marks["promise_with_unknown"] += 1
                continue
            if (entry["ballot"], value) not in image.votes and not self._learned(image, value):
                raise Violation(f"node {node} promises {ballot} with {value} of ballot {entry['ballot']}, not on disk")
            if entry["ballot"] > ballot:
                raise Violation(f"node {node} promises {ballot} with {value} of the higher ballot {entry['ballot']}")
        parts = self._promise_parts.setdefault((node, ballot), [])
        if message["part"] == 0:
            parts.clear()
        parts.append(message)
        if len(parts) == message["part_count"]:
            self._check_promise_complete(node, ballot, parts)
            self._promised_by[ballot].add(node)
            self._promises[ballot].setdefault(node, Promised.of(parts))
            if any(part["entries"] for part in parts):
                self.marks["promise_with_entries"] += 1

    @staticmethod
    def _learned(image: DurableImage, value: Value) -> bool:
        entry = image.by_slot.get(value.slot_begin)
        return entry is not None and entry.learned and entry.value == value

    def _check_promise_complete(self, node: int, ballot: int, parts: list[Mapping[str, Any]]) -> None:
        listed = {
            (entry["ballot"], Value(entry["slot_begin"], entry["slot_end"], entry["value_crc"]))
            for part in parts
            for entry in part["entries"]
            if not entry["flags"] & BATCH_UNKNOWN
        }
        unknown = [
            (entry["slot_begin"], entry["slot_end"])
            for part in parts
            for entry in part["entries"]
            if entry["flags"] & BATCH_UNKNOWN
        ]
        first = max(parts[0]["slot_begin"], parts[0]["commit_index"] + 1)
        for slot, entry in self.images[node].by_slot.items():
            if (
                slot >= first
                and entry.ballot < ballot
                and not entry.learned
                and (entry.ballot, entry.value) not in listed
                and not any(begin <= slot < end for begin, end in unknown)
            ):
                raise Violation(
                    f"node {node} promises {ballot} from slot {first} and leaves out {entry.value} of ballot "
                    f"{entry.ballot}"
                )

    def _sent_accept(self, node: int, boot: int, message: Mapping[str, Any], _promised: int) -> None:
        ballot = message["ballot"]
        self._check_owner(node, boot, ballot)
        own = {node} if self.images[node].promised_ballot >= ballot else set()
        if len(self._promised_by[ballot] | own) < self.phase1_size:
            raise Violation(
                f"node {node} proposes in ballot {ballot}, promised by {sorted(self._promised_by[ballot] | own)} only"
            )
        for entry in message["entries"]:
            value = Value(entry["slot_begin"], entry["slot_end"], entry["value_crc"])
            self._check_proposal(node, ballot, value, entry)

    def _check_free(self, node: int, ballot: int, value: Value) -> None:
        """Paper: "Paxos Made Simple", P2c, for batches: some Phase 1 quorum of the promises to `ballot` allows `value`.

        A promise allows it if the value is what it reports in the highest ballot anybody reports the value in, and
        nothing that overlaps it stands in a higher ballot; entries that a higher one displaced do not count.
        """
        promises = dict(self._promises[ballot])
        image = self.images[node]
        if image.may_vote and node not in promises and image.promised_ballot >= ballot:
            promises[node] = Promised.of_image(image, ballot)
        entries = [entry for promised in promises.values() for entry in promised.entries]
        highest = max((of_ballot for of_ballot, reported in entries if reported == value), default=0)
        allowing = 0
        for promised in promises.values():
            if value.slot_begin <= promised.commit_index:
                allowing += self.chosen[value.slot_begin][0] == value
                continue
            allowing += not promised.is_unknown(value) and all(
                reported == value
                or of_ballot < highest
                or is_displaced(of_ballot, reported, entries)
                or self._has_lost(reported)
                for of_ballot, reported in promised.entries
                if overlap(reported, value)
            )
        if allowing < self.phase1_size:
            raise Violation(
                f"ballot {ballot} proposes {value}, which only {allowing} of its promises allow: {promises}",
                checker="phase1-choice",
            )

    def _has_lost(self, value: Value) -> bool:
        """Another value is chosen in one of its slots, so that it never can be."""
        return any(self.chosen.get(slot, (value, 0))[0] != value for slot in range(value.slot_begin, value.slot_end))

    def _check_proposal(self, node: int, ballot: int, value: Value, entry: Mapping[str, Any]) -> None:
        if self.proposals[ballot].get(value.slot_begin) != value:
            self._check_free(node, ballot, value)
        block = bytes(entry["block"])
        self._check_value(value, entry["timestamp_ns"], block)
        slots = self.proposals[ballot]
        for slot in range(value.slot_begin, value.slot_end):
            if slots.setdefault(slot, value) != value:
                raise Violation(f"ballot {ballot} proposes {slots[slot]} and {value}")
            chosen = self.chosen.get(slot)
            if chosen is not None and chosen[1] < ballot and chosen[0] != value:
                message = f"ballot {ballot} proposes {value}, but {chosen[0]} was chosen in ballot {chosen[1]}"
                raise Violation(message, checker="p2b")
        voters = self._accepted_by.get(value, ())
        if voters and len(voters) < self.phase2_size and value.slot_begin not in self.chosen:
            self.marks["adopted_from_minority"] += self._lowest_ballot.get(value, ballot) < ballot
        self._lowest_ballot.setdefault(value, ballot)
        view = BlockView(block)
        if view.kind == BLOCK_NOOP and value.slot_end <= self._proposed_end:
            self.marks["gap_filled"] += 1
        self._proposed_end = max(self._proposed_end, value.slot_end - 1)
        if view.kind == BLOCK_COMMANDS and block not in self.submitted_blocks:
            raise Violation(f"ballot {ballot} proposes {value}, which no client submitted")
        if view.kind == BLOCK_CONTROL:
            operation = msgpack.unpackb(view[0])
            if operation["op"] == "open_session" and bytes(operation["nonce"]) not in self.submitted_nonces:
                raise Violation(f"ballot {ballot} proposes a session that no client asked for: {operation}")

    @staticmethod
    def _check_may_vote(node: int, image: DurableImage) -> None:
        if not image.may_vote:
            raise Violation(f"node {node} votes, but its promises are lost")

    def _sent_accepted(self, node: int, _boot: int, message: Mapping[str, Any], _promised: int) -> None:
        image = self.images[node]
        self._check_may_vote(node, image)
        for entry in message["entries"]:
            value = Value(entry["slot_begin"], entry["slot_end"], entry["value_crc"])
            if (message["ballot"], value) not in image.votes:
                raise Violation(f"node {node} sends Accepted {value} in ballot {message['ballot']}, not on its disk")
        self._check_durable_index(node, message["durable_index"])

    def _sent_nack(self, node: int, _boot: int, message: Mapping[str, Any], promised: int) -> None:
        if message["promised_ballot"] > promised:
            raise Violation(f"node {node} refuses for ballot {message['promised_ballot']}, it promised {promised}")

    def _sent_heartbeat(self, node: int, boot: int, message: Mapping[str, Any], _promised: int) -> None:
        self._check_owner(node, boot, message["ballot"])

    _sent_commit = _sent_heartbeat

    def _sent_heartbeat_reply(self, node: int, _boot: int, message: Mapping[str, Any], promised: int) -> None:
        if message["ballot"] > promised:
            raise Violation(f"node {node} echoes ballot {message['ballot']}, but its promise is {promised}")
        if message["ballot"] > self.images[node].promised_ballot:
            raise Violation(f"node {node} echoes ballot {message['ballot']}, which its disk did not promise")
        self._check_durable_index(node, message["durable_index"])
        if message["applied_index"] > message["commit_index"]:
            raise Violation(
                f"node {node} says it applied {message['applied_index']} of {message['commit_index']} slots"
            )

    def _sent_learn(self, node: int, _boot: int, message: Mapping[str, Any], _promised: int) -> None:
        for entry in message["entries"]:
            value = Value(entry["slot_begin"], entry["slot_end"], entry["value_crc"])
            self._check_value(value, entry["timestamp_ns"], bytes(entry["block"]))
            if entry["flags"] & 1 and self.chosen.get(value.slot_begin, (None, 0))[0] != value:
                raise Violation(f"node {node} teaches {value} as committed, it is not chosen")

    def _check_owner(self, node: int, boot: int, ballot: int) -> None:
        owner = self._ballot_owner.setdefault(ballot, (node, boot))
        if owner != (node, boot) or ballot & 0xFFFF != node:
            raise Violation(f"ballot {ballot} of node {owner[0]} boot {owner[1]} is used by node {node} boot {boot}")

    def _check_commit(self, node: int, commit_index: int, how: str) -> None:
        if commit_index >= self.log.end_slot:
            raise Violation(
                f"commit_index {commit_index} {how} by node {node} lies beyond the chosen slots <= "
                f"{self.log.end_slot - 1}"
            )

    def _check_durable_index(self, node: int, durable_index: int) -> None:
        if durable_index > self.images[node].prefix:
            raise Violation(
                f"node {node} says that slots <= {durable_index} are on its disk, it has {self.images[node].prefix}"
            )

    def _check_everywhere(self, node: int, everywhere_durable: int) -> None:
        least = min(image.prefix for image in self.images.values())
        if everywhere_durable > least:
            raise Violation(f"node {node} says that all have slots <= {everywhere_durable} on disk, one has {least}")

    # Replica

    def observed(self, node: int, promised_ballot: int, commit_index: int, applied_index: int) -> None:
        """Facts of a running replica, as often as they may have changed."""
        last = self._observed[node]
        if promised_ballot < last.promised_ballot:
            raise Violation(f"node {node} lowered its promise from {last.promised_ballot} to {promised_ballot}")
        if commit_index < last.commit_index:
            raise Violation(f"node {node} lowered commit_index from {last.commit_index} to {commit_index}")
        if not last.applied_index <= applied_index <= commit_index:
            raise Violation(
                f"node {node} moved applied_index from {last.applied_index} to {applied_index}, commit {commit_index}"
            )
        if commit_index != last.commit_index:
            self._check_commit(node, commit_index, "reached")
        last.promised_ballot, last.commit_index, last.applied_index = promised_ballot, commit_index, applied_index

    def acknowledged(self, reply: Reply) -> None:
        """A node tells a client that its block was applied."""
        if reply.status == ReplyStatus.OK and reply.slot_begin:
            self.acknowledged_index = max(self.acknowledged_index, reply.slot_begin + reply.command_count - 1)
            if reply.slot_begin >= self.log.end_slot:
                raise Violation(
                    f"slot {reply.slot_begin} is acknowledged, chosen are those <= {self.log.end_slot - 1}",
                    checker="acknowledged",
                )

    def answered_read(self, node: int, answer: QueryReply, asked_at: int) -> None:
        """A node answers a read; every slot <= `asked_at` had been acknowledged to somebody when it arrived."""
        if answer.status == ReplyStatus.OK and answer.read_index < asked_at:
            raise Violation(
                f"node {node} answers a read at slot {answer.read_index}, but slot {asked_at} had been acknowledged "
                f"before it arrived",
                checker="stale-read",
            )

    def applied(
        self, node: int, slot_begin: int, slot_end: int, view: BlockView, digest: object, now_ns: int | None = None
    ) -> None:
        """The state machine of `node` applied the commands of `view` at replicated time `now_ns`; `digest` is that of
        its state after them."""
        last = self._observed[node]
        if last.applied_entries >= len(self.log.applied):
            raise Violation(f"node {node} applies slot {slot_begin}, nothing more is chosen")
        expected = self.log.applied[last.applied_entries]
        if (slot_begin, slot_end) != (expected.slot_begin, expected.slot_end):
            raise Violation(
                f"node {node} applies [{slot_begin}, {slot_end}), next is [{expected.slot_begin}, {expected.slot_end})"
            )
        if now_ns is not None and now_ns != self._now_ns[slot_begin]:
            raise Violation(
                f"node {node} applies slot {slot_begin} at replicated time {now_ns}, it is {self._now_ns[slot_begin]}",
                checker="replicated-time",
            )
        if _content(view) != _content(BlockView(expected.block)):
            raise Violation(f"node {node} applies other bytes at slot {slot_begin} than were chosen")
        if self._digests.setdefault(last.applied_entries, digest) != digest:
            raise Violation(f"node {node} has another state than its peers after slot {slot_end - 1}")
        last.applied_entries += 1

    def check_caught_up(self, node: int) -> None:
        """`node` has applied everything that is chosen."""
        behind = len(self.log.applied) - self._observed[node].applied_entries
        if behind:
            raise Violation(f"node {node} has {behind} chosen batches not applied")
        if self._observed[node].commit_index != self.log.end_slot - 1:
            raise Violation(
                f"node {node} has commit_index {self._observed[node].commit_index}, {self.log.end_slot - 1} is chosen"
            )
