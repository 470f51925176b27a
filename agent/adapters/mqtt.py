"""MQTT 3.1.1 through paho: the sink for predictions, and a subscriber.

paho runs a thread per connection; its callbacks only count, or put what came in a queue, and never raise.
Messages go out at QoS 1. What the broker has not acknowledged when the connection breaks, paho sends again
once it is back.
"""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

from agent.core.wire import activity_message, encode, live_fields, prediction_message
from agent.errors import OutputError, SinkUnavailable
from agent.ports import Clock
from agent.records import ActivityChange, Prediction, Turn

QOS = 1
MAX_WAITING = 1000
"""Messages that may wait for a broker that is away: about ten minutes of one stream."""
MAX_RECEIVED = 10_000

ONLINE = {"v": 1, "state": "online"}
OFFLINE = {"v": 1, "state": "offline"}


@dataclass(frozen=True)
class MqttSettings:
    """Where the broker is, and how topics begin. `agent`: this board's name, also the client id."""

    host: str
    port: int = 1883
    root: str = "har"
    agent: str = "har-agent"
    timeout_s: float = 10.0
    """Deadline of connecting, and of flushing at the end."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message as it came; `t_rx_ns` on the monotonic clock."""

    topic: str
    payload: bytes
    retained: bool
    t_rx_ns: int


class _Connection:
    """One paho client with its thread, from `open` to `close`."""

    def __init__(self, settings: MqttSettings, client_id: str) -> None:
        self._settings = settings
        self._refusal: str | None = None
        self._connected = threading.Event()
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTProtocolVersion.MQTTv311
        )
        self.client.on_connect = self._on_connect
        self.client.max_queued_messages_set(MAX_WAITING)
        self.when_connected: Callable[[paho.Client], None] = lambda _: None

    def open(self) -> None:
        """Connect; blocks until the broker has accepted, or the deadline has passed.

        Raises:
            SinkUnavailable: it cannot be reached, or refuses.
        """
        s = self._settings
        where = f"the MQTT broker at {s.host}:{s.port}"
        try:
            self.client.connect(s.host, s.port)
        except (OSError, ValueError) as error:
            raise SinkUnavailable(f"{where} cannot be reached: {error}") from error
        self.client.loop_start()
        answered = self._connected.wait(s.timeout_s)
        if not answered or self._refusal is not None:
            self.close()
            raise SinkUnavailable(f"{where} {self._refusal or f'did not answer within {s.timeout_s:g} s'}")

    def close(self) -> None:
        """Disconnect and end the thread."""
        self.client.disconnect()
        self.client.loop_stop()

    def _on_connect(self, client: paho.Client, _data: Any, _flags: Any, reason: ReasonCode, _props: Any) -> None:
        if reason.is_failure:
            self._refusal = f"refused the connection: {reason}"
        else:
            self.when_connected(client)
        self._connected.set()


