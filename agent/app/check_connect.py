"""Check by connecting: what sensors and brokers really do, held against what is configured.

Every port is opened and every broker connected to with the settings that the agent would use. One that runs is not
disturbed: its ports are left alone, and brokers see another client. What is suggested is never applied.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from uuid import uuid4

import numpy as np

from agent.adapters.clock import SystemClock
from agent.adapters.mqtt import Connection, Message, MqttLink, MqttSource
from agent.adapters.mqtt.requester import Requester
from agent.adapters.serial_port import SerialPort, list_ports
from agent.app.check import ERROR, OK, WARNING, Finding, Places, State, running_agent
from agent.app.compose import agent_name, credentials_dir
from agent.config import Config
from agent.core.decoders.detect import GOOD_SCORE, Suggestion, suggest
from agent.core.decoders.formats import decoder
from agent.core.decoders.mqtt_payload import PayloadDecoder
from agent.core.settings import BrokerSettings, InputSettings, SerialSettings
from agent.core.timeline import MAX_RATE_HZ, MIN_RATE_HZ
from agent.core.units import likelier_acc_unit
from agent.core.wire import encode, topic_level
from agent.errors import ConfigError, SourceUnavailable
from agent.ports import Clock, Decoder
from agent.records import Ack, BadFrame, Decoded, Float32Array, Loss, Outgoing, SampleBatch

BAUDS = (115200, 9600, 57600, 38400, 230400, 460800, 921600)
"""Speeds that are tried on a port that does not decode, the usual ones first."""

_RESTART_S = 2.0
"""Opening a port restarts many a board; this is what an Arduino's boot loader takes before its sketch says anything."""
_MOMENT_S = 1.0
_CERTAIN = 0.95
_MOST_RAW = 1 << 18
_RATE_SLACK = 0.05
_BAD_SHARE = 0.02
_BAD_AT_START = 2
"""Listening cuts the first line, and a board that was restarted by it says hello."""
_MOST_TURN = 35.0
"""rad/s: the widest range of usual gyroscopes is 2000 deg/s."""
_ECHO_S = 2.0
_POLL_S = 0.02
_PLACES = Places()

Tell = Callable[[str], None]
"""Is told what is being done, for people who wait."""


def check_connections(
    config: Config,
    seconds: float = 3.0,
    ports: Sequence[str] = (),
    found: Sequence[str] | None = None,
    tell: Tell = lambda _: None,
    places: Places = _PLACES,
    clock: Clock | None = None,
) -> Iterator[Finding]:
    """Open every port and connect to every broker, for about `seconds` each.

    `ports`: where somebody expects a sensor, configured or not. `found`: where there may be one; all that this board
    has if not given.
    """
    clock = clock or SystemClock()
    running = running_agent(config, places, clock)
    yield from _connect_ports(
        config, seconds, ports, _found_ports(places) if found is None else found, tell, clock, running
    )
    for name, broker in config.brokers.items():
        tell(f"connecting to broker {name} at {broker.host}:{broker.port}")
        yield from _connect_broker(name, broker, config, clock, running)
    if config.cloud.enabled:
        name = config.cloud_broker
        tell(f"connecting to broker {name} as who asks the cloud")
        yield _connect_cloud(name, config, clock, running)
    if config.split.asks:
        name = config.split_broker
        tell(f"connecting to broker {name} as who asks for the rest of the network")
        yield _connect_split(name, config, clock, running)
    if config.mqtt_in.filter and (not config.mqtt_in.broker or config.mqtt_in.broker in config.broker):
        tell(f"listening to {config.mqtt_in.filter} for {seconds:g} s")
        yield from _connect_devices(config, seconds, clock, running)


