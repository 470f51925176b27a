"""Early exits: heads inside of the encoder, for windows that are easy and for deadlines that are short.

An exit is a network that ends after the first of the encoder's convolutions, with a code, a classifier and a novelty of
its own, trained together with the whole (Teerapittayanon et al., BranchyNet: Fast Inference via Early Exiting from Deep
Neural Networks, ICPR 2016). What is deployed of it is what comes after these convolutions: they run once, for the
exit and for what goes on.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import compose, helper, numpy_helper

from agent.core import onnx_wire
from agent.core.manifest import Calibration, Exit
from agent.core.onnx_wire import Value
from agent.records import Float64Array
from har_export.metrics import BoolArray
from har_export.network import Shape
from har_export.quantise import IR_VERSION, OPSET

SHAPE = Shape(channels=(64, 192, 256), exits=(1, 2))
"""One trunk, wider than a board's network, with exits after its first two convolutions."""

TOLERANCE = 0.002
"""By how much the windows that stop at an exit may be less often right there than at the end, as a share of them."""

MARGIN = 4
"""By how much less doubt than that is needed: a few people do not show how far people differ. In a cross-validation's
unseen people, each left out once, it took what stopping cost from 0.5 to 0.3 points."""


class Leaving(NamedTuple):
    """An exit as the manifest has it, and the calibration of its own logits and novelty."""

    exit: Exit
    calibration: Calibration


def name_of(shape: Shape) -> str:
    """Return what to call the exit that is a network of this shape: after the convolution that it reads."""
    return f"conv{len(shape.channels)}"


def trunk_end(encoder: bytes) -> str:
    """Return what an encoder's last strided convolution gives, by the tensor's name."""
    return next(node.inputs[0] for node in onnx_wire.nodes(encoder) if node.operator == "MaxPool")


def head(graphs: Mapping[str, bytes], leaving: Leaving, end: Calibration) -> bytes:
    """Return `exit-<name>.onnx` from an exit's own graphs: from what its last convolution gives to logits and novelty.

    They are scaled so that the calibration of the `end` applies to them.
    """
    name, at = leaving.exit.name, leaving.exit.at
    takes = declared(graphs["encoder.onnx"], at)
    (code,) = onnx_wire.signature(graphs["encoder.onnx"])[1]
    reader = onnx_wire.extract(graphs["encoder.onnx"], [takes], [code])
    whole = onnx_wire.fuse([reader, graphs["classifier.onnx"], graphs["novelty.onnx"]])
    if whole is None:
        raise ValueError("the graphs of an exit cannot be one")
    graph = compose.add_prefix(onnx.load_from_string(whole), f"{name}/").graph
    _scale(graph, f"{name}/logits", end.temperature / leaving.calibration.temperature)
    _scale(graph, f"{name}/novelty", end.novelty_threshold / leaving.calibration.novelty_threshold)
    own = {f"{name}/{x}": x for x in (at, "logits", "novelty")}
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [own.get(x, x) for x in names]
    ends = []
    for value in (*graph.input, *graph.output):
        if value.name in own:
            tensor = value.type.tensor_type
            shape = ["batch", *(d.dim_value for d in tensor.shape.dim[1:])]
            ends.append(helper.make_tensor_value_info(own[value.name], tensor.elem_type, shape))
    model = helper.make_model(
        helper.make_graph(graph.node, "har", ends[:1], ends[1:], graph.initializer),
        opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
    )  # fmt: skip
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _scale(graph: onnx.GraphProto, out: str, factor: float) -> None:
    """Multiply what a graph gives, through its last step or last factor: that costs no node."""
    gives = {name: node for node in graph.node for name in node.output}
    node = gives[out]
    while node.op_type in ("Cast", "Relu"):
        node = gives[node.input[0]]
    if node.op_type not in ("DequantizeLinear", "Mul"):
        raise ValueError(f"{out} comes from a {node.op_type}, which has no factor")
    constant = next(numpy_helper.to_array(x) for x in graph.initializer if x.name == node.input[1])
    graph.initializer.append(numpy_helper.from_array(np.asarray(constant * factor, constant.dtype), f"{out}_scale"))
    node.input[1] = f"{out}_scale"


def declared(graph: bytes, name: str) -> Value:
    """Return what a part of a graph has to declare of one of the whole's tensors."""
    inferred = onnx.shape_inference.infer_shapes(onnx.load_from_string(graph)).graph
    found = next(value for value in (*inferred.input, *inferred.value_info) if value.name == name)
    tensor = found.type.tensor_type
    return Value(name, tensor.elem_type, (None, *(d.dim_value for d in tensor.shape.dim[1:])))


def confidence(whose: npt.NDArray[np.str_], sure: Float64Array, right: BoolArray, right_at_end: BoolArray) -> float:
    """Return from which confidence on a window may stop at an exit; 1 where none is enough.

    The doubt that is left must be `MARGIN` times less than at the least confidence at which each person's windows that
    stop are right as often as at the end, but for `TOLERANCE`. Each person's: people differ, and a threshold that suits
    them together is too low for the next one. `whose`, `sure`, `right`, `right_at_end` (n,): of each window, its
    person, the exit's calibrated confidence, whether its label is right, and whether the end's is.
    """
    people = (whose == person for person in set(whose))
    least = max(_least(sure[own], right[own], right_at_end[own]) for own in people)
    return round(1 - (1 - least) / MARGIN, 6)


def _least(sure: Float64Array, right: BoolArray, right_at_end: BoolArray) -> float:
    order = np.argsort(-sure, kind="stable")
    lost = np.cumsum(right_at_end[order].astype(int) - right[order])
    stopped = np.arange(1, len(sure) + 1)
    # Of windows that are equally sure, all stop or none.
    last = np.append(np.diff(sure[order]) != 0, True)
    fair = (lost <= TOLERANCE * stopped) & last
    return float(sure[order][np.flatnonzero(fair)[-1]]) if fair.any() else 1.0
