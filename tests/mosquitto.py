"""A real mosquitto on the loopback, and certificates for it: what the tests of MQTT run against."""

import contextlib
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

LOOPBACK = "127.0.0.1"
_DEADLINE_S = 10.0
_NEVER_EPHEMERAL = 20_000, 32_000
"""Below what Linux gives to outgoing connections: a broker that is killed must get its port again."""
PERSISTENT = """allow_anonymous true
max_queued_messages 0
persistence true
autosave_interval 1
autosave_on_changes true
persistence_location {folder}/
"""
"""Configuration of a broker that keeps what it has acknowledged when it is killed; `folder` must exist."""
# Debian keeps it where only root's PATH looks.
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])


class Mosquitto:
    """A broker in a process of its own, from `start` to `stop`; `kill` and `start` again keep its port.

    `config`: lines beside the listener's; by default anybody may do anything. It keeps nothing across a restart unless
    they say so, as PERSISTENT does.
    """

    host = LOOPBACK

    def __init__(self, folder: Path, config: str = "allow_anonymous true", port: int | None = None) -> None:
        """`folder`: exists, and is the test's own. `port`: a free one if not given."""
        self.port = port or free_port()
        self.log = folder / f"mosquitto-{self.port}.log"
        self._config = folder / f"mosquitto-{self.port}.conf"
        # Root may read what it wrote: mosquitto would become a user that cannot, and drop what it has bound.
        user = "user root\n" if os.geteuid() == 0 else ""
        self._config.write_text(f"{user}log_dest stderr\nlistener {self.port} {LOOPBACK}\n{config}\n")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"mqtt://{self.host}:{self.port}"

    def start(self) -> Self:
        """Start, and wait until it accepts connections."""
        binary = shutil.which("mosquitto", path=_PATH)
        assert binary is not None, "no mosquitto: run tools/setup.sh dev"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen([binary, "-c", str(self._config)], stdout=log, stderr=log)
        deadline = time.monotonic() + _DEADLINE_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, self.port), 1):
                return self
            said = self.log.read_text()
            assert self._process.poll() is None, f"mosquitto did not start:\n{self._config.read_text()}\n{said}"
            assert time.monotonic() < deadline, f"mosquitto does not listen:\n{said}"
            time.sleep(0.005)

    def stop(self) -> None:
        """End it properly. Idempotent."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it with -9."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Let it neither answer nor close anything, until `resume`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def reload(self) -> None:
        """Let it read its configuration, ACL and certificates again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def resume(self) -> None:
        """End `pause`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            process.wait(_DEADLINE_S)


class Authority:
    """A certificate authority of the test's own, made with the openssl command."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._name = name
        self.key, self.certificate = folder / f"{name}.key", folder / f"{name}.crt"
        _openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                 "-subj", f"/CN={name}", "-keyout", self.key, "-out", self.certificate)  # fmt: skip
        self._database = folder / f"{name}.index"
        self._database.touch()
        self._config = folder / f"{name}.cnf"
        self._config.write_text(
            f"[ca]\ndefault_ca = a\n[a]\ndatabase = {self._database}\nnew_certs_dir = {folder}\nrand_serial = yes\n"
            "default_md = sha256\npolicy = p\nunique_subject = no\ncopy_extensions = copy\n[p]\ncommonName = supplied\n"
        )

    def issue(self, name: str, host: str = "localhost", days: tuple[int, int] = (-1, 1)) -> tuple[Path, Path]:
        """Issue a certificate for a host, valid from and to these days from now; return it and its key."""
        key, request, certificate = (self._folder / f"{self._name}-{name}.{end}" for end in ("key", "csr", "crt"))
        _openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={host}",
                 "-addext", f"subjectAltName=DNS:{host}", "-keyout", key, "-out", request)  # fmt: skip
        start, end = (f"{datetime.now(UTC) + timedelta(days=n):%Y%m%d%H%M%SZ}" for n in days)
        _openssl("ca", "-batch", "-notext", "-config", self._config, "-cert", self.certificate, "-keyfile", self.key,
                 "-startdate", start, "-enddate", end, "-in", request, "-out", certificate)  # fmt: skip
        return certificate, key


def until(condition: Callable[[], Any], within_s: float = 10) -> Any:
    """Wait for something that real processes do in their own time, and return it."""
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)
    return found


def free_port() -> int:
    """Return a port of the loopback that nobody listens on, and that no connection to elsewhere is given meanwhile."""
    for port in random.SystemRandom().sample(range(*_NEVER_EPHEMERAL), 100):
        with contextlib.suppress(OSError), socket.create_server((LOOPBACK, port)):
            return port
    raise AssertionError("no port is free")


@contextlib.contextmanager
def scripted_server(*answers: bytes) -> Iterator[int]:
    """Listen, answer what comes first on a connection with the first of `answers`, and so on; then be silent.

    Gives the port. What is sent in one go must come in one.
    """
    stop = threading.Event()

    def serve(server: socket.socket) -> None:
        left: dict[socket.socket, list[bytes]] = {}
        while not stop.is_set():
            for ready in select.select([server, *left], [], [], 0.01)[0]:
                if ready is server:
                    left[server.accept()[0]] = list(answers)
                    continue
                with contextlib.suppress(OSError):
                    if ready.recv(65536):
                        if left[ready]:
                            ready.sendall(left[ready].pop(0))
                        continue
                ready.close()
                del left[ready]
        for wire in left:
            wire.close()

    with socket.create_server((LOOPBACK, 0)) as server:
        thread = threading.Thread(target=serve, args=[server], name="scripted-server")
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            stop.set()
            thread.join(10)


def _openssl(*arguments: object) -> None:
    ran = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=30)
    assert ran.returncode == 0, ran.stderr
