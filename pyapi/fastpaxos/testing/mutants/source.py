"""The mutated copy of the sources: every edit of the catalogue, each behind its guard, and what the guards rest on.

Nothing of this is in the shipped sources. `make build-mutants` writes the copy and compiles it under the profile
`mutants`; FASTPAXOS_MUTANT ("17", or "2,16") says which mutants are on, and is read once when a module is loaded.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from .model import NUMBER_MAX, Edit

__all__ = ["ENVIRONMENT_NAME", "MutationError", "mutated_sources", "write_sources"]

ENVIRONMENT_NAME = "FASTPAXOS_MUTANT"
COPIED_FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
COPIED_SUFFIXES = (".py", ".pyi", ".pyx", ".pxd", ".h")

HEADER = f"""/* Which mutants are on: FASTPAXOS_MUTANT, read when the module is loaded. */
#ifndef FASTPAXOS_MUTANTS_H
#define FASTPAXOS_MUTANTS_H
#include <stdlib.h>
static unsigned char fp_mutants[{NUMBER_MAX + 1}];
__attribute__((constructor)) static void fp_read_mutants(void) {{
    const char* text = getenv("{ENVIRONMENT_NAME}");
    while (text != NULL && *text != 0) {{
        char* end;
        long number = strtol(text, &end, 10);
        if (number > 0 && number < {NUMBER_MAX + 1}) fp_mutants[number] = 1;
        text = *end == ',' ? end + 1 : NULL;
    }}
}}
#define MUTANT(number) __builtin_expect(fp_mutants[number], 0)
#endif
"""

DECLARATION = """
cdef extern from "mutants.h" nogil:
    bint MUTANT(int number)
"""

MODULE = f'''"""Which mutants are on: {ENVIRONMENT_NAME}, read once. This module is in no other build."""

import os

ACTIVE = frozenset(int(number) for number in os.environ.get("{ENVIRONMENT_NAME}", "").split(",") if number)


def mutant(number: int) -> bool:
    """Tell whether this mutant is on."""
    return number in ACTIVE
'''

_DOCSTRING = re.compile(r'\A(?:#.*\n)*(?:"""(?:.|\n)*?"""\n)?(?:\nfrom __future__ import annotations\n)?')


class MutationError(Exception):
    """The catalogue does not fit the sources: an edit's snippet is not there exactly once."""


def mutated_sources(root: Path, edits: Iterable[tuple[int, Edit]]) -> Mapping[str, str]:
    """Return {file: text} of every file that the edits change; (mutant number, edit) in order of the catalogue.

    Edits are made one after the other, so a later one sees what an earlier one left. Raises MutationError.
    """
    texts: dict[str, str] = {}
    problems = []
    for number, edit in edits:
        if edit.file not in texts:
            texts[edit.file] = (root / edit.file).read_text()
        count = texts[edit.file].count(edit.original)
        if count != 1:
            problems.append(f"mutant {number}: {edit.file} has {count} times, not once:\n{edit.original}")
        else:
            texts[edit.file] = texts[edit.file].replace(edit.original, edit.mutated)
    if problems:
        raise MutationError("\n".join(problems))
    return {file: _with_guard(file, text) for file, text in texts.items()}


def _with_guard(file: str, text: str) -> str:
    """Declare what the guards of a file rest on, right behind its docstring."""
    match = _DOCSTRING.match(text)
    end = match.end() if match else 0
    guard = DECLARATION if file.endswith(".pyx") else "\nfrom fastpaxos_core.mutants import mutant\n"
    return text[:end] + guard + text[end:]


def write_sources(root: Path, target: Path, edits: Iterable[tuple[int, Edit]]) -> int:
    """Write the mutated copy of the tree at `root` to `target`; return how many files changed.

    Files whose text is the same stay untouched, so that only what changed is compiled again.
    """
    texts = dict(mutated_sources(root, edits))
    texts["fastpaxos_core/mutants.h"] = HEADER
    texts["fastpaxos_core/mutants.py"] = MODULE
    for name in COPIED_FILES:
        texts[name] = (root / name).read_text()
    for folder in ("fastpaxos_core", "pyapi/fastpaxos"):
        for path in sorted((root / folder).rglob("*")):
            file = path.relative_to(root).as_posix()
            is_source = path.suffix in COPIED_SUFFIXES or path.name == "py.typed"
            if is_source and "__pycache__" not in path.parts and file not in texts:
                texts[file] = path.read_text()
    for folder in ("fastpaxos_core", "pyapi"):
        for path in sorted((target / folder).rglob("*")):
            if path.is_file() and path.relative_to(target).as_posix() not in texts:
                path.unlink()
    changed = 0
    for file, text in texts.items():
        path = target / file
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            changed += 1
    return changed


def main() -> int:
    """`python -m fastpaxos.testing.mutants.source ROOT TARGET`."""
    from .catalogue import all_edits

    root, target = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        changed = write_sources(root, target, all_edits())
    except MutationError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{changed} files changed in {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
