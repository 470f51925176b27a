"""Links between network namespaces, for benchmarks: a process carries IP packets from one TUN device to another.

A packet leaves when those before it have left, at the rate of the link, and arrives half a round trip later:
handshakes, acknowledgements and segments take what they take on a line that is long, or slow. While a link has no rate
it is gone: packets wait, and are lost once `BUFFER` bytes do. There is no other loss, no jitter, and no radio that has
to wake up. Everything ends with the process that asked for it.
"""

import contextlib
import fcntl
import json
import math
import os
import select
import shutil
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

BUFFER = 64 * 1024
"""Bytes that wait in one direction; about what a modem holds."""

PORT = 1883

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
"""linux/if_tun.h"""


class Condition(NamedTuple):
    """What a link is for a while: its round trip, and its rate in either direction, 0 while it is gone."""

    rtt_ms: float
    mbit: float = math.inf


class Line(NamedTuple):
    """A link between two namespaces, and the network it is. `number`: 1 to 254, no other link's."""

    number: int

    @property
    def device(self) -> str:
        """What both ends call it."""
        return f"link{self.number}"

    def address(self, end: str) -> str:
        """Return that of the `near` or of the `far` end. RFC 2544's range for benchmarks, which nothing else uses."""
        return f"198.18.{self.number}.{1 if end == 'near' else 2}"


def require(what: str) -> None:
    """End with what to do where no links can be made. `what`: needs them."""
    missing = [tool for tool in ("ip", "unshare") if not shutil.which(tool)]
    if os.geteuid() != 0:
        sys.exit(f"{what} makes network namespaces and links between them, which only root may: run it with sudo")
    if missing:
        sys.exit(f"{what} needs {' and '.join(missing)}: apt-get install iproute2 util-linux")
    if not Path("/dev/net/tun").exists():
        sys.exit(f"{what} needs /dev/net/tun, which this kernel, or this container, does not have")


