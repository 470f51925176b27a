"""Tries from inside the service's sandbox what must work there, and what must not. Prints JSON: name -> "ok" or errno.

    ExecStart=… python -I sandbox_probe.py

Runs on the board, in place of the agent and under the agent's own settings, with the agent's Python.
"""

import ctypes
import errno
import json
import mmap
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWUSER, _MS_BIND = 0x10000000, 4096


def attempt(what: Callable[[], object]) -> str:
    """Return "ok", or the name of the errno that it failed with."""
    try:
        what()
    except OSError as e:
        return errno.errorcode.get(e.errno or 0, str(e))
    except Exception as e:  # noqa: BLE001  a probe tells everything
        return f"{type(e).__name__}: {e}"
    return "ok"


def call(function: str, *arguments: object) -> None:
    """Call a function of libc.

    Raises: OSError as its errno says.
    """
    if getattr(_LIBC, function)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), function)


def write(path: str) -> Callable[[], object]:
    """Make a file, and remove it again."""

    def make() -> None:
        Path(path).write_text("x")
        Path(path).unlink()

    return make


def execute_own_file() -> None:
    """Run a program that was just written to the state directory."""
    program = Path(os.environ["STATE_DIRECTORY"], "probe.sh")
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    try:
        subprocess.run([program], check=True)
    finally:
        program.unlink()


def set_group_id() -> None:
    """Give a file the right to run as its group."""
    file = Path(os.environ["STATE_DIRECTORY"], "probe.sgid")
    file.touch()
    try:
        file.chmod(0o2755)
    finally:
        file.unlink()


def keep_rows() -> None:
    """A database with a write-ahead log, in the state directory."""
    path = Path(os.environ["STATE_DIRECTORY"], "probe.db")
    try:
        db = sqlite3.connect(path)
        db.execute("PRAGMA journal_mode = wal")
        db.execute("CREATE TABLE t (x)")
        db.execute("INSERT INTO t VALUES (1)")
        db.commit()
        db.close()
    finally:
        for each in path.parent.glob("probe.db*"):
            each.unlink()


def make_codes() -> None:
    """Memory that can be written and executed."""
    mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def callback() -> None:
    """A C function that calls Python: needs code that is made at run time."""
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))
    numbers = (ctypes.c_int * 3)(3, 1, 2)
    _LIBC.qsort(numbers, 3, ctypes.sizeof(ctypes.c_int), kind(lambda a, b: a[0] - b[0]))
    if list(numbers) != [1, 2, 3]:
        raise RuntimeError("it sorted wrongly")


def others() -> list[int]:
    """Processes of others that can be seen."""
    return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and p.stat().st_uid != os.getuid()]


def see_others() -> None:
    """Look at the processes of others."""
    if not others():
        raise PermissionError(errno.EPERM, "none is seen")


def own_tmp() -> None:
    """See what others keep in /tmp: systemd itself keeps something there."""
    if not any(Path("/tmp").iterdir()):
        raise PermissionError(errno.EPERM, "it is empty")


def infer() -> None:
    """Run the golden vectors of the bundle that ships, on ONNX Runtime."""
    from agent.app.compose import open_model

    open_model("har-base")


def verify_signature() -> None:
    """Check a signature with libsodium."""
    from nacl.signing import SigningKey

    key = SigningKey.generate()
    key.verify_key.verify(key.sign(b"x"))


def measure() -> None:
    """Read what the agent tells of itself."""
    from agent.adapters.host import HostMetrics

    host = HostMetrics()
    if None in (host.cpu_seconds(), host.rss_bytes(), host.disk_bytes_written(), host.threads(), host.open_files()):
        raise RuntimeError("something is not known")


def read(path: str) -> Callable[[], object]:
    """Read a file, or the names in a folder."""
    where = Path(path)
    return lambda: list(where.iterdir()) if where.is_dir() else where.read_bytes()[:1]


