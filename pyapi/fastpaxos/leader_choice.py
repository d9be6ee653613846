"""Which node a client should talk to next. Sans-I/O: what happened goes in, an address and a wait come out.

- A hint is followed at once, unless that address failed a moment ago or hints lead in a circle: then the client stays
  where it is and waits, because the node it talks to will say when a new leader is known.
- Without a hint the addresses are tried in turn. Each full round without progress doubles the wait between attempts,
  up to a cap that is short against an election, and randomised so that clients do not come back in step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from random import Random

from fastpaxos.errors import NoLeader

__all__ = ["LeaderChoice"]

NS_PER_MS = 1_000_000
WAIT_MIN_NS = 10 * NS_PER_MS
WAIT_MAX_NS = 250 * NS_PER_MS
FAILED_LATELY_NS = 250 * NS_PER_MS
LEARNED_MAX = 16


class LeaderChoice:
    """The addresses of a cluster and what is known about the leader's.

    Args:
        members: {node id: "host:port"}; these addresses win over what nodes say about themselves.
        seeds: further addresses whose node ids are not known yet.
        random: source of the jitter.

    Attributes:
        leader_id: node that was last known to lead, 0 if none.
        errors: {address: what the last attempt there failed with}, cleared by success.
    """

    def __init__(self, members: Mapping[int, str], seeds: Iterable[str] = (), *, random: Random) -> None:
        self.members = dict(members)
        self.addresses = [*dict.fromkeys([*self.members.values(), *seeds])]
        if not self.addresses:
            raise ValueError("a client needs at least one address")
        self.leader_id = 0
        self.errors: dict[str, Exception] = {}
        self._random = random
        self._target = self.addresses[0]
        self._wait_until_ns = 0
        self._failures = 0
        self._redirects = 0
        self._failed_ns: dict[str, int] = {}

    @property
    def target(self) -> str:
        """The address to connect to next."""
        return self._target

    def wait_ns(self, now_ns: int) -> int:
        """How long to wait before connecting to `target`."""
        return max(0, self._wait_until_ns - now_ns)

    def learn(self, members: Mapping[int, str]) -> None:
        """A node named its cluster's members: remember those whose address was unknown."""
        for node_id, address in members.items():
            if node_id not in self.members and len(self.members) < LEARNED_MAX:
                self.members[node_id] = address
                if address not in self.addresses:
                    self.addresses.append(address)

    def redirect(self, leader_id: int, leader_address: str, now_ns: int) -> bool:
        """Somebody says that `leader_id` leads. Return whether to connect there now (it is the target then)."""
        self.leader_id = leader_id
        address = self.members.get(leader_id) or leader_address
        if not address:
            return False
        failed_ns = self._failed_ns.get(address)
        if failed_ns is not None and now_ns - failed_ns < FAILED_LATELY_NS:
            return False
        if self._redirects > 2 * len(self.addresses):
            return False
        self._redirects += 1
        self._target = address
        self._wait_until_ns = now_ns
        return True

    def failed(self, address: str, error: Exception, now_ns: int) -> None:
        """An attempt at `address`, or the connection to it, failed: the next address is the target.

        NoLeader as the error says that the node was there and does not know where to go: a hint may still name it.
        """
        if len(self.errors) >= 4 * LEARNED_MAX:
            # Hints may name any number of addresses; only the recent ones matter.
            self._failed_ns.clear()
            self.errors.clear()
        self.errors[address] = error
        if not isinstance(error, NoLeader):
            self._failed_ns[address] = now_ns
        rounds = self._failures // len(self.addresses)
        wait_ns = min(WAIT_MIN_NS << min(rounds, 10), WAIT_MAX_NS)
        # A connection that worked until now is replaced at once: the first attempt after progress does not wait.
        self._wait_until_ns = now_ns + (int(wait_ns * (0.5 + self._random.random())) if self._failures else 0)
        self._failures += 1
        self._redirects = 0
        position = self.addresses.index(address) + 1 if address in self.addresses else 0
        self._target = self.addresses[position % len(self.addresses)]

    def progressed(self, address: str) -> None:
        """`address` answered as a leader does."""
        self._failures = self._redirects = 0
        if self.errors:
            self.errors.pop(address, None)

    def describe_errors(self) -> str:
        """What happened at each address, for an error message."""
        if not self.errors:
            return "no address was tried yet"
        return "; ".join(f"{address}: {_describe(error)}" for address, error in sorted(self.errors.items()))


def _describe(error: Exception) -> str:
    return str(error) or type(error).__name__
