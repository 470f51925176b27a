"""A cloud worker that a test plays: a client of a broker, which makes of requests what it is told to."""

import threading
from collections.abc import Callable

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.core.cloud_wire import request_topic

Saying = Callable[[bytes], list[bytes]]
"""What a worker makes of a request: any number of answers."""


class PlayedWorker:
    """A client that answers requests as it is told to."""

    def __init__(self, port: int, say: Saying, service: str = "har-cloud") -> None:
        self.say = say
        self.requests: list[bytes] = []
        self.held: list[tuple[str, bytes, bytes]] = []
        """Where answers would have gone: topic, correlation data, request."""
        self._ready = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, "worker", protocol=MQTTProtocolVersion.MQTTv5)
        self._client.on_connect = lambda client, *_: client.subscribe(f"$share/w/{request_topic('har', service)}", 0)
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._ready.wait(10)

    def answer(self, topic: str, correlation: bytes, payload: bytes) -> None:
        properties = Properties(PacketTypes.PUBLISH)
        properties.CorrelationData = correlation
        self._client.publish(topic, payload, 0, properties=properties)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_message(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        p = message.properties
        assert p is not None
        self.requests.append(message.payload)
        self.held.append((p.ResponseTopic, p.CorrelationData, message.payload))
        for payload in self.say(message.payload):
            self.answer(p.ResponseTopic, p.CorrelationData, payload)
