"""A cloud worker's loop: turns of the worker, and beside them what it says of itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from agent.core.cloud_wire import Refusal
from agent.core.health import Health, HealthCode
from agent.core.wire import VERSION, encode, iso_time
from agent.errors import InferenceError
from agent.ports import Clock, Link, Log
from agent.records import Outgoing
from agent.runtime.delivery import Delivery
from agent.runtime.live import (
    DRAIN_S,
    FIRST_TELEMETRY_S,
    FLUSH_S,
    OFFLINE,
    READY_S,
    TURN_S,
    Notifier,
    log_health,
    watch_broker,
)
from agent.runtime.telemetry import latencies
from agent.runtime.worker import Worker

if TYPE_CHECKING:
    from agent.core.messages import HealthMessage, StatusMessage, WorkerMessage

_TICK_NS = 100_000_000
"""Between looks at anything but requests: under load there is a turn every few milliseconds."""
_SECOND_NS = 1_000_000_000


class ServingFacts(NamedTuple):
    """What does not change while a worker runs. `topic`: under which it speaks of itself."""

    name: str
    boot: str
    topic: str
    version: str
    service: str
    models: Sequence[str]
    telemetry_s: float
    release: str | None = None


@dataclass
class ServingParts:
    """What the loop drives; app puts it together."""

    worker: Worker
    delivery: Delivery
    link: Link
    leave: Callable[[], None]
    """Leaves the group that shares the requests, and returns once no more can come. Blocks for its own deadline."""
    subscribed: Callable[[], bool]
    """Whether requests come, as far as the broker has told."""
    notifier: Notifier
    cpu_s: Callable[[], float]
    rss_bytes: Callable[[], int]
    clock: Clock
    log: Log
    health: Health = field(default_factory=Health)


class Serving:
    """See the module."""

    def __init__(self, parts: ServingParts, facts: ServingFacts) -> None:
        self._p = parts
        self._facts = facts
        now_ns = parts.clock.monotonic_ns()
        self._started_ns = self._since_ns = now_ns
        self._requests_before = 0
        self._tick_ns = self._second_ns = now_ns
        self._telemetry_ns = now_ns + round(min(FIRST_TELEMETRY_S, facts.telemetry_s) * 1e9)
        self._ready = False
        self._told: HealthMessage | None = None
        self._serving = False
        """Whether requests came when that was last looked at."""

    def subscribed(self) -> bool:
        """Whether requests come, as far as the broker has told."""
        return self._p.subscribed()

    def start(self) -> None:
        """Say who is here."""
        p, facts = self._p, self._facts
        message: StatusMessage = {
            "v": VERSION,
            "state": "online",
            "agent": facts.name,
            "version": facts.version,
            "model": ", ".join(facts.models),
            "boot": facts.boot,
            "started": iso_time(p.clock.wall_ns()),
            "sources": [f"requests {facts.service}"],
        }
        if facts.release:
            message["release"] = facts.release
        p.delivery.set_state(self._topic("status"), encode(dict(message)))
        self._tell_health(p.clock.monotonic_ns())

    def turn(self) -> None:
        """Do one turn.

        Raises:
            InferenceError: a model fails again and again.
        """
        p = self._p
        p.worker.turn(TURN_S)
        now_ns = p.clock.monotonic_ns()
        if now_ns - self._tick_ns >= _TICK_NS:
            self._tick_ns = now_ns
            p.delivery.tick()
            if now_ns - self._second_ns >= _SECOND_NS:
                self._second_ns = now_ns
                self._each_second(now_ns)
            p.notifier.watchdog()

    def shut_down(self) -> None:
        """End in order: no more requests, answers to those that came, the last word, the connection."""
        p = self._p
        p.notifier.stopping()
        try:
            p.leave()
            deadline_ns = p.clock.monotonic_ns() + round(DRAIN_S * 1e9)
            while p.clock.monotonic_ns() < deadline_ns and p.worker.turn(0.0):
                pass
        except InferenceError as error:
            p.log.warning("model failed", error=str(error))
        p.delivery.set_state(self._topic("status"), OFFLINE)
        p.delivery.send(self.telemetry(p.clock.monotonic_ns()))
        p.delivery.farewell(p.clock.monotonic_ns() + round(FLUSH_S * 1e9))
        p.link.close()
        p.log.info("stopped", answered=p.worker.answered, passed_on=p.worker.passed_on, waiting=p.worker.waiting)

    def _each_second(self, now_ns: int) -> None:
        p, health, link = self._p, self._p.health, self._p.link.state()
        watch_broker(health, link, p.delivery, now_ns)
        if p.subscribed() != self._serving:
            self._serving = not self._serving
            event = "requests come" if self._serving else "no requests come"
            (p.log.info if self._serving else p.log.warning)(event, broker=link.broker, service=self._facts.service)
        text = "more requests come than this worker can answer: start another one"
        health.count(HealthCode.QUEUE_DROPPING, p.worker.refused[Refusal.OVERLOADED.name.lower()], text, now_ns)
        health.set(HealthCode.MODEL_FAILING, p.worker.problem, now_ns)
        if not self._ready and (p.subscribed() or now_ns - self._started_ns > READY_S * 1e9):
            self._ready = True
            p.notifier.ready()
        if now_ns >= self._telemetry_ns:
            self._telemetry_ns = now_ns + round(self._facts.telemetry_s * 1e9)
            p.delivery.send(self.telemetry(now_ns))
            self._tell_health(now_ns)
        elif health.changed(now_ns):
            self._tell_health(now_ns)

    def _tell_health(self, now_ns: int) -> None:
        p = self._p
        told = p.health.message(self._facts.name, now_ns, p.clock.wall_ns(), clock_synced=p.clock.synced())
        told["boot"] = self._facts.boot
        p.delivery.set_state(self._topic("health"), encode(dict(told)))
        p.notifier.status(p.health.summary(now_ns, f"{p.worker.answered} requests answered"))
        log_health(p.log, told, self._told)
        self._told = told

    def telemetry(self, now_ns: int) -> Outgoing:
        """Return the message of the interval that ends now, and begin the next."""
        p, facts, worker = self._p, self._facts, self._p.worker
        interval_s = max(now_ns - self._since_ns, 1) / 1e9
        message: WorkerMessage = {
            "v": VERSION,
            "agent": facts.name,
            "boot": facts.boot,
            "time": iso_time(p.clock.wall_ns()),
            "clock_synced": p.clock.synced(),
            "uptime_s": round((now_ns - self._started_ns) / 1e9, 3),
            "interval_s": round(interval_s, 3),
            "service": facts.service,
            "models": list(facts.models),
            "requests": worker.requests,
            "requests_per_s": round((worker.requests - self._requests_before) / interval_s, 3),
            "answered": worker.answered,
            "passed_on": worker.passed_on,
            "refused": {reason: n for reason, n in sorted(worker.refused.items()) if n},
            "unsent": worker.unsent,
            "waiting": worker.waiting,
            "batch": {
                "mean": round(worker.scored / worker.calls, 3) if worker.calls else 0.0,
                "max": worker.largest,
            },
            "latency_ms": {
                "wait": latencies(worker.wait),
                "infer": latencies(worker.infer),
                "total": latencies(worker.total),
            },
            "cpu_s": round(p.cpu_s(), 3),
            "rss_bytes": p.rss_bytes(),
        }
        self._since_ns, self._requests_before = now_ns, worker.requests
        worker.clear()
        return Outgoing(self._topic("worker"), encode(dict(message)))

    def _topic(self, name: str) -> str:
        return f"{self._facts.topic}/{name}"
