"""Faults of sensors and devices: unplugged, flooding, talking nonsense, too many; counted by a subscriber.

After each of them predictions go on by themselves, health has told the truth meanwhile, and nothing has grown.
"""

import json
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import paho.mqtt.client as paho
import psutil
import pytest
from live import (
    Agent,
    Listener,
    Sensor,
    csv_line,
    har1_block,
    json_line,
    samples,
    wait_until,
    witmotion_sample,
)
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from rehearsal import IMPATIENT, Rig, Scenario

FORMATS: Mapping[str, tuple[Callable[[np.ndarray], bytes], str]] = {
    "csv": (csv_line, 'time = "ms"'),
    "json": (json_line, ""),
    "witmotion": (witmotion_sample, "rate_hz = 50"),
    "har1": (har1_block, ""),
}
"""What a sensor of each format sends, and the settings of its section."""

HALF = {"csv": b"0.12,-3,", "json": b'{"t": 1, ', "witmotion": b"\x55\x51\x01", "har1": b"\x07\x01\x02\x03"}
"""Beginnings of frames that never end."""

PLAIN = "allow_anonymous true\nmax_queued_messages 0"
"""A broker that keeps nothing on disk: ten thousand messages would take it a minute otherwise."""

SECONDLY = "\n[telemetry]\ninterval_s = 1\n"
FIFTY_HZ = 1 / 50


def unplugged(rig: Rig) -> None:
    """A sensor that is unplugged again and again; the one beside it does not notice."""
    broker = rig.broker().start()
    listener = rig.listener(broker.port)
    rig.sensor(name="steady")
    loose = rig.sensor(name="loose")
    agent = rig.agent([broker.url], IMPATIENT + section(loose, "loose", 'time = "ms"'), device="steady")
    agent.start()
    more_of(listener, "loose", "steady")
    process = process_of(agent)
    before = process.num_threads(), process.num_fds()
    delays = []
    times = rig.many(4, 100)
    for _ in range(times):
        loose.unplug()
        time.sleep(rig.random.uniform(0.05, 0.5))  # how long it is away
        loose.plug()
        delays.append(more_of(listener, "loose"))
    loose.unplug()
    offline = wait_for_availability(listener, "loose", "offline")
    rig.told(agent, "source_away", "loose: ")
    loose.plug()
    delays.append(more_of(listener, "loose"))
    assert listener.state("har/loose/availability")["state"] == "online"
    rig.calm(agent)
    after = process.num_threads(), process.num_fds()
    rig.nothing_lost(agent, listener)

    rig.fact(f"unplugged {times + 1} times: predictions back after at most {max(delays):.1f} s")
    assert "loose" in offline["reason"]
    assert after == before
    gaps = agent.status()["telemetry"]["gaps"]
    assert gaps.pop("disconnected") == times + 1
    # The first line after opening may be the end of one, and its time a part of a time.
    assert gaps.pop("missing_samples", 0) <= times + 1
    assert gaps == {}
    assert unbroken(of(listener, "steady"))


def ten_megabytes_of_random_bytes(rig: Rig) -> None:
    """As fast as they are read, in every format: good frames are found again, and the sensor beside loses nothing."""
    broker = rig.broker().start()
    listener = rig.listener(broker.port)
    rig.sensor(name="steady")
    sensors = {name: sensor_of(rig, name) for name in FORMATS}
    sections = [section(sensor, name, settings_of(name)) for name, sensor in sensors.items()]
    agent = rig.agent([broker.url], IMPATIENT + "".join(sections), device="steady")
    agent.start()
    more_of(listener, "steady", *sensors)
    rss = agent.rss_mib()
    speeds = []
    size = rig.many(10 << 20, 100 << 20) // len(sensors)
    for sensor in sensors.values():
        began = time.monotonic()
        sensor.pour(rig.random.randbytes(size))
        speeds.append(size / 1e6 / (time.monotonic() - began))
    more_of(listener, *sensors)
    grown = agent.rss_mib() - rss
    rig.nothing_lost(agent, listener)

    bad = agent.status()["telemetry"]["bad_frames"]
    read = ", ".join(f"{name} {speed:.1f}" for name, speed in zip(FORMATS, speeds, strict=True))
    rig.fact(f"{size / 1e6:.1f} MB each, read at {read} MB/s")
    rig.fact(f"{grown:+.1f} MiB; {bad}")
    assert grown < 16
    assert unbroken(of(listener, "steady"))
    # What is no WitMotion frame is counted byte by byte; by chance one in 4,000 bytes looks like one.
    assert bad["bytes_outside_frames"] > 0.99 * size
    assert bad["bad_encoding"] > size / 300, "lines of csv and json"
    assert bad["bad_frame"] > size / 600, "blocks of har1"


