"""A wall clock that is set forward and back by a day under way: no label, number or timer changes, only `time`."""

import itertools
import json
import mmap
import shutil
import struct
import subprocess
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeClock, FakeLink, FakeModel, ListOutbox, cut, even_times, manifest, signal
from live import wait_until
from rehearsal import IMPATIENT, Rig, Scenario

from agent.core.settings import MqttSettings, OutboxSettings
from agent.core.wire import encode
from agent.pipeline import Pipeline
from agent.records import Outgoing, Turn
from agent.runtime.delivery import Delivery
from agent.runtime.engine import Engine, TimedModel
from agent.runtime.publisher import Publisher
from agent.runtime.telemetry import HostFigures, Telemetry

DAY_S = 86_400
WALL_C = Path(__file__).parents[1] / "wall_clock.c"


class SteppedClock(FakeClock):
    """Its wall clock is off by `step_ns`, which a test sets."""

    step_ns = 0

    def wall_ns(self) -> int:
        return super().wall_ns() + self.step_ns


class Batches:
    """A source that gives a batch a poll, 100 ms apart, and lets the wall clock step before some of them."""

    def __init__(self, clock: SteppedClock, steps_s: Sequence[int]) -> None:
        self._batches = iter(cut(even_times(2000), signal(2000), [5]))
        self._clock = clock
        self._steps = itertools.cycle(steps_s)

    def poll(self, timeout_s: float):
        batch = next(self._batches, None)
        if batch is None:
            return None
        self._clock.now_ns += 100_000_000
        if self._clock.now_ns % 1_000_000_000 == 0:
            self._clock.step_ns = next(self._steps) * 1_000_000_000
        return [batch._replace(t_rx_ns=self._clock.now_ns)]

    def close(self) -> None:
        pass


class Told:
    """Keeps every turn, and takes telemetry once a second of the monotonic clock."""

    def __init__(self, telemetry: Telemetry, delivery: Delivery, outbox: ListOutbox, pipeline: Pipeline) -> None:
        self.turns: list[Turn] = []
        self.snapshots: list[dict] = []
        self._parts = telemetry, delivery, outbox, pipeline

    def write(self, turn: Turn) -> None:
        telemetry, delivery, outbox, pipeline = self._parts
        self.turns.append(turn)
        telemetry.take(turn)
        if len(self.turns) % 10 == 0:
            host = HostFigures(0.0, 0)
            self.snapshots.append(dict(telemetry.snapshot(pipeline.counts(), "m", 0, {}, delivery, outbox, host)))

    def close(self) -> None:
        pass


def live(steps_s: Sequence[int]) -> tuple[list[tuple[int, Outgoing]], Told]:
    """Everything that is offered to a broker that is away for a third of the time, and when; what was told."""
    clock = SteppedClock()
    link, outbox = FakeLink(), ListOutbox()
    model = TimedModel(FakeModel(), clock)
    pipeline = Pipeline(model, manifest())
    delivery = Delivery(outbox, link, clock, OutboxSettings(history_hz=2), MqttSettings(ack_timeout_s=3))
    publisher = Publisher(delivery, clock, "har", model.labels, "b00t", "board")
    told = Told(Telemetry(clock, "board", "b00t"), delivery, outbox, pipeline)
    engine = Engine(Batches(clock, steps_s), pipeline, [publisher, told], clock, model)
    link.connect()
    offered: list[tuple[int, Outgoing]] = []
    while engine.turn(0) is not None:
        second = clock.now_ns // 1_000_000_000
        if link.connected and second % 9 >= 6:
            link.lose()
        elif not link.connected and second % 9 < 6:
            link.connect()
        delivery.tick()
        offered += [(clock.now_ns, message) for _, message in link.offered[len(offered) :]]
        if second % 5:
            link.ack()
    return offered, told


def without_time(payload: bytes) -> bytes:
    at = payload.find(b'"time":"')
    return payload if at < 0 else payload[:at] + payload[at + len(b'"time":"2026-05-04T10:21:07.310Z"') :]


