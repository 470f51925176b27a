"""Cloud workers as processes, asked by the agent's own requester, over a real broker."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as paho
import pytest
import structlog
from mosquitto import Mosquitto, until
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.adapters.clock import SystemClock
from agent.adapters.mqtt import Subscriber
from agent.adapters.mqtt.requester import MAX_ANSWERS, Requester
from agent.adapters.onnx_model import OrtModel
from agent.app.cloud_worker import build
from agent.app.compose import open_model
from agent.config import Config
from agent.core.cloud_wire import (
    MAX_REQUEST,
    NO_SPACE,
    CloudAnswer,
    CloudRefusal,
    Kind,
    Refusal,
    Request,
    code_space,
    decode_answer,
    encode_request,
    labels_crc,
)
from agent.core.decision import calibrated
from agent.core.settings import AgentSettings, BrokerSettings, CloudSettings, MqttSettings, WorkerSettings
from agent.errors import ConfigError
from agent.records import CloudReply, Int8Array

CLOCK = SystemClock()
QUICK = MqttSettings(retry_first_s=0.01, retry_longest_s=0.05)
RATE_HZ = 50.0


class Cloud:
    """A broker, workers by name, and what they have said of themselves."""

    def __init__(self, folder: Path, broker: Mosquitto) -> None:
        self.broker, self._folder = broker, folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.said: dict[str, Any] = {}
        self._listener = Subscriber(
            BrokerSettings(broker.url), QUICK, [f"har/+/{kind}" for kind in ("status", "health", "worker")], CLOCK
        )
        self._listener.start()

    def start(self, name: str) -> None:
        config = self._folder / f"{name}.toml"
        config.write_text(
            f'[agent]\nname = "{name}"\n[broker.a]\nurl = "{self.broker.url}"\n[telemetry]\ninterval_s = 1\n'
            '[worker]\nbundles = "har-base"\n'
        )
        self.processes[name] = subprocess.Popen(
            [sys.executable, "-m", "agent", "cloud-worker", "--config", str(config)], stdout=subprocess.DEVNULL
        )
        until(lambda: self.listen(name, "worker"), 20)

    def listen(self, name: str, kind: str) -> Any:
        """Return the newest message of a kind, None if there is none."""
        while (message := self._listener.poll(0)) is not None:
            self.said[message.topic] = json.loads(message.payload)
        return self.said.get(f"har/{name}/{kind}")

    def figures(self, name: str, of: Callable[[Any], Any]) -> Any:
        """Wait until a worker's telemetry says something that `of` finds true, and return that."""
        return until(lambda: of(self.listen(name, "worker")), 5)

    def close(self) -> None:
        self._listener.close()
        for process in self.processes.values():
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("cloud")
    with Mosquitto(folder) as broker, closing(Cloud(folder, broker)) as cloud:
        cloud.start("first")
        yield cloud


@pytest.fixture
def board(cloud: Cloud) -> Iterator[Requester]:
    with closing(requester(cloud.broker)) as board:
        yield board


@pytest.fixture(scope="module")
def model() -> OrtModel:
    return open_model("har-base")


def requester(broker: Mosquitto, **settings: Any) -> Requester:
    board = Requester("board", BrokerSettings(broker.url), QUICK, CloudSettings(**settings), CLOCK)
    assert not board.connected
    assert not board.ask(b"early", b"")
    board.start()
    until(lambda: board.connected)
    return board


def exchange(board: Requester, payloads: list[bytes]) -> dict[int, CloudAnswer | CloudRefusal]:
    """Ask all at once, and return what is answered, by the number of the request."""
    for i, payload in enumerate(payloads):
        assert board.ask(b"%d" % i, payload)
    replies: dict[int, CloudAnswer | CloudRefusal] = {}

    def all_answered() -> bool:
        replies.update({int(r.correlation): decode_answer(r.payload) for r in board.answers()})
        return len(replies) == len(payloads)

    until(all_answered)
    return replies


