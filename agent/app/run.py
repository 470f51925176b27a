"""The daemon: builds one live agent out of one configuration, and runs it until it is told to stop."""

import json
import os
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

import agent
from agent.adapters.board import Board
from agent.adapters.clock import SystemClock
from agent.adapters.host import HostMetrics
from agent.adapters.mqtt import Connection, Message, MqttLink, Subscriber
from agent.adapters.outbox import SqliteOutbox
from agent.adapters.power import Vcgencmd, open_power_meter
from agent.adapters.recorder import CSV, Recorder
from agent.adapters.systemd import Notifier
from agent.app.compose import agent_name, build_pipeline, credentials_dir, load_config, runtime_dir, state_dir
from agent.app.models import build_slots
from agent.app.sources import open_sources
from agent.app.version import release, release_id
from agent.config import Config
from agent.core.coverage import Coverage, Covered, kept
from agent.core.discovery import Discovery
from agent.core.health import HealthCode
from agent.core.wire import encode, topic_level
from agent.errors import ConfigError, SinkUnavailable
from agent.pipeline import Pipeline
from agent.ports import Clock, Log
from agent.records import Outgoing
from agent.runtime.commands import Commands, Handler, arguments
from agent.runtime.delivery import Delivery
from agent.runtime.engine import Engine, TimedModel
from agent.runtime.live import OFFLINE, REPORT_S, Facts, Live, Parts
from agent.runtime.publisher import Publisher
from agent.runtime.sampler import Sampler
from agent.runtime.telemetry import HostFigures, Telemetry

if TYPE_CHECKING:
    from agent.runtime.fallback import Fallback
    from agent.runtime.split import SplitModel

RECORD_MAX_S = 24 * 3600.0
READ_S = 5.0
"""Between readings of the power meter and the board's own sensors."""
_SPOKEN = frozenset(
    (
        *("prediction", "revision", "activity", "availability", "status", "telemetry", "health", "worker"),
        *("command", "cloud", "device", "config"),
    )
)
"""Levels of topics under which agents speak, or are spoken to."""
_MOST_LEVELS = 20
"""Of a topic for answers: mosquitto ends the session of whoever publishes to one with 200."""
_MOST_REMEMBERED = 100_000
_FORGET_S = 2.0
"""How long retained messages are collected before they are cleared."""


class Signals(Protocol):
    """What a person, or the service manager, asks of a running agent."""

    def __call__(self) -> bool:
        """Whether it shall end."""

    def take_reload(self) -> bool:
        """Whether it shall look at its models again, since the last call."""


def run(path: Path | None, flags: Mapping[str, Any], log: Log, signals: Signals) -> None:
    """Run until `signals` says that it is over.

    Raises:
        ConfigError, ModelContractError: the configuration, or the only model, cannot be used; another agent runs.
        InferenceError: the model fails in service, and there is none to go back to.
    """
    config = load_config(path, flags)
    clock = SystemClock()
    with ExitStack() as ending:
        live = build(config, clock, log, ending)
        ending.callback(live.shut_down)
        live.start()
        while not signals() and live.turn():
            if signals.take_reload():
                live.reload()


