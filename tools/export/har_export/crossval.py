"""Subject-wise cross-validation of what is deployed: each fold's bundle, through the agent's own pipeline."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agent.adapters.bundle import load_bundle
from agent.adapters.onnx_model import OrtModel
from agent.core.manifest import Bundle
from agent.errors import ModelContractError
from har_export import bouts, evaluate, metrics
from har_export import bundle as bundles
from har_export.datasets import Source
from har_export.datasets.records import TRANSITION, Data
from har_export.datasets.split import check_split, folds_of, in_order
from har_export.evaluate import Rows
from har_export.network import BASE, Shape
from har_export.train import Settings

CUT_MARGIN = 1.2
"""Windows that a cut keeps from the ends of a bout where bouts come in another order: then no window sees both."""


@dataclass(frozen=True)
class Task:
    """One fold of one seed. `folds`: how many there are."""

    seed: int
    fold: int
    folds: int

    @property
    def name(self) -> str:
        """What its bundle is called, and the folder that it is kept in."""
        return f"seed{self.seed}-fold{self.fold}of{self.folds}"


@dataclass(frozen=True)
class Fold:
    """A fold's bundle and the people whom it has not seen."""

    seed: int
    model: OrtModel
    unseen: Data


def held_out(data: Data, task: Task) -> tuple[str, ...]:
    """Return the subjects whom the fold's model does not see."""
    return folds_of(data.subjects, task.folds, task.seed)[task.fold]


def run_fold(data: Data, task: Task, settings: Settings, members: int, folder: Path, shape: Shape = BASE) -> Bundle:
    """Train on all but the fold's subjects, quantise, and write the bundle; it is read back as the agent does."""
    training = _training(data, task)
    check_split(training, data.of(held_out(data, task)))
    built, _ = bundles.build(training, task.seed, settings, task.name, {}, members=members, shape=shape)
    bundles.write(built, folder)
    return built


def crossval(
    source: Source,
    seeds: Sequence[int],
    folds: int,
    settings: Settings,
    keep: Path,
    jobs: int,
    report: Callable[[Bundle, int, int], None],
    members: int = 1,
    shape: Shape = BASE,
) -> list[Fold]:
    """Build every fold's bundle of every seed, `jobs` at a time, and return them in order.

    Bundles are written to `keep` as soon as they are there; one that is already there, of the same data, seed,
    settings and versions, is not built again. `report` gets each with the number done and the number of all.

    Raises:
        InputError: the data cannot be used.
    """
    tasks = [Task(seed, fold, folds) for seed in seeds for fold in range(folds)]
    data = load(source, settings.rate_hz)
    for seed in seeds:
        folds_of(data.subjects, folds, seed)
    keep.mkdir(parents=True, exist_ok=True)
    done = {task: found for task in tasks if (found := _kept(keep, data, task, settings, members, shape)) is not None}
    for number, bundle in enumerate(done.values(), 1):
        report(bundle, number, len(tasks))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_one_thread) as pool:
        running = {
            pool.submit(_run_fold_of, source, task, settings, members, keep, shape): task
            for task in tasks
            if task not in done
        }
        try:
            for future in as_completed(running):
                done[running[future]] = future.result()
                report(done[running[future]], len(done), len(tasks))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return [Fold(task.seed, OrtModel(done[task]), data.of(held_out(data, task))) for task in tasks]


def _one_thread() -> None:
    # Folds run side by side: threads within one would only take turns, and change the result with their number.
    torch.set_num_threads(1)


@cache
def load(source: Source, rate_hz: float) -> Data:
    """Read the data once a process, on the grid of `rate_hz`; see `Source.load`."""
    return source.load(rate_hz)


def _run_fold_of(source: Source, task: Task, settings: Settings, members: int, keep: Path, shape: Shape) -> Bundle:
    return run_fold(load(source, settings.rate_hz), task, settings, members, keep / task.name, shape)


