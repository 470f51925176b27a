"""What a board gains that asks a larger model about the windows that it is unsure of, by how unsure it must be."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agent.adapters.onnx_model import OrtModel
from agent.core.decision import calibrated
from agent.core.manifest import FileEntry
from agent.core.offload import Doubt, Policy
from agent.core.settings import CloudSettings
from agent.pipeline import Pipeline, Scored
from agent.records import Event, Origin, SampleBatch
from har_export.datasets.records import Data, Recording
from har_export.lab.result import Result, Table, spread
from har_export.lab.robustness import even, of_activities

CONFIDENCES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Below which a window is asked about."""

SENT = (1, 4, 16)
"""Windows that go up in a request: the one in question, and those before it."""

ALONE, LARGER, ALWAYS = "the board alone", "the larger model alone", "always"

Folds = Sequence[Sequence[tuple[OrtModel, Data]]]


@dataclass(frozen=True)
class Share:
    """Of the `windows` of activities: how many the cloud answered, whose label is right, whose decision is right."""

    windows: int
    asked: int
    label: int
    decided: int


def run(boards: Folds, clouds: Folds, command: str, report: Callable[[str], None]) -> Result:
    """Score the models of two cross-validations on the same unseen people: alone, and one behind the other.

    `boards`, `clouds`: for each seed, the folds' models and unseen data. `command` is what the result file quotes.
    """
    found: dict[str, list[Share]] = {}
    for seed, (small, large) in enumerate(zip(boards, clouds, strict=True)):
        shares: dict[str, list[Share]] = {}
        for fold, ((board, data), (cloud, same)) in enumerate(zip(small, large, strict=True)):
            if data.subjects != same.subjects:
                raise ValueError("the two cross-validations hold out other people")
            report(f"seed {seed}, fold {fold}")
            for recording in data.recordings:
                for name, share in _shares(board, cloud, recording, data).items():
                    shares.setdefault(name, []).append(share)
        for name, parts in shares.items():
            pooled = Share(*np.sum([list(vars(p).values()) for p in parts], axis=0).tolist())
            found.setdefault(name, []).append(pooled)
    first, behind = (folds[0][0][0].bundle.manifest for folds in (boards, clouds))
    rows = [_row(name, [found[name]] * len(SENT)) for name in (ALONE, LARGER)]
    ways = (*(f"below {c:g}" for c in CONFIDENCES), ALWAYS)
    rows += [_row(way, [found[f"{way}, {sent} sent"] for sent in SENT]) for way in ways]
    figures = [f"{what}, {sent} sent" for what in ("decided", "label") for sent in SENT]
    columns = ["asked", "windows asked", *figures]
    raw: dict[str, Any] = {name: [vars(s) for s in seeds] for name, seeds in found.items()}
    raw |= {"members": behind.training["members"], "bytes": {m.name: _bytes(m.files) for m in (first, behind)}}
    return Result(
        "Asking the cloud",
        command,
        [
            f"A board whose model is that of one cross-validation, and behind it {behind.training['members']} networks "
            "of the same shape that work together, on the recordings of people whom neither has seen. Where the "
            "score that the board decides by is below the confidence in the first column, it sends raw samples "
            '(`payload = "window"`), those of the window in question and of some before it, and takes the scores of '
            "the answer for its own. Nothing is late here. A larger reader of the same codes gains nothing: what they "
            "hold, the board's own context has read.",
        ],
        [Table("Windows asked about, and accuracy, in per cent; mean ± standard deviation over seeds", columns, rows)],
        [],
        raw,
    )


def _row(name: str, by_sent: Sequence[Sequence[Share]]) -> list[str]:
    row = [name, spread([s.asked / s.windows for s in by_sent[0]])]
    row += [spread([s.decided / s.windows for s in seeds]) for seeds in by_sent]
    return row + [spread([s.label / s.windows for s in seeds]) for seeds in by_sent]


def _shares(board: OrtModel, cloud: OrtModel, recording: Recording, data: Data) -> dict[str, Share]:
    """Pass one recording through the agent's pipeline, and what the board doubts of it through the larger model."""
    t_ns, values = even(recording.values, recording.rate_hz)
    samples = [SampleBatch("unseen", t_ns, values, 0)]
    behind = [item for item in Pipeline(cloud, cloud.bundle.manifest).score(samples) if isinstance(item, Scored)]
    answers = {sent: _answers(cloud, behind, sent) for sent in SENT}

    def share(model: OrtModel, settings: CloudSettings, sent: int = 1) -> Share:
        pipeline, policy = Pipeline(model, model.bundle.manifest), Policy(settings)
        scored = [
            item.answered(answers[sent][item.seq][0], "cloud", known=answers[sent][item.seq][1])
            if isinstance(item, Scored) and policy.doubtful(Doubt(item.stream, max(item.decisive), item.known, 0))
            else item
            for item in pipeline.score(samples)
        ]
        return _judged(pipeline.decide(scored), recording, data)

    found = {ALONE: share(board, CloudSettings()), LARGER: share(cloud, CloudSettings())}
    for sent in SENT:
        for c in CONFIDENCES:
            settings = CloudSettings(when="low-confidence", confidence=c)
            found[f"below {c:g}, {sent} sent"] = share(board, settings, sent)
        found[f"{ALWAYS}, {sent} sent"] = share(board, CloudSettings(when="always"), sent)
    return found


def _answers(cloud: OrtModel, scored: Sequence[Scored], sent: int) -> dict[int, tuple[Sequence[float], bool]]:
    """Return what a worker would say of each window, by its number, if so many windows went up; and if it knows it."""
    manifest = cloud.bundle.manifest
    rows = [item.scores for item in scored]
    if sent > 1 and manifest.context is not None and scored:
        codes = np.concatenate([item.call.codes[item.at : item.at + 1] for item in scored])
        codes[:, : max(0, manifest.context.windows - sent)] = 0
        rows = calibrated(cloud.contextualise(codes), manifest.context.temperature).tolist()
    return {item.seq: (row, item.known) for item, row in zip(scored, rows, strict=True)}


def _judged(events: Sequence[Event], recording: Recording, data: Data) -> Share:
    windows = asked = label = decided = 0
    for prediction, truth in of_activities(events, recording, data):
        windows += 1
        asked += prediction.origin is Origin.CLOUD
        label += prediction.label == truth
        decided += prediction.activity == truth
    return Share(windows, asked, label, decided)


def _bytes(files: Mapping[str, FileEntry]) -> int:
    return sum(entry.bytes for name, entry in files.items() if name in ("encoder.onnx", "classifier.onnx"))