def build(config: Config, clock: Clock, log: Log, ending: ExitStack) -> Live:
    """Put one agent together and start its threads. `ending` gets what `Live.shut_down` does not close.

    Raises:
        ConfigError, ModelContractError: as `run`.
    """
    name, boot = agent_name(config), uuid4().hex[:12]
    topic = f"{config.mqtt.root}/{topic_level(name)}"

    def complain(problem: str) -> None:
        log.warning("unexpected", problem=problem)

    state = state_dir(config)
    _complain_of_root(state, complain)
    recorder = Recorder(state / "recordings", CSV, clock)
    source = open_sources(config, clock, complain=complain)
    # Before the slots, which count every start of a bundle on trial: it has the lock that keeps a second agent out.
    outbox = ending.enter_context(closing(SqliteOutbox(state / "outbox.db", config.outbox, clock)))
    # The sessions before the sources: opening them holds the GIL, and nothing should come meanwhile.
    slots = ending.enter_context(closing(build_slots(config, clock)))
    opened = slots.open()
    split = _open_split(config, name, clock, complain, ending)
    model = TimedModel(opened.model, clock, split.around if split else None)
    if split is not None and split.trouble is not None and slots.status()["slot"] is None:
        # An installed bundle may have other parts, and must not keep the agent from starting: health says so then.
        raise ConfigError(split.trouble)
    pipeline = build_pipeline(model, opened.manifest, config)
    slots.attach(pipeline, model)
    connection = Connection(
        name,
        config.brokers,
        config.mqtt,
        clock,
        will=Outgoing(f"{topic}/status", OFFLINE, retain=True),
        credentials=credentials_dir(),
        complain=complain,
    )
    link = MqttLink(connection, clock)
    delivery = Delivery(outbox, link, clock, config.outbox, config.mqtt)
    publisher = Publisher(delivery, clock, config.mqtt.root, model.labels, boot, name)
    vcgencmd = Vcgencmd()
    board = Board(run=vcgencmd)
    meter = open_power_meter(clock, config.telemetry, run=vcgencmd)
    power = ending.enter_context(closing(Sampler(meter.read, READ_S, "power")))
    host = ending.enter_context(closing(Sampler(_host(board), READ_S, "board")))
    devices, remember = _memory(state / "devices.json")
    folder = runtime_dir(config)
    notifier = Notifier(os.environ, clock)
    discovery = None
    if config.homeassistant.enabled:
        discovery = Discovery(config.homeassistant, config.mqtt.root, name, agent.__version__, board.model() or "")
    handlers: dict[str, Handler] = {}
    commands = Commands(handlers, delivery.send, log)
    telemetry = Telemetry(clock, name, boot, config.telemetry.idle_watts)
    fallback = _open_fallback(config, name, pipeline, clock, complain, ending)
    engine = Engine(source, pipeline, [publisher, recorder], clock, model, config.model.max_failures, fallback)
    status = folder / "status.json"
    report = _Report(status, log)
    installed, boot_id, now_ns = release_id(release()), board.boot_id(), clock.monotonic_ns()
    coverage = Coverage(_left(status, boot_id, now_ns), installed or agent.__version__, now_ns)
    parts = Parts(
        source=source,
        engine=engine,
        pipeline=pipeline,
        model=model,
        slots=slots,
        publisher=publisher,
        delivery=delivery,
        outbox=outbox,
        link=link,
        telemetry=telemetry,
        recorder=recorder,
        commands=commands,
        notifier=notifier,
        power=lambda: power.latest,
        host=lambda: host.latest,
        remembered=devices,
        remember=remember,
        discovery=discovery,
        report=report,
        clock=clock,
        log=log,
        random=random.random,
        coverage=coverage,
        fallback=fallback,
        split=split,
    )
    facts = Facts(
        agent=name,
        boot=boot,
        topic=topic,
        version=agent.__version__,
        board=board.model(),
        boot_id=boot_id,
        sources=source.names,
        pid=os.getpid(),
        outbox_cap_bytes=int(config.outbox.max_mb * 1e6),
        telemetry_s=config.telemetry.interval_s,
        # The state directory is a card that wears.
        report_s=config.telemetry.interval_s if folder == state else REPORT_S,
        release=installed,
    )
    live = Live(parts, facts)
    engine.add_sink(live)
    handlers |= _handlers(live, parts, recorder, config.model.novelty_threshold)
    if config.commands.enabled:
        ours = (f"{config.mqtt.root}/", f"{config.homeassistant.prefix}/")
        link.subscribe(f"{topic}/command/+", lambda m: _receive(commands, m, ours))
    if discovery is not None:
        known = discovery
        link.subscribe(discovery.birth_topic, lambda m: live.birth() if known.is_birth(m.topic, m.payload) else None)
    _open_endpoint(config, parts, report, ending)
    power.start()
    host.start()
    link.start()
    source.start()
    log.info("started", agent=name, version=agent.__version__, model=model.id, sources=source.names, boot=boot)
    return live


