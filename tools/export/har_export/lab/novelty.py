"""Novelty of an activity that a model was never shown: each is left out of training once."""

from collections.abc import Callable
from typing import Any

from agent.adapters.onnx_model import OrtModel
from har_export import bundle as bundles
from har_export import evaluate
from har_export.calibrate import UNCALIBRATED
from har_export.datasets.records import TRANSITION, Data
from har_export.datasets.split import folds_of, leave_out
from har_export.lab.result import Result, Table
from har_export.train import Settings

FOLDS = 5
SETTINGS = Settings(epochs=12)
"""Half of what a bundle is trained for: enough to tell activities apart, and there are six trainings."""


def run(data: Data, command: str, report: Callable[[str], None], settings: Settings = SETTINGS) -> Result:
    """Leave each activity out of a model; score people whom it has not seen doing all of them.

    `command` is what the result file quotes.
    """
    rows, raw = [], {}
    for seed, label in enumerate(name for name in data.labels if name != TRANSITION):
        report(f"without {label}")
        held = folds_of(data.subjects, FOLDS, seed)[seed % FOLDS]
        training = leave_out(data.of([s for s in data.subjects if s not in held]), label, settings.window)
        parts = bundles.fit(training, seed, settings)
        bundle = bundles.assemble(parts, training.labels, settings, UNCALIBRATED, None, f"without-{label}", {}, {})
        found = evaluate.run(OrtModel(bundle), data.of(held), "unseen people", novel=[label])["streaming"]
        groups: dict[str, dict[str, Any]] = {group["name"]: group for group in found["novelty"]["groups"]}
        off = groups[evaluate.SENSOR_OFF]["auroc"]
        auroc = groups[label]["auroc"]
        raw[label] = {"auroc": auroc, "sensor_off_auroc": off, "accuracy": found["accuracy"], "unseen": list(held)}
        rows.append([label, f"{auroc:.3f}", f"{off:.3f}", f"{100 * found['accuracy']:.1f}"])
    return Result(
        "Novelty of what was never shown",
        command,
        [
            f"Models of {settings.epochs} epochs, each trained without any sample of one activity, on windows of "
            "people whom it has not seen. AUROC is the chance that a window of the activity that was left out has a "
            "higher novelty than one of an activity that was not; 0.5 is none. A sensor that is taken off is made up: "
            "gravity in any direction, and the noise of the stillest windows in the data.",
        ],
        [
            Table(
                "Novelty", ["left out", "AUROC, left out", "AUROC, sensor taken off", "accuracy on the others, %"], rows
            )
        ],
        [],
        raw,
    )
