import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from agent.errors import InputError
from har_export import bundle as bundles
from har_export import crossval as cv
from har_export.cli import app, table
from har_export.datasets import Data, load
from har_export.datasets.records import LABELS
from har_export.train import Settings, streaming_windows

QUICK = Settings(epochs=1, batch=32)


def scored(subject: list[int], truth: list[int], predicted: list[int]) -> dict[str, list[int]]:
    return {"subject": subject, "truth": truth, "predicted": predicted, "unknown": [0] * len(truth)}


def result(seed: int, streaming: dict[str, list[int]]) -> dict[str, object]:
    return {
        "task": {"seed": seed, "fold": 0, "folds": 2},
        "settings": {},
        "sizes": {"encoder.onnx": 100, "classifier.onnx": 20, "decoder.onnx": 7},
        "code_bytes": 64,
        "held_out": {"accuracy": 0.9, "float_accuracy": 0.91},
        "streaming": streaming,
        "filtered": scored([], [], []),
    }


def save(data: Data, path: Path) -> None:
    """Write `data` in the packed layouts."""
    values = np.concatenate([r.values for r in data.recordings])
    publisher = np.concatenate([r.label for r in data.recordings]) + 1
    np.savez(
        path / "hapt.npz", acc=np.round(values[:, :3] * 1000).astype(np.int16), acc_scale=0.001,
        gyro=np.round(values[:, 3:] * 1000).astype(np.int16), gyro_scale=0.001, y=publisher,
        offset=np.cumsum([0, *(len(r.values) for r in data.recordings)]),
        exp=[r.experiment for r in data.recordings], user=[r.subject for r in data.recordings],
    )  # fmt: skip


def test_every_subject_is_scored_once_and_folds_differ_by_seed() -> None:
    subjects = range(1, 22)

    folds = cv.folds_of(subjects, 5, seed=0)

    assert sorted(s for fold in folds for s in fold) == list(subjects)
    assert sorted(len(fold) for fold in folds) == [4, 4, 4, 4, 5]
    assert folds != cv.folds_of(subjects, 5, seed=1)
    with pytest.raises(InputError, match="3 subjects cannot be dealt out to 5 folds"):
        cv.folds_of([1, 2, 3], 5, 0)


def test_scored_subjects_take_no_part_in_training(tiny: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = bundles.build

    def build(data: Data, *rest: object) -> object:
        seen.append(data.subjects)
        return real(data, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(bundles, "build", build)

    outcome = cv.run_fold(tiny, cv.Task(0, 1, 5), QUICK)

    held = set(outcome["subjects"])
    assert held.isdisjoint(seen[0])
    assert held | set(seen[0]) == set(tiny.subjects)
    assert set(outcome["streaming"]["subject"]) == set(outcome["filtered"]["subject"]) == held


def test_the_pipeline_scores_the_windows_that_training_would_cut(tiny: Data) -> None:
    outcome = cv.run_fold(tiny, cv.Task(0, 0, 5), QUICK)

    expected = [
        label
        for r in tiny.of(outcome["subjects"]).recordings
        for label in streaming_windows(r)[1].tolist()
        if label >= 0
    ]
    assert outcome["streaming"]["truth"] == expected
    assert set(outcome["streaming"]["unknown"]) <= {0, 1}


def test_the_summary_counts_a_predicted_transition_as_an_error() -> None:
    first = result(0, scored([1, 1, 3, 3, 3], [0, 1, 3, 4, 6], [0, 6, 3, 3, 6]))
    second = result(1, scored([1, 1, 3, 3, 3], [0, 1, 3, 4, 6], [0, 1, 3, 4, 0]))

    summary = cv.summarise([first, second])

    accuracy = summary["streaming_accuracy"]
    assert accuracy["by_seed"] == [0.5, 1.0]
    assert (accuracy["mean"], accuracy["min"]) == (0.75, 0.5)
    assert accuracy["sd"] == pytest.approx(np.std([0.5, 1.0], ddof=1))
    assert summary["transition_recall"]["by_seed"] == [1.0, 0.0]
    assert summary["streaming_windows"] == 4
    assert summary["streaming_subjects"] == {"1": 0.75, "3": 0.75}
    assert summary["encoder_and_classifier_bytes"] == 120
    assert summary["streaming_classes"]["walking"]["recall"] == 1.0
    assert summary["streaming_classes"]["walking"]["precision"] == pytest.approx(2 / 3)
    assert np.sum(summary["streaming_confusion"]) == 10
    assert "filtered_accuracy" not in summary
    text = table(summary)
    assert "75.00%  (sd over seeds 35.36%, lowest 50.00%)" in text
    assert "encoder + classifier 120 bytes" in text
    assert "lost by quantisation 1.00%" in text


def test_crossval_goes_on_where_it_stopped(tiny: Data, tmp_path: Path) -> None:
    save(tiny, tmp_path)
    keep = tmp_path / "results"
    keep.mkdir()
    old = result(0, scored([1], [0], [0])) | {
        "task": {"seed": 0, "fold": 0, "folds": 2},
        "settings": cv.asdict(QUICK),
    }
    (keep / "seed0-fold0.json").write_text(json.dumps(old))
    (keep / "seed0-fold1.json").write_text(json.dumps({**old, "task": {"seed": 0, "fold": 1, "folds": 9}}))
    seen = []

    results = cv.crossval(tmp_path, [0], 2, QUICK, keep, 1, lambda r, done, tasks: seen.append((done, tasks)))

    assert seen == [(1, 2), (2, 2)]
    assert results[0] == old
    assert json.loads((keep / "seed0-fold1.json").read_text()) == results[1]
    assert results[1]["task"] == {"seed": 0, "fold": 1, "folds": 2}
    assert len(results[1]["streaming"]["truth"]) > 50


def test_the_commands_explain_themselves() -> None:
    for command in ("train", "crossval"):
        out = CliRunner().invoke(app, [command, "--help"])
        assert out.exit_code == 0
        assert f"har-export {command} --data" in out.output.replace("\n", " ").replace("  ", " ")


@pytest.mark.data
def test_real_recordings_train_and_classify(recorded_data: Path) -> None:
    """A few seconds of training on six subjects already tell most activities of three others apart."""
    data = load(recorded_data)
    some = data.of(data.subjects[:9])
    settings = Settings(epochs=2)

    outcome = cv.run_fold(some, cv.Task(0, 0, 3), settings)

    summary = cv.summarise([outcome])
    assert summary["encoder_and_classifier_bytes"] <= 69 * 1024
    assert summary["code_bytes"] <= 128
    assert summary["streaming_accuracy"]["mean"] > 0.8
    assert summary["filtered_accuracy"]["mean"] > 0.8
    assert list(summary["streaming_classes"]) == list(LABELS)
