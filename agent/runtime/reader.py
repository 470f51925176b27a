"""A source that is read in a thread of its own, so that nothing which comes while the model runs is lost."""

import threading
from collections.abc import Callable

from agent.errors import SourceUnavailable
from agent.ports import Clock, Source
from agent.records import Decoded, SampleBatch
from agent.runtime.queues import BoundedQueue

_POLL_S = 0.1
"""How long one poll may wait, and so how soon the thread sees that it shall stop."""
_JOIN_S = 5.0
_MOST_REST_S = 0.1
_FEW = 8
"""Samples of one poll up to which a source is slow: in a tenth of a second it sends no more than any driver holds."""


class ReaderThread:
    """`ports.Source` around another: a thread polls that one and fills `queue`, `poll` empties it."""

    def __init__(
        self,
        source: Source,
        queue: BoundedQueue,
        clock: Clock,
        name: str,
        rest_s: Callable[[], float] = lambda: 0.0,
        *,
        shared: bool = False,
    ) -> None:
        """Prepare; `start` begins to read.

        `name`: the thread's. Batches without a receive time get one from `clock`. `rest_s`: for how long no sample is
        urgent; while little comes, the thread then sleeps instead of reading sample by sample. `shared`: others fill
        the queue, too, so that it does not end with this source.
        """
        self._shared = shared
        self._rest_s = rest_s
        self._source = source
        self._queue = queue
        self._clock = clock
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._read, name=name, daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Samples that the queue let go since the start."""
        return self._queue.dropped

    def poll(self, timeout_s: float) -> list[Decoded] | None:
        """Return what has been read, waiting at most `timeout_s` for it; None once the source has ended.

        Raises:
            Exception: what ended the source, after everything before it has been returned.
        """
        return self._queue.take(timeout_s)

    def close(self) -> None:
        """Stop reading, close the source, end the thread. Idempotent.

        Raises:
            SourceUnavailable: the source did not return from a poll; its thread is a daemon and ends with the process.
        """
        self._stopping.set()
        if not self._shared:
            self._queue.close()
        if self._thread.ident is None:
            self._source.close()
        if not self._thread.is_alive():
            return
        self._thread.join(_JOIN_S)
        if self._thread.is_alive():
            raise SourceUnavailable(f"the reader {self._thread.name} did not stop within {_JOIN_S:g} s")

    def _read(self) -> None:
        error: Exception | None = None
        try:
            while not self._stopping.is_set():
                decoded = self._source.poll(_POLL_S)
                if decoded is None:
                    break
                now = self._clock.monotonic_ns()
                for item in decoded:
                    self._queue.put(_stamped(item, now))
                samples = sum(len(d.t_ns) for d in decoded if isinstance(d, SampleBatch))
                if 0 < samples <= _FEW and (rest_s := min(self._rest_s(), _MOST_REST_S)) > 0:
                    self._clock.sleep(rest_s)
        except Exception as e:  # noqa: BLE001  handed to whoever polls
            error = e
        finally:
            try:
                self._source.close()
            finally:
                if not self._shared:
                    self._queue.close(error)


def _stamped(item: Decoded, now_ns: int) -> Decoded:
    if isinstance(item, SampleBatch) and item.t_rx_ns is None:
        return item._replace(t_rx_ns=now_ns)
    return item
