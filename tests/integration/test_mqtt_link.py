"""The MQTT link against real brokers that come, go and refuse, and against servers that only look like one."""

import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mosquitto import LOOPBACK, Authority, Mosquitto, free_port, scripted_server, until

from agent.adapters.clock import SystemClock
from agent.adapters.embedded_broker import EmbeddedBroker
from agent.adapters.mqtt import Connection, MqttLink, Subscriber, reply_properties, sentences
from agent.core.settings import BrokerSettings, MqttSettings
from agent.errors import SinkUnavailable
from agent.records import Ack, LinkState, Outgoing

CLOCK = SystemClock()
WILL = Outgoing("har/board/status", b'{"state": "offline"}', retain=True)
QUICK = MqttSettings(
    keepalive_s=5, connect_timeout_s=5, retry_first_s=0.01, retry_longest_s=0.05, stable_s=0.2, inflight=100
)
GREETING = b"\x20\x03\x00\x00\x00"
"""A CONNACK of MQTT 5 that accepts."""
Make = Callable[..., MqttLink]
# What `mosquitto_passwd` makes of the user "har" with the password "right".
_PASSWORDS = """\
har:$7$101$yvBYZdnUv24yJUX3$YzNWmuDA9tH86SFeGGhelv25h5h7BZR2mtHYAsJaVYII6zgrORYSVTQjROiXjJ5uIUea459g6p6/2+6XNrxUEw==
"""


@pytest.fixture
def make() -> Iterator[Make]:
    """Make links that are closed in the end; brokers by name, as settings, brokers or ports."""
    links: list[MqttLink] = []

    def start(settings: MqttSettings = QUICK, client: str = "board", **brokers: Any) -> MqttLink:
        link = MqttLink(Connection(client, {n: at(b) for n, b in brokers.items()}, settings, CLOCK, will=WILL), CLOCK)
        links.append(link)
        link.start()
        return link

    yield start
    for link in links:
        link.close()


def at(broker: Any, **more: str) -> BrokerSettings:
    if isinstance(broker, BrokerSettings):
        return broker
    return BrokerSettings(f"mqtt://{LOOPBACK}:{broker}" if isinstance(broker, int) else broker.url, **more)


def connected(link: MqttLink, broker: str = "a", session: int = 0) -> LinkState:
    def reached() -> LinkState | None:
        state = link.state()
        return state if state.connected and state.broker == broker and state.session >= session else None

    return until(reached)


def problem(link: MqttLink, words: str) -> LinkState:
    def told() -> LinkState | None:
        state = link.state()
        return state if state.problem is not None and words in state.problem else None

    try:
        return until(told, 5)
    except AssertionError:
        pytest.fail(f"{words!r} was not told, but {link.state()}")


def acks(link: MqttLink, tokens: list[int]) -> list[Ack]:
    found: list[Ack] = []
    until(lambda: found.extend(link.acknowledged()) or len(found) >= len(tokens))
    return found


def subscriber(broker: Mosquitto, *filters: str, settings: MqttSettings = QUICK) -> Subscriber:
    listening = Subscriber(at(broker), settings, filters, CLOCK)
    listening.start()
    return listening


def offer(link: MqttLink, n: int, topic: str = "har/d/prediction") -> list[int]:
    tokens = [link.offer(Outgoing(topic, b"%d" % i)) for i in range(n)]
    assert None not in tokens
    return [t for t in tokens if t is not None]


def test_what_is_offered_arrives_and_is_acknowledged(broker: Mosquitto, make: Make):
    listening = subscriber(broker, "har/#")
    link = make(a=broker)

    assert link.offer(Outgoing("har/d/prediction", b"too early")) is None
    state = connected(link)
    before_ns = CLOCK.monotonic_ns()
    tokens = offer(link, 20)
    answers = acks(link, tokens)
    messages = [listening.poll(5) for _ in tokens]
    listening.close()

    assert state == LinkState(True, 1, "a", None, window=20)
    assert [a.token for a in answers] == tokens
    assert all(a.refusal is None and before_ns < a.t_ns < CLOCK.monotonic_ns() for a in answers)
    assert [m.payload for m in messages if m is not None] == [b"%d" % i for i in range(20)]
    assert link.acknowledged() == []


