"""One row of the table of targets, measured with real processes, in the shortest time that gives figures."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pytest

# Behind everything else: the release build in the source tree must not hide the build that is tested.
sys.path.append(str(Path(__file__).parents[2]))

from bench.targets.__main__ import main


def test_the_latency_row_is_measured_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (temporary := tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    file = tmp_path / "targets.json"
    code = main(["--only", "P3", "--rounds", "1", "--seconds", "0.3", "--json", str(file)])
    (row,) = json.loads(file.read_text())["rows"]
    assert row["reason"] == ""
    assert row["rounds"][0]["figure"] > row["rounds"][0]["reference"] / 10 > 0
    assert code == (0 if row["met"] else 1)
    assert "| P3 | latency of one command alone, p50 | `fastpaxos bench closed" in capsys.readouterr().out
    assert list(temporary.iterdir()) == []
