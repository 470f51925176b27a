"""The zoo, measured: every model trained and scored on people it has not seen, as the file that is deployed."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from agent.adapters.onnx_model import open_session
from agent.core.normalise import Normalisation
from agent.errors import InputError
from agent.records import Float32Array, Int64Array
from har_export import metrics
from har_export.datasets.records import Data, Windows
from har_export.datasets.split import folds_of
from har_export.lab.result import Result, Table, spread
from har_export.lab.timing import in_turn
from har_export.lab.zoo import classical, config, modules, training
from har_export.lab.zoo.config import Config
from har_export.lab.zoo.features import hand_features
from har_export.train import Progress, fit_normalisation

FOLDS = 5
SEEDS = (0, 1, 2, 3, 4)
ROUNDS = 40
"""Of timing."""

Report = Callable[[str], None]


class Split(NamedTuple):
    """One training of five. `unseen`: windows of the people who were held out."""

    training: Data
    unseen: Windows
    normalisation: Normalisation


def split_of(data: Data, seed: int) -> Split:
    """Hold out fold `seed` of the folds that `seed` deals; only ready-cut windows take part.

    Raises:
        InputError: there are no such windows, or fewer subjects than folds.
    """
    windows = Data((), data.windows, data.labels)
    if len(windows.windows.label) == 0:
        raise InputError("the zoo is compared on UCI HAR's windows, and the data holds none")
    held = folds_of(windows.subjects, FOLDS, seed)[seed % FOLDS]
    training_data = windows.of([s for s in windows.subjects if s not in held])
    return Split(training_data, windows.windows.of(held), fit_normalisation(training_data))


def trained(split: Split, model: Config, seed: int, keep: Path, report: Report) -> modules.Classifier:
    """Return the network of `model`, trained on the split, or as it was kept in `keep` by an earlier call."""
    classes = len(split.training.labels)
    torch.manual_seed(seed)
    network = modules.build(model.kind, classes, model.network)
    path, key = (
        keep / f"{model.name}-seed{seed}.pt",
        json.dumps([asdict(model), [w.shape for w in network.parameters()]]),
    )
    if path.is_file() and (kept := torch.load(path, weights_only=True))["config"] == key:
        network.load_state_dict(kept["state"])
        return network.eval()

    def show(progress: Progress) -> None:
        report(f"{model.name}, seed {seed}: epoch {progress.epoch}/{progress.epochs}, {progress.left_s:.0f} s left")

    training.fit(network, split.training, split.normalisation, seed, model.training, report=show)
    keep.mkdir(parents=True, exist_ok=True)
    torch.save({"config": key, "state": network.state_dict()}, path)
    return network


def inputs_of(split: Split, model: Config) -> Float32Array:
    """Return what `model` takes for each unseen window."""
    values = split.unseen.values
    return hand_features(values) if model.kind in classical.KINDS else split.normalisation.apply(values)


def measured(data: Data, model: Config, seed: int, keep: Path, report: Report) -> dict[str, Any]:
    """Train, deploy and score one model of the zoo for one seed, or return what was kept of that."""
    path = keep / f"{model.name}-seed{seed}.json"
    if (found := kept(path, model)) is not None:
        return found
    split = split_of(data, seed)
    classes = len(split.training.labels)
    if model.kind in classical.KINDS:
        seen = split.training.windows
        file = classical.KINDS[model.kind](hand_features(seen.values), seen.label, classes, seed, **model.network)
    else:
        file = modules.to_onnx(trained(split, model, seed, keep, report), classes)
    result = {"config": asdict(model), "seed": seed, "bytes": len(file), "parameters": parameters(file)}
    result |= score(file, inputs_of(split, model), split.unseen.label)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".onnx").write_bytes(file)
    path.write_text(json.dumps(result) + "\n", encoding="utf-8")
    report(f"{model.name}, seed {seed}: {result['accuracy']:.2%}")
    return result


def kept(path: Path, model: Config) -> dict[str, Any] | None:
    """Return the result in `path` if it is there and was measured with this config; the data is not looked at."""
    if not path.is_file():
        return None
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result if result["config"] == json.loads(json.dumps(asdict(model))) else None


def score(file: bytes, inputs: Float32Array, label: Int64Array) -> dict[str, float]:
    """Score the deployed file, one window a call as on a board: accuracy, and F1 averaged over the classes."""
    session = open_session("a file of the zoo", file)
    name = session.get_inputs()[0].name
    predicted = np.array([session.run(["logits"], {name: inputs[i : i + 1]})[0].argmax() for i in range(len(inputs))])
    classes = int(max(predicted.max(), label.max())) + 1
    macro_f1 = metrics.macro_f1(metrics.by_class(metrics.confusion(label, predicted, classes)))
    return {"accuracy": float((predicted == label).mean()), "macro_f1": macro_f1 or 0.0}


def parameters(file: bytes) -> int:
    """Return how many numbers the file holds: weights, or the nodes and leaves of trees."""
    graph = onnx.load_from_string(file).graph
    trees = [
        a for node in graph.node if node.domain for a in node.attribute if a.name in {"nodes_values", "class_weights"}
    ]
    constants = [numpy_helper.to_array(tensor) for tensor in graph.initializer]
    return sum(c.size for c in constants if c.dtype != np.int64) + sum(len(a.floats) for a in trees)


def call_of(file: bytes, window: Float32Array) -> Callable[[], object]:
    """Return a call that scores one window: a normalised one, or a raw one that hand features are made of first."""
    session = open_session("a file of the zoo", file)
    if session.get_inputs()[0].name == "features":
        return lambda: session.run(None, {"features": hand_features(window)})
    return partial(session.run, None, {"window": window})


def run(
    data: Data,
    keep: Path,
    command: str,
    report: Report,
    seeds: Sequence[int] = SEEDS,
    names: Sequence[str] = (),
    rounds: int = ROUNDS,
) -> Result:
    """Measure the zoo, or those of it that `names` tells, and time each in `rounds`.

    What is in `keep` is not measured again; `command` is what the result file quotes.

    Raises:
        InputError: the data holds no ready-cut windows, or too few subjects.
    """
    models = [config.named(name) for name in names or config.names()]
    results = {m.name: [measured(data, m, seed, keep, report) for seed in seeds] for m in models}
    window = split_of(data, seeds[0]).unseen.values[:1]
    files = {m.name: (keep / f"{m.name}-seed{seeds[0]}.onnx").read_bytes() for m in models}
    report("timing")
    times = in_turn({name: call_of(file, window) for name, file in files.items()}, rounds)
    models.sort(key=lambda m: -float(np.mean([r["accuracy"] for r in results[m.name]])))
    rows = []
    for m in models:
        found, time = results[m.name], times[m.name]
        rows.append(
            (
                m.title, size(max(r["bytes"] for r in found)), f"{found[0]['parameters']:,}",
                spread([r["accuracy"] for r in found]), spread([r["macro_f1"] for r in found]),
                f"{time.hot_us:.0f}", f"{time.cadence_us:.0f}",
            )
        )  # fmt: skip
    columns = ("model", "file", "parameters", "accuracy %", "macro F1 %", "hot µs", "at cadence µs")
    text = (protocol(data, len(seeds)), _TEXT)
    raw = {name: {"results": found, "timing": asdict(times[name])} for name, found in results.items()}
    return Result("The model zoo", command, text, [Table("UCI HAR windows, float files", columns, rows)], (), raw)


def protocol(data: Data, trainings: int) -> str:
    """Return the paragraph that says how accuracy was measured."""
    people = len(set(data.windows.subject.tolist()))
    return (
        f"Subject-wise: {trainings} trainings; number s holds out fold s of the {FOLDS} that seed s deals the {people} "
        "subjects of UCI HAR's training set to. Mean and standard deviation over the trainings. What is scored is the "
        "ONNX file through ONNX Runtime, one window a call. The publishers' nine test subjects are never used. Papers "
        "quote accuracy on those nine, so their figures and these are of different people."
    )


_TEXT = (
    "All networks are trained on the same windows by the same loop with the same augmentation: rotation of the sensor, "
    "noise, gain. The LSTM sees frames of 8 samples in 16 steps, the ConvLSTM the window in 4 parts; both see beside "
    "each channel its clipped change over 0.16 s, in the place of the body acceleration that UCI HAR publishes: a "
    "filter of whole recordings makes that, which no board has. Times are of one call on one thread, in turn with the "
    "others: back to back in CPU time, and after a pause by the wall clock; those of the baselines include their hand "
    "features, in numpy. Parameters are the numbers that the file holds. Our network is trained here on these windows "
    "alone; bundles also learn from raw recordings."
)


def size(n: int) -> str:
    """Return bytes as people write them: 69.1 KB, 1.49 MB."""
    return f"{n / 1e6:.2f} MB" if n >= 1e6 else f"{n / 1e3:.1f} KB"
