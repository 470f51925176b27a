"""How long to wait before the next try: capped, exponential, jittered, and only reset by a spell that held."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class BackoffSettings:
    """Seconds: the first wait, the longest, and how long a success must hold before the first wait counts again."""

    first_s: float = 1.0
    longest_s: float = 60.0
    stable_s: float = 30.0


class Backoff:
    """Waits that double from failure to failure. Each is drawn between half of it and all of it.

    Half of the jitter of "full jitter" (Brooker, AWS Architecture Blog 2015), so that a board that comes back alone
    does not hammer either.
    """

    def __init__(self, settings: BackoffSettings, random: Callable[[], float]) -> None:
        """`random`: gives numbers between 0 and 1."""
        self._settings = settings
        self._random = random
        self._failures = 0
        self._up_since_ns: int | None = None

    def succeeded(self, now_ns: int) -> None:
        """Note that it works from now on."""
        self._up_since_ns = now_ns

    def failed(self, now_ns: int) -> float:
        """Note that it failed, or stopped working, and return the seconds to wait before the next try."""
        s = self._settings
        if self._up_since_ns is not None and now_ns - self._up_since_ns >= s.stable_s * 1e9:
            self._failures = 0
        self._up_since_ns = None
        wait_s = min(s.longest_s, s.first_s * 2.0 ** min(self._failures, 30))
        self._failures += 1
        return wait_s * (0.5 + 0.5 * self._random())