def nonsense_for_a_while(rig: Rig) -> None:
    """The baud rate changes under way, or frames begin and never end: health says that nothing can be read."""
    broker = rig.broker().start()
    listener = rig.listener(broker.port)
    rig.sensor(name="steady")
    sensors = {name: sensor_of(rig, name) for name in FORMATS}
    sections = [section(sensor, name, settings_of(name)) for name, sensor in sensors.items()]
    config = IMPATIENT + "[mqtt_in]\nsilence_s = 1.5\n" + "".join(sections)
    agent = rig.agent([broker.url], config, device="steady")
    agent.start()
    more_of(listener, "steady", *sensors)
    rss = agent.rss_mib()
    nonsense = random.Random(5)
    for talk in (lambda _: nonsense.randbytes(300), lambda name: HALF[name] * 100):
        for name, sensor in sensors.items():
            sensor.encode = lambda _, name=name, talk=talk: talk(name)
        began = time.monotonic()
        for name in sensors:
            wait_for_availability(listener, name, "offline")
        told = time.monotonic() - began
        rig.told(agent, "source_silent", "check its format and baud")
        assert "no_source" not in agent.health()
        for name, sensor in sensors.items():
            sensor.encode = FORMATS[name][0]
        more_of(listener, *sensors)
        rig.fact(f"offline after {told:.1f} s")
    grown = agent.rss_mib() - rss
    rig.calm(agent)
    rig.nothing_lost(agent, listener)

    assert grown < 16
    assert unbroken(of(listener, "steady"))


def floods(rig: Rig) -> None:
    """A sensor that sends 10,000 samples a second is refused, costs little, and is taken once it behaves."""
    broker = rig.broker().start()
    listener = rig.listener(broker.port)
    rig.sensor(name="steady")
    wild = rig.sensor(200, "wild")
    wild.encode = lambda row: csv_us(row[0] / 200, row)
    agent = rig.agent([broker.url], IMPATIENT + section(wild, "wild", 'time = "us"'), device="steady")
    agent.start()
    rig.told(agent, "source_unusable", "Hz")
    degraded = listener.state("har/wild/availability")
    rss, cpu_s, began = agent.rss_mib(), agent.cpu_s(), time.monotonic()
    more_of(listener, "steady", n=rig.many(12, 60))
    cores = (agent.cpu_s() - cpu_s) / (time.monotonic() - began)
    grown = agent.rss_mib() - rss
    wild.close()
    tame = rig.sensor(5, "wild")
    tame.encode = lambda row: csv_us(row[0], row)
    back = more_of(listener, "wild")
    assert listener.state("har/wild/availability")["state"] == "online"
    rig.calm(agent)
    rig.nothing_lost(agent, listener)

    telemetry = agent.status()["telemetry"]
    rig.fact(f"10 kHz: {cores:.2f} cores, {grown:+.1f} MiB; taken {back:.1f} s after it was plugged in again")
    rig.fact(f"losses {telemetry['losses']}")
    assert degraded["state"] == "degraded"
    assert "1e+04 Hz" in degraded["reason"]
    assert cores < 0.6
    assert grown < 8
    assert telemetry["losses"]["unusable_rate"] > 10_000
    assert unbroken(of(listener, "steady"))


