"""Several networks as one: codes side by side, logits averaged. For machines that have more time than a board.

Networks that differ in nothing but their first weights and the order of their data err differently, and their mean errs
less (Lakshminarayanan et al., Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles, NIPS 2017).
"""

from collections.abc import Sequence

import numpy as np
import onnx
import torch
from onnx import TensorProto, compose, helper, numpy_helper
from torch import Tensor, nn

from har_export.network import Network
from har_export.quantise import IR_VERSION, OPSET


class Ensemble(nn.Module):
    """Trained networks of one shape."""

    def __init__(self, members: Sequence[Network]) -> None:
        """Take them as they are."""
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, windows: Tensor) -> Tensor:
        """Return the mean logits (B, labels) of normalised windows (B, window, 6)."""
        return torch.stack([member(windows)[0] for member in self.members]).mean(dim=0)


def join(members: Sequence[dict[str, bytes]], code: int) -> dict[str, bytes]:
    """Return encoder, classifier and decoder of an ensemble from those of its members, each with a code of `code`.

    The decoder rebuilds the window from the first member's code.
    """
    graphs = [{name: onnx.load_from_string(data) for name, data in member.items()} for member in members]
    encoders = [_renamed(g["encoder.onnx"], f"{i}", ("window",)) for i, g in enumerate(graphs)]
    decoder = _renamed(graphs[0]["decoder.onnx"], "d", ("reconstruction",))
    side_by_side = helper.make_node("Concat", [f"{i}/code" for i in range(len(members))], ["code"], axis=1)
    first = helper.make_node("Slice", ["code", "m/from", "m/to", "m/axis"], ["d/code"])
    bounds = [
        numpy_helper.from_array(np.array([value]), name)
        for name, value in (("m/from", 0), ("m/to", code), ("m/axis", 1))
    ]
    long = _codes(["batch", code * len(members)], "code")
    return {
        "encoder.onnx": _model(encoders, [], [side_by_side], [], encoders[0].graph.input, [long]),
        "classifier.onnx": _mean([g["classifier.onnx"] for g in graphs], long),
        "decoder.onnx": _model([decoder], [first], [], bounds, [long], decoder.graph.output),
    }


def join_readers(readers: Sequence[bytes], shape: Sequence[int], name: str) -> bytes:
    """Return what reads an ensemble's codes from what reads those of its members: contexts, or novelties.

    `shape`: of one of the joined graph's inputs, without the batch; its last axis is the codes, side by side. `name`:
    the input's. What the readers give is averaged.
    """
    return _mean([onnx.load_from_string(data) for data in readers], _codes(["batch", *shape], name))


def _mean(members: Sequence[onnx.ModelProto], codes: onnx.ValueInfoProto) -> bytes:
    """Return a graph that gives each member its share of the last axis of `codes`, and the mean of what they give.

    What it gives is in all of its names, so that the agent can run several such graphs as one.
    """
    out = members[0].graph.output[0]
    own = out.name
    heads = [_renamed(member, f"{own}{i}", ()) for i, member in enumerate(members)]
    apart = helper.make_node("Split", [codes.name], [head.graph.input[0].name for head in heads], axis=-1)
    share = numpy_helper.from_array(np.array(1 / len(members), np.float32), f"{own}/share")
    total, sum_so_far = [], f"{own}0/{own}"
    for i in range(1, len(members)):
        total.append(helper.make_node("Add", [sum_so_far, f"{own}{i}/{own}"], [f"{own}/sum{i}"]))
        sum_so_far = f"{own}/sum{i}"
    total.append(helper.make_node("Mul", [sum_so_far, share.name], [own]))
    return _model(heads, [apart], total, [share], [codes], [out])


def _codes(shape: Sequence[int | str], name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.INT8, shape)


def _renamed(model: onnx.ModelProto, prefix: str, keep: Sequence[str]) -> onnx.ModelProto:
    """Return a copy whose names all begin with the prefix, but for those to keep."""
    renamed = compose.add_prefix(model, f"{prefix}/")
    own = {f"{prefix}/{name}": name for name in keep}
    for node in renamed.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = own.get(name, name)
    for value in (*renamed.graph.input, *renamed.graph.output):
        value.name = own.get(value.name, value.name)
    return renamed


def _model(
    members: Sequence[onnx.ModelProto],
    before: Sequence[onnx.NodeProto],
    after: Sequence[onnx.NodeProto],
    constants: Sequence[onnx.TensorProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
) -> bytes:
    nodes = [*before, *(node for m in members for node in m.graph.node), *after]
    initialisers = [*(t for m in members for t in m.graph.initializer), *constants]
    graph = helper.make_graph(nodes, "har", list(inputs), list(outputs), initialisers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())
