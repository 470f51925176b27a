"""The network: encoder -> int8 code -> classifier, and a decoder from the same code.

The input is given twice: as it is, coarsely quantised, and as its difference over `LAG` samples, finely quantised and
clipped. An int8 grid that spans a walking person's range has steps larger than the sway that tells a person who
stands from one who sits; the clipped difference keeps that sway.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from agent.errors import InputError
from agent.records import CHANNELS

LAG = 8
"""Samples between the two ends of a difference: 0.16 s at 50 Hz."""

COARSE_STEP = 5.0 / 127
FINE_STEP = 0.25 / 127
"""Input quantisation steps in standard deviations: of the window, and of its difference."""

CODE_STEP = 1.0 / 32


@dataclass(frozen=True)
class Shape:
    """How large a network is.

    `channels`, `kernels`: of the strided convolutions, each of which halves time. `reduced`: channels that keep their
    place in time, beside the mean and maximum of all channels over time. `code`: numbers in the code. `hidden`,
    `decoder`: hidden units of the two heads that read it. `exits`: after how many convolutions there is an exit.
    """

    channels: tuple[int, ...] = (32, 48, 64)
    kernels: tuple[int, ...] = (8, 5, 5)
    reduced: int = 12
    code: int = 64
    hidden: int = 32
    decoder: int = 96
    exits: tuple[int, ...] = ()

    def of_exit(self, after: int) -> "Shape":
        """Return the shape of the network that ends after so many of the convolutions."""
        return replace(self, channels=self.channels[:after], kernels=self.kernels[:after], exits=())


BASE = Shape()


def round_through(x: Tensor, low: int = -128, high: int = 127) -> Tensor:
    """Round and clip to integers as QuantizeLinear does; the gradient passes wherever nothing is clipped."""
    clipped = x.clamp(low, high)
    return clipped + (clipped.round() - clipped).detach()


def change(windows: Tensor) -> Tensor:
    """Return by how much (B, window, 6) changes from each sample to that `LAG` later, or to the last, of its shape."""
    window = windows.shape[1]
    return windows[:, torch.arange(window).add(LAG).clamp(max=window - 1)] - windows


class Encoder(nn.Module):
    """Normalised windows (B, window, 6) -> code (B, code) as integers of int8 range, in float."""

    def __init__(self, window: int, shape: Shape = BASE, dropout: float = 0.3) -> None:
        """Strided convolutions, each halving time; then one linear layer. `dropout`: before that layer.

        Raises:
            InputError: the window cannot be halved so often.
        """
        super().__init__()
        halved = 2 ** len(shape.channels)
        if window % halved or window < 4 * halved:
            raise InputError(f"a window must be a multiple of {halved} samples, {4 * halved} at least, not {window}")
        self.window = window
        self.steps = window // halved
        into = 2 * len(CHANNELS)
        layers = []
        for out, kernel in zip(shape.channels, shape.kernels, strict=True):
            layers.append(ConvNorm(into, out, kernel, stride=2))
            into = out
        self.layers = nn.ModuleList(layers)
        self.reduce = ConvNorm(into, shape.reduced, 1, stride=1)
        self.dropout = nn.Dropout(dropout)
        self.code = nn.Linear(shape.reduced * self.steps + 2 * into, shape.code)

    def features(self, windows: Tensor) -> Tensor:
        """Return the two int8 views of (B, window, 6), as (B, 12, window) integers in float."""
        coarse = round_through(windows / COARSE_STEP)
        fine = round_through(change(windows) / FINE_STEP)
        return torch.cat([coarse, fine], dim=2).transpose(1, 2)

    def convolutions(self) -> list["ConvNorm"]:
        """Return the strided convolutions in order."""
        return [layer for layer in self.layers if isinstance(layer, ConvNorm)]

    def convolved(self, windows: Tensor) -> list[Tensor]:
        """Return what each strided convolution gives, in order."""
        x, given = self.features(windows) / 127, []
        for layer in self.layers:
            x = layer(x)
            given.append(x)
        return given

    def pooled(self, windows: Tensor) -> Tensor:
        """Return what the code is made of: reduced channels over time, and mean and maximum of all."""
        return self.pool(self.convolved(windows)[-1])

    def pool(self, x: Tensor) -> Tensor:
        """Return the same from what the last strided convolution gives."""
        return torch.cat([self.reduce(x).flatten(1), x.mean(dim=2), x.amax(dim=2)], dim=1)

    def encode(self, x: Tensor) -> Tensor:
        """Return the code (B, code) from what the last strided convolution gives."""
        return round_through(self.code(self.dropout(self.pool(x))) / CODE_STEP)

    def forward(self, windows: Tensor) -> Tensor:
        """Return the code (B, code)."""
        return self.encode(self.convolved(windows)[-1])


class ConvNorm(nn.Module):
    """Convolution over time, batch normalisation, ReLU."""

    def __init__(self, into: int, out: int, kernel: int, stride: int) -> None:
        """(B, into, T) -> (B, out, T / stride)."""
        super().__init__()
        self.conv = nn.Conv1d(into, out, kernel, stride=stride, padding=(kernel - 1) // 2, bias=False)
        self.norm = nn.BatchNorm1d(out)

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        return functional.relu(self.norm(self.conv(x)))

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return weight (out, into, kernel) and bias (out,) with the normalisation folded in."""
        mean, variance = self.norm.running_mean, self.norm.running_var
        if mean is None or variance is None:
            raise RuntimeError("the normalisation keeps no running statistics")
        gain = self.norm.weight / torch.sqrt(variance + self.norm.eps)
        return self.conv.weight * gain[:, None, None], self.norm.bias - mean * gain


