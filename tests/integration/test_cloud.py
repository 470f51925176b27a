"""`har-agent run` that asks a cloud which a test plays, through a real broker: whatever that does, nothing is lost."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from live import Agent, Listener, Sensor, wait_until
from mosquitto import Mosquitto
from played_worker import PlayedWorker

from agent.app.compose import open_model
from agent.core.cloud_wire import CloudAnswer, Kind, answer_topic, decode_request, encode_answer, labels_crc

MODEL = "test-cloud@11111111"


@pytest.fixture(scope="module")
def answer() -> bytes:
    """An answer that says the last of the shipped model's labels."""
    labels = open_model("har-base").labels
    return encode_answer(CloudAnswer((0.0,) * (len(labels) - 1) + (1.0,), True, labels_crc(labels), MODEL))


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as broker:
        yield broker


@pytest.fixture
def sensor(tmp_path: Path) -> Iterator[Sensor]:
    sensor = Sensor(tmp_path, speed=10)
    yield sensor
    sensor.close()


@pytest.fixture
def listener(broker: Mosquitto) -> Iterator[Listener]:
    listener = Listener(broker.port)
    yield listener
    listener.close()


@pytest.fixture
def agent(tmp_path: Path, broker: Mosquitto, sensor: Sensor) -> Iterator[Agent]:
    agent = Agent(
        tmp_path,
        f'[broker.local]\nurl = "{broker.url}"\n[serial.imu]\nport = "{sensor.path}"\ntime = "ms"\n'
        '[cloud]\nwhen = "always"\nrevise = true\nper_device_per_minute = 60000\nfailures = 3\nretry_s = 1\n'
        "[telemetry]\ninterval_s = 1\n",
    )
    yield agent
    assert agent.stop() == 0


def origins(listener: Listener) -> list[str]:
    return [listener.predictions[name]["origin"] for name in list(listener.predictions)]


def telemetry(listener: Listener) -> dict:
    return (listener.state("har/board/telemetry") or {}).get("cloud", {})


def test_answers_are_published_and_nothing_is_lost_when_they_end_turn_bad_and_come_back(
    broker: Mosquitto, agent: Agent, listener: Listener, answer: bytes
):
    worker = PlayedWorker(broker.port, lambda _: [answer])
    try:
        agent.start()
        wait_until(lambda: origins(listener).count("cloud") >= 5, 20, "answers of the cloud")
        for say in (lambda _: [], lambda _: [b"rubbish"], lambda _: [answer[:-4]], lambda _: [b"", answer, answer]):
            worker.say = say
            asked, told = len(worker.requests), listener.count()
            wait_until(
                lambda a=asked, t=told: len(worker.requests) > a and listener.count() > t + 3, 20, "more windows"
            )
        worker.say = lambda _: []
        wait_until(lambda: telemetry(listener).get("breaker") == "open", 20, "the breaker to open")
        worker.say = lambda _: [answer]
        cloudy = origins(listener).count("cloud")
        wait_until(lambda: origins(listener).count("cloud") > cloudy + 3, 20, "answers of the cloud again")
        wait_until(lambda: telemetry(listener).get("breaker") == "closed", 20, "the breaker to close")
        said = next(p for p in listener.predictions.values() if p["origin"] == "cloud")
        figures = telemetry(listener)
    finally:
        worker.close()
    assert agent.stop() == 0
    wait_until(lambda: (listener.state("har/board/status") or {})["state"] == "offline", 10, "its farewell")

    request = decode_request(worker.requests[-1])
    assert (said["model"], said["confidence"], said["activity"]) == (MODEL, 1.0, list(said["scores"])[-1])
    assert 0 < said["latency_ms"]["cloud"] <= said["latency_ms"]["total"]
    assert request.kind is Kind.CODE
    assert listener.holes() == []
    numbers = [p["seq"] for p in listener.predictions.values() if not p["historical"]]
    assert numbers == sorted(numbers)
    totals = [p["latency_ms"]["total"] for p in listener.predictions.values() if "latency_ms" in p]
    # The deadline, and generously what a busy machine adds.
    assert max(totals) < 300 + 2000
    assert figures["garbled"] >= 1
    assert figures["timed_out"] >= 3
    assert figures["bytes_up"] == figures["asked"] * len(worker.requests[-1])


def test_a_late_answer_is_a_revision_and_one_to_nothing_changes_nothing(
    broker: Mosquitto, agent: Agent, listener: Listener, answer: bytes
):
    worker = PlayedWorker(broker.port, lambda _: [])
    try:
        agent.start()
        wait_until(lambda: worker.held, 20, "a request")
        topic, correlation, _ = worker.held[0]
        assert topic == answer_topic("har", "board")
        # Whoever may answer must have read the request: what all may read does not tell it.
        assert len(correlation) == 16
        assert (listener.state("har/board/status") or {})["boot"].encode() not in correlation
        wait_until(lambda: telemetry(listener).get("timed_out"), 20, "a window that was not answered")
        worker.answer(topic, b"nothing", answer)
        worker.answer(topic, correlation, answer)
        revised = wait_until(lambda: listener.state("har/imu/revision"), 10, "a revision")
        wait_until(lambda: telemetry(listener).get("unexpected"), 10, "what was not asked, counted")
    finally:
        worker.close()

    first = listener.predictions[revised["id"]]
    assert (first["origin"], revised["origin"], revised["model"]) == ("local", "cloud", MODEL)
    assert (revised["activity"], revised["t1"]) == (first["activity"], first["t1"])
    assert set(origins(listener)) == {"local"}
    assert telemetry(listener)["late"] == 1
