"""How well a bundle does on recorded data: every window through the agent's own pipeline, and what to say of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from agent.adapters.onnx_model import OrtModel
from agent.core.manifest import Manifest
from agent.errors import InferenceError, InputError
from agent.pipeline import Pipeline, score_windows
from agent.records import CHANNELS, Float32Array, Float64Array, Int64Array, Prediction, Refused, SampleBatch, Unscored
from agent.records import UNKNOWN as UNKNOWN_ACTIVITY
from har_export import metrics
from har_export.datasets.records import TRANSITION, UNLABELLED, Data, Recording
from har_export.metrics import BoolArray, share

VERSION = 1
"""Of the result: its `v`."""

UNKNOWN = -1
"""What is decided where the model has not seen anything like the input."""

WINDOWS_HZ = 50.0
"""Rate of a data set's ready-cut windows."""

STILLEST = 0.05
"""Share of the windows that a sensor's noise is estimated from."""

AT_REST = 1000
"""Windows that are made of a sensor that nobody wears."""

SENSOR_OFF = "sensor taken off"
HISTOGRAM_BINS = 30
LEAST_NOVELTY = 1e-6
"""What a logarithmic histogram takes for nothing."""


class Rows(NamedTuple):
    """Windows in the order in which they were scored, a column a field.

    `t1_s`: end of the window in its recording. `truth`, `predicted`, `decided`: indices of the labels; `truth` is that
    of the middle sample or `UNLABELLED`, `decided` is the activity after the window or `UNKNOWN`. `probabilities`:
    (n, labels of the bundle), of the single window, calibrated. `noise`: (n, 6), g and rad/s; see `noise_of`.
    """

    subject: npt.NDArray[np.str_]
    session: npt.NDArray[np.str_]
    t1_s: Float64Array
    truth: Int64Array
    predicted: Int64Array
    decided: Int64Array
    probabilities: Float64Array
    novelty: Float64Array
    known: BoolArray
    noise: Float64Array

    def of(self, keep: BoolArray) -> "Rows":
        """Return the windows that `keep` (n,) says."""
        return Rows._make([column[keep] for column in self])


class Scored(NamedTuple):
    """Every window of a data set. `labels`: the bundle's, in its order, and behind them those that it does not know.

    `streaming`: windows that the pipeline cut from recordings. `filtered`: those that the publisher cut. They stand
    alone: decided is their own label, their session is "", and `t1_s` is nan.
    """

    labels: tuple[str, ...]
    streaming: Rows
    filtered: Rows


def match_labels(own: Sequence[str], data: Data, mapping: Mapping[str, str] | None = None) -> Data:
    """Return `data` with a bundle's labels, `own`, in their order, and behind them those that the bundle does not know.

    Labels are matched by their names. `mapping`: what a name in the data means among the bundle's.

    Raises:
        InputError: no label is in both, or the mapping is of others.
    """
    mapping = mapping or {}
    for name, means in mapping.items():
        if name not in data.labels:
            raise InputError(f"the data has no label {name!r} to map; it has {', '.join(data.labels)}")
        if means not in own:
            raise InputError(f"{name!r} cannot mean {means!r}: the bundle's labels are {', '.join(own)}")
    names = [mapping.get(name, name) for name in data.labels]
    if not set(own) & set(names):
        raise InputError(
            f"no label of the data ({', '.join(data.labels)}) is one of the bundle's ({', '.join(own)}); "
            "where they mean the same, map them"
        )
    labels = (*own, *dict.fromkeys(name for name in names if name not in own))
    # Last, where -1 finds it.
    index = np.array([*(labels.index(name) for name in names), UNLABELLED], np.int64)
    recordings = tuple(replace(r, label=index[r.label]) for r in data.recordings)
    windows = replace(data.windows, label=index[data.windows.label])
    return replace(data, recordings=recordings, windows=windows, labels=labels)


def score(model: OrtModel, data: Data) -> Scored:
    """Score every window of `data`; labels are matched by name, see `match_labels`.

    Raises:
        InputError: the data cannot be scored with this model.
    """
    data = match_labels(model.labels, data)
    streams = [_stream(model, recording, data.labels) for recording in data.recordings]
    nothing = _no_rows(len(model.labels))
    return Scored(data.labels, stacked([nothing, *streams]), _score_filtered(model, data))


def stacked(parts: Sequence[Rows]) -> Rows:
    """Return the windows of at least one part, one part behind the other."""
    return Rows._make([np.concatenate(columns) for columns in zip(*parts, strict=True)])


