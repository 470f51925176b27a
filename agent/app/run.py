"""The daemon: builds one live agent out of one configuration, and runs it until it is told to stop."""

import json
import os
import random
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import agent
from agent.adapters.board import Board
from agent.adapters.clock import SystemClock
from agent.adapters.host import HostMetrics
from agent.adapters.mqtt import Connection, Message, MqttLink, Subscriber
from agent.adapters.power import Vcgencmd, open_power_meter
from agent.adapters.recorder import CSV, Recorder
from agent.adapters.sqlite_outbox import SqliteOutbox
from agent.adapters.systemd import Notifier
from agent.app.compose import agent_name, build_pipeline, credentials_dir, load_config, runtime_dir, state_dir
from agent.app.models import build_slots
from agent.app.sources import open_sources
from agent.config import Config
from agent.core.discovery import Discovery
from agent.core.health import HealthCode
from agent.core.wire import encode, topic_level
from agent.errors import SinkUnavailable
from agent.ports import Clock, Log
from agent.records import Outgoing
from agent.runtime.commands import Commands, Handler, arguments
from agent.runtime.delivery import Delivery
from agent.runtime.engine import Engine, TimedModel
from agent.runtime.live import Facts, Live, Parts
from agent.runtime.publisher import Publisher
from agent.runtime.telemetry import HostFigures, Telemetry

OFFLINE = b'{"v":1,"state":"offline"}'
RECORD_MAX_S = 24 * 3600.0
_FORGET_S = 2.0
"""How long retained messages are collected before they are cleared."""


class Signals(Protocol):
    """What a person, or the service manager, asks of a running agent."""

    @property
    def stopping(self) -> bool:
        """It shall end."""

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
    live, close = build(config, clock, log)
    with ExitStack() as ending:
        ending.callback(close)
        live.start()
        try:
            while not signals.stopping and live.turn():
                if signals.take_reload():
                    live.reload()
        finally:
            live.shut_down()


def build(config: Config, clock: Clock, log: Log) -> tuple[Live, Any]:
    """Put one agent together and start its threads; return it and what closes what `Live.shut_down` does not.

    Raises:
        ConfigError, ModelContractError: as `run`.
    """
    name, boot = agent_name(config), uuid4().hex[:12]
    topic = f"{config.mqtt.root}/{topic_level(name)}"

    def complain(problem: str) -> None:
        log.warning("unexpected", problem=problem)

    state = state_dir(config)
    recorder = Recorder(state / "recordings", CSV, clock)
    source = open_sources(config, clock, complain=complain)
    # The sessions first: opening them holds the GIL, and nothing should come meanwhile.
    slots = build_slots(config, clock)
    opened = slots.open()
    model = TimedModel(opened.model, clock)
    pipeline = build_pipeline(model, opened.manifest, config)
    slots.attach(pipeline, model)
    outbox = SqliteOutbox(state / "outbox.db", config.outbox, clock)
    connection = Connection(
        name,
        config.broker,
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
    notifier = Notifier(os.environ, clock)
    discovery = None
    if config.homeassistant.enabled:
        discovery = Discovery(config.homeassistant, config.mqtt.root, name, agent.__version__, board.model() or "")
    handlers: dict[str, Handler] = {}
    commands = Commands(handlers, delivery.send, log)
    telemetry = Telemetry(clock, name, boot, config.telemetry.idle_watts)
    engine = Engine(source, pipeline, [publisher, recorder], clock, model, config.model.max_failures)
    report = _Report(runtime_dir(config) / "status.json", log)
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
        power=open_power_meter(clock, config.telemetry, run=vcgencmd),
        host=_host(board),
        discovery=discovery,
        report=report,
        clock=clock,
        log=log,
        random=random.random,
    )
    facts = Facts(
        agent=name,
        boot=boot,
        topic=topic,
        version=agent.__version__,
        board=board.model(),
        boot_id=board.boot_id(),
        sources=source.names,
        pid=os.getpid(),
        outbox_cap_bytes=int(config.outbox.max_mb * 1e6),
        telemetry_s=config.telemetry.interval_s,
    )
    live = Live(parts, facts)
    engine.add_sink(live)
    handlers |= _handlers(live, parts, recorder)
    if config.commands.enabled:
        link.subscribe(f"{topic}/command/+", lambda m: _receive(commands, m))
    if discovery is not None:
        known = discovery
        link.subscribe(discovery.birth_topic, lambda m: live.birth() if known.is_birth(m.topic, m.payload) else None)
    endpoint = _open_endpoint(config, parts, report)
    link.start()
    source.start()
    log.info("started", agent=name, version=agent.__version__, model=model.id, sources=source.names, boot=boot)
    return live, endpoint.close if endpoint else lambda: None


