"""The delivery policy: nothing stored is lost, new before old, refusals wait, silence is not borne for ever."""

import json

import pytest
from fakes import FakeClock, FakeLink, ListOutbox
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.core.settings import MqttSettings, OutboxSettings
from agent.records import Outgoing
from agent.runtime.delivery import Delivery

SECOND = 1_000_000_000
REFUSED_PAUSE_S = MqttSettings().retry_longest_s


class Rig:
    """A delivery between fakes."""

    def __init__(self, inflight: int = 8, history_hz: float = 10.0, ack_timeout_s: float = 20.0) -> None:
        self.outbox = ListOutbox()
        self.link = FakeLink(inflight)
        self.clock = FakeClock()
        self.settings = OutboxSettings(history_hz=history_hz)
        self.mqtt = MqttSettings(inflight=inflight, ack_timeout_s=ack_timeout_s)
        self.made = 0
        self.start()

    def start(self) -> None:
        self.delivery = Delivery(self.outbox, self.link, self.clock, self.settings, self.mqtt)

    def publish(self, n: int = 1, topic: str = "har/a/prediction", received_ns: tuple[int, ...] = ()) -> list[str]:
        ids = [str(self.made + i) for i in range(n)]
        self.made += n
        self.delivery.publish([message(i, topic) for i in ids], received_ns)
        return ids

    def pass_s(self, seconds: float) -> None:
        self.clock.now_ns += round(seconds * SECOND)
        self.delivery.tick()

    def received(self) -> list[str]:
        return [id_of(m) for m in self.link.received]


def message(name: str, topic: str = "har/a/prediction") -> Outgoing:
    return Outgoing(topic, b'{"v":1,"id":"%s","historical":false,"x":"\\"historical\\":false"}' % name.encode())


def id_of(message: Outgoing) -> str:
    return str(json.loads(message.payload)["id"])


def is_historical(message: Outgoing) -> bool:
    return bool(json.loads(message.payload)["historical"])


@pytest.fixture
def rig() -> Rig:
    rig = Rig()
    rig.link.connect()
    return rig


def test_a_message_is_stored_before_it_is_offered_and_removed_by_its_acknowledgement(rig: Rig):
    rig.publish(2, received_ns=(0, 0))
    assert (rig.outbox.depth, rig.delivery.in_flight) == (2, 2)
    assert not any(is_historical(m) for _, m in rig.link.offered)

    rig.link.ack(1, t_ns=3_000_000)
    rig.delivery.tick()

    assert (rig.outbox.depth, rig.delivery.in_flight) == (1, 1)
    assert (rig.delivery.published, rig.delivery.acknowledged) == (2, 1)
    assert rig.delivery.take_delivered().max_ns == 3_000_000
    assert rig.delivery.take_delivered().count == 0


def test_what_was_made_while_the_link_was_away_is_sent_marked_and_in_order_at_a_bounded_rate():
    rig = Rig(inflight=100, history_hz=10)
    ids = rig.publish(40)
    rig.link.connect()
    for _ in range(5):
        rig.pass_s(0.5)
        rig.link.ack()

    offered = [m for _, m in rig.link.offered]
    assert [id_of(m) for m in offered] == ids[:30], "a burst of a second, and 2 s at 10 a second"
    assert all(is_historical(m) for m in offered)
    assert json.loads(offered[0].payload)["x"] == '"historical":false', "only the field itself is changed"
    assert rig.delivery.historical == 30
    assert rig.delivery.take_delivered().count == 0, "history says nothing of latency"


def test_live_messages_find_room_while_history_waits():
    rig = Rig(inflight=8, history_hz=1000)
    rig.publish(50)
    rig.link.connect()
    rig.pass_s(1)
    assert rig.delivery.in_flight == 6, "a quarter of the window is kept free"

    new = rig.publish(2)
    assert [id_of(m) for _, m in rig.link.offered[-2:]] == new
    assert not is_historical(rig.link.offered[-1][1])


def test_what_finds_the_window_full_is_offered_live_as_soon_as_there_is_room(rig: Rig):
    ids = rig.publish(12)
    assert len(rig.link.offered) == 8
    rig.link.ack()
    ids += rig.publish(1)
    rig.pass_s(1)

    assert [id_of(m) for _, m in rig.link.offered] == ids, "in order"
    assert [is_historical(m) for _, m in rig.link.offered] == [False] * 13


def test_what_waits_for_room_is_history_once_the_session_has_ended(rig: Rig):
    ids = rig.publish(12)
    rig.link.lose()
    rig.delivery.tick()
    assert rig.delivery.possible_repeats == 8, "the others never went out"

    rig.link.connect()
    rig.pass_s(1)
    rig.link.ack()
    rig.pass_s(1)
    assert [id_of(m) for _, m in rig.link.offered[8:]] == ids
    assert all(is_historical(m) for _, m in rig.link.offered[8:])


