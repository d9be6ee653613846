"""When to campaign and when to step down. Sans-I/O: time and messages in, decisions out.

Nothing here can break agreement: the core decides what may be promised, accepted and chosen. This module only tries
to have one leader whenever some member can exchange messages with a quorum, and no campaigns otherwise.

The rules:

- **Silence.** A voter that has not heard the leader for a random time in [1, 2) x election_timeout asks all members
  whether they would like an election (pre-vote). If its connection to the leader's process breaks, it asks after
  0..30 ms instead: a broken connection is news, silence only a guess. A member that still hears the leader says no.
- **Pre-vote.** A node campaigns only after a quorum answered yes to one question. So a node that no quorum can hear
  never raises a ballot, and one that is cut off in one direction only disturbs nobody. A yes binds nobody: a member
  at the centre of a star must not be silenced by granting its arms, which cannot win.
- **No** is the answer of a leader whose leadership a quorum confirmed lately; of a member that hears a live leader;
  of one that lately promised a ballot to a connected candidate (the courtesy ends after one election_timeout, and is
  renewed only by a real campaign); and of a node that may not vote.
- **Quorum check.** A leader that no phase 2 quorum answered for one election_timeout steps down and says so. Without
  this, a member that hears the leader, and alone could replace it, would wait for ever (OmniPaxos calls it the
  quorum-loss scenario).
- **Logs are not compared.** A candidate that lags fetches what it missed in Phase 1, so the only member with a quorum
  may always lead (the constrained-election scenario). If it lags by far it waits one more random timeout, once, so
  that a better candidate can come first.
- **Back-off.** A campaign that makes no progress is given up, and each one given up widens the random wait before the
  next. A campaign that met a higher ballot is not counted: its rival leads in a moment, or the next one wins.

Pre-vote messages are CONTROL maps (docs/protocol.md, "Control messages"):

    {"op": "pre_vote", "question": n, "commit_index": c}
    {"op": "pre_vote_reply", "question": n, "granted": bool, "commit_index": c}
    {"op": "resigned", "ballot": b}
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from fastpaxos_core.errors import FrameError

if TYPE_CHECKING:
    from random import Random

__all__ = ["ELECTION_OPS", "Action", "Decision", "Election", "ReplicaFacts"]

logger = logging.getLogger(__name__)

ELECTION_OPS = frozenset({"pre_vote", "pre_vote_reply", "resigned"})

NS_PER_MS = 1_000_000
FAST_PATH_DELAY_NS = 30 * NS_PER_MS
BACKOFF_DOUBLINGS_MAX = 2
NODE_ID_MASK = 0xFFFF


class ReplicaFacts(Protocol):
    """What an Election reads of its replica. All are plain attributes, read at every input."""

    @property
    def role(self) -> str: ...
    @property
    def promised_ballot(self) -> int: ...
    @property
    def leader_id(self) -> int: ...
    @property
    def voting(self) -> bool: ...
    @property
    def commit_index(self) -> int: ...
    @property
    def last_slot(self) -> int: ...
    @property
    def last_leader_contact_ns(self) -> int: ...
    @property
    def quorum_contact_ns(self) -> int: ...


class Action(Enum):
    """What the node must do."""

    CAMPAIGN = "campaign"
    STEP_DOWN = "step_down"
    SEND = "send"


class Decision(NamedTuple):
    """One thing to do. `peer` and `message` are set for SEND only."""

    action: Action
    peer: int = 0
    message: Mapping[str, Any] | None = None


class Election:
    """The liveness rules of one node.

    `phase1_quorum` and `phase2_quorum` are member counts; `random` is the only source of chance. Times are
    monotonic nanoseconds of any origin. Every method returns the decisions to carry out now, in order.
    """

    def __init__(
        self,
        facts: ReplicaFacts,
        *,
        node_id: int,
        members: Iterable[int],
        phase1_quorum: int,
        phase2_quorum: int,
        heartbeat_interval_ms: int,
        election_timeout_ms: int,
        lag_slots_max: int,
        random: Random,
        now_ns: int,
    ) -> None:
        self.node_id = node_id
        self.peers = tuple(sorted(member for member in members if member != node_id))
        # Who wants to lead needs a phase 1 quorum to begin and a phase 2 quorum to go on.
        self.votes_needed = max(phase1_quorum, phase2_quorum)
        self.heartbeat_interval_ns = heartbeat_interval_ms * NS_PER_MS
        self.election_timeout_ns = election_timeout_ms * NS_PER_MS
        self.lag_slots_max = lag_slots_max
        self._facts = facts
        self._random = random

        self._connected_since: dict[int, int] = {}
        self._last_role = facts.role
        self._last_tick_ns = now_ns
        self._promised_ballot = facts.promised_ballot
        # A promise found in the journal at start is old news: nobody waits for that candidate.
        self._promised_at_ns = now_ns - self.election_timeout_ns
        self._resigned_ballot = 0

        # A node that starts asks early: if there is a leader, its first heartbeat or the answers will say so.
        # Alone there is nobody to hear from.
        self._deadline_ns = now_ns
        if self.votes_needed > 1:
            self._deadline_ns += self._random_ns(self.election_timeout_ns // 5, self.election_timeout_ns)
        self._question = 0
        self._asking = False
        self._ask_again_ns = 0
        self._granted_ns: dict[int, int] = {}
        self._deferred_for_lag = False

        self._failures = 0
        self._gave_up = False
        self._grace_until_ns = now_ns
        self._progress_at_ns = now_ns
        self._progress_index = facts.commit_index
        self._disk_stalled = False

    # Inputs

    def tick(self, now_ns: int, *, disk_stalled: bool = False) -> list[Decision]:
        """Let time pass. `disk_stalled`: this node's own journal write has been under way for a suspicious time."""
        decisions: list[Decision] = []
        self._disk_stalled = disk_stalled
        self._observe(now_ns)
        paused = now_ns - self._last_tick_ns > self.election_timeout_ns // 2
        self._last_tick_ns = now_ns
        if paused:
            self._forgive_pause(now_ns)
            return decisions
        role = self._facts.role
        if role == "leader":
            self._tick_leader(now_ns, decisions)
        elif role == "candidate":
            self._tick_candidate(now_ns, decisions)
        elif self._facts.voting:
            self._tick_follower(now_ns, decisions)
        return decisions

    def peer_connected(self, peer: int, now_ns: int) -> list[Decision]:
        """A connection to `peer` was made, or replaced by a newer one. What was heard on the old one is void."""
        self._connected_since[peer] = now_ns
        self._observe(now_ns)
        if self._asking and self._facts.role == "follower":
            return [self._ask(peer)]
        return []

    def peer_disconnected(self, peer: int, now_ns: int) -> list[Decision]:
        """The connection to `peer` broke. If it was the leader's, ask for an election soon."""
        self._observe(now_ns)
        self._connected_since.pop(peer, None)
        self._granted_ns.pop(peer, None)
        if self._facts.role == "follower" and peer in (self._facts.leader_id, self._promised_ballot & NODE_ID_MASK):
            self._hurry(now_ns)
        return []

    def receive(self, peer: int, message: Mapping[str, Any], now_ns: int) -> list[Decision]:
        """Handle one CONTROL map whose op is in ELECTION_OPS. Raises FrameError if its fields are not as agreed."""
        self._observe(now_ns)
        if peer not in self.peers:
            return []
        op = message.get("op")
        if op == "pre_vote":
            return self._handle_pre_vote(peer, message, now_ns)
        if op == "pre_vote_reply":
            return self._handle_pre_vote_reply(peer, message, now_ns)
        if op == "resigned":
            return self._handle_resigned(peer, message, now_ns)
        raise FrameError(f"control message {op!r} of node {peer} is no election message")

    def resign(self) -> list[Decision]:
        """The node is about to stop: give up leadership and tell the others, so that they need not find out."""
        return self._step_down() if self._facts.role == "leader" else []

    # What is known

    def hears_leader(self, now_ns: int) -> bool:
        """True while another process leads, is connected, and was heard within one election timeout."""
        leader_id = self._facts.leader_id
        if leader_id in (0, self.node_id):
            return False
        connected_ns = self._connected_since.get(leader_id)
        if connected_ns is None:
            return False
        if self._resigned_ballot and self._resigned_ballot >= self._facts.promised_ballot:
            return False
        contact_ns = self._facts.last_leader_contact_ns
        # A restarted process connects before its peers forget that its predecessor led, so only what was heard on
        # this connection counts.
        return contact_ns >= connected_ns and self._is_recent(contact_ns, now_ns)

    def _is_recent(self, time_ns: int, now_ns: int) -> bool:
        return now_ns - time_ns < self.election_timeout_ns

    def _leads_for_sure(self, now_ns: int) -> bool:
        return self._facts.role == "leader" and self._is_recent(self._facts.quorum_contact_ns, now_ns)

    def _favours_a_candidate(self, now_ns: int) -> bool:
        """True if somebody who can still win was promised a ballot less than one election timeout ago."""
        if not self._promised_ballot or not self._is_recent(self._promised_at_ns, now_ns):
            return False
        candidate = self._promised_ballot & NODE_ID_MASK
        if candidate == self.node_id:
            return self._facts.role == "candidate"
        return candidate in self._connected_since and self._promised_ballot > self._resigned_ballot

    def _observe(self, now_ns: int) -> None:
        """Notice what the replica did since the last input."""
        facts = self._facts
        if facts.promised_ballot != self._promised_ballot:
            self._promised_ballot = facts.promised_ballot
            self._promised_at_ns = now_ns
            if self._promised_ballot & NODE_ID_MASK != self.node_id:
                # Somebody asked a quorum and campaigns: let it try before asking the same again.
                self._rest(now_ns)
        if facts.role != self._last_role:
            if self._last_role == "candidate" and facts.role == "follower":
                self._end_campaign(now_ns)
            elif self._last_role == "leader":
                self._rest(now_ns)
            elif facts.role == "leader":
                self._failures = 0
            self._last_role = facts.role
            self._progress_at_ns = now_ns
        if facts.commit_index != self._progress_index:
            self._progress_index = facts.commit_index
            self._progress_at_ns = now_ns

    # Follower

    def _tick_follower(self, now_ns: int, decisions: list[Decision]) -> None:
        if self.hears_leader(now_ns):
            self._failures = 0
            self._rest(self._facts.last_leader_contact_ns, only_later=True)
            return
        if self._asking:
            if now_ns >= self._ask_again_ns:
                self._ask_all(now_ns, decisions)
        elif now_ns >= self._deadline_ns and not self._disk_stalled:
            self._question += 1
            self._granted_ns.clear()
            self._asking = True
            self._ask_all(now_ns, decisions)
            self._campaign_if_granted(now_ns, decisions)

    def _ask_all(self, now_ns: int, decisions: list[Decision]) -> None:
        """Ask everybody, and again and again, because a no of now may be a yes in a moment."""
        self._ask_again_ns = now_ns + self._random_ns(self.heartbeat_interval_ns, 2 * self.heartbeat_interval_ns)
        decisions.extend(self._ask(peer) for peer in self.peers if peer in self._connected_since)

    def _ask(self, peer: int) -> Decision:
        message = {"op": "pre_vote", "question": self._question, "commit_index": self._facts.commit_index}
        return Decision(Action.SEND, peer, message)

    def _handle_pre_vote(self, peer: int, message: Mapping[str, Any], now_ns: int) -> list[Decision]:
        question = _whole_number(peer, message, "question")
        _whole_number(peer, message, "commit_index")
        granted = (
            self._facts.voting
            and not self._leads_for_sure(now_ns)
            and not self.hears_leader(now_ns)
            and not self._favours_a_candidate(now_ns)
        )
        reply = {
            "op": "pre_vote_reply",
            "question": question,
            "granted": granted,
            "commit_index": self._facts.commit_index,
        }
        return [Decision(Action.SEND, peer, reply)]

    def _handle_pre_vote_reply(self, peer: int, message: Mapping[str, Any], now_ns: int) -> list[Decision]:
        question = _whole_number(peer, message, "question")
        commit_index = _whole_number(peer, message, "commit_index")
        granted = message.get("granted")
        if not isinstance(granted, bool):
            raise FrameError(f"pre_vote_reply of node {peer} has granted={granted!r}; expected true or false")
        decisions: list[Decision] = []
        if not self._asking or question != self._question or self._facts.role != "follower":
            return decisions
        if not granted:
            self._granted_ns.pop(peer, None)
            return decisions
        if commit_index > self._facts.commit_index + self.lag_slots_max and not self._deferred_for_lag:
            # Somebody who lags less would be ready to lead much sooner. Once only: perhaps nobody else can.
            self._rest(now_ns)
            self._deferred_for_lag = True
            return decisions
        self._granted_ns[peer] = now_ns
        self._campaign_if_granted(now_ns, decisions)
        return decisions

    def _campaign_if_granted(self, now_ns: int, decisions: list[Decision]) -> None:
        # A yes ages: the quorum must want an election now, not one member in the morning and one at night.
        wanted_by = sorted(peer for peer, time_ns in self._granted_ns.items() if self._is_recent(time_ns, now_ns))
        if len(wanted_by) + 1 < self.votes_needed or self._disk_stalled:
            return
        if not self._facts.voting or self.hears_leader(now_ns):
            return
        logger.info("node %d campaigns: members %s want an election", self.node_id, wanted_by)
        self._asking = False
        self._gave_up = False
        self._last_role = "candidate"
        self._progress_at_ns = now_ns
        decisions.append(Decision(Action.CAMPAIGN))

    def _handle_resigned(self, peer: int, message: Mapping[str, Any], now_ns: int) -> list[Decision]:
        ballot = _whole_number(peer, message, "ballot")
        if ballot & NODE_ID_MASK == peer and ballot > self._resigned_ballot:
            self._resigned_ballot = ballot
            if ballot >= self._facts.promised_ballot and self._facts.role == "follower":
                self._hurry(now_ns)
        return []

    # Candidate and leader

    def _tick_candidate(self, now_ns: int, decisions: list[Decision]) -> None:
        """Give up a campaign in which nothing happens. Fetching what was missed counts as progress."""
        if now_ns - self._progress_at_ns > 2 * self.election_timeout_ns:
            patience_ms = 2 * self.election_timeout_ns // NS_PER_MS
            logger.info("node %d gives up its campaign: no progress for %d ms", self.node_id, patience_ms)
            self._gave_up = True
            decisions.append(Decision(Action.STEP_DOWN))

    def _end_campaign(self, now_ns: int) -> None:
        if self._gave_up:
            self._failures += 1
            self._rest(now_ns)
        else:
            # It met a higher ballot. If its owner lives, it leads before this passes; else it is only a trace of one.
            self._rest(now_ns)
            self._deadline_ns = now_ns + self._random_ns(self.election_timeout_ns // 8, self.election_timeout_ns // 2)

    def _tick_leader(self, now_ns: int, decisions: list[Decision]) -> None:
        if now_ns < self._grace_until_ns:
            return
        if not self._is_recent(self._facts.quorum_contact_ns, now_ns):
            logger.warning(
                "node %d steps down: no quorum answered it for %d ms",
                self.node_id,
                (now_ns - self._facts.quorum_contact_ns) // NS_PER_MS,
            )
            decisions.extend(self._step_down())
        elif self._facts.last_slot <= self._facts.commit_index:
            self._progress_at_ns = now_ns
        elif self._disk_stalled and now_ns - self._progress_at_ns > 2 * self.election_timeout_ns:
            # The others could choose without this disk if another one led.
            logger.warning("node %d steps down: its disk hangs and nothing was chosen meanwhile", self.node_id)
            decisions.extend(self._step_down())

    def _step_down(self) -> list[Decision]:
        resigned = {"op": "resigned", "ballot": self._facts.promised_ballot}
        told = [Decision(Action.SEND, peer, resigned) for peer in self.peers if peer in self._connected_since]
        return [Decision(Action.STEP_DOWN), *told]

    # Timers

    def _random_ns(self, low_ns: int, high_ns: int) -> int:
        return low_ns + int(self._random.random() * (high_ns - low_ns))

    def _backoff_ns(self) -> int:
        doublings = min(self._failures, BACKOFF_DOUBLINGS_MAX)
        return self._random_ns(self.election_timeout_ns, 2 * self.election_timeout_ns << doublings)

    def _rest(self, since_ns: int, *, only_later: bool = False) -> None:
        """Stop asking, and do not start again before a random timeout after `since_ns`."""
        self._asking = False
        self._granted_ns.clear()
        self._deferred_for_lag = False
        # While the leader lives the deadline moves only when it has come close: no new chance at every heartbeat.
        if not only_later or self._deadline_ns < since_ns + self.election_timeout_ns:
            self._deadline_ns = since_ns + self._backoff_ns()

    def _hurry(self, now_ns: int) -> None:
        """The leader is known to be gone: ask for an election within the fast path delay."""
        self._deadline_ns = min(self._deadline_ns, now_ns + self._random_ns(0, FAST_PATH_DELAY_NS))

    def _forgive_pause(self, now_ns: int) -> None:
        """This process did not run for a while, so silence proves nothing: first read what has arrived meanwhile."""
        grace_ns = self._random_ns(self.heartbeat_interval_ns, 2 * self.heartbeat_interval_ns)
        self._grace_until_ns = now_ns + grace_ns
        self._deadline_ns = max(self._deadline_ns, now_ns + grace_ns)
        self._ask_again_ns = max(self._ask_again_ns, now_ns + grace_ns)


def _whole_number(peer: int, message: Mapping[str, Any], key: str) -> int:
    value = message.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise FrameError(f"{message.get('op')} of node {peer} has {key}={value!r}; expected a whole number")
    return value
