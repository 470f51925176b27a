"""From a device's clock to this board's monotonic clock, a stream at a time.

Theory of operation. A sample is received after it was taken, by a delay that is never negative and often small. So the
least of (received - taken) over a while is the offset between the two clocks plus the least delay; samples that came
late, in a burst after a stall, do not move it. The least is kept over two spans of 30 s, the one that runs and the one
before it, so that it follows a device whose clock is slow (100 ppm: 6 ms behind at most); one that is fast lowers it at
once. A device's clock that is set forward lowers it at once too; one that goes back further than samples are reordered
on the way was set, and all that was learned is void: the same rule as that of the timeline.

Wall-clock time has no part in it: whoever shows a time adds that last.
"""

from agent.core.timeline import RESET_NS

SPAN_NS = 30_000_000_000


class ClockMap:
    """The clock of one device. Times are integer nanoseconds."""

    __slots__ = ("_before", "_latest", "_least", "_span_end")

    def __init__(self) -> None:
        self._least: int | None = None
        self._before: int | None = None
        self._latest = 0
        self._span_end = 0

    def update(self, device_ns: int, received_ns: int) -> None:
        """Learn that a sample of `device_ns` came at `received_ns` of this board's monotonic clock."""
        offset = received_ns - device_ns
        if self._least is None or device_ns - self._latest < -RESET_NS:
            self._least, self._before, self._span_end = offset, None, received_ns + SPAN_NS
        elif received_ns >= self._span_end:
            # After a silence of more than a span, what ran last says nothing any more.
            self._before = self._least if received_ns < self._span_end + SPAN_NS else None
            self._least, self._span_end = offset, received_ns + SPAN_NS
        elif offset < self._least:
            self._least = offset
        self._latest = device_ns

    def monotonic_ns(self, device_ns: int) -> int | None:
        """Return when it was `device_ns` on the device, by this board's monotonic clock; None before any sample."""
        if self._least is None:
            return None
        return device_ns + (self._least if self._before is None else min(self._least, self._before))
