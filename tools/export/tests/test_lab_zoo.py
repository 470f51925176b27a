from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from agent.errors import InputError
from har_export.datasets.records import Data, no_windows
from har_export.lab import zoo
from har_export.lab.zoo import classical, compare, config, modules, training
from har_export.lab.zoo.features import NAMES, hand_features
from har_export.train import fit_normalisation

CLASSES = 7
NETWORKS = [name for name in config.names() if config.named(name).kind in modules.KINDS]


def outputs(file: bytes, inputs: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {session.get_inputs()[0].name: inputs})[0])


def test_the_zoo_has_all_that_the_literature_names() -> None:
    assert config.names() == [
        "cnn",
        "cnn_lstm",
        "convlstm",
        "logistic_regression",
        "lstm",
        "micro_biconvlstm",
        "ours",
        "random_forest",
    ]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_trains_and_its_file_computes_what_it_does(tiny: Data, name: str) -> None:
    model = config.named(name)
    torch.manual_seed(0)
    network = modules.build(model.kind, CLASSES, model.network)
    before = [p.detach().clone() for p in network.parameters()]
    normalisation = fit_normalisation(tiny)
    data = Data((), tiny.windows, tiny.labels)

    training.fit(network, data, normalisation, 0, replace(model.training, epochs=1))

    assert all(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert not network.training
    windows = normalisation.apply(tiny.windows.values)
    with torch.no_grad():
        expected = network(torch.from_numpy(windows)).numpy()
    file = modules.to_onnx(network, CLASSES)
    # Where a code of ours lies half-way between two steps, either may come out.
    np.testing.assert_allclose(outputs(file, windows), expected, atol=0.02 if name == "ours" else 1e-4)
    assert compare.parameters(file) * 4 <= len(file)


@pytest.mark.parametrize(("name", "most"), [("lstm", 1_600_000), ("convlstm", 3_500_000)])
def test_the_papers_models_are_at_most_its_size(name: str, most: int) -> None:
    model = config.named(name)

    assert most / 4 < len(modules.to_onnx(modules.build(model.kind, CLASSES, model.network).eval(), CLASSES)) <= most


def test_the_small_one_is_of_microbiconvlstms_class() -> None:
    model = config.named("micro_biconvlstm")

    network = modules.build(model.kind, CLASSES, model.network)

    assert 0.8 * 11_400 < sum(p.numel() for p in network.parameters()) <= 11_400


def test_teachers_are_listened_to(tiny: Data) -> None:
    model = config.named("cnn")
    data, normalisation = Data((), tiny.windows, tiny.labels), fit_normalisation(tiny)

    class Stubborn(modules.Cnn):
        def forward(self, windows: torch.Tensor) -> torch.Tensor:
            return torch.eye(CLASSES)[6].mul(20).expand(len(windows), -1)

    student = modules.build(model.kind, CLASSES, model.network)
    settings = replace(model.training, epochs=12, batch=8)
    training.fit(student, data, normalisation, 0, settings, teachers=[Stubborn(CLASSES, (4,), (3,), (2,))])

    with torch.no_grad():
        logits = student(torch.from_numpy(normalisation.apply(tiny.windows.values)))
    assert (logits.argmax(dim=1) == 6).all()


def test_the_baselines_files_compute_what_scikit_learn_does(tiny: Data) -> None:
    features, label = hand_features(tiny.windows.values), tiny.windows.label
    mean, sd = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)
    forest = RandomForestClassifier(20, min_samples_leaf=2, random_state=3).fit(features, label)
    logistic = LogisticRegression(C=0.1, max_iter=2000).fit((features - mean) / sd, label)

    trees = outputs(classical.fit_forest(features, label, CLASSES, 3, trees=20, leaf=2), features)
    linear = outputs(classical.fit_logistic(features, label, CLASSES, 3, strength=0.1), features)

    np.testing.assert_allclose(trees[:, :6], forest.predict_proba(features), atol=1e-5)
    np.testing.assert_allclose(linear[:, :6], logistic.decision_function((features - mean) / sd), atol=1e-3)
    assert (trees[:, 6] == 0).all()
    assert (linear.argmax(axis=1) < 6).all()


def test_hand_features_measure_what_their_names_say() -> None:
    t = np.arange(128) / 50
    window = np.zeros((1, 128, 6), np.float32)
    window[0, :, 0] = 1 + 0.5 * np.sin(2 * np.pi * 2.0 * t)
    window[0, :, 1] = 0.25 * np.sin(2 * np.pi * 2.0 * t)

    found = dict(zip(NAMES, hand_features(window)[0].tolist(), strict=True))

    assert found["ax_mean"] == pytest.approx(1, abs=0.03)
    assert found["ax_sd"] == pytest.approx(0.5 / 2**0.5, rel=0.05)
    assert found["ax_peak_hz"] == pytest.approx(2.0, abs=0.4)
    assert found["ax_power_1.7_2.5"] > found["ax_power_6.0_12.0"] + 3
    assert found["ay_ax_correlation"] == pytest.approx(1, abs=1e-3)
    assert found["gz_sd"] == 0
    assert np.isfinite(hand_features(np.zeros((2, 128, 6), np.float32))).all()


def test_a_config_that_nothing_reads_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    for text, said in (
        ('title = "x"\nkind = "perceptron"', "'perceptron' is not known"),
        ('title = "x"\nkind = "cnn"\n[training]\nepoch = 3', "epoch"),
        ('title = "x"\nkind =', "mine.toml is no config"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=said):
            config.read(path)
    with pytest.raises(InputError, match="the zoo has no 'lst'"):
        config.named("lst")


def test_a_run_is_kept_and_not_measured_again(tiny: Data, tmp_path: Path) -> None:
    said: list[str] = []
    names = ("cnn", "logistic_regression")

    first = zoo.run(tiny, tmp_path, "typed", said.append, (0, 1), names, rounds=1)

    assert any(line.startswith("cnn, seed 1: epoch") for line in said)
    said.clear()
    again = zoo.run(tiny, tmp_path, "typed", said.append, (0, 1), names, rounds=1)
    assert said == ["timing"]
    for name in names:
        assert again.data[name]["results"] == first.data[name]["results"]
        for result in first.data[name]["results"]:
            file = tmp_path / f"{name}-seed{result['seed']}.onnx"
            assert result["bytes"] == file.stat().st_size
            assert 0 <= result["macro_f1"] <= 1
    assert [len(row) for row in first.tables[0].rows] == [len(first.tables[0].columns)] * 2


def test_who_is_scored_was_not_trained_on(tiny: Data) -> None:
    held = []
    for seed in compare.SEEDS:
        split = compare.split_of(tiny, seed)
        unseen = set(split.unseen.subject.tolist())
        assert unseen.isdisjoint(split.training.subjects)
        assert unseen | set(split.training.subjects) == set(tiny.subjects)
        held.append(unseen)
    assert len({frozenset(h) for h in held}) > 1


def test_recordings_alone_cannot_be_compared(tiny: Data) -> None:
    with pytest.raises(InputError, match="the data holds none"):
        compare.split_of(replace(tiny, windows=no_windows()), 0)
