"""What early exits cost in accuracy and save in time: each by itself, with its threshold, and under a deadline."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agent.adapters.onnx_model import OrtModel
from agent.adapters.onnx_parts import Parts
from agent.core.decision import calibrated
from agent.core.manifest import WINDOW, Bundle
from agent.records import Float32Array, Float64Array, Scores
from har_export import metrics
from har_export.calibrate import BATCH, all_windows
from har_export.datasets.records import Data, no_windows
from har_export.evaluate import at_rest, noise_of
from har_export.exits import MARGIN, TOLERANCE
from har_export.golden import golden_windows
from har_export.lab.result import Result, Table, spread
from har_export.lab.timing import Timing, in_turn
from har_export.metrics import BoolArray

END = "end"
DEADLINES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""In times of the whole network."""

CONFIDENCES = (0.7, 0.8, 0.9, 0.95, 0.99)
"""Thresholds for every exit, to compare those of the bundle with."""

OWN = "as calibrated"
ROUNDS = 200

KINDS = ("hot_us", "cadence_us")

Shares = Mapping[str, Mapping[str, float]]
Folds = Sequence[Sequence[tuple[OrtModel, Data]]]


@dataclass(frozen=True)
class Branch:
    """One exit, or the end, on windows of activities (n,) of people whom the network has not seen.

    `right`: whether the label is; `sure`: calibrated confidence; `known`: whether the novelty says so. `published`:
    whether the labels of ready-cut windows (m,) are right. `confidence`: the bundle's threshold, 0 at the end.
    `off_auroc`: how well novelty tells a sensor that was taken off.
    """

    right: BoolArray
    sure: Float64Array
    known: BoolArray
    published: BoolArray
    confidence: float
    off_auroc: float


def run(seeds: Folds, command: str, report: Callable[[str], None], rounds: int = ROUNDS) -> Result:
    """Score the exits of a cross-validation's models on unseen people, and time those of the first, so often.

    `seeds`: for each, the folds' models and unseen data. `command` is what the result file quotes.
    """
    found: list[list[dict[str, Branch]]] = []
    for seed, folds in enumerate(seeds):
        found.append([])
        for fold, (model, data) in enumerate(folds):
            report(f"seed {seed}, fold {fold}")
            found[-1].append(branches(model.bundle, data))
    names = list(found[0][0])
    timed = times(seeds[0][0][0].bundle, rounds)
    accuracy = {name: [_pooled(folds, name, "right") for folds in found] for name in names}
    alone = [
        [
            name,
            spread(accuracy[name]),
            spread([_pooled(folds, name, "published") for folds in found]),
            spread([1 - _pooled(folds, name, "known") for folds in found]),
            spread([float(np.mean([b[name].off_auroc for b in folds])) for folds in found]),
            *(_ratio(getattr(timed[name], kind), getattr(timed[END], kind)) for kind in KINDS),
        ]
        for name in names
    ]
    stopping = {
        way: [_stopped(folds, confidence) for folds in found]
        for way, confidence in [(OWN, None), *((f"{c:g}", c) for c in CONFIDENCES)]
    }
    early = [_early(way, shares, names, timed) for way, shares in stopping.items()]
    first = [_first_only(way, shares, names[0], timed) for way, shares in stopping.items()]
    manifest = seeds[0][0][0].bundle.manifest
    raw: dict[str, Any] = {
        "accuracy": accuracy,
        "us": {name: vars(timing) for name, timing in timed.items()},
        "stopping": stopping,
        "confidence": {
            name: [[folds[name].confidence for folds in seed] for seed in found] for name in names if name != END
        },
        "tolerance": TOLERANCE,
        "margin": MARGIN,
        "shape": manifest.training["shape"],
        "epochs": manifest.training["settings"]["epochs"],
        "bytes": {name: entry.bytes for name, entry in manifest.files.items() if name.endswith(".onnx")},
    }
    channels = " ".join(str(n) for n in manifest.training["shape"]["channels"])
    return Result(
        "Early exits",
        command,
        [
            f"One network with strided convolutions of {channels} channels, an exit behind each but the last, all "
            "trained together (BranchyNet). Int8 files, single windows of people whom no part of it has seen; "
            "there is no context. Times are of one call on one thread, in turn with the others: back to back in CPU "
            "time, and after a pause by the wall clock; in brackets their ratio to the end. *Unknown* are windows of "
            "activities that are called so; the column after it says how well novelty tells a sensor at rest.",
            "With thresholds a window stops at the first exit that is sure enough of it. The thresholds in the bundle "
            f"leave {MARGIN} times less doubt than the least at which, of every calibration subject of the fold, the "
            f"windows that stop are right at most {TOLERANCE:.1%} less often than at the end. *In stages*, nothing is "
            "computed twice, but each convolution and each head is a call of its own. *In one call*, the first exit is "
            "the only one, and all of the network runs for the windows that it is not sure of.",
            "The widths, the weight of the exits' loss and the margin were chosen with folds of this cross-validation, "
            "the margin with all of them: what is said of the thresholds is on the favourable side.",
            "Under a deadline, after Edgent, the last exit is taken that is in time.",
        ],
        [
            Table(
                "Each exit by itself, accuracy in per cent, mean ± standard deviation over seeds",
                ["exit", "recordings", "as published", "unknown", "sensor off, AUROC", "hot µs", "at cadence µs"],
                alone,
            ),
            Table(
                "In stages: windows of recordings in per cent, and the mean time of one",
                [
                    "confidence",
                    *(f"stop at {name}" for name in names),
                    "right of those that stop early (at the end)",
                    "right of all",
                    "hot µs",
                    "at cadence µs",
                ],
                early,
            ),
            Table(
                f"In one call to {names[0]}, all anew for the others",
                ["confidence", f"stop at {names[0]}", "right of all", "hot µs", "at cadence µs"],
                first,
            ),
            Table(
                "The last exit in time, and its accuracy in per cent, by deadline in times of the whole network",
                ["deadline", "hot µs", "exit", "accuracy", "at cadence µs", "exit", "accuracy"],
                [deadline(share, accuracy, timed) for share in DEADLINES],
            ),
        ],
        [],
        raw,
    )


