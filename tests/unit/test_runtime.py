import pytest
from fakes import FakeClock, FakeModel, RecordingList, ScriptedSource, cut, even_times, manifest, signal

from agent.core.histogram import Histogram
from agent.errors import InferenceError, SinkUnavailable, SourceUnavailable
from agent.pipeline import Pipeline
from agent.records import BadFrame, LabelChange, Loss, Prediction, SampleBatch, Unscored
from agent.runtime.engine import Engine, TimedModel
from agent.runtime.pacing import PacedSource


def engine(source, clock=None):
    clock = clock or FakeClock()
    model = TimedModel(FakeModel(), clock)
    sink = RecordingList()
    return Engine(source, Pipeline(model, manifest()), [sink], clock, model), sink


def test_a_turn_carries_what_came_to_the_sinks():
    bad = BadFrame("s", Loss.NUMBER, 7)
    agent, sink = engine(ScriptedSource([[*cut(even_times(128), signal(128), [128]), bad], []]))

    first, second, end = agent.turn(), agent.turn(), agent.turn()

    assert isinstance(first.events[0], Prediction)
    assert first.bad == [bad]
    assert agent.bad == {"s": {Loss.NUMBER: 1}}
    assert second.events == []
    assert end is None
    assert sink.turns == [first, second]


def test_latency_is_measured_where_the_receive_time_is_known():
    clock = FakeClock()
    clock.now_ns = 5_000_000
    batch = SampleBatch("s", even_times(128), signal(128), 0, t_rx_ns=1_000_000)
    agent, _ = engine(ScriptedSource([[batch], [cut(even_times(128), signal(128), [128], "r")[0]]]), clock)

    timings = agent.turn().timings

    assert list(timings) == [("s", 0)]
    assert (timings["s", 0].wait_ns, timings["s", 0].total_ns) == (4_000_000, 4_000_000)
    assert agent.turn().timings == {}


def test_the_contexts_time_is_the_models_and_both_follow_a_replacement():
    clock = FakeClock()

    class Slow(FakeModel):
        context_windows = 3

        def infer(self, windows):
            clock.now_ns += 5
            return super().infer(windows)

        def contextualise(self, codes):
            clock.now_ns += 7
            return super().contextualise(codes)

    timed = TimedModel(FakeModel(), clock)
    assert timed.context_windows == 0
    timed.replace(Slow())
    assert timed.context_windows == 3
    source = ScriptedSource([[SampleBatch("s", even_times(128), signal(128), 0, t_rx_ns=0)]])
    agent = Engine(source, Pipeline(timed, manifest(context=3)), [], clock, timed)

    assert agent.turn().timings["s", 0].infer_ns == timed.spent_ns == 12


def test_under_backlog_each_window_is_timed_from_its_own_last_sample():
    clock = FakeClock()
    clock.now_ns = 9_000_000_000
    t, values = even_times(384), signal(384)
    batches = [
        SampleBatch("s", t[a : a + 64], values[a : a + 64], a, t_rx_ns=(a + 64) * 20_000_000) for a in range(0, 384, 64)
    ]
    agent, _ = engine(ScriptedSource([batches]), clock)

    waits = [x.wait_ns / 1e6 for x in agent.turn().timings.values()]

    assert waits == [9000 - 1280 * n for n in range(2, 7)]


def test_the_model_may_fail_for_a_while_and_every_window_is_accounted_for():
    model = FakeModel()
    healthy = model.infer
    clock = FakeClock()
    timed = TimedModel(model, clock)
    pipeline = Pipeline(timed, manifest())
    batches = cut(even_times(64 * 12), signal(64 * 12), [64])
    agent = Engine(ScriptedSource([[b] for b in batches]), pipeline, [], clock, timed)

    def broken(windows):
        raise InferenceError("the runtime is ill")

    for n in range(12):
        model.infer = broken if n in (3, 4, 6) else healthy
        events = agent.turn().events
        if n in (3, 4, 6):
            assert [type(e) for e in events] == [Unscored]
            assert events[0].reason == "the runtime is ill"
    counts = pipeline.finish("s")
    assert (counts.windows, counts.losses[Loss.INFERENCE]) == (11, 3)


