"""A network of which others may run the rest: a `ports.Model` whose answers are those of the whole, and never later.

Theory of operation. Windows run here as far as the cut. The tensor there goes to a worker, and this one waits for the
scores until there is just time enough before the deadline to run the rest itself, which it does for whatever is
missing then. So an answer saves time, and its absence costs no more than the deadline: not a result, and not a bit of
one, since every part gives what the whole gives. Where nobody can be asked, all of it runs here at once. A board that
is too slow to run the rest in time after it has waited for an answer takes an earlier exit then, if there is one.

How long the rest takes here is measured at the start, of a new model too, and then by the slowest of its last runs but
one, which may have been interrupted.

The cut is a configured one, or the one that is best on the link as it is: `_Auto` learns what the link takes from every
answer, also a late one, and looks the cut up in a map that was planned by profiles of this board and of the worker.
While something is not known yet, it asks for a window at the smallest and at the largest cut in turn; so it does now
and then while all of the network had better run here, or nobody would learn that the link has become better.

With `early`, the exits that lie before the cut run here, too, and windows that one is sure of go no further.
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from agent.core.cloud_wire import CloudRefusal
from agent.core.decision import calibrated
from agent.core.histogram import Histogram
from agent.core.link import LinkEstimator
from agent.core.manifest import WINDOW, Manifest
from agent.core.offload import Breaker, CircuitBreaker, DayBudget, Outcome, Reason
from agent.core.planner import MAP_BITS_PER_S, Demand, Link, Objective, Place, Profile, StaticMap, aligned, crossings
from agent.core.settings import SplitSettings
from agent.core.split_wire import (
    MAX_TENSORS,
    TensorAnswer,
    TensorRequest,
    decode_tensor_answer,
    encode_tensor_request,
)
from agent.errors import ConfigError, InferenceError, ModelContractError, UsageError
from agent.ports import Clock, Cloud, Cut, Model, Parts
from agent.records import CloudReply, Float32Array, Int8Array, Scores
from agent.runtime.telemetry import latencies

if TYPE_CHECKING:
    from agent.core.messages import SplitFigures

END = "end"
"""What the network's end is called where windows are counted by the exit that answered."""

_ROOM = MAX_TENSORS - 1024
"""Bytes of values in a request, and of scores in an answer: what is around them has less than a kilobyte."""
_MOST_WINDOWS = 32
"""In a request: where workers stand in a chain, one can have the first windows while another has the next."""
_LONGEST_NAME = 255
"""Bytes in a request: the length of a name is one of them."""
_REMEMBERED_NS = 60_000_000_000
_MOST_REMEMBERED = 4096
"""For how long, and how many, requests are remembered that were given up."""
_RECENT = 32
"""Runs of a part by which it is known how long it may take now, and waits by which it is how late they may end."""
_WAKE_NS = 2_000_000
"""What it may take from the end of a wait to the scores, beside running the rest, at the least."""
_PROBES, _AGAIN = 6, 2
"""Answers, at both cuts together, before a link counts as known: one that is new, and one that became another, of which
the estimator has some already."""
_IN_HAND = 0.9
"""The share of the deadline that a plan may take: one that takes all of it is late every other time."""

_NAMES = ("this board", "the worker")
"""What the profiles of auto are called in errors."""

Array = npt.NDArray[Any]


class _Plan(NamedTuple):
    """Where to cut, nowhere if empty, and which exit answers, the end if empty.

    `probe`: one window is asked, to learn what the link takes.
    """

    cut: str = ""
    exit: str = ""
    probe: bool = False


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

    def put(self, rows: Array, scores: Scores, way_out: str) -> None:
        self.logits[rows], self.code[rows], self.novelty[rows] = scores
        self.done[rows], self.stopped[rows] = True, bool(way_out)

    def hold(self, rows: Array, way_out: str) -> None:
        """Look for better scores of some windows than those that an exit gave."""
        self.done[rows], self.stopped[rows], self.spare = False, False, way_out

    def settle(self, rows: Array) -> None:
        """Let the exit's scores stand: there is no time for better ones."""
        self.done[rows] = self.stopped[rows] = True


