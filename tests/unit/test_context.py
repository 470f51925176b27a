"""The context: what the decision makes of the codes of the last windows, and where it begins anew."""

import numpy as np
import pytest
from fakes import LABELS, FakeModel, cut, even_times, fed, manifest, signal

from agent.core.decision import DecisionSettings, calibrated
from agent.errors import InferenceError
from agent.pipeline import Pipeline
from agent.records import UNKNOWN, ActivityChange, Dropped, Gap, Loss, Prediction, SampleBatch, Unscored

K = 3
N = 64 * 21
"""Samples of twenty windows."""


def predictions(events):
    return [e for e in events if isinstance(e, Prediction)]


def codes_of(values, hop=64):
    """What the encoder makes of each window, int8 (n, 4)."""
    cuts = np.stack([values[i : i + 128] for i in range(0, len(values) - 127, hop)])
    return FakeModel().infer(cuts).code


def seen_by(model):
    """What the context was asked of, int8 (n, K, 4), whatever call it was in."""
    return np.concatenate(model.contexts)


def runs(*codes):
    """What the context must be asked of where streams, or pieces of one, have these codes."""
    padded = [np.concatenate([np.zeros((K - 1, 4), np.int8), c]) for c in codes]
    return np.concatenate([np.stack([p[i : i + K] for i in range(len(p) - K + 1)]) for p in padded])


@pytest.mark.parametrize("sizes", [[N], [64], [1], [200, 7]])
@pytest.mark.parametrize("max_batch", [256, 8, 1])
def test_each_window_is_seen_with_those_before_it_and_zeros_where_there_was_none(sizes, max_batch):
    model, values = FakeModel(), signal(N)
    fed(Pipeline(model, manifest(context=K), max_batch=max_batch), cut(even_times(N), values, sizes))

    assert np.array_equal(seen_by(model), runs(codes_of(values)))
    assert [len(codes) for codes in model.contexts] == model.batches
    assert max(model.batches) <= max_batch


def test_the_decision_follows_the_context_and_the_window_keeps_its_own_scores():
    values = signal(N)
    batches = cut(even_times(N), values, [N])
    alone = predictions(fed(Pipeline(FakeModel(), manifest()), batches))
    events = fed(Pipeline(FakeModel(), manifest(context=K)), batches)
    got = predictions(events)

    probable = calibrated(FakeModel().contextualise(runs(codes_of(values))), 1.0)
    assert [p._replace(activity="") for p in got] == [p._replace(activity="") for p in alone]
    assert [p.activity for p in got] == [LABELS[i] for i in probable.argmax(axis=1)]
    assert [p.activity for p in got] != [p.label for p in got]
    told = {p.t1_ns: row.max() for p, row in zip(got, probable, strict=True)}
    assert all(e.confidence == told[e.t_ns] for e in events if isinstance(e, ActivityChange))


def test_its_logits_are_divided_by_its_own_temperature():
    flat = manifest(context=K)
    flat = flat._replace(context=flat.context._replace(temperature=1e6))
    events = fed(Pipeline(FakeModel(), flat), cut(even_times(N), signal(N), [N]))

    assert all(e.confidence == pytest.approx(1 / 3, abs=1e-4) for e in events if isinstance(e, ActivityChange))


def test_a_window_that_is_not_known_is_unknown_whatever_the_context_says():
    got = predictions(
        fed(Pipeline(FakeModel(), manifest(threshold=0.01, context=K)), cut(even_times(N), signal(N), [N]))
    )

    assert {p.activity for p in got} == {UNKNOWN}


@pytest.mark.parametrize("sizes", [[N], [64], [150]])
def test_a_gap_makes_it_begin_anew(sizes):
    t, values, model = even_times(N), signal(N), FakeModel()
    t[700:] += 10_000_000_000
    events = fed(Pipeline(model, manifest(context=K)), cut(t, values, sizes))

    assert sum(isinstance(e, Gap) for e in events) == 1
    assert np.array_equal(seen_by(model), runs(codes_of(values[:700]), codes_of(values[700:])))


def test_so_does_what_a_full_queue_let_go():
    t, values, model = even_times(N), signal(N), FakeModel()
    first, second = SampleBatch("s", t[:700], values[:700], 0), SampleBatch("s", t[704:], values[704:], 704)
    Pipeline(model, manifest(context=K)).feed([first, Dropped("s", 4), second])

    assert np.array_equal(seen_by(model), runs(codes_of(values[:700]), codes_of(values[704:])))


def test_streams_in_one_call_have_codes_of_their_own():
    model, values = FakeModel(), [signal(N, seed) for seed in range(20)]
    pipeline = Pipeline(model, manifest(context=K))
    for batches in zip(*(cut(even_times(N), v, [64], f"s{i}") for i, v in enumerate(values)), strict=True):
        pipeline.feed(batches)

    # A call has the same window of each stream.
    got = seen_by(model).reshape(-1, len(values), K, 4).swapaxes(0, 1)
    assert np.array_equal(np.concatenate(got), runs(*map(codes_of, values)))
    assert len(model.contexts) == len(model.batches) == 20


