"""`python -m fastpaxos.testing.gate SUITE`: exit code 0 green, 1 red, 2 no verdict."""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from .baseline import Baseline, Comparison, Verdict, compare
from .callgrind import CallgrindError
from .pairs import PairResult, run_pair
from .reference import NoReferenceError, check_out, reference_commit, root_of
from .suite import Suite, load_suite
from .toolchain import describe_toolchain

GREEN, RED, NO_VERDICT = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tiers that are asked for, or renew the baseline; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m fastpaxos.testing.gate",
        description="Compare the instruction counts and the paired ratios of a suite with its limits.",
    )
    parser.add_argument("suite", type=Path, help="Python file that says what is guarded (docs/benchmarks.md)")
    parser.add_argument("--tier", choices=["deterministic", "timing", "all"], default="all")
    parser.add_argument("--renew", action="store_true", help="write the counts of this code as the new baseline")
    parser.add_argument("--tree", type=Path, help="count the code of this built checkout")
    parser.add_argument(
        "--reference", action="store_true", help="build and count the commit of the baseline, and compare"
    )
    parser.add_argument("--all", action="store_true", help="print every metric, not only what changed")
    options = parser.parse_args(arguments)
    status = GREEN
    try:
        suite = load_suite(options.suite)
        if options.renew:
            return renew_baseline(suite)
        if options.tier in ("deterministic", "all"):
            status |= check_counts(suite, options.tree, options.reference, options.all)
        if options.tier in ("timing", "all"):
            status |= check_pairs(suite)
    except (CallgrindError, NoReferenceError, subprocess.SubprocessError, ValueError, OSError) as error:
        print(f"no verdict: {error}", file=sys.stderr)
        return NO_VERDICT
    print("gate: " + ("red" if status else "green"))
    return status


def check_counts(suite: Suite, tree: Path | None, use_reference: bool, show_all: bool) -> int:
    """Count and compare; return the exit code."""
    baseline = Baseline.load(suite.baseline)
    begin = time.monotonic()
    now = suite.count(tree)
    print(f"{len(now)} instruction counts in {time.monotonic() - begin:.0f} s")
    differences = baseline.differences(describe_toolchain())
    if differences or use_reference:
        for difference in differences:
            print(f"the baseline is of another toolchain: {difference}")
        before = count_reference(suite)
    else:
        before = baseline.counts
    comparisons = compare(before, now, suite.tolerance)
    print_comparisons(comparisons, suite.tolerance, show_all)
    return RED if any(comparison.verdict.is_red for comparison in comparisons) else GREEN


def count_reference(suite: Suite) -> Mapping[str, float]:
    """Count the commit of the baseline with this toolchain; checkout, build and counts are kept under build/gate."""
    root = root_of(suite.path.parent)
    commit = reference_commit(suite.baseline)
    toolchain = hashlib.sha256(json.dumps(describe_toolchain(), sort_keys=True).encode()).hexdigest()
    tree = root / "build" / "gate" / f"{commit[:12]}-{toolchain[:8]}"
    counted = tree / "gate-counts.json"
    if not counted.exists():
        print(f"building and counting commit {commit[:12]} with this toolchain in {tree.relative_to(root)}")
        check_out(root, commit, tree)
        suite.build_tree(tree)
        of_commit = load_suite(tree / suite.path.relative_to(root))
        counted.write_text(json.dumps(of_commit.count(tree)))
    counts: dict[str, float] = json.loads(counted.read_text())
    return counts


def renew_baseline(suite: Suite) -> int:
    """Write new counts, and print what they replace."""
    now = Baseline(describe_toolchain(), suite.count())
    before = Baseline.load(suite.baseline) if suite.baseline.exists() else Baseline({}, {})
    for difference in before.differences(now.toolchain):
        print(f"toolchain {difference}")
    print_comparisons(compare(before.counts, now.counts, suite.tolerance), suite.tolerance, show_all=True)
    now.save(suite.baseline)
    print(f"written to {suite.baseline}: commit it together with the code that it was counted from")
    return GREEN


def print_comparisons(comparisons: list[Comparison], tolerance: float, show_all: bool) -> None:
    """Print a table, the worst first."""
    shown = [item for item in comparisons if show_all or item.verdict is not Verdict.SAME]
    if shown:
        print(f"{'instructions of one repetition':40s} {'before':>12s} {'now':>12s} {'change':>8s}")
    for item in sorted(shown, key=lambda item: (not item.verdict.is_red, -item.change)):
        before, now = ("-" if count is None else f"{count:,.0f}" for count in (item.before, item.now))
        print(f"{item.metric:40s} {before:>12s} {now:>12s} {100 * item.change:+7.2f}%  {item.verdict.value}")
    red = sum(item.verdict.is_red for item in comparisons)
    better = sum(item.verdict is Verdict.BETTER for item in comparisons)
    print(f"{len(comparisons)} metrics: {red} red, {better} better, the others within {100 * tolerance:g} %")
    if better:
        print("some became better: renew the baseline, or it guards the old figures")


def check_pairs(suite: Suite) -> int:
    """Time the pairs and compare with their bounds; return the exit code."""
    status = GREEN
    for pair in suite.pairs:
        result = run_pair(pair)
        print_pair(result)
        if result.broken:
            status = RED
    return status


def print_pair(result: PairResult) -> None:
    """Print the ratios of a pair."""
    for bound in result.pair.bounds:
        ratios = " ".join(f"{ratio:.3g}" for ratio in result.ratios[bound.metric])
        verdict = "BROKEN" if bound in result.broken else "holds"
        print(
            f"{result.pair.name}: {bound.metric} / reference {result.median(bound.metric):.3g} "
            f"(bound {bound}: {verdict}; rounds {ratios})"
        )


if __name__ == "__main__":
    sys.exit(main())
