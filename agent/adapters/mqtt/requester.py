"""Asks workers behind a broker: `ports.Cloud` over MQTT 5."""

import math
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from secrets import token_bytes
from typing import Protocol

from agent.adapters.mqtt.connection import Connection
from agent.adapters.mqtt.session import Message, Session, request_properties
from agent.core.cloud_wire import answer_topic, request_topic
from agent.core.settings import BrokerSettings, MqttSettings
from agent.ports import Clock
from agent.records import CloudReply

MAX_ANSWERS, MAX_BYTES = 1000, 4 << 20
"""Answers, and bytes of them, that may wait to be taken. Whoever may write to their topic may write anything there: the
oldest go first."""
LONGEST_ANSWER = 4096
"""Bytes of a packet: twice what an answer of 255 labels takes."""


_CORRELATION_BYTES = 16
"""What nobody guesses."""


def new_correlation() -> bytes:
    """Return what tells an answer from all others, and that only who reads the request knows."""
    return token_bytes(_CORRELATION_BYTES)


class Asking(Protocol):
    """What a section of the configuration says of whom to ask: `CloudSettings` is one."""

    @property
    def broker(self) -> str:
        """Name of the broker, for people."""

    @property
    def service(self) -> str:
        """Which workers."""

    @property
    def deadline_ms(self) -> float:
        """When an answer is worth nothing any more."""


class Requester:
    """See `ports.Cloud`. Connects by itself, for ever; for one thread.

    Requests go out at QoS 0 and expire with their deadline: one that comes late is worth nothing to anybody.
    """

    def __init__(
        self,
        name: str,
        broker: BrokerSettings,
        mqtt: MqttSettings,
        settings: Asking,
        clock: Clock,
        *,
        purpose: str = "cloud",
        longest: int = LONGEST_ANSWER,
        credentials: Path | None = None,
        complain: Callable[[str], None] = lambda _: None,
        client_id: str | None = None,
    ) -> None:
        """Prepare; `start` begins to connect. `name`: the agent's. `broker`: speaks MQTT 5.

        `purpose`: the section that `settings` are of, which keeps the answers to one requester of an agent apart from
        those to another. `longest`: bytes of a packet with an answer. `credentials`, `complain`: as for `Connection`.
        `client_id`: for another client than the agent itself.
        """
        self._topic = request_topic(mqtt.root, settings.service)
        self._answer_topic = answer_topic(mqtt.root, name, purpose)
        self._expiry_s = math.ceil(settings.deadline_ms / 1000)
        self._answers: deque[CloudReply] = deque()  # under _came, as are the next two
        self._bytes = self._dropped = 0
        self._came = threading.Condition()
        self._connection = Connection(
            client_id or f"{name}-{purpose}",
            {settings.broker: broker},
            mqtt,
            clock,
            credentials=credentials,
            complain=complain,
            thread=f"mqtt-{purpose}",
            longest=longest,
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
        with self._came:
            taken, self._bytes = list(self._answers), 0
            self._answers.clear()
        return taken

    @property
    def dropped(self) -> int:
        """See `ports.Cloud.dropped`."""
        with self._came:
            return self._dropped

    def wait(self, timeout_s: float) -> bool:
        """See `ports.Cloud.wait`."""
        with self._came:
            return self._came.wait_for(lambda: bool(self._answers), timeout_s)

    def close(self) -> None:
        """See `ports.Cloud.close`: `connection.CLOSE_S` at most."""
        self._connection.close()

    def _ready(self) -> Session | None:
        session = self._connection.now()[1]
        return session if session is not None and self._answer_topic in session.subscribed else None

    def _take(self, message: Message) -> None:
        if not message.retained:
            with self._came:
                self._answers.append(CloudReply(message.correlation, message.payload, message.t_rx_ns))
                self._bytes += len(message.payload)
                while len(self._answers) > MAX_ANSWERS or self._bytes > MAX_BYTES:
                    self._bytes -= len(self._answers.popleft().payload)
                    self._dropped += 1
                self._came.notify()
