"""The system's clocks."""

import ctypes
import time

_TIME_ERROR = 5


class SystemClock:
    """`ports.Clock` on the operating system."""

    def monotonic_ns(self) -> int:
        """Nanoseconds on the monotonic clock."""
        return time.monotonic_ns()

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch."""
        return time.time_ns()

    def synced(self) -> bool:
        """Whether the kernel's clock is being kept right: adjtimex(2) does not say TIME_ERROR."""
        # `modes` is the structure's first field, and 0 there only asks; 512 bytes are more than it has anywhere.
        return int(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))) not in (-1, _TIME_ERROR)

    def sleep(self, seconds: float) -> None:
        """Block for `seconds`."""
        time.sleep(seconds)
