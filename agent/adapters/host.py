"""What this process costs the board, through psutil."""

import psutil


class HostMetrics:
    """CPU time and memory of this process. Reads nothing of other processes and needs no rights."""

    def __init__(self) -> None:
        self._process = psutil.Process()

    def cpu_seconds(self) -> float:
        """CPU seconds, user and system, of all threads since the process began."""
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def rss_bytes(self) -> int:
        """Resident set now, bytes."""
        return int(self._process.memory_info().rss)