def noise_of(windows: Float32Array) -> Float64Array:
    """Return the standard deviation of white noise in windows (n, length, 6), (n, 6).

    Measured on first differences, which slow movement hardly shows in: over the square root of two.
    """
    return np.asarray(np.diff(windows, axis=1).std(axis=1, dtype=np.float64) / np.sqrt(2))


def at_rest(noise: Float64Array, window: int) -> Float32Array:
    """Return `AT_REST` windows of a sensor that lies on a table, in any orientation, (n, `window`, 6).

    Gravity and white noise, as much as in the stillest windows: `noise`, (n, 6), is that of each.
    """
    stillness = (noise / np.maximum(np.median(noise, axis=0), 1e-9)).mean(axis=1)
    stillest = np.argsort(stillness, kind="stable")[: max(1, round(STILLEST * len(noise)))]
    rng = np.random.default_rng(0)
    values = rng.normal(size=(AT_REST, window, len(CHANNELS))) * np.median(noise[stillest], axis=0)
    down = rng.normal(size=(AT_REST, 1, 3))
    values[:, :, :3] += down / np.linalg.norm(down, axis=2, keepdims=True)
    return values.astype(np.float32)


def sensor_off_auroc(model: OrtModel, rows: Rows) -> float | None:
    """Return how well novelty tells windows of `at_rest` from labelled ones of known labels; None without these."""
    shown = rows.of((rows.truth != UNLABELLED) & (rows.truth < len(model.labels)))
    return metrics.auroc(_novelty_at_rest(model, rows), shown.novelty) if len(shown.truth) else None


def onsets_of(manifest: Manifest, data: Data, rows: Rows, novel: Sequence[str] = ()) -> dict[str, Any]:
    """Return the onsets of activities that last at least two windows, and how long they took to be decided.

    Delays are over those that were decided; `metrics.onsets` says what counts as that. `data`: whose windows `rows`
    are. `novel`: labels to leave out.
    """
    shortest_s, period_s = 2 * manifest.input.window / manifest.input.rate_hz, 1 / manifest.input.rate_hz
    found = []
    for r, own in _by_recording(data, rows):
        found += metrics.onsets(r.label, r.rate_hz, own.t1_s, own.decided, period_s, shortest_s)
    wanted = [o for o in found if data.labels[o.label] not in (TRANSITION, *novel)]
    delays = sorted(o.delay_s for o in wanted if o.delay_s is not None)
    return {
        "shortest_s": shortest_s,
        "count": len(wanted),
        "missed": len(wanted) - len(delays),
        **metrics.delay_quantiles(delays),
        "delays_s": [round(d, 3) for d in delays],
    }