def test_every_token_comes_back_exactly_once(broker: Mosquitto, make: Make):
    link = make(a=broker)
    connected(link)
    given: list[int] = []
    back: list[Ack] = []
    while len(given) < 10_000:
        while len(given) < 10_000 and (token := link.offer(Outgoing("t", b"x" * 64))) is not None:
            given.append(token)
        if not (came := link.acknowledged()):
            time.sleep(0.0005)  # or this loop would hold the interpreter against the link's thread
        back += came
    until(lambda: back.extend(link.acknowledged()) or len(back) >= len(given))

    assert [a.token for a in back] == given
    assert len(set(given)) == 10_000


def test_a_message_at_qos_0_needs_no_room_and_is_no_acknowledgement(broker: Mosquitto, make: Make):
    listening = subscriber(broker, "har/#")
    link = make(a=broker)
    window = connected(link).window
    session = link._connection.now()[1]
    assert session is not None
    broker.pause()
    tokens = offer(link, 2 * window)

    assert all(session.send("har/d/passing", b"%d" % i, reply_properties(b"17")) for i in range(50))
    broker.resume()
    answers = acks(link, tokens)
    messages = [listening.poll(5) for _ in range(len(tokens) + 50)]
    listening.close()

    assert [a.token for a in answers] == tokens
    passing = [m for m in messages if m is not None and m.topic == "har/d/passing"]
    assert [(m.payload, m.correlation) for m in passing] == [(b"%d" % i, b"17") for i in range(50)]
    with pytest.raises(ValueError, match="wildcard"):
        session.send("har/+/passing", b"", reply_properties(b""))


def test_what_the_broker_cannot_take_yet_waits_for_it(tmp_path: Path, make: Make):
    # A broker ends a session that goes beyond its receive maximum.
    with Mosquitto(tmp_path, "allow_anonymous true\nmax_inflight_messages 7") as broker:
        link = make(a=broker)
        session = connected(link)
        broker.pause()
        taken = [link.offer(Outgoing("t", b"%d" % i)) for i in range(50)]
        broker.resume()

        assert None not in taken
        assert [a.token for a in acks(link, [1] * 50)] == taken
        assert link.state().session == session.session


def test_no_more_than_configured_wait_for_the_broker(broker: Mosquitto, make: Make):
    link = make(MqttSettings(inflight=3), a=broker)
    connected(link)
    broker.pause()
    taken = [link.offer(Outgoing("t", b"x")) for _ in range(5)]
    broker.resume()

    assert [t is None for t in taken] == [False] * 3 + [True] * 2


def test_a_broker_that_is_killed_and_comes_back(broker: Mosquitto, make: Make):
    link = make(a=broker)
    for round_ in range(1, 4):
        state = connected(link, session=round_)
        tokens = offer(link, 5)
        answers = acks(link, tokens)
        broker.kill()
        lost = until(lambda: not link.state().connected and link.state())

        assert [a.token for a in answers] == tokens
        assert lost.problem is not None
        assert f"broker a at {LOOPBACK}:{broker.port}: " in lost.problem
        assert link.offer(Outgoing("t", b"x")) is None
        assert link.state().session == state.session
        broker.start()


def test_what_was_under_way_is_void_in_the_next_session(broker: Mosquitto, make: Make):
    link = make(a=broker)
    connected(link)
    broker.pause()
    lost = offer(link, 5)
    broker.kill()
    broker.start()
    connected(link, session=2)
    tokens = offer(link, 20)

    assert [a.token for a in acks(link, tokens)] == tokens
    assert not set(tokens) & set(lost)


def test_nothing_is_offered_to_a_session_that_was_not_told_of(broker: Mosquitto, make: Make):
    link = make(a=broker)
    connected(link)
    broker.kill()
    broker.start()
    until(lambda: link._connection.now()[0].session == 2)

    assert link.offer(Outgoing("t", b"x")) is None
    connected(link, session=2)
    assert link.offer(Outgoing("t", b"x")) is not None


