"""One arm64 board with one core and 512 MB, emulated in full; and a sensor that is plugged into its USB.

Power is what qemu is: a power cut is `kill -9` of it, which loses what the board had not written to its disk. An
emulated processor says nothing about how fast a board is, but all about what its kernel and its systemd do.
"""

import contextlib
import shlex
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from board_vm_image import STATE_LABEL, Image, run
from live import RATE_HZ, csv_line, samples

MEMORY_MB = 512
SERIAL_NUMBER = "HARRIG1"
PORT = f"/dev/serial/by-id/usb-QEMU_QEMU_USB_SERIAL_{SERIAL_NUMBER}-if00-port0"
_STATE_MB = 64
_SSH = (
    "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR",
    "-o", "ConnectTimeout=20", "-o", "ServerAliveInterval=20", "-o", "ServerAliveCountMax=3",
)  # fmt: skip


class BoardError(RuntimeError):
    """The board did not do what it was told to, or what was waited for."""


def wait_for(condition: Callable[[], Any], timeout_s: float, what: str, every_s: float = 0.2) -> Any:
    """Return what `condition` gives once that is true; raises BoardError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (got := condition()):
        if time.monotonic() > deadline:
            raise BoardError(f"waited {timeout_s:g} s in vain for {what}")
        time.sleep(every_s)
    return got


class Board:
    """A board that is off at first. Its disks outlive its power: `root.qcow2` over the image, and `state.raw`."""

    def __init__(self, image: Image, folder: Path, ssh_port: int) -> None:
        """`folder`: of the rig's own, for disks, sockets and the console's log."""
        self.key = image.key
        self.ssh_port = ssh_port
        self.console = folder / "console.log"
        self.usb = folder / "usb"
        self.state_disk = folder / "state.raw"
        self.root_disk = folder / "root.qcow2"
        self.powered_on = 0.0
        """When power came, on this machine's monotonic clock."""
        self._image = image
        self._process: subprocess.Popen[bytes] | None = None
        run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", image.disk.absolute(), self.root_disk)
        # Nothing is kept back for root: full is full.
        run("mke2fs", "-q", "-t", "ext4", "-m", "0", "-L", STATE_LABEL, self.state_disk, f"{_STATE_MB}M")

    def power_on(self, cpu: str, clock: str = "utc") -> None:
        """Start it; does not wait. `clock`: what its battery-backed clock says, as qemu's `-rtc base=` takes it."""
        assert self._process is None
        self.usb.unlink(missing_ok=True)
        command = [
            "qemu-system-aarch64", "-machine", "virt,gic-version=3", "-cpu", cpu, "-accel", "tcg,thread=single",
            "-smp", "1", "-m", str(MEMORY_MB), "-display", "none", "-monitor", "none", "-no-reboot",
            "-rtc", f"base={clock}",
            "-chardev", f"file,id=console,path={self.console},append=on", "-serial", "chardev:console",
            "-kernel", str(self._image.kernel), "-initrd", str(self._image.initrd),
            "-append", "console=ttyAMA0 panic=-1 quiet systemd.show_status=false",
            "-drive", f"if=none,id=root,file={self.root_disk},format=qcow2",
            "-device", "virtio-blk-pci,drive=root",
            "-drive", f"if=none,id=state,file={self.state_disk},format=raw",
            "-device", "virtio-blk-pci,drive=state",
            "-netdev", f"user,id=net,ipv6=off,hostfwd=tcp:127.0.0.1:{self.ssh_port}-:22",
            "-device", "virtio-net-pci,netdev=net,romfile=",
            "-device", "virtio-rng-pci",
            "-device", "qemu-xhci,id=xhci",
            # Without somebody at the other end of the socket, the device is not on the bus.
            "-chardev", f"socket,id=usb,path={self.usb},server=on,wait=off",
            "-device", f"usb-serial,chardev=usb,bus=xhci.0,serial={SERIAL_NUMBER}",
        ]  # fmt: skip
        self.powered_on = time.monotonic()
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        wait_for(self.usb.exists, 30, "qemu to start")

    def power_cut(self) -> None:
        """Take its power away, this instant. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def power_off(self) -> None:
        """Shut it down in order."""
        assert self._process is not None
        self.ssh("systemctl poweroff", check=False)
        try:
            self._process.wait(120)
        except subprocess.TimeoutExpired:
            raise BoardError(f"it did not power off\n{self.said()}") from None
        self._process = None

    def wait_for_ssh(self, timeout_s: float = 240) -> None:
        """Return once somebody can log in."""

        def reached() -> bool:
            if self._process is None or self._process.poll() is not None:
                raise BoardError(f"it went off by itself\n{self.said()}")
            return self.ssh("echo here", check=False, timeout_s=60).strip() == "here"

        wait_for(reached, timeout_s, f"ssh\n{self.said()}", every_s=1)

    def ssh(self, script: str, *, check: bool = True, timeout_s: float = 300, input_path: Path | None = None) -> str:
        """Run a shell script on the board as root, and return what it printed.

        `input_path`: a file that it gets as its standard input. Raises BoardError if it fails and `check` is true.
        """
        with contextlib.ExitStack() as stack:
            stdin = stack.enter_context(input_path.open("rb")) if input_path else subprocess.DEVNULL
            ran = subprocess.run(
                ["ssh", *self.ssh_options, "root@127.0.0.1", f"sh -euc {shlex.quote(script)}"],
                stdin=stdin, capture_output=True, text=True, check=False, timeout=timeout_s,
            )  # fmt: skip
        if check and ran.returncode:
            raise BoardError(f"{script}: exit {ran.returncode}\n{ran.stdout[-4000:]}\n{ran.stderr[-4000:]}")
        return ran.stdout

    @property
    def ssh_options(self) -> list[str]:
        """Of the ssh command, to come to this board."""
        return ["-p", str(self.ssh_port), "-i", str(self.key), *_SSH]

    def said(self, lines: int = 20) -> str:
        """The end of what its console showed."""
        text = self.console.read_text(errors="replace") if self.console.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


class UsbSensor:
    """A sensor that prints a line a sample, 50 a second, at a board's USB.

    Its clock and its person go on while it is not plugged in, as they do with a sensor that has a battery.
    """

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path
        self._data = samples(300)
        self._wire: socket.socket | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="usb-sensor")
        self._thread.start()

    def plug(self) -> None:
        """Put it into the board's socket: the board's kernel sees a new USB device."""
        wire = socket.socket(socket.AF_UNIX)
        wire.connect(str(self._path))
        wire.setblocking(False)
        # A sensor's own buffer is small: what nobody reads is lost, and does not come later.
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with self._lock:
            self._wire = wire

    def unplug(self) -> None:
        """Pull it out: the device is gone from the bus. Idempotent."""
        with self._lock:
            wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()

    def close(self) -> None:
        """End."""
        self._stop.set()
        self._thread.join()
        self.unplug()

    def _run(self) -> None:
        began, k, rest = time.monotonic(), 0, b""
        while not self._stop.wait(0.02):
            lines = []
            while k < (time.monotonic() - began) * RATE_HZ:
                row = self._data[k % len(self._data)].copy()
                row[0] = k / RATE_HZ
                lines.append(csv_line(row))
                k += 1
            due = rest + b"".join(lines)
            with self._lock:
                sent = self._exchange(due)
                plugged = self._wire is not None
            # What the line cannot take is lost, but for the end of a line that was begun.
            if not plugged or due[sent - 1 : sent] == b"\n":
                rest = b""
            elif sent:
                rest = due[sent : due.index(b"\n", sent) + 1]

    def _exchange(self, due: bytes) -> int:
        """Send what the line takes, and return how much that is; what the board says is taken, or qemu stands still."""
        if self._wire is None:
            return 0
        try:
            with contextlib.suppress(BlockingIOError):
                while self._wire.recv(4096):
                    pass
            return self._wire.send(due)
        except BlockingIOError:
            return 0
        except OSError:
            self._wire = None
            return 0