def ten_thousand_names(rig: Rig) -> None:
    """More devices than may be: the first ones are served, the others counted; who is silent makes room."""
    broker = rig.broker(PLAIN).start()
    listener = rig.listener(broker.port)
    rig.sensor(name="steady")
    known = [f"known-{n}" for n in range(5)]
    config = '[mqtt_in]\nfilter = "imu/{device}/samples"\nqos = 1\nmax_devices = 200\nsilence_s = 1\nidle_s = 6\n'
    agent = rig.agent([broker.url], IMPATIENT + SECONDLY + config, device="steady")
    agent.start()
    fleet = Fleet(broker.port, known)
    rig.ending.callback(fleet.close)
    more_of(listener, "steady", *known)
    rss, cpu_s = agent.rss_mib(), agent.cpu_s()
    for n in range(10_000):
        # Of half of them nothing can be read.
        fleet.send(f"crowd-{n}", fleet.payload(0, 1) if n % 2 else b"?")
    rig.told(agent, "too_many_devices", "mqtt_in.max_devices")
    fleet.send("x" * 65, b"the last one of the crowd")
    wait_until(lambda: counted(listener, "unexpected_topic"), 60, "the crowd to be counted")
    wait_until(lambda: streams(listener) == 1 + len(known), 30, "the crowd to be forgotten")
    grown, cpu_s = agent.rss_mib() - rss, agent.cpu_s() - cpu_s
    more_of(listener, *known)

    # There is room for as many others. Who was forgotten comes back: none of its numbers is used twice.
    others = [f"back-{n}" for n in range(190)]
    for n in range(2):
        for name in others:
            fleet.send(name, fleet.payload(0, 300))
        wait_until(lambda n=n: len(of(listener, "back-189")) == 3 * (n + 1), 10, "predictions of the last one")
        wait_until(lambda: listener.state("har/back-189/availability") is None, 20, "it to be forgotten")
    rig.stop(agent)

    telemetry = agent.status()["telemetry"]
    rig.fact(f"10,000 names: {grown:+.1f} MiB, {cpu_s:.1f} s of CPU; {telemetry['bad_frames']}")
    # As many as there was room for, and on a slow machine as many as took the place of the first ones.
    assert 9_000 < telemetry["bad_frames"]["too_many_devices"] <= 10_000 - (200 - len(known))
    assert telemetry["bad_frames"]["not_json"] >= 97
    assert telemetry["drops"]["input"] == 0
    assert grown < 24
    assert all(len({p["seq"] for p in of(listener, name)}) == 6 for name in others)
    assert listener.repeats() == 0
    for name in ("steady", *known):
        assert unbroken(of(listener, name)), name
    left = {topic for topic, body in listener.retained.items() if "/crowd-" in topic and body is not None}
    assert left == set()