def test_the_next_broker_is_used_until_the_first_is_back(broker: Mosquitto, tmp_path: Path, make: Make):
    (tmp_path / "b").mkdir()
    with Mosquitto(tmp_path / "b") as second:
        link = make(a=broker, b=second)
        connected(link, "a")
        broker.kill()
        away = connected(link, "b")
        tokens = offer(link, 5)
        assert [a.token for a in acks(link, tokens)] == tokens
        until(lambda: link.state().session == away.session and link._connection._prober is not None)
        still = link.state()
        broker.start()
        back = connected(link, "a")
        tokens = offer(link, 5)

        assert [a.token for a in acks(link, tokens)] == tokens
        assert still.connected
        assert still.problem is not None
        assert f"broker a at {LOOPBACK}:{broker.port}" in still.problem
        assert back.problem is None
        assert back.session == away.session + 1


def test_who_left_a_broker_for_the_first_is_offline_there(broker: Mosquitto, tmp_path: Path, make: Make):
    (tmp_path / "b").mkdir()
    with Mosquitto(tmp_path / "b") as second:
        listening = subscriber(second, WILL.topic)
        link = make(a=free_port(), b=second)
        connected(link, "b")
        link.close()
        link = make(a=broker.port, b=second)
        broker.kill()
        connected(link, "b")
        broker.start()
        connected(link, "a")
        will = listening.poll(5)
        listening.close()

        assert will is not None
        assert will.payload == WILL.payload


def test_a_disturbed_link_goes_to_the_next_broker(broker: Mosquitto, tmp_path: Path, make: Make):
    (tmp_path / "b").mkdir()
    with Mosquitto(tmp_path / "b") as second:
        link = make(MqttSettings(retry_first_s=0.01, stable_s=60), a=broker, b=second)
        connected(link, "a")
        link.disturb("it acknowledges nothing")
        state = connected(link, "b")

        assert state.session == 2
        assert state.problem is not None
        assert "it acknowledges nothing" in state.problem


def test_a_problem_that_needs_a_connection_to_show_is_told_until_one_has_held(broker: Mosquitto, make: Make):
    link = make(a=broker)
    connected(link)
    link.disturb("it acknowledges nothing")
    state = connected(link, session=2)

    assert state.problem is not None
    assert "it acknowledges nothing" in state.problem
    until(lambda: link.state().problem is None)
    assert link.state().session == 2


def test_the_last_will_is_published_when_the_wire_breaks(broker: Mosquitto, make: Make):
    listening = subscriber(broker, WILL.topic)
    link = make(a=broker)
    connected(link)
    link.disturb("cut")
    will = listening.poll(5)
    connected(link, session=2)
    link.close()
    after = listening.poll(0.2)
    listening.close()

    assert will is not None
    assert json.loads(will.payload) == {"state": "offline"}
    assert after is None, "a link that is closed leaves in peace"


def test_two_links_with_one_client_id_both_say_so_and_do_not_spin(broker: Mosquitto, make: Make):
    settings = MqttSettings(retry_first_s=0.05, retry_longest_s=0.2, stable_s=60)
    one, other = make(settings, "twin", a=broker), make(settings, "twin", a=broker)
    words = "again within 60 s: another client may use the client id 'twin'"
    problem(one, words)
    problem(other, words)
    before, start = one.state().session + other.state().session, time.monotonic()
    until(lambda: one.state().session + other.state().session >= before + 10)
    took_s = time.monotonic() - start

    # Each waits at least half of 0.2 s between its sessions, once the waits have grown.
    assert took_s > 0.25
    assert one.state().problem is not None, "told also while connected"


def test_a_broker_that_names_the_reason_why_it_ends_a_connection(make: Make):
    with scripted_server(GREETING, b"\xe0\x02\x8e\x00") as port:
        link = make(a=port)
        connected(link)
        link.offer(Outgoing("t", b"x"))
        problem(link, "another client uses the client id 'board': give every agent its own [agent] name")


