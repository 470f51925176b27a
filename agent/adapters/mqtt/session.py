"""One connection to one broker, from its opening to its end, on a paho client of its own.

paho's network thread is not used: the thread that calls `open` and `serve` runs paho's `loop_read`, `loop_write` and
`loop_misc` itself, the way paho documents for event loops. So an error anywhere in it ends the session instead of a
thread, nothing has to be joined, and a publisher wakes the loop once for many messages.

`publish`, `send`, `unsubscribe`, `give_up`, `finish` and `wake` may be called from any thread, everything else in the
loop's only.
"""

import contextlib
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, LogLevel, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties, VariableByteIntegers
from paho.mqtt.reasoncodes import ReasonCode

from agent.adapters.mqtt import sentences
from agent.core.settings import BrokerSettings, MqttSettings
from agent.errors import SinkUnavailable
from agent.ports import Clock
from agent.records import Outgoing

QOS = 1
MAX_PACKET = 33 << 20
"""Bytes of a packet that is taken: the largest bundle of models, and not what would fill a board's memory."""
_FLUSH_S = 1.0
"""How long what is written may take to leave when a session ends."""
_LOOK_S = 0.05
"""How often a session that waits for its greeting looks whether it should stop."""
_LONGEST_REASON = 200
"""Characters of what a broker says for people."""
_OTHER_BYTES = 64
"""At most what a PUBLISH carries beside topic, payload and what a request adds."""


class Message(NamedTuple):
    """One message as it came; `t_rx_ns` on the monotonic clock.

    `response_topic`, `correlation`: where its sender wants an answer, and what to send along with it. `expiry_s`: after
    which it is worth nothing, as the broker says; 0 where it does not.
    """

    topic: str
    payload: bytes
    retained: bool
    t_rx_ns: int
    response_topic: str = ""
    correlation: bytes = b""
    expiry_s: int = 0


class Answer(NamedTuple):
    """A PUBACK: for the message with this id, at this time, with a reason's code and name."""

    mid: int
    t_ns: int
    code: int
    name: str


class Sent(NamedTuple):
    """A message that went out with this id; `token` is its sender's."""

    mid: int
    token: int
    topic: str


class Refused(NamedTuple):
    """A message that can never be sent, and why, for people."""

    token: int
    reason: str


class _Pending(NamedTuple):
    message: Outgoing
    token: int
    properties: Properties | None


class Subscription(NamedTuple):
    """A topic filter, and who takes its messages: called in the loop's thread, must not block."""

    topic_filter: str
    qos: int
    take: Callable[[Message], None]

    @property
    def matched(self) -> str:
        """The filter that topics match: without the group of a shared subscription."""
        return self.topic_filter.split("/", 2)[2] if self.topic_filter.startswith("$share/") else self.topic_filter


@dataclass(frozen=True)
class Client:
    """What all sessions of one client have in common.

    `subscriptions` may grow. `credentials`: where a bare file name is looked for first. `failed`: told of
    what raised, and what; called in the loop's thread.
    """

    id: str
    settings: MqttSettings
    clock: Clock
    subscriptions: Sequence[Subscription]
    will: Outgoing | None = None
    credentials: Path | None = None
    failed: Callable[[str, Exception], None] = lambda *_: None
    longest: int = MAX_PACKET