@dataclass
class Heard:
    """What came from one source, or from many, while it was listened to."""

    samples: int = 0
    bad: Counter[Loss] = field(default_factory=Counter)
    bad_frames: int = 0
    values: list[Float32Array] = field(default_factory=list)
    devices: set[str] = field(default_factory=set)
    raw: bytearray = field(default_factory=bytearray)
    raw_ns: tuple[int, int] | None = None
    _later: int = 0
    _received_ns: tuple[int, int] | None = None
    _device_ns: tuple[int, int] | None = None

    def take(self, items: Iterable[Decoded]) -> None:
        """Take what was decoded."""
        for item in items:
            if isinstance(item, BadFrame):
                self.bad[item.reason] += item.amount
                self.bad_frames += 1
            elif isinstance(item, SampleBatch):
                n, t_rx_ns = len(item.t_ns), item.t_rx_ns or 0
                self.samples += n
                self.values.append(item.values)
                self.devices.add(item.stream)
                # The first batch only says when counting begins.
                self._later += n if self._received_ns else 0
                self._received_ns = (self._received_ns[0] if self._received_ns else t_rx_ns, t_rx_ns)
                first = self._device_ns[0] if self._device_ns else int(item.t_ns[0])
                self._device_ns = (first, int(item.t_ns[-1]))

    def take_raw(self, data: bytes | None, t_rx_ns: int) -> None:
        """Take bytes as they came."""
        if data is not None and len(self.raw) < _MOST_RAW:
            self.raw += data
            self.raw_ns = (self.raw_ns[0] if self.raw_ns else t_rx_ns, t_rx_ns)

    def forget(self) -> None:
        """Begin anew with the bytes."""
        self.raw.clear()
        self.raw_ns = None

    @property
    def rate_hz(self) -> float | None:
        """Samples that came in a second; None if too few did."""
        return _rate(self._later, self._received_ns)

    @property
    def device_rate_hz(self) -> float | None:
        """Samples a second by their own times; None if too few came."""
        return _rate(self.samples - 1, self._device_ns)

    def matrix(self) -> Float32Array:
        """All samples, float32 (n, 6)."""
        return np.concatenate(self.values) if self.values else np.empty((0, 6), np.float32)


def _rate(n: int, span_ns: tuple[int, int] | None) -> float | None:
    return n / (span_ns[1] - span_ns[0]) * 1e9 if span_ns and n > 1 and span_ns[1] > span_ns[0] else None


def judge(area: str, heard: Heard, settings: InputSettings, timed: bool | None) -> list[Finding]:
    """Say how well samples, of which `heard` has some, fit what is configured.

    `timed`: whether the device sends a time with them; None if they are of many devices.
    """
    values = heard.matrix()
    rate_hz = heard.rate_hz
    come = f"{rate_hz:.1f} samples/s" if rate_hz is not None else f"{heard.samples} samples"
    devices = "" if timed is not None else f" of {len(heard.devices)} devices"
    size = np.linalg.norm(values[:, :3], axis=1)
    mean = values[:, :3].mean(axis=0)
    described = (
        f"{come}{devices}, {_bad(heard)}; acceleration {float(np.median(size)):.2f} g, "
        f"mean x {mean[0]:+.2f} y {mean[1]:+.2f} z {mean[2]:+.2f}"
    )
    if not values[:, 3:].any():
        described += "; no rotation at all: turn it by hand while this runs"
    found = [*_judge_values(area, values, settings)]
    if timed is not None and rate_hz is not None:
        found += _judge_rate(area, rate_hz, heard.device_rate_hz if timed else None, settings)
    if heard.bad_frames - _BAD_AT_START > _BAD_SHARE * (heard.bad_frames + len(heard.values)):
        fix = "compare format and baud with the sensor's; a long or thin cable also does this"
        found.append(Finding(area, WARNING, f"not everything can be read: {_bad(heard)}", fix))
    return [Finding(area, OK, described), *found]


def _judge_values(area: str, values: Float32Array, settings: InputSettings) -> Iterator[Finding]:
    magnitude = float(np.median(np.linalg.norm(values[:, :3], axis=1)))
    unit = likelier_acc_unit(values, settings.acc_unit)
    if unit is not None:
        text = f"acceleration is {magnitude:.2f} g with acc_unit {settings.acc_unit!r}: it sends {unit}"
        yield Finding(area, WARNING, text, f'acc_unit = "{unit}"')
    elif not 0.6 < magnitude < 1.6:
        text = f"acceleration is {magnitude:.3g} g, and a sensor at rest or on a person reads about 1 g"
        yield Finding(area, WARNING, text, "correct acc_unit and acc_scale")
    turning = float(np.percentile(np.linalg.norm(values[:, 3:], axis=1), 90))
    if turning > _MOST_TURN:
        text = f"rotation is {turning:.0f} rad/s, more than sensors measure"
        other = "deg/s" if settings.gyro_unit == "rad/s" else "rad/s"
        yield Finding(area, WARNING, text, f'gyro_unit = "{other}", or correct gyro_scale')


