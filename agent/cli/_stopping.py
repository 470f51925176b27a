"""How a command that runs for long is ended: gracefully by a first signal, at once by a second."""

import signal
from typing import Any, Self


class Stopping:
    """True after a first SIGINT or SIGTERM; a second one ends the process as usual."""

    def __init__(self) -> None:
        self._stopping = False
        self._before: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        """Whether to stop."""
        return self._stopping

    def __enter__(self) -> Self:
        """Take the signals over."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *exc: object) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, *_: object) -> None:
        self._stopping = True
        for number in self._before:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
