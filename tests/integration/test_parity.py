"""Live equals replay: one recording, through every way into a running agent, and from a file, gives the same labels."""

import array
import fcntl
import json
import os
import pty
import random
import subprocess
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as paho
import pytest
from live import Agent, Listener, wait_until, witmotion_frame
from mosquitto import Mosquitto
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from agent.adapters.simulated_imu import SimulatedImu
from agent.core.decoders.har1 import cobs_encode, encode_har1, to_counts
from agent.core.decoders.witmotion import ACC_SCALE, GYRO_SCALE
from agent.core.gait import parse_script
from agent.core.harraw import RawRecord, RecordReader
from agent.records import SampleBatch

RATE_HZ = 50
SECONDS = 60
SCRIPT = "walking:20,sitting:8,walking_upstairs:10"
GAP = range(1210, 1260)
"""A second that the sensor did not deliver: the stream is cut there."""
DROPPED = 2203
"""One sample that got lost: bridged by a straight line."""
PREDICTION = (
    *("v", "device", "seq", "t0", "t1", "label", "confidence", "scores"),
    *("novelty", "known", "activity", "origin", "model"),
)
HAR1_SCALES = (float(np.float32(4 / 32768)), float(np.float32(8 / 32768)))
START_2026_MS = round((datetime(2026, 5, 4, tzinfo=UTC) - datetime(2000, 1, 1, tzinfo=UTC)).total_seconds() * 1000)


@dataclass
class Way:
    """One way of the recording into the agent.

    `t_ms`, `values`: the recording as its format carries it. `pieces`: what is sent, whole frames or payloads.
    `settings`: of its section of the configuration; MQTT where there are none. `missed`: what its numbers tell.
    """

    name: str
    t_ms: np.ndarray
    values: np.ndarray
    pieces: list[bytes]
    settings: str = ""
    units: tuple[str, str] = ("g", "rad/s")
    labels: list[str] = field(default_factory=list)
    missed: int = 0

    def recording(self) -> str:
        """The same as a file: every digit that a float32 has."""
        head = f"# format: har-recording/1\n# device: {self.name}\n# rate_hz: 50\n"
        head += f"# acc_unit: {self.units[0]}\n# gyro_unit: {self.units[1]}\nt,ax,ay,az,gx,gy,gz,label\n"
        rows = zip(self.t_ms.tolist(), self.values.tolist(), self.labels, strict=True)
        return head + "".join(f"{t / 1000:.3f},{','.join(f'{v:.9g}' for v in row)},{label}\n" for t, row, label in rows)


class Person:
    """The recording: int ms (n,), float64 (n, 6) and labels, with its holes, and the places of its samples."""

    def __init__(self) -> None:
        imu = SimulatedImu("person", parse_script(SCRIPT), seed=7, duration_s=SECONDS)
        values, labels, label = [], [], ""
        while (decoded := imu.poll(0)) is not None:
            for batch in decoded:
                assert isinstance(batch, SampleBatch)
                changes = {change.seq: change.label or "" for change in batch.truth}
                for seq, row in enumerate(batch.values.astype(np.float64), batch.seq0):
                    label = changes.get(seq, label)
                    values.append(row)
                    labels.append(label)
        lost = {*GAP, DROPPED}
        self.places = np.array([k for k in range(len(values)) if k not in lost])
        self.values = np.array(values)[self.places]
        self.labels = [labels[k] for k in self.places]
        self.even_ms = self.places * 1000 // RATE_HZ
        # A sensor's own clock is never quite even.
        self.uneven_ms = self.even_ms + np.random.default_rng(3).integers(-3, 4, len(self.places))
        self.counted_ms = np.arange(len(self.places)) * 1000 // RATE_HZ
        """What becomes of the holes where no time is sent: nothing."""


def pieces(n: int, rng: random.Random, most: int, places: np.ndarray | None = None) -> list[slice]:
    """Cut 0 … n at random, and wherever `places` have a hole."""
    out, at = [], 0
    while at < n:
        end = min(n, at + rng.randint(1, most))
        if places is not None:
            holes = np.flatnonzero(np.diff(places[at:end]) != 1)
            end = at + int(holes[0]) + 1 if len(holes) else end
        out.append(slice(at, end))
        at = end
    return out


