"""The daemon's loop: turns of the engine, and beside them everything that has to happen for months.

One thread does it all: what is read, published, stored, told and decided stands in one order, and a turn that hangs is
a watchdog that is not fed. Everything that waits, waits in the source's `poll` or in other threads.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from agent.core.coverage import Coverage
from agent.core.discovery import Discovery
from agent.core.health import Health, HealthCode
from agent.core.units import implausible_gravity
from agent.core.wire import VERSION, encode, iso_time
from agent.errors import InferenceError
from agent.pipeline import Pipeline
from agent.ports import Clock, Link, Log, Outbox, Sink, Source
from agent.records import Float32Array, LinkState, Loss, Outgoing, PowerReading, Prediction, Refused, SampleBatch, Turn
from agent.runtime.commands import Commands
from agent.runtime.delivery import Delivery
from agent.runtime.engine import Engine, TimedModel
from agent.runtime.publisher import Publisher
from agent.runtime.slots import ModelSlots
from agent.runtime.telemetry import HostFigures, Telemetry

if TYPE_CHECKING:
    from agent.core.messages import HealthMessage, StatusMessage, TelemetryMessage
    from agent.runtime.fallback import Fallback
    from agent.runtime.split import SplitModel

OFFLINE = b'{"v":1,"state":"offline"}'
"""What the status says of an agent that is not there: its last word, and its last will."""

TURN_S = 0.25
"""How long a turn waits for samples, and so how soon anything else is noticed when none come."""
FIRST_TELEMETRY_S = 5.0
"""After the start: nobody should wait for a whole interval to see that it works."""
REPORT_S = 5.0
"""Between reports for `har-agent status` and Prometheus, and between readings of the power meter."""
SILENT_S = 10.0
"""After how long without a window a stream was silent when a run ended; longer where its devices may pause longer."""
FRUITLESS_S = 30.0
"""How long samples may come without a whole window: many times what a first window takes."""
UNIT_SAMPLES = 250
"""Samples whose size is held against the declared unit: five seconds, in which hardly anybody falls all the time."""
READY_S = 15.0
"""How long a start waits for the first samples before it counts as one: a sensor may be unplugged for days."""
DRAIN_S = 3.0
FLUSH_S = 3.0
"""Deadlines of the end: for what has been read to be predicted, and for what is in flight to be acknowledged."""
RECONSIDER_S = 60.0
"""After how long a refused stream is looked at again: its sensor may have been set right."""
_SECOND_NS = 1_000_000_000
_BIRTH_WAIT_NS = 5 * _SECOND_NS
"""Home Assistant asks that not all devices answer its birth message at once."""


class Feed(Source, Protocol):
    """The sources, and what they say of themselves."""

    @property
    def dropped(self) -> int:
        """Samples that the full queue let go."""

    @property
    def refused(self) -> Mapping[Loss, int]:
        """Messages of devices that were not even decoded, by reason."""

    @property
    def silence_s(self) -> float:
        """After how long without samples a device that is no serial port is offline."""

    @property
    def idle_s(self) -> float:
        """After how long it is forgotten."""

    def problems(self) -> Mapping[str, str | None]:
        """Return, by serial device, why it delivers nothing."""

    def broker_problem(self) -> str | None:
        """Return why the broker that devices send to is away."""

    def forget(self, device: str) -> None:
        """Make room for another device."""

    def rest(self, due_ns: int) -> None:
        """Say that no sample is urgent that comes before `due_ns`."""


class Recorder(Sink, Protocol):
    """Records what comes, when asked to."""

    @property
    def problem(self) -> str | None:
        """Why it stopped by itself, for people."""

    def tick(self) -> None:
        """Do what is due."""


class Notifier(Protocol):
    """The service manager."""

    def ready(self) -> None:
        """The service has started, or has done what it was asked to with `reloading`."""

    def reloading(self) -> None:
        """It is about to look at its models again."""

    def status(self, text: str) -> None:
        """How it goes, in a line."""

    def watchdog(self) -> None:
        """There was progress."""

    def stopping(self) -> None:
        """It is about to end."""


class StoredOutbox(Outbox, Protocol):
    """An outbox on a disk that can be damaged."""

    @property
    def quarantined(self) -> int:
        """Damaged files that were set aside."""

    @property
    def trouble(self) -> str | None:
        """Why messages are held in memory now, for people."""

    @property
    def damage(self) -> str | None:
        """What became of a damaged file, for people."""


@dataclass(frozen=True)
class Facts:
    """What does not change while the agent runs. `topic`: under which it speaks of itself."""

    agent: str
    boot: str
    topic: str
    version: str
    board: str | None
    boot_id: str | None
    sources: Sequence[str]
    pid: int
    outbox_cap_bytes: int
    telemetry_s: float
    report_s: float
    release: str | None = None


@dataclass
class Parts:
    """What the loop drives; app puts it together."""

    source: Feed
    engine: Engine
    pipeline: Pipeline
    model: TimedModel
    slots: ModelSlots
    publisher: Publisher
    delivery: Delivery
    outbox: StoredOutbox
    link: Link
    telemetry: Telemetry
    recorder: Recorder
    commands: Commands
    notifier: Notifier
    power: Callable[[], PowerReading]
    """Power, as it was read last. Must not block, nor must `host`."""
    host: Callable[[], HostFigures]
    discovery: Discovery | None
    remembered: Sequence[str]
    remember: Callable[[Sequence[str]], None]
    """Devices of the last run, and where to keep those of this one. Must not raise."""
    report: Callable[[dict[str, Any]], None]
    """Takes what `har-agent status` shows. Must not raise."""
    clock: Clock
    log: Log
    random: Callable[[], float]
    health: Health = field(default_factory=Health)
    coverage: Coverage = field(default_factory=Coverage)
    fallback: "Fallback | None" = None
    """The one inside `engine`."""
    split: "SplitModel | None" = None
    """The one inside `model`."""


class Live:
    """See the module's text."""

    def __init__(self, parts: Parts, facts: Facts) -> None:
        self._p = parts
        self._facts = facts
        clock = parts.clock
        now_ns = clock.monotonic_ns()
        self._started_ns = now_ns
        self._ready = False
        self._labels = parts.model.labels
        self._told_model = ""
        self._heard: set[str] = set()
        """Streams whose samples came in this run, and were looked at."""
        self._first: dict[str, list[Float32Array]] = {}
        self._absent = set(parts.remembered)
        """Streams of the last run that have not come back."""
        self._seen: dict[str, int] = dict.fromkeys(parts.remembered, now_ns)
        """Stream -> when its last samples came; those of the last run too: a broker may show them as online still."""
        self._remembered = set(parts.remembered)
        self._unread: dict[str, int] = {}
        """Device of which nothing could be read so far -> when it last sent something."""
        self._serial = set(parts.source.problems())
        self._silent: set[str] = set()
        self._predicted: dict[str, int] = {}
        """Stream -> when its last window was predicted, or when it came."""
        self._fruitless: set[str] = set()
        self._refused: dict[str, int] = {}
        """Stream -> when it was refused, and not looked at again since."""
        self._host: HostFigures | None = None
        self._message: TelemetryMessage | None = None
        self._told: HealthMessage | None = None
        self._second_ns = self._report_ns = now_ns
        self._telemetry_ns = now_ns + round(min(FIRST_TELEMETRY_S, facts.telemetry_s) * 1e9)
        self._shown: list[str] | None = None
        self._synced = clock.synced()
        self._ended = False
        """Whether nothing more is predicted."""
        self._settling = False
        self._discovery_ns: int | None = None
        self._birth = False

    def start(self) -> None:
        """Say who is here."""
        self._tell_status()
        self._tell_health(self._p.clock.monotonic_ns())

    def turn(self) -> bool:
        """Do one turn; False once the sources have ended.

        Raises:
            InferenceError: the model fails, and there is none to go back to.
        """
        p = self._p
        self._follow_model()
        try:
            turn = p.engine.turn(TURN_S)
        except InferenceError as error:
            p.log.warning("model failed", model=p.model.id, error=str(error))
            p.health.set(HealthCode.MODEL_FAILING, str(error), p.clock.monotonic_ns())
            p.slots.failed(error)
            p.health.set(HealthCode.MODEL_FAILING, None, p.clock.monotonic_ns())
        else:
            if turn is None:
                return False
        p.commands.handle()
        p.recorder.tick()
        p.delivery.tick()
        now_ns = p.clock.monotonic_ns()
        if now_ns - self._second_ns >= _SECOND_NS:
            self._second_ns = now_ns
            self._each_second(now_ns)
        p.notifier.watchdog()
        p.source.rest(p.pipeline.due_ns())
        return True

    def write(self, turn: Turn) -> None:
        """Take what a turn brought, as the engine's last sink: so a turn in which the model failed counts, too."""
        p = self._p
        p.telemetry.take(turn)
        now_ns = p.clock.monotonic_ns()
        for batch in turn.batches:
            if batch.stream not in self._heard:
                self._absent.discard(batch.stream)
                self._hear(batch, now_ns)
            self._seen[batch.stream] = now_ns
        for frame in turn.bad:
            if frame.stream and frame.stream not in self._seen:
                self._unread[frame.stream] = now_ns
        for event in turn.events:
            if isinstance(event, Refused):
                new = event.stream not in self._refused
                self._refused[event.stream] = now_ns
                reason = f"{event.stream} is refused: {event.reason}"
                p.health.set(HealthCode.SOURCE_UNUSABLE, reason, now_ns, event.stream)
                if new:
                    p.log.warning("stream refused", stream=event.stream, reason=event.reason)
            elif isinstance(event, Prediction):
                self._predicted[event.stream] = now_ns
                if (timing := turn.timings.get((event.stream, event.seq))) is not None:
                    p.coverage.window(event.stream, timing.received_ns, event.t1_ns - event.t0_ns)
                if event.stream in self._refused or event.stream in self._fruitless:
                    self._refused.pop(event.stream, None)
                    self._fruitless.discard(event.stream)
                    p.health.set(HealthCode.SOURCE_UNUSABLE, None, now_ns, event.stream)
                    p.log.info("stream accepted", stream=event.stream)
        if not self._settling:
            p.slots.after_turn(turn)

    def _hear(self, batch: SampleBatch, now_ns: int) -> None:
        """Look at the first samples of a stream: a unit that is wrong by a factor of 9.8 spoils every label."""
        first = self._first.setdefault(batch.stream, [])
        first.append(batch.values)
        if sum(map(len, first)) >= UNIT_SAMPLES:
            self._heard.add(batch.stream)
            wrong = implausible_gravity(np.concatenate(self._first.pop(batch.stream)))
            if wrong:
                name = f"{batch.stream} unit"
                self._p.health.set(HealthCode.SOURCE_UNUSABLE, f"{batch.stream}: {wrong}", now_ns, name)

    def close(self) -> None:
        """Nothing of its own is open; see `shut_down`."""

    def _follow_model(self) -> None:
        """Take over the labels of a model that took over since the last turn, by whatever way, before the next."""
        p = self._p
        if p.model.id != self._told_model:
            self._settle()  # what the old one had scored, while its labels are those that are published
            if p.model.labels != self._labels:
                self._labels = p.model.labels
                p.publisher.use_labels(self._labels)
                self._shown = None
            self._tell_status()

    def _settle(self, stream: str | None = None) -> None:
        """Publish what waits for an answer. It proves nothing of the model in service: another may have scored it."""
        self._settling = True
        try:
            self._p.engine.settle(stream)
        finally:
            self._settling = False

    def reload(self) -> None:
        """Look at the model slots again."""
        self._p.notifier.reloading()
        self._p.slots.reload()
        self._p.log.info("reloaded", **self._p.slots.status())
        self._p.notifier.ready()

    def birth(self) -> None:
        """Home Assistant has started: tell it again, after a moment of its own. May be called from any thread."""
        self._birth = True

    def shut_down(self) -> None:
        """End in order: sources, what they had delivered, messages, the connection, the outbox; all, if one fails."""
        p = self._p
        p.notifier.stopping()
        with ExitStack() as ending:
            for step in (p.slots.close, p.recorder.close, self._close_outbox, p.link.close, self._say_goodbye):
                ending.callback(step)
            ending.callback(self._settle)
            ending.callback(self._drain)
            p.source.close()

    def _drain(self) -> None:
        """Let what had been read become predictions, within a deadline."""
        p = self._p
        deadline_ns = p.clock.monotonic_ns() + round(DRAIN_S * 1e9)
        try:
            while p.clock.monotonic_ns() < deadline_ns:
                self._follow_model()
                if p.engine.turn(0.0) is None:
                    return
        except InferenceError as error:
            p.log.warning("model failed", model=p.model.id, error=str(error))

    def _say_goodbye(self) -> None:
        """Tell subscribers that this agent goes, and wait for what is under way."""
        p = self._p
        # First: on a slow line there may be no time for all that a gateway has to say.
        p.delivery.set_state(self._topic("status"), OFFLINE)
        p.delivery.send(self._outgoing("telemetry", self._snapshot()))
        p.publisher.close()
        left = p.delivery.farewell(p.clock.monotonic_ns() + round(FLUSH_S * 1e9))
        self._ended = True
        self._report()
        p.log.info("stopped", unacknowledged=left, stored=p.outbox.depth)

    def _close_outbox(self) -> None:
        p = self._p
        p.outbox.close()
        if p.outbox.problem:
            p.log.warning("outbox", problem=p.outbox.problem)

    def status(self) -> dict[str, Any]:
        """Return what `har-agent status` and the command of that name show."""
        p = self._p
        link = p.link.state()
        return {
            "v": VERSION,
            "pid": self._facts.pid,
            "agent": self._facts.agent,
            "version": self._facts.version,
            **({"release": self._facts.release} if self._facts.release else {}),
            "model": p.model.id,
            "boot": self._facts.boot,
            "boot_id": self._facts.boot_id,
            "board": self._facts.board,
            "started": self._started(),
            "updated": iso_time(p.clock.wall_ns()),
            "updated_ns": p.clock.monotonic_ns(),
            "interval_s": self._facts.report_s,
            "uptime_s": round((p.clock.monotonic_ns() - self._started_ns) / 1e9, 1),
            "sources": [{"name": name, "problem": self._source_problem(name)} for name in self._facts.sources],
            "streams": len(self._seen),
            "windows": p.telemetry.windows,
            "commands_refused": p.commands.refused,
            "link": {"connected": link.connected, "broker": link.broker, "problem": link.problem},
            "slots": p.slots.status(),
            "outbox": {"depth": p.outbox.depth, "size_bytes": p.outbox.size_bytes},
            "health": self._of_this_run(
                p.health.view(self._facts.agent, p.clock.monotonic_ns(), p.clock.wall_ns(), clock_synced=self._synced)
            ),
            "coverage": p.coverage.keep(p.clock.monotonic_ns(), max(p.source.silence_s, SILENT_S), ended=self._ended),
            "telemetry": self._message,
        }

    # --- what happens once a second

    def _each_second(self, now_ns: int) -> None:
        p = self._p
        self._watch_streams(now_ns)
        self._watch_rest(now_ns)
        if not self._ready and (self._heard or self._first or now_ns - self._started_ns > READY_S * 1e9):
            self._ready = True
            p.notifier.ready()
        self._discover(now_ns)
        if now_ns >= self._telemetry_ns:
            self._telemetry_ns = now_ns + round(self._facts.telemetry_s * 1e9)
            p.delivery.send(self._outgoing("telemetry", self._snapshot()))
            self._tell_health(now_ns)
        elif now_ns - self._report_ns >= self._facts.report_s * 1e9:
            p.telemetry.take_power(p.power())
            self._report()
            self._remember()
        if p.health.changed(now_ns) or self._is_news():
            self._tell_health(now_ns)

    def _is_news(self) -> bool:
        """Whether nobody was told yet of the first prediction, or of a gap before it: who deploys waits for that."""
        if self._told is None:
            return False
        begun = not self._told.get("windows") and self._p.telemetry.windows > 0
        return begun or self._told.get("coverage_gap") != self._p.coverage.gap()

    def _watch_streams(self, now_ns: int) -> None:
        p, source = self._p, self._p.source
        problems = source.problems()
        for name, problem in problems.items():
            unreadable = None
            if problem and now_ns - self._unread.get(name, -(10**18)) < 5 * _SECOND_NS:
                worst = p.engine.bad[name].most_common(1)[0][0]
                unreadable = f"{name} sends what cannot be read, mostly {worst}: compare format, time and baud"
            away_text = f"{name}: {problem}" if problem and not unreadable else None
            p.health.set(HealthCode.SOURCE_AWAY, away_text, now_ns, name)
            p.health.set(HealthCode.SOURCE_UNUSABLE, unreadable, now_ns, f"{name} unreadable")
            if problem:
                p.publisher.silent(name, problem)
        away = source.broker_problem()
        p.health.set(HealthCode.SOURCE_AWAY, f"samples over MQTT: {away}" if away else None, now_ns, "mqtt")
        newest_ns = self._started_ns
        for stream, seen_ns in list(self._seen.items()):
            newest_ns = max(newest_ns, seen_ns)
            age_s = (now_ns - seen_ns) / 1e9
            # Of a serial port that is away, its problem tells.
            silent = age_s > source.silence_s and problems.get(stream) is None
            if age_s > source.idle_s and stream not in self._serial:
                self._retire(stream, now_ns)
            elif silent and stream not in self._silent:
                self._silent.add(stream)
                text = f"{stream} sends nothing"
                if stream in self._serial:
                    text += " that can be read: check its format and baud"
                p.publisher.silent(stream)
                # One reason is enough where the broker is away; and of the last run nobody expects a device any more.
                if not away and stream not in self._absent:
                    p.health.set(HealthCode.SOURCE_SILENT, text, now_ns, stream)
            elif not silent and stream in self._silent:
                self._silent.remove(stream)
                self._predicted[stream] = now_ns
                p.health.set(HealthCode.SOURCE_SILENT, None, now_ns, stream)
        for stream, heard_ns in list(self._unread.items()):
            # It has a place among the devices, too.
            if stream in self._seen:
                del self._unread[stream]
            elif now_ns - heard_ns > source.idle_s * 1e9 and stream not in self._serial:
                del self._unread[stream]
                p.engine.bad.pop(stream, None)
                source.forget(stream)
        for stream, since_ns in self._refused.items():
            if now_ns - since_ns >= RECONSIDER_S * 1e9:
                self._refused[stream] = now_ns
                p.pipeline.reconsider(stream)
        for stream, seen_ns in self._seen.items():
            self._watch_fruit(stream, seen_ns, now_ns)
        quiet = now_ns - newest_ns > max(10.0, min(source.silence_s, 60.0)) * 1e9
        p.health.set(HealthCode.NO_SOURCE, "no samples come from any source" if quiet else None, now_ns)

    def _watch_fruit(self, stream: str, seen_ns: int, now_ns: int) -> None:
        """Find a stream whose samples make no window: its times jump, or it stops again and again."""
        p = self._p
        since_ns = self._predicted.setdefault(stream, now_ns)
        if stream in self._fruitless or stream in self._refused or stream in self._silent:
            return
        if now_ns - since_ns > FRUITLESS_S * 1e9 and now_ns - seen_ns < 2 * _SECOND_NS:
            self._fruitless.add(stream)
            reason = f"samples come, and for {FRUITLESS_S:g} s no window of them was whole: look at its times and rate"
            p.health.set(HealthCode.SOURCE_UNUSABLE, f"{stream}: {reason}", now_ns, stream)
            p.publisher.unusable(stream, reason)
            p.log.warning("no windows", stream=stream)

    def _watch_rest(self, now_ns: int) -> None:
        p, health = self._p, self._p.health
        watch_broker(health, p.link.state(), p.delivery, now_ns)
        health.count(HealthCode.OUTBOX_QUARANTINED, p.outbox.quarantined, p.outbox.damage or "", now_ns)
        health.set(HealthCode.OUTBOX_DEGRADED, p.outbox.trouble, now_ns)
        full = p.outbox.size_bytes > self._facts.outbox_cap_bytes / 2
        health.set(HealthCode.OUTBOX_FILLING, "the outbox is more than half full" if full else None, now_ns)
        text = "the outbox is full: its oldest messages are let go; see drops.outbox in telemetry"
        health.count(HealthCode.OUTBOX_DROPPING, p.outbox.dropped, text, now_ns)
        text = "more samples come than this board can process; see drops.input in telemetry"
        health.count(HealthCode.QUEUE_DROPPING, p.source.dropped, text, now_ns)
        text = "messages come under names that no device may have, such as that of a serial port"
        health.count(HealthCode.SOURCE_UNUSABLE, p.source.refused[Loss.TOPIC], text, now_ns)
        text = "there are more devices than mqtt_in.max_devices: raise it, or see who sends under so many names"
        health.count(HealthCode.TOO_MANY_DEVICES, p.source.refused[Loss.TOO_MANY_DEVICES], text, now_ns)
        health.set(HealthCode.MODEL_ROLLED_BACK, p.slots.problem, now_ns)
        health.set(HealthCode.CLOUD_AWAY, p.fallback.problem if p.fallback else None, now_ns)
        health.set(HealthCode.SPLIT_AWAY, p.split.problem if p.split else None, now_ns)
        synced = p.clock.synced()
        if synced and not self._synced:
            # When this run began is only known now.
            self._tell_status()
        self._synced = synced
        unsynced = None if synced else "nothing keeps the wall clock right: set up NTP, or a clock with a battery"
        health.set(HealthCode.CLOCK_UNSYNCED, unsynced, now_ns)
        health.set(HealthCode.RECORDER_FAILED, p.recorder.problem, now_ns)
        if self._host is not None:
            weak = "the supply is too weak: use a better one, or a shorter cable" if self._host.under_voltage else None
            health.set(HealthCode.UNDER_VOLTAGE, weak, now_ns)
            slow = "the board slows itself down: cool it, or give it less to do" if self._host.throttled else None
            health.set(HealthCode.THROTTLED, slow, now_ns)

    def _retire(self, stream: str, now_ns: int) -> None:
        """Forget a device that has been silent for long: it is a new one when it comes back, but for its numbers."""
        p = self._p
        self._settle(stream)
        del self._seen[stream]
        self._silent.discard(stream)
        self._refused.pop(stream, None)
        self._fruitless.discard(stream)
        self._predicted.pop(stream, None)
        self._heard.discard(stream)
        self._absent.discard(stream)
        self._first.pop(stream, None)
        for code in (HealthCode.SOURCE_SILENT, HealthCode.SOURCE_UNUSABLE):
            p.health.set(code, None, now_ns, stream)
        p.health.set(HealthCode.SOURCE_UNUSABLE, None, now_ns, f"{stream} unit")
        if (counts := p.pipeline.retire(stream)) is not None:
            p.telemetry.retire(stream, counts)
        p.engine.bad.pop(stream, None)
        p.publisher.retire(stream)
        p.coverage.retire(stream)
        p.source.forget(stream)

    def _discover(self, now_ns: int) -> None:
        """Describe this agent and its streams to Home Assistant, when they have changed or it has started."""
        p, discovery = self._p, self._p.discovery
        if discovery is None:
            return
        if self._birth:
            self._birth = False
            self._discovery_ns = now_ns + round(p.random() * _BIRTH_WAIT_NS)
        streams = discovery.shown(self._seen)
        if streams != self._shown:
            gone = sorted(set(self._shown or ()).difference(streams))
            self._shown = streams
            p.delivery.set_state(discovery.topic, discovery.payload(self._labels, streams, gone))
        elif self._discovery_ns is not None and now_ns >= self._discovery_ns:
            self._discovery_ns = None
            p.delivery.set_state(discovery.topic, discovery.payload(self._labels, streams))
            p.delivery.repeat_state(discovery.topic)

    # --- what is told

    def _snapshot(self) -> "TelemetryMessage":
        p = self._p
        p.telemetry.take_power(p.power())
        self._host = p.host()
        self._message = p.telemetry.snapshot(
            p.pipeline.counts(),
            p.model.id,
            p.source.dropped,
            p.source.refused,
            p.delivery,
            p.outbox,
            self._host,
            p.fallback.figures() if p.fallback else None,
            p.split.figures() if p.split else None,
        )
        return self._message

    def _tell_health(self, now_ns: int) -> None:
        p = self._p
        before = self._told
        wall_ns, synced = p.clock.wall_ns(), p.clock.synced()
        self._told = self._of_this_run(p.health.message(self._facts.agent, now_ns, wall_ns, clock_synced=synced))
        p.delivery.set_state(self._topic("health"), encode(dict(self._told)))
        log_health(p.log, self._told, before)
        self._report()

    def _of_this_run(self, message: "HealthMessage") -> "HealthMessage":
        """Add what only the loop knows: whose health it is, and whether there is work."""
        message["boot"], message["windows"] = self._facts.boot, self._p.telemetry.windows
        gap = self._p.coverage.gap()
        if gap is not None:
            message["coverage_gap"] = gap
        return message

    def _tell_status(self) -> None:
        p, facts = self._p, self._facts
        self._told_model = p.model.id
        message: StatusMessage = {
            "v": VERSION,
            "state": "online",
            "agent": facts.agent,
            "version": facts.version,
            "model": p.model.id,
            "labels": list(p.model.labels),
            "boot": facts.boot,
            "boot_id": facts.boot_id,
            "started": self._started(),
            "sources": list(facts.sources),
        }
        if facts.release:
            message["release"] = facts.release
        if facts.board:
            message["board"] = facts.board
        p.delivery.set_state(self._topic("status"), encode(dict(message)))
        p.log.info("model in service", model=p.model.id)

    def _report(self) -> None:
        p = self._p
        self._report_ns = now_ns = p.clock.monotonic_ns()
        rate = f", {self._message['windows_per_s']:.3g} windows/s" if self._message else ""
        p.notifier.status(p.health.summary(now_ns, f"{len(self._seen)} streams{rate}"))
        p.report(self.status())

    def _started(self) -> str:
        """When this run began, by what the wall clock is now taken to have been then."""
        clock = self._p.clock
        return iso_time(clock.wall_ns() - (clock.monotonic_ns() - self._started_ns))

    def _remember(self) -> None:
        """Keep the names of devices where the next run finds them."""
        if self._seen.keys() != self._remembered:
            self._remembered = set(self._seen)
            self._p.remember(sorted(self._remembered))

    def _source_problem(self, name: str) -> str | None:
        kind, _, rest = name.partition(" ")
        return self._p.source.problems().get(rest) if kind == "serial" else self._p.source.broker_problem()

    def _topic(self, name: str) -> str:
        return f"{self._facts.topic}/{name}"

    def _outgoing(self, name: str, message: Any) -> Outgoing:
        return Outgoing(self._topic(name), encode(dict(message)))


def watch_broker(health: Health, link: LinkState, delivery: Delivery, now_ns: int) -> None:
    """Tell health how it stands with the broker that is published to."""
    away = None if link.connected else link.problem or f"connecting to broker {link.broker}"
    health.set(HealthCode.BROKER_AWAY, away, now_ns)
    health.set(HealthCode.BROKER_UNSTEADY, link.problem if link.connected else None, now_ns)
    health.set(HealthCode.BROKER_REFUSES, delivery.problem, now_ns)


def log_health(log: Log, told: "HealthMessage", before: "HealthMessage | None") -> None:
    """Log health where its reasons are others than those that were told before."""
    codes = [reason["code"] for reason in told["reasons"]]
    if codes != [reason["code"] for reason in (before["reasons"] if before else ())]:
        texts = {reason["code"]: reason["text"] for reason in told["reasons"]}
        (log.warning if codes else log.info)("health", state=told["state"], **texts)
