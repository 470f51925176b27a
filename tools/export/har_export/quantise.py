"""Float network -> int8 ONNX graphs, by static quantisation in QDQ form.

Every number between the quantised window and the code, and between the code and the logits, is an integer, so that a
window scores the same alone, in a batch, and on every CPU. Three choices make that hold:

- Activations are uint8 and weights int8, which ONNX Runtime has its fastest kernels for on x86 and ARM. Only the code
  itself is int8, as the contract says; it is shifted where the graphs begin and end.
- Weights keep to [-64, 64]. AVX2 without VNNI adds two uint8 x int8 products in 16 bits (vpmaddubsw), which saturates
  from 32,768 on; 2 x 255 x 64 = 32,640 cannot.
- Layers that only move numbers (concatenation, maximum, reshape) work on the integers themselves.
"""

from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from agent.records import CHANNELS, Float32Array
from har_export.network import COARSE_STEP, CODE_STEP, FINE_STEP, LAG, ConvNorm, Head, Network

OPSET = 17
IR_VERSION = 8
WEIGHT_LIMIT = 64
ACTIVATION_QUANTILE = 0.9999
"""Activations above this quantile of the calibration windows are clipped; outliers are not worth the steps."""

MIDDLE = 128
"""The uint8 zero point of numbers that may be negative."""


@dataclass(frozen=True)
class Steps:
    """Quantisation step of every activation. `layers`: the convolutions; the last is shared by all pooled ones."""

    layers: tuple[float, ...]
    hidden: float
    logits: float
    decoder_hidden: float
    reconstruction: float


def quantise(network: Network, windows: Float32Array) -> dict[str, bytes]:
    """Return the int8 graphs of a trained network by file name.

    Activations are ranged on normalised `windows` float32 (n, window, 6).
    """
    return quantise_branches(network, windows)[0]


def quantise_branches(network: Network, windows: Float32Array) -> list[dict[str, bytes]]:
    """Return the same of a network and of each of its exits.

    A convolution that they share has one step: its nodes, and what they give, are the same in all their encoders.
    """
    branches = network.branches()
    found = [observe(branch, windows) for branch in branches]
    shared = [max(own) for own in zip_longest(*(steps.layers for steps in found), fillvalue=0.0)]
    return [
        _graphs(branch, replace(steps, layers=tuple(shared[: len(steps.layers)])), Graph)
        for branch, steps in zip(branches, found, strict=True)
    ]


def _graphs(network: Network, steps: Steps, graph: type["Graph"]) -> dict[str, bytes]:
    rebuilt = (network.encoder.window, len(CHANNELS))
    return {
        "encoder.onnx": _encoder(graph("e"), network, steps),
        "classifier.onnx": head_graph(
            graph("c"), network.classifier, steps.hidden, steps.logits, "logits", (network.labels,)
        ),
        "decoder.onnx": head_graph(
            graph("d"), network.decoder, steps.decoder_hidden, steps.reconstruction, "reconstruction", rebuilt
        ),
    }


def float_graphs(network: Network) -> dict[str, bytes]:
    """Return the same three graphs in float; only the code is int8, as the contract says."""
    ones = Steps((1.0,) * len(network.shape.channels), 1.0, 1.0, 1.0, 1.0)
    return _graphs(network, ones, FloatGraph)


@torch.no_grad()
def observe(network: Network, windows: Float32Array) -> Steps:
    """Run the float network in evaluation mode and return the step of each activation."""
    x = network.encoder.features(torch.from_numpy(windows)) / 127
    layers = []
    for layer in network.encoder.convolutions():
        x = layer(x)
        layers.append(positive_step(x))
    layers[-1] = max(layers[-1], positive_step(network.encoder.reduce(x)))
    code = network.encoder(torch.from_numpy(windows)) * CODE_STEP
    return Steps(
        tuple(layers),
        positive_step(network.classifier.hidden(code)),
        signed_step(network.classifier(code)),
        positive_step(network.decoder.hidden(code)),
        signed_step(network.decoder(code)),
    )


def positive_step(x: Tensor) -> float:
    """Return the uint8 step of activations that are not negative."""
    return max(float(np.quantile(x.numpy(), ACTIVATION_QUANTILE)), 1e-3) / 255


def signed_step(x: Tensor) -> float:
    """Return the uint8 step, around a zero point in the middle, of activations of either sign."""
    return max(float(x.abs().max()), 1e-3) / 127


