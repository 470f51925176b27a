"""What workers are asked: every request is settled once, what comes is told from nonsense, and all of it is counted.

For the cloud fallback and for a split network, which say what they ask, what an answer must be, and what to do with it.

Theory of operation. A request is under way until it is answered, refused, garbled or given up; its outcome then goes to
whoever judges the workers, the circuit breaker. One that was given up is remembered for a while: its answer is late
then, and still tells how long the link takes.
"""

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

from agent.core.cloud_wire import CloudRefusal
from agent.core.histogram import Histogram
from agent.core.offload import Breaker, Outcome
from agent.ports import Cloud
from agent.records import CloudReply
from agent.runtime.telemetry import latencies

if TYPE_CHECKING:
    from agent.core.messages import RequestFigures

_REMEMBERED_NS = 60_000_000_000
_MOST_REMEMBERED = 4096
"""For how long, and how many, requests are remembered that were given up."""


class Asked(Protocol):
    """A request, as whoever asks remembers it; times of the monotonic clock."""

    @property
    def correlation(self) -> bytes:
        """What its answer comes with: no other's, and such that only who reads requests knows it."""

    @property
    def asked_ns(self) -> int:
        """When it was sent, or the first one of those that it was sent with."""

    @property
    def deadline_ns(self) -> float:
        """When an answer is worth nothing any more; infinite where whoever waits for it gives it up."""


class Judge(Protocol):
    """Whoever decides whether workers may be asked: `CircuitBreaker`, or the `Policy` that has one."""

    def state(self, now_ns: int) -> Breaker:
        """Return where the breaker stands."""

    def settled(self, now_ns: int, outcome: Outcome) -> None:
        """Take note of what became of a request."""


AskedT = TypeVar("AskedT", bound=Asked)
AnswerT = TypeVar("AnswerT")


class Heard(NamedTuple, Generic[AskedT, AnswerT]):
    """What came for a request. `said`: the answer, the refusal, or None for what is neither.

    `outcome`: how it was settled by that; None if it had been given up before.
    """

    asked: AskedT
    reply: CloudReply
    said: AnswerT | CloudRefusal | None
    outcome: Outcome | None


