"""How accuracy holds when the sensor is worn, set up or connected otherwise than in the recordings.

Models of cross-validation meet their unseen people's recordings once more, each changed in one way, through the agent's
own pipeline: a lost sample is interpolated there, another rate resampled.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent.adapters.onnx_model import OrtModel
from agent.errors import InputError
from agent.pipeline import Pipeline
from agent.records import Event, Float32Array, Float64Array, Int64Array, Prediction, SampleBatch
from har_export.datasets.records import Data, Recording
from har_export.lab.result import Result, Table, spread

Samples = tuple[Int64Array, Float32Array]
"""Times in nanoseconds (n,) and values (n, 6) as a source would give them."""

Change = Callable[[Recording, np.random.Generator], Samples]

TURNS_DEG = (10, 20, 30, 45)
DROPPED = (0.01, 0.05, 0.1, 0.2)
NOISE = (0.01, 0.02, 0.05)
CLIPPED_G = (1.75, 1.5, 1.25)
RATES_HZ = (25, 40, 100, 200)
BURST_S = 0.2
"""Samples are also lost in a row: this long, short of what the agent calls a gap."""


@dataclass(frozen=True)
class Score:
    """Shares of the `windows` of activities: single windows right, decided activity right, called unknown."""

    windows: int
    single: float
    decided: float
    unknown: float


def even(values: npt.ArrayLike, rate_hz: float) -> Samples:
    """Return samples at even times."""
    sampled = np.ascontiguousarray(values, np.float32)
    return np.round(np.arange(len(sampled)) * 1e9 / rate_hz).astype(np.int64), sampled


def rotation(axis: int, angle_deg: float) -> Float64Array:
    """Return the rotation (3, 3) about one axis."""
    turned = np.eye(3)
    i, j = (k for k in range(3) if k != axis)
    angle = np.deg2rad(angle_deg)
    turned[i, i] = turned[j, j] = np.cos(angle)
    turned[i, j], turned[j, i] = -np.sin(angle), np.sin(angle)
    return turned


def _mapped(matrix: Float64Array) -> Change:
    def change(recording: Recording, rng: np.random.Generator) -> Samples:  # noqa: ARG001  nothing is drawn here
        both = np.concatenate([recording.values[:, :3] @ matrix.T, recording.values[:, 3:] @ matrix.T], axis=1)
        return even(both, recording.rate_hz)

    return change


def _noise(sigma: float) -> Change:
    return lambda r, rng: even(r.values + rng.normal(0, sigma, r.values.shape), r.rate_hz)


def _clipped(largest_g: float) -> Change:
    return lambda r, _: even(
        np.concatenate([r.values[:, :3].clip(-largest_g, largest_g), r.values[:, 3:]], axis=1), r.rate_hz
    )


def _biased(bias: float) -> Change:
    return lambda r, rng: even(r.values + np.r_[np.zeros(3), bias * _direction(rng)], r.rate_hz)


def _direction(rng: np.random.Generator) -> Float64Array:
    vector = rng.normal(size=3)
    return np.asarray(vector / np.linalg.norm(vector))


def _lost(share: float) -> Change:
    def change(recording: Recording, rng: np.random.Generator) -> Samples:
        t_ns, values = even(recording.values, recording.rate_hz)
        kept = rng.random(len(t_ns)) >= share
        return t_ns[kept], values[kept]

    return change


def _lost_in_a_row(share: float) -> Change:
    def change(recording: Recording, rng: np.random.Generator) -> Samples:
        t_ns, values = even(recording.values, recording.rate_hz)
        burst = round(BURST_S * recording.rate_hz)
        # Two bursts in a row would be a gap, which is another matter: one that follows another is not lost. So many
        # are drawn that `share` is left: drawn * (1 - drawn).
        drawn = rng.random(-(-len(t_ns) // burst)) < (1 - np.sqrt(1 - 4 * share)) / 2
        drawn[1:] &= ~drawn[:-1]
        lost = np.repeat(drawn, burst)[: len(t_ns)]
        return t_ns[~lost], values[~lost]

    return change


def _at_rate(rate_hz: float) -> Change:
    def change(recording: Recording, rng: np.random.Generator) -> Samples:  # noqa: ARG001  as above
        t = np.arange(len(recording.values)) / recording.rate_hz
        wanted = np.arange(0, t[-1], 1 / rate_hz)
        values = np.stack([np.interp(wanted, t, channel) for channel in recording.values.T], axis=1)
        return even(values, rate_hz)

    return change


def changes() -> Mapping[str, tuple[Change, ...]]:
    """Return every change by name; where one name has several, the worst is quoted beside the mean."""
    named: dict[str, tuple[Change, ...]] = {"as recorded": (_mapped(np.eye(3)),)}
    for angle in TURNS_DEG:
        named[f"turned by {angle}° about an axis"] = tuple(
            _mapped(rotation(axis, sign * angle)) for axis in range(3) for sign in (-1, 1)
        )
    named["turned by 180° about an axis"] = tuple(_mapped(rotation(axis, 180)) for axis in range(3))
    named["one axis with the wrong sign"] = tuple(
        _mapped(np.diag(np.where(np.arange(3) == k, -1.0, 1.0))) for k in range(3)
    )
    named |= {f"noise of {sigma:g} g and rad/s": (_noise(sigma),) for sigma in NOISE}
    named["gyroscope bias of 0.05 rad/s"] = (_biased(0.05),)
    named |= {f"acceleration clipped at {g:g} g": (_clipped(g),) for g in CLIPPED_G}
    named |= {f"{share:.0%} of the samples lost": (_lost(share),) for share in DROPPED}
    named[f"10% lost, {BURST_S:g} s in a row"] = (_lost_in_a_row(0.1),)
    named |= {f"sampled at {rate} Hz": (_at_rate(rate),) for rate in RATES_HZ}
    return named


def score(model: OrtModel, data: Data, change: Change, seed: int) -> Score:
    """Score the windows of activities of changed recordings."""
    right = decided = unknown = count = 0
    rng = np.random.default_rng(seed)
    for recording in data.recordings:
        t_ns, values = change(recording, rng)
        pipeline = Pipeline(model, model.bundle.manifest)
        events = pipeline.feed([SampleBatch("changed", t_ns, values, 0)])
        for prediction, truth in of_activities(events, recording, data):
            count += 1
            right += prediction.label == truth
            decided += prediction.activity == truth
            unknown += not prediction.known
    return Score(count, *(n / max(count, 1) for n in (right, decided, unknown)))


def of_activities(events: Sequence[Event], recording: Recording, data: Data) -> Iterator[tuple[Prediction, str]]:
    """Yield the predictions of windows in whose middle the recording is labelled with an activity, and that label."""
    for event in events:
        if isinstance(event, Prediction):
            middle = round((event.t0_ns + event.t1_ns) * recording.rate_hz / 2e9)
            label = recording.label[min(middle, len(recording.label) - 1)]
            if data.is_activity(label):
                yield event, data.labels[label]


def run(folds: Sequence[Sequence[tuple[OrtModel, Data]]], command: str, report: Callable[[str], None]) -> Result:
    """Score every change on the models of a cross-validation: for each seed, the folds' models and unseen data.

    `command` is what the result file quotes.

    Raises:
        InputError: there is no window of an activity.
    """
    found: dict[str, list[list[Score]]] = {}
    for name, variants in changes().items():
        report(name)
        found[name] = [
            [_pooled([score(model, data, change, seed) for model, data in models]) for change in variants]
            for seed, models in enumerate(folds)
        ]
    base = [scores[0] for scores in found["as recorded"]]
    rows = []
    for name, seeds in found.items():
        worst = [min(scores, key=lambda s: s.decided) for scores in seeds]
        mean = [_pooled(scores).decided for scores in seeds]
        cost = 100 * float(np.mean([b.decided - w.decided for b, w in zip(base, worst, strict=True)]))
        rows.append(
            [name, spread([w.single for w in worst]), spread([w.decided for w in worst]), spread(mean),
             f"{cost + 0.0:+.1f}".replace("+-", "-"), f"{np.mean([w.unknown for w in worst]):.1%}"]
        )  # fmt: skip
    table = Table(
        "Accuracy in per cent, mean ± standard deviation over seeds; where a change has several variants, the worst",
        [
            "change",
            "single windows",
            "decided",
            "decided, mean of variants",
            "cost of the worst, points",
            "called unknown",
        ],
        rows,
    )
    raw = {name: [[vars(s) for s in scores] for scores in seeds] for name, seeds in found.items()}
    return Result(
        "Robustness", command,
        [
            "The models of the cross-validation, on the recordings of people whom they have not seen, changed in one "
            "way at a time. Placements other than the waist cannot be tested with these recordings: a turned sensor "
            "is what stands for them here."
        ],
        [table], [], raw,
    )  # fmt: skip


def _pooled(scores: Sequence[Score]) -> Score:
    """Pool scores, each weighted by its windows."""
    windows = np.array([s.windows for s in scores])
    if not windows.any():
        raise InputError("the data has no window of an activity: there is nothing to score")
    shares = np.array([[s.single, s.decided, s.unknown] for s in scores])
    return Score(int(windows.sum()), *(windows @ shares / windows.sum()).tolist())
