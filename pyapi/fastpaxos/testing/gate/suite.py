"""A suite: the Python file that says what a project's gate guards, and how another checkout of it is made ready."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .baseline import TOLERANCE, metrics_of
from .callgrind import Workload, count_workloads
from .pairs import Pair

__all__ = ["Suite", "load_suite"]


@dataclass(frozen=True)
class Suite:
    """What the names in a suite file mean.

    Attributes:
        path: the file.
        workloads: WORKLOADS, counted.
        baseline: BASELINE, the file of their counts.
        pairs: PAIRS, timed; may be missing.
        tolerance: TOLERANCE; 0.02 = 2 %.
        module_path: module_path(tree), the folders that count the code of another checkout; else the checkout itself.
        build_tree: build_tree(tree), which compiles another checkout; may be missing.
        environment: ENVIRONMENT, variables that the counted process needs; may be missing.
    """

    path: Path
    workloads: Sequence[Workload]
    baseline: Path
    pairs: Sequence[Pair]
    tolerance: float
    module_path: Callable[[Path], Sequence[Path]]
    build_tree: Callable[[Path], object]
    environment: Mapping[str, str]

    def count(self, tree: Path | None = None) -> dict[str, float]:
        """Count every workload and return all metrics; with the code of `tree` instead of what Python finds."""
        paths = self.module_path(tree) if tree is not None else ()
        profiles = count_workloads(self.workloads, paths, self.environment)
        counts: dict[str, float] = {}
        for workload in self.workloads:
            counts |= metrics_of(workload, profiles[workload.name])
        return counts


def load_suite(path: Path) -> Suite:
    """Run a suite file and return what it defines. Files beside it can be imported by it. Raises ValueError."""
    path = path.resolve()
    spec = importlib.util.spec_from_file_location(f"gate_suite_{abs(hash(path))}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    for name in ("WORKLOADS", "BASELINE"):
        if not hasattr(module, name):
            raise ValueError(f"{path} does not define {name}")
    return Suite(
        path=path,
        workloads=module.WORKLOADS,
        baseline=Path(module.BASELINE),
        pairs=getattr(module, "PAIRS", ()),
        tolerance=getattr(module, "TOLERANCE", TOLERANCE),
        module_path=getattr(module, "module_path", lambda tree: [tree]),
        build_tree=getattr(module, "build_tree", lambda tree: None),
        environment=getattr(module, "ENVIRONMENT", {}),
    )
