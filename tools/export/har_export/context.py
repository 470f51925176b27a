"""The causal context: what the last windows' codes, together, say about the present window.

Sitting and standing look much alike for the length of a window; the movement that led there does not. A small
convolutional network sees the last codes, the present one last and zeros where there was none, and gives
logits of the present window. Each of its layers joins neighbours, so that four layers span sixteen windows. It is
trained on codes of the finished int8 encoder, half of them in resampled orders (see `bouts`).
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from agent.adapters.onnx_model import open_session
from agent.core.manifest import MAX_LOOK_BACK_S
from agent.core.normalise import Normalisation
from agent.records import Float32Array, Int8Array, Int64Array
from har_export import bouts
from har_export.datasets.records import UNLABELLED, Data, Recording
from har_export.network import CODE_STEP
from har_export.quantise import MIDDLE, Graph, positive_step, signed_step
from har_export.train import Settings, augment, streaming_windows, warm_up_then_cosine

LAYERS = 4
"""Each doubles how far it looks back, if the contract allows it: 16 windows that are 1.28 s apart are 20.5 s."""

CHANNELS = 16
CODE_NOISE = 0.2
"""Standard deviation of the noise that is added to codes in training, in their own, and the share that is left out.
Codes of people whom the encoder was trained on are too good to learn from as they are."""

PASSES = 4
"""Times that each recording is encoded, each time as another day and another sensor would give it."""

BATCH = 512
REORDER_EVERY = 50
"""Histories in a training step; bouts come in another order after so many steps."""

LEARNING_RATE = 3e-3
MARGIN = 2
"""Windows that a cut keeps from the ends of a bout."""


@dataclass(frozen=True)
class Codes:
    """Codes of one recording, in order.

    `person`: whose it is; only one person's recordings are joined. `code`: int8 (n, C). `label`: int64 (n,), of the
    windows' middle samples, or `UNLABELLED`.
    """

    person: str
    code: Int8Array
    label: Int64Array


class Context(nn.Module):
    """Codes (B, windows, C), as integers in float -> logits (B, labels). `windows`: a power of two."""

    def __init__(self, code: int, labels: int, windows: int) -> None:
        """Project each code, join neighbours until one vector is left, and read it beside the present window's."""
        super().__init__()
        self.windows = windows
        self.project = nn.Conv1d(code, CHANNELS, 1)
        self.join = nn.ModuleList([nn.Conv1d(CHANNELS, CHANNELS, 2, stride=2) for _ in range(windows.bit_length() - 1)])
        self.dropout = nn.Dropout(0.2)
        self.out = nn.Linear(2 * CHANNELS, labels)

    def layers(self) -> list[nn.Conv1d]:
        """Return the joining layers in order."""
        return [layer for layer in self.join if isinstance(layer, nn.Conv1d)]

    def joined(self, projected: Tensor) -> list[Tensor]:
        """Return what each layer gives, from projected codes (B, channels, windows)."""
        given = []
        for layer in self.join:
            projected = functional.relu(layer(projected))
            given.append(projected)
        return given

    def forward(self, codes: Tensor) -> Tensor:
        """Return the logits."""
        x = codes.transpose(1, 2) * CODE_STEP
        if self.training:
            x = x + CODE_NOISE * x.std() * torch.randn_like(x)
            x = functional.dropout(x, CODE_NOISE)
        projected = functional.relu(self.project(x))
        top = self.joined(projected)[-1]
        # The present window's own projection once more, past all layers.
        return self.out(self.dropout(torch.cat([top, projected[:, :, -1:]], dim=1).flatten(1)))  # type: ignore[no-any-return]  # torch's modules are Any


class Encoder:
    """An encoder graph: windows in g and rad/s in, codes out."""

    def __init__(self, graph: bytes, normalisation: Normalisation) -> None:
        """Open the graph."""
        self._session = open_session("encoder.onnx", graph)
        self._normalisation = normalisation

    def encode(self, windows: Float32Array) -> Int8Array:
        """Return the codes (n, C) of windows (n, window, 6)."""
        (code,) = self._session.run(None, {"window": self._normalisation.apply(windows)})
        return code  # type: ignore[no-any-return]  # untyped in onnxruntime


def encode_recordings(encoder: Encoder, recordings: Sequence[Recording], window: int) -> list[Codes]:
    """Return the codes of recordings; those shorter than a window have none."""
    found = []
    for recording in recordings:
        if len(recording.values) >= window:
            values, middle = streaming_windows(recording, window)
            found.append(Codes(recording.subject, encoder.encode(values), recording.label[middle]))
    return found


def encode_for_training(
    encoder: Encoder, recordings: Sequence[Recording], settings: Settings, seed: int
) -> list[Codes]:
    """Return codes of `PASSES` variations of recordings: another offset, placement and noise each time."""
    rng = np.random.default_rng([seed, 3])
    generator = torch.Generator().manual_seed(seed)
    found = []
    for turn in range(PASSES):
        varied = []
        for recording in recordings:
            first = int(rng.integers(settings.hop))
            values = augment(torch.from_numpy(recording.values[None, first:]), settings, generator)[0].numpy()
            subject = f"{recording.subject}/{turn}"
            varied.append(replace(recording, subject=subject, values=values, label=recording.label[first:]))
        found += encode_recordings(encoder, varied, settings.window)
    return found


