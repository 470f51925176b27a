"""A few labelled minutes make a bundle that knows them, and still what its base knew.

The encoder stays as it is, byte for byte; what reads codes is learned anew: classifier, novelty and context. What the
base knew is kept by replay: a bundle carries exemplars, histories of codes of every class, and they take part in the
lesson as often as the new windows do. So nobody's recordings are needed but one's own, and it takes seconds.

A claim needs windows that the model has not learned from, of another occasion at least. What cannot support one is
refused, with what to record instead.
"""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import pairwise
from string import Template
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

import har_export
from agent.adapters.onnx_model import OrtModel, open_session
from agent.core.decision import calibrated
from agent.core.manifest import CONTEXT, NOVELTY, Bundle, Calibration, Context, FileEntry, dump, sha256
from agent.errors import InputError
from agent.records import Float32Array, Float64Array, Int8Array, Int64Array
from har_export import bundle as bundles
from har_export import context, metrics, novelty
from har_export.calibrate import NOVELTY_MARGIN, NOVELTY_QUANTILE, QUANTILES, fit_temperature
from har_export.datasets import merge
from har_export.datasets.records import TRANSITION, UNLABELLED, Data, Recording, no_windows
from har_export.datasets.split import PIECE, Session, check_split, in_order
from har_export.network import BASE, CODE_STEP, Head
from har_export.quantise import Graph, head_graph, positive_step, signed_step
from har_export.train import Settings, streaming_windows, warm_up_then_cosine

EXEMPLARS = "exemplars.npz"
CLASSIFIER = "classifier.onnx"

STEPS = 300
BATCH = 96
LEARNING_RATE = 3e-3
LABEL_SMOOTHING = 0.05
OTHER_PAST = 0.25
"""Share of histories whose older part is taken from another one, or away: a file of one label says nothing of what
people did before, and what was never seen to change would not be expected to."""

FOLDS = 5

LEAST_S = 30.0
LEAST_WINDOWS = 8
"""Less of a label than this is refused: half of it would be left to learn from. A judgement, not a measurement: what
half a minute is worth depends on the activity."""

STRETCH_S = 10.0
"""Length of one label that predictions are averaged over before they are held against it."""

DOUBTED, REFUSED = 0.10, 0.25
"""Shares of the labelled time that cross-validated predictions contradict: above the first the user is warned, above
the second refused. Measured on six people of HAPT whom a base without two activities had not seen, two recordings each,
tested by session: 1 to 19 % with right labels (two of the six above the first), 7 to 22 % with a tenth of the bouts
labelled wrongly, 26 to 49 % with a quarter, 32 to 45 % with the two new activities swapped in one recording, 8 to 26 %
with labels that are five seconds late."""

SHOWN = 5
"""Contradictions that are named, the longest first, and pairs of labels that are confused, the most frequent first."""

MOST_NOVEL = 0.5
"""Share of the windows of labels which the base knows that may be unknown to it: beyond, the sensor is another one. A
judgement: on people like those of its training it is well below one in a hundred."""

UNITS = 3.0
"""Factor between the root mean square of the acceleration here and in the base's training beyond which it must be the
unit: m/s2 for g is 9.8. Gravity is in both."""


@dataclass(frozen=True)
class Examples:
    """Histories of codes with the label of their last window: int8 (n, windows, C), int64 (n,).

    So many windows as the base's context sees, or the last one alone where it has none.
    """

    codes: Int8Array
    label: Int64Array

    def of(self, which: Int64Array | npt.NDArray[np.bool_]) -> "Examples":
        """Return some of them, by index or mask."""
        return Examples(self.codes[which], self.label[which])

    @property
    def last(self) -> Int8Array:
        """The codes of the windows themselves, (n, C)."""
        return np.ascontiguousarray(self.codes[:, -1])


class Heads(NamedTuple):
    """What reads codes, as ONNX. `context`: None where the base has none."""

    classifier: bytes
    novelty: bytes
    context: bytes | None


class Scores(NamedTuple):
    """Logits (n, labels) of single windows, and in context where there is one; novelty (n,)."""

    logits: Float32Array
    in_context: Float32Array | None
    novelty: Float64Array


