"""Steps of the compression ladder: each changes a network, or the file that is deployed of it.

A step that training should go on after returns a function that puts the weights back where the step wants them: it is
called before each step of the optimiser, and after the last.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, compose, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.quant_utils import add_pre_process_metadata
from torch import Tensor, nn
from torch.nn.utils import parametrize

from agent.records import Float32Array
from har_export.lab.zoo.modules import Autoencoder, Lstm
from har_export.network import Network, round_through
from har_export.quantise import WEIGHT_LIMIT, observe, quantise

SHARED_MIN = 256
"""Tensors with fewer numbers keep their own: a codebook would be longer."""

LLOYD_ROUNDS = 30

Constrain = Callable[[], None]


def weights(network: nn.Module) -> list[nn.Parameter]:
    """Return the weights that are deployed and worth compressing: no biases, no normalisation, no decoder."""
    return [
        parameter
        for name, parameter in network.named_parameters()
        if parameter.dim() > 1 and parameter.numel() >= SHARED_MIN and ".decoder." not in f".{name}"
    ]


@torch.no_grad()
def prune_weights(network: nn.Module, share: float) -> Constrain:
    """Set the smallest `share` of each weight tensor to zero (Han et al., NeurIPS 2015)."""
    kept = [
        (w, w.abs() > w.abs().flatten().kthvalue(max(1, round(share * w.numel()))).values) for w in weights(network)
    ]

    @torch.no_grad()
    def constrain() -> None:
        for weight, mask in kept:
            weight.mul_(mask)

    constrain()
    return constrain


@torch.no_grad()
def share_weights(network: nn.Module, bits: int) -> Constrain:
    """Give each weight tensor at most 2^`bits` values, by k-means (Han et al., ICLR 2016); zeros stay zero.

    Which weight has which value is settled here. Afterwards a value becomes the mean of what its weights were trained
    to, so that it follows the sum of their gradients.
    """
    groups = []
    for weight in weights(network):
        flat = weight.flatten()
        group = torch.zeros(flat.numel(), dtype=torch.int64)  # group 0: the zeros, pruned or not
        some = flat != 0
        group[some] = 1 + torch.from_numpy(_k_means(flat[some].numpy(), 2**bits - 1))
        groups.append((weight, group, torch.bincount(group, minlength=2**bits).clamp(min=1)))

    @torch.no_grad()
    def constrain() -> None:
        for weight, group, size in groups:
            value = torch.zeros(len(size)).index_add_(0, group, weight.flatten()) / size
            value[0] = 0
            weight.copy_(value[group].view_as(weight))

    constrain()
    return constrain


def _k_means(values: Float32Array, k: int) -> npt.NDArray[np.int64]:
    """Return which of at most `k` clusters each of `values` (n,) is in; Lloyd's algorithm from an even grid."""
    centres = np.linspace(values.min(), values.max(), k)
    group = np.zeros(len(values), np.int64)
    for _ in range(LLOYD_ROUNDS):
        group = np.searchsorted((centres[1:] + centres[:-1]) / 2, values)
        size = np.bincount(group, minlength=k)
        total = np.bincount(group, values, minlength=k)
        centres = np.sort(np.where(size > 0, total / np.maximum(size, 1), centres))
    return group


@torch.no_grad()
def fewer_lstm_units(network: Lstm, classes: int, units: int) -> Lstm:
    """Return a smaller LSTM with the `units` of `network` whose weights, in and out, are largest."""
    old, hidden = dict(network.lstm.named_parameters()), network.lstm.hidden_size
    recurrent = old["weight_hh_l0"]
    gates = torch.cat([old["weight_ih_l0"], recurrent], dim=1).view(4, hidden, -1)
    leaving = recurrent.square().sum(dim=0) + network.out.weight.square().sum(dim=0)
    keep = _largest(gates.square().sum(dim=(0, 2)) + leaving, units)
    rows = torch.cat([gate * hidden + keep for gate in range(4)])
    small = Lstm(classes, units, network.frame, dropout=network.dropout.p)
    for name, parameter in small.lstm.named_parameters():
        parameter.copy_(old[name][rows][:, keep] if name == "weight_hh_l0" else old[name][rows])
    small.out.weight.copy_(network.out.weight[:, keep])
    small.out.bias.copy_(network.out.bias)
    return small


