"""Builds what the fuzzer itself is made of, next to an instrumented core in build/fuzz/lib (make fuzz runs both).

    FASTPAXOS_BUILD=asan CFLAGS="-fsanitize-coverage=trace-pc -include $PWD/tests/fuzz/coverage.h" \\
        python setup.py build --build-base build/fuzz --build-lib build/fuzz/lib --build-temp build/fuzz/tmp
    python tests/fuzz/build.py
"""

from __future__ import annotations

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

ROOT = Path(__file__).parents[2]
DIRECTIVES = {"language_level": 3, "cdivision": True}
SANITIZE = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer"]
# What is tested is instrumented and slow; what tests it need not be, but for the calls on exact memory.
MODULES = {"exact.pyx": ["-O1", *SANITIZE], "mutation.py": ["-O2"], "formats.py": ["-O2"], "targets.py": ["-O2"]}
MODULES["campaign.py"] = ["-O2"]

os.chdir(ROOT)
extensions = [
    Extension(
        f"fuzz.{name.split('.')[0]}",
        [f"tests/fuzz/{name}"],
        include_dirs=["fastpaxos_core"],
        extra_compile_args=[*flags, "-g", "-Wno-unused-function"],
        extra_link_args=SANITIZE if SANITIZE[0] in flags else [],
    )
    for name, flags in MODULES.items()
]
setup(
    name="fastpaxos-fuzz",
    packages=[],
    script_args=["--quiet", "build", "--build-base", "build/fuzz", "--build-lib", "build/fuzz/lib"],
    ext_modules=cythonize(
        extensions, compiler_directives=DIRECTIVES, build_dir="build/fuzz/cython", include_path=[".", "tests"]
    ),
)