def of_codes(model: OrtModel, codes: Int8Array) -> bytes:
    space = code_space(model.bundle.manifest.files["encoder.onnx"].sha256)
    return encode_request(Request(Kind.CODE, space, RATE_HZ, codes=codes))


def histories(model: OrtModel, *lengths: int) -> list[Int8Array]:
    """Codes that windows of the golden vectors could have had, in every combination that a byte can have."""
    rng = np.random.default_rng(7)
    return [rng.integers(-128, 128, (n, model.bundle.manifest.code.bytes)).astype(np.int8) for n in lengths]


def test_what_is_answered_is_what_the_same_codes_score_here(cloud: Cloud, board: Requester, model: OrtModel):
    manifest = model.bundle.manifest
    assert manifest.context is not None
    k = manifest.context.windows
    asked = histories(model, k, 2, k - 1, k + 5, *[k] * 40)

    replies = exchange(board, [of_codes(model, codes) for codes in asked])

    for i, codes in enumerate(asked):
        seen = np.zeros((1, k, codes.shape[1]), np.int8)
        seen[0, -min(k, len(codes)) :] = codes[-k:]
        (row,) = calibrated(model.contextualise(seen), manifest.context.temperature).astype(np.float32)
        novelty = model.classify(codes[-1:]).novelty[0]
        known = bool(novelty <= manifest.calibration.novelty_threshold)
        assert replies[i] == CloudAnswer(tuple(row.tolist()), known, labels_crc(model.labels), model.id)


@pytest.mark.parametrize("windows", [1, 4])
def test_windows_are_scored_as_they_are_here(board: Requester, model: OrtModel, windows: int):
    manifest = model.bundle.manifest
    size, hop = manifest.input.window, manifest.input.hop if windows > 1 else 0
    rng = np.random.default_rng(3)
    samples = rng.normal(0, 1, (size + (windows - 1) * hop, 6)).astype(np.float16).astype(np.float32)
    request = Request(Kind.WINDOW, NO_SPACE, RATE_HZ, samples=samples, windows=windows, hop=hop)

    reply = exchange(board, [encode_request(request)])[0]

    cut = np.stack([samples[i * hop : i * hop + size] for i in range(windows)])
    scores = model.infer(manifest.normalisation.apply(cut))
    logits, temperature = scores.logits[-1:], manifest.calibration.temperature
    if windows > 1:
        assert manifest.context is not None
        history = np.zeros((1, manifest.context.windows, scores.code.shape[1]), np.int8)
        history[0, -windows:] = scores.code
        logits, temperature = model.contextualise(history), manifest.context.temperature
    (row,) = calibrated(logits, temperature).astype(np.float32)
    assert isinstance(reply, CloudAnswer)
    assert reply.probabilities == tuple(row.tolist())
    assert reply.known == bool(scores.novelty[-1] <= manifest.calibration.novelty_threshold)


def test_what_cannot_be_answered_is_refused_with_a_reason_and_counted(cloud: Cloud, board: Requester, model: OrtModel):
    (codes,) = histories(model, 2)
    good = of_codes(model, codes)
    space = code_space(model.bundle.manifest.files["encoder.onnx"].sha256)
    window = np.zeros((64, 6), np.float32)
    wrong = {
        Refusal.BAD_REQUEST: [b"", b"{}", good[:-1], good + b"\0", encode_request(
            Request(Kind.CODE, space, RATE_HZ, codes=np.zeros((2, 32), np.int8)))],
        Refusal.UNKNOWN_VERSION: [good[:2] + b"\x02" + good[3:]],
        Refusal.TOO_LARGE: [good + bytes(MAX_REQUEST)],
        Refusal.OTHER_CODE: [encode_request(Request(Kind.CODE, b"elsewher", RATE_HZ, codes=codes))],
        Refusal.OTHER_WINDOW: [
            encode_request(Request(Kind.WINDOW, NO_SPACE, RATE_HZ, samples=window)),
            encode_request(Request(Kind.WINDOW, NO_SPACE, 25.0, samples=np.zeros((128, 6), np.float32))),
            encode_request(Request(Kind.CODE, space, 25.0, codes=codes)),
        ],
    }  # fmt: skip
    expected = [refusal for refusal, payloads in wrong.items() for _ in payloads]

    replies = exchange(board, [payload for payloads in wrong.values() for payload in payloads])

    for i, refusal in enumerate(expected):
        reply = replies[i]
        assert isinstance(reply, CloudRefusal)
        assert reply.refusal is refusal
        assert len(reply.sentence) > 20
    counted = {refusal.name.lower(): len(payloads) for refusal, payloads in wrong.items()}
    cloud.figures("first", lambda message: message["refused"] == counted)


