"""A latency histogram with bounded memory and bounded relative error, whatever the number of samples."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["LatencyHistogram", "Percentiles"]

SUB_BUCKET_BITS = 8
SUB_BUCKETS = 1 << SUB_BUCKET_BITS
BUCKETS = 64 * SUB_BUCKETS // 2


class Percentiles(TypedDict):
    """Latencies in microseconds."""

    p50: float
    p99: float
    p999: float
    max: float


class LatencyHistogram:
    """Counts of nanoseconds in log-linear buckets: each power of two is cut into 128, so a value read back is at
    most 0.8 % above the one that was recorded. The largest sample is kept exactly."""

    def __init__(self) -> None:
        self.counts = np.zeros(BUCKETS, dtype=np.uint64)
        self.max_ns = 0

    @property
    def samples(self) -> int:
        """How many latencies were recorded."""
        return int(self.counts.sum())

    def record(self, latencies_ns: ArrayLike) -> None:
        """Count one value, or every value of an array, of nanoseconds. Negative values are refused with ValueError."""
        values = np.atleast_1d(np.asarray(latencies_ns, dtype=np.int64))
        if values.size == 0:
            return
        if int(values.min()) < 0:
            raise ValueError(f"a latency of {int(values.min())} ns is negative")
        self.max_ns = max(self.max_ns, int(values.max()))
        self.counts += np.bincount(bucket_of(values), minlength=BUCKETS).astype(np.uint64)

    def percentile_ns(self, percent: float) -> int:
        """Return the smallest bucket bound such that `percent` of the samples are at or below it; 0 without samples."""
        total = self.samples
        if total == 0:
            return 0
        rank = max(1, int(np.ceil(total * percent / 100.0)))
        bucket = int(np.searchsorted(np.cumsum(self.counts), rank))
        return min(bucket_end(bucket), self.max_ns)

    def percentiles_us(self) -> Percentiles:
        """Return p50, p99, p99.9 and the maximum in microseconds, to a tenth."""
        return {
            "p50": round(self.percentile_ns(50.0) / 1000, 1),
            "p99": round(self.percentile_ns(99.0) / 1000, 1),
            "p999": round(self.percentile_ns(99.9) / 1000, 1),
            "max": round(self.max_ns / 1000, 1),
        }

    def merge(self, other: LatencyHistogram) -> None:
        """Add the samples of another histogram."""
        self.counts += other.counts
        self.max_ns = max(self.max_ns, other.max_ns)

    def to_sparse(self) -> list[list[int]]:
        """Return [[maximum, 0], [bucket, count], ...]: small, and fit for JSON."""
        filled = np.flatnonzero(self.counts)
        return [[self.max_ns, 0], *([int(bucket), int(self.counts[bucket])] for bucket in filled)]

    @classmethod
    def from_sparse(cls, sparse: list[list[int]]) -> LatencyHistogram:
        """The inverse of `to_sparse`."""
        histogram = cls()
        histogram.max_ns = sparse[0][0]
        for bucket, count in sparse[1:]:
            histogram.counts[bucket] = count
        return histogram


def bucket_of(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the bucket of each value: the value itself below 256, then 128 buckets for each further power of two."""
    exponent = np.frexp(values.astype(np.float64))[1].astype(np.int64)
    shift = np.maximum(exponent - SUB_BUCKET_BITS, 0)
    buckets: NDArray[np.int64] = shift * (SUB_BUCKETS // 2) + (values >> shift)
    return buckets


def bucket_end(bucket: int) -> int:
    """Return the largest value that falls into `bucket`."""
    if bucket < SUB_BUCKETS:
        return bucket
    shift = bucket // (SUB_BUCKETS // 2) - 1
    return ((bucket - shift * (SUB_BUCKETS // 2) + 1) << shift) - 1
