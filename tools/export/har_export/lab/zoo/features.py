"""Hand features of a window, in time and frequency: what the forest and the logistic regression see.

Eight signals: the six channels, and the magnitudes of acceleration and of angular velocity. Each gives

- in time: mean, standard deviation, least, greatest, interquartile range, mean absolute difference of neighbours, and
  the rate at which it crosses its mean;
- in frequency, without its mean and under a Hann window: the strongest frequency, the spectrum's centroid and entropy,
  and the logarithm of the power in six bands.

To these come the correlations between the six channels.
"""

from itertools import pairwise

import numpy as np

from agent.records import CHANNELS, Float32Array, Float64Array

RATE_HZ = 50.0
BANDS_HZ = (0.3, 1.0, 1.7, 2.5, 3.5, 6.0, 12.0)
"""Edges: sway, slow and quick steps, and their harmonics."""

SIGNALS = (*CHANNELS, "|a|", "|g|")
IN_TIME = ("mean", "sd", "min", "max", "iqr", "difference", "crossings")
IN_FREQUENCY = (
    "peak_hz",
    "centroid_hz",
    "entropy",
    *(f"power_{a}_{b}" for a, b in pairwise(BANDS_HZ)),
)
PAIRS = tuple((i, j) for i in range(len(CHANNELS)) for j in range(i))

NAMES = (
    *(f"{signal}_{name}" for name in IN_TIME + IN_FREQUENCY for signal in SIGNALS),
    *(f"{CHANNELS[i]}_{CHANNELS[j]}_correlation" for i, j in PAIRS),
)

_FAINT = 1e-9
"""Keeps logarithms and quotients finite where a channel stands still."""


def hand_features(windows: Float32Array) -> Float32Array:
    """Return float32 (n, `len(NAMES)`) of windows (n, T, 6) in g and rad/s at `RATE_HZ`."""
    values = windows.astype(np.float64)
    magnitudes = [np.linalg.norm(values[:, :, part], axis=2, keepdims=True) for part in (slice(3), slice(3, 6))]
    signals = np.concatenate([values, *magnitudes], axis=2)
    columns = [*_in_time(signals), *_in_frequency(signals), _correlations(values)]
    return np.concatenate(columns, axis=1).astype(np.float32)


def _in_time(signals: Float64Array) -> list[Float64Array]:
    mean = signals.mean(axis=1)
    low, high = np.quantile(signals, [0.25, 0.75], axis=1)
    above = signals > mean[:, None]
    return [
        mean,
        signals.std(axis=1),
        signals.min(axis=1),
        signals.max(axis=1),
        high - low,
        np.abs(np.diff(signals, axis=1)).mean(axis=1),
        (above[:, 1:] != above[:, :-1]).mean(axis=1),
    ]


def _in_frequency(signals: Float64Array) -> list[Float64Array]:
    still = (signals - signals.mean(axis=1, keepdims=True)) * np.hanning(signals.shape[1])[:, None]
    power = np.abs(np.fft.rfft(still, axis=1)) ** 2 + _FAINT
    hz = np.fft.rfftfreq(signals.shape[1], 1 / RATE_HZ)
    share = power / power.sum(axis=1, keepdims=True)
    bands = [np.log(power[:, (hz >= a) & (hz < b)].sum(axis=1)) for a, b in pairwise(BANDS_HZ)]
    return [
        hz[power.argmax(axis=1)],
        np.einsum("nfs,f->ns", share, hz),
        -(share * np.log(share)).sum(axis=1),
        *bands,
    ]


def _correlations(values: Float64Array) -> Float64Array:
    centred = values - values.mean(axis=1, keepdims=True)
    products = np.einsum("nti,ntj->nij", centred, centred)
    spread = np.sqrt(np.einsum("nii->ni", products)) + _FAINT
    correlation = products / (spread[:, :, None] * spread[:, None, :])
    return np.stack([correlation[:, i, j] for i, j in PAIRS], axis=1)
