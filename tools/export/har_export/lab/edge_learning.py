"""Learning from reduced data: devices send digits to an edge server, which reduces them for a cloud that learns.

After "When Deep Learning Meets Edge Computing": the cloud trains a classifier either on the raw images or on what the
edge made of them by PCA, LDA or an autoencoder. Measured: bytes from edge to cloud, CPU time, accuracy on the test
images, for 500 to 60,000 examples.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor, nn
from torch.nn import functional

from agent.errors import InputError
from agent.records import Float32Array, Int8Array
from har_export.datasets.mnist import CLASSES, SIDE, Mnist, UInt8Array
from har_export.lab.plots import STYLES, save
from har_export.lab.result import Plot, Result, Table, spread

SIZES = (500, 1000, 2000, 5000, 10000, 20000, 40000, 60000)
PIXELS = SIDE * SIDE
REDUCED = PIXELS // 5
"""Bytes of a reduced image: a fifth, as in the paper. LDA has fewer, one less than there are classes."""

EPOCHS = 6
BATCH = 64
LEAST_STEPS = 400
"""Few examples are passed over more often, or no network would have learnt anything from them."""

RAW, RAW_PERCEPTRON = "cloud-only", "cloud-only, perceptron"
REDUCTIONS = ("PCA", "LDA", "autoencoder")
METHODS = (RAW, RAW_PERCEPTRON, *REDUCTIONS)
PUBLISHED_TRAFFIC, PUBLISHED_TIME, PUBLISHED_ACCURACY = -0.80, -0.69, 0.90
"""What the paper says of its reduction: against cloud-only; accuracy with 60,000 examples."""

PLOT = "plots/edge_learning.svg"

Encode = Callable[[Float32Array], Float32Array]


@dataclass(frozen=True)
class Trial:
    """One training on `n` examples. Seconds are of CPU. `model_bytes`: float32 weights that go back to the edge."""

    method: str
    n: int
    seed: int
    traffic_bytes: int
    edge_s: float
    cloud_s: float
    accuracy: float
    model_bytes: int


def run(
    mnist: Mnist,
    seeds: Sequence[int],
    command: str,
    report: Callable[[Trial], None] | None = None,
    sizes: Sequence[int] = SIZES,
) -> Result:
    """Run every method on every size with every seed; a seed also draws which examples are sent.

    `command` is what the result file quotes.

    Raises:
        InputError: there are fewer training images than the smallest size.
    """
    sizes = [n for n in sizes if n <= len(mnist.x_train)]
    if not sizes:
        raise InputError(f"{len(mnist.x_train)} training images are too few; give the whole of MNIST")
    trial(mnist, RAW, sizes[0], seeds[0])  # the first call also pays for setting PyTorch up
    trials = []
    for n in sizes:
        for seed in seeds:
            for method in METHODS:
                trials.append(trial(mnist, method, n, seed))
                if report is not None:
                    report(trials[-1])
    return summarise(trials, command)


def trial(mnist: Mnist, method: str, n: int, seed: int) -> Trial:
    """Send `n` examples, drawn with `seed`, by `method`; train on what arrives and score the test images."""
    torch.manual_seed(seed)
    drawn = np.random.default_rng(seed).permutation(len(mnist.x_train))[:n]
    images, label = mnist.x_train[drawn], mnist.y_train[drawn]
    sent: UInt8Array | Int8Array = images
    test: UInt8Array | Int8Array = mnist.x_test
    edge_s = 0.0
    if method in REDUCTIONS:
        began = time.process_time()
        reduce = quantised(fit(method, flat(images), label, seed), flat(images))
        sent = reduce(flat(images))
        edge_s = time.process_time() - began
        test = reduce(flat(mnist.x_test))
    network = convolutional() if method == RAW else perceptron(sent[0].size)
    began = time.process_time()
    descend(network, arrived(sent), torch.from_numpy(label.astype(np.int64)), functional.cross_entropy, seed)
    cloud_s = time.process_time() - began
    with torch.no_grad():
        predicted = network(arrived(test)).argmax(dim=1).numpy()
    return Trial(
        method,
        n,
        seed,
        len(sent.tobytes()) + len(label.tobytes()),
        edge_s,
        cloud_s,
        float((predicted == mnist.y_test).mean()),
        sum(4 * p.numel() for p in network.parameters()),
    )


def flat(images: UInt8Array) -> Float32Array:
    """Return images (n, 28, 28) as float32 (n, 784) from 0 to 1."""
    return (images.reshape(len(images), PIXELS) / 255).astype(np.float32)


def arrived(sent: UInt8Array | Int8Array) -> Tensor:
    """Return what a classifier reads: images (n, 1, 28, 28) from 0 to 1, codes (n, k) of the order of 1."""
    if sent.dtype == np.uint8:
        return torch.from_numpy(sent).unsqueeze(1).float() / 255
    return torch.from_numpy(sent).float() / 32


def fit(method: str, x: Float32Array, label: UInt8Array, seed: int) -> Encode:
    """Fit one of `REDUCTIONS` on flat images and return it as a function of such.

    PCA: the `REDUCED` directions of most variance. LDA: the nine that part ten classes best, its covariance shrunk
    (Ledoit and Wolf). Autoencoder: the code of a network of one hidden layer that gives back what it is given.
    """
    if method == "PCA":
        pca = PCA(min(REDUCED, len(x)), svd_solver="covariance_eigh").fit(x)
        return lambda images: np.asarray(pca.transform(images), np.float32)
    if method == "LDA":
        lda = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto").fit(x, label)
        return lambda images: np.asarray(lda.transform(images), np.float32)
    encoder = nn.Sequential(nn.Linear(PIXELS, REDUCED), nn.Tanh())
    decoder = nn.Sequential(nn.Linear(REDUCED, PIXELS), nn.Sigmoid())
    values = torch.from_numpy(x)
    descend(nn.Sequential(encoder, decoder), values, values, functional.mse_loss, seed)

    @torch.no_grad()
    def encode(images: Float32Array) -> Float32Array:
        return np.asarray(encoder(torch.from_numpy(images)).numpy(), np.float32)

    return encode


def quantised(encode: Encode, x: Float32Array) -> Callable[[Float32Array], Int8Array]:
    """Return `encode` followed by int8: one step for all components, of which the widest spans four deviations."""
    codes = encode(x)
    middle, step = codes.mean(axis=0), max(4 * float(codes.std(axis=0).max()), 1e-6) / 127
    return lambda images: np.round((encode(images) - middle) / step).clip(-127, 127).astype(np.int8)


def convolutional() -> nn.Module:
    """Two strided convolutions and a linear layer: what reads raw images."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * (SIDE // 4) ** 2, CLASSES),
    )