def test_a_model_that_keeps_failing_ends_the_agent():
    model = FakeModel()
    agent_clock = FakeClock()
    timed = TimedModel(model, agent_clock)

    def broken(windows):
        raise InferenceError("the runtime is ill")

    model.infer = broken
    batches = cut(even_times(64 * 12), signal(64 * 12), [64])
    source = ScriptedSource([[b] for b in batches])
    agent = Engine(source, Pipeline(timed, manifest()), [], agent_clock, timed, max_failures=3)

    turns = [agent.turn() for _ in range(3)]
    with pytest.raises(InferenceError, match="ill"):
        agent.turn()
    assert [len(t.events) for t in turns] == [0, 1, 1]


def test_closing_goes_on_to_every_sink_when_one_fails():
    class Broken(RecordingList):
        def close(self):
            super().close()
            raise SinkUnavailable("gone")

    source, sinks = ScriptedSource([]), [Broken(), RecordingList()]
    clock = FakeClock()
    model = TimedModel(FakeModel(), clock)
    with pytest.raises(SinkUnavailable, match="gone"):
        Engine(source, Pipeline(model, manifest()), sinks, clock, model).close()

    assert (source.closed, [s.closed for s in sinks]) == (True, [True, True])


def test_close_goes_from_the_source_to_the_sinks():
    source = ScriptedSource([])
    agent, sink = engine(source)
    agent.close()

    assert (source.closed, sink.closed) == (True, True)


def test_an_outage_of_the_source_reaches_the_caller():
    agent, _ = engine(ScriptedSource([SourceUnavailable("gone")]))

    with pytest.raises(SourceUnavailable, match="gone"):
        agent.turn()


@pytest.mark.parametrize("speed", [0.5, 1, 10])
def test_paced_samples_come_when_their_time_has_come(speed):
    clock = FakeClock()
    truth = (LabelChange(0, 0, "a"), LabelChange(50, 1_000_000_000, "b"))
    batch = SampleBatch("s", even_times(100, t0_s=0), signal(100), 0, truth=truth)
    paced = PacedSource(ScriptedSource([[batch]]), clock, speed)

    got = []
    while (decoded := paced.poll(0.05)) is not None:
        for piece in decoded:
            assert clock.now_ns >= (piece.t_ns[-1] - got[0].t_ns[-1]) / speed if got else True
            got.append(piece)

    assert sum(len(p.t_ns) for p in got) == 100
    assert [p.seq0 for p in got] == list(range(0, 100, 5))
    assert [c for p in got for c in p.truth] == list(truth)
    assert clock.now_ns == pytest.approx(1.9e9 / speed, abs=2e8 / speed)
    assert max(clock.slept) <= 0.05


@pytest.mark.parametrize("jump_s", [3600, -3600])
def test_nobody_waits_for_a_long_gap_or_a_clock_that_was_set_back(jump_s):
    t = even_times(100, t0_s=5000)
    t[50:] += jump_s * 1_000_000_000
    clock = FakeClock()
    paced = PacedSource(ScriptedSource([cut(t, signal(100), [100])]), clock, 1)

    got = []
    while (decoded := paced.poll(0.05)) is not None:
        got += decoded

    assert sum(len(p.t_ns) for p in got) == 100
    assert clock.now_ns == pytest.approx(1.9e9, abs=2e8)


def test_bad_frames_are_handed_on_at_once():
    paced = PacedSource(ScriptedSource([[BadFrame("s", Loss.TORN, 1)]]), FakeClock(), 1)

    assert paced.poll(0.1) == [BadFrame("s", Loss.TORN, 1)]


def test_histogram_quantiles_are_within_two_percent():
    histogram = Histogram()
    for ns in range(1000, 101_000):
        histogram.add(ns)

    for q in (0.01, 0.5, 0.95, 0.99):
        assert histogram.quantile_ns(q) == pytest.approx(1000 + q * 100_000, rel=0.02)
    assert histogram.summary_ms()["max"] == pytest.approx(0.100999)


def test_merged_histograms_are_as_if_one_had_seen_all():
    parts, whole = [Histogram(), Histogram()], Histogram()
    for i in range(1, 5000):
        parts[i % 2].add(i * i)
        whole.add(i * i)
    parts[0].merge(parts[1])

    assert parts[0].summary_ms() == whole.summary_ms()


def test_an_empty_histogram_has_no_summary():
    assert Histogram().summary_ms() == {}
