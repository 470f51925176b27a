"""The cloud fallback: some windows are asked of a bigger model before they are decided, and none depends on its answer.

Theory of operation. A window that has been scored is held while a request for it is on its way, and what follows it in
its stream waits behind it: each decision follows from the one before. Other streams go on. A window is let go as soon
as its request is answered, refused or garbled, and at its deadline at the latest, which counts from when it was scored.
Then it is decided by the answer, if there is one that fits, and otherwise by what the board had scored all along.

Every request is settled with the policy exactly once. One that was given up is remembered for a while: its answer is
late then, which still tells how long the link takes, and can be published as a revision.
"""

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from agent.core.cloud_wire import (
    MAX_REQUEST,
    NO_SPACE,
    CloudAnswer,
    CloudRefusal,
    Kind,
    Request,
    code_space,
    decode_answer,
    encode_request,
    labels_crc,
    request_bytes,
)
from agent.core.histogram import Histogram
from agent.core.link import LinkEstimator
from agent.core.offload import Breaker, Doubt, Outcome, Policy
from agent.core.settings import CloudSettings
from agent.pipeline import Pipeline, Scored, Undecided
from agent.ports import Clock, Cloud
from agent.records import CloudReply, Event, Float32Array, Origin, Prediction, Timings
from agent.runtime.telemetry import latencies

if TYPE_CHECKING:
    from agent.core.messages import CloudFigures

POLL_S = 0.005
"""How long to wait for samples while an answer may come: nothing wakes the loop for one."""

_REMEMBERED_NS = 60_000_000_000
_MOST_REMEMBERED = 4096
"""For how long, and how many, requests are remembered that were given up."""
_MOST_CODES = 255
"""In a request: its count is a byte."""
_ANSWER_BYTES = 64
"""What an answer is taken to have until the first one has come."""
_TOO_LARGE, _NO_CODE = "too_large", "no_code"
"""Reasons not to ask beside those of the policy: the window does not fit into a request; an early exit has scored it,
and left no code."""

Key = tuple[str, int]


class Decided(NamedTuple):
    """What has been decided: as the fields of `Turn`."""

    events: list[Event]
    timings: dict[Key, Timings]
    revisions: list[Prediction]


class _Asked:
    """A request for a window; `replied_ns` is set once it does not have to be waited for."""

    __slots__ = ("asked_ns", "correlation", "deadline_ns", "labels", "late", "n_bytes", "replied_ns", "said")

    def __init__(
        self, correlation: bytes, asked_ns: int, deadline_ns: int, n_bytes: int, labels: Sequence[str]
    ) -> None:
        self.correlation = correlation
        self.asked_ns = asked_ns
        self.deadline_ns = deadline_ns
        self.n_bytes = n_bytes
        self.labels = labels
        self.replied_ns: int | None = None
        self.late: CloudAnswer | None = None
        """What was answered before the window was decided, and still too late for it."""
        self.said: Prediction | None = None
        """What was published instead, if that may be revised."""


class _Held:
    """Something that waits for its turn, or for the answer to a request of its own."""

    __slots__ = ("asked", "item", "timings")

    def __init__(self, item: Undecided, timings: Timings | None, asked: _Asked | None) -> None:
        self.item = item
        self.timings = timings
        self.asked = asked