def _judge_rate(area: str, rate_hz: float, device_hz: float | None, settings: InputSettings) -> Iterator[Finding]:
    if not MIN_RATE_HZ * (1 - _RATE_SLACK) <= rate_hz <= MAX_RATE_HZ * (1 + _RATE_SLACK):
        text = f"{rate_hz:.3g} samples/s; {MIN_RATE_HZ:g} to {MAX_RATE_HZ:g} can be used"
        yield Finding(area, ERROR, text, "change how often the sensor sends")
    elif device_hz is not None and abs(device_hz / rate_hz - 1) > _RATE_SLACK:
        text = f"{rate_hz:.1f} samples/s came, and {device_hz:.4g} by their own times"
        yield Finding(area, WARNING, text, "correct time: it is the unit of the sensor's times")
    elif device_hz is None and settings.rate_hz is not None and abs(rate_hz / settings.rate_hz - 1) > _RATE_SLACK:
        text = f"{rate_hz:.1f} samples/s came, and rate_hz is {settings.rate_hz:g}"
        yield Finding(area, WARNING, text, f"rate_hz = {rate_hz:.0f}, if it is meant to send as often")


def _bad(heard: Heard) -> str:
    if not heard.bad:
        return "nothing unreadable"
    return ", ".join(f"{n} {reason}" for reason, n in heard.bad.most_common())


def _connect_ports(
    config: Config,
    seconds: float,
    named: Sequence[str],
    found: Sequence[str],
    tell: Tell,
    clock: Clock,
    running: int | None,
) -> Iterator[Finding]:
    """Look at the configured ports, at those `named` by whoever asks, and at those `found`."""
    configured = {os.path.realpath(s.port): name for name, s in config.serial.items() if s.port}
    for real, name in configured.items():
        area, settings = f"serial.{name}", config.serial[name]
        if running is not None:
            text = f"{settings.port} is read by the running agent (process {running}), and was left alone"
            yield Finding(area, OK, f"{text}; `har-agent status` tells how it does")
        elif os.path.exists(real):  # noqa: PTH110  one that is away has been told of
            tell(f"listening to {settings.port} for {seconds:g} s")
            yield from _examine(area, name, settings, seconds, tell, clock)
    others = {os.path.realpath(path): path for path in (*found, *named)}
    new = [path for real, path in others.items() if real not in configured]
    names = (n for k in range(1, 1000) if (n := "sensor" if k == 1 else f"sensor-{k}") not in config.serial)
    for path, name in zip(new, names, strict=False):
        yield from _guess(f"port.{path}", path, name, tell, clock, required=path in named)


def _found_ports(places: Places) -> list[str]:
    """The ports of this board, less those on which its kernel talks to people."""
    try:
        consoles = (places.sysfs / "class/tty/console/active").read_text("ascii", "replace").split()
    except OSError:
        consoles = []
    return [info.path for info in list_ports() if os.path.basename(info.path) not in consoles]  # noqa: PTH119


def _examine(
    area: str, name: str, settings: SerialSettings, seconds: float, tell: Tell, clock: Clock
) -> Iterator[Finding]:
    """Listen to a configured port as the agent would; suggest other settings where those do not fit."""
    try:
        decoding: Decoder | None = decoder(settings.format, name, settings)
    except ConfigError:
        # That has been told; what fits can be told now.
        decoding = None
    if decoding is not None:
        heard = Heard()
        try:
            with closing(_open(settings, decoding, heard, clock)) as port:
                _listen(port, heard, seconds, clock)
        except SourceUnavailable as e:
            yield Finding(area, ERROR, str(e), "free the port, or look at cable and supply")
            return
        if not heard.raw:
            yield _silent(area, settings.port)
            return
        if heard.samples:
            found = judge(area, heard, settings, _is_timed(settings))
            yield from found
            suggestion = _suggestion(heard, settings.port, settings.baud, name)
            if any(f.state != OK for f in found) and suggestion is not None and suggestion.score >= GOOD_SCORE:
                yield _suggested(area, suggestion)
            return
        text = f"bytes come on {settings.port}, and none can be read as {settings.format}: {_bad(heard)}"
        yield Finding(area, ERROR, text, "compare format and baud with the sensor's")
    yield from _guess(area, settings.port, name, tell, clock, first=settings.baud, required=True)


