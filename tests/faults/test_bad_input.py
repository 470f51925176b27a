"""A configuration that cannot be used ends `har-agent run` at once: one clear sentence, and the status of it."""

import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

USAGE, CONFIG, UNAVAILABLE = 2, 78, 69
SENSOR = '[serial.imu]\nport = "/dev/ttyNONE"\nrate_hz = 50\n'
CASES: dict[str, tuple[str, list[str], int, str]] = {
    "no source": ("", [], CONFIG, "no source is configured: set port in a section [serial.NAME]"),
    "no such file": (SENSOR, ["--config", "/nonexistent.toml"], CONFIG, "there is no such configuration file"),
    "no TOML": ("[serial", [], CONFIG, "no TOML.toml: Expected"),
    "a section without port": ("[serial.imu]\nrate_hz = 50\n", [], CONFIG, "serial.imu.port is not set"),
    "neither time nor rate": (
        '[serial.imu]\nport = "/dev/ttyNONE"\n',
        [],
        CONFIG,
        "imu sends no time: set its rate_hz",
    ),
    "an unknown key": (SENSOR + "buad = 9600\n", [], CONFIG, "buad"),
    "an unknown format": (SENSOR + 'format = "xml"\n', [], CONFIG, "one of csv, json, witmotion, har1"),
    "a rate that no sensor has": ("", ["--port", "/dev/ttyNONE", "--rate-hz", "5000"], CONFIG, "between 10 and 400"),
    "two sections for one port": (
        SENSOR + SENSOR.replace("imu", "other"),
        [],
        CONFIG,
        "serial.imu and serial.other name the same port: /dev/ttyNONE",
    ),
    "a broker's address": (SENSOR + '[broker.b]\nurl = "http://x"\n', [], CONFIG, "mqtt://host:port"),
    "a broker's address as a flag": (SENSOR, ["--broker", "nonsense"], CONFIG, "--broker: "),
    "an agent's name": ('[agent]\nname = "a/b"\n' + SENSOR, [], CONFIG, "name must be"),
    "a filter": ('[mqtt_in]\nfilter = "imu/+/samples"\n', [], CONFIG, "such as imu/{device}/samples"),
    "a broker that is not configured": (
        '[mqtt_in]\nfilter = "imu/{device}"\nbroker = "cloud"\n',
        [],
        CONFIG,
        "there is no section [broker.cloud]",
    ),
    "an unknown model": (SENSOR, ["--model", "nope"], CONFIG, "no model bundle at 'nope'"),
    "--format without --port": (SENSOR, ["--format", "csv"], USAGE, "describe --port, which is missing"),
    "an unknown option": (SENSOR, ["--prot", "/dev/ttyNONE"], USAGE, "--port"),
    "--forget where no broker is": (SENSOR, ["--forget", "--broker", "mqtt://127.0.0.1:9"], UNAVAILABLE, "refused"),
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Future[subprocess.CompletedProcess[str]]]:
    """What each case said, and its exit status; two at a time."""
    folder = tmp_path_factory.mktemp("bad-input")
    env = {**os.environ, "STATE_DIRECTORY": str(folder / "state"), "RUNTIME_DIRECTORY": str(folder / "run")}

    def run(name: str) -> subprocess.CompletedProcess[str]:
        text, args, _, _ = CASES[name]
        config = Path(folder, f"{name}.toml")
        config.write_text(text)
        command = [sys.executable, "-m", "agent", "run"]
        if "--config" not in args:
            command += ["--config", str(config)]
        return subprocess.run([*command, *args], env=env, capture_output=True, text=True, check=False, timeout=30)

    with ThreadPoolExecutor(2) as pool:
        return {name: pool.submit(run, name) for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_it_ends_with_a_sentence(name: str, ran: dict[str, Future[subprocess.CompletedProcess[str]]]):
    _, _, status, words = CASES[name]
    done = ran[name].result()

    assert done.returncode == status, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 4, done.stderr