class Requests(Generic[AskedT, AnswerT]):
    """See the module's text. Used from one thread."""

    def __init__(
        self,
        cloud: Cloud | None,
        judge: Judge,
        read: Callable[[bytes, AskedT], AnswerT | CloudRefusal],
    ) -> None:
        """Prepare.

        Args:
            cloud: Who is asked; None where nobody is.
            judge: Is told what becomes of requests.
            read: Decodes what came for a request; ValueError if it is no answer to it.
        """
        self._cloud = cloud
        self._judge = judge
        self._read = read
        self._under_way: dict[bytes, AskedT] = {}
        self._given_up: dict[bytes, AskedT] = {}
        """By correlation, the oldest first, as those above."""
        self._asked = self._late = self._unexpected = self._bytes_up = self._bytes_down = 0
        self._outcomes: Counter[Outcome] = Counter()
        self._refused: Counter[str] = Counter()
        self._not_asked: Counter[str] = Counter()
        self._rtt = Histogram()
        self._last = ""
        """How the last request failed, for people."""

    @property
    def under_way(self) -> list[AskedT]:
        """What is not settled yet, the oldest first."""
        return list(self._under_way.values())

    @property
    def given_up(self) -> list[AskedT]:
        """What is remembered of what was given up, the oldest first."""
        return list(self._given_up.values())

    @property
    def connected(self) -> bool:
        """Whether a request can be sent now."""
        return self._cloud is not None and self._cloud.connected

    def ask(self, request: bytes, asked: AskedT, now_ns: int) -> bool:
        """Send a request that the judge has accounted; False, and settled, where the link does not take it."""
        assert self._cloud is not None  # it is connected
        self._asked += 1
        if not self._cloud.ask(asked.correlation, request):
            self._settle(now_ns, Outcome.NOT_SENT)
            return False
        self._bytes_up += len(request)
        self._under_way[asked.correlation] = asked
        return True

    def not_asked(self, reason: str, windows: int = 1) -> None:
        """Count windows that were not asked about."""
        self._not_asked[reason] += windows

    def hear(self) -> list[Heard[AskedT, AnswerT]]:
        """Take what has come, settle what it is for, and return it; nothing of what was never asked."""
        found = (self._hear(reply) for reply in (self._cloud.answers() if self._cloud is not None else ()))
        return [heard for heard in found if heard is not None]

    def wait(self, timeout_s: float) -> bool:
        """Block until there is something to hear, `timeout_s` at most; whether there is."""
        return self._cloud is not None and self._cloud.wait(timeout_s)

    def give_up(self, asked: AskedT, outcome: Outcome, now_ns: int) -> None:
        """Wait no longer for an answer, but know it when it comes."""
        self._given_up[asked.correlation] = self._under_way.pop(asked.correlation)
        self._settle(now_ns, outcome)
        while self._given_up:
            correlation, oldest = next(iter(self._given_up.items()))
            if now_ns - oldest.asked_ns <= _REMEMBERED_NS and len(self._given_up) <= _MOST_REMEMBERED:
                break
            del self._given_up[correlation]

    def problem(self, now_ns: int) -> str | None:
        """Return why nobody can be asked now, for people; None where somebody can, or nobody is meant to be."""
        if self._cloud is None:
            return None
        if not self._cloud.connected:
            return self._cloud.problem or "its broker is not connected yet"
        if self._judge.state(now_ns) is Breaker.OPEN:
            return f"the last requests failed ({self._last})"
        return None

    def figures(self, now_ns: int) -> "RequestFigures":
        """Return what was asked and what became of it, for telemetry, and begin a new interval of round trips."""
        n, rtt = self._outcomes, self._rtt
        self._rtt = Histogram()
        return {
            "asked": self._asked,
            "answered": n[Outcome.ANSWERED],
            "timed_out": n[Outcome.TIMED_OUT] + n[Outcome.LATE],
            "refused": dict(sorted(self._refused.items())),
            "garbled": n[Outcome.GARBLED],
            "not_sent": n[Outcome.NOT_SENT],
            "abandoned": n[Outcome.ABANDONED],
            "not_asked": dict(sorted(self._not_asked.items())),
            "late": self._late,
            "unexpected": self._unexpected,
            "dropped": 0 if self._cloud is None else self._cloud.dropped,
            "bytes_up": self._bytes_up,
            "bytes_down": self._bytes_down,
            "rtt_ms": latencies(rtt),
            "breaker": self._judge.state(now_ns).value,
        }

    def _hear(self, reply: CloudReply) -> Heard[AskedT, AnswerT] | None:
        self._bytes_down += len(reply.payload)
        waiting = self._under_way.pop(reply.correlation, None)
        asked = self._given_up.pop(reply.correlation, None) if waiting is None else waiting
        if asked is None or (waiting is None and reply.t_ns - asked.asked_ns > _REMEMBERED_NS):
            self._unexpected += 1
            return None
        try:
            said = self._read(reply.payload, asked)
        except ValueError:
            said = None
        else:
            self._rtt.add(reply.t_ns - asked.asked_ns)
        late = waiting is None or reply.t_ns > asked.deadline_ns
        self._late += late
        if waiting is None:
            return Heard(asked, reply, said, None)
        outcome, failure = Outcome.ANSWERED, ""
        if late:
            outcome = Outcome.LATE
        elif said is None:
            outcome = Outcome.GARBLED
        elif isinstance(said, CloudRefusal):
            self._refused[said.refusal.name.lower()] += 1
            outcome, failure = Outcome.REFUSED, f"refused: {said.sentence}"
        self._settle(reply.t_ns, outcome, failure)
        return Heard(asked, reply, said, outcome)

    def _settle(self, now_ns: int, outcome: Outcome, failure: str = "") -> None:
        self._outcomes[outcome] += 1
        if outcome is not Outcome.ANSWERED:
            self._last = failure or outcome.value.replace("_", " ")
        self._judge.settled(now_ns, outcome)