def _is_timed(settings: SerialSettings) -> bool:
    """Whether the agent takes times from the sensor, instead of counting with `rate_hz`."""
    if settings.format == "json":
        return bool(settings.keys.split(",")[0].strip())
    return settings.format == "har1" or settings.time != "none"


def _open(settings: SerialSettings, decoding: Decoder, heard: Heard, clock: Clock) -> SerialPort:
    # Silence is for `_listen` to see.
    return SerialPort(replace(settings, silence_s=3600), decoding, clock, heard.take_raw)


def _listen(port: SerialPort, heard: Heard, seconds: float, clock: Clock, patience_s: float = _RESTART_S) -> None:
    """Take what comes in `seconds`, counted from the first byte, which may be `patience_s` late.

    Raises:
        SourceUnavailable: the port went away.
    """
    end_ns = clock.monotonic_ns() + round((seconds + patience_s) * 1e9)
    began = False
    while (left_ns := end_ns - clock.monotonic_ns()) > 0:
        heard.take(port.poll(left_ns / 1e9) or ())
        if heard.raw and not began:
            began, end_ns = True, clock.monotonic_ns() + round(seconds * 1e9)


def _silent(area: str, port: str) -> Finding:
    fix = "is the sensor on, does it send by itself, are TX and RX the right way round?"
    return Finding(area, ERROR, f"nothing comes on {port}", fix)


class _Deaf:
    """`ports.Decoder` that decodes nothing."""

    def feed(self, data: bytes, t_rx_ns: int) -> list[Decoded]:  # noqa: ARG002
        return []

    def reset(self) -> list[Decoded]:
        return []


def _guess(
    area: str, port: str, name: str, tell: Tell, clock: Clock, *, first: int = BAUDS[0], required: bool = False
) -> Iterator[Finding]:
    """Try the usual speeds on a port, and suggest a section. `required`: somebody expects a sensor there."""
    wrong: State = ERROR if required else WARNING
    tell(f"trying speeds and formats on {port}")
    try:
        came, best = _best_guess(port, name, first, clock)
    except SourceUnavailable as e:
        yield Finding(area, wrong, str(e), "free the port, or let this user open it")
        return
    if best is not None and best.score >= GOOD_SCORE:
        yield _suggested(area, best)
    elif came:
        text = f"{came} bytes came on {port}, and no known format fits at any usual speed"
        yield Finding(area, wrong, text, "have it print ax,ay,az,gx,gy,gz a line, or set its speed and format by hand")
    elif required:
        yield _silent(area, port)
    else:
        yield Finding(area, OK, f"not configured, and nothing comes from {port}")


def _best_guess(port: str, name: str, first: int, clock: Clock) -> tuple[int, Suggestion | None]:
    """Return how many bytes came in all, and the guess that fits best.

    Raises:
        SourceUnavailable: the port cannot be opened, or went away.
    """
    best: Suggestion | None = None
    came, patience_s = 0, _RESTART_S
    heard = Heard()
    with closing(_open(SerialSettings(port=port, baud=first), _Deaf(), heard, clock)) as opened:
        for baud in dict.fromkeys((first, *BAUDS)):
            heard.forget()
            try:
                opened.set_baud(baud)
            except SourceUnavailable:
                continue
            _listen(opened, heard, _MOMENT_S, clock, patience_s)
            came, patience_s = came + len(heard.raw), 0.0
            guess = _suggestion(heard, port, baud, name)
            if guess is not None and (best is None or guess.score > best.score):
                best = guess
            # A wrong speed gives wrong bytes, but as a rule some: what is silent at one is silent at all.
            if not heard.raw or (best is not None and best.score > _CERTAIN):
                break
    return came, best


def _suggested(area: str, suggestion: Suggestion) -> Finding:
    notes = "".join(f"; {note}" for note in suggestion.notes)
    text = f"it sends what looks like {suggestion.format} at {suggestion.settings['baud']} baud{notes}"
    return Finding(area, OK, text, "a section that fits:", suggestion.text)


def _suggestion(heard: Heard, port: str, baud: int, name: str) -> Suggestion | None:
    if heard.raw_ns is None:
        return None
    seconds = (heard.raw_ns[1] - heard.raw_ns[0]) / 1e9
    return suggest(bytes(heard.raw), seconds=seconds, port=port, baud=baud, name=name)


