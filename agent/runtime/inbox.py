"""Everything that several sources deliver, as one source for the engine."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Protocol

from agent.ports import Clock
from agent.records import Decoded
from agent.runtime.queues import BoundedQueue

ATTENTIVE_S = 0.03
"""How long before a window can be complete everybody listens again."""

CROWD_HZ = 200
"""Items a second from which on they are collected for a while: at fewer, a prediction must not wait for others."""


class Feeder(Protocol):
    """Something that fills the queue from a thread of its own."""

    def start(self) -> None:
        """Begin."""

    def close(self) -> None:
        """End, within a deadline of its own. Idempotent."""


class Inbox:
    """`ports.Source` over a queue that `feeders` fill.

    When much comes, it is collected for `linger_s` before it is handed on, so that one model call serves the windows
    of many streams; the same call costs a tenth of its time a window in a batch. When little comes, nobody is woken for
    a sample that completes nothing: waking up is most of what a sample costs.
    """

    def __init__(self, queue: BoundedQueue, feeders: Sequence[Feeder], clock: Clock, linger_s: float = 0.0) -> None:
        self._queue = queue
        self._feeders = feeders
        self._clock = clock
        self._linger_s = linger_s
        self._second_ns = 0
        self._count = self._last_count = 0
        self._rest_until_ns = 0

    @property
    def dropped(self) -> int:
        """Samples that the full queue let go."""
        return self._queue.dropped

    def rest(self, due_ns: int) -> None:
        """Say that no sample is urgent that comes before `due_ns`."""
        self._rest_until_ns = due_ns - round(ATTENTIVE_S * 1e9)

    def rest_s(self) -> float:
        """Return for how long still no sample is urgent; for any thread."""
        return (self._rest_until_ns - self._clock.monotonic_ns()) / 1e9

    def start(self) -> None:
        """Start every feeder."""
        for feeder in self._feeders:
            feeder.start()

    def poll(self, timeout_s: float) -> list[Decoded] | None:
        """Return what has come, waiting at most `timeout_s` for it; None once everything is closed and taken."""
        if self._linger_s and self._crowded():
            if self._queue.wait(timeout_s):
                self._clock.sleep(self._linger_s)
            timeout_s = 0.0
        elif (rest_s := min(self.rest_s(), timeout_s)) > 0:
            self._clock.sleep(rest_s)
            timeout_s -= rest_s
        taken = self._queue.take(timeout_s)
        self._count += len(taken or ())
        return taken

    def close(self) -> None:
        """Close every feeder, also if one fails; what has been queued can still be polled."""
        with ExitStack() as closing:
            closing.callback(self._queue.close)
            for feeder in self._feeders:
                closing.callback(feeder.close)

    def _crowded(self) -> bool:
        now_ns = self._clock.monotonic_ns()
        if now_ns - self._second_ns >= 1_000_000_000:
            # After a pause of more than a second, what came before it says nothing.
            self._last_count = self._count if now_ns - self._second_ns < 2_000_000_000 else 0
            self._second_ns, self._count = now_ns, 0
        return max(self._count, self._last_count) > CROWD_HZ