def test_what_was_in_flight_when_the_session_ended_is_sent_again_with_its_id(rig: Rig):
    ids = rig.publish(3)
    rig.link.ack(1)
    rig.link.lose()
    rig.delivery.tick()
    assert rig.delivery.possible_repeats == 2
    rig.link.connect()
    rig.pass_s(1)
    rig.link.ack()
    rig.delivery.tick()

    assert rig.received() == ids
    assert rig.outbox.depth == 0


def test_a_session_that_ended_and_began_between_two_turns_is_noticed(rig: Rig):
    ids = rig.publish(3)
    rig.link.connect()
    new = rig.publish(1)
    rig.pass_s(1)
    rig.link.ack()
    rig.delivery.tick()

    assert rig.received() == [*new, *ids]
    assert rig.outbox.depth == 0


def test_what_an_earlier_run_left_is_history():
    rig = Rig()
    ids = rig.publish(3)
    rig.start()
    rig.link.connect()
    rig.pass_s(1)

    assert [id_of(m) for _, m in rig.link.offered] == ids


def test_messages_that_appear_in_the_outbox_later_are_found(rig: Rig):
    rig.pass_s(1)
    rig.pass_s(1)
    rig.outbox.append([message("found")])
    rig.pass_s(1)
    rig.pass_s(1)

    assert [id_of(m) for _, m in rig.link.offered] == ["found"]


def test_a_long_backlog_is_walked_and_not_read_again_and_again():
    rig = Rig(inflight=100, history_hz=1000)
    rig.publish(2000)
    read = 0
    oldest = rig.outbox.oldest

    def counted(n: int, after: int = 0) -> list:
        nonlocal read
        found = oldest(n, after)
        read += len(found)
        return found

    rig.outbox.oldest = counted
    rig.link.connect()
    for _ in range(100):
        rig.pass_s(0.1)
        rig.link.ack()
    assert rig.outbox.depth == 0
    assert read < 3 * 2000


def test_a_refused_topic_loses_nothing_does_not_spin_and_holds_nothing_else_up(rig: Rig):
    refused = rig.publish(2)
    rig.link.refuse()
    rig.delivery.tick()
    assert "har/a/prediction" in str(rig.delivery.problem)
    assert "Not authorized" in str(rig.delivery.problem)

    for _ in range(50):
        refused += rig.publish(1)
        rig.publish(1, "har/b/prediction")
        rig.pass_s(1)
        rig.link.ack()
    assert {m.topic for m in rig.link.received} == {"har/b/prediction"}
    assert rig.delivery.refused == 2

    rig.pass_s(REFUSED_PAUSE_S)
    assert len(rig.link.waiting) == 1, "one message tries again"
    rig.link.refuse()
    rig.pass_s(1)
    assert len(rig.link.waiting) == 0
    rig.pass_s(REFUSED_PAUSE_S)
    for _ in range(100):
        rig.link.ack()
        rig.pass_s(1)
    assert rig.delivery.problem is None
    assert sorted(m for m in rig.received() if m in refused) == sorted(refused)
    assert rig.outbox.depth == 0


def test_messages_that_are_refused_for_ever_hold_their_topic_up_but_do_not_stop_it():
    rig = Rig(inflight=8)
    rig.link.connect()
    poison = rig.publish(2)
    for _ in range(60):
        rig.publish(1)
        rig.pass_s(REFUSED_PAUSE_S / 5)
        while rig.link.waiting:
            first = next(iter(rig.link.waiting.values()))
            rig.link.refuse(1) if id_of(first) in poison else rig.link.ack(1)
            rig.delivery.tick()
    assert len(set(rig.received())) >= 20
    assert rig.delivery.refused <= 30
    assert {id_of(m) for m in rig.outbox.oldest(100)} >= set(poison)


def test_while_one_topic_is_refused_nothing_of_the_others_is_forgotten(rig: Rig):
    rig.publish(1, "har/refused/prediction")
    rig.link.refuse()
    others = rig.publish(3)
    for _ in range(3):
        rig.pass_s(1)
    rig.link.connect()
    for _ in range(5):
        rig.pass_s(1)
        rig.link.ack()
    others += rig.publish(12)
    for _ in range(20):
        rig.pass_s(1)
        rig.link.ack()
    assert sorted(rig.received(), key=int) == others


