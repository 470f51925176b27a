"""A network of which others may run the rest: a `ports.Model` whose answers are those of the whole, and never later.

Theory of operation. Windows run here as far as the cut. The tensor there goes to a worker, and this one waits for the
scores until there is just time enough before the deadline to run the rest itself, which it does for whatever is
missing then. So an answer saves time, and its absence costs no more than the deadline: not a result, and not a bit of
one, since every part gives what the whole gives. Where nobody can be asked, all of it runs here at once. A board that
is too slow to run the rest in time after it has waited for an answer takes an earlier exit then, if there is one.

How long the rest takes here is measured at the start, of a new model too, and then by the slowest of its last runs but
one, which may have been interrupted.

Where to cut is said by `split_plan`. With `early`, the exits that lie before the cut run here, too, and windows that
one is sure of go no further.
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from agent.core.cloud_wire import CloudRefusal
from agent.core.decision import calibrated
from agent.core.link import LinkEstimator
from agent.core.manifest import WINDOW, Manifest
from agent.core.offload import CircuitBreaker, DayBudget, Outcome, Reason
from agent.core.planner import Objective, Profile
from agent.core.settings import SplitSettings
from agent.core.split_wire import TensorAnswer, TensorRequest, decode_tensor_answer, encode_tensor_request
from agent.errors import ConfigError, InferenceError, ModelContractError
from agent.ports import Clock, Cloud, Model, Parts
from agent.records import Float32Array, Int8Array, Scores
from agent.runtime.requests import Heard, Requests
from agent.runtime.split_plan import Auto, Choice, Fixed, Layout, choose

if TYPE_CHECKING:
    from agent.core.messages import SplitFigures

END = "end"
"""What the network's end is called where windows are counted by the exit that answered."""

_MOST_WINDOWS = 32
"""In a request: where workers stand in a chain, one can have the first windows while another has the next."""
_RECENT = 32
"""Runs of a part by which it is known how long it may take now, and waits by which it is how late they may end."""
_WAKE_NS, _LEAST, _MOST = 2_000_000, 1 / 20, 1 / 4
"""What it may take from the end of a wait to the scores, beside running the rest: at the least, and shares of the
deadline between which it is what was seen."""
Array = npt.NDArray[Any]


