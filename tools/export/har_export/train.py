"""Joint training of encoder, classifier and decoder on raw recordings and, if there are any, filtered windows."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from agent.core import normalise
from agent.core.normalise import Normalisation
from agent.errors import InputError
from agent.records import Float32Array, Int64Array
from har_export.datasets import Data
from har_export.datasets.records import LABELS, UNLABELLED, Recording
from har_export.network import WINDOW, Network

HOP = WINDOW // 2


@dataclass(frozen=True)
class Settings:
    """Everything that training depends on beside the data and the seed.

    `rotation_deg`: largest tilt of the sensor about a random axis, since no two people wear it alike. `noise`:
    largest standard deviation of white noise, in g and rad/s. `acc_scale`, `gyro_scale`: largest relative change
    of gain. `reconstruction`: weight of the decoder's squared error beside the classifier's cross-entropy.
    """

    epochs: int = 20
    batch: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    label_smoothing: float = 0.05
    reconstruction: float = 0.1
    rotation_deg: float = 30.0
    noise: float = 0.02
    acc_scale: float = 0.02
    gyro_scale: float = 0.1


@dataclass(frozen=True)
class Progress:
    """One finished epoch. `loss` is its mean over batches; `left_s` estimates the seconds that remain."""

    epoch: int
    epochs: int
    loss: float
    left_s: float


def centre_labels(recording: Recording, starts: Int64Array) -> Int64Array:
    """Return the label of the sample in the middle of each window that begins at `starts`."""
    return recording.label[starts + WINDOW // 2]


def streaming_starts(recording: Recording, first: int = 0) -> Int64Array:
    """Return where windows begin that are cut every `HOP` samples from sample `first` on."""
    return np.arange(first, len(recording.values) - WINDOW + 1, HOP)


def fit_normalisation(data: Data) -> Normalisation:
    """Fit on the recordings; on the filtered windows only where there are no recordings."""
    samples = [r.values for r in data.recordings] or [data.windows.values.reshape(-1, 6)]
    return normalise.fit(np.concatenate(samples))


def train(
    data: Data, seed: int, settings: Settings, report: Callable[[Progress], None] | None = None
) -> tuple[Network, Normalisation]:
    """Train on all of `data`; the caller has taken out whom it wants to score.

    Deterministic for one seed, one number of threads and one build of PyTorch.

    Raises:
        InputError: there is nothing to train on.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    normalisation = fit_normalisation(data)
    sampler = Sampler(data, seed)
    steps = settings.epochs * sampler.batches(settings.batch)
    network = Network()
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: warm_up_then_cosine(step, steps))
    began = time.monotonic()
    for epoch in range(1, settings.epochs + 1):
        network.train()
        losses = []
        for values, label in sampler.epoch(settings.batch):
            windows = to_input(augment(values, settings, generator), normalisation)
            logits, reconstruction = network(windows)
            loss = functional.cross_entropy(
                logits, label, ignore_index=UNLABELLED, label_smoothing=settings.label_smoothing
            ) + settings.reconstruction * functional.mse_loss(reconstruction, windows)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
            optimiser.step()
            schedule.step()
            losses.append(float(loss.detach()))
        if report is not None:
            left_s = (time.monotonic() - began) / epoch * (settings.epochs - epoch)
            report(Progress(epoch, settings.epochs, float(np.mean(losses)), left_s))
    return network.eval(), normalisation


