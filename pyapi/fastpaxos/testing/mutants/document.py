"""The campaign as a page: docs/mutants.md is made by this and by nobody else."""

from __future__ import annotations

from statistics import median

from .catalogue import MUTANTS, NOT_APPLICABLE
from .model import Mutant, Pair
from .report import SIMULATION, Campaign, Outcome, percentile

__all__ = ["to_document", "to_table"]

_HEAD = "| # | Fault | Repeats | Deletes | Killed by | Seeds: median | p95 |"
_RULE = "|---|---|---|---|---|---|---|"


def to_table(campaign: Campaign) -> str:
    """One line per mutant: what it is, what it repeats, who killed it, after how many seeds."""
    chosen = sorted(campaign.chosen, key=lambda each: (isinstance(each, Pair), each.active))
    return "\n".join([_HEAD, _RULE, *(f"| {' | '.join(_cells(campaign, each))} |" for each in chosen)]) + "\n"


def to_document(campaign: Campaign, command: str) -> str:
    """The page; `command` is what was run."""
    facts = campaign.to_mapping()
    return f"""# Mutants

A mutant is one planted fault. `make build-mutants` compiles a copy of the sources with all of them, each behind a
switch that `FASTPAXOS_MUTANT` turns on ("17", or "2,16" for a pair); no other build has a trace of them. The catalogue
lies in `pyapi/fastpaxos/testing/mutants/`: real bugs of other systems, every safety rule and every durability gate of
the protocol deleted in turn, and what a mutation tool would do to the core. A kill counts only if the very same run is
clean without the mutant. A canary that fails on one seed in a hundred proves that failures are reported.

To run one: `fastpaxos sim mutants --only 17`; all of them: `fastpaxos sim mutants`; this page: `make mutants`.

{facts["killed"]} of {facts["mutants"]} mutants and pairs were killed. For those that the simulator kills it needed
{_number(facts["seeds_to_kill_median"])} seeds (median; 95th percentile {_number(facts["seeds_to_kill_p95"])};
{facts["base_seeds"]} base seeds, {facts["seeds_max"]} seeds at most); the others are killed by a test.
Command: `{command}`, {campaign.seconds / 60:.0f} minutes.

"Repeats" names the system in which the fault was found; "deletes" the rule of the safety list, or the gate, that is
gone.

{to_table(campaign)}
## Argued equivalent

{_equivalent()}
## Waiting for their feature

{_waiting()}"""


def _equivalent() -> str:
    lines = [f"- {mutant.number}, {mutant.title}: {mutant.equivalent}." for mutant in MUTANTS if mutant.equivalent]
    return "\n".join(lines) + "\n"


def _waiting() -> str:
    return "\n".join(f"- Row {entry.row}: {entry.why}." for entry in NOT_APPLICABLE) + "\n"


def _number(value: float | None) -> str:
    return "no" if value is None else f"{value:g}"


def _cells(campaign: Campaign, each: Mutant | Pair) -> list[str]:
    seeds = campaign.seeds_to_kill(each)
    killers = list(dict.fromkeys(_killer(o) for o in campaign.of(each.active) if o.verdict == "killed"))
    repeats, deletes = "", ""
    if isinstance(each, Mutant):
        rows = f" (row {', '.join(map(str, each.rows))})" if each.rows else ""
        repeats = each.origin + rows
        deletes = ", ".join([*each.rules, *([f"gate: {each.gate}"] if each.gate else [])])
    return [
        " + ".join(map(str, each.active)),
        each.title,
        repeats,
        deletes,
        ", ".join(killers[:3]) if campaign.is_killed(each) else "**survived**",
        f"{median(seeds):g}" if seeds else "",
        f"{percentile(seeds, 95)}" if seeds else "",
    ]


def _killer(outcome: Outcome) -> str:
    if outcome.layer == SIMULATION:
        return f"sim: {outcome.checker}"
    return f"`{outcome.checker.rpartition('/')[2]}`" if "::" in outcome.checker else f"`{outcome.layer}`"