def test_a_message_that_the_acl_forbids_is_refused_by_name(tmp_path: Path, make: Make):
    acl = tmp_path / "acl"
    acl.write_text("topic readwrite har/#\n")
    acl.chmod(0o700)
    with Mosquitto(tmp_path, f"allow_anonymous true\nacl_file {acl}") as broker:
        link = make(a=broker)
        connected(link)
        tokens = offer(link, 1, "har/ok") + offer(link, 1, "forbidden/x")
        fine, refused = acks(link, tokens)

        assert fine == (tokens[0], fine.t_ns, None)
        assert refused.token == tokens[1]
        assert refused.refusal == "not authorised: the broker's ACL does not let this client publish to forbidden/x"
        assert link.state() == LinkState(True, 1, "a", None, window=20)


def test_a_message_that_can_never_be_sent_is_refused(tmp_path: Path, make: Make):
    with Mosquitto(tmp_path, "allow_anonymous true\nmax_packet_size 2000") as broker:
        link = make(a=broker)
        connected(link)
        tokens = [link.offer(Outgoing("har/+", b"x")), link.offer(Outgoing("har/d", b"x" * 5000))]
        wildcard, large = acks(link, [1, 2])

        assert [wildcard.token, large.token] == tokens
        assert wildcard.refusal is not None
        assert "har/+ cannot be sent" in wildcard.refusal
        assert large.refusal is not None
        assert "5000 bytes are more than the broker takes" in large.refusal
        assert link.state().session == 1


def test_user_and_password_from_files_that_are_read_anew(tmp_path: Path, make: Make):
    passwords = tmp_path / "passwords"
    passwords.write_text(_PASSWORDS)
    passwords.chmod(0o700)
    secret = tmp_path / "secret"
    with Mosquitto(tmp_path, f"allow_anonymous false\npassword_file {passwords}") as broker:
        link = make(a=at(broker, user="har", password_file=str(secret)))
        missing = problem(link, "password_file")
        secret.write_text("wrong\n")
        problem(link, "not authorised: check user and password_file")
        secret.write_text("right\n")
        connected(link)

        assert missing.problem is not None
        assert f"password_file {secret} does not exist" in missing.problem
        assert link.state().problem is None


def test_a_bare_file_name_is_a_credential(tmp_path: Path):
    passwords = tmp_path / "passwords"
    passwords.write_text(_PASSWORDS)
    passwords.chmod(0o700)
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "mqtt").write_text("right")
    with Mosquitto(tmp_path, f"allow_anonymous false\npassword_file {passwords}") as broker:
        settings = at(broker, user="har", password_file="mqtt")
        link = MqttLink(Connection("x", {"a": settings}, QUICK, CLOCK, credentials=credentials), CLOCK)
        link.start()
        connected(link)
        link.close()


def test_messages_come_to_who_subscribed_in_every_session(broker: Mosquitto, make: Make):
    link = make(a=broker)
    came: list[bytes] = []
    link.subscribe("har/board/command/#", lambda message: came.append(message.payload))
    asking = Subscriber(at(broker), QUICK, [], CLOCK)
    asking.start()
    for session in (1, 2):
        state = connected(link, session=session)
        before = len(came)

        def arrived(before: int = before) -> bool:
            asking._connection.now()[1] and asking._connection.now()[1].publish(Outgoing("har/board/command/x", b"go"))
            return len(came) > before

        until(arrived)
        link.disturb("again")
        assert state.session == session
    asking.close()


def test_a_subscription_that_the_acl_forbids_is_told_until_it_is_granted(make: Make):
    # mosquitto's acl_file grants every subscription and is silent later. Here: denied, then granted.
    with scripted_server(GREETING, b"\x90\x04\x00\x01\x00\x87", b"\x90\x04\x00\x02\x00\x01") as port:
        connection = Connection("board", {"a": at(port)}, QUICK, CLOCK)
        connection.subscribe("elsewhere/#", 1, lambda _: None)
        link = MqttLink(connection, CLOCK)
        link.start()
        denied = problem(link, "the broker's ACL does not let this client subscribe to elsewhere/#")
        granted = until(lambda: link.state().problem is None and link.state())
        link.close()

        assert denied.connected
        assert (granted.connected, granted.session) == (True, denied.session)


