"""Subject-wise cross-validation of what is deployed: each fold's bundle, through the agent's own pipeline."""

import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agent.adapters.bundle import load_bundle
from agent.adapters.onnx_model import OrtModel
from agent.errors import InputError
from agent.pipeline import Pipeline, score_windows
from agent.records import Int64Array, Prediction, SampleBatch
from har_export import bundle as bundles
from har_export.datasets import Data, load
from har_export.datasets.records import ACTIVITIES, LABELS, TRANSITION, UNLABELLED, Recording
from har_export.network import WINDOW
from har_export.train import Settings


@dataclass(frozen=True)
class Task:
    """One fold of one seed. `folds`: how many there are."""

    seed: int
    fold: int
    folds: int


@dataclass(frozen=True)
class Scored:
    """Windows of unseen subjects. `truth`, `predicted`: indices of `LABELS`; `unknown`: above the novelty threshold."""

    subject: Int64Array
    truth: Int64Array
    predicted: Int64Array
    unknown: Int64Array


def folds_of(subjects: Sequence[int], folds: int, seed: int) -> list[tuple[int, ...]]:
    """Deal the subjects out to `folds` folds, in another order for every seed.

    Raises:
        InputError: fewer subjects than folds.
    """
    if not 2 <= folds <= len(subjects):
        raise InputError(f"{len(subjects)} subjects cannot be dealt out to {folds} folds")
    order = np.random.default_rng([seed, 0]).permutation(sorted(subjects))
    return [tuple(sorted(int(s) for s in order[i::folds])) for i in range(folds)]


def score_recordings(model: OrtModel, recordings: Iterable[Recording]) -> Scored:
    """Stream recordings through the agent's pipeline and keep the windows whose middle sample is labelled."""
    manifest = model.bundle.manifest
    rows = []
    for recording in recordings:
        period = round(1e9 / recording.rate_hz)
        t_ns = np.arange(len(recording.values), dtype=np.int64) * period
        batch = SampleBatch(f"experiment-{recording.experiment}", t_ns, recording.values, 0)
        for event in Pipeline(model, manifest).feed([batch]):
            if not isinstance(event, Prediction):
                continue
            truth = recording.label[event.t0_ns // period + WINDOW // 2]
            if truth != UNLABELLED:
                rows.append((recording.subject, truth, LABELS.index(event.label), not event.known))
    return Scored(*np.array(rows, np.int64).reshape(-1, 4).T)


def score_filtered(model: OrtModel, data: Data) -> Scored:
    """Score the publisher's ready-cut windows."""
    windows, manifest = data.windows, model.bundle.manifest
    if len(windows.label) == 0:
        return Scored(*np.empty((4, 0), np.int64))
    probabilities, novelty = score_windows(model, manifest, windows.values)
    unknown = (novelty > manifest.calibration.novelty_threshold).astype(np.int64)
    return Scored(windows.subject, windows.label, probabilities.argmax(axis=1), unknown)


def run_fold(data: Data, task: Task, settings: Settings) -> dict[str, Any]:
    """Train, quantise and write one fold's bundle, read it back as the agent does, and score the fold's subjects."""
    held = folds_of(data.subjects, task.folds, task.seed)[task.fold]
    training = data.of([s for s in data.subjects if s not in held])
    with tempfile.TemporaryDirectory() as folder:
        built = bundles.build(training, task.seed, settings, "har-fold", {})
        bundles.write(built, Path(folder))
        model = OrtModel(load_bundle(Path(folder)))
        unseen = data.of(held)
        streaming = score_recordings(model, unseen.recordings)
        filtered = score_filtered(model, unseen)
    sizes = {name: entry.bytes for name, entry in built.manifest.files.items() if name.endswith(".onnx")}
    return {
        "task": asdict(task),
        "settings": asdict(settings),
        "subjects": list(held),
        "sizes": sizes,
        "code_bytes": built.manifest.code.bytes,
        "calibration": built.manifest.calibration._asdict(),
        "held_out": built.manifest.metrics["held_out"],
        "streaming": {k: v.tolist() for k, v in asdict(streaming).items()},
        "filtered": {k: v.tolist() for k, v in asdict(filtered).items()},
    }


def crossval(
    path: Path,
    seeds: Sequence[int],
    folds: int,
    settings: Settings,
    keep: Path,
    jobs: int,
    report: Callable[[dict[str, Any], int, int], None],
) -> list[dict[str, Any]]:
    """Run every fold of every seed, `jobs` at a time, and return their results in order.

    A result is written to `keep` as soon as it is there; one that is already there with the same settings is not
    computed again. `report` gets each result with the number done and the number of all.

    Raises:
        InputError: the data cannot be used.
    """
    tasks = [Task(seed, fold, folds) for seed in seeds for fold in range(folds)]
    for seed in seeds:
        folds_of(load(path).subjects, folds, seed)
    keep.mkdir(parents=True, exist_ok=True)
    results = {task: found for task in tasks if (found := _kept(keep, task, settings)) is not None}
    for done, result in enumerate(results.values(), 1):
        report(result, done, len(tasks))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_one_thread) as pool:
        missing = [task for task in tasks if task not in results]
        running = {pool.submit(_run_fold_of, path, task, settings): task for task in missing}
        try:
            for future in as_completed(running):
                task, result = running[future], future.result()
                _file(keep, task).write_text(json.dumps(result) + "\n", encoding="utf-8")
                results[task] = result
                report(result, len(results), len(tasks))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return [results[task] for task in tasks]


