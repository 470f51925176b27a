"""Windows that are asked of the cloud: whatever it says, and whenever, every window is decided in order and in time."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from fakes import (
    LABELS,
    FakeClock,
    FakeCloud,
    FakeModel,
    RecordingList,
    even_times,
    manifest,
    numbered,
    signal,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.cloud_wire import Kind, Refusal, code_space, decode_request, encode_refusal
from agent.core.decision import Decision, DecisionSettings
from agent.core.normalise import Normalisation
from agent.core.settings import CloudSettings
from agent.errors import InferenceError
from agent.pipeline import Pipeline
from agent.records import (
    ActivityChange,
    Dropped,
    Gap,
    Origin,
    Prediction,
    SampleBatch,
    Timings,
    Unscored,
)
from agent.runtime.engine import Engine, TimedModel
from agent.runtime.fallback import POLL_S, Fallback

MS = 1_000_000
SURE = (0.0, 0.0, 1.0)
"""What the cloud answers unless told otherwise."""


class Feed:
    """A source that gives what is put there, and remembers how long it was to wait."""

    def __init__(self) -> None:
        self.waiting: list = []
        self.waits: list[float] = []

    def poll(self, timeout_s: float) -> list:
        self.waits.append(timeout_s)
        taken, self.waiting = self.waiting, []
        return taken

    def close(self) -> None:
        pass


class Rig:
    """An engine that asks a cloud which a test plays."""

    def __init__(self, described=None, model=None, **cloud) -> None:
        cloud = {"when": "always", "deadline_ms": 100.0, "per_device_per_minute": 60_000, "failures": 1000, **cloud}
        self.clock = FakeClock()
        self.clock.now_ns = 10**12
        self.feed, self.cloud, self.sink = Feed(), FakeCloud(self.clock), RecordingList()
        self.model = TimedModel(model or FakeModel(), self.clock)
        self.pipeline = Pipeline(self.model, described or manifest())
        self.fallback = Fallback(CloudSettings(**cloud), self.cloud, self.pipeline, self.clock, numbered())
        self.engine = Engine(
            self.feed, self.pipeline, [self.sink], self.clock, self.model, max_failures=10**6, fallback=self.fallback
        )
        self.at: Counter[str] = Counter()

    def samples(self, n: int = 64, stream: str = "s") -> None:
        """Let the next samples of a stream come now."""
        self.feed.waiting.append(batch(stream, self.at[stream], n, self.clock.now_ns))
        self.at[stream] += n

    def turn(self, after_ms: float = 0.0):
        self.clock.now_ns += round(after_ms * MS)
        return self.engine.turn()

    def window(self, stream: str = "s"):
        """Let a window of a stream come, and take a turn."""
        self.samples(64 if self.at[stream] else 128, stream)
        return self.turn()


def batch(stream: str, at: int, n: int, t_rx_ns: int | None = None) -> SampleBatch:
    return SampleBatch(stream, even_times(n, t0_s=at / 50), signal(n, at % 97 + len(stream)), at, t_rx_ns)


def predictions_in(events) -> list[Prediction]:
    return [event for event in events if isinstance(event, Prediction)]


def predictions(turn) -> list[Prediction]:
    return predictions_in(turn.events)


def test_an_answer_decides_and_what_it_decides_is_said_to_be_its_own():
    rig = Rig()

    assert rig.window().events == []
    rig.cloud.answer()
    prediction, change = rig.turn(20).events

    local = Pipeline(FakeModel(), manifest()).feed([batch("s", 0, 128)])[0]
    assert prediction == local._replace(
        label="turning", confidence=1.0, scores=SURE, activity="turning", origin=Origin.CLOUD, model=rig.cloud.model
    )
    assert change == ActivityChange("s", prediction.t1_ns, "turning", None, 1.0)


def test_what_the_cloud_does_not_know_is_unknown():
    rig = Rig()
    rig.window()
    rig.cloud.answer(known=False)
    prediction, _ = rig.turn(20).events

    assert (prediction.known, prediction.activity) == (False, "unknown")


@pytest.mark.parametrize(
    ("say", "outcome"),
    [
        (lambda cloud: None, "timed_out"),
        (lambda cloud: cloud.say(b""), "garbled"),
        (lambda cloud: cloud.say(b"HA\x01\x00\xff\xff"), "garbled"),
        (lambda cloud: cloud.answer(probabilities=(0.5, 0.5), labels=LABELS[:2]), "garbled"),
        (lambda cloud: cloud.answer(labels=LABELS[::-1]), "garbled"),
        (lambda cloud: cloud.say(encode_refusal(Refusal.OVERLOADED, "too much")), "refused"),
        (lambda cloud: cloud.answer(after_s=0.2), "timed_out"),
    ],
    ids=["silence", "nothing", "rubbish", "fewer labels", "other labels", "refusal", "late"],
)
def test_without_an_answer_the_board_decides_as_it_would_have(say, outcome):
    rig = Rig()
    rig.window()
    say(rig.cloud)
    events = rig.turn(100).events

    assert events == Pipeline(FakeModel(), manifest()).feed([batch("s", 0, 128)])
    figures = rig.fallback.figures()
    assert figures[outcome] == ({"overloaded": 1} if outcome == "refused" else 1)
    assert figures["asked"] == 1


@pytest.mark.parametrize(
    "say", [lambda cloud: cloud.say(b""), lambda cloud: cloud.say(encode_refusal(Refusal.FAILED, ""))]
)
def test_a_refusal_and_rubbish_are_not_waited_for(say):
    rig = Rig()
    rig.window()
    say(rig.cloud)

    assert len(predictions(rig.turn(1))) == 1


def test_what_follows_waits_in_order_and_other_streams_do_not():
    rig = Rig(per_device_per_minute=1)
    rig.window()
    rig.cloud.takes = False
    behind = [rig.window()]
    rig.feed.waiting.append(Dropped("s", 1))
    behind.append(rig.window())
    beside = predictions(rig.window("other"))
    rig.cloud.answer()
    kinds = [type(e) for e in rig.turn(20).events if not isinstance(e, ActivityChange)]

    assert [turn.events for turn in behind] == [[], []]
    assert [e.stream for e in beside] == ["other"]
    assert kinds == [Prediction, Prediction, Gap]


def test_a_window_is_decided_when_its_deadline_passes_and_the_loop_wakes_up_for_it():
    rig = Rig(deadline_ms=12.0)
    rig.turn()
    rig.window()
    waits = []
    for _ in range(3):
        turn = rig.turn(rig.feed.waits[-1] * 1000 if waits else 0)
        waits.append(rig.feed.waits[-1])
        assert turn.events == []
    last = rig.turn(waits[-1] * 1000)

    assert rig.feed.waits[:2] == [0.25, 0.25]
    assert waits == [POLL_S, POLL_S, pytest.approx(0.002)]
    assert len(predictions(last)) == 1
    rig.turn()
    assert rig.feed.waits[-1] == 0.25


def test_answers_to_nothing_and_repeats_are_counted_and_change_nothing():
    rig = Rig()
    rig.window()
    rig.cloud.answer()
    rig.cloud.answer(probabilities=(1.0, 0.0, 0.0))
    rig.cloud.answer(b"of an earlier run")
    (first,) = predictions(rig.turn(1))
    rig.cloud.answer()

    assert first.label == "turning"
    assert rig.turn(1).events == []
    assert rig.fallback.figures()["unexpected"] == 3


def test_the_codes_that_led_to_a_window_are_what_is_asked():
    rig = Rig(described=manifest(context=3), model=FakeModel())
    for _ in range(4):
        rig.window()
    asked = [decode_request(payload) for payload in rig.cloud.asked.values()]

    model = FakeModel()
    Pipeline(model, manifest(context=3)).feed([batch("s", 0, 128), *(batch("s", 64 * n, 64) for n in range(2, 5))])
    assert [request.kind for request in asked] == [Kind.CODE] * 4
    assert {request.space for request in asked} == {code_space("c0de" * 16)}
    assert np.array_equal(np.stack([request.codes for request in asked]), np.concatenate(model.contexts))


def test_a_window_without_a_code_is_not_asked_about_by_its_code():
    class Exit(FakeModel):
        def infer(self, windows):
            scores = super().infer(windows)
            return scores._replace(by_exit=np.ones(len(windows), np.bool_))

    rig = Rig(model=Exit())

    assert len(predictions(rig.window())) == 1
    assert rig.fallback.figures()["not_asked"] == {"no_code": 1}
    assert rig.cloud.asked == {}


def test_a_window_is_asked_as_it_was_measured():
    scaled = Normalisation(np.full(6, 3, np.float32), np.ones(6, np.float32))
    described = manifest()._replace(normalisation=scaled)
    rig = Rig(described, payload="window", privacy="window")
    rig.window()
    (request,) = map(decode_request, rig.cloud.asked.values())

    assert np.array_equal(request.samples, signal(128, 1).astype(np.float16).astype(np.float32))
    assert (request.kind, request.rate_hz) == (Kind.WINDOW, 50.0)


def halves(values):
    return values.astype(np.float16).astype(np.float32)


def test_with_a_window_go_those_before_it_up_to_the_last_gap():
    rig = Rig(payload="window", privacy="window", windows=3)
    for _ in range(4):
        rig.window()
    # After ten seconds in which nothing came.
    rig.at["s"] += 500
    for _ in range(4):
        rig.samples()
        rig.turn()
    asked = [decode_request(payload) for payload in rig.cloud.asked.values()]

    assert [(r.windows, r.hop, r.window) for r in asked] == [
        (1, 0, 128), (2, 64, 128), (3, 64, 128), (3, 64, 128), (1, 0, 128), (2, 64, 128), (3, 64, 128)
    ]  # fmt: skip
    stream = np.concatenate([signal(128, 1), *(signal(64, (128 + 64 * n) % 97 + 1) for n in range(3))])
    for request, end in zip(asked, (128, 192, 256, 320), strict=False):
        assert np.array_equal(request.samples, halves(stream[end - len(request.samples) : end]))


def test_of_the_windows_before_go_as_many_as_fit_into_a_request():
    rig = Rig(manifest(hop=128), payload="window", privacy="window", windows=16)
    for _ in range(18):
        rig.samples(128)
        rig.turn()
    asked = [decode_request(payload) for payload in rig.cloud.asked.values()]

    # 16,384 bytes hold 1,363 samples of twelve bytes.
    assert [request.windows for request in asked] == [*range(1, 11), *[10] * 8]


def test_a_window_that_fits_no_request_is_not_asked():
    described = manifest()
    rig = Rig(described._replace(code=described.code._replace(bytes=20_000)))

    assert len(predictions(rig.window())) == 1
    assert rig.fallback.figures()["not_asked"] == {"too_large": 1}


def test_only_windows_in_doubt_are_asked_and_why_others_are_not_is_counted():
    rig = Rig(when="low-confidence", confidence=0.0)
    assert len(predictions(rig.window())) == 1
    assert rig.fallback.figures()["not_asked"] == {}

    rig = Rig(requests_per_day=1)
    rig.window()
    rig.window("other")
    rig.cloud.connected = False
    rig.window("third")
    figures = rig.fallback.figures()
    assert (figures["asked"], figures["not_asked"]) == (1, {"link_away": 1, "request_budget": 1})


@pytest.mark.parametrize(
    "settings",
    [{}, {"payload": "window", "privacy": "window"}, {"payload": "window", "privacy": "window", "windows": 3}],
)
def test_the_bytes_that_are_accounted_are_those_that_are_sent(settings):
    rig = Rig(manifest(context=2), **settings)
    for _ in range(4):
        rig.window()

    assert rig.fallback.figures()["bytes_up"] == sum(map(len, rig.cloud.asked.values()))


def test_overload_is_how_long_samples_waited():
    rig = Rig(when="overload", overload_ms=50.0)
    rig.samples(128)
    assert len(predictions(rig.turn(49))) == 1
    rig.samples(64)
    assert predictions(rig.turn(51)) == []


def test_a_window_that_cannot_be_sent_is_decided_at_once():
    rig = Rig()
    rig.cloud.takes = False

    assert len(predictions(rig.window())) == 1
    assert rig.fallback.figures()["not_sent"] == 1


def test_the_time_in_the_cloud_is_told_and_is_part_of_the_total():
    rig = Rig()
    rig.samples(128)
    rig.turn(2)
    rig.cloud.answer(after_s=0.040)
    asked = rig.turn(45)
    rig.samples(64)
    rig.turn()
    silent = rig.turn(100)
    rig.cloud.takes = False
    alone = rig.window()

    received_ns = 10**12
    assert asked.timings["s", 0] == Timings("s", 0, received_ns, 2 * MS, 0, 47 * MS, 40 * MS)
    assert silent.timings["s", 1][3:] == (0, 0, 100 * MS, 100 * MS)
    assert alone.timings["s", 2].cloud_ns is None


def test_answers_that_come_too_late_teach_what_the_link_takes_and_then_nothing_more_is_asked():
    rig = Rig(retry_s=30.0)
    for _ in range(5):
        rig.window()
        rig.turn(100)
        rig.cloud.answer(after_s=0.05)
        rig.turn(60)
    figures = rig.fallback.figures()

    assert (figures["asked"], figures["timed_out"], figures["late"]) == (1, 1, 1)
    assert figures["not_asked"] == {"link_slow": 4}
    assert figures["rtt_ms"]["p50"] == pytest.approx(150, rel=0.02)
    assert rig.fallback.figures()["rtt_ms"] == {}


def test_a_link_that_was_slow_for_a_while_is_used_again_as_soon_as_it_is_fast():
    rig = Rig(deadline_ms=300.0, failures=5, retry_s=30.0)
    answers: list[tuple[int, bytes]] = []

    def asked(windows: int, rtt_ms: int) -> list[bool]:
        """Of windows that come each 1.28 s, which are asked; an answer takes `rtt_ms`."""
        out = []
        for _ in range(windows):
            before = len(rig.cloud.asked)
            rig.window()
            out.append(len(rig.cloud.asked) > before)
            if out[-1]:
                answers.append((rig.clock.now_ns + rtt_ms * MS, next(reversed(rig.cloud.asked))))
            for _ in range(64):
                while answers and answers[0][0] <= rig.clock.now_ns:
                    rig.cloud.answer(answers.pop(0)[1])
                rig.turn(20)
        return out

    assert all(asked(47, 40))
    assert sum(asked(47, 900)) < 8
    # As long as until the next try, and a few windows.
    asked(24 + 3, 40)
    assert all(asked(100, 40))


def test_the_breaker_opens_when_nobody_answers_and_closes_when_somebody_does():
    rig = Rig(failures=2, retry_s=1.0)
    for _ in range(3):
        rig.window()
        rig.turn(100)
    opened = rig.fallback.figures()
    problem = rig.fallback.problem
    rig.turn(1000)
    waiting = rig.fallback.figures()["breaker"], rig.fallback.problem
    rig.window()
    probing = rig.fallback.figures()["breaker"]
    rig.cloud.answer()
    rig.turn(10)

    assert (opened["asked"], opened["breaker"], opened["not_asked"]) == (2, "open", {"breaker_open": 1})
    assert "timed out" in (problem or "")
    # Nobody knows better until a window is in doubt, which may be hours.
    assert waiting == ("half-open", None)
    assert (probing, rig.fallback.figures()["breaker"], rig.fallback.problem) == ("half-open", "closed", None)


def test_a_connection_that_is_away_is_a_problem():
    rig = Rig()
    rig.cloud.connected, rig.cloud.problem = False, "broker:1883: connection refused"

    assert "connection refused" in (rig.fallback.problem or "")


def test_late_answers_are_revisions_only_where_that_is_asked_for():
    for revise in (False, True):
        rig = Rig(revise=revise)
        rig.window()
        (local,) = predictions(rig.turn(100))
        rig.cloud.answer()
        turn = rig.turn(50)
        rig.cloud.answer()

        revised = local._replace(
            label="turning", confidence=1.0, scores=SURE, origin=Origin.CLOUD, model=rig.cloud.model
        )
        assert turn.revisions == ([revised] if revise else [])
        assert turn.events == []
        assert rig.turn().revisions == []


def test_an_answer_that_was_late_when_its_window_was_decided_is_a_revision_in_the_same_turn():
    rig = Rig(revise=True)
    rig.window()
    rig.cloud.answer(after_s=0.11)
    turn = rig.turn(120)

    assert [(p.seq, p.origin) for p in predictions(turn)] == [(0, Origin.LOCAL)]
    assert [(p.seq, p.origin) for p in turn.revisions] == [(0, Origin.CLOUD)]


def test_late_rubbish_and_what_was_abandoned_are_never_revisions():
    rig = Rig(revise=True)
    rig.window()
    rig.turn(100)
    rig.cloud.say(b"rubbish")
    assert rig.turn(1).revisions == []
    rig.window()
    rig.engine.settle()
    rig.cloud.answer()
    assert rig.turn(1).revisions == []


def test_settling_decides_everything_that_waits_and_writes_it():
    rig = Rig()
    rig.window()
    rig.window("other")
    rig.window()
    rig.engine.settle()
    written = rig.sink.turns[-1]
    rig.engine.settle()

    assert [(p.stream, p.seq, p.origin) for p in predictions(written)] == [
        ("s", 0, Origin.LOCAL),
        ("s", 1, Origin.LOCAL),
        ("other", 0, Origin.LOCAL),
    ]
    assert written.timings.keys() == {("s", 0), ("s", 1), ("other", 0)}
    assert rig.sink.turns[-1] is written
    assert rig.fallback.figures()["abandoned"] == 3


def test_settling_one_stream_leaves_the_others_as_they_are():
    rig = Rig(revise=True, payload="window", privacy="window", windows=2)
    for stream in ("gone", "stays"):
        rig.window(stream)
    rig.turn(100)
    late = list(rig.cloud.asked)
    for stream in ("gone", "stays"):
        rig.window(stream)
    rig.engine.settle("gone")
    settled = rig.sink.turns[-1]
    for to in late:
        rig.cloud.answer(to)
    rig.cloud.answer()
    answered = rig.turn(1)
    rig.window("stays")

    assert [(p.stream, p.seq) for p in predictions(settled)] == [("gone", 1)]
    assert [(p.stream, p.seq, p.origin) for p in predictions(answered)] == [("stays", 1, Origin.CLOUD)]
    assert [(p.stream, p.seq) for p in answered.revisions] == [("stays", 0)]
    assert rig.fallback.figures()["abandoned"] == 1
    # What was before its windows is still known.
    assert decode_request(next(reversed(rig.cloud.asked.values()))).windows == 2


def test_a_loop_that_stood_still_for_longer_than_requests_are_remembered_goes_on():
    rig = Rig(revise=True)
    rig.window()
    stalled = rig.turn(61_000)
    rig.cloud.answer()

    assert len(predictions(stalled)) == 1
    assert rig.turn(1).revisions == []
    assert rig.fallback.figures()["unexpected"] == 1


def test_what_one_model_had_scored_is_decided_with_its_labels_after_another_took_over():
    class Other(FakeModel):
        id, labels = "other@22222222", ("up", "down", "aside")

    rig = Rig()
    rig.window()
    rig.pipeline.swap(rig.model, manifest()._replace(labels=Other.labels))
    rig.model.replace(Other())
    rig.engine.settle()
    rig.cloud.takes = False
    after = predictions(rig.window())

    (before,) = predictions(rig.sink.turns[-2])
    assert (before.model, before.label in LABELS, before.activity in LABELS) == ("fake@00000000", True, True)
    assert [(p.seq, p.model, p.activity in Other.labels) for p in after] == [(1, Other.id, True)]


def test_a_model_that_fails_is_noticed_although_its_windows_wait():
    class Failing(FakeModel):
        broken = False

        def infer(self, windows):
            if self.broken:
                raise InferenceError("ill")
            return super().infer(windows)

    model = Failing()
    rig = Rig(model=model)
    rig.engine._max_failures = 2
    rig.window()
    model.broken = True
    rig.window()
    with pytest.raises(InferenceError, match="ill"):
        rig.window()
    rig.engine.settle()

    told = [e for turn in rig.sink.turns for e in turn.events if not isinstance(e, ActivityChange)]
    assert [type(e) for e in told] == [Prediction, Unscored, Unscored]


STREAMS = ("a", "b", "c")
END = "the stream was forgotten"
SAYINGS = st.sampled_from(
    ["right", "right", "rubbish", "refusal", "labels", "unknown", "twice", "to nothing", "delayed"]
)
SAMPLES = st.tuples(st.sampled_from(STREAMS), st.sampled_from([128, 128, 64, 200, 1]))
EVENTS = st.sampled_from(
    ["", "", "", "", "", "drop", "ill", "well", "well", "link away", "link there", "link there", "swap", "retire"]
)
STEPS = st.tuples(
    st.lists(SAMPLES, max_size=3),
    st.lists(st.tuples(SAYINGS, st.integers(0, 3)), max_size=3),
    EVENTS,
    st.sampled_from([0, 1, 5, 20, 40, 60, 99, 100, 500, 40_000, 61_000]),
)


class Ill(FakeModel):
    """Fails while it is told to."""

    ill = False

    def infer(self, windows):
        if self.ill:
            raise InferenceError("ill")
        return super().infer(windows)


@given(
    st.lists(STEPS, min_size=8, max_size=30),
    st.sampled_from([0, 2]),
    st.sampled_from(["always", "always", "low-confidence unknown"]),
    st.sampled_from([2, 60_000]),
    st.booleans(),
)
@settings(deadline=None, max_examples=300)
def test_whatever_the_cloud_does_every_window_is_decided_once_in_order_and_in_time(steps, context, when, rate, revise):
    described = manifest(context=context, threshold=2.0)
    rig = Rig(described, Ill(), when=when, per_device_per_minute=rate, failures=4, retry_s=1.0, revise=revise)
    twin_model = Ill()
    twin = Pipeline(twin_model, described)
    due_ns: dict[tuple[str, int], int] = {}
    expected, told = defaultdict(list), defaultdict(list)

    def look() -> None:
        for turn in rig.sink.turns:
            for event in turn.events:
                told[event.stream].append(event)
                if isinstance(event, Prediction):
                    due_ns.pop((event.stream, event.seq))
            assert revise or not turn.revisions
        rig.sink.turns.clear()

    def take_turn() -> None:
        for event in twin.feed(list(rig.feed.waiting)):
            if not isinstance(event, ActivityChange):
                expected[event.stream].append(event)
            if isinstance(event, Prediction):
                due_ns[event.stream, event.seq] = rig.clock.now_ns + 100 * MS
        rig.turn()
        look()
        # Nothing is left that should have been decided by now, nor anything if nothing was ever asked.
        assert all(due > rig.clock.now_ns for due in due_ns.values())
        assert rig.cloud.asked or not due_ns

    for samples, sayings, event, after_ms in steps:
        for stream, n in samples:
            rig.samples(n, stream)
        for what, n in sayings:
            if len(rig.cloud.asked) > n:
                say(rig.cloud, what, list(rig.cloud.asked)[-1 - n])
        if event == "drop":
            rig.feed.waiting.append(Dropped("a", 3))
        take_turn()
        if event in ("ill", "well"):
            rig.model._model.ill = twin_model.ill = event == "ill"
        elif event in ("link away", "link there"):
            rig.cloud.connected = event == "link there"
        elif event == "swap":
            rig.pipeline.swap(rig.model, described)
            twin.swap(twin_model, described)
            rig.engine.settle()
            look()
            assert not due_ns
        elif event == "retire":
            rig.engine.settle("a")
            look()
            assert rig.pipeline.retire("a") == twin.retire("a")
            for events in (told, expected):
                events["a"].append(END)
        rig.clock.now_ns += after_ms * MS
    rig.engine.settle()
    look()

    assert not due_ns
    for stream in STREAMS:
        check_stream(told[stream], expected[stream], in_context=context > 0)
    assert rig.pipeline.counts() == twin.counts()
    figures = rig.fallback.figures()
    ends = ("answered", "timed_out", "garbled", "not_sent", "abandoned")
    assert figures["asked"] == sum(figures[end] for end in ends) + sum(figures["refused"].values())
    of_the_cloud = [e for events in told.values() for e in predictions_in(events) if e.origin is Origin.CLOUD]
    assert len(of_the_cloud) == figures["answered"]


def say(cloud: FakeCloud, what: str, to: bytes) -> None:
    if what == "rubbish":
        cloud.say(b"HA\x01\x00rubbish", to)
    elif what == "refusal":
        cloud.say(encode_refusal(Refusal.OVERLOADED, ""), to)
    elif what == "labels":
        cloud.answer(to, labels=LABELS[::-1])
    elif what == "to nothing":
        cloud.answer(b"nothing")
    else:
        cloud.answer(to, known=what != "unknown", after_s=0.09 if what == "delayed" else 0.0)
        if what == "twice":
            cloud.answer(to, (1.0, 0.0, 0.0))


def check_stream(told: list, expected: list, *, in_context: bool) -> None:
    """What was told is what a pipeline alone says, but for answers; and activities follow from what was told."""
    events = [e for e in told if not isinstance(e, ActivityChange)]
    assert len(events) == len(expected)
    for event, alone in zip(events, expected, strict=True):
        if isinstance(event, Prediction):
            same = {} if event.origin is Origin.LOCAL else answered(event)
            assert event == alone._replace(activity=event.activity, **same)
        else:
            assert event == alone
    # What a context is decided by is not told.
    assert in_context or told == decided(events)


def decided(events: list) -> list:
    """The same with the activity of each window, and its changes, as they follow from the scores in this order."""
    decision, out = new_decision(), []
    for event in events:
        if event is END:
            decision = new_decision()
        elif not isinstance(event, Prediction):
            decision.clear()
        else:
            before = decision.activity
            activity, confidence = decision.update(event.t1_ns, event.scores, event.known)
            out.append(event._replace(activity=activity))
            if activity != before:
                out.append(ActivityChange(event.stream, event.t1_ns, activity, before, confidence))
            continue
        out.append(event)
    return out


def new_decision() -> Decision:
    return Decision(LABELS, DecisionSettings())


def answered(event: Prediction) -> dict:
    assert (event.scores, event.label, event.confidence) == (SURE, "turning", 1.0)
    return {
        "label": event.label,
        "confidence": event.confidence,
        "scores": event.scores,
        "known": event.known,
        "origin": Origin.CLOUD,
        "model": FakeCloud.model,
    }
