"""A network in parts over several workers, asked by the agent's own requester, over a real broker."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as paho
import pytest
import structlog
from graphs import write_segment
from mosquitto import Mosquitto, until
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from agent.adapters.bundle import find_bundle, load_bundle, read_golden
from agent.adapters.clock import SystemClock
from agent.adapters.mqtt import Subscriber
from agent.adapters.mqtt.requester import Requester
from agent.adapters.onnx_model import OrtModel
from agent.adapters.onnx_parts import Parts
from agent.app.cloud_worker import build
from agent.app.compose import open_model
from agent.config import Config
from agent.core.cloud_wire import CloudRefusal, Refusal
from agent.core.settings import AgentSettings, BrokerSettings, MqttSettings, SplitSettings, WorkerSettings
from agent.core.split_wire import (
    MAX_TENSORS,
    TensorAnswer,
    TensorRequest,
    decode_tensor_answer,
    encode_tensor_request,
)
from agent.records import Float32Array, Scores
from agent.runtime.serving import Serving

CLOCK = SystemClock()
QUICK = MqttSettings(retry_first_s=0.01, retry_longest_s=0.05)
CUT = "ex"
"""Where the network is cut in two."""


class Chain:
    """A broker, and workers by name: one begins, and two share the end."""

    def __init__(self, folder: Path, broker: Mosquitto) -> None:
        self.broker, self._folder = broker, folder
        whole = load_bundle(find_bundle("har-base"))
        self.segments = {
            "head": write_segment(folder / "head", whole, "window", CUT, name="head"),
            "tail": write_segment(folder / "tail", whole, CUT, name="tail"),
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._said: dict[str, Any] = {}
        self._listener = Subscriber(BrokerSettings(broker.url), QUICK, ["har/+/worker"], CLOCK)
        self._listener.start()

    def begin(self, name: str, bundle: str, service: str, goes_on: str = "") -> None:
        """Start a worker, without waiting for it."""
        config = self._folder / f"{name}.toml"
        config.write_text(
            f'[agent]\nname = "{name}"\n[broker.a]\nurl = "{self.broker.url}"\n[telemetry]\ninterval_s = 1\n'
            f'[worker]\nbundles = "{self.segments.get(bundle, bundle)}"\nservice = "{service}"\nnext = "{goes_on}"\n'
        )
        self._said.pop(f"har/{name}/worker", None)
        self.processes[name] = subprocess.Popen(
            [sys.executable, "-m", "agent", "cloud-worker", "--config", str(config)], stdout=subprocess.DEVNULL
        )

    def figures(self, name: str, **least: int) -> Any:
        """Wait until a worker has counted at least that much, and return what it says."""

        def told() -> Any:
            while (message := self._listener.poll(0)) is not None:
                self._said[message.topic] = json.loads(message.payload)
            said = self._said.get(f"har/{name}/worker")
            return said if said and all(said[key] >= n for key, n in least.items()) else None

        return until(told, 20)

    def close(self) -> None:
        self._listener.close()
        for process in self.processes.values():
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    folder = tmp_path_factory.mktemp("chain")
    with Mosquitto(folder) as broker, closing(Chain(folder, broker)) as chain:
        chain.begin("edge", "head", "edge", "tail")
        chain.begin("end-1", "tail", "tail")
        chain.begin("end-2", "tail", "tail")
        for name in list(chain.processes):
            chain.figures(name)
        yield chain


@pytest.fixture(scope="module")
def model() -> OrtModel:
    return open_model("har-base")


@pytest.fixture(scope="module")
def parts(model: OrtModel) -> Parts:
    parts = Parts(model.bundle)
    parts.verify(read_golden(model.bundle))
    return parts


@pytest.fixture(scope="module")
def windows(model: OrtModel) -> Float32Array:
    return model.bundle.manifest.normalisation.apply(read_golden(model.bundle).window)


@pytest.fixture(scope="module")
def whole(model: OrtModel, windows: Float32Array) -> Scores:
    """What the network gives that was never split."""
    return model.infer(windows)


def requester(broker: Mosquitto, service: str, **settings: Any) -> Requester:
    asking = SplitSettings(service=service, **settings)
    longest = MAX_TENSORS + 4096
    board = Requester("board", BrokerSettings(broker.url), QUICK, asking, CLOCK, purpose="split", longest=longest)
    board.start()
    until(lambda: board.connected)
    return board


def tensor(parts: Parts, values: Any, at: str = "window", **others: Any) -> bytes:
    request = TensorRequest(parts.network, at, "", "", len(values), 0, values.tobytes())
    return encode_tensor_request(request._replace(**others))


def exchange(board: Requester, payloads: list[bytes]) -> list[TensorAnswer | CloudRefusal]:
    """Ask all at once, and return what is answered, in the order of the questions."""
    for i, payload in enumerate(payloads):
        assert board.ask(b"%d" % i, payload)
    replies: dict[int, TensorAnswer | CloudRefusal] = {}
    deadline = time.monotonic() + 10
    while len(replies) < len(payloads):
        assert board.wait(deadline - time.monotonic()), "no answer came in time"
        replies.update({int(r.correlation): decode_tensor_answer(r.payload) for r in board.answers()})
    return [replies[i] for i in range(len(payloads))]


def assert_same(answer: TensorAnswer | CloudRefusal, whole: Scores, rows: slice) -> None:
    """Bit for bit what the whole network gives."""
    assert isinstance(answer, TensorAnswer), answer
    assert answer.code.tobytes() == whole.code[rows].tobytes()
    assert answer.logits.tobytes() == whole.logits[rows].tobytes()
    assert answer.novelty.astype(np.float64).tobytes() == whole.novelty[rows].tobytes()


def test_a_chain_of_segments_gives_what_the_whole_network_gives(
    chain: Chain, parts: Parts, windows: Float32Array, whole: Scores
):
    passed_on = chain.figures("edge")["passed_on"]
    sizes = [1, 1, 2, 3, 5, 8, 1, 1, 16]
    ends = np.cumsum(sizes) % len(windows)
    rows = [slice(max(0, end - size), max(end, size)) for size, end in zip(sizes, ends, strict=True)]
    with closing(requester(chain.broker, "edge")) as board:
        began = time.monotonic()
        answers = exchange(board, [tensor(parts, windows[row]) for row in rows])
        took_us = (time.monotonic() - began) * 1e6

    for row, answer in zip(rows, answers, strict=True):
        assert_same(answer, whole, row)
        assert isinstance(answer, TensorAnswer)
        assert 0 < answer.elapsed_us < took_us
    assert chain.figures("edge", passed_on=passed_on + len(sizes))["answered"] == 0
    assert chain.figures("edge")["models"][0].startswith("head@")


def test_a_board_goes_as_far_as_it_likes_itself(chain: Chain, parts: Parts, windows: Float32Array, whole: Scores):
    row = slice(0, 3)
    with closing(requester(chain.broker, "tail")) as board:
        (answer,) = exchange(board, [tensor(parts, parts.run("window", CUT, windows[row]), CUT)])
    assert_same(answer, whole, row)


def test_two_workers_share_the_tail(chain: Chain, parts: Parts, windows: Float32Array):
    before = {name: chain.figures(name)["answered"] for name in ("end-1", "end-2")}
    with closing(requester(chain.broker, "edge")) as board:
        exchange(board, [tensor(parts, windows[:1])] * 100)

    for name, answered in before.items():
        chain.figures(name, answered=answered + 20)


def test_what_no_part_of_the_chain_can_do_is_refused_by_whoever_finds_out(
    chain: Chain, parts: Parts, windows: Float32Array
):
    good = tensor(parts, windows[:1])
    behind = parts.run("window", CUT, windows[:1])
    wrong = [
        (good[:-1], Refusal.BAD_REQUEST),
        (b"HT", Refusal.BAD_REQUEST),
        (good[:2] + b"\x07" + good[3:], Refusal.UNKNOWN_VERSION),
        (good + bytes(MAX_TENSORS), Refusal.TOO_LARGE),
        (tensor(parts, windows[:1], network=b"another!"), Refusal.OTHER_PART),
        (tensor(parts, behind, CUT), Refusal.OTHER_PART),
        # The first worker cannot know, the last one does.
        (tensor(parts, windows[:1], until="e1000"), Refusal.OTHER_PART),
        (tensor(parts, windows[:1], exit="sure"), Refusal.OTHER_PART),
    ]
    with closing(requester(chain.broker, "edge")) as board:
        replies = exchange(board, [payload for payload, _ in wrong])

    assert [reply.refusal for reply in replies if isinstance(reply, CloudRefusal)] == [why for _, why in wrong]


def serving(chain: Chain, ending: ExitStack, bundle: str, name: str, goes_on: str = "") -> Serving:
    """A worker in this process, whose turns are the test's."""
    settings = WorkerSettings(name, next=goes_on)
    config = Config(AgentSettings(name), broker={"a": BrokerSettings(chain.broker.url)}, worker=settings)
    bundles = [str(chain.segments.get(bundle, bundle))]
    found = build(config, bundles, CLOCK, structlog.get_logger(), ending)
    ending.callback(found.shut_down)
    until(found.subscribed)
    return found


