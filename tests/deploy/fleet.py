"""Rig B: a fleet of boards on one machine, each with a systemd, an sshd, a memory and a network of its own.

    python tests/deploy/fleet.py up [-n 6] [--suite bookworm|trixie] [--sensors]     prints the fleet's folder
    python tests/deploy/fleet.py list
    python tests/deploy/fleet.py exec FOLDER NAME COMMAND…     NAME: board1 …, or hub, where a controller would be
    python tests/deploy/fleet.py down FOLDER

Boards are systemd-nspawn containers over overlays of one Debian image, in network namespaces that are joined by a
bridge in a namespace called the hub; nothing there reaches any other network. A board has 512 MB and one CPU's time,
limited from outside by control groups. Needs root, systemd-nspawn, mmdebstrap, iproute2 and an ssh client; the image
is made once and kept in RIG_CACHE. Names carry the fleet's own tag: several fleets may run at once.

What it cannot do: limits inside units are not enforced where the host has control groups of version 1, the clock and
the kernel are the host's, and `power_cut` loses no page that was not synced. That is what the virtual machine of rig C
is for.
"""

import argparse
import atexit
import contextlib
import ctypes
import hashlib
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FOLDERS = Path("/var/tmp")
PREFIX = "har-fleet-"
NETWORK = "10.77.0"
GATEWAY = f"{NETWORK}.1"
OPERATOR = "admin"
"""Who logs in by ssh, and may become root: as on a board that a person has set up."""
MEMORY = 512 * 1024 * 1024
CPU_PERIOD_US = 100_000
TOOLS = {"systemd-nspawn": "systemd-container", "mmdebstrap": "mmdebstrap", "ip": "iproute2", "ssh": "openssh-client"}
"""What a fleet needs, and the Debian packages it comes in."""
PACKAGES = (
    "systemd", "systemd-sysv", "udev", "dbus", "python3", "openssh-server", "iproute2", "ca-certificates", "sudo",
    "mosquitto", "mosquitto-clients", "openssl",
)  # fmt: skip
PREPARE = f"""
set -eu
useradd --create-home --shell /bin/sh {OPERATOR}
printf '{OPERATOR} ALL=(ALL) NOPASSWD: ALL\\n' >/etc/sudoers.d/{OPERATOR}
systemctl --quiet disable mosquitto.service
systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
    e2scrub_reap.service systemd-networkd.service systemd-timesyncd.service getty.target console-getty.service
printf 'UseDNS no\\n' >/etc/ssh/sshd_config.d/rig.conf
rm -rf /usr/share/doc /usr/share/man /usr/share/locale /var/lib/apt/lists
mkdir -p /usr/share/man
"""
"""Run in the image once: what a person does who sets a board up, less what takes time at every boot."""
CLOCK_C = Path(__file__).parents[1] / "wall_clock.c"
_CLONE_NEWNET = 0x40000000


class RigError(Exception):
    """The rig did not do what it should: nothing that a board or the agent is to blame for."""


def missing() -> str:
    """Why no fleet can be brought up here, and what to do about it; empty if one can."""
    if os.geteuid() != 0:
        return "a fleet of boards needs root: for its namespaces, mounts and control groups"
    packages = [package for tool, package in TOOLS.items() if shutil.which(tool, path=_PATH) is None]
    if packages:
        return f"a fleet of boards needs {' '.join(packages)}: apt-get install {' '.join(packages)}"
    with contextlib.suppress(OSError):
        if not _cgroup_parents():
            return "a fleet of boards needs control groups, which are not mounted here"
    return ""


