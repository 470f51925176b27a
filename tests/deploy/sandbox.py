"""What the hardened service promises, proven on a board where it runs.

Every function takes `run`: it runs a shell's command as root on the board, and returns what became of it without
raising where it failed. The board has the agent in /opt/har-agent/current, this project's har-agent.service, a
configuration, a source that delivers and a broker; nothing else is assumed, so that a container, a virtual machine and
a real board are proven alike. Each leaves the service running.

    for fact in prove(partial(board.run, check=False)): print(fact)
"""

import base64
import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[[str], subprocess.CompletedProcess[str]]

HERE = Path(__file__).resolve().parent
UNIT = "har-agent.service"
PROBE = "har-agent-probe.service"
_PROBE_FOLDER = "/usr/local/lib/har-probe"
_AGENT = "/opt/har-agent/current/bin/har-agent"
_REFUSALS = frozenset(("EPERM", "EACCES", "EROFS", "EAFNOSUPPORT", "EPROTONOSUPPORT", "ENOSYS"))
"""How a sandbox says no."""
_NOT_ON_EVERY_BOARD = frozenset(("hwmon", "read the kernel's log"))
"""What need not exist: ENOENT is an answer there."""
_RESTART_S = 30.0
"""RestartSec, a cold start, and room for a busy machine."""
_OF_NO_CONSEQUENCE = ("adjtimex", "clock_adjtime", "mbind")
"""Calls that the filter refuses and that something asks for: the agent has another way to know its clock, and an
allocator takes memory as it comes where it may not choose a node."""


def prove(run: Run) -> list[str]:
    """Prove all that follows, and return what was measured."""
    return [
        *confinement(run),
        *inside(run),
        *cost(run),
        *start(run),
        *no_call_is_missed(run),
        *restart_after_kill(run),
        *reload(run),
        *unusable_configuration_is_final(run),
        *watchdog(run),
    ]


def confinement(run: Run) -> list[str]:
    """The kernel holds the process as the unit says: no right, no new ones, filters, a user of its own."""
    pid = main_pid(run)
    status = dict(line.split(":\t", 1) for line in _out(run, f"cat /proc/{pid}/status").splitlines() if ":\t" in line)
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, f"{name} is {status[name]}"
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    user = int(_out(run, "id -u har-agent"))
    assert status["Uid"].split() == [str(user)] * 4
    mounts = [line.split() for line in _out(run, f"cat /proc/{pid}/mountinfo").splitlines()]
    last = {m[4]: m[5].split(",") for m in mounts}
    for path in ("/", "/run", "/etc/har-agent"):
        assert "ro" in last.get(path, last["/"]), f"{path} can be written"
    for path in ("/var/lib/har-agent", "/run/har-agent", "/tmp", "/var/tmp"):
        assert "noexec" in last[path], f"{path} can hold programs"
        assert "rw" in last[path], f"{path} cannot be written"
    return [f"sandbox: no capability, {status['Seccomp_filters']} seccomp filters, {len(mounts)} mounts"]


def inside(run: Run) -> list[str]:
    """What the agent needs works under its settings, and what an intruder would like is refused."""
    said = probe(run)
    broken = {k: v for k, v in said["must"].items() if v != "ok" and not (v == "ENOENT" and k in _NOT_ON_EVERY_BOARD)}
    assert broken == {}, f"the sandbox breaks {broken}"
    let = {
        k: v
        for k, v in said["must_not"].items()
        if v not in _REFUSALS and not (v == "ENOENT" and k in _NOT_ON_EVERY_BOARD)
    }
    assert let == {}, f"the sandbox does not refuse {let}"
    return [f"sandbox: {len(said['must'])} things work in it, {len(said['must_not'])} are refused"]


