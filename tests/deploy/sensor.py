"""A sensor on a board: plays a recording in a loop, a line a sample, into a pty behind a name in /dev.

    python3 sensor.py RECORDING.csv /dev/serial-imu

Runs on a board that has nothing but Python: standard library only. The sensor's clock and its person go on whether
anybody listens or not. As on a real port, what comes while nobody has it open is lost, and so is what its buffer cannot
take.
"""

import os
import pty
import select
import shutil
import sys
import time
import tty
from pathlib import Path

GROUP = "dialout"
"""Who may open serial ports on Debian, Raspberry Pi OS and Ubuntu."""


def rows(path: Path) -> tuple[float, list[bytes]]:
    """Return samples a second, and of each sample its six channels as text, of a har-recording."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    fields = [line.split(",") for line in lines[1:]]
    first, last = float(fields[0][0]), float(fields[-1][0])
    return (len(fields) - 1) / (last - first), [",".join(f[1:7]).encode() for f in fields]


def open_port(link: Path) -> int:
    """Make a pty that the group of serial ports may open as `link`, and return its other end."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    name = os.ttyname(slave)
    # Nobody has it open until the agent does, which poll() then tells.
    os.close(slave)
    shutil.chown(name, "root", GROUP)
    os.chmod(name, 0o660)  # noqa: PTH101
    new = link.with_name(f"{link.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(name)
    new.replace(link)
    os.set_blocking(master, False)
    return master


def play(master: int, rate_hz: float, channels: list[bytes]) -> None:
    """Write a line a sample, each when it is due, with the milliseconds of the sensor's own clock in front."""
    poll = select.poll()
    poll.register(master, 0)
    began = time.monotonic()
    k = 0
    while True:
        k += 1
        wait = began + k / rate_hz - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        if poll.poll(0):
            continue
        try:
            os.write(master, b"%d,%s\n" % (round(k * 1000 / rate_hz), channels[k % len(channels)]))
        except BlockingIOError:
            continue


if __name__ == "__main__":
    recording, port = Path(sys.argv[1]), Path(sys.argv[2])
    play(open_port(port), *rows(recording))