def branches(bundle: Bundle, data: Data) -> dict[str, Branch]:
    """Return the exits of a bundle, the earliest first, and its end, on windows of people whom it has not seen."""
    parts, manifest = Parts(bundle), bundle.manifest
    window = manifest.input.window
    streamed = Data(data.recordings, no_windows(), data.labels)
    published = Data((), data.windows, data.labels)
    values, label = all_windows(streamed, window)
    activity = data.is_activity(label)
    ready, their_label = all_windows(published, window)
    still = at_rest(noise_of(values), window)
    found = {}
    for name, confidence in [*((e.name, e.confidence) for e in manifest.exits), (END, 0.0)]:
        own, ready_made, off = (_scores(parts, x, name) for x in (values[activity], ready, still))
        sure = calibrated(own.logits, manifest.calibration.temperature).max(axis=1)
        found[name] = Branch(
            own.logits.argmax(axis=1) == label[activity],
            sure,
            own.novelty <= manifest.calibration.novelty_threshold,
            ready_made.logits.argmax(axis=1) == their_label,
            confidence,
            metrics.auroc(off.novelty, own.novelty) or 0.0,
        )
    return found


def _scores(parts: Parts, values: Float32Array, name: str) -> Scores:
    """Score windows (n, window, 6) in g and rad/s at an exit, or at the end."""
    exit_name = "" if name == END else name
    given = [
        parts.run(WINDOW, "", parts.manifest.normalisation.apply(values[i : i + BATCH]), exit_name)
        for i in range(0, len(values), BATCH)
    ]
    scores = [s for s in given if isinstance(s, Scores)]
    return Scores(
        np.concatenate([s.logits for s in scores]),
        np.concatenate([s.code for s in scores]),
        np.concatenate([s.novelty for s in scores]),
    )


def times(bundle: Bundle, rounds: int) -> dict[str, Timing]:
    """Time a window's way to each exit and to the end in one call, and each stage between exits.

    Stages are called by what they begin and end with: `conv1 to conv2`, and `head of conv1`.
    """
    parts, manifest = Parts(bundle), bundle.manifest
    windows = golden_windows(manifest.input.window, manifest.input.rate_hz, n=1)
    value: Any = manifest.normalisation.apply(windows)
    calls: dict[str, Callable[[], object]] = {END: _call(parts, WINDOW, "", value)}
    calls |= {one.name: _call(parts, WINDOW, "", value, one.name) for one in manifest.exits}
    at, begun = WINDOW, WINDOW
    for one in manifest.exits:
        calls[f"{begun} to {one.name}"] = _call(parts, at, one.at, value)
        value = parts.run(at, one.at, value)
        calls[f"head of {one.name}"] = _call(parts, one.at, "", value, one.name)
        at, begun = one.at, one.name
    calls[f"{begun} to {END}"] = _call(parts, at, "", value)
    for call in calls.values():
        call()
    return in_turn(calls, rounds)


