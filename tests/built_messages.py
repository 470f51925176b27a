"""Messages as they are really built, of every kind and in every state: for the schemas, and for Home Assistant."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from fakes import FakeClock, FakeCloud, FakeModel, even_times, manifest, signal

from agent.app.split import open_parts
from agent.core.coverage import Coverage, Covered
from agent.core.health import Health, HealthCode
from agent.core.histogram import Histogram
from agent.core.messages import StatusMessage
from agent.core.settings import CloudSettings, SplitSettings, WorkerSettings
from agent.core.wire import encode
from agent.pipeline import Pipeline, StreamCounts
from agent.records import (
    ActivityChange,
    BadFrame,
    Gap,
    GapReason,
    Loss,
    Origin,
    Outgoing,
    PowerReading,
    Prediction,
    Refused,
    SampleBatch,
    Timings,
    Turn,
)
from agent.runtime.commands import Commands
from agent.runtime.fallback import Fallback
from agent.runtime.publisher import Publisher
from agent.runtime.serving import Serving, ServingFacts, ServingParts
from agent.runtime.split import SplitModel
from agent.runtime.telemetry import HostFigures, Telemetry
from agent.runtime.worker import Worker

ROOT, AGENT, LABELS = "har", "board 1", ("walking", "laying")
S = 1_000_000_000


def built(streams: Sequence[str]) -> dict[str, list[bytes]]:
    """Return payloads by topic, in the order of their publication."""
    kept = _Kept()
    clock = FakeClock()
    telemetry = Telemetry(clock, AGENT, "b00t", idle_watts=1.0)
    publisher = Publisher(kept, clock, ROOT, LABELS, "b00t", AGENT)
    agent = f"{ROOT}/{AGENT}"
    clock.now_ns += S
    kept.set_state(f"{agent}/telemetry", encode(_telemetry(telemetry, {}, HostFigures(0.1, 1))))
    for turn in _turns(streams):
        clock.now_ns += 60 * S
        publisher.write(turn)
        telemetry.take(turn)
        telemetry.take_power(PowerReading(2.5, "ina219", 1.0))
        counts = StreamCounts(50.0, 0.0, 50, 1, 1, 0, 0, Counter({Loss.NON_FINITE: 2}))
        host = HostFigures(1.5, 40_000_000, 1000, 51.5, True, False, "vcgencmd")
        kept.set_state(f"{agent}/telemetry", encode(_telemetry(telemetry, dict.fromkeys(streams, counts), host)))
    publisher.close()
    for message in _health():
        kept.set_state(f"{agent}/health", message)
    for status in _status():
        kept.set_state(f"{agent}/status", encode(status))
    for message in _worker():
        kept.set_state(f"{agent}/worker", message)
    kept.set_state("reply", _reply(b""))
    kept.set_state("reply", _reply(b"no"))
    return kept.topics


class _Kept:
    """Takes what is published, and what Telemetry asks of a delivery and an outbox."""

    published, acknowledged, historical, refused, unsent, in_flight, possible_repeats = 10, 8, 3, 1, 2, 1, 4
    depth, size_bytes, dropped = 4, 2000, 7

    def __init__(self) -> None:
        self.topics: defaultdict[str, list[bytes]] = defaultdict(list)
        self.problem: str | None = None

    def publish(self, messages: Sequence[Outgoing], received_ns: Sequence[int]) -> None:
        for message in messages:
            self.topics[message.topic].append(message.payload)

    def set_state(self, topic: str, payload: bytes) -> None:
        self.topics[topic].append(payload)

    def forget_state(self, topic: str) -> None:
        self.topics[topic].append(b"")

    def take_delivered(self) -> Histogram:
        taken = Histogram()
        if self.problem is None:
            taken.add(5_000_000)
            self.problem = "the disk is full"
        return taken


def _telemetry(telemetry: Telemetry, streams: dict[str, StreamCounts], host: HostFigures):
    kept, cloud, split = _Kept(), None, None
    if streams:
        clock = FakeClock()
        pipeline = Pipeline(FakeModel(), manifest())
        fallback = Fallback(CloudSettings(when="always"), FakeCloud(clock), pipeline, clock, lambda: b"1")
        fallback.take(pipeline.score([SampleBatch("waist", even_times(128), signal(128), 0)]), {})
        cloud = fallback.figures()
        split = SplitModel(SplitSettings(cut="code"), clock, open_parts, FakeCloud(clock)).figures()
    return telemetry.snapshot(streams, "har-base@3f9c1a7e", 5, {Loss.RETAINED: 2}, kept, kept, host, cloud, split)


def _turns(streams: Sequence[str]) -> list[Turn]:
    first, second = [], []
    timings = {}
    for stream in streams:
        prediction = Prediction(
            stream, 0, 0, 2 * S, "walking", 0.9, (0.9, 0.1), 0.1, True, "walking", Origin.LOCAL, "m@1"
        )
        first += [prediction, ActivityChange(stream, 2 * S, "walking", None, 0.9)]
        timings[stream, 0] = Timings(stream, 0, S, 1000, 2000, 3000, 500)
        unknown = prediction._replace(seq=1, known=False, novelty=1e-7, activity="unknown")
        second += [unknown, ActivityChange(stream, 3 * S, "unknown", "walking", 0.0)]
        second += [Gap(stream, 1, 0, S, GapReason.MISSING, 3), Refused(stream, "a rate of 3 Hz")]
    batches = [SampleBatch(stream, even_times(50), signal(50), 0, S) for stream in streams]
    bad = [BadFrame(stream, Loss.CHECKSUM, 1, 2) for stream in streams]
    late = [p._replace(origin=Origin.CLOUD, model="c@1") for p in first if isinstance(p, Prediction)]
    return [Turn(batches, bad, first, timings), Turn(batches, [], second, {}, late)]


def _health() -> list[bytes]:
    health = Health()
    out = [health.message(AGENT, 0, 0, clock_synced=False)]
    health.set(HealthCode.SOURCE_SILENT, 'waist is "silent"', S)
    out.append(health.message(AGENT, 2 * S, 0, clock_synced=True))
    health.set(HealthCode.MODEL_FAILING, "the model fails", S)
    message = health.message(AGENT, 2 * S, 0, clock_synced=True)
    message["boot"], message["windows"] = "b00t", 412
    coverage = Coverage([Covered("waist", S, "0.1.0", exact=False), Covered("wrist", S, "0.1.0", exact=False)])
    coverage.window("waist", 5 * S, 2_560_000_000)
    gap = coverage.gap()
    assert gap is not None
    message["coverage_gap"] = gap
    out.append(message)
    return [encode(message) for message in out]


def _worker() -> list[bytes]:
    clock = FakeClock()
    worker = Worker([], lambda *_: True, clock, WorkerSettings())
    parts = ServingParts(
        worker, _Kept(), _Kept(), lambda: None, lambda: True, _Kept(), lambda: 1.5, lambda: 90_000_000, clock, _Kept()
    )
    serving = Serving(parts, ServingFacts("worker", "b00t", f"{ROOT}/worker", "0.2.0", "har-cloud", ["m@1"], 60.0))
    idle = serving.telemetry(S)
    worker.receive(b"", f"{ROOT}/{AGENT}/cloud/answer", b"1", 0)
    worker.receive(b"", "elsewhere", b"2", 0)
    worker.turn(0)
    return [idle.payload, serving.telemetry(2 * S).payload]


def _status() -> list[StatusMessage]:
    return [
        {"v": 1, "state": "offline"},
        {
            "v": 1,
            "state": "online",
            "agent": AGENT,
            "version": "0.2.0",
            "release": "0.2.0+1a2b3c4d",
            "model": "har-base@3f9c1a7e",
            "labels": list(LABELS),
            "boot": "b00t",
            "boot_id": None,
            "started": "2026-05-04T10:21:07.310Z",
            "board": "Raspberry Pi 5",
            "sources": ["serial waist-07"],
        },
    ]


class _Silent:
    def info(self, event: str, **facts: object) -> None:
        pass

    warning = info


def _reply(payload: bytes) -> bytes:
    replies: list[Outgoing] = []
    commands = Commands({"echo": _echo}, replies.append, _Silent())
    commands.receive("har/board/command/echo", payload, "answers", None)
    commands.handle()
    return replies[0].payload


def _echo(payload: bytes) -> dict[str, object]:
    if payload:
        raise ValueError("echo takes no arguments")
    return {"heard": True}
