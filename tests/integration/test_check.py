"""`har-agent check --connect`: real ptys, a real broker, and an agent that runs meanwhile."""

import json
import os
import pty
import random
import subprocess
import sys
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import paho.mqtt.client as paho
import pytest
import serial
from live import Agent, Listener, Sensor, wait_until
from mosquitto import Authority, Mosquitto, free_port
from paho.mqtt.enums import CallbackAPIVersion

from agent.app.check import ERROR, OK, WARNING, Finding
from agent.app.check_connect import check_connections
from agent.config import Config, load
from agent.core.settings import (
    AgentSettings,
    BrokerSettings,
    CloudSettings,
    MqttInSettings,
    MqttSettings,
    SerialSettings,
)

NO_BROKER: dict[str, BrokerSettings] = {}
QUICK = MqttSettings(connect_timeout_s=3.0, retry_first_s=0.05)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path_factory.mktemp("broker")) as running:
        yield running


@pytest.fixture
def agent(tmp_path: Path) -> AgentSettings:
    return AgentSettings("board", str(tmp_path / "state"), str(tmp_path / "run"))


@pytest.fixture
def sensor(tmp_path: Path) -> Iterator[Sensor]:
    sensor = Sensor(tmp_path)
    yield sensor
    sensor.close()


def connected(config: Config, seconds: float = 1.0, *ports: str) -> list[Finding]:
    return list(check_connections(config, seconds, ports, found=[]))


def on_port(agent: AgentSettings, **settings: object) -> list[Finding]:
    return connected(Config(agent=agent, serial={"imu": SerialSettings(**settings)}, broker=NO_BROKER))


def states(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(f.id, f.state) for f in findings]


# --- ports


def test_a_port_that_is_configured_right_is_measured(agent: AgentSettings, sensor: Sensor):
    (found,) = on_port(agent, port=str(sensor.path), time="ms")

    assert found.state == OK
    rate_hz = float(found.text.split()[0])
    assert 45 < rate_hz < 55
    assert "acceleration 1." in found.text or "acceleration 0.9" in found.text


@pytest.mark.parametrize(
    "wrong",
    [
        {"format": "witmotion", "rate_hz": 50},
        {"format": "json"},
        {"format": "har1"},
        {"format": "csv"},  # it sends a time, and nobody has said so
    ],
)
def test_a_port_that_is_configured_wrong_gets_a_section_that_works(
    agent: AgentSettings, sensor: Sensor, tmp_path: Path, wrong: dict[str, object]
):
    found = on_port(agent, port=str(sensor.path), **wrong)
    path = tmp_path / "suggested.toml"
    path.write_text(found[-1].section)
    suggested = load(path, {}).serial["imu"]

    assert suggested == SerialSettings(port=str(sensor.path), time="ms", gyro_unit=suggested.gyro_unit)
    assert on_port(agent, port=suggested.port, time=suggested.time)[0].state == OK


def test_a_unit_that_is_wrong_is_told_with_the_right_one(agent: AgentSettings, sensor: Sensor):
    described, wrong, suggested = on_port(agent, port=str(sensor.path), time="ms", acc_unit="m/s2")

    assert (described.state, wrong.state, wrong.fix) == (OK, WARNING, 'acc_unit = "g"')
    assert 'acc_unit = "g"' in suggested.section


def test_a_rate_that_is_wrong_is_told_with_the_right_one(agent: AgentSettings, sensor: Sensor):
    sensor.encode = lambda row: (",".join(f"{v:.4f}" for v in row[1:]) + "\n").encode()
    config = Config(
        agent=agent,
        serial={"imu": SerialSettings(port=str(sensor.path), rate_hz=100)},
        broker=NO_BROKER,
    )
    wrong = connected(config, 3.0)[1]

    assert wrong.state == WARNING
    assert wrong.text.endswith("and rate_hz is 100")
    assert wrong.fix.startswith(("rate_hz = 50", "rate_hz = 49", "rate_hz = 51"))


def test_a_port_that_is_not_configured_gets_a_section(agent: AgentSettings, sensor: Sensor):
    def line(row: np.ndarray) -> bytes:
        return json.dumps(
            {"ts": row[0], **dict(zip(("ax", "ay", "az", "gx", "gy", "gz"), row[1:], strict=True))}
        ).encode()

    sensor.encode = lambda row: line(row) + b"\r\n"
    (found,) = connected(Config(agent=agent, broker=NO_BROKER), 1.0, str(sensor.path))

    assert states([found]) == [(f"port.{sensor.path}", OK)]
    assert found.section.startswith(f'[serial.sensor]\nport = "{sensor.path}"\nbaud = 115200\nformat = "json"\n')