def _call(parts: Parts, at: str, until: str, value: Any, exit_name: str = "") -> Callable[[], object]:
    return lambda: parts.run(at, until, value, exit_name)


def _pooled(folds: Sequence[Mapping[str, Branch]], name: str, what: str) -> float:
    """The share of windows of all folds that are `right`, `known`, or right as `published`."""
    return float(np.concatenate([getattr(branches[name], what) for branches in folds]).mean())


def _stopped(folds: Sequence[Mapping[str, Branch]], confidence: float | None) -> dict[str, dict[str, float]]:
    """Return for each exit, and the end, the share of windows that stop there, how many are right, and at the end.

    `confidence`: of all exits; None for what the bundle has of each.
    """
    total = sum(len(branches[END].right) for branches in folds)
    counts = {name: np.zeros(3) for name in folds[0]}
    for found in folds:
        left = np.ones(len(found[END].right), np.bool_)
        for name, branch in found.items():
            enough = branch.confidence if confidence is None or name == END else confidence
            stops = left & (branch.sure >= enough)
            counts[name] += [stops.sum(), branch.right[stops].sum(), found[END].right[stops].sum()]
            left &= ~stops
    return {
        name: {"share": float(n / total), "right": float(right / total), "right_at_end": float(end / total)}
        for name, (n, right, end) in counts.items()
    }


def _early(way: str, shares: Sequence[Shares], names: Sequence[str], timed: Mapping[str, Timing]) -> list[str]:
    """Return a row of the table in stages."""
    row = [way, *(spread([s[name]["share"] for s in shares]) for name in names)]
    stopped, there, at_end = (
        [sum(s[name][what] for name in names[:-1]) for s in shares] for what in ("share", "right", "right_at_end")
    )
    right, instead = ([r / n for r, n in zip(part, stopped, strict=True) if n] for part in (there, at_end))
    row.append(f"{spread(right)} ({spread(instead)})" if right else "-")
    row.append(spread([sum(s[name]["right"] for name in names) for s in shares]))
    mean = {name: float(np.mean([s[name]["share"] for s in shares])) for name in names}
    return row + [_ratio(*_mean_us(mean, names, timed, kind)) for kind in KINDS]


def _first_only(way: str, shares: Sequence[Shares], name: str, timed: Mapping[str, Timing]) -> list[str]:
    """Return a row of the table in one call."""
    stopped = [s[name]["share"] for s in shares]
    right = [sum(own["right" if one == name else "right_at_end"] for one, own in s.items()) for s in shares]
    left = 1 - float(np.mean(stopped))
    us = [(getattr(timed[name], kind), getattr(timed[END], kind)) for kind in KINDS]
    return [way, spread(stopped), spread(right), *(_ratio(there + left * end, end) for there, end in us)]


def _mean_us(
    mean: Mapping[str, float], names: Sequence[str], timed: Mapping[str, Timing], kind: str
) -> tuple[float, float]:
    """Mean microseconds of a window that goes on until an exit is sure; and those of the whole network."""
    us, left, begun = 0.0, 1.0, WINDOW
    for name in names:
        us += left * getattr(timed[f"{begun} to {name}"], kind)
        if name != END:
            us += left * getattr(timed[f"head of {name}"], kind)
        left -= mean[name]
        begun = name
    return us, getattr(timed[END], kind)


def _ratio(us: float, end: float) -> str:
    return f"{us:.0f} ({us / end:.2f})"


def deadline(share: float, accuracy: Mapping[str, Sequence[float]], timed: Mapping[str, Timing]) -> list[str]:
    """Return a row of the table by deadline: the last exit in time, of those with an `accuracy` of each seed."""
    row = [f"{share:g}"]
    for kind in KINDS:
        until = share * getattr(timed[END], kind)
        timely = [name for name in accuracy if getattr(timed[name], kind) <= until]
        row += [f"{until:.0f}", *((timely[-1], spread(accuracy[timely[-1]])) if timely else ("none", "-"))]
    return row