def forget(path: Path | None, flags: Mapping[str, Any], log: Log) -> None:
    """Have every broker that can be reached forget what it retains of this agent, Home Assistant's discovery included.

    Raises:
        ConfigError: the configuration cannot be used.
        SinkUnavailable: not every broker could be reached.
    """
    config, clock = load_config(path, flags), SystemClock()
    name, root = agent_name(config), config.mqtt.root
    topic = f"{root}/{topic_level(name)}"
    discovery = Discovery(config.homeassistant, root, name, agent.__version__)
    problems = []
    for label, broker in config.brokers.items():
        filters = [f"{topic}/status", f"{topic}/health", f"{root}/+/availability", discovery.topic]
        subscriber = Subscriber(broker, config.mqtt, filters, clock, credentials=credentials_dir())
        try:
            subscriber.start()
            topics = _retained_by(subscriber, name, clock)
        except SinkUnavailable as e:
            problems.append(str(e))
            continue
        finally:
            subscriber.close()
        link = MqttLink(
            Connection(f"{name}-forget", {label: broker}, config.mqtt, clock, credentials=credentials_dir()), clock
        )
        outbox = SqliteOutbox(None, config.outbox, clock)
        delivery = Delivery(outbox, link, clock, config.outbox, config.mqtt)
        link.start()
        for each in topics:
            delivery.forget_state(each)
        deadline_ns = clock.monotonic_ns() + round(config.mqtt.connect_timeout_s * 1e9)
        while not delivery.settled and clock.monotonic_ns() < deadline_ns:
            delivery.tick()
            clock.sleep(0.02)
        done = delivery.settled
        link.close()
        outbox.close()
        if not done:
            problems.append(f"broker {label} did not confirm that it forgets")
        else:
            log.info("forgotten", broker=label, topics=topics)
    if problems:
        raise SinkUnavailable(f"not every broker has forgotten this agent: {'; '.join(problems)}")


def _retained_by(subscriber: Subscriber, name: str, clock: Clock) -> list[str]:
    """The topics under which a broker retains something of the agent `name`."""
    topics: list[str] = []
    deadline_ns = clock.monotonic_ns() + round(_FORGET_S * 1e9)
    while (left_ns := deadline_ns - clock.monotonic_ns()) > 0:
        message = subscriber.poll(left_ns / 1e9)
        if message is None or not message.retained or not message.payload:
            continue
        stem, _, last = message.topic.rpartition("/")
        if last != "availability":
            topics.append(message.topic)
            continue
        try:
            body = json.loads(message.payload)
        except (ValueError, RecursionError):
            continue
        if isinstance(body, dict) and body.get("agent") == name:
            topics += [message.topic, f"{stem}/activity"]
    return topics


def _receive(commands: Commands, message: Message, ours: tuple[str, ...]) -> None:
    """Take a request. One is refused whose answer would go where only an agent speaks: `ours` and `_SPOKEN`."""
    wanted = message.response_topic
    levels = wanted.split("/")
    if message.retained:
        return
    spoken = wanted.startswith(ours) and _SPOKEN.intersection(levels)
    if spoken or any(c in wanted for c in "+#\0") or len(levels) > _MOST_LEVELS:
        commands.refused += 1
    else:
        commands.receive(message.topic, message.payload, wanted, message.correlation)


def _handlers(live: Live, p: Parts, recorder: Recorder, configured: float | None) -> dict[str, Handler]:
    """What can be asked for over MQTT. `configured`: the novelty threshold that stands without a command."""

    def status(payload: bytes) -> dict[str, Any]:
        arguments(payload, {})
        return live.status()

    def set_threshold(payload: bytes) -> dict[str, Any]:
        given = arguments(payload, {"novelty_threshold": float})
        p.pipeline.set_novelty_threshold(given.get("novelty_threshold", configured))
        return {"novelty_threshold": p.pipeline.novelty_threshold}

    def reload_model(payload: bytes) -> dict[str, Any]:
        arguments(payload, {})
        live.reload()
        return p.slots.status()

    def rollback(payload: bytes) -> dict[str, Any]:
        reason = arguments(payload, {"reason": str}).get("reason") or "asked for over MQTT"
        return {"given_up": p.slots.rollback(reason), **p.slots.status()}

    def install_model(payload: bytes) -> dict[str, Any]:
        # Whoever may publish must not be able to run a model of their own, nor an old one that was signed once.
        return p.slots.install(payload, allow_unsigned=False, allow_downgrade=False)._asdict()

    def record(payload: bytes) -> dict[str, Any]:
        seconds = float(arguments(payload, {"seconds": float}).get("seconds", 60.0))
        if not 0 < seconds <= RECORD_MAX_S:
            raise ValueError(f"seconds must be between 0 and {RECORD_MAX_S:g}")
        recorder.start(seconds)
        return recorder.status().as_dict()

    return {
        "status": status,
        "set-threshold": set_threshold,
        "reload-model": reload_model,
        "rollback": rollback,
        "install-model": install_model,
        "record": record,
    }