def forget(path: Path | None, flags: Mapping[str, Any], log: Log) -> None:
    """Have every broker that can be reached forget what it retains of this agent, Home Assistant's discovery included.

    Raises:
        ConfigError: the configuration cannot be used.
        SinkUnavailable: no broker can be reached.
    """
    config, clock = load_config(path, flags), SystemClock()
    name, root = agent_name(config), config.mqtt.root
    topic = f"{root}/{topic_level(name)}"
    discovery = Discovery(config.homeassistant, root, name, agent.__version__)
    reached, problem = 0, ""
    for label, broker in config.broker.items():
        filters = [f"{topic}/+", f"{root}/+/availability", discovery.topic]
        subscriber = Subscriber(broker, config.mqtt, filters, clock, credentials=credentials_dir())
        try:
            subscriber.start()
            topics = _retained_by(subscriber, name, clock)
        except SinkUnavailable as e:
            problem = str(e)
            log.warning("broker not reached", broker=label, problem=problem)
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
            problem = f"broker {label} did not confirm that it forgets"
            log.warning("not forgotten", broker=label)
            continue
        reached += 1
        log.info("forgotten", broker=label, topics=topics)
    if not reached:
        raise SinkUnavailable(f"nothing was forgotten: {problem}")


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


def _receive(commands: Commands, message: Message) -> None:
    if not message.retained:
        commands.receive(message.topic, message.payload, message.response_topic or None, message.correlation or None)


def _handlers(live: Live, p: Parts, recorder: Recorder) -> dict[str, Handler]:
    """What can be asked for over MQTT."""

    def status(payload: bytes) -> dict[str, Any]:
        arguments(payload, {})
        return live.status()

    def set_threshold(payload: bytes) -> dict[str, Any]:
        given = arguments(payload, {"novelty_threshold": float})
        p.pipeline.set_novelty_threshold(given.get("novelty_threshold"))
        return {"novelty_threshold": p.pipeline.novelty_threshold}

    def reload_model(payload: bytes) -> dict[str, Any]:
        arguments(payload, {})
        live.reload()
        return p.slots.status()

    def rollback(payload: bytes) -> dict[str, Any]:
        reason = arguments(payload, {"reason": str}).get("reason") or "asked for over MQTT"
        return {"given_up": p.slots.rollback(reason), **p.slots.status()}

    def install_model(payload: bytes) -> dict[str, Any]:
        # Whoever may publish must not be able to run a model of their own: the signature is not optional here.
        return p.slots.install(payload, allow_unsigned=False)._asdict()

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


def _host(board: Board) -> Any:
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
            new.replace(self._path)
        except OSError as e:
            if not self._failed:
                self._log.warning("status not written", path=str(self._path), problem=e.strerror or str(e))
            self._failed = True
        else:
            self._failed = False


def _open_endpoint(config: Config, parts: Parts, report: _Report) -> Any:
    if not config.telemetry.prometheus_port:
        return None
    from agent.adapters.prometheus import PrometheusEndpoint
    from agent.core.prometheus_text import exposition

    try:
        endpoint = PrometheusEndpoint(config.telemetry.prometheus_port)
    except SinkUnavailable as e:
        parts.health.set(HealthCode.PROMETHEUS_AWAY, str(e), parts.clock.monotonic_ns())
        return None

    def publish(status: dict[str, Any]) -> None:
        if status["telemetry"] and status["health"]:
            healthy = status["health"]["state"] != "failing"
            endpoint.publish(exposition(status["telemetry"], status["health"]), healthy)

    report.also = publish
    return endpoint
