"""One load process of `bench ycsb`: sessions that read and change records, check each answer, and remember what the
cluster acknowledged, so that all of it can be looked for in the end."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any

import numpy as np

from fastpaxos.cli.key_choice import choice_of
from fastpaxos.cli.latency import LatencyHistogram
from fastpaxos.cli.ycsb_records import (
    INSERT,
    READ,
    READ_MODIFY_WRITE,
    SCAN,
    SCAN_ENTRIES_MAX,
    UPDATE,
    WORKLOADS,
    RecordForm,
    keys_of,
)
from fastpaxos.client import Client
from fastpaxos.errors import FastPaxosError
from fastpaxos.kv import KeyValue, KeyValueClient
from fastpaxos_core.block import crc32c

__all__ = ["WRITE_BACKS", "KindResult", "WrongAnswer", "YcsbPlan", "YcsbResult", "run_ycsb_load"]

TIMEOUT_S = 30.0
REFUSED_PAUSE_S = 0.01
ERROR_TEXTS_MAX = 3
SAMPLES_HELD_MAX = 10_000
KINDS_AT_ONCE = 1024
SWAPS_MAX = 1_000
WRITE_BACKS = ("swap", "put")
STAMPS_PER_PROCESS = 1 << 40


class WrongAnswer(FastPaxosError):  # noqa: N818 - it says what happened
    """An answer contradicts what was acknowledged before it was asked for."""


@dataclass(frozen=True, slots=True)
class YcsbPlan:
    """What one load process does: `clients` sessions, each with `pipeline` operations open, on the loaded `records`.

    It is number `process` of `processes`: each inserts records of its own. `write_back` is one of `WRITE_BACKS`.
    Nothing is measured in the first `warmup_s`; then `seconds` are.
    """

    cluster: dict[int, str]
    workload: str
    distribution: str
    records: int
    fields: int
    field_bytes: int
    clients: int
    pipeline: int
    seconds: float
    warmup_s: float
    write_back: str = "swap"
    process: int = 0
    processes: int = 1


@dataclass(slots=True)
class KindResult:
    """Operations of one kind: answered in the measured time, failed, and the sparse histogram of their latency."""

    measured: int = 0
    errors: int = 0
    latency: list[list[int]] = field(default_factory=list)


@dataclass(slots=True)
class YcsbResult:
    """What one load process saw.

    `changes` were acknowledged (the warm-up's included), and `written` has for each record that they changed or
    inserted [number, revision, CRC32C of the value] of the last. `retries` are swaps that another session forestalled;
    `entries` came back from measured scans.
    """

    kinds: dict[str, KindResult] = field(default_factory=dict)
    changes: int = 0
    retries: int = 0
    entries: int = 0
    error_texts: list[str] = field(default_factory=list)
    written: list[list[int]] = field(default_factory=list)

    def to_map(self) -> dict[str, Any]:
        """The result as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_map(cls, fields: dict[str, Any]) -> YcsbResult:
        """The inverse of `to_map`."""
        kinds = {kind: KindResult(**result) for kind, result in fields.pop("kinds").items()}
        return cls(kinds=kinds, **fields)


class _Measured:
    """Latencies of one kind of operation."""

    def __init__(self) -> None:
        self.result = KindResult()
        self._histogram = LatencyHistogram()
        self._samples: list[int] = []

    def add(self, latency_ns: int) -> None:
        self._samples.append(latency_ns)
        if len(self._samples) >= SAMPLES_HELD_MAX:
            self._flush()

    def finish(self) -> KindResult:
        self._flush()
        self.result.latency = self._histogram.to_sparse()
        return self.result

    def _flush(self) -> None:
        self._histogram.record(self._samples)
        self._samples.clear()


class YcsbLoad:
    """The sessions of one load process. All of them share what it knows of the records."""

    def __init__(self, plan: YcsbPlan) -> None:
        self.plan = plan
        self.result = YcsbResult()
        self.written: dict[int, tuple[int, int]] = {}
        self.inserted: list[int] = []
        self._form = RecordForm(plan.fields, plan.field_bytes)
        self._keys = list(keys_of(range(plan.records)))
        self._inserted_keys: dict[int, bytes] = {}
        numbers = (plan.records + plan.process, plan.processes)
        self._fresh = zip(count(*numbers), keys_of(count(*numbers)), strict=True)
        # Stamps of the loaded records are their numbers, below those of every process.
        self._stamps = count((plan.process + 1) * STAMPS_PER_PROCESS)
        self._random = random.Random(plan.process)
        self._choice = choice_of(
            plan.distribution, plan.records, self.inserted, np.random.Generator(np.random.PCG64(plan.process))
        )
        mix = WORKLOADS[plan.workload].mix
        self._kinds, self._weights = [*mix], [*mix.values()]
        self._next_kinds: list[str] = []
        self._measured = {kind: _Measured() for kind in mix}
        self.operations: dict[str, Callable[[KeyValueClient], Awaitable[int]]] = {
            READ: self.read,
            UPDATE: self.update,
            INSERT: self.insert,
            SCAN: self.scan,
            READ_MODIFY_WRITE: self.read_modify_write,
        }

    async def run(self) -> YcsbResult:
        """Open all sessions, let them work, close them."""
        plan = self.plan
        async with contextlib.AsyncExitStack() as stack:
            opened = [await stack.enter_async_context(Client(plan.cluster)) for _ in range(plan.clients)]
            clients = [KeyValueClient(client) for client in opened]
            # A session is opened by its first command, which must not be part of the measured time: a delete of what
            # is not there changes nothing.
            await asyncio.gather(*(client.delete(b"no such record", timeout=TIMEOUT_S) for client in clients))
            measure_from = time.perf_counter_ns() + int(plan.warmup_s * 1e9)
            end = measure_from + int(plan.seconds * 1e9)
            await asyncio.gather(
                *(self._work(client, measure_from, end) for client in clients for _ in range(plan.pipeline))
            )
        self.result.kinds = {kind: measured.finish() for kind, measured in self._measured.items()}
        self.result.written = [[number, *known] for number, known in self.written.items()]
        return self.result

    async def _work(self, client: KeyValueClient, measure_from: int, end: int) -> None:
        clock = time.perf_counter_ns
        begin = clock()
        while begin < end:
            kind = self.next_kind()
            measured = self._measured[kind]
            try:
                entries = await self.operations[kind](client)
            except FastPaxosError as error:
                measured.result.errors += 1
                if len(self.result.error_texts) < ERROR_TEXTS_MAX:
                    self.result.error_texts.append(f"{kind}: {type(error).__name__}: {error}")
                # A refusal that comes at once must not become a busy loop.
                await asyncio.sleep(REFUSED_PAUSE_S)
                begin = clock()
                continue
            now = clock()
            if measure_from <= now <= end:
                measured.result.measured += 1
                self.result.entries += entries
            if begin >= measure_from:
                measured.add(now - begin)
            begin = now

    def next_kind(self) -> str:
        """Return the kind of the next operation, by the workload's mix."""
        if not self._next_kinds:
            self._next_kinds = self._random.choices(self._kinds, self._weights, k=KINDS_AT_ONCE)
        return self._next_kinds.pop()

    # --- operations; each returns how many entries a scan gave -------------------------------------------------------

    async def read(self, client: KeyValueClient) -> int:
        """Read one record."""
        await self._get(client, self._choice.choose())
        return 0

    async def update(self, client: KeyValueClient) -> int:
        """Replace one record: a value of the machine is written whole."""
        number = self._choice.choose()
        value = self._form.record(next(self._stamps))
        self._acknowledged(number, (await client.put(self._key(number), value, timeout=TIMEOUT_S)).revision, value)
        return 0

    async def insert(self, client: KeyValueClient) -> int:
        """Add a record. It can be chosen from when it was acknowledged."""
        number, key = next(self._fresh)
        value = self._form.record(next(self._stamps))
        self._acknowledged(number, (await client.put(key, value, timeout=TIMEOUT_S)).revision, value)
        self._inserted_keys[number] = key
        self.inserted.append(number)
        return 0

    async def scan(self, client: KeyValueClient) -> int:
        """Read 1 to 100 records in order of key, from one that was chosen."""
        number = self._choice.choose()
        known = self.written.get(number)
        start, limit = self._key(number), self._random.randint(1, SCAN_ENTRIES_MAX)
        pages = client.scan(start=start, limit=limit, page_entries=SCAN_ENTRIES_MAX, timeout=TIMEOUT_S)
        found = [entry async for entry in pages]
        self._check(number, found[0] if found and found[0].key == start else None, known)
        return len(found)

    async def read_modify_write(self, client: KeyValueClient) -> int:
        """Read one record, replace one of its fields, and store it: whatever happened meanwhile ("put"), or only if
        nobody changed it, and else again ("swap")."""
        number = self._choice.choose()
        key = self._key(number)
        current = await self._get(client, number)
        if self.plan.write_back == "put":
            value = self._form.with_new_field(current.value, next(self._stamps))
            self._acknowledged(number, (await client.put(key, value, timeout=TIMEOUT_S)).revision, value)
            return 0
        for _ in range(SWAPS_MAX):
            value = self._form.with_new_field(current.value, next(self._stamps))
            result = await client.compare_and_set(key, value, expected_revision=current.mod_revision, timeout=TIMEOUT_S)
            if result.swapped:
                self._acknowledged(number, result.revision, value)
                return 0
            self.result.retries += 1
            # What a swap that failed gives back is the record as it is now.
            current = self._check(number, result.current, (current.mod_revision + 1, None))
        raise WrongAnswer(f"record {number} was changed by others before each of {SWAPS_MAX} swaps")

    # --- what is known ------------------------------------------------------------------------------------------------

    def _key(self, number: int) -> bytes:
        return self._keys[number] if number < self.plan.records else self._inserted_keys[number]

    async def _get(self, client: KeyValueClient, number: int) -> KeyValue:
        known = self.written.get(number)
        return self._check(number, await client.get(self._key(number), timeout=TIMEOUT_S), known)

    def _check(self, number: int, found: KeyValue | None, known: tuple[int, int | None] | None) -> KeyValue:
        """Every answer is there, whole, and no older than the (revision, CRC) `known` when it was asked for."""
        if found is None:
            raise WrongAnswer(f"record {number} is missing")
        if len(found.value) != self._form.record_bytes:
            raise WrongAnswer(f"record {number} has {len(found.value)} bytes, not {self._form.record_bytes}")
        if known is not None and found.mod_revision < known[0]:
            raise WrongAnswer(f"record {number} was read at revision {found.mod_revision}, after {known[0]} was known")
        if known is not None and found.mod_revision == known[0] and known[1] not in (None, crc32c(found.value)):
            raise WrongAnswer(f"record {number} does not hold at revision {known[0]} what was written at it")
        return found

    def _acknowledged(self, number: int, revision: int, value: bytes) -> None:
        self.result.changes += 1
        known = self.written.get(number)
        if known is None or known[0] < revision:
            self.written[number] = (revision, crc32c(value))


async def run_ycsb_load(plan: YcsbPlan) -> YcsbResult:
    """Run one load process's share from this process."""
    return await YcsbLoad(plan).run()
