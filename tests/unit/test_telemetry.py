from collections import Counter

import pytest
from fakes import FakeClock, even_times, signal

from agent.core.histogram import Histogram
from agent.pipeline import StreamCounts
from agent.records import (
    BadFrame,
    Gap,
    GapReason,
    Loss,
    Origin,
    PowerReading,
    Prediction,
    SampleBatch,
    Timings,
    Turn,
    Unscored,
)
from agent.runtime.telemetry import HostFigures, Telemetry

S = 1_000_000_000
PREDICTION = Prediction("s", 0, 0, S, "a", 1.0, (1.0,), 0.1, True, "a", Origin.LOCAL, "m@1")


class StandingDelivery:
    """A delivery whose counters stand still."""

    published, acknowledged, historical, refused, unsent, in_flight, possible_repeats = 10, 8, 3, 1, 2, 1, 4

    def __init__(self) -> None:
        self.delivered = Histogram()

    def take_delivered(self) -> Histogram:
        taken, self.delivered = self.delivered, Histogram()
        return taken


class StandingOutbox:
    """An outbox whose figures stand still."""

    depth, size_bytes, dropped, problem = 4, 2000, 7, None


class Rig:
    """A `Telemetry` and what it reads."""

    def __init__(self, **settings) -> None:
        self.clock = FakeClock()
        self.telemetry = Telemetry(self.clock, "board", "b00t", **settings)
        self.delivery, self.outbox = StandingDelivery(), StandingOutbox()
        self.streams: dict[str, StreamCounts] = {}
        self.host = HostFigures(1.5, 40_000_000, 1000, 51.5, False, False, "vcgencmd")

    def after(self, seconds: float):
        self.clock.now_ns += round(seconds * S)
        return self.snapshot()

    def snapshot(self):
        return self.telemetry.snapshot(
            self.streams, "m@1", 5, {Loss.RETAINED: 2}, self.delivery, self.outbox, self.host
        )

    def powered(self, watts: float | None, source: str = "ina219", seconds: int = 60, predict: bool = False):
        for _ in range(seconds):
            self.clock.now_ns += S
            if predict:
                self.telemetry.take(turn(events=[PREDICTION]))
            self.telemetry.take_power(PowerReading(watts, source, None))
        return self.snapshot()["power"]


def turn(batches=(), bad=(), events=(), timings=None) -> Turn:
    return Turn(list(batches), list(bad), list(events), timings or {})


def counts(windows: int = 0, gaps: int = 0, **losses: int) -> StreamCounts:
    return StreamCounts(50.0, 0.0, 0, windows, gaps, 0, 0, Counter({Loss[k]: n for k, n in losses.items()}))


def test_counters_are_totals_and_latency_is_of_the_interval():
    rig = Rig()
    timings = {("s", k): Timings("s", k, 0, k * 1_000_000, 200_000, k * 1_100_000) for k in range(1, 101)}
    batch = SampleBatch("s", even_times(50), signal(50), 0)
    gap = Gap("s", 50, 0, S, GapReason.MISSING, 3)
    rig.telemetry.take(
        turn([batch], [BadFrame("s", Loss.GARBAGE, 1, 12)], [PREDICTION, gap, Unscored("s", 1, 0, S, "no")], timings)
    )
    rig.delivery.delivered.add(5_000_000)
    first = rig.after(60)
    second = rig.after(30)

    for message in (first, second):
        assert (message["samples"], message["windows"], message["unscored"]) == (50, 1, 1)
        assert message["gaps"] == {"missing_samples": 1}
        assert message["bad_frames"] == {"bytes_outside_frames": 12, "retained_message": 2}
    assert (first["interval_s"], second["interval_s"], second["uptime_s"]) == (60, 30, 90)
    assert first["windows_per_s"] == pytest.approx(1 / 60, abs=1e-3)
    assert second["windows_per_s"] == 0
    assert first["latency_ms"]["wait"]["p50"] == pytest.approx(50, rel=0.03)
    assert first["latency_ms"]["delivered"]["max"] == 5.0
    assert second["latency_ms"] == {"wait": {}, "infer": {}, "total": {}, "delivered": {}}


def test_what_others_count_is_in_the_message():
    message = Rig().after(60)

    assert message["drops"] == {"input": 5, "outbox": 7, "unsent": 2}
    assert message["delivery"] == {
        "published": 10,
        "acknowledged": 8,
        "historical": 3,
        "refused": 1,
        "in_flight": 1,
        "possible_repeats": 4,
    }
    assert message["outbox"]["depth"] == 4
    assert message["temperature_c"] == 51.5
    assert message["throttling"] == {"now": False, "under_voltage": False, "source": "vcgencmd"}
    assert "problem" not in message["outbox"]


