"""What this process costs the board."""

from pathlib import Path

import psutil


class HostMetrics:
    """CPU time, memory, files and disk writes of this process. Reads nothing of other processes, needs no rights.

    Each figure is one small file of /proc: tens of microseconds.
    """

    def __init__(self, procfs: Path = Path("/proc")) -> None:
        self._process = psutil.Process()
        self._own = procfs / "self"

    def cpu_seconds(self) -> float:
        """CPU seconds, user and system, of all threads since the process began."""
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def rss_bytes(self) -> int:
        """Resident set now, bytes."""
        return int(self._process.memory_info().rss)

    def disk_bytes_written(self) -> int | None:
        """Bytes that this process had written to disk since it began, less those never written; None if not known.

        Counted when a page becomes dirty, and taken back when a file is deleted before it reached the disk
        (proc_pid_io(5)).
        """
        try:
            lines = (self._own / "io").read_text("ascii").splitlines()
            figures = {name: int(value) for name, _, value in (line.partition(":") for line in lines)}
            return max(0, figures["write_bytes"] - figures["cancelled_write_bytes"])
        except (OSError, ValueError, KeyError):
            return None

    def threads(self) -> int:
        """Threads of this process now."""
        return int(self._process.num_threads())

    def open_files(self) -> int | None:
        """Open file descriptors now; None if not known."""
        try:
            return sum(1 for _ in (self._own / "fd").iterdir()) - 1  # the one that lists them
        except OSError:
            return None
