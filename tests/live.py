"""A real board in miniature: `har-agent run` as a process, a sensor on a pty, and a subscriber that misses nothing.

Used by tests/faults and by tools/bench: what a fault costs is counted from outside, by a client that knows nothing of
the agent but its topics.
"""

import contextlib
import json
import os
import pty
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import tty
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.adapters.simulated_imu import SimulatedImu
from agent.core.decoders.har1 import cobs_encode, encode_har1, to_counts
from agent.core.decoders.witmotion import ACC_SCALE, GYRO_SCALE
from agent.core.gait import parse_script
from agent.records import SampleBatch

RATE_HZ = 50.0


def wait_until(condition: Callable[[], Any], timeout_s: float = 20.0, what: str = "") -> Any:
    """Return what `condition` gives once that is true; fail after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        got = condition()
        if got:
            return got
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain for {what or condition}"
        time.sleep(0.02)


def samples(seconds: float, script: str = "walking:20,sitting:10", seed: int = 0) -> np.ndarray:
    """Float64 (n, 7): time in seconds, then six channels, of a simulated person at 50 Hz."""
    imu = SimulatedImu("simulated", parse_script(script), seed=seed, duration_s=seconds)
    parts = []
    while (decoded := imu.poll(0)) is not None:
        parts += [np.column_stack([b.t_ns / 1e9, b.values]) for b in decoded if isinstance(b, SampleBatch)]
    return np.concatenate(parts)


def csv_line(row: np.ndarray) -> bytes:
    """One sample as a sketch prints it: milliseconds and six numbers."""
    return (f"{row[0] * 1000:.0f}," + ",".join(f"{v:.5f}" for v in row[1:]) + "\n").encode()


def json_line(row: np.ndarray) -> bytes:
    """One sample as an object on a line."""
    return json.dumps(dict(zip(("t", "ax", "ay", "az", "gx", "gy", "gz"), row.tolist(), strict=True))).encode() + b"\n"


def witmotion_frame(kind: int, body: bytes) -> bytes:
    """One frame of a WitMotion sensor: up to eight bytes of a type, and the sum."""
    frame = bytes([0x55, kind]) + body.ljust(8, b"\0")
    return frame + bytes([sum(frame) & 0xFF])


def witmotion_sample(row: np.ndarray) -> bytes:
    """One sample as the frames of a WitMotion sensor that sends no time."""
    (counts,) = to_counts(row[None, 1:].astype(np.float32), ACC_SCALE, GYRO_SCALE).astype("<i2")
    return witmotion_frame(0x51, counts[:3].tobytes()) + witmotion_frame(0x52, counts[3:].tobytes())


def har1_block(row: np.ndarray) -> bytes:
    """One sample as a har1 frame for a serial line."""
    counts = to_counts(row[None, 1:].astype(np.float32), 1 / 8192, 1 / 4096)
    frame = encode_har1(round(row[0] * RATE_HZ), round(row[0] * 1e6), 20_000_000, counts, 1 / 8192, 1 / 4096)
    return cobs_encode(frame)


class Sensor:
    """A device that prints a line a sample on a pty, behind a link that unplugging removes.

    Its clock and its person go on while it is unplugged, as they do where the cable is pulled from a powered sensor.
    `speed`: how much faster than 50 Hz lines come; times in them stay those of 50 Hz. One that is faster waits while
    the line is full, because no reader was meant to be that fast; a real one loses what the line cannot take.
    """

    def __init__(self, folder: Path, name: str = "imu", speed: float = 1.0) -> None:
        self.path = folder / f"tty-{name}"
        self.speed = speed
        self.sent = 0
        self.encode: Callable[[np.ndarray], bytes] = csv_line
        self._data = samples(300)
        self._master: int | None = None
        self._slave: int | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"sensor-{name}")
        self.plug()
        self._thread.start()

    def plug(self) -> None:
        """Make a new pty and let the link point to it."""
        with self._lock:
            self._master, self._slave = pty.openpty()
            tty.setraw(self._slave)
            os.set_blocking(self._master, False)
            new = self.path.with_suffix(".new")
            new.symlink_to(os.ttyname(self._slave))
            new.replace(self.path)

    def unplug(self) -> None:
        """Close both ends; whoever reads gets an error."""
        with self._lock:
            for fd in (self._master, self._slave):
                if fd is not None:
                    os.close(fd)
            self._master = self._slave = None
            self.path.unlink(missing_ok=True)

    def write(self, data: bytes) -> int:
        """Put bytes on the line, in the sensor's own time or not, and return how many it took; of no line, all."""
        with self._lock:
            if self._master is not None:
                try:
                    return os.write(self._master, data)
                except BlockingIOError:
                    return 0
                except OSError:
                    return len(data)
        return len(data)

    def pour(self, data: bytes) -> None:
        """Put all of it on the line, as fast as it is read at the other end."""
        left = memoryview(data)
        while left:
            with self._lock, contextlib.suppress(BlockingIOError):
                assert self._master is not None
                left = left[os.write(self._master, left) :]
                continue
            time.sleep(0.001)  # as long as a full buffer takes to have some room again

    def close(self) -> None:
        """End."""
        self._stop.set()
        self._thread.join()
        self.unplug()

    def _run(self) -> None:
        began, k = time.monotonic(), 0
        n, rest = len(self._data), b""
        while not self._stop.is_set():
            due = int((time.monotonic() - began) * RATE_HZ * self.speed)
            while k < due or rest:
                if not rest:
                    row = self._data[k % n].copy()
                    row[0] = k / RATE_HZ
                    rest = self.encode(row)
                    k += 1
                taken = self.write(rest)
                rest = rest[taken:] if self.speed > 1 else b""
                if not taken and rest:
                    # Its clock stands still meanwhile, or it would come all at once later.
                    began = time.monotonic() - k / (RATE_HZ * self.speed)
                    break
            self.sent = k
            self._stop.wait(0.02)


