"""Builds the compiled core: a list of extensions, one table of directives, one table of build profiles.

FASTPAXOS_BUILD=release|checked|coverage|asan|mutants chooses the profile (default: release). All metadata is in
pyproject.toml. Profile mutants compiles the copy of the sources that `make build-mutants` writes.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

PROFILE = os.environ.get("FASTPAXOS_BUILD", "release")

DIRECTIVES = {
    "language_level": 3,
    "binding": True,
    "embedsignature": True,
    "wraparound": False,
    "boundscheck": False,
    "initializedcheck": False,
    "nonecheck": False,
    "overflowcheck": False,
    "cdivision": True,
}
CHECKS = {"boundscheck": True, "initializedcheck": True, "nonecheck": True, "overflowcheck": True, "cdivision": False}

PROFILES: dict[str, tuple[dict[str, bool], list[str], list[str], list[tuple[str, str]]]] = {
    # profile: (directives, compile flags, link flags, macros)
    "release": ({}, ["-O3", "-fno-strict-aliasing"], [], []),
    "checked": (CHECKS, ["-O1", "-g"], [], [("FASTPAXOS_CHECKED", "1")]),
    "coverage": (
        {**CHECKS, "linetrace": True},
        ["-O0"],
        [],
        [("CYTHON_TRACE_NOGIL", "1"), ("CYTHON_USE_SYS_MONITORING", "0")],
    ),
    "asan": (
        CHECKS,
        ["-O1", "-g", "-fsanitize=address,undefined", "-fno-omit-frame-pointer"],
        ["-fsanitize=address,undefined"],
        [("FASTPAXOS_CHECKED", "1")],
    ),
    "mutants": ({}, ["-O2", "-fno-strict-aliasing"], [], []),
}
if PROFILE not in PROFILES:
    raise SystemExit(f"FASTPAXOS_BUILD={PROFILE!r} is unknown; use one of {', '.join(PROFILES)}")

directives, compile_flags, link_flags, macros = PROFILES[PROFILE]
macros = [*macros, ("FASTPAXOS_PROFILE", f'"{PROFILE}"')]

HEADERS = [header.as_posix() for header in sorted(Path("fastpaxos_core").glob("*.h"))]

extensions = [
    Extension(
        f"fastpaxos_core.{source.stem}",
        [source.as_posix()],
        depends=HEADERS,
        include_dirs=["fastpaxos_core"],
        extra_compile_args=["-Wall", "-Wno-unused-function", "-Wno-unreachable-code", *compile_flags],
        extra_link_args=link_flags,
        define_macros=macros,
    )
    for source in sorted(Path("fastpaxos_core").glob("*.pyx"))
]

setup(
    ext_modules=cythonize(
        extensions,
        compiler_directives={**DIRECTIVES, **directives},
        build_dir=f"build/{PROFILE}/cython",
        nthreads=int(os.environ.get("FASTPAXOS_JOBS", "0")),
    )
)
