"""`har-agent run` as a process: what the other tests of the daemon do not look at."""

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from live import Agent, Listener, Sensor, wait_until
from mosquitto import Mosquitto

from agent.adapters.clock import SystemClock
from agent.adapters.mqtt import Subscriber
from agent.core.settings import BrokerSettings, MqttSettings
from agent.runtime.live import REPORT_S


@pytest.mark.parametrize("reader", ["full disk", "gone"])
def test_nobody_who_reads_the_log_is_no_reason_to_end(tmp_path: Path, reader: str):
    agent = Agent(tmp_path, '[serial.imu]\nport = "/dev/none"\ntime = "ms"\n')
    with ExitStack() as ending:
        if reader == "full disk":
            out: int | object = ending.enter_context(Path("/dev/full").open("w"))
        else:
            out = subprocess.PIPE
        command = [sys.executable, "-m", "agent", "run", "--config", str(agent.config)]
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            if process.stdout is not None:
                process.stdout.close()
            wait_until(lambda: (agent.run / "status.json").exists(), 20, "a status")
            assert process.poll() is None
        finally:
            process.terminate()
            status = process.wait(20)
    assert status == 0


@pytest.mark.parametrize("killed", [False, True])
def test_a_restart_tells_what_no_window_covers(tmp_path: Path, killed: bool):
    with Mosquitto(tmp_path) as broker, ExitStack() as ending:
        sensor = Sensor(tmp_path)
        ending.callback(sensor.close)
        listener = Listener(broker.port)
        ending.callback(listener.close)
        source = f'[serial.imu]\nport = "{sensor.path}"\ntime = "ms"\n'
        agent = Agent(tmp_path, f'[broker.local]\nurl = "{broker.url}"\n{source}')
        agent.start()
        ending.callback(agent.stop)
        wait_until(lambda: agent.status().get("windows", 0) >= 3, 20, "predictions, and their report")
        if killed:
            agent.kill()
        else:
            assert agent.stop() == 0
        wait_until(lambda: listener.count() >= 3, 10, "what the first run predicted")
        boot = next(iter(listener.ids())).partition(":")[0]
        agent.start()
        health = wait_until(
            lambda: (listener.state("har/board/health") or {}).get("coverage_gap"), 20, "the gap in its health"
        )
        wait_until(lambda: any(not i.startswith(boot) for i in listener.ids()), 10, "what the second run predicted")
        agent.stop()
        said = listener.predictions.values()
        first_s = min(p["t0"] for p in said if not p["id"].startswith(boot))
        last_s = max(p["t1"] for p in said if p["id"].startswith(boot))

        # The sensor's own clock goes on across the restart, and says what really is missing.
        missing_s, late_s = first_s - last_s, 0.5
        assert (health["orderly"], health["devices"], health["absent"]) == (not killed, 1, 0)
        assert health["seconds"] >= missing_s - late_s
        assert health["seconds"] <= missing_s + (REPORT_S if killed else 0) + late_s
        assert health["windows"] == pytest.approx(health["seconds"] / 2.56, abs=0.01)
        assert agent.status()["health"]["state"] == "ok"


def test_commands_are_answered_and_forgetting_leaves_nothing_at_the_broker(tmp_path: Path):
    with Mosquitto(tmp_path) as broker, ExitStack() as ending:
        sensor = Sensor(tmp_path)
        ending.callback(sensor.close)
        listener = Listener(broker.port)
        ending.callback(listener.close)
        config = f'[broker.local]\nurl = "{broker.url}"\n[homeassistant]\nenabled = true\n'
        agent = Agent(tmp_path, config + f'[serial.imu]\nport = "{sensor.path}"\ntime = "ms"\n')
        agent.start()
        ending.callback(agent.stop)
        wait_until(lambda: listener.count() >= 2, 20, "predictions")
        local = BrokerSettings(broker.url)
        asking = Subscriber(local, MqttSettings(), [], SystemClock())
        ending.callback(asking.close)
        asking.start()

        def ask(name: str, payload: bytes = b"") -> bytes:
            return asking.request(f"har/board/command/{name}", payload, 5)

        assert b'"ok":true' in ask("status")
        assert b'"novelty_threshold":3.5' in ask("set-threshold", b'{"novelty_threshold": 3.5}')
        assert b"too large" in ask("set-threshold", b'{"novelty_threshold": 1' + b"0" * 400 + b"}")
        assert b"too large" in ask("record", b'{"seconds": 1' + b"0" * 400 + b"}")
        assert b"there is nothing to roll back" in ask("rollback")
        assert b'"ok":false' in ask("install-model", b"not a bundle")
        assert b'"active":true' in ask("record", b'{"seconds": 1}')
        assert b'"ok":true' in ask("reload-model")
        wait_until(lambda: list((agent.state / "recordings").glob("imu-*.csv")), 10, "a recording")
        assert agent.stop() == 0

        forgetful = [sys.executable, "-m", "agent", "run", "--config", str(agent.config), "--forget"]
        assert subprocess.run(forgetful, capture_output=True, timeout=30, check=False).returncode == 0
        discovery = Subscriber(local, MqttSettings(), ["homeassistant/#", "har/#"], SystemClock())
        ending.callback(discovery.close)
        discovery.start()
        assert discovery.poll(1.0) is None, "nothing is retained any more"
