"""From a seed and data to a model bundle: train, quantise, calibrate, prove, write."""

import io
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import har_export
from agent.adapters.bundle import SIGNATURE, load_bundle
from agent.adapters.onnx_model import OrtModel
from agent.core.manifest import Bundle, Calibration, Code, FileEntry, Input, Manifest, dump, sha256
from agent.core.normalise import Normalisation
from agent.errors import InputError
from agent.records import Float32Array
from har_export import card
from har_export.calibrate import UNCALIBRATED, accuracy, all_windows, calibrate, hold_out
from har_export.datasets import Data
from har_export.datasets.records import LABELS, UNLABELLED
from har_export.golden import golden_windows
from har_export.network import CODE_SIZE, Network
from har_export.quantise import Graphs, quantise
from har_export.train import Progress, Settings, label_counts, train

RANGE_WINDOWS = 4096
"""Windows that activation ranges are observed on."""


@dataclass(frozen=True)
class Parts:
    """A trained network and its int8 graphs."""

    network: Network
    graphs: Graphs
    normalisation: Normalisation


def build(
    data: Data,
    seed: int,
    settings: Settings,
    name: str,
    metrics: Mapping[str, Any],
    report: Callable[[str, Progress], None] | None = None,
) -> Bundle:
    """Train on all of `data` and return the finished bundle, its golden vectors verified.

    Calibration must not see the subjects that a model was trained on, and the model should be trained on all
    there are. So the same training runs twice: first without a fifth of the subjects, who then calibrate it, and
    again with everyone. The second model takes the first one's calibration, which errs on the careful side.
    `metrics` are put in the manifest and the card beside what is measured here.

    Raises:
        InputError: fewer than two subjects.
    """
    if len(data.subjects) < 2:
        raise InputError("training needs at least two subjects: one of them is held out for calibration")

    def reporter(stage: str) -> Callable[[Progress], None] | None:
        return None if report is None else lambda progress: report(stage, progress)

    held_out = hold_out(data.subjects, seed)
    others = [s for s in data.subjects if s not in held_out]
    probe = _fit(data.of(others), seed, settings, reporter("calibration"))
    probe_model = OrtModel(_assemble(probe, UNCALIBRATED, name, {}, {}))
    calibration, measured = calibrate(probe_model, probe.normalisation, data.of(held_out))
    measured["float_accuracy"] = accuracy(probe.network, probe.normalisation, data.of(held_out))
    parts = _fit(data, seed, settings, reporter("model"))
    training = describe_training(data, seed, settings, held_out)
    return _assemble(parts, calibration, name, training, {**metrics, "held_out": measured})


def _fit(data: Data, seed: int, settings: Settings, report: Callable[[Progress], None] | None) -> Parts:
    network, normalisation = train(data, seed, settings, report)
    return Parts(network, quantise(network, range_windows(data, normalisation, seed)), normalisation)


def range_windows(data: Data, normalisation: Normalisation, seed: int) -> Float32Array:
    """Return up to `RANGE_WINDOWS` normalised windows of `data`, float32 (n, 128, 6), drawn at random."""
    values, _ = all_windows(data)
    chosen = np.random.default_rng([seed, 2]).permutation(len(values))[:RANGE_WINDOWS]
    return normalisation.apply(values[chosen])


def describe_training(data: Data, seed: int, settings: Settings, held_out: tuple[int, ...]) -> dict[str, Any]:
    """Return the manifest's `training` entry: data, citations, settings and versions."""
    _, label = all_windows(Data(data.recordings, data.windows.of([])))
    return {
        "data": [
            {**card.HAPT, "recordings": len(data.recordings), "windows": label_counts(label),
             "unlabelled": int((label == UNLABELLED).sum())},
            {**card.UCI_HAR, "windows": label_counts(data.windows.label)},
        ],
        "subjects": list(data.subjects),
        "calibration_subjects": list(held_out),
        "seed": seed,
        "settings": asdict(settings),
        "har_export": har_export.__version__,
        "torch": torch.__version__,
    }  # fmt: skip


def _assemble(
    parts: Parts,
    calibration: Calibration,
    name: str,
    training: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> Bundle:
    """Put a bundle together in memory. The golden outputs are what its own graphs give on this machine."""
    graphs = parts.graphs
    contents = {
        "encoder.onnx": graphs.encoder,
        "classifier.onnx": graphs.classifier,
        "decoder.onnx": graphs.decoder,
    }

    def seal(files: Mapping[str, bytes]) -> Bundle:
        manifest = Manifest(
            name=name,
            version=har_export.__version__,
            created=created(),
            labels=LABELS,
            input=Input(),
            normalisation=parts.normalisation,
            code=Code((CODE_SIZE,), "int8", CODE_SIZE),
            calibration=calibration,
            files={file: FileEntry(sha256(data), len(data)) for file, data in files.items()},
            training=training,
            metrics=metrics,
        )
        return Bundle(manifest, sha256(dump(manifest)), files)

    contents["golden.npz"] = golden(OrtModel(seal(contents)), parts.normalisation)
    contents["CARD.md"] = card.render(seal(contents).manifest).encode()
    return seal(contents)


def golden(model: OrtModel, normalisation: Normalisation) -> bytes:
    """Return golden.npz: synthetic windows (g, rad/s), and the code, logits and novelty that `model` gives."""
    window = golden_windows()
    scores = model.infer(normalisation.apply(window))
    packed = io.BytesIO()
    np.savez_compressed(packed, window=window, code=scores.code, logits=scores.logits, novelty=scores.novelty)
    return packed.getvalue()


def created() -> str:
    """Return the time of building, ISO 8601 UTC. SOURCE_DATE_EPOCH sets it, so that a build can be repeated."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    moment = datetime.now(UTC) if epoch is None else datetime.fromtimestamp(int(epoch), UTC)
    return moment.isoformat(timespec="seconds")


def write(bundle: Bundle, folder: Path) -> None:
    """Write a bundle's folder, the manifest last, and read it back through the agent's own loader.

    Raises:
        ModelContractError: the agent would refuse it.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # A signature that lies there is that of another manifest.
    (folder / SIGNATURE).unlink(missing_ok=True)
    for name, data in bundle.contents.items():
        (folder / name).write_bytes(data)
    (folder / "manifest.json").write_bytes(dump(bundle.manifest))
    load_bundle(folder)