def test_a_request_is_answered(broker: Mosquitto, make: Make):
    link = make(a=broker)
    asked: list[Any] = []
    link.subscribe("har/board/command/+", asked.append)
    connected(link)
    asking = Subscriber(at(broker), QUICK, [], CLOCK)
    asking.start()

    def answer() -> None:
        request = until(lambda: asked and asked.pop())
        link.offer(Outgoing(request.response_topic, b"other", correlation=b"of another request"))
        link.offer(Outgoing(request.response_topic, b"pong:" + request.payload, correlation=request.correlation))

    thread = threading.Thread(target=answer)
    until(lambda: link._connection.now()[1].subscribed)
    thread.start()
    said = asking.request("har/board/command/ping", b"1", 5)
    thread.join()

    assert said == b"pong:1"
    with pytest.raises(SinkUnavailable, match="nobody listens on har/other/command/ping: check the agent's name"):
        asking.request("har/other/command/ping", b"1", 5)
    with pytest.raises(SinkUnavailable, match=r"no answer to har/board/command/x within 0.05 s"):
        asking.request("har/board/command/x", b"1", 0.05)
    asking.close()


def test_a_taker_that_fails_is_complained_of_once_and_counted(broker: Mosquitto):
    complaints: list[str] = []
    connection = Connection("x", {"a": at(broker)}, QUICK, CLOCK, complain=complaints.append)
    connection.subscribe("t", 1, lambda _: 1 / 0)
    link = MqttLink(connection, CLOCK)
    link.start()
    connected(link)
    until(lambda: connection.now()[1].subscribed)
    acks(link, offer(link, 3, "t"))
    until(lambda: connection.failures == 3)
    link.close()

    assert complaints == ["taking a message of t failed: ZeroDivisionError: division by zero"]


def test_a_server_that_never_greets(make: Make):
    with scripted_server() as port:
        link = make(MqttSettings(connect_timeout_s=0.1, retry_first_s=0.01), a=port)
        problem(link, f"broker a at {LOOPBACK}:{port}: it accepts the connection, but does not greet within 0.1 s")
        start = time.monotonic()
        link.close()
        assert time.monotonic() - start < 1


def test_a_link_is_closed_at_once_while_it_waits_for_a_greeting(make: Make):
    with scripted_server() as port:
        link = make(MqttSettings(connect_timeout_s=30), a=port)
        until(lambda: link._connection._thread.is_alive())
        start = time.monotonic()
        link.close()
        link.close()
        assert time.monotonic() - start < 1


def test_a_link_is_closed_at_once_while_it_waits_to_try_again(make: Make):
    link = make(MqttSettings(retry_first_s=60, retry_longest_s=60), a=free_port())
    problem(link, "connection refused: check that the broker runs, and the port")
    start = time.monotonic()
    link.close()
    assert time.monotonic() - start < 1


def test_a_link_that_was_never_started_is_closed():
    MqttLink(Connection("x", {"a": BrokerSettings()}, QUICK, CLOCK), CLOCK).close()


def test_a_server_that_never_acknowledges(make: Make):
    with scripted_server(GREETING) as port:
        link = make(MqttSettings(inflight=5), a=port)
        connected(link)
        tokens = offer(link, 5)

        assert len(tokens) == 5
        assert link.offer(Outgoing("t", b"x")) is None
        start = time.monotonic()
        link.close()
        assert time.monotonic() - start < 2
        assert link.acknowledged() == []


def test_silence_is_noticed_by_the_keepalive(broker: Mosquitto, make: Make):
    link = make(MqttSettings(keepalive_s=1, connect_timeout_s=0.2, retry_first_s=0.01), a=broker)
    connected(link)
    broker.pause()
    try:
        problem(link, "the connection was lost: no sign of life from the broker in 1 s")
    finally:
        broker.resume()
        link.close()