def hostile_payloads(rig: Rig) -> None:
    """Whatever is published is counted by what is wrong with it, and its device goes on; names are any text."""
    broker = rig.broker(PLAIN).start()
    listener = rig.listener(broker.port)
    rig.sensor(name="steady")
    names = ['with "quotes"', "with spaces", "Übung-人-🏃", "x" * 64, "$SYS", "back\\slash", "a:b%s{}"]
    fleet = Fleet(broker.port, ["victim", *names])
    rig.ending.callback(fleet.close)
    fleet.send("ghost", fleet.payload(0, 300), retain=True)
    config = '[mqtt_in]\nfilter = "imu/{device}/samples"\nqos = 1\nmax_payload = 20000\n'
    agent = rig.agent([broker.url], IMPATIENT + config, device="steady")
    agent.start()
    more_of(listener, "victim", "steady")
    for payload, _ in HOSTILE:
        fleet.send("victim", payload)
    fleet.send("x" * 65, fleet.payload(0, 1))
    fleet.send("zero\u200bwidth", fleet.payload(0, 1))
    # No device of MQTT may pass for the sensor on a serial port.
    fleet.send("steady", fleet.payload(0, 300))
    more_of(listener, "victim", "steady", *names)
    rig.stop(agent)

    expected: dict[str, int] = {"unexpected_topic": 3, "retained_message": 1}
    for _, reason in HOSTILE:
        expected[reason] = expected.get(reason, 0) + 1
    bad = agent.status()["telemetry"]["bad_frames"]
    rig.fact(f"{len(HOSTILE)} hostile payloads: {bad}")
    # The serial port was opened in the middle of a line.
    assert bad in (expected, expected | {"wrong_number_of_columns": expected["wrong_number_of_columns"] + 1})
    assert of(listener, "ghost") == []
    for name in ("steady", "victim", *names):
        assert unbroken(of(listener, name)), name
    topics = {topic for topic, _ in listener.messages}
    assert {f"har/{name}/prediction" for name in names} <= topics
    rig.all_came(listener)


HOSTILE: Sequence[tuple[bytes, str]] = [
    (b"", "not_json"),
    (b"\0" * 100, "not_json"),
    (b"[" * 10_000, "not_json"),
    (b'{"samples":' * 1500, "not_json"),
    (b'{"t": NaN, "ax": 1}', "not_json"),
    (b"\xff\xfe{}", "bad_encoding"),
    (b"[1, 2, 3]", "not_json"),
    (b'"text"', "not_json"),
    (b"{}", "missing_keys"),
    (b'{"samples": 7}', "missing_keys"),
    (b'{"t0": 0, "rate_hz": 50, "samples": []}', "wrong_number_of_columns"),
    (b'{"t0": 0, "rate_hz": 50, "samples": [[1, 2]]}', "wrong_number_of_columns"),
    (b'{"t0": 0, "rate_hz": 50, "samples": [[1, 2, 3, 4, 5, "6"]]}', "not_a_number"),
    (b'{"t0": 0, "rate_hz": 50, "samples": [[1, 2, 3, 4, 5, true]]}', "not_a_number"),
    (b'{"t0": 0, "rate_hz": 50, "samples": [null]}', "not_a_number"),
    (b'{"t0": "now", "rate_hz": 50, "samples": [[1, 2, 3, 4, 5, 6]]}', "not_a_number"),
    (b'{"t0": 1e300, "rate_hz": 50, "samples": [[1, 2, 3, 4, 5, 6]]}', "time_out_of_range"),
    (b'{"t0": 0, "rate_hz": 0, "samples": [[1, 2, 3, 4, 5, 6]]}', "time_out_of_range"),
    (b'{"t": [0, 1], "samples": [[1, 2, 3, 4, 5, 6]]}', "wrong_number_of_columns"),
    (b'{"t0": 0, "rate_hz": 50, "samples": [[1e30, 2, 3, 4, 5, 6]]}', "value_out_of_range"),
    (b'{"t0": 0, "rate_hz": 50, "samples": [[1e999, 2, 3, 4, 5, 6]]}', "nan_or_infinite"),
    (b'{"t0": 0, "rate_hz": 50, "samples": [[' + b"9" * 5000 + b", 2, 3, 4, 5, 6]]}", "not_json"),
    (b" " * 20_001, "payload_too_large"),
    (b"\x01", "bad_frame"),
    (b"\x01" * 100, "bad_checksum"),
    (b'{"t0": 0, "rate_hz": 50, "samples": [' + b",".join([b"[]"] * 5000) + b"]}", "payload_too_large"),
]
"""What somebody may publish, and what it is counted as."""


