from pathlib import Path

import numpy as np
import pytest

from agent.errors import InputError
from har_export.datasets.mnist import Mnist
from har_export.lab import edge_learning
from har_export.lab.edge_learning import METHODS, Trial, draw, run


@pytest.fixture
def blots(monkeypatch: pytest.MonkeyPatch) -> Mnist:
    """Ten kinds of blot, each at a place of its own, under noise; they need few steps to be learnt."""
    monkeypatch.setattr(edge_learning, "LEAST_STEPS", 60)
    rng = np.random.default_rng(0)

    def drawn(n: int) -> tuple[np.ndarray, np.ndarray]:
        label = (np.arange(n) % 10).astype(np.uint8)
        images = rng.integers(0, 60, (n, 28, 28), np.uint8)
        for image, digit in zip(images, label, strict=True):
            image[5 * (digit // 5) + 6 :, 5 * (digit % 5) + 2 :][:4, :4] = 250
        return images, label

    return Mnist(*drawn(400), *drawn(100))


def test_every_method_learns_from_what_it_sends(blots: Mnist, tmp_path: Path) -> None:
    reported: list[Trial] = []

    result = run(blots, [0, 1], "typed", reported.append, sizes=(100, 60_000))

    assert [(t.n, t.seed, t.method) for t in reported] == [(100, seed, method) for seed in (0, 1) for method in METHODS]
    assert all(t.accuracy > 0.8 for t in reported)
    assert all((t.edge_s > 0) == (t.method in edge_learning.REDUCTIONS) and t.cloud_s > 0 for t in reported)
    draw(result, tmp_path / "plots" / "edge_learning.svg")
    assert "autoencoder" in (tmp_path / "plots" / "edge_learning.svg").read_text(encoding="utf-8")


def test_traffic_is_an_image_or_its_code_and_a_label(blots: Mnist) -> None:
    sent = {method: edge_learning.trial(blots, method, 200, 0).traffic_bytes / 200 for method in METHODS}

    assert sent == {
        "cloud-only": 785, "cloud-only, perceptron": 785, "PCA": 157, "LDA": 10, "autoencoder": 157,
    }  # fmt: skip


def test_a_trial_depends_on_its_seed_alone(blots: Mnist, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[np.ndarray] = []
    fit = edge_learning.fit

    def spy(method: str, x: np.ndarray, label: np.ndarray, seed: int) -> edge_learning.Encode:
        drawn.append(x)
        return fit(method, x, label, seed)

    monkeypatch.setattr(edge_learning, "fit", spy)

    first, again, _ = (edge_learning.trial(blots, "PCA", 100, seed).accuracy for seed in (3, 3, 4))

    assert first == again
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert len({image.tobytes() for image in drawn[0]} & {image.tobytes() for image in drawn[2]}) < 50


def test_too_few_images_are_refused(blots: Mnist) -> None:
    with pytest.raises(InputError, match="400 training images are too few"):
        run(blots, [0], "typed")
