"""What arrives under topic filters, for one taker, and requests with their answers."""

import queue
import time
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

from agent.adapters.mqtt import sentences
from agent.adapters.mqtt.connection import Connection
from agent.adapters.mqtt.session import Message, Session, request_properties
from agent.core.settings import BrokerSettings, MqttSettings
from agent.errors import SinkUnavailable
from agent.ports import Clock
from agent.records import LinkState, Outgoing

MAX_RECEIVED = 10_000
_POLL_S = 0.05


class Subscriber:
    """Receives from `start` to `close`, across every break in between. For one thread."""

    def __init__(
        self,
        broker: BrokerSettings,
        settings: MqttSettings,
        filters: Sequence[str],
        clock: Clock,
        *,
        name: str = "",
        credentials: Path | None = None,
        longest: int = MAX_RECEIVED,
    ) -> None:
        """Prepare; `start` connects. `name`: the client id, an own one if not set. `longest`: of the queue."""
        self._settings = settings
        self._protocol = broker.protocol
        self._id = name or f"har-{uuid4().hex[:16]}"  # 20 characters: 3.1.1 promises no more than 23
        self._messages: queue.Queue[Message] = queue.Queue(longest)
        self._connection = Connection(
            self._id, {"": broker}, settings, clock, credentials=credentials, thread="mqtt-subscriber"
        )
        self._filters = set(filters)
        for topic_filter in filters:
            self._connection.subscribe(topic_filter, 1, self._take)
        self._replies: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._reply_topic = f"{settings.root}/reply/{self._id}"
        self.overflowed = 0
        """Messages that found the queue full."""

    def start(self) -> None:
        """Connect and subscribe; blocks until the broker has confirmed: at most `connect_timeout_s` for each.

        Raises:
            SinkUnavailable: the broker cannot be reached, refuses, or does not confirm. It is closed then.
        """
        self._connection.start()
        try:
            self._confirmed(self._filters)
        except SinkUnavailable:
            self.close()
            raise

    def state(self) -> LinkState:
        """Return where the connection stands now."""
        return self._connection.now()[0]

    def poll(self, timeout_s: float) -> Message | None:
        """Return the next message, waiting at most `timeout_s` for it; None if none came."""
        try:
            return self._messages.get(timeout=timeout_s) if timeout_s > 0 else self._messages.get_nowait()
        except queue.Empty:
            return None

    def request(self, topic: str, payload: bytes, timeout_s: float) -> bytes:
        """Publish a request that tells where to answer, and return the answer. Blocks at most `timeout_s`.

        Raises:
            SinkUnavailable: no answer came, nobody listens, or the broker refuses to carry it.
        """
        if self._protocol != "5":
            raise SinkUnavailable('requests need MQTT 5: set protocol = "5"')
        if self._reply_topic not in self._filters:
            self._filters.add(self._reply_topic)
            self._connection.subscribe(self._reply_topic, 1, self._replies.put)
        session = self._confirmed({self._reply_topic})
        correlation = uuid4().bytes
        session.answers.clear()
        session.sent.clear()
        sent = session.publish(Outgoing(topic, payload), properties=request_properties(self._reply_topic, correlation))
        deadline = time.monotonic() + timeout_s
        while sent and (left_s := deadline - time.monotonic()) > 0:
            try:
                reply = self._replies.get(timeout=min(left_s, _POLL_S))
            except queue.Empty:
                # One request at a time: what is answered is this one.
                for answer in list(session.answers):
                    if answer.code >= sentences.FAILED:
                        raise SinkUnavailable(sentences.not_published(answer.code, answer.name, topic)) from None
                    if answer.code == sentences.NOBODY_LISTENS:
                        raise SinkUnavailable(f"nobody listens on {topic}: check the agent's name") from None
                continue
            if reply.correlation == correlation:
                return reply.payload
        raise SinkUnavailable(f"no answer to {topic} within {timeout_s:g} s")

    def close(self) -> None:
        """Disconnect. What has come can still be polled. Idempotent."""
        self._connection.close()

    def _confirmed(self, filters: set[str]) -> Session:
        """Return the session in which these filters are subscribed, once there is one."""

        def settled() -> bool:
            state, session = self._connection.now()
            return (session is None and state.problem is not None) or (
                session is not None and filters <= session.subscribed | session.denied.keys()
            )

        if not self._connection.wait(settled, 2 * self._settings.connect_timeout_s):
            raise SinkUnavailable(f"the broker did not confirm the subscription to {', '.join(sorted(filters))}")
        state, session = self._connection.now()
        if session is None:
            raise SinkUnavailable(state.problem or "the connection was lost")
        if denied := [session.denied[f] for f in sorted(filters) if f in session.denied]:
            raise SinkUnavailable("; ".join(denied))
        return session

    def _take(self, message: Message) -> None:
        try:
            self._messages.put_nowait(message)
        except queue.Full:
            self.overflowed += 1