class Fleet:
    """Devices that publish their samples over MQTT, in step, five times as fast as life."""

    def __init__(self, port: int, names: Sequence[str]) -> None:
        self._rows = samples(300)
        self._names = names
        self._client = paho.Client(CallbackAPIVersion.VERSION2, "fleet", protocol=MQTTProtocolVersion.MQTTv5)
        self._client.max_inflight_messages_set(1000)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fleet")
        self._thread.start()

    def payload(self, first: int, n: int) -> bytes:
        """Samples `first` to `first + n` of the person that all of them are, over and over."""
        rows = self._rows[np.arange(first, first + n) % len(self._rows), 1:]
        return json.dumps({"t0": first * FIFTY_HZ, "rate_hz": 50, "samples": rows.round(5).tolist()}).encode()

    def send(self, name: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish for one device."""
        self._client.publish(f"imu/{name}/samples", payload, 1, retain)

    def close(self) -> None:
        """End."""
        self._stop.set()
        self._thread.join()
        self._client.disconnect()
        self._client.loop_stop()

    def _run(self) -> None:
        began, at = time.monotonic(), 0
        while not self._stop.wait(0.1):
            due = int((time.monotonic() - began) * 250)
            for name in self._names:
                self.send(name, self.payload(at, due - at))
            at = due


def sensor_of(rig: Rig, name: str) -> Sensor:
    sensor = rig.sensor(name=name)
    sensor.encode = FORMATS[name][0]
    return sensor


def settings_of(name: str) -> str:
    return f'format = "{name}"\n{FORMATS[name][1]}'


def section(sensor: Sensor, name: str, settings: str) -> str:
    return f'\n[serial.{name}]\nport = "{sensor.path}"\n{settings}\n'


def csv_us(t_s: float, row: np.ndarray) -> bytes:
    return (f"{t_s * 1e6:.0f}," + ",".join(f"{v:.4f}" for v in row[1:]) + "\n").encode()


def process_of(agent: Agent) -> psutil.Process:
    assert agent.process
    return psutil.Process(agent.process.pid)


def of(listener: Listener, device: str) -> list[dict[str, Any]]:
    """Predictions of one device, by number."""
    return sorted((p for p in list(listener.predictions.values()) if p["device"] == device), key=lambda p: p["seq"])


def more_of(listener: Listener, *devices: str, n: int = 2) -> float:
    """Wait for `n` more predictions of each device, and return the seconds that it took."""
    began = time.monotonic()
    before = {device: len(of(listener, device)) for device in devices}
    for device, had in before.items():
        wait_until(lambda device=device, had=had: len(of(listener, device)) >= had + n, 30, f"predictions of {device}")
    return time.monotonic() - began


def wait_for_availability(listener: Listener, device: str, state: str) -> dict[str, Any]:
    """Wait until a device is told to be so, and return what is told."""

    def told() -> Any:
        said = listener.state(f"har/{device}/availability")
        return said and said["state"] == state and said

    return dict(wait_until(told, 20, f"{device} to be {state}"))


def unbroken(predictions: Sequence[dict[str, Any]]) -> bool:
    """Whether every window begins where it should: no sample of them was lost."""
    steps = np.diff([p["t0"] for p in predictions])
    return len(predictions) > 1 and bool(np.allclose(steps, 64 * FIFTY_HZ, atol=1e-6))


def counted(listener: Listener, reason: str) -> int:
    """Bad frames of one reason, as telemetry says."""
    return int((listener.state("har/board/telemetry") or {"bad_frames": {}})["bad_frames"].get(reason, 0))


def streams(listener: Listener) -> int:
    """Streams that the agent knows, as its telemetry says."""
    return int((listener.state("har/board/telemetry") or {"streams": 0})["streams"])


SCENARIOS = [
    unplugged,
    nonsense_for_a_while,
    floods,
    ten_thousand_names,
    ten_megabytes_of_random_bytes,
    hostile_payloads,
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.__name__)
def test_sources(scenario: Scenario, play: Callable[[Scenario], None]):
    play(scenario)