class Listener:
    """A subscriber with a persistent session that counts every prediction by its id."""

    def __init__(
        self,
        port: int,
        client_id: str = "listener",
        root: str = "har",
        host: str = "127.0.0.1",
        tls: tuple[Path, Path, Path] | None = None,
        also: str = "",
    ) -> None:
        """`tls`: the authority's certificate, and the listener's own with its key. `also`: another topic filter."""
        self.seen: Counter[str] = Counter()
        self.predictions: dict[str, dict[str, Any]] = {}
        self.retained: dict[str, Any] = {}
        self.messages: list[tuple[str, bytes]] = []
        self.arrivals: list[tuple[float, str, bool]] = []
        """When each prediction came, repeats included, its id, and whether it was marked historical."""
        self._differing: set[str] = set()
        self.connects = 0
        self._lock = threading.Lock()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.on_connect = self._on_connect
        self._client.on_message = self._on_message
        self._client.reconnect_delay_set(1, 1)
        if tls:
            authority, certificate, key = map(str, tls)
            self._client.tls_set(authority, certificate, key)
        self._root = root
        self._also = also
        session = Properties(PacketTypes.CONNECT)
        session.SessionExpiryInterval = 3600
        self._client.connect_async(host, port, 10, clean_start=False, properties=session)
        self._client.loop_start()

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()

    def count(self) -> int:
        """Distinct predictions so far."""
        with self._lock:
            return len(self.seen)

    def state(self, topic: str) -> Any:
        """Latest message on `topic`, decoded; None if none came."""
        with self._lock:
            return self.retained.get(topic)

    def ids(self) -> set[str]:
        """Ids of all predictions that came."""
        with self._lock:
            return set(self.seen)

    def repeats(self) -> int:
        """How often a prediction came that had come before."""
        with self._lock:
            return sum(self.seen.values()) - len(self.seen)

    def differing(self) -> list[str]:
        """Ids whose repeats say something else than what came first, but for `historical`."""
        with self._lock:
            return sorted(self._differing)

    def health_codes(self, agent: str = "board") -> list[set[str]]:
        """Codes of every health message of `agent` that came, in order: what the broker got to know."""
        with self._lock:
            told = [
                json.loads(body) for topic, body in self.messages if topic == f"{self._root}/{agent}/health" and body
            ]
        return [{reason["code"] for reason in message["reasons"]} for message in told]

    def last(self) -> dict[str, Any]:
        """The newest prediction."""
        with self._lock:
            return next(reversed(self.predictions.values()))

    def holes(self) -> list[str]:
        """Ids that must have been made, since later ones of the same run and device were, but never came."""
        return holes(self.ids())

    def _on_connect(self, client: paho.Client, *_: Any) -> None:
        self.connects += 1
        client.subscribe(f"{self._root}/#", 1)
        if self._also:
            client.subscribe(self._also, 1)

    def _on_message(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        try:
            body = json.loads(message.payload) if message.payload else None
        except ValueError:
            # What others send under the same root, such as a garbage command.
            body = None
        with self._lock:
            if message.topic.endswith("/prediction"):
                self.seen[body["id"]] += 1
                first = self.predictions.setdefault(body["id"], body)
                if first | {"historical": None} != body | {"historical": None}:
                    self._differing.add(body["id"])
                self.arrivals.append((time.monotonic(), body["id"], body["historical"]))
            else:
                self.retained[message.topic] = body
            self.messages.append((message.topic, bytes(message.payload)))


def holes(ids: Iterable[str]) -> list[str]:
    """Return the ids that must have been made, since later ones of the same run and device were, but are not there."""
    numbers: defaultdict[str, set[int]] = defaultdict(set)
    for name in ids:
        stream, _, seq = name.rpartition(":")
        numbers[stream].add(int(seq))
    return [f"{s}:{n}" for s, got in numbers.items() for n in range(max(got) + 1) if n not in got]


class Agent:
    """`har-agent run` as a process of its own, with a state folder that outlives it."""

    def __init__(self, folder: Path, config: str, name: str = "board", env: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.config = folder / f"{name}.toml"
        self.state = folder / f"{name}-state"
        self.run = folder / f"{name}-run"
        self.log = folder / f"{name}.log"
        self.run.mkdir(exist_ok=True)
        self.config.write_text(
            f'[agent]\nname = "{name}"\nstate_dir = "{self.state}"\nruntime_dir = "{self.run}"\n' + config
        )
        self._env = env or {}
        self.through: list[str] = []
        """A command that becomes the agent, such as one that enters a network namespace."""
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *args: str) -> None:
        """Start it; does not wait for anything."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.through, sys.executable, "-m", "agent", "run", "--config", str(self.config), *args],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._env},
            )

    def kill(self) -> None:
        """End it as a power cut would, but for the page cache."""
        assert self.process
        self.process.kill()
        self.process.wait()

    def stop(self, timeout_s: float = 20.0) -> int:
        """SIGTERM, and return the exit status."""
        assert self.process
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"it did not end on SIGTERM within {timeout_s:g} s\n{self.tail()}") from None

    def status(self) -> dict[str, Any]:
        """What this run says, or said, of itself in its runtime folder; empty before it has."""
        try:
            status = dict(json.loads((self.run / "status.json").read_text()))
        except FileNotFoundError:
            return {}
        return status if self.process is None or status["pid"] == self.process.pid else {}

    def health(self) -> set[str]:
        """Codes of the reasons that its health gives."""
        return {r["code"] for r in self.status().get("health", {}).get("reasons", ())}

    def stored(self) -> list[str]:
        """Ids in the outbox that it left; for an agent that does not run. Looks at a copy, which SQLite may repair."""
        with tempfile.TemporaryDirectory() as name:
            copied = Path(name) / "outbox.db"
            for end in ("", "-wal"):
                if (found := self.state / f"outbox.db{end}").exists():
                    shutil.copy(found, f"{copied}{end}")
            if not copied.exists():
                return []
            with contextlib.closing(sqlite3.connect(copied)) as db:
                rows = db.execute("SELECT payload FROM messages ORDER BY key").fetchall()
        return [json.loads(payload)["id"] for (payload,) in rows]

    def rss_mib(self) -> float:
        """Its resident memory now."""
        assert self.process
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS:"))

    def cpu_s(self) -> float:
        """Seconds of CPU that it has used."""
        assert self.process
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def why(self, code: str) -> str:
        """What its health says of `code`; empty if it says nothing."""
        reasons = self.status().get("health", {}).get("reasons", ())
        return next((r["text"] for r in reasons if r["code"] == code), "")

    def tail(self, lines: int = 40) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
