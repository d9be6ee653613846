"""Phase 1 (rule 5.2): once per leadership, for every slot above commit_index.

Prepare rests on this replica's own durable promise. From a Phase 1 quorum of whole Promises the candidate first fetches
what is committed, then takes the reported batches from the highest ballot down, drops whole what overlaps one already
taken, fills gaps with no-ops, and proposes at least one slot. Only then do new commands enter.
Paper: Lamport, "Paxos Made Simple" (2001), section 3.
"""

import struct
from bisect import bisect_left

from cpython.bytes cimport PyBytes_AS_STRING

from fastpaxos_core.block import build_noop

from fastpaxos_core.errors import FrameError, InvariantError

from fastpaxos_core.ballot cimport ballot_round, make_ballot
from fastpaxos_core.block cimport BlockHeader, block_check
from fastpaxos_core.messages cimport FetchHead, LearnHead, PrepareHead, PromiseHead, check_entries, head_of
from fastpaxos_core.proposer cimport ROLE_CANDIDATE
from fastpaxos_core.state cimport Peer, ReplicaState, check_batch
from fastpaxos_core.types cimport BATCH_UNKNOWN, BatchDescriptor, slot_t, uint8_t, uint32_t, uint64_t
from fastpaxos_core.window cimport NO_BATCH, Batch
from fastpaxos_core.wire cimport FRAME_FETCH, FRAME_PREPARE, Frame

_DESCRIPTOR = struct.Struct("<QQQqIIII")

cdef enum:
    VALUES_IN_FLIGHT_MAX = 64
    NOOP_SLOTS_MAX = 1024
    PROMISE_PARTS_MAX = 512      # of 4096 entries: twice what the largest ring holds


class Promise:
    """What one acceptor promised: its parts as they arrive, then its batches and unknown ranges."""

    __slots__ = ("commit_index", "entries", "part_count", "parts", "unknown")

    def __init__(self, part_count, commit_index):
        self.part_count = part_count
        self.parts = set()
        self.commit_index = commit_index
        self.entries = []
        self.unknown = []

    @property
    def is_whole(self):
        return len(self.parts) == self.part_count


class Entry:
    """One batch that some acceptor accepted; `owner` and `offset` locate its block once it is here."""

    __slots__ = ("ballot", "block_bytes", "offset", "owner", "reporters", "slot_begin", "slot_end", "timestamp_ns",
                 "value_crc")

    def __init__(self, slot_begin, slot_end, ballot, timestamp_ns, block_bytes, value_crc, reporter):
        self.slot_begin = slot_begin
        self.slot_end = slot_end
        self.ballot = ballot
        self.timestamp_ns = timestamp_ns
        self.block_bytes = block_bytes
        self.value_crc = value_crc
        self.reporters = [reporter]
        self.owner = None
        self.offset = 0


def select_values(entries: list[Entry], commit_index: int) -> list[Entry]:
    """Rule 5.2: the batches to re-propose above commit_index, by slot.

    From the highest ballot down, an entry is dropped whole when it overlaps one already taken: had it been chosen, the
    higher ballot would have re-proposed it. Two values for one (ballot, slot) are an InvariantError.
    """
    by_place = {}
    for entry in entries:
        if entry.slot_begin <= commit_index:
            continue
        known = by_place.setdefault((entry.ballot, entry.slot_begin), entry)
        if known is entry:
            continue
        if (known.slot_end, known.value_crc, known.timestamp_ns) != (
                entry.slot_end, entry.value_crc, entry.timestamp_ns):
            raise InvariantError(
                f"ballot {entry.ballot} has two values at slot {entry.slot_begin}: CRC {known.value_crc:#x} "
                f"and {entry.value_crc:#x}"
            )
        known.reporters.extend(entry.reporters)
    begins = []
    taken = []
    for entry in sorted(by_place.values(), key=lambda item: (-item.ballot, item.slot_begin)):
        place = bisect_left(begins, entry.slot_begin)
        overlaps = (place > 0 and taken[place - 1].slot_end > entry.slot_begin) or (
            place < len(taken) and taken[place].slot_begin < entry.slot_end
        )
        if overlaps:
            continue
        begins.insert(place, entry.slot_begin)
        taken.insert(place, entry)
    return taken


