"""One stream's samples, as they come, onto the even grid of the model's rate.

Theory of operation. A segment is a stretch of samples without interruption; its grid starts at its first sample:
g[k] = t0 + round(k * 1e9 / rate). A grid point is due as soon as a sample at or after it has come, so nothing but past
and present samples is used. Between samples the signal is taken to be linear. A source that is clearly faster than the
model (1.5 times) is averaged over the w = 1/rate - 1/source_rate seconds that end at the grid point, so that what is
above the model's Nyquist frequency folds down less; otherwise w is 0 and a grid point is the interpolated value. A
grid point that falls on a sample of such a source is that sample, bit for bit. The source's rate is the median over its
first `RATE_SAMPLES` samples, which are held back until then.

The delay that this adds: w/2 (group delay of the average; 8.75 ms for 400 Hz to 50 Hz, none at 50 Hz and below) plus
the wait for the next sample, less than one period of the source.

Samples that do not move time forward are dropped and counted: the same time again, or up to `RESET_NS` back (reordered
on the way). Further back the device's clock was set: that is a gap. A hole longer than `max_gap_ns` is a gap too;
shorter ones are interpolated and the grid points inside them counted. The result does not depend on how samples are
cut into batches.
"""

import math
from collections import Counter
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from agent.records import Float32Array, Float64Array, GapReason, Int64Array, Loss

MIN_RATE_HZ, MAX_RATE_HZ = 10.0, 400.0
_SLACK = 1.05
"""Sensors that are sold as 10 or 400 Hz are off by a few percent."""

RATE_SAMPLES = 33
"""Samples whose 32 intervals' median is taken for the source's period: robust against jitter and a few holes."""

RESET_NS = 1_000_000_000
MAX_GAP_NS = 250_000_000
"""A quarter of a second: a tenth of a window may be bridged by a straight line, no more."""


class RateError(ValueError):
    """The source's rate is outside of what can be resampled."""


class Grid(NamedTuple):
    """Resampled samples k0, k0+1, … of a segment: `values` float32 (n, 6)."""

    origin_ns: int
    k0: int
    values: Float32Array


class Break(NamedTuple):
    """The stream was interrupted between the samples at `t0_ns` and `t1_ns`; `seq` is the number of the latter."""

    seq: int
    t0_ns: int
    t1_ns: int
    reason: GapReason


