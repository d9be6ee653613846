"""A slowdown of a known size in the accept path, to see the gate turn red: `python bench/planted.py --percent 5`.

The sources are copied with a loop planted behind the acceptor's store of a batch, and only that module is compiled
again; how often the loop turns is read from an environment variable when it is loaded. So one build can be calibrated:
counted with no turns and with many, and then set to the wanted share of what the accept path takes.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from gate_suite import ROOT, build_tree

from fastpaxos.testing.gate.__main__ import GREEN, RED, check_counts
from fastpaxos.testing.gate.suite import Suite, load_suite
from fastpaxos.testing.mutants.model import core
from fastpaxos.testing.mutants.source import write_sources

ENVIRONMENT_NAME = "FASTPAXOS_PLANTED_TURNS"
TREE = ROOT / "build" / "gate" / "planted"
WORKLOAD = "phase2 1024"
METRIC = f"{WORKLOAD}: accept"
CALIBRATION_TURNS = 1000

LOOP = f'''
cdef extern from *:
    """
    #include <stdlib.h>
    static long fp_planted_turns = 0;
    __attribute__((constructor)) static void fp_read_planted_turns(void) {{
        const char* text = getenv("{ENVIRONMENT_NAME}");
        if (text != NULL) fp_planted_turns = atol(text);
    }}
    static inline void fp_planted_cost(void) {{
        for (volatile long turn = 0; turn < fp_planted_turns; turn++) {{}}
    }}
    """
    void fp_planted_cost() noexcept nogil

'''
# With this indentation it stands there once; a duplicate is answered further in.
ACCEPTED = "\n        return self.note_acceptance(ticket, "
EDITS = (
    (1, core("acceptor", "\ncdef class Acceptor:\n", f"{LOOP}\ncdef class Acceptor:\n")),
    (1, core("acceptor", ACCEPTED, "\n        fp_planted_cost()" + ACCEPTED)),
)


def build_planted(tree: Path = TREE) -> None:
    """Write the planted copy and compile its acceptor; every other module is the built one of this tree."""
    write_sources(ROOT, tree, EDITS)
    folder = tree / "fastpaxos_core"
    for source in folder.glob("*.pyx"):
        if source.stem != "acceptor":
            source.unlink()
    for module in (ROOT / "fastpaxos_core").glob("*.so"):
        if module.name.split(".")[0] != "acceptor":
            shutil.copy2(module, folder / module.name)
    build_tree(tree)


def gate_suite() -> Suite:
    return load_suite(Path(__file__).with_name("gate_suite.py"))


def only_accept(suite: Suite) -> Suite:
    """The one workload that is calibrated."""
    return replace(suite, workloads=[item for item in suite.workloads if item.name == WORKLOAD])


def with_turns(suite: Suite, turns: int) -> Suite:
    """The suite with so many turns of the planted loop for every accepted batch."""
    return replace(suite, environment={ENVIRONMENT_NAME: str(turns)})


def turns_of_one_percent(suite: Suite) -> float:
    """Return the turns that make the accept path 1 % longer."""
    without = with_turns(only_accept(suite), 0).count(TREE)[METRIC]
    calibrated = with_turns(only_accept(suite), CALIBRATION_TURNS).count(TREE)[METRIC]
    return CALIBRATION_TURNS * 0.01 * without / (calibrated - without)


def main() -> int:
    """Return 0 if the gate is green without the slowdown and red with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--percent", type=float, default=5.0, help="of the instructions of the accept path")
    percent = parser.parse_args().percent
    build_planted()
    suite = gate_suite()
    turns = round(percent * turns_of_one_percent(suite))
    print("nothing planted:")
    without = check_counts(with_turns(suite, 0), TREE, use_reference=False, show_all=False)
    print(f"\n{percent:g} % of the accept path planted, {turns} turns of a loop for each accepted batch:")
    planted = check_counts(with_turns(suite, turns), TREE, use_reference=False, show_all=False)
    found = (without, planted) == (GREEN, RED)
    print("\nthe gate " + ("finds it" if found else "DOES NOT TELL the two apart"))
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
