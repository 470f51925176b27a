"""A sensor on a serial port."""

import errno
import os
import select
import termios
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import serial

from agent.core.settings import SerialSettings
from agent.errors import SourceUnavailable
from agent.ports import Clock, Decoder
from agent.records import Decoded

BY_ID = Path("/dev/serial/by-id")
_READ = 4096
"""What the kernel's buffer of a terminal holds: one read takes all that waits."""


class SerialPort:
    """`ports.Source` of one port, opened exclusively. It does not come back by itself: see `runtime.supervisor`."""

    def __init__(
        self,
        settings: SerialSettings,
        decoder: Decoder,
        clock: Clock,
        tee: Callable[[bytes | None, int], None] | None = None,
    ) -> None:
        """Open the port.

        `decoder` may serve one port after the other. `tee` is given the bytes as they come, with their receive time,
        and None when the port goes away.

        Raises:
            SourceUnavailable: it cannot be opened now.
        """
        self._settings = settings
        self._decoder = decoder
        self._clock = clock
        self._tee = tee
        self._problem: SourceUnavailable | None = None
        self._port = _open(settings)
        self._fd = self._port.fileno()
        self._ready = select.poll()
        self._ready.register(self._fd, select.POLLIN)
        self._silence_ns = round(settings.silence_s * 1e9)
        self._heard_ns = clock.monotonic_ns()

    def poll(self, timeout_s: float) -> list[Decoded] | None:
        """See `ports.Source.poll`.

        Raises:
            SourceUnavailable: the port went away, or nothing has come for `silence_s`.
        """
        if self._problem is not None:
            raise self._problem
        try:
            # pyserial's own read() makes twice as many system calls for each line that comes.
            data = os.read(self._fd, _READ) if self._ready.poll(timeout_s * 1000) else None
        except BlockingIOError:
            # Another program, which did not ask for the port alone, was quicker.
            data = None
        except (OSError, ValueError, TypeError) as e:
            return self._lost(SourceUnavailable(f"{self._settings.port} went away: {_text(e)}"), e)
        now_ns = self._clock.monotonic_ns()
        if data is None:
            if now_ns - self._heard_ns < self._silence_ns:
                return []
            return self._lost(SourceUnavailable(f"no data for {self._settings.silence_s:g} s on {self._settings.port}"))
        if not data:
            return self._lost(SourceUnavailable(f"{self._settings.port} went away"))
        self._heard_ns = now_ns
        if self._tee is not None:
            self._tee(data, now_ns)
        return self._decoder.feed(data, now_ns)

    def set_baud(self, baud: int) -> None:
        """Go on at another speed, without what waits to be read. Opening anew would restart many a board.

        Raises:
            SourceUnavailable: the port does not have that speed, or went away.
        """
        try:
            self._port.baudrate = baud
            self._port.reset_input_buffer()
        except (OSError, termios.error, ValueError) as e:
            raise SourceUnavailable(f"{self._settings.port} cannot be set to {baud} baud: {_text(e)}") from e

    def close(self) -> None:
        """See `ports.Source.close`."""
        if self._problem is None:
            self._problem = SourceUnavailable(f"{self._settings.port} is closed")
            self._port.close()
            self._decoder.reset()

    def _lost(self, problem: SourceUnavailable, cause: Exception | None = None) -> list[Decoded]:
        """Close, and give what the decoder counts of the unfinished; the next poll raises."""
        problem.__cause__ = cause
        self._problem = problem
        self._port.close()
        if self._tee is not None:
            self._tee(None, self._clock.monotonic_ns())
        return self._decoder.reset()


class PortInfo(NamedTuple):
    """A serial port of this board: the path to configure, and what is there, for people."""

    path: str
    description: str


def list_ports() -> list[PortInfo]:
    """Return the serial ports that have hardware behind them, by their lasting names where they have one."""
    from serial.tools.list_ports import comports

    lasting = {str(link.resolve()): str(link) for link in _links()}
    return sorted(PortInfo(lasting.get(p.device, p.device), p.description) for p in comports())


def _open(settings: SerialSettings) -> serial.Serial:
    path = settings.port
    try:
        return serial.Serial(path, settings.baud, timeout=0, exclusive=True)
    except (OSError, termios.error, ValueError) as e:
        # SerialException is an OSError; termios has its own error, and an unknown baud rate is a ValueError.
        code = e.errno if isinstance(e, OSError) else None
        raise SourceUnavailable(f"{path} cannot be opened: {_reason(settings.baud, code, e)}") from e


def _reason(baud: int, code: int | None, error: Exception) -> str:
    if code == errno.ENOENT:
        links = ", ".join(map(str, _links()))
        return (
            f"there is no such port; {'there are ' + links if links else f'nothing is in {BY_ID}, is it plugged in?'}"
        )
    if code in (errno.EACCES, errno.EPERM):
        return "permission denied: add the agent's user to the group dialout (or to the group that owns the port)"
    if code in (errno.EAGAIN, errno.EBUSY):
        return "another program has it open: stop that one, such as a serial monitor or ModemManager"
    if code in (errno.ENOTTY, errno.EISDIR, errno.EINVAL) or _is_no_terminal(error):
        return f"it is no serial port, or one that refuses {baud} baud"
    return _text(error)


def _is_no_terminal(error: Exception) -> bool:
    # pyserial gives its text alone, without its number.
    return isinstance(error, termios.error) or isinstance(error.__context__, termios.error)


def _links() -> list[Path]:
    try:
        return sorted(BY_ID.iterdir())
    except OSError:
        return []


def _text(error: Exception) -> str:
    code = error.errno if isinstance(error, OSError) else None
    return os.strerror(code) if code else str(error)
