"""Readings that may block, taken in a thread of their own: a sensor's bus, a firmware that hangs."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Sampler(Generic[T]):
    """Calls `read` every `interval_s` and keeps what it gave last."""

    def __init__(self, read: Callable[[], T], interval_s: float, name: str) -> None:
        """Take the first reading here; `start` goes on. `read` must not raise. `name`: the thread's."""
        self._read = read
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.latest = read()
        """What was read last, at most `interval_s` and a reading's own time ago."""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self, timeout_s: float = 1.0) -> None:
        """End; a reading that hangs is left behind after `timeout_s`, its thread ends with the process. Idempotent."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self.latest = self._read()