class _Check:
    """One connection to one broker, with what it heard of its own messages."""

    def __init__(self, client_id: str, name: str, broker: BrokerSettings, config: Config, clock: Clock) -> None:
        self.connection = Connection(
            client_id, {name: broker}, config.mqtt, clock, credentials=credentials_dir(), thread="mqtt-check"
        )
        self.link = MqttLink(self.connection, clock)
        self.echoes: dict[bytes, int] = {}
        self._clock = clock
        self._patience_s = config.mqtt.connect_timeout_s

    def hear(self, message: Message) -> None:
        """Take what comes back."""
        self.echoes[message.payload] = message.t_rx_ns

    def wait(self, until: Callable[[], bool], seconds: float | None = None) -> bool:
        """Look until something is so; False if it was not in time."""
        end_ns = self._clock.monotonic_ns() + round((self._patience_s if seconds is None else seconds) * 1e9)
        while not until():
            if self._clock.monotonic_ns() >= end_ns:
                return False
            self._clock.sleep(_POLL_S)
        return True

    def subscribed(self, filters: set[str]) -> bool:
        """Whether all are granted or refused, or there is no connection to hope for."""
        state, session = self.connection.now()
        if session is None:
            return state.problem is not None
        return filters <= session.subscribed | session.denied.keys()


def _client_id(config: Config, running: int | None) -> str:
    """The agent's own, which access rules may depend on; another one while that is in use."""
    return agent_name(config) if running is None else f"{agent_name(config)}-check-{uuid4().hex[:4]}"


def _connect_broker(
    name: str, broker: BrokerSettings, config: Config, clock: Clock, running: int | None
) -> Iterator[Finding]:
    """Connect as the agent does, and send a message to and fro."""
    area = f"broker.{name}"
    topic = f"{config.mqtt.root}/{topic_level(agent_name(config))}"
    own, commands = f"{topic}/check", f"{topic}/command/+"
    filters = {own, commands} if config.commands.enabled else {own}
    check = _Check(_client_id(config, running), name, broker, config, clock)
    for topic_filter in sorted(filters):
        check.connection.subscribe(topic_filter, 1, check.hear if topic_filter == own else lambda _: None)
    check.link.start()
    try:
        check.wait(lambda: check.subscribed(filters))
        check.link.state()
        state, session = check.connection.now()
        if session is None:
            problem = state.problem or f"{broker.host}:{broker.port} did not answer"
            yield Finding(
                area, ERROR, problem, "correct that, or the section; predictions wait in the outbox meanwhile"
            )
            return
        spoken = session.tls_version
        denied = dict(session.denied)
        payload = encode({"v": 1, "check": uuid4().hex})
        sent_ns = clock.monotonic_ns()
        token = check.link.offer(Outgoing(own, payload))
        acks: list[Ack] = []

        def answered() -> bool:
            acks.extend(a for a in check.link.acknowledged() if a.token == token)
            return bool(acks)

        if token is None or not check.wait(answered):
            text = state.problem or "it took a message and did not confirm it"
            yield Finding(area, ERROR, text, "look at the broker's log")
            return
        if acks[0].refusal is not None:
            yield Finding(area, ERROR, acks[0].refusal, f"allow {broker.user or 'it'} to write {topic}/# there")
            return
        ack_ms = (acks[0].t_ns - sent_ns) / 1e6
        echoed = own not in denied and check.wait(lambda: payload in check.echoes, _ECHO_S)
        how = f"connected with {spoken}" if spoken else "connected without TLS"
        text = f"{how}; a message was confirmed in {ack_ms:.1f} ms"
        if echoed:
            yield Finding(area, OK, f"{text}, and back in {(check.echoes[payload] - sent_ns) / 1e6:.1f} ms")
        elif broker.protocol == "5":
            yield Finding(area, OK, f"{text}; it did not come back: this client may not read {own}")
        else:
            # MQTT 3.1.1 cannot say no to a message.
            text += "; it did not come back: this client may not read it, or may not write it"
            yield Finding(
                area, WARNING, text, f"allow {broker.user or 'it'} to write {topic}/# there, if nothing comes"
            )
        if commands in denied:
            fix = f"allow {broker.user or 'it'} to read {commands}, or set enabled = false in [commands]"
            yield Finding(area, WARNING, denied[commands], fix)
    finally:
        check.link.close()


