"""Where a network can be cut in two, and its parts as graphs of their own.

A cut point is a tensor that everything from the inputs to the outputs passes through: a bridge. What comes after it
needs nothing else of what came before.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise, permutations
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.core.onnx_wire import TYPES, Value, extract, nodes, signature
from agent.errors import ModelContractError

Arrays = Mapping[str, npt.NDArray[Any]]


def flow(graph: bytes) -> list[str]:
    """Return the names of all tensors that depend on what the graph takes, in the order of their computation."""
    inputs, _ = signature(graph)
    names = [value.name for value in inputs]
    known = set(names)
    for node in nodes(graph):
        if known.intersection(node.inputs):
            given = [name for name in node.outputs if name]
            names += given
            known.update(given)
    return names


def bridges(graph: bytes) -> list[str]:
    """Return the tensors that everything passes through, in order, the graph's own inputs and outputs left out.

    After the node that gives a bridge, nothing else that was computed before is used again, however the nodes are
    sorted.
    """
    inputs, outputs = signature(graph)
    moving = set(flow(graph))
    ends = {value.name for value in outputs}
    needed = set(ends)
    steps = []
    for node in reversed(nodes(graph)):
        takes = moving.intersection(node.inputs)
        if takes and needed.intersection(node.outputs):
            steps.append((takes, needed.intersection(node.outputs)))
            needed |= takes
    steps.reverse()
    last_use = {name: i for i, (takes, _) in enumerate(steps) for name in takes}
    found: list[str] = []
    waiting = needed & {value.name for value in inputs}
    for i, (takes, gives) in enumerate(steps):
        waiting -= {name for name in takes if last_use[name] == i and name not in ends}
        waiting |= gives
        if waiting == gives and len(gives) == 1 and not gives & ends:
            found += gives
    return found


def surviving(graph: bytes, values: Arrays, optimised: bytes, optimised_values: Arrays) -> list[tuple[str, str]]:
    """Return the bridges of a graph that still are bridges when it has been optimised, each with its name there.

    A bridge has kept its name, or its integers in another order of axes: ONNX Runtime's fastest integer kernels have
    channels last. `values`, `optimised_values`: all tensors of each graph, for the same input of one window.
    """
    left = bridges(graph)
    found = []
    for name in bridges(optimised):
        same = next((i for i, old in enumerate(left) if old == name), None)
        if same is None:
            moved = optimised_values[name]
            same = next((i for i, old in enumerate(left) if _is_moved(values[old], moved)), None)
        if same is not None:
            found.append((left[same], name))
            del left[: same + 1]
    return found


def _is_moved(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    """Whether arrays hold the same integers in another order of axes, the first one excepted: that is the batch.

    One step of difference is allowed: with all its tensors wanted a graph computes in float between them, and a tie may
    be rounded the other way.
    """
    if one.dtype != other.dtype or one.dtype.kind not in "iu" or sorted(one.shape) != sorted(other.shape):
        return False
    turned = (one.transpose(0, *order) for order in permutations(range(1, one.ndim)))
    return any(t.shape == other.shape and np.abs(t.astype(np.int64) - other).max(initial=0) <= 1 for t in turned)


def described(name: str, one: npt.NDArray[Any], two: npt.NDArray[Any]) -> Value:
    """Return what a graph has to declare of a tensor, by what it is for one window and for two.

    Raises:
        ModelContractError: its type is one that ONNX Runtime does not take from outside.
    """
    dtype = next((number for number, known in TYPES.items() if known == one.dtype.name), None)
    if dtype is None:
        raise ModelContractError(f"it computes with {one.dtype.name}, which no part of it can take or give")
    return Value(name, dtype, tuple(n if n == m else None for n, m in zip(one.shape, two.shape, strict=True)))


def cut(graph: bytes, at: Sequence[Value]) -> list[bytes]:
    """Return the parts of a graph between bridges: each takes what the one before it gives.

    Raises:
        ModelContractError: one of `at` is no bridge, or they are not in order.
    """
    inputs, outputs = signature(graph)
    ends = [inputs, *([value] for value in at), outputs]
    return [extract(graph, takes, gives) for takes, gives in pairwise(ends)]