def open_socket(family: str, kind: int = socket.SOCK_DGRAM) -> Callable[[], object]:
    """Open a socket."""
    return lambda: socket.socket(getattr(socket, family), kind).close()


def resolve() -> None:
    """Look a name up."""
    socket.getaddrinfo("localhost", 1883, type=socket.SOCK_STREAM)


MUST: dict[str, Callable[[], object]] = {
    "infer": infer,
    "signature": verify_signature,
    "sqlite": keep_rows,
    "callback": callback,
    "psutil": measure,
    "vcgencmd": lambda: subprocess.run(["true"], check=True),
    "cpuinfo": read("/proc/cpuinfo"),
    "stat": read("/proc/stat"),
    "boot_id": read("/proc/sys/kernel/random/boot_id"),
    "thermal": read("/sys/class/thermal"),
    "hwmon": read("/sys/class/hwmon"),
    "power_supply": read("/sys/class/power_supply"),
    "configuration": read("/etc/har-agent/config.toml"),
    "serial names": read("/dev"),
    "inet": open_socket("AF_INET"),
    "inet6": open_socket("AF_INET6"),
    "unix": open_socket("AF_UNIX"),
    "resolve": resolve,
    "state directory": write(os.environ.get("STATE_DIRECTORY", "") + "/probe"),
    "temporary file": lambda: tempfile.TemporaryFile().close(),
}
"""What the agent lives on."""
MUST_NOT: dict[str, Callable[[], object]] = {
    "write /etc": write("/etc/har-agent/probe"),
    "write /usr": write("/usr/probe"),
    "write /opt": write("/opt/har-agent/probe"),
    "write /var": write("/var/lib/probe"),
    "write /run": write("/run/probe"),
    "write /dev": write("/dev/probe"),
    "write a tunable": lambda: Path("/proc/sys/kernel/core_pattern").write_text("x"),
    "read /root": lambda: list(Path("/root").iterdir()),
    "read /home": lambda: list(Path("/home").iterdir()),
    "read credentials of others": read("/etc/har-agent/credentials"),
    "read the kernel's log": read("/dev/kmsg"),
    "see others' processes": see_others,
    "see others' temporary files": own_tmp,
    "execute what it wrote": execute_own_file,
    "writable code": make_codes,
    "set-group-id": set_group_id,
    "packet socket": open_socket("AF_PACKET", socket.SOCK_RAW),
    "netlink socket": open_socket("AF_NETLINK", socket.SOCK_RAW),
    "bluetooth socket": open_socket("AF_BLUETOOTH", socket.SOCK_RAW),
    "raw socket": open_socket("AF_INET", socket.SOCK_RAW),
    "low port": lambda: socket.create_server(("127.0.0.1", 80)).close(),
    "user namespace": lambda: call("unshare", _CLONE_NEWUSER),
    "mount": lambda: call("mount", b"/usr", b"/tmp", None, _MS_BIND, None),
    "set the clock": lambda: call("settimeofday", ctypes.create_string_buffer(16), None),
    "trace": lambda: call("ptrace", 0, 0, None, None),
    "reboot": lambda: call("reboot", 0),
    "host name": lambda: socket.sethostname("probe"),
    "another user": lambda: os.setuid(0),
    "real time": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
    "personality": lambda: call("personality", 0x0008),
    "load a module": lambda: call("syscall", {"x86_64": 175, "aarch64": 105}[os.uname().machine], None, 0, b""),
}
"""What an intruder would like. ENOENT would prove nothing: each of these exists on a board."""


def main() -> None:
    """Try everything."""
    given = os.environ.get("CREDENTIALS_DIRECTORY")
    said = {
        "must": {name: attempt(what) for name, what in MUST.items()},
        "must_not": {name: attempt(what) for name, what in MUST_NOT.items()},
        "credentials": sorted(p.name for p in Path(given).iterdir()) if given else [],
    }
    json.dump(said, sys.stdout)


if __name__ == "__main__":
    main()
