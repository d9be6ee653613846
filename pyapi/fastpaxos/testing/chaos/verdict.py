"""All checks of a round put together, and the files from which they can be made again.

Two of them know the log, which the replicas wrote, and judge every call. Two know only what clients asked and were
told; they would see a log that the replicas agreed on and that is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastpaxos.testing.chaos.calls import Call, to_operation
from fastpaxos.testing.chaos.witness import Applied, check_calls, check_replicas
from fastpaxos.testing.chaos.workload import COUNTER_PREFIX
from fastpaxos.testing.history import Violation
from fastpaxos.testing.linearizability import check_linearizable
from fastpaxos.testing.register_check import check_registers

__all__ = ["Verdict", "judge", "read_applied", "write_applied"]

PROBLEMS_MAX = 50
# For each key; most need a few steps per operation. A search that gives up says nothing; the other checks do.
SEARCH_STEPS_MAX = 200_000


@dataclass(slots=True)
class Verdict:
    """`problems` has a sentence for each violation, the first 50 of them."""

    checked: int = 0
    """Calls that were compared with the log."""
    checked_by_clients_word: int = 0
    """Calls that were also judged without the log, and without what replicas say about it."""
    problems: list[str] = field(default_factory=list)


def judge(calls: Sequence[Call], logs: Mapping[int, Sequence[Applied]], digests: Mapping[int, str]) -> Verdict:
    """Judge the calls of a round by what its replicas applied, and the replicas by each other."""
    verdict = Verdict()
    verdict.problems += check_replicas(logs, digests)
    witness = check_calls(calls, max(logs.values(), key=len))
    verdict.checked = witness.checked
    verdict.problems += witness.problems
    del verdict.problems[PROBLEMS_MAX:]
    try:
        verdict.checked_by_clients_word = check_clients_word(calls)
    except (Violation, ValueError) as error:
        verdict.problems.append(str(error))
    return verdict


def check_clients_word(calls: Iterable[Call]) -> int:
    """Judge reads, puts and compare-and-sets by what clients saw alone; return how many. Raises Violation.

    Increments are left to the log: one of unknown outcome hides the number that the next one begins with.
    """
    operations = [operation for operation in map(to_operation, calls) if operation is not None]
    registers = [operation for operation in operations if not operation.key.startswith(COUNTER_PREFIX)]
    judged = check_registers(registers)
    check_linearizable(registers, steps_max=SEARCH_STEPS_MAX)
    return judged


def write_applied(path: Path, log: Iterable[Applied]) -> None:
    """Write one line of JSON per command that took effect."""
    with path.open("w", encoding="ascii") as file:
        file.writelines(json.dumps({"slot": each.slot, "command": each.command.hex()}) + "\n" for each in log)


def read_applied(path: Path) -> list[Applied]:
    """Read what `write_applied` wrote."""
    with path.open(encoding="ascii") as file:
        lines = [json.loads(line) for line in file]
    return [Applied(line["slot"], bytes.fromhex(line["command"])) for line in lines]
