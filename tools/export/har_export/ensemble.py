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
    heads = [_renamed(g["classifier.onnx"], f"h{i}", ()) for i, g in enumerate(graphs)]
    decoder = _renamed(graphs[0]["decoder.onnx"], "d", ("reconstruction",))
    count = range(len(members))
    side_by_side = helper.make_node("Concat", [f"{i}/code" for i in count], ["code"], axis=1)
    apart = helper.make_node("Split", ["code"], [f"h{i}/code" for i in count], axis=1)
    share = numpy_helper.from_array(np.array(1 / len(members), np.float32), "m/share")
    total, mean = [], "h0/logits"
    for i in range(1, len(members)):
        total.append(helper.make_node("Add", [mean, f"h{i}/logits"], [f"m/sum{i}"]))
        mean = f"m/sum{i}"
    total.append(helper.make_node("Mul", [mean, "m/share"], ["logits"]))
    first = helper.make_node("Slice", ["code", "m/from", "m/to", "m/axis"], ["d/code"])
    bounds = [
        numpy_helper.from_array(np.array([value]), name)
        for name, value in (("m/from", 0), ("m/to", code), ("m/axis", 1))
    ]
    long = helper.make_tensor_value_info("code", TensorProto.INT8, ["batch", code * len(members)])
    return {
        "encoder.onnx": _model(encoders, [], [side_by_side], [], encoders[0].graph.input, [long]),
        "classifier.onnx": _model(
            heads, [apart], total, [share], [long], [_as(graphs[0]["classifier.onnx"].graph.output[0], "logits")]
        ),
        "decoder.onnx": _model([decoder], [first], [], bounds, [long], decoder.graph.output),
    }


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


def _as(value: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    named = onnx.ValueInfoProto()
    named.CopyFrom(value)
    named.name = name
    return named


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
