"""The MQTT sink against a real broker, and against servers that are not what they should be."""

import json
import socket
import threading
from collections.abc import Iterator

import pytest

from agent.adapters.clock import SystemClock
from agent.adapters.embedded_broker import EmbeddedBroker
from agent.adapters.mqtt import Message, MqttSettings, MqttSink, MqttSubscriber, topic_level
from agent.errors import SinkUnavailable
from agent.records import ActivityChange, Origin, Prediction, Timings, Turn

LABELS = ("walking", "sitting")


def turn(seq: int, device: str = "waist-07") -> Turn:
    prediction = Prediction(
        stream=device,
        seq=seq,
        t0_ns=0,
        t1_ns=2_560_000_000,
        label="walking",
        confidence=0.9,
        scores=(0.9, 0.1),
        novelty=0.1,
        known=True,
        activity="walking",
        origin=Origin.LOCAL,
        model="m@0",
    )
    change = ActivityChange(device, 2_560_000_000, "walking", None, 0.9)
    timings = {(device, seq): Timings(device, seq, 0, 1_000_000, 2_000_000, 4_000_000)}
    return Turn((), (), (prediction, change), timings)


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as running:
        yield running


@pytest.fixture
def settings(broker: EmbeddedBroker) -> MqttSettings:
    return MqttSettings(broker.host, broker.port, agent="board-1", timeout_s=5)


def listen(settings: MqttSettings, topic_filter: str = "har/#") -> MqttSubscriber:
    subscriber = MqttSubscriber(settings, topic_filter, SystemClock())
    subscriber.start()
    return subscriber


def expect(subscriber: MqttSubscriber, n: int) -> list[Message]:
    messages = [subscriber.poll(5) for _ in range(n)]
    assert None not in messages
    return [m for m in messages if m is not None]


def test_publishes_predictions_changes_and_status(settings: MqttSettings):
    subscriber = listen(settings)
    sink = MqttSink(settings, LABELS, boot="b00t")
    sink.start()
    sink.write(turn(0))
    sink.write(turn(1))
    sink.close()
    sink.close()
    messages = expect(subscriber, 6)
    subscriber.close()

    assert [(m.topic, json.loads(m.payload).get("seq")) for m in messages] == [
        ("har/board-1/status", None),
        ("har/waist-07/prediction", 0),
        ("har/waist-07/activity", None),
        ("har/waist-07/prediction", 1),
        ("har/waist-07/activity", None),
        ("har/board-1/status", None),
    ]
    assert [json.loads(m.payload)["state"] for m in (messages[0], messages[-1])] == ["online", "offline"]
    prediction = json.loads(messages[1].payload)
    assert prediction["id"] == "b00t:waist-07:0"
    assert prediction["latency_ms"] == {"wait": 1.0, "infer": 2.0, "total": 4.0}
    assert sink.predictions == 2
    assert sink.unacknowledged == 0
    assert subscriber.poll(0) is None


def test_who_subscribes_later_finds_activity_and_status_but_no_old_prediction(settings: MqttSettings):
    sink = MqttSink(settings, LABELS, boot="b")
    sink.start()
    sink.write(turn(0))
    sink.close()
    subscriber = listen(settings)
    messages = expect(subscriber, 2)
    subscriber.close()

    assert {m.topic for m in messages} == {"har/waist-07/activity", "har/board-1/status"}
    assert all(m.retained for m in messages)


def test_the_last_will_says_offline_when_the_connection_breaks(settings: MqttSettings):
    subscriber = listen(settings, "har/board-1/status")
    sink = MqttSink(settings, LABELS, boot="b")
    sink.start()
    states = [json.loads(m.payload)["state"] for m in expect(subscriber, 1)]
    wire = sink._connection.client.socket()
    assert isinstance(wire, socket.socket)
    wire.shutdown(socket.SHUT_RDWR)
    states += [json.loads(m.payload)["state"] for m in expect(subscriber, 1)]
    sink.close()
    subscriber.close()

    assert states == ["online", "offline"]


def test_what_the_broker_never_acknowledged_is_told(broker: EmbeddedBroker):
    sink = MqttSink(MqttSettings(broker.host, broker.port, timeout_s=0.5), LABELS, boot="b")
    sink.start()
    broker.stop()
    sink.write(turn(0))

    with pytest.raises(SinkUnavailable, match=r"did not acknowledge \d messages within 0.5 s"):
        sink.close()


def test_no_broker_is_said_with_its_address():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        sink = MqttSink(MqttSettings("127.0.0.1", port), LABELS, boot="b")

        with pytest.raises(SinkUnavailable, match=f"127.0.0.1:{port} cannot be reached: .*refused"):
            sink.start()
    sink.close()


@pytest.mark.parametrize(
    ("answer", "words"),
    [(b"\x20\x02\x00\x05", "refused the connection: Not authorized"), (b"", "did not answer within 0.5 s")],
)
def test_a_broker_that_refuses_or_is_silent(answer: bytes, words: str):
    with socket.create_server(("127.0.0.1", 0)) as server:
        ended = threading.Event()

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(answer)
                ended.wait(5)

        thread = threading.Thread(target=serve)
        thread.start()
        sink = MqttSink(MqttSettings("127.0.0.1", server.getsockname()[1], timeout_s=0.5), LABELS, boot="b")
        try:
            with pytest.raises(SinkUnavailable, match=words):
                sink.start()
        finally:
            ended.set()
            thread.join(5)
            sink.close()


def test_names_become_single_topic_levels():
    assert [topic_level(n) for n in ("waist-07", "a/b", "+", "x#y", "")] == ["waist-07", "a_b", "_", "x_y", "_"]


def test_a_broker_starts_and_stops_again_and_again():
    before = threading.active_count()
    for _ in range(3):
        with EmbeddedBroker() as broker:
            assert broker.port > 0
        broker.stop()

    assert threading.active_count() == before
