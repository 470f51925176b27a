"""The compression ladder: the paper's LSTM and our network, made smaller step by step, each step measured as deployed.

The steps start from the zoo's trained networks, on the same splits.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from agent.records import Float32Array
from har_export.datasets.records import Data
from har_export.lab import coding
from har_export.lab.compress import (
    Constrain,
    dynamic_int8,
    fewer_channels,
    fewer_lstm_units,
    prune_weights,
    quantisation_aware,
    share_weights,
    static_int8,
    stored_shared,
)
from har_export.lab.result import Result, Table, spread
from har_export.lab.timing import Timing, in_turn
from har_export.lab.zoo import config, modules, training
from har_export.lab.zoo.compare import (
    ROUNDS,
    SEEDS,
    Report,
    Split,
    call_of,
    inputs_of,
    measured,
    protocol,
    score,
    size,
    split_of,
    trained,
)
from har_export.lab.zoo.config import Config
from har_export.lab.zoo.modules import Autoencoder, Classifier, Lstm

BITS = 5
PRUNED = 0.8
"""Share of the LSTM's weights that is set to zero; of ours, which is small, half."""

PRUNED_OURS = 0.5
UNITS = 84
"""Of the LSTM's 264 that are left: the most that keep its int8 file below the paper's 69 KB."""

CHANNELS, HIDDEN = (24, 36, 48), 24
"""Of ours that are left, of (32, 48, 64) and 32."""

EPOCHS = 2
"""Of training after a step that changes values; twice as many after one that takes units away."""

LEARNING_RATE = 1e-3
RANGE_WINDOWS = 2048
TEACHERS = ("cnn", "cnn_lstm", "ours")
STUDENTS = ("micro_biconvlstm", "ours")

PAPER = (
    ("ConvLSTM", 91.562, 3_500_000, "convlstm", ""),
    ("LSTM", 90.499, 1_600_000, "lstm", "float"),
    ("LSTM pruned", 90.498, 1_100_000, "lstm", "fewer units"),
    ("LSTM pruned and post-quantised", 90.432, 69_000, "lstm", "fewer units, dynamic int8"),
)
"""Sharma & Khasgiwale's table: model, accuracy in per cent, bytes; and our row beside it."""


class Run(NamedTuple):
    """What a family's steps are made from."""

    split: Split
    seed: int
    keep: Path
    report: Report

    @property
    def classes(self) -> int:
        """Logits of a file."""
        return len(self.split.training.labels)

    def network(self, name: str) -> Classifier:
        """Return the zoo's trained network."""
        return trained(self.split, config.named(name), self.seed, self.keep, self.report)

    def file(self, network: Classifier) -> bytes:
        """Return the float file."""
        return modules.to_onnx(network, self.classes)

    def windows(self) -> Float32Array:
        """Return normalised windows of the training subjects that activations are ranged on."""
        values = self.split.training.windows.values
        chosen = np.random.default_rng([self.seed, 2]).permutation(len(values))[:RANGE_WINDOWS]
        return self.split.normalisation.apply(values[chosen])

    def tune(self, network: Classifier, model: Config, epochs: int, constrain: Constrain = lambda: None) -> None:
        """Go on training for a few epochs."""
        settings = replace(model.training, epochs=epochs, learning_rate=LEARNING_RATE)
        training.fit(network, self.split.training, self.split.normalisation, self.seed, settings, constrain=constrain)


Step = tuple[str, bytes]


def lstm_steps(run: Run) -> Iterator[Step]:
    """Yield the paper's LSTM, step by step."""
    model = config.named("lstm")
    network = cast("Lstm", run.network("lstm"))
    yield "float", run.file(network)
    pruned = deepcopy(network)
    run.tune(pruned, model, EPOCHS, prune_weights(pruned, PRUNED))
    yield f"{PRUNED:.0%} of weights zero", run.file(pruned)
    run.tune(pruned, model, EPOCHS, share_weights(pruned, BITS))
    yield f"{PRUNED:.0%} zero, {BITS}-bit clusters", stored_shared(run.file(pruned))
    fewer = fewer_lstm_units(network, run.classes, UNITS)
    run.tune(fewer, model, 2 * EPOCHS)
    yield "fewer units", run.file(fewer)
    yield "fewer units, dynamic int8", dynamic_int8(run.file(fewer))
    run.tune(fewer, model, EPOCHS, share_weights(fewer, BITS))
    yield f"fewer units, {BITS}-bit clusters", stored_shared(run.file(fewer))