def test_nobody_can_have_a_worker_write_anywhere_else(
    cloud: Cloud, board: Requester, model: OrtModel, publisher: paho.Client
):
    before = cloud.figures("first", lambda message: message)["refused"].get("no_answer_topic", 0)
    wanted = ["har/board/status", "har/+/cloud/answer", "", "homeassistant/cloud/answers"]
    payload = of_codes(model, histories(model, 1)[0])
    filters = ["har/board/#", "homeassistant/#"]
    with closing(Subscriber(BrokerSettings(cloud.broker.url), QUICK, filters, CLOCK)) as ears:
        ears.start()
        for topic in wanted:
            properties = Properties(PacketTypes.PUBLISH)
            properties.CorrelationData = b"x"
            if topic:
                properties.ResponseTopic = topic
            publisher.publish("har/cloud/har-cloud/request", payload, properties=properties).wait_for_publish(5)

        cloud.figures("first", lambda message: message["refused"].get("no_answer_topic", 0) == before + len(wanted))
        exchange(board, [payload])
        answer = ears.poll(5)
        assert answer is not None
        assert answer.topic == "har/board/cloud/answer"


@pytest.fixture
def publisher(cloud: Cloud) -> Iterator[paho.Client]:
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client.connect(cloud.broker.host, cloud.broker.port)
    client.loop_start()
    yield client
    client.disconnect()
    client.loop_stop()


def test_a_request_expires_with_its_deadline_rounded_up(cloud: Cloud, publisher: paho.Client):
    came: list[paho.MQTTMessage] = []
    granted: list[Any] = []
    publisher.on_message = lambda _client, _data, message: came.append(message)
    publisher.on_subscribe = lambda *told: granted.append(told)
    publisher.subscribe("har/cloud/nobody/request")
    until(lambda: granted)
    with closing(requester(cloud.broker, service="nobody", deadline_ms=1200)) as board:
        assert board.ask(b"17", b"payload")
        (message,) = until(lambda: came)

    assert (message.payload, message.qos, message.retain) == (b"payload", 0, False)
    properties = message.properties
    assert properties is not None
    assert properties.MessageExpiryInterval == 2
    assert (properties.ResponseTopic, properties.CorrelationData) == ("har/board/cloud/answer", b"17")


def test_whoever_floods_a_board_with_answers_costs_it_no_memory_and_is_counted(
    board: Requester, publisher: paho.Client
):
    more = 50
    for n in range(MAX_ANSWERS + more):
        publisher.publish("har/board/cloud/answer", b"%d" % n, qos=1)

    until(lambda: board.dropped == more)
    assert [int(reply.payload) for reply in board.answers()] == list(range(more, MAX_ANSWERS + more))


def test_a_worker_that_cannot_keep_up_says_so(cloud: Cloud, model: OrtModel):
    settings = WorkerSettings("slow", max_waiting=3)
    config = Config(AgentSettings("slow"), broker={"a": BrokerSettings(cloud.broker.url)}, worker=settings)
    payload = of_codes(model, histories(model, 1)[0])
    with ExitStack() as ending:
        serving = build(config, ["har-base"], CLOCK, structlog.get_logger(), ending)
        ending.callback(serving.shut_down)
        until(serving.subscribed)
        board = ending.enter_context(closing(requester(cloud.broker, service="slow")))
        for i in range(8):
            assert board.ask(b"%d" % i, payload)
        refused: list[CloudReply] = []
        until(lambda: refused.extend(board.answers()) or len(refused) == 5)
        serving.turn()
        answered: list[CloudReply] = []
        until(lambda: answered.extend(board.answers()) or len(answered) == 3)

    assert [reply.correlation for reply in refused + answered] == [b"%d" % i for i in range(8)]
    for reply in refused:
        said = decode_answer(reply.payload)
        assert isinstance(said, CloudRefusal)
        assert said.refusal is Refusal.OVERLOADED