class MqttSink:
    """`ports.Sink` that publishes predictions and changes of activity.

    `<root>/<device>/prediction` for every window, `<root>/<device>/activity` retained,
    `<root>/<agent>/status` retained, with `offline` as the last will.
    """

    def __init__(self, settings: MqttSettings, labels: tuple[str, ...], boot: str) -> None:
        """Prepare; `start` connects.

        `labels`: the model's. `boot`: what tells this run's message ids from another's.
        """
        self._settings = settings
        self._labels = labels
        self._boot = boot
        self._status = f"{topic_level(settings.root)}/{topic_level(settings.agent)}/status"
        self._connection = _Connection(settings, settings.agent)
        self._connection.when_connected = self._announce
        self._connection.client.will_set(self._status, encode(OFFLINE), QOS, retain=True)
        self._connection.client.on_publish = lambda *_: self._count(-1)
        self._changed = threading.Condition()
        self._unacknowledged = 0
        self._open = False
        self.predictions = 0
        """Predictions handed to paho so far."""

    def start(self) -> None:
        """Connect and say that this agent is online. Blocks until the broker has accepted, or the deadline.

        Raises:
            SinkUnavailable: the broker cannot be reached, or refuses.
        """
        self._connection.open()
        self._open = True

    @property
    def unacknowledged(self) -> int:
        """Messages that the broker has not acknowledged yet."""
        with self._changed:
            return self._unacknowledged

    def write(self, turn: Turn) -> None:
        """Publish what a turn brought. Does not wait for the broker.

        Raises:
            SinkUnavailable: too much waits for the broker already.
            OutputError: paho refuses the message for good.
        """
        for event in turn.events:
            device = f"{topic_level(self._settings.root)}/{topic_level(event.stream)}"
            if isinstance(event, Prediction):
                message = prediction_message(event, self._labels)
                message |= live_fields(event, self._boot, turn.timings.get((event.stream, event.seq)))
                self._publish(f"{device}/prediction", message, retain=False)
                self.predictions += 1
            elif isinstance(event, ActivityChange):
                self._publish(f"{device}/activity", activity_message(event), retain=True)

    def close(self) -> None:
        """Wait for what is unacknowledged, within the deadline, say offline, disconnect. Idempotent.

        Raises:
            SinkUnavailable: the broker did not acknowledge everything in time; the connection is closed all
            the same.
        """
        if not self._open:
            return
        self._open = False
        try:
            self._publish(self._status, OFFLINE, retain=True)
            with self._changed:
                self._changed.wait_for(lambda: self._unacknowledged <= 0, self._settings.timeout_s)
                left = self._unacknowledged
        finally:
            self._connection.close()
        if left > 0:
            within = f"within {self._settings.timeout_s:g} s"
            raise SinkUnavailable(f"the broker did not acknowledge {left} messages {within}")

    def _publish(self, topic: str, message: dict[str, Any], *, retain: bool) -> None:
        self._count(1)
        try:
            info = self._connection.client.publish(topic, encode(message), QOS, retain)
        except ValueError as error:
            self._count(-1)
            raise OutputError(f"the message for {topic} cannot be published: {error}") from error
        if info.rc not in (MQTTErrorCode.MQTT_ERR_SUCCESS, MQTTErrorCode.MQTT_ERR_NO_CONN):
            self._count(-1)
            raise SinkUnavailable(f"the message for {topic} was refused: {paho.error_string(info.rc)}")

    def _announce(self, client: paho.Client) -> None:
        self._count(1)
        if client.publish(self._status, encode(ONLINE), QOS, retain=True).rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._count(-1)

    def _count(self, messages: int) -> None:
        with self._changed:
            self._unacknowledged += messages
            self._changed.notify_all()


class MqttSubscriber:
    """What arrives under a topic filter, for one taker."""

    def __init__(self, settings: MqttSettings, topic_filter: str, clock: Clock) -> None:
        """Prepare; `start` connects. `clock` stamps what comes."""
        self._settings = settings
        self._clock = clock
        self._filter = topic_filter
        self._messages: queue.Queue[Message] = queue.Queue(MAX_RECEIVED)
        self._subscribed = threading.Event()
        self._connection = _Connection(settings, f"{settings.agent}-subscriber")
        self._connection.when_connected = lambda client: _subscribe(client, topic_filter)
        self._connection.client.on_subscribe = lambda *_: self._subscribed.set()
        self._connection.client.on_message = self._on_message
        self._open = False
        self.overflowed = 0
        """Messages that found the queue full."""

    def start(self) -> None:
        """Connect and subscribe; blocks until the broker has confirmed, or the deadline.

        Raises:
            SinkUnavailable: the broker cannot be reached, refuses, or does not confirm.
        """
        self._connection.open()
        self._open = True
        if not self._subscribed.wait(self._settings.timeout_s):
            self.close()
            raise SinkUnavailable(f"the broker did not confirm the subscription to {self._filter}")

    def poll(self, timeout_s: float) -> Message | None:
        """Return the next message, waiting at most `timeout_s` for it; None if none came."""
        try:
            return self._messages.get(timeout=timeout_s) if timeout_s > 0 else self._messages.get_nowait()
        except queue.Empty:
            return None

    def close(self) -> None:
        """Disconnect. What has come can still be polled. Idempotent."""
        if self._open:
            self._open = False
            self._connection.close()

    def _on_message(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        try:
            self._messages.put_nowait(
                Message(message.topic, bytes(message.payload), message.retain, self._clock.monotonic_ns())
            )
        except queue.Full:
            self.overflowed += 1


def topic_level(name: str) -> str:
    """`name` as one level of a topic: what MQTT gives a meaning to becomes an underscore."""
    return "".join("_" if c in "+#/\0" else c for c in name) or "_"


def _subscribe(client: paho.Client, topic_filter: str) -> None:
    client.subscribe(topic_filter, QOS)
