"""Instructions of the core per slot and replica, counted by callgrind: exact on any machine, however noisy.

The same work is run with N and 2N batches and subtracted, so that start-up cancels. Needs valgrind.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPLICAS = 3
BATCHES = 64
SLOTS = (1, 64, 1024, 4096)
INSTRUCTIONS_MAX = {1024: 60}
"""Highest allowed count per slot and replica, by slots per batch."""


def count_instructions(batch_count: int, slot_count: int) -> int:
    """Run core_batches.py under callgrind and return how many instructions the process executed."""
    # One thread and one hash seed: nothing but the work may differ between two runs.
    environment = {**os.environ, "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(
            ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out", sys.executable,
             str(Path(__file__).with_name("core_batches.py")), str(batch_count), str(slot_count)],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    found = re.search(r"Collected : (\d+)", run.stderr)
    if run.returncode or found is None:
        raise SystemExit(f"callgrind failed ({run.returncode}):\n{run.stdout}{run.stderr}")
    return int(found[1])


def main() -> int:
    if shutil.which("valgrind") is None:
        print("valgrind is not installed: apt-get install valgrind", file=sys.stderr)
        return 1
    too_many = False
    print("slots per batch   instructions per batch   per slot and replica")
    for slot_count in SLOTS:
        once = count_instructions(BATCHES, slot_count)
        twice = count_instructions(2 * BATCHES, slot_count)
        per_batch = (twice - once) / BATCHES
        per_slot = per_batch / slot_count / REPLICAS
        allowed = INSTRUCTIONS_MAX.get(slot_count)
        too_many |= allowed is not None and per_slot > allowed
        print(
            f"{slot_count:15d}   {per_batch:22.0f}   {per_slot:20.1f}" + (f"   (at most {allowed})" if allowed else "")
        )
    return int(too_many)


if __name__ == "__main__":
    raise SystemExit(main())
