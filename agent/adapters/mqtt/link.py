"""The link to the brokers: `ports.Link` over a `Connection`."""

import itertools
from collections.abc import Callable

from agent.adapters.mqtt import sentences
from agent.adapters.mqtt.connection import Connection
from agent.adapters.mqtt.session import Message, Sent, Session, reply_properties
from agent.ports import Clock
from agent.records import Ack, LinkState, Outgoing


class MqttLink:
    """`ports.Link` over MQTT, and subscriptions on the same connection. For one thread.

    `offer` speaks to the session that `state` told of last, and to no other: so nobody can take a message for void
    that went out in a session he did not know of yet.
    """

    def __init__(self, connection: Connection, clock: Clock) -> None:
        """Prepare; `start` begins to connect."""
        self._connection = connection
        self._clock = clock
        self._inflight = connection.inflight
        self._session: Session | None = None
        self._tokens = itertools.count(1)
        self._unanswered: set[int] = set()
        """Tokens. As `_sent`, for the caller's thread only."""
        self._sent: dict[int, Sent] = {}
        """What went out in this session, by paho's id of the message."""
        self._acks: list[Ack] = []

    def start(self) -> None:
        """Begin to connect. Does not wait for it."""
        self._connection.start()

    def state(self) -> LinkState:
        """Return where the link stands now. See `Connection.now` for `problem`."""
        state, session = self._connection.now()
        if session is not self._session:
            self._collect()
            self._session = session
            self._unanswered.clear()
            self._sent.clear()
        return state

    def offer(self, message: Outgoing) -> int | None:
        """Hand over one message at QoS 1 and return its token; None if the link is away or takes no more for now.

        A message that can never be sent is refused through `acknowledged`.
        """
        session = self._session
        if session is None:
            return None
        if len(self._unanswered) >= self._inflight:
            self._collect()
            if len(self._unanswered) >= self._inflight:
                return None
        token = next(self._tokens)
        try:
            properties = None if message.correlation is None else reply_properties(message.correlation)
            if not session.publish(message, token, properties):
                return None
        except ValueError as error:
            refusal = f"the message for {message.topic} cannot be sent: {error}"
            self._acks.append(Ack(token, self._clock.monotonic_ns(), refusal))
            return token
        self._unanswered.add(token)
        return token

    def acknowledged(self) -> list[Ack]:
        """Return the broker's answers since the last call; those of a session that has ended included."""
        self._collect()
        acks, self._acks = self._acks, []
        return acks

    def subscribe(self, topic_filter: str, take: Callable[[Message], None]) -> None:
        """Subscribe at QoS 1, now and in every session. `take` is called in the link's thread and must not block."""
        self._connection.subscribe(topic_filter, 1, take)

    def disturb(self, problem: str) -> None:
        """Give the connection up, because of `problem`, and try the next broker."""
        self._connection.disturb(problem)

    def close(self) -> None:
        """Disconnect; the last will is not sent. Blocks no longer than `connection.CLOSE_S`. Idempotent."""
        self._connection.close()

    def _collect(self) -> None:
        """Turn the session's answers into acknowledgements."""
        session = self._session
        if session is None:
            return
        answers, sent = session.answers, session.sent
        while session.refused:
            token, reason = session.refused.popleft()
            self._unanswered.discard(token)
            self._acks.append(Ack(token, self._clock.monotonic_ns(), f"{reason}: it cannot be sent"))
        while answers:
            mid = answers[0].mid
            while mid not in self._sent and sent:
                told = sent.popleft()
                self._sent[told.mid] = told
            if mid not in self._sent:
                # paho's `publish` has not returned yet in the other thread: next time.
                return
            _, t_ns, code, name = answers.popleft()
            told = self._sent.pop(mid)
            self._unanswered.discard(told.token)
            refusal = sentences.not_published(code, name, told.topic) if code >= sentences.FAILED else None
            self._acks.append(Ack(told.token, t_ns, refusal))
