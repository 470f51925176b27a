"""The system's clocks."""

import time
from collections.abc import Callable
from functools import partial

_TIME_ERROR = 5


class SystemClock:
    """`ports.Clock` on the operating system."""

    def __init__(self) -> None:
        self._adjtimex: Callable[[], int] | None = None

    def monotonic_ns(self) -> int:
        """Nanoseconds on the monotonic clock."""
        return time.monotonic_ns()

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch."""
        return time.time_ns()

    def synced(self) -> bool:
        """Whether the kernel's clock is being kept right: adjtimex(2) does not say TIME_ERROR."""
        if self._adjtimex is None:
            # Only whoever asks pays for ctypes.
            import ctypes

            # `modes` is the structure's first field, and 0 there only asks; 512 bytes are more than it has anywhere.
            self._adjtimex = partial(ctypes.CDLL(None).adjtimex, ctypes.create_string_buffer(512))
        return self._adjtimex() not in (-1, _TIME_ERROR)

    def sleep(self, seconds: float) -> None:
        """Block for `seconds`."""
        time.sleep(seconds)
