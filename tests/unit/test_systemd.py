"""The service manager, played by a real datagram socket."""

import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from fakes import FakeClock

from agent.adapters.systemd import Notifier


class Manager:
    """Listens where NOTIFY_SOCKET points."""

    def __init__(self, address: str) -> None:
        self.environ = {"NOTIFY_SOCKET": address}
        self.wire = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.wire.bind("\0" + address[1:] if address.startswith("@") else address)
        self.wire.setblocking(False)

    def heard(self) -> list[str]:
        messages = []
        while True:
            try:
                messages.append(self.wire.recv(65536).decode())
            except BlockingIOError:
                return messages


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@har-{uuid.uuid4()}"
    manager = Manager(address)
    yield manager
    manager.wire.close()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_what_systemd_is_told(manager: Manager, clock: FakeClock):
    clock.now_ns = 12_345_678
    notifier = Notifier(manager.environ, clock)
    notifier.ready()
    notifier.status("2 streams\nbroker local")
    notifier.reloading()
    notifier.ready()
    notifier.stopping()
    notifier.watchdog()

    assert manager.heard() == [
        "READY=1",
        "STATUS=2 streams broker local",
        "RELOADING=1\nMONOTONIC_USEC=12345",
        "READY=1",
        "STOPPING=1",
    ]


def test_the_same_status_is_sent_once(manager: Manager, clock: FakeClock):
    notifier = Notifier(manager.environ, clock)
    for text in ("a", "a", "b", "a", "é" * 5000 + "\udcff"):
        notifier.status(text)

    assert manager.heard() == ["STATUS=a", "STATUS=b", "STATUS=a", "STATUS=" + "é" * 1000]


def test_a_sign_of_life_at_half_of_the_time_at_most(manager: Manager, clock: FakeClock):
    environ = manager.environ | {"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid())}
    notifier = Notifier(environ, clock)
    pings = []
    for _ in range(12):
        notifier.watchdog()
        pings.append(len(manager.heard()))
        clock.now_ns += 1_000_000_000

    assert notifier.watchdog_s == 10
    assert pings == [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]


def test_a_sign_that_was_not_heard_is_given_again(manager: Manager, clock: FakeClock, tmp_path: Path):
    environ = {"NOTIFY_SOCKET": str(tmp_path / "later"), "WATCHDOG_USEC": "10000000"}
    notifier = Notifier(environ, clock)
    notifier.watchdog()
    later = Manager(environ["NOTIFY_SOCKET"])
    notifier.watchdog()

    assert later.heard() == ["WATCHDOG=1"]
    later.wire.close()


@pytest.mark.parametrize(
    "watchdog",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "-1"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "10", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "10", "WATCHDOG_PID": "x"},
    ],
)
def test_no_watchdog_for_this_process(manager: Manager, clock: FakeClock, watchdog: dict[str, str]):
    notifier = Notifier(manager.environ | watchdog, clock)
    notifier.watchdog()

    assert notifier.watchdog_s is None
    assert manager.heard() == []


@pytest.mark.parametrize(
    "address", [None, "", "@", "relative", "vsock:2:1234", "/nowhere/at/all", "/" + "x" * 500, "/a\0b"]
)
def test_nobody_listens_and_nothing_is_raised(clock: FakeClock, address: str | None):
    environ = {"WATCHDOG_USEC": "1000000"} | ({} if address is None else {"NOTIFY_SOCKET": address})
    notifier = Notifier(environ, clock)
    notifier.ready()
    notifier.status("x")
    notifier.watchdog()
    notifier.reloading()
    notifier.stopping()


def test_a_full_socket_does_not_hold_the_service_up(manager: Manager, clock: FakeClock):
    notifier = Notifier(manager.environ, clock)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        other.connect(manager.wire.getsockname())
        with suppress(BlockingIOError):
            while other.send(b"X=1"):
                pass
        notifier.ready()

    assert "READY=1" not in manager.heard()
