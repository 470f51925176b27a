"""How many minutes of labels a new activity takes, and what finetuning costs of what the base knew.

Bases are trained without a third of the people and without two activities. Some of those people then teach them the
missing ones, a few minutes at a time, and others of them are scored. The alternative, everything trained from the
beginning on the same minutes, stands beside it. Bases of all activities are taught by one person, who is scored in
another session.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from agent.core.manifest import Bundle
from har_export import bundle as bundles
from har_export.calibrate import UNCALIBRATED
from har_export.datasets import merge
from har_export.datasets.records import UNLABELLED, Data, Recording, no_windows
from har_export.datasets.split import check_split, folds_of, leave_out
from har_export.finetune import Lesson, Scores, heads, lessons, read_exemplars, score, stack, together
from har_export.lab.plots import STYLES, save
from har_export.lab.result import Plot, Result, Table, spread
from har_export.train import Settings

TAUGHT = ("walking_downstairs", "laying")
"""What the bases of the curve do not know: one that is easily taken for what they know, one that is not."""

FOLDS = 3
TEACHERS = 4
"""Of the people of a fold, so many teach; the others are scored."""

MINUTES = (0.5, 1.0, 2.0, 4.0)
EPOCHS, EPOCHS_OF_LITTLE = 12, 60
"""Of the bases, and of what is trained from the beginning: a few minutes make few batches."""

CONTEXT_STEPS = 300

PERSONS = 4
"""People of a fold who are taught themselves."""


@dataclass(frozen=True)
class Accuracy:
    """Shares of windows that are right: activities that the base knew, and those that it was taught."""

    old: float
    new: float


@dataclass(frozen=True)
class Trial:
    """One model. `way`: the base, finetuned, or from the beginning."""

    seed: int
    way: str
    minutes: float
    single: Accuracy
    in_context: Accuracy


def minutes_each(recordings: Sequence[Recording], minutes: float) -> tuple[Recording, ...]:
    """Return recordings in which the first `minutes` of each label are labelled, person after person, no more."""
    left: dict[int, int] = {}
    found = []
    for r in recordings:
        label = np.full(len(r.label), UNLABELLED, np.int64)
        for k in np.unique(r.label[r.label != UNLABELLED]).tolist():
            (at,) = np.nonzero(r.label == k)
            at = at[: left.setdefault(k, round(minutes * 60 * r.rate_hz))]
            left[k] -= len(at)
            label[at] = k
        if (label != UNLABELLED).any():
            found.append(replace(r, label=label, detail=None))
    return tuple(found)


def run(data: Data, seeds: Sequence[int], plots: Path, command: str, report: Callable[[str], None]) -> Result:
    """Measure the curve and the personal models on `data`, HAPT; write the plot into the folder `plots`.

    `command` is what the result file quotes.
    """
    trials: list[Trial] = []
    persons: list[dict[str, Any]] = []
    for seed in seeds:
        held = folds_of(data.subjects, FOLDS, seed)[seed % FOLDS]
        others = data.of([s for s in data.subjects if s not in held])
        report(f"seed {seed}: base without {', '.join(TAUGHT)}")
        base = _base(_without(others), seed, EPOCHS)
        trials += _curve(base, data.of(held), seed, report)
        report(f"seed {seed}: base of all activities")
        persons += _personal(_base(others, seed, EPOCHS), data.of(held), seed, report)
    _plot(trials, plots / "finetune.svg")
    return _summarise(trials, persons, seeds, command)


def _without(data: Data) -> Data:
    for name in TAUGHT:
        data = leave_out(data, name)
    return data


def _base(data: Data, seed: int, epochs: int) -> Bundle:
    settings = Settings(epochs=epochs, context_steps=CONTEXT_STEPS)
    parts = bundles.fit(data, seed, settings)
    return bundles.assemble(parts, data.labels, settings, UNCALIBRATED, None, "base", {}, {})


def _curve(base: Bundle, data: Data, seed: int, report: Callable[[str], None]) -> list[Trial]:
    """Teach `base` the missing activities by some of the people of `data`, and score the others."""
    teachers = data.subjects[:TEACHERS]
    learners, unseen = data.of(teachers), data.of(data.subjects[TEACHERS:])
    check_split(replace(learners, windows=no_windows()), replace(unseen, windows=no_windows()))
    labels = (*base.manifest.labels, *TAUGHT)
    tested = _named(labels, unseen)
    test, exemplars = lessons(base, tested.recordings, seed), read_exemplars(base)
    trials = [_trial(seed, "base", 0.0, tested, test, together([t.before for t in test]))]
    for minutes in MINUTES:
        report(f"seed {seed}: {minutes:g} minutes a label")
        little = replace(
            _named(labels, learners), recordings=minutes_each(_named(labels, learners).recordings, minutes)
        )
        own = stack([t.learned for t in lessons(base, little.recordings, seed)])
        graphs = heads(base, [exemplars, own], len(labels), seed)
        given = score(graphs, stack([t.scored for t in test]))
        trials.append(_trial(seed, "finetuned", minutes, tested, test, given))
        anew = lessons(_base(little, seed, EPOCHS_OF_LITTLE), tested.recordings, seed)
        trials.append(_trial(seed, "from the beginning", minutes, tested, anew, together([t.before for t in anew])))
    return trials


def _named(labels: Sequence[str], data: Data) -> Data:
    """Return the recordings of `data` with their labels numbered as in `labels`."""
    return merge([Data((), no_windows(), tuple(labels)), replace(data, windows=no_windows())])


def _trial(seed: int, way: str, minutes: float, data: Data, test: Sequence[Lesson], given: Scores) -> Trial:
    truth = np.concatenate([t.scored.label for t in test])
    new = np.isin(truth, [data.labels.index(name) for name in TAUGHT])

    def accuracy(predicted: np.ndarray) -> Accuracy:
        right = predicted == truth
        return Accuracy(float(right[data.is_activity(truth) & ~new].mean()), float(right[new].mean()))

    assert given.in_context is not None
    return Trial(seed, way, minutes, accuracy(given.logits.argmax(axis=1)), accuracy(given.in_context.argmax(axis=1)))


def _personal(base: Bundle, data: Data, seed: int, report: Callable[[str], None]) -> list[dict[str, Any]]:
    """Teach `base` one session of one person; score the other session, and the other people."""
    named = _named(base.manifest.labels, data)
    taught = lessons(base, named.recordings, seed)
    exemplars, found = read_exemplars(base), []
    for person in data.subjects[:PERSONS]:
        report(f"seed {seed}: subject {person}")
        own = [t for t in taught if t.recording.subject == person]
        others = [t for t in taught if t.recording.subject != person]
        for learned in own:
            rest = [t for t in own if t is not learned]
            graphs = heads(base, [exemplars, learned.learned], len(named.labels), seed)
            of = {"rest": rest, "others": others}
            before = {name: _share(named, part, together([t.before for t in part])) for name, part in of.items()}
            after = {
                name: _share(named, part, score(graphs, stack([t.scored for t in part]))) for name, part in of.items()
            }
            label = learned.recording.label
            minutes = float(
                np.mean([(label == k).sum() for k in range(len(named.labels)) if named.is_activity(np.array(k))])
            )
            found.append(
                {"seed": seed, "subject": person, "session": learned.recording.session,
                 "minutes": minutes / learned.recording.rate_hz / 60, "before": before, "after": after}
            )  # fmt: skip
    return found


def _share(data: Data, taught: Sequence[Lesson], given: Scores) -> dict[str, float]:
    truth = np.concatenate([t.scored.label for t in taught])
    activity = data.is_activity(truth)
    assert given.in_context is not None
    return {
        name: float((logits.argmax(axis=1) == truth)[activity].mean())
        for name, logits in (("single", given.logits), ("in_context", given.in_context))
    }


WAYS = ("finetuned", "from the beginning")
KINDS = ("single", "in_context")


def _of(trials: Sequence[Trial], way: str, minutes: float) -> list[Trial]:
    return [t for t in trials if (t.way, t.minutes) == (way, minutes)]


def _plot(trials: Sequence[Trial], path: Path) -> None:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    titles = {"new": "activities that are taught", "old": "activities that the base knows"}
    for axes, (what, title) in zip(figure.subplots(1, 2, sharey=True), titles.items(), strict=True):
        for way, style in zip(WAYS, STYLES, strict=False):
            values = [[getattr(t.in_context, what) for t in _of(trials, way, m)] for m in MINUTES]
            axes.errorbar(
                MINUTES, [100 * np.mean(v) for v in values], [100 * np.std(v, ddof=min(1, len(v) - 1)) for v in values],
                capsize=3, label=way, **style,
            )  # fmt: skip
        if what == "old":
            base = 100 * float(np.mean([t.in_context.old for t in trials if t.way == "base"]))
            axes.axhline(base, color="#777777", linestyle=":", label="the base, before")
        axes.set_xscale("log", base=2)
        axes.set_xticks(MINUTES, [f"{m:g}" for m in MINUTES])
        axes.minorticks_off()
        axes.set_xlabel("labelled minutes of each activity")
        axes.set_title(title)
        axes.grid(visible=True, color="#dddddd")
        axes.legend(loc="lower right")
    figure.axes[0].set_ylabel("windows right, with context (%)")
    save(figure, path)


def _summarise(
    trials: Sequence[Trial], persons: Sequence[dict[str, Any]], seeds: Sequence[int], command: str
) -> Result:
    def cells(part: Sequence[Trial]) -> list[str]:
        return [spread([getattr(getattr(t, kind), what) for t in part]) for kind in KINDS for what in ("new", "old")]

    rows = [["0", "the base", *cells([t for t in trials if t.way == "base"])]]
    rows += [[f"{m:g}", way, *cells(_of(trials, way, m))] for m in MINUTES for way in WAYS]
    personal = [
        [text, *(spread([p[when][part][kind] for p in persons]) for kind in KINDS for when in ("before", "after"))]
        for part, text in (("rest", "the person's other session"), ("others", "other people"))
    ]  # fmt: skip
    minutes = float(np.mean([p["minutes"] for p in persons]))
    return Result(
        "Finetuning: minutes of labels",
        command,
        [
            f"Bases of {EPOCHS} epochs, half of what is shipped, "
            f"without a third of the people and without {' and '.join(TAUGHT)}; {TEACHERS} "
            "of those people teach, person after person, the others are scored. What is trained from the beginning "
            f"on the same minutes takes {EPOCHS_OF_LITTLE} epochs. {len(seeds)} seeds, another third of the people "
            "each; int8 files through ONNX Runtime, windows of activities as recorded, one after the other.",
            "One person's own minutes: the base knows all activities, and is taught one session of one person who was "
            f"not in its training, {minutes:.1f} minutes of an activity on average; {len(persons)} such models.",
        ],
        [
            Table(
                "Windows of unseen people that are right, in per cent, mean ± standard deviation over seeds",
                ["minutes a label", "model", "taught, single", "known, single", "taught, context", "known, context"],
                rows,
            ),
            Table(
                "Taught by one person: windows that are right, in per cent, mean ± standard deviation over models",
                ["scored on", "single, before", "single, after", "context, before", "context, after"],
                personal,
            ),
        ],
        [
            Plot(
                "plots/finetune.svg",
                "Accuracy on unseen people against labelled minutes. Bars: standard deviation over seeds.",
            )
        ],
        {"trials": [_raw(t) for t in trials], "persons": list(persons)},
    )  # fmt: skip


def _raw(trial: Trial) -> dict[str, Any]:
    return {**vars(trial), "single": vars(trial.single), "in_context": vars(trial.in_context)}
