"""The cloud fallback: some windows are asked of a bigger model before they are decided, and none depends on its answer.

Theory of operation. A window that has been scored is held while a request for it is on its way, and what follows it in
its stream waits behind it: each decision follows from the one before. Other streams go on. A window is let go as soon
as its request is answered, refused or garbled, and at its deadline at the latest, which counts from when it was scored.
Then it is decided by the answer, if there is one that fits, and otherwise by what the board had scored all along.

The answer to a request that was given up tells how long the link takes, and can be published as a revision.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from agent.core.link import LinkEstimator
from agent.core.offload import Doubt, Outcome, Policy
from agent.core.settings import CloudSettings
from agent.pipeline import Pipeline, Scored, Undecided
from agent.ports import Clock, Cloud
from agent.records import Event, Float32Array, Origin, Prediction, Timings
from agent.runtime.requests import Heard, Requests

if TYPE_CHECKING:
    from agent.core.messages import RequestFigures

POLL_S = 0.005
"""How long to wait for samples while an answer may come: nothing wakes the loop for one."""

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


@dataclass(slots=True, eq=False)
class _Asked:
    """A request for a window, of `n_bytes`, whose answer is to be for `labels`."""

    correlation: bytes
    asked_ns: int
    deadline_ns: int
    n_bytes: int
    labels: Sequence[str]
    replied_ns: int | None = None
    outcome: Outcome | None = None
    """Both are set once it does not have to be waited for."""
    answer: CloudAnswer | None = None
    """What was answered before the window was decided."""
    said: Prediction | None = None
    """What was published instead, if that may be revised."""


@dataclass(slots=True, eq=False)
class _Held:
    """Something that waits for its turn, or for the answer to a request of its own."""

    item: Undecided
    timings: Timings | None
    asked: _Asked | None

    @property
    def to_decide(self) -> Undecided:
        """What is to be decided: as it was scored, or as the cloud has answered."""
        answer = self.asked.answer if self.asked is not None and self.asked.outcome is Outcome.ANSWERED else None
        if answer is None or not isinstance(self.item, Scored):
            return self.item
        return self.item.answered(answer.probabilities, answer.model, known=answer.known)


class Fallback:
    """See the module's text. Used from one thread."""

    def __init__(
        self, settings: CloudSettings, cloud: Cloud, pipeline: Pipeline, clock: Clock, token: Callable[[], bytes]
    ) -> None:
        """`token`: gives the correlation of a request: no other's, and such that only who reads requests knows it."""
        self._pipeline = pipeline
        self._clock = clock
        self._policy = Policy(settings)
        self._requests: Requests[_Asked, CloudAnswer] = Requests(cloud, self._policy, _read)
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
        self._revisions: list[Prediction] = []
        self._answer_bytes = _ANSWER_BYTES
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
        for heard in self._requests.hear():
            self._hear(heard)
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
        for held in free:
            if held.asked is not None and held.asked.replied_ns is None:
                self._requests.give_up(held.asked, Outcome.ABANDONED, now_ns)
        decided = self._decide(free)
        for asked in self._requests.given_up:
            if asked.said is not None and stream in (None, asked.said.stream):
                asked.said = None
        if stream is None:
            self._before.clear()
        else:
            self._before.pop(stream, None)
        return decided

    def figures(self) -> "RequestFigures":
        """Return what was asked and what became of it, for telemetry, and begin a new interval of round trips."""
        return self._requests.figures(self._clock.monotonic_ns())

    @property
    def problem(self) -> str | None:
        """Why windows in doubt are not asked about now, for people. What budgets forbid is no problem."""
        why = self._requests.problem(self._clock.monotonic_ns())
        return None if why is None else f"the cloud cannot be asked: {why}; windows in doubt are decided here"

    # --- requests

    def _ask(self, item: Scored, waited_ns: int, now_ns: int) -> _Asked | None:
        """Ask for a window if there is reason to, and nothing against it."""
        doubt = Doubt(item.stream, max(item.decisive), item.known, waited_ns)
        if not self._policy.doubtful(doubt):
            return None
        count, n_bytes = self._fitting(item)
        if not count:
            self._requests.not_asked(_TOO_LARGE)
            return None
        if item.call.windows is None and not item.has_code:
            self._requests.not_asked(_NO_CODE)
            return None
        reason = self._policy.consider(
            now_ns,
            doubt,
            n_bytes,
            connected=self._requests.connected,
            expected_ns=self._link.expected_ns(n_bytes + self._answer_bytes),
        )
        if reason is not None:
            self._requests.not_asked(reason.value)
            return None
        request = self._request(item, count)
        asked = _Asked(
            self._token(), self._clock.monotonic_ns(), now_ns + self._deadline_ns, n_bytes, item.call.manifest.labels
        )
        return asked if self._requests.ask(request, asked, now_ns) else None

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

    def _hear(self, heard: Heard[_Asked, CloudAnswer]) -> None:
        """Take what came for a window that is held, or for one that was given up."""
        asked, reply, said, outcome = heard
        if said is not None:
            self._answer_bytes = len(reply.payload)
            self._link.observe(reply.t_ns, asked.n_bytes + len(reply.payload), reply.t_ns - asked.asked_ns)
        answer = said if isinstance(said, CloudAnswer) else None
        if outcome is None:
            if answer is not None and asked.said is not None:
                self._revisions.append(_revised(asked.said, answer, asked.labels))
            return
        asked.replied_ns, asked.outcome, asked.answer, self._news = reply.t_ns, outcome, answer, True

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
                    self._requests.give_up(asked, Outcome.TIMED_OUT, now_ns)
                free.append(waiting.popleft())
            if not waiting:
                del self._held[stream]
        self._due_ns = min(due_ns, default=0)
        return free

    def _decide(self, free: Sequence[_Held]) -> Decided:
        events = self._pipeline.decide([held.to_decide for held in free])
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
                if found is not None and found.answer is not None:
                    self._revisions.append(_revised(event, found.answer, found.labels))
                elif found is not None:
                    found.said = event


def _read(payload: bytes, asked: _Asked) -> CloudAnswer | CloudRefusal:
    """Decode what came for a request.

    Raises:
        ValueError: it is no answer, or one for other labels.
    """
    said = decode_answer(payload)
    if isinstance(said, CloudAnswer) and (
        len(said.probabilities) != len(asked.labels) or said.labels_crc != labels_crc(asked.labels)
    ):
        raise ValueError("an answer for other labels")
    return said


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