def test_a_whole_bundle_begins_anywhere_and_passes_on_where_it_is_told_to(
    chain: Chain, parts: Parts, windows: Float32Array, whole: Scores
):
    row = slice(2, 4)
    with ExitStack() as ending:
        worker = serving(chain, ending, "har-base", "whole", "tail")
        board = ending.enter_context(closing(requester(chain.broker, "whole")))
        for i, cut in enumerate(parts.cuts):
            values = parts.run("window", cut.name, windows[row]) if i else windows[row]
            assert board.ask(cut.name.encode(), tensor(parts, values, cut.name))
        assert board.ask(b"chain", tensor(parts, windows[row], until=CUT))
        assert board.ask(b"back", tensor(parts, parts.run("window", "code", windows[row]), "code", until=CUT))
        answers: dict[bytes, TensorAnswer | CloudRefusal] = {}

        def answered() -> bool:
            worker.turn()
            answers.update({r.correlation: decode_tensor_answer(r.payload) for r in board.answers()})
            return len(answers) == len(parts.cuts) + 2

        until(answered)

    back = answers.pop(b"back")
    assert isinstance(back, CloudRefusal)
    assert back.refusal is Refusal.OTHER_PART
    assert len(answers) > 5
    for answer in answers.values():
        assert_same(answer, whole, row)


