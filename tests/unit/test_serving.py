"""A cloud worker's loop with everything around it faked but the worker and the delivery."""

import itertools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fakes import FakeClock, FakeLink, FakeModel, ListLog, ListOutbox, manifest

from agent.core.cloud_wire import NO_SPACE, Kind, Request, encode_request
from agent.core.settings import MqttSettings, OutboxSettings, WorkerSettings
from agent.errors import InferenceError
from agent.records import Float32Array, Scores
from agent.runtime.delivery import Delivery
from agent.runtime.live import DRAIN_S, FLUSH_S, OFFLINE
from agent.runtime.serving import Serving, ServingFacts, ServingParts
from agent.runtime.worker import MAX_FAILURES, Worker

SECOND = 1_000_000_000
LEAVE_S = 2.0
HERE = "har/board/cloud/answer"
WINDOW = encode_request(Request(Kind.WINDOW, NO_SPACE, 50.0, samples=np.zeros((128, 6), np.float32)))


class Model(FakeModel):
    """A model that does something else, too, where a test wants it to."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: Callable[[], None] = lambda: None

    def infer(self, windows: Float32Array) -> Scores:
        self.meanwhile()
        return super().infer(windows)


class Link(FakeLink):
    """A link whose broker acknowledges at once, unless it is told not to."""

    acknowledges = True

    def acknowledged(self) -> list[Any]:
        if self.acknowledges:
            self.ack(t_ns=0)
        return super().acknowledged()


class Notifier:
    """A service manager that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *_: self.said.append(name)


class Rig:
    def __init__(self, **settings: Any) -> None:
        self.clock, self.link, self.log, self.notifier = FakeClock(), Link(), ListLog(), Notifier()
        self.model = Model()
        self.answers: list[bytes] = []
        self.subscribed = False
        self.left = 0
        self.worker = Worker([(self.model, manifest())], self._answer, self.clock, WorkerSettings(**settings))
        parts = ServingParts(
            worker=self.worker,
            delivery=Delivery(ListOutbox(), self.link, self.clock, OutboxSettings(), MqttSettings()),
            link=self.link,
            leave=self._leave,
            subscribed=lambda: self.subscribed,
            notifier=self.notifier,
            cpu_s=lambda: 1.5,
            rss_bytes=lambda: 90_000_000,
            clock=self.clock,
            log=self.log,
        )
        facts = ServingFacts("worker", "b00t", "har/worker", "1", "har-cloud", ["fake@00000000"], 60.0)
        self.serving = Serving(parts, facts)

    def _answer(self, topic: str, payload: bytes, correlation: bytes) -> bool:
        self.answers.append(payload)
        return True

    def _leave(self) -> None:
        """As where the broker confirms nothing."""
        self.left += 1
        self.clock.now_ns += round(LEAVE_S * SECOND)

    def connect(self) -> None:
        self.link.connect()
        self.subscribed = True

    def ask(self, payload: bytes = WINDOW) -> None:
        self.worker.receive(payload, HERE, b"1", self.clock.now_ns)

    def pass_s(self, seconds: float) -> None:
        """Let time go by, with a request in each quarter of a second, so that no turn waits."""
        for _ in range(round(seconds * 4)):
            self.clock.now_ns += SECOND // 4
            self.ask()
            self.serving.turn()

    def told(self, kind: str) -> list[Any]:
        """What it has said of itself, of one kind, in order."""
        return [json.loads(m.payload) for _, m in self.link.offered if m.topic == f"har/worker/{kind}"]

    def reasons(self) -> dict[str, str]:
        return {reason["code"]: reason["text"] for reason in self.told("health")[-1]["reasons"]}


@pytest.fixture
def rig() -> Rig:
    made = Rig()
    made.serving.start()
    return made


def test_it_is_ready_as_soon_as_requests_come(rig: Rig):
    rig.link.connect()
    rig.pass_s(3)
    assert "ready" not in rig.notifier.said
    rig.subscribed = True
    rig.pass_s(2)

    assert rig.notifier.said.count("ready") == 1
    assert rig.told("status")[-1]["state"] == "online"
    assert rig.told("status")[-1]["sources"] == ["requests har-cloud"]
    assert rig.notifier.said.count("watchdog") > 5


def test_it_is_logged_that_requests_come_and_that_they_do_not_any_more(rig: Rig):
    rig.connect()
    rig.pass_s(3)
    rig.subscribed = False
    rig.pass_s(3)

    said = [
        (level, event, facts["service"]) for level, event, facts in rig.log.lines if event.endswith("requests come")
    ]
    assert said == [("info", "requests come", "har-cloud"), ("warning", "no requests come", "har-cloud")]


