"""All checks of a round put together, and the files from which they can be made again.

Two of them know the log, which the replicas wrote, and judge every call. Two know only what clients asked and were
told; they would see a log that the replicas agreed on and that is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastpaxos.testing.chaos.calls import Call, read_calls, to_operation, write_calls
from fastpaxos.testing.chaos.witness import Applied, check_calls, check_replicas
from fastpaxos.testing.chaos.workload import COUNTER_PREFIX
from fastpaxos.testing.history import Violation
from fastpaxos.testing.linearizability import Verdict as SearchVerdict
from fastpaxos.testing.linearizability import check_linearizable
from fastpaxos.testing.register_check import check_registers

__all__ = ["Verdict", "judge", "read_evidence", "write_evidence"]

CALLS_NAME = "calls.jsonl"
APPLIED_NAME = "applied-{}.jsonl"
DIGESTS_NAME = "digests.json"
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
    keys_searched: int = 0
    """Keys whose calls were searched for one order that explains them."""
    searches_given_up: int = 0
    """Of these, the ones for which that took too long."""
    problems: list[str] = field(default_factory=list)


def judge(calls: Sequence[Call], logs: Mapping[int, Sequence[Applied]], digests: Mapping[int, str]) -> Verdict:
    """Judge the calls of a round by what its replicas applied, and the replicas by each other."""
    verdict = Verdict()
    verdict.problems += check_replicas(logs, digests)
    witness = check_calls(calls, max(logs.values(), key=len, default=[]))
    verdict.checked = witness.checked
    verdict.problems += witness.problems
    del verdict.problems[PROBLEMS_MAX:]
    try:
        check_clients_word(calls, verdict)
    except (Violation, ValueError) as error:
        verdict.problems.append(str(error))
    return verdict


def check_clients_word(calls: Iterable[Call], verdict: Verdict) -> None:
    """Judge reads, puts and compare-and-sets by what clients saw alone; count them. Raises Violation, ValueError.

    Increments are left to the log: one of unknown outcome hides the number that the next one begins with.
    """
    operations = [operation for operation in map(to_operation, calls) if operation is not None]
    registers = [operation for operation in operations if not operation.key.startswith(COUNTER_PREFIX)]
    verdict.checked_by_clients_word = check_registers(registers)
    searches = check_linearizable(registers, steps_max=SEARCH_STEPS_MAX)
    verdict.keys_searched = len(searches)
    verdict.searches_given_up = sum(each.verdict is not SearchVerdict.LINEARIZABLE for each in searches.values())


def write_evidence(
    folder: Path, calls: Iterable[Call], logs: Mapping[int, Sequence[Applied]], digests: Mapping[int, str]
) -> None:
    """Write what `judge` was given, so that it can be judged again."""
    write_calls(folder / CALLS_NAME, calls)
    for node_id, log in logs.items():
        with (folder / APPLIED_NAME.format(node_id)).open("w", encoding="ascii") as file:
            file.writelines(json.dumps({"slot": each.slot, "command": each.command.hex()}) + "\n" for each in log)
    (folder / DIGESTS_NAME).write_text(json.dumps({str(node_id): digest for node_id, digest in digests.items()}))


def read_evidence(folder: Path) -> tuple[list[Call], dict[int, list[Applied]], dict[int, str]]:
    """Read what `write_evidence` wrote: calls, logs and digests. Raises OSError, ValueError."""
    digests = {int(node_id): digest for node_id, digest in json.loads((folder / DIGESTS_NAME).read_text()).items()}
    logs: dict[int, list[Applied]] = {}
    for node_id in digests:
        with (folder / APPLIED_NAME.format(node_id)).open(encoding="ascii") as file:
            lines = [json.loads(line) for line in file]
        logs[node_id] = [Applied(line["slot"], bytes.fromhex(line["command"])) for line in lines]
    return list(read_calls(folder / CALLS_NAME)), logs, digests
