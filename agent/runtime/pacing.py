"""Real time around a source that knows none."""

from collections import deque
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from agent.ports import Clock, Source
from agent.records import Decoded, SampleBatch

_STEP_NS = 100_000_000
"""Samples are handed on in pieces of a tenth of a second, as a sensor's driver would."""


SKIPPED_NS = 60_000_000_000
"""Nobody waits for a longer gap in a recording, nor for a clock that was set back: the replay goes on at once."""


class PacedSource:
    """Hands a recording's samples on when their time has come, `speed` times as fast as they were taken."""

    def __init__(self, source: Source, clock: Clock, speed: float) -> None:
        self._source = source
        self._clock = clock
        self._speed = speed
        self._pieces: deque[Decoded] = deque()
        self._began_ns = 0
        self._first_ns = 0
        self._last_ns: int | None = None

    def poll(self, timeout_s: float) -> list[Decoded] | None:
        """Return the next piece when it is due, or nothing if that is more than `timeout_s` away; None at the end."""
        while not self._pieces:
            decoded = self._source.poll(timeout_s)
            if decoded is None:
                return None
            for item in decoded:
                self._pieces.extend(_cut(item) if isinstance(item, SampleBatch) else [item])
        piece = self._pieces[0]
        if isinstance(piece, SampleBatch):
            wait_s = self._due_in_s(int(piece.t_ns[-1]))
            if wait_s > timeout_s:
                self._clock.sleep(timeout_s)
                return []
            if wait_s > 0:
                self._clock.sleep(wait_s)
            self._last_ns = int(piece.t_ns[-1])
        return [self._pieces.popleft()]

    def close(self) -> None:
        """Close the source."""
        self._source.close()

    def _due_in_s(self, t_ns: int) -> float:
        now_ns = self._clock.monotonic_ns()
        if self._last_ns is None or not self._last_ns <= t_ns <= self._last_ns + SKIPPED_NS:
            self._began_ns, self._first_ns = now_ns, t_ns
        return (self._began_ns - now_ns) / 1e9 + (t_ns - self._first_ns) / 1e9 / self._speed


def _cut(batch: SampleBatch) -> Iterator[SampleBatch]:
    steps = (batch.t_ns - batch.t_ns[0]) // _STEP_NS
    edges = [0, *(np.flatnonzero(np.diff(steps)) + 1).tolist(), len(steps)]
    for a, b in pairwise(edges):
        truth = tuple(c for c in batch.truth if a <= c.seq - batch.seq0 < b)
        yield SampleBatch(batch.stream, batch.t_ns[a:b], batch.values[a:b], batch.seq0 + a, batch.t_rx_ns, truth)