class Session:
    """See the module."""

    def __init__(self, name: str, broker: BrokerSettings, client: Client) -> None:
        """`name`: the broker's, in the configuration."""
        self.broker = name
        self.answers: deque[Answer] = deque()
        """PUBACKs that came, for one taker in another thread."""
        self.sent: deque[Sent] = deque()
        """Messages that went out, for the same taker; a PUBACK may come before its message is told here."""
        self.refused: deque[Refused] = deque()
        """Messages that can never be sent, for the same taker."""
        self._window = client.settings.inflight
        """Messages that may wait for a PUBACK: as configured, or the broker's receive maximum, 20 for mosquitto."""
        self._unanswered = 0
        self._pending: deque[_Pending] = deque()
        """Messages that wait for room in the window: the loop sends them as PUBACKs come, without waking anybody."""
        self._room = threading.Lock()  # never held while paho is called: paho has locks of its own
        self.denied: dict[str, str] = {}
        """Topic filters that the broker refused -> why."""
        self.subscribed: frozenset[str] = frozenset()
        """Topic filters that the broker granted. Replaced, as `denied` is, never changed: others read them."""
        self._settings = broker
        self._client = client
        self._paho: paho.Client | None = None
        self._context: _Context | None = None
        self._max_packet = 1 << 28
        self._asked = 0
        self._requests: dict[int, list[str]] = {}
        self._leaving = ""
        self.news = False
        """Whether there is something about subscriptions that `serve`, or its caller, has not seen yet."""
        self._accepted = False
        self._end: str | None = None
        self._finishing = False
        self._log = ""
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)

    @property
    def window(self) -> int:
        """Messages that may be on their way to this broker and back."""
        return self._window

    @property
    def where(self) -> str:
        """The broker, for people."""
        name = f"broker {self.broker}" if self.broker else "the broker"
        return f"{name} at {self._settings.host}:{self._settings.port}"

    @property
    def tls_version(self) -> str | None:
        """What is spoken on a connection that is open, such as TLSv1.3; None without TLS."""
        return self._context.wrapped.version() if self._context is not None and self._context.wrapped else None

    def open(self, stopping: Callable[[], bool]) -> None:
        """Connect, greet and subscribe. Blocks until the broker has accepted, or `connect_timeout_s`.

        A failed session is closed. Files of the configuration are read here, so that each try sees them as they are.

        Raises:
            SinkUnavailable: it cannot be reached, cannot be trusted, or refuses; or `stopping` became true.
        """
        try:
            self._open(stopping)
        except SinkUnavailable:
            self.close()
            raise
        except Exception as error:  # whatever paho, OpenSSL and the system's resolver may raise beside the known
            self.close()
            raise self._unavailable(f"cannot be connected to: {type(error).__name__}: {error}") from error

    def serve(self, until: Callable[[], bool], at_most_s: float) -> str | None:
        """Carry messages until the session ends, and return why; or None, which leaves it open for the next call.

        None comes once `until` is true, which is looked at after every event, or after `at_most_s`: a second or less,
        because keepalive is looked at once a call.
        """
        self.news = False
        if self._paho is not None:
            self.subscribe()
            self._paho.loop_misc()
            self._loop(until, time.monotonic() + at_most_s)
        if self._finishing:
            self._flush()
        elif self._end is None:
            return None
        self.close()
        return self._end or "closed"

    def close(self) -> None:
        """Drop the connection at once, without a farewell. Idempotent."""
        self._end = self._end or "closed"
        client, self._paho = self._paho, None
        wire = client.socket() if client is not None else None
        for opened in (wire, self._context.wrapped if self._context is not None else None):
            if opened is not None:
                with contextlib.suppress(OSError):
                    opened.close()
        self._wake_in.close()
        self._wake_out.close()

    def publish(self, message: Outgoing, token: int = 0, properties: Properties | None = None) -> bool:
        """Queue a message at QoS 1, in order; False when the session cannot take it now. `token`: for `sent`.

        Raises:
            ValueError: it can never be sent, such as to a topic with a wildcard, or because it is too large.
        """
        self._check_size(message.topic, message.payload)
        if self._paho is None or self._end is not None or not self._accepted:
            return False
        with self._room:
            if self._unanswered >= self._window:
                self._pending.append(_Pending(message, token, properties))
                return True
            self._unanswered += 1
        return self._send(message, token, properties)

    def send(self, topic: str, payload: bytes, properties: Properties) -> bool:
        """Hand a message over at QoS 0; False when the session cannot take it now.

        No window holds it back, and nobody is told what becomes of it.

        Raises:
            ValueError: as `publish`.
        """
        self._check_size(topic, payload)
        client = self._paho
        if client is None or self._end is not None or not self._accepted:
            return False
        return client.publish(topic, payload, 0, properties=properties).rc == MQTTErrorCode.MQTT_ERR_SUCCESS

    def _check_size(self, topic: str, payload: bytes) -> None:
        size = len(payload) + 3 * len(topic) + _OTHER_BYTES
        if size > self._max_packet and len(payload) + len(topic.encode()) + _OTHER_BYTES > self._max_packet:
            raise ValueError(f"{len(payload)} bytes are more than the broker takes, {self._max_packet}")

    def _send(self, message: Outgoing, token: int, properties: Properties | None) -> bool:
        """Hand a message to paho, for which there is room; the room is given back if it did not go out."""
        client = self._paho  # the loop's thread may take it away at any moment
        mid = None
        try:
            if client is not None:
                info = client.publish(message.topic, message.payload, QOS, message.retain, properties)
                mid = info.mid if info.rc == MQTTErrorCode.MQTT_ERR_SUCCESS else None
        finally:
            if mid is None:
                with self._room:
                    self._unanswered -= 1
        if mid is not None:
            self.sent.append(Sent(mid, token, message.topic))
        return mid is not None

    def subscribe(self) -> None:
        """Ask for the topic filters not asked for yet; `subscribed` and `denied` tell what became of it."""
        new = self._client.subscriptions[self._asked :]
        if self._paho is None or not new:
            return
        for s in new:
            self._paho.message_callback_add(s.matched, self._taker(s))
        self._asked += len(new)
        self._request([(s.topic_filter, s.qos) for s in new])

    def unsubscribe(self, topic_filter: str) -> None:
        """Ask for no more of a filter; once it is gone from `subscribed`, all that the broker sent of it has come."""
        client = self._paho
        if client is not None:
            self._leaving = topic_filter
            client.unsubscribe(topic_filter)

    def ask_again(self) -> None:
        """Ask once more for the topic filters that the broker refused: its ACL may have changed."""
        if self.denied and self._paho is not None:
            self._request(
                [(s.topic_filter, s.qos) for s in self._client.subscriptions if s.topic_filter in self.denied]
            )

    def give_up(self, problem: str) -> None:
        """End the session because of `problem`, without a farewell: the broker sends the last will."""
        self._end = problem
        self.wake()

    def finish(self) -> None:
        """End the session properly: what is queued is written, and the last will is not sent."""
        self._finishing = True
        self.wake()

    def wake(self) -> None:
        """Make the loop look around."""
        with contextlib.suppress(OSError):
            self._wake_in.send(b"\0")

    def _request(self, filters: list[tuple[str, int]]) -> None:
        if self._paho is not None:
            _, mid = self._paho.subscribe(filters)
            if mid is not None:
                self._requests[mid] = [topic_filter for topic_filter, _ in filters]

    def _open(self, stopping: Callable[[], bool]) -> None:
        s, timeout_s = self._settings, self._client.settings.connect_timeout_s
        deadline = time.monotonic() + timeout_s
        client = self._paho = self._configured()
        try:
            client.connect(s.host, s.port, self._client.settings.keepalive_s, properties=self._greeting())
        except (OSError, ValueError) as error:
            clock = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self._client.clock.wall_ns() // 1_000_000_000))
            raise self._unavailable(sentences.connect_failure(error, s, timeout_s, clock)) from error
        while not self._accepted and self._end is None and not stopping() and (now := time.monotonic()) < deadline:
            self._loop(lambda: self._accepted, min(deadline, now + _LOOK_S))
        if self._end is not None:
            raise self._unavailable(self._end)
        if not self._accepted:
            raise self._unavailable(f"it accepts the connection, but does not greet within {timeout_s:g} s")

    def _unavailable(self, problem: str) -> SinkUnavailable:
        return SinkUnavailable(f"{self.where}: {problem}")

    def _greeting(self) -> Properties | None:
        if self._settings.protocol != "5":
            return None
        properties: Properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # as below
        properties.MaximumPacketSize = self._client.longest
        return properties

    def _configured(self) -> paho.Client:
        s, common = self._settings, self._client
        v5 = s.protocol == "5"
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=common.id,
            clean_session=None if v5 else True,
            protocol=MQTTProtocolVersion.MQTTv5 if v5 else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        client.connect_timeout = common.settings.connect_timeout_s
        # `_send` is only called within the window: paho must not count once more, and search its queue at every PUBACK.
        client.max_inflight_messages_set(0)
        if s.user:
            client.username_pw_set(s.user, self._password())
        if s.tls:
            client.tls_set_context(self._tls())
        if common.will is not None:
            client.will_set(common.will.topic, common.will.payload, QOS, common.will.retain)
        client.on_socket_open = _no_delay
        client.on_socket_register_write = lambda *_: self.wake()
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_unsubscribe = self._on_unsubscribe
        client.on_log = self._on_log
        return client

    def _password(self) -> str | None:
        if not self._settings.password_file:
            return None
        path = self._path(self._settings.password_file)
        try:
            return path.read_text("utf-8").removesuffix("\n").removesuffix("\r")
        except (OSError, ValueError) as error:
            raise self._unavailable(sentences.unreadable("password_file", path, error)) from error

    def _tls(self) -> ssl.SSLContext:
        """Check the chain and the name, as `ssl.create_default_context` does.

        Not that function itself: from Python 3.13 on it also refuses certificates for what RFC 5280 asks of their
        form, which CAs that people make for a broker at home rarely heed.
        """
        context = self._context = _Context(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        s = self._settings
        setting, path = "ca_file", self._path(s.ca_file)
        try:
            if s.ca_file:
                context.load_verify_locations(path)
            else:
                context.load_default_certs()
            if s.cert_file:
                setting, path = "cert_file", self._path(s.cert_file)
                path.read_bytes()  # OpenSSL does not tell which of the two it missed
                if s.key_file:
                    setting, path = "key_file", self._path(s.key_file)
                    path.read_bytes()
                # A passphrase that is never right, or OpenSSL would ask for one on the terminal.
                context.load_cert_chain(self._path(s.cert_file), path if s.key_file else None, password="")
        except (OSError, ValueError) as error:
            raise self._unavailable(sentences.unreadable(setting, path, error)) from error
        return context

    def _path(self, name: str) -> Path:
        return credential(name, self._client.credentials)

    def _loop(self, until: Callable[[], bool], deadline: float) -> None:
        """Run paho until the session has ended, `until` is true, or `deadline` has passed."""
        client = self._paho
        wire = client.socket() if client is not None else None
        if client is None or wire is None:
            self._end = self._end or self._lost()
            return
        fd, wake_fd = wire.fileno(), self._wake_out.fileno()
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.register(wake_fd, select.POLLIN)
        full = False
        try:
            while self._end is None and not self._finishing and not until():
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return
                # paho may have queued after its last write, and only then have been told to wake this loop again.
                if client.want_write() != full:
                    full = not full
                    poll.modify(fd, select.POLLIN | (select.POLLOUT if full else 0))
                # OpenSSL may hold what poll cannot see.
                readable = isinstance(wire, ssl.SSLSocket) and wire.pending() > 0
                for ready, events in poll.poll(0 if readable else left_s * 1000):
                    if ready == wake_fd:
                        self._wake_out.recv(4096)
                    elif events & ~select.POLLOUT:
                        readable = True
                if readable:
                    client.loop_read()
                if client.want_write():
                    # At QoS 0 paho calls it once a message is written. It is for acknowledgements, which are read.
                    client.on_publish = None
                    client.loop_write()
                    client.on_publish = self._on_publish
                if client.socket() is None:
                    self._end = self._end or self._lost()
        except Exception as error:  # noqa: BLE001  whatever paho raises ends this session only
            self._end = f"the connection was given up: {type(error).__name__}: {error}"

    def _flush(self) -> None:
        """Say farewell and write what is queued, within a deadline."""
        client = self._paho
        with contextlib.suppress(Exception):
            deadline = time.monotonic() + _FLUSH_S
            if client is not None:
                client.on_publish = None  # as in `_loop`
                client.disconnect()
            while client is not None and (wire := client.socket()) is not None and client.want_write():
                left_s = deadline - time.monotonic()
                if left_s <= 0 or not select.select([], [wire], [], left_s)[1]:
                    return
                client.loop_write()

    def _lost(self) -> str:
        if self._accepted:
            return sentences.LOST
        if self._settings.tls:
            if "SSL" in self._log:
                return sentences.tls_failure(self._log)
            return "it closed the connection without a greeting: check its log, and protocol"
        return "it closed the connection without a greeting: check protocol; if the port speaks TLS, use mqtts://"

    def _on_connect(self, client: paho.Client, _data: Any, _flags: Any, reason: ReasonCode, props: Any) -> None:
        client.on_log = None
        if reason.is_failure:
            said = sentences.refusal(reason.value, reason.getName(), self._client.id, self._settings.protocol)
            self._end = said + _reason_string(props)
            return
        self._window = min(self._window, getattr(props, "ReceiveMaximum", self._window))
        self._max_packet = getattr(props, "MaximumPacketSize", self._max_packet)
        self._accepted = True
        self.subscribe()

    def _on_disconnect(self, _client: paho.Client, _data: Any, flags: Any, reason: ReasonCode, props: Any) -> None:
        if self._end is None and (self._accepted or flags.is_disconnect_packet_from_server):
            keepalive_s = self._client.settings.keepalive_s
            self._end = sentences.ended(reason.value, reason.getName(), self._client.id, keepalive_s)
            self._end += _reason_string(props)

    def _on_publish(self, _client: paho.Client, _data: Any, mid: int, reason: ReasonCode, _props: Any) -> None:
        code = reason.value
        name = reason.getName() if code else ""
        self.answers.append(Answer(mid, self._client.clock.monotonic_ns(), code, name))
        with self._room:
            self._unanswered -= 1
        while (waiting := self._next()) is not None:
            try:
                self._send(*waiting)
            except ValueError as error:
                self.refused.append(Refused(waiting.token, f"the message for {waiting.message.topic}: {error}"))

    def _next(self) -> "_Pending | None":
        """Take the next message that waits, if there is room for one, and keep the room."""
        with self._room:
            if not self._pending or self._unanswered >= self._window:
                return None
            self._unanswered += 1
            return self._pending.popleft()

    def _on_subscribe(
        self, _client: paho.Client, _data: Any, mid: int, reasons: Sequence[ReasonCode], _props: Any
    ) -> None:
        for topic_filter, reason in zip(self._requests.pop(mid, ()), reasons, strict=False):
            if reason.is_failure:
                said = sentences.not_subscribed(reason.value, reason.getName(), topic_filter)
                self.denied = self.denied | {topic_filter: said}
            else:
                self.denied = {f: said for f, said in self.denied.items() if f != topic_filter}
                self.subscribed |= {topic_filter}
        self.news = True

    def _on_unsubscribe(self, *_: Any) -> None:
        self.subscribed -= {self._leaving}
        self.news = True

    def _on_log(self, _client: paho.Client, _data: Any, level: int, text: str) -> None:
        # Only until the greeting: formatting these lines costs more than a message does.
        if level == LogLevel.MQTT_LOG_ERR:
            self._log = text

    def _taker(self, subscription: Subscription) -> Callable[[paho.Client, Any, paho.MQTTMessage], None]:
        take, now_ns = subscription.take, self._client.clock.monotonic_ns

        def on_message(_client: paho.Client, _data: Any, m: paho.MQTTMessage) -> None:
            try:
                # Not hasattr, nor isEmpty: they go through all the names that a property can have.
                given = vars(m.properties) if m.properties is not None else {}
                response_topic, correlation = given.get("ResponseTopic", ""), given.get("CorrelationData", b"")
                expiry_s = given.get("MessageExpiryInterval", 0)
                take(Message(m.topic, bytes(m.payload), m.retain, now_ns(), response_topic, correlation, expiry_s))
            except Exception as error:  # noqa: BLE001  a taker's mistake must not end the connection
                self._client.failed(f"taking a message of {subscription.topic_filter}", error)

        return on_message


def credential(name: str, folder: Path | None) -> Path:
    """Return where a configured file is: a bare name is looked for in `folder` first, where systemd puts secrets.

    In a folder that this user may not look into, it is taken to be there: who reads it is told what is wrong.
    """
    if folder is not None and name and "/" not in name:
        try:
            found = (folder / name).exists()
        except PermissionError:
            found = True
        if found:
            return folder / name
    return Path(name)


class _Context(ssl.SSLContext):
    """Remembers its socket, which paho drops unclosed when the handshake fails."""

    wrapped: ssl.SSLSocket | None = None

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        """Wrap a socket, and remember it."""
        self.wrapped = super().wrap_socket(*args, **kwargs)
        return self.wrapped


def request_properties(response_topic: str, correlation: bytes, expiry_s: int = 0) -> Properties:
    """Return the properties of a message that wants an answer, and is not to be delivered after `expiry_s`, if set."""
    topic = response_topic.encode()
    expiry = b"\x02%b" % expiry_s.to_bytes(4, "big") if expiry_s else b""
    return _Packed(b"%b\x08%b%b%b" % (expiry, len(topic).to_bytes(2, "big"), topic, _correlation(correlation)))


def reply_properties(correlation: bytes) -> Properties:
    """Return the properties of an answer."""
    return _Packed(_correlation(correlation))


def _correlation(data: bytes) -> bytes:
    return b"\x09%b%b" % (len(data).to_bytes(2, "big"), data)


class _Packed(Properties):
    """Properties of a PUBLISH, as bytes: paho goes through every name that there is, for each that is set and sent.

    Identifiers and types: MQTT 5.0, section 2.2.2.2.
    """

    packetType = PacketTypes.PUBLISH  # noqa: N815  paho's name

    def __init__(self, body: bytes) -> None:
        length = VariableByteIntegers.encode(len(body))  # type: ignore[no-untyped-call]  # paho types all but this
        object.__setattr__(self, "packed", length + body)

    def pack(self) -> bytes:
        """Return what is sent."""
        packed: bytes = vars(self)["packed"]
        return packed


def _reason_string(properties: Any) -> str:
    said = "".join(c if c.isprintable() else " " for c in getattr(properties, "ReasonString", ""))[:_LONGEST_REASON]
    return f" ({said})" if said else ""


def _no_delay(_client: paho.Client, _data: Any, wire: Any) -> None:
    """Send small packets at once: Nagle's algorithm would wait for the acknowledgement of the one before."""
    with contextlib.suppress(OSError):
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