class Fallback:
    """See the module's text. Used from one thread."""

    def __init__(
        self, settings: CloudSettings, cloud: Cloud, pipeline: Pipeline, clock: Clock, token: Callable[[], bytes]
    ) -> None:
        """`token`: gives the correlation of a request: no other's, and such that only who reads requests knows it."""
        self._cloud = cloud
        self._pipeline = pipeline
        self._clock = clock
        self._policy = Policy(settings)
        self._link = LinkEstimator()
        self._deadline_ns = round(settings.deadline_ms * 1e6)
        self._windows = settings.windows
        self._before: dict[str, deque[Float32Array]] = {}
        """By stream, up to the last gap: what its last windows do not share with those after them, float32 (hop, 6)."""
        self._revise = settings.revise
        self._token = token
        self._held: dict[str, deque[_Held]] = {}
        """By stream, in order; the first one of each waits for an answer."""
        self._due_ns = 0
        """When the first of what is held must be decided."""
        self._news = False
        """Whether something that is held has been answered since it was looked at."""
        self._asked: dict[bytes, tuple[_Asked, _Held]] = {}
        self._given_up: dict[bytes, _Asked] = {}
        """By correlation, the oldest first."""
        self._revisions: list[Prediction] = []
        self._n_asked = self._late = self._unexpected = self._bytes_up = self._bytes_down = 0
        self._outcomes: Counter[Outcome] = Counter()
        self._refused: Counter[str] = Counter()
        self._not_asked: Counter[str] = Counter()
        self._rtt = Histogram()
        self._answer_bytes = _ANSWER_BYTES
        self._last = ""
        """How the last request failed, for people."""
        pipeline.keep_windows = settings.payload == "window"

    def patience_s(self, timeout_s: float) -> float:
        """Return how long may be waited for samples, `timeout_s` at most."""
        if not self._held:
            return timeout_s
        return min(timeout_s, POLL_S, max(0.0, (self._due_ns - self._clock.monotonic_ns()) / 1e9))

    def take(self, scored: Sequence[Undecided], timings: Mapping[Key, Timings]) -> Decided:
        """Take what was scored in a turn, ask for what is in doubt, and decide what need not wait any more.

        `timings`: of what was scored, as far as they are known; `total` and `cloud` are set here.
        """
        now_ns = self._clock.monotonic_ns()
        for reply in self._cloud.answers():
            self._hear(reply)
        free = self._let_go(now_ns)
        for item in scored:
            waiting = self._held.get(item.stream)
            asked, known = None, None
            if isinstance(item, Scored):
                known = timings.get((item.stream, item.seq))
                asked = self._ask(item, known.wait_ns if known else 0, now_ns)
                self._remember(item)
            else:
                self._before.pop(item.stream, None)
            held = _Held(item, known, asked)
            if asked is not None:
                self._asked[asked.correlation] = asked, held
                self._due_ns = min(self._due_ns, asked.deadline_ns) if self._held else asked.deadline_ns
            if waiting is not None:
                waiting.append(held)
            elif asked is not None:
                self._held[item.stream] = deque([held])
            else:
                free.append(held)
        return self._decide(free)

    def settle(self, stream: str | None = None) -> Decided:
        """Decide everything that is held at once, without waiting for answers, and revise nothing of it later.

        Of one stream, for before it is forgotten; of all if none is given, for before what another model says is
        published.
        """
        now_ns = self._clock.monotonic_ns()
        free: list[_Held] = []
        for name in list(self._held) if stream is None else [stream]:
            free += self._held.pop(name, ())
        for asked, held in list(self._asked.values()):
            if stream in (None, held.item.stream):
                self._give_up(asked, Outcome.ABANDONED, now_ns)
        decided = self._decide(free)
        for asked in self._given_up.values():
            if asked.said is not None and stream in (None, asked.said.stream):
                asked.said = None
        if stream is None:
            self._before.clear()
        else:
            self._before.pop(stream, None)
        return decided

    def figures(self) -> "CloudFigures":
        """Return what was asked and what became of it, for telemetry, and begin a new interval of round trips."""
        n, rtt = self._outcomes, self._rtt
        self._rtt = Histogram()
        return {
            "asked": self._n_asked,
            "answered": n[Outcome.ANSWERED],
            "timed_out": n[Outcome.TIMED_OUT] + n[Outcome.LATE],
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
            "breaker": self._policy.state(self._clock.monotonic_ns()).value,
        }

    @property
    def problem(self) -> str | None:
        """Why windows in doubt are not asked about now, for people. What budgets forbid is no problem."""
        if not self._cloud.connected:
            why = self._cloud.problem or "its broker is not connected yet"
            return f"the cloud cannot be asked: {why}; windows in doubt are decided here"
        if self._policy.state(self._clock.monotonic_ns()) is Breaker.OPEN:
            return f"the cloud does not answer as it should ({self._last}); windows in doubt are decided here"
        return None

    # --- requests

    def _ask(self, item: Scored, waited_ns: int, now_ns: int) -> _Asked | None:
        """Ask for a window if there is reason to, and nothing against it."""
        doubt = Doubt(item.stream, max(item.decisive), item.known, waited_ns)
        if not self._policy.doubtful(doubt):
            return None
        count, n_bytes = self._fitting(item)
        if not count:
            self._not_asked[_TOO_LARGE] += 1
            return None
        if item.call.windows is None and not item.call.codes[item.at].ravel()[-item.call.manifest.code.bytes :].any():
            self._not_asked[_NO_CODE] += 1
            return None
        reason = self._policy.consider(
            now_ns,
            doubt,
            n_bytes,
            connected=self._cloud.connected,
            expected_ns=self._link.expected_ns(n_bytes + self._answer_bytes),
        )
        if reason is not None:
            self._not_asked[reason.value] += 1
            return None
        self._n_asked += 1
        request, correlation = self._request(item, count), self._token()
        asked_ns = self._clock.monotonic_ns()
        if not self._cloud.ask(correlation, request):
            self._settle(Outcome.NOT_SENT, now_ns)
            return None
        self._bytes_up += n_bytes
        return _Asked(correlation, asked_ns, now_ns + self._deadline_ns, n_bytes, item.call.manifest.labels)

    def _fitting(self, item: Scored) -> tuple[int, int]:
        """Return by how many windows one can be asked about, itself the last, and the bytes of that; 0 if by none."""
        manifest = item.call.manifest
        if item.call.windows is None:
            kind, size, hop = Kind.CODE, manifest.code.bytes, 0
            count = min(item.call.codes[item.at].size // size, _MOST_CODES)
        else:
            kind, size, hop = Kind.WINDOW, manifest.input.window, self._pipeline.hop
            count = 1 + len(self._before.get(item.stream, ()))
        while count and request_bytes(kind, count, size, hop) > MAX_REQUEST:
            count -= 1
        return count, request_bytes(kind, count, size, hop)

    def _request(self, item: Scored, count: int) -> bytes:
        """Return the request for a window, by the last `count` windows."""
        manifest = item.call.manifest
        rate_hz = manifest.input.rate_hz
        if item.call.windows is None:
            codes = item.call.codes[item.at].reshape(-1, manifest.code.bytes)[-count:]
            space = code_space(manifest.files["encoder.onnx"].sha256)
            return encode_request(Request(Kind.CODE, space, rate_hz, codes=codes))
        parts = [*self._before.get(item.stream, ()), item.call.windows[item.at]]
        samples, hop = np.concatenate(parts[-count:]), self._pipeline.hop if count > 1 else 0
        return encode_request(Request(Kind.WINDOW, NO_SPACE, rate_hz, samples=samples, windows=count, hop=hop))

    def _remember(self, item: Scored) -> None:
        """Keep what the next window of the stream does not share with this one, if it may be sent."""
        if self._windows > 1 and item.call.windows is not None:
            before = self._before.setdefault(item.stream, deque(maxlen=self._windows - 1))
            before.append(item.call.windows[item.at, : self._pipeline.hop].copy())

    def _hear(self, reply: CloudReply) -> None:
        """Take what came: for a window that is held, for one that was given up, or for nothing."""
        self._bytes_down += len(reply.payload)
        found = self._asked.get(reply.correlation)
        asked = found[0] if found else self._given_up.pop(reply.correlation, None)
        if asked is None:
            self._unexpected += 1
            return
        try:
            said = decode_answer(reply.payload)
        except ValueError:
            said = None
        if said is not None:
            self._learn(reply, asked)
        if isinstance(said, CloudAnswer) and not _fits(said, asked.labels):
            said = None
        if found is None:
            self._late += 1
            if isinstance(said, CloudAnswer) and asked.said is not None:
                self._revisions.append(_revised(asked.said, said, asked.labels))
            return
        del self._asked[reply.correlation]
        asked.replied_ns, self._news = reply.t_ns, True
        held = found[1]
        if reply.t_ns > asked.deadline_ns:
            self._late += 1
            asked.late = said if isinstance(said, CloudAnswer) else None
            self._settle(Outcome.LATE, reply.t_ns)
        elif said is None:
            self._settle(Outcome.GARBLED, reply.t_ns)
        elif isinstance(said, CloudRefusal):
            self._refused[said.refusal.name.lower()] += 1
            self._settle(Outcome.REFUSED, reply.t_ns)
            self._last = f"refused: {said.sentence}"
        else:
            self._settle(Outcome.ANSWERED, reply.t_ns)
            if isinstance(held.item, Scored):
                held.item = held.item.answered(said.probabilities, said.model, known=said.known)

    def _learn(self, reply: CloudReply, asked: _Asked) -> None:
        rtt_ns = reply.t_ns - asked.asked_ns
        self._answer_bytes = len(reply.payload)
        self._rtt.add(rtt_ns)
        self._link.observe(reply.t_ns, asked.n_bytes + len(reply.payload), rtt_ns)

    def _give_up(self, asked: _Asked, outcome: Outcome, now_ns: int) -> None:
        """Wait no longer for an answer, but know it when it comes."""
        del self._asked[asked.correlation]
        self._given_up[asked.correlation] = asked
        self._settle(outcome, now_ns)
        while self._given_up:
            oldest = next(iter(self._given_up.values()))
            if now_ns - oldest.asked_ns <= _REMEMBERED_NS and len(self._given_up) <= _MOST_REMEMBERED:
                break
            del self._given_up[oldest.correlation]

    def _settle(self, outcome: Outcome, now_ns: int) -> None:
        self._outcomes[outcome] += 1
        if outcome is not Outcome.ANSWERED:
            self._last = outcome.value.replace("_", " ")
        self._policy.settled(now_ns, outcome)

    # --- what is held

    def _let_go(self, now_ns: int) -> list[_Held]:
        """Return what need not wait any more, in order for each stream."""
        free: list[_Held] = []
        if not self._news and now_ns < self._due_ns:
            return free
        self._news = False
        due_ns: list[int] = []
        for stream, waiting in list(self._held.items()):
            while waiting:
                asked = waiting[0].asked
                if asked is not None and asked.replied_ns is None:
                    if now_ns < asked.deadline_ns:
                        due_ns.append(asked.deadline_ns)
                        break
                    self._give_up(asked, Outcome.TIMED_OUT, now_ns)
                free.append(waiting.popleft())
            if not waiting:
                del self._held[stream]
        self._due_ns = min(due_ns, default=0)
        return free

    def _decide(self, free: Sequence[_Held]) -> Decided:
        events = self._pipeline.decide([held.item for held in free])
        now_ns = self._clock.monotonic_ns()
        timings: dict[Key, Timings] = {}
        for held in free:
            if (known := held.timings) is not None:
                asked, cloud_ns = held.asked, None
                if asked is not None:
                    cloud_ns = (now_ns if asked.replied_ns is None else asked.replied_ns) - asked.asked_ns
                timings[known.stream, known.seq] = known._replace(
                    total_ns=now_ns - known.received_ns, cloud_ns=cloud_ns
                )
        if self._revise:
            self._note(free, events)
        revisions, self._revisions = self._revisions, []
        return Decided(events, timings, revisions)

    def _note(self, free: Sequence[_Held], events: Sequence[Event]) -> None:
        """Keep what is published of windows whose answer is missing, and revise it where that is here already."""
        asked = {(h.item.stream, h.item.seq): h.asked for h in free if isinstance(h.item, Scored) and h.asked}
        for event in events if asked else ():
            if isinstance(event, Prediction) and event.origin is Origin.LOCAL:
                found = asked.get((event.stream, event.seq))
                if found is not None and found.late is not None:
                    self._revisions.append(_revised(event, found.late, found.labels))
                elif found is not None:
                    found.said = event


def _fits(said: CloudAnswer, labels: Sequence[str]) -> bool:
    return len(said.probabilities) == len(labels) and said.labels_crc == labels_crc(labels)


def _revised(said: Prediction, answer: CloudAnswer, labels: Sequence[str]) -> Prediction:
    """Return what the answer says of a window that was published without it; the decided activity stands."""
    scores, confidence = answer.probabilities, max(answer.probabilities)
    return said._replace(
        label=labels[scores.index(confidence)],
        confidence=confidence,
        scores=scores,
        known=answer.known,
        origin=Origin.CLOUD,
        model=answer.model,
    )
