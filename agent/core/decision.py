"""From calibrated scores to a decided activity: smoothing and hysteresis, in seconds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agent.records import UNKNOWN, Float32Array, Float64Array

SMOOTHING_S = 1.0
"""Time constant over the scores of single windows. A context has looked back already: smoothing would only delay it."""


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

    `smoothing_s`: time constant of the exponential average over scores, 0 for none; where it is not set, 0 with the
    model's context and 1 without. `hold_s`: how long another activity must lead that average before it is decided.
    """

    smoothing_s: float | None = None
    hold_s: float = 0.0

    def __post_init__(self) -> None:
        """Refuse times that are negative or not finite."""
        for name in ("smoothing_s", "hold_s"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a number of seconds, 0 or more, not {value}")


class Decision:
    """The decided activity of one stream."""

    def __init__(self, labels: Sequence[str], settings: DecisionSettings, *, in_context: bool = False) -> None:
        """`in_context`: whether the scores are those of a context, which has looked back already."""
        self._names = (*labels, UNKNOWN)
        self._settings = settings
        self._hold_ns = settings.hold_s * 1e9
        self.activity: str | None = None
        self.use_context(in_context)
        self.clear()

    def use_context(self, used: bool) -> None:
        """Say whether scores are those of a context from now on; what was decided, and smoothed, goes on."""
        default = 0.0 if used else SMOOTHING_S
        self._smoothing_ns = 1e9 * (default if self._settings.smoothing_s is None else self._settings.smoothing_s)

    def clear(self) -> None:
        """Forget the smoothed scores, as after a gap; the activity stands until the next window."""
        self._scores: list[float] | None = None
        self._t_ns = 0
        self._challenger = -1
        self._since_ns = 0
        self._doubted = False

    def update(self, t_ns: int, scores: Sequence[float], known: bool) -> tuple[str, float]:
        """Take one window's scores at its end `t_ns`; return the activity and its smoothed score.

        Windows that are not known count fully for `UNKNOWN`, whatever their scores, from the second in a row on, or
        where nothing came before: a single one among others is more likely an odd movement than another activity.
        """
        first = self._scores is None
        unknown = not known and (first or self._doubted)
        self._doubted = not known
        new = [0.0] * len(scores) + [1.0] if unknown else [*scores, 0.0]
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