class _Answers:
    """Scores of the windows of one call, put together from wherever they come."""

    def __init__(self, windows: int, manifest: Manifest) -> None:
        self.logits = np.zeros((windows, len(manifest.labels)), np.float32)
        self.code = np.zeros((windows, *manifest.code.shape), np.int8)
        self.novelty = np.zeros(windows, np.float64)
        self.done = np.zeros(windows, np.bool_)
        self.stopped = np.zeros(windows, np.bool_)
        """Whether an exit answered, which leaves no code."""
        self.spare = ""
        """The exit whose scores the windows have that are not done; empty if they have none."""

    def put(self, rows: Array, scores: Scores) -> None:
        self.logits[rows], self.code[rows], self.novelty[rows] = scores[:3]
        self.done[rows], self.stopped[rows] = True, False if scores.by_exit is None else scores.by_exit

    def hold(self, rows: Array, way_out: str) -> None:
        """Look for better scores of some windows than those that an exit gave."""
        self.done[rows], self.stopped[rows], self.spare = False, False, way_out

    @property
    def scores(self) -> Scores:
        return Scores(self.logits, self.code, self.novelty, self.stopped if self.stopped.any() else None)

    def shapes(self, windows: int, way_out: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of logits and of code in an answer of so many windows; an exit gives no code."""
        return (windows, self.logits.shape[1]), (windows, 0 if way_out else self.code[0].size)

    def settle(self, rows: Array) -> None:
        """Let the exit's scores stand: there is no time for better ones."""
        self.done[rows] = self.stopped[rows] = True


@dataclass(slots=True, eq=False)
class _Asked:
    """A request for the windows `rows` of a call, from which an exit answers.

    `asked_ns`, `n_bytes`: when the first request of the call was sent, and the bytes since then: its own, and those of
    the ones before it, which go over the same link. `shapes`: what its answer must have, of logits and of code.
    `answers`: where its scores go; None where nobody waits for them, or any more. `deadline_ns`: of a probe; whoever
    waits takes what is there when it looks, however late that is.
    """

    correlation: bytes
    asked_ns: int
    n_bytes: int
    rows: Array
    exit: str
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    answers: _Answers | None
    deadline_ns: float = math.inf


class _Pace:
    """How long something takes here, a window: the slowest of the last times but one.

    What takes too long is not run, so that nobody would see it become faster. After it was passed over some times it is
    taken to be as much slower than it was measured as what is run is, if that gives hope; after twice as many the next
    time, and so on, up to 16 times, for it may be wrong.
    """

    def __init__(self, ns: float) -> None:
        self.measured_ns = ns
        self._each_ns = deque([ns], maxlen=_RECENT)
        self._in_a_row = self._passed_over = 0
        self._patience = _RECENT

    def expected_ns(self, windows: int = 1) -> float:
        return sorted(self._each_ns)[-2:][0] * windows

    def took(self, ns: float, windows: int = 1) -> None:
        self._each_ns.append(ns / windows)
        self._in_a_row, self._passed_over = self._in_a_row + 1, 0
        if self._in_a_row == _RECENT:
            self._patience = _RECENT

    def passed_over(self, slowness: Iterable[float]) -> None:
        """Take note that it was not run; `slowness`: how many times as long as measured other runs took lately."""
        self._in_a_row, self._passed_over = 0, self._passed_over + 1
        if self._passed_over == self._patience:
            self._passed_over = 0
            hoped_ns = self.measured_ns * median(slowness)
            if hoped_ns < self.expected_ns():
                self._each_ns = deque([hoped_ns], maxlen=_RECENT)
                self._patience = min(2 * self._patience, 16 * _RECENT)


class SplitModel:
    """See the module's text. Used from one thread, which `infer` blocks for the deadline at most."""

    def __init__(
        self,
        settings: SplitSettings,
        clock: Clock,
        open_parts: Callable[[Model], Parts],
        cloud: Cloud | None = None,
        token: Callable[[], bytes] = bytes,
        profiles: Sequence[Profile] = (),
    ) -> None:
        """Prepare; `around` says of which model.

        Args:
            settings: What is configured.
            clock: The time.
            open_parts: Gives the parts of a model, tried on this machine; ModelContractError if it has none.
            cloud: Whoever runs the rest; None where nobody is asked.
            token: Gives the correlation of a request: no other's, and such that only who reads requests knows it.
            profiles: For auto: this board's, and the worker's.
        """
        self._settings = settings
        self._clock = clock
        self._open = open_parts
        self._token = token
        self._profiles = profiles
        self._deadline_ns = round(settings.deadline_ms * 1e6)
        self._breaker = CircuitBreaker(settings.failures, settings.retry_s)
        self._day = DayBudget(settings.mb_per_day * 1e6)
        self._requests: Requests[_Asked, TensorAnswer] = Requests(cloud, self._breaker, _read)
        self._link = LinkEstimator()
        self._whole: Model
        self._parts: Parts | None = None
        self._layout: Layout
        self._chooser: Fixed | Auto
        self._paces: dict[tuple[str, str], _Pace] = {}
        self._slowness = deque([1.0], maxlen=_RECENT)
        """How many times as long as when it was measured whatever was run here took."""
        self._heard: list[tuple[_Asked, int, int, int]] = []
        """Answers that were waited for, and that the link has not been judged by yet: see `_learn`."""
        self._elapsed_us = 0
        """That workers had the last request that was answered."""
        self._wake = _Pace(_WAKE_NS)
        """From the end of a wait to the scores, beside running the rest."""
        self._waited_ns: int | None = None
        """When the wait of this call ended without all answers, and what running the rest took since then, added."""
        self._plan = Choice()
        self._away = 0
        self._exits: Counter[str] = Counter()
        self.trouble: str | None = None
        """Why the model that runs now cannot be split as configured, for people: all of it runs here."""

    def around(self, model: Model) -> "SplitModel":
        """Split `model` from now on, as far as it can be, see `trouble`; return what is to be called in its place."""
        self._whole, self._parts, self.trouble = model, None, None
        self.id, self.labels, self.context_windows = model.id, model.labels, model.context_windows
        self._paces.clear()
        self._slowness.clear()
        self._slowness.append(1.0)
        try:
            parts = self._open(model)
            self._layout = Layout(parts)
            self._chooser = choose(self._settings, self._profiles, parts, self._layout, self._link)
            self._measure(parts)
            self._plan = self._chooser.first
            self._parts = parts
        except (ModelContractError, ConfigError, InferenceError) as error:
            self._only_whole(str(error))
        return self

    def infer(self, windows: Float32Array) -> Scores:
        """See `ports.Model.infer`; this one waits, for the deadline at most."""
        if self._parts is not None:
            try:
                answers = self._infer(self._parts, windows)
            except (InferenceError, ModelContractError) as error:
                # If it is the model itself that fails, that is told below. What a part does must cost no prediction.
                problem = str(error)
            else:
                if self._waited_ns is not None:
                    self._wake.took(max(self._clock.monotonic_ns() - self._waited_ns, _WAKE_NS))
                return answers.scores
            finally:
                self._give_up(Outcome.ABANDONED)
            scores = self._whole.infer(windows)
            self._only_whole(problem)
        else:
            scores = self._whole.infer(windows)
        self._exits[END] += len(windows)
        return scores

    def contextualise(self, codes: Int8Array) -> Float32Array:
        """See `ports.Model.contextualise`."""
        return self._whole.contextualise(codes)

    @property
    def problem(self) -> str | None:
        """Why all of the network runs here although it is not meant to, for people."""
        if self.trouble is not None:
            return f"{self.trouble}; all of {self.id} runs here"
        why = self._requests.problem(self._clock.monotonic_ns())
        return None if why is None else f"nobody can be asked for the rest of the network: {why}; all of it runs here"

    def figures(self) -> "SplitFigures":
        """Return what was asked and what became of it, for telemetry, and begin a new interval of round trips."""
        link = self._link
        return {
            "cut": self._plan.cut or None,
            "windows": dict(sorted(self._exits.items())),
            "away": self._away,
            "link_rtt_ms": None if link.rtt_ns is None else round(link.rtt_ns / 1e6, 3),
            "link_mbit": None if link.bits_per_s is None else round(link.bits_per_s / 1e6, 3),
            **self._requests.figures(self._clock.monotonic_ns()),
        }

    def _only_whole(self, trouble: str) -> None:
        self._parts, self._plan, self.trouble = None, Choice(), trouble

    # --- one call

    def _infer(self, parts: Parts, windows: Float32Array) -> _Answers:
        began_ns = self._clock.monotonic_ns()
        deadline_ns, self._waited_ns = began_ns + self._deadline_ns, None
        self._listen()
        for asked in self._requests.under_way:
            if began_ns > asked.deadline_ns:  # a probe, for which nobody waited
                self._requests.give_up(asked, Outcome.TIMED_OUT, began_ns)
        plan = self._planned(began_ns, len(windows))
        answers = _Answers(len(windows), parts.manifest)
        rows: Array = np.arange(len(windows))
        at, values = WINDOW, windows
        if self._settings.early:
            rows, at, values = self._stop_early(parts, plan, answers, rows, values)
        if plan.cut and len(rows):
            if at != plan.cut:
                at, values = plan.cut, self._array(parts, at, plan.cut, values)
            n = self._ask(parts, plan, answers, rows[:1] if plan.probe else rows, values)
            self._rest(parts, at, plan.exit, answers, rows[n:], values[n:])
            rows, values = rows[:n], values[:n]
            if n and (plan.probe or self._settings.objective == Objective.ACCURACY):
                self._run_beside(parts, at, plan, answers, rows, values, deadline_ns)
            self._wait(self._layout.ways_out(at, plan.exit, answers.spare), at, answers, deadline_ns)
            missing = ~answers.done[rows]
            rows, values = rows[missing], values[missing]
        if not len(rows):
            return answers
        way_out = self._in_time(at, plan.exit, answers, deadline_ns, len(rows))
        if way_out is None:
            self._exits[answers.spare] += len(rows)
            answers.settle(rows)
        else:
            self._rest(parts, at, way_out, answers, rows, values)
        return answers

    def _run_beside(
        self, parts: Parts, at: str, plan: Choice, answers: _Answers, rows: Array, values: Array, deadline_ns: int
    ) -> None:
        """Have scores while an answer is under way: those of the last exit that is in time here.

        A probe must not cost accuracy, and where accuracy is what is wanted, idle time is not to be saved.
        """
        way_out = self._in_time(at, plan.exit, answers, deadline_ns, len(rows))
        if way_out is None:
            return
        if way_out != plan.exit:
            answers.put(rows, self._timed(parts, at, way_out, values))
            answers.hold(rows, way_out)
        elif plan.probe and self._expected_ns(at, way_out, len(rows)) <= deadline_ns - self._clock.monotonic_ns():
            self._rest(parts, at, way_out, answers, rows, values)
            # Nobody waits for the answer, which tells of the link and of the worker.
            for asked in self._waiting():
                asked.answers, asked.deadline_ns = None, deadline_ns

    def _planned(self, now_ns: int, windows: int) -> Choice:
        """Return what to do with some windows: as configured, or as is best now; all here where nobody can be asked."""
        self._plan = self._chooser.plan(now_ns)
        if not self._plan.cut:
            return self._plan
        reason = self._against(now_ns, self._layout.cuts[self._plan.cut].bytes)
        if reason is None:
            return self._plan
        self._requests.not_asked(reason.value, windows)
        return Choice("", self._plan.exit)

    def _against(self, now_ns: int, n_bytes: int) -> Reason | None:
        """Return why nothing of `n_bytes` can be asked now."""
        if not self._requests.connected:
            return Reason.LINK_AWAY
        if not self._breaker.allows(now_ns):
            return Reason.BREAKER_OPEN
        return self._day.against(now_ns, n_bytes)

    def _stop_early(
        self, parts: Parts, plan: Choice, answers: _Answers, rows: Array, values: Array
    ) -> tuple[Array, str, Array]:
        """Run the exits before the cut, or before that which answers; return what goes on: windows, tensor, values."""
        at, layout = WINDOW, self._layout
        last = plan.cut or next((one.at for one in layout.exits if one.name == plan.exit), list(layout.cuts)[-1])
        for one in layout.exits_up_to(last):
            if one.name == plan.exit or not len(rows):
                break
            if one.at != at:
                at, values = one.at, self._array(parts, at, one.at, values)
            scores = parts.run(at, "", values, one.name)
            assert isinstance(scores, Scores)  # no tensor is named
            sure = calibrated(scores.logits, parts.manifest.calibration.temperature).max(axis=1) >= one.confidence
            answers.put(rows, scores)
            if sure.any():
                self._exits[one.name] += int(sure.sum())
            rows, values = rows[~sure], values[~sure]
            answers.hold(rows, one.name)
        return rows, at, values

    def _ask(self, parts: Parts, plan: Choice, answers: _Answers, rows: Array, values: Array) -> int:
        """Ask for the rest of as many windows as may be asked for, the first ones; return how many those are."""
        most = min(_MOST_WINDOWS, self._layout.most_windows(plan.cut))
        asked_ns, n_bytes = self._clock.monotonic_ns(), 0
        for first in range(0, len(rows), most):
            part = rows[first : first + most]
            sent = np.ascontiguousarray(values[first : first + len(part)])
            until = self._settings.until
            request = encode_tensor_request(
                TensorRequest(parts.network, plan.cut, until, plan.exit, len(part), 0, sent.tobytes())
            )
            now_ns = self._clock.monotonic_ns()
            reason = self._against(now_ns, len(request))
            if reason is not None:
                self._requests.not_asked(reason.value, len(rows) - first)
                return first
            self._breaker.asked()
            self._day.spend(now_ns, len(request))
            n_bytes += len(request)
            shapes = answers.shapes(len(part), plan.exit)
            asked = _Asked(self._token(), asked_ns, n_bytes, part, plan.exit, shapes, answers)
            if not self._requests.ask(request, asked, now_ns):
                return first
        return len(rows)

    def _wait(self, ways_out: Sequence[str], at: str, answers: _Answers, deadline_ns: int) -> None:
        """Wait for answers, as long as the rest can still be run here: by the first of `ways_out` that leaves time."""
        waiting = self._waiting()
        if not waiting:
            return
        windows = sum(len(asked.rows) for asked in waiting)
        n_bytes = max(asked.n_bytes for asked in waiting)
        answer_ns = self._clock.monotonic_ns() + (self._link.expected_ns(n_bytes) or 0) + 1000 * self._elapsed_us
        in_hand_ns = deadline_ns - self._wake_ns
        ends = [in_hand_ns - round(self._expected_ns(at, w, windows)) for w in ways_out]
        if answers.spare:
            ends.append(in_hand_ns)
        until_ns = next((end for end in ends if end > answer_ns), ends[-1])
        if until_ns <= self._clock.monotonic_ns():
            # Nothing here is in time, an answer may be.
            until_ns = deadline_ns
        self._listen()
        idle = bool(self._waiting())
        while self._waiting() and (left_ns := until_ns - self._clock.monotonic_ns()) > 0:
            if self._requests.wait(left_ns / 1e9):
                self._listen()
        self._listen()
        now_ns = self._clock.monotonic_ns()
        missing = self._waiting()
        if missing:
            self._waited_ns = until_ns
        for i, (asked, answer_bytes, t_ns, elapsed_us) in enumerate(self._heard, 1):
            # What it takes until the scores are in hand belongs to asking. Of several only the last was waited for.
            waited = idle and not missing and i == len(self._heard)
            self._learn(asked, answer_bytes, now_ns if waited else t_ns, elapsed_us)
        self._heard.clear()
        self._give_up(Outcome.TIMED_OUT)

    def _in_time(self, at: str, planned: str, answers: _Answers, deadline_ns: int, windows: int) -> str | None:
        """Return the exit that some windows may still have here: the planned one, or the last before it in time.

        If none is, the soonest; None where they have the scores of an exit already.
        """
        ways_out = self._layout.ways_out(at, planned, answers.spare)
        if len(ways_out) == 1 and not answers.spare:
            return planned
        # After a wait it is that which was kept in hand.
        left_ns = deadline_ns - self._clock.monotonic_ns() - (0 if self._waited_ns is not None else self._wake_ns)
        for way_out in ways_out:
            if self._expected_ns(at, way_out, windows) <= left_ns:
                return way_out
            if (pace := self._paces.get((at, way_out))) is not None:
                pace.passed_over(self._slowness)
        return None if answers.spare else ways_out[-1]

    @property
    def _wake_ns(self) -> int:
        """What is kept in hand of the deadline."""
        least, most = _LEAST * self._deadline_ns, _MOST * self._deadline_ns
        return round(min(max(self._wake.expected_ns(), least), most))

    def _expected_ns(self, at: str, way_out: str, windows: int) -> float:
        pace = self._paces.get((at, way_out))
        return pace.expected_ns(windows) if pace else 0.0

    def _rest(self, parts: Parts, at: str, way_out: str, answers: _Answers, rows: Array, values: Array) -> None:
        """Run what is left of some windows here."""
        if len(rows):
            answers.put(rows, self._timed(parts, at, way_out, values))
            self._exits[way_out or END] += len(rows)

    def _timed(self, parts: Parts, at: str, way_out: str, values: Array) -> Scores:
        """Run some windows from a cut to an exit, and take note of how long it takes."""
        start_ns = self._clock.monotonic_ns()
        scores = self._run(parts, at, way_out, values)
        spent_ns = self._clock.monotonic_ns() - start_ns
        if self._waited_ns is not None:
            self._waited_ns += spent_ns
        if len(values) == 1:
            self._chooser.ran(at, way_out, spent_ns)
        if (pace := self._paces.get((at, way_out))) is not None:
            pace.took(spent_ns, len(values))
            self._slowness.append(spent_ns / len(values) / max(pace.measured_ns, 1.0))
        else:
            self._paces[at, way_out] = _Pace(spent_ns / len(values))
        return scores

    def _run(self, parts: Parts, at: str, way_out: str, values: Array) -> Scores:
        if at == WINDOW and not way_out:
            return self._whole.infer(values)
        scores = parts.run(at, "", values, way_out)
        assert isinstance(scores, Scores)  # no tensor is named
        return scores

    def _array(self, parts: Parts, at: str, until: str, values: Array) -> Array:
        tensor = parts.run(at, until, values)
        assert not isinstance(tensor, Scores)  # one is named
        return tensor

    def _measure(self, parts: Parts) -> None:
        """Open what may be needed, and measure how long it takes here from cuts, and from the window, to the exits."""
        window = self._layout.cuts[WINDOW]
        for at in dict.fromkeys((WINDOW, *self._chooser.cuts)):
            values: Array = np.zeros((1, *window.shape), window.dtype)
            if at != WINDOW:
                values = self._array(parts, WINDOW, at, values)
            for way_out in self._layout.ways_out(at, self._chooser.first.exit):
                for _ in range(2):  # the first run opens it
                    start_ns = self._clock.monotonic_ns()
                    self._run(parts, at, way_out, values)
                    spent_ns = self._clock.monotonic_ns() - start_ns
                self._paces[at, way_out] = _Pace(spent_ns)
                self._chooser.ran(at, way_out, spent_ns)

    # --- answers

    def _waiting(self) -> list[_Asked]:
        """Return the requests for which this call waits."""
        return [asked for asked in self._requests.under_way if asked.answers is not None]

    def _listen(self) -> None:
        """Take what has come: for what is waited for, for what was given up, or for nothing."""
        for heard in self._requests.hear():
            self._hear(heard)

    def _hear(self, heard: Heard[_Asked, TensorAnswer]) -> None:
        asked, reply, said, _ = heard
        if not isinstance(said, TensorAnswer):
            return
        what = asked, len(reply.payload), reply.t_ns, said.elapsed_us
        if asked.answers is None:
            self._learn(*what)
        else:
            self._heard.append(what)
            self._use(said, asked, asked.answers)

    def _use(self, said: TensorAnswer, asked: _Asked, answers: _Answers) -> None:
        rows = asked.rows
        # An exit gives no code, and here is none either.
        code = answers.code[rows] if asked.exit else said.code.reshape(len(rows), *answers.code.shape[1:])
        by_exit = np.ones(len(rows), np.bool_) if asked.exit else None
        answers.put(rows, Scores(said.logits, code, said.novelty.astype(np.float64), by_exit))
        self._away += len(rows)
        self._exits[asked.exit or END] += len(rows)

    def _learn(self, asked: _Asked, answer_bytes: int, t_ns: int, elapsed_us: int) -> None:
        """Learn of the link from an answer that was there at `t_ns`, and that workers had for a while."""
        on_link_ns = t_ns - asked.asked_ns - 1000 * elapsed_us
        # Whoever says that it had a request for longer than that was under way knows nothing of the link.
        if on_link_ns > 0:
            self._elapsed_us = elapsed_us
            self._link.observe(t_ns, asked.n_bytes + answer_bytes, on_link_ns)
            self._chooser.learned()

    def _give_up(self, outcome: Outcome) -> None:
        """Wait no longer for anything."""
        for asked in self._waiting():
            asked.answers = None
            self._requests.give_up(asked, outcome, self._clock.monotonic_ns())


def _read(payload: bytes, asked: _Asked) -> TensorAnswer | CloudRefusal:
    """Decode what came for a request.

    Raises:
        ValueError: it is no answer, or one with scores of another number of windows, labels or values of a code.
    """
    said = decode_tensor_answer(payload)
    if isinstance(said, TensorAnswer) and (said.logits.shape, said.code.shape) != asked.shapes:
        raise ValueError("an answer for something else")
    return said
