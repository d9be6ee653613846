"""Where the instructions of a profile belong: to the nearest stage above them in the call graph.

A stage names its functions. Everything that they call belongs to them, down to functions that another stage names; a
function with several callers is shared out by what its calls from each of them cost. What is above all stages is the
rest: the interpreter, and the loop that drives the work. The shares add up to the whole profile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .callgrind import Profile, readable_name

__all__ = ["REST", "functions_of_stages", "missing_functions"]

REST = "rest"
ROUNDS_MAX = 100
CONVERGED = 1e-6


def missing_functions(profile: Profile, stages: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the named functions that never ran: renamed, inlined, or not part of this work."""
    ran = {readable_name(symbol) for symbol in profile.own}
    return [name for names in stages.values() for name in names if name not in ran]


def functions_of_stages(profile: Profile, stages: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    """Return {stage: {function: own instructions}}, REST included. Functions are readable names."""
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
    result: dict[str, dict[str, float]] = {stage: {} for stage in [*stages, REST]}
    for symbol, count in profile.own.items():
        name = readable_name(symbol)
        for stage, share in shares[symbol].items():
            if share:
                result[stage][name] = result[stage].get(name, 0.0) + share * count
    return result
