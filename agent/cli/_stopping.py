"""How a command that runs for long is ended: gracefully by a first signal, at once by a second."""

import signal
import time
from typing import Any, Self

_ECHO_S = 0.2
"""Within which a second signal is the first one once more: `timeout` sends one to the process and one to its group."""


class Stopping:
    """True after a first SIGINT or SIGTERM; a second one, unless it comes at once, ends the process as usual."""

    def __init__(self, *, hangup: bool = False) -> None:
        """`hangup`: take SIGHUP over, too, which otherwise ends the process."""
        self._hangup = hangup
        self._stopping = self._reload = False
        self._stopped_s = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        """Whether to stop."""
        return self._stopping

    def take_reload(self) -> bool:
        """Whether SIGHUP came since the last call; it only counts where `hangup` was given."""
        asked, self._reload = self._reload, False
        return asked

    def __enter__(self) -> Self:
        """Take the signals over."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._stop)
        if self._hangup:
            self._before[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._ask_reload)
        return self

    def __exit__(self, *exc: object) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, *_: object) -> None:
        if not self._stopping:
            self._stopping, self._stopped_s = True, time.monotonic()
        elif time.monotonic() - self._stopped_s >= _ECHO_S:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            signal.raise_signal(number)

    def _ask_reload(self, *_: object) -> None:
        self._reload = True
