from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import pytest
from typer.testing import CliRunner

from agent.adapters.bundle import load_bundle
from agent.adapters.onnx_model import OrtModel
from har_export import bundle as bundles
from har_export import crossval as cv
from har_export import evaluate
from har_export.cli import app, table
from har_export.datasets import Source, load
from har_export.datasets.records import Data
from har_export.datasets.smartphone import LABELS
from har_export.network import Shape
from har_export.train import Settings, streaming_windows

QUICK = Settings(epochs=1, epochs_with_everyone=1, context_steps=10, batch=32)


def save(data: Data, path: Path) -> None:
    """Write `data` in the packed layouts."""
    values = np.concatenate([r.values for r in data.recordings])
    publisher = np.concatenate([r.label for r in data.recordings]) + 1
    np.savez(
        path / "hapt.npz", acc=np.round(values[:, :3] * 1000).astype(np.int16), acc_scale=0.001,
        gyro=np.round(values[:, 3:] * 1000).astype(np.int16), gyro_scale=0.001, y=publisher,
        offset=np.cumsum([0, *(len(r.values) for r in data.recordings)]),
        exp=np.arange(len(data.recordings)), user=[int(r.subject) for r in data.recordings],
    )  # fmt: skip


@pytest.fixture(scope="module")
def fold(tiny: Data, tmp_path_factory: pytest.TempPathFactory) -> cv.Fold:
    """One fold of five, trained for an epoch."""
    folder = tmp_path_factory.mktemp("fold")
    task = cv.Task(0, 1, 5)
    cv.run_fold(tiny, task, QUICK, 1, folder)
    return cv.Fold(0, OrtModel(load_bundle(folder)), tiny.of(cv.held_out(tiny, task)))


def test_scored_subjects_take_no_part_in_training(fold: cv.Fold, tiny: Data) -> None:
    trained_on = set(fold.model.bundle.manifest.training["subjects"])

    assert trained_on.isdisjoint(fold.unseen.subjects)
    assert trained_on | set(fold.unseen.subjects) == set(tiny.subjects)


def test_the_pipeline_scores_the_windows_that_training_would_cut(fold: cv.Fold) -> None:
    rows = evaluate.score(fold.model, fold.unseen).streaming

    expected = [label for r in fold.unseen.recordings for label in r.label[streaming_windows(r, 128)[1]].tolist()]
    assert rows.truth.tolist() == expected


def test_the_summary_holds_what_is_claimed(fold: cv.Fold) -> None:
    rows = evaluate.score(fold.model, fold.unseen).streaming
    activity = (rows.truth >= 0) & (rows.truth != LABELS.index("transition"))

    summary = cv.summarise([fold, replace(fold, seed=1)])

    accuracy = summary["streaming_accuracy"]
    assert accuracy["by_seed"] == [pytest.approx((rows.truth == rows.predicted)[activity].mean())] * 2
    assert accuracy["sd"] == 0
    assert summary["decided_accuracy"]["mean"] == pytest.approx((rows.truth == rows.decided)[activity].mean())
    assert summary["streaming_windows"] == activity.sum()
    assert summary["seeds"] == [0, 1]
    assert np.sum(summary["streaming_confusion"]) == 2 * (rows.truth >= 0).sum()
    assert 0 <= summary["sensor_off_auroc"]["mean"] <= 1
    assert summary["look_back_s"] == pytest.approx(16 * 1.28)
    files = fold.model.bundle.manifest.files
    assert summary["encoder_and_classifier_bytes"] == files["encoder.onnx"].bytes + files["classifier.onnx"].bytes
    assert summary["context_bytes"] == files["context.onnx"].bytes
    text = table(summary)
    assert f"{accuracy['mean']:.2%}  (sd over seeds 0.00%" in text
    assert "reordered_accuracy" not in summary
    assert "decided, without" in text


def test_without_a_context_smoothed_scores_decide(fold: cv.Fold) -> None:
    plain = OrtModel(cv._without_context(fold.model.bundle))

    assert plain.context_windows == 0
    with_context, without = (evaluate.score(m, fold.unseen).streaming for m in (fold.model, plain))
    np.testing.assert_array_equal(with_context.predicted, without.predicted)
    assert not np.array_equal(with_context.decided, without.decided)


def test_crossval_goes_on_where_it_stopped(tiny: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tiny, tmp_path)
    keep = tmp_path / "results"
    built, _ = bundles.build(tiny.of(tiny.subjects[:3]), 0, QUICK, "har-tiny", {})
    made = []

    def run_fold(data: Data, task: cv.Task, settings: Settings, members: int, folder: Path, shape: Shape) -> object:
        rest = data.of([s for s in data.subjects if s not in cv.held_out(data, task)])
        training = bundles.describe_training(rest, task.seed, settings, members, shape)
        manifest = built.manifest._replace(training=training)
        bundles.write(built._replace(manifest=manifest), folder)
        made.append(task.fold)
        return load_bundle(folder)

    monkeypatch.setattr(cv, "run_fold", run_fold)
    monkeypatch.setattr(cv, "ProcessPoolExecutor", lambda jobs, **_: Here())

    def crossval(settings: Settings, members: int = 1) -> list[tuple[int, int]]:
        seen: list[tuple[int, int]] = []
        cv.crossval(
            Source(tmp_path), [0], 2, settings, keep, 1, lambda b, done, tasks: seen.append((done, tasks)), members
        )
        return seen

    assert crossval(QUICK) == [(1, 2), (2, 2)]
    (keep / "seed0-fold0of2" / "golden.npz").write_bytes(b"half of it")
    assert crossval(QUICK) == [(1, 2), (2, 2)]
    assert made == [0, 1, 0]
    # Other settings are another model, and so is an ensemble.
    crossval(replace(QUICK, noise=0.5))
    crossval(QUICK, members=2)
    assert made == [0, 1, 0, 0, 1, 0, 1]


class Here:
    """An executor that works where it is called."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, call: object, *arguments: object) -> object:
        from concurrent.futures import Future

        future: Future[object] = Future()
        future.set_result(call(*arguments))  # type: ignore[operator]
        return future

    def shutdown(self, **_: object) -> None:
        pass


def test_the_commands_explain_themselves() -> None:
    for command in ("train", "crossval"):
        out = CliRunner().invoke(app, [command, "--help"])
        assert out.exit_code == 0
        assert f"har-export {command} --data" in out.output.replace("\n", " ").replace("  ", " ")


@pytest.mark.data
def test_real_recordings_train_and_classify(recorded_data: Path, tmp_path: Path) -> None:
    """A few seconds of training on six subjects already tell most activities of three others apart."""
    data = load(recorded_data)
    some = data.of(data.subjects[:9])
    task = cv.Task(0, 0, 3)

    cv.run_fold(some, task, Settings(epochs=2, epochs_with_everyone=1, context_steps=100), 1, tmp_path)

    summary = cv.summarise([cv.Fold(0, OrtModel(load_bundle(tmp_path)), some.of(cv.held_out(some, task)))])
    assert summary["encoder_and_classifier_bytes"] <= 69 * 1024
    assert summary["code_bytes"] <= 64
    assert summary["streaming_accuracy"]["mean"] > 0.65
    assert summary["filtered_accuracy"]["mean"] > 0.65
    assert summary["reordered_accuracy"]["mean"] > 0.65
    assert list(summary["streaming_classes"]) == list(LABELS)
