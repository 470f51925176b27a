"""The network: encoder -> int8 code -> classifier, and a decoder from the same code.

The input is given twice: as it is, coarsely quantised, and as its difference over `LAG` samples, finely quantised and
clipped. An int8 grid that spans a walking person's range has steps larger than the sway that tells a person who
stands from one who sits; the clipped difference keeps that sway.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from agent.records import CHANNELS
from har_export.datasets.records import LABELS

WINDOW = 128
CODE_SIZE = 64
LAG = 8
"""Samples between the two ends of a difference: 0.16 s at 50 Hz."""

COARSE_STEP = 5.0 / 127
FINE_STEP = 0.25 / 127
"""Input quantisation steps in standard deviations: of the window, and of its difference."""

CODE_STEP = 1.0 / 32
CHANNELS_OUT = (32, 48, 64)
KERNELS = (8, 5, 5)
REDUCED = 12
"""Channels that keep their place in time (16 steps), beside the mean and maximum of all channels over time."""

STEPS = WINDOW // 2 ** len(CHANNELS_OUT)


def round_through(x: Tensor, low: int = -128, high: int = 127) -> Tensor:
    """Round and clip to integers as QuantizeLinear does; the gradient passes wherever nothing is clipped."""
    clipped = x.clamp(low, high)
    return clipped + (clipped.round() - clipped).detach()


class Encoder(nn.Module):
    """Normalised windows (B, 128, 6) -> code (B, 64) as integers of int8 range, in float."""

    def __init__(self, dropout: float = 0.3) -> None:
        """Three strided convolutions, each halving time; then one linear layer. `dropout`: before that layer."""
        super().__init__()
        into = 2 * len(CHANNELS)
        layers = []
        for out, kernel in zip(CHANNELS_OUT, KERNELS, strict=True):
            layers.append(ConvNorm(into, out, kernel, stride=2))
            into = out
        self.layers = nn.ModuleList(layers)
        self.reduce = ConvNorm(into, REDUCED, 1, stride=1)
        self.dropout = nn.Dropout(dropout)
        self.code = nn.Linear(REDUCED * STEPS + 2 * into, CODE_SIZE)

    def features(self, windows: Tensor) -> Tensor:
        """Return the two int8 views of (B, 128, 6), as (B, 12, 128) integers in float."""
        later = windows[:, torch.arange(WINDOW).add(LAG).clamp(max=WINDOW - 1)]
        coarse = round_through(windows / COARSE_STEP)
        fine = round_through((later - windows) / FINE_STEP)
        return torch.cat([coarse, fine], dim=2).transpose(1, 2)

    def convolutions(self) -> list["ConvNorm"]:
        """Return the strided convolutions in order."""
        return [layer for layer in self.layers if isinstance(layer, ConvNorm)]

    def forward(self, windows: Tensor) -> Tensor:
        """Return the code (B, 64)."""
        x = self.features(windows) / 127
        for layer in self.layers:
            x = layer(x)
        pooled = torch.cat([self.reduce(x).flatten(1), x.mean(dim=2), x.amax(dim=2)], dim=1)
        return round_through(self.code(self.dropout(pooled)) / CODE_STEP)


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

    def __init__(self, hidden: int, out: int, dropout: float = 0.0) -> None:
        """(B, `CODE_SIZE`) -> (B, out)."""
        super().__init__()
        self.first = nn.Linear(CODE_SIZE, hidden)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Linear(hidden, out)

    def hidden(self, code: Tensor) -> Tensor:
        """Return the hidden layer after its ReLU."""
        return functional.relu(self.first(code))

    def forward(self, code: Tensor) -> Tensor:
        """Apply."""
        return self.second(self.dropout(self.hidden(code)))  # type: ignore[no-any-return]  # torch's modules are Any


class Network(nn.Module):
    """Encoder, classifier and decoder, trained together."""

    def __init__(self) -> None:
        """Random weights, from torch's global generator."""
        super().__init__()
        self.encoder = Encoder()
        self.classifier = Head(32, len(LABELS), dropout=0.2)
        self.decoder = Head(96, WINDOW * len(CHANNELS))

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, 7) and reconstruction (B, 128, 6) of normalised windows (B, 128, 6)."""
        code = self.encoder(windows) * CODE_STEP
        return self.classifier(code), self.decoder(code).view(-1, WINDOW, len(CHANNELS))