def _one_thread() -> None:
    # Folds run side by side: threads within one would only take turns, and change the result with their number.
    torch.set_num_threads(1)


@cache
def _data(path: Path) -> Data:
    return load(path)


def _run_fold_of(path: Path, task: Task, settings: Settings) -> dict[str, Any]:
    return run_fold(_data(path), task, settings)


def _file(keep: Path, task: Task) -> Path:
    return keep / f"seed{task.seed}-fold{task.fold}.json"


def _kept(keep: Path, task: Task, settings: Settings) -> dict[str, Any] | None:
    path = _file(keep, task)
    if not path.is_file():
        return None
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    same = result["task"] == asdict(task) and result["settings"] == asdict(settings)
    return result if same else None


def default_jobs() -> int:
    """Return how many folds to run at a time: one a core."""
    return max(1, len(os.sched_getaffinity(0)))


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the figures of all folds and seeds.

    Accuracy is over the windows whose truth is one of the six activities, pooled over a seed's folds; a predicted
    transition is an error there. `mean`, `sd`, `min` are over seeds. `unknown_share` is over all labelled windows.
    `quantisation_loss` is the float network's accuracy less that of its int8 files, on the calibration subjects.
    """
    seeds = sorted({r["task"]["seed"] for r in results})
    out: dict[str, Any] = {
        "folds": results[0]["task"]["folds"],
        "seeds": seeds,
        "settings": results[0]["settings"],
        "encoder_and_classifier_bytes": max(
            r["sizes"]["encoder.onnx"] + r["sizes"]["classifier.onnx"] for r in results
        ),
        "code_bytes": max(r["code_bytes"] for r in results),
        "quantisation_loss": float(
            np.mean([r["held_out"]["float_accuracy"] - r["held_out"]["accuracy"] for r in results])
        ),
    }
    for kind in ("streaming", "filtered"):
        by_seed = {seed: _pool(r[kind] for r in results if r["task"]["seed"] == seed) for seed in seeds}
        everything = _pool(r[kind] for r in results)
        if len(everything.truth) == 0:
            continue
        out[f"{kind}_windows"] = int((by_seed[seeds[0]].truth < ACTIVITIES).sum())
        out[f"{kind}_accuracy"] = _over_seeds([_accuracy(s, s.truth < ACTIVITIES) for s in by_seed.values()])
        out[f"{kind}_worst_subject"], out[f"{kind}_subjects"] = _by_subject(everything)
        out[f"{kind}_classes"] = _by_class(everything)
        out[f"{kind}_confusion"] = _confusion(everything).tolist()
        if kind == "streaming":
            if (everything.truth == TRANSITION).any():
                recall = [_accuracy(s, s.truth == TRANSITION) for s in by_seed.values()]
                out["transition_recall"] = _over_seeds(recall)
            out["unknown_share"] = _over_seeds([float(s.unknown.mean()) for s in by_seed.values()])
    return out


def _pool(parts: Iterable[Mapping[str, Sequence[int]]]) -> Scored:
    columns: dict[str, list[int]] = {"subject": [], "truth": [], "predicted": [], "unknown": []}
    for part in parts:
        for name, column in columns.items():
            column.extend(part[name])
    return Scored(**{name: np.array(column, np.int64) for name, column in columns.items()})


def _accuracy(scored: Scored, which: np.ndarray) -> float:
    return float((scored.truth == scored.predicted)[which].mean()) if which.any() else float("nan")


def _over_seeds(values: Sequence[float]) -> dict[str, Any]:
    return {
        "mean": float(np.mean(values)),
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
        "min": float(np.min(values)),
        "by_seed": list(values),
    }


def _by_subject(scored: Scored) -> tuple[dict[str, Any], dict[str, float]]:
    accuracy = {
        str(subject): _accuracy(scored, (scored.subject == subject) & (scored.truth < ACTIVITIES))
        for subject in np.unique(scored.subject)
    }
    worst = min(accuracy, key=lambda subject: accuracy[subject])
    return {"subject": int(worst), "accuracy": accuracy[worst]}, accuracy


def _confusion(scored: Scored) -> Int64Array:
    table = np.zeros((len(LABELS), len(LABELS)), np.int64)
    np.add.at(table, (scored.truth, scored.predicted), 1)
    return table


def _by_class(scored: Scored) -> dict[str, dict[str, float]]:
    table = _confusion(scored)
    classes = {}
    for i, label in enumerate(LABELS):
        if table[i].sum() == 0:
            continue
        precision = table[i, i] / max(table[:, i].sum(), 1)
        recall = table[i, i] / table[i].sum()
        f1 = 2 * precision * recall / max(precision + recall, 1e-12)
        classes[label] = {"precision": float(precision), "recall": float(recall), "f1": float(f1)}
    return classes
