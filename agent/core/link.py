"""What a link takes: its round-trip time and bandwidth, learned from what went over it.

Theory of operation. A round trip of `n` bytes takes `rtt + n / bandwidth`: a line through what was seen, with weights
that fall by `FORGETTING` from one observation to the next. Sizes must differ for the line to have a slope; while they
do not, or while noise hides it, bandwidth is not known and every size is expected to take the mean.

An average is slow where a link becomes another one (a handover, a tunnel) and fast where it does not (a packet that was
sent twice): it does not tell one from the other. Bayesian online change-point detection does (Adams and MacKay,
arXiv:0710.3742, 2007). It holds a probability for each number of observations since the last change, over the logarithm
of taken to expected time, whose mean and variance are unknown: Normal-Inverse-Gamma, which predicts by Student's t. The
longest run forgets as it goes on, which bounds the work. A change that is nearly sure and has `CONFIRMED` observations
on its side is taken for one: the line is then drawn anew, through those alone. What lies beyond `FAR` standard
deviations counts as if it lay there, and not at all for the line, so that alone it changes nothing.
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from agent.records import Float64Array

FORGETTING = 15 / 16
"""Weight of an observation, of that of the next one."""

HAZARD = 1 / 300
"""How likely a change is from one observation to the next, before looking."""

CONFIRMED = 3
"""How many observations must be on the side of a change."""

SURE = 0.9
"""How probable a change must be."""

FAR = 3.0
"""Standard deviations beyond which an observation is an outlier, unless others follow it."""

STALE_NS = 600_000_000_000
"""A silence after which nothing that was known of a link counts any more."""

_UNLIKE = 2.0
"""How many times as large, or as small, as all before it a size must be to teach the line and not be judged by it."""

_LONGEST = 64
"""Observations in the longest run, which stands for longer ones too."""

# What is believed of a run before its first observation: it scatters by 15 % around anything within a factor of three.
_SCATTER = 0.15
_KAPPA_0, _ALPHA_0, _BETA_0 = 1 / 64, 2.0, 2.0 * _SCATTER**2

# Kappa and alpha of a run follow from its length. Of Student's t that predicts its next observation: the squared scale
# over beta, and the part of the logarithm of its density that does not depend on the observation.
_KAPPA: Float64Array = _KAPPA_0 + np.arange(_LONGEST + 1, dtype=np.float64)
_ALPHA: Float64Array = _ALPHA_0 + np.arange(_LONGEST + 1, dtype=np.float64) / 2
_SPREAD: Float64Array = (_KAPPA + 1) / (_ALPHA * _KAPPA)
_NORMALISER: Float64Array = np.array([math.lgamma(a + 0.5) - math.lgamma(a) for a in _ALPHA]) - 0.5 * np.log(_ALPHA)


class _Observation(NamedTuple):
    n_bytes: int
    rtt_ns: int


class _Line:
    """Time over size: least squares with weights that fall towards the past."""

    def __init__(self) -> None:
        self.intercept_ns = 0.0
        self.ns_per_byte: float | None = None
        self._smallest, self._largest = math.inf, 0.0
        self._weight = 0.0
        self._n = self._t = 0.0  # means
        self._nn = self._nt = self._tt = 0.0  # variances and covariance

    def add(self, seen: _Observation) -> None:
        n, t = float(seen.n_bytes), float(seen.rtt_ns)
        self._smallest, self._largest = min(self._smallest, n), max(self._largest, n)
        self._weight = FORGETTING * self._weight + 1.0
        # Welford's way, since sums of squares would lose a millisecond among the seconds.
        dn, dt, step = n - self._n, t - self._t, 1.0 / self._weight
        self._n += step * dn
        self._t += step * dt
        self._nn = (1.0 - step) * (self._nn + step * dn * dn)
        self._nt = (1.0 - step) * (self._nt + step * dn * dt)
        self._tt = (1.0 - step) * (self._tt + step * dt * dt)
        if self._nn > (self._n / 4) ** 2:
            slope = self._nt / self._nn
            residual = max(self._tt - slope**2 * self._nn, 0.0)
            # Two points fit any line, so that what is believed of the scatter counts as much as one of them.
            noise = (self._weight * residual + (_SCATTER * self._t) ** 2) / (self._weight + 1.0)
            # A slope within three standard errors of none is noise; the last one that was not stands.
            if slope > 3.0 * math.sqrt(noise / (self._weight * self._nn)):
                self.ns_per_byte = slope
        self.intercept_ns = self._t - (self.ns_per_byte or 0.0) * self._n
        if self.intercept_ns < 0.0:
            self.intercept_ns, self.ns_per_byte = 0.0, self._t / self._n

    def at(self, n_bytes: int) -> float:
        return self.intercept_ns + (self.ns_per_byte or 0.0) * n_bytes

    def reaches(self, n_bytes: int) -> bool:
        """Whether it was drawn through something about as large."""
        return self._smallest / _UNLIKE <= n_bytes <= self._largest * _UNLIKE


class _Runs:
    """How probable each number of observations since the last change is: Adams and MacKay, algorithm 1."""

    def __init__(self) -> None:
        self.probability = np.zeros(_LONGEST + 1)
        self.probability[0] = 1.0
        self._mean = np.zeros(_LONGEST + 1)
        self._beta = np.full(_LONGEST + 1, _BETA_0)

    def limited(self, x: float, length: int) -> float:
        """Return `x`, or what lies `FAR` on its side of what a run of `length` expects."""
        mean, far = float(self._mean[length]), FAR * math.sqrt(self._beta[length] * _SPREAD[length])
        return min(max(x, mean - far), mean + far)

    def update(self, x: float) -> None:
        off = x - self._mean
        scale = self._beta * _SPREAD
        log_density = _NORMALISER - 0.5 * np.log(scale) - (_ALPHA + 0.5) * np.log1p(off**2 / (2.0 * _ALPHA * scale))
        joint = self.probability * np.exp(log_density)
        joint /= joint.sum()
        mean = self._mean + off / (_KAPPA + 1.0)
        beta = self._beta + off**2 * (_KAPPA / (2.0 * (_KAPPA + 1.0)))
        if joint[-1] > joint[-2]:
            # It stays as long as it is, so it forgets as much as it learns.
            mean[-2], beta[-2] = mean[-1], beta[-1] * (_ALPHA[-1] / (_ALPHA[-1] + 0.5))
        joint[-2] += joint[-1]
        self._mean[1:], self._beta[1:] = mean[:-1], beta[:-1]
        self.probability[1:] = (1.0 - HAZARD) * joint[:-1]
        self.probability[0] = HAZARD


class LinkEstimator:
    """Round-trip time and bandwidth of one link, from framed probes or from real traffic."""

    def __init__(self) -> None:
        self.changes = 0
        """How often the link became another one, or was silent for long: what was planned by it is out of date."""
        self._seen_ns = 0
        self._begin(())

    @property
    def rtt_ns(self) -> float | None:
        """The round trip of no bytes; where bandwidth is not known, of what is usually sent. None before the first.

        0 where the bytes explain all that round trips take.
        """
        return self._line.intercept_ns if self._length else None

    @property
    def bits_per_s(self) -> float | None:
        """Bandwidth; None while sizes are too much alike since the last change, or their effect is lost in noise."""
        return 8e9 / self._line.ns_per_byte if self._line.ns_per_byte else None

    def expected_ns(self, n_bytes: int) -> int | None:
        """Return how long a round trip of `n_bytes` takes, there and back together; None before the first."""
        return round(self._line.at(n_bytes)) if self._length else None

    def observe(self, now_ns: int, n_bytes: int, rtt_ns: int) -> None:
        """Learn that a round trip of `n_bytes`, there and back together, took `rtt_ns` and ended at `now_ns`."""
        if self._length and now_ns - self._seen_ns > STALE_NS:
            self.changes += 1
            self._begin(())
        self._seen_ns = now_ns
        seen = _Observation(n_bytes, max(rtt_ns, 1))
        self._recent.append(seen)
        if not self._length or not self._line.reaches(n_bytes):
            self._line.add(seen)
            self._judge(seen)
        elif self._judge(seen):
            self._line.add(seen)
        elif self._length <= CONFIRMED:
            # As likely as not, those before it were the outliers: a first connection is slow.
            self._begin([seen])
        run = self._changed()
        if run:
            self.changes += 1
            self._begin(list(self._recent)[-run:])

    def _begin(self, recent: Sequence[_Observation]) -> None:
        """Start from what was seen since a change: the line goes through all of it before it judges any."""
        self._line, self._runs, self._length = _Line(), _Runs(), 0
        self._recent: deque[_Observation] = deque(recent, _LONGEST)
        for seen in recent:
            self._line.add(seen)
        for seen in recent:
            self._judge(seen)

    def _judge(self, seen: _Observation) -> bool:
        """Hold an observation against the line; return whether it is no outlier."""
        x = math.log(seen.rtt_ns / max(self._line.at(seen.n_bytes), 1.0))
        held = self._runs.limited(x, self._length)
        self._runs.update(held)
        self._length = min(self._length + 1, _LONGEST)
        return held == x

    def _changed(self) -> int:
        """Return how many observations followed a change that is nearly sure; 0 without one."""
        since = self._runs.probability[: self._length]
        run = int(since.argmax())
        return run if run >= CONFIRMED and since.sum() > SURE else 0
