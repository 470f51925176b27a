"""The zoo's networks: each computes logits in PyTorch, and draws itself as the ONNX graph that is deployed.

All take normalised windows (B, 128, 6) and give logits (B, classes). Some see beside them how each channel changes over
`LAG` samples, in the place of UCI HAR's published body acceleration, which is no signal of a sensor.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from agent.records import CHANNELS
from har_export.lab.graph import Graph
from har_export.network import COARSE_STEP, CODE_STEP, FINE_STEP, LAG, ConvNorm, Network, change

WINDOW = 128


DIFFERENCE = 0.25
"""Standard deviations: the change of a channel that is 1 where a network sees changes; larger ones are clipped."""


def with_difference(windows: Tensor) -> Tensor:
    """Return (B, 128, 12): windows, and beside each channel's value its clipped change over `LAG` samples."""
    return torch.cat([windows, (change(windows) / DIFFERENCE).clamp(-1, 1)], dim=2)


def _draw_change(graph: Graph, window: str) -> str:
    later = graph.op("Gather", window, graph.constant(np.minimum(np.arange(WINDOW) + LAG, WINDOW - 1)), axis=1)
    return graph.op("Sub", later, window)


def _draw_difference(graph: Graph, window: str) -> str:
    change = graph.op("Div", _draw_change(graph, window), graph.constant(np.array(DIFFERENCE, np.float32)))
    limits = [graph.constant(np.array(limit, np.float32)) for limit in (-1, 1)]
    return graph.op("Concat", window, graph.op("Clip", change, *limits), axis=2)


