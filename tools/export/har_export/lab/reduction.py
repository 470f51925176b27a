"""What a window costs to send, and what is still read from it: samples, differences, projections, the agent's code.

Everything is fitted on training subjects and scored on held-out ones. What arrives is read by one family of networks,
trained on what arrives: the encoder's convolutions with a head of one hidden layer where it is a window, that head
alone where it is a vector. The agent's code is read by its own head, both as the int8 files that are deployed.
"""

import copy
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor, nn

from agent.adapters.onnx_model import open_session
from agent.core.normalise import Normalisation
from agent.errors import InputError
from agent.records import CHANNELS, Float32Array, Int8Array, Int64Array
from har_export.datasets.records import Data
from har_export.datasets.split import folds_of
from har_export.lab.coding import huffman_lengths
from har_export.lab.plots import STYLES, save
from har_export.lab.result import Plot, Result, Table, spread
from har_export.network import BASE, Encoder, Head, round_through
from har_export.quantise import quantise
from har_export.train import Sampler, Settings, augment, classification, descend, fit_normalisation, to_input, train

FOLDS = 5
WINDOW = 128
HOP = WINDOW // 2
"""Samples that a window adds to the one before: only these are sent."""

SAMPLES, DELTAS = "int16 samples", "int8 differences"
PCA_WINDOW, PCA_VECTOR, LDA_VECTOR = "PCA, decoded", "PCA, as a vector", "LDA, as a vector"
FLOAT_CODE, CODE = "the agent's code, float weights", "the agent's code"
FAMILIES = (SAMPLES, DELTAS, PCA_WINDOW, PCA_VECTOR, LDA_VECTOR, FLOAT_CODE, CODE)
PLOTTED = (CODE, DELTAS, PCA_WINDOW, PCA_VECTOR, LDA_VECTOR, SAMPLES)

CODES = (8, 16, 64)
COMPONENTS = (16, 32, 64)
DELTA_STEPS = tuple(5 / 127 * 2**i for i in range(6))
"""Steps of the differences, in standard deviations of a channel. The finest spans five of them with int8."""

REFITTED = 4
"""What arrives as a window is read by one network for raw windows, trained on for a quarter of its epochs."""

INT16_STEP = 16 / 32768
"""Standard deviations, for int16 samples that span sixteen."""

TOLERANCE = 0.005
"""Accuracies that differ by less are called equal."""

SPAN = 32
"""Steps of an int8 component in a standard deviation of it: int8 spans four."""

PLOT = "plots/reduction.svg"


Integers = Int8Array | npt.NDArray[np.int16]


@dataclass(frozen=True)
class Point:
    """One reduction on one fold. `detail` tells it from others of its family.

    `bytes`: of a window's message as it is; `coded`: mean after entropy coding.
    """

    family: str
    detail: str
    seed: int
    bytes: int
    coded: float
    accuracy: float


@dataclass(frozen=True)
class Reduction:
    """What is sent of normalised windows (n, 128, 6).

    `integers`: int8 (n, streams, length), what the messages hold; int16 where nothing is reduced.
    `arrives`: what the receiver makes of it: windows again, or vectors (n, k).
    """

    family: str
    detail: str
    integers: Callable[[Tensor], Integers]
    arrives: Callable[[Tensor], Tensor]


def run(
    data: Data, seeds: Sequence[int], settings: Settings, command: str, report: Callable[[Point], None] | None = None
) -> Result:
    """Score every reduction; seed s holds out fold s of its own deal of the subjects to five folds.

    Only the publishers' windows are used. `command` is what the result file quotes.

    Raises:
        InputError: there are none, or too few subjects.
    """
    windows = replace(data, recordings=())
    if not len(windows.windows.label):
        raise InputError("there are no ready-cut windows; give the UCI HAR data set")
    points = []
    for seed in seeds:
        held = folds_of(windows.subjects, FOLDS, seed)[seed % FOLDS]
        training = windows.of([s for s in windows.subjects if s not in held])
        for point in fold_points(training, windows.of(held), seed, settings):
            points.append(point)
            if report is not None:
                report(point)
    return summarise(points, command)