def _kept(keep: Path, data: Data, task: Task, settings: Settings, members: int, shape: Shape) -> Bundle | None:
    folder = keep / task.name
    if not (folder / "manifest.json").is_file():
        return None
    try:
        bundle = load_bundle(folder)
    except ModelContractError:
        # It was interrupted, or is of another time.
        return None
    same = bundles.describe_training(_training(data, task), task.seed, settings, members, shape)
    return bundle if bundle.manifest.training == same else None


def _training(data: Data, task: Task) -> Data:
    held = held_out(data, task)
    return data.of([s for s in data.subjects if s not in held])


def default_jobs() -> int:
    """Return how many folds to run at a time: one a core."""
    return max(1, len(os.sched_getaffinity(0)))


def summarise(folds: Sequence[Fold]) -> dict[str, Any]:
    """Score every fold's unseen people, and return the figures over all folds and seeds.

    Accuracy is over the windows whose truth is an activity, pooled over a seed's folds; a predicted transition is an
    error there. `mean`, `sd`, `min` are over seeds. `decided_accuracy` is that of the decided activity, with the
    context; `without_context_accuracy` that of smoothed scores; `reordered_accuracy` that of the decided activity where
    bouts come in another order. `unknown_share` is over all labelled windows. `quantisation_loss` is the float
    network's accuracy less that of its int8 files, on the calibration subjects.
    """
    first = folds[0].model.bundle.manifest
    seeds = sorted({fold.seed for fold in folds})
    held = [fold.model.bundle.manifest.metrics["held_out"] for fold in folds]
    out: dict[str, Any] = {
        "folds": len(folds) // len(seeds),
        "seeds": seeds,
        "subjects": len({s for fold in folds for s in fold.unseen.subjects}),
        "settings": first.training["settings"],
        "members": first.training["members"],
        **({"shape": first.training["shape"]} if "shape" in first.training else {}),
        "encoder_and_classifier_bytes": max(_bytes(fold, "encoder.onnx", "classifier.onnx") for fold in folds),
        "context_bytes": max(_bytes(fold, "context.onnx") for fold in folds),
        "look_back_s": first.look_back_s,
        "code_bytes": first.code.bytes,
        "quantisation_loss": float(np.mean([h["float_accuracy"] - h["accuracy"] for h in held])),
    }
    scored = [(fold, evaluate.score(fold.model, fold.unseen)) for fold in folds]
    for kind in ("streaming", "filtered"):
        by_seed = {
            seed: evaluate.stacked([getattr(s, kind) for fold, s in scored if fold.seed == seed]) for seed in seeds
        }
        if len(by_seed[seeds[0]].truth):
            out |= {f"{kind}_{key}": value for key, value in _figures(folds[0].unseen, by_seed).items()}
    if "streaming_accuracy" in out:
        out |= _in_order(scored)
    return out


def _bytes(fold: Fold, *names: str) -> int:
    files = fold.model.bundle.manifest.files
    return sum(files[name].bytes for name in names if name in files)


def _figures(data: Data, by_seed: Mapping[int, Rows]) -> dict[str, Any]:
    """Return the figures of one kind of window. `data`: whose labels the rows' are."""
    activity = {seed: rows.of(data.is_activity(rows.truth)) for seed, rows in by_seed.items()}
    labelled = {seed: rows.of(rows.truth >= 0) for seed, rows in by_seed.items()}
    everything = evaluate.stacked(list(labelled.values()))
    table = metrics.confusion(everything.truth, everything.predicted, len(data.labels))
    classes = dict(zip(data.labels, metrics.by_class(table), strict=True))
    pooled = evaluate.stacked(list(activity.values()))
    subjects = {s: _right(pooled.of(pooled.subject == s)) for s in in_order(sorted(set(pooled.subject.tolist())))}
    worst = min(subjects, key=lambda s: subjects[s])
    out: dict[str, Any] = {
        "windows": len(activity[min(activity)].truth),
        "accuracy": _over_seeds([_right(rows) for rows in activity.values()]),
        "macro_f1": _over_seeds([_macro_f1(data, rows) for rows in labelled.values()]),
        "worst_subject": {"subject": worst, "accuracy": subjects[worst]},
        "subjects": subjects,
        "classes": {name: c._asdict() for name, c in classes.items() if c.support},
        "confusion": table.tolist(),
        "ece": _over_seeds([_ece(rows) for rows in labelled.values()]),
        "unknown_share": _over_seeds([float((~rows.known).mean()) for rows in labelled.values()]),
    }
    if TRANSITION in data.labels and (everything.truth == data.labels.index(TRANSITION)).any():
        which = {seed: rows.of(~data.is_activity(rows.truth)) for seed, rows in labelled.items()}
        out["transition_recall"] = _over_seeds([_right(rows) for rows in which.values()])
    return out


