"""The gate on a copy of the core whose accept path has a planted slowdown of a known size."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import fastpaxos_core
from fastpaxos.testing.gate import Verdict, compare
from fastpaxos.testing.mutants.source import mutated_sources

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def bench_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))


def test_the_planted_loop_fits_the_sources() -> None:
    import planted

    ((file, text),) = mutated_sources(ROOT, planted.EDITS).items()
    assert file == "fastpaxos_core/acceptor.pyx"
    assert text.count("        fp_planted_cost()\n") == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
@pytest.mark.skipif(fastpaxos_core.build_info()["profile"] != "release", reason="the gate counts the release build")
def test_five_percent_of_the_accept_path_are_red_and_one_percent_is_green() -> None:
    import planted

    planted.build_planted()
    suite = planted.only_accept(planted.gate_suite())
    without = planted.with_turns(suite, 0).count(planted.TREE)
    one_percent = planted.turns_of_one_percent(suite)
    verdicts = {}
    for percent in (5.0, 1.0):
        now = planted.with_turns(suite, round(percent * one_percent)).count(planted.TREE)
        (item,) = [item for item in compare(without, now, suite.tolerance) if item.metric == planted.METRIC]
        assert 100 * item.change == pytest.approx(percent, abs=0.5)
        verdicts[percent] = item.verdict
    assert verdicts == {5.0: Verdict.WORSE, 1.0: Verdict.SAME}
