"""vcgencmd, the Raspberry Pi's way to ask its firmware."""

import shutil
import subprocess
from pathlib import Path

TIMEOUT_S = 0.5
"""A mailbox call takes the firmware a few milliseconds; what takes longer does not come."""


class Vcgencmd:
    """Runs `vcgencmd <command>`; a process is started for each call.

    Starting and ending a program that does nothing took 0.7 ms on the x86 machine where this was written; on a board it
    was not measured, expect ten times that. The caller waits for at most `TIMEOUT_S`. One that cannot even be killed,
    stuck in the firmware's driver, is not waited for, and no second one is started while it is there.
    """

    def __init__(self, path: str | None = None) -> None:
        """`path`: the program; looked for in `PATH` if not given."""
        self._path = shutil.which(path or "vcgencmd")
        self._stuck: subprocess.Popen[bytes] | None = None

    def __call__(self, command: str) -> str | None:
        """Return what `command` prints; None if the program is missing, fails, or does not end in time."""
        if self._path is None or not Path(self._path).is_absolute():
            return None
        if self._stuck is not None:
            if self._stuck.poll() is None:
                return None
            self._stuck = None
        try:
            child = subprocess.Popen(
                [self._path, command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError:
            return None
        try:
            output, _ = child.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            if child.stdout is not None:
                child.stdout.close()
            self._stuck = child
            return None
        return output.decode("ascii", "replace") if child.returncode == 0 else None