@contextmanager
def terminal(write: Callable[[int], None] | None = None) -> Iterator[str]:
    """A pty on which `write` says something every 20 ms."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    stop = threading.Event()

    def run() -> None:
        while write is not None and not stop.wait(0.02):
            write(master)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield os.ttyname(slave)
    finally:
        stop.set()
        thread.join()
        os.close(master)
        os.close(slave)


def test_a_silent_port_is_an_error_at_once(agent: AgentSettings):
    with terminal() as port:
        began = time.monotonic()
        configured = on_port(agent, port=port, rate_hz=50)
        named = connected(Config(agent=agent, broker=NO_BROKER), 1.0, port)
        found = list(check_connections(Config(agent=agent, broker=NO_BROKER), 1.0, found=[port]))

    assert states(configured) == [("serial.imu", ERROR)]
    assert states(named) == [(f"port.{port}", ERROR)]
    assert states(found) == [(f"port.{port}", OK)]
    assert time.monotonic() - began < 15  # not every speed is tried on it


def test_noise_fits_no_format(agent: AgentSettings):
    noise = random.Random(1)

    def write(master: int) -> None:
        try:
            os.write(master, noise.randbytes(40))
        except BlockingIOError:
            return

    with terminal(write) as port:
        wrong, tried = on_port(agent, port=port, rate_hz=50)

    assert (wrong.state, tried.state) == (ERROR, ERROR)
    assert "no known format fits" in tried.text
    assert tried.section == ""


def test_a_port_that_another_program_reads_is_told_of(agent: AgentSettings, sensor: Sensor):
    with serial.Serial(str(sensor.path), exclusive=True):
        (found,) = on_port(agent, port=str(sensor.path), time="ms")

    assert found.state == ERROR
    assert "another program has it open" in found.text


# --- brokers


def test_a_message_goes_to_the_broker_and_back(agent: AgentSettings, broker: Mosquitto):
    listener = Listener(broker.port, "check-listener")
    try:
        wait_until(lambda: listener.connects)
        (found,) = connected(Config(agent=agent, broker={"a": BrokerSettings(broker.url)}, mqtt=QUICK))
        assert states([found]) == [("broker.a", OK)]
        assert "without TLS" in found.text
        assert " ms, and back in " in found.text
        wait_until(lambda: listener.state("har/board/check"))
    finally:
        listener.close()


def test_mqtt_3_works_too(agent: AgentSettings, broker: Mosquitto):
    (found,) = connected(Config(agent=agent, broker={"a": BrokerSettings(broker.url, protocol="3.1.1")}, mqtt=QUICK))

    assert found.state == OK


def test_the_version_of_tls_is_told(agent: AgentSettings, tmp_path: Path):
    authority = Authority(tmp_path)
    certificate, key = authority.issue("broker")
    with Mosquitto(tmp_path, f"allow_anonymous true\ncertfile {certificate}\nkeyfile {key}") as secure:
        at = f"mqtts://localhost:{secure.port}"
        trusted = BrokerSettings(at, ca_file=str(authority.certificate))
        good, bad = connected(Config(agent=agent, broker={"good": trusted, "bad": BrokerSettings(at)}, mqtt=QUICK))

    assert (good.state, "connected with TLSv1." in good.text) == (OK, True)
    assert (bad.state, "is not signed by" in bad.text) == (ERROR, True)


def test_a_broker_that_is_away_or_refuses_is_an_error(agent: AgentSettings, tmp_path: Path):
    acl = tmp_path / "acl"
    acl.write_text("topic read #\n")
    away = BrokerSettings(f"mqtt://127.0.0.1:{free_port()}")
    (found,) = connected(Config(agent=agent, broker={"a": away}, mqtt=QUICK))
    assert (found.state, "connection refused" in found.text) == (ERROR, True)

    with Mosquitto(tmp_path, f"allow_anonymous true\nacl_file {acl}") as strict:
        (found,) = connected(Config(agent=agent, broker={"a": BrokerSettings(strict.url)}, mqtt=QUICK))
        assert (found.state, "does not let this client publish" in found.text) == (ERROR, True)
        assert found.fix == "allow it to write har/board/# there"

        (found,) = connected(
            Config(agent=agent, broker={"a": BrokerSettings(strict.url, protocol="3.1.1")}, mqtt=QUICK)
        )
        assert (found.state, "did not come back" in found.text) == (WARNING, True)

        acl.write_text("topic write #\n")
    with Mosquitto(tmp_path, f"allow_anonymous true\nacl_file {acl}") as strict:
        (found,) = connected(Config(agent=agent, broker={"a": BrokerSettings(strict.url)}, mqtt=QUICK))
        assert (found.state, "may not read" in found.text) == (OK, True)


def test_the_clouds_broker_is_connected_to_for_asking_and_for_nothing_else(
    agent: AgentSettings, broker: Mosquitto, tmp_path: Path
):
    acl = tmp_path / "acl"
    acl.write_text("topic write har/cloud/har-cloud/request\ntopic read har/board/cloud/answer\n")
    rules = f"allow_anonymous true\nacl_file {acl}\nlog_type all"

    def through(url: str) -> list[Finding]:
        brokers = {"home": BrokerSettings(broker.url), "far": BrokerSettings(url)}
        return connected(Config(agent, broker=brokers, cloud=CloudSettings("always", broker="far"), mqtt=QUICK))

    with Mosquitto(tmp_path, rules) as far:
        found = through(far.url)
        assert states(found) == [("broker.home", OK), ("cloud", OK)]
        assert "connected to broker far" in found[-1].text
        said = far.log.read_text()
        assert "har/board/cloud/answer" in said
        assert "Denied" not in said
    found = through(far.url)
    assert states(found) == [("broker.home", OK), ("cloud", WARNING)]
    assert "connection refused" in found[-1].text


def test_a_cloud_behind_the_first_broker_is_another_connection_to_it(agent: AgentSettings, broker: Mosquitto):
    found = connected(
        Config(agent, broker={"a": BrokerSettings(broker.url)}, cloud=CloudSettings("unknown"), mqtt=QUICK)
    )

    assert states(found) == [("broker.a", OK), ("cloud", OK)]


def test_devices_that_send_over_mqtt_are_counted(agent: AgentSettings, broker: Mosquitto):
    config = Config(
        agent=agent,
        broker={"a": BrokerSettings(broker.url)},
        mqtt=QUICK,
        mqtt_in=MqttInSettings(filter="imu/{device}/samples", share="everybody"),
    )
    assert states(connected(config, 0.5)) == [("broker.a", OK), ("mqtt_in", WARNING)]

    client = paho.Client(CallbackAPIVersion.VERSION2, "devices")
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    stop = threading.Event()
    says = ['{"t0": %g, "rate_hz": 50, "samples": [[0, 0, 1, 0, 0, 0.1], [0, 0, 1, 0, 0, 0.1]]}', "hello"]

    def send() -> None:
        n = 0
        while not stop.wait(0.04):
            for device in ("wrist", "waist"):
                client.publish(f"imu/{device}/samples", says[0] % (n / 25) if says[0].count("%") else says[0])
            n += 1

    thread = threading.Thread(target=send)
    thread.start()
    try:
        _, found = connected(config, 1.5)
        says.reverse()
        _, garbage = connected(config, 1.0)
    finally:
        stop.set()
        thread.join()
        client.disconnect()
        client.loop_stop()

    assert (found.state, "samples/s of 2 devices, nothing unreadable" in found.text) == (OK, True)
    assert (garbage.state, "not_json" in garbage.text) == (ERROR, True)


# --- beside an agent that runs


def test_a_running_agent_is_not_disturbed(tmp_path: Path, broker: Mosquitto, sensor: Sensor):
    running = Agent(
        tmp_path,
        f'[broker.a]\nurl = "{broker.url}"\n[mqtt]\nroot = "beside"\n'
        f'[serial.imu]\nport = "{sensor.path}"\ntime = "ms"\n[mqtt_in]\nfilter = "imu/{{device}}/samples"\n'
        '[cloud]\nwhen = "unknown"\n',
    )
    listener = Listener(broker.port, "beside-listener", "beside")
    try:
        running.start()
        wait_until(lambda: (listener.state("beside/board/status") or {}).get("state") == "online")
        wait_until(lambda: listener.count() > 1)
        ran = subprocess.run(
            [
                sys.executable,
                "-m",
                "agent",
                "check",
                "--config",
                running.config,
                "--connect",
                "--json",
                "--seconds",
                "1",
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        found = {f["id"]: f for f in json.loads(ran.stdout)["findings"]}  # the last of each, which is of connecting
        after = listener.count()
        wait_until(lambda: listener.count() > after)
    finally:
        status = running.stop()
        listener.close()

    assert ran.returncode == 0, ran.stdout
    assert f"process {running.process.pid}" in found["agent"]["text"]  # type: ignore[union-attr]
    assert "was left alone" in found["serial.imu"]["text"]
    assert "in use by the running agent" in found["outbox"]["text"]
    assert found["broker.a"]["state"] == OK
    assert "connected to broker a" in found["cloud"]["text"]
    assert "listening to imu/{device}/samples" in ran.stderr
    assert status == 0
    assert listener.holes() == []
    # Nobody was driven out: the last will would have said so.
    said = [json.loads(p)["state"] for t, p in listener.messages if t == "beside/board/status"]
    assert said.count("offline") == 1
    assert "already connected" not in broker.log.read_text()
