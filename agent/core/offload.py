"""Whether a window that the board has decided is also asked of the cloud: pure, from what is known at that moment.

The breaker and the budgets are also those of a board that has others run the rest of its network (`runtime.split`).

Theory of operation. A window that gives a reason for doubt is asked unless something speaks against it; what does is a
`Reason`, and the first that applies, in the order of their list, is told. Asking is accounted at once, so that budgets
cannot be exceeded by what is still on its way.

- budgets: requests and bytes of 24 hours. A day begins with the first request after the end of the last one.
- device rate: a bucket for each device that holds a minute's worth, kept as the time at which it is full again (the
  generic cell rate algorithm, ITU-T I.371).
- breaker: see `CircuitBreaker`.
- slow link: not asked where an answer is not to be expected within the deadline, but for one request every `retry_s`,
  without which nobody would learn that the link has become better. One that is answered in time says more than what
  is expected, which takes several of them to change: the next ones go too, until one fails.

Whoever asks settles every request exactly once, at its deadline at the latest. While the link is away nothing is asked,
so that its absence costs nothing, and the breaker is that of whoever is behind it.
"""

import math
from enum import StrEnum
from typing import Final, NamedTuple

from agent.core.settings import CloudSettings

_DAY_NS: Final = 24 * 3600 * 1_000_000_000
_MINUTE_NS: Final = 60 * 1_000_000_000
_LONGEST: Final = 16
"""The longest time that the breaker is open, over the first."""


class Doubt(NamedTuple):
    """What speaks for asking. `confidence`: of the scores that are decided by. `waited_ns`: samples, for their turn."""

    device: str
    confidence: float
    known: bool
    waited_ns: int


class Reason(StrEnum):
    """Why a window in doubt is not asked; the value is what users read. In the order in which they are looked at."""

    LINK_AWAY = "link_away"
    BREAKER_OPEN = "breaker_open"
    LINK_SLOW = "link_slow"
    REQUEST_BUDGET = "request_budget"
    BYTE_BUDGET = "byte_budget"
    DEVICE_RATE = "device_rate"


class Outcome(StrEnum):
    """What became of a request; the value is what users read.

    `LATE`: an answer came, after the deadline. `TIMED_OUT`: none had come when the deadline was noticed. `GARBLED`:
    what came is no answer. `NOT_SENT`: the link did not take it. `ABANDONED`: not waited for, because its stream or its
    model went, a part of the network failed, or the agent stops.
    """

    ANSWERED = "answered"
    LATE = "late"
    TIMED_OUT = "timed_out"
    REFUSED = "refused"
    GARBLED = "garbled"
    NOT_SENT = "not_sent"
    ABANDONED = "abandoned"


_SAYS_NOTHING: Final = (Outcome.NOT_SENT, Outcome.ABANDONED)
"""Outcomes that tell nothing of whoever answers."""


