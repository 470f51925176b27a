from itertools import pairwise

import numpy as np
import pytest
from fakes import LABELS, FakeModel, cut, even_times, fed, manifest, signal

from agent.core.decision import DecisionSettings
from agent.pipeline import Pipeline, score_windows
from agent.records import UNKNOWN, ActivityChange, Dropped, Gap, GapReason, Loss, Prediction, Refused, SampleBatch


def predictions(events):
    return [e for e in events if isinstance(e, Prediction)]


def test_windows_overlap_by_half_and_carry_the_time_that_they_cover():
    got = predictions(fed(Pipeline(FakeModel(), manifest()), cut(even_times(320, t0_s=10), signal(320), [320])))

    assert [(p.seq, p.t0_ns / 1e9, p.t1_ns / 1e9) for p in got] == [
        (0, 10.0, 12.56),
        (1, 11.28, 13.84),
        (2, 12.56, 15.12),
        (3, 13.84, 16.4),
    ]


def test_hop_is_configurable():
    got = predictions(fed(Pipeline(FakeModel(), manifest(), hop=32), cut(even_times(320), signal(320), [320])))

    assert len(got) == (320 - 128) // 32 + 1


def test_a_hop_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="hop"):
        Pipeline(FakeModel(), manifest(), hop=129)


def test_one_feed_of_many_streams_is_one_model_call():
    model = FakeModel()
    pipeline = Pipeline(model, manifest())
    batches = [cut(even_times(128), signal(128, i), [128], f"s{i}")[0] for i in range(20)]

    events = pipeline.feed(batches)

    assert model.batches == [20]
    assert [p.stream for p in predictions(events)] == [f"s{i}" for i in range(20)]


def test_a_model_call_takes_no_more_windows_than_max_batch():
    model = FakeModel()
    fed(Pipeline(model, manifest(), max_batch=8), cut(even_times(64 * 21), signal(64 * 21), [64 * 21]))

    assert model.batches == [8, 8, 4]


def test_streams_do_not_touch_each_other():
    alone = fed(Pipeline(FakeModel(), manifest()), cut(even_times(640), signal(640), [50], "a"))
    pipeline = Pipeline(FakeModel(), manifest())
    both = []
    for a, b in zip(
        cut(even_times(640), signal(640), [50], "a"),
        cut(even_times(640, t0_s=3), signal(640, 9), [50], "b"),
        strict=True,
    ):
        both += pipeline.feed([b, a])

    assert [e for e in both if e.stream == "a"] == alone


def test_a_gap_is_told_between_its_windows_and_drops_what_was_waiting():
    t = even_times(400)
    t[200:] += 10_000_000_000
    pipeline = Pipeline(FakeModel(), manifest())

    events = fed(pipeline, cut(t, signal(400), [400]))

    kinds = [type(e) for e in events if not isinstance(e, ActivityChange)]
    assert kinds == [Prediction, Prediction, Gap, Prediction, Prediction]
    gap = next(e for e in events if isinstance(e, Gap))
    assert gap == Gap("s", 200, int(t[199]), int(t[200]), GapReason.MISSING, 200 - 192)
    assert pipeline.counts()["s"].losses == {Loss.PARTIAL_WINDOW: 8}


def test_what_a_full_queue_let_go_is_a_gap_however_short_and_is_counted():
    t, values = even_times(404), signal(404)
    pipeline = Pipeline(FakeModel(), manifest())
    first, second = SampleBatch("s", t[:200], values[:200], 0), SampleBatch("s", t[204:], values[204:], 204)

    events = pipeline.feed([first, Dropped("s", 4), second])

    gaps = [e for e in events if isinstance(e, Gap)]
    assert gaps == [Gap("s", 204, int(t[199]), int(t[204]), GapReason.QUEUE_FULL, 8)]
    assert [p.t0_ns for p in predictions(events)] == [t[0], t[64], t[204], t[268]]
    assert pipeline.counts()["s"].losses == {Loss.QUEUE_FULL: 4, Loss.PARTIAL_WINDOW: 8}


def test_a_loss_while_the_rate_is_not_known_bridges_nothing():
    t, values = even_times(300), signal(300)
    pipeline = Pipeline(FakeModel(), manifest())

    events = pipeline.feed(
        [SampleBatch("s", t[:20], values[:20], 0), Dropped("s", 5), SampleBatch("s", t[25:], values[25:], 25)]
    )

    assert predictions(events)[0].t0_ns == t[25]
    assert pipeline.counts()["s"].losses == {Loss.QUEUE_FULL: 5, Loss.PARTIAL_WINDOW: 20}
    assert pipeline.counts()["s"].interpolated == 0