class Contradiction(NamedTuple):
    """A stretch of a recording whose label the other recordings contradict."""

    subject: str
    session: str
    from_s: float
    to_s: float
    label: str
    looks_like: str

    def __str__(self) -> str:
        where = f"{self.subject}/{self.session}, {self.from_s:.0f} s to {self.to_s:.0f} s"
        return f"{where}: labelled {self.label}, looks like {self.looks_like}"


class Lesson(NamedTuple):
    """One recording as codes.

    `learned`: of several variations of it. `scored`: of the recording itself, window by window. `at_s`: when in it
    their middles are. `before`: what the base says of them.
    """

    recording: Recording
    learned: Examples
    scored: Examples
    at_s: Float64Array
    before: Scores


def stack(parts: Sequence[Examples]) -> Examples:
    """Return the examples of at least one part, one part behind the other."""
    return Examples(np.concatenate([p.codes for p in parts]), np.concatenate([p.label for p in parts]))


def read_exemplars(base: Bundle) -> Examples:
    """Return the exemplars that a bundle carries.

    Raises:
        InputError: it carries none.
    """
    if EXEMPLARS not in base.contents:
        raise InputError(
            f"{base.id} carries no exemplars of what it knows, which would be forgotten; give recordings of it with "
            "--replay, or another base"
        )
    with np.load(io.BytesIO(base.contents[EXEMPLARS]), allow_pickle=False) as packed:
        return Examples(packed["codes"], packed["label"])


def replayed(base: Bundle, data: Data, seed: int) -> Examples:
    """Return exemplars made from recordings of what the base knows, as its own would have been.

    Raises:
        InputError: a class of the base is not in them.
    """
    labels = base.manifest.labels
    known = merge([Data((), no_windows(), labels), data])
    encoder = context.Encoder(base.contents["encoder.onnx"], base.manifest.normalisation)
    codes = context.encode_for_training(encoder, known.recordings, settings_of(base), seed)
    found = stack([_examples(c, windows_of(base)) for c in codes])
    rng = np.random.default_rng([seed, 6])
    missing = [name for k, name in enumerate(labels) if not (found.label == k).any()]
    if missing:
        raise InputError(f"the recordings of --replay have no {', '.join(missing)}: the model would forget it")
    return _some(found.of(found.label < len(labels)), bundles.EXEMPLARS, rng)


def settings_of(base: Bundle) -> Settings:
    """Return training settings with the base's rate and window."""
    return Settings(rate_hz=base.manifest.input.rate_hz, window=base.manifest.input.window)


def windows_of(base: Bundle) -> int:
    """Return how many codes a history of the base has."""
    return base.manifest.context.windows if base.manifest.context else 1


def heads(base: Bundle, parts: Sequence[Examples], labels: int, seed: int) -> Heads:
    """Learn what reads the codes of `base`.

    Every class is shown as often as every other, and of a class each part as often.
    """
    torch.manual_seed(seed)
    everything = stack(parts)
    size = everything.codes.shape[2]
    classifier = Head(size, BASE.hidden, labels, dropout=0.2)
    single = [Examples(p.codes[:, -1:], p.label) for p in parts]
    _learn(classifier, lambda codes: classifier(codes[:, 0] * CODE_STEP), single, seed)
    last = torch.from_numpy(everything.last.astype(np.float32)) * CODE_STEP
    with torch.no_grad():
        steps = positive_step(classifier.hidden(last)), signed_step(classifier(last))
    encoder = context.Encoder(base.contents["encoder.onnx"], base.manifest.normalisation)
    idle = bundles.idle_codes(encoder, base.manifest.input.window, seed)
    layer = None
    if base.manifest.context is not None:
        network = context.Context(size, labels, base.manifest.context.windows)
        _learn(network, network, parts, seed)
        layer = context.export(network, everything.codes)
    return Heads(
        head_graph(Graph("c"), classifier, *steps, "logits", (labels,)),
        novelty.export(everything.last, everything.label, idle),
        layer,
    )