def probe(run: Run) -> dict[str, Any]:
    """Return what tests/deploy/sandbox_probe.py says in place of the agent, under the unit and its drop-ins."""
    drop_in = f"""[Service]
Type=oneshot
WatchdogSec=0
Restart=no
RuntimeDirectory=
NoExecPaths=
NoExecPaths=/var/lib/har-agent /tmp /var/tmp /dev/shm
StandardOutput=truncate:{_PROBE_FOLDER}/said.json
ExecStart=
ExecStart=/opt/har-agent/current/bin/python -I {_PROBE_FOLDER}/sandbox_probe.py
"""
    put(run, f"{_PROBE_FOLDER}/sandbox_probe.py", (HERE / "sandbox_probe.py").read_text())
    _out(run, f"mkdir -p /run/systemd/system && cp /etc/systemd/system/{UNIT} /run/systemd/system/{PROBE}")
    _out(run, f"rm -rf /run/systemd/system/{PROBE}.d; mkdir -p /run/systemd/system/{PROBE}.d")
    _out(run, f"cp /etc/systemd/system/{UNIT}.d/*.conf /run/systemd/system/{PROBE}.d/ 2>/dev/null || :")
    put(run, f"/run/systemd/system/{PROBE}.d/zz-probe.conf", drop_in)
    try:
        _out(run, f"systemctl daemon-reload && systemctl start {PROBE} || {{ journalctl -u {PROBE} -n 30; exit 1; }}")
        said: dict[str, Any] = json.loads(_out(run, f"cat {_PROBE_FOLDER}/said.json"))
    finally:
        run(
            f"rm -rf {_PROBE_FOLDER} /run/systemd/system/{PROBE} /run/systemd/system/{PROBE}.d; systemctl daemon-reload"
        )
    return said


def cost(run: Run) -> list[str]:
    """What it takes of the board."""
    pid = main_pid(run)
    figures = dict(re.findall(r"^(VmRSS|VmHWM|Threads):\s+(\d+)", _out(run, f"cat /proc/{pid}/status"), re.MULTILINE))
    rss, peak = int(figures["VmRSS"]) / 1024, int(figures["VmHWM"]) / 1024
    assert peak < 100, f"{peak:.1f} MiB"
    return [f"sandbox: {rss:.1f} MiB resident, {peak:.1f} at its peak, {figures['Threads']} threads"]


def start(run: Run) -> list[str]:
    """How long a cold start takes, to READY and to the first window, and that the status line is told."""
    _out(run, f"systemctl stop {UNIT}; sync; echo 3 >/proc/sys/vm/drop_caches 2>/dev/null || :")
    began = time.monotonic()
    _out(run, f"systemctl start {UNIT}")
    ready_s = time.monotonic() - began
    wait(lambda: _predicted(run) > 0, 30, "a first window")
    label_s = time.monotonic() - began
    assert _show(run, "StatusText"), "systemd was told nothing"
    return [f"sandbox: start to READY {ready_s:.2f} s, to the first window {label_s:.2f} s (told every 5 s)"]


def no_call_is_missed(run: Run) -> list[str]:
    """The agent makes no system call that the filter refuses, but for those of no consequence.

    For the length of this proof such a call is death by SIGSYS, not an error that a program may pass over in silence.
    """
    folder = f"/run/systemd/system/{UNIT}.d"
    exempt = f"SystemCallFilter={' '.join(_OF_NO_CONSEQUENCE)}"
    put(run, f"{folder}/zz-kill.conf", f"[Service]\nSystemCallErrorNumber=kill\n{exempt}\n")
    try:
        _out(run, f"systemctl daemon-reload && systemctl restart {UNIT}")
        pid, restarts = main_pid(run), _show(run, "NRestarts")
        # A window, the reports of a few intervals, and the end.
        wait(lambda: _predicted(run) > 3, 30, "windows")
        assert (main_pid(run), _show(run, "NRestarts")) == (pid, restarts), "it was killed"
        _out(run, f"systemctl stop {UNIT}")
        assert _show(run, "Result") == "success", f"it ended with {_show(run, 'Result')}"
    finally:
        run(f"rm -f {folder}/zz-kill.conf; rmdir {folder} 2>/dev/null; systemctl daemon-reload")
        _out(run, f"systemctl start {UNIT}")
    return [f"sandbox: no system call is missed but {', '.join(_OF_NO_CONSEQUENCE)}"]