@pytest.mark.parametrize(
    ("answer", "protocol", "words"),
    [
        (b"\x20\x03\x00\x86\x00", "5", "not authorised: check user and password_file"),
        (b"\x20\x03\x00\x85\x00", "5", "does not accept the client id 'board'"),
        (b"\x20\x03\x00\x88\x00", "5", "the broker refuses the connection: server unavailable"),
        (b"\x20\x02\x00\x01", "5", 'does not speak MQTT 5: set protocol = "3.1.1"'),
        (b"\x20\x02\x00\x05", "3.1.1", "not authorised: check user and password_file"),
        (b"\x20\x03\x00\x77\x00", "5", "check protocol"),
        (b"\x00" * 4, "5", "check protocol"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "5", "does not greet within 0.5 s"),
    ],
)
def test_refusals_say_what_to_do(make: Make, answer: bytes, protocol: str, words: str):
    with scripted_server(answer) as port:
        settings = MqttSettings(connect_timeout_s=0.5, retry_first_s=0.01, retry_longest_s=0.05)
        problem(make(settings, a=at(port, protocol=protocol)), words)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (socket.gaierror(-2, "Name or service not known"), "the name b.example cannot be resolved: check the url, the"),
        (TimeoutError("timed out"), "no answer within 3 s: check host, port and firewall"),
        (OSError(101, "Network is unreachable"), "cannot be reached: Network is unreachable"),
    ],
)
def test_what_the_network_says(error: Exception, words: str):
    said = sentences.connect_failure(error, BrokerSettings("mqtt://b.example"), 3, "2026-05-04 10:21 UTC")

    assert said.startswith(words)


def test_a_first_broker_that_never_greets_does_not_disturb_the_second(broker: Mosquitto, make: Make):
    with scripted_server() as port:
        settings = MqttSettings(connect_timeout_s=0.1, retry_first_s=0.01, stable_s=0.1)
        link = make(settings, a=port, b=broker)
        state = connected(link, "b")
        probers = set()
        until(lambda: probers.add(link._connection._prober) or len(probers) > 3)

        assert link.state().session == state.session
        assert link.state().connected
        problem(link, "broker a at 127.0.0.1")
        start = time.monotonic()
        link.close()
        assert time.monotonic() - start < 1


def test_a_mistake_in_the_connection_does_not_end_it(broker: Mosquitto):
    complaints: list[str] = []
    times = iter([ZeroDivisionError("a bug"), ZeroDivisionError("a bug")])

    class Faulty(Connection):
        def _try(self, at: int) -> bool:
            for error in times:
                raise error
            return super()._try(at)

    link = MqttLink(Faulty("x", {"a": at(broker)}, QUICK, CLOCK, complain=complaints.append), CLOCK)
    link.start()
    connected(link)
    link.close()

    assert complaints == ["the connection itself failed: ZeroDivisionError: a bug"]


def test_an_old_broker(make: Make):
    with EmbeddedBroker() as broker:
        link = make(a=at(broker.port, protocol="3.1.1"))
        listening = Subscriber(at(broker.port, protocol="3.1.1"), QUICK, ["har/#"], CLOCK)
        listening.start()
        connected(link)
        tokens = offer(link, 20)

        assert [a.token for a in acks(link, tokens)] == tokens
        assert [m and m.payload for m in (listening.poll(5) for _ in tokens)] == [b"%d" % i for i in range(20)]
        with pytest.raises(SinkUnavailable, match="requests need MQTT 5"):
            listening.request("t", b"", 1)
        listening.close()
        link.close()


def test_a_subscriber_says_at_once_that_no_broker_is_there():
    listening = Subscriber(at(free_port()), MqttSettings(connect_timeout_s=60), ["t"], CLOCK)
    start = time.monotonic()
    with pytest.raises(SinkUnavailable, match="connection refused"):
        listening.start()
    assert time.monotonic() - start < 5


def test_a_subscriber_outlives_its_broker(broker: Mosquitto, make: Make):
    listening = subscriber(broker, "har/#")
    broker.kill()
    broker.start()
    until(lambda: listening.state().session == 2 and listening._connection.now()[1].subscribed)
    link = make(a=broker)
    connected(link)
    offer(link, 1)
    message = listening.poll(5)
    listening.close()

    assert message is not None
    assert message.payload == b"0"


def test_a_full_subscriber_counts_what_it_let_go(broker: Mosquitto, make: Make):
    listening = Subscriber(at(broker), QUICK, ["har/#"], CLOCK, longest=2)
    listening.start()
    link = make(a=broker)
    connected(link)
    acks(link, offer(link, 5))
    until(lambda: listening.overflowed == 3)
    listening.close()

    assert [m and m.payload for m in (listening.poll(0), listening.poll(0), listening.poll(0))] == [b"0", b"1", None]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def other_authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("other"), "other")