def _memory(path: Path) -> tuple[list[str], Callable[[Sequence[str]], None]]:
    """Return the names of devices that the last run kept at `path`, and how to keep those of this one.

    A broker may show a device as online that was there when the agent was killed, and does not come back.
    """
    try:
        kept = json.loads(path.read_bytes())
        names = [str(name) for name in kept] if isinstance(kept, list) else []
    except (OSError, ValueError, RecursionError):
        names = []

    def keep(devices: Sequence[str]) -> None:
        # A disk that takes nothing is told by the outbox.
        with suppress(OSError):
            new = path.with_suffix(".new")
            new.write_text(json.dumps(devices), "utf-8")
            new.replace(path)

    return names[:_MOST_REMEMBERED], keep


def _complain_of_root(state: Path, complain: Callable[[str], None]) -> None:
    """Say so where root runs the agent on the state directory of another user."""
    with suppress(OSError):
        owner = state.stat().st_uid
        if os.geteuid() == 0 and owner != 0:
            complain(f"root runs this agent, and {state} belongs to user {owner}, who cannot change what root makes")


def _left(path: Path, boot_id: str | None, now_ns: int) -> list[Covered]:
    """What the run before said that it had covered, if it was of this boot of the board."""
    try:
        said = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return []
    same = isinstance(said, dict) and boot_id is not None and said.get("boot_id") == boot_id
    return kept(said.get("coverage"), now_ns) if same else []


def _host(board: Board) -> Callable[[], HostFigures]:
    metrics = HostMetrics()

    def read() -> HostFigures:
        temperature, throttling = board.temperature(), board.throttling()
        return HostFigures(
            metrics.cpu_seconds(),
            metrics.rss_bytes(),
            metrics.disk_bytes_written(),
            temperature.celsius if temperature else None,
            throttling.active,
            throttling.under_voltage,
            throttling.source,
        )

    return read


class _Report:
    """Writes what the agent says of itself where `har-agent status` reads it, whole or not at all."""

    def __init__(self, path: Path, log: Log) -> None:
        self._path = path
        self._log = log
        self._failed = False
        self.also: Callable[[dict[str, Any]], None] = lambda _: None

    def __call__(self, status: dict[str, Any]) -> None:
        self.also(status)
        new = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            new.write_bytes(encode(status) + b"\n")
            # Whoever may log in may ask how it is, whatever the service's umask; there is no secret in it.
            new.chmod(0o644)
            new.replace(self._path)
        except OSError as e:
            if not self._failed:
                self._log.warning("status not written", path=str(self._path), problem=e.strerror or str(e))
            self._failed = True
        else:
            self._failed = False


def _open_fallback(
    config: Config,
    name: str,
    pipeline: Pipeline,
    clock: Clock,
    complain: Callable[[str], None],
    ending: ExitStack,
) -> "Fallback | None":
    """Begin to connect to where windows in doubt are asked about, over a connection of its own; None if nowhere."""
    settings = config.cloud
    if not settings.enabled:
        return None
    from agent.adapters.mqtt.requester import Requester, new_correlation
    from agent.runtime.fallback import Fallback

    broker = config.broker[config.cloud_broker]
    credentials = credentials_dir()
    cloud = Requester(name, broker, config.mqtt, settings, clock, credentials=credentials, complain=complain)
    ending.enter_context(closing(cloud))
    cloud.start()
    return Fallback(settings, cloud, pipeline, clock, new_correlation)


def _open_split(
    config: Config, name: str, clock: Clock, complain: Callable[[str], None], ending: ExitStack
) -> "SplitModel | None":
    """Begin to connect to whoever runs the rest of the network; None where it is not run in parts."""
    if not config.split.enabled:
        return None
    from agent.app.split import open_requester, open_split

    cloud = None
    if config.split.asks:
        cloud = ending.enter_context(closing(open_requester(config, name, clock, complain)))
        cloud.start()
    return open_split(config, clock, cloud)


def _open_endpoint(config: Config, parts: Parts, report: _Report, ending: ExitStack) -> None:
    if not config.telemetry.prometheus_port:
        return
    from agent.adapters.prometheus import PrometheusEndpoint
    from agent.core.prometheus_text import exposition

    try:
        endpoint = ending.enter_context(closing(PrometheusEndpoint(config.telemetry.prometheus_port)))
    except SinkUnavailable as e:
        parts.health.set(HealthCode.PROMETHEUS_AWAY, str(e), parts.clock.monotonic_ns())
        return

    def publish(status: dict[str, Any]) -> None:
        if status["telemetry"] and status["health"]:
            healthy = status["health"]["state"] != "failing"
            endpoint.publish(exposition(status["telemetry"], status["health"]), healthy)

    report.also = publish
