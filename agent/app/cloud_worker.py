"""The cloud worker: answers what boards ask of a bigger model, as one of any number behind a broker."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

import agent
from agent.adapters.clock import SystemClock
from agent.adapters.host import HostMetrics
from agent.adapters.mqtt import Connection, Message, MqttLink, reply_properties
from agent.adapters.outbox import SqliteOutbox
from agent.adapters.systemd import Notifier
from agent.app.compose import agent_name, credentials_dir, load_config, open_model
from agent.app.version import release, release_id
from agent.config import Config
from agent.core.cloud_wire import MAX_REQUEST, request_topic
from agent.core.manifest import NOVELTY, Manifest
from agent.core.wire import topic_level
from agent.errors import ConfigError
from agent.ports import Clock, Log
from agent.records import Outgoing
from agent.runtime.delivery import Delivery
from agent.runtime.live import OFFLINE
from agent.runtime.serving import Serving, ServingFacts, ServingParts
from agent.runtime.worker import CodeModel, Worker

_LEAVE_S = 2.0
"""How long a broker may take to confirm that a worker has left."""
_LONGEST = 2 * MAX_REQUEST
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
    served = [_opened(bundle) for bundle in bundles]
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

    def receive(message: Message) -> None:
        m = message
        worker.receive(m.payload, m.response_topic, m.correlation, m.t_rx_ns, m.expiry_s)

    worker = Worker(served, answer, clock, config.worker)
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
    models = [model.id for model, _ in served]
    facts = ServingFacts(
        name, boot, topic, agent.__version__, service, models, config.telemetry.interval_s, release_id(release())
    )
    link.start()
    log.info("started", agent=name, version=agent.__version__, service=service, models=models, boot=boot)
    return Serving(parts, facts)


def _opened(name: str) -> tuple[CodeModel, Manifest]:
    """Verify and open a bundle, and what scores codes with it, which the first request should not wait for."""
    model = open_model(name)
    manifest = model.bundle.manifest
    if NOVELTY in manifest.files:
        model.classify(np.zeros((1, *manifest.code.shape), np.int8))
    return model, manifest