def restart_after_kill(run: Run) -> list[str]:
    """One that is killed comes back by itself, and finds what the one before said last."""
    pid = main_pid(run)
    began = time.monotonic()
    _out(run, f"kill -KILL {pid}")
    wait(lambda: _show(run, "SubState") == "auto-restart", 5, "systemd to notice")
    assert run("test -s /run/har-agent/status.json").returncode == 0, "the runtime directory was not kept"
    wait(lambda: main_pid(run) not in (0, pid) and _show(run, "ActiveState") == "active", _RESTART_S, "its restart")
    return [f"sandbox: active again {time.monotonic() - began:.1f} s after kill -9"]


def reload(run: Run) -> list[str]:
    """A reload is done by the same process, and systemd is told when it has been."""
    pid = main_pid(run)
    _out(run, f"systemctl reload {UNIT}")
    log = f"journalctl _PID={pid} -o cat --no-pager"
    wait(lambda: '"event": "reloaded"' in _out(run, log), 10, "the agent to look at its models")
    wait(lambda: _show(run, "ActiveState") == "active", 10, "the end of the reload")
    assert main_pid(run) == pid
    return []


def unusable_configuration_is_final(run: Run) -> list[str]:
    """With a configuration that cannot be used it ends with 78, and is not started again and again."""
    folder = f"/run/systemd/system/{UNIT}.d"
    put(run, f"{folder}/zz-broken.conf", "[Service]\nEnvironment=HAR_AGENT__AGENT__NAMME=x\n")
    try:
        run(f"systemctl daemon-reload; systemctl restart {UNIT}")
        wait(lambda: _show(run, "ActiveState") == "failed", 20, "it to fail")
        assert _show(run, "ExecMainStatus") == "78", _show(run, "ExecMainStatus")
        time.sleep(6)  # longer than RestartSec
        assert _show(run, "ActiveState") == "failed", "it is started again"
    finally:
        run(f"rm -f {folder}/zz-broken.conf; rmdir {folder} 2>/dev/null; systemctl daemon-reload")
        _out(run, f"systemctl restart {UNIT}")
    return []


def watchdog(run: Run, seconds: int = 5) -> list[str]:
    """One that hangs is killed, and comes back. With the watchdog's time cut to `seconds`."""
    folder = f"/run/systemd/system/{UNIT}.d"
    put(run, f"{folder}/zz-soon.conf", f"[Service]\nWatchdogSec={seconds}\nTimeoutAbortSec=1\n")
    try:
        _out(run, f"systemctl daemon-reload && systemctl restart {UNIT}")
        pid = main_pid(run)
        time.sleep(seconds + 1)
        assert main_pid(run) == pid, "it was killed, though it did not hang"
        began = time.monotonic()
        _out(run, f"kill -STOP {pid}")
        wait(lambda: main_pid(run) not in (0, pid) and _show(run, "ActiveState") == "active",
             seconds + _RESTART_S, "the watchdog")  # fmt: skip
        took_s = time.monotonic() - began
        lines = _out(run, f"journalctl -u {UNIT} -o cat --no-pager -n 100")
        assert "Watchdog timeout" in lines
    finally:
        run(f"rm -f {folder}/zz-soon.conf; rmdir {folder} 2>/dev/null; systemctl daemon-reload")
        _out(run, f"systemctl restart {UNIT}")
    return [f"sandbox: active again {took_s:.1f} s after it hung, with WatchdogSec={seconds}"]


def main_pid(run: Run) -> int:
    """Process of the agent; 0 if there is none."""
    return int(_show(run, "MainPID"))


def put(run: Run, path: str, text: str) -> None:
    """Write a file on the board."""
    data = base64.b64encode(text.encode()).decode()
    _out(run, f"mkdir -p $(dirname {path}) && echo {data} | base64 -d >{path}")


def wait(until: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for something.

    Raises: AssertionError if it does not come in time.
    """
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.2)


def _predicted(run: Run) -> int:
    """Windows that the agent which runs now has told of."""
    said = run("cat /run/har-agent/status.json")
    try:
        status = json.loads(said.stdout)
    except ValueError:
        return 0
    telemetry = status.get("telemetry") or {}
    return int(telemetry.get("windows") or 0) if status.get("pid") == main_pid(run) else 0


def _show(run: Run, name: str) -> str:
    return _out(run, f"systemctl show -p {name} --value {UNIT}").strip()


def _out(run: Run, command: str) -> str:
    done = run(command)
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout
