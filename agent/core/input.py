"""How a sensor's numbers become samples: checked, turned, scaled, timed and numbered, the same for every protocol."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from agent.core.settings import InputSettings
from agent.core.timeline import grid_offset_ns
from agent.core.units import ACC_UNITS, GYRO_UNITS, nanoseconds, one_nanoseconds
from agent.records import (
    BadFrame,
    Decoded,
    Dropped,
    Float32Array,
    Float64Array,
    GapReason,
    Int64Array,
    Loss,
    SampleBatch,
)

TICKS_NS = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000}
"""Nanoseconds in each unit that a sensor's times may have."""

MAX_VALUE = 1e6
"""No unit of acceleration or angular velocity that is read here reaches this on a body or a machine."""

MAX_SECONDS = 9.2e9
"""Beyond this, seconds do not fit 64-bit nanoseconds."""

_WRAP = 1 << 32
_WRAP_NEAR_NS = 60_000_000_000
"""A 32-bit counter wrapped if that makes the step shorter than this; otherwise the sensor was started again."""

_STALL_NS = 500_000_000
_FOLLOW = 0.05


class Mounting:
    """Turns and scales (n, 6) numbers of a sensor to g and rad/s along the model's axes."""

    def __init__(self, axes: str, acc_factor: float, gyro_factor: float) -> None:
        """`axes`: as in `InputSettings`. The factors bring the sensor's numbers to g and rad/s."""
        turned = [("xyz".index(axis[-1]), -1.0 if axis.startswith("-") else 1.0) for axis in axes.split()]
        index = [i for i, _ in turned] + [3 + i for i, _ in turned]
        self._index = None if index == [0, 1, 2, 3, 4, 5] else index
        signs = np.array([sign for _, sign in turned] * 2, np.float32)
        factor = np.array([acc_factor] * 3 + [gyro_factor] * 3, np.float32) * signs
        self._factor: Float32Array | None = None if (factor == 1).all() else factor

    @classmethod
    def of(cls, settings: InputSettings) -> "Mounting":
        """For numbers in the units that the settings name."""
        acc, gyro = ACC_UNITS[settings.acc_unit], GYRO_UNITS[settings.gyro_unit]
        return cls(settings.axes, acc * settings.acc_scale, gyro * settings.gyro_scale)

    def apply(
        self, raw: npt.NDArray[np.float64] | npt.NDArray[np.int16], scale: Float32Array | None = None
    ) -> Float32Array:
        """Return float32 (n, 6). `scale`: float32 (6,), of the sensor's own channels, applied first."""
        values: Float32Array = raw.astype(np.float32) if scale is None else np.multiply(raw, scale, dtype=np.float32)
        if self._index is not None:
            values = values[:, self._index]
        if self._factor is not None:
            # The same operation as in a recording, so that the same numbers give the same bits.
            values *= self._factor
        return values

    def apply_one(self, row: Sequence[float]) -> Float32Array:
        """Do the same for six numbers, as float32 (1, 6)."""
        values = np.array([row if self._index is None else [row[i] for i in self._index]], np.float32)
        if self._factor is not None:
            values *= self._factor
        return values


class DeviceClock:
    """The times that a sensor sends, as nanoseconds. Counters in ms and µs are unwrapped at 32 bits."""

    def __init__(self, unit: str) -> None:
        """`unit`: s, ms or us."""
        self._tick_ns = TICKS_NS[unit]
        self.most = MAX_SECONDS * 1e9 / self._tick_ns
        """Times beyond this, on either side, cannot be taken."""
        self._wrap_ns = 0 if unit == "s" else _WRAP * self._tick_ns
        self._near = _WRAP - _WRAP_NEAR_NS / self._tick_ns
        self._last: float | None = None
        self._wrapped_ns = 0

    def times(self, stamps: Float64Array) -> Int64Array:
        """Return int64 (n,) for times as sent, float64 (n,), none beyond `most`."""
        t_ns = nanoseconds(stamps, self._tick_ns)
        if self._wrap_ns:
            t_ns += np.array([self._wrap_before(stamp) for stamp in stamps.tolist()], np.int64)
        return t_ns

    def time(self, stamp: float) -> int:
        """Do the same for one time."""
        return one_nanoseconds(stamp, self._tick_ns) + (self._wrap_before(stamp) if self._wrap_ns else 0)

    def _wrap_before(self, stamp: float) -> int:
        """What wrapping adds to this time, which comes next."""
        step = 0.0 if self._last is None else stamp - self._last
        self._last = stamp
        if step < -self._near:
            self._wrapped_ns += self._wrap_ns
        elif step > self._near:
            self._wrapped_ns -= self._wrap_ns
        if abs(self._wrapped_ns) > 1 << 61 or abs(stamp) > _WRAP:
            # No counter of 32 bits, or centuries of one that is made to wrap at every turn: as if it began here.
            self._wrapped_ns = 0
        return self._wrapped_ns


class CountedClock:
    """Times for a sensor that sends none: sample k stands k periods after the first, which is at 0.

    Theory of operation. Samples of one sensor are evenly spaced, whatever lumps they arrive in, so their number tells
    their time better than their arrival does. What counting cannot see is samples that never came. So the lag of each
    batch is watched: receive time minus counted time of its last sample. It consists of an unknown constant, of the
    delay on the way (never negative, and most samples come promptly), and of the drift between the two clocks. The
    reference is the least lag lately seen: it falls with the lag at once, and rises towards it by at most 5 % of the
    time that passed, which is faster than clocks drift and slower than samples vanish. A batch that lags more than
    half a second behind the reference says that samples stayed away: the count moves on by as many whole periods as
    brings the lag back to the reference, and the timeline sees the hole.

    Hence: a drift of a few percent makes no gap, nor does a stall of less than half a second and the burst after it; a
    lump, or a replay that is faster than life, just counts. A longer stall after which nothing is missing is taken for
    a hole if its samples come in more than one batch: nobody could tell at the first one.
    """

    def __init__(self, rate_hz: float) -> None:
        """`rate_hz`: the sensor's own, as it was told to sample."""
        self._rate_hz = rate_hz
        self._period_ns = 1e9 / rate_hz
        self._k = 0
        self._reference_ns: float | None = None
        self._received_ns = 0

    def times(self, n: int, t_rx_ns: int, places: Sequence[int] | None = None, taken: int = 0) -> Int64Array:
        """Return int64 (n,) for the next samples, of which the last was received at `t_rx_ns`.

        `places`: which of the next `taken` these are, where some in between could not be read.
        """
        taken = taken if places is not None else n
        self._catch_up(taken, t_rx_ns)
        k = self._k
        self._k += taken
        return grid_offset_ns(k + (np.arange(n) if places is None else np.array(places, np.int64)), self._rate_hz)

    def time(self, t_rx_ns: int) -> int:
        """Do the same for one sample."""
        self._catch_up(1, t_rx_ns)
        self._k += 1
        return round((self._k - 1) * self._period_ns)

    def skip(self, n: int) -> None:
        """Leave the places of `n` samples that came and could not be read."""
        self._k += n

    def _catch_up(self, taken: int, t_rx_ns: int) -> None:
        lag = t_rx_ns - (self._k + taken - 1) * self._period_ns
        reference = self._reference_ns
        if reference is None or lag < reference:
            self._reference_ns = lag
        elif lag - reference > _STALL_NS:
            self._k += round((lag - reference) / self._period_ns)
        else:
            self._reference_ns = min(lag, reference + _FOLLOW * (t_rx_ns - self._received_ns))
        self._received_ns = t_rx_ns


class Intake:
    """One stream's way from a decoder's numbers to numbered `SampleBatch`es and counted `BadFrame`s."""

    def __init__(self, stream: str, mounting: Mounting, acc_scale: float = 1.0, gyro_scale: float = 1.0) -> None:
        """`acc_scale`, `gyro_scale`: what brings the numbers to some unit, in which `MAX_VALUE` is the limit."""
        self.stream = stream
        self._mounting = mounting
        self._limits = np.array([MAX_VALUE / abs(acc_scale)] * 3 + [MAX_VALUE / abs(gyro_scale)] * 3)
        self._seq = 0

    def pick(self, t_ns: Int64Array, raw: Float64Array, t_rx_ns: int, where: int) -> list[Decoded]:
        """Make a batch of int64 (n,) and float64 (n, 6), less the samples out of range, which are counted."""
        good = np.abs(raw) <= self._limits
        if good.all():
            return [self.batch(t_ns, self._mounting.apply(raw), t_rx_ns)]
        fine = good.all(axis=1)
        infinite = int((~np.isfinite(raw)).any(axis=1).sum())
        beyond = len(raw) - int(fine.sum()) - infinite
        out: list[Decoded] = []
        if fine.any():
            out.append(self.batch(t_ns[fine], self._mounting.apply(raw[fine]), t_rx_ns))
        if infinite:
            out.append(BadFrame(self.stream, Loss.NON_FINITE, where, infinite))
        if beyond:
            out.append(BadFrame(self.stream, Loss.VALUE_RANGE, where, beyond))
        return out

    def batch(self, t_ns: Int64Array, values: Float32Array, t_rx_ns: int) -> SampleBatch:
        """Number samples that are ready."""
        seq0, self._seq = self._seq, self._seq + len(t_ns)
        return SampleBatch(self.stream, t_ns, values, seq0, t_rx_ns)

    def interrupted(self) -> Dropped:
        """What says that the next sample does not follow the last one."""
        return Dropped(self.stream, 0, GapReason.DISCONNECTED)


