"""The cloud worker: answers what boards ask of a bigger model, or of the rest of a split one.

It is one of any number behind a broker.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np

import agent
from agent.adapters.bundle import find_bundle, load_bundle, read_golden
from agent.adapters.clock import SystemClock
from agent.adapters.host import HostMetrics
from agent.adapters.mqtt import Connection, Message, MqttLink, reply_properties, request_properties
from agent.adapters.onnx_model import OrtModel
from agent.adapters.onnx_parts import Parts
from agent.adapters.outbox import SqliteOutbox
from agent.adapters.systemd import Notifier
from agent.app.compose import agent_name, credentials_dir, load_config, open_parts
from agent.app.version import release, release_id
from agent.config import Config
from agent.core.cloud_wire import request_topic
from agent.core.manifest import NOVELTY, Bundle
from agent.core.split_wire import MAX_TENSORS
from agent.core.wire import topic_level
from agent.errors import ConfigError, ModelContractError
from agent.ports import Clock, Log
from agent.records import Outgoing
from agent.runtime.delivery import Delivery
from agent.runtime.live import OFFLINE
from agent.runtime.serving import Serving, ServingFacts, ServingParts
from agent.runtime.worker import Worker

_LEAVE_S = 2.0
"""How long a broker may take to confirm that a worker has left."""
_LONGEST = 2 * MAX_TENSORS
"""Bytes of a packet: one that is somewhat too large is refused with a reason, what is larger never comes."""


def cloud_worker(
    path: Path | None, flags: Mapping[str, Any], bundles: Sequence[str], log: Log, stopping: Callable[[], bool]
) -> None:
    """Answer requests until `stopping` says that it is over. `bundles`: over those of the configuration.

    Raises:
        ConfigError, ModelContractError: the configuration, or a bundle, cannot be used.
        InferenceError: a model fails in service.
    """
    config = load_config(path, flags)
    clock = SystemClock()
    with ExitStack() as ending:
        serving = build(config, bundles or config.worker.bundles.split(), clock, log, ending)
        ending.callback(serving.shut_down)
        serving.start()
        while not stopping():
            serving.turn()


def build(config: Config, bundles: Sequence[str], clock: Clock, log: Log, ending: ExitStack) -> Serving:
    """Put one worker together and begin to connect. `ending` gets what `Serving.shut_down` does not close.

    Raises:
        ConfigError, ModelContractError: as `cloud_worker`.
    """
    if not bundles:
        raise ConfigError("a worker needs a model: name bundles on the command line, or in [worker] bundles")
    for label, broker in config.broker.items():
        if broker.protocol != "5":
            raise ConfigError(f'[worker] needs MQTT 5: set protocol = "5" in [broker.{label}], or use another broker')
    # Two clients of one name would drive each other out: those that nobody has named are told apart by their process.
    name = config.agent.name or f"{agent_name(config)}-worker-{os.getpid()}"
    boot, service = uuid4().hex[:12], config.worker.service
    # The sessions before the connection: opening them holds the GIL, and requests would come meanwhile.
    opened = [_opened(load_bundle(find_bundle(bundle)), log) for bundle in bundles]
    topic = f"{config.mqtt.root}/{topic_level(name)}"

    def complain(problem: str) -> None:
        log.warning("unexpected", problem=problem)

    connection = Connection(
        name,
        config.broker,
        config.mqtt,
        clock,
        will=Outgoing(f"{topic}/status", OFFLINE, retain=True),
        credentials=credentials_dir(),
        complain=complain,
        longest=_LONGEST,
    )

    def answer(to: str, payload: bytes, correlation: bytes) -> bool:
        session = connection.now()[1]
        try:
            return session is not None and session.send(to, payload, reply_properties(correlation))
        except ValueError:  # what no topic may be, or more than this broker takes
            return False

    def pass_on(payload: bytes, answer_to: str, correlation: bytes, expiry_s: int) -> bool:
        session = connection.now()[1]
        try:
            return session is not None and session.send(
                next_topic, payload, request_properties(answer_to, correlation, expiry_s)
            )
        except ValueError:  # more than this broker takes
            return False

    def receive(message: Message) -> None:
        m = message
        worker.receive(m.payload, m.response_topic, m.correlation, m.t_rx_ns, m.expiry_s)

    served = [(one.model, one.model.bundle.manifest) for one in opened if one.model]
    networks = [one.parts for one in opened if one.parts]
    worker = Worker(served, answer, clock, config.worker, networks, pass_on)
    next_topic = request_topic(config.mqtt.root, config.worker.next)
    requests = f"$share/{service}/{request_topic(config.mqtt.root, service)}"
    connection.subscribe(requests, 0, receive)
    link = MqttLink(connection, clock)
    # Nothing that a worker says of itself has to outlive it.
    outbox = ending.enter_context(closing(SqliteOutbox(None, config.outbox, clock)))
    host = HostMetrics()

    def subscribed() -> bool:
        session = connection.now()[1]
        return session is not None and requests in session.subscribed

    parts = ServingParts(
        worker=worker,
        delivery=Delivery(outbox, link, clock, config.outbox, config.mqtt),
        link=link,
        leave=lambda: connection.unsubscribe(requests, _LEAVE_S),
        subscribed=subscribed,
        notifier=Notifier(os.environ, clock),
        cpu_s=host.cpu_seconds,
        rss_bytes=host.rss_bytes,
        clock=clock,
        log=log,
    )
    models = [one.id for one in opened]
    facts = ServingFacts(
        name, boot, topic, agent.__version__, service, models, config.telemetry.interval_s, release_id(release())
    )
    link.start()
    goes_on = {"next": config.worker.next} if config.worker.next else {}
    log.info("started", agent=name, version=agent.__version__, service=service, models=models, boot=boot, **goes_on)
    return Serving(parts, facts)


class _Opened(NamedTuple):
    """What a bundle answers with: a model, unless it is a segment, and parts, unless it cannot be split."""

    id: str
    model: OrtModel | None
    parts: Parts | None


def _opened(bundle: Bundle, log: Log) -> _Opened:
    """Open a bundle, run its golden vectors, and warm up what the first request should not wait for.

    That is what scores codes, and a segment from its beginning to its end. Where a whole network will be asked to go
    on is not known: the session of a part takes 8 ms to open, once.
    """
    if bundle.manifest.segment:
        parts = open_parts(bundle)
        first = parts.cuts[0]
        parts.run(first.name, parts.until, parts.values(first.name, bytes(first.bytes), 1))
        return _Opened(bundle.id, None, parts)
    model = OrtModel(bundle)
    model.verify(read_golden(bundle))
    if NOVELTY in bundle.manifest.files:
        model.classify(np.zeros((1, *bundle.manifest.code.shape), np.int8))
    try:
        return _Opened(bundle.id, model, open_parts(bundle))
    except ModelContractError as error:
        log.info("takes no tensors", model=bundle.id, reason=str(error))
        return _Opened(bundle.id, model, None)
