"""What a state machine must not depend on, made different for every node: clocks, and the global random generator.

While user code runs, the functions of `time`, `datetime.datetime`, `datetime.date` and the state of `random` are those
of one simulated node. Names that the machine's own modules imported (`from time import time`) are replaced as well.
"""

from __future__ import annotations

import datetime
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Environment"]

_NS = 1_000_000_000
_OWN_PACKAGES = ("fastpaxos", "fastpaxos_core", "builtins", "typing", "abc")


class Environment:
    """The clocks and the random generator that one machine sees.

    Args:
        machine: the modules of its classes are those whose imported names are replaced.
        wall_ns, monotonic_ns: the clocks.
        seed: of the random generator; no two machines may have the same.
    """

    def __init__(self, machine: object, wall_ns: Callable[[], int], monotonic_ns: Callable[[], int], seed: str) -> None:
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns
        self._random_state = random.Random(seed).getstate()
        self._used: dict[str, None] = {}
        self._patches = self._make_patches(machine)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Run user code with this environment."""
        self._used.clear()
        state_before = random.getstate()
        random.setstate(self._random_state)
        for namespace, name, replacement, _ in self._patches:
            namespace[name] = replacement
        try:
            yield
        finally:
            for namespace, name, _, original in self._patches:
                namespace[name] = original
            state_after = random.getstate()
            if state_after != self._random_state:
                self._used["random"] = None
            self._random_state = state_after
            random.setstate(state_before)

    @property
    def used(self) -> list[str]:
        """What the code that ran last asked for, and should not have."""
        return [*self._used]

    def _make_patches(self, machine: object) -> list[tuple[dict[str, Any], str, Any, Any]]:
        replacements = [
            *((getattr(time, name), function) for name, function in self._time_functions().items()),
            (datetime.datetime, self._datetime()),
            (datetime.date, self._date()),
        ]
        modules = [time, datetime]
        for each in type(machine).__mro__:
            module = sys.modules.get(each.__module__)
            if module is not None and each.__module__.partition(".")[0] not in _OWN_PACKAGES:
                modules.append(module)
        patches = []
        for namespace in {id(module): vars(module) for module in modules}.values():
            for name, value in namespace.items():
                patches += [(namespace, name, new, old) for old, new in replacements if value is old]
        return patches

    def _time_functions(self) -> dict[str, Callable[..., Any]]:
        def wall(name: str) -> int:
            self._used[name] = None
            return self._wall_ns()

        def monotonic(name: str) -> int:
            self._used[name] = None
            return self._monotonic_ns()

        def of_now(name: str, arguments_before: int) -> Callable[..., Any]:
            """A function of `time` whose last argument is now if it is left out or None."""
            original, localtime = getattr(time, name), time.localtime

            def function(*arguments: Any) -> Any:
                if [argument for argument in arguments if argument is not None][arguments_before:]:
                    return original(*arguments)
                now_s = wall(f"time.{name}") / _NS
                now = localtime(now_s) if name in ("strftime", "asctime") else now_s
                return original(*arguments[:arguments_before], now)

            return function

        functions: dict[str, Callable[..., Any]] = {
            "time": lambda: wall("time.time") / _NS,
            "time_ns": lambda: wall("time.time_ns"),
            **{name: of_now(name, 0) for name in ("gmtime", "localtime", "ctime", "asctime")},
            "strftime": of_now("strftime", 1),
        }
        for name in ("monotonic", "perf_counter", "process_time", "thread_time"):
            functions[name] = lambda name=name: monotonic(f"time.{name}") / _NS
            functions[f"{name}_ns"] = lambda name=name: monotonic(f"time.{name}_ns")
        return functions

    def _now(self, name: str) -> float:
        self._used[name] = None
        return self._wall_ns() / _NS

    def _datetime(self) -> type:
        real, environment = datetime.datetime, self

        class Meta(type):
            def __instancecheck__(cls, value: object) -> bool:
                return isinstance(value, real)

        class NodeDatetime(datetime.datetime, metaclass=Meta):
            """`datetime.datetime` with the clock of one node; its instances are plain ones."""

            def __new__(cls, *arguments: Any, **keywords: Any) -> Any:
                return real(*arguments, **keywords)

            @classmethod
            def now(cls, tz: datetime.tzinfo | None = None) -> Any:
                return real.fromtimestamp(environment._now("datetime.now"), tz)

            @classmethod
            def utcnow(cls) -> Any:
                return real.fromtimestamp(environment._now("datetime.utcnow"), datetime.UTC).replace(tzinfo=None)

            @classmethod
            def today(cls) -> Any:
                return cls.now()

        return NodeDatetime

    def _date(self) -> type:
        real, environment = datetime.date, self

        class Meta(type):
            def __instancecheck__(cls, value: object) -> bool:
                return isinstance(value, real)

        class NodeDate(datetime.date, metaclass=Meta):
            """`datetime.date` with the clock of one node; its instances are plain ones."""

            def __new__(cls, *arguments: Any, **keywords: Any) -> Any:
                return real(*arguments, **keywords)

            @classmethod
            def today(cls) -> Any:
                return real.fromtimestamp(environment._now("date.today"))

        return NodeDate