def namespaced(arguments: Sequence[str]) -> "subprocess.Popen[str]":
    """Start Python in a network namespace of its own, which is gone with the last process in it.

    It says "here" once it is there, and can be talked to through its standard input and output.
    """
    end = subprocess.Popen(
        ["unshare", "--net", sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    if end.stdout is None or end.stdout.readline() != "here\n":
        end.kill()
        raise RuntimeError(f"no network namespace can be made for {' '.join(arguments)}")
    return end


def configure(lines: Iterable[Line], end: str) -> None:
    """Give the devices of the namespace that this process is in their addresses."""
    _ip("link", "set", "lo", "up")
    for line in lines:
        _ip("addr", "add", f"{line.address(end)}/30", "dev", line.device)
        _ip("link", "set", line.device, "up")


class Carrier:
    """The process that carries packets."""

    def __init__(
        self, links: Mapping[Line, Condition], far: int, near: int, ending: ExitStack, cores: Iterable[int] = ()
    ) -> None:
        """Make the devices, and carry until `ending` does, or this process.

        `links`: what each is at first. `far`, `near`: processes in either namespace. `cores`: where it runs, if not
        anywhere.
        """
        ways = [(line.number, _tun(line, far), _tun(line, near), *condition) for line, condition in links.items()]
        fds = [fd for _, *pair, _, _ in ways for fd in pair]
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps([ways, list(cores)])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=fds,
        )
        ending.callback(self._process.wait, 10)
        ending.callback(self._process.stdin.close)
        for fd in fds:
            os.close(fd)

    def play(self, line: Line, conditions: Sequence[tuple[float, Condition]]) -> None:
        """Make a link something else at these times, in seconds from now, in order; return once it knows."""
        self._process.stdin.write(json.dumps([line.number, conditions]) + "\n")
        self._process.stdin.flush()
        if not self._process.stdout.readline():
            raise RuntimeError("nobody carries packets any more")

    def change(self, line: Line, condition: Condition) -> None:
        """Make a link something else now."""
        self.play(line, [(0.0, condition)])


class _Way:
    """One direction of a link: what waits to leave, and what is under way."""

    def __init__(self, source: int, target: int, condition: Condition) -> None:
        self.source, self.target = source, target
        self._condition = condition
        self._waiting: deque[bytes] = deque()
        self._n_bytes = 0
        self._left_bits = self._since = 0.0
        """Of the first that waits: what has not left of it yet, at that time."""
        self._under_way: deque[tuple[float, bytes]] = deque()

    def change(self, now: float, condition: Condition) -> None:
        self._leave(now)
        if self._waiting:
            self._left_bits -= (now - self._since) * 1e6 * self._condition.mbit
        self._condition, self._since = condition, now

    def take(self, now: float) -> None:
        with contextlib.suppress(OSError):
            packet = os.read(self.source, 1 << 16)
            if self._n_bytes + len(packet) > BUFFER:
                return
            if not self._waiting:
                self._begin(now, packet)
            self._waiting.append(packet)
            self._n_bytes += len(packet)

    def deliver(self, now: float) -> float:
        """Let arrive what is due; return when the next one is."""
        self._leave(now)
        while self._under_way and self._under_way[0][0] <= now:
            with contextlib.suppress(OSError):  # that end is not up yet, or is gone
                os.write(self.target, self._under_way.popleft()[1])
        return min(self._leaves(), self._under_way[0][0] if self._under_way else math.inf)

    def _begin(self, now: float, packet: bytes) -> None:
        self._since, self._left_bits = now, 8.0 * len(packet)

    def _leaves(self) -> float:
        if not self._waiting or not self._condition.mbit:
            return math.inf
        return self._since + self._left_bits / (1e6 * self._condition.mbit)

    def _leave(self, now: float) -> None:
        while (at := self._leaves()) <= now:
            packet = self._waiting.popleft()
            self._n_bytes -= len(packet)
            last = self._under_way[-1][0] if self._under_way else 0.0
            self._under_way.append((max(last, at + self._condition.rtt_ms / 2000), packet))
            if self._waiting:
                self._begin(at, self._waiting[0])


def carry(ends: Iterable[tuple[int, int, int, float, float]], cores: Sequence[int]) -> None:
    """Carry packets until nobody speaks to this process any more.

    `ends`: number of each link, its devices far and near, and what it is at first.
    """
    if cores:
        os.sched_setaffinity(0, cores)
    # A link does not wait for its turn on a core. Where that is not granted, what was measured of it tells.
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    links = {n: (_Way(far, near, now := Condition(*is_now)), _Way(near, far, now)) for n, far, near, *is_now in ends}
    ways = {way.source: way for pair in links.values() for way in pair}
    to_come: list[tuple[float, int, Condition]] = []
    while True:
        now = time.monotonic()
        while to_come and to_come[0][0] <= now:
            _, number, condition = to_come.pop(0)
            for way in links[number]:
                way.change(now, condition)
        due = min([*(way.deliver(now) for way in ways.values()), *(at for at, _, _ in to_come[:1])])
        wait = None if math.isinf(due) else max(0.0, due - time.monotonic())
        ready = select.select([sys.stdin, *ways], [], [], wait)[0]
        now = time.monotonic()
        for fd in ready:
            if fd in ways:
                ways[fd].take(now)
        if sys.stdin in ready:
            line = sys.stdin.readline()
            if not line:
                return
            number, conditions = json.loads(line)
            to_come = [entry for entry in to_come if entry[1] != number]
            to_come += [(now + after, number, Condition(*condition)) for after, condition in conditions]
            to_come.sort(key=lambda entry: entry[0])
            print(flush=True)  # noqa: T201  for the parent, which waits for it


def _tun(line: Line, pid: int) -> int:
    """Make a TUN device in the namespace of a process, and return what carries its packets."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    name = fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"harlink%d", IFF_TUN | IFF_NO_PI))[:16]
    _ip("link", "set", name.rstrip(b"\0").decode(), "netns", str(pid), "name", line.device)
    return fd


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


if __name__ == "__main__":
    carry(*json.loads(sys.argv[1]))
