"""Runs under callgrind for callgrind.py: each workload once to warm up, then N and 2 N times between marks.

A program of its own that imports nothing of fastpaxos: what is counted decides what is loaded.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path


def mark() -> None:
    """Cut the profile here: callgrind dumps it when this C library function is entered."""
    os.getpriority(os.PRIO_PROCESS, 0)


def load(target: str) -> Callable[..., object]:
    """Import "module:function" or "path.py:function"."""
    place, _, name = target.rpartition(":")
    if place.endswith(".py"):
        path = Path(place)
        sys.path.insert(0, str(path.parent))
        module = importlib.import_module(path.stem)
    else:
        module = importlib.import_module(place)
    function: Callable[..., object] = getattr(module, name)
    return function


def main(text: str) -> None:
    """Run the workloads of a JSON list of {target, repetitions, arguments}."""
    workloads = [(load(item["target"]), item["repetitions"], item["arguments"]) for item in json.loads(text)]
    # When the collector runs depends on everything that was allocated before: it would count for whoever is at hand.
    gc.disable()
    for function, repetitions, arguments in workloads:
        # As much as will be measured: caches and the heap have the size that they keep.
        function(2 * repetitions, *arguments)
        gc.collect()
        mark()
        function(repetitions, *arguments)
        mark()
        function(2 * repetitions, *arguments)
        mark()


if __name__ == "__main__":
    main(sys.stdin.read())
