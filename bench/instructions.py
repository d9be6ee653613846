"""Instructions of the core per slot and replica, by stage, counted by callgrind: exact on any machine, however noisy.

The same work is done N and 2 N times and subtracted, so that start-up cancels. Needs valgrind.

    python bench/instructions.py --slots 1024 --functions --top 40
"""

from __future__ import annotations

import argparse
import json
import sys

from gate_suite import REPLICAS, STAGES, phase2

from fastpaxos.testing.gate.callgrind import CallgrindError, Profile, count_workloads, readable_name
from fastpaxos.testing.gate.stages import REST, functions_of_stages, missing_functions

SLOTS = (1, 64, 1024, 4096)
PHASE2_TARGET = {1024: 10.0}
"""P6: highest wanted count of accept + vote + commit + deliver per slot and replica, by slots per batch."""

PHASE2 = ("accept", "vote", "commit", "deliver")


def stage_report(profile: Profile, slot_count: int) -> dict[str, object]:
    """Return what one batch costs: total, and per slot and replica by stage."""
    divisor = slot_count * REPLICAS
    parts = functions_of_stages(profile, STAGES)
    stages = {stage: sum(functions.values()) / divisor for stage, functions in parts.items()}
    return {
        "slots_per_batch": slot_count,
        "instructions_per_batch": round(profile.total),
        "per_slot_and_replica": round(profile.total / divisor, 2),
        "phase2_per_slot_and_replica": round(sum(stages[stage] for stage in PHASE2), 2),
        "phase2_target": PHASE2_TARGET.get(slot_count),
        "stages": {stage: round(count, 3) for stage, count in stages.items()},
        "not_found": missing_functions(profile, STAGES),
    }


def print_functions(profile: Profile, slot_count: int, top: int) -> None:
    """Print the C functions of one batch: own and inclusive instructions, and how much of `own` each stage caused."""
    divisor = slot_count * REPLICAS
    parts = functions_of_stages(profile, STAGES)
    readable: dict[str, list[float]] = {}
    inclusive = profile.inclusive()
    calls = profile.times_called()
    for symbol, count in inclusive.items():
        sums = readable.setdefault(readable_name(symbol), [0.0, 0.0, 0.0])
        for index, value in enumerate((profile.own.get(symbol, 0.0), count, calls.get(symbol, 0.0))):
            sums[index] += value

    def line(name: str) -> str:
        own, whole, calls = readable[name]
        shares = {stage: functions[name] for stage, functions in parts.items() if functions.get(name, 0.0) >= 0.5}
        split = ", ".join(f"{stage} {count:.0f}" for stage, count in sorted(shares.items(), key=lambda item: -item[1]))
        return f"{own:9.0f} {own / divisor:8.2f} {whole:9.0f} {calls:7.2f}  {name:44s} {split}"

    heading = (
        f"{'own':>9s} {'per slot':>8s} {'inclusive':>9s} {'calls':>7s}  {'function':44s} own instructions by stage"
    )
    in_phase2 = {
        name: sum(parts[stage].get(name, 0.0) for stage in PHASE2) for stage in PHASE2 for name in parts[stage]
    }
    print(f"\n{slot_count} slots: own instructions per batch on all replicas, and per slot and replica\n{heading}")
    for name in sorted(readable, key=lambda name: -readable[name][0])[:top]:
        print(line(name))
    print(f"\n{slot_count} slots: the same, by what accept, vote, commit and deliver cause\n{heading}")
    for name in sorted(in_phase2, key=lambda name: -in_phase2[name])[:top]:
        print(line(name))
    named = {name for names in STAGES.values() for name in names}
    print(f"\n{slot_count} slots: functions of the core by what a call costs with all it calls\n{heading}")
    core = [name for name in readable if name in named or (name.count(".") >= 2 and name[0].islower())]
    for name in sorted(core, key=lambda name: -readable[name][1])[:top]:
        print(line(name))


def print_report(report: dict[str, object]) -> None:
    target = report["phase2_target"]
    stages = report["stages"]
    assert isinstance(stages, dict)
    print(
        f"{report['slots_per_batch']:>5} slots {report['instructions_per_batch']:>9,} per batch"
        f"   {report['per_slot_and_replica']:>9} per slot and replica"
        f"   accept + vote + commit + deliver {report['phase2_per_slot_and_replica']}"
        + (f" (target: at most {target})" if target else "")
    )
    print("      " + "  ".join(f"{stage} {count:.2f}" for stage, count in stages.items()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, action="append", help="slots per batch; may be given several times")
    parser.add_argument("--functions", action="store_true", help="print the C functions that the instructions are in")
    parser.add_argument("--top", type=int, default=30, help="how many functions of each list")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    slots = options.slots or list(SLOTS)
    try:
        profiles = count_workloads([phase2(slot_count) for slot_count in slots])
    except CallgrindError as error:
        print(error, file=sys.stderr)
        return 1
    reports = [stage_report(profiles[phase2(slot_count).name], slot_count) for slot_count in slots]
    if options.json:
        print(json.dumps({"benchmark": "instructions", "replicas": REPLICAS, "batches": reports}, indent=2))
    else:
        print(f"instructions per slot and replica, {REPLICAS} replicas, by stage; {REST}: the Python loop around them")
        for slot_count, report in zip(slots, reports, strict=True):
            print_report(report)
            if options.functions:
                print_functions(profiles[phase2(slot_count).name], slot_count, options.top)
    missing = sorted({name for report in reports for name in report["not_found"]})  # type: ignore[attr-defined]
    if missing:
        print(f"never ran, so STAGES does not fit the core any more: {', '.join(missing)}", file=sys.stderr)
    return int(bool(missing))


if __name__ == "__main__":
    raise SystemExit(main())
