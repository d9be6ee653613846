"""Keys and values as lines of a file, in three forms, each the exact inverse of itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Literal

from fastpaxos.errors import FastPaxosError

__all__ = ["LineFormat", "LineFormatError"]

ESCAPES = {b"\\": b"\\\\", b"\t": b"\\t", b"\n": b"\\n", b"\r": b"\\r"}
UNESCAPES = {escaped: raw for raw, escaped in ESCAPES.items()}
TO_ESCAPE = re.compile(rb"[\\\t\n\r]")
ESCAPED = re.compile(rb"\\.?", re.DOTALL)
LINE_NUMBER_DIGITS = 12


class LineFormatError(FastPaxosError):
    """A line cannot be read, or an entry cannot be written, in the chosen form; the message says which."""


class LineFormat:
    """How entries stand in a file.

    raw: KEY, tab, VALUE, newline; every other byte is data. The key ends at the first tab.
    escaped: the same, and a backslash stands before a backslash, `t`, `n`, `r` (tab, newline, return): any bytes fit.
    lines: the whole line is the value, and its number, 12 digits from 000000000001 on, is the key.
    """

    def __init__(self, name: Literal["raw", "escaped", "lines"]) -> None:
        self.name = name

    def read(self, lines: Iterable[bytes], file_name: str) -> Iterator[tuple[bytes, bytes]]:
        """Give (key, value) of every line; the last one may lack its newline. Raises LineFormatError."""
        for number, line in enumerate(lines, 1):
            content = line.removesuffix(b"\n")
            if self.name == "lines":
                yield b"%0*d" % (LINE_NUMBER_DIGITS, number), content
                continue
            key, tab, value = content.partition(b"\t")
            if not tab:
                raise LineFormatError(
                    f"{file_name}: line {number} has no tab between key and value; "
                    f"--lines stores whole lines under their numbers"
                )
            if self.name == "escaped":
                key, value = (self._unescape(part, file_name, number) for part in (key, value))
            yield key, value

    def encode(self, key: bytes, value: bytes) -> bytes:
        """Return the line of an entry, without its newline. Raises LineFormatError if it has no such form."""
        if self.name == "escaped":
            return self._escape(key) + b"\t" + self._escape(value)
        if b"\n" in value or (self.name == "raw" and (b"\t" in key or b"\n" in key)):
            raise LineFormatError(f"the entry with key {key!r} holds a tab or newline; use --escaped")
        return value if self.name == "lines" else key + b"\t" + value

    @staticmethod
    def _escape(data: bytes) -> bytes:
        return TO_ESCAPE.sub(lambda match: ESCAPES[match[0]], data)

    @staticmethod
    def _unescape(data: bytes, file_name: str, number: int) -> bytes:
        def replace(match: re.Match[bytes]) -> bytes:
            try:
                return UNESCAPES[match[0]]
            except KeyError:
                raise LineFormatError(
                    f"{file_name}: line {number} has the unknown escape {match[0]!r}; known are \\\\, \\t, \\n and \\r"
                ) from None

        return ESCAPED.sub(replace, data)