class Head(nn.Module):
    """One hidden layer with a ReLU, then a linear one: what reads a code."""

    def __init__(self, code: int, hidden: int, out: int, dropout: float = 0.0) -> None:
        """(B, code) -> (B, out)."""
        super().__init__()
        self.first = nn.Linear(code, hidden)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Linear(hidden, out)

    def hidden(self, code: Tensor) -> Tensor:
        """Return the hidden layer after its ReLU."""
        return functional.relu(self.first(code))

    def forward(self, code: Tensor) -> Tensor:
        """Apply."""
        return self.second(self.dropout(self.hidden(code)))  # type: ignore[no-any-return]  # torch's modules are Any


class Network(nn.Module):
    """Encoder, classifier and decoder, trained together.

    `exits`: networks like it, the earliest first, whose convolutions are its first ones.
    """

    def __init__(self, window: int, labels: int, shape: Shape = BASE) -> None:
        """Random weights, from torch's global generator. `labels`: how many classes there are."""
        super().__init__()
        self.shape = shape
        self.encoder = Encoder(window, shape)
        self.classifier = Head(shape.code, shape.hidden, labels, dropout=0.2)
        self.decoder = Head(shape.code, shape.decoder, window * len(CHANNELS))
        self.exits = nn.ModuleList()
        for after in shape.exits:
            branch = Network(window, labels, shape.of_exit(after))
            branch.encoder.layers = self.encoder.layers[:after]
            self.exits.append(branch)

    def branches(self) -> list["Network"]:
        """Return it, and its exits behind it."""
        return [self, *(branch for branch in self.exits if isinstance(branch, Network))]

    @property
    def labels(self) -> int:
        """How many classes there are."""
        return self.classifier.second.out_features

    def reconstruct(self, code: Tensor) -> Tensor:
        """Return normalised windows (B, window, 6) from codes (B, code) in units, not steps."""
        return self.decoder(code).view(-1, self.encoder.window, len(CHANNELS))  # type: ignore[no-any-return]  # as above

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, labels) and reconstruction (B, window, 6) of normalised windows (B, window, 6)."""
        code = self.encoder(windows) * CODE_STEP
        return self.classifier(code), self.reconstruct(code)
