"""Float network -> three int8 ONNX graphs, by static quantisation in QDQ form.

Every number between the quantised window and the code, and between the code and the logits, is an integer, so that a
window scores the same alone, in a batch, and on every CPU. Three choices make that hold:

- Activations are uint8 and weights int8, which ONNX Runtime has its fastest kernels for on x86 and ARM. Only the code
  itself is int8, as the contract says; it is shifted where the graphs begin and end.
- Weights keep to [-64, 64]. AVX2 without VNNI adds two uint8 x int8 products in 16 bits (vpmaddubsw), which saturates
  from 32,768 on; 2 x 255 x 64 = 32,640 cannot.
- Layers that only move numbers (concatenation, maximum, reshape) work on the integers themselves.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from agent.records import CHANNELS, Float32Array
from har_export.datasets.records import LABELS
from har_export.network import (
    CHANNELS_OUT,
    COARSE_STEP,
    CODE_SIZE,
    CODE_STEP,
    FINE_STEP,
    LAG,
    STEPS,
    WINDOW,
    ConvNorm,
    Network,
)

OPSET = 17
IR_VERSION = 8
WEIGHT_LIMIT = 64
ACTIVATION_QUANTILE = 0.9999
"""Activations above this quantile of the calibration windows are clipped; outliers are not worth the steps."""

_MIDDLE = 128
"""The uint8 zero point of numbers that may be negative."""


@dataclass(frozen=True)
class Graphs:
    """The three ONNX files as bytes."""

    encoder: bytes
    classifier: bytes
    decoder: bytes


@dataclass(frozen=True)
class Steps:
    """Quantisation step of every activation. `layers`: the convolutions; the last is shared by all pooled ones."""

    layers: tuple[float, ...]
    hidden: float
    logits: float
    decoder_hidden: float
    reconstruction: float


def quantise(network: Network, windows: Float32Array) -> Graphs:
    """Quantise a trained network; activations are ranged on normalised `windows` float32 (n, 128, 6)."""
    steps = observe(network, windows)
    return Graphs(_encoder(network, steps), _classifier(network, steps), _decoder(network, steps))


@torch.no_grad()
def observe(network: Network, windows: Float32Array) -> Steps:
    """Run the float network in evaluation mode and return the step of each activation."""
    x = network.encoder.features(torch.from_numpy(windows)) / 127
    layers = []
    for layer in network.encoder.convolutions():
        x = layer(x)
        layers.append(_positive_step(x))
    layers[-1] = max(layers[-1], _positive_step(network.encoder.reduce(x)))
    code = network.encoder(torch.from_numpy(windows)) * CODE_STEP
    return Steps(
        tuple(layers),
        _positive_step(network.classifier.hidden(code)),
        _signed_step(network.classifier(code)),
        _positive_step(network.decoder.hidden(code)),
        _signed_step(network.decoder(code)),
    )


def _positive_step(x: Tensor) -> float:
    return max(float(np.quantile(x.numpy(), ACTIVATION_QUANTILE)), 1e-3) / 255


def _signed_step(x: Tensor) -> float:
    return max(float(x.abs().max()), 1e-3) / 127


def _encoder(network: Network, steps: Steps) -> bytes:
    encoder, g = network.encoder, _Graph()
    coarse = g.quantise("window", COARSE_STEP)
    later = g.op("Gather", "window", g.constant(np.minimum(np.arange(WINDOW) + LAG, WINDOW - 1)), axis=1)
    fine = g.quantise(g.op("Sub", later, "window"), FINE_STEP)
    x = g.op("Transpose", g.op("Concat", coarse, fine, axis=2), perm=[0, 2, 1])
    step, zero = 1 / 127, _MIDDLE
    for layer, out_step in zip(encoder.convolutions(), steps.layers, strict=True):
        x = g.conv(x, step, zero, layer, out_step)
        step, zero = out_step, 0
    reduced = g.op("Reshape", g.conv(x, step, 0, encoder.reduce, step), g.constant(np.array([0, -1, 1])))
    mean = g.mean_over_time(x, step)
    maximum = g.op("MaxPool", x, kernel_shape=[STEPS])
    pooled = g.op("Flatten", g.op("Concat", reduced, mean, maximum, axis=1))
    code = g.gemm(pooled, step, 0, encoder.code, CODE_STEP, _MIDDLE)
    g.shift(code, CODE_STEP, np.uint8(_MIDDLE), np.int8(0))
    return g.serialise("window", (WINDOW, len(CHANNELS)), "code", (CODE_SIZE,))


def _classifier(network: Network, steps: Steps) -> bytes:
    g = _Graph()
    code = g.shift("code", CODE_STEP, np.int8(0), np.uint8(_MIDDLE))
    hidden = g.gemm(code, CODE_STEP, _MIDDLE, network.classifier.first, steps.hidden, 0)
    logits = g.gemm(hidden, steps.hidden, 0, network.classifier.second, steps.logits, _MIDDLE)
    g.dequantise(logits, steps.logits, np.uint8(_MIDDLE))
    return g.serialise("code", (CODE_SIZE,), "logits", (len(LABELS),))


def _decoder(network: Network, steps: Steps) -> bytes:
    g = _Graph()
    code = g.shift("code", CODE_STEP, np.int8(0), np.uint8(_MIDDLE))
    hidden = g.gemm(code, CODE_STEP, _MIDDLE, network.decoder.first, steps.decoder_hidden, 0)
    flat = g.gemm(hidden, steps.decoder_hidden, 0, network.decoder.second, steps.reconstruction, _MIDDLE)
    shaped = g.op("Reshape", flat, g.constant(np.array([0, WINDOW, len(CHANNELS)])))
    g.dequantise(shaped, steps.reconstruction, np.uint8(_MIDDLE))
    return g.serialise("code", (CODE_SIZE,), "reconstruction", (WINDOW, len(CHANNELS)))


class _Graph:
    """An ONNX graph under construction. Names are short because they are stored; so are equal constants, once."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], onnx.TensorProto] = {}

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        name = np.base_repr(len(self._nodes), 36).lower()
        self._nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def constant(self, value: npt.NDArray[np.generic]) -> str:
        """Return the name of an initialiser that holds `value`."""
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._constants:
            self._constants[key] = numpy_helper.from_array(value, f"c{len(self._constants)}")
        return str(self._constants[key].name)

    def quantise(self, x: str, step: float, zero: np.generic | None = None) -> str:
        """Float -> integers of the zero point's type."""
        zero = np.uint8(_MIDDLE) if zero is None else zero
        return self.op("QuantizeLinear", x, self._step(step), self.constant(np.array(zero)))

    def dequantise(self, x: str, step: float, zero: np.generic) -> str:
        """Integers -> float."""
        return self.op("DequantizeLinear", x, self._step(step), self.constant(np.array(zero)))

    def _step(self, step: float) -> str:
        return self.constant(np.array(step, np.float32))

    def shift(self, x: str, step: float, zero_in: np.generic, zero_out: np.generic) -> str:
        """The same numbers with another zero point. Exact: integer x power of two, and back."""
        return self.quantise(self.dequantise(x, step, zero_in), step, zero_out)

    def conv(self, x: str, step: float, zero: int, layer: ConvNorm, out_step: float) -> str:
        """Convolution with its normalisation folded in; clipping at the zero point 0 is the ReLU."""
        weight, bias = (t.detach().numpy() for t in layer.folded())
        kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
        padding = layer.conv.padding[0]
        attributes = {"kernel_shape": [kernel], "strides": [stride], "pads": [padding, padding]}
        return self._linear("Conv", x, step, zero, weight, bias, out_step, 0, attributes)

    def mean_over_time(self, x: str, step: float) -> str:
        """Mean over time of the last convolution, as one convolution a channel: ONNX has no integer average."""
        channels = CHANNELS_OUT[-1]
        weight = np.full((channels, 1, STEPS), 1 / STEPS, np.float32)
        attributes = {"kernel_shape": [STEPS], "group": channels}
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
        types = {"code": TensorProto.INT8}
        ends = [
            helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), ["batch", *shape])
            for name, shape in ((into, into_shape), (out, out_shape))
        ]
        graph = helper.make_graph(self._nodes, "har", ends[:1], ends[1:], list(self._constants.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString())


def quantise_weight(weight: Float32Array) -> tuple[npt.NDArray[np.int8], Float32Array]:
    """Return int8 weights within +-`WEIGHT_LIMIT` and one step per output channel (the first axis)."""
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    step = (np.maximum(largest, 1e-6) / WEIGHT_LIMIT).astype(np.float32)
    scaled = weight / step.reshape(-1, *[1] * (weight.ndim - 1))
    return np.round(scaled).clip(-WEIGHT_LIMIT, WEIGHT_LIMIT).astype(np.int8), step
