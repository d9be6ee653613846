"""The workloads of `bench ycsb` and the records that they work on.

Paper: Cooper et al., "Benchmarking Cloud Serving Systems with YCSB" (SoCC 2010), and the core workloads that its
authors publish with it. A record is one value of the key-value machine: `fields` fields of `field_bytes` bytes, end to
end. Its key is "user" and twenty digits, a hash of the record's number: keys that follow each other were not inserted
one after the other.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np

from fastpaxos.cli.key_choice import fnv_hash

__all__ = [
    "INSERT",
    "KEY_PREFIX",
    "READ",
    "READ_MODIFY_WRITE",
    "SCAN",
    "SCAN_ENTRIES_MAX",
    "UPDATE",
    "WORKLOADS",
    "RecordForm",
    "Workload",
    "keys_of",
]

READ, UPDATE, INSERT, SCAN, READ_MODIFY_WRITE = "read", "update", "insert", "scan", "read_modify_write"
SCAN_ENTRIES_MAX = 100
KEY_PREFIX = b"user"
POOL_BYTES = 1 << 16
STAMP_BYTES = 8
STRIDE = 40_503  # odd: stamps that follow each other take pieces from all over the pool
KEYS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Workload:
    """Percentages of the kinds of operation, and how reads, updates and scans choose their record."""

    mix: Mapping[str, int]
    distribution: str


# In the order in which they are run. Every one has a database of its own.
WORKLOADS = {
    "A": Workload({READ: 50, UPDATE: 50}, "zipfian"),
    "B": Workload({READ: 95, UPDATE: 5}, "zipfian"),
    "C": Workload({READ: 100}, "zipfian"),
    "F": Workload({READ: 50, READ_MODIFY_WRITE: 50}, "zipfian"),
    "D": Workload({READ: 95, INSERT: 5}, "latest"),
    "E": Workload({SCAN: 95, INSERT: 5}, "zipfian"),
}


def keys_of(numbers: Iterable[int]) -> Iterator[bytes]:
    """Give the key of each record; `numbers` may be endless."""
    remaining = iter(numbers)
    while some := list(islice(remaining, KEYS_AT_ONCE)):
        yield from (KEY_PREFIX + b"%020d" % hashed for hashed in fnv_hash(np.array(some, dtype=np.int64)).tolist())


class RecordForm:
    """What records look like. All content follows from a stamp; different stamps give different content."""

    def __init__(self, fields: int, field_bytes: int) -> None:
        if field_bytes < STAMP_BYTES:
            raise ValueError(f"a field needs {STAMP_BYTES} bytes, not {field_bytes}: no two contents may be equal")
        self.fields = fields
        self.field_bytes = field_bytes
        self.record_bytes = fields * field_bytes
        self._pool = random.Random(1).randbytes(POOL_BYTES + self.record_bytes)

    def record(self, stamp: int) -> bytes:
        """Return the content of a whole record."""
        return self._content(stamp, self.record_bytes)

    def with_new_field(self, record: bytes, stamp: int) -> bytes:
        """Return the record with one field replaced; the stamp says which, and by what."""
        begin = stamp % self.fields * self.field_bytes
        return record[:begin] + self._content(stamp, self.field_bytes) + record[begin + self.field_bytes :]

    def loaded(self, count: int) -> Iterator[tuple[bytes, bytes]]:
        """Give key and value of the records 0..count-1 as they are loaded."""
        return zip(keys_of(range(count)), map(self.record, range(count)), strict=True)

    def _content(self, stamp: int, size: int) -> bytes:
        begin = stamp * STRIDE % POOL_BYTES
        return stamp.to_bytes(STAMP_BYTES, "little") + self._pool[begin : begin + size - STAMP_BYTES]