def test_a_problem_of_the_outbox_is_told():
    rig = Rig()
    rig.outbox.problem = "the disk is full"

    assert rig.after(60)["outbox"]["problem"] == "the disk is full"


def test_bytes_written_are_projected_from_the_interval():
    rig = Rig()
    rig.host = rig.host._replace(written_bytes=6000)
    assert rig.after(60)["outbox"]["written_bytes_per_day"] is None
    rig.host = rig.host._replace(written_bytes=6600)
    assert rig.after(60)["outbox"]["written_bytes_per_day"] == 10 * 86_400
    rig.host = rig.host._replace(written_bytes=None)
    assert rig.after(60)["outbox"]["written_bytes_per_day"] is None


def test_losses_of_a_stream_that_was_forgotten_stay_counted():
    rig = Rig()
    rig.streams = {"a": counts(NON_FINITE=2), "b": counts(NON_FINITE=1, QUEUE_FULL=4)}
    assert rig.after(60)["losses"] == {"nan_or_infinite": 3, "queue_full": 4}

    rig.telemetry.retire("b", rig.streams.pop("b"))
    assert rig.after(60)["losses"] == {"nan_or_infinite": 3, "queue_full": 4}

    rig.streams["b"] = counts(NON_FINITE=1)
    message = rig.after(60)
    assert message["losses"] == {"nan_or_infinite": 4, "queue_full": 4}
    assert message["worst_streams"] == [{"device": "b", "windows": 0, "gaps": 0, "lost": 1}]


def test_of_many_devices_only_the_worst_of_the_interval_are_named():
    rig = Rig()
    rig.streams = {f"d{k}": counts(windows=5) for k in range(1500)}
    assert rig.after(60)["worst_streams"] == []

    for k in range(10):
        rig.streams[f"d{k}"] = counts(windows=7, gaps=1, BACKWARD_TIME=k)
    rig.telemetry.take(turn(bad=[BadFrame("d3", Loss.JSON, 1), BadFrame("never", Loss.JSON, 1, 100)]))
    message = rig.after(60)

    assert message["streams"] == 1500
    assert message["worst_streams"][0] == {"device": "never", "windows": 0, "gaps": 0, "lost": 100}
    assert message["worst_streams"][1] == {"device": "d9", "windows": 2, "gaps": 1, "lost": 9}
    assert len(message["worst_streams"]) == 5
    assert rig.after(60)["worst_streams"] == []


def test_energy_a_window_is_what_is_above_idle():
    rig = Rig()
    assert rig.powered(2.0)["idle_watts"] == 2.0

    power = rig.powered(2.5, predict=True)

    assert power == {
        "watts": 2.5,
        "source": "ina219",
        "error_pct": None,
        "joules": 150.0,
        "idle_watts": 2.0,
        "joules_per_window": 0.5,
    }


def test_without_any_idle_time_energy_a_window_is_not_known():
    power = Rig().powered(2.5, predict=True)

    assert (power["watts"], power["joules"]) == (2.5, 150.0)
    assert power["idle_watts"] is None
    assert power["joules_per_window"] is None


def test_idle_power_may_be_configured():
    assert Rig(idle_watts=2.2).powered(2.5, predict=True)["joules_per_window"] == pytest.approx(0.3)


def test_a_model_teaches_no_idle_power():
    rig = Rig()
    rig.powered(2.0, source="model")
    power = rig.powered(2.5, source="model", predict=True)

    assert power["source"] == "model"
    assert power["joules_per_window"] is None


def test_energy_of_an_interval_that_was_not_measured_through_is_not_known():
    rig = Rig(idle_watts=1.0)
    rig.powered(2.0, seconds=10)
    rig.clock.now_ns += 50 * S
    power = rig.powered(None, source="none", seconds=1)
    assert power == {
        "watts": None,
        "source": "none",
        "error_pct": None,
        "joules": None,
        "idle_watts": 1.0,
        "joules_per_window": None,
    }

    assert rig.powered(2.0, seconds=60)["joules"] == 120.0


def test_without_a_window_there_is_no_energy_of_one():
    assert Rig(idle_watts=1.0).powered(2.0)["joules_per_window"] is None
