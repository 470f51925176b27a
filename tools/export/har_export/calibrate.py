"""How scores are read: temperature and novelty threshold, measured on the int8 files with held-out subjects."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from agent.adapters.onnx_model import OrtModel
from agent.core.decision import calibrated
from agent.core.manifest import Calibration, Context
from agent.core.normalise import Normalisation
from agent.errors import InputError
from agent.records import Float32Array, Float64Array, Int64Array
from har_export import metrics
from har_export.context import Codes, histories
from har_export.datasets.records import UNLABELLED, Data
from har_export.datasets.split import in_order
from har_export.ensemble import Ensemble
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


def hold_out(subjects: tuple[str, ...], seed: int) -> tuple[str, ...]:
    """Choose whom calibration is measured on: at least one subject, and not all."""
    n = max(1, round(len(subjects) * HELD_OUT_SHARE))
    return in_order(np.random.default_rng([seed, 1]).permutation(np.array(subjects))[:n].tolist())


def calibrate(
    model: OrtModel, data: Data, codes: Sequence[Codes]
) -> tuple[Calibration, Context | None, dict[str, float]]:
    """Return the calibration of `model` and its context, and what was measured on the way.

    `data`: subjects that the model was not trained on, `codes` those of their recordings. Their labelled streaming and
    filtered windows count alike. What the publisher left unlabelled does not count: there people do other things,
    which may well be unknown.

    Raises:
        InputError: none of their windows is labelled with an activity.
    """
    manifest = model.bundle.manifest
    values, label = all_windows(data, manifest.input.window)
    values, label = values[label != UNLABELLED], label[label != UNLABELLED]
    if not data.is_activity(label).any():
        raise InputError(
            f"no window of {', '.join(data.subjects)} is labelled with an activity: they were to calibrate the model; "
            "leave their recordings out, or label more of them"
        )
    logits, novelty = score(model, manifest.normalisation, values)
    temperature = fit_temperature(logits, label)
    threshold = NOVELTY_MARGIN * float(np.quantile(novelty, NOVELTY_QUANTILE))
    quantiles = {str(q): float(np.quantile(novelty, q)) for q in QUANTILES}
    activity = data.is_activity(label)
    measured = {
        "windows": int(activity.sum()),
        "accuracy": float((logits.argmax(1) == label)[activity].mean()),
        "negative_log_likelihood": negative_log_likelihood(logits, label, temperature),
    }
    context = None
    if manifest.context is not None:
        windows, parts = manifest.context.windows, [c for c in codes if (c.label != UNLABELLED).any()]
        if parts:
            label = np.concatenate([c.label for c in parts])
            seen = [np.ascontiguousarray(histories(c.code, windows)) for c in parts]
            logits = np.concatenate([model.contextualise(history) for history in seen])
            temperature = fit_temperature(logits[label != UNLABELLED], label[label != UNLABELLED])
        context = manifest.context._replace(temperature=temperature)
    return Calibration(temperature, threshold, quantiles), context, measured


@torch.no_grad()
def accuracy(network: Ensemble, normalisation: Normalisation, data: Data, window: int) -> float:
    """Return the share of activity windows that the float networks get right: what quantisation is held against."""
    values, label = all_windows(data, window)
    activity = data.is_activity(label)
    values, label = values[activity], label[activity]
    right = 0
    for i in range(0, len(values), BATCH):
        logits = network(torch.from_numpy(normalisation.apply(values[i : i + BATCH])))
        right += int((logits.argmax(dim=1).numpy() == label[i : i + BATCH]).sum())
    return right / len(label)


def all_windows(data: Data, window: int) -> tuple[Float32Array, Int64Array]:
    """Return every window of `data`, streaming and filtered: (n, window, 6) in g and rad/s; middle labels (n,).

    Raises:
        InputError: filtered windows of another length, or none at all.
    """
    long = [r for r in data.recordings if len(r.values) >= window]
    cut = [(values, r.label[middle]) for r in long for values, middle in [streaming_windows(r, window)]]
    if len(data.windows.label):
        if data.windows.values.shape[1] != window:
            raise InputError(f"ready-cut windows have {data.windows.values.shape[1]} samples, the model's {window}")
        cut.append((data.windows.values, data.windows.label))
    if not cut:
        raise InputError("there is no window: recordings are shorter than one")
    return np.concatenate([values for values, _ in cut]), np.concatenate([label for _, label in cut])


def people(data: Data, window: int) -> npt.NDArray[np.str_]:
    """Return whose each of `all_windows` is, (n,)."""
    long = [r for r in data.recordings if len(r.values) >= window]
    cut = [np.full(len(streaming_windows(r, window)[1]), r.subject) for r in long]
    return np.concatenate([*cut, data.windows.subject])


def fit_temperature(logits: Float32Array, label: Int64Array) -> float:
    """Return which of `TEMPERATURES` has the least negative log-likelihood (Guo et al., ICML 2017)."""
    losses = [negative_log_likelihood(logits, label, float(t)) for t in TEMPERATURES]
    return float(TEMPERATURES[int(np.argmin(losses))])


def negative_log_likelihood(logits: Float32Array, label: Int64Array, temperature: float) -> float:
    """Mean over windows of minus the log of the calibrated probability of the right label."""
    found = metrics.negative_log_likelihood(calibrated(logits, temperature), label)
    return float("nan") if found is None else found


def score(model: OrtModel, normalisation: Normalisation, values: Float32Array) -> tuple[Float32Array, Float64Array]:
    """Return logits (n, labels) and novelty (n,) of windows (n, window, 6) in g and rad/s."""
    scores = [model.infer(normalisation.apply(values[i : i + BATCH])) for i in range(0, len(values), BATCH)]
    return np.concatenate([s.logits for s in scores]), np.concatenate([s.novelty for s in scores])
