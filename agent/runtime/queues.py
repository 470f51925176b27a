"""The bounded queue between a reader thread and the engine, with a named overflow policy.

Nothing here drops in silence: what a full queue lets go is counted, and `Dropped` stands in its place for whoever takes
next, so that the pipeline cuts there.
"""

import threading
from collections import Counter, deque
from enum import StrEnum

from agent.records import BadFrame, Decoded, Dropped, LabelChange, SampleBatch


class Overflow(StrEnum):
    """What `put` does when there is no room."""

    BLOCK = "block"
    """Wait for room: recordings, which can wait."""
    DROP_OLDEST = "drop_oldest"
    """Let the oldest batches go: sensors, which cannot."""


class BoundedQueue:
    """At most `capacity` samples between one or more readers and one taker. All methods are thread-safe.

    A batch is kept or dropped as a whole. The newest batch is always taken in, even one larger than the
    capacity.
    """

    def __init__(self, capacity: int, overflow: Overflow) -> None:
        """`capacity`: samples; a frame that could not be decoded counts as one.

        Raises:
            ValueError: a capacity below 1.
        """
        if capacity < 1:
            raise ValueError(f"a queue needs room for at least one sample, not {capacity}")
        self._capacity = capacity
        self._overflow = overflow
        self._changed = threading.Condition()
        self._items: deque[Decoded] = deque()
        self._held = 0
        self._closed = False
        self._error: Exception | None = None
        self._unreported: Counter[str] = Counter()
        self._dropped_labels: dict[str, str | None] = {}
        self._dropped = 0

    def __len__(self) -> int:
        """Return the number of samples that wait."""
        with self._changed:
            return self._held

    @property
    def dropped(self) -> int:
        """Samples, and frames that could not be decoded, dropped since the start."""
        with self._changed:
            return self._dropped

    def put(self, item: Decoded) -> bool:
        """Add `item`; False if the queue is closed. Under `BLOCK`, wait until there is room or it closes."""
        size = _size(item)
        with self._changed:
            if self._overflow is Overflow.BLOCK:
                self._changed.wait_for(lambda: self._closed or not self._items or self._fits(size))
            if self._closed:
                return False
            while self._items and not self._fits(size):
                self._drop(self._items.popleft())
            self._items.append(item)
            self._held += size
            self._changed.notify_all()
            return True

    def wait(self, timeout_s: float) -> bool:
        """Wait until there is something to take, or the queue is closed; False if that takes more than `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._items) or self._closed, timeout_s)

    def take(self, timeout_s: float) -> list[Decoded] | None:
        """Everything that is waiting; empty after `timeout_s` of nothing; None once it is closed and empty.

        What was dropped was older than all that is waiting, so it comes first.

        Raises:
            Exception: the one that `close` was given, after everything before it has been taken.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._closed, timeout_s)
            if not self._items and self._closed:
                if self._error is not None:
                    raise self._error
                return None
            taken: list[Decoded] = [Dropped(stream, n) for stream, n in self._unreported.items()]
            taken += map(self._relabelled, self._items)
            self._items.clear()
            self._held = 0
            self._unreported = Counter()
            self._changed.notify_all()
            return taken

    def close(self, error: Exception | None = None) -> None:
        """Accept no more, and wake everyone who waits. The first call decides about `error`."""
        with self._changed:
            if not self._closed:
                self._closed, self._error = True, error
                self._changed.notify_all()

    def _fits(self, size: int) -> bool:
        return self._held + size <= self._capacity

    def _drop(self, item: Decoded) -> None:
        size = _size(item)
        self._held -= size
        self._dropped += size
        if isinstance(item, BadFrame):
            # Nothing of the stream itself is missing.
            return
        self._unreported[item.stream] += size
        if isinstance(item, SampleBatch) and item.truth:
            self._dropped_labels[item.stream] = item.truth[-1].label

    def _relabelled(self, item: Decoded) -> Decoded:
        """Give a batch the label that a dropped one before it had brought."""
        if not isinstance(item, SampleBatch) or item.stream not in self._dropped_labels:
            return item
        label = self._dropped_labels.pop(item.stream)
        if item.truth and item.truth[0].seq == item.seq0:
            return item
        return item._replace(truth=(LabelChange(item.seq0, int(item.t_ns[0]), label), *item.truth))


def _size(item: Decoded) -> int:
    """Samples; what is not decoded counts as one, and a `Dropped` from further up as what it stands for."""
    if isinstance(item, SampleBatch):
        return len(item.t_ns)
    return item.samples if isinstance(item, Dropped) else 1