class Timeline:
    """Resamples one stream. See the module's text for the method and its delay."""

    def __init__(self, rate_hz: float) -> None:
        """`rate_hz`: the model's rate, that of the grid."""
        self.rate_hz = rate_hz
        self.losses: Counter[Loss] = Counter()
        self.interpolated = 0
        """Grid points inside holes of about two source periods and more."""
        self.resampled = 0
        """Grid points that are not samples of the source."""
        self.source_rate_hz: float | None = None
        """The source's rate, once `RATE_SAMPLES` samples have told it."""
        self._period = 1e9 / rate_hz
        self._source_period_ns = self._average_ns = 0.0
        self._max_gap_ns = MAX_GAP_NS
        self._interrupted: GapReason | None = None
        self._held: list[tuple[Int64Array, Float32Array]] = []
        self._held_seq0 = 0
        self._origin_ns = 0
        self._k = 0
        # Samples that grid points to come may still need: the last one, and as far back as the average reaches.
        self._t: Int64Array = np.empty(0, np.int64)
        self._v: Float32Array = np.empty((0, 6), np.float32)

    @property
    def delay_ns(self) -> float:
        """Most that resampling adds to the age of a grid point, once the source's rate is known."""
        return self._average_ns / 2 + self._source_period_ns

    @property
    def held(self) -> int:
        """Samples that wait for the source's rate to be known."""
        return sum(len(t) for t, _ in self._held)

    def push(self, t_ns: Int64Array, values: Float32Array, seq0: int = 0) -> list[Grid | Break]:
        """Take samples in the order they came: int64 (n,), float32 (n, 6), finite. `seq0`: number of the first.

        Raises:
            RateError: the source's rate is outside 10 to 400 Hz; the samples so far are dropped.
        """
        if len(t_ns) == 0:
            return []
        if self.source_rate_hz is None:
            return self._push_held(t_ns, values, seq0)
        if self._interrupted is None and self._is_on_grid(t_ns):
            k0, self._k = self._k, self._k + len(t_ns)
            self._t, self._v = t_ns, values
            return [Grid(self._origin_ns, k0, values)]
        if self._interrupted is None and len(self._t):
            steps = np.diff(t_ns, prepend=self._t[-1:])
            if ((steps > 0) & (steps <= self._max_gap_ns)).all():
                return self._resample(t_ns, values)
        return self._push_one_by_one(t_ns, values, seq0)

    def interrupt(self, reason: GapReason) -> None:
        """Say that samples before the next one were lost: it starts a new segment, however near it is."""
        if len(self._t):
            self._interrupted = reason
        # Samples that were held for the rate make no whole window: nothing of them is worth keeping across the loss.
        self.losses[Loss.PARTIAL_WINDOW] += self.held
        self._held = []

    def _push_held(self, t_ns: Int64Array, values: Float32Array, seq0: int) -> list[Grid | Break]:
        """Hold samples until there are enough to tell the source's rate from, exactly as many however they come."""
        if not self._held:
            self._held_seq0 = seq0
        self._held.append((t_ns, values))
        if self.held < RATE_SAMPLES:
            return []
        t, v = (np.concatenate(part) for part in zip(*self._held, strict=True))
        self._held = []
        self._set_source_rate(t[:RATE_SAMPLES])
        return self.push(t, v, self._held_seq0)

    def _set_source_rate(self, t_ns: Int64Array) -> None:
        steps = np.diff(t_ns)
        forward = steps[steps > 0]
        if not len(forward):
            raise RateError("its times do not move forward")
        # The upper median; np.median() would import numpy.ma, 7 ms at every start.
        rate = 1e9 / float(np.sort(forward)[len(forward) // 2])
        if not MIN_RATE_HZ / _SLACK <= rate <= MAX_RATE_HZ * _SLACK:
            raise RateError(
                f"its samples come at {rate:.3g} Hz; rates from {MIN_RATE_HZ:g} to {MAX_RATE_HZ:g} Hz can be used"
            )
        self.source_rate_hz = rate
        self._source_period_ns = 1e9 / rate
        self._max_gap_ns = max(MAX_GAP_NS, round(2.5 * self._source_period_ns))
        # Up to half as fast again as the model's grid, averaging would blur more than aliasing costs.
        if rate > 1.5 * self.rate_hz:
            self._average_ns = self._period - self._source_period_ns

    def _is_on_grid(self, t_ns: Int64Array) -> bool:
        """Whether these samples are the next grid points themselves, so that they may pass as they are."""
        if not self._period.is_integer() or self._average_ns or not len(self._t):
            return False
        period = int(self._period)
        first = self._origin_ns + self._k * period
        if t_ns[0] != first or self._t[-1] != first - period:
            return False
        # Comparing bytes is three times as fast as comparing elements and asking whether all are equal.
        return (t_ns - first).tobytes() == _even(len(t_ns), period)

    def _push_one_by_one(self, t_ns: Int64Array, values: Float32Array, seq0: int) -> list[Grid | Break]:
        """Drop samples that do not move time forward, and cut at gaps."""
        out: list[Grid | Break] = []
        run: list[int] = []
        last = int(self._t[-1]) if len(self._t) else None
        for i, t in enumerate(t_ns.tolist()):
            if last is None:
                self._start(t)
            elif self._interrupted or t - last > self._max_gap_ns or t - last < -RESET_NS:
                out += self._resample(t_ns[run], values[run])
                reason = GapReason.MISSING if t > last else GapReason.TIME_RESET
                out.append(Break(seq0 + i, last, t, self._interrupted or reason))
                self._start(t)
                run, self._interrupted = [], None
            elif is_late(t, last):
                self.losses[Loss.DUPLICATE_TIME if t == last else Loss.BACKWARD_TIME] += 1
                continue
            run.append(i)
            last = t
        return out + self._resample(t_ns[run], values[run])

    def _start(self, t_ns: int) -> None:
        self._origin_ns, self._k = t_ns, 0
        self._t, self._v = self._t[:0], self._v[:0]

    def _resample(self, t_ns: Int64Array, values: Float32Array) -> list[Grid | Break]:
        """Give the grid points that have become due with these samples, which continue the segment without a gap."""
        if len(t_ns) == 0:
            return []
        times, samples = np.concatenate([self._t, t_ns]), np.concatenate([self._v, values])
        # Relative to the segment's start: float64 holds nanoseconds exactly for 104 days, since 1970 it does not.
        t, k0 = times - self._origin_ns, self._k
        newest = int(t[-1])
        end = int(newest * self.rate_hz / 1e9) + 2
        grid = grid_offset_ns(np.arange(k0, max(end, k0)), self.rate_hz)
        grid = grid[: int(np.searchsorted(grid, newest, side="right"))]
        out: list[Grid | Break] = []
        if len(grid):
            self._count(t, grid)
            averaged = self._average(t, samples.astype(np.float64), grid)
            out.append(Grid(self._origin_ns, k0, averaged.astype(np.float32)))
            self._k += len(grid)
        keep = max(int(np.searchsorted(t, newest - self._average_ns, side="right")) - 1, 0)
        self._t, self._v = times[keep:], samples[keep:]
        return out

    def _average(self, t: Int64Array, v: Float64Array, grid: Int64Array) -> Float64Array:
        """Mean of the linear signal at even moments, at most one source period apart, up to each grid point."""
        if not self._average_ns:
            return _interpolate(t, v, grid)
        n = math.ceil(self._average_ns / self._source_period_ns)
        # Trapezoid weights, added up in a fixed order: a sum over an array axis may be reordered with its size.
        total = 0.5 * _interpolate(t, v, grid)
        for j in range(1, n):
            total += _interpolate(t, v, grid - self._average_ns * j / n)
        total += 0.5 * _interpolate(t, v, grid - self._average_ns)
        return total / n

    def _count(self, t: Int64Array, grid: Int64Array) -> None:
        at = np.searchsorted(t, grid, side="right") - 1
        between = t[at] != grid
        self.resampled += len(grid) if self._average_ns else int(between.sum())
        hole = t[np.minimum(at + 1, len(t) - 1)] - t[at]
        self.interpolated += int((between & (hole > 1.9 * self._source_period_ns)).sum())


def is_late(t_ns: int, last_ns: int) -> bool:
    """Whether a sample does not move time forward, and is no clock that was set back: it is dropped."""
    return -RESET_NS <= t_ns - last_ns <= 0


@lru_cache(maxsize=64)
def _even(n: int, period_ns: int) -> bytes:
    """The bytes of n even times from 0 on."""
    return (np.arange(n, dtype=np.int64) * period_ns).tobytes()


def grid_offset_ns(k: Int64Array, rate_hz: float) -> Int64Array:
    """Nanoseconds from a segment's start to its grid points `k`, int64 like `k`."""
    offset: Int64Array = np.rint(k * (1e9 / rate_hz)).astype(np.int64)
    return offset


def _interpolate(t: Int64Array, v: Float64Array, at_ns: npt.NDArray[Any]) -> Float64Array:
    """The piecewise linear signal through (t, v) at `at_ns`, constant before its first sample."""
    left = np.maximum(np.searchsorted(t, at_ns, side="right") - 1, 0)
    right = np.minimum(left + 1, len(t) - 1)
    fraction = np.maximum(at_ns - t[left], 0) / np.maximum(t[right] - t[left], 1)
    line: Float64Array = v[left] + fraction[:, None] * (v[right] - v[left])
    return line
