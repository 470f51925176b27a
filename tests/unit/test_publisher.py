import json
from collections.abc import Sequence

import numpy as np
import pytest
from fakes import FakeClock, even_times, signal

from agent.core.wire import HISTORICAL, LIVE
from agent.records import (
    ActivityChange,
    Origin,
    Outgoing,
    Prediction,
    Refused,
    SampleBatch,
    Timings,
    Turn,
)
from agent.runtime.publisher import Publisher

S = 1_000_000_000
LABELS = ("walking", "laying")


class KeptDelivery:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.published: list[tuple[Outgoing, int]] = []
        self.states: list[tuple[str, bytes]] = []

    def publish(self, messages: Sequence[Outgoing], received_ns: Sequence[int]) -> None:
        self.published += zip(messages, received_ns, strict=True)

    def set_state(self, topic: str, payload: bytes) -> None:
        self.states.append((topic, payload))

    def forget_state(self, topic: str) -> None:
        self.states.append((topic, b""))

    def told(self, topic: str) -> list[dict]:
        return [json.loads(payload) for t, payload in self.states if t == topic]


@pytest.fixture
def clock() -> FakeClock:
    clock = FakeClock()
    clock.now_ns = 100 * S
    return clock


@pytest.fixture
def delivery() -> KeptDelivery:
    return KeptDelivery()


@pytest.fixture
def publisher(delivery: KeptDelivery, clock: FakeClock) -> Publisher:
    return Publisher(delivery, clock, "har", LABELS, "b00t", "board")


def samples(stream: str = "waist", t0_s: float = 0.0, t_rx_ns: int | None = None, n: int = 50) -> SampleBatch:
    return SampleBatch(stream, even_times(n, t0_s=t0_s), signal(n), 0, t_rx_ns)


def prediction(stream: str = "waist", seq: int = 0, t1_ns: int = 3 * S, **changes) -> Prediction:
    p = Prediction(
        stream,
        seq,
        t1_ns - 2_560_000_000,
        t1_ns,
        "walking",
        0.9,
        (0.9, 0.1),
        0.1,
        True,
        "walking",
        Origin.LOCAL,
        "m@1",
    )
    return p._replace(**changes)


def turn(batches=(), events=(), timings=None) -> Turn:
    return Turn(list(batches), [], list(events), timings or {})


def test_a_prediction_goes_to_its_device_with_the_time_of_receipt(publisher, delivery):
    timings = Timings("waist", 0, 99 * S, 1, 2, 3)
    publisher.write(turn(events=[prediction()], timings={("waist", 0): timings}))

    ((message, received_ns),) = delivery.published
    assert message.topic == "har/waist/prediction"
    assert not message.retain
    assert received_ns == 99 * S
    assert json.loads(message.payload)["id"] == "b00t:waist:0"
    assert json.loads(message.payload.replace(LIVE, HISTORICAL))["historical"] is True


def test_a_revision_has_a_topic_of_its_own_and_the_id_of_what_it_revises(publisher, delivery):
    revised = prediction(origin=Origin.CLOUD, model="c@1")
    publisher.write(Turn([], [], [prediction()], {}, [revised]))

    said = {message.topic: json.loads(message.payload) for message, _ in delivery.published}
    assert said["har/waist/revision"] == said["har/waist/prediction"] | {"origin": "cloud", "model": "c@1"}
    assert not any(message.retain for message, _ in delivery.published)


def test_time_is_that_of_the_windows_end_however_late_it_came(publisher, delivery, clock):
    start = clock.wall_ns()
    publisher.write(turn([samples(t0_s=0.0, t_rx_ns=100 * S)]))
    clock.now_ns = 130 * S
    publisher.write(turn([samples(t0_s=1.0, t_rx_ns=130 * S)], [prediction(t1_ns=even_times(50)[-1] + 5 * S)]))

    ((message, _),) = delivery.published
    wall = np.datetime64(json.loads(message.payload)["time"].removesuffix("Z"), "ns").astype(int)
    assert wall == start + 5 * S


