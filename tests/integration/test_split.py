"""`har-agent run` that has a worker run the rest of its network, through a real broker: nothing else changes."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import cut, even_times, fed, signal
from live import Agent, Listener, Sensor, wait_until
from mosquitto import Mosquitto

from agent.adapters.bundle import builtin_models
from agent.adapters.clock import SystemClock
from agent.app.check import check_split
from agent.app.compose import open_model
from agent.app.split import open_parts, open_requester, open_split
from agent.config import Config
from agent.core.settings import AgentSettings, BrokerSettings, ModelSettings, MqttSettings, SplitSettings
from agent.core.slots import SlotState, dump
from agent.pipeline import Pipeline
from agent.records import Prediction

CLOCK = SystemClock()


@pytest.fixture(scope="module")
def middle() -> str:
    """A cut in the middle of the shipped model, as small as there is one."""
    cuts = open_parts(open_model("har-base")).cuts[1:-1]
    return min(cuts, key=lambda one: one.bytes).name


class Worker:
    """`har-agent cloud-worker` as a process of its own."""

    def __init__(self, folder: Path, broker: Mosquitto) -> None:
        config = folder / "worker.toml"
        config.write_text(
            f'[agent]\nname = "worker"\n[broker.b]\nurl = "{broker.url}"\n[worker]\nservice = "har-split"\n'
            "[mqtt]\nretry_first_s = 0.05\nretry_longest_s = 0.2\n"
        )
        self._command = [sys.executable, "-m", "agent", "cloud-worker", "har-base", "--config", str(config)]
        self._log = folder / "worker.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)
        wait_until(lambda: "requests come" in self._log.read_text(), 20, "the worker")

    def stop(self) -> None:
        self._process.terminate()
        assert self._process.wait(20) == 0


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path_factory.mktemp("broker"), "allow_anonymous true\nset_tcp_nodelay true") as broker:
        yield broker


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, broker: Mosquitto) -> Iterator[Worker]:
    worker = Worker(tmp_path_factory.mktemp("worker"), broker)
    yield worker
    worker.stop()


@pytest.mark.parametrize("where", ["window", "middle", "code"])
def test_predictions_through_a_worker_are_bit_for_bit_those_of_the_whole(
    broker: Mosquitto, worker: Worker, middle: str, where: str
):
    batches = cut(even_times(4000), signal(4000), [101])
    model = open_model("har-base")
    manifest = model.bundle.manifest
    alone = fed(Pipeline(model, manifest), batches)
    settings = SplitSettings(
        cut=middle if where == "middle" else where, privacy="window", deadline_ms=10_000, broker="b"
    )
    config = Config(broker={"b": BrokerSettings(url=broker.url)}, mqtt=MqttSettings(retry_first_s=0.05), split=settings)
    asking = open_requester(config, f"board-{where}", CLOCK)
    asking.start()
    try:
        wait_until(lambda: asking.connected, 10, "a connection")
        split = open_split(config, CLOCK, asking).around(model)
        events = fed(Pipeline(split, manifest), batches)
        figures = split.figures()
    finally:
        asking.close()

    assert events == alone
    predicted = sum(isinstance(event, Prediction) for event in events)
    assert predicted > 50
    assert (figures["away"], figures["timed_out"], figures["garbled"]) == (predicted, 0, 0)


def test_an_agent_has_the_rest_run_elsewhere_and_says_so(
    tmp_path: Path, broker: Mosquitto, worker: Worker, middle: str
):
    sensor, listener = Sensor(tmp_path, speed=10), Listener(broker.port)
    agent = Agent(
        tmp_path,
        f'[broker.local]\nurl = "{broker.url}"\n[serial.imu]\nport = "{sensor.path}"\ntime = "ms"\n'
        f'[split]\ncut = "{middle}"\ndeadline_ms = 2000\n[telemetry]\ninterval_s = 1\n',
    )

    def figures() -> dict[str, Any]:
        return (listener.state("har/board/telemetry") or {}).get("split", {})

    try:
        agent.start()
        wait_until(lambda: figures().get("away", 0) > 10, 30, "windows that go away")
        said = figures()
        shown = subprocess.run(
            [sys.executable, "-m", "agent", "status", "--config", str(agent.config)],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        ).stdout
        assert agent.stop() == 0
        wait_until(lambda: (listener.state("har/board/status") or {})["state"] == "offline", 10, "its farewell")
    finally:
        agent.stop()
        sensor.close()
        listener.close()

    assert said["cut"] == middle
    assert f"cut {middle}, windows end" in shown
    assert listener.holes() == []
    assert {p["origin"] for p in listener.predictions.values()} == {"local"}


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ('cut = "conv17"', "split.cut: har-base@"),
        ('cut = "code"\nexit = "first"', "no exit 'first'"),
        ('cut = "auto"\nprofiles = "/nowhere.json /nowhere.json"', "split.profiles: /nowhere.json cannot be read"),
        ('cut = "off"\nearly = true', "has no exits"),
    ],
)
def test_an_agent_that_cannot_do_as_it_is_told_does_not_start_and_says_why(tmp_path: Path, section: str, says: str):
    agent = Agent(
        tmp_path,
        '[broker.local]\nurl = "mqtt://127.0.0.1:1"\n[serial.imu]\nport = "/nowhere"\ntime = "ms"\n'
        f"[split]\n{section}\n",
    )
    agent.start()
    assert agent.process is not None
    assert agent.process.wait(30) == 78
    assert says in agent.tail()


def test_check_says_what_may_leave_the_board_and_which_cuts_there_are():
    (found,) = check_split(Config(split=SplitSettings(cut="code")))
    assert (found.state, "as the tensor code" in found.text) == ("ok", True)
    (found,) = check_split(Config(split=SplitSettings(cut="nowhere")))
    assert (found.state, "there are window" in found.text) == ("error", True)
    assert list(check_split(Config())) == []


def test_check_tries_the_configured_bundle_and_the_one_in_service_which_does_not_keep_the_agent_from_starting(
    tmp_path: Path,
):
    (tmp_path / "models").mkdir()
    shutil.copytree(builtin_models() / "har-exits", tmp_path / "models/a")
    agent = AgentSettings(state_dir=str(tmp_path))
    early = SplitSettings(early=True)
    (found,) = check_split(Config(agent=agent, split=early))
    assert (found.state, "has no exits" in found.text) == ("error", True)

    state = SlotState(active="a", models={"a": open_model("har-exits").id, "b": None})
    (tmp_path / "models/slots.json").write_bytes(dump(state))
    # What is configured runs again after a rollback.
    (found,) = check_split(Config(agent=agent, split=early))
    assert (found.state, "har-base" in found.text) == ("error", True)
    exits = ModelSettings(bundle="har-exits")
    (found,) = check_split(Config(agent=agent, model=exits, split=early))
    assert found.state == "ok"
    shutil.rmtree(tmp_path / "models/a")
    shutil.copytree(builtin_models() / "har-base", tmp_path / "models/a")
    (found,) = check_split(Config(agent=agent, model=exits, split=early))
    assert (found.state, "har-base" in found.text) == ("warning", True)
    # A profile that cannot be read does.
    unread = SplitSettings(cut="auto", profiles="/nowhere.json /nowhere.json")
    (found,) = check_split(Config(agent=agent, split=unread))
    assert (found.state, "cannot be read" in found.text) == ("error", True)