@torch.no_grad()
def fewer_channels(network: Autoencoder, channels: tuple[int, int, int], hidden: int) -> Autoencoder:
    """Return a smaller network of ours: the channels and hidden units of `network` whose weights are largest.

    A channel counts by its weights after normalisation. The code and the decoder keep their sizes.
    """
    old = network.network
    new = Network(old.encoder.window, old.labels, replace(old.shape, channels=channels, hidden=hidden))
    taken = torch.arange(old.encoder.convolutions()[0].conv.in_channels)
    for big, small in zip(old.encoder.convolutions(), new.encoder.convolutions(), strict=True):
        keep = _largest(big.folded()[0].square().sum(dim=(1, 2)), small.conv.out_channels)
        small.conv.weight.copy_(big.conv.weight[keep][:, taken])
        for name, value in small.norm.state_dict().items():
            value.copy_(big.norm.state_dict()[name][keep] if value.dim() else big.norm.state_dict()[name])
        taken = keep
    new.encoder.reduce.load_state_dict(
        old.encoder.reduce.state_dict() | {"conv.weight": old.encoder.reduce.conv.weight[:, taken]}
    )
    reduced = old.shape.reduced * old.encoder.steps
    columns = torch.cat([torch.arange(reduced), reduced + taken, reduced + old.shape.channels[-1] + taken])
    new.encoder.code.weight.copy_(old.encoder.code.weight[:, columns])
    new.encoder.code.bias.copy_(old.encoder.code.bias)
    first, second = old.classifier.first, old.classifier.second
    keep = _largest(first.weight.square().sum(dim=1), hidden)
    new.classifier.first.weight.copy_(first.weight[keep])
    new.classifier.first.bias.copy_(first.bias[keep])
    new.classifier.second.weight.copy_(second.weight[:, keep])
    new.classifier.second.bias.copy_(second.bias)
    new.decoder.load_state_dict(old.decoder.state_dict())
    smaller = Autoencoder(old.labels)
    smaller.network = new
    return smaller


def _largest(strength: Tensor, n: int) -> Tensor:
    return strength.topk(n).indices.sort().values


class _Grid(nn.Module):
    """Rounds a weight to the grid that `quantise` gives it, one step per output channel."""

    def forward(self, weight: Tensor) -> Tensor:
        """Apply; the gradient passes."""
        step = weight.detach().flatten(1).abs().amax(dim=1).clamp(min=1e-6) / WEIGHT_LIMIT
        step = step.view(-1, *[1] * (weight.dim() - 1))
        return round_through(weight / step, -WEIGHT_LIMIT, WEIGHT_LIMIT) * step


@contextmanager
def quantisation_aware(network: Autoencoder, windows: Float32Array) -> Iterator[None]:
    """Within, the network computes with weights and activations rounded as in its int8 graphs (Jacob et al., 2018).

    `windows`: normalised float32 (n, 128, 6) that activations are ranged on. Batch normalisation scales whole output
    channels, so the grid of a weight is the same before and after it is folded in.
    """
    encoder, classifier = network.network.encoder, network.network.classifier
    steps = observe(network.network, windows)
    layers = encoder.convolutions()
    rounded = [
        *(layer.conv for layer in layers),
        encoder.reduce.conv,
        encoder.code,
        classifier.first,
        classifier.second,
    ]

    def rounding(step: float) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
        return lambda _module, _inputs, x: round_through(x / step, 0, 255) * step

    ends = [
        *zip([*layers, encoder.reduce], [*steps.layers, steps.layers[-1]], strict=True),
        (classifier.first, steps.hidden),
    ]
    hooks = [layer.register_forward_hook(rounding(step)) for layer, step in ends]
    for layer in rounded:
        parametrize.register_parametrization(layer, "weight", _Grid())
    try:
        yield
    finally:
        for layer in rounded:
            parametrize.remove_parametrizations(layer, "weight")
        for hook in hooks:
            hook.remove()


def static_int8(network: Autoencoder, windows: Float32Array) -> bytes:
    """Return encoder and classifier as the bundle has them, int8, in one file. `windows`: as above."""
    graphs = quantise(network.network, windows)
    encoder, classifier = (onnx.load_from_string(graphs[f"{name}.onnx"]) for name in ("encoder", "classifier"))
    merged = compose.merge_models(encoder, classifier, io_map=[("code", "code")])
    return bytes(merged.SerializeToString())


def dynamic_int8(model: bytes) -> bytes:
    """Return the file with int8 weights; activations are quantised in each call. For recurrent networks.

    Weights have 7 bits, as in `quantise`, so that AVX2 cannot saturate.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, path = onnx.load_from_string(model), Path(folder) / "int8.onnx"
        add_pre_process_metadata(source)  # there is nothing to simplify, and it would log that it was not done
        quantize_dynamic(source, path, reduce_range=True, weight_type=QuantType.QInt8)
        return path.read_bytes()


def stored_shared(model: bytes) -> bytes:
    """Return the file with shared weights stored as one byte each and a codebook.

    The weights are looked up when the file is opened, since all of that is constant: a call costs what it did.
    """
    loaded = onnx.load_from_string(model)
    graph = loaded.graph
    lookups = []
    for tensor in list(graph.initializer):
        values = numpy_helper.to_array(tensor)
        codebook, index = np.unique(values, return_inverse=True)
        if tensor.data_type != TensorProto.FLOAT or values.size < SHARED_MIN or len(codebook) > 256:
            continue
        name = tensor.name
        graph.initializer.remove(tensor)
        graph.initializer.append(numpy_helper.from_array(index.reshape(values.shape).astype(np.uint8), f"{name}i"))
        graph.initializer.append(numpy_helper.from_array(codebook, f"{name}b"))
        lookups.append(helper.make_node("Cast", [f"{name}i"], [f"{name}l"], to=TensorProto.INT32))
        lookups.append(helper.make_node("Gather", [f"{name}b", f"{name}l"], [name]))
    nodes = [*lookups, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(loaded, full_check=True)
    return bytes(loaded.SerializeToString())