def test_a_step_of_the_wall_clock_changes_time_and_nothing_else(publisher, delivery, clock, monkeypatch):
    publisher.write(turn([samples(t_rx_ns=100 * S)], [prediction()]))
    day = 86_400 * S
    monkeypatch.setattr(FakeClock, "wall_ns", lambda self: 1_700_000_000 * S + self.now_ns - day)
    clock.is_synced = False
    clock.now_ns += 2 * S
    publisher.write(turn(events=[prediction()]))

    before, after = (json.loads(message.payload) for message, _ in delivery.published)
    assert before["clock_synced"], not after["clock_synced"]
    assert before["time"][:10] == "2023-11-14"
    assert after["time"][:10] == "2023-11-13"
    assert before | {"time": "", "clock_synced": ""} == after | {"time": "", "clock_synced": ""}


def test_an_activity_is_retained(publisher, delivery):
    publisher.write(turn(events=[ActivityChange("waist", 3 * S, "laying", "walking", 0.8)]))

    (told,) = delivery.told("har/waist/activity")
    assert told["activity"] == "laying"
    assert told["time"].startswith("2023-11-14T22:15:00")


def test_a_stream_is_online_once_until_it_is_silent(publisher, delivery):
    topic = "har/waist/availability"
    for _ in range(2):
        publisher.write(turn([samples()]))
    assert delivery.told(topic) == [{"v": 1, "device": "waist", "agent": "board", "state": "online"}]

    publisher.silent("waist")
    publisher.silent("waist")
    publisher.write(turn([samples()]))

    assert [told["state"] for told in delivery.told(topic)] == ["online", "offline", "online"]


def test_a_stream_that_cannot_be_used_is_degraded_also_after_silence(publisher, delivery):
    publisher.write(turn([samples()], [Refused("waist", "a rate of 3 Hz")]))
    publisher.silent("waist")
    publisher.write(turn([samples()]))

    told = delivery.told("har/waist/availability")
    assert [t["state"] for t in told] == ["online", "degraded", "offline", "degraded"]
    assert told[1]["reason"] == told[3]["reason"] == "a rate of 3 Hz"


def test_a_retired_stream_leaves_nothing_at_the_broker_nor_here(publisher, delivery):
    publisher.write(turn([samples()]))
    publisher.retire("waist")
    publisher.retire("waist")

    assert delivery.states[1:] == [("har/waist/activity", b""), ("har/waist/availability", b"")]
    publisher.close()
    assert len(delivery.states) == 3


def test_a_stop_says_that_streams_are_offline(publisher, delivery):
    publisher.write(turn([samples("a"), samples("b")]))
    publisher.close()
    publisher.close()

    assert [t["state"] for t in delivery.told("har/a/availability")] == ["online", "offline"]
    assert [t["state"] for t in delivery.told("har/b/availability")] == ["online", "offline"]


def test_devices_whose_names_are_no_levels_are_kept_apart(publisher, delivery):
    publisher.write(turn(events=[prediction("room/1"), prediction("room_1"), prediction("room+1")]))

    topics = [message.topic for message, _ in delivery.published]
    assert len(set(topics)) == 3
    assert topics[1] == "har/room_1/prediction"
    assert all(topic.count("/") == 2 for topic in topics)


def test_the_labels_of_another_model_take_over(publisher, delivery):
    publisher.use_labels(("up", "down", "still"))
    publisher.write(turn(events=[prediction(label="up", scores=(0.9, 0.1, 0.0))]))

    assert json.loads(delivery.published[0][0].payload)["scores"] == {"up": 0.9, "down": 0.1, "still": 0.0}


def test_a_refused_stream_is_online_with_its_first_prediction(publisher, delivery):
    publisher.write(turn([samples()], [Refused("waist", "a rate of 3 Hz")]))
    publisher.write(turn([samples()], [prediction()]))
    publisher.write(turn([samples()]))

    assert [t["state"] for t in delivery.told("har/waist/availability")] == ["online", "degraded", "online"]