def run(
    model: OrtModel, data: Data, source: str, novel: Sequence[str] = (), mapping: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Evaluate a model and return the figures as plain values, for JSON.

    Accuracy, macro F1 and the figures of subjects are over windows of activities, those by class over all labelled
    ones, calibration over labelled ones of labels that the model knows; `metrics` says what each means. `source`: what
    to call the data. `novel`: labels that the model was never shown, and should call unknown; they count in nothing
    else. Any other label that it does not know counts as an error.

    Raises:
        InputError: the data cannot be scored with the model, or is not labelled.
    """
    _check_novel(novel, model.labels, data.labels)
    data = match_labels(model.labels, data, mapping)
    scored = score(model, data)
    if not any(data.is_activity(rows.truth).any() for rows in (scored.streaming, scored.filtered)):
        raise InputError(f"{source} has no window of a labelled activity: there is nothing to hold predictions against")
    trained_on = {str(subject) for subject in model.bundle.manifest.training.get("subjects", ())}
    own = set(model.labels) | set(novel)
    return {
        "v": VERSION,
        "model": model.id,
        "data": {
            "source": source,
            "subjects": len(data.subjects),
            "recordings": len(data.recordings),
            "losses": list(data.losses),
            "hours": sum(len(r.values) / r.rate_hz for r in data.recordings) / 3600,
        },
        "labels": list(data.labels),
        "map": dict(mapping or {}),
        "novel_labels": list(novel),
        "unknown_labels": [name for name in data.labels if name not in own],
        "subjects_named_in_training": [s for s in data.subjects if s in trained_on],
        "streaming": _figures(model, data, scored.streaming, novel, streaming=True),
        "filtered": _figures(model, data, scored.filtered, novel, streaming=False),
    }


def _check_novel(novel: Sequence[str], own: Sequence[str], theirs: Sequence[str]) -> None:
    for name in novel:
        if name not in theirs:
            raise InputError(f"the data has no label {name!r} to take for novel; it has {', '.join(theirs)}")
        if name in own:
            raise InputError(f"{name!r} is not novel: the bundle was trained on it")


def _stream(model: OrtModel, recording: Recording, labels: Sequence[str]) -> Rows:
    manifest = model.bundle.manifest
    pipeline = Pipeline(model, manifest)
    noise: list[Float64Array] = []
    pipeline.tap = lambda windows: noise.append(noise_of(windows))
    t_ns = np.round(np.arange(len(recording.values)) * 1e9 / recording.rate_hz).astype(np.int64)
    events = pipeline.feed([SampleBatch(recording.session, t_ns, recording.values, 0)])
    for event in events:
        if isinstance(event, Refused):
            raise InputError(f"recording {recording.session} of subject {recording.subject}: {event.reason}")
        if isinstance(event, Unscored):
            raise InferenceError(event.reason)
    predictions = [event for event in events if isinstance(event, Prediction)]
    of_name = {name: i for i, name in enumerate(labels)}
    n = len(predictions)
    t0_s = np.array([p.t0_ns for p in predictions], np.int64) / 1e9
    # The sample before or at the window's middle one, as `at_rate` has it.
    middle = (t0_s + manifest.input.window // 2 / manifest.input.rate_hz) * recording.rate_hz
    truth = recording.label[np.minimum(np.floor(middle + 1e-6).astype(np.int64), len(recording.label) - 1)]
    return Rows(
        np.full(n, recording.subject),
        np.full(n, recording.session),
        np.array([p.t1_ns for p in predictions], np.int64) / 1e9,
        truth,
        np.array([of_name[p.label] for p in predictions], np.int64),
        np.array([of_name.get(p.activity, UNKNOWN) for p in predictions], np.int64),
        np.array([p.scores for p in predictions], np.float64).reshape(n, len(model.labels)),
        np.array([p.novelty for p in predictions], np.float64),
        np.array([p.known for p in predictions], np.bool_),
        np.concatenate(noise) if noise else np.empty((0, len(CHANNELS))),
    )


def _score_filtered(model: OrtModel, data: Data) -> Rows:
    windows, manifest = data.windows, model.bundle.manifest
    n = len(windows.label)
    if not n:
        return _no_rows(len(model.labels))
    if (windows.values.shape[1], WINDOWS_HZ) != (manifest.input.window, manifest.input.rate_hz):
        raise InputError(
            f"{model.id} takes windows of {manifest.input.window} samples at {manifest.input.rate_hz:g} Hz, and the "
            f"data has them ready-cut, of {windows.values.shape[1]} at {WINDOWS_HZ:g} Hz; give recordings only"
        )
    probabilities, novelty = score_windows(model, manifest, windows.values)
    predicted = probabilities.argmax(axis=1)
    known = novelty <= manifest.calibration.novelty_threshold
    return Rows(
        windows.subject,
        np.full(n, ""),
        np.full(n, np.nan),
        windows.label,
        predicted,
        np.where(known, predicted, UNKNOWN),
        probabilities,
        novelty,
        known,
        noise_of(windows.values),
    )


def _no_rows(classes: int) -> Rows:
    name, index, number = np.empty(0, np.str_), np.empty(0, np.int64), np.empty(0)
    probabilities, noise = np.empty((0, classes)), np.empty((0, len(CHANNELS)))
    return Rows(name, name, number, index, index, index, probabilities, number, np.empty(0, np.bool_), noise)


def _figures(
    model: OrtModel, data: Data, rows: Rows, novel: Sequence[str], *, streaming: bool
) -> dict[str, Any] | None:
    """Return the figures of one kind of window, None where there is none. `data`: with matched labels."""
    if not len(rows.truth):
        return None
    own = len(model.labels)
    is_novel = np.isin(rows.truth, [data.labels.index(name) for name in novel])
    labelled = rows.of((rows.truth != UNLABELLED) & ~is_novel)
    is_activity = data.is_activity(labelled.truth)
    activity, transition, shown = (labelled.of(w) for w in (is_activity, ~is_activity, labelled.truth < own))
    table = metrics.confusion(labelled.truth, labelled.predicted, len(data.labels))
    classes = dict(zip(data.labels, metrics.by_class(table), strict=True))
    bins = metrics.reliability(shown.probabilities.max(axis=1), shown.truth == shown.predicted)
    figures = {
        "windows": len(rows.truth),
        "labelled_windows": len(labelled.truth),
        "activity_windows": len(activity.truth),
        "accuracy": share(activity.truth == activity.predicted),
        "macro_f1": metrics.macro_f1([c for name, c in classes.items() if name != TRANSITION]),
        "transition_recall": share(transition.truth == transition.predicted),
        "unknown_share": share(~labelled.known),
        "subjects": _by_subject(activity, data.subjects, streaming=streaming),
        "classes": {name: c._asdict() for name, c in classes.items()},
        "confusion": {
            truth: dict(zip(model.labels, table[i, :own].tolist(), strict=True))
            for i, truth in enumerate(data.labels)
            if classes[truth].support
        },
        "calibration": {
            "windows": len(shown.truth),
            "ece": metrics.expected_calibration_error(bins),
            "negative_log_likelihood": metrics.negative_log_likelihood(shown.probabilities, shown.truth),
            "reliability": [b._asdict() for b in bins],
        },
        "novelty": _novelty(model, rows, shown, {name: rows.truth == data.labels.index(name) for name in novel}),
    }
    if streaming:
        figures["decided_accuracy"] = share(activity.truth == activity.decided)
        figures["onsets"] = onsets_of(model.bundle.manifest, data, rows, novel)
        figures["worst_recording"] = _worst_recording(data, rows, activity)
    return figures


def _novelty_at_rest(model: OrtModel, rows: Rows) -> Float64Array:
    manifest = model.bundle.manifest
    return score_windows(model, manifest, at_rest(rows.noise, manifest.input.window))[1]


def _by_subject(activity: Rows, subjects: Sequence[str], *, streaming: bool) -> dict[str, dict[str, Any]]:
    figures: dict[str, dict[str, Any]] = {}
    for subject in subjects:
        own = activity.of(activity.subject == subject)
        if len(own.truth):
            figures[subject] = {"windows": len(own.truth), "accuracy": share(own.truth == own.predicted)}
            if streaming:
                figures[subject]["decided_accuracy"] = share(own.truth == own.decided)
    return figures


def _novelty(model: OrtModel, rows: Rows, shown: Rows, novel: Mapping[str, BoolArray]) -> dict[str, Any]:
    """Return the novelty of what the model was shown, and of what should stand out from it."""
    manifest = model.bundle.manifest
    of = {"known": shown.novelty, SENSOR_OFF: _novelty_at_rest(model, rows)} | {
        name: rows.novelty[which] for name, which in novel.items()
    }
    everything = np.maximum(np.concatenate(list(of.values())), LEAST_NOVELTY)
    edges = np.geomspace(everything.min(), everything.max() * 1.001, HISTOGRAM_BINS + 1)
    groups = []
    for name, values in of.items():
        counts, _ = np.histogram(np.maximum(values, LEAST_NOVELTY), edges)
        groups.append(
            {
                "name": name,
                "windows": len(values),
                "median": float(np.median(values)) if len(values) else None,
                "unknown_share": share(values > manifest.calibration.novelty_threshold),
                "auroc": None if name == "known" else metrics.auroc(values, shown.novelty),
                "shares": (counts / max(1, len(values))).tolist(),
            }
        )
    return {"threshold": manifest.calibration.novelty_threshold, "edges": edges.tolist(), "groups": groups}


def _worst_recording(data: Data, rows: Rows, activity: Rows) -> dict[str, Any] | None:
    """Return the recording whose decided activity is wrong most often, as stretches [from s, to s, label]."""
    accuracy = {
        (r.subject, r.session): float((own.truth == own.decided).mean())
        for r, own in _by_recording(data, activity)
        if len(own.truth)
    }
    if not accuracy:
        return None
    worst = min(accuracy, key=lambda key: accuracy[key])
    recording, own = next((r, own) for r, own in _by_recording(data, rows) if (r.subject, r.session) == worst)
    end_s = len(recording.label) / recording.rate_hz
    names = {**dict(enumerate(data.labels)), UNLABELLED: None}
    truth = _stretches(np.arange(len(recording.label)) / recording.rate_hz, recording.label, end_s)
    decided = _stretches(own.t1_s, own.decided, end_s)
    return {
        "subject": recording.subject,
        "session": recording.session,
        "decided_accuracy": accuracy[worst],
        "truth": [[a, b, names[i]] for a, b, i in truth],
        "decided": [[a, b, UNKNOWN_ACTIVITY if i == UNKNOWN else names[i]] for a, b, i in decided],
    }


def _by_recording(data: Data, rows: Rows) -> Iterator[tuple[Recording, Rows]]:
    for r in data.recordings:
        yield r, rows.of((rows.subject == r.subject) & (rows.session == r.session))


def _stretches(t_s: Float64Array, index: Int64Array, end_s: float) -> list[tuple[float, float, int]]:
    """Return from when to when `index`, which holds from each of `t_s` on, stays the same."""
    first = [0, *(np.flatnonzero(np.diff(index)) + 1).tolist()]
    edges = [*t_s[first].tolist(), end_s]
    return [(a, b, int(index[i])) for (a, b), i in zip(pairwise(edges), first, strict=True)]
