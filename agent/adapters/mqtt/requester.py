"""Asks workers behind a broker: `ports.Cloud` over MQTT 5."""

import math
from collections import deque
from collections.abc import Callable
from pathlib import Path

from agent.adapters.mqtt.connection import Connection
from agent.adapters.mqtt.session import Message, Session, request_properties
from agent.core.cloud_wire import answer_topic, request_topic
from agent.core.settings import BrokerSettings, CloudSettings, MqttSettings
from agent.ports import Clock
from agent.records import CloudReply

MAX_ANSWERS = 1000
"""Answers that may wait to be taken. Whoever may write to their topic may write anything there: the oldest go first."""
_LONGEST_ANSWER = 4096
"""Bytes of a packet: twice what an answer of 255 labels takes."""


class Requester:
    """See `ports.Cloud`. Connects by itself, for ever; for one thread.

    Requests go out at QoS 0 and expire with their deadline: one that comes late is worth nothing to anybody.
    """

    def __init__(
        self,
        name: str,
        broker: BrokerSettings,
        mqtt: MqttSettings,
        settings: CloudSettings,
        clock: Clock,
        *,
        credentials: Path | None = None,
        complain: Callable[[str], None] = lambda _: None,
        client_id: str | None = None,
    ) -> None:
        """Prepare; `start` begins to connect. `name`: the agent's. `broker`: speaks MQTT 5.

        `credentials`, `complain`: as for `Connection`. `client_id`: for another client than the agent itself.
        """
        self._topic = request_topic(mqtt.root, settings.service)
        self._answer_topic = answer_topic(mqtt.root, name)
        self._expiry_s = math.ceil(settings.deadline_ms / 1000)
        self._answers: deque[CloudReply] = deque(maxlen=MAX_ANSWERS)
        self._connection = Connection(
            client_id or f"{name}-cloud",
            {settings.broker: broker},
            mqtt,
            clock,
            credentials=credentials,
            complain=complain,
            thread="mqtt-cloud",
            longest=_LONGEST_ANSWER,
        )
        self._connection.subscribe(self._answer_topic, 0, self._take)

    def start(self) -> None:
        """Begin to connect. Does not wait for it."""
        self._connection.start()

    @property
    def connected(self) -> bool:
        """See `ports.Cloud.connected`: the broker is there, and has granted that answers come."""
        return self._ready() is not None

    @property
    def problem(self) -> str | None:
        """See `ports.Cloud.problem`."""
        return self._connection.now()[0].problem

    def ask(self, correlation: bytes, payload: bytes) -> bool:
        """See `ports.Cloud.ask`."""
        session = self._ready()
        if session is None:
            return False
        try:
            return session.send(
                self._topic, payload, request_properties(self._answer_topic, correlation, self._expiry_s)
            )
        except ValueError:  # larger than this broker takes
            return False

    def answers(self) -> list[CloudReply]:
        """See `ports.Cloud.answers`."""
        taken = []
        while self._answers:
            taken.append(self._answers.popleft())
        return taken

    def close(self) -> None:
        """See `ports.Cloud.close`: `connection.CLOSE_S` at most."""
        self._connection.close()

    def _ready(self) -> Session | None:
        session = self._connection.now()[1]
        return session if session is not None and self._answer_topic in session.subscribed else None

    def _take(self, message: Message) -> None:
        if not message.retained:
            self._answers.append(CloudReply(message.correlation, message.payload, message.t_rx_ns))
