"""How scores are read: temperature and novelty threshold, measured on the int8 files with held-out subjects."""

import numpy as np
import torch

from agent.core.decision import calibrated
from agent.core.manifest import Calibration
from agent.core.normalise import Normalisation
from agent.ports import Model
from agent.records import Float32Array, Float64Array, Int64Array
from har_export.datasets import Data
from har_export.datasets.records import ACTIVITIES, UNLABELLED
from har_export.network import Network
from har_export.train import streaming_windows

HELD_OUT_SHARE = 0.2
"""Share of the training subjects that calibration is measured on."""

NOVELTY_QUANTILE = 0.995
NOVELTY_MARGIN = 1.25
"""The threshold is this quantile of held-out windows' novelty, with a margin because a few people do not show how far
people differ: well below one ordinary window in 100 should be unknown."""

QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.995, 0.999)
TEMPERATURES = np.geomspace(0.2, 10, 400)
BATCH = 256

UNCALIBRATED = Calibration(temperature=1.0, novelty_threshold=1e9)
"""What a model is scored with before anything is known about its scores: no window is unknown."""


def hold_out(subjects: tuple[int, ...], seed: int) -> tuple[int, ...]:
    """Choose whom calibration is measured on: at least one subject, and not all."""
    n = max(1, round(len(subjects) * HELD_OUT_SHARE))
    chosen = np.random.default_rng([seed, 1]).permutation(subjects)[:n]
    return tuple(sorted(int(s) for s in chosen))


def calibrate(model: Model, normalisation: Normalisation, data: Data) -> tuple[Calibration, dict[str, float]]:
    """Return the calibration of `model`, and what was measured on the way.

    `data`: subjects that the model was not trained on. Their labelled streaming and filtered windows count alike. What
    the publisher left unlabelled does not count: there people do other things, which may well be unknown.
    """
    values, label = all_windows(data)
    values, label = values[label != UNLABELLED], label[label != UNLABELLED]
    logits, novelty = _score(model, normalisation, values)
    temperature = fit_temperature(logits, label)
    threshold = NOVELTY_MARGIN * float(np.quantile(novelty, NOVELTY_QUANTILE))
    quantiles = {str(q): float(np.quantile(novelty, q)) for q in QUANTILES}
    activity = label < ACTIVITIES
    measured = {
        "windows": int(activity.sum()),
        "accuracy": float((logits.argmax(1) == label)[activity].mean()),
        "negative_log_likelihood": negative_log_likelihood(logits, label, temperature),
    }
    return Calibration(temperature, threshold, quantiles), measured


@torch.no_grad()
def accuracy(network: Network, normalisation: Normalisation, data: Data) -> float:
    """Return the share of activity windows that the float network gets right: what quantisation is held against."""
    values, label = all_windows(data)
    activity = (label != UNLABELLED) & (label < ACTIVITIES)
    values, label = values[activity], label[activity]
    right = 0
    for i in range(0, len(values), BATCH):
        logits, _ = network(torch.from_numpy(normalisation.apply(values[i : i + BATCH])))
        right += int((logits.argmax(dim=1).numpy() == label[i : i + BATCH]).sum())
    return right / len(label)


def all_windows(data: Data) -> tuple[Float32Array, Int64Array]:
    """Return every window of `data`, streaming and filtered: (n, 128, 6) in g and rad/s; centre labels (n,)."""
    cut = [streaming_windows(r) for r in data.recordings]
    return (
        np.concatenate([*(values for values, _ in cut), data.windows.values]),
        np.concatenate([*(label for _, label in cut), data.windows.label]),
    )


def fit_temperature(logits: Float32Array, label: Int64Array) -> float:
    """Return which of `TEMPERATURES` has the least negative log-likelihood (Guo et al., ICML 2017)."""
    losses = [negative_log_likelihood(logits, label, float(t)) for t in TEMPERATURES]
    return float(TEMPERATURES[int(np.argmin(losses))])


def negative_log_likelihood(logits: Float32Array, label: Int64Array, temperature: float) -> float:
    """Mean over windows of minus the log of the calibrated probability of the right label."""
    right = calibrated(logits, temperature)[np.arange(len(label)), label]
    return float(-np.log(np.maximum(right, 1e-12)).mean())


def _score(model: Model, normalisation: Normalisation, values: Float32Array) -> tuple[Float32Array, Float64Array]:
    scores = [model.infer(normalisation.apply(values[i : i + BATCH])) for i in range(0, len(values), BATCH)]
    return np.concatenate([s.logits for s in scores]), np.concatenate([s.novelty for s in scores])
