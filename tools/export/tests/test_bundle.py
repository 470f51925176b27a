import io
import json
from pathlib import Path

import numpy as np
import pytest

from agent.adapters.bundle import load_bundle, read_golden
from agent.adapters.onnx_model import OrtModel
from agent.core.manifest import Bundle
from agent.errors import InputError, ModelContractError
from agent.records import Scores
from har_export import bundle as bundles
from har_export.calibrate import (
    QUANTILES,
    all_windows,
    calibrate,
    fit_temperature,
    hold_out,
    negative_log_likelihood,
)
from har_export.datasets.records import Data
from har_export.datasets.smartphone import LABELS
from har_export.golden import golden_windows
from har_export.train import Settings

QUICK = Settings(epochs=1, epochs_with_everyone=1, context_steps=10, batch=32)


@pytest.fixture
def built(tiny: Data) -> Bundle:
    return bundles.build(tiny, 0, QUICK, "har-tiny", {})[0]


def test_the_agent_accepts_what_is_written(built: Bundle, tmp_path: Path) -> None:
    bundles.write(built, tmp_path / "har-tiny")

    read = load_bundle(tmp_path / "har-tiny")

    assert read.id == built.id
    assert read.contents == built.contents
    assert read.manifest.labels == LABELS
    assert read.manifest.code.bytes == 64
    OrtModel(read).verify(read_golden(read))
    assert read.manifest.context is not None
    with np.load(io.BytesIO(read.contents["exemplars.npz"])) as exemplars:
        assert exemplars["codes"].shape[1:] == (read.manifest.context.windows, 64)


def test_a_damaged_file_is_noticed_when_it_is_written(built: Bundle, tmp_path: Path) -> None:
    contents = {**built.contents, "decoder.onnx": built.contents["decoder.onnx"][:-1]}

    with pytest.raises(ModelContractError, match=r"decoder\.onnx"):
        bundles.write(Bundle(built.manifest, built.digest, contents), tmp_path)


def test_the_same_seed_gives_the_same_bytes(tiny: Data, built: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    first, second = (bundles.build(tiny, 3, QUICK, "har-tiny", {})[0] for _ in range(2))

    assert first.contents == second.contents
    assert first.digest == second.digest
    assert first.manifest.created == "2023-11-14T22:13:20+00:00"
    assert first.contents["encoder.onnx"] != built.contents["encoder.onnx"]


def test_the_manifest_says_what_was_trained_on(built: Bundle, tiny: Data) -> None:
    training = built.manifest.training

    _, label = all_windows(tiny, 128)
    counted = sum(n for entry in training["data"] for n in entry["windows"].values())
    assert counted + training["data"][0]["unlabelled"] == len(label)
    assert training["subjects"] == list(tiny.subjects)
    assert training["calibration_subjects"] == list(hold_out(tiny.subjects, 0))
    assert "Anguita" in training["data"][1]["citation"]
    held_out = built.manifest.metrics["held_out"]
    assert held_out["float_accuracy"] == pytest.approx(held_out["accuracy"], abs=0.1)


def test_the_card_carries_measured_figures_and_terms(tiny: Data) -> None:
    over_seeds = {"mean": 0.9512, "sd": 0.0021, "min": 0.9487, "by_seed": [0.9487, 0.9537]}
    crossval = {
        "folds": 5,
        "seeds": [0, 1],
        "streaming_accuracy": over_seeds,
        "streaming_worst_subject": {"subject": "14", "accuracy": 0.8123},
        "streaming_classes": {"sitting": {"precision": 0.91, "recall": 0.92, "f1": 0.915}},
    }

    built, _ = bundles.build(tiny, 0, QUICK, "har-tiny", {"crossval": crossval})
    card = " ".join(built.contents["CARD.md"].decode().split())

    assert "95.12% | 0.21% | 94.87%" in card
    assert "the worst subject, 14, has 81.2%" in card
    assert "| sitting | 91.0% | 92.0% | 91.5% |" in card
    assert card.count("no commercial use") == 2
    assert "16 windows, 20.5 s" in card
    assert "$" not in card


def test_golden_windows_are_synthetic_and_varied() -> None:
    windows = golden_windows(128, 50.0)

    assert windows.shape == (32, 128, 6)
    assert windows.dtype == np.float32
    np.testing.assert_array_equal(windows, golden_windows(128, 50.0))
    gravity = np.linalg.norm(windows[:, :, :3].mean(axis=1), axis=1)
    assert ((gravity > 0.7) & (gravity < 1.3)).all()
    moving = windows.std(axis=1).max(axis=1)
    assert (moving < 0.05).sum() >= 8
    assert (moving > 0.1).sum() >= 8


def test_golden_vectors_cover_more_than_one_label(built: Bundle) -> None:
    with np.load(io.BytesIO(built.contents["golden.npz"])) as golden:
        assert len(np.unique(golden["code"], axis=0)) == 32
        assert golden["novelty"].dtype == np.float64


def test_one_subject_is_not_enough(tiny: Data) -> None:
    with pytest.raises(InputError, match="at least two subjects"):
        bundles.build(tiny.of(["1"]), 0, QUICK, "har-tiny", {})


def test_held_out_subjects_are_some_and_not_all() -> None:
    many = tuple(str(i) for i in range(20))

    assert len(hold_out(("1", "2"), 0)) == 1
    assert len(hold_out(many, 0)) == 4
    assert {hold_out(many, seed) for seed in range(4)} != {hold_out(many, 0)}


def test_temperature_recovers_overconfidence() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 7)).astype(np.float32)
    odds = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    label = (odds.cumsum(axis=1) > rng.random((len(odds), 1))).argmax(axis=1)

    assert fit_temperature(3 * logits, label) == pytest.approx(3.0, rel=0.05)
    assert negative_log_likelihood(3 * logits, label, 3.0) < negative_log_likelihood(3 * logits, label, 1.0)