def tls(authority: Authority, name: str, **how: Any) -> str:
    """Return the lines that let mosquitto speak TLS with a certificate made so."""
    certificate, key = authority.issue(name, **how)
    return f"allow_anonymous true\ncafile {authority.certificate}\ncertfile {certificate}\nkeyfile {key}"


def over_tls(broker: Mosquitto, ca: Path | str = "", **more: str) -> BrokerSettings:
    return BrokerSettings(f"mqtts://localhost:{broker.port}", ca_file=str(ca), **more)


def test_tls_with_the_right_authority(authority: Authority, tmp_path: Path, make: Make):
    with Mosquitto(tmp_path, tls(authority, "server")) as broker:
        link = make(a=over_tls(broker, authority.certificate))
        connected(link)
        given: list[int] = []
        back: list[Ack] = []
        while len(back) < 2000:
            while len(given) < 2000 and (token := link.offer(Outgoing("t", b"x" * 2000))) is not None:
                given.append(token)
            back += link.acknowledged()

        assert [a.token for a in back] == given


@pytest.mark.parametrize(
    ("issued", "words"),
    [
        (
            {"days": (-2, -1)},
            "the broker's certificate has expired: renew it, or set this board's clock, which says 20",
        ),
        ({"days": (1, 2)}, "the broker's certificate is not valid yet: set this board's clock, which says"),
        ({"host": "elsewhere"}, "the broker's certificate is not for localhost"),
    ],
)
def test_tls_with_a_certificate_that_does_not_hold(
    authority: Authority, tmp_path: Path, make: Make, issued: dict[str, Any], words: str
):
    with Mosquitto(tmp_path, tls(authority, "bad", **issued)) as broker:
        problem(make(a=over_tls(broker, authority.certificate)), words)


def test_tls_with_other_authorities(authority: Authority, other_authority: Authority, tmp_path: Path, make: Make):
    with Mosquitto(tmp_path, tls(authority, "server")) as broker:
        problem(make(a=over_tls(broker, other_authority.certificate)), "is not signed by ca_file")
        problem(make(a=over_tls(broker)), "is not signed by a CA of this system: set ca_file")
        problem(make(a=over_tls(broker, tmp_path / "none")), f"ca_file {tmp_path / 'none'} does not exist")
        problem(make(a=over_tls(broker, broker.log)), f"ca_file {broker.log} holds nothing that can be used")


def test_tls_with_client_certificates(authority: Authority, other_authority: Authority, tmp_path: Path, make: Make):
    ca = authority.certificate
    mine, others = authority.issue("client", "board"), other_authority.issue("client", "board")
    with Mosquitto(tmp_path, tls(authority, "server") + "\nrequire_certificate true") as broker:
        connected(make(a=over_tls(broker, ca, cert_file=str(mine[0]), key_file=str(mine[1]))))
        problem(make(a=over_tls(broker, ca)), "the broker wants a client certificate: set cert_file and key_file")
        foreign = over_tls(broker, ca, cert_file=str(others[0]), key_file=str(others[1]))
        problem(make(a=foreign), "the broker does not accept the client certificate")
        mixed = over_tls(broker, ca, cert_file=str(mine[0]), key_file=str(others[1]))
        problem(make(a=mixed), f"key_file {others[1]} does not belong to cert_file")
        locked = tmp_path / "locked.key"
        encrypt = ["openssl", "ec", "-aes128", "-passout", "pass:x", "-in", str(mine[1]), "-out", str(locked)]
        subprocess.run(encrypt, check=True, capture_output=True)
        asking = over_tls(broker, ca, cert_file=str(mine[0]), key_file=str(locked))
        problem(make(a=asking), f"key_file {locked} holds nothing that can be used: it must be PEM, and a key without")


def test_tls_and_none_are_not_mixed_up_for_long(authority: Authority, tmp_path: Path, make: Make):
    with Mosquitto(tmp_path) as plain:
        problem(make(a=over_tls(plain, authority.certificate)), "check that the port speaks TLS")
    with Mosquitto(tmp_path, tls(authority, "server")) as encrypted:
        problem(make(a=encrypted), "if the port speaks TLS, use mqtts://")