def our_steps(run: Run) -> Iterator[Step]:
    """Yield our network, step by step."""
    model, windows = config.named("ours"), run.windows()
    network = cast("Autoencoder", run.network("ours"))
    yield "float", run.file(network)
    pruned = deepcopy(network)
    run.tune(pruned, model, EPOCHS, prune_weights(pruned, PRUNED_OURS))
    yield f"{PRUNED_OURS:.0%} of weights zero", run.file(pruned)
    run.tune(pruned, model, EPOCHS, share_weights(pruned, BITS))
    yield f"{PRUNED_OURS:.0%} zero, {BITS}-bit clusters", stored_shared(run.file(pruned))
    shared = deepcopy(network)
    run.tune(shared, model, EPOCHS, share_weights(shared, BITS))
    yield f"{BITS}-bit clusters", stored_shared(run.file(shared))
    yield "static int8", static_int8(network, windows)
    aware = deepcopy(network)
    with quantisation_aware(aware, windows):
        run.tune(aware, model, EPOCHS)
    yield "quantisation-aware, static int8", static_int8(aware, windows)
    fewer = fewer_channels(network, CHANNELS, HIDDEN)
    run.tune(fewer, model, 2 * EPOCHS)
    yield "fewer channels", run.file(fewer)
    yield "fewer channels, static int8", static_int8(fewer, windows)


def distilled_steps(run: Run) -> Iterator[Step]:
    """Yield each student as the labels alone trained it, and as its teachers did beside them."""
    teachers = [run.network(name) for name in TEACHERS]
    for name in STUDENTS:
        model = config.named(name)
        yield f"{name}, labels only", run.file(run.network(name))
        torch.manual_seed(run.seed)
        student = modules.build(model.kind, run.classes, model.network)
        training.fit(student, run.split.training, run.split.normalisation, run.seed, model.training, teachers=teachers)
        yield f"{name}, distilled", run.file(student)


_SETTINGS = (BITS, PRUNED, PRUNED_OURS, UNITS, CHANNELS, HIDDEN, EPOCHS, LEARNING_RATE, TEACHERS, STUDENTS)

FAMILIES: Mapping[str, Callable[[Run], Iterator[Step]]] = {
    "lstm": lstm_steps,
    "ours": our_steps,
    "distilled": distilled_steps,
}


def climb(data: Data, family: str, seed: int, keep: Path, report: Report) -> list[dict[str, Any]]:
    """Measure every step of a family for one seed, or return what was kept of that."""
    path = keep / f"ladder-{family}-seed{seed}.json"
    settings = json.loads(json.dumps([_SETTINGS, [asdict(config.named(name)) for name in config.names()]]))
    if path.is_file() and (found := json.loads(path.read_text(encoding="utf-8")))["settings"] == settings:
        return cast("list[dict[str, Any]]", found["rows"])
    split = split_of(data, seed)
    inputs = inputs_of(split, config.named("lstm"))
    rows: list[dict[str, Any]] = []
    keep.mkdir(parents=True, exist_ok=True)
    for number, (step, file) in enumerate(FAMILIES[family](Run(split, seed, keep, report))):
        sizes = {
            "bytes": len(file),
            "coded_bytes": len(coding.encode(file)),
            "huffman_bytes": coding.huffman_bytes(file),
        }
        row = {"step": step, **sizes, **score(file, inputs, split.unseen.label)}
        rows.append(row)
        (keep / f"ladder-{family}-seed{seed}-{number}.onnx").write_bytes(file)
        report(f"{family}, seed {seed}: {step}: {row['accuracy']:.2%}, {len(file):,} bytes")
    path.write_text(json.dumps({"settings": settings, "rows": rows}) + "\n", encoding="utf-8")
    return rows


