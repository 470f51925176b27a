"""Novelty: how much less like the known classes than like something else a code is.

Two differences of squared Mahalanobis distances, the first of which is known as the relative Mahalanobis distance (Ren
et al., A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection, 2021):

- the distance to the nearest class, in the metric of the spread within classes, less that to the mean of all codes, in
  the metric of their whole spread. What no class varies in counts much, what everything varies in, little.
- the same distance to the nearest class, less that to codes of a sensor that nobody wears; where that is nearer.

Novelty is their sum. Each is quadratic in the code, c M c + min over classes (b c + d), and is computed in whole
numbers, which doubles hold exactly: a code's novelty does not depend on its batch, nor on the CPU.
"""

from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from agent.errors import InputError
from agent.records import Float64Array, Int8Array, Int64Array
from har_export.datasets.records import UNLABELLED
from har_export.quantise import Graph

SHRINKAGE = 0.05
"""Share of the mean variance that is mixed into each spread: codes of a few people do not fill their space."""

FEWEST = 8
"""Codes that a class needs to have a place of its own."""

_LARGEST = 2**15 - 1
"""Of a matrix's whole numbers. 64 x 64 x 2^15 x 2^14 is far below 2^53."""


class Difference(NamedTuple):
    """c M c + min over classes (b c + d): `matrix` (C, C), `slope` (C, classes), `offset` (classes,)."""

    matrix: Float64Array
    slope: Float64Array
    offset: Float64Array

    def of(self, code: Int8Array) -> Float64Array:
        """Return it for codes (n, C), in squared standard deviations, (n,)."""
        x = code.astype(np.float64)
        linear = (x @ self.slope + self.offset).min(axis=1)
        return np.asarray(np.einsum("nc,cd,nd->n", x, self.matrix, x) + linear)


class _Place(NamedTuple):
    """Where codes are, and the metric of their spread."""

    mean: Float64Array
    metric: Float64Array


def export(code: Int8Array, label: Int64Array, idle: Int8Array) -> bytes:
    """Fit on codes int8 (n, C) with labels int64 (n,), and on codes of a sensor that nobody wears, `idle` (m, C).

    Return `novelty.onnx`. The median of the codes that it was fitted on has novelty 1; none has less than 0.
    """
    differences = fit(code, label, idle)
    low, median = np.quantile(distance(code, differences), [0.01, 0.5])
    g = Graph("n")
    double = int(TensorProto.DOUBLE)
    c = g.op("Cast", "code", to=double)
    from_all, from_idle = (_difference(g, c, d) for d in differences)
    both = g.op("Add", from_all, g.op("Relu", from_idle))
    shifted = g.op("Sub", both, g.constant(np.array(low)))
    scaled = g.op("Mul", shifted, g.constant(np.array(1 / max(median - low, 1e-9))))
    g.op("Cast", g.op("Relu", scaled), to=int(TensorProto.FLOAT))
    return g.serialise("code", (code.shape[1],), "novelty", ())


def _difference(g: Graph, c: str, difference: Difference) -> str:
    double = int(TensorProto.DOUBLE)
    unit = max(float(np.abs(difference.matrix).max()), 1e-12) / _LARGEST
    kinds = (np.int16, np.int64, np.int64)
    matrix, slope, offset = (
        g.op("Cast", g.constant(np.round(part / unit).astype(kind)), to=double)
        for part, kind in zip(difference, kinds, strict=True)
    )
    square = g.op("Mul", g.op("MatMul", c, matrix), c)
    square = g.op("ReduceSum", square, g.constant(np.array([1])), keepdims=0)
    nearest = g.op("ReduceMin", g.op("Add", g.op("MatMul", c, slope), offset), axes=[1], keepdims=0)
    return g.op("Mul", g.op("Add", square, nearest), g.constant(np.array(unit)))


def fit(code: Int8Array, label: Int64Array, idle: Int8Array) -> tuple[Difference, Difference]:
    """Return the distance to the nearest class less that to all codes, and less that to codes of an idle sensor.

    Raises:
        InputError: no class has `FEWEST` codes.
    """
    x = code.astype(np.float64)
    members = [label == k for k in np.unique(label) if k != UNLABELLED and (label == k).sum() >= FEWEST]
    if not members:
        raise InputError(f"no class has {FEWEST} windows: there is too little to know novelty from")
    means = np.stack([x[which].mean(axis=0) for which in members])
    within = np.concatenate([x[which] - mean for which, mean in zip(members, means, strict=True)])
    near = _metric(within)
    return _less(means, near, _place(x)), _less(means, near, _place(idle.astype(np.float64)))


def distance(code: Int8Array, differences: tuple[Difference, Difference]) -> Float64Array:
    """Return the novelty of codes int8 (n, C) before it is shifted and scaled, float64 (n,)."""
    from_all, from_idle = (d.of(code) for d in differences)
    return np.asarray(from_all + np.maximum(from_idle, 0))


def _less(means: Float64Array, near: Float64Array, other: _Place) -> Difference:
    slope = -2 * (near @ means.T - (other.metric @ other.mean)[:, None])
    offset = np.einsum("kc,cd,kd->k", means, near, means) - other.mean @ other.metric @ other.mean
    return Difference(near - other.metric, slope, offset)


def _place(x: Float64Array) -> _Place:
    mean = x.mean(axis=0)
    return _Place(mean, _metric(x - mean))


def _metric(deviations: Float64Array) -> Float64Array:
    """Return the inverse of the covariance of deviations (n, C) from a mean, shrunk towards a sphere."""
    spread = deviations.T @ deviations / len(deviations)
    sphere = max(float(np.trace(spread)), 1e-6) / len(spread) * np.eye(len(spread))
    return np.asarray(np.linalg.inv((1 - SHRINKAGE) * spread + SHRINKAGE * sphere), np.float64)
