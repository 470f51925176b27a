"""Another model in the middle of a stream, and streams that go and come back."""

import numpy as np
import pytest
from fakes import FakeModel, cut, even_times, fed, manifest, signal

from agent.core.decision import DecisionSettings
from agent.errors import ModelContractError
from agent.pipeline import Pipeline
from agent.records import ActivityChange, Loss, Prediction


class Other(FakeModel):
    id = "other@11111111"

    def __init__(self, labels=FakeModel.labels):
        super().__init__()
        self.labels = labels


def predictions(events):
    return [e for e in events if isinstance(e, Prediction)]


@pytest.mark.parametrize("at", [0, 1, 7, 19])
def test_a_swap_between_feeds_loses_no_window_and_changes_no_time(at):
    batches = cut(even_times(1000), signal(1000), [37])
    alone = fed(Pipeline(FakeModel(), manifest()), batches)
    pipeline = Pipeline(FakeModel(), manifest())

    events = fed(pipeline, batches[:at])
    pipeline.swap(Other(), manifest())
    events += fed(pipeline, batches[at:])

    # The other model scores alike: all that may differ is whose name is on a prediction.
    assert [e._replace(model="") if isinstance(e, Prediction) else e for e in events] == [
        e._replace(model="") if isinstance(e, Prediction) else e for e in alone
    ]
    assert predictions(events)[-1].model == "other@11111111"


def test_other_labels_are_decided_anew():
    labels = ("sleeping", "awake", "dreaming")
    pipeline = Pipeline(FakeModel(), manifest(), DecisionSettings(smoothing_s=100, hold_s=100))
    batches = cut(even_times(640), signal(640), [64])
    fed(pipeline, batches[:5])

    pipeline.swap(Other(labels), manifest()._replace(labels=labels))
    events = pipeline.feed([batches[5]])

    assert predictions(events)[0].activity in labels
    assert [e.previous for e in events if isinstance(e, ActivityChange)] == [None]


def test_threshold_normalisation_and_temperature_are_those_of_the_model_that_runs():
    pipeline = Pipeline(FakeModel(), manifest(threshold=5.0))
    batches = cut(even_times(640), signal(640), [64])
    before = predictions(fed(pipeline, batches[:5]))
    pipeline.swap(Other(), manifest(threshold=0.01))
    after = predictions(fed(pipeline, batches[5:]))

    assert all(p.known for p in before)
    assert not any(p.known for p in after)


def test_a_bundles_own_hop_follows_it_and_a_configured_one_stays():
    for configured, expected in ((None, [64, 64, 32, 32]), (64, [64, 64, 64, 64])):
        pipeline = Pipeline(FakeModel(), manifest(), hop=configured)
        batches = cut(even_times(128 + 64 * 5), signal(128 + 64 * 5), [64])
        events = fed(pipeline, batches[:3])
        pipeline.swap(Other(), manifest(hop=32))
        events += fed(pipeline, batches[3:])

        starts = [round(p.t0_ns / 2e7) for p in predictions(events)]
        assert np.diff(starts).tolist()[:4] == expected


@pytest.mark.parametrize("change", [{"rate_hz": 100.0}, {"window": 256}, {"acc_unit": "m/s2"}])
def test_a_model_with_another_input_is_refused_and_the_old_one_goes_on(change):
    pipeline = Pipeline(FakeModel(), manifest())
    other = manifest()._replace(input=manifest().input._replace(**change))

    with pytest.raises(ModelContractError, match="cannot take over live"):
        pipeline.swap(Other(), other)

    assert predictions(fed(pipeline, cut(even_times(200), signal(200), [200])))[0].model == FakeModel.id


def test_the_tap_sees_windows_as_they_were_measured():
    seen = []
    scaled = manifest()._replace(
        normalisation=type(manifest().normalisation)(np.ones(6, np.float32), np.full(6, 2, np.float32))
    )
    pipeline = Pipeline(FakeModel(), scaled)
    pipeline.tap = lambda windows: seen.append(windows.copy())
    values = signal(192)
    fed(pipeline, cut(even_times(192), values, [192]))

    assert np.array_equal(np.concatenate(seen), np.stack([values[:128], values[64:]]))


def test_a_stream_that_comes_back_uses_no_number_again():
    pipeline = Pipeline(FakeModel(), manifest())
    first = predictions(fed(pipeline, cut(even_times(650), signal(650), [50], "a")))
    counts = pipeline.retire("a")
    other = predictions(fed(pipeline, cut(even_times(320), signal(320), [50], "b")))
    pipeline.retire("b")
    again = predictions(fed(pipeline, cut(even_times(640, t0_s=99), signal(640), [50], "a")))

    numbers = [p.seq for p in (*first, *again)]
    assert counts.windows == len(first)
    assert counts.losses == {Loss.PARTIAL_WINDOW: 650 - 128 - 64 * (len(first) - 1)}
    assert len(set(numbers)) == len(numbers)
    assert [p.seq for p in again] == list(range(other[-1].seq + 1, other[-1].seq + 1 + len(again)))
    assert pipeline.counts()["a"].windows == len(again)
