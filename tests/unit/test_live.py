"""The daemon's loop with everything around it faked but the parts that it drives."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from fakes import (
    LABELS,
    FakeClock,
    FakeCloud,
    FakeLink,
    FakeModel,
    ListLog,
    ListOutbox,
    even_times,
    manifest,
    numbered,
    signal,
)

from agent.core.coverage import Coverage, Covered, kept
from agent.core.discovery import Discovery
from agent.core.settings import CloudSettings, HomeAssistantSettings, MqttSettings, OutboxSettings
from agent.errors import InferenceError, SourceUnavailable
from agent.pipeline import Pipeline
from agent.records import BadFrame, Decoded, Loss, PowerReading, Prediction, SampleBatch
from agent.runtime.commands import Commands
from agent.runtime.delivery import Delivery
from agent.runtime.engine import Engine, TimedModel
from agent.runtime.fallback import Fallback
from agent.runtime.live import FRUITLESS_S, Facts, Live, Parts
from agent.runtime.publisher import Publisher
from agent.runtime.telemetry import HostFigures, Telemetry

SECOND = 1_000_000_000


class Feed:
    """Sources that give what is put there."""

    silence_s, idle_s, dropped = 10.0, 60.0, 0

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.waiting: list[Decoded] = []
        self.refused: Counter[Any] = Counter()
        self.serial: dict[str, str | None] = {}
        self.forgotten: list[str] = []
        self.closed = False
        self.close_error: Exception | None = None

    def poll(self, timeout_s: float) -> Sequence[Decoded] | None:
        if self.closed and not self.waiting:
            return None
        self.clock.now_ns += round(timeout_s * SECOND)
        taken, self.waiting = self.waiting, []
        return taken

    def close(self) -> None:
        self.closed = True
        if self.close_error:
            raise self.close_error

    def problems(self) -> dict[str, str | None]:
        return self.serial

    def broker_problem(self) -> str | None:
        return None

    def forget(self, device: str) -> None:
        self.forgotten.append(device)

    def rest(self, due_ns: int) -> None:
        pass


class Slots:
    """Slots that do nothing, but may swap when told to."""

    problem: str | None = None
    on_failure: Any = None

    def __init__(self) -> None:
        self.closed = False
        self.counted: list[str] = []
        """Models whose predictions were taken for those of the one in service."""

    def after_turn(self, turn: Any) -> None:
        self.counted += [event.model for event in turn.events if isinstance(event, Prediction)]

    def reload(self) -> None:
        pass

    def failed(self, error: InferenceError) -> None:
        if self.on_failure is None:
            raise error
        self.on_failure()

    def status(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        self.closed = True


class Recorder:
    problem: str | None = None
    closed = False

    def write(self, turn: Any) -> None:
        pass

    def tick(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class Notifier:
    def __init__(self) -> None:
        self.said: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *_: self.said.append(name)


class OtherModel(FakeModel):
    """The same with other classes."""

    id = "other@11111111"
    labels = ("up", "down")

    def infer(self, windows: Any) -> Any:
        scores = super().infer(windows)
        return scores._replace(logits=scores.logits[:, :2])


class FailingModel(FakeModel):
    def infer(self, windows: Any) -> Any:
        raise InferenceError("no")


class Rig:
    def __init__(
        self,
        model: Any = None,
        remembered: Sequence[str] = (),
        before: Sequence[Covered] = (),
        cloud: CloudSettings | None = None,
    ) -> None:
        self.clock, self.log = FakeClock(), ListLog()
        self.clock.now_ns = 100 * SECOND
        self.feed, self.slots, self.link = Feed(self.clock), Slots(), FakeLink()
        self.outbox, self.notifier, self.recorder = ListOutbox(), Notifier(), Recorder()
        self.outbox.quarantined, self.outbox.trouble, self.outbox.damage = 0, None, None
        mqtt = MqttSettings()
        self.delivery = Delivery(self.outbox, self.link, self.clock, OutboxSettings(), mqtt)
        self.model = TimedModel(model or FakeModel(), self.clock)
        self.pipeline = Pipeline(self.model, manifest())
        publisher = Publisher(self.delivery, self.clock, "har", LABELS, "b00t", "board")
        self.cloud = FakeCloud(self.clock)
        fallback = Fallback(cloud, self.cloud, self.pipeline, self.clock, numbered()) if cloud else None
        engine = Engine(self.feed, self.pipeline, [publisher, self.recorder], self.clock, self.model, 1, fallback)
        self.reports: list[dict[str, Any]] = []
        self.kept: list[Sequence[str]] = []
        parts = Parts(
            source=self.feed,
            engine=engine,
            pipeline=self.pipeline,
            model=self.model,
            slots=self.slots,
            publisher=publisher,
            delivery=self.delivery,
            outbox=self.outbox,
            link=self.link,
            telemetry=Telemetry(self.clock, "board", "b00t"),
            recorder=self.recorder,
            commands=Commands({}, self.delivery.send, self.log),
            notifier=self.notifier,
            power=lambda: PowerReading(None, "none", None),
            host=lambda: HostFigures(1.0, 1),
            discovery=Discovery(HomeAssistantSettings(), "har", "board", "1"),
            remembered=remembered,
            remember=self.kept.append,
            report=self.reports.append,
            clock=self.clock,
            log=self.log,
            random=lambda: 0.5,
            coverage=Coverage(before, "1+aa", self.clock.now_ns),
            fallback=fallback,
        )
        facts = Facts("board", "b00t", "har/board", "1", None, None, ["mqtt x"], 1, 10**6, 60.0, 5.0, "1+aa")
        self.live = Live(parts, facts)
        engine.add_sink(self.live)
        self.at = 0

    def samples(self, n: int = 128, stream: str = "s") -> None:
        """Let `n` samples of a stream come, at 50 Hz, as fast as that."""
        t_ns, values = even_times(n, t0_s=self.at / 50), signal(n)
        self.feed.waiting.append(SampleBatch(stream, t_ns, values, self.at, self.clock.now_ns))
        self.at += n

    def pass_s(self, seconds: float) -> None:
        until_ns = self.clock.now_ns + round(seconds * SECOND)
        while self.clock.now_ns < until_ns:
            self.link.ack()
            assert self.live.turn()

    def told(self, topic: str) -> Any:
        """The last message offered to the link under a topic, decoded."""
        found = [m.payload for _, m in self.link.offered if m.topic == topic]
        return json.loads(found[-1]) if found and found[-1] else None

    def reasons(self) -> dict[str, str]:
        return {r["code"]: r["text"] for r in self.told("har/board/health")["reasons"]}


@pytest.fixture
def rig() -> Rig:
    made = Rig()
    made.link.connect()
    made.live.start()
    return made


def test_samples_become_predictions_and_the_service_is_ready_after_the_first(rig: Rig):
    rig.pass_s(2)
    assert "ready" not in rig.notifier.said
    rig.samples()
    rig.pass_s(2)

    assert rig.told("har/s/prediction")["id"] == "b00t:s:0"
    assert rig.told("har/s/availability")["state"] == "online"
    assert rig.told("har/board/status")["state"] == "online"
    assert rig.told("homeassistant/device/board/config")["cmps"].keys() >= {"stream_s_activity"}
    assert "ready" in rig.notifier.said
    assert rig.notifier.said.count("watchdog") > 5


def test_without_any_source_it_is_ready_after_a_while_and_health_says_so(rig: Rig):
    rig.pass_s(40)
    assert "ready" in rig.notifier.said
    assert "no_source" in rig.reasons()


def test_who_waits_for_it_is_told_of_the_release_and_of_the_first_window(rig: Rig):
    rig.pass_s(1)
    assert rig.told("har/board/status")["release"] == "1+aa"
    assert (rig.told("har/board/health")["boot"], rig.told("har/board/health")["windows"]) == ("b00t", 0)
    rig.samples()
    rig.pass_s(2)

    assert rig.told("har/board/health")["windows"] == 1
    assert "coverage_gap" not in rig.told("har/board/health")
    assert (rig.reports[-1]["windows"], rig.reports[-1]["release"]) == (1, "1+aa")


def test_what_no_window_covers_since_the_run_before_is_told_and_is_no_reason():
    rig = Rig(before=[Covered("s", 95 * SECOND, "0.9", exact=True)])
    rig.link.connect()
    rig.live.start()
    rig.pass_s(4)
    rig.samples()
    rig.pass_s(2)
    health = rig.told("har/board/health")

    assert health["coverage_gap"] == {
        "seconds": 6.44,
        "windows": 2.52,
        "devices": 1,
        "absent": 0,
        "previous": "0.9",
        "orderly": True,
    }
    assert (health["state"], health["reasons"]) == ("ok", [])
    assert rig.reports[-1]["health"]["coverage_gap"] == health["coverage_gap"]


def test_the_run_after_it_knows_until_when_it_had_covered_a_stream(rig: Rig):
    rig.samples()
    rig.pass_s(6)
    running = kept(rig.reports[-1]["coverage"], rig.clock.now_ns)
    rig.samples(64)
    received_ns = rig.clock.now_ns
    rig.live.shut_down()

    assert running == [Covered("s", 100 * SECOND, "1+aa", exact=False)]
    assert kept(rig.reports[-1]["coverage"], rig.clock.now_ns) == [Covered("s", received_ns, "1+aa", exact=True)]


def test_a_model_that_took_over_between_two_turns_speaks_with_its_own_labels(rig: Rig):
    rig.samples()
    rig.pass_s(1)
    new = OtherModel()
    rig.model.replace(new)
    rig.pipeline.swap(rig.model, manifest()._replace(name="other", labels=new.labels))
    rig.samples(64)
    rig.pass_s(1)

    said = rig.told("har/s/prediction")
    assert set(said["scores"]) == {"up", "down"}
    assert said["model"] == "other@11111111"
    assert rig.told("har/board/status")["labels"] == ["up", "down"]


def test_a_model_that_fails_gives_way_and_the_next_one_goes_on():
    rig = Rig(FailingModel())
    rig.link.connect()
    rig.live.start()
    rig.slots.on_failure = lambda: rig.model.replace(FakeModel())
    rig.samples()
    rig.pass_s(1)
    rig.samples(64)
    rig.pass_s(1)
    assert rig.told("har/s/prediction")["seq"] == 1

    rig.slots.on_failure = None
    rig.model.replace(FailingModel())
    rig.samples(64)
    with pytest.raises(InferenceError):
        rig.pass_s(1)


def test_a_device_that_falls_silent_is_offline_and_then_forgotten(rig: Rig):
    rig.samples()
    rig.pass_s(rig.feed.silence_s + 2)
    assert rig.told("har/s/availability")["state"] == "offline"
    assert rig.reasons()["source_silent"] == "s sends nothing"

    rig.pass_s(rig.feed.idle_s)
    assert rig.feed.forgotten == ["s"]
    assert rig.told("har/s/availability") is None
    assert "source_silent" not in rig.reasons()


def test_a_device_of_the_last_run_that_does_not_come_back_is_not_left_online():
    rig = Rig(remembered=["gone"])
    rig.link.connect()
    rig.live.start()
    rig.samples()
    rig.pass_s(rig.feed.silence_s + 2)
    assert rig.told("har/gone/availability")["state"] == "offline"
    rig.pass_s(rig.feed.idle_s)
    assert "gone" in rig.feed.forgotten
    assert rig.kept[-1] in ([], ["s"])


def test_a_stream_of_which_no_window_is_whole_is_told(rig: Rig):
    for k in range(round(FRUITLESS_S) + 5):
        t_ns = np.arange(50, dtype=np.int64) * 20_000_000 + k * 100 * SECOND
        rig.feed.waiting.append(SampleBatch("jumpy", t_ns, signal(50), 50 * k, rig.clock.now_ns))
        rig.pass_s(1)
    assert "no window of them was whole" in rig.reasons()["source_unusable"]
    assert rig.told("har/jumpy/availability")["state"] == "degraded"

    rig.at = 10**6
    for _ in range(12):
        rig.samples(64, "jumpy")
        rig.pass_s(1)
    rig.pass_s(1)
    assert rig.told("har/jumpy/availability")["state"] == "online"


def test_the_end_is_in_order_and_says_goodbye(rig: Rig):
    rig.samples()
    rig.feed.closed = False
    rig.live.shut_down()

    assert rig.told("har/board/status") == {"v": 1, "state": "offline"}
    assert rig.told("har/s/prediction")["seq"] == 0, "what had been read still went all the way"
    assert rig.slots.closed
    assert rig.recorder.closed
    assert rig.notifier.said[-1] != "ready"


def test_a_source_that_does_not_stop_keeps_nothing_else_from_being_closed(rig: Rig):
    rig.feed.close_error = SourceUnavailable("the reader did not stop")
    with pytest.raises(SourceUnavailable):
        rig.live.shut_down()

    assert rig.told("har/board/status") == {"v": 1, "state": "offline"}
    assert rig.slots.closed
    assert rig.recorder.closed


def test_a_step_of_the_wall_clock_fires_nothing_and_changes_no_name(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    rig.samples()
    rig.pass_s(20)
    before = len([m for _, m in rig.link.offered if m.topic == "har/board/telemetry"])
    wall_ns = rig.clock.wall_ns
    monkeypatch.setattr(rig.clock, "wall_ns", lambda: wall_ns() + 86_400 * SECOND)
    rig.samples(64)
    rig.pass_s(20)

    assert len([m for _, m in rig.link.offered if m.topic == "har/board/telemetry"]) == before
    assert rig.told("har/s/prediction")["id"] == "b00t:s:1"
    assert rig.told("har/s/prediction")["time"].startswith("2023-11-15T22:1")


def test_what_is_wrong_is_logged_when_it_begins_and_when_it_ends(rig: Rig):
    rig.samples()
    rig.pass_s(2)
    rig.clock.is_synced = False
    rig.pass_s(200)
    rig.clock.is_synced = True
    rig.pass_s(20)

    health = [facts for level, event, facts in rig.log.lines if event == "health"]
    assert any("clock_unsynced" in facts for facts in health)
    assert "clock_unsynced" not in health[-1]


def test_a_unit_that_is_wrong_by_the_size_of_gravity_is_told(rig: Rig):
    for k in range(6):
        t_ns = even_times(64, t0_s=k * 1.28)
        rig.feed.waiting.append(SampleBatch("s", t_ns, signal(64) * np.float32(9.81), 64 * k, rig.clock.now_ns))
        rig.pass_s(1)
    rig.pass_s(2)
    assert "set acc_unit to that" in rig.reasons()["source_unusable"]


def test_a_port_that_sends_what_cannot_be_read_is_not_called_away(rig: Rig):
    rig.feed.serial = {"imu": "no sample has come yet"}
    for _ in range(12):
        rig.feed.waiting.append(BadFrame("imu", Loss.COLUMNS, 1))
        rig.pass_s(1)
    assert "source_away" not in rig.reasons()
    assert "wrong_number_of_columns" in rig.reasons()["source_unusable"]
    assert rig.reports[-1]["health"]["reasons"]


def test_a_pause_is_not_held_against_a_stream_that_comes_back(rig: Rig):
    rig.samples()
    rig.pass_s(FRUITLESS_S + 15)
    rig.samples(32)
    rig.pass_s(2)
    assert "source_unusable" not in rig.reasons()


def asking(**settings: Any) -> Rig:
    """An agent that asks of every window, and waits ten seconds for an answer."""
    made = Rig(cloud=CloudSettings(**{"when": "always", "deadline_ms": 10_000.0, "failures": 1, **settings}))
    made.link.connect()
    made.live.start()
    return made


def test_an_answer_of_the_cloud_is_published_as_soon_as_it_comes():
    rig = asking()
    rig.samples()
    rig.pass_s(1)
    assert rig.told("har/s/prediction") is None
    rig.cloud.answer()
    rig.pass_s(0.01)
    said = rig.told("har/s/prediction")

    assert (said["origin"], said["model"], said["activity"]) == ("cloud", rig.cloud.model, "turning")
    assert said["latency_ms"]["total"] == pytest.approx(said["latency_ms"]["cloud"], abs=300)
    assert rig.told("har/s/activity")["activity"] == "turning"


def test_what_waits_for_an_answer_is_published_before_another_model_speaks():
    rig = asking()
    rig.samples()
    rig.pass_s(1)
    new = OtherModel()
    rig.model.replace(new)
    rig.pipeline.swap(rig.model, manifest()._replace(name="other", labels=new.labels))
    rig.pass_s(0.1)
    said = rig.told("har/s/prediction")
    rig.cloud.takes = False
    rig.samples(64)
    rig.pass_s(1)

    assert (said["model"], set(said["scores"])) == ("fake@00000000", set(LABELS))
    assert (rig.told("har/s/prediction")["seq"], rig.told("har/s/prediction")["model"]) == (1, new.id)
    # What the old one had scored confirms nothing of the new one.
    assert rig.slots.counted == [new.id]


def test_what_waits_for_an_answer_is_published_before_its_device_is_forgotten():
    rig = asking()
    rig.feed.silence_s, rig.feed.idle_s = 0.5, 1.0
    rig.samples()
    rig.pass_s(4)

    assert rig.feed.forgotten == ["s"]
    assert rig.told("har/s/prediction")["seq"] == 0
    assert rig.told("har/s/activity") is None


def test_a_device_that_is_forgotten_takes_no_request_of_another_along():
    rig = asking()
    rig.feed.silence_s, rig.feed.idle_s = 0.5, 1.0
    rig.samples()
    rig.pass_s(1)
    rig.samples(stream="other")
    rig.pass_s(1)
    rig.cloud.answer()
    rig.pass_s(0.01)

    assert rig.feed.forgotten == ["s"]
    assert rig.told("har/s/prediction")["origin"] == "local"
    assert rig.told("har/other/prediction")["origin"] == "cloud"


def test_what_waits_for_an_answer_is_published_at_the_end():
    rig = asking()
    rig.samples()
    rig.pass_s(1)
    rig.samples(64)
    rig.live.shut_down()

    assert rig.told("har/s/prediction")["seq"] == 1
    assert rig.told("har/board/telemetry")["cloud"]["abandoned"] == 2


def test_a_cloud_that_does_not_answer_is_told_and_nothing_else_changes():
    rig = asking(deadline_ms=100.0)
    rig.samples()
    rig.pass_s(20)
    assert rig.told("har/s/prediction")["origin"] == "local"
    assert "timed out" in rig.reasons()["cloud_away"]
    assert rig.told("har/board/health")["state"] == "degraded"
    said = rig.told("har/board/telemetry")["cloud"]
    assert (said["asked"], said["timed_out"], said["breaker"]) == (1, 1, "open")

    rig.pass_s(20)
    rig.samples(64)
    rig.pass_s(0.01)
    rig.cloud.answer()
    rig.pass_s(15)
    assert rig.told("har/s/prediction")["origin"] == "cloud"
    assert "cloud_away" not in rig.reasons()


def test_without_a_cloud_nothing_speaks_of_one(rig: Rig):
    rig.samples()
    rig.pass_s(10)

    assert "cloud" not in rig.told("har/board/telemetry")
    assert "cloud" not in rig.told("har/s/prediction")["latency_ms"]