def _learn(network: nn.Module, forward: Callable[[Tensor], Tensor], parts: Sequence[Examples], seed: int) -> None:
    rng = np.random.default_rng([seed, 7])
    everything = stack(parts)
    source = np.repeat(np.arange(len(parts)), [len(p.label) for p in parts])
    chance = np.zeros(len(source))
    for k in np.unique(everything.label):
        both = [which for s in range(len(parts)) if (which := (everything.label == k) & (source == s)).any()]
        for which in both:
            chance[which] = 1 / len(both) / which.sum()
    chance /= chance.sum()
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: warm_up_then_cosine(step, STEPS))
    network.train()
    for _ in range(STEPS):
        drawn = rng.choice(len(chance), BATCH, p=chance)
        codes = _with_other_pasts(everything.codes[drawn], everything.codes, rng)
        loss = functional.cross_entropy(
            forward(torch.from_numpy(codes.astype(np.float32))),
            torch.from_numpy(everything.label[drawn]),
            label_smoothing=LABEL_SMOOTHING,
        )
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
        optimiser.step()
        schedule.step()
    network.eval()


def _with_other_pasts(codes: Int8Array, others: Int8Array, rng: np.random.Generator) -> Int8Array:
    """Return histories (b, windows, C), `OTHER_PAST` of them with an older part that is another's, or nobody's."""
    windows = codes.shape[1]
    other = others[rng.integers(len(others), size=len(codes))]
    other[rng.random(len(codes)) < 0.5] = 0
    kept = np.where(rng.random(len(codes)) < OTHER_PAST, rng.integers(1, windows + 1, len(codes)), windows)
    # What comes before the `kept` last codes is the end of another history.
    back = np.arange(windows, 0, -1)
    source = np.clip(windows - back + kept[:, None], 0, windows - 1)
    earlier = np.take_along_axis(other, source[:, :, None], axis=1)
    return np.where((back > kept[:, None])[:, :, None], earlier, codes)


def score(graphs: Heads, examples: Examples) -> Scores:
    """Score codes with the graphs that would be deployed."""

    def run(file: str, graph: bytes, name: str, codes: Int8Array) -> Float32Array:
        (given,) = open_session(file, graph).run(None, {name: codes})
        return given  # type: ignore[no-any-return]  # untyped in onnxruntime

    histories = np.ascontiguousarray(examples.codes)
    return Scores(
        run(CLASSIFIER, graphs.classifier, "code", examples.last),
        None if graphs.context is None else run(CONTEXT, graphs.context, "codes", histories),
        run(NOVELTY, graphs.novelty, "code", examples.last).astype(np.float64),
    )


def lessons(base: Bundle, recordings: Sequence[Recording], seed: int) -> list[Lesson]:
    """Encode recordings that have the base's rate; those without a labelled window are left out."""
    settings, model, windows = settings_of(base), OrtModel(base), windows_of(base)
    encoder = context.Encoder(base.contents["encoder.onnx"], base.manifest.normalisation)
    found = []
    for recording in recordings:
        if len(recording.values) < settings.window + settings.hop:
            continue
        values, middle = streaming_windows(recording, settings.window)
        labelled = recording.label[middle] != UNLABELLED
        if not labelled.any():
            continue
        given = model.infer(base.manifest.normalisation.apply(values))
        histories = np.ascontiguousarray(context.histories(given.code, windows)[labelled])
        in_context = model.contextualise(histories) if base.manifest.context else None
        varied = context.encode_for_training(encoder, [recording], settings, seed)
        found.append(
            Lesson(
                recording,
                stack([_examples(c, windows) for c in varied]),
                Examples(histories, recording.label[middle][labelled]),
                middle[labelled] / settings.rate_hz,
                Scores(given.logits[labelled], in_context, given.novelty[labelled]),
            )
        )
    return found


def _examples(codes: context.Codes, windows: int) -> Examples:
    labelled = codes.label != UNLABELLED
    return Examples(context.histories(codes.code, windows)[labelled], codes.label[labelled])


def _some(examples: Examples, each: int, rng: np.random.Generator) -> Examples:
    """Return up to `each` examples of every class, drawn at random."""
    drawn = examples.of(rng.permutation(len(examples.label)))
    return drawn.of(np.concatenate([np.flatnonzero(drawn.label == k)[:each] for k in np.unique(drawn.label)]))


def occasion(recording: Recording) -> Session:
    """Return subject and session, where files of one folder are one session: a sensor put on once."""
    folder, _, name = recording.session.rpartition("/")
    return recording.subject, folder or name.partition(PIECE)[0]