def _connect_cloud(name: str, config: Config, clock: Clock, running: int | None) -> Finding:
    """Connect to where windows in doubt are asked about, as the agent does; nothing is asked."""
    agent, client_id, broker = agent_name(config), f"{_client_id(config, running)}-cloud", config.broker[name]
    cloud = Requester(
        agent, broker, config.mqtt, config.cloud, clock, credentials=credentials_dir(), client_id=client_id
    )
    problem = _asks(cloud, broker, config, clock)
    if problem is None:
        return Finding("cloud", OK, f"connected to broker {name}; nothing was asked")
    fix = 'correct that, or set when = "off" in [cloud]; windows in doubt are decided here meanwhile'
    return Finding("cloud", WARNING, f"broker {name}, through which the cloud is asked: {problem}", fix)


def _connect_split(name: str, config: Config, clock: Clock, running: int | None) -> Finding:
    """Connect to where the rest of the network is asked for, as the agent does; nothing is asked."""
    from agent.app.split import open_requester

    asking = open_requester(config, agent_name(config), clock, client_id=f"{_client_id(config, running)}-split")
    problem = _asks(asking, config.broker[name], config, clock)
    if problem is None:
        return Finding("split", OK, f"connected to broker {name}; nothing was asked")
    fix = 'correct that, or set cut = "off" in [split]; all of the network runs here meanwhile'
    return Finding(
        "split", WARNING, f"broker {name}, through which the rest of the network is asked for: {problem}", fix
    )


def _asks(asking: Requester, broker: BrokerSettings, config: Config, clock: Clock) -> str | None:
    """Return why nothing could be asked, None if it could."""
    with closing(asking):
        asking.start()
        end_ns = clock.monotonic_ns() + round(config.mqtt.connect_timeout_s * 1e9)
        while not asking.connected and asking.problem is None and clock.monotonic_ns() < end_ns:
            clock.sleep(_POLL_S)
        return None if asking.connected else asking.problem or f"{broker.host}:{broker.port} did not answer"


def _connect_devices(config: Config, seconds: float, clock: Clock, running: int | None) -> Iterator[Finding]:
    """Listen to the devices of `[mqtt_in]`, beside an agent that does."""
    area, settings, heard = "mqtt_in", config.mqtt_in, Heard()
    brokers = {settings.broker: config.broker[settings.broker]} if settings.broker else config.brokers
    client_id = f"{agent_name(config)}-in" if running is None else f"{_client_id(config, running)}-in"
    connection = Connection(
        client_id, brokers, config.mqtt, clock, credentials=credentials_dir(), thread="mqtt-check-in"
    )
    # Not in the group of a shared subscription: that would take messages from those who work.
    source = MqttSource(
        connection,
        replace(settings, share=""),
        lambda device: PayloadDecoder(device, settings, settings.max_payload),
        lambda item: heard.take([item]),
    )
    topic_filter = settings.filter.replace("{device}", "+")
    source.start()
    try:
        end_ns = clock.monotonic_ns() + round(config.mqtt.connect_timeout_s * 1e9)
        while clock.monotonic_ns() < end_ns:
            state, session = connection.now()
            if session is not None and topic_filter in session.subscribed | session.denied.keys():
                break
            if session is None and state.problem and state.broker == list(brokers)[-1]:
                break
            clock.sleep(_POLL_S)
        state, session = connection.now()
        if session is None or topic_filter in session.denied:
            text = state.problem or "the broker did not confirm the subscription"
            yield Finding(area, ERROR, text, f"allow this client to read {topic_filter} there")
            return
        clock.sleep(seconds)
    finally:
        source.close()
    if heard.samples:
        yield from judge(area, heard, settings, None)
    elif source.messages:
        retained = source.refused[Loss.RETAINED]
        text = f"{source.messages} messages came in {seconds:g} s and no sample: {_bad(heard)}, {retained} retained"
        yield Finding(area, ERROR, text, "compare payloads and keys with docs/guide.md; retained messages are ignored")
    else:
        fix = "do devices send to that topic, and to this broker?"
        yield Finding(area, WARNING, f"nothing came on {settings.filter} in {seconds:g} s", fix)