def _encoder(g: "Graph", network: Network, steps: Steps) -> bytes:
    encoder = network.encoder
    coarse = g.quantise("window", COARSE_STEP)
    later = g.op(
        "Gather", "window", g.constant(np.minimum(np.arange(encoder.window) + LAG, encoder.window - 1)), axis=1
    )
    fine = g.quantise(g.op("Sub", later, "window"), FINE_STEP)
    x = g.op("Transpose", g.op("Concat", coarse, fine, axis=2), perm=[0, 2, 1])
    step, zero = 1 / 127, MIDDLE
    for layer, out_step in zip(encoder.convolutions(), steps.layers, strict=True):
        x = g.conv_norm(x, step, zero, layer, out_step)
        step, zero = out_step, 0
    reduced = g.op("Reshape", g.conv_norm(x, step, 0, encoder.reduce, step), g.constant(np.array([0, -1, 1])))
    mean = g.mean_over_time(x, step, network.shape.channels[-1], encoder.steps)
    maximum = g.op("MaxPool", x, kernel_shape=[encoder.steps])
    pooled = g.op("Flatten", g.op("Concat", reduced, mean, maximum, axis=1))
    code = g.gemm(pooled, step, 0, encoder.code, CODE_STEP, MIDDLE)
    g.shift(code, CODE_STEP, np.uint8(MIDDLE), np.int8(0))
    return g.serialise("window", (encoder.window, len(CHANNELS)), "code", (network.shape.code,))


def head_graph(
    g: "Graph", head: Head, hidden_step: float, out_step: float, out: str, out_shape: tuple[int, ...]
) -> bytes:
    """Return the graph of what reads a code; its last layer gives `out` with shape (batch, *out_shape)."""
    code = g.shift("code", CODE_STEP, np.int8(0), np.uint8(MIDDLE))
    hidden = g.gemm(code, CODE_STEP, MIDDLE, head.first, hidden_step, 0)
    x = g.gemm(hidden, hidden_step, 0, head.second, out_step, MIDDLE)
    if len(out_shape) > 1:
        x = g.op("Reshape", x, g.constant(np.array([0, *out_shape])))
    g.dequantise(x, out_step, np.uint8(MIDDLE))
    return g.serialise("code", (head.first.in_features,), out, out_shape)