def _in_order(scored: Sequence[tuple[Fold, evaluate.Scored]]) -> dict[str, Any]:
    """Return the figures of what is decided, which depends on the order of windows."""
    plain, reordered = [], []
    off: dict[int, list[float]] = {}
    delays, missed, count = [], 0, 0
    for fold, found in scored:
        without = OrtModel(_without_context(fold.model.bundle))
        plain.append((fold.seed, evaluate.score(without, fold.unseen).streaming))
        margin_s = CUT_MARGIN * fold.model.bundle.manifest.input.window / fold.model.bundle.manifest.input.rate_hz
        shuffled = bouts.reordered(fold.unseen, margin_s, fold.seed)
        reordered.append((fold.seed, evaluate.score(fold.model, shuffled).streaming))
        value = evaluate.sensor_off_auroc(fold.model, found.streaming)
        if value is not None:
            off.setdefault(fold.seed, []).append(value)
        onsets = evaluate.onsets_of(fold.model.bundle.manifest, fold.unseen, found.streaming)
        delays += onsets["delays_s"]
        missed += onsets["missed"]
        count += onsets["count"]
    rows = [(fold.seed, found.streaming) for fold, found in scored]
    data = scored[0][0].unseen
    out: dict[str, Any] = {
        "decided_accuracy": _over_seeds(list(_decided(data, rows))),
        "without_context_accuracy": _over_seeds(list(_decided(data, plain))),
        "onsets": {"count": count, "missed": missed, **metrics.delay_quantiles(delays)},
    }
    if off:
        out["sensor_off_auroc"] = _over_seeds([float(np.mean(values)) for values in off.values()])
    # Bouts may be too short to be cut.
    if all(len(rows.truth) for _, rows in reordered):
        out["reordered_accuracy"] = _over_seeds(list(_decided(data, reordered)))
    return out


def _without_context(bundle: Bundle) -> Bundle:
    contents = {name: data for name, data in bundle.contents.items() if name != "context.onnx"}
    return bundle._replace(manifest=bundle.manifest._replace(context=None), contents=contents)


def _decided(data: Data, rows: Sequence[tuple[int, Rows]]) -> Iterator[float]:
    for seed in sorted({seed for seed, _ in rows}):
        mine = evaluate.stacked([r for s, r in rows if s == seed])
        mine = mine.of(data.is_activity(mine.truth))
        yield float((mine.truth == mine.decided).mean())


def _right(rows: Rows) -> float:
    return float((rows.truth == rows.predicted).mean()) if len(rows.truth) else float("nan")


def _macro_f1(data: Data, rows: Rows) -> float:
    table = metrics.by_class(metrics.confusion(rows.truth, rows.predicted, len(data.labels)))
    figures = [c for name, c in zip(data.labels, table, strict=True) if name != TRANSITION]
    return metrics.macro_f1(figures) or 0.0


def _ece(rows: Rows) -> float:
    bins = metrics.reliability(rows.probabilities.max(axis=1), rows.truth == rows.predicted)
    return metrics.expected_calibration_error(bins) or 0.0


def _over_seeds(values: Sequence[float]) -> dict[str, Any]:
    return {
        "mean": float(np.mean(values)),
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
        "min": float(np.min(values)),
        "by_seed": list(values),
    }