class Breaker(StrEnum):
    """State of the breaker; the value is what users read."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class CircuitBreaker:
    """Keeps from asking whoever does not answer (Nygard, Release It!, 2007).

    Closed; after `failures` failures in a row open, so that nothing is asked for `retry_s`; then half-open while one
    request, a probe, is alone on its way. If it is answered the breaker closes, if not it opens for twice the time, up
    to 16 times `retry_s`. Times are nanoseconds of the monotonic clock.
    """

    def __init__(self, failures: int, retry_s: float) -> None:
        self.in_time = False
        """Whether the last request of which anything is known was answered in time."""
        self._most_failures = failures
        self._retry_ns = self._open_ns = int(retry_s * 1e9)
        self._state = Breaker.CLOSED
        self._on_their_way = self._failures = self._until_ns = 0

    def state(self, now_ns: int) -> Breaker:
        """Return where the breaker stands; half-open from when a probe may go, also while there is none to send."""
        if self._state is Breaker.OPEN and now_ns >= self._until_ns:
            return Breaker.HALF_OPEN
        return self._state

    def allows(self, now_ns: int) -> bool:
        """Whether a request may go."""
        return self._state is Breaker.CLOSED or (now_ns >= self._until_ns and not self._on_their_way)

    def asked(self) -> None:
        """Take note of a request that goes, and will be settled."""
        self._on_their_way += 1
        if self._state is Breaker.OPEN:
            self._state = Breaker.HALF_OPEN

    def settled(self, now_ns: int, outcome: Outcome) -> None:
        """Take note of what became of a request that was asked."""
        self._on_their_way -= 1
        if self._state is Breaker.OPEN:
            # It was on its way when the breaker opened, and was heard of too late to matter.
            return
        if outcome in _SAYS_NOTHING:
            if self._state is Breaker.HALF_OPEN:
                # The probe told nothing: the next one may go at once.
                self._state = Breaker.OPEN
            return
        self.in_time = outcome is Outcome.ANSWERED
        if self.in_time:
            self._state, self._failures, self._open_ns = Breaker.CLOSED, 0, self._retry_ns
        else:
            self._failed(now_ns)

    def _failed(self, now_ns: int) -> None:
        self._failures += 1
        if self._state is Breaker.HALF_OPEN:
            self._open_ns = min(2 * self._open_ns, _LONGEST * self._retry_ns)
        elif self._failures < self._most_failures:
            return
        self._state, self._until_ns = Breaker.OPEN, now_ns + self._open_ns


class DayBudget:
    """What may be asked in 24 hours, which begin with the first request after the end of the last ones."""

    def __init__(self, n_bytes: float, requests: float = math.inf) -> None:
        self._most_bytes, self._most_requests = n_bytes, requests
        self._since_ns = self._requests = self._bytes = 0

    def against(self, now_ns: int, n_bytes: int) -> Reason | None:
        """Return why a request of `n_bytes` may not go."""
        new_day = self._ended(now_ns)
        if not new_day and self._requests >= self._most_requests:
            return Reason.REQUEST_BUDGET
        if n_bytes + (0 if new_day else self._bytes) > self._most_bytes:
            return Reason.BYTE_BUDGET
        return None

    def spend(self, now_ns: int, n_bytes: int) -> None:
        """Take note of a request that goes."""
        if not self._requests or self._ended(now_ns):
            self._since_ns, self._requests, self._bytes = now_ns, 0, 0
        self._requests += 1
        self._bytes += n_bytes

    def _ended(self, now_ns: int) -> bool:
        return now_ns - self._since_ns >= _DAY_NS


class Policy:
    """See the module's text. Times are nanoseconds of the monotonic clock."""

    def __init__(self, settings: CloudSettings) -> None:
        s = settings
        self._when = frozenset(s.when.split())
        self._confidence = s.confidence
        self._overload_ns = int(s.overload_ms * 1e6)
        self._deadline_ns = int(s.deadline_ms * 1e6)
        self._retry_ns = int(s.retry_s * 1e9)
        self._spacing_ns = _MINUTE_NS // s.per_device_per_minute
        self._room_ns = self._spacing_ns * (s.per_device_per_minute - 1)

        self._last_ns: int | None = None
        self._day = DayBudget(int(s.mb_per_day * 1e6), s.requests_per_day)
        self._full_ns: dict[str, int] = {}
        """When each device's bucket is full again, the one that asked last at the end."""
        self._breaker = CircuitBreaker(s.failures, s.retry_s)

    def state(self, now_ns: int) -> Breaker:
        """Return where the breaker stands; half-open from when a probe may go, also while there is none to send."""
        return self._breaker.state(now_ns)

    def doubtful(self, doubt: Doubt) -> bool:
        """Whether a window gives a reason to ask at all."""
        return (
            ("low-confidence" in self._when and doubt.confidence < self._confidence)
            or ("unknown" in self._when and not doubt.known)
            or ("overload" in self._when and doubt.waited_ns > self._overload_ns)
            or "always" in self._when
        )

    def consider(
        self, now_ns: int, doubt: Doubt, n_bytes: int, *, connected: bool, expected_ns: int | None = None
    ) -> Reason | None:
        """Return why a `doubtful` window is not asked; None if it is, which then is accounted, and must be settled.

        `n_bytes`: of the request. `expected_ns`: how long an answer will take, None where nobody knows.
        """
        reason = self._against(now_ns, doubt, n_bytes, connected, expected_ns)
        if reason is None:
            self._account(now_ns, doubt.device, n_bytes)
        return reason

    def settled(self, now_ns: int, outcome: Outcome) -> None:
        """Take note of what became of a request that was asked."""
        self._breaker.settled(now_ns, outcome)

    def _against(
        self, now_ns: int, doubt: Doubt, n_bytes: int, connected: bool, expected_ns: int | None
    ) -> Reason | None:
        if not connected:
            return Reason.LINK_AWAY
        if not self._breaker.allows(now_ns):
            return Reason.BREAKER_OPEN
        slow = expected_ns is not None and expected_ns > self._deadline_ns and not self._breaker.in_time
        if slow and self._last_ns is not None and now_ns - self._last_ns < self._retry_ns:
            return Reason.LINK_SLOW
        spent = self._day.against(now_ns, n_bytes)
        if spent is not None:
            return spent
        if self._full_ns.get(doubt.device, now_ns) - now_ns > self._room_ns:
            return Reason.DEVICE_RATE
        return None

    def _account(self, now_ns: int, device: str, n_bytes: int) -> None:
        self._last_ns = now_ns
        self._breaker.asked()
        self._day.spend(now_ns, n_bytes)
        self._full_ns[device] = max(self._full_ns.pop(device, now_ns), now_ns) + self._spacing_ns
        # A bucket that is full is as good as none. Whoever asked last is at the end: what is left is of one minute.
        while (oldest := next(iter(self._full_ns))) != device and self._full_ns[oldest] <= now_ns:
            del self._full_ns[oldest]