def test_what_cannot_work_is_told_at_the_start(cloud: Cloud):
    old = BrokerSettings(cloud.broker.url, protocol="3.1.1")
    with ExitStack() as ending, pytest.raises(ConfigError, match=r'set protocol = "5" in \[broker\.a\]'):
        build(Config(broker={"a": old}), ["har-base"], CLOCK, structlog.get_logger(), ending)
    with ExitStack() as ending, pytest.raises(ConfigError, match=r"\[worker\] bundles"):
        build(Config(), [], CLOCK, structlog.get_logger(), ending)


def test_workers_share_and_one_that_ends_or_dies_takes_nothing_along(cloud: Cloud, board: Requester, model: OrtModel):
    cloud.start("second")
    before = {name: cloud.listen(name, "worker")["answered"] for name in ("first", "second")}
    payload = of_codes(model, histories(model, 16)[0])

    exchange(board, [payload] * 400)
    for name, answered in before.items():
        cloud.figures(name, lambda message, least=answered: message["answered"] >= least + 100)

    # Told to end while requests come: it answers what it has got, and the other one gets the rest.
    second = cloud.processes.pop("second")
    seen: set[bytes] = set()
    for i in range(2000):
        assert board.ask(b"%d" % i, payload)
        seen.update(r.correlation for r in board.answers())
        if i == 300:
            second.send_signal(signal.SIGTERM)
    until(lambda: seen.update(r.correlation for r in board.answers()) or len(seen) == 2000)
    assert second.wait(15) == 0
    assert until(lambda: cloud.listen("second", "status")) == {"v": 1, "state": "offline"}

    # Killed: the broker tells by its last will.
    cloud.start("third")
    assert cloud.listen("third", "status")["state"] == "online"
    assert cloud.listen("third", "health")["state"] == "ok"
    third = cloud.processes.pop("third")
    third.kill()
    third.wait()
    until(lambda: cloud.listen("third", "status") == {"v": 1, "state": "offline"})
    exchange(board, [payload] * 10)


def test_a_worker_and_its_boards_come_back_with_the_broker(cloud: Cloud, board: Requester, model: OrtModel):
    payload = of_codes(model, histories(model, 3)[0])
    cloud.broker.kill()
    until(lambda: not board.connected)
    assert not board.ask(b"1", payload)

    cloud.broker.start()
    until(lambda: board.connected)

    def answered() -> bool:
        board.ask(b"2", payload)
        return any(r.correlation == b"2" for r in board.answers())

    until(answered)


def test_the_readiness_of_a_worker_is_told_to_systemd_and_it_ends_on_sigterm(cloud: Cloud, tmp_path: Path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(20)
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "agent",
                "cloud-worker",
                "har-base",
                "--broker",
                cloud.broker.url,
                "--service",
                "own",
            ],
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"},
            stdout=subprocess.DEVNULL,
        )
        # Nobody has named it: another one on this machine has another name.
        name = f"{os.uname().nodename}-worker-{process.pid}"
        said: list[str] = []
        try:
            while not ("READY=1" in said and said.count("WATCHDOG=1") > 2):
                said.append(systemd.recv(4096).decode())
            until(lambda: cloud.listen(name, "status")["state"] == "online")
        finally:
            process.terminate()
            process.terminate()  # as `timeout` does
            assert process.wait(15) == 0
        until(lambda: cloud.listen(name, "status")["state"] == "offline")
        assert cloud.listen(name, "worker") is not None
        systemd.setblocking(False)
        said += iter(lambda: _received(systemd), "")
        assert "STOPPING=1" in said


def _received(systemd: Any) -> str:
    try:
        return str(systemd.recv(4096).decode())
    except BlockingIOError:
        return ""