class Scripted:
    """Scores by rule: the logit of class 0 is the first value, novelty the second."""

    labels = LABELS

    def __init__(self, built: Bundle) -> None:
        self.bundle = built._replace(manifest=built.manifest._replace(context=None))

    def infer(self, windows: np.ndarray) -> Scores:
        logits = np.zeros((len(windows), 7), np.float32)
        logits[:, 0] = np.abs(windows[:, 0, 0])
        novelty = windows[:, 0, 1].astype(np.float64) ** 2
        return Scores(logits, np.zeros((len(windows), 64), np.int8), novelty)


def test_the_threshold_is_a_quantile_of_what_was_held_out(tiny: Data, built: Bundle) -> None:
    values, label = all_windows(tiny, 128)
    values, label = values[label >= 0], label[label >= 0]
    novelty = built.manifest.normalisation.apply(values)[:, 0, 1].astype(np.float64) ** 2

    calibration, context, measured = calibrate(Scripted(built), tiny, [])

    assert context is None
    assert calibration.novelty_threshold == pytest.approx(1.25 * np.quantile(novelty, 0.995))
    assert (novelty > calibration.novelty_threshold).mean() <= 0.01
    assert list(calibration.novelty_quantiles) == [str(q) for q in QUANTILES]
    activity = tiny.is_activity(label)
    assert measured["accuracy"] == pytest.approx((label[activity] == 0).mean())
    assert measured["windows"] == activity.sum()


def test_the_float_variant_is_the_same_model(tiny: Data, tmp_path: Path) -> None:
    built, (network,) = bundles.build(tiny, 0, QUICK, "har-tiny", {})

    variant = bundles.float_variant(built, network)

    bundles.write(variant, tmp_path / "har-tiny-float")
    assert variant.manifest.name == "har-tiny-float"
    assert variant.manifest.calibration == built.manifest.calibration
    for name in ("context.onnx", "novelty.onnx", "exemplars.npz"):
        assert variant.contents[name] == built.contents[name]
    window = golden_windows(128, 50.0)
    ours, theirs = (OrtModel(b).infer(b.manifest.normalisation.apply(window)) for b in (variant, built))
    assert np.abs(ours.code.astype(int) - theirs.code).mean() < 2
    assert (ours.logits.argmax(1) == theirs.logits.argmax(1)).mean() > 0.8


def test_the_manifest_is_json_without_surprises(built: Bundle, tmp_path: Path) -> None:
    bundles.write(built, tmp_path)

    text = (tmp_path / "manifest.json").read_text()

    assert json.loads(text, parse_constant=pytest.fail)["name"] == "har-tiny"
