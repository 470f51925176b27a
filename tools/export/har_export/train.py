"""Joint training of encoder, classifier and decoder on raw recordings and, if there are any, filtered windows."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from agent.core import normalise
from agent.core.normalise import Normalisation
from agent.errors import InputError
from agent.records import CHANNELS, Float32Array, Int64Array
from har_export.datasets.records import UNLABELLED, Data, Recording
from har_export.network import BASE, CODE_STEP, Network, Shape

EXIT_WEIGHT = 0.3
"""Of an exit's loss beside the end's: the joint loss of BranchyNet (Teerapittayanon et al., ICPR 2016)."""

IDLE_SHARE = 16
"""Of so many windows of people, one window of a sensor that lies still is made."""


@dataclass(frozen=True)
class Settings:
    """Everything that training depends on beside the data and the seed.

    `epochs`: passes over the data; `epochs_with_everyone`: further ones that include the people whom calibration was
    measured on; `context_steps`: of training the context. `rotation_deg`: largest tilt of the sensor about a random
    axis, since no two people wear it alike. `noise`: largest standard deviation of white noise, in g and rad/s.
    `acc_scale`, `gyro_scale`: largest relative change of gain. `reconstruction`: weight of the decoder's squared error
    beside the classifier's cross-entropy; `detail`: that of the cross-entropy of the finer classes. `rate_hz`,
    `window`: what one window is; the hop is half of it.
    """

    rate_hz: float = 50.0
    window: int = 128
    epochs: int = 24
    epochs_with_everyone: int = 8
    context_steps: int = 600
    batch: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    label_smoothing: float = 0.05
    reconstruction: float = 0.1
    detail: float = 0.3
    rotation_deg: float = 80.0
    noise: float = 0.02
    acc_scale: float = 0.02
    gyro_scale: float = 0.1

    @property
    def hop(self) -> int:
        """Samples from one window to the next: windows overlap by half."""
        return self.window // 2


@dataclass(frozen=True)
class Progress:
    """One finished epoch. `loss` is its mean over batches; `left_s` estimates the seconds that remain."""

    epoch: int
    epochs: int
    loss: float
    left_s: float


def fit_normalisation(data: Data) -> Normalisation:
    """Fit on the recordings; on the filtered windows only where there are no recordings."""
    samples = [r.values for r in data.recordings] or [data.windows.values.reshape(-1, len(CHANNELS))]
    return normalise.fit(np.concatenate(samples))


def train(
    data: Data,
    seed: int,
    settings: Settings,
    report: Callable[[Progress], None] | None = None,
    shape: Shape = BASE,
    start: tuple[Network, Normalisation] | None = None,
) -> tuple[Network, Normalisation]:
    """Train on all of `data`, which has the settings' rate; the caller has taken out whom it wants to score.

    `start`: what to go on from, for another `epochs`; it is left as it is. Deterministic for one seed, one number of
    threads and one build of PyTorch.

    Raises:
        InputError: there is nothing to train on, or ready-cut windows that do not fit.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    check_windows(data, settings)
    sampler = Sampler(data, settings.window, seed)
    network, normalisation = Network(settings.window, len(data.labels), shape), fit_normalisation(data)
    if start is not None:
        network.load_state_dict(start[0].state_dict())
        normalisation = start[1]
    branches = network.branches()
    # One class more: a sensor that nobody wears, so that the code tells.
    finer = nn.ModuleList([nn.Linear(shape.code, data.details + 1) for _ in branches])

    def loss(values: Tensor, label: Tensor, detail: Tensor) -> Tensor:
        network.train()
        lying = idle(len(values) // IDLE_SHARE, settings.window, generator)
        label = torch.cat([label, torch.full((len(lying),), UNLABELLED)])
        detail = torch.cat([detail, torch.full((len(lying),), data.details)])
        windows = to_input(torch.cat([augment(values, settings, generator), lying]), normalisation)
        given = network.encoder.convolved(windows)
        losses = []
        for branch, details in zip(branches, finer, strict=True):
            code = branch.encoder.encode(given[len(branch.shape.channels) - 1]) * CODE_STEP
            losses.append(
                classification(branch.classifier(code), label, settings)
                + settings.detail * classification(details(code), detail, settings)
                + settings.reconstruction * functional.mse_loss(branch.reconstruct(code), windows)
            )
        whole, *exits = losses
        return whole + EXIT_WEIGHT * torch.stack(exits).sum() if exits else whole

    descend([*network.parameters(), *finer.parameters()], loss, sampler, settings, report)
    return network.eval(), normalisation


def check_windows(data: Data, settings: Settings) -> None:
    """Check that ready-cut windows, which cannot be resampled, are what a model with these settings takes.

    Raises:
        InputError: they are not.
    """
    published = Settings()
    wanted = (settings.window, settings.rate_hz)
    if len(data.windows.label) and wanted != (published.window, published.rate_hz):
        raise InputError(
            f"the data has ready-cut windows of {published.window} samples at {published.rate_hz:g} Hz, which do not "
            f"fit a model of {settings.window} at {settings.rate_hz:g} Hz; give recordings only"
        )


def classification(logits: Tensor, label: Tensor, settings: Settings) -> Tensor:
    """Cross-entropy of (B, classes) with labels (B,); what is not labelled does not count."""
    total = functional.cross_entropy(
        logits, label, ignore_index=UNLABELLED, label_smoothing=settings.label_smoothing, reduction="sum"
    )
    # A batch may have no labelled window.
    return total / max(1, int((label != UNLABELLED).sum()))


def descend(
    parameters: Sequence[nn.Parameter],
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    sampler: "Sampler",
    settings: Settings,
    report: Callable[[Progress], None] | None = None,
) -> None:
    """Minimise `loss` of (values, label, detail) over the sampler's batches: AdamW, warm-up, then a cosine."""
    steps = settings.epochs * sampler.batches(settings.batch)
    optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: warm_up_then_cosine(step, steps))
    began = time.monotonic()
    for epoch in range(1, settings.epochs + 1):
        losses = []
        for batch in sampler.epoch(settings.batch):
            value = loss(*batch)
            optimiser.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]  # untyped in torch
            optimiser.step()
            schedule.step()
            losses.append(float(value.detach()))
        if report is not None:
            left_s = (time.monotonic() - began) / epoch * (settings.epochs - epoch)
            report(Progress(epoch, settings.epochs, float(np.mean(losses)), left_s))


