"""Demo: a simulated device in real time through pipeline, broker and subscriber, all on this machine.

A reader thread fills a queue that drops the oldest when full, as it does for a real sensor. The engine turns
in the caller's thread. Predictions leave through MQTT, and what is shown is what a separate MQTT client
received.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import uuid4

from agent.adapters.clock import SystemClock
from agent.adapters.embedded_broker import EmbeddedBroker
from agent.adapters.host import HostMetrics
from agent.adapters.mqtt import Connection, Message, MqttLink, Subscriber
from agent.adapters.outbox import SqliteOutbox
from agent.adapters.power import open_power_meter
from agent.adapters.simulated_imu import SimulatedImu
from agent.app.compose import build_pipeline, load_config, open_model
from agent.core.gait import SCRIPTS, Step, parse_script
from agent.core.histogram import Histogram
from agent.core.report import Scorecard
from agent.core.settings import BrokerSettings, MqttSettings, OutboxSettings
from agent.errors import UsageError
from agent.ports import Clock, PowerMeter
from agent.records import Loss, PowerReading, Turn
from agent.runtime.delivery import Delivery
from agent.runtime.engine import Engine, TimedModel
from agent.runtime.pacing import PacedSource
from agent.runtime.publisher import Publisher
from agent.runtime.queues import BoundedQueue, Overflow
from agent.runtime.reader import ReaderThread

DEVICE = "simulated"
DEFAULT_DURATION_S = 30.0
"""Leaves ten seconds of the demo's forty for starting on a slow board."""
STAGES = ("wait", "infer", "total", "delivery")
"""From the last sample's arrival: to the turn; the model's calls; to the prediction. Then: to the
subscriber."""
_QUEUE_SAMPLES = 1500
"""Half a minute of one stream: a model call takes a thousandth of that."""
_TURN_S = 0.1
_STATUS_EVERY_NS = 10_000_000_000
_LAST_MESSAGE_S = 5.0
"""How long a message that was published may take to arrive after the one before it."""


@dataclass(frozen=True)
class DemoSettings:
    """What to show, and for how long. `model`: a bundle, over the configured one."""

    model: str | None = None
    script: Sequence[Step] = field(default_factory=lambda: parse_script(SCRIPTS["demo"]))
    duration_s: float = DEFAULT_DURATION_S
    seed: int = 0


@dataclass(frozen=True)
class Received:
    """One prediction as the subscriber got it. `truth`: the simulated activity, None in between."""

    message: dict[str, Any]
    truth: str | None
    latency_ms: float


@dataclass(frozen=True)
class Status:
    """The demo so far. `latency_ms`: stage -> p50, p95, p99, max. `cpu_pct`: mean, of one core."""

    elapsed_s: float
    latency_ms: dict[str, dict[str, float]]
    cpu_pct: float
    rss_mib: float
    power: PowerReading


@dataclass(frozen=True)
class Summary:
    """What became of the demo. `received`: distinct messages. `dropped`: samples that a full queue let go.

    `failed`: windows on which the model failed. `overflowed`: messages that found the subscriber's queue full.
    """

    status: Status
    score: dict[str, Any]
    model: str
    samples: int
    dropped: int
    failed: int
    published: int
    received: int
    overflowed: int
    startup_s: float
    interrupted: bool

    @property
    def complete(self) -> bool:
        """Whether everything that was simulated and published has arrived."""
        return self.dropped == self.failed == 0 and self.published == self.received

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        power = self.status.power
        return {
            "v": 1,
            "model": self.model,
            "complete": self.complete,
            "interrupted": self.interrupted,
            "startup_s": round(self.startup_s, 3),
            "elapsed_s": round(self.status.elapsed_s, 3),
            "samples": {"taken": self.samples, "dropped": self.dropped},
            "failed_windows": self.failed,
            "messages": {
                "published": self.published,
                "received": self.received,
                "lost": self.published - self.received,
                "overflowed": self.overflowed,
            },
            **{k: self.score[k] for k in ("windows", "labelled_windows", "accuracy", "activity_accuracy")},
            "latency_ms": {
                stage: {name: round(ms, 3) for name, ms in figures.items()}
                for stage, figures in self.status.latency_ms.items()
            },
            "cpu_pct_of_core": round(self.status.cpu_pct, 3),
            "rss_mib": round(self.status.rss_mib, 2),
            "power": {"watts": power.watts, "source": power.source, "error_pct": power.error_pct},
        }


class Audience(Protocol):
    """Whoever watches a demo; called in the demo's thread."""

    def started(self, model: str, broker: str) -> None:
        """Everything runs; samples begin to flow."""

    def received(self, received: Received) -> None:
        """A prediction has arrived at the subscriber."""

    def status(self, status: Status) -> None:
        """Ten seconds have passed."""