def warm_up_then_cosine(step: int, steps: int) -> float:
    """Return the factor of the learning rate at `step` of `steps`: up to 1 in the first fifth, then down to 0."""
    warm = max(1, steps // 5)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


class Sampler:
    """Draws shuffled batches; each epoch cuts the recordings at a new random offset."""

    def __init__(self, data: Data, seed: int) -> None:
        """Index `data`.

        Raises:
            InputError: it holds less than one window.
        """
        self._rng = np.random.default_rng(seed)
        usable = [r for r in data.recordings if len(r.values) >= WINDOW + HOP]
        self._lengths = [len(r.values) for r in usable]
        self._size = sum((n - WINDOW - HOP) // HOP + 1 for n in self._lengths) + len(data.windows.label)
        if self._size == 0:
            raise InputError("there is not one window to train on")
        samples = [r.values for r in usable] + [data.windows.values.reshape(-1, 6)]
        self._values = torch.from_numpy(np.concatenate(samples)).unfold(0, WINDOW, 1)
        streamed = sum(self._lengths)
        filtered = data.windows.values.shape[0]
        self._filtered = streamed + WINDOW * np.arange(filtered)
        self._label = np.full(streamed + filtered * WINDOW, UNLABELLED, np.int64)
        if usable:
            self._label[:streamed] = np.concatenate([r.label for r in usable])
        self._label[self._filtered + WINDOW // 2] = data.windows.label

    def batches(self, batch: int) -> int:
        """Return how many batches an epoch has."""
        return -(-self._size // batch)

    def epoch(self, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (values float32 (b, 128, 6) in g and rad/s, label int64 (b,)), every window once."""
        starts, begin = [], 0
        for n in self._lengths:
            count = (n - WINDOW - HOP) // HOP + 1
            starts.append(begin + self._rng.integers(HOP) + HOP * np.arange(count))
            begin += n
        order = self._rng.permutation(np.concatenate([*starts, self._filtered]))
        # Equal parts: batch normalisation would suffer from a last batch of a few windows.
        for part in np.array_split(order, self.batches(batch)):
            index = torch.from_numpy(part)
            yield self._values[index].transpose(1, 2), torch.from_numpy(self._label[part + WINDOW // 2])


def to_input(values: Tensor, normalisation: Normalisation) -> Tensor:
    """Normalise (B, 128, 6) of g and rad/s as the agent does."""
    mean, std = torch.from_numpy(normalisation.mean), torch.from_numpy(normalisation.std)
    return (values - mean) * (1 / std)


def augment(values: Tensor, settings: Settings, generator: torch.Generator) -> Tensor:
    """Return (B, 128, 6) as another placement, another sensor and another day would give it."""
    n = len(values)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    turn = rotations(n, settings.rotation_deg, generator).transpose(1, 2)
    acc = values[:, :, :3] @ turn * (1 + settings.acc_scale * (2 * uniform(n, 1, 1) - 1))
    gyro = values[:, :, 3:] @ turn * (1 + settings.gyro_scale * (2 * uniform(n, 1, 1) - 1))
    noise = torch.randn(values.shape, generator=generator) * (settings.noise * uniform(n, 1, 1))
    return torch.cat([acc, gyro], dim=2) + noise


def rotations(n: int, largest_deg: float, generator: torch.Generator) -> Tensor:
    """Return n rotations (n, 3, 3): a random axis, an angle up to `largest_deg` (Rodrigues' formula)."""
    axis = functional.normalize(torch.randn(n, 3, generator=generator), dim=1)
    angle = torch.rand(n, 1, 1, generator=generator) * np.deg2rad(largest_deg)
    cross = torch.zeros(n, 3, 3)
    for row, column, component, sign in ((0, 1, 2, -1), (0, 2, 1, 1), (1, 2, 0, -1)):
        cross[:, row, column] = sign * axis[:, component]
        cross[:, column, row] = -sign * axis[:, component]
    return torch.eye(3) + torch.sin(angle) * cross + (1 - torch.cos(angle)) * (cross @ cross)


def label_counts(label: Int64Array) -> dict[str, int]:
    """Return how many windows there are of each class; unlabelled ones are not counted."""
    return {name: int((label == i).sum()) for i, name in enumerate(LABELS)}


def streaming_windows(recording: Recording) -> tuple[Float32Array, Int64Array]:
    """Return windows (n, 128, 6) cut every `HOP` samples from the start, and their centre labels (n,)."""
    starts = streaming_starts(recording)
    values = recording.values[starts[:, None] + np.arange(WINDOW)]
    return values, centre_labels(recording, starts)
