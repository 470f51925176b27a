"""`har-agent status --broker` against a real broker: what it retains of an agent, and whether that can be trusted."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from mosquitto import Mosquitto

from agent.adapters.clock import SystemClock
from agent.app.broker_status import BrokerStatus
from agent.app.status import AgentStatus, wait_healthy
from agent.cli.status import _view
from agent.config import Config
from agent.core.settings import AgentSettings
from agent.core.wire import iso_time, topic_level
from agent.errors import UsageError

CONFIG = Config(agent=AgentSettings(name="board-7"))
STATUS = {"v": 1, "state": "online", "agent": "board-7", "version": "0.2.0", "release": "0.2.0+aa", "boot": "b1"}
HEALTH = {"v": 1, "agent": "board-7", "state": "ok", "reasons": [], "boot": "b1", "windows": 4, "clock_synced": True}


def retain(client: paho.Client, kind: str, said: Any, agent: str = "board-7") -> None:
    payload = said if isinstance(said, bytes) else json.dumps(said).encode()
    client.publish(f"har/{topic_level(agent)}/{kind}", payload, 1, True).wait_for_publish(10)


def asked(broker: Mosquitto, agent: str = "") -> AgentStatus:
    with BrokerStatus(CONFIG, broker.url, agent) as asking:
        return asking.look()


def test_it_is_as_the_broker_retains_it_and_known_at_once(broker: Mosquitto, publisher: paho.Client):
    retain(publisher, "status", STATUS)
    retain(publisher, "health", HEALTH | {"time": iso_time(time.time_ns())})
    began = time.monotonic()
    found = asked(broker)

    assert time.monotonic() - began < 1.5
    assert (found.state, found.problem, found.lacks()) == ("ok", None, [])
    assert found.as_dict() | {"healthy": True, "release": "0.2.0+aa", "windows": 4} == found.as_dict()
    assert found.age_s is None or 0 <= found.age_s < 60
    text = _view(found)
    assert text.splitlines()[0] == "board-7     ok"
    assert "release 0.2.0+aa" in text
    assert f"broker      {broker.host}:{broker.port}" in text


def test_what_is_wrong_is_told_and_can_be_tolerated(broker: Mosquitto, publisher: paho.Client):
    retain(publisher, "status", STATUS)
    reason = {"code": "clock_unsynced", "text": "no NTP", "since_s": 200}
    retain(publisher, "health", HEALTH | {"state": "degraded", "reasons": [reason]})
    found = asked(broker)

    assert (found.state, found.is_up) == ("degraded", True)
    assert found.lacks() == ["clock_unsynced: no NTP"]
    assert found.lacks(frozenset(["clock_unsynced"])) == []


def test_one_that_is_offline_or_was_never_there_is_told(broker: Mosquitto, publisher: paho.Client):
    retain(publisher, "status", {"v": 1, "state": "offline"})
    gone, never = asked(broker), asked(broker, "board-8")

    assert (gone.state, gone.is_up) == ("offline", False)
    assert (never.state, never.is_up) == ("absent", False)
    assert "retains nothing under har/board-8/status" in (never.problem or "")
    assert "check --agent" in (never.problem or "")


def test_the_name_of_an_agent_is_spelled_as_in_its_topics(broker: Mosquitto, publisher: paho.Client):
    retain(publisher, "status", {"state": "offline"}, "room/7")

    assert asked(broker, "room/7").state == "offline"


def test_the_health_of_the_run_before_does_not_count(broker: Mosquitto, publisher: paho.Client):
    retain(publisher, "status", STATUS | {"boot": "b2"})
    retain(publisher, "health", HEALTH)
    found = asked(broker)

    assert (found.state, found.lacks()) == ("starting", ["it is connected, and has not told its health yet"])
    retain(publisher, "health", HEALTH | {"boot": "b2", "windows": 0})
    assert asked(broker).lacks() == ["no window was predicted in this run yet"]
    retain(publisher, "health", {"state": "ok", "reasons": []})
    assert asked(broker).lacks() == ["it does not say whether it has predicted a window"]


def test_it_is_waited_for(broker: Mosquitto, publisher: paho.Client):
    retain(publisher, "status", STATUS | {"release": "0.1.0+bb"})
    retain(publisher, "health", HEALTH)
    seen: list[str] = []
    with BrokerStatus(CONFIG, broker.url, "", 10) as asking:

        def look() -> AgentStatus:
            found = asking.look().of_release("0.2.0+aa")
            seen.append(found.state)
            if found.state == "other_release":
                retain(publisher, "status", {"v": 1, "state": "offline"})
            elif found.state == "offline":
                retain(publisher, "status", STATUS | {"boot": "b2"})
            elif found.state == "starting":
                retain(publisher, "health", HEALTH | {"boot": "b2"})
            return found

        found = wait_healthy(look, 10)

    assert list(dict.fromkeys(seen)) == ["other_release", "offline", "starting", "ok"]
    assert found.lacks() == []


@pytest.mark.parametrize("said", [b"\xff", b"[]", b"7", b"{", b"[" * 60_000, b"{" + b" " * 70_000 + b"}", {}])
@pytest.mark.parametrize("kind", ["status", "health"])
def test_whatever_stands_there_is_not_taken_for_health(
    broker: Mosquitto, publisher: paho.Client, kind: str, said: object
):
    retain(publisher, "status", STATUS)
    retain(publisher, "health", HEALTH)
    retain(publisher, kind, said)
    found = asked(broker)

    assert found.state in ("absent", "starting")
    assert found.lacks() != []
    assert _view(found).replace("\n", "").isprintable()


def test_what_somebody_else_wrote_there_is_shown_as_text_only(broker: Mosquitto, publisher: paho.Client):
    evil = dict.fromkeys(("version", "release", "model", "link", "sources", "outbox", "telemetry"), "a\x1b[2J")
    retain(publisher, "status", STATUS | evil | {"boot": "b1"})
    retain(publisher, "health", HEALTH | {"state": "failing", "reasons": [{"code": "\x1b", "text": "a\nb"}]})
    found = asked(broker)

    assert _view(found, found.lacks()).replace("\n", "").isprintable()
    assert "\x1b" not in json.dumps(found.as_dict())


def test_a_broker_that_comes_back_is_asked_again(broker: Mosquitto, publisher: paho.Client):
    retain(publisher, "status", STATUS)
    retain(publisher, "health", HEALTH)
    broker.stop()
    clock = SystemClock()
    with BrokerStatus(CONFIG, broker.url, "", 20) as asking:
        first = asking.look()
        broker.start()
        publisher.reconnect()
        retain(publisher, "status", STATUS)
        retain(publisher, "health", HEALTH)
        found = wait_healthy(asking.look, 20, clock=clock)

    assert (first.state, first.is_up) == ("unreachable", False)
    assert "connection refused: check that the broker runs" in (first.problem or "")
    assert found.state == "ok"


def test_an_address_that_is_none_is_refused():
    with pytest.raises(UsageError, match="--broker"):
        BrokerStatus(CONFIG, "gateway")


def test_the_command_ends_with_the_answer(broker: Mosquitto, publisher: paho.Client, tmp_path: Path):
    def ran(*args: str, url: str = broker.url) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "agent", "status", "--broker", url, "--agent", "board-7", *args],
            env=os.environ | {"HAR_AGENT__AGENT__RUNTIME_DIR": str(tmp_path), "HAR_AGENT_CONFIG": ""},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    retain(publisher, "status", STATUS)
    retain(publisher, "health", HEALTH)
    good = ran("--wait-healthy", "5", "--release", "0.2.0+aa", "--json")
    assert (good.returncode, json.loads(good.stdout)["healthy"]) == (0, True)
    other = ran("--wait-healthy", "0.3", "--release", "0.2.0+bb")
    assert other.returncode == 1
    assert "it runs 0.2.0+aa, and not 0.2.0+bb" in other.stdout
    nowhere = ran("--json", url="mqtt://127.0.0.1:1")
    assert (nowhere.returncode, json.loads(nowhere.stdout)["state"]) == (69, "unreachable")