def warm_up_then_cosine(step: int, steps: int) -> float:
    """Return the factor of the learning rate at `step` of `steps`: up to 1 in the first fifth, then down to 0."""
    warm = max(1, steps // 5)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


class Sampler:
    """Draws shuffled batches; each epoch cuts the recordings at a new random offset."""

    def __init__(self, data: Data, window: int, seed: int) -> None:
        """Index `data`.

        Raises:
            InputError: it holds less than one window.
        """
        self._rng = np.random.default_rng(seed)
        self._window, self._hop = window, window // 2
        usable = [r for r in data.recordings if len(r.values) >= window + self._hop]
        self._lengths = [len(r.values) for r in usable]
        ready = len(data.windows.label)
        self._size = sum(self._count(n) for n in self._lengths) + ready
        if self._size == 0:
            raise InputError("there is not one window to train on")
        samples = [r.values for r in usable] + [data.windows.values.reshape(-1, len(CHANNELS))]
        self._values = torch.from_numpy(np.concatenate(samples)).unfold(0, window, 1)
        streamed = sum(self._lengths)
        self._filtered = streamed + window * np.arange(ready)
        self._classes = np.full((2, streamed + ready * window), UNLABELLED, np.int64)
        if usable:
            self._classes[0, :streamed] = np.concatenate([r.label for r in usable])
            self._classes[1, :streamed] = np.concatenate([r.label if r.detail is None else r.detail for r in usable])
        self._classes[:, self._filtered + window // 2] = data.windows.label

    def _count(self, samples: int) -> int:
        return (samples - self._window - self._hop) // self._hop + 1

    def batches(self, batch: int) -> int:
        """Return how many batches an epoch has."""
        return -(-self._size // batch)

    def epoch(self, batch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (values float32 (b, window, 6) in g and rad/s, label, detail int64 (b,)), every window once."""
        starts, begin = [], 0
        for n in self._lengths:
            starts.append(begin + self._rng.integers(self._hop) + self._hop * np.arange(self._count(n)))
            begin += n
        order = self._rng.permutation(np.concatenate([*starts, self._filtered]))
        # Equal parts: batch normalisation would suffer from a last batch of a few windows.
        for part in np.array_split(order, self.batches(batch)):
            values = self._values[torch.from_numpy(part)].transpose(1, 2)
            label, detail = torch.from_numpy(self._classes[:, part + self._window // 2])
            yield values, label, detail


def to_input(values: Tensor, normalisation: Normalisation) -> Tensor:
    """Normalise (B, window, 6) of g and rad/s as the agent does."""
    mean, std = torch.from_numpy(normalisation.mean), torch.from_numpy(normalisation.std)
    return (values - mean) * (1 / std)


def augment(values: Tensor, settings: Settings, generator: torch.Generator) -> Tensor:
    """Return (B, window, 6) as another placement, another sensor and another day would give it."""
    n = len(values)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    turn = rotations(n, settings.rotation_deg, generator).transpose(1, 2)
    acc = values[:, :, :3] @ turn * (1 + settings.acc_scale * (2 * uniform(n, 1, 1) - 1))
    gyro = values[:, :, 3:] @ turn * (1 + settings.gyro_scale * (2 * uniform(n, 1, 1) - 1))
    noise = torch.randn(values.shape, generator=generator) * (settings.noise * uniform(n, 1, 1))
    return torch.cat([acc, gyro], dim=2) + noise


def idle(n: int, window: int, generator: torch.Generator) -> Tensor:
    """Return (n, window, 6) of a sensor that lies still, any side up: gravity, a small bias, and its own noise."""
    gravity = functional.normalize(torch.randn(n, 1, 3, generator=generator), dim=2)
    bias = 0.02 * torch.randn(n, 1, 3, generator=generator)
    # From 0.3 to 10 thousandths of a g, and of a rad/s: from a quiet sensor to a poor one.
    noise = 3e-4 * (10 / 0.3) ** torch.rand(n, 1, 1, generator=generator)
    still = torch.cat([gravity, bias], dim=2).expand(n, window, len(CHANNELS))
    return still + noise * torch.randn(n, window, len(CHANNELS), generator=generator)


def rotations(n: int, largest_deg: float, generator: torch.Generator) -> Tensor:
    """Return n rotations (n, 3, 3): a random axis, an angle up to `largest_deg` (Rodrigues' formula)."""
    axis = functional.normalize(torch.randn(n, 3, generator=generator), dim=1)
    angle = torch.rand(n, 1, 1, generator=generator) * np.deg2rad(largest_deg)
    cross = torch.zeros(n, 3, 3)
    for row, column, component, sign in ((0, 1, 2, -1), (0, 2, 1, 1), (1, 2, 0, -1)):
        cross[:, row, column] = sign * axis[:, component]
        cross[:, column, row] = -sign * axis[:, component]
    return torch.eye(3) + torch.sin(angle) * cross + (1 - torch.cos(angle)) * (cross @ cross)


def label_counts(label: Int64Array, labels: Sequence[str]) -> dict[str, int]:
    """Return how many windows there are of each class; unlabelled ones are not counted."""
    return {name: int((label == i).sum()) for i, name in enumerate(labels)}


def streaming_windows(recording: Recording, window: int, first: int = 0) -> tuple[Float32Array, Int64Array]:
    """Return windows (n, window, 6), overlapping by half from sample `first` on, and their middle samples (n,)."""
    starts = np.arange(first, len(recording.values) - window + 1, window // 2)
    return recording.values[starts[:, None] + np.arange(window)], starts + window // 2
