"""Figures of merit of scored windows: pure functions of arrays."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from agent.records import Float64Array, Int64Array
from har_export.datasets.records import UNLABELLED

BoolArray = npt.NDArray[np.bool_]

BINS = 15
"""Bins of confidence in a reliability diagram, equal in width (Guo et al., ICML 2017)."""


class ClassFigures(NamedTuple):
    """How well one class is found. `support`: windows of it. None where nothing can be divided by."""

    precision: float | None
    recall: float | None
    f1: float | None
    support: int


class Bin(NamedTuple):
    """Windows whose confidence is in (`above`, `to`]; `confidence` and `accuracy` are means, None without windows."""

    above: float
    to: float
    windows: int
    confidence: float | None
    accuracy: float | None


class Onset(NamedTuple):
    """The label became `label`, an index, at `t_s`; `delay_s` until it was decided, None: not while it lasted."""

    label: int
    t_s: float
    delay_s: float | None


def share(which: BoolArray) -> float | None:
    """Return the share of True, None of nothing."""
    return float(which.mean()) if len(which) else None


def confusion(truth: Int64Array, predicted: Int64Array, classes: int) -> Int64Array:
    """Return how many windows of each class (rows) were taken for each class (columns), (`classes`, `classes`)."""
    table = np.zeros((classes, classes), np.int64)
    np.add.at(table, (truth, predicted), 1)
    return table


def by_class(table: Int64Array) -> list[ClassFigures]:
    """Return precision, recall and F1 of each class of a confusion table."""
    figures = []
    for right, support, predicted in zip(
        table.diagonal().tolist(), table.sum(axis=1).tolist(), table.sum(axis=0).tolist(), strict=True
    ):
        figures.append(
            ClassFigures(
                right / predicted if predicted else None,
                right / support if support else None,
                2 * right / (support + predicted) if support + predicted else None,
                support,
            )
        )
    return figures


def macro_f1(figures: Sequence[ClassFigures]) -> float | None:
    """Return the mean F1 of the classes that occur, None of none."""
    found = [f.f1 for f in figures if f.support and f.f1 is not None]
    return sum(found) / len(found) if found else None


def reliability(confidence: Float64Array, right: BoolArray, bins: int = BINS) -> list[Bin]:
    """Return a reliability diagram: accuracy against confidence in bins of equal width, the upper edge inside."""
    which = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    table = []
    for i in range(bins):
        inside = which == i
        n = int(inside.sum())
        mean, accuracy = (float(confidence[inside].mean()), float(right[inside].mean())) if n else (None, None)
        table.append(Bin(i / bins, (i + 1) / bins, n, mean, accuracy))
    return table


def expected_calibration_error(table: Sequence[Bin]) -> float | None:
    """Return the mean gap between confidence and accuracy, None without windows (Guo et al., ICML 2017)."""
    windows = sum(b.windows for b in table)
    gaps = [
        b.windows * abs(b.confidence - b.accuracy) for b in table if b.confidence is not None and b.accuracy is not None
    ]
    return sum(gaps) / windows if windows else None


def negative_log_likelihood(probabilities: Float64Array, truth: Int64Array) -> float | None:
    """Return the mean of minus the log of the right class's probability, None of nothing.

    `probabilities`: (n, classes). `truth`: (n,), indices of the classes.
    """
    right = probabilities[np.arange(len(truth)), truth]
    return float(-np.log(np.maximum(right, 1e-12)).mean()) if len(truth) else None


def auroc(positive: Float64Array, negative: Float64Array) -> float | None:
    """Return how often a positive scores above a negative, ties halved; None without either (Mann and Whitney)."""
    if not len(positive) or not len(negative):
        return None
    order = np.sort(negative)
    below, not_above = (np.searchsorted(order, positive, side) for side in ("left", "right"))
    return float((below + not_above).mean() / 2 / len(negative))


def delay_quantiles(delays_s: Sequence[float]) -> dict[str, float | None]:
    """Return the median and the 90th percentile of delays in seconds, as results name them; None of nothing."""
    quantiles = (("delay_median_s", 0.5), ("delay_p90_s", 0.9))
    return {name: float(np.quantile(delays_s, q)) if len(delays_s) else None for name, q in quantiles}


def onsets(
    label: Int64Array, rate_hz: float, t1_s: Float64Array, decided: Int64Array, period_s: float, shortest_s: float
) -> list[Onset]:
    """Return the onsets of one recording's labels, as the agent's replay report has them (`agent.core.report`).

    An onset is the moment at which the label becomes another one than the last: what a recording begins with is none,
    nor is the same label after an unlabelled stretch. Its delay ends with the first window that reaches into the new
    label, and whose decided activity it is. A label that lasts for less than `shortest_s` is left out.

    `label`: (samples,) at `rate_hz`. `t1_s`, `decided`: (windows,), where each window ends and what was decided then.
    `period_s`: of the model's samples; a window's last one is that much before its end.
    """
    edges = [0, *(np.flatnonzero(np.diff(label)) + 1).tolist(), len(label)]
    last_sample = t1_s - period_s + 1e-9
    found = []
    previous: int | None = None
    for first, end in pairwise(edges):
        current = int(label[first])
        if current == UNLABELLED:
            continue
        if previous not in (None, current) and (end - first) / rate_hz >= shortest_s:
            t_s = first / rate_hz
            # The last label of a recording lasts for as long as there are windows.
            until = end / rate_hz if end < len(label) else np.inf
            right = (last_sample >= t_s) & (last_sample < until) & (decided == current)
            found.append(Onset(current, t_s, float(t1_s[right][0]) - t_s if right.any() else None))
        previous = current
    return found
