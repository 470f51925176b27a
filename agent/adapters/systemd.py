"""What systemd wants to know of a service, and when it wants a sign of life.

Source: sd_notify(3), sd_watchdog_enabled(3) and systemd.service(5), Type=notify and notify-reload.
"""

import os
import socket
from collections.abc import Mapping

from agent.ports import Clock

_TIMEOUT_S = 0.2
"""systemd's socket is full only while systemd itself does not run; the engine must not wait for that."""
_MOST_STATUS = 1000
"""Characters of a status line; `systemctl status` shows one line."""


class Notifier:
    """Tells systemd how the service is. Does nothing where the service manager does not ask. Never raises.

    Messages are single datagrams. Addresses are paths and, with `@`, abstract ones; others are left alone.
    """

    def __init__(self, environ: Mapping[str, str], clock: Clock) -> None:
        """`environ`: with NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID, where systemd has set them."""
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address[:1] == "@" else address
        self._enabled = address[:1] in ("/", "@") and len(address) > 1
        self._clock = clock
        self._watchdog_us = _watchdog_us(environ) if self._enabled else 0
        self._pinged_ns: int | None = None
        self._status = ""

    @property
    def watchdog_s(self) -> float | None:
        """Seconds without a sign of life after which systemd kills the service; None if it does not."""
        return self._watchdog_us / 1e6 if self._watchdog_us else None

    def ready(self) -> None:
        """The service has started, or has read its configuration again."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """Say in one line how it goes; the same line is sent once."""
        line = " ".join(text.split())[:_MOST_STATUS]
        if line != self._status and self._send(f"STATUS={line}"):
            self._status = line

    def watchdog(self) -> None:
        """Give a sign of life, if half of the time has passed. To be called only when there was progress."""
        now_ns = self._clock.monotonic_ns()
        if not self._watchdog_us or (
            self._pinged_ns is not None and now_ns - self._pinged_ns < self._watchdog_us * 1000 // 2
        ):
            return
        if self._send("WATCHDOG=1"):
            self._pinged_ns = now_ns

    def reloading(self) -> None:
        """The configuration is being read again; `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={self._clock.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The service is about to end."""
        self._send("STOPPING=1")

    def _send(self, message: str) -> bool:
        if not self._enabled:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wire:
                wire.settimeout(_TIMEOUT_S)
                wire.connect(self._address)
                wire.sendall(message.encode("utf-8", "replace"))
        except (OSError, ValueError):  # nobody listens, or the address is none
            return False
        return True


def _watchdog_us(environ: Mapping[str, str]) -> int:
    """Microseconds of the watchdog; 0 if there is none, or it is for another process."""
    try:
        wanted = int(environ.get("WATCHDOG_USEC", "0"))
        pid = int(environ.get("WATCHDOG_PID") or os.getpid())
    except ValueError:
        return 0
    return wanted if wanted > 0 and pid == os.getpid() else 0
