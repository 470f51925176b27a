import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from agent.errors import InputError
from har_export.datasets.records import Data, no_windows
from har_export.lab import coding, reduction
from har_export.lab.reduction import CODE, DELTAS, FAMILIES, HOP, SAMPLES, Point, draw, run, summarise
from har_export.train import Settings

ONE_EPOCH = Settings(epochs=1, epochs_with_everyone=1, context_steps=10, batch=32)


@pytest.fixture
def walk() -> torch.Tensor:
    """Normalised windows that wander, as recorded ones do."""
    steps = torch.randn(40, 128, 6, generator=torch.Generator().manual_seed(0))
    return steps.cumsum(dim=1) * 0.1


def test_differences_arrive_as_the_rounded_window(walk: torch.Tensor) -> None:
    arrived, integers = reduction.differences(walk, 0.05)

    torch.testing.assert_close(arrived, (walk / 0.05).round() * 0.05)
    torch.testing.assert_close(arrived[:, :1] + integers.cumsum(dim=1) * 0.05, arrived)


def test_a_jump_that_int8_cannot_hold_is_made_up_for() -> None:
    window = torch.zeros(1, 128, 6)
    window[:, 50:] = 3.0

    arrived, integers = reduction.differences(window, 0.01)

    assert integers.abs().max() == 127
    assert arrived[0, 50, 0] == pytest.approx(1.27)
    torch.testing.assert_close(arrived[0, 53:], window[0, 53:])


def test_what_is_sent_of_a_window_is_its_last_hop(walk: torch.Tensor) -> None:
    sent = reduction.deltas(0.05).integers(walk)

    assert sent.shape == (40, 6, HOP)
    np.testing.assert_array_equal(sent[3, 2], reduction.differences(walk, 0.05)[1][3, HOP:, 2].numpy())


def test_coded_bytes_are_those_of_the_shorter_code(walk: torch.Tensor) -> None:
    sent = reduction.deltas(0.05).integers(walk)
    still = np.zeros_like(sent)

    coded = reduction.coded_bytes(sent, sent)

    for size, message in zip(coded, sent, strict=True):
        deflated = reduction.deflate(message.tobytes())
        assert zlib.decompress(deflated, -zlib.MAX_WBITS) == message.tobytes()
        assert 1 < size <= 1 + len(deflated)
    # Six streams of 64 equal symbols: one bit each, or a few bytes deflated.
    assert reduction.coded_bytes(still, still).max() <= 1 + 6 * HOP // 8
    assert reduction.coded_bytes(still, still).max() == 1 + len(reduction.deflate(still[0].tobytes()))


def test_a_huffman_code_is_a_complete_prefix_code_near_the_entropy() -> None:
    counts = np.random.default_rng(0).geometric(0.02, 256)

    lengths = np.array(coding.huffman_lengths(counts.tolist()))

    assert (0.5**lengths).sum() == 1
    share = counts / counts.sum()
    entropy = -(share * np.log2(share)).sum()
    assert entropy <= (share * lengths).sum() <= entropy + 0.1


def test_projections_are_int8_and_come_back(walk: torch.Tensor) -> None:
    decoded, vector = reduction.pca(walk, 20)

    assert vector.integers(walk).shape == (40, 20, 1)
    assert vector.integers(walk).dtype == np.int8
    assert vector.arrives(walk).std(dim=0).mean() == pytest.approx(1, abs=0.01)
    left = (decoded.arrives(walk) - walk).square().mean() / walk.var()
    assert left < 0.1
    label = np.arange(40) % 3
    assert reduction.lda(walk, label).integers(walk).shape == (40, 2, 1)


def test_held_out_subjects_are_not_fitted_on(tiny: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(training: Data, unseen: Data, seed: int, settings: Settings):
        seen.append((set(training.subjects), set(unseen.subjects), len(training.recordings)))
        yield from [Point(f, "", seed, 64, 64.0, 0.9) for f in FAMILIES]

    monkeypatch.setattr(reduction, "fold_points", spy)

    run(tiny, [0, 1], ONE_EPOCH, "typed")

    assert len(seen) == 2
    for training, unseen, recordings in seen:
        assert training.isdisjoint(unseen)
        assert training | unseen == set(tiny.subjects)
        assert recordings == 0


def test_every_reduction_is_measured(tiny: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CODES", "COMPONENTS"):
        monkeypatch.setattr(reduction, name, (8,))
    monkeypatch.setattr(reduction, "DELTA_STEPS", (0.1,))
    reported: list[Point] = []

    result = run(tiny, [0], ONE_EPOCH, "typed", reported.append)

    assert {p.family for p in reported} == set(FAMILIES)
    sizes = {p.family: p.bytes for p in reported}
    assert (sizes[SAMPLES], sizes[DELTAS], sizes[CODE], sizes[reduction.LDA_VECTOR]) == (768, 384, 8, 5)
    assert all(p.coded > 1 and 0 <= p.accuracy <= 1 for p in reported)
    draw(result, tmp_path / "plots" / "reduction.svg")
    assert "int8 differences" in (tmp_path / "plots" / "reduction.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("coded", "says"),
    [
        (200.0, "code beats int8 and differences, even as it is."),
        (60.0, "code beats int8 and differences only if it is coded"),
        (30.0, "code does not beat int8"),
    ],
)
def test_the_docs_say_who_wins(coded: float, says: str) -> None:
    points = [Point(family, "", seed, 64, 50.0, 0.95) for family in FAMILIES if family != DELTAS for seed in (0, 1)]
    points += [Point(DELTAS, "fine", seed, 384, coded, 0.948) for seed in (0, 1)]
    points += [Point(DELTAS, "coarse", seed, 384, 20.0, 0.9) for seed in (0, 1)]

    assert any(says in paragraph for paragraph in summarise(points, "typed").text)


def test_recordings_alone_are_refused(tiny: Data) -> None:
    with pytest.raises(InputError, match="no ready-cut windows"):
        run(replace(tiny, windows=no_windows()), [0], ONE_EPOCH, "typed")
