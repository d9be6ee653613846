"""The benchmarks of the core run and check their own results: briefly, nothing is measured here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import fastpaxos_core
from fastpaxos.cli.cluster_process import child_environment

ROOT = Path(__file__).parents[2]
# Clusters are started by `make bench` alone.
FILES = ["bench_apply.py", "bench_codec.py", "bench_core.py", "bench_journal.py"]
BRIEFLY = ("--benchmark-only", "--benchmark-max-time=0.01", "--benchmark-min-rounds=1")


def test_every_benchmark_is_run_here_or_starts_clusters() -> None:
    assert sorted(path.name for path in (ROOT / "bench").glob("bench_*.py")) == sorted([*FILES, "bench_cluster.py"])


@pytest.mark.skipif(fastpaxos_core.build_info()["profile"] != "release", reason="benchmarks run on the release build")
def test_benchmarks_check_what_they_time() -> None:
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-o", "python_files=bench_*.py", *BRIEFLY]
    command += [f"bench/{file}" for file in FILES]
    # pytest-benchmark measures nothing where it sees workers of a parallel run, and these are none.
    environment = {name: value for name, value in child_environment().items() if not name.startswith("PYTEST_XDIST")}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
    assert "skipped" not in run.stdout
