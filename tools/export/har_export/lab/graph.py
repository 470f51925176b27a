"""An ONNX graph under construction, from the layers of a PyTorch module: what the lab deploys of a model.

Graphs are drawn by hand rather than traced: each layer is one node, and a file holds the weights and little else.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from har_export.network import ConvNorm
from har_export.quantise import IR_VERSION, OPSET

ML_OPSET = 3
"""Version of the operators `ai.onnx.ml`: tree ensembles."""


class Graph:
    """Adds nodes and constants in order; every method returns the name of what it adds."""

    def __init__(self) -> None:
        """Begin with neither."""
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output that is used."""
        return self.outputs(1, kind, *inputs, **attributes)[0]

    def outputs(self, n: int, kind: str, *inputs: str, **attributes: Any) -> list[str]:
        """Add a node and return the names of its first `n` outputs."""
        names = [f"v{len(self._nodes)}_{i}" for i in range(n)]
        self._nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names

    def constant(self, value: npt.NDArray[np.generic] | Tensor) -> str:
        """Add an initialiser."""
        array = value.detach().numpy() if isinstance(value, Tensor) else value
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def shape(self, *dims: int) -> str:
        """Add a shape or a list of axes."""
        return self.constant(np.array(dims, np.int64))

    def conv_norm(self, x: str, layer: ConvNorm) -> str:
        """Convolution over time of x (B, C, T), its normalisation, and the ReLU.

        The normalisation's gain stays apart from the weights, which may share values. It is multiplied in when the
        file is opened, since all of that is constant.
        """
        variance, (_, bias) = layer.norm.running_var, layer.folded()
        assert variance is not None  # or it could not have been folded
        gain = layer.norm.weight / torch.sqrt(variance + layer.norm.eps)
        weight = self.op("Mul", self.constant(layer.conv.weight), self.constant(gain[:, None, None]))
        pads = [layer.conv.padding[0]] * 2
        strides = [layer.conv.stride[0]]
        return self.op("Relu", self.op("Conv", x, weight, self.constant(bias), strides=strides, pads=pads))

    def linear(self, x: str, layer: nn.Linear) -> str:
        """Linear layer of x (B, C)."""
        return self.op("Gemm", x, self.constant(layer.weight), self.constant(layer.bias), transB=1)

    def lstm(self, x: str, layer: nn.LSTM) -> str:
        """One layer of LSTM over x (B, T, C) -> (B, T, C'); both directions side by side, as PyTorch has them.

        ONNX orders the gates i, o, f, c; PyTorch i, f, c, o.
        """
        ends = ["", "_reverse"] if layer.bidirectional else [""]

        def stacked(kind: str) -> npt.NDArray[np.float32]:
            return np.stack([_gates(getattr(layer, f"{kind}_l0{end}")) for end in ends])

        bias = np.concatenate([stacked("bias_ih"), stacked("bias_hh")], axis=1)
        y = self.op(
            "LSTM", self.op("Transpose", x, perm=[1, 0, 2]),
            self.constant(stacked("weight_ih")), self.constant(stacked("weight_hh")), self.constant(bias),
            hidden_size=layer.hidden_size, direction="bidirectional" if layer.bidirectional else "forward",
        )  # fmt: skip
        together = self.op("Transpose", y, perm=[2, 0, 1, 3])
        return self.op("Reshape", together, self.shape(0, 0, len(ends) * layer.hidden_size))

    def serialise(self, into: str, into_shape: tuple[int, ...], out: str, classes: int) -> bytes:
        """Name the value `out` `logits` (batch, classes) and return the checked model's bytes."""
        for node in self._nodes:
            node.output[:] = ["logits" if name == out else name for name in node.output]
        ends = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
            for name, shape in ((into, into_shape), ("logits", (classes,)))
        ]
        graph = helper.make_graph(self._nodes, "har", ends[:1], ends[1:], self._constants)
        opsets = [helper.make_opsetid("", OPSET)]
        if any(node.domain for node in self._nodes):
            opsets.append(helper.make_opsetid("ai.onnx.ml", ML_OPSET))
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString())


def _gates(weight: Tensor) -> npt.NDArray[np.float32]:
    i, f, c, o = np.split(weight.detach().numpy(), 4)
    return np.concatenate([i, o, f, c])