class Graph:
    """An ONNX graph under construction. Names are short because they are stored; so are equal constants, once."""

    def __init__(self, prefix: str) -> None:
        """`prefix`: of all names, so that the agent can run several graphs as one."""
        self._prefix = prefix
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], onnx.TensorProto] = {}

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        name = self._prefix + np.base_repr(len(self._nodes), 36).lower()
        self._nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def constant(self, value: npt.NDArray[np.generic]) -> str:
        """Return the name of an initialiser that holds `value`."""
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._constants:
            self._constants[key] = numpy_helper.from_array(value, f"{self._prefix}_{len(self._constants)}")
        return str(self._constants[key].name)

    def quantise(self, x: str, step: float, zero: np.generic | None = None) -> str:
        """Float -> integers of the zero point's type."""
        zero = np.uint8(MIDDLE) if zero is None else zero
        return self.op("QuantizeLinear", x, self._step(step), self.constant(np.array(zero)))

    def dequantise(self, x: str, step: float, zero: np.generic) -> str:
        """Integers -> float."""
        return self.op("DequantizeLinear", x, self._step(step), self.constant(np.array(zero)))

    def _step(self, step: float) -> str:
        return self.constant(np.array(step, np.float32))

    def shift(self, x: str, step: float, zero_in: np.generic, zero_out: np.generic) -> str:
        """The same numbers with another zero point. Exact: integer x power of two, and back."""
        return self.quantise(self.dequantise(x, step, zero_in), step, zero_out)

    def conv_norm(self, x: str, step: float, zero: int, layer: ConvNorm, out_step: float) -> str:
        """Convolution with its normalisation folded in, and a ReLU."""
        return self._conv(x, step, zero, *layer.folded(), layer.conv, out_step)

    def conv(self, x: str, step: float, zero: int, layer: torch.nn.Conv1d, out_step: float) -> str:
        """Convolution and a ReLU."""
        if layer.bias is None:
            raise ValueError("a convolution without bias")
        return self._conv(x, step, zero, layer.weight, layer.bias, layer, out_step)

    def _conv(
        self, x: str, step: float, zero: int, weight: Tensor, bias: Tensor, layer: torch.nn.Conv1d, out_step: float
    ) -> str:
        """Convolution; clipping at the zero point 0 is the ReLU."""
        padding = int(layer.padding[0])
        attributes = {
            "kernel_shape": [layer.kernel_size[0]], "strides": [layer.stride[0]], "pads": [padding, padding]
        }  # fmt: skip
        return self._linear(
            "Conv", x, step, zero, weight.detach().numpy(), bias.detach().numpy(), out_step, 0, attributes
        )

    def mean_over_time(self, x: str, step: float, channels: int, steps: int) -> str:
        """Mean over time of the last convolution, as one convolution a channel: ONNX has no integer average."""
        weight = np.full((channels, 1, steps), 1 / steps, np.float32)
        attributes = {"kernel_shape": [steps], "group": channels}
        return self._linear("Conv", x, step, 0, weight, np.zeros(channels, np.float32), step, 0, attributes)

    def gemm(self, x: str, step: float, zero: int, layer: torch.nn.Linear, out_step: float, out_zero: int) -> str:
        """Linear layer; with `out_zero` 0 it ends in a ReLU."""
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        return self._linear("Gemm", x, step, zero, weight, bias, out_step, out_zero, {"transB": 1})

    def _linear(
        self, kind: str, x: str, step: float, zero: int, weight: Float32Array, bias: Float32Array,
        out_step: float, out_zero: int, attributes: dict[str, Any],
    ) -> str:  # fmt: skip
        integers, weight_step = quantise_weight(weight)
        bias_step = (np.float32(step) * weight_step).astype(np.float32)
        bias_integers = np.round(bias / bias_step).astype(np.int32)
        w = self.op(
            "DequantizeLinear", self.constant(integers), self.constant(weight_step),
            self.constant(np.zeros(len(integers), np.int8)), axis=0,
        )  # fmt: skip
        b = self.op("DequantizeLinear", self.constant(bias_integers), self.constant(bias_step), axis=0)
        y = self.op(kind, self.dequantise(x, step, np.uint8(zero)), w, b, **attributes)
        return self.quantise(y, out_step, np.uint8(out_zero))

    def serialise(self, into: str, into_shape: tuple[int, ...], out: str, out_shape: tuple[int, ...]) -> bytes:
        """Name the last node's output, check the model and return its bytes."""
        self._nodes[-1].output[0] = out
        types = {"code": TensorProto.INT8, "codes": TensorProto.INT8}
        ends = [
            helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), ["batch", *shape])
            for name, shape in ((into, into_shape), (out, out_shape))
        ]
        graph = helper.make_graph(self._nodes, "har", ends[:1], ends[1:], list(self._constants.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString())


class FloatGraph(Graph):
    """The same graph in float: steps and zero points mean nothing here but at the window and at the code."""

    def quantise(self, x: str, step: float, zero: np.generic | None = None) -> str:
        """Clip as quantisation would, in units of 127 steps; only the code is rounded."""
        if zero is not None:
            return super().quantise(x, step, zero)
        scaled = self.op("Mul", x, self._step(1 / (127 * step)))
        return self.op("Clip", scaled, self._step(-128 / 127), self._step(1.0))

    def dequantise(self, x: str, step: float, zero: np.generic) -> str:
        """Do nothing: it is float."""
        del step, zero
        return x

    def shift(self, x: str, step: float, zero_in: np.generic, zero_out: np.generic) -> str:
        """Between the code, int8, and what is computed with in float."""
        if zero_out.dtype == np.int8:
            return super().quantise(x, step, zero_out)
        return super().dequantise(x, step, zero_in)

    def _linear(
        self, kind: str, x: str, step: float, zero: int, weight: Float32Array, bias: Float32Array,
        out_step: float, out_zero: int, attributes: dict[str, Any],
    ) -> str:  # fmt: skip
        del step, zero, out_step
        y = self.op(kind, x, self.constant(weight), self.constant(bias), **attributes)
        return self.op("Relu", y) if out_zero == 0 else y


def quantise_weight(weight: Float32Array) -> tuple[npt.NDArray[np.int8], Float32Array]:
    """Return int8 weights within +-`WEIGHT_LIMIT` and one step per output channel (the first axis)."""
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    step = (np.maximum(largest, 1e-6) / WEIGHT_LIMIT).astype(np.float32)
    scaled = weight / step.reshape(-1, *[1] * (weight.ndim - 1))
    return np.round(scaled).clip(-WEIGHT_LIMIT, WEIGHT_LIMIT).astype(np.int8), step