class RowIntake(Intake):
    """An `Intake` of rows: six numbers, or a time and six numbers."""

    def __init__(
        self,
        stream: str,
        mounting: Mounting,
        clock: DeviceClock | CountedClock,
        acc_scale: float = 1.0,
        gyro_scale: float = 1.0,
    ) -> None:
        """`clock`: a `DeviceClock` if rows begin with a time."""
        super().__init__(stream, mounting, acc_scale, gyro_scale)
        self.timed = isinstance(clock, DeviceClock)
        """Whether rows begin with the sensor's time."""
        self._clock = clock
        if isinstance(clock, DeviceClock):
            self._limits = np.concatenate([[clock.most], self._limits])
        self._most: list[float] = self._limits.tolist()

    def take(
        self,
        rows: Sequence[Sequence[float]],
        t_rx_ns: int,
        wheres: Sequence[int],
        places: Sequence[int] | None = None,
        taken: int = 0,
    ) -> list[Decoded]:
        """Make a batch of rows, less those out of range, which are counted.

        `wheres`: line or byte of each. `places`: which of the next `taken` samples these are, if not simply the next.
        """
        if len(rows) == 1 and places is None and (one := self.take_one(rows[0], t_rx_ns)) is not None:
            return [one]
        data = np.array(rows, np.float64)
        good = np.abs(data) <= self._limits
        if good.all():
            return [self._batch(data, t_rx_ns, places, taken)]
        fine = good.all(axis=1)
        bad: list[Decoded] = [
            BadFrame(self.stream, self._reason(data[i], bool(good[i, 0])), wheres[i])
            for i in np.flatnonzero(~fine).tolist()
        ]
        keep = np.flatnonzero(fine).tolist()
        # A sample that cannot be used took its time all the same.
        places, taken = keep if places is None else [places[i] for i in keep], taken or len(data)
        if not keep:
            self.skip(taken)
            return bad
        return [self._batch(data[fine], t_rx_ns, places, taken), *bad]

    def take_one(self, row: Sequence[float], t_rx_ns: int) -> SampleBatch | None:
        """Do the same for a good row alone, mostly without NumPy; None, with nothing taken, if it is not good.

        A live sensor's line finds the processor's caches cold: then each of NumPy's functions takes ten microseconds
        and more, where the whole takes twelve when it is called in a loop.
        """
        for number, most in zip(row, self._most, strict=True):
            if not -most <= number <= most:
                return None
        if isinstance(self._clock, DeviceClock):
            t_ns, row = self._clock.time(row[0]), row[1:]
        else:
            t_ns = self._clock.time(t_rx_ns)
        return self.batch(np.array([t_ns], np.int64), self._mounting.apply_one(row), t_rx_ns)

    def skip(self, n: int) -> None:
        """Say that `n` samples came that could not be read at all."""
        if isinstance(self._clock, CountedClock):
            self._clock.skip(n)

    def _batch(self, data: Float64Array, t_rx_ns: int, places: Sequence[int] | None, taken: int) -> SampleBatch:
        if isinstance(self._clock, DeviceClock):
            t_ns, data = self._clock.times(data[:, 0]), data[:, 1:]
        else:
            t_ns = self._clock.times(len(data), t_rx_ns, places, taken)
        return self.batch(t_ns, self._mounting.apply(data), t_rx_ns)

    def _reason(self, row: Float64Array, first_is_good: bool) -> Loss:
        if not np.isfinite(row).all():
            return Loss.NON_FINITE
        return Loss.TIME_RANGE if self.timed and not first_is_good else Loss.VALUE_RANGE