def test_every_sample_of_an_even_stream_is_in_a_window_or_counted():
    pipeline = Pipeline(FakeModel(), manifest())
    fed(pipeline, cut(even_times(1000), signal(1000), [33]))
    counts = pipeline.finish("s")

    assert pipeline.counts() == {}
    assert counts.samples == 1000
    assert counts.samples == 128 + 64 * (counts.windows - 1) + counts.losses[Loss.PARTIAL_WINDOW]


def test_a_stream_too_short_to_tell_its_rate_is_counted():
    pipeline = Pipeline(FakeModel(), manifest())
    fed(pipeline, cut(even_times(20), signal(20), [20]))

    assert pipeline.finish("s").losses == {Loss.PARTIAL_WINDOW: 20}


def test_an_unusable_rate_refuses_its_stream_once_and_no_other():
    pipeline = Pipeline(FakeModel(), manifest())
    bad = cut(even_times(200, 1), signal(200), [50], "slow")
    good = cut(even_times(200), signal(200), [50], "good")

    events = [e for pair in zip(bad, good, strict=True) for e in pipeline.feed(pair)]

    assert [e.stream for e in events if isinstance(e, Refused)] == ["slow"]
    assert len(predictions(events)) == 2
    assert pipeline.counts()["slow"].losses == {Loss.RATE: 200}


def test_novelty_above_the_threshold_is_not_known_and_decided_unknown():
    values = signal(256)
    values[:, 3] = 50
    got = predictions(fed(Pipeline(FakeModel(), manifest(threshold=20.0)), cut(even_times(256), values, [256])))

    assert [(p.known, p.activity) for p in got] == [(False, UNKNOWN)] * 3
    assert all(p.label in LABELS for p in got)


def test_changes_of_activity_follow_the_prediction_that_decided_them():
    settings = DecisionSettings(0, 0)
    events = fed(Pipeline(FakeModel(), manifest(), settings), cut(even_times(2000), signal(2000), [2000]))

    activity = None
    for before, event in pairwise(events):
        if isinstance(event, ActivityChange):
            assert isinstance(before, Prediction)
            assert (event.previous, event.activity, event.t_ns) == (activity, before.activity, before.t1_ns)
            activity = event.activity
    assert activity == predictions(events)[-1].activity


def test_confidence_is_the_labels_own_score_and_scores_add_up():
    for p in predictions(fed(Pipeline(FakeModel(), manifest()), cut(even_times(640), signal(640), [640]))):
        assert p.confidence == max(p.scores) == p.scores[LABELS.index(p.label)]
        assert sum(p.scores) == pytest.approx(1)


def test_score_windows_agrees_with_the_stream():
    values = signal(128 * 300)
    cuts = np.stack([values[i : i + 128] for i in range(0, len(values) - 127, 64)])
    streamed = predictions(fed(Pipeline(FakeModel(), manifest()), cut(even_times(len(values)), values, [5000])))

    probabilities, novelty = score_windows(FakeModel(), manifest(), cuts)

    assert [p.scores for p in streamed] == [tuple(row) for row in probabilities.tolist()]
    assert [p.novelty for p in streamed] == novelty.tolist()


@pytest.mark.parametrize("again", ["disconnected", "reconsidered"])
def test_a_refused_stream_is_looked_at_again(again):
    pipeline = Pipeline(FakeModel(), manifest())

    def look_again() -> None:
        if again == "disconnected":
            pipeline.feed([Dropped("s", 0, GapReason.DISCONNECTED)])
        else:
            pipeline.reconsider("s")

    slow = fed(pipeline, cut(even_times(60, 1), signal(60), [10]))
    look_again()
    still_slow = fed(pipeline, cut(even_times(60, 1), signal(60), [10]))
    pipeline.feed([Dropped("s", 7, GapReason.QUEUE_FULL)])
    ignored = fed(pipeline, cut(even_times(40), signal(40), [10]))
    look_again()
    mended = fed(pipeline, cut(even_times(200), signal(200), [10]))

    assert [type(e) for e in slow + still_slow] == [Refused, Refused]
    assert ignored == []
    assert [p.seq for p in predictions(mended)] == [0, 1]
    assert pipeline.counts()["s"].losses == {Loss.RATE: 160, Loss.QUEUE_FULL: 7}
    pipeline.reconsider("never heard of")