def perceptron(size: int) -> nn.Module:
    """One hidden layer: what reads a reduced image of `size` numbers."""
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 64), nn.ReLU(), nn.Linear(64, CLASSES))


def descend(network: nn.Module, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor], seed: int) -> None:
    """Minimise `loss` by Adam on shuffled batches."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(max(EPOCHS, -(-LEAST_STEPS * BATCH // len(x)))):
        for part in torch.split(torch.randperm(len(x), generator=generator), BATCH):
            optimiser.zero_grad()
            loss(network(x[part]), y[part]).backward()  # type: ignore[no-untyped-call]  # untyped in torch
            optimiser.step()


def summarise(trials: Sequence[Trial], command: str) -> Result:
    """Return the tables, the sentences that compare with the paper, and every trial."""
    sizes = sorted({t.n for t in trials})
    by = {(m, n): [t for t in trials if (t.method, t.n) == (m, n)] for m in METHODS for n in sizes}
    largest = sizes[-1]

    def traffic(method: str, n: int) -> float:
        return float(by[method, n][0].traffic_bytes)

    def seconds(method: str, n: int) -> float:
        return float(np.mean([t.edge_s + t.cloud_s for t in by[method, n]]))

    def accuracy(method: str, n: int) -> float:
        return float(np.mean([t.accuracy for t in by[method, n]]))

    def percent(method: str, n: int) -> str:
        return f"{accuracy(method, n):.1%}"

    def change(measure: Callable[[str, int], float], method: str) -> float:
        return measure(method, largest) / measure(RAW, largest) - 1

    enough = next(
        (f"{n:,} examples" for n in sizes if accuracy("PCA", n) >= PUBLISHED_ACCURACY), "no number of examples"
    )
    at_edge = {m: float(np.mean([t.edge_s for t in by[m, largest]])) for m in REDUCTIONS}
    returned = {m: by[m, largest][0].model_bytes for m in (RAW, "PCA")}
    saved = traffic(RAW, sizes[0]) - traffic("PCA", sizes[0])
    text = [
        "After *When Deep Learning Meets Edge Computing*: devices send digits to an edge server, which passes them on "
        f"to a cloud as they are, {PIXELS} bytes and one of label, or reduced to int8: {REDUCED} bytes by PCA or the "
        f"code of an autoencoder, {CLASSES - 1} by LDA, which has no more to give for ten classes. A reduction is "
        "fitted at the edge on what is sent, and that time counts. The cloud trains a small CNN on images, a "
        "perceptron with one hidden layer on codes and, to tell the reduction from the classifier, on images too. Time "
        "is of one core, the methods in turn; accuracy is over the test images; mean and spread of "
        f"{len(by[RAW, largest])} seeds, each of which draws its own examples.",
        f"With {largest:,} examples PCA changes the traffic by {change(traffic, 'PCA'):+.0%} and the time by "
        f"{change(seconds, 'PCA'):+.0%} against cloud-only, and is right in {percent('PCA', largest)} of the test "
        f"images, where cloud-only is in {percent(RAW, largest)}. The paper has {PUBLISHED_TRAFFIC:+.0%}, "
        f"{PUBLISHED_TIME:+.0%} and, with 60,000 examples, {PUBLISHED_ACCURACY:.0%}, which PCA reaches here with "
        f"{enough}. Every training here makes at least {LEAST_STEPS} steps; what the paper's makes is not known.",
        "How much of that is the reduction's, and how much the classifier's: the same perceptron is right in "
        f"{percent('PCA', largest)} on PCA and in {percent(RAW_PERCEPTRON, largest)} on raw images, and it changes the "
        f"time by {change(seconds, 'PCA'):+.0%} on PCA and by {change(seconds, RAW_PERCEPTRON):+.0%} on raw images. "
        f"Learning its reduction takes the edge {at_edge['PCA']:.1f} s by PCA, {at_edge['LDA']:.1f} s by LDA and "
        f"{at_edge['autoencoder']:.1f} s by an autoencoder, which altogether changes the time by "
        f"{change(seconds, 'autoencoder'):+.0%}.",
        f"A trained model goes back to the edge: {returned['PCA']:,} bytes of float32 for PCA, {returned[RAW]:,} for "
        f"the CNN. That is not in the traffic; what PCA saves on {sizes[0]:,} examples is "
        f"{saved / returned['PCA']:.1f} times its model.",
    ]
    paper = ["the paper", f"{PUBLISHED_TRAFFIC:+.0%}", f"{PUBLISHED_TIME:+.0%}", f"{100 * PUBLISHED_ACCURACY:.0f}"]
    ours = [
        [m, f"{change(traffic, m):+.1%}", f"{change(seconds, m):+.0%}", spread([t.accuracy for t in by[m, largest]])]
        for m in METHODS
    ]
    tables = [
        Table(
            f"Against cloud-only, {largest:,} examples",
            ["what is sent", "traffic", "time", "accuracy, %"],
            [paper, *ours],
        ),
        Table(
            "Accuracy, %",
            ["examples", *METHODS],
            [[f"{n:,}", *[spread([t.accuracy for t in by[m, n]]) for m in METHODS]] for n in sizes],
        ),
        Table(
            "CPU seconds, edge and cloud together",
            ["examples", *METHODS],
            [[f"{n:,}", *[f"{seconds(m, n):.2f}" for m in METHODS]] for n in sizes],
        ),
        Table(
            "Bytes from edge to cloud, labels included",
            ["examples", *METHODS],
            [[f"{n:,}", *[f"{traffic(m, n):,.0f}" for m in METHODS]] for n in sizes],
        ),
    ]
    plots = [Plot(PLOT, "Traffic, time and accuracy against examples. Methods that send the same bytes share a curve.")]
    return Result(
        "Learning from reduced data (MNIST)",
        command,
        text,
        tables,
        plots,
        [asdict(t) for t in trials],
    )


def draw(result: Result, path: Path) -> None:
    """Draw the three panels of a result of `run`: means, with a standard deviation where accuracy is concerned."""
    trials = [Trial(**row) for row in result.data]
    sizes = sorted({t.n for t in trials})
    panels: tuple[tuple[str, Callable[[Trial], float]], ...] = (
        ("bytes from edge to cloud", lambda t: t.traffic_bytes),
        ("CPU time, edge and cloud, s", lambda t: t.edge_s + t.cloud_s),
        ("accuracy on test images, %", lambda t: 100 * t.accuracy),
    )
    figure = Figure(figsize=(10.5, 3.6), layout="constrained")
    for axes, (title, measure) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for method, style in zip(METHODS, STYLES, strict=False):
            values = [[measure(t) for t in trials if (t.method, t.n) == (method, n)] for n in sizes]
            error = [np.std(v) for v in values] if "accuracy" in title else None
            axes.errorbar(sizes, [np.mean(v) for v in values], error, label=method, capsize=2, **style)
        axes.set(xscale="log", xlabel="examples", ylabel=title)
        axes.grid(color="#dddddd", linewidth=0.5)
        if "accuracy" not in title:
            axes.set_yscale("log")
        else:
            axes.legend(frameon=False, fontsize=8)
    save(figure, path)