def look_back(rate_hz: float, hop: int) -> int:
    """Return how many windows a context sees: 16, or fewer where they would reach too far back; 0 where two would."""
    windows = 2**LAYERS
    while windows * hop / rate_hz > MAX_LOOK_BACK_S:
        windows //= 2
    return windows if windows > 1 else 0


def histories(code: Int8Array, windows: int) -> Int8Array:
    """Return what the context sees at each of a recording's codes (n, C): int8 (n, windows, C), a view."""
    padded = np.concatenate([np.zeros((windows - 1, code.shape[1]), np.int8), code])
    return np.lib.stride_tricks.sliding_window_view(padded, windows, axis=0).transpose(0, 2, 1)


def fit(sequences: Sequence[Codes], data: Data, seed: int, steps: int, windows: int) -> Context:
    """Train a context of so many windows on codes, in so many steps. `data`: whose classes the labels are."""
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 4])
    network = Context(sequences[0].code.shape[1], len(data.labels), windows)
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: warm_up_then_cosine(step, steps))
    network.train()
    for first in range(0, steps, REORDER_EVERY):
        count = min(REORDER_EVERY, steps - first)
        for codes, label in _batches([*sequences, *_reordered(sequences, data, rng)], rng, count, windows):
            loss = functional.cross_entropy(network(codes), label, label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
            optimiser.step()
            schedule.step()
    return network.eval()


def _reordered(sequences: Sequence[Codes], data: Data, rng: np.random.Generator) -> list[Codes]:
    people: dict[str, list[Codes]] = {}
    for sequence in sequences:
        people.setdefault(sequence.person, []).append(sequence)
    found = []
    for person, own in people.items():
        activity = [np.where(data.is_activity(s.label), s.label, UNLABELLED) for s in own]
        order = bouts.reorder(activity, MARGIN, rng)
        if order:
            found.append(
                Codes(
                    person,
                    np.concatenate([own[p.source].code[p.first : p.last] for p in order]),
                    np.concatenate([own[p.source].label[p.first : p.last] for p in order]),
                )
            )
    return found


def _batches(
    sequences: Sequence[Codes], rng: np.random.Generator, count: int, windows: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield `count` batches of labelled windows drawn from sequences: codes as float (b, windows, C), label (b,)."""
    gap = np.zeros((windows - 1, sequences[0].code.shape[1]), np.int8)
    code = np.concatenate([part for s in sequences for part in (gap, s.code)])
    label = np.concatenate([part for s in sequences for part in (np.full(len(gap), UNLABELLED), s.label)])
    labelled = np.flatnonzero(label != UNLABELLED)
    for _ in range(count):
        part = rng.choice(labelled, BATCH)
        history = code[part[:, None] + np.arange(1 - windows, 1)]
        yield torch.from_numpy(history.astype(np.float32)), torch.from_numpy(label[part])


def draw(sequences: Sequence[Codes], n: int, rng: np.random.Generator, windows: int) -> tuple[Int8Array, Int64Array]:
    """Return up to `n` histories of labelled windows, int8 (n, windows, C), and their labels (n,)."""
    history = np.concatenate([histories(s.code, windows)[s.label != UNLABELLED] for s in sequences])
    label = np.concatenate([s.label[s.label != UNLABELLED] for s in sequences])
    chosen = rng.permutation(len(label))[:n]
    return history[chosen], label[chosen]


def exemplars(sequences: Sequence[Codes], each: int, rng: np.random.Generator, windows: int) -> bytes:
    """Return `exemplars.npz`: up to `each` histories a class, `codes` int8 (m, windows, C) and `label` (m,)."""
    history, label = draw(sequences, sum(len(s.label) for s in sequences), rng, windows)
    kept = np.concatenate([np.flatnonzero(label == k)[:each] for k in np.unique(label)])
    packed = io.BytesIO()
    np.savez_compressed(packed, codes=history[kept], label=label[kept])
    return packed.getvalue()


@torch.no_grad()
def export(network: Context, codes: Int8Array) -> bytes:
    """Return `context.onnx`, int8; activations are ranged on `codes` int8 (n, windows, C)."""
    size = network.project.in_channels
    projected = functional.relu(network.project(torch.from_numpy(codes.astype(np.float32)).transpose(1, 2) * CODE_STEP))
    joined = network.joined(projected)
    steps = [positive_step(x) for x in joined]
    # What stands side by side at the end shares one step.
    projected_step = steps[-1] = max(steps[-1], positive_step(projected))
    logits = network(torch.from_numpy(codes.astype(np.float32)))
    g = Graph("x")
    shifted = g.shift("codes", CODE_STEP, np.int8(0), np.uint8(MIDDLE))
    x = g.conv(g.op("Transpose", shifted, perm=[0, 2, 1]), CODE_STEP, MIDDLE, network.project, projected_step)
    present = g.op("Gather", x, g.constant(np.array([network.windows - 1])), axis=2)
    step = projected_step
    for layer, out_step in zip(network.layers(), steps, strict=True):
        x = g.conv(x, step, 0, layer, out_step)
        step = out_step
    both = g.op("Flatten", g.op("Concat", x, present, axis=1))
    out_step = signed_step(logits)
    g.dequantise(g.gemm(both, step, 0, network.out, out_step, MIDDLE), out_step, np.uint8(MIDDLE))
    return g.serialise("codes", (network.windows, size), "logits", (network.out.out_features,))
