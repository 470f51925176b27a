"""A mergeable histogram of durations with a bounded relative error."""

import math

_PER_OCTAVE = 32
"""Buckets per doubling: a quantile is at most 1.1 % off, its bucket's half width."""


class Histogram:
    """Counts of durations in logarithmic buckets, nanoseconds; memory grows with the spread, not with the count.

    Same idea as HdrHistogram and DDSketch: the error is relative, and histograms of several intervals add up.
    """

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self.count = 0
        self.max_ns = 0

    def add(self, ns: int) -> None:
        """Count one duration; anything below 1 ns counts as 1 ns."""
        bucket = int(math.log2(max(ns, 1)) * _PER_OCTAVE)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self.count += 1
        self.max_ns = max(self.max_ns, ns)

    def merge(self, other: "Histogram") -> None:
        """Add the counts of `other`."""
        for bucket, n in other._buckets.items():  # noqa: SLF001  of its own kind
            self._buckets[bucket] = self._buckets.get(bucket, 0) + n
        self.count += other.count
        self.max_ns = max(self.max_ns, other.max_ns)

    def quantile_ns(self, q: float) -> float:
        """Return the duration that a share `q` (0 to 1) of all does not exceed; NaN of none."""
        rank = max(1, math.ceil(q * self.count))
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= rank:
                return float(min(2 ** ((bucket + 0.5) / _PER_OCTAVE), self.max_ns))
        return math.nan

    def summary_ms(self) -> dict[str, float]:
        """p50, p95, p99 and max in milliseconds; empty of none."""
        if not self.count:
            return {}
        out = {f"p{round(q * 100)}": self.quantile_ns(q) / 1e6 for q in (0.5, 0.95, 0.99)}
        return {**out, "max": self.max_ns / 1e6}