def fold_points(training: Data, unseen: Data, seed: int, settings: Settings) -> Iterator[Point]:
    """Fit every reduction and what reads it on `training`, and score them on `unseen`."""
    normalisation = fit_normalisation(training)
    seen = to_input(torch.from_numpy(training.windows.values), normalisation)
    x, label = to_input(torch.from_numpy(unseen.windows.values), normalisation), unseen.windows.label

    def point(family: str, detail: str, integers: Callable[[Tensor], Integers], logits: Float32Array) -> Point:
        sent = integers(x)
        coded = float(coded_bytes(sent, integers(seen)).mean())
        return Point(family, detail, seed, sent[0].nbytes, coded, float((logits.argmax(axis=1) == label).mean()))

    def score(reduction: Reduction, reader: nn.Module) -> Point:
        with torch.no_grad():
            logits = reader(reduction.arrives(x)).numpy()
        return point(reduction.family, reduction.detail, reduction.integers, logits)

    labels = len(training.labels)
    whole = samples()
    torch.manual_seed(seed)
    convolutions = Convolutions(labels)
    fit(convolutions, whole, training, normalisation, seed, settings)
    short = replace(settings, epochs=max(1, settings.epochs // REFITTED))
    whole_course = replace(settings, epochs=settings.epochs + short.epochs)
    projections = [pca(seen, k) for k in COMPONENTS]
    for reduction in (whole, *[deltas(step) for step in DELTA_STEPS], *[decoded for decoded, _ in projections]):
        reader = copy.deepcopy(convolutions)
        fit(reader, reduction, training, normalisation, seed, short)
        yield score(reduction, reader)
    for reduction in (*[vector for _, vector in projections], lda(seen, training.windows.label)):
        torch.manual_seed(seed)
        head = Head(reduction.arrives(x[:1]).shape[1], BASE.hidden, labels, dropout=0.2)
        fit(head, reduction, training, normalisation, seed, whole_course)
        yield score(reduction, head)
    for size in CODES:
        network, _ = train(training, seed, whole_course, shape=replace(BASE, code=size))
        files = quantise(network, seen.numpy())

        def codes(windows: Tensor, encoder: bytes = files["encoder.onnx"]) -> Integers:
            return invoke(encoder, windows.numpy())[:, :, None]

        logits = invoke(files["classifier.onnx"], codes(x)[:, :, 0])
        yield point(CODE, f"{size} numbers", codes, logits)
        with torch.no_grad():
            yield point(FLOAT_CODE, f"{size} numbers", codes, network(x)[0].numpy())


class Convolutions(nn.Module):
    """The network without its code: the classifier's head straight on what the convolutions pool."""

    def __init__(self, labels: int) -> None:
        """Random weights, from torch's global generator."""
        super().__init__()
        self.encoder = Encoder(WINDOW)
        self.head = Head(self.encoder.code.in_features, BASE.hidden, labels, dropout=0.2)

    def forward(self, windows: Tensor) -> Tensor:
        """Return logits (B, labels) of normalised windows (B, 128, 6)."""
        return self.head(self.encoder.dropout(self.encoder.pooled(windows)))  # type: ignore[no-any-return]  # Any


def fit(
    reader: nn.Module, reduction: Reduction, data: Data, normalisation: Normalisation, seed: int, settings: Settings
) -> None:
    """Train `reader` in place on what `reduction` leaves of augmented windows; leave it in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)

    def loss(values: Tensor, label: Tensor, _: Tensor) -> Tensor:
        reader.train()
        windows = to_input(augment(values, settings, generator), normalisation)
        return classification(reader(reduction.arrives(windows)), label, settings)

    descend(list(reader.parameters()), loss, Sampler(data, WINDOW, seed), settings)
    reader.eval()


def invoke(file: bytes, values: np.ndarray) -> np.ndarray:
    """Run an ONNX file with one input and one output."""
    session = open_session("what was quantised", file)
    return np.asarray(session.run(None, {session.get_inputs()[0].name: values})[0])


def samples() -> Reduction:
    """Return the hop's samples as int16, as a sensor gives them: too fine to matter, so that they arrive unchanged."""
    return Reduction(
        SAMPLES,
        "",
        lambda windows: _by_channel((windows / INT16_STEP).round()).astype(np.int16),
        lambda windows: windows,
    )


def deltas(step: float) -> Reduction:
    """Return the hop's differences from sample to sample as int8; `step` is in standard deviations.

    The sender follows what the receiver has, so that a jump that int8 cannot hold is made up for by what comes next.
    """
    return Reduction(
        DELTAS,
        f"step {step:.3f} sd",
        lambda windows: _by_channel(differences(windows, step)[1]).astype(np.int8),
        lambda windows: differences(windows, step)[0],
    )


def _by_channel(values: Tensor) -> Float32Array:
    """Return the hop's part of (n, 128, 6) as (n, 6, 64)."""
    return np.asarray(values[:, HOP:].transpose(1, 2).numpy())


def differences(windows: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """Return windows (n, 128, 6) as the receiver rebuilds them, and the integers (n, 128, 6) that it gets.

    The stream began earlier: the first sample of a window is known to a step, and its integer is 0.
    """
    target = windows / step
    levels = [target[:, 0].round()]
    for t in range(1, windows.shape[1]):
        levels.append(levels[-1] + (target[:, t] - levels[-1]).round().clamp(-127, 127))
    level = torch.stack(levels, dim=1)
    return level * step, torch.diff(level, dim=1, prepend=level[:, :1])


def coded_bytes(integers: Integers, seen: Integers) -> Int64Array:
    """Return the bytes of each entropy-coded message (n,) of `integers` (n, streams, length).

    The shorter of two, and a byte in front that says which: deflate (zlib, level 9, without header), and a Huffman code
    for each stream that both ends have from the messages `seen`. int16 is only deflated.
    """
    sizes = np.array([len(deflate(message.tobytes())) for message in integers])
    if integers.dtype == np.int8:
        bits = np.zeros(len(integers), np.int64)
        for stream in range(integers.shape[1]):
            counts = np.bincount(seen[:, stream].ravel().astype(np.int64) + 128, minlength=256)
            # What was never seen counts as seen once, so that it has a code.
            lengths = np.array(huffman_lengths(np.maximum(counts, 1).tolist()))
            bits += lengths[integers[:, stream].astype(np.int64) + 128].sum(axis=1)
        sizes = np.minimum(sizes, (bits + 7) // 8)
    return 1 + sizes


def deflate(message: bytes) -> bytes:
    """Return `message` deflated at level 9, without header or checksum."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(message) + packer.flush()


def pca(seen: Tensor, k: int) -> tuple[Reduction, Reduction]:
    """Return the `k` components of most variance in `seen` windows, read as decoded windows and as vectors."""
    fitted = PCA(k, svd_solver="covariance_eigh").fit(seen.flatten(1).numpy())
    basis, middle = torch.from_numpy(fitted.components_.T).float(), torch.from_numpy(fitted.mean_).float()
    vector = projection(PCA_VECTOR, basis, middle, seen)
    deviation = torch.from_numpy(fitted.explained_variance_**0.5).float()

    def decoded(windows: Tensor) -> Tensor:
        return (vector.arrives(windows) * deviation @ basis.T + middle).view(-1, WINDOW, len(CHANNELS))

    return replace(vector, family=PCA_WINDOW, arrives=decoded), vector


def lda(seen: Tensor, label: Int64Array) -> Reduction:
    """Return the components that part the classes of `seen` windows best: one fewer than classes.

    Their covariance is shrunk (Ledoit and Wolf): overlapping windows of 768 numbers do not determine it.
    """
    fitted = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto").fit(seen.flatten(1).numpy(), label)
    basis = torch.from_numpy(fitted.scalings_[:, : len(fitted.classes_) - 1]).float()
    return projection(LDA_VECTOR, basis, seen.flatten(1).mean(dim=0), seen)


def projection(family: str, basis: Tensor, middle: Tensor, seen: Tensor) -> Reduction:
    """Return the components along `basis` (768, k) as int8, that arrive in standard deviations of each on `seen`."""
    step = ((seen.flatten(1) - middle) @ basis).std(dim=0) / SPAN

    def integers(windows: Tensor) -> Tensor:
        return round_through((windows.flatten(1) - middle) @ basis / step)

    return Reduction(
        family,
        f"{basis.shape[1]} components",
        lambda windows: integers(windows).numpy().astype(np.int8)[:, :, None],
        lambda windows: integers(windows) / SPAN,
    )


@dataclass(frozen=True)
class Row:
    """One reduction over all seeds. `accuracies` follow the order of the seeds."""

    family: str
    detail: str
    bytes: int
    coded: float
    accuracies: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.accuracies))

    def behind(self, other: "Row") -> str:
        """Return how far it is behind `other`, fold by fold: mean and standard deviation, in points."""
        lost = 100 * (np.array(other.accuracies) - np.array(self.accuracies))
        return f"{lost.mean():.2f} ± {lost.std(ddof=1) if len(lost) > 1 else 0:.2f} points"


def rows_of(points: Sequence[Point]) -> list[Row]:
    """Gather points by reduction, the cheapest of a family first."""
    kinds: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        kinds.setdefault((point.family, point.detail), []).append(point)
    rows = [
        Row(family, detail, of[0].bytes, float(np.mean([p.coded for p in of])), tuple(p.accuracy for p in of))
        for (family, detail), of in kinds.items()
    ]
    return sorted(rows, key=lambda row: (FAMILIES.index(row.family), row.coded))


def summarise(points: Sequence[Point], command: str) -> Result:
    """Return the table, the sentences that compare, and every point."""
    rows = rows_of(points)
    raw = next(row for row in rows if row.family == SAMPLES)
    code = rows[-1]
    floats = next(row for row in rows if (row.family, row.detail) == (FLOAT_CODE, code.detail))
    text = [
        f"One message for each hop of {HOP} samples: its bytes, and the accuracy with which the window is then read. "
        f"Windows are UCI HAR's. {len(raw.accuracies)} seeds; seed s holds out fold s of its own deal of the subjects "
        f"to {FOLDS}, and everything, from the normalisation to the Huffman codes, is fitted on the others. "
        "Differences are taken from sample to sample. A message is coded by deflate at level 9, or by a Huffman code "
        "for each channel or component that both ends know, whichever is shorter.",
        "A network that reads is trained on what arrives, augmented as in the agent's own training: the encoder's "
        "convolutions and a head of one hidden layer read windows, that head alone reads vectors. Windows, raw or "
        "rebuilt, are read by one network for raw windows that was trained on with them, for a fifth of all epochs; "
        "all networks saw equally many. The agent's code is scored as it is deployed, through the int8 files; all "
        "other networks are float.",
        f"**Against differences.** {against_differences(rows, code)}",
        f"**Against projections of at most {code.bytes} bytes.** {against_projections(rows, code)}",
        f"**What the code costs.** The same convolutions and head without it are right in {spread(raw.accuracies)} % "
        f"of the windows. The code with float weights is {floats.behind(raw)} behind, as deployed "
        f"{code.behind(raw)}.",
    ]
    table = Table(
        "Accuracy against bytes a window",
        ["what is sent", "", "bytes", "coded", "accuracy, %"],
        [[row.family, row.detail, str(row.bytes), f"{row.coded:.0f}", spread(row.accuracies)] for row in rows],
    )
    return Result(
        "Data reduction at equal bytes",
        command,
        text,
        [table],
        [Plot(PLOT, "Accuracy against coded bytes a window, mean and standard deviation over seeds.")],
        [asdict(p) for p in points],
    )


def against_differences(rows: Sequence[Row], code: Row) -> str:
    """Say which is smaller where they are read alike: within `TOLERANCE` of the code's accuracy."""
    alike = [row for row in rows if row.accuracy >= code.accuracy - TOLERANCE]
    differences_alike = [row for row in alike if row.family == DELTAS]
    small = min((row for row in alike if row.family == CODE), key=lambda row: row.coded)
    said = f"The agent's code of {code.bytes} bytes, {code.coded:.0f} coded, is read with {spread(code.accuracies)} %. "
    if not differences_alike:
        return f"{said}No step gives differences that come within {100 * TOLERANCE:.1f} points of it."
    cheapest = min(differences_alike, key=lambda row: row.coded)
    said += (
        f"The cheapest differences within {100 * TOLERANCE:.1f} points of that take {cheapest.coded:.0f} bytes coded "
        f"({cheapest.detail}): at equal accuracy the agent's code {outcome(code, cheapest)}."
    )
    if small is not code:
        said += (
            f" A code of {small.bytes} bytes, {small.coded:.0f} coded, comes as close, and {outcome(small, cheapest)}."
        )
    return said


def outcome(code: Row, differences: Row) -> str:
    """Say whether a code is smaller. The agent sends it as it is, without entropy coding."""
    if code.bytes < differences.coded:
        return "beats int8 and differences, even as it is"
    if code.coded < differences.coded:
        return "beats int8 and differences only if it is coded as they are, and the agent sends it as it is"
    return "does not beat int8 and differences"


def against_projections(rows: Sequence[Row], code: Row) -> str:
    """Say how far the best of each kind of projection is behind the code."""
    said = []
    for family in (PCA_WINDOW, PCA_VECTOR, LDA_VECTOR):
        best = max((r for r in rows if r.family == family and r.bytes <= code.bytes), key=lambda row: row.accuracy)
        said.append(f"{family}, {best.detail}: {best.behind(code)} behind.")
    return " ".join(said)


def draw(result: Result, path: Path) -> None:
    """Draw a result of `run`: one curve a family, and a line where whole windows are read."""
    rows = rows_of([Point(**row) for row in result.data])
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    for family, style in zip(PLOTTED, STYLES, strict=True):
        own = [row for row in rows if row.family == family]
        deviations = [100 * float(np.std(row.accuracies)) for row in own]
        axes.errorbar(
            [row.coded for row in own],
            [100 * row.accuracy for row in own],
            deviations,
            label=family,
            capsize=2,
            **style,
        )
        if family == SAMPLES:
            axes.axhline(100 * own[0].accuracy, color="#000000", linewidth=0.7, linestyle="--")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="bytes of a coded message, one a hop", ylabel="accuracy on unseen subjects, %")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(color="#dddddd", linewidth=0.5)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    save(figure, path)
