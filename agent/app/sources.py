"""The configured sources, serial and MQTT, as one: for `run` and `record`."""

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from agent.app.compose import agent_name, credentials_dir
from agent.config import Config
from agent.core.backoff import Backoff, BackoffSettings
from agent.core.decoders.formats import decoder
from agent.core.decoders.mqtt_payload import PayloadDecoder
from agent.core.settings import SerialSettings
from agent.errors import ConfigError
from agent.ports import Clock, Source
from agent.records import Decoded, Loss
from agent.runtime.inbox import Feeder, Inbox
from agent.runtime.queues import BoundedQueue, Overflow
from agent.runtime.reader import ReaderThread
from agent.runtime.supervisor import Reopening

if TYPE_CHECKING:
    from agent.adapters.mqtt import MqttSource

BACKOFF = BackoffSettings(first_s=0.5, longest_s=5.0, stable_s=5.0)
"""A sensor may stay away for months: to look for it costs 0.1 ms. Who plugs it in again waits for it."""

MQTT_QUEUE_S = 10.0
"""Seconds of every device's samples that may wait, as devices send them that were cut off: for 2,000 devices 32 MB."""

Tee = Callable[[str, bytes | None, int], None]
"""Is given a device's name, its bytes as they came (None where the connection broke), and when; in any thread."""


class Sources:
    """Everything that delivers samples, from `start` to `close`; `ports.Source` for the engine's thread."""

    def __init__(
        self, inbox: Inbox, serial: Mapping[str, Reopening], mqtt: "MqttSource | None", settings: Config
    ) -> None:
        self._inbox = inbox
        self._serial = serial
        self._mqtt = mqtt
        self.silence_s = settings.mqtt_in.silence_s
        """After how long without samples a device of MQTT is offline; serial ports tell by themselves."""
        self.idle_s = settings.mqtt_in.idle_s
        """After how long it is forgotten."""
        self.names = [f"serial {name}" for name in serial]
        """What is read, for people."""
        if mqtt is not None:
            self.names.append(f"mqtt {settings.mqtt_in.filter}")

    def start(self) -> None:
        """Begin to read."""
        self._inbox.start()

    def poll(self, timeout_s: float) -> list[Decoded] | None:
        """See `ports.Source.poll`."""
        return self._inbox.poll(timeout_s)

    def rest(self, due_ns: int) -> None:
        """See `Inbox.rest`."""
        self._inbox.rest(due_ns)

    def close(self) -> None:
        """See `ports.Source.close`; what has come can still be polled."""
        self._inbox.close()

    @property
    def dropped(self) -> int:
        """Samples that the full queue let go."""
        return self._inbox.dropped

    @property
    def refused(self) -> Counter[Loss]:
        """Messages of MQTT that were not even decoded, by reason."""
        if self._mqtt is None:
            return Counter()
        return self._mqtt.refused + Counter({Loss.UNEXPECTED: self._mqtt.failures})

    def problems(self) -> Mapping[str, str | None]:
        """Return, by serial device, why it delivers nothing; None for those that do."""
        return {name: source.problem for name, source in self._serial.items()}

    def broker_problem(self) -> str | None:
        """Return why the broker that devices send to is away; None if it is not, or there is none."""
        if self._mqtt is None:
            return None
        state = self._mqtt.state()
        return None if state.connected else state.problem or f"connecting to broker {state.broker}"

    def forget(self, device: str) -> None:
        """Make room for another device of MQTT."""
        if self._mqtt is not None:
            self._mqtt.forget(device)


def open_sources(
    config: Config,
    clock: Clock,
    tee: Tee | None = None,
    complain: Callable[[str], None] = lambda _: None,
    client: str | None = None,
) -> Sources:
    """Prepare what is configured; nothing is opened or connected before `Sources.start`.

    `complain`: told of what should never happen. `client`: the client id for MQTT, where the agent's own may be in
    use; it then listens beside the others of `mqtt_in.share`, and takes nothing from them.

    Raises:
        ConfigError: nothing is configured, or a format lacks a setting that it needs.
    """
    if not config.serial and not config.mqtt_in.filter:
        raise ConfigError(
            "no source is configured: set port in a section [serial.NAME], or filter in [mqtt_in], or give --port; "
            "`har-agent check --connect` suggests a section for what is plugged in"
        )
    room = config.agent.queue_s * len(config.serial)
    if config.mqtt_in.filter:
        room += MQTT_QUEUE_S * config.mqtt_in.max_devices
    _check_ports(config.serial)
    queue = BoundedQueue(round(room * 50), Overflow.DROP_OLDEST)
    serial = {name: _serial(name, settings, clock, tee) for name, settings in config.serial.items()}
    feeders: list[Feeder] = []
    inbox = Inbox(queue, feeders, clock, config.mqtt_in.linger_ms / 1e3)
    feeders += [
        ReaderThread(source, queue, clock, f"serial-{name}", inbox.rest_s, shared=True)
        for name, source in serial.items()
    ]
    mqtt = _mqtt(config, clock, queue.put, tee, complain, client) if config.mqtt_in.filter else None
    if mqtt is not None:
        feeders.append(mqtt)
    return Sources(inbox, serial, mqtt, config)


def _check_ports(serial: Mapping[str, SerialSettings]) -> None:
    """Refuse names that are none, and two sections for one port: the second could never open it.

    Raises:
        ConfigError: there are such.
    """
    first: dict[Path, str] = {}
    for name, settings in serial.items():
        if not name or len(name) > 64 or not name.isprintable():
            raise ConfigError(f"serial.{name!r}: a device's name is 1 to 64 printable characters")
        other = first.setdefault(Path(settings.port).resolve(), name)
        if settings.port and other != name:
            raise ConfigError(f"serial.{other} and serial.{name} name the same port: {settings.port}")


def _serial(name: str, settings: SerialSettings, clock: Clock, tee: Tee | None) -> Reopening:
    from agent.adapters.serial_port import SerialPort

    if not settings.port:
        raise ConfigError(f"serial.{name}.port is not set: name the port, best as /dev/serial/by-id/…")
    # One decoder for all that the port will ever be: its counters and numbers go on when it is plugged in again.
    decoding = decoder(settings.format, name, settings)
    raw = None if tee is None else partial(tee, name)

    def connect() -> Source:
        return SerialPort(settings, decoding, clock, raw)

    return Reopening(connect, Backoff(BACKOFF, random.random), clock, name)


def _mqtt(
    config: Config,
    clock: Clock,
    put: Callable[[Decoded], object],
    tee: Tee | None,
    complain: Callable[[str], None],
    client: str | None,
) -> "MqttSource":
    from agent.adapters.mqtt import Connection, MqttSource

    settings = config.mqtt_in if client is None else replace(config.mqtt_in, share="")
    if settings.broker and settings.broker not in config.broker:
        raise ConfigError(
            f"mqtt_in.broker is {settings.broker!r}, and there is no section [broker.{settings.broker}]; "
            f"there are {', '.join(config.broker)}"
        )
    brokers = {settings.broker: config.broker[settings.broker]} if settings.broker else config.brokers
    connection = Connection(
        client or f"{agent_name(config)}-in",
        brokers,
        config.mqtt,
        clock,
        credentials=credentials_dir(),
        complain=complain,
        thread="mqtt-in",
    )
    return MqttSource(
        connection,
        settings,
        lambda device: PayloadDecoder(device, settings, settings.max_payload),
        put,
        tee=tee,
        reserved=config.serial.keys(),
    )