def image(suite: str = "bookworm", say: Callable[[str], None] = lambda _: None) -> Path:
    """Return the root folder of a Debian with what boards have; made on first use, which takes a minute."""
    cache = Path(os.environ.get("RIG_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "har-edge-agent"))
    cache = cache.expanduser()
    recipe = hashlib.sha256(repr((suite, PACKAGES, PREPARE)).encode()).hexdigest()[:8]
    made = cache / f"board-{suite}-{recipe}"
    if made.exists():
        return made
    cache.mkdir(parents=True, exist_ok=True)
    half = made.with_name(f"{made.name}.{os.getpid()}")
    say(f"making the image of a board, Debian {suite}, in {made}")
    try:
        _sh("mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}",
            f"--customize-hook=chroot \"$1\" sh -c {shlex.quote(PREPARE)}", suite, half, timeout=600)  # fmt: skip
        (half / "etc/machine-id").write_text("")
        half.rename(made)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return made


class Board:
    """One board of a fleet. Made by Fleet; `name`, `address` and `root`, its file system as seen from here."""

    def __init__(self, fleet: "Fleet", number: int, name: str) -> None:
        self.number = number
        self.name = name
        self.address = f"{NETWORK}.{10 + number}"
        self.folder = fleet.folder / name
        self.root = self.folder / "root"
        self.namespace = f"{fleet.tag}-{name}"
        self._fleet = fleet
        self._cgroups = [parent / self.namespace for parent in _cgroup_parents()]
        self._supervisor: subprocess.Popen[bytes] | None = None

    def make(self) -> None:
        """Give it a network, limits and a disk, and leave it off."""
        fleet = self._fleet
        _sh("ip", "netns", "add", self.namespace)
        _ip(self.namespace, "link set lo up")
        _ip(fleet.hub_namespace, f"link add {self.name} type veth peer name eth0 netns {self.namespace}")
        _ip(fleet.hub_namespace, f"link set {self.name} master br0 up")
        _ip(self.namespace, f"addr add {self.address}/24 dev eth0")
        _ip(self.namespace, "link set eth0 up")
        for name in ("up", "work", "root"):
            (self.folder / name).mkdir(parents=True)
        over = f"lowerdir={fleet.image},upperdir={self.folder / 'up'},workdir={self.folder / 'work'}"
        _sh("mount", "-t", "overlay", "overlay", "-o", over, self.root)
        self.write("/etc/hostname", f"{self.name}\n")
        self.write("/etc/machine-id", "")
        names = "".join(f"{other.address} {other.name}\n" for other in fleet.boards)
        self.write("/etc/hosts", f"127.0.0.1 localhost\n{names}")
        for user, home in (("root", "/root"), (OPERATOR, f"/home/{OPERATOR}")):
            self.write(f"{home}/.ssh/authorized_keys", (fleet.folder / "key.pub").read_text(), 0o600)
            shutil.chown(self.root / home[1:] / ".ssh", _uid(self.root, user), _uid(self.root, user))
            shutil.chown(self.root / home[1:] / ".ssh/authorized_keys", _uid(self.root, user), _uid(self.root, user))
        _limit(self._cgroups)

    @property
    def leader(self) -> int:
        """Process id of its systemd, as this machine knows it; 0 if it is off."""
        supervisor = _number(self.folder / "pid")
        if not supervisor or not _alive(supervisor):
            return 0
        found = subprocess.run(["pgrep", "-P", str(supervisor), "-x", "systemd"], capture_output=True, text=True)
        return int(found.stdout.split()[0]) if found.stdout.strip() else 0

    def boot(self, wait: bool = True) -> None:
        """Switch it on, on the disk that it has. `wait`: until its systemd has nothing left to start."""
        join = " ".join(f"echo $$ >{shlex.quote(str(path / 'cgroup.procs'))};" for path in self._cgroups)
        with (self.folder / "log").open("ab") as log:
            self._supervisor = subprocess.Popen(
                ["sh", "-c", f'{join} exec "$@"', "sh", "systemd-nspawn", "--quiet", "-D", str(self.root),
                 "-M", self.namespace, f"--hostname={self.name}", "--boot", "--register=no", "--keep-unit",
                 f"--network-namespace-path=/run/netns/{self.namespace}", "--console=read-only"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env={"PATH": _PATH},
            )  # fmt: skip
        (self.folder / "pid").write_text(str(self._supervisor.pid))
        if wait:
            self.wait_booted()

    def wait_booted(self, timeout_s: float = 60) -> None:
        """Wait until its systemd has nothing left to start."""

        def booted() -> bool:
            if not self.leader:
                return False
            said = self.run("systemctl is-system-running", check=False).stdout.strip()
            return said in ("running", "degraded")

        _wait(booted, timeout_s, f"{self.name} to boot; its console is in {self.folder / 'log'}")

    def run(
        self, command: str, *, check: bool = True, timeout: float = 60, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell's command as root on the board, past its network.

        Raises: RigError if `check` and it failed, with what it said.
        """
        leader = self.leader
        if not leader:
            raise RigError(f"{self.name} is off")
        ran = subprocess.run(
            ["nsenter", "-t", str(leader), "-a", "sh", "-c", command], capture_output=True, text=True, input=stdin,
            timeout=timeout, env={"PATH": _PATH, "HOME": "/root", "LC_ALL": "C.UTF-8"}, errors="replace",
        )  # fmt: skip
        if check and ran.returncode:
            raise RigError(f"{self.name}: {command}: exit {ran.returncode}\n{ran.stdout}{ran.stderr}")
        return ran

    def write(self, path: str, content: str | bytes, mode: int = 0o644) -> None:
        """Write a file of root's on its disk, and the folders above it; not in /run, /dev or /tmp."""
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        target.chmod(mode)

    def read(self, path: str) -> str:
        """Read a text file of its disk; not in /run, /dev or /tmp."""
        return (self.root / path.lstrip("/")).read_text()

    def unplug_network(self) -> None:
        """Pull its cable: the link goes down."""
        _ip(self._fleet.hub_namespace, f"link set {self.name} down")

    def plug_network(self) -> None:
        """Put its cable back."""
        _ip(self._fleet.hub_namespace, f"link set {self.name} up")

    def power_cut(self) -> None:
        """End all that runs on it at once, with nobody told; what it wrote is there at the next boot, synced or not."""
        leader = self.leader
        if leader:
            # The first process of a PID namespace takes all the others with it, and then nspawn ends by itself.
            _kill(leader)
        self._wait_off(10)

    def power_off(self, timeout_s: float = 20) -> None:
        """Shut it down in order; by force if that takes too long."""
        if self.leader:
            with contextlib.suppress(RigError, subprocess.TimeoutExpired):
                self.run("systemctl poweroff --no-block", check=False, timeout=5)
            with contextlib.suppress(RigError):
                self._wait_off(timeout_s)
        self.power_cut()

    def sensor(self, port: str = "/dev/serial-imu", seed: int | None = None) -> None:
        """Install a sensor that plays a simulated person into a pty at `port`, from now on and after every boot."""
        self.write("/usr/local/lib/sensor/sensor.py", (HERE / "sensor.py").read_text())
        self.write("/usr/local/lib/sensor/recording.csv", self._fleet.recording(self.number if seed is None else seed))
        self.write(
            "/etc/systemd/system/sensor.service",
            f"[Unit]\nDescription=Sensor at {port}\n[Service]\n"
            "WorkingDirectory=/usr/local/lib/sensor\n"
            f"ExecStart=/usr/bin/python3 -S sensor.py recording.csv {port}\n"
            "Restart=always\n[Install]\nWantedBy=multi-user.target\n",
        )
        self.run("systemctl enable --quiet --now sensor.service")

    def shift_clock(self, seconds: int) -> None:
        """Let every program that starts on it from now on read a wall clock that is ahead by so many seconds."""
        library = "/usr/local/lib/wrong-clock.so"
        if seconds == 0:
            self.write("/etc/ld.so.preload", "")
            return
        built = self.folder / "clock.so"
        _sh("cc", "-shared", "-fPIC", "-O2", f"-DAHEAD={seconds}", "-o", built, CLOCK_C)
        self.write(library, built.read_bytes(), 0o755)
        self.write("/etc/ld.so.preload", f"{library}\n")

    def unmake(self) -> None:
        """Leave nothing of it behind, whatever state it is in. Idempotent."""
        self.power_cut()
        for cgroup in self._cgroups:
            _empty_cgroup(cgroup)
        if os.path.ismount(self.root):
            _sh("umount", self.root)
        _sh("ip", "netns", "del", self.namespace, check=False)

    def _wait_off(self, timeout_s: float) -> None:
        supervisor = _number(self.folder / "pid")

        def off() -> bool:
            if self._supervisor is not None:
                return self._supervisor.poll() is not None
            return not supervisor or not _alive(supervisor)

        try:
            _wait(off, timeout_s, f"{self.name} to go off")
        except RigError:
            # It has no first process any more, or never had one: nothing that it could leave half done.
            if self.leader or not supervisor:
                raise
            _kill(supervisor)
            _wait(off, timeout_s, f"{self.name} to go off")
        self._supervisor = None
        (self.folder / "pid").unlink(missing_ok=True)


class Fleet:
    """`size` boards and a hub, up inside a `with` block; nothing is left of them after it.

    What a killed process left behind goes when the next fleet is brought up. `keep`: let it outlive this process, until
    somebody takes it down by its folder.
    """

    def __init__(
        self, size: int, *, suite: str = "bookworm", keep: bool = False, say: Callable[[str], None] = lambda _: None
    ) -> None:
        self.suite = suite
        self.tag = f"hf{secrets.token_hex(2)}"
        self.folder = FOLDERS / f"{PREFIX}{self.tag}"
        self.hub_namespace = f"{self.tag}-hub"
        self.image = Path()
        self.boards: list[Board] = []
        self._size = size
        self._keep = keep
        self._say = say
        self._processes: list[subprocess.Popen[str]] = []
        self._on_term: Any = None
        self._recordings: dict[int, str] = {}

    @classmethod
    def attach(cls, folder: Path) -> "Fleet":
        """Return the fleet that was brought up in `folder`."""
        told = json.loads((folder / "fleet.json").read_text())
        fleet = cls(told["size"], suite=told["suite"], keep=True)
        fleet.tag, fleet.folder, fleet.hub_namespace = told["tag"], folder, f"{told['tag']}-hub"
        fleet.boards = [Board(fleet, n, f"board{n}") for n in range(1, told["size"] + 1)]
        return fleet

    def __enter__(self) -> Self:
        return self.up()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._keep or error is not None:
            self.down()

    def up(self) -> Self:
        """Bring it up, and wait until all boards have booted and answer to ssh."""
        problem = missing()
        if problem:
            raise RigError(problem)
        for stale in leftovers():
            self._say(f"taking down {stale.folder}, which a process left behind")
            stale.down()
        self.image = image(self.suite, self._say)
        self._take_care()
        self.folder.mkdir(mode=0o755)
        told = {"tag": self.tag, "size": self._size, "suite": self.suite, "owner": 0 if self._keep else os.getpid()}
        (self.folder / "fleet.json").write_text(json.dumps(told))
        try:
            self._up()
        except BaseException:
            self.down()
            raise
        return self

    def _up(self) -> None:
        _sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "rig", "-f", self.folder / "key")
        _sh("ip", "netns", "add", self.hub_namespace)
        for command in ("link set lo up", "link add br0 type bridge", f"addr add {GATEWAY}/24 dev br0",
                        "link set br0 up"):  # fmt: skip
            _ip(self.hub_namespace, command)
        self.boards = [Board(self, n, f"board{n}") for n in range(1, self._size + 1)]
        for board in self.boards:
            board.make()
            board.boot(wait=False)
        host_key = (self.image / "etc/ssh/ssh_host_ed25519_key.pub").read_text()
        known = "".join(f"{board.address} {host_key}" for board in self.boards)
        (self.folder / "known_hosts").write_text(known)
        for board in self.boards:
            board.wait_booted()

    def down(self) -> None:
        """Take it down, whatever state it is in: no process, mount, namespace or control group is left. Idempotent."""
        if not self.folder.exists():
            return
        for process in self._processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            with process:
                pass
        for board in self.boards:
            board.unmake()
        self.cut_controller()
        _sh("ip", "netns", "del", self.hub_namespace, check=False)
        shutil.rmtree(self.folder)
        atexit.unregister(self.down)
        if self._on_term is not None:
            signal.signal(signal.SIGTERM, self._on_term)
            self._on_term = None

    def _take_care(self) -> None:
        """Go down with this process, also where it is ended by SIGTERM, unless it is to outlive it."""
        if self._keep:
            return
        atexit.register(self.down)
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            # As Ctrl-C, which pytest ends on; a SystemExit it takes for the failure of one test.
            self._on_term = signal.signal(signal.SIGTERM, signal.default_int_handler)

    def __getitem__(self, name: str) -> Board:
        """Return the board of that name."""
        return next(board for board in self.boards if board.name == name)

    def recording(self, seed: int) -> str:
        """Return five minutes of a simulated person, as a recording's text."""
        if seed not in self._recordings:
            made = subprocess.run(
                [sys.executable, "-m", "agent", "simulate", "--activities", "walking:20,sitting:15,standing:15",
                 "--seed", str(seed), "--duration", "300"],
                capture_output=True, text=True, check=True, cwd=ROOT,
            )  # fmt: skip
            self._recordings[seed] = made.stdout
        return self._recordings[seed]

    def inventory(
        self,
        groups: Mapping[str, Sequence[Board]],
        variables: Mapping[str, Any],
        of_board: Callable[[Board], Mapping[str, Any]] = lambda _: {},
    ) -> Path:
        """Write an inventory for Ansible and return its path. `of_board`: variables of one board over those of all."""
        ssh = f"-o UserKnownHostsFile={self.folder / 'known_hosts'} -o IdentitiesOnly=yes"
        told = {
            "all": {
                "vars": {
                    "ansible_user": OPERATOR,
                    "ansible_ssh_private_key_file": str(self.folder / "key"),
                    "ansible_ssh_common_args": ssh,
                    "ansible_python_interpreter": "/usr/bin/python3",
                    **variables,
                },
                "children": {
                    group: {"hosts": {b.name: {"ansible_host": b.address, **of_board(b)} for b in boards}}
                    for group, boards in groups.items()
                },
            }
        }
        # JSON is a part of YAML.
        path = self.folder / "inventory.json"
        # A controller may be reading it.
        path.with_suffix(".new").write_text(json.dumps(told, indent=1))
        return path.with_suffix(".new").replace(path)

    def start(
        self, command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.Popen[str]:
        """Start a process in the hub, as leader of a process group of its own; its output is on `stdout`."""
        process = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{self.hub_namespace}", *map(str, command)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            start_new_session=True, cwd=cwd, env={**os.environ, **(env or {})},
        )  # fmt: skip
        self._processes.append(process)
        return process

    def controller(
        self,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout_s: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        """Run a process in the hub, where it reaches boards and nothing else, and return what it said on both streams.

        Raises: RigError if it does not end in time; it is killed then.
        """
        process = self.start(command, env=env, cwd=cwd)
        try:
            said, _ = process.communicate(timeout=timeout_s)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            said, _ = process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                raise RigError(f"{shlex.join(map(str, command))}: did not end in {timeout_s:g} s\n{said}") from error
            raise
        finally:
            self._processes.remove(process)
        return subprocess.CompletedProcess(list(map(str, command)), process.returncode, said)

    def cut_controller(self) -> None:
        """Kill all that runs in the hub, as if the controller's power were cut.

        That is more than a process group: Ansible's workers and the masters of ssh's shared connections leave it.
        """
        for pid in map(int, _sh("ip", "netns", "pids", self.hub_namespace, check=False).stdout.split()):
            if pid != os.getpid():
                _kill(pid)

    @contextlib.contextmanager
    def hub(self) -> Iterator[None]:
        """Be in the hub's network inside the block: this thread, and the threads and processes it starts there."""
        if threading.current_thread() is not threading.main_thread():
            raise RigError("only the main thread may go into the hub: others would be left there")
        libc = ctypes.CDLL(None, use_errno=True)
        with Path("/proc/self/ns/net").open() as home, Path(f"/run/netns/{self.hub_namespace}").open() as there:
            if libc.setns(there.fileno(), _CLONE_NEWNET) != 0:
                raise RigError(f"cannot enter {self.hub_namespace}: {os.strerror(ctypes.get_errno())}")
            try:
                yield
            finally:
                libc.setns(home.fileno(), _CLONE_NEWNET)


def leftovers(every: bool = False) -> list[Fleet]:
    """Return fleets whose process was killed before it could take them down; `every`: all fleets there are."""
    found = []
    for path in sorted(FOLDERS.glob(f"{PREFIX}*/fleet.json")):
        with contextlib.suppress(OSError, ValueError):
            owner = json.loads(path.read_text())["owner"]
            if every or (owner and not _alive(owner)):
                found.append(Fleet.attach(path.parent))
    return found


_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _sh(*command: str | Path, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a command of this machine, and tell what it said if it failed."""
    argv = list(map(str, command))
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, env={**os.environ, "PATH": _PATH})
    if check and ran.returncode:
        raise RigError(f"{shlex.join(argv)}: exit {ran.returncode}\n{ran.stdout}{ran.stderr}")
    return ran


def _ip(namespace: str, command: str) -> None:
    _sh("ip", "-n", namespace, *command.split())


def _cgroup_parents() -> list[Path]:
    """Return the folders in which a board gets a control group: one with version 2, one a controller with version 1."""
    top = Path("/sys/fs/cgroup")
    if (top / "cgroup.controllers").exists():
        return [top]
    memory = next(
        line.split(":")[2] for line in Path("/proc/self/cgroup").read_text().splitlines() if ":memory:" in line
    )
    wanted = [top / "systemd", top / "unified", top / "memory" / memory.lstrip("/"), top / "cpu"]
    return [path for path in wanted if path.is_dir()]


def _limit(cgroups: list[Path]) -> None:
    """Make the control groups of a board, and give it its memory and one processor's time."""
    for path in cgroups:
        path.mkdir(exist_ok=True)
        for name, value in (
            ("memory.limit_in_bytes", MEMORY),
            ("memory.max", MEMORY),
            ("cpu.cfs_period_us", CPU_PERIOD_US),
            ("cpu.cfs_quota_us", CPU_PERIOD_US),
            ("cpu.max", f"{CPU_PERIOD_US} {CPU_PERIOD_US}"),
        ):
            if (path / name).exists():
                (path / name).write_text(str(value))


def _empty_cgroup(path: Path) -> None:
    """End what is left in a control group of a board's, and remove it."""
    if not path.is_dir():
        return
    for listed in path.rglob("cgroup.procs"):
        for pid in map(int, listed.read_text().split()):
            _kill(pid)

    def removed() -> bool:
        for folder in sorted((p for p in path.rglob("*") if p.is_dir()), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()
        with contextlib.suppress(OSError):
            path.rmdir()
        return not path.is_dir()

    _wait(removed, 10, f"{path} to be empty")


def _wait(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise RigError(f"waited {timeout_s:g} s in vain for {what}")
        time.sleep(0.05)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _number(path: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())
    return 0


def _uid(root: Path, user: str) -> int:
    lines = (root / "etc/passwd").read_text().splitlines()
    return next(int(line.split(":")[2]) for line in lines if line.startswith(f"{user}:"))


def main() -> int:
    """Bring fleets up and down for a person."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="bring a fleet up, and leave it up")
    up.add_argument("-n", "--size", type=int, default=6, help="boards")
    up.add_argument("--suite", default="bookworm", help="Debian's release")
    up.add_argument("--sensors", action="store_true", help="give every board a sensor at /dev/serial-imu")
    commands.add_parser("list", help="list the fleets that are up")
    down = commands.add_parser("down", help="take a fleet down")
    down.add_argument("folder", type=Path)
    run = commands.add_parser("exec", help="run a command on a board, or in the hub")
    run.add_argument("folder", type=Path)
    run.add_argument("name")
    run.add_argument("argv", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    try:
        return _main(given)
    except RigError as error:
        _say(str(error))
        return 1


def _say(text: str) -> None:
    print(f"fleet: {text}", file=sys.stderr)  # noqa: T201


def _main(given: argparse.Namespace) -> int:
    if given.command == "up":
        with Fleet(given.size, suite=given.suite, keep=True, say=_say) as fleet:
            for board in fleet.boards if given.sensors else ():
                board.sensor()
            fleet.inventory({"boards": fleet.boards}, {})
            print(fleet.folder)  # noqa: T201
    elif given.command == "list":
        for fleet in leftovers(every=True):
            print(f"{fleet.folder}: {', '.join(f'{b.name} {b.address}' for b in fleet.boards)}")  # noqa: T201
    elif given.command == "down":
        Fleet.attach(given.folder).down()
    elif given.name == "hub":
        fleet = Fleet.attach(given.folder)
        os.execvp("nsenter", ["nsenter", f"--net=/run/netns/{fleet.hub_namespace}", *given.argv])
    else:
        leader = Fleet.attach(given.folder)[given.name].leader
        if not leader:
            raise RigError(f"{given.name} is off")
        os.execvp("nsenter", ["nsenter", "-t", str(leader), "-a", *given.argv])
    return 0


if __name__ == "__main__":
    sys.exit(main())
