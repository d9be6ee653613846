"""A latency histogram with bounded memory and bounded relative error, whatever the number of samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["LatencyHistogram", "Percentiles"]

SUB_BUCKET_BITS = 11
SUB_BUCKETS = 1 << SUB_BUCKET_BITS
BUCKETS = 64 * SUB_BUCKETS // 2
SIGNIFICANT_DIGITS = 3  # what 1,024 buckets for each power of two are called in HdrHistogram
HDR_NS_MAX = 3_600_000_000_000


class Percentiles(TypedDict):
    """Latencies in microseconds."""

    p50: float
    p99: float
    p999: float
    max: float


class LatencyHistogram:
    """Counts of nanoseconds in the buckets of an HdrHistogram of 3 digits: each power of two is cut into 1,024, so a
    value read back is at most 0.1 % above the one that was recorded. The largest sample is kept exactly.

    Recording is our own because it takes whole arrays: the load generator must not spend its time on one call per
    sample. What leaves this program is written and read by the library `hdrhistogram`.
    """

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
        # Only as far as the largest sample: the buckets of hours are not touched for microseconds.
        counts = np.bincount(bucket_of(values))
        self.counts[: len(counts)] += counts.astype(np.uint64)

    def percentile_ns(self, percent: float) -> int:
        """Return the smallest bucket bound such that `percent` of the samples are at or below it; 0 without samples."""
        return self.percentiles_ns([percent])[0]

    def percentiles_ns(self, percents: Sequence[float]) -> list[int]:
        """Return `percentile_ns` of many, in one pass over the buckets."""
        total = self.samples
        if total == 0:
            return [0] * len(percents)
        ranks = np.maximum(1, np.ceil(total * np.array(percents) / 100.0))
        buckets = np.searchsorted(np.cumsum(self.counts), ranks)
        return [min(bucket_end(bucket), self.max_ns) for bucket in buckets.tolist()]

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

    def to_hdr(self) -> str | None:
        """Return the histogram in HdrHistogram's own form (V2, compressed, base64; nanoseconds; an hour and more
        count as an hour), or None where the library `hdrhistogram` is not installed."""
        try:
            from hdrh.histogram import HdrHistogram
        except ImportError:
            return None
        histogram = HdrHistogram(1, HDR_NS_MAX, SIGNIFICANT_DIGITS)
        for bucket in np.flatnonzero(self.counts):
            histogram.record_value(min(bucket_end(int(bucket)), HDR_NS_MAX), int(self.counts[bucket]))
        encoded: bytes = histogram.encode()
        return encoded.decode("ascii")

    @classmethod
    def from_hdr(cls, encoded: str) -> LatencyHistogram:
        """Read what `to_hdr` gave. The largest sample is only known to within its bucket. Needs `hdrhistogram`.
        Raises ValueError for a histogram with other buckets than ours."""
        from hdrh.histogram import HdrHistogram

        decoded = HdrHistogram.decode(encoded)
        if (decoded.unit_magnitude, decoded.sub_bucket_count) != (0, SUB_BUCKETS):
            raise ValueError(f"a histogram of {decoded.sub_bucket_count} sub-buckets is none of ours: {SUB_BUCKETS}")
        histogram = cls()
        histogram.counts[: decoded.counts_len] = np.array(decoded.counts[: decoded.counts_len], dtype=np.uint64)
        filled = np.flatnonzero(histogram.counts)
        histogram.max_ns = bucket_end(int(filled[-1])) if filled.size else 0
        return histogram


def bucket_of(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the bucket of each value: the value itself below 2,048, then 1,024 for each further power of two."""
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
