"""`har-agent watch` against a real broker: as lines, as one table, and on a real terminal."""

import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from fcntl import ioctl
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from mosquitto import Mosquitto
from paho.mqtt.enums import CallbackAPIVersion

from agent.app.watch import Watch, filters
from agent.config import Config
from agent.core.fleet import Device
from agent.errors import SinkUnavailable, UsageError

ENVIRONMENT = os.environ | {"HAR_AGENT_CONFIG": "", "TERM": "xterm", "COLUMNS": ""}


def say(client: paho.Client, topic: str, said: object, *, retain: bool = False) -> None:
    payload = said if isinstance(said, bytes) else json.dumps(said).encode()
    client.publish(topic, payload, 1, retain).wait_for_publish(10)


def tell(client: paho.Client, device: str, seq: int, **more) -> None:
    said = {"id": f"b:{device}:{seq}", "device": device, "seq": seq, "label": "walking", "activity": "walking"}
    say(client, f"har/{device}/prediction", said | {"confidence": 0.9, "historical": False} | more)


def command(broker: Mosquitto, *more: str) -> list[str]:
    return [sys.executable, "-m", "agent", "watch", "--broker", broker.url, *more]


def test_what_is_published_is_known(broker: Mosquitto, publisher: paho.Client):
    say(publisher, "har/board/health", {"state": "ok", "reasons": []}, retain=True)
    with Watch(Config(), [broker.url]) as watching:
        tell(publisher, "a", 1)
        tell(publisher, "a", 1)
        say(publisher, "har/a/prediction", b"\xff")
        say(publisher, "har/other/thing", b"{}")
        tell(publisher, "b", 1)
        seen: list[str] = []
        deadline = time.monotonic() + 10
        while seen[-1:] != ["b"] and time.monotonic() < deadline:
            seen += [w.name for w in watching.update(0.1)]
        assert watching.problems() == []

    assert seen == ["board", "a", "b"]
    assert (watching.fleet.repeats, watching.fleet.unreadable) == (1, 1)


def test_only_the_devices_that_were_asked_for_are_heard(broker: Mosquitto, publisher: paho.Client):
    with Watch(Config(), [broker.url], ["b"]) as watching:
        tell(publisher, "a", 1)
        tell(publisher, "b", 1)
        seen: list[str] = []
        deadline = time.monotonic() + 10
        while not seen and time.monotonic() < deadline:
            seen += [w.name for w in watching.update(0.1) if isinstance(w, Device)]

    assert seen == ["b"]
    assert "har/a_b-" in filters("har", ["a/b"])[0]


def test_several_brokers_are_watched_as_one(broker: Mosquitto, publisher: paho.Client, tmp_path: Path):
    (tmp_path / "other").mkdir()
    other = Mosquitto(tmp_path / "other").start()
    second = paho.Client(CallbackAPIVersion.VERSION2)
    second.connect(other.host, other.port)
    second.loop_start()
    try:
        with Watch(Config(), [broker.url, other.url]) as watching:
            tell(publisher, "a", 1)
            tell(second, "b", 1)
            deadline = time.monotonic() + 10
            while len(watching.fleet.devices) < 2 and time.monotonic() < deadline:
                watching.update(0.1)
            other.stop()
            while not watching.problems() and time.monotonic() < deadline:
                watching.update(0.1)
            assert len(watching.problems()) == 1
    finally:
        second.disconnect()
        second.loop_stop()
        other.stop()

    assert set(watching.fleet.devices) == {"a", "b"}


def test_a_broker_that_is_none_is_refused(broker: Mosquitto):
    with pytest.raises(UsageError, match="--broker"):
        Watch(Config(), ["localhost"])
    broker.stop()
    with pytest.raises(SinkUnavailable), Watch(Config(), [broker.url]):
        pass


def test_each_change_is_a_line_for_scripts(broker: Mosquitto, publisher: paho.Client):
    with subprocess.Popen(command(broker, "--json"), stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        assert process.stdout is not None
        watchdog = threading.Timer(30, process.kill)
        watchdog.start()
        say(publisher, "har/a/availability", {"state": "online"}, retain=True)
        first = json.loads(process.stdout.readline())
        for k in range(3):
            tell(publisher, "a", k, activity="sit\x1b[2J")
        lines = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        watchdog.cancel()
        watchdog.join()

    assert (first["kind"], first["device"], first["availability"]) == ("device", "a", "online")
    assert [line["windows"] for line in lines] == [1, 2, 3]
    assert {line["activity"] for line in lines} == {"sit�[2J"}


def test_once_prints_what_is_known_and_says_if_that_is_nothing(broker: Mosquitto, publisher: paho.Client):
    nothing = subprocess.run(
        command(broker, "--once", "--seconds", "0.5"), capture_output=True, text=True, check=False, env=ENVIRONMENT
    )
    say(publisher, "har/board/status", {"state": "online", "model": "m@1"}, retain=True)
    say(publisher, "har/waist/activity", {"activity": "walking", "confidence": 1}, retain=True)
    options = ("--once", "--seconds", "1")
    table = subprocess.run(command(broker, *options), capture_output=True, text=True, check=False, env=ENVIRONMENT)
    plain = subprocess.run(
        command(broker, *options, "--json"), capture_output=True, text=True, check=False, env=ENVIRONMENT
    )

    assert nothing.returncode == 1
    assert "nothing was heard" in nothing.stderr
    assert table.returncode == plain.returncode == 0
    assert "walking" in table.stdout
    assert "\x1b" not in table.stdout
    found = json.loads(plain.stdout)
    assert [a["agent"] for a in found["agents"]] == ["board"]
    assert [d["activity"] for d in found["devices"]] == ["walking"]


def test_without_a_terminal_it_says_what_to_add(broker: Mosquitto):
    done = subprocess.run(command(broker), capture_output=True, text=True, check=False, env=ENVIRONMENT)

    assert done.returncode == 2
    assert "--json" in done.stderr


def test_on_a_terminal_it_draws_follows_its_size_and_leaves_it_as_it_was(broker: Mosquitto, publisher: paho.Client):
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 12, 80, 0, 0))
    with subprocess.Popen(command(broker), stdout=theirs, stderr=theirs, env=ENVIRONMENT) as process:
        os.close(theirs)
        try:
            shown = _read_until(ours, b"0 devices")
            for k in range(30):
                tell(publisher, f"d{k:02}", 1)
            shown += _read_until(ours, b"more devices; 0 in all")
            ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
            shown += _read_until(ours, b"d00")
            process.send_signal(signal.SIGINT)
            shown += _read_until(ours, b"\x1b[?1049l")
            assert process.wait(20) == 0
        finally:
            process.kill()
            os.close(ours)

    assert shown.count(b"\x1b[?1049h") == shown.count(b"\x1b[?1049l") == 1
    assert shown.rindex(b"\x1b[?25h") > shown.index(b"\x1b[?25l")
    assert b"Traceback" not in shown


def _read_until(fd: int, what: bytes) -> bytes:
    got = b""
    deadline = time.monotonic() + 20
    while what not in got:
        assert time.monotonic() < deadline, got[-2000:]
        if select.select([fd], [], [], 0.2)[0]:
            got += os.read(fd, 1 << 16)
    return got