def test_a_stream_that_comes_back_has_no_past():
    model, values = FakeModel(), signal(N)
    pipeline = Pipeline(model, manifest(context=K))
    fed(pipeline, cut(even_times(N), values, [64]))
    pipeline.retire("s")
    fed(pipeline, cut(even_times(N, t0_s=99), values, [64]))

    assert np.array_equal(seen_by(model), runs(codes_of(values), codes_of(values)))


def test_after_a_swap_it_begins_anew_with_the_new_models_codes():
    old, new, values = FakeModel(), FakeModel(), signal(N)
    pipeline = Pipeline(old, manifest(context=5))
    batches = cut(even_times(N), values, [64])
    fed(pipeline, batches[:8])
    pipeline.swap(new, manifest(context=K))
    fed(pipeline, batches[8:])

    assert np.array_equal(seen_by(new), runs(codes_of(values)[7:]))


@pytest.mark.parametrize(("before", "after"), [(0, K), (K, 0)])
def test_a_swap_may_bring_a_context_or_take_it_away(before, after):
    model = FakeModel()
    pipeline = Pipeline(model, manifest(context=before))
    batches = cut(even_times(N), signal(N), [64])
    fed(pipeline, batches[:8])
    asked = len(model.contexts)
    pipeline.swap(model, manifest(context=after))
    got = predictions(fed(pipeline, batches[8:]))

    assert (asked, len(model.contexts) - asked) == ((7, 0) if before else (0, 13))
    # At the bundle's own smoothing: none with a context, a second without.
    follows_each = [p.activity for p in got] == [
        LABELS[i] for i in FakeModel().contextualise(runs(codes_of(signal(N))[7:])).argmax(axis=1)
    ]
    assert follows_each == bool(after)


@pytest.mark.parametrize(("own", "used", "asked"), [(64, 64, True), (64, None, True), (64, 32, False), (32, 64, False)])
def test_it_is_used_at_the_bundles_own_hop_only(own, used, asked):
    model, batches = FakeModel(), cut(even_times(N), signal(N), [64])
    with_context = fed(Pipeline(model, manifest(hop=own, context=K), hop=used), batches)
    without = fed(Pipeline(FakeModel(), manifest(hop=own), hop=used), batches)

    assert bool(model.contexts) == asked
    assert (with_context == without) != asked


def test_a_swap_to_another_hop_than_the_configured_one_ends_it():
    model = FakeModel()
    pipeline = Pipeline(model, manifest(context=K), hop=64)
    batches = cut(even_times(N), signal(N), [64])
    fed(pipeline, batches[:8])
    asked = len(model.contexts)
    pipeline.swap(model, manifest(hop=32, context=K))
    fed(pipeline, batches[8:])

    assert len(model.contexts) == asked > 0


class Ailing(FakeModel):
    """A model whose context fails in one call."""

    def __init__(self, at, nonsense):
        super().__init__()
        self.at, self.nonsense = at, nonsense

    def contextualise(self, codes):
        logits = super().contextualise(codes)
        if len(self.contexts) - 1 == self.at:
            if not self.nonsense:
                raise InferenceError("the context is ill")
            logits[0, 1] = np.nan
        return logits


@pytest.mark.parametrize("nonsense", [False, True])
def test_a_context_that_fails_leaves_windows_unscored_and_begins_anew(nonsense):
    model, values = Ailing(4, nonsense), signal(N)
    pipeline = Pipeline(model, manifest(context=K))
    events = fed(pipeline, cut(even_times(N), values, [64]))

    (unscored,) = [e for e in events if isinstance(e, Unscored)]
    assert unscored.seq == 4
    assert unscored.reason == ("fake@00000000 gives scores that are no numbers" if nonsense else "the context is ill")
    assert [p.seq for p in predictions(events)] == [0, 1, 2, 3, *range(5, 20)]
    assert np.array_equal(seen_by(model), runs(codes_of(values)[:5], codes_of(values)[5:]))
    assert pipeline.counts()["s"].losses[Loss.INFERENCE] == 1


def activities(settings, context):
    pipeline = Pipeline(FakeModel(), manifest(context=context), settings)
    return [p.activity for p in predictions(fed(pipeline, cut(even_times(N), signal(N), [N])))]


def test_smoothing_is_for_single_windows_unless_it_is_set():
    unset, none, one, four = DecisionSettings(), DecisionSettings(0), DecisionSettings(1), DecisionSettings(4)

    assert activities(unset, 0) == activities(one, 0) != activities(none, 0)
    assert activities(unset, K) == activities(none, K) != activities(four, K)
    assert activities(four, 0) != activities(one, 0)


def test_hold_holds_with_a_context():
    decided = activities(DecisionSettings(hold_s=1e6), K)

    assert len(set(decided)) == 1 < len(set(activities(None, K)))
