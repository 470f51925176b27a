"""Samples of many devices through a real broker."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from mosquitto import Mosquitto, until

from agent.adapters.clock import SystemClock
from agent.adapters.mqtt import Connection, Message, MqttLink, MqttSource
from agent.core.settings import BrokerSettings, MqttInSettings, MqttSettings
from agent.records import BadFrame, Decoded, Loss, Outgoing, SampleBatch

CLOCK = SystemClock()
QUICK = MqttSettings(retry_first_s=0.01, retry_longest_s=0.05, stable_s=0.2)


class Counter:
    """A decoder that makes a sample of every payload, numbered from 0; b"explode" is its bug."""

    def __init__(self, stream: str) -> None:
        self._stream = stream
        self._seq = 0

    def feed(self, data: bytes, t_rx_ns: int) -> list[Decoded]:
        if data == b"explode":
            raise RuntimeError("a bug")
        self._seq += 1
        return [
            SampleBatch(
                self._stream, np.array([int(data)]), np.zeros((1, 6), np.float32), self._seq - 1, t_rx_ns=t_rx_ns
            )
        ]

    def reset(self) -> list[Decoded]:
        return []


class Rig:
    """A source, what it put, and a link that publishes to it."""

    def __init__(self, broker: Mosquitto, tee: Callable[[str, bytes, int], object] | None = None, **how: Any) -> None:
        self.put: list[Decoded] = []
        self.complaints: list[str] = []
        brokers = {"a": BrokerSettings(broker.url)}
        settings = MqttInSettings(**({"filter": "imu/{device}/samples", "qos": 1} | how))
        self.connection = Connection("board-in", brokers, QUICK, CLOCK, complain=self.complaints.append)
        self.source = MqttSource(self.connection, settings, Counter, self.put.append, tee=tee)
        self.link = MqttLink(Connection("sensor", brokers, QUICK, CLOCK), CLOCK)
        self.link.start()
        until(lambda: self.link.state().connected)

    def start(self) -> None:
        self.source.start()
        self.subscribed()

    def subscribed(self, session: int = 1) -> None:
        def ready() -> bool:
            state, current = self.connection.now()
            return current is not None and state.session >= session and bool(current.subscribed)

        until(ready)

    def send(self, device: str, *payloads: bytes, retain: bool = False) -> None:
        """Publish, and wait until the broker has it."""
        for payload in payloads:
            assert until(lambda p=payload: self.link.offer(Outgoing(f"imu/{device}/samples", p, retain)))
            until(self.link.acknowledged)

    def got(self, n: int) -> list[Decoded]:
        until(lambda: len(self.put) >= n)
        return self.put

    def close(self) -> None:
        self.source.close()
        self.link.close()


@pytest.fixture
def rig(broker: Mosquitto) -> Iterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def make(**how: Any) -> Rig:
        rigs.append(Rig(broker, **how))
        return rigs[-1]

    yield make
    for made in rigs:
        made.close()


def told(items: list[Decoded]) -> list[tuple[Any, ...]]:
    return [
        (i.stream, i.seq0, int(i.t_ns[0])) if isinstance(i, SampleBatch) else (i.stream, i.reason)
        for i in items
        if isinstance(i, (SampleBatch, BadFrame))
    ]


def test_each_device_is_a_stream_of_its_own(rig: Callable[..., Rig]):
    r = rig()
    r.start()
    before_ns = CLOCK.monotonic_ns()
    r.send("left", b"10", b"11")
    r.send("right", b"70")
    r.send("left", b"12")
    items = r.got(4)

    assert told(items) == [("left", 0, 10), ("left", 1, 11), ("right", 0, 70), ("left", 2, 12)]
    assert all(isinstance(i, SampleBatch) and before_ns < (i.t_rx_ns or 0) < CLOCK.monotonic_ns() for i in items)
    assert r.source.devices == 2
    assert r.source.state().problem is None


def test_one_device_too_many_is_counted_until_another_is_forgotten(rig: Callable[..., Rig]):
    r = rig(max_devices=2)
    r.start()
    for device in ("a", "b", "c", "a", "c"):
        r.send(device, b"1")
    assert told(r.got(3)) == [("a", 0, 1), ("b", 0, 1), ("a", 1, 1)]
    until(lambda: r.source.refused == {Loss.TOO_MANY_DEVICES: 2})
    r.source.forget("b")
    r.source.forget("never heard of")
    r.send("c", b"2")

    assert told(r.got(4))[3:] == [("c", 0, 2)]
    assert r.source.devices == 2


def test_a_device_that_is_silent_makes_room_when_there_is_none(rig: Callable[..., Rig]):
    # Also if nobody else knows of it, because its every message was lost in a full queue.
    r = rig(max_devices=1, idle_s=10)
    take = r.source._take
    for device, t_s in (("a", 0), ("b", 5), ("b", 11), ("c", 12)):
        take(Message(f"imu/{device}/samples", b"1", False, t_s * 10**9))

    assert [i.stream for i in r.put] == ["a", "b"]
    assert r.source.refused == {Loss.TOO_MANY_DEVICES: 2}


def test_a_flood_of_names_takes_no_room(rig: Callable[..., Rig]):
    r = rig(max_devices=10)
    r.start()
    for n in range(1000):
        until(lambda n=n: r.link.offer(Outgoing(f"imu/d{n}/samples", b"1")))

    until(lambda: r.source.refused == {Loss.TOO_MANY_DEVICES: 990})
    assert (r.source.devices, len(r.put)) == (10, 10)


@pytest.mark.parametrize("device", ["", "x" * 65, "bell\x07", "rtl\u202e"])
def test_names_that_are_none(rig: Callable[..., Rig], device: str):
    r = rig()
    r.start()
    if device == "bell\x07":
        # mosquitto itself refuses control characters; others do not.
        r.source._take(Message(f"imu/{device}/samples", b"1", False, 0))
    else:
        r.send(device, b"1")

    until(lambda: r.source.refused == {Loss.TOPIC: 1})
    assert (r.source.devices, r.put) == (0, [])


def test_retained_samples_are_ignored_and_counted(rig: Callable[..., Rig]):
    r = rig()
    r.send("old", b"1", retain=True)
    r.start()
    r.send("new", b"2")

    assert told(r.got(1)) == [("new", 0, 2)]
    assert r.source.refused == {Loss.RETAINED: 1}
    assert (r.source.messages, r.source.devices) == (2, 1)


def test_what_comes_is_teed_as_it_came(rig: Callable[..., Rig]):
    teed: list[tuple[str, bytes, int]] = []
    r = rig(tee=lambda *of: teed.append(of))
    r.start()
    r.send("a", b"1", b"2")
    items = r.got(2)

    assert teed == [("a", b"%d" % n, i.t_rx_ns) for n, i in enumerate(items, 1) if isinstance(i, SampleBatch)]


def test_a_decoder_that_fails_is_counted_and_complained_of_once(rig: Callable[..., Rig]):
    r = rig()
    r.start()
    r.send("a", b"1", b"explode", b"explode", b"2")

    assert told(r.got(2)) == [("a", 0, 1), ("a", 1, 2)]
    assert r.connection.failures == 2
    assert r.complaints == ["taking a message of imu/+/samples failed: RuntimeError: a bug"]


def test_streams_go_on_after_the_broker_was_away(rig: Callable[..., Rig], broker: Mosquitto):
    r = rig()
    r.start()
    r.send("a", b"1")
    r.got(1)
    broker.kill()
    broker.start()
    r.subscribed(session=2)
    until(lambda: r.link.state().session == 2 and r.link.state().connected)
    r.send("a", b"2")

    assert told(r.got(2)) == [("a", 0, 1), ("a", 1, 2)]


def test_several_agents_share_the_devices(rig: Callable[..., Rig], broker: Mosquitto):
    r = rig(share="gateways")
    r.start()
    other: list[Decoded] = []
    connection = Connection("other-in", {"a": BrokerSettings(broker.url)}, QUICK, CLOCK)
    settings = MqttInSettings(filter="imu/{device}/samples", share="gateways")
    second = MqttSource(connection, settings, Counter, other.append)
    second.start()
    until(lambda: connection.now()[1] and connection.now()[1].subscribed)
    for n in range(20):
        r.send("a", b"%d" % n)
    until(lambda: len(r.put) + len(other) == 20)
    second.close()

    assert sorted(t for _, _, t in told(r.put + other)) == list(range(20))
    assert r.put
    assert other


def test_the_device_may_stand_anywhere_in_the_topic(rig: Callable[..., Rig]):
    r = rig(filter="site/+/imu/{device}")
    r.start()
    until(lambda: r.link.offer(Outgoing("site/hall/imu/left", b"5")))

    assert told(r.got(1)) == [("left", 0, 5)]
