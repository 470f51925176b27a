"""What a network's layers are, and from that how long parts of networks take that were never run here.

Neurosurgeon (Kang et al., ASPLOS 2017) fits, for each kind of layer, its time to its description. Networks for a board
are so small that a layer by itself cannot be timed: what is fitted here is the time of runs, each of several layers.
A run takes the sum of what its layers take, and the same once more for being run at all.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from agent.core.cuts import Arrays
from agent.core.onnx_wire import TYPES, Node, Value, constants, nodes
from agent.records import Float64Array


@dataclass(frozen=True)
class Layer:
    """What a node of an optimised graph does for one window: multiply-accumulates, and bytes that it moves."""

    op: str
    macs: int
    in_bytes: int
    out_bytes: int
    weight_bytes: int


class Run(NamedTuple):
    """What was run and how long it took, in microseconds. `weight`: for how many runs it counts."""

    layers: Sequence[Layer]
    us: float
    weight: float = 1.0


def fit(runs: Sequence[Run]) -> dict[str, float]:
    """Return what each feature costs, in microseconds: the least squares of relative errors, none of them negative.

    Features are few, so that a handful of networks tells them: one a run, one a layer, bytes that layers without
    arithmetic move; for each operator with arithmetic one a layer and its multiply-accumulates; bytes of weights.
    """
    rows = [_features(run.layers) for run in runs]
    names = sorted(set[str]().union(*rows))
    weights = np.sqrt([run.weight for run in runs])
    design = np.array([[row[name] for name in names] for row in rows], np.float64)
    costs = _non_negative(design * (weights / [run.us for run in runs])[:, None], weights)
    return dict(zip(names, costs.tolist(), strict=True))


def predict(costs: Mapping[str, float], layers: Sequence[Layer]) -> float:
    """Return how long a run of `layers` takes, in microseconds, by what `fit` found; see `unknown`."""
    return sum(costs.get(name, 0.0) * amount for name, amount in _features(layers).items())


def unknown(costs: Mapping[str, float], layers: Sequence[Layer]) -> list[str]:
    """Return the operators with arithmetic that no run had which the costs were fitted to."""
    return sorted({layer.op for layer in layers if layer.macs and f"macs {layer.op}" not in costs})


def _features(layers: Sequence[Layer]) -> Counter[str]:
    found = Counter({"run": 1, "layer": len(layers)})
    for layer in layers:
        if layer.macs:
            found[f"layer {layer.op}"] += 1
            found[f"macs {layer.op}"] += layer.macs
            found["weights"] += layer.weight_bytes
        else:
            found["bytes"] += layer.in_bytes + layer.out_bytes
    return found


def _non_negative(a: Float64Array, b: Float64Array) -> Float64Array:
    """Least squares of a x = b with x >= 0: the active set method of Lawson and Hanson (1974, chapter 23)."""
    scale = np.maximum(np.sqrt((a**2).sum(axis=0)), 1e-300)
    a = a / scale
    x = np.zeros(a.shape[1])
    free = np.zeros(a.shape[1], bool)
    # Each round frees one variable, and in practice there are few more rounds than variables.
    for _ in range(10 * len(x)):
        pull = np.where(free, 0.0, a.T @ (b - a @ x))
        if pull.max(initial=0.0) <= 1e-9 * np.abs(b).max(initial=1.0):
            break
        free[pull.argmax()] = True
        while True:
            best = np.zeros_like(x)
            best[free] = np.linalg.lstsq(a[:, free], b, rcond=None)[0]
            below = free & (best <= 0)
            if not below.any():
                x = best
                break
            x = x + (x[below] / (x[below] - best[below])).min() * (best - x)
            free &= x > 1e-12
            x[~free] = 0.0
    found: Float64Array = x / scale
    return found


def describe(graph: bytes, values: Arrays) -> list[Layer]:
    """Return the layers of an optimised graph. `values`: all of its tensors for one window, constants left out."""
    known = {value.name: value for value in constants(graph)}
    layers = []
    for node in nodes(graph):
        takes = [values[name] for name in node.inputs if name in values]
        gives = [values[name] for name in node.outputs if name in values]
        weights = [known[name] for name in node.inputs if name in known]
        if takes:
            bytes_in, bytes_out = (sum(array.nbytes for array in arrays) for arrays in (takes, gives))
            layers.append(
                Layer(node.operator, _macs(node, takes, gives, weights), bytes_in, bytes_out, sum(map(_bytes, weights)))
            )
    return layers


def _macs(node: Node, takes: list[npt.NDArray[Any]], gives: list[npt.NDArray[Any]], weights: list[Value]) -> int:
    """Multiply-accumulates, as if nothing was skipped at the edges."""
    if "Conv" in node.operator and weights:
        # (out, in a group, *kernel), and (in, out a group, *kernel) where it is transposed: one row for each number.
        kernel = max(weights, key=_size)
        each = gives[0] if "Transpose" not in node.operator else takes[0]
        return int(each.size) * _size(kernel) // max(1, kernel.shape[0] or 1)
    if "Gemm" in node.operator or "MatMul" in node.operator:
        return int(gives[0].size) * int(takes[0].shape[-1])
    return 0


def _size(value: Value) -> int:
    return math.prod(n or 1 for n in value.shape)


def _bytes(value: Value) -> int:
    kind = TYPES.get(value.dtype)
    return _size(value) * (np.dtype(kind).itemsize if kind else 1)
