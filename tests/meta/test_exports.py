"""The public names: complete, sorted, documented, and imported without side effects."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import fastpaxos
import fastpaxos_core
from fastpaxos.cli.cluster_process import child_environment

PROMISED = {
    "BlockingClient",
    "Busy",
    "Client",
    "Closed",
    "CommandError",
    "ConfigError",
    "ConnectionLost",
    "CorruptionError",
    "DeadlineExceeded",
    "FastPaxosError",
    "FrameError",
    "InternalError",
    "InvariantError",
    "NoLeader",
    "Node",
    "NodeConfig",
    "NotApplied",
    "OutcomeUnknown",
    "Rejected",
    "SessionExpired",
    "StateMachine",
    "TooLarge",
}
PACKAGE = Path(fastpaxos.__file__ or "").parent
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("__"))


def test_promised_names_are_exported() -> None:
    assert set(fastpaxos.__all__) >= PROMISED


@pytest.mark.parametrize("package", [fastpaxos, fastpaxos_core], ids=lambda package: package.__name__)
def test_all_is_sorted_and_every_name_exists_and_is_documented(package: object) -> None:
    names = package.__all__  # type: ignore[attr-defined]
    assert list(names) == sorted(set(names))
    for name in names:
        value = getattr(package, name)
        if inspect.isclass(value) or inspect.isroutine(value):
            assert (value.__doc__ or "").strip(), f"{name} has no docstring"


@pytest.mark.parametrize("name", MODULES)
def test_every_module_names_what_it_offers(name: str) -> None:
    module = importlib.import_module(f"fastpaxos.{name}")
    assert module.__all__, f"{name} exports nothing"
    assert [public for public in module.__all__ if not hasattr(module, public)] == []


def test_every_error_has_a_place_in_the_tree() -> None:
    errors = [getattr(fastpaxos, name) for name in fastpaxos.__all__ if name in PROMISED]
    errors = [error for error in errors if inspect.isclass(error) and issubclass(error, BaseException)]
    assert len(errors) >= 15
    assert all(issubclass(error, fastpaxos.FastPaxosError) for error in errors)
    safe = (fastpaxos.Busy, fastpaxos.NoLeader, fastpaxos.Rejected, fastpaxos.TooLarge)
    assert all(issubclass(error, fastpaxos.NotApplied) for error in safe)
    unknown = (fastpaxos.DeadlineExceeded, fastpaxos.ConnectionLost, fastpaxos.SessionExpired)
    assert all(issubclass(error, fastpaxos.OutcomeUnknown) for error in unknown)
    assert not issubclass(fastpaxos.OutcomeUnknown, fastpaxos.NotApplied)


def test_import_has_no_side_effects() -> None:
    program = """
import asyncio, logging, signal, sys, threading
policy = asyncio.get_event_loop_policy()
handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
import fastpaxos
assert asyncio.get_event_loop_policy() is policy
assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
assert logging.getLogger().handlers == [] and logging.getLogger("fastpaxos").handlers == []
assert threading.active_count() == 1
assert not {"click", "rich"} & set(sys.modules)
"""
    command = [sys.executable, "-P", "-W", "error", "-c", program]
    result = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_versions_agree() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert fastpaxos.__version__ == fastpaxos_core.build_info()["version"] == project["version"]