def test_an_older_message_of_a_refused_topic_that_was_in_flight_is_not_forgotten(rig: Rig):
    rig.publish(1, "har/refused/prediction")
    rig.link.refuse()
    rig.delivery.tick()
    ids = rig.publish(2)
    rig.link.waiting = dict(reversed(rig.link.waiting.items()))
    rig.link.refuse(1)
    rig.delivery.tick()
    rig.link.connect()
    rig.pass_s(1)
    ids += rig.publish(1)
    for _ in range(100):
        rig.pass_s(10)
        for m in list(rig.link.waiting.values()):
            rig.link.refuse(1) if "refused" in m.topic else rig.link.ack(1)
    assert sorted(rig.received(), key=int) == ids


def test_a_topic_whose_refused_messages_are_gone_is_tried_as_if_new(rig: Rig):
    rig.publish(1)
    rig.link.refuse()
    rig.delivery.tick()
    rig.outbox.held.clear()
    for _ in range(4):
        rig.pass_s(REFUSED_PAUSE_S)
    assert rig.delivery.problem is None

    rig.publish(1)
    assert len(rig.link.waiting) == 1


def test_states_go_first_in_every_session_and_only_the_latest_of_each():
    rig = Rig()
    rig.publish(3)
    rig.delivery.set_state("har/x/status", b"old")
    rig.delivery.set_state("har/x/status", b"new")
    rig.delivery.set_state("har/x/health", b"ok")
    for _ in range(2):
        rig.link.connect()
        rig.pass_s(1)
        assert [(m.topic, m.payload, m.retain) for m in list(rig.link.waiting.values())[:2]] == [
            ("har/x/status", b"new", True),
            ("har/x/health", b"ok", True),
        ]
        rig.link.ack()
        rig.pass_s(1)
    assert rig.outbox.depth == 0
    before = len(rig.link.offered)

    rig.delivery.set_state("har/x/health", b"ok")
    assert len(rig.link.offered) == before, "what has not changed is not sent"
    rig.delivery.set_state("har/x/health", b"bad")
    assert rig.link.offered[-1][1].payload == b"bad"


def test_a_state_that_finds_no_room_goes_as_soon_as_there_is(rig: Rig):
    rig.publish(8)
    rig.delivery.set_state("har/x/status", b"s")
    assert rig.link.offered[-1][1].topic != "har/x/status"
    rig.link.ack(1)
    rig.delivery.tick()
    assert rig.link.offered[-1][1].topic == "har/x/status"


def test_a_refused_state_is_tried_again_after_a_pause(rig: Rig):
    rig.delivery.set_state("har/x/status", b"s")
    rig.link.refuse()
    rig.pass_s(1)
    assert "har/x/status" in str(rig.delivery.problem)
    assert not rig.link.waiting
    rig.pass_s(REFUSED_PAUSE_S)
    rig.link.ack()
    rig.pass_s(1)
    assert rig.delivery.problem is None


def test_a_forgotten_state_is_emptied_once_even_if_the_link_was_away():
    rig = Rig()
    rig.delivery.set_state("har/x/status", b"s")
    rig.delivery.forget_state("har/x/status")
    assert not rig.delivery.settled
    for expected in ([b""], []):
        rig.link.connect()
        rig.delivery.tick()
        assert [m.payload for m in rig.link.waiting.values()] == expected
        assert rig.delivery.settled == (not expected)
        rig.delivery.tick()
        rig.link.ack()
        rig.delivery.tick()
        assert rig.delivery.settled


def test_a_state_is_repeated_on_request_unless_it_is_forgotten_meanwhile(rig: Rig):
    rig.delivery.set_state("har/x/status", b"s")
    rig.link.ack()
    rig.delivery.tick()
    rig.delivery.repeat_state("har/x/status")
    rig.delivery.tick()
    assert [m.payload for m in rig.link.ack()] == [b"s"]

    rig.delivery.forget_state("har/x/status")
    rig.link.ack()
    rig.delivery.repeat_state("har/x/status")
    rig.delivery.tick()
    assert rig.delivery.settled
    rig.delivery.repeat_state("har/x/never")
    assert rig.delivery.settled


def test_what_is_sent_once_is_dropped_and_counted_when_the_link_takes_none(rig: Rig):
    telemetry = Outgoing("har/x/telemetry", b"{}")
    assert rig.delivery.send(telemetry)
    rig.link.ack()
    rig.delivery.tick()
    assert rig.delivery.unsent == 0

    assert rig.delivery.send(telemetry)
    rig.link.lose()
    assert not rig.delivery.send(telemetry)
    assert rig.delivery.unsent == 2, "one on its way, one with no way"
    assert rig.outbox.depth == 0


def test_a_broker_that_does_not_acknowledge_is_given_up_once_a_session():
    rig = Rig(ack_timeout_s=20)
    rig.link.connect()
    rig.publish(1)
    rig.pass_s(19)
    assert rig.link.disturbed == []
    rig.pass_s(2)
    rig.pass_s(2)
    assert len(rig.link.disturbed) == 1
    assert "did not acknowledge" in rig.link.disturbed[0]