def text_lines(t_ms: np.ndarray, values: np.ndarray, line: Callable[[int, list[float]], str]) -> list[bytes]:
    return [line(t, row).encode() for t, row in zip(t_ms.tolist(), values.tolist(), strict=True)]


def witmotion_clock(t_ms: int) -> bytes:
    at = datetime(2000, 1, 1, tzinfo=UTC) + timedelta(milliseconds=t_ms)
    now = [at.year - 2000, at.month, at.day, at.hour, at.minute, at.second]
    return witmotion_frame(0x50, bytes(now) + (at.microsecond // 1000).to_bytes(2, "little"))


def rounded(values: np.ndarray, digits: int) -> np.ndarray:
    return np.round(values, digits).astype(np.float32)


def serial_ways(person: Person) -> Iterator[Way]:
    """The recording as each format of a serial port carries it."""
    p, n = person, len(person.places)
    five = rounded(p.values, 5)

    def fields(row: list[float]) -> str:
        return ",".join(f"{v:.5f}" for v in row)

    lines = text_lines(p.uneven_ms, five, lambda t, row: f"{t},{fields(row)}\n")
    yield Way("csv-ms", p.uneven_ms, five, lines, 'format = "csv"\ntime = "ms"')
    lines = text_lines(p.counted_ms, five, lambda _, row: fields(row).replace(",", "\t") + "\r\n")
    yield Way("csv-counted", p.counted_ms, five, lines, 'format = "csv"\nrate_hz = 50')

    # A sketch that prints the units of its library.
    metric = rounded(p.values * ([9.80665] * 3 + [180 / np.pi] * 3), 4)
    keys = ("ax", "ay", "az", "gx", "gy", "gz")

    def json_line(t: int, row: list[float]) -> str:
        return json.dumps({"t": t / 1000, **{k: round(v, 4) for k, v in zip(keys, row, strict=True)}}) + "\n"

    units = 'acc_unit = "m/s2"\ngyro_unit = "deg/s"'
    lines = text_lines(p.uneven_ms, metric, json_line)
    yield Way("json", p.uneven_ms, metric, lines, f'format = "json"\n{units}', ("m/s2", "deg/s"))

    counts = to_counts(p.values.astype(np.float32), ACC_SCALE, GYRO_SCALE)
    carried = counts * np.array([ACC_SCALE] * 3 + [GYRO_SCALE] * 3, np.float32)
    sample = [
        witmotion_frame(0x51, c[:3].tobytes()) + witmotion_frame(0x52, c[3:].tobytes()) + witmotion_frame(0x53, b"")
        for c in counts.astype("<i2")
    ]
    yield Way("witmotion", p.counted_ms, carried, sample, 'format = "witmotion"\nrate_hz = 50')
    stamped = p.uneven_ms + START_2026_MS
    timed = [witmotion_clock(t) + frames for t, frames in zip(stamped.tolist(), sample, strict=True)]
    yield Way("witmotion-clock", stamped, carried, timed, 'format = "witmotion"\ntime = "ms"')

    counts = to_counts(p.values.astype(np.float32), *HAR1_SCALES)
    cuts = pieces(n, random.Random(1), 255, p.places)
    blocks = [cobs_encode(har1(p, counts, cut)) for cut in cuts]
    yield Way("har1", p.even_ms, har1_values(counts), blocks, 'format = "har1"', missed=len(GAP) + 1)


def mqtt_ways(person: Person) -> Iterator[Way]:
    """The recording as payloads."""
    p, n = person, len(person.places)
    five = rounded(p.values, 5)
    rows = np.round(five.astype(np.float64), 5).tolist()
    rng = random.Random(2)

    def payload(body: dict[str, Any]) -> bytes:
        return json.dumps(body).encode()

    cuts = pieces(n, rng, 300, p.places)
    even = [payload({"t0": int(p.even_ms[c.start]) / 1000, "rate_hz": 50, "samples": rows[c]}) for c in cuts]
    yield Way("mqtt-rate", p.even_ms, five, even)
    times = [payload({"t": (p.uneven_ms[c] / 1000).tolist(), "samples": rows[c]}) for c in pieces(n, rng, 300)]
    yield Way("mqtt-times", p.uneven_ms, five, times)
    keys = ("ax", "ay", "az", "gx", "gy", "gz")
    singles = [
        payload({"t": t / 1000, **dict(zip(keys, r, strict=True))})
        for t, r in zip(p.uneven_ms.tolist(), rows, strict=True)
    ]
    yield Way("mqtt-single", p.uneven_ms, five, singles)
    counts = to_counts(p.values.astype(np.float32), *HAR1_SCALES)
    frames = [har1(p, counts, cut) for cut in pieces(n, rng, 255, p.places)]
    yield Way("mqtt-har1", p.even_ms, har1_values(counts), frames, missed=len(GAP) + 1)


def har1(p: Person, counts: np.ndarray, cut: slice) -> bytes:
    start = cut.start
    period_ns = 1_000_000_000 // RATE_HZ
    return encode_har1(int(p.places[start]), int(p.even_ms[start]) * 1000, period_ns, counts[cut], *HAR1_SCALES)


def har1_values(counts: np.ndarray) -> np.ndarray:
    return counts * np.array([HAR1_SCALES[0]] * 3 + [HAR1_SCALES[1]] * 3, np.float32)


class Line:
    """A pty that takes bytes as fast as they are read at its other end."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        tty.setraw(self.slave)
        self.path = os.ttyname(self.slave)
        # Whoever opens the port throws away what waits there: once this is gone, the port is open.
        os.write(self.master, b"\n")
        wait_until(self._waiting, what="the pty")

    def wait_for_reader(self) -> None:
        wait_until(lambda: not self._waiting(), what=f"a reader of {self.path}")

    def write(self, data: bytes, rng: random.Random) -> None:
        """Write it all, in pieces that have nothing to do with its frames."""
        left = memoryview(data)
        while left:
            left = left[os.write(self.master, left[: rng.randint(1, 4000)]) :]

    def close(self) -> None:
        os.close(self.master)
        os.close(self.slave)

    def _waiting(self) -> int:
        n = array.array("i", [0])
        fcntl.ioctl(self.slave, termios.FIONREAD, n)
        return n[0]


@pytest.fixture(scope="module")
def ways() -> list[Way]:
    person = Person()
    ways = [*serial_ways(person), *mqtt_ways(person)]
    for way in ways:
        way.labels = person.labels
    return ways


@pytest.fixture(scope="module")
def replayed(ways: list[Way], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Predictions of `har-agent replay` from files, by device, as canonical JSON."""
    folder = tmp_path_factory.mktemp("recordings")
    files = []
    for way in ways:
        files.append(folder / f"{way.name}.csv")
        files[-1].write_text(way.recording())
    return replay(files)


def replay(files: list[Path]) -> dict[str, list[str]]:
    ran = subprocess.run(
        [sys.executable, "-m", "agent", "replay", *map(str, files)], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    return by_device(json.loads(line) for line in ran.stdout.splitlines())


def by_device(predictions: Iterator[dict[str, Any]]) -> dict[str, list[str]]:
    """Predictions, in order, as JSON of what live and replay have in common."""
    found: dict[str, list[str]] = {}
    for p in sorted(predictions, key=lambda p: (p["device"], p["seq"])):
        found.setdefault(p["device"], []).append(json.dumps({key: p[key] for key in PREDICTION}))
    return found


def config(ways: list[Way], lines: dict[str, Line], port: int) -> str:
    sections = [
        f'[serial.{way.name}]\nport = "{lines[way.name].path}"\nsilence_s = 60\n{way.settings}\n'
        for way in ways
        if way.settings
    ]
    return "\n".join(
        [
            "queue_s = 3600",  # of [agent], which comes first
            f'[broker.local]\nurl = "mqtt://127.0.0.1:{port}"',
            '[mqtt_in]\nfilter = "imu/{device}/samples"\nqos = 1',
            *sections,
        ]
    )


def send(ways: list[Way], lines: dict[str, Line], port: int) -> None:
    """Send every way's pieces at once, as fast as they are taken."""

    def over_line(way: Way) -> None:
        lines[way.name].write(b"".join(way.pieces), random.Random(way.name))

    def over_mqtt() -> None:
        client = paho.Client(CallbackAPIVersion.VERSION2, "sensors", protocol=MQTTProtocolVersion.MQTTv5)
        client.max_inflight_messages_set(200)
        client.connect("127.0.0.1", port)
        client.loop_start()
        queues = {way.name: iter(way.pieces) for way in ways if not way.settings}
        sent = []
        while queues:
            for name, queue in list(queues.items()):
                piece = next(queue, None)
                if piece is None:
                    del queues[name]
                else:
                    sent.append(client.publish(f"imu/{name}/samples", piece, 1))
        for each in sent:
            each.wait_for_publish(30)
        client.disconnect()
        client.loop_stop()

    threads = [threading.Thread(target=over_line, args=[way]) for way in ways if way.settings]
    threads.append(threading.Thread(target=over_mqtt))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def recorded(folder: Path) -> int:
    """Bytes of sensors in the raw recordings of a folder."""
    total = 0
    for path in folder.rglob("*.harraw"):
        records = RecordReader().feed(path.read_bytes().partition(b"\n")[2])
        total += sum(len(r.data) for r in records if isinstance(r, RawRecord) and r.data)
    return total


@pytest.fixture
def lines(ways: list[Way]) -> Iterator[dict[str, Line]]:
    with ExitStack() as closing:
        opened = {way.name: Line() for way in ways if way.settings}
        for line in opened.values():
            closing.callback(line.close)
        yield opened


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path, "allow_anonymous true\nmax_queued_messages 0\nlog_type subscribe") as broker:
        yield broker


def wait_for_sources(lines: dict[str, Line], broker: Mosquitto) -> None:
    wait_until(lambda: "imu/+/samples" in broker.log.read_text(), what="the subscription")
    for line in lines.values():
        line.wait_for_reader()


def test_every_way_into_a_running_agent_gives_the_labels_of_a_replay(
    ways: list[Way], replayed: dict[str, list[str]], lines: dict[str, Line], broker: Mosquitto, tmp_path: Path
) -> None:
    expected = sum(map(len, replayed.values()))
    assert {json.loads(p)["label"] for p in replayed["har1"]} >= {"walking", "sitting"}
    listener = Listener(broker.port)
    agent = Agent(tmp_path, config(ways, lines, broker.port))
    agent.start()
    try:
        wait_for_sources(lines, broker)
        send(ways, lines, broker.port)
        wait_until(lambda: listener.count() >= expected, 30, f"{expected} predictions")
        assert agent.stop() == 0, agent.tail()
        telemetry = wait_until(lambda: listener.state("har/board/telemetry"))
        live = by_device(iter(listener.predictions.values()))
    finally:
        agent.kill()
        listener.close()

    assert live.keys() == replayed.keys()
    for name, predictions in replayed.items():
        assert live[name] == predictions, name
    assert max(listener.seen.values()) == 1
    assert telemetry["samples"] == sum(len(way.t_ms) for way in ways)
    assert telemetry["bad_frames"] == {"missed_samples": sum(way.missed for way in ways)}
    holes = sum(bool((np.diff(way.t_ms) > 250).any()) for way in ways)
    assert telemetry["gaps"] == {"missing_samples": holes}


def test_raw_recordings_replay_to_the_labels_of_the_samples_in_them(
    ways: list[Way], replayed: dict[str, list[str]], lines: dict[str, Line], broker: Mosquitto, tmp_path: Path
) -> None:
    path, out = tmp_path / "config.toml", tmp_path / "raw"
    path.write_text("[agent]\n" + config(ways, lines, broker.port))
    log = tmp_path / "record.log"
    with log.open("wb") as to:
        recorder = subprocess.Popen(
            [sys.executable, "-m", "agent", "record", "--config", str(path), "--raw", "--out", str(out)],
            stdout=to,
            stderr=to,
        )
    try:
        wait_for_sources(lines, broker)
        send(ways, lines, broker.port)
        total = sum(len(piece) for way in ways for piece in way.pieces)
        wait_until(lambda: recorded(out) >= total, 30, "the bytes on disk")
        recorder.terminate()
        assert recorder.wait(10) == 0, log.read_text()
        assert recorded(out) == total
    finally:
        recorder.kill()
        recorder.wait()
    assert replay(sorted(out.rglob("*.harraw"))) == replayed
