"""Where the instructions of a profile belong: to the nearest stage above them in the call graph.

A stage names its functions. Everything that they call belongs to them, down to functions that another stage names; a
function with several callers is shared out by what its calls from each of them cost. What is above all stages is the
rest: the interpreter, and the loop that drives the work. The shares add up to the whole profile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .callgrind import Profile, readable_name

__all__ = ["ALLOCATORS", "REST", "functions_of_stages", "missing_functions", "with_flat_memory"]

REST = "rest"
ALLOCATORS = frozenset(
    prefix + verb
    for prefix in ("PyObject_", "_PyObject_", "PyMem_", "_PyMem_", "PyMem_Raw", "_PyMem_Raw")
    for verb in ("Malloc", "Calloc", "Realloc", "Free")
) | {"malloc", "calloc", "realloc", "free"}
ALLOCATION_PRICE = 40.0
"""Instructions that a call of an allocator counts for; close to what one takes on average."""
ROUNDS_MAX = 100
CONVERGED = 1e-6


def missing_functions(profile: Profile, stages: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the named functions that never ran: renamed, inlined, or not part of this work."""
    ran = {readable_name(symbol) for symbol in profile.own}
    return [name for names in stages.values() for name in names if name not in ran]


def functions_of_stages(profile: Profile, stages: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    """Return {stage: {function: own instructions}}, REST included. Functions are readable names."""
    result: dict[str, dict[str, float]] = {stage: {} for stage in [*stages, REST]}
    for symbol, shares in _shares(profile, stages).items():
        name = readable_name(symbol)
        for stage, share in shares.items():
            if share:
                result[stage][name] = result[stage].get(name, 0.0) + share * profile.own.get(symbol, 0.0)
    return result


def with_flat_memory(profile: Profile) -> Profile:
    """Return the profile with ALLOCATION_PRICE for every call of an allocator instead of what it took.

    That depends on where everything else happens to lie: the same work differed by 3 % after other work. How often
    memory is taken and given back depends on the work alone.
    """
    is_allocator = {symbol for symbol in profile.own if symbol in ALLOCATORS}
    own = {}
    for symbol, shares in _shares(profile, {"memory": sorted(is_allocator)}).items():
        if symbol not in is_allocator:
            own[symbol] = profile.own.get(symbol, 0.0) * shares.get(REST, 0.0)
    arcs = dict(profile.arcs)
    for (caller, callee), count in profile.calls.items():
        if callee in is_allocator and caller not in is_allocator:
            arcs[caller, callee] = count * ALLOCATION_PRICE
            own[callee] = own.get(callee, 0.0) + count * ALLOCATION_PRICE
    return Profile(sum(own.values()), own, arcs, profile.calls)


def _shares(profile: Profile, stages: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    """Return {C symbol: {stage: share of its own instructions}}."""
    stage_of = {name: stage for stage, names in stages.items() for name in names}
    callers: dict[str, list[tuple[str, float]]] = {}
    shares: dict[str, dict[str, float]] = {}
    for (caller, callee), count in profile.arcs.items():
        if caller != callee and count > 0:
            callers.setdefault(callee, []).append((caller, count))
    symbols = {*profile.own, *callers, *(caller for caller, _ in profile.arcs)}
    for symbol in symbols:
        stage = stage_of.get(readable_name(symbol))
        shares[symbol] = {stage or REST: 1.0}
        if stage is not None:
            callers.pop(symbol, None)
    # Callers of callers: a call graph is as deep as it is, so repeat until nothing moves.
    for _ in range(ROUNDS_MAX):
        moved = 0.0
        for symbol, incoming in callers.items():
            whole = sum(count for _, count in incoming)
            found: dict[str, float] = {}
            for caller, count in incoming:
                for stage, share in shares[caller].items():
                    found[stage] = found.get(stage, 0.0) + share * count / whole
            before = shares[symbol]
            moved = max(moved, *(abs(found.get(key, 0.0) - before.get(key, 0.0)) for key in {**found, **before}))
            shares[symbol] = found
        if moved < CONVERGED:
            break
    return shares
