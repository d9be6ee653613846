"""The Wing-Gong-Lowe search: is there one order of the operations that respects real time and explains every result?

It judges by what clients saw and knows nothing of slots or ballots. Objects are searched one by one (a history is
linearizable if it is so for every key). The search is exponential at worst, so it has a budget and may answer UNKNOWN;
use it on keys with up to some thousands of operations, and `register_check` or the witness check on everything.

Sources: Wing & Gong, "Testing and Verifying Concurrent Objects" (1993); Lowe, "Testing for Linearizability" (2017).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Generic, NamedTuple, TypeVar

from .history import Violation
from .operations import Operation, OperationKind, Outcome

__all__ = ["Register", "Search", "SequentialModel", "Verdict", "check_linearizable", "search"]

STEPS_MAX = 1_000_000
_SHOW_STEPS_MAX = 100_000
_SHOWN = 8

State = TypeVar("State", bound=Hashable)


class SequentialModel(ABC, Generic[State]):
    """What one object does when it is used by one client at a time. Define `init` and `step`.

    The other methods may tell more and only save time: what never changes anything is placed at once, and no state is
    left that somebody still has to see and nobody can bring back.
    """

    @abstractmethod
    def init(self) -> State:
        """Return the state before the first operation."""

    @abstractmethod
    def step(self, state: State, operation: Operation) -> tuple[bool, State]:
        """Return whether the operation may give its result in `state`, and the state after it.

        An operation of unknown outcome has no result to compare: it may always be applied.
        """

    def needs(self, operation: Operation) -> tuple[State, ...]:
        """Return (state,) if the operation has a result that it gives in that state only, else ()."""
        return ()

    def gives(self, operation: Operation) -> tuple[State, ...]:
        """Return (state,) if the operation may lead to that state, () if it never changes the state.

        Must be told of all operations if `needs` tells of any.
        """
        return ()

    def is_inert(self, operation: Operation) -> bool:
        """Whether its result shows that the operation changed nothing, wherever it took place."""
        return False


@dataclass(frozen=True)
class Register(SequentialModel[bytes | None]):
    """One key: read, write, compare and set, delete. The state is its value, None while there is no such key."""

    initial: bytes | None = None

    def init(self) -> bytes | None:
        """Return the value before the first operation."""
        return self.initial

    def step(self, state: bytes | None, operation: Operation) -> tuple[bool, bytes | None]:
        """Return whether the result fits the value, and the value after it."""
        kind, is_known = operation.kind, operation.outcome is Outcome.OK
        if kind is OperationKind.READ:
            return not is_known or operation.result == state, state
        if kind is OperationKind.WRITE:
            return True, operation.value
        if kind is OperationKind.DELETE:
            fits = not is_known or operation.result is None or operation.result is (state is not None)
            return fits, None
        swaps = operation.expected == state
        return not is_known or operation.result is swaps, operation.value if swaps else state

    def needs(self, operation: Operation) -> tuple[bytes | None, ...]:
        """Return the value that a read saw, or that a compare and set replaced."""
        if operation.outcome is not Outcome.OK:
            return ()
        if operation.kind is OperationKind.READ:
            return (None if isinstance(operation.result, bool) else operation.result,)
        return (operation.expected,) if operation.kind is OperationKind.CAS and operation.result is True else ()

    def gives(self, operation: Operation) -> tuple[bytes | None, ...]:
        """Return the value that is written; None for a delete."""
        return () if self.is_inert(operation) else (operation.value,)

    def is_inert(self, operation: Operation) -> bool:
        """Return True for reads, and for what found not what it should change."""
        return operation.kind is OperationKind.READ or (operation.outcome is Outcome.OK and operation.result is False)


class Verdict(Enum):
    """What a search found."""

    LINEARIZABLE = "linearizable"
    NOT_LINEARIZABLE = "not linearizable"
    UNKNOWN = "unknown"
    """The budget was used up."""


@dataclass(frozen=True)
class Search:
    """What became of one search.

    Attributes:
        steps: how often the model was asked.
        order: an order that explains everything; or the longest beginning of one that was found.
        stuck: what had begun there and had no answer yet, and of which nothing could come next.
    """

    verdict: Verdict
    steps: int
    order: list[Operation]
    stuck: list[Operation]

    def explain(self) -> str:
        """Return the end of the order and what could not follow it, as lines for a person."""
        lines = [f"{self.verdict.value} after {self.steps} steps; the longest order has {len(self.order)} operations"]
        lines += [f"  ... {operation}" for operation in self.order[-_SHOWN:]]
        lines += [f"  cannot follow: {operation}" for operation in self.stuck[:_SHOWN]]
        return "\n".join(lines)


def check_linearizable(
    operations: Iterable[Operation],
    model: SequentialModel[State] | None = None,
    *,
    steps_max: int = STEPS_MAX,
) -> dict[bytes, Search]:
    """Search every key for itself and return what was found, by key. Raises Violation for a key that has no order.

    Args:
        operations: one history; a key that begins with a value needs its own `model`.
        model: what one key does; `Register()` by default.
        steps_max: budget of each key.
    """
    by_key: dict[bytes, list[Operation]] = defaultdict(list)
    for operation in operations:
        by_key[operation.key].append(operation)
    searches = {}
    for key, of_key in sorted(by_key.items()):
        found = search(of_key, Register(), steps_max) if model is None else search(of_key, model, steps_max)
        if found.verdict is Verdict.NOT_LINEARIZABLE:
            raise Violation(f"key {key!r}: {found.explain()}", checker="linearizability")
        searches[key] = found
    return searches


def search(operations: Iterable[Operation], model: SequentialModel[State], steps_max: int = STEPS_MAX) -> Search:
    """Judge the operations on one object. Raises ValueError for what is no record of one.

    Real time: an operation comes before all that were asked after its answer, strictly. One of unknown outcome may
    take effect at any time after it was asked, or never; so a read without answer and everything that the client was
    told did not apply say nothing.
    """
    operations = list(operations)
    found = _SearchRun(operations, model, steps_max).run()
    if found.verdict is Verdict.NOT_LINEARIZABLE:
        # A search that foresees what will be needed stops early: for people, look how far one can get without.
        shown = _SearchRun(operations, model, min(steps_max, _SHOW_STEPS_MAX), foresees=False).run()
        found = replace(found, order=shown.order, stuck=shown.stuck)
    return found


class _Taken(NamedTuple, Generic[State]):
    """One step of a search, and how to go back to where it was taken."""

    choice: int
    """The call of a known operation in the list, or -1 - number of an unknown one."""
    state: State
    base: int
    window: int
    choices: Iterator[tuple[int, State]]
    """The alternatives that are left."""


class _SearchRun(Generic[State]):
    """One depth-first search with its memory.

    Known operations stand in a doubly linked list of calls and returns, in order of time: a call that is taken is
    lifted out with its return, and what stands before the first return left may come next. Operations of unknown
    outcome return never, so they stand outside the list, and are tried only after the known ones: most of them have
    no effect that anybody saw.

    Three rules save work and lose no order. A call that fits and never changes anything is taken at once, without an
    alternative: wherever it stands in an order, it may as well stand here. An unknown one that changes nothing here,
    or of which the next one leaves no trace, is left out: it may as well happen later. And see `SequentialModel.needs`.
    """

    def __init__(
        self, operations: Iterable[Operation], model: SequentialModel[State], steps_max: int, foresees: bool = True
    ) -> None:
        self._model = model
        self._steps_max = steps_max
        self._steps = 0
        known: list[Operation] = []
        self._unknown: list[Operation] = []
        for operation in operations:
            operation.validate()
            if operation.outcome is Outcome.OK:
                known.append(operation)
            elif operation.outcome is Outcome.UNKNOWN and operation.kind is not OperationKind.READ:
                self._unknown.append(operation)
        known.sort(key=_invoked_ns)
        self._unknown.sort(key=_invoked_ns)
        self._known = known
        self._link()
        # Configuration: known operations below `base` are taken, `window` has a bit for each taken one above, `used`
        # has a bit for each unknown one that was applied. Few are in flight at a time, so these numbers stay small.
        self._base = 0
        self._window = 0
        self._used = 0
        self._seen: set[tuple[int, int, int, State]] = set()
        self._needed = Counter(state for operation in known if foresees for state in model.needs(operation))
        self._given = Counter(state for operation in (*known, *self._unknown) for state in model.gives(operation))

    def _link(self) -> None:
        """Make the list. Entry 0 is its head; operation number i has the call 2i + 1 and the return 2i + 2."""
        events = []
        for number, operation in enumerate(self._known):
            # At equal times calls come first: only what was answered strictly before a call precedes it.
            events.append((operation.invoked_ns, 0, 2 * number + 1))
            events.append((operation.answered_ns or 0, 1, 2 * number + 2))
        events.sort()
        size = 2 * len(self._known) + 1
        self._next, self._previous = [0] * size, [0] * size
        last = 0
        for _, _, entry in events:
            self._next[last], self._previous[entry] = entry, last
            last = entry
        self._next[last], self._previous[0] = 0, last

    def run(self) -> Search:
        """Search until an order is found, none is left, or the budget is used up."""
        state = self._model.init()
        choices = self._choices(state, None)
        taken: list[_Taken[State]] = []
        longest: list[int] = []
        stuck = self._open_calls()
        while self._next[0]:
            if self._steps > self._steps_max:
                return Search(Verdict.UNKNOWN, self._steps, self._operations(longest), stuck)
            for choice, after in choices:
                if self._is_new(choice, after):
                    last = _Taken(choice, state, self._base, self._window, choices)
                    taken.append(last)
                    self._take(choice)
                    state, choices = after, self._choices(after, last)
                    break
            else:
                if len(taken) > len(longest):
                    longest, stuck = [last.choice for last in taken], self._open_calls()
                if not taken:
                    return Search(Verdict.NOT_LINEARIZABLE, self._steps, self._operations(longest), stuck)
                last = taken.pop()
                self._put_back(last.choice)
                state, choices, self._base, self._window = last.state, last.choices, last.base, last.window
        return Search(Verdict.LINEARIZABLE, self._steps, self._operations([last.choice for last in taken]), [])

    def _choices(self, state: State, last: _Taken[State] | None) -> Iterator[tuple[int, State]]:
        """Give what may come next in `state`, each with the state after it; `last` is what came just before."""
        changing = []
        entry = self._next[0]
        while entry & 1:
            operation = self._known[entry >> 1]
            self._steps += 1
            fits, after = self._model.step(state, operation)
            if fits and self._model.is_inert(operation):
                yield entry, after
                return
            if fits and not self._is_needed(state, operation) and not self._hides(last, operation, after):
                changing.append((entry, after))
            entry = self._next[entry]
        # A return: what was asked after it comes too late.
        limit_ns = self._known[(entry >> 1) - 1].answered_ns or 0
        yield from changing
        for number, operation in enumerate(self._unknown):
            if operation.invoked_ns > limit_ns:
                break
            if self._used >> number & 1:
                continue
            self._steps += 1
            fits, after = self._model.step(state, operation)
            if not fits or after == state or self._is_needed(state, operation):
                continue
            if not self._hides(last, operation, after):
                yield -1 - number, after

    def _hides(self, last: _Taken[State] | None, operation: Operation, after: State) -> bool:
        """Whether an unknown one was applied just before, for nothing: `operation` leads to `after` without it too."""
        if last is None or last.choice > 0:
            return False
        return self._model.step(last.state, operation) == (True, after)

    def _is_needed(self, state: State, operation: Operation) -> bool:
        """Whether others must still see `state`, and nothing can bring it back once `operation` has changed it."""
        needs = self._needed[state]
        return needs > 0 and not self._given[state] and needs > (state in self._model.needs(operation))

    def _is_new(self, choice: int, after: State) -> bool:
        """Note the configuration after a choice; False if the search was there before."""
        base, window, used = self._base, self._window, self._used
        if choice > 0:
            base, window = _slide(base, window | 1 << ((choice >> 1) - base))
        else:
            used |= 1 << (-1 - choice)
        configuration = (base, window, used, after)
        if configuration in self._seen:
            return False
        self._seen.add(configuration)
        return True

    def _count(self, operation: Operation, change: int) -> None:
        """Note that an operation is left (+1) or not left any more (-1)."""
        for state in self._model.needs(operation):
            if state in self._needed:
                self._needed[state] += change
        for state in self._model.gives(operation):
            self._given[state] += change

    def _take(self, choice: int) -> None:
        if choice < 0:
            self._used |= 1 << (-1 - choice)
            self._count(self._unknown[-1 - choice], -1)
            return
        self._base, self._window = _slide(self._base, self._window | 1 << ((choice >> 1) - self._base))
        self._count(self._known[choice >> 1], -1)
        for entry in (choice, choice + 1):
            before, after = self._previous[entry], self._next[entry]
            self._next[before], self._previous[after] = after, before

    def _put_back(self, choice: int) -> None:
        if choice < 0:
            self._used &= ~(1 << (-1 - choice))
            self._count(self._unknown[-1 - choice], 1)
            return
        self._count(self._known[choice >> 1], 1)
        for entry in (choice + 1, choice):
            before, after = self._previous[entry], self._next[entry]
            self._next[before] = self._previous[after] = entry

    def _open_calls(self) -> list[Operation]:
        """The calls before the first return, those that must come first before the others."""
        calls = []
        entry = self._next[0]
        while entry & 1:
            calls.append(self._known[entry >> 1])
            entry = self._next[entry]
        return sorted(calls, key=lambda operation: operation.answered_ns or 0)

    def _operations(self, choices: list[int]) -> list[Operation]:
        return [self._known[choice >> 1] if choice > 0 else self._unknown[-1 - choice] for choice in choices]


def _invoked_ns(operation: Operation) -> int:
    return operation.invoked_ns


def _slide(base: int, window: int) -> tuple[int, int]:
    """Return the same set with its lowest run of ones counted into `base`."""
    ones = ((window + 1) & ~window).bit_length() - 1
    return base + ones, window >> ones