def demo(
    settings: DemoSettings,
    audience: Audience,
    stopping: Callable[[], bool] = lambda: False,
    clock: Clock | None = None,
    power: PowerMeter | None = None,
) -> Summary:
    """Run the demo to its end, or until `stopping` says so; everything that was started is stopped.

    Raises:
        ConfigError, ModelContractError: configuration, model or the broker's package cannot be used.
        SinkUnavailable: the broker cannot be started or reached.
        UsageError: a duration or a seed outside its range.
    """
    clock = clock or SystemClock()
    started_ns = clock.monotonic_ns()
    try:
        imu = SimulatedImu(DEVICE, settings.script, seed=settings.seed, duration_s=settings.duration_s)
    except ValueError as e:
        raise UsageError(str(e)) from e
    config = load_config(None, {"model.bundle": settings.model})
    opened = open_model(config.model.bundle)
    model = TimedModel(opened, clock)
    pipeline = build_pipeline(model, opened.bundle.manifest, config)
    with ExitStack() as running:
        broker = running.enter_context(EmbeddedBroker())
        # What the embedded broker speaks; no file is written, so nothing of a demo is left behind.
        local = BrokerSettings(f"mqtt://{broker.host}:{broker.port}", protocol="3.1.1")
        mqtt, stored = MqttSettings(), OutboxSettings(durability="memory")
        subscriber = Subscriber(local, mqtt, [f"{mqtt.root}/+/prediction"], clock)
        running.callback(subscriber.close)
        subscriber.start()
        link = MqttLink(Connection("har-demo", {"demo": local}, mqtt, clock), clock)
        running.callback(link.close)
        link.start()
        outbox = SqliteOutbox(None, stored, clock)
        running.callback(outbox.close)
        delivery = Delivery(outbox, link, clock, stored, mqtt)
        publisher = Publisher(delivery, clock, mqtt.root, model.labels, uuid4().hex[:12], "demo")
        queue = BoundedQueue(_QUEUE_SAMPLES, Overflow.DROP_OLDEST)
        reader = ReaderThread(PacedSource(imu, clock, 1.0), queue, clock, "simulated-imu")
        running.callback(reader.close)
        show = _Show(
            Scorecard(model.labels, opened.bundle.manifest.input.rate_hz),
            clock,
            power or open_power_meter(clock),
            audience,
        )
        engine = Engine(reader, pipeline, [publisher], clock, model)
        startup_s = (clock.monotonic_ns() - started_ns) / 1e9
        audience.started(model.id, f"{broker.host}:{broker.port}")
        reader.start()
        interrupted = _play(engine, reader, subscriber, delivery, show, stopping)
        delivery.flush(clock.monotonic_ns() + round(_LAST_MESSAGE_S * 1e9))
        # Before the link disconnects: the embedded broker drops what a client that leaves has only just sent.
        show.drain(subscriber, delivery.published)
        engine.close()
        counts = [pipeline.finish(name) for name in pipeline.counts()]
        return Summary(
            show.status(),
            show.scorecard.as_dict(),
            model.id,
            sum(c.samples for c in counts),
            reader.dropped,
            sum(c.losses[Loss.INFERENCE] for c in counts),
            delivery.published,
            len(show.ids),
            subscriber.overflowed,
            startup_s,
            interrupted,
        )


def _play(
    engine: Engine,
    reader: ReaderThread,
    subscriber: Subscriber,
    delivery: Delivery,
    show: "_Show",
    stopping: Callable[[], bool],
) -> bool:
    """Turn the engine until the device's script ends; return whether it was stopped before that."""
    interrupted = False
    while True:
        if stopping() and not interrupted:
            # What the reader has taken by now still goes all the way.
            interrupted = True
            reader.close()
        turn = engine.turn(_TURN_S)
        if turn is None:
            return interrupted
        show.turn(turn)
        delivery.tick()
        while (message := subscriber.poll(0)) is not None:
            show.receive(message)
        show.report_when_due()


class _Show:
    """Holds what was sent against what arrives, and keeps the figures."""

    def __init__(self, scorecard: Scorecard, clock: Clock, power: PowerMeter, audience: Audience) -> None:
        self.scorecard = scorecard
        self.ids: set[str] = set()
        self._clock = clock
        self._power = power
        self._audience = audience
        self._host = HostMetrics()
        self._latency = {stage: Histogram() for stage in STAGES}
        self._sent: dict[int, tuple[str | None, int]] = {}
        self._start_ns = self._reported_ns = clock.monotonic_ns()
        self._start_cpu_s = self._host.cpu_seconds()

    def turn(self, turn: Turn) -> None:
        """Note what a turn of the engine has sent: the truth, and when the window's last sample came."""
        for prediction, truth in self.scorecard.take(turn.batches, turn.events):
            self._sent[prediction.seq] = truth, turn.timings[prediction.stream, prediction.seq].received_ns

    def receive(self, received: Message) -> None:
        """Take one message; one that came before, by its id, is dropped."""
        message = json.loads(received.payload)
        if message["id"] in self.ids:
            return
        self.ids.add(message["id"])
        truth, arrived_ns = self._sent.pop(message["seq"])
        spent = {stage: round(ms * 1e6) for stage, ms in message["latency_ms"].items()}
        end_to_end_ns = received.t_rx_ns - arrived_ns
        spent["delivery"] = end_to_end_ns - spent["total"]
        for stage in STAGES:
            self._latency[stage].add(spent[stage])
        self._audience.received(Received(message, truth, end_to_end_ns / 1e6))

    def drain(self, subscriber: Subscriber, published: int) -> None:
        """Wait for messages that are on their way, as long as they keep coming."""
        while len(self.ids) < published and (message := subscriber.poll(_LAST_MESSAGE_S)) is not None:
            self.receive(message)

    def report_when_due(self) -> None:
        """Tell the audience how it goes, every ten seconds."""
        if self._clock.monotonic_ns() - self._reported_ns >= _STATUS_EVERY_NS:
            self._reported_ns += _STATUS_EVERY_NS
            self._audience.status(self.status())

    def status(self) -> Status:
        """Return the figures so far."""
        elapsed_s = (self._clock.monotonic_ns() - self._start_ns) / 1e9
        return Status(
            elapsed_s,
            {stage: histogram.summary_ms() for stage, histogram in self._latency.items()},
            100 * (self._host.cpu_seconds() - self._start_cpu_s) / max(elapsed_s, 1e-9),
            self._host.rss_bytes() / 2**20,
            self._power.read(),
        )