class _Sent(NamedTuple):
    """What an answer tells of the link by: when the first request of a call was sent, and the bytes since then.

    Those of the request itself, and of the ones before it, which go over the same link.
    """

    asked_ns: int
    n_bytes: int


class _Asked(NamedTuple):
    """A request for the windows `rows` of a call."""

    sent: _Sent
    rows: Array
    exit: str
    answers: _Answers


class _Heard(NamedTuple):
    """An answer that was waited for. `t_ns`: when it came; `elapsed_us`: that workers had it."""

    sent: _Sent
    n_bytes: int
    t_ns: int
    elapsed_us: int


class _Pace:
    """How long something takes here, a window: the slowest of the last times but one."""

    def __init__(self, ns: float) -> None:
        self._each_ns = deque([ns], maxlen=_RECENT)

    def expected_ns(self, windows: int = 1) -> float:
        return sorted(self._each_ns)[-2:][0] * windows

    def took(self, ns: float, windows: int = 1) -> None:
        self._each_ns.append(ns / windows)


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
        self._cloud = cloud
        self._token = token
        self._profiles = profiles
        self._deadline_ns = round(settings.deadline_ms * 1e6)
        self._breaker = CircuitBreaker(settings.failures, settings.retry_s)
        self._day = DayBudget(settings.mb_per_day * 1e6)
        self._link = LinkEstimator()
        self._whole: Model
        self._parts: Parts | None = None
        self._cuts: dict[str, Cut] = {}
        self._auto: _Auto | None = None
        self._paces: dict[tuple[str, str], _Pace] = {}
        self._stopped = np.zeros(0, np.bool_)
        self._logits = np.zeros((0, 0), np.float32)
        """Of the last call: which windows an exit answered, and the logits of all."""
        self._asked: dict[bytes, _Asked] = {}
        """By correlation: what is waited for."""
        self._given_up: dict[bytes, _Sent] = {}
        """What is not any more, the oldest first."""
        self._probing: dict[bytes, tuple[_Sent, int]] = {}
        """What is asked to learn, and its deadline."""
        self._heard: list[_Heard] = []
        """What the link has not been judged by yet."""
        self._elapsed_us = 0
        """That workers had the last request that was answered."""
        self._wake = _Pace(_WAKE_NS)
        """From the end of a wait to the scores, beside running the rest."""
        self._waited_ns: int | None = None
        """When the wait of this call ended without all answers, and what running the rest took since then, added."""
        self._plan = _Plan()
        self._n_asked = self._away = self._late = self._unexpected = self._bytes_up = self._bytes_down = 0
        self._exits: Counter[str] = Counter()
        self._outcomes: Counter[Outcome] = Counter()
        self._refused: Counter[str] = Counter()
        self._not_asked: Counter[str] = Counter()
        self._rtt = Histogram()
        self._last = ""
        """How the last request failed, for people."""
        self.trouble: str | None = None
        """Why the model that runs now cannot be split as configured, for people: all of it runs here."""

    def around(self, model: Model) -> "SplitModel":
        """Split `model` from now on, as far as it can be, see `trouble`; return what is to be called in its place."""
        self._whole, self._parts, self._auto, self.trouble = model, None, None, None
        self.id, self.labels, self.context_windows = model.id, model.labels, model.context_windows
        self._paces.clear()
        self._plan = _Plan()
        try:
            parts = self._open(model)
            self._cuts = {cut.name: cut for cut in parts.cuts}
            self._check(parts)
            if self._settings.cut == "auto":
                self._auto = _Auto(self._settings, self._profiles, parts, self._usable(parts), self._link)
                self._measure(parts, self._auto.cuts, "")
            else:
                cuts = [self._settings.cut] if self._settings.asks else []
                self._plan = _Plan("".join(cuts), self._settings.exit)
                self._measure(parts, cuts, self._plan.exit)
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
                self._stopped, self._logits = answers.stopped, answers.logits
                if self._waited_ns is not None:
                    self._wake.took(max(self._clock.monotonic_ns() - self._waited_ns, _WAKE_NS))
                return Scores(answers.logits, answers.code, answers.novelty)
            finally:
                self._give_up(Outcome.ABANDONED)
            scores = self._whole.infer(windows)
            self._only_whole(problem)
        else:
            scores = self._whole.infer(windows)
        self._stopped = np.zeros(len(windows), np.bool_)
        self._exits[END] += len(windows)
        return scores

    def contextualise(self, codes: Int8Array) -> Float32Array:
        """See `ports.Model.contextualise`. A window that an exit answered has no code: its own scores stand."""
        logits = self._whole.contextualise(codes)
        if len(self._stopped) == len(logits) and self._stopped.any() and self._parts is not None:
            manifest = self._parts.manifest
            ours = 1.0 if manifest.context is None else manifest.context.temperature / manifest.calibration.temperature
            logits = np.where(self._stopped[:, None], self._logits * np.float32(ours), logits)
        return logits

    @property
    def problem(self) -> str | None:
        """Why all of the network runs here although it is not meant to, for people."""
        if self.trouble is not None:
            return f"{self.trouble}; all of {self.id} runs here"
        if self._cloud is None:
            return None
        if not self._cloud.connected:
            why = self._cloud.problem or "its broker is not connected yet"
            return f"nobody can be asked for the rest of the network: {why}; all of it runs here"
        if self._breaker.state(self._clock.monotonic_ns()) is Breaker.OPEN:
            return f"the rest of the network is not run elsewhere as it should ({self._last}); all of it runs here"
        return None

    def figures(self) -> "SplitFigures":
        """Return what was asked and what became of it, for telemetry, and begin a new interval of round trips."""
        n, rtt, link = self._outcomes, self._rtt, self._link
        self._rtt = Histogram()
        return {
            "cut": self._plan.cut or None,
            "windows": dict(sorted(self._exits.items())),
            "away": self._away,
            "asked": self._n_asked,
            "answered": n[Outcome.ANSWERED],
            "timed_out": n[Outcome.TIMED_OUT],
            "refused": dict(sorted(self._refused.items())),
            "garbled": n[Outcome.GARBLED],
            "not_sent": n[Outcome.NOT_SENT],
            "abandoned": n[Outcome.ABANDONED],
            "not_asked": dict(sorted(self._not_asked.items())),
            "late": self._late,
            "unexpected": self._unexpected,
            "bytes_up": self._bytes_up,
            "bytes_down": self._bytes_down,
            "rtt_ms": latencies(rtt),
            "link_rtt_ms": None if link.rtt_ns is None else round(link.rtt_ns / 1e6, 3),
            "link_mbit": None if link.bits_per_s is None else round(link.bits_per_s / 1e6, 3),
            "breaker": self._breaker.state(self._clock.monotonic_ns()).value,
        }

    # --- what is configured

    def _only_whole(self, trouble: str) -> None:
        self._parts, self._auto, self._plan, self.trouble = None, None, _Plan(), trouble

    def _check(self, parts: Parts) -> None:
        """Hold the configured names against what there is.

        Raises:
            ConfigError: one of them is not there, or not in order.
        """
        s, order = self._settings, list(self._cuts)
        if s.early and not parts.exits:
            raise ConfigError(f"split.early: {parts.id} has no exits")
        if s.cut == "auto":
            return
        if not s.asks:
            self._check_exit(parts, WINDOW)
            return
        if s.cut not in order:
            raise ConfigError(f"split.cut: {parts.id} has no cut {s.cut!r}; there are {', '.join(order)}")
        if s.cut not in (usable := self._usable(parts)):
            raise ConfigError(
                f"split.cut: a window has {self._cuts[s.cut].bytes} bytes at {s.cut}, and a request {_ROOM} at most; "
                f"there are {', '.join(usable)}"
            )
        after = order[order.index(s.cut) + 1 :]
        if s.until and s.until not in after:
            raise ConfigError(
                f"split.until: {parts.id} has no cut {s.until!r} after {s.cut}; there are {', '.join(after) or 'none'}"
            )
        self._check_exit(parts, s.until or s.cut)

    def _check_exit(self, parts: Parts, last: str) -> None:
        """Hold the exit that is to answer against those at a cut and after it."""
        order, wanted = list(self._cuts), self._settings.exit
        known = [one.name for one in parts.exits if order.index(one.at) >= order.index(last)]
        if wanted and wanted not in known:
            raise ConfigError(
                f"split.exit: {parts.id} has no exit {wanted!r} at {last} or after it; there are "
                f"{', '.join(known) or 'none'}"
            )

    def _usable(self, parts: Parts) -> list[str]:
        """Return the cuts at which a window fits into a request, its scores into an answer, and it may leave."""
        return [
            cut.name
            for cut in parts.cuts
            if (max(cut.bytes, _said(parts.manifest)) <= _ROOM)
            and (cut.name.isprintable() and len(cut.name.encode()) <= _LONGEST_NAME)
            and (cut.name != WINDOW or self._settings.privacy == "window")
        ]

    # --- one call

    def _infer(self, parts: Parts, windows: Float32Array) -> _Answers:
        began_ns = self._clock.monotonic_ns()
        deadline_ns, self._waited_ns = began_ns + self._deadline_ns, None
        self._listen()
        self._end_probes(began_ns)
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
            self._wait(self._ways_out(parts, at, plan.exit, answers.spare), at, answers, deadline_ns)
            missing = ~answers.done[rows]
            rows, values = rows[missing], values[missing]
        if not len(rows):
            return answers
        way_out = self._in_time(parts, at, plan.exit, answers, deadline_ns, len(rows))
        if way_out is None:
            self._exits[answers.spare] += len(rows)
            answers.settle(rows)
        else:
            self._rest(parts, at, way_out, answers, rows, values)
        return answers

    def _run_beside(
        self, parts: Parts, at: str, plan: _Plan, answers: _Answers, rows: Array, values: Array, deadline_ns: int
    ) -> None:
        """Have scores while an answer is under way: those of the last exit that is in time here.

        A probe must not cost accuracy, and where accuracy is what is wanted, idle time is not to be saved.
        """
        way_out = self._in_time(parts, at, plan.exit, answers, deadline_ns, len(rows))
        if way_out is None:
            return
        if way_out != plan.exit:
            answers.put(rows, self._timed(parts, at, way_out, values), way_out)
            answers.hold(rows, way_out)
        elif plan.probe and self._expected_ns(at, way_out, len(rows)) <= deadline_ns - self._clock.monotonic_ns():
            self._rest(parts, at, way_out, answers, rows, values)
            # Nobody waits for the answer, which tells of the link and of the worker.
            for correlation, asked in self._asked.items():
                self._probing[correlation] = asked.sent, deadline_ns
            self._asked.clear()

    def _planned(self, now_ns: int, windows: int) -> _Plan:
        """Return what to do with some windows: as configured, or as is best now; all here where nobody can be asked."""
        if self._auto is not None:
            self._plan = self._auto.plan(now_ns)
        if not self._plan.cut:
            return self._plan
        reason = self._against(now_ns, self._cuts[self._plan.cut].bytes)
        if reason is None:
            return self._plan
        self._not_asked[reason.value] += windows
        return _Plan("", self._plan.exit)

    def _against(self, now_ns: int, n_bytes: int) -> Reason | None:
        """Return why nothing of `n_bytes` can be asked now."""
        if self._cloud is None or not self._cloud.connected:
            return Reason.LINK_AWAY
        if not self._breaker.allows(now_ns):
            return Reason.BREAKER_OPEN
        return self._day.against(now_ns, n_bytes)

    def _stop_early(
        self, parts: Parts, plan: _Plan, answers: _Answers, rows: Array, values: Array
    ) -> tuple[Array, str, Array]:
        """Run the exits before the cut, or before that which answers; return what goes on: windows, tensor, values."""
        at, order = WINDOW, list(self._cuts)
        last = plan.cut or next((one.at for one in parts.exits if one.name == plan.exit), order[-1])
        for one in sorted(parts.exits, key=lambda e: order.index(e.at)):
            if order.index(one.at) > order.index(last) or one.name == plan.exit or not len(rows):
                break
            if one.at != at:
                at, values = one.at, self._array(parts, at, one.at, values)
            scores = parts.run(at, "", values, one.name)
            assert isinstance(scores, Scores)  # no tensor is named
            sure = calibrated(scores.logits, parts.manifest.calibration.temperature).max(axis=1) >= one.confidence
            answers.put(rows, scores, one.name)
            if sure.any():
                self._exits[one.name] += int(sure.sum())
            rows, values = rows[~sure], values[~sure]
            answers.hold(rows, one.name)
        return rows, at, values

    def _ask(self, parts: Parts, plan: _Plan, answers: _Answers, rows: Array, values: Array) -> int:
        """Ask for the rest of as many windows as may be asked for, the first ones; return how many those are."""
        assert self._cloud is not None  # there is nothing against asking
        cut = self._cuts[plan.cut]
        most = min(_MOST_WINDOWS, _ROOM // max(cut.bytes, _said(parts.manifest)))
        asked_ns, n_bytes = self._clock.monotonic_ns(), 0
        for first in range(0, len(rows), most):
            part = rows[first : first + most]
            sent = np.ascontiguousarray(values[first : first + len(part)])
            until = self._settings.until
            request = encode_tensor_request(
                TensorRequest(parts.network, cut.name, until, plan.exit, len(part), 0, sent.tobytes())
            )
            now_ns = self._clock.monotonic_ns()
            reason = self._against(now_ns, len(request))
            if reason is not None:
                self._not_asked[reason.value] += len(rows) - first
                return first
            self._breaker.asked()
            self._day.spend(now_ns, len(request))
            self._n_asked += 1
            correlation = self._token()
            if not self._cloud.ask(correlation, request):
                self._settle(Outcome.NOT_SENT, now_ns)
                return first
            n_bytes += len(request)
            self._bytes_up += len(request)
            self._asked[correlation] = _Asked(_Sent(asked_ns, n_bytes), part, plan.exit, answers)
        return len(rows)

    def _wait(self, ways_out: Sequence[str], at: str, answers: _Answers, deadline_ns: int) -> None:
        """Wait for answers, as long as the rest can still be run here: by the first of `ways_out` that leaves time."""
        assert self._cloud is not None  # it was asked
        if not self._asked:
            return
        windows = sum(len(asked.rows) for asked in self._asked.values())
        n_bytes = max(asked.sent.n_bytes for asked in self._asked.values())
        answer_ns = self._clock.monotonic_ns() + (self._link.expected_ns(n_bytes) or 0) + 1000 * self._elapsed_us
        in_hand_ns = deadline_ns - min(round(self._wake.expected_ns()), self._deadline_ns // 4)
        ends = [in_hand_ns - round(self._expected_ns(at, w, windows)) for w in ways_out]
        if answers.spare:
            ends.append(in_hand_ns)
        until_ns = next((end for end in ends if end > answer_ns), ends[-1])
        if until_ns <= self._clock.monotonic_ns():
            # Nothing here is in time, an answer may be.
            until_ns = deadline_ns
        self._listen()
        idle = bool(self._asked)
        while self._asked and (left_ns := until_ns - self._clock.monotonic_ns()) > 0:
            if self._cloud.wait(left_ns / 1e9):
                self._listen()
        self._listen()
        now_ns = self._clock.monotonic_ns()
        if self._asked:
            self._waited_ns = until_ns
        for i, (sent, answer_bytes, t_ns, elapsed_us) in enumerate(self._heard, 1):
            # What it takes until the scores are in hand belongs to asking. Of several only the last was waited for.
            waited = idle and not self._asked and i == len(self._heard)
            self._learn(sent, answer_bytes, now_ns if waited else t_ns, elapsed_us)
        self._heard.clear()
        self._give_up(Outcome.TIMED_OUT)

    def _in_time(
        self, parts: Parts, at: str, planned: str, answers: _Answers, deadline_ns: int, windows: int
    ) -> str | None:
        """Return the exit that some windows may still have here: the planned one, or the last before it in time.

        If none is, the soonest; None where they have the scores of an exit already.
        """
        ways_out = self._ways_out(parts, at, planned, answers.spare)
        if len(ways_out) == 1 and not answers.spare:
            return planned
        left_ns = deadline_ns - self._clock.monotonic_ns()
        soonest = None if answers.spare else ways_out[-1]
        return next((w for w in ways_out if self._expected_ns(at, w, windows) <= left_ns), soonest)

    def _ways_out(self, parts: Parts, at: str, planned: str, spare: str = "") -> list[str]:
        """Return the planned exit, and those between a cut, or an exit whose scores are there, and it; last first."""
        order = list(self._cuts)
        ends = {one.name: order.index(one.at) for one in parts.exits}
        first, last = max(order.index(at), ends.get(spare, -1) + 1), ends.get(planned, len(order))
        sooner = [name for name in ends if first <= ends[name] < last]
        return [planned, *sorted(sooner, key=lambda name: -ends[name])]

    def _expected_ns(self, at: str, way_out: str, windows: int) -> float:
        pace = self._paces.get((at, way_out))
        return pace.expected_ns(windows) if pace else 0.0

    def _rest(self, parts: Parts, at: str, way_out: str, answers: _Answers, rows: Array, values: Array) -> None:
        """Run what is left of some windows here."""
        if len(rows):
            answers.put(rows, self._timed(parts, at, way_out, values), way_out)
            self._exits[way_out or END] += len(rows)

    def _timed(self, parts: Parts, at: str, way_out: str, values: Array) -> Scores:
        """Run some windows from a cut to an exit, and take note of how long it takes."""
        start_ns = self._clock.monotonic_ns()
        scores = self._run(parts, at, way_out, values)
        spent_ns = self._clock.monotonic_ns() - start_ns
        if self._waited_ns is not None:
            self._waited_ns += spent_ns
        if (pace := self._paces.get((at, way_out))) is not None:
            pace.took(spent_ns, len(values))
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

    def _measure(self, parts: Parts, cuts: Sequence[str], planned: str) -> None:
        """Open what may be needed, and measure how long it takes here from cuts, and from the window, to the exits."""
        window = self._cuts[WINDOW]
        for at in dict.fromkeys((WINDOW, *cuts)):
            values: Array = np.zeros((1, *window.shape), window.dtype)
            if at != WINDOW:
                values = self._array(parts, WINDOW, at, values)
            for way_out in self._ways_out(parts, at, planned):
                for _ in range(2):  # the first run opens it
                    start_ns = self._clock.monotonic_ns()
                    self._run(parts, at, way_out, values)
                    spent_ns = self._clock.monotonic_ns() - start_ns
                self._paces[at, way_out] = _Pace(spent_ns)

    # --- answers

    def _listen(self) -> None:
        """Take what has come: for what is waited for, for what was given up, or for nothing."""
        for reply in self._cloud.answers() if self._cloud is not None else ():
            self._hear(reply)

    def _hear(self, reply: CloudReply) -> None:
        self._bytes_down += len(reply.payload)
        asked = self._asked.pop(reply.correlation, None)
        probe = self._probing.pop(reply.correlation, None)
        sent = asked.sent if asked else probe[0] if probe else self._given_up.pop(reply.correlation, None)
        if sent is None:
            self._unexpected += 1
            return
        try:
            said = decode_tensor_answer(reply.payload)
        except ValueError:
            said = None
        if isinstance(said, TensorAnswer) and asked is not None and not _fits(said, asked):
            said = None
        if isinstance(said, TensorAnswer):
            self._rtt.add(reply.t_ns - sent.asked_ns)
            heard = _Heard(sent, len(reply.payload), reply.t_ns, said.elapsed_us)
            if asked is None:
                self._learn(*heard)
            else:
                self._heard.append(heard)
        if asked is None and (probe is None or reply.t_ns > probe[1]):
            self._late += 1
            if probe is not None:
                self._settle(Outcome.TIMED_OUT, reply.t_ns)
        elif said is None:
            self._settle(Outcome.GARBLED, reply.t_ns)
        elif isinstance(said, CloudRefusal):
            self._refused[said.refusal.name.lower()] += 1
            self._settle(Outcome.REFUSED, reply.t_ns)
            self._last = f"refused: {said.sentence}"
        else:
            if asked is not None:
                self._use(said, asked)
            self._settle(Outcome.ANSWERED, reply.t_ns)

    def _end_probes(self, now_ns: int) -> None:
        """Settle what was asked to learn and has not been answered in time."""
        for correlation, (sent, deadline_ns) in list(self._probing.items()):
            if now_ns > deadline_ns:
                del self._probing[correlation]
                self._given_up[correlation] = sent
                self._settle(Outcome.TIMED_OUT, now_ns)

    def _use(self, said: TensorAnswer, asked: _Asked) -> None:
        answers, rows = asked.answers, asked.rows
        # An exit gives no code, and here is none either.
        code = answers.code[rows] if asked.exit else said.code.reshape(len(rows), *answers.code.shape[1:])
        answers.put(rows, Scores(said.logits, code, said.novelty.astype(np.float64)), asked.exit)
        self._away += len(rows)
        self._exits[asked.exit or END] += len(rows)

    def _learn(self, sent: _Sent, answer_bytes: int, t_ns: int, elapsed_us: int) -> None:
        """Learn of the link from an answer that was there at `t_ns`, and that workers had for a while."""
        on_link_ns = t_ns - sent.asked_ns - 1000 * elapsed_us
        # Whoever says that it had a request for longer than that was under way knows nothing of the link.
        if on_link_ns > 0:
            self._elapsed_us = elapsed_us
            self._link.observe(t_ns, sent.n_bytes + answer_bytes, on_link_ns)
            if self._auto is not None:
                self._auto.learned()

    def _give_up(self, outcome: Outcome) -> None:
        """Wait no longer for anything, but know it when it comes."""
        now_ns = self._clock.monotonic_ns()
        for correlation, asked in self._asked.items():
            self._given_up[correlation] = asked.sent
            self._settle(outcome, now_ns)
        self._asked.clear()
        while self._given_up:
            correlation, oldest = next(iter(self._given_up.items()))
            if now_ns - oldest.asked_ns <= _REMEMBERED_NS and len(self._given_up) <= _MOST_REMEMBERED:
                break
            del self._given_up[correlation]

    def _settle(self, outcome: Outcome, now_ns: int) -> None:
        self._outcomes[outcome] += 1
        if outcome is not Outcome.ANSWERED:
            self._last = outcome.value.replace("_", " ")
        self._breaker.settled(now_ns, outcome)


class _Auto:
    """Where to cut on the link as it is: see the module's text."""

    def __init__(
        self,
        settings: SplitSettings,
        profiles: Sequence[Profile],
        parts: Parts,
        usable: Sequence[str],
        link: LinkEstimator,
    ) -> None:
        """`profiles`: this board's, and the worker's. `usable`: the cuts of `parts` that may be used.

        Raises:
            ConfigError: the profiles are not of this network, or lack what the objective needs.
        """
        self._link = link
        self._retry_ns = round(settings.retry_s * 1e9)
        self._exits = {one.name for one in parts.exits}
        self._demand = Demand(
            Objective(settings.objective), _IN_HAND * settings.deadline_ms * 1e6, least=0 if WINDOW in usable else 1
        )
        sizes = {cut.name: cut.bytes for cut in parts.cuts}
        try:
            # Exits are at cuts, too.
            wanted = {*_worthwhile(parts, usable), *(one.at for one in parts.exits if one.at in usable)}
            board, worker = aligned(profiles, _NAMES, wanted)
            if board.bundle != parts.id:
                raise UsageError(f"the profiles are of {board.bundle}: profile {parts.id} on both machines")
            self._places = Place(_NAMES[0], board), Place(_NAMES[1], worker)
            self.cuts = [t for t in board.tensors if t in wanted]
            """Those that may be picked, in order."""
            if not self.cuts:
                raise UsageError(f"the profiles have no cut that {parts.id} has here; there are {', '.join(usable)}")
            self._map = self._planned(0.0)
        except UsageError as error:
            raise ConfigError(f"split.profiles: {error}") from error
        # Where the head alone takes all the time, no answer would be of use.
        heads_us = {t: board.run_us(0, k) if k else 0.0 for k, t in enumerate(board.tensors)}
        tried = [cut for cut in self.cuts if heads_us[cut] < 500 * settings.deadline_ms] or self.cuts[:1]
        tried.sort(key=lambda cut: sizes[cut])
        self._tried = (tried[0], tried[-1])
        """The smallest and the largest of those that leave half of the deadline for an answer."""
        self._turn = 1
        self._rtt_ns = -1.0
        """For which the map was made."""
        self._changes = link.changes
        self._answers = 0
        """Since there is a link, and fewer since it became another one."""
        self._asked_ns = 0

    def plan(self, now_ns: int) -> _Plan:
        """Return what to do now."""
        link = self._link
        if link.changes != self._changes:
            self._changes, self._answers = link.changes, min(self._answers, _PROBES - _AGAIN)
        if link.rtt_ns is None or self._answers < _PROBES:
            return self._probe(now_ns)
        if abs(link.rtt_ns - self._rtt_ns) > self._rtt_ns / 4:
            self._rtt_ns, self._map = link.rtt_ns, self._planned(link.rtt_ns)
        pick = self._map.at(math.inf if link.bits_per_s is None else link.bits_per_s).pick
        way_out = pick.exit.name if pick.exit.name in self._exits else ""
        (cut,) = crossings(pick, self._places[0].profile)
        if cut is None and now_ns - self._asked_ns >= self._retry_ns:
            return self._probe(now_ns)
        if cut is not None:
            self._asked_ns = now_ns
        return _Plan(cut or "", way_out)

    def learned(self) -> None:
        """Take note that the link was observed."""
        self._answers += 1

    def _probe(self, now_ns: int) -> _Plan:
        self._turn, self._asked_ns = 1 - self._turn, now_ns
        return _Plan(self._tried[self._turn], probe=True)

    def _planned(self, rtt_ns: float) -> StaticMap:
        return StaticMap(self._places, [Link(rtt_ns, 0.0)], self._demand, MAP_BITS_PER_S)


def _worthwhile(parts: Parts, usable: Sequence[str]) -> list[str]:
    """Return the cuts with fewer bytes than all before them: others take more of the link and of this board."""
    found: list[str] = []
    least = math.inf
    for cut in parts.cuts:
        if cut.name in usable and cut.bytes < least:
            found.append(cut.name)
            least = cut.bytes
    return found


def _said(manifest: Manifest) -> int:
    """Return the bytes of a window in an answer: logits, novelty, code."""
    return 4 * len(manifest.labels) + 4 + manifest.code.bytes


def _fits(said: TensorAnswer, asked: _Asked) -> bool:
    """Whether an answer has scores for as many windows as were asked, and their code, which an exit has none of."""
    answers, n = asked.answers, len(asked.rows)
    wanted = 0 if asked.exit else int(np.prod(answers.code.shape[1:]))
    return said.logits.shape == (n, answers.logits.shape[1]) and said.code.shape == (n, wanted)
