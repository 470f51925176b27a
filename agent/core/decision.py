"""From calibrated scores to a decided activity: smoothing and hysteresis, in seconds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agent.records import UNKNOWN, Float32Array, Float64Array


def calibrated(logits: Float32Array, temperature: float) -> Float64Array:
    """Softmax of float32 (B, classes) over `temperature`; float64 (B, classes), rows sum to 1."""
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    np.exp(scaled, out=scaled)
    scaled /= scaled.sum(axis=1, keepdims=True)
    return scaled


@dataclass(frozen=True)
class DecisionSettings:
    """How slowly the decided activity follows the windows.

    `smoothing_s`: time constant of the exponential average over scores, 0 for none. `hold_s`: how long another
    activity must lead that average before it is decided.
    """

    smoothing_s: float = 1.0
    hold_s: float = 0.0

    def __post_init__(self) -> None:
        """Refuse times that are negative or not finite."""
        for name in ("smoothing_s", "hold_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a number of seconds, 0 or more, not {value}")


class Decision:
    """The decided activity of one stream."""

    def __init__(self, labels: Sequence[str], settings: DecisionSettings) -> None:
        self._names = (*labels, UNKNOWN)
        self._smoothing_ns = settings.smoothing_s * 1e9
        self._hold_ns = settings.hold_s * 1e9
        self.activity: str | None = None
        self.clear()

    def clear(self) -> None:
        """Forget the smoothed scores, as after a gap; the activity stands until the next window."""
        self._scores: list[float] | None = None
        self._t_ns = 0
        self._challenger = -1
        self._since_ns = 0

    def update(self, t_ns: int, scores: Sequence[float], known: bool) -> tuple[str, float]:
        """Take one window's scores at its end `t_ns`; return the activity and its smoothed score.

        A window that is not known counts fully for `UNKNOWN`, whatever its scores.
        """
        new = [*scores, 0.0] if known else [0.0] * len(scores) + [1.0]
        first = self._scores is None
        if self._scores is None:
            smoothed = new
        else:
            keep = self._keep(t_ns - self._t_ns)
            smoothed = [n + keep * (old - n) for n, old in zip(new, self._scores, strict=True)]
        self._scores, self._t_ns = smoothed, t_ns
        best = max(smoothed)
        leader = smoothed.index(best)
        name = self._names[leader]
        if name == self.activity:
            self._challenger = -1
            return name, best
        if leader != self._challenger:
            self._challenger, self._since_ns = leader, t_ns
        if self.activity is None or first or t_ns - self._since_ns >= self._hold_ns:
            self.activity, self._challenger = name, -1
            return name, best
        return self.activity, smoothed[self._names.index(self.activity)]

    def _keep(self, dt_ns: int) -> float:
        return math.exp(-dt_ns / self._smoothing_ns) if self._smoothing_ns else 0.0