@pytest.mark.parametrize("steps_s", [[DAY_S], [-DAY_S], [0, DAY_S, -DAY_S, 7, 365 * DAY_S]], ids=str)
def test_a_step_changes_what_is_told_of_the_time_and_nothing_else(steps_s: Sequence[int]):
    offered, told = live([0])
    stepped, stepped_told = live(steps_s)

    assert len(offered) > 30
    assert any(b'"historical":true' in message.payload for _, message in offered)
    assert [(t, m.topic, without_time(m.payload)) for t, m in stepped] == [
        (t, m.topic, without_time(m.payload)) for t, m in offered
    ]
    assert [m.payload for _, m in stepped] != [m.payload for _, m in offered]
    assert [turn.events for turn in stepped_told.turns] == [turn.events for turn in told.turns]
    for snapshot in (*told.snapshots, *stepped_told.snapshots):
        del snapshot["time"]
    assert list(map(encode, stepped_told.snapshots)) == list(map(encode, told.snapshots))


def a_day_forward_and_back(rig: Rig) -> None:
    """The wall clock that a running agent sees is stepped, and its broker killed in between."""
    broker = rig.broker().start()
    listener = rig.listener(broker.port)
    rig.sensor()
    wall = WallClock(rig.folder)
    rig.ending.callback(wall.close)
    agent = rig.agent([broker.url], IMPATIENT + "[telemetry]\ninterval_s = 1\n", env=wall.env)
    agent.start()
    rig.more(listener, 4)
    for days in rig.many(1, 20) * [1, -1, 0]:
        wall.step(days * DAY_S)
        wait_until(lambda days=days: abs(ahead_s(listener.last()) - days * DAY_S) < 60, 20, f"{days} days in `time`")
        broker.kill()
        broker.start()
        rig.more(listener, 4)
    rig.calm(agent)
    rig.nothing_lost(agent, listener)

    predictions = sorted(listener.predictions.values(), key=lambda p: p["seq"])
    told = [json.loads(body) for topic, body in listener.messages if topic == "har/board/telemetry"]
    intervals = sorted(t["interval_s"] for t in told[1:-1])
    rig.fact(f"{len(predictions)} predictions, telemetry every {intervals[0]:.1f} to {intervals[-1]:.1f} s")
    assert [p["seq"] for p in predictions] == list(range(len(predictions)))
    assert {round(b["t0"] - a["t0"], 6) for a, b in itertools.pairwise(predictions)} == {1.28}
    assert {p["id"].partition(":")[0] for p in predictions} == {agent.status()["boot"]}
    assert 0.9 < intervals[0] <= intervals[-1] < 3, "a timer fired twice, or late"
    assert [t["uptime_s"] for t in told] == sorted(t["uptime_s"] for t in told)


def ahead_s(prediction: dict[str, Any]) -> float:
    """How far its `time` is ahead of this process's clock."""
    return (datetime.fromisoformat(prediction["time"]) - datetime.now(UTC)).total_seconds()


class WallClock:
    """What a process that has `env` takes for the wall clock: the system's, and as many seconds as `step` says.

    libfaketime would do it, too, but its 0.9.10 makes time.sleep() fail where it leaves the monotonic clock alone.
    """

    def __init__(self, folder: Path) -> None:
        library, steps = folder / "wall.so", folder / "steps"
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, WALL_C], check=True, timeout=60)
        steps.write_bytes(bytes(8))
        self._file = steps.open("r+b")
        self._map = mmap.mmap(self._file.fileno(), 8)
        self.env = {"LD_PRELOAD": str(library), "WALL_STEPS": str(steps)}

    def step(self, seconds: int) -> None:
        """Set it that many seconds ahead of the system's."""
        self._map[:] = struct.pack("q", seconds)

    def close(self) -> None:
        """Release what is held."""
        self._map.close()
        self._file.close()


SCENARIOS = [a_day_forward_and_back]


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to stand between an agent and its wall clock")
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.__name__)
def test_clock(scenario: Scenario, play: Callable[[Scenario], None]):
    play(scenario)
