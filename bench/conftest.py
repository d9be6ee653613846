"""Shared by the benchmarks: what every figure must be read with."""

from __future__ import annotations

import os
import platform
from typing import Any

import pytest

import fastpaxos_core


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["cores"] = os.cpu_count()
    machine_info["build"] = fastpaxos_core.build_info()
    machine_info["kernel"] = platform.release()