def test_without_a_broker_it_is_ready_after_a_quarter_of_a_minute(rig: Rig):
    rig.pass_s(14)
    assert "ready" not in rig.notifier.said
    rig.pass_s(3)
    assert rig.notifier.said.count("ready") == 1

    rig.connect()
    rig.pass_s(1)
    assert rig.reasons() == {"broker_away": "connecting to broker fake"}
    rig.pass_s(15)
    assert rig.reasons() == {}
    told = [(level, facts["state"]) for level, event, facts in rig.log.lines if event == "health"]
    assert told == [("warning", "degraded"), ("info", "ok")]


def test_what_the_broker_refuses_and_connections_that_do_not_hold_are_told(rig: Rig):
    rig.link.acknowledges = False
    rig.connect()
    rig.link.problem = "the first one is away"
    rig.pass_s(1)
    rig.link.refuse(1)
    rig.link.acknowledges = True
    rig.pass_s(4)

    assert rig.reasons().keys() == {"broker_unsteady", "broker_refuses"}


def test_more_requests_than_can_wait_and_a_model_that_fails_are_told():
    rig = Rig(max_waiting=1)
    rig.connect()
    rig.serving.start()
    rig.ask()
    rig.ask()
    rig.pass_s(2)
    assert rig.reasons().keys() == {"queue_dropping"}
    calls = itertools.count()

    def fail_sometimes() -> None:
        if next(calls) % MAX_FAILURES:
            raise InferenceError("it is broken")

    rig.model.meanwhile = fail_sometimes
    rig.pass_s(4)
    assert rig.told("health")[-1]["state"] == "failing"
    assert rig.reasons()["model_failing"] == "it is broken"

    rig.model.meanwhile = lambda: None
    rig.pass_s(90)
    assert rig.reasons() == {}


def test_a_model_that_fails_again_and_again_ends_the_loop(rig: Rig):
    rig.connect()

    def fail() -> None:
        raise InferenceError("it is broken")

    rig.model.meanwhile = fail
    with pytest.raises(InferenceError, match="broken"):
        rig.pass_s(2)
    rig.ask()
    rig.serving.shut_down()

    assert ("warning", "model failed", {"error": "it is broken"}) in rig.log.lines
    assert rig.told("worker")[-1]["refused"] == {"failed": MAX_FAILURES + 1}
    assert rig.told("status")[-1]["state"] == "offline"
    assert rig.link.closed


def test_telemetry_comes_soon_and_then_once_an_interval_with_its_own_figures(rig: Rig):
    rig.connect()
    rig.pass_s(4)
    assert rig.told("worker") == []
    rig.pass_s(2)
    (first,) = rig.told("worker")
    rig.pass_s(58)
    assert rig.told("worker") == [first]
    rig.pass_s(3)

    _, second = rig.told("worker")
    assert (first["interval_s"], second["interval_s"]) == (5.0, 60.0)
    assert (first["requests"], second["requests"]) == (20, 260)
    assert (first["requests_per_s"], second["requests_per_s"]) == (4.0, 4.0)
    assert (second["answered"], second["refused"], second["batch"]) == (260, {}, {"mean": 1.0, "max": 1})
    assert second["latency_ms"]["total"].keys() == {"p50", "p95", "p99", "max"}
    assert (second["cpu_s"], second["rss_bytes"], second["uptime_s"]) == (1.5, 90_000_000, 65.0)


def test_what_has_come_is_answered_at_the_end_and_then_it_says_goodbye(rig: Rig):
    rig.connect()
    rig.pass_s(1)
    for _ in range(3):
        rig.ask()
    rig.serving.shut_down()

    assert len(rig.answers) == rig.told("worker")[-1]["answered"] == 7
    assert rig.notifier.said[-1] == "stopping"
    assert rig.left == 1
    assert [m.payload for m in rig.link.received if m.topic == "har/worker/status"][-1] == OFFLINE
    assert rig.link.disturbed == []
    assert rig.link.closed
    assert rig.log.lines[-1] == ("info", "stopped", {"answered": 7, "passed_on": 0, "waiting": 0})


def test_nothing_keeps_it_from_ending_where_requests_go_on_coming(rig: Rig):
    rig.connect()
    rig.pass_s(1)

    def another() -> None:
        rig.clock.now_ns += SECOND // 10
        rig.ask()

    rig.model.meanwhile = another
    rig.ask()
    began_ns = rig.clock.now_ns
    rig.serving.shut_down()

    assert rig.clock.now_ns - began_ns == round((LEAVE_S + DRAIN_S) * SECOND)
    assert rig.log.lines[-1] == ("info", "stopped", {"answered": len(rig.answers), "passed_on": 0, "waiting": 1})
    assert rig.told("status")[-1]["state"] == "offline"


def test_a_broker_that_takes_no_last_word_is_left_to_publish_the_last_will(rig: Rig):
    rig.connect()
    rig.pass_s(1)
    rig.link.acknowledges = False
    began_ns = rig.clock.now_ns
    rig.serving.shut_down()

    assert rig.clock.now_ns - began_ns <= round((LEAVE_S + DRAIN_S + FLUSH_S + 0.01) * SECOND)
    assert rig.link.disturbed == ["it was closed while messages were under way"]
    assert rig.link.closed
