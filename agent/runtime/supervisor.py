"""A source that is opened again, for ever, whenever it goes away."""

from collections.abc import Callable

from agent.core.backoff import Backoff
from agent.errors import SourceUnavailable
from agent.ports import Clock, Source
from agent.records import Decoded, Dropped, GapReason, SampleBatch


class Reopening:
    """`ports.Source` around others, one at a time, which it opens.

    States: waiting (for the next try) -> open (no sample yet) -> running -> waiting. A try that fails, or an open
    source that goes away, leads back to waiting, longer each time. Only samples make it running: a port that opens and
    gives nothing, or garbage, is no better than one that is away. That the stream was interrupted is said once, when
    an open source goes away.
    """

    def __init__(self, open: Callable[[], Source], backoff: Backoff, clock: Clock, stream: str) -> None:  # noqa: A002
        """`open` raises `SourceUnavailable` where it cannot. `stream`: the name of what comes from it."""
        self.problem: str | None = "no sample has come yet"
        """Why there are no samples, for people; None while they come."""
        self.reopened = 0
        """How often it was opened again."""
        self._open = open
        self._backoff = backoff
        self._clock = clock
        self._stream = stream
        self._source: Source | None = None
        self._next_try_ns = clock.monotonic_ns()
        self._opened = False
        self._told = False

    def poll(self, timeout_s: float) -> list[Decoded] | None:
        """See `ports.Source.poll`; waits for the next try, too, at most `timeout_s`. Never raises for an outage."""
        if self._source is None:
            wait_s = (self._next_try_ns - self._clock.monotonic_ns()) / 1e9
            if wait_s > 0:
                self._clock.sleep(min(wait_s, timeout_s))
                return []
            if not self._try():
                return []
        assert self._source is not None
        try:
            decoded = self._source.poll(timeout_s)
        except Exception as e:  # noqa: BLE001  what one source does must not end what the others do; health tells of it
            self._source.close()
            self._source = None
            self._wait(str(e) if isinstance(e, SourceUnavailable) else f"unexpected: {type(e).__name__}: {e}")
            return [] if self._told else [Dropped(self._stream, 0, GapReason.DISCONNECTED)]
        if decoded is None:
            return None
        if decoded:
            self._told = isinstance(decoded[-1], Dropped)
            if self.problem is not None and any(isinstance(d, SampleBatch) for d in decoded):
                self.problem = None
                self._backoff.succeeded(self._clock.monotonic_ns())
        return list(decoded)

    def close(self) -> None:
        """See `ports.Source.close`."""
        source, self._source = self._source, None
        if source is not None:
            source.close()

    def _try(self) -> bool:
        try:
            self._source = self._open()
        except SourceUnavailable as e:
            self._wait(str(e))
            return False
        self.reopened += self._opened
        self._opened, self._told = True, False
        return True

    def _wait(self, problem: str) -> None:
        now_ns = self._clock.monotonic_ns()
        self.problem = problem
        self._next_try_ns = now_ns + round(self._backoff.failed(now_ns) * 1e9)