def run(
    data: Data, keep: Path, command: str, report: Report, seeds: Sequence[int] = SEEDS, rounds: int = ROUNDS
) -> Result:
    """Climb all ladders, and time each file in `rounds`.

    `keep` is the zoo's folder: its networks are used, and what is there is not measured again.

    Raises:
        InputError: the data holds no ready-cut windows, or too few subjects.
    """
    steps = {family: [climb(data, family, seed, keep, report) for seed in seeds] for family in FAMILIES}
    conv = [measured(data, config.named("convlstm"), seed, keep, report) for seed in seeds]
    report("timing")
    split = split_of(data, seeds[0])
    window = split.normalisation.apply(split.unseen.values[:1])
    times: dict[str, list[Timing]] = {}
    for family, by_seed in steps.items():
        files = [(keep / f"ladder-{family}-seed{seeds[0]}-{i}.onnx").read_bytes() for i in range(len(by_seed[0]))]
        calls = {str(i): call_of(file, window) for i, file in enumerate(files)}
        times[family] = list(in_turn(calls, rounds).values())
    tables = [
        _paper_table(steps["lstm"], conv),
        _table("The paper's LSTM, step by step", steps["lstm"], times["lstm"]),
        _table("Our encoder and classifier, step by step", steps["ours"], times["ours"]),
        _table("Distillation", steps["distilled"], times["distilled"]),
    ]
    raw: dict[str, Any] = {"paper": PAPER, "convlstm": {"results": conv}}
    raw |= {family: {"results": steps[family], "timing": [asdict(t) for t in times[family]]} for family in steps}
    return Result("The compression ladder", command, (protocol(data, len(seeds)), *_TEXT), tables, (), raw)


def _paper_table(lstm: Sequence[Sequence[Mapping[str, Any]]], conv: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for title, accuracy, n_bytes, model, step in PAPER:
        found = conv if model == "convlstm" else [next(r for r in seed if r["step"] == step) for seed in lstm]
        worst = max(r["bytes"] for r in found)
        name = "ConvLSTM, float" if model == "convlstm" else f"LSTM, {step}"
        rows.append(
            (title, f"{accuracy:.3f}", size(n_bytes), name, spread([r["accuracy"] for r in found]), size(worst))
        )
    columns = ("the paper's", "its accuracy %", "its size", "here", "accuracy %", "file")
    return Table("The paper's table (its test split) beside ours (cross-validated)", columns, rows)


def _table(caption: str, by_seed: Sequence[Sequence[Mapping[str, Any]]], times: Sequence[Timing]) -> Table:
    rows = []
    for i, (first, time) in enumerate(zip(by_seed[0], times, strict=True)):
        found = [seed_rows[i] for seed_rows in by_seed]
        at_rest, coded, huffman = (max(r[key] for r in found) for key in ("bytes", "coded_bytes", "huffman_bytes"))
        rows.append(
            (
                first["step"], size(at_rest), size(coded), size(huffman), spread([r["accuracy"] for r in found]),
                spread([r["macro_f1"] for r in found]), f"{time.hot_us:.0f} ({time.hot_us / times[0].hot_us:.2f})",
                f"{time.cadence_us:.0f} ({time.cadence_us / times[0].cadence_us:.2f})",
            )
        )  # fmt: skip
    names = ("step", "at rest", "coded", "Huffman", "accuracy %", "macro F1 %")
    columns = (*names, "hot µs (of first)", "at cadence µs (of first)")
    return Table(caption, columns, rows)


_TEXT = (
    "Every row is a file that ONNX Runtime opens as it is. *At rest* is its size; *coded* is what LZMA of the standard "
    "library makes of it for transport; *Huffman* is what an optimal Huffman code of its bytes would take, without the "
    "table. Zeroed weights keep their place in the file: only coding saves them. Clusters are one byte a weight at "
    f"rest, with a codebook of 2^{BITS} values a tensor, recurrent weights too. Dynamic int8 is for recurrent layers; "
    "our network is quantised statically, as bundles are. After each step that changes values the network is trained "
    f"for {EPOCHS} epochs more, for {2 * EPOCHS} where units are taken away. Times are of one call on one thread, in "
    "turn with the other rows of their table; in brackets their ratio to the first row.",
    f"Teachers are the zoo's {', '.join(TEACHERS)} of the same split, whose mean probabilities the student learns "
    "beside the labels.",
)
