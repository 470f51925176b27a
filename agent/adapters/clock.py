"""The system's clocks."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

_TIME_ERROR = 5
_TIMESYNCD = Path("/run/systemd/timesync/synchronized")
"""Touched by systemd-timesyncd whenever it has set the clock right."""
_HOLDS_S = 32_000
"""For how long that is worth something: the kernel lets a clock's error grow by 500 ppm, and gives it up at 16 s."""


class SystemClock:
    """`ports.Clock` on the operating system."""

    def __init__(self, timesyncd: Path = _TIMESYNCD) -> None:
        self._timesyncd = timesyncd
        self._adjtimex: Callable[[], int] | None = None

    def monotonic_ns(self) -> int:
        """Nanoseconds on the monotonic clock."""
        return time.monotonic_ns()

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch."""
        return time.time_ns()

    def synced(self) -> bool:
        """Whether the kernel's clock is being kept right: adjtimex(2) does not say TIME_ERROR.

        systemd's ProtectClock= refuses even to ask; then whether systemd-timesyncd has set the clock lately.
        """
        if self._adjtimex is None:
            # Only whoever asks pays for ctypes.
            import ctypes

            # `modes` is the structure's first field, and 0 there only asks; 512 bytes are more than it has anywhere.
            self._adjtimex = partial(ctypes.CDLL(None).adjtimex, ctypes.create_string_buffer(512))
        state = self._adjtimex()
        return self._was_set_lately() if state == -1 else state != _TIME_ERROR

    def _was_set_lately(self) -> bool:
        try:
            return abs(self.wall_ns() / 1e9 - self._timesyncd.stat().st_mtime) < _HOLDS_S
        except OSError:
            return False

    def sleep(self, seconds: float) -> None:
        """Block for `seconds`."""
        time.sleep(seconds)