def test_a_part_that_ends_nowhere_says_what_to_set(chain: Chain, parts: Parts, windows: Float32Array):
    with ExitStack() as ending:
        worker = serving(chain, ending, "head", "alone")
        board = ending.enter_context(closing(requester(chain.broker, "alone")))
        assert board.ask(b"1", tensor(parts, windows[:1]))
        (reply,) = until(lambda: worker.turn() or board.answers())

    said = decode_tensor_answer(reply.payload)
    assert isinstance(said, CloudRefusal)
    assert said.refusal is Refusal.NOWHERE_NEXT
    assert "set next in the worker's [worker]" in said.sentence


def test_what_goes_on_carries_what_the_answer_needs_and_expires_with_the_request(
    chain: Chain, parts: Parts, windows: Float32Array
):
    came: list[paho.MQTTMessage] = []
    granted: list[Any] = []
    ear = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    ear.on_message = lambda _client, _data, message: came.append(message)
    ear.on_subscribe = lambda *told: granted.append(told)
    ear.connect(chain.broker.host, chain.broker.port)
    ear.subscribe("har/cloud/nobody/request")
    ear.loop_start()
    with ExitStack() as ending:
        ending.callback(ear.loop_stop)
        ending.callback(ear.disconnect)
        until(lambda: granted)
        worker = serving(chain, ending, "head", "lonely", "nobody")
        board = ending.enter_context(closing(requester(chain.broker, "lonely", deadline_ms=3200)))
        assert not board.wait(0)
        assert board.ask(b"17", tensor(parts, windows[:1]))
        (message,) = until(lambda: worker.turn() or came)
        # Nobody answers, and nobody is the worse for it.
        assert board.ask(b"18", b"HT")
        (reply,) = until(lambda: worker.turn() or board.answers())

    assert reply.correlation == b"18"
    assert (message.qos, message.retain) == (0, False)
    properties = message.properties
    assert properties is not None
    assert (properties.ResponseTopic, properties.CorrelationData) == ("har/board/split/answer", b"17")
    assert properties.MessageExpiryInterval in (3, 4)
    assert len(message.payload) < len(tensor(parts, windows[:1]))


def test_the_death_of_one_in_the_chain_costs_answers_and_nothing_else(
    chain: Chain, parts: Parts, windows: Float32Array, whole: Scores
):
    payload = tensor(parts, windows[:1])

    def asked_once() -> TensorAnswer | CloudRefusal | None:
        assert board.ask(b"last", payload)
        while board.wait(0.2):
            for reply in board.answers():
                if reply.correlation == b"last":
                    return decode_tensor_answer(reply.payload)
        return None

    with closing(requester(chain.broker, "edge")) as board:
        for i in range(200):
            assert board.ask(b"%d" % i, payload)
            if i == 50:
                chain.processes["end-1"].kill()
        chain.processes.pop("end-1").wait()
        assert_same(until(asked_once), whole, slice(0, 1))

        chain.processes["end-2"].kill()
        chain.processes.pop("end-2").wait()
        passed_on = chain.figures("edge")["passed_on"]
        for _ in range(10):
            assert board.ask(b"gone", payload)
        chain.figures("edge", passed_on=passed_on + 10)
        assert b"gone" not in [reply.correlation for reply in board.answers()]
        (refused,) = exchange(board, [b"HT"])
        assert isinstance(refused, CloudRefusal)
