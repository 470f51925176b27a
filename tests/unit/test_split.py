"""A network whose rest others run: whatever they say, and whenever, scores are those of the whole, and in time."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from fakes import LABELS, FakeClock, FakeCloud, FakeModel, cut, even_times, fed, manifest, numbered, signal

from agent.core.cloud_wire import Refusal, encode_refusal
from agent.core.decision import calibrated
from agent.core.manifest import CODE, WINDOW, Exit
from agent.core.planner import Exit as WayOut
from agent.core.planner import Profile
from agent.core.settings import SplitSettings
from agent.core.split_wire import MAX_TENSORS, TensorAnswer, decode_tensor_request, encode_tensor_answer
from agent.errors import InferenceError, ModelContractError
from agent.pipeline import Pipeline
from agent.records import Prediction, SampleBatch, Scores
from agent.runtime.engine import TimedModel
from agent.runtime.split import SplitModel

MS = 1_000_000
DEADLINE_MS = 100.0
WAKE_MS = DEADLINE_MS / 20
NETWORK = b"network!"


class Tensor:
    """A cut of `FakeParts`."""

    def __init__(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        self.name, self.dtype, self.shape = name, dtype, shape
        self.bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize


class Network(FakeModel):
    """`FakeModel` as a network of three layers, `window` to `low` to `high` to `code`, in whole numbers."""

    id = "fake@00000000"

    def __init__(self, context: int = 0, spend: Callable[[int], None] = lambda _: None) -> None:
        """`spend`: is told of how many layers a run took."""
        super().__init__()
        self.context_windows = context
        self._spend = spend

    def layer(self, k: int, x: np.ndarray) -> np.ndarray:
        if k == 0:
            return np.rint(x.reshape(len(x), -1)[:, ::6] * 256).astype(np.int32)
        if k == 1:
            return (x.reshape(len(x), 32, -1).sum(axis=2) % 251).astype(np.int32)
        return (x[:, :4] % 255 - 127).astype(np.int8)

    def head(self, x: np.ndarray, code: np.ndarray) -> Scores:
        logits = (x[:, : len(LABELS)].astype(np.int64) * 7 % 64 / 8).astype(np.float32)
        return Scores(logits, code, (np.abs(x.astype(np.int64)).sum(axis=1) % 9 / 4).astype(np.float64))

    def infer(self, windows: np.ndarray) -> Scores:
        self.batches.append(len(windows))
        self._spend(4)
        code = self.layer(2, self.layer(1, self.layer(0, windows)))
        return self.head(code, code)


class FakeParts:
    """`Network` in parts. Each layer takes a millisecond of the clock, `slow` times as many; so does a head."""

    def __init__(self, clock: FakeClock, exits: Sequence[Exit] = (), context: int = 0) -> None:
        self.id, self.network, self.exits = Network.id, NETWORK, tuple(exits)
        self.manifest = manifest(context=context)
        self.cuts = [
            Tensor(WINDOW, "float32", (128, 6)),
            Tensor("low", "int32", (128,)),
            Tensor("high", "int32", (32,)),
            Tensor(CODE, "int8", (4,)),
        ]
        self.slow = 1.0
        self.ran: list[tuple[str, str, str, int]] = []
        self.fails = ""
        self._clock = clock
        self._network = Network()

    def run(self, at, until, values, exit=""):  # noqa: A002
        self.ran.append((at, until, exit, len(values)))
        if self.fails and self.fails in (at, until):
            raise InferenceError(f"{self.fails} fails")
        names = [one.name for one in self.cuts]
        assert values.dtype == self.cuts[names.index(at)].dtype
        target = until or next((one.at for one in self.exits if one.name == exit), CODE)
        for k in range(names.index(at), names.index(target)):
            values = self._network.layer(k, values)
            self._clock.now_ns += round(self.slow * MS)
        if until:
            return values
        self._clock.now_ns += round(self.slow * MS)
        if exit:
            code, by_exit = np.zeros((len(values), 4), np.int8), np.ones(len(values), np.bool_)
            return self._network.head(values, code)._replace(by_exit=by_exit)
        return self._network.head(values, values)


class Workers(FakeCloud):
    """Workers that run the rest as soon as they are asked, unless told otherwise; `takes_ms`: link and work."""

    def __init__(self, clock: FakeClock, parts: FakeParts) -> None:
        super().__init__(clock)
        self.parts, self.takes_ms, self.elapsed_us = parts, 10.0, 0
        self.bits_per_s = float("inf")
        self.answering = True
        self.spoil = lambda payload: payload

    def ask(self, correlation: bytes, payload: bytes) -> bool:
        taken = super().ask(correlation, payload)
        if taken and self.answering:
            answer = self.spoil(self.answer_to(payload))
            after_s = self.takes_ms / 1e3 + 8 * (len(payload) + len(answer)) / self.bits_per_s
            self.say(answer, correlation, after_s)
        return taken

    def answer_to(self, payload: bytes) -> bytes:
        request = decode_tensor_request(payload)
        assert request.network == NETWORK
        at = next(one for one in self.parts.cuts if one.name == request.at)
        values = np.frombuffer(request.data, at.dtype).reshape(request.windows, *at.shape)
        before = self._clock.now_ns, len(self.parts.ran)
        scores = self.parts.run(request.at, "", values, request.exit)
        self._clock.now_ns = before[0]  # it is another machine's time
        del self.parts.ran[before[1] :]
        code = np.zeros((request.windows, 0), np.int8) if request.exit else scores.code
        novelty = scores.novelty.astype(np.float32)
        return encode_tensor_answer(TensorAnswer(self.elapsed_us, code, scores.logits, novelty))

    def answers(self):
        """Only what has come by now."""
        said = super().answers()
        self._said = [reply for reply in said if reply.t_ns > self._clock.now_ns]
        return [reply for reply in said if reply.t_ns <= self._clock.now_ns]


class Rig:
    """A split network, its clock, and the workers that it asks."""

    def __init__(
        self,
        exits: Sequence[Exit] = (),
        context: int = 0,
        profiles: Sequence[Profile] = (),
        slow: float = 1,
        timed: bool = False,
        **split,
    ) -> None:
        """`timed`: whether the whole takes time, too."""
        self.clock = FakeClock()
        self.clock.now_ns = 10**12
        self.parts = FakeParts(self.clock, exits, context)
        self.parts.slow = slow
        self.cloud = Workers(self.clock, self.parts)
        self.whole = Network(context, self.spend if timed else lambda _: None)
        settings = SplitSettings(**{"cut": "low", "deadline_ms": DEADLINE_MS, "failures": 3, **split})
        self.model = SplitModel(settings, self.clock, lambda _: self.parts, self.cloud, numbered(), profiles)
        self.model.around(self.whole)
        self.forget()

    def spend(self, layers: int) -> None:
        self.clock.now_ns += round(self.parts.slow * layers * MS)

    def forget(self) -> None:
        self.parts.ran.clear()
        self.whole.batches.clear()

    def infer(self, windows: np.ndarray) -> tuple[Scores, float]:
        """Scores, and the milliseconds that they took."""
        began = self.clock.now_ns
        scores = self.model.infer(windows)
        return scores, (self.clock.now_ns - began) / MS


def windows(n: int = 3, seed: int = 0) -> np.ndarray:
    return signal(n * 128, seed).reshape(n, 128, 6)


def assert_whole(scores: Scores, given: np.ndarray) -> None:
    assert scores.by_exit is None or not scores.by_exit.any()
    for ours, its in zip(scores[:3], Network().infer(given)[:3], strict=True):
        assert ours.dtype == its.dtype
        assert np.array_equal(ours, its)


@pytest.mark.parametrize("at", [WINDOW, "low", "high", CODE])
def test_what_workers_answer_is_what_the_whole_gives(at: str):
    rig = Rig(cut=at, privacy="window")

    scores, ms = rig.infer(windows(5))

    assert_whole(scores, windows(5))
    layers = [WINDOW, "low", "high", CODE].index(at)
    assert ms == pytest.approx(layers + rig.cloud.takes_ms)
    assert [each[:2] for each in rig.parts.ran] == ([(WINDOW, at)] if layers else [])
    request = decode_tensor_request(next(iter(rig.cloud.asked.values())))
    assert (request.at, request.until, request.exit, request.windows) == (at, "", "", 5)
    figures = rig.model.figures()
    assert (figures["asked"], figures["answered"], figures["away"], figures["windows"]) == (1, 1, 5, {"end": 5})


def test_where_it_is_passed_on_and_which_exit_answers_is_as_configured():
    first = Exit("first", "high", 0.9, 1.1)
    rig = Rig([first], cut="low", until="high", exit="first")

    scores, _ = rig.infer(windows())

    request = decode_tensor_request(next(iter(rig.cloud.asked.values())))
    assert (request.at, request.until, request.exit) == ("low", "high", "first")
    expected = rig.parts.run(WINDOW, "", windows(), "first")
    assert np.array_equal(scores.logits, expected.logits)
    assert not scores.code.any()
    assert rig.model.figures()["windows"] == {"first": 3}


def test_nobody_answers_and_the_rest_runs_here_just_in_time():
    rig = Rig()
    rig.cloud.answering = False

    scores, ms = rig.infer(windows(1))

    assert_whole(scores, windows(1))
    assert rig.parts.ran == [(WINDOW, "low", "", 1), ("low", "", "", 1)]
    assert ms == pytest.approx(DEADLINE_MS - WAKE_MS)
    assert rig.model.figures()["timed_out"] == 1


def test_a_rest_that_takes_longer_than_it_did_twice_is_begun_sooner_from_then_on():
    rig = Rig(failures=1000)
    rig.cloud.answering = False
    rig.parts.slow = 10
    _, first = rig.infer(windows(1))
    _, second = rig.infer(windows(1))
    _, third = rig.infer(windows(1))
    rig.parts.slow = 1
    for _ in range(32):
        rig.infer(windows(1))
    _, last = rig.infer(windows(1))

    # 30 ms where 3 were measured.
    assert first == second == pytest.approx(DEADLINE_MS - WAKE_MS + 27)
    assert third == pytest.approx(DEADLINE_MS - WAKE_MS)
    assert last == pytest.approx(DEADLINE_MS - WAKE_MS)


def test_what_is_answered_is_used_and_what_is_not_runs_here():
    rig = Rig(cut="low")
    many = windows(70)  # three requests
    rig.cloud.spoil = lambda payload: encode_refusal(Refusal.OVERLOADED, "no") if len(rig.cloud.asked) == 2 else payload

    scores, ms = rig.infer(many)

    assert_whole(scores, many)
    assert [decode_tensor_request(r).windows for r in rig.cloud.asked.values()] == [32, 32, 6]
    assert rig.parts.ran == [(WINDOW, "low", "", 70), ("low", "", "", 32)]
    assert ms < DEADLINE_MS / 2, "what is refused is not waited for"
    figures = rig.model.figures()
    assert (figures["answered"], figures["refused"], figures["away"]) == (2, {"overloaded": 1}, 38)


def test_no_request_is_longer_than_a_request_may_be():
    rig = Rig(cut=WINDOW, privacy="window")
    scores, _ = rig.infer(windows(256))
    assert_whole(scores, windows(256))
    assert max(map(len, rig.cloud.asked.values())) <= MAX_TENSORS
    assert max(decode_tensor_request(r).windows for r in rig.cloud.asked.values()) < 32
    rig = Rig(cut=CODE)
    scores, _ = rig.infer(windows(70))
    assert_whole(scores, windows(70))
    # So that a chain of workers has something to do at both ends.
    assert [decode_tensor_request(r).windows for r in rig.cloud.asked.values()] == [32, 32, 6]


GARBAGE = {
    "nothing": b"",
    "noise": b"\x8a" * 200,
    "cut short": None,
    "another question's": encode_tensor_answer(
        TensorAnswer(0, np.zeros((2, 4), np.int8), np.zeros((2, 3), np.float32), np.zeros(2, np.float32))
    ),
    "without code": encode_tensor_answer(
        TensorAnswer(0, np.zeros((3, 0), np.int8), np.zeros((3, 3), np.float32), np.zeros(3, np.float32))
    ),
    "other labels": encode_tensor_answer(
        TensorAnswer(0, np.zeros((3, 4), np.int8), np.zeros((3, 5), np.float32), np.zeros(3, np.float32))
    ),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_not_waited_for_and_opens_the_breaker(name: str):
    rig, bad = Rig(), GARBAGE[name]
    rig.cloud.spoil = lambda payload: payload[:-3] if bad is None else bad

    for _ in range(3):
        scores, ms = rig.infer(windows())
        assert_whole(scores, windows())
        assert ms < DEADLINE_MS / 2
    rig.forget()
    scores, ms = rig.infer(windows())

    assert_whole(scores, windows())
    assert (ms, rig.parts.ran, rig.whole.batches) == (0, [], [3]), "all of it runs here, at once"
    figures = rig.model.figures()
    assert (figures["garbled"], figures["breaker"], figures["not_asked"]) == (3, "open", {"breaker_open": 3})
    assert "garbled" in (rig.model.problem or "")


def test_the_breaker_tries_again_and_closes():
    rig = Rig(retry_s=30)
    rig.cloud.answering = False
    for _ in range(3):
        rig.infer(windows())
    rig.cloud.answering = True
    rig.clock.now_ns += 31 * 10**9

    scores, _ = rig.infer(windows())

    assert_whole(scores, windows())
    assert rig.model.figures()["breaker"] == "closed"
    assert rig.model.problem is None


def test_a_link_that_is_away_costs_nothing():
    rig = Rig()
    rig.cloud.connected, rig.cloud.problem = False, "connection refused"

    scores, ms = rig.infer(windows())

    assert_whole(scores, windows())
    assert (ms, rig.whole.batches) == (0, [3])
    assert rig.model.figures()["not_asked"] == {"link_away": 3}
    assert "connection refused" in (rig.model.problem or "")


def test_a_connection_that_takes_nothing_is_not_waited_for():
    rig = Rig()
    rig.cloud.takes = False

    scores, ms = rig.infer(windows())

    assert_whole(scores, windows())
    assert ms == pytest.approx(4), "four layers and a head, less one: the whole in two parts"
    assert rig.model.figures()["not_sent"] == 1


def test_the_budget_of_a_day_is_kept():
    rig = Rig(mb_per_day=0.1)
    for _ in range(100):
        scores, _ = rig.infer(windows(2))
        assert_whole(scores, windows(2))

    figures = rig.model.figures()
    assert 99_000 - 1100 < figures["bytes_up"] <= 100_000
    assert set(figures["not_asked"]) == {"byte_budget"}
    rig.clock.now_ns += 24 * 3600 * 10**9
    rig.infer(windows(2))
    assert rig.model.figures()["asked"] == figures["asked"] + 1


def test_a_late_answer_is_counted_and_still_teaches_the_link():
    rig = Rig()
    rig.cloud.takes_ms = 150.0
    rig.infer(windows())
    assert rig.model.figures()["link_rtt_ms"] is None
    rig.clock.now_ns += 10**9
    rig.cloud.takes_ms = 10.0
    scores, _ = rig.infer(windows())

    assert_whole(scores, windows())
    figures = rig.model.figures()
    assert (figures["late"], figures["timed_out"], figures["answered"], figures["unexpected"]) == (1, 1, 1, 0)
    assert figures["rtt_ms"]["max"] == pytest.approx(150, rel=0.02)


def test_what_workers_take_is_not_the_links_time():
    rig = Rig()
    rig.cloud.takes_ms, rig.cloud.elapsed_us = 40.0, 30_000
    for _ in range(3):
        rig.infer(windows())
    assert rig.model.figures()["link_rtt_ms"] == pytest.approx(10)

    rig.cloud.elapsed_us = 4_000_000_000
    scores, _ = rig.infer(windows())
    assert_whole(scores, windows())
    assert rig.model.figures()["link_rtt_ms"] == pytest.approx(10)


def test_what_nobody_asked_for_is_counted():
    rig = Rig()
    rig.cloud.say(b"hello", b"made up")
    rig.infer(windows())
    assert rig.model.figures()["unexpected"] == 1


# --- exits


FIRST = Exit("first", "low", 0.8, 0.6)
SECOND = Exit("second", "high", 0.9, 0.6)


def sure_of(parts: FakeParts, one: Exit, given: np.ndarray) -> np.ndarray:
    logits = parts.run(WINDOW, "", given, one.name).logits
    return calibrated(logits, 1.0).max(axis=1) >= one.confidence


@pytest.mark.parametrize("at", ["low", "high", "off"])
def test_windows_that_an_exit_here_is_sure_of_go_no_further(at: str):
    rig = Rig([FIRST, SECOND], cut=at, early=True)
    given = windows(40)
    first = sure_of(rig.parts, FIRST, given)
    second = sure_of(rig.parts, SECOND, given) & ~first if at != "low" else np.zeros(40, bool)
    assert 0 < first.sum() < 40

    scores, _ = rig.infer(given)

    ends = ~first & ~second
    counts = {"end": int(ends.sum()), "first": int(first.sum())} | (
        {} if at == "low" else {"second": int(second.sum())}
    )
    assert rig.model.figures()["windows"] == counts
    assert_whole(Scores(*(each[ends] for each in scores)), given[ends])
    for one, rows in (("first", first), ("second", second)):
        if not rows.any():
            continue
        assert np.array_equal(scores.logits[rows], rig.parts.run(WINDOW, "", given[rows], one).logits)
        assert not scores.code[rows].any()
    asked = [decode_tensor_request(r).windows for r in rig.cloud.asked.values()]
    assert asked == ([] if at == "off" else [int(ends.sum())])


def test_a_window_that_stopped_early_is_decided_by_its_own_scores_and_not_by_a_context_that_lacks_it():
    rig = Rig([FIRST], cut="off", early=True, context=2)
    model = TimedModel(rig.model, rig.clock)
    pipeline = Pipeline(model, manifest(context=2))
    taps: list[np.ndarray] = []
    pipeline.tap = lambda given: taps.append(given.copy())

    scored = pipeline.score([SampleBatch("s", even_times(128 * 20), signal(128 * 20), 0)])

    stopped = sure_of(rig.parts, FIRST, np.concatenate(taps))
    assert 0 < stopped.sum() < len(scored)
    for window, alone in zip(scored, stopped, strict=True):
        assert window.has_code != alone
        if alone:
            assert window.decisive == window.scores
        else:
            (logits,) = Network(2).contextualise(window.call.codes[[window.at]])
            assert window.decisive == calibrated(logits[None], 1.0)[0].tolist()


def test_where_no_time_is_left_the_last_exit_in_time_answers():
    rig = Rig([FIRST, SECOND], cut="low", deadline_ms=10, failures=1000)
    rig.cloud.answering = False
    rig.infer(windows(1))
    assert rig.model.figures()["windows"] == {"end": 1}
    # Twenty milliseconds for the end, twenty for the second exit, ten for the first.
    rig.parts.slow = 10
    rig.infer(windows(1))
    rig.infer(windows(1))
    assert rig.model.figures()["windows"]["first"] > 0


def test_a_board_that_was_slow_for_a_while_goes_back_to_the_exit_that_it_had_and_one_that_stays_slow_does_not():
    rig = Rig([FIRST, SECOND], cut="off", exit="second")
    rig.infer(windows(1))
    rig.parts.slow = 40  # 120 ms for the second exit, 80 for the first
    for _ in range(3):
        rig.infer(windows(1))
    assert rig.model.figures()["windows"] == {"second": 3, "first": 1}

    for _ in range(1000):
        rig.infer(windows(1))
    tried = rig.model.figures()["windows"]["second"]
    assert tried < 3 + 0.01 * 1000

    rig.parts.slow = 1
    for _ in range(600):
        rig.infer(windows(1))
    assert rig.model.figures()["windows"]["second"] > tried + 100


def test_a_board_that_was_slow_when_it_started_finds_out_that_it_is_not_any_more():
    rig = Rig([FIRST, SECOND], cut="off", exit="second", slow=40)
    rig.infer(windows(1))
    assert rig.model.figures()["windows"] == {"first": 1}

    rig.parts.slow = 1
    for _ in range(40):
        rig.infer(windows(1))
    assert rig.model.figures()["windows"]["second"] > 0


@pytest.mark.parametrize("objective", ["latency", "accuracy"])
def test_a_board_that_always_was_too_slow_for_the_end_does_not_try_it(objective: str):
    rig = Rig([FIRST], cut="low", failures=1000, slow=32, objective=objective)  # 96 ms for the rest
    rig.cloud.answering = False
    assert max(rig.infer(windows(1))[1] for _ in range(300)) <= DEADLINE_MS
    assert rig.model.figures()["windows"] == {"first": 300}


def test_a_board_that_waits_in_vain_finds_out_that_it_is_not_slow_any_more():
    rig = Rig([FIRST], cut="low", failures=1000)
    rig.cloud.answering = False
    rig.parts.slow = 40
    for _ in range(5):
        rig.infer(windows(1))

    rig.parts.slow = 1
    for _ in range(600):
        rig.infer(windows(1))
    before = rig.model.figures()["windows"]["end"]
    for _ in range(10):
        rig.infer(windows(1))
    assert rig.model.figures()["windows"]["end"] == before + 10


def test_an_answer_that_is_there_when_the_board_looks_counts_however_late_that_is():
    # The exit that is run beside the request takes longer than it used to.
    rig = Rig([FIRST], cut="low", objective="accuracy", failures=1, slow=32)
    rig.cloud.takes_ms = 20
    rig.infer(windows(1))
    rig.parts.slow = 90
    scores, ms = rig.infer(windows(1))

    assert ms > DEADLINE_MS
    assert_whole(scores, windows(1))
    figures = rig.model.figures()
    assert (figures["away"], figures["answered"], figures["late"], figures["breaker"]) == (2, 2, 0, "closed")


def test_a_board_that_is_too_slow_for_the_end_waits_for_an_answer_as_long_as_an_exit_is_in_time():
    rig = Rig([FIRST], cut="low", failures=1000, slow=32)  # 96 ms for the rest, 32 for the exit, 32 have gone
    rig.cloud.takes_ms = 20

    rig.infer(windows(1))
    rig.infer(windows(1))
    assert rig.model.figures()["away"] == 2
    rig.cloud.answering = False
    _, ms = rig.infer(windows(1))

    assert rig.model.figures()["windows"] == {"end": 2, "first": 1}
    assert ms == pytest.approx(DEADLINE_MS - WAKE_MS)


def test_an_exit_that_is_not_sure_answers_where_nobody_else_does_in_time():
    rig = Rig([FIRST._replace(confidence=1.0)], cut="low", failures=1000, early=True, slow=32)
    rig.cloud.answering = False

    scores, ms = rig.infer(windows(1))

    low = rig.parts.run(WINDOW, "low", windows(1))
    assert np.array_equal(scores.logits, rig.parts.run("low", "", low, "first").logits)
    assert rig.model.figures()["windows"] == {"first": 1}
    assert ms == pytest.approx(DEADLINE_MS - WAKE_MS)


def test_where_accuracy_is_wanted_an_exit_runs_while_the_answer_is_under_way():
    rig = Rig([FIRST], cut="low", failures=1000, objective="accuracy", slow=30)  # the end takes 90 ms, and 30 have gone
    rig.cloud.takes_ms = 60

    rig.infer(windows(1))
    assert rig.model.figures()["windows"] == {"end": 1}
    assert rig.parts.ran[-1] == ("low", "", "first", 1)
    rig.cloud.takes_ms = 90
    _, ms = rig.infer(windows(1))

    assert rig.model.figures()["windows"] == {"end": 1, "first": 1}
    assert ms == pytest.approx(DEADLINE_MS - WAKE_MS)


def test_an_exit_answers_where_nothing_is_asked():
    rig = Rig([FIRST, SECOND], cut="off", exit="first")
    rig.infer(windows())
    assert rig.model.figures()["windows"] == {"first": 3}
    assert "has no exit 'nowhere'" in (Rig([FIRST], cut="off", exit="nowhere").model.trouble or "")


# --- auto


def profile(each_us: float, bundle: str = Network.id, watts: float | None = None) -> Profile:
    """Of `Network`: four equal segments, between which the cuts lie."""
    return Profile(
        "machine",
        bundle,
        (WayOut("end", 0.95, 4),),
        ("low", "high", CODE),
        (3072, 512, 128, 4),
        16,
        4,
        (each_us,) * 4,
        0.0,
        4 * each_us,
        watts,
    )


BOARD, WORKER = profile(20_000), profile(100)


class Roaming(Rig):
    """A board that looks for its cut by itself; a window comes every second."""

    def __init__(self, **split) -> None:
        super().__init__(profiles=(BOARD, WORKER), slow=20, timed=True, **{"cut": "auto", "deadline_ms": 5000, **split})

    def go(self, n: int) -> list[str | None]:
        """Where each of `n` windows was cut, None for those of which nothing was sent."""
        cuts = []
        for k in range(n):
            self.clock.now_ns += 10**9
            before = len(self.cloud.asked)
            scores, _ = self.infer(windows(1, k))
            assert_whole(scores, windows(1, k))
            sent = list(self.cloud.asked.values())[before:]
            cuts.append(decode_tensor_request(sent[0]).at if sent else None)
        return cuts


def test_auto_looks_at_both_ends_and_then_cuts_where_it_is_best():
    # All but the first layer saves 60 ms: that is worth 10 ms, and what half a kilobyte takes.
    rig = Roaming()
    assert rig.go(10) == [CODE, "low"] * 3 + ["low"] * 4
    assert rig.model.figures()["cut"] == "low"


def test_what_is_asked_to_learn_of_the_link_is_not_waited_for():
    rig = Roaming()
    rig.cloud.takes_ms = 2000
    times = []
    for k in range(8):
        rig.clock.now_ns += 3 * 10**9
        scores, ms = rig.infer(windows(1, k))
        assert_whole(scores, windows(1, k))
        times.append(ms)

    assert max(times) <= 80 + 60  # all of it, and the layers to the cut for those who learn
    figures = rig.model.figures()
    assert (figures["answered"], figures["timed_out"], figures["late"], figures["breaker"]) == (6, 0, 0, "closed")


@pytest.mark.parametrize("silent", [True, False])
def test_a_worker_that_is_not_there_or_is_another_is_told_of_by_what_was_asked_to_learn(silent: bool):
    rig = Roaming(failures=3)
    rig.cloud.answering = not silent
    rig.cloud.spoil = lambda payload: encode_refusal(Refusal.OTHER_PART, "it is not here")
    for k in range(9):
        rig.clock.now_ns += 10**9
        assert_whole(rig.infer(windows(1, k))[0], windows(1, k))

    figures = rig.model.figures()
    assert figures["breaker"] == "open"
    assert figures["abandoned"] == 0
    assert figures["asked"] < 9
    assert ("timed out" if silent else "it is not here") in (rig.model.problem or "")


def test_what_was_asked_to_learn_and_comes_after_its_deadline_is_late_and_teaches_all_the_same():
    rig = Roaming(deadline_ms=1000)
    rig.cloud.takes_ms, rig.cloud.dropped = 1500.0, 7
    rig.infer(windows(1))
    assert rig.model.figures()["answered"] == 0
    rig.clock.now_ns += 3 * 10**9
    rig.infer(windows(1))

    figures = rig.model.figures()
    assert (figures["answered"], figures["timed_out"], figures["late"]) == (0, 1, 1)
    assert figures["link_rtt_ms"] == pytest.approx(1500, rel=0.1)
    assert figures["dropped"] == 7


def test_auto_knows_how_fast_this_board_is_now():
    # All here takes 80 ms as profiled, and the rest elsewhere 20 and the link.
    rig = Roaming()
    rig.cloud.takes_ms = 70.0
    assert set(rig.go(12)[6:]) == {None}

    # Twice as slow, and nothing else: all here takes 160 ms, the rest elsewhere 40 and the link.
    rig.parts.slow = 40
    assert set(rig.go(60)[-10:]) == {"low"}


def test_auto_sends_the_window_only_where_it_may():
    rig = Roaming(privacy="window")
    assert rig.go(10)[6:] == [WINDOW] * 4


def test_auto_sends_less_over_a_slow_link():
    rig = Roaming()
    # 512 bytes take 26 ms more than 128 do, and the layer between them 20 ms.
    rig.cloud.bits_per_s = 120_000.0
    assert set(rig.go(12)[6:]) == {"high"}
    figures = rig.model.figures()
    assert figures["link_mbit"] == pytest.approx(0.12, rel=0.1)
    assert figures["link_rtt_ms"] == pytest.approx(10, rel=0.2)


def test_auto_runs_all_here_where_the_link_is_too_slow_and_looks_again_now_and_then():
    rig = Roaming(retry_s=10)
    rig.cloud.takes_ms = 200.0
    assert rig.go(6) == [CODE, "low"] * 3
    assert rig.go(30).count(None) == 27

    rig.cloud.takes_ms = 10.0
    assert rig.go(120)[-5:] == ["low"] * 5


def test_auto_plans_anew_when_the_link_becomes_another_one():
    rig = Roaming()
    rig.go(20)
    rig.cloud.takes_ms = 300.0
    assert rig.go(30)[-1] is None
    assert rig.model.problem is None, "that all of it runs here is what was planned"


def test_auto_asks_for_one_window_to_see_and_runs_the_others_meanwhile():
    rig = Roaming()
    rig.cloud.takes_ms = 2000
    rig.clock.now_ns += 10**9
    scores, ms = rig.infer(windows(3))
    assert_whole(scores, windows(3))
    assert decode_tensor_request(next(iter(rig.cloud.asked.values()))).windows == 1
    assert rig.model.figures()["windows"] == {"end": 3}
    assert ms < 200


@pytest.mark.parametrize(
    ("profiles", "objective", "says"),
    [
        ((profile(1, "other@11111111"), profile(1, "other@11111111")), "latency", "are of other@11111111"),
        ((BOARD, profile(1, "other@11111111")), "latency", "this board and the worker"),
        ((BOARD, WORKER), "energy", "power is not known"),
        ((BOARD._replace(output_bytes=5), WORKER), "latency", "different networks"),
        ((BOARD._replace(cuts=("a", "b", "c")), WORKER), "latency", "no cut that fake@00000000 has here"),
    ],
)
def test_profiles_that_auto_cannot_use_are_told(profiles, objective: str, says: str):
    rig = Rig(cut="auto", profiles=profiles, objective=objective)
    assert says in (rig.model.trouble or "")
    scores, _ = rig.infer(windows())
    assert_whole(scores, windows())


# --- names


@pytest.mark.parametrize(
    ("split", "says"),
    [
        ({"cut": "conv1"}, "no cut 'conv1'; there are window, low, high, code"),
        ({"cut": "high", "until": "low"}, "no cut 'low' after high; there are code"),
        ({"cut": "low", "exit": "nowhere"}, "no exit 'nowhere' at low or after it; there are first"),
        ({"cut": "high", "exit": "first"}, "no exit 'first' at high or after it; there are none"),
        ({"cut": "low", "early": True}, None),
    ],
)
def test_names_that_are_not_there_are_told_with_those_that_are(split: dict, says: str | None):
    rig = Rig([FIRST], **split)
    if says is None:
        assert rig.model.trouble is None
    else:
        assert says in (rig.model.trouble or "")
        scores, _ = rig.infer(windows())
        assert_whole(scores, windows())
        assert (rig.cloud.asked, rig.whole.batches) == ({}, [3])


def test_a_tensor_that_no_request_holds_is_refused():
    rig = Rig(cut="low")
    rig.parts.cuts[1].bytes = 70_000
    rig.model.around(rig.whole)
    assert "70000 bytes" in (rig.model.trouble or "")


def test_a_model_without_exits_stops_nowhere():
    assert "has no exits" in (Rig(early=True).model.trouble or "")


# --- other models, and parts that fail


def test_a_model_that_cannot_be_split_runs_here_and_the_next_one_that_can_is_split():
    rig = Rig()
    model = TimedModel(rig.whole, rig.clock, rig.model.around)
    refused = ModelContractError("its graphs cannot be fused")

    def cannot(_):
        raise refused

    rig.model._open, opens = cannot, rig.model._open
    model.replace(Network())
    assert_whole(model.infer(windows()), windows())
    assert (rig.cloud.asked, rig.model.figures()["cut"]) == ({}, None)
    assert rig.model.problem == "its graphs cannot be fused; all of fake@00000000 runs here"

    rig.model._open = opens
    model.replace(Network())
    assert_whole(model.infer(windows()), windows())
    assert len(rig.cloud.asked) == 1
    assert rig.model.problem is None


@pytest.mark.parametrize("tensor", ["low", WINDOW])
def test_a_part_that_fails_costs_no_prediction(tensor: str):
    rig = Rig()
    rig.cloud.answering = False
    rig.parts.fails = tensor
    scores, _ = rig.infer(windows())
    assert_whole(scores, windows())
    assert rig.model.trouble == f"{tensor} fails" or rig.model.trouble == "low fails"


def test_a_model_that_fails_is_told():
    rig = Rig(cut="off", early=False)

    class Broken(Network):
        def infer(self, windows):
            raise InferenceError("broken")

    rig.model.around(Broken())
    with pytest.raises(InferenceError, match="broken"):
        rig.model.infer(windows())


def test_through_a_pipeline_predictions_are_those_of_the_whole():
    batches = cut(even_times(2000), signal(2000), [37])
    alone = fed(Pipeline(Network(4), manifest(context=4)), batches)
    rig = Rig(context=4)
    rig.cloud.spoil = lambda payload: b"?" if len(rig.cloud.asked) % 3 == 0 else payload

    events = fed(Pipeline(TimedModel(rig.whole, rig.clock, rig.model.around), manifest(context=4)), batches)

    assert events == alone
    assert sum(isinstance(event, Prediction) for event in events) == len(alone) - sum(
        not isinstance(event, Prediction) for event in alone
    )
    assert rig.model.figures()["answered"] > 10