def test_a_slow_broker_that_answers_in_time_is_left_alone():
    rig = Rig(inflight=8, ack_timeout_s=20)
    rig.link.connect()
    for _ in range(100):
        rig.publish(1)
        rig.pass_s(4)
        if len(rig.link.waiting) > 3:
            rig.link.ack(1)
    assert rig.link.disturbed == []


def test_flush_waits_for_answers_within_its_deadline_and_begins_no_history(rig: Rig):
    rig.publish(12)
    sleep = rig.clock.sleep

    def answering(seconds: float) -> None:
        sleep(seconds)
        rig.link.ack(1)

    rig.clock.sleep = answering
    assert rig.delivery.flush(10 * SECOND) == 0
    assert rig.outbox.depth == 0

    rig.link.offer(message("stray"))
    rig.publish(1)
    rig.clock.sleep = sleep
    assert rig.delivery.flush(rig.clock.now_ns + SECOND) == 1
    assert rig.outbox.depth == 1


def test_flush_does_not_wait_for_a_link_that_is_away():
    rig = Rig()
    rig.publish(1)
    assert rig.delivery.flush(60 * SECOND) == 0
    assert rig.clock.slept == []


class Model(RuleBasedStateMachine):
    """Whatever happens to the link and the agent: every message reaches the broker, history in order."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig(inflight=4, history_hz=5)
        self.topics = ("har/a/prediction", "har/b/prediction")
        self.ids: list[str] = []
        self.refused = False

    @rule(n=st.integers(1, 6), topic=st.integers(0, 1))
    def publish(self, n: int, topic: int) -> None:
        link = self.rig.link
        self.rig.delivery.tick()
        room = link.inflight - len(link.waiting) if link.connected and not self.refused else 0
        before = len(link.offered)
        ids = self.rig.publish(n, self.topics[topic])
        self.ids += ids
        live = [m for _, m in link.offered[before:]]
        assert [id_of(m) for m in live[:room]] == ids[:room], "live never waits while there is room"
        assert not any(is_historical(m) for m in live)

    @rule(s=st.sampled_from([0.01, 0.2, 1.0, 30.0, 61.0]))
    def time_passes(self, s: float) -> None:
        self.rig.pass_s(s)

    @rule()
    def connect(self) -> None:
        self.rig.link.connect()

    @rule()
    def lose(self) -> None:
        self.rig.link.lose()

    @rule(n=st.integers(1, 4))
    def ack(self, n: int) -> None:
        self.rig.link.ack(n)

    @rule(n=st.integers(1, 4))
    def refuse(self, n: int) -> None:
        self.refused = bool(self.rig.link.refuse(n)) or self.refused

    @rule(topic=st.integers(0, 1))
    def state(self, topic: int) -> None:
        self.rig.delivery.set_state(
            f"har/{topic}/activity", b'{"id":"state","historical":false,"n":%d}' % len(self.ids)
        )

    @precondition(lambda self: self.rig.link.connected)
    @rule()
    def kill_the_agent(self) -> None:
        self.rig.link.lose()
        self.rig.link.acknowledged()
        self.rig.start()

    @invariant()
    def nothing_is_lost(self) -> None:
        stored = {id_of(Outgoing(s.topic, s.payload)) for s in self.rig.outbox.oldest(1 << 30)}
        assert stored | set(self.rig.received()) >= set(self.ids)

    @invariant()
    def nothing_is_in_flight_twice(self) -> None:
        waiting = [id_of(m) for m in self.rig.link.waiting.values() if not m.retain]
        assert len(waiting) == len(set(waiting))

    @invariant()
    def history_begins_in_order(self) -> None:
        if self.refused:
            return
        seen: set[str] = set()
        first = [i for _, m in self.rig.link.offered if not m.retain and not ((i := id_of(m)) in seen or seen.add(i))]
        historical = {id_of(m) for _, m in self.rig.link.offered if not m.retain and is_historical(m)}
        firsts = [int(i) for i in first if i in historical and not self.was_live(i)]
        assert firsts == sorted(firsts)

    def was_live(self, name: str) -> bool:
        return any(id_of(m) == name and not is_historical(m) for _, m in self.rig.link.offered if not m.retain)

    def teardown(self) -> None:
        self.rig.link.connect()
        for _ in range(1000):
            self.rig.pass_s(2)
            self.rig.link.ack()
            self.rig.delivery.tick()
            if self.rig.outbox.depth == 0:
                break
        assert self.rig.outbox.depth == 0
        assert set(self.rig.received()) >= set(self.ids)
        assert self.rig.delivery.in_flight == 0


TestModel = Model.TestCase
TestModel.settings = hypothesis_settings(max_examples=150, stateful_step_count=40, deadline=None)
