from dataclasses import replace

import numpy as np
import pytest
import torch

from agent.errors import InputError
from har_export.datasets.records import Data, no_windows
from har_export.train import (
    Progress,
    Sampler,
    Settings,
    augment,
    fit_normalisation,
    idle,
    rotations,
    streaming_windows,
    to_input,
    train,
)

ONE_EPOCH = Settings(epochs=1, epochs_with_everyone=1, context_steps=10, batch=32)
HOP = ONE_EPOCH.hop


def test_windows_overlap_by_half(tiny: Data) -> None:
    recording = tiny.recordings[0]

    windows, middle = streaming_windows(recording, 128)

    assert middle[0] == 64
    assert set(np.diff(middle)) == {HOP}
    assert len(recording.values) - (middle[-1] + 64) < HOP
    np.testing.assert_array_equal(windows[3], recording.values[192:320])


def test_an_epoch_shows_every_window_once_with_its_label(tiny: Data) -> None:
    sampler = Sampler(tiny, 128, seed=0)

    batches = list(sampler.epoch(50))

    values = np.concatenate([v.numpy() for v, _, _ in batches])
    label = np.concatenate([x.numpy() for _, x, _ in batches])
    assert len(batches) == sampler.batches(50)
    streamed = sum((len(r.values) - 128 - HOP) // HOP + 1 for r in tiny.recordings)
    assert len(values) == len(label) == streamed + len(tiny.windows.label)
    shown = {v.tobytes(): int(x) for v, x in zip(values, label, strict=True)}
    for window, expected in zip(tiny.windows.values, tiny.windows.label, strict=True):
        assert shown[window.tobytes()] == expected
    for recording in tiny.recordings:
        everywhere = np.lib.stride_tricks.sliding_window_view(recording.values, 128, axis=0).transpose(0, 2, 1)
        at = [i for i, w in enumerate(everywhere) if np.ascontiguousarray(w).tobytes() in shown]
        assert set(np.diff(at)) == {HOP}
        assert [shown[np.ascontiguousarray(everywhere[i]).tobytes()] for i in at] == [
            recording.label[i + 64] for i in at
        ]


def test_epochs_cut_the_recordings_at_other_offsets(tiny: Data) -> None:
    sampler = Sampler(replace(tiny, windows=no_windows()), 128, seed=0)
    first, second = ({v.tobytes() for b, _, _ in sampler.epoch(64) for v in b.numpy()} for _ in range(2))

    assert first.isdisjoint(second)


def test_rotations_are_rotations_within_the_limit() -> None:
    turns = rotations(200, 30.0, torch.Generator().manual_seed(0)).double()

    identity = torch.eye(3, dtype=torch.float64).expand(200, 3, 3)
    torch.testing.assert_close(turns @ turns.transpose(1, 2), identity, atol=1e-6, rtol=0)
    trace = turns.diagonal(dim1=1, dim2=2).sum(1)
    degrees = torch.rad2deg(torch.arccos(((trace - 1) / 2).clamp(-1, 1)))
    assert degrees.max() <= 30.01
    assert degrees.max() > 25
    torch.testing.assert_close(torch.linalg.det(turns), torch.ones(200, dtype=torch.float64), atol=1e-5, rtol=0)


def test_augmentation_turns_both_sensors_alike() -> None:
    still = replace(ONE_EPOCH, noise=0.0, acc_scale=0.0, gyro_scale=0.0)
    values = torch.randn(8, 128, 3).repeat(1, 1, 2)

    turned = augment(values, still, torch.Generator().manual_seed(3))

    torch.testing.assert_close(turned[:, :, :3], turned[:, :, 3:])
    torch.testing.assert_close(turned[:, :, :3].norm(dim=2), values[:, :, :3].norm(dim=2))
    assert (turned - values).abs().max() > 0.1


def test_training_sees_what_the_agent_sees(tiny: Data) -> None:
    normalisation = fit_normalisation(tiny)
    windows, _ = streaming_windows(tiny.recordings[0], 128)

    ours = to_input(torch.from_numpy(windows), normalisation).numpy()

    np.testing.assert_array_equal(ours, normalisation.apply(windows))


def test_normalisation_is_fitted_on_recordings_alone_if_there_are_any(tiny: Data) -> None:
    samples = np.concatenate([r.values for r in tiny.recordings])

    np.testing.assert_allclose(fit_normalisation(tiny).mean, samples.mean(axis=0), atol=1e-5)

    filtered = Data((), tiny.windows, tiny.labels)
    expected = tiny.windows.values.reshape(-1, 6).std(axis=0)
    np.testing.assert_allclose(fit_normalisation(filtered).std, expected, rtol=1e-4)


def test_training_is_reproducible_and_depends_on_the_seed(tiny: Data) -> None:
    def weights(seed: int) -> torch.Tensor:
        network, _ = train(tiny, seed, ONE_EPOCH)
        return torch.cat([p.detach().flatten() for p in network.parameters()])

    torch.testing.assert_close(weights(0), weights(0), atol=0, rtol=0)
    assert not torch.equal(weights(0), weights(1))


def test_training_learns_and_reports(tiny: Data) -> None:
    seen: list[Progress] = []

    train(tiny, 0, replace(ONE_EPOCH, epochs=6), seen.append)

    assert [p.epoch for p in seen] == [1, 2, 3, 4, 5, 6]
    assert seen[-1].loss < 0.7 * seen[0].loss
    assert seen[-1].left_s == 0


def test_nothing_to_train_on_is_said() -> None:
    with pytest.raises(InputError, match="not one window"):
        Sampler(Data((), no_windows(), ("a", "b")), 128, 0)


def test_finer_classes_are_shown_beside_the_labels(tiny: Data) -> None:
    finer = tuple(replace(r, detail=np.where(r.label < 0, -1, r.label + 10)) for r in tiny.recordings)
    sampler = Sampler(replace(tiny, recordings=finer, windows=no_windows()), 128, seed=0)

    _, label, detail = next(sampler.epoch(1000))

    torch.testing.assert_close(detail[label >= 0], label[label >= 0] + 10)
    assert (detail[label < 0] == -1).all()


def test_a_sensor_that_nobody_wears_feels_gravity_and_its_own_noise() -> None:
    values = idle(50, 128, torch.Generator().manual_seed(0))

    assert values.shape == (50, 128, 6)
    torch.testing.assert_close(values[:, :, :3].mean(dim=1).norm(dim=1), torch.ones(50), atol=0.01, rtol=0)
    assert values.std(dim=1).max() < 0.015
    assert values[:, :, 0].mean(dim=1).min() < -0.5 < 0.5 < values[:, :, 0].mean(dim=1).max()


def test_another_rate_and_window_can_be_trained(tiny: Data) -> None:
    settings = replace(ONE_EPOCH, window=64)

    network, _ = train(replace(tiny, windows=no_windows()), 0, settings)

    logits, rebuilt = network(torch.zeros(2, 64, 6))
    assert (logits.shape, rebuilt.shape) == ((2, 7), (2, 64, 6))
    with pytest.raises(InputError, match="multiple of 8"):
        train(replace(tiny, windows=no_windows()), 0, replace(ONE_EPOCH, window=100))