def finetune(
    base: Bundle,
    data: Data,
    name: str,
    seed: int,
    replay: Data | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Return a bundle that knows the labels of `data` and those of `base`; what was measured is in its metrics.

    `data`: recordings at any rate that can be resampled to the base's. `replay`: recordings of what the base knows,
    instead of the exemplars that it carries. `report` is told what is being done, a sentence each.

    Raises:
        InputError: the data cannot support the claim, or the base cannot be taught; the text says what to do.
    """
    labels = base.manifest.labels
    merged = merge([Data((), no_windows(), labels), data.at_rate(base.manifest.input.rate_hz)])
    old = read_exemplars(base) if replay is None else replayed(base, replay.at_rate(base.manifest.input.rate_hz), seed)
    minutes = minutes_of(merged)
    met = check_unseen(base, merged)
    by = check_data(merged, labels, base.manifest.input.window)
    # Where the base has met somebody, nobody's absence from its training is tested by leaving them out here.
    by = "session" if met else by
    report("encoding the recordings")
    taught = lessons(base, merged.recordings, seed)
    warnings = check_sensor(base, merged, taught)
    if met:
        warnings.append(
            f"the base has learned from {', '.join(met)} before: what is measured here holds for other days of theirs, "
            "not for other people"
        )
    if len(minutes) == 1:
        warnings.append(
            f"{next(iter(minutes))} is the only label: what the model learns may be this sensor, or this person, "
            "rather than the activity; record a minute of something that the base knows, too"
        )
    measured, calibration, history = _cross_validate(base, merged, old, taught, by, seed, report)
    measured["warnings"] = warnings + measured["warnings"]
    report("learning from everything")
    own = stack([t.learned for t in taught])
    graphs = heads(base, [old, own], len(merged.labels), seed)
    measured = {"from": base.id, "labels": list(merged.labels), "minutes": minutes, **measured}
    training = {
        "from": {"id": base.id, "training": base.manifest.training},
        "data": [
            {
                **merged.recordings[0].origin._asdict(),
                "recordings": len(merged.recordings),
                "windows": {n: int((own.label == k).sum()) // context.PASSES for k, n in enumerate(merged.labels)},
            }
        ],
        "subjects": list(merged.subjects),
        "sessions": sorted({occasion(r) for r in merged.recordings}),
        "seed": seed,
        "settings": {"steps": STEPS, "batch": BATCH, "learning_rate": LEARNING_RATE, "exemplars": len(old.label)},
        "har_export": har_export.__version__,
        "torch": torch.__version__,
    }
    return _assemble(base, name, merged.labels, graphs, [old, own], calibration, history, training, measured, seed)


def minutes_of(data: Data) -> dict[str, float]:
    """Return how many minutes there are of each label that occurs."""
    seconds = {
        name: sum(float((r.label == k).sum()) / r.rate_hz for r in data.recordings)
        for k, name in enumerate(data.labels)
    }
    return {name: round(s / 60, 2) for name, s in seconds.items() if s}


def check_unseen(base: Bundle, data: Data) -> tuple[str, ...]:
    """Return which subjects of `data` the base, or what it was taught from, has learned from.

    Raises:
        InputError: one of them was taught a session of `data`. Its exemplars hold codes of it, which every fold of a
            cross-validation would learn.
    """
    here = {occasion(r) for r in data.recordings}
    subjects: set[str] = set()
    training: Mapping[str, Any] | None = base.manifest.training
    while training:
        before = training.get("from", {})
        if again := sorted(here & {(subject, session) for subject, session in training.get("sessions", ())}):
            raise InputError(
                f"{base.id} has learned from {', '.join('/'.join(s) for s in again)} before, and could not be tested "
                f"on it. Teach {before.get('id', 'its base')} from all recordings together, or {base.id} from new ones"
            )
        subjects.update(training.get("subjects", ()))
        training = before.get("training")
    return in_order([*subjects & set(data.subjects)])


def check_data(data: Data, known: Sequence[str], window: int) -> Literal["subject", "session"]:
    """Return what a claim about `data` can be tested by.

    By subject where at least two people did everything that is new, else by session. `known`: labels of the base.

    Raises:
        InputError: there is too little, or all of one session, or one class; the text says what to record.
    """
    hop = window // 2
    found: dict[str, list[tuple[Recording, int, float]]] = {}
    for r in data.recordings:
        middles = r.label[np.arange(0, len(r.values) - window + 1, hop) + hop]
        for k in np.unique(r.label[r.label != UNLABELLED]):
            windows, seconds = int((middles == k).sum()), float((r.label == k).sum()) / r.rate_hz
            found.setdefault(data.labels[k], []).append((r, windows, seconds))
    if not found:
        raise InputError(
            "no recording is labelled: finetune learns from labelled recordings, not from ready-cut windows"
        )
    if len({occasion(r) for parts in found.values() for r, _, _ in parts}) < 2:
        raise InputError(
            "all recordings are of one session, and a model cannot be tested on the session that it has learned from. "
            "Take the sensor off, put it on again, and record another session; files in one folder are one session"
        )
    new = [name for name in found if name not in known]
    if len(found) == 1 and not new:
        raise InputError(
            f"{next(iter(found))} is the only label, and the base knows it: there is nothing to tell apart. Record "
            "what it is confused with, too, or an activity that the base does not know"
        )
    for name, parts in found.items():
        windows, seconds = sum(w for _, w, _ in parts), sum(s for _, _, s in parts)
        if name != TRANSITION and (windows < LEAST_WINDOWS or seconds < LEAST_S):
            raise InputError(
                f"there are {seconds:.0f} s of {name}, {windows} windows: record at least {LEAST_S:.0f} s and "
                f"{LEAST_WINDOWS} windows of it, better two minutes on each of two occasions"
            )
    alone = [name for name in new if len({occasion(r) for r, _, _ in found[name]}) < 2]
    if alone:
        raise InputError(
            f"{', '.join(alone)} is in one session only: whether it is recognised on another day cannot be tested. "
            "Record it in a second session, too"
        )
    people = [len({r.subject for r, _, _ in found[name]}) for name in new]
    return "subject" if len(data.subjects) > 1 and min(people, default=2) > 1 else "session"


def check_sensor(base: Bundle, data: Data, taught: Sequence[Lesson]) -> list[str]:
    """Hold the recordings against what the base was trained on; return what is odd but no reason to stop.

    Raises:
        InputError: the sensor is another one, or its units or axes are not what they are said to be.
    """
    learned = base.manifest.normalisation
    gravity_and_more = learned.mean[:3].astype(np.float64) ** 2 + learned.std[:3].astype(np.float64) ** 2
    values = np.concatenate([t.recording.values[:, :3] for t in taught])
    here = float(np.sqrt((values.astype(np.float64) ** 2).sum(axis=1).mean()))
    there = float(np.sqrt(gravity_and_more.sum()))
    if not 1 / UNITS < here / there < UNITS:
        raise InputError(
            f"the acceleration is {here:.3g} g (root mean square), and {there:.3g} g where the base learned: is its "
            "unit declared right (--declare acc_unit=g or m/s2)?"
        )
    label = np.concatenate([t.scored.label for t in taught])
    novel = np.concatenate([t.before.novelty for t in taught]) > base.manifest.calibration.novelty_threshold
    known = label < len(base.manifest.labels)
    if known.sum() >= LEAST_WINDOWS and novel[known].mean() > MOST_NOVEL:
        raise InputError(
            f"{novel[known].mean():.0%} of the windows of {', '.join(_names(data, label[known]))}, which the base "
            "knows, look like nothing that it has seen: the sensor is worn elsewhere or turned, or a unit is wrong "
            "(--declare axes, acc_unit, gyro_unit). If it must be worn so, train anew: har-export train --data"
        )
    if not known.any() and novel.mean() > MOST_NOVEL:
        return [
            f"{novel.mean():.0%} of the windows look like nothing that the base has seen. With new activities that may "
            "be; a minute of one that it knows would tell whether sensor, units and axes are as they were there"
        ]
    return []


def _names(data: Data, label: Int64Array) -> list[str]:
    return [data.labels[k] for k in np.unique(label)]


def _folds(taught: Sequence[Lesson], by: str, new: set[int], seed: int) -> list[list[Lesson]]:
    """Deal the lessons out so that every new label is learned in every fold; each by itself where nothing else does."""
    groups: dict[Any, list[Lesson]] = {}
    for lesson in taught:
        groups.setdefault(lesson.recording.subject if by == "subject" else occasion(lesson.recording), []).append(
            lesson
        )
    parts = [groups[key] for key in sorted(groups)]
    rng = np.random.default_rng([seed, 8])
    for _ in range(100):
        order = rng.permutation(len(parts))
        dealt = [[t for i in order[first::FOLDS] for t in parts[i]] for first in range(min(FOLDS, len(parts)))]
        if all(new <= _labels_of(other for fold in dealt if fold is not held for other in fold) for held in dealt):
            return dealt
    return parts


def _labels_of(taught: Iterable[Lesson]) -> set[int]:
    return {int(k) for t in taught for k in np.unique(t.scored.label)}


def _cross_validate(
    base: Bundle, data: Data, old: Examples, taught: Sequence[Lesson], by: Literal["subject", "session"], seed: int,
    report: Callable[[str], None],
) -> tuple[dict[str, Any], Calibration, Context | None]:  # fmt: skip
    """Return what was measured on recordings, and exemplars, that the scoring model had not learned from.

    Raises:
        InputError: a split would leak, or what is learned contradicts the labels.
    """
    known = len(base.manifest.labels)
    new = {k for k in _labels_of(taught) if k >= known}
    folds = _folds(taught, by, new, seed)
    part_of = np.zeros(len(old.label), np.int64)
    for k in np.unique(old.label):
        (which,) = np.nonzero(old.label == k)
        part_of[which] = np.random.default_rng([seed, 9]).permutation(len(which)) % len(folds)
    order: list[Lesson] = []
    own, kept, kept_label = [], [], []
    for i, held in enumerate(folds):
        report(f"cross-validation by {by}, fold {i + 1} of {len(folds)}")
        others = [t for fold in folds if fold is not held for t in fold]
        check_split(_data_of(data, others), _data_of(data, held), by)
        parts = [old.of(part_of != i), stack([t.learned for t in others])]
        graphs = heads(base, parts, len(data.labels), seed)
        order += held
        own.append(score(graphs, stack([t.scored for t in held])))
        kept.append(score(graphs, old.of(part_of == i)))
        kept_label.append(old.label[part_of == i])
    truth, kept_truth = np.concatenate([t.scored.label for t in order]), np.concatenate(kept_label)
    after, still = together(own), together(kept)
    before = together([t.before for t in order])
    model = OrtModel(base)
    (once,) = model.classifier.run(None, {"code": old.last})
    temperature = _temperature(after.logits, truth, still.logits, kept_truth)
    history = None
    if base.manifest.context and after.in_context is not None and still.in_context is not None:
        in_context = _temperature(after.in_context, truth, still.in_context, kept_truth)
        history = base.manifest.context._replace(temperature=in_context)
    novelties = np.concatenate([after.novelty, still.novelty])
    calibration = Calibration(
        temperature,
        NOVELTY_MARGIN * float(np.quantile(novelties, NOVELTY_QUANTILE)),
        {str(q): float(np.quantile(novelties, q)) for q in QUANTILES},
    )
    doubted, contradictions = contradicted(
        order, calibrated(after.logits, temperature), data.labels, settings_of(base).hop / base.manifest.input.rate_hz
    )
    shown = "; ".join(str(c) for c in contradictions[:SHOWN])
    if doubted > REFUSED:
        raise InputError(
            f"{doubted:.0%} of the labelled time contradicts what the other {by}s say, the worst: {shown}. Are labels "
            "swapped or late there? If they are right, this sensor cannot tell these activities apart at this place: "
            "give them one label, or wear it elsewhere"
        )
    table = metrics.confusion(truth, after.logits.argmax(axis=1), len(data.labels))
    measured = {
        "by": by,
        "folds": len(folds),
        "own": {
            "windows": int(data.is_activity(truth).sum()),
            "before": _accuracies(data, truth, before.logits, before.in_context),
            "after": _accuracies(data, truth, after.logits, after.in_context),
        },
        "kept": {
            "windows": int(data.is_activity(kept_truth).sum()),
            "before": _accuracies(data, old.label, once, model.contextualise(old.codes) if history else None),
            "after": _accuracies(data, kept_truth, still.logits, still.in_context),
        },
        "confusion": table.tolist(),
        "recall": {
            n: float(row[k] / row.sum()) for k, (n, row) in enumerate(zip(data.labels, table, strict=True)) if row.any()
        },
        "contradicted": doubted,
        "contradictions": [c._asdict() for c in contradictions[:SHOWN]],
        "warnings": [f"{doubted:.0%} of the labelled time is doubtful, the worst: {shown}"]
        if doubted > DOUBTED
        else [],
    }
    return measured, calibration, history


def together(parts: Sequence[Scores]) -> Scores:
    """Return the scores of at least one part, one part behind the other."""
    in_context = [p.in_context for p in parts if p.in_context is not None]
    return Scores(
        np.concatenate([p.logits for p in parts]),
        np.concatenate(in_context) if in_context else None,
        np.concatenate([p.novelty for p in parts]),
    )


def _temperature(own: Float32Array, truth: Int64Array, kept: Float32Array, kept_truth: Int64Array) -> float:
    """Return the larger of two temperatures: exemplars are of people whom the encoder knows, and look too easy."""
    return max(fit_temperature(own, truth), fit_temperature(kept, kept_truth))


def _accuracies(
    data: Data, truth: Int64Array, logits: Float32Array, in_context: Float32Array | None
) -> dict[str, float]:
    """Return the shares of windows of activities that are right: of single windows, and in context if there is one."""
    activity = data.is_activity(truth)
    given = {"single": logits} if in_context is None else {"single": logits, "in_context": in_context}
    return {name: float((x.argmax(axis=1) == truth)[activity].mean()) for name, x in given.items()}


def _data_of(data: Data, taught: Sequence[Lesson]) -> Data:
    return replace(data, recordings=tuple(t.recording for t in taught))


def contradicted(
    taught: Sequence[Lesson], probability: Float64Array, labels: Sequence[str], hop_s: float
) -> tuple[float, list[Contradiction]]:
    """Return which share of the labelled windows predictions contradict, and where, the longest first.

    `probability`: of each scored window of `taught`, one after the other, (n, labels); windows are `hop_s` apart. About
    `STRETCH_S` of a label are judged together: single windows may err, and so may a label's first and last.
    """
    found: list[Contradiction] = []
    wrong, first = 0, 0
    for t in taught:
        label, at_s, given = t.scored.label, t.at_s, probability[first : first + len(t.at_s)]
        first += len(at_s)
        edges = np.flatnonzero((np.diff(label) != 0) | (np.diff(at_s) > 1.5 * hop_s)) + 1
        for a, b in pairwise([0, *edges.tolist(), len(label)]):
            for part in np.array_split(np.arange(a, b), max(1, round((b - a) * hop_s / STRETCH_S))):
                looks_like = int(given[part].mean(axis=0).argmax())
                if looks_like == label[a]:
                    continue
                wrong += len(part)
                began, ended = float(at_s[part[0]] - hop_s / 2), float(at_s[part[-1]] + hop_s / 2)
                names = labels[label[a]], labels[looks_like]
                last = found[-1] if found else None
                if last and last[:2] == _place(t) and last[4:] == names and began - last.to_s < hop_s / 2:
                    began = found.pop().from_s
                found.append(Contradiction(*_place(t), began, ended, *names))
    found.sort(key=lambda c: c.from_s - c.to_s)
    return wrong / max(1, len(probability)), found


def _place(lesson: Lesson) -> tuple[str, str]:
    return lesson.recording.subject, lesson.recording.session


def _assemble(
    base: Bundle, name: str, labels: tuple[str, ...], graphs: Heads, parts: Sequence[Examples],
    calibration: Calibration, history: Context | None, training: Mapping[str, Any], measured: Mapping[str, Any],
    seed: int,
) -> Bundle:  # fmt: skip
    # Exits know the labels of the base, and no others.
    left = {one.file for one in base.manifest.exits}
    contents = {name: data for name, data in base.contents.items() if name.endswith(".onnx") and name not in left}
    contents |= {CLASSIFIER: graphs.classifier, NOVELTY: graphs.novelty}
    if graphs.context is not None:
        contents[CONTEXT] = graphs.context
    old, own = parts
    kept = stack([old, _some(own, bundles.EXEMPLARS, np.random.default_rng([seed, 10]))])
    packed = io.BytesIO()
    np.savez_compressed(packed, codes=kept.codes, label=kept.label)
    contents[EXEMPLARS] = packed.getvalue()

    def seal(files: Mapping[str, bytes]) -> Bundle:
        manifest = base.manifest._replace(
            name=name,
            version=har_export.__version__,
            created=bundles.created(),
            labels=labels,
            calibration=calibration,
            context=history,
            files={file: FileEntry(sha256(data), len(data)) for file, data in files.items()},
            training=training,
            metrics={"finetune": measured},
            exits=(),
        )
        return Bundle(manifest, sha256(dump(manifest)), files)

    contents["golden.npz"] = bundles.golden(OrtModel(seal(contents)))
    contents["CARD.md"] = render(seal(contents), base.contents["CARD.md"].decode()).encode()
    return seal(contents)


def render(bundle: Bundle, card_of_base: str) -> str:
    """Return the card as Markdown: what was learned and measured, then the card of the base as it is."""
    manifest = bundle.manifest
    measured = manifest.metrics["finetune"]
    template = Template((files("har_export") / "finetuned.md").read_text(encoding="utf-8"))
    return template.substitute(
        name=manifest.name,
        version=manifest.version,
        created=manifest.created,
        har_export=manifest.training["har_export"],
        torch=manifest.training["torch"],
        seed=manifest.training["seed"],
        base=measured["from"],
        labels=", ".join(manifest.labels),
        subjects=len(manifest.training["subjects"]),
        recordings=manifest.training["data"][0]["recordings"],
        novelty_threshold=f"{manifest.calibration.novelty_threshold:.3g}",
        minutes="\n".join(
            f"| {name} | {minutes:g} | {_percent(measured['recall'].get(name))} |"
            for name, minutes in measured["minutes"].items()
        ),
        by=measured["by"],
        folds=measured["folds"],
        own_windows=f"{measured['own']['windows']:,}",
        kept_windows=f"{measured['kept']['windows']:,}",
        measured="\n".join(
            f"| {what} | {_both(measured[part]['before'])} | {_both(measured[part]['after'])} |"
            for part, what in (("own", "the recordings"), ("kept", "exemplars of the base"))
        ),
        warnings="\n".join(f"- {w}" for w in measured["warnings"]) or "- None was found.",
        card_of_base=card_of_base.replace("\n#", "\n##").replace("# ", "## ", 1),
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _both(accuracy: Mapping[str, float]) -> str:
    in_context = accuracy.get("in_context")
    return _percent(accuracy["single"]) + ("" if in_context is None else f" ({_percent(in_context)})")


def text(bundle: Bundle) -> str:
    """Return what finetuning measured, for people."""
    m = bundle.manifest.metrics["finetune"]
    lines = [f"{bundle.id}, from {m['from']}: {', '.join(bundle.manifest.labels)}", ""]
    lines.append(f"cross-validation by {m['by']}, {m['folds']} folds; in brackets with context")
    lines.append(f"  {'':<28} {'windows':>8} {'before':>16} {'after':>16}")
    for part, what in (("own", "own recordings"), ("kept", "exemplars of the base")):
        figures = m[part]
        lines.append(
            f"  {what:<28} {figures['windows']:>8} {_both(figures['before']):>16} {_both(figures['after']):>16}"
        )
    lines += ["", f"  {'label':<28} {'minutes':>8} {'recall':>16}"]
    lines += [f"  {n:<28} {minutes:>8g} {_percent(m['recall'].get(n)):>16}" for n, minutes in m["minutes"].items()]
    table = np.array(m["confusion"])
    np.fill_diagonal(table, 0)
    pairs = np.argsort(-table, axis=None, kind="stable")[:SHOWN]
    confused = [
        f"  {m['labels'][i]} taken for {m['labels'][j]}: {table[i, j]} windows"
        for i, j in zip(*np.unravel_index(pairs, table.shape), strict=True)
        if table[i, j]
    ]
    lines += ["", *(confused or ["  no window was confused"])]
    lines += [f"warning: {w}" for w in m["warnings"]]
    return "\n".join(lines)
