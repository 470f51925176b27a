"""Slow boards: processes that get a share of a core, by the `cpu` controller of cgroups, version 1.

A quota of CFS would let them run at full speed for milliseconds, and then not at all for some tens of them: it is
enforced at the scheduler's tick, and what is shorter than it is never slowed down. A board is slow all the time. Here
processes are of the real-time class, whose groups have a quota too, of `PERIOD_US`, and something that wakes up every
`LOOK_S` on that core makes the kernel look at it. That costs some of the share, and a share has cold caches: how fast a
board really is must be measured.
"""

import contextlib
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

ROOT = Path("/sys/fs/cgroup/cpu")
PERIOD_US = 4000
LOOK_S = 1e-4


def require(what: str) -> None:
    """End with what to do where no shares can be given. `what`: needs them."""
    if not os.access(ROOT / "cpu.rt_runtime_us", os.W_OK) or (os.cpu_count() or 1) < 2:
        sys.exit(
            f"{what} needs two cores, and {ROOT} with quotas for real-time processes: cgroups of version 1, and a "
            "kernel with CONFIG_RT_GROUP_SCHED"
        )


def watch(core: int, ending: ExitStack) -> None:
    """Have the kernel look at the quotas of a core every `LOOK_S`, until `ending` ends."""
    watcher = subprocess.Popen([sys.executable, __file__, str(core)], stdin=subprocess.PIPE)
    ending.callback(watcher.wait, 10)
    ending.callback(watcher.kill)


class Share:
    """A group of processes on a core that is watched."""

    def __init__(self, name: str, core: int, pid: int, ending: ExitStack) -> None:
        """Take a process and all of its threads in. It has all of the core until it is limited."""
        self._core = core
        self._group = ROOT / f"{name}-{os.getpid()}"
        self._group.mkdir()
        ending.callback(self._end)
        (self._group / "cgroup.procs").write_text(str(pid))

    def limit(self, share: float) -> None:
        """Give the processes that are in it, all of their threads, and what they start, this share of the core."""
        if share < 1:
            (self._group / "cpu.rt_period_us").write_text(str(PERIOD_US))
            (self._group / "cpu.rt_runtime_us").write_text(str(round(PERIOD_US * share)))
        for task in self._tasks():
            os.sched_setaffinity(task, [self._core])
            if share < 1:
                # What computes is the first thread. The others, which wait for a network, come first, as they would.
                os.sched_setscheduler(
                    task, os.SCHED_FIFO, os.sched_param(1 if task in self._tasks("cgroup.procs") else 2)
                )
            else:
                os.sched_setscheduler(task, os.SCHED_OTHER, os.sched_param(0))

    def _tasks(self, of: str = "tasks") -> list[int]:
        return [int(task) for task in (self._group / of).read_text().split()]

    def _end(self) -> None:
        """Its processes have ended, or are let go."""
        for task in self._tasks():
            with contextlib.suppress(OSError):
                os.sched_setscheduler(task, os.SCHED_OTHER, os.sched_param(0))
                (ROOT / "tasks").write_text(str(task))
        self._group.rmdir()


def _watch(core: int) -> None:
    os.sched_setaffinity(0, [core])
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(LOOK_S)


if __name__ == "__main__":
    _watch(int(sys.argv[1]))