class Classifier(nn.Module, ABC):
    """A network of the zoo."""

    @abstractmethod
    def forward(self, windows: Tensor) -> Tensor:
        """Return logits."""

    @abstractmethod
    def draw(self, graph: Graph, window: str) -> str:
        """Add this network to `graph` and return the name of its logits."""

    def reconstruct(self, windows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return logits, and the windows as rebuilt from the code where the network has one."""
        return self(windows), None


class ConvStem(nn.Module):
    """Strided convolutions with normalisation and ReLU: (B, 6, 128) -> (B, C, T)."""

    def __init__(self, channels: Sequence[int], kernels: Sequence[int], strides: Sequence[int]) -> None:
        """One layer for each of `channels`."""
        super().__init__()
        sizes = [len(CHANNELS), *channels]
        self.layers = nn.ModuleList(
            ConvNorm(a, b, kernel, stride)
            for a, b, kernel, stride in zip(sizes, sizes[1:], kernels, strides, strict=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        for layer in self.layers:
            x = layer(x)
        return x

    def draw(self, graph: Graph, x: str) -> str:
        """Add the layers."""
        for layer in self.layers:
            assert isinstance(layer, ConvNorm)  # ModuleList has no element type
            x = graph.conv_norm(x, layer)
        return x


class Lstm(Classifier):
    """An LSTM over frames of raw samples, or over convolutions of them; the mean of its outputs is classified."""

    def __init__(
        self,
        classes: int,
        hidden: int,
        frame: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.3,
        channels: Sequence[int] = (),
        kernels: Sequence[int] = (),
        strides: Sequence[int] = (),
    ) -> None:
        """`frame`: samples a step where there is no convolution; a step sees `frame` x 12 numbers."""
        super().__init__()
        self.frame = frame
        self.stem = ConvStem(channels, kernels, strides) if channels else None
        into = channels[-1] if channels else frame * 2 * len(CHANNELS)
        self.lstm = nn.LSTM(into, hidden, batch_first=True, bidirectional=bidirectional)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden * (1 + bidirectional), classes)

    def forward(self, windows: Tensor) -> Tensor:
        """Return logits."""
        if self.stem is None:
            steps = with_difference(windows).reshape(len(windows), WINDOW // self.frame, -1)
        else:
            steps = self.stem(windows.transpose(1, 2)).transpose(1, 2)
        states, _ = self.lstm(steps)
        return self.out(self.dropout(states.mean(dim=1)))  # type: ignore[no-any-return]  # torch's modules are Any

    def draw(self, graph: Graph, window: str) -> str:
        """Add this network."""
        if self.stem is None:
            shape = graph.shape(0, WINDOW // self.frame, self.frame * 2 * len(CHANNELS))
            steps = graph.op("Reshape", _draw_difference(graph, window), shape)
        else:
            turned = graph.op("Transpose", window, perm=[0, 2, 1])
            steps = graph.op("Transpose", self.stem.draw(graph, turned), perm=[0, 2, 1])
        mean = graph.op("ReduceMean", graph.lstm(steps, self.lstm), axes=[1], keepdims=0)
        return graph.linear(mean, self.out)


class ConvLstm(Classifier):
    """A convolutional LSTM (Shi et al., NeurIPS 2015): the window in a few parts, gates convolved over time in each."""

    def __init__(self, classes: int, parts: int, hidden: int, kernel: int, dense: int, dropout: float = 0.3) -> None:
        """`hidden`: channels of the state. `dense`: width of the layer between state and logits."""
        super().__init__()
        self.parts = parts
        padding = (kernel - 1) // 2
        self.of_input = nn.Conv1d(2 * len(CHANNELS), 4 * hidden, kernel, padding=padding)
        self.of_state = nn.Conv1d(hidden, 4 * hidden, kernel, padding=padding, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(hidden * WINDOW // parts // 2, dense)
        self.out = nn.Linear(dense, classes)

    def forward(self, windows: Tensor) -> Tensor:
        """Return logits."""
        first, *others = with_difference(windows).transpose(1, 2).chunk(self.parts, dim=2)
        i, _, c, o = self.of_input(first).chunk(4, dim=1)
        cell = i.sigmoid() * c.tanh()
        state = o.sigmoid() * cell.tanh()
        for part in others:
            i, f, c, o = (self.of_input(part) + self.of_state(state)).chunk(4, dim=1)
            cell = i.sigmoid() * c.tanh() + f.sigmoid() * cell
            state = o.sigmoid() * cell.tanh()
        pooled = functional.max_pool1d(state, 2).flatten(1)
        hidden = functional.relu(self.dense(self.dropout(pooled)))
        return self.out(self.dropout(hidden))  # type: ignore[no-any-return]  # torch's modules are Any

    def draw(self, graph: Graph, window: str) -> str:
        """Add this network, its steps one after the other."""
        turned = graph.op("Transpose", _draw_difference(graph, window), perm=[0, 2, 1])
        state = cell = ""
        layers = self.of_input.weight, self.of_input.bias, self.of_state.weight
        weight, bias, recurrent = (graph.constant(x) for x in layers if x is not None)
        pads = [self.of_input.kernel_size[0] // 2] * 2
        for part in graph.outputs(self.parts, "Split", turned, axis=2):
            gates = graph.op("Conv", part, weight, bias, pads=pads)
            if state:
                gates = graph.op("Add", gates, graph.op("Conv", state, recurrent, pads=pads))
            i, f, c, o = graph.outputs(4, "Split", gates, axis=1)
            new = graph.op("Mul", graph.op("Sigmoid", i), graph.op("Tanh", c))
            cell = graph.op("Add", new, graph.op("Mul", graph.op("Sigmoid", f), cell)) if cell else new
            state = graph.op("Mul", graph.op("Sigmoid", o), graph.op("Tanh", cell))
        pooled = graph.op("Flatten", graph.op("MaxPool", state, kernel_shape=[2], strides=[2]))
        return graph.linear(graph.op("Relu", graph.linear(pooled, self.dense)), self.out)


class Cnn(Classifier):
    """Strided convolutions; mean and maximum over time are classified."""

    def __init__(
        self,
        classes: int,
        channels: Sequence[int],
        kernels: Sequence[int],
        strides: Sequence[int],
        dropout: float = 0.3,
    ) -> None:
        """As `ConvStem`."""
        super().__init__()
        self.stem = ConvStem(channels, kernels, strides)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(2 * channels[-1], classes)

    def forward(self, windows: Tensor) -> Tensor:
        """Return logits."""
        x = self.stem(windows.transpose(1, 2))
        pooled = torch.cat([x.mean(dim=2), x.amax(dim=2)], dim=1)
        return self.out(self.dropout(pooled))  # type: ignore[no-any-return]  # torch's modules are Any

    def draw(self, graph: Graph, window: str) -> str:
        """Add this network."""
        x = self.stem.draw(graph, graph.op("Transpose", window, perm=[0, 2, 1]))
        pools = [graph.op("Flatten", graph.op(kind, x)) for kind in ("GlobalAveragePool", "GlobalMaxPool")]
        return graph.linear(graph.op("Concat", *pools, axis=1), self.out)


class Autoencoder(Classifier):
    """Ours: the bundle's encoder, and its classifier on the code. The decoder only takes part in training."""

    def __init__(self, classes: int) -> None:
        """The sizes are the bundle's."""
        super().__init__()
        self.network = Network(WINDOW, classes)

    def forward(self, windows: Tensor) -> Tensor:
        """Return logits."""
        return self.network.classifier(self.network.encoder(windows) * CODE_STEP)  # type: ignore[no-any-return]

    def reconstruct(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and the windows as rebuilt from the code."""
        code = self.network.encoder(windows) * CODE_STEP
        return self.network.classifier(code), self.network.reconstruct(code)

    def draw(self, graph: Graph, window: str) -> str:
        """Add encoder and classifier."""
        encoder, classifier = self.network.encoder, self.network.classifier

        def view(x: str, step: float) -> str:
            levels = graph.op("Div", x, graph.constant(np.array(step, np.float32)))
            return graph.op("Round", graph.op("Clip", levels, *limits))

        limits = [graph.constant(np.array(limit, np.float32)) for limit in (-128, 127)]
        views = [view(window, COARSE_STEP), view(_draw_change(graph, window), FINE_STEP)]
        joined = graph.op("Transpose", graph.op("Concat", *views, axis=2), perm=[0, 2, 1])
        x = graph.op("Div", joined, graph.constant(np.array(127, np.float32)))
        for layer in encoder.convolutions():
            x = graph.conv_norm(x, layer)
        pools = [graph.op(kind, x) for kind in ("GlobalAveragePool", "GlobalMaxPool")]
        parts = [graph.op("Flatten", part) for part in (graph.conv_norm(x, encoder.reduce), *pools)]
        code = view(graph.linear(graph.op("Concat", *parts, axis=1), encoder.code), CODE_STEP)
        scaled = graph.op("Mul", code, graph.constant(np.array(CODE_STEP, np.float32)))
        return graph.linear(graph.op("Relu", graph.linear(scaled, classifier.first)), classifier.second)


KINDS: dict[str, Callable[..., Classifier]] = {
    "lstm": Lstm,
    "convlstm": ConvLstm,
    "cnn": Cnn,
    "autoencoder": Autoencoder,
}
"""What a config's `kind` may name, beside the two of `classical`."""


def build(kind: str, classes: int, sizes: dict[str, Any]) -> Classifier:
    """Return an untrained network of `KINDS` with the sizes of a config's `network` table."""
    return KINDS[kind](classes, **sizes)


def to_onnx(network: Classifier, classes: int) -> bytes:
    """Return the trained network as an ONNX file: `window` float32 (batch, 128, 6) -> `logits` (batch, classes)."""
    graph = Graph()
    logits = network.draw(graph, "window")
    return graph.serialise("window", (WINDOW, len(CHANNELS)), logits, classes)