cdef class Phase1:
    """One candidacy at a time."""

    def __init__(self, ReplicaState state, acceptor, learner, proposer, resend_timeout_ns: int):
        self.state = state
        self.acceptor = acceptor
        self.learner = learner
        self.proposer = proposer
        self.resend_timeout_ns = resend_timeout_ns
        self.promises = {}
        self.wanted = {}

    cdef int campaign(self) except -1:
        """Create a ballot above everything seen, promise it here, and ask everybody else (held until durable)."""
        cdef ReplicaState state = self.state
        cdef uint64_t highest = max(ballot_round(state.max_ballot_seen), ballot_round(state.promised_ballot))
        self.abandon()
        self.ballot = make_ballot(highest + 1, state.node_id)
        self.slot_begin = state.commit_index + 1
        self.active = True
        self.started_ns = state.now_ns
        self.proposer.role = ROLE_CANDIDATE
        self.proposer.ballot = self.ballot
        state.raise_promise(self.ballot, state.boot)
        return self.send_prepare(True)

    cdef int abandon(self) except -1:
        self.active = False
        self.promises = {}
        self.wanted = {}
        self.plan = None
        self.plan_next = 0
        return 0

    cdef int send_prepare(self, bint hold) except -1:
        cdef ReplicaState state = self.state
        cdef PrepareHead head
        cdef Peer peer
        head.slot_begin = self.slot_begin
        frame = state.writer.encode_c(FRAME_PREPARE, self.ballot, <const uint8_t*>&head, sizeof(PrepareHead), 0)
        for peer in state.peer_list:
            if peer.node_id in self.promises and self.promises[peer.node_id].is_whole:
                continue
            if hold:
                state.hold(peer, frame)
            elif peer.connected:
                peer.buffers.append(frame)
        self.sent_ns = state.now_ns
        return 0

    cdef int handle_promise(self, Peer peer, Frame frame) except -1:
        """Collect one part. Replies of another ballot or boot are ignored; an acceptor counts once, when whole."""
        cdef const uint8_t* bytes_of_head = head_of(frame, sizeof(PromiseHead))
        cdef const PromiseHead* head = <const PromiseHead*>bytes_of_head
        check_entries(frame, sizeof(PromiseHead), head.entry_count, sizeof(BatchDescriptor))
        self.learner.hint(peer, head.commit_index)
        if (not self.active or frame.ballot != self.ballot or head.proposer_boot != self.state.boot
                or head.slot_begin != self.slot_begin or self.plan is not None):
            return 0
        if head.part >= head.part_count or head.part_count > PROMISE_PARTS_MAX:
            raise FrameError(f"node {peer.node_id} promises part {head.part} of {head.part_count}")
        promise = self.promises.get(peer.node_id)
        if promise is not None and promise.commit_index > head.commit_index:
            return 0
        # Parts of one Promise belong together only when they were made at one commit_index: a later one lists less.
        if (promise is None or promise.commit_index != head.commit_index
                or promise.part_count != head.part_count):
            promise = self.promises[peer.node_id] = Promise(head.part_count, head.commit_index)
        if head.part in promise.parts:
            return 0
        for begin, end, ballot, timestamp_ns, block_bytes, value_crc, flags, _ in _DESCRIPTOR.iter_unpack(
                frame.head[sizeof(PromiseHead) :]):
            if begin == 0 or end <= begin or ballot >= self.ballot:
                raise FrameError(f"node {peer.node_id} promises [{begin}, {end}) of ballot {ballot}")
            if flags & BATCH_UNKNOWN:
                promise.unknown.append((begin, end))
            else:
                promise.entries.append(
                    Entry(begin, end, ballot, timestamp_ns, block_bytes, value_crc, peer.node_id)
                )
        promise.parts.add(head.part)
        return 0

    cdef int progress(self) except -1:
        """Take every step that is possible now: called whenever something arrived or became durable."""
        cdef ReplicaState state = self.state
        if not self.active:
            return 0
        if self.plan is None:
            if not self._has_quorum():
                return 0
            # Everything that any of them knows to be committed comes first; the learner is fetching it.
            for promise in self.promises.values():
                if promise.is_whole and promise.commit_index > state.commit_index:
                    return 0
            self._select()
        self._fetch_values()
        return self._propose_plan()

    cdef bint _has_quorum(self) except -1:
        """A Phase 1 quorum of whole Promises, for every slot: who does not know a range does not count for it."""
        cdef ReplicaState state = self.state
        cdef uint32_t votes = 0
        cdef uint32_t blind
        unknown = []
        if state.promised_ballot == self.ballot and state.promise_ticket <= state.journal.durable_ticket:
            votes |= state.own_bit
            unknown += [(begin, end, state.own_bit) for begin, end in self.acceptor.unknown]
        for node_id, promise in self.promises.items():
            if promise.is_whole:
                votes |= state.peer(node_id).bit
                unknown += [(begin, end, state.peer(node_id).bit) for begin, end in promise.unknown]
        if not state.quorum.phase1_c(votes):
            return False
        # The set of blind acceptors changes only where an unknown range begins: those slots stand for all.
        for probe, _, _ in unknown:
            probe = max(probe, state.commit_index + 1)
            blind = 0
            for begin, end, bit in unknown:
                if begin <= probe < end:
                    blind |= <uint32_t>bit
            if not state.quorum.phase1_c(votes & ~blind):
                return False
        return True

    cdef int _select(self) except -1:
        cdef ReplicaState state = self.state
        cdef slot_t slot = state.commit_index + 1
        cdef uint32_t reference
        cdef Batch* batch
        entries = []
        while slot < state.window.slot_end_max:
            reference = state.window.find(slot)
            if reference == NO_BATCH:
                slot += 1
                continue
            batch = state.window.at(reference)
            entry = Entry(batch.descriptor.slot_begin, batch.descriptor.slot_end, batch.descriptor.ballot,
                          batch.descriptor.timestamp_ns, batch.descriptor.block_bytes, batch.descriptor.value_crc,
                          state.node_id)
            entry.owner = <object>batch.owner
            entry.offset = batch.block_offset
            entries.append(entry)
            slot = batch.descriptor.slot_end
        for promise in self.promises.values():
            if promise.is_whole:
                entries.extend(promise.entries)
        self.plan = select_values(entries, state.commit_index)
        self.plan_next = 0
        return 0

    cdef int _fetch_values(self) except -1:
        """Ask the reporters for the bytes that are not here."""
        cdef ReplicaState state = self.state
        cdef FetchHead head
        cdef Peer peer
        if len(self.wanted) >= VALUES_IN_FLIGHT_MAX or self.proposer.role != ROLE_CANDIDATE:
            return 0
        asked = {id(entry) for entry in self.wanted.values()}
        for entry in self.plan:
            if entry.owner is not None or id(entry) in asked:
                continue
            if len(self.wanted) >= VALUES_IN_FLIGHT_MAX:
                break
            # Reporters take turns, so that one which has gone does not block the recovery.
            for _ in range(len(entry.reporters)):
                reporter = entry.reporters.pop(0)
                entry.reporters.append(reporter)
                peer = state.peer(reporter)
                if peer is not None and peer.connected:
                    head.request_id = self.learner.request_id()
                    head.slot_begin = entry.slot_begin
                    head.slot_end = entry.slot_end
                    head.bytes_max = entry.block_bytes
                    head.value_crc = entry.value_crc
                    self.wanted[head.request_id] = entry
                    state.send(peer, FRAME_FETCH, entry.ballot, &head, sizeof(FetchHead))
                    break
        return 0

    cdef bint handle_learn(self, Peer peer, Frame frame) except -1:
        """Take the bytes of a value that this candidate asked for; False when the answer is for somebody else."""
        cdef const uint8_t* bytes_of_head = head_of(frame, sizeof(LearnHead))
        cdef const LearnHead* head = <const LearnHead*>bytes_of_head
        cdef const BatchDescriptor* entries = <const BatchDescriptor*>(bytes_of_head + sizeof(LearnHead))
        cdef bytes body = frame.body
        cdef BlockHeader header
        entry = self.wanted.pop(head.request_id, None)
        if entry is None:
            return False
        self.learner.hint(peer, head.commit_index)
        check_entries(frame, sizeof(LearnHead), head.entry_count, sizeof(BatchDescriptor))
        if head.entry_count != 1:
            return True
        check_batch(&entries[0], <const uint8_t*>PyBytes_AS_STRING(body), len(body), &header)
        if (entries[0].slot_begin, entries[0].slot_end, entries[0].value_crc) != (
                entry.slot_begin, entry.slot_end, entry.value_crc):
            raise FrameError(f"node {peer.node_id} sent another value for slot {entry.slot_begin} than it promised")
        entry.owner = body
        entry.offset = 0
        return True

    cdef int _propose_plan(self) except -1:
        """Re-propose under the own ballot, in slot order, gaps filled; then the leadership is open for commands."""
        cdef ReplicaState state = self.state
        cdef BlockHeader header
        cdef slot_t gap
        cdef uint32_t reference
        if self.proposer.role == ROLE_CANDIDATE:
            if self.plan and self.plan[0].slot_begin <= state.commit_index:
                # Something was learned meanwhile: it is committed, so the plan is made again without it.
                return self._select()
            if any(entry.owner is None for entry in self.plan):
                return 0
            self.proposer.lead(self.ballot)
        while self.plan_next < <size_t>len(self.plan):
            entry = self.plan[self.plan_next]
            gap = entry.slot_begin - self.proposer.next_slot
            if gap:
                if not self._propose_noop(min(gap, <slot_t>NOOP_SLOTS_MAX)):
                    return 0
                continue
            block_check(<const uint8_t*>PyBytes_AS_STRING(entry.owner) + <size_t>entry.offset, entry.block_bytes,
                        &header, 0)
            reference = self.proposer.propose(entry.owner, entry.offset, entry.block_bytes,
                                              entry.slot_end - entry.slot_begin, header.crc, entry.timestamp_ns)
            if reference == NO_BATCH:
                return 0
            if state.window.at(reference).descriptor.value_crc != entry.value_crc:
                raise InvariantError(f"the value of slot {entry.slot_begin} changed on its way into a new ballot")
            self.plan_next += 1
        if not self.plan and not self._propose_noop(1):
            return 0
        self.proposer.recovered_end = self.proposer.next_slot
        return self.abandon()

    def _propose_noop(self, slot_t slot_count):
        block = build_noop(slot_count)
        cdef BlockHeader header
        block_check(<const uint8_t*>PyBytes_AS_STRING(block), len(block), &header, 0)
        return self.proposer.propose(
            block, 0, len(block), slot_count, header.crc, max(self.state.last_timestamp_ns, self.state.wall_ns)
        ) != NO_BATCH

    cdef int tick(self) except -1:
        """Ask again whoever has not promised, and for values that did not come."""
        cdef ReplicaState state = self.state
        if not self.active or state.now_ns - self.sent_ns < self.resend_timeout_ns:
            return 0
        if state.promise_ticket <= state.journal.durable_ticket:
            if self.plan is None:
                self.send_prepare(False)
            else:
                self.wanted = {}
                self.sent_ns = state.now_ns
        return 0
