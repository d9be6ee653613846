"""The built-in key-value machine, its commands, and `KeyValueClient`.

Keys and values are bytes. A global revision counts changes: each change of one key raises it by one. Each key carries
the revision that created it, the revision that changed it last, and a version that counts its changes from 1. A delete
ends a key's history: it comes back with version 1.

Commands, queries and results are msgpack arrays (docs/protocol.md, "Key-value machine"):

    [1, key, value, want_previous]          put            -> [revision, previous]
    [2, key, want_previous]                 delete         -> [revision, existed, previous]
    [3, key, expected or nil, value]        compare value  -> [revision, swapped, current]
    [4, key, expected revision, value]      compare rev.   -> [revision, swapped, current]
    [5, key, delta]                         increment      -> [revision, number]
    [16, key]                               get (query)    -> [revision, found]
    [17, start, end or nil, limit, keys_only]  scan (query) -> [revision, entries or keys, next start or nil]

previous, current and found are nil or [value, create_revision, mod_revision, version]; an entry of a scan has its key
in front of these. A compare stores the value if the key's value (or mod_revision) is the expected one; nil (or 0)
expects that there is no such key.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeAlias

import msgpack

from fastpaxos.statemachine import FATAL_ERRORS, ApplyContext, QueryContext, StateMachine
from fastpaxos_core.hashchain import MultisetDigest

__all__ = [
    "CasResult",
    "DeleteResult",
    "IncrementResult",
    "InvalidCommand",
    "KeyValue",
    "KeyValueClient",
    "KeyValueMachine",
    "NotAnInteger",
    "OutOfRange",
    "PutResult",
    "SupportsCommands",
    "prefix_end",
]

PUT, DELETE, CAS, CAS_REVISION, INCREMENT = 1, 2, 3, 4, 5
GET, SCAN = 16, 17

KEY_BYTES_MAX = 4096
VALUE_BYTES_MAX = 512 << 10
SCAN_ENTRIES_MAX = 10_000
SCAN_BYTES_MAX = 256 << 10
ENTRY_OVERHEAD_BYTES = 40
INTEGER_MIN, INTEGER_MAX = -(2**63), 2**63 - 1
INTEGER = re.compile(rb"0|-?[1-9][0-9]{0,18}")

# (value, create_revision, mod_revision, version)
Entry: TypeAlias = tuple[bytes, int, int, int]

pack: Callable[[Any], bytes] = msgpack.Packer(autoreset=True).pack


class InvalidCommand(ValueError):  # noqa: N818 - the name is what a caller reads in CommandError
    """The command is no command of this machine, or breaks a limit. Nothing was changed."""


class NotAnInteger(ValueError):  # noqa: N818
    """Increment found a value that is not a signed 64-bit decimal integer. Nothing was changed."""


class OutOfRange(ValueError):  # noqa: N818
    """The incremented number would leave the signed 64-bit range. Nothing was changed."""


class SortedKeys:
    """A sorted list in pieces, so that adding a key to a million others moves a thousand pointers, not a million."""

    PIECE = 1024

    def __init__(self) -> None:
        self._pieces: list[list[bytes]] = [[]]
        self._lasts: list[bytes] = []  # last key of every piece but the last one

    def add(self, key: bytes) -> None:
        """Add a key that is not there yet."""
        index = bisect_left(self._lasts, key)
        piece = self._pieces[index]
        if not piece or key > piece[-1]:
            piece.append(key)
        else:
            piece.insert(bisect_left(piece, key), key)
        if len(piece) > 2 * self.PIECE:
            # Keys that come in order leave full pieces behind them, others leave room on both sides.
            cut = len(piece) - 1 if piece[-1] is key else self.PIECE
            self._pieces.insert(index + 1, piece[cut:])
            del piece[cut:]
            self._lasts.insert(index, piece[-1])

    def remove(self, key: bytes) -> None:
        """Remove a key that is there."""
        index = bisect_left(self._lasts, key)
        piece = self._pieces[index]
        del piece[bisect_left(piece, key)]
        if not piece and len(self._pieces) > 1:
            del self._pieces[index]
            del self._lasts[min(index, len(self._lasts) - 1)]

    def range(self, start: bytes, end: bytes | None) -> Iterator[bytes]:
        """Give the keys with start <= key < end, ascending; no upper bound when end is None."""
        index = bisect_left(self._lasts, start)
        position = bisect_left(self._pieces[index], start)
        for piece in islice(self._pieces, index, None):
            stop = len(piece) if end is None else bisect_left(piece, end)
            yield from islice(piece, position, stop)
            if stop < len(piece):
                return
            position = 0


class KeyValueMachine(StateMachine):
    """A sorted map of bytes to bytes with revisions (the module's docstring has commands and results).

    Args:
        key_bytes_max, value_bytes_max: a command with a longer key or value fails with InvalidCommand. They are part
            of the machine: all replicas must use the same.
    """

    def __init__(self, key_bytes_max: int = KEY_BYTES_MAX, value_bytes_max: int = VALUE_BYTES_MAX) -> None:
        self.key_bytes_max = key_bytes_max
        self.value_bytes_max = value_bytes_max
        self._revision = 0
        self._entries: dict[bytes, Entry] = {}
        self._keys = SortedKeys()
        self._digest = MultisetDigest()
        self._commands: dict[int, Callable[[list[Any]], bytes]] = {
            PUT: self._put,
            DELETE: self._delete,
            CAS: self._compare_value,
            CAS_REVISION: self._compare_revision,
            INCREMENT: self._increment,
        }
        self._queries: dict[int, Callable[[list[Any]], bytes]] = {GET: self._get, SCAN: self._scan}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def revision(self) -> int:
        """How many changes were made."""
        return self._revision

    def apply(self, command: bytes, context: ApplyContext) -> bytes:
        """Apply one command. Raises InvalidCommand, NotAnInteger or OutOfRange, and then changes nothing.

        There is no `apply_batch`: measured, it saves nothing, as the time goes into decoding and the map.
        """
        return self._run(self._commands, command)

    def query(self, request: bytes, context: QueryContext) -> bytes:
        """Answer get and scan. Raises InvalidCommand."""
        return self._run(self._queries, request)

    def digest(self) -> str:
        """Return 32 hexadecimal digits over all keys, values and revisions; equal on equal states."""
        counters = b"%d %d " % (self._revision, len(self._entries))
        return hashlib.blake2b(counters + self._digest.digest, digest_size=16).hexdigest()

    def _run(self, handlers: dict[int, Callable[[list[Any]], bytes]], command: bytes) -> bytes:
        try:
            fields = msgpack.unpackb(command)
        except FATAL_ERRORS:
            raise
        except Exception:
            # The decoder's own words may differ between its versions, and results must not.
            raise InvalidCommand(f"{len(command)} bytes that are no msgpack array") from None
        if type(fields) is not list or not fields:
            raise InvalidCommand("a command is a msgpack array that begins with its operation")
        operation = fields[0]
        handler = handlers.get(operation) if type(operation) is int else None
        if handler is None:
            raise InvalidCommand(f"operation {str(operation)[:40]!r} is unknown here")
        return handler(fields)

    # --- commands -------------------------------------------------------------------------------------------------

    def _put(self, fields: list[Any]) -> bytes:
        # The hot command: what is right is seen at once, what is wrong is named by the checks.
        _, key, value, want_previous = fields if len(fields) == 4 else self._sized(fields, 4)
        if type(key) is not bytes or not 0 < len(key) <= self.key_bytes_max:
            self._check_key(key)
        if type(value) is not bytes or len(value) > self.value_bytes_max:
            self._check_value(value)
        previous = self._entries.get(key)
        self._store(key, value, previous)
        return pack((self._revision, previous if want_previous else None))

    def _delete(self, fields: list[Any]) -> bytes:
        _, key, want_previous = self._sized(fields, 3)
        self._check_key(key)
        previous = self._entries.pop(key, None)
        if previous is None:
            return pack((self._revision, False, None))
        self._revision += 1
        self._keys.remove(key)
        self._digest.remove(key, *previous)
        return pack((self._revision, True, previous if want_previous else None))

    def _compare_value(self, fields: list[Any]) -> bytes:
        _, key, expected, value = self._sized(fields, 4)
        if expected is not None and type(expected) is not bytes:
            raise InvalidCommand(f"the expected value must be bytes or nil, not {type(expected).__name__}")
        self._check_key(key)
        current = self._entries.get(key)
        return self._compare(key, value, current, expected == (None if current is None else current[0]))

    def _compare_revision(self, fields: list[Any]) -> bytes:
        _, key, expected, value = self._sized(fields, 4)
        if type(expected) is not int or expected < 0:
            raise InvalidCommand(f"the expected revision must be 0 or more, not {str(expected)[:40]!r}")
        self._check_key(key)
        current = self._entries.get(key)
        return self._compare(key, value, current, expected == (0 if current is None else current[2]))

    def _compare(self, key: bytes, value: Any, current: Entry | None, matches: bool) -> bytes:
        self._check_value(value)
        if not matches:
            return pack((self._revision, False, current))
        self._store(key, value, current)
        return pack((self._revision, True, self._entries[key]))

    def _increment(self, fields: list[Any]) -> bytes:
        _, key, delta = self._sized(fields, 3)
        self._check_key(key)
        if type(delta) is not int or not INTEGER_MIN <= delta <= INTEGER_MAX:
            raise InvalidCommand(f"the increment must be a signed 64-bit integer, not {str(delta)[:40]!r}")
        current = self._entries.get(key)
        number = delta + (0 if current is None else self._number(key, current[0]))
        if not INTEGER_MIN <= number <= INTEGER_MAX:
            raise OutOfRange(f"key {key[:80]!r}: {number} does not fit into a signed 64-bit integer")
        self._store(key, b"%d" % number, current)
        return pack((self._revision, number))

    @staticmethod
    def _number(key: bytes, value: bytes) -> int:
        if INTEGER.fullmatch(value):
            number = int(value)
            if INTEGER_MIN <= number <= INTEGER_MAX:
                return number
        raise NotAnInteger(f"key {key[:80]!r} has the value {value[:40]!r}, which is no signed 64-bit decimal integer")

    def _store(self, key: bytes, value: bytes, previous: Entry | None) -> None:
        self._revision = revision = self._revision + 1
        if previous is None:
            self._keys.add(key)
            entry = (value, revision, revision, 1)
        else:
            self._digest.remove(key, *previous)
            entry = (value, previous[1], revision, previous[3] + 1)
        self._entries[key] = entry
        self._digest.add(key, *entry)

    # --- queries --------------------------------------------------------------------------------------------------

    def _get(self, fields: list[Any]) -> bytes:
        _, key = self._sized(fields, 2)
        self._check_key(key)
        return pack((self._revision, self._entries.get(key)))

    def _scan(self, fields: list[Any]) -> bytes:
        _, start, end, limit, keys_only = self._sized(fields, 5)
        if type(start) is not bytes or not (end is None or type(end) is bytes):
            raise InvalidCommand("the bounds of a scan are bytes, and nil for no end")
        if type(limit) is not int or limit < 1:
            raise InvalidCommand(f"the limit of a scan must be 1 or more, not {str(limit)[:40]!r}")
        entries = self._entries
        limit = min(limit, SCAN_ENTRIES_MAX)
        found: list[Any] = []
        size = 0
        next_start = None
        for key in self._keys.range(start, end):
            entry = entries[key]
            size += ENTRY_OVERHEAD_BYTES + len(key) + (0 if keys_only else len(entry[0]))
            # A page holds at least one entry, whatever its size, or the caller would not get on.
            if found and (len(found) == limit or size > SCAN_BYTES_MAX):
                next_start = key
                break
            found.append(key if keys_only else (key, *entry))
        return pack((self._revision, found, next_start))

    # --- checks ---------------------------------------------------------------------------------------------------

    @staticmethod
    def _sized(fields: list[Any], size: int) -> list[Any]:
        if len(fields) != size:
            raise InvalidCommand(f"operation {fields[0]} has {size} fields, got {len(fields)}")
        return fields

    def _check_key(self, key: object) -> None:
        if type(key) is not bytes:
            raise InvalidCommand(f"a key must be bytes, not {type(key).__name__}")
        if not 1 <= len(key) <= self.key_bytes_max:
            raise InvalidCommand(f"a key has 1..{self.key_bytes_max} bytes, got {len(key)}")

    def _check_value(self, value: object) -> None:
        if type(value) is not bytes:
            raise InvalidCommand(f"a value must be bytes, not {type(value).__name__}")
        if len(value) > self.value_bytes_max:
            raise InvalidCommand(f"a value has at most {self.value_bytes_max} bytes, got {len(value)}")


# --- commands as bytes ------------------------------------------------------------------------------------------------


def encode_put(key: bytes, value: bytes, want_previous: bool = False) -> bytes:
    """Return the command that stores a value."""
    return pack((PUT, _as_bytes(key), _as_bytes(value), want_previous))


def encode_delete(key: bytes, want_previous: bool = False) -> bytes:
    """Return the command that removes a key."""
    return pack((DELETE, _as_bytes(key), want_previous))


def encode_compare_and_set(key: bytes, expected: bytes | None, value: bytes) -> bytes:
    """Return the command that stores a value if the key has the expected one (None: if there is no such key)."""
    return pack((CAS, _as_bytes(key), None if expected is None else _as_bytes(expected), _as_bytes(value)))


def encode_compare_revision_and_set(key: bytes, expected_revision: int, value: bytes) -> bytes:
    """Return the command that stores a value if the key's mod_revision is the expected one (0: no such key)."""
    return pack((CAS_REVISION, _as_bytes(key), expected_revision, _as_bytes(value)))


def encode_increment(key: bytes, delta: int = 1) -> bytes:
    """Return the command that adds to a decimal number; a key that is not there counts as 0."""
    return pack((INCREMENT, _as_bytes(key), delta))


def encode_get(key: bytes) -> bytes:
    """Return the query for one key."""
    return pack((GET, _as_bytes(key)))


def encode_scan(start: bytes, end: bytes | None, limit: int, keys_only: bool = False) -> bytes:
    """Return the query for one page of a scan: start <= key < end."""
    return pack((SCAN, _as_bytes(start), None if end is None else _as_bytes(end), limit, keys_only))


def prefix_end(prefix: bytes) -> bytes | None:
    """Return the smallest key above every key with this prefix, or None when there is none."""
    stripped = bytes(prefix).rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else None


def _as_bytes(value: object) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise TypeError(f"keys and values are bytes, not {type(value).__name__}; encode text first")


# --- the client -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key as it was at some revision."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int


@dataclass(frozen=True, slots=True)
class PutResult:
    """A put changed its key at `revision`; `previous` is what was there, if it was asked for."""

    revision: int
    previous: KeyValue | None = None


@dataclass(frozen=True, slots=True)
class DeleteResult:
    """`existed`: there was such a key, and it was removed at `revision`; else `revision` is merely the current one."""

    revision: int
    existed: bool
    previous: KeyValue | None = None


@dataclass(frozen=True, slots=True)
class CasResult:
    """`swapped`: the value was stored at `revision`. `current` is what the key holds now, None when it is absent."""

    revision: int
    swapped: bool
    current: KeyValue | None


@dataclass(frozen=True, slots=True)
class IncrementResult:
    """The number after the increment, stored at `revision`."""

    revision: int
    number: int


class SupportsCommands(Protocol):
    """What `KeyValueClient` needs: `fastpaxos.Client` has it, and so has anything that applies commands itself."""

    def execute(self, command: bytes, /, *, timeout: float | None = None) -> Awaitable[bytes]:
        """Replicate one command and return its result."""
        ...

    def execute_many(self, commands: Sequence[bytes], /, *, timeout: float | None = None) -> Awaitable[Sequence[Any]]:
        """Replicate many commands and return their results in order."""
        ...

    def query(self, request: bytes, /, *, timeout: float | None = None) -> Awaitable[bytes]:
        """Answer a linearizable read."""
        ...


class KeyValueClient:
    """Typed access to a `KeyValueMachine` behind a client. It owns nothing: the client is closed by whoever opened it.

    Errors are those of the client; a command that the machine refuses raises `CommandError` with the type name
    InvalidCommand, NotAnInteger or OutOfRange. `timeout` is in seconds; None means the client's default.
    """

    def __init__(self, client: SupportsCommands) -> None:
        self._client = client

    async def get(self, key: bytes, *, timeout: float | None = None) -> KeyValue | None:
        """Read one key, linearizably; None when it is absent."""
        _, found = msgpack.unpackb(await self._client.query(encode_get(key), timeout=timeout))
        return _key_value(bytes(key), found)

    async def put(
        self, key: bytes, value: bytes, *, want_previous: bool = False, timeout: float | None = None
    ) -> PutResult:
        """Store a value."""
        revision, previous = await self._execute(encode_put(key, value, want_previous), timeout)
        return PutResult(revision, _key_value(bytes(key), previous))

    async def put_many(self, items: Iterable[tuple[bytes, bytes]], *, timeout: float | None = None) -> list[PutResult]:
        """Store many values, in order, in as few round trips as limits allow. Not atomic.

        Raises the first error of any item; the other items may then have been stored or not.
        """
        commands = [encode_put(key, value) for key, value in items]
        results = await self._client.execute_many(commands, timeout=timeout)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return [PutResult(msgpack.unpackb(result)[0]) for result in results]

    async def delete(self, key: bytes, *, want_previous: bool = False, timeout: float | None = None) -> DeleteResult:
        """Remove a key if it is there."""
        revision, existed, previous = await self._execute(encode_delete(key, want_previous), timeout)
        return DeleteResult(revision, existed, _key_value(bytes(key), previous))

    async def compare_and_set(
        self,
        key: bytes,
        value: bytes,
        *,
        expected: bytes | None = None,
        expected_revision: int | None = None,
        timeout: float | None = None,
    ) -> CasResult:
        """Store a value if the key's value is `expected` (None: absent), or its mod_revision `expected_revision`."""
        if expected is not None and expected_revision is not None:
            raise ValueError("give expected or expected_revision, not both")
        if expected_revision is None:
            command = encode_compare_and_set(key, expected, value)
        else:
            command = encode_compare_revision_and_set(key, expected_revision, value)
        revision, swapped, current = await self._execute(command, timeout)
        return CasResult(revision, swapped, _key_value(bytes(key), current))

    async def increment(self, key: bytes, delta: int = 1, *, timeout: float | None = None) -> IncrementResult:
        """Add to a signed 64-bit number kept as decimal text; an absent key counts as 0."""
        return IncrementResult(*await self._execute(encode_increment(key, delta), timeout))

    async def scan(
        self,
        prefix: bytes = b"",
        *,
        start: bytes | None = None,
        end: bytes | None = None,
        limit: int | None = None,
        page_entries: int = 1000,
        timeout: float | None = None,
    ) -> AsyncIterator[KeyValue]:
        """Give the entries with this prefix, or with start <= key < end, in order of key.

        Each page of up to `page_entries` is one linearizable read; between pages the map may change. `timeout` is per
        page.
        """
        async for page in self._pages(prefix, start, end, limit, page_entries, False, timeout):
            for entry in page:
                yield KeyValue(*entry)

    async def scan_keys(
        self,
        prefix: bytes = b"",
        *,
        start: bytes | None = None,
        end: bytes | None = None,
        limit: int | None = None,
        page_entries: int = 5000,
        timeout: float | None = None,
    ) -> AsyncIterator[bytes]:
        """Like `scan`, but gives only keys."""
        async for page in self._pages(prefix, start, end, limit, page_entries, True, timeout):
            for key in page:
                yield key

    async def _pages(
        self,
        prefix: bytes,
        start: bytes | None,
        end: bytes | None,
        limit: int | None,
        page_entries: int,
        keys_only: bool,
        timeout: float | None,
    ) -> AsyncIterator[list[Any]]:
        if prefix and (start is not None or end is not None):
            raise ValueError("give a prefix, or start and end, not both")
        if prefix:
            start, end = prefix, prefix_end(prefix)
        next_start = start or b""
        while next_start is not None and (limit is None or limit > 0):
            entries = page_entries if limit is None else min(page_entries, limit)
            request = encode_scan(next_start, end, entries, keys_only)
            _, page, next_start = msgpack.unpackb(await self._client.query(request, timeout=timeout))
            if limit is not None:
                limit -= len(page)
            yield page

    async def _execute(self, command: bytes, timeout: float | None) -> list[Any]:
        fields: list[Any] = msgpack.unpackb(await self._client.execute(command, timeout=timeout))
        return fields


def _key_value(key: bytes, entry: Sequence[Any] | None) -> KeyValue | None:
    return None if entry is None else KeyValue(key, *entry)
