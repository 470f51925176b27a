from dataclasses import replace

import numpy as np
import pytest

from agent.adapters.onnx_model import OrtModel
from agent.errors import InputError
from har_export import bundle as bundles
from har_export import evaluate
from har_export.datasets.records import Data, no_windows
from har_export.lab import robustness
from har_export.lab.robustness import changes, rotation, score
from har_export.train import Settings

RNG = np.random.default_rng(0)
QUICK = Settings(epochs=1, epochs_with_everyone=1, context_steps=10, batch=32)


@pytest.fixture(scope="module")
def model(tiny: Data) -> OrtModel:
    return OrtModel(bundles.build(tiny, 0, QUICK, "har-tiny", {})[0])


def test_nothing_changed_scores_as_evaluate_does(model: OrtModel, tiny: Data) -> None:
    data = replace(tiny, windows=no_windows())
    (unchanged,) = changes()["as recorded"]

    found = score(model, data, unchanged, seed=0)

    rows = evaluate.score(model, data).streaming
    activity = rows.of(data.is_activity(rows.truth))
    assert found.single == pytest.approx((activity.truth == activity.predicted).mean())
    assert found.decided == pytest.approx((activity.truth == activity.decided).mean())
    assert found.unknown == pytest.approx((~activity.known).mean())


def test_changes_do_what_they_are_called(tiny: Data) -> None:
    recording = tiny.recordings[0]
    named = changes()

    for turned, axis, angle in zip(
        named["turned by 30° about an axis"], (0, 0, 1, 1, 2, 2), (-30, 30) * 3, strict=True
    ):
        _, values = turned(recording, RNG)
        np.testing.assert_allclose(values[:, :3], recording.values[:, :3] @ rotation(axis, angle).T, atol=1e-5)
        np.testing.assert_allclose(
            np.linalg.norm(values[:, 3:], axis=1), np.linalg.norm(recording.values[:, 3:], axis=1), atol=1e-5
        )
    (lost,) = named["10% of the samples lost"]
    t_ns, values = lost(recording, RNG)
    assert len(values) == pytest.approx(0.9 * len(recording.values), rel=0.05)
    np.testing.assert_array_equal(values, recording.values[np.round(t_ns / 2e7).astype(int)])
    (burst,) = named["10% lost, 0.2 s in a row"]
    long = replace(recording, values=np.tile(recording.values, (50, 1)), label=np.tile(recording.label, 50))
    t_ns, values = burst(long, RNG)
    assert np.diff(t_ns).max() == 11 * 20_000_000
    assert len(values) == pytest.approx(0.9 * len(long.values), rel=0.01)
    (clipped,) = named["acceleration clipped at 1.25 g"]
    assert np.abs(clipped(recording, RNG)[1][:, :3]).max() <= 1.25
    (slow,) = named["sampled at 25 Hz"]
    t_ns, values = slow(recording, RNG)
    assert set(np.diff(t_ns)) == {40_000_000}
    assert len(values) == pytest.approx(len(recording.values) / 2, abs=1)
    assert np.linalg.det(rotation(1, 45)) == pytest.approx(1)


def test_the_table_pools_folds_and_says_what_a_change_costs(
    model: OrtModel, tiny: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        robustness,
        "changes",
        lambda: {name: changes()[name] for name in ("as recorded", "turned by 45° about an axis")},
    )
    folds = [(model, tiny.of(tiny.subjects[:2])), (model, tiny.of(tiny.subjects[2:]))]

    result = robustness.run([folds, folds], "typed", lambda _: None)

    (table,) = result.tables
    assert [row[0] for row in table.rows] == ["as recorded", "turned by 45° about an axis"]
    assert table.rows[0][4] == "+0.0"
    assert len(table.rows[0]) == len(table.columns)
    assert float(table.rows[1][4]) > 0


def test_folds_weigh_as_their_windows_of_activities(model: OrtModel, tiny: Data) -> None:
    (unchanged,) = changes()["as recorded"]
    whole = replace(tiny, windows=no_windows())
    unlabelled = tuple(replace(r, label=np.full_like(r.label, -1)) for r in tiny.recordings[:1])
    without = score(model, replace(whole, recordings=unlabelled), unchanged, seed=0)
    parts = [score(model, whole.of(part), unchanged, seed=0) for part in (whole.subjects[:1], whole.subjects[1:])]

    pooled = robustness._pooled([without, *parts])

    expected = score(model, whole, unchanged, seed=0)
    assert pooled.windows == expected.windows > 0
    assert vars(pooled) == pytest.approx(vars(expected))
    with pytest.raises(InputError, match="no window of an activity"):
        robustness._pooled([without, without])
