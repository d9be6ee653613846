"""What instruction counts depend on beside the code: compiler, interpreter, C library, counter, processor family."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

__all__ = ["describe_toolchain"]

VECTOR_FLAGS = ("avx2", "avx", "sse4_2")
LIBRARIES = re.compile(r"/(libpython[^/]*|libc[.-][^/]*|ld-linux[^/]*)$")


def describe_toolchain() -> dict[str, str]:
    """Return what must be equal for two counts of the same code to be equal.

    `binaries` is a digest of the interpreter, its library and the C library as they are on disk: builds of the same
    version differ. `processor` is what valgrind imitates of this machine, which has three kinds of x86-64.
    """
    return {
        "binaries": _digest_of_binaries(),
        "compiler": _first_line([(sysconfig.get_config_var("CC") or "cc").split()[0], "--version"]),
        "cython": _version_of("Cython"),
        "libc": " ".join(platform.libc_ver()),
        "processor": f"{platform.machine()} {_vectors()}".strip(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "valgrind": _first_line(["valgrind", "--version"]),
    }


def _digest_of_binaries() -> str:
    digest = hashlib.sha256()
    files = {Path(sys.executable).resolve()}
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if LIBRARIES.search(path):
            files.add(Path(path))
    for file in sorted(files, key=lambda file: file.name):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _first_line(command: list[str]) -> str:
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return "missing"
    return lines[0] if lines else "unknown"


def _version_of(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _vectors() -> str:
    """The best of the vector extensions that valgrind passes on."""
    try:
        flags = re.search(r"^flags\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return ""
    known = flags[1].split() if flags else []
    return next((name for name in VECTOR_FLAGS if name in known), "")
