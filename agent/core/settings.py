"""What can be configured, a dataclass for each section of the configuration; each refuses values out of its range.

They stand below config, runtime and adapters because all three use them. Without repr, which nobody needs, and
which takes a fifth of the time that making the classes takes, at every start of every command.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.core.timeline import MAX_RATE_HZ, MIN_RATE_HZ
from agent.core.units import scale

if TYPE_CHECKING:
    from urllib.parse import SplitResult

SERIAL_FORMATS = ("csv", "json", "witmotion", "har1")
TIME_UNITS = ("none", "s", "ms", "us")
DURABILITIES = ("power-loss", "process", "memory")
DOUBTS = ("low-confidence", "unknown", "overload")
PAYLOADS = ("code", "window")
SPLIT_PRIVACIES = ("tensor", "window")
OBJECTIVES = ("latency", "energy", "accuracy")
_AXIS = re.compile(r"[+-]?[xyz]")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")


def _within(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ValueError(f"{name} must be between {least:g} and {most:g}, not {value:g}")


def _service(value: str, name: str = "service") -> None:
    if not 1 <= len(value) <= 64 or any(c in "+#/" or not c.isprintable() for c in value):
        raise ValueError(f"{name} must be 1 to 64 printable characters without + # /, not {value!r}")


@dataclass(frozen=True, repr=False)
class AgentSettings:
    """This board.

    `name`: how it calls itself in topics and as the client id; its host name if not set. `state_dir`: what must
    outlive a restart, `$STATE_DIRECTORY` or `/var/lib/har-agent` if not set. `runtime_dir`: what need not,
    `$RUNTIME_DIRECTORY` or `/run/har-agent` if not set. `queue_s`: seconds of samples of each serial port that may
    wait for the pipeline.
    """

    name: str = ""
    state_dir: str = ""
    runtime_dir: str = ""
    queue_s: float = 60.0

    def __post_init__(self) -> None:
        """Refuse a name that is no level of a topic, and a queue that holds nothing."""
        if any(c in "+#/\0" or not c.isprintable() for c in self.name) or len(self.name) > 64:
            raise ValueError(f"name must be at most 64 printable characters without + # /, not {self.name!r}")
        _within("queue_s", self.queue_s, 1, 3600)


@dataclass(frozen=True, repr=False)
class InputSettings:
    """How a sensor's numbers become samples.

    `rate_hz`: samples a second, needed where the sensor sends no time. `time`: unit of the time column of csv, `none`
    if it has none; times may start anywhere and wrap at 32 bits. `acc_unit` g or m/s2, `gyro_unit` rad/s or deg/s.
    `acc_scale`, `gyro_scale`: what the numbers are multiplied with before that, for raw counts. `axes`: which of the
    sensor's axes point along x, y and z of the model, such as "-y x z"; acceleration and rotation are turned alike.
    `keys`: names of time (empty if none), ax, ay, az, gx, gy, gz in json.
    """

    rate_hz: float | None = None
    time: str = "none"
    acc_unit: str = "g"
    gyro_unit: str = "rad/s"
    acc_scale: float = 1.0
    gyro_scale: float = 1.0
    axes: str = "x y z"
    keys: str = "t,ax,ay,az,gx,gy,gz"

    def __post_init__(self) -> None:
        """Refuse what cannot describe a sensor."""
        if self.rate_hz is not None:
            _within("rate_hz", self.rate_hz, MIN_RATE_HZ, MAX_RATE_HZ)
        _one_of("time", self.time, TIME_UNITS)
        scale(self.acc_unit, self.gyro_unit)
        axes = self.axes.split()
        if not all(map(_AXIS.fullmatch, axes)) or sorted(a[-1] for a in axes) != ["x", "y", "z"]:
            raise ValueError(
                f'axes must name x, y and z once each, with or without a sign, such as "-y x z": {self.axes!r}'
            )
        for name in ("acc_scale", "gyro_scale"):
            _within(name, abs(getattr(self, name)), 1e-9, 1e9)
        if len(self.keys.split(",")) != 7:
            raise ValueError(f"keys must be seven names, separated by commas, not {self.keys!r}")


@dataclass(frozen=True, repr=False)
class SerialSettings(InputSettings):
    """A sensor on a serial port; the section's name is the device's, as in `[serial.waist-07]`.

    `port`: best as `/dev/serial/by-id/…`, which does not change with the order of plugging. `format`: csv, json,
    witmotion or har1. `silence_s`: how long no data may come before the port is opened again and health says so.
    """

    port: str = ""
    baud: int = 115200
    format: str = "csv"
    silence_s: float = 5.0

    def __post_init__(self) -> None:
        """Refuse what cannot describe a port."""
        super().__post_init__()
        _one_of("format", self.format, SERIAL_FORMATS)
        _within("baud", self.baud, 300, 4_000_000)
        _within("silence_s", self.silence_s, 0.5, 3600)


@dataclass(frozen=True, repr=False)
class MqttInSettings(InputSettings):
    """Samples from MQTT; off while `filter` is empty.

    `filter`: with one `{device}` level, such as `imu/{device}/samples`. `broker`: name of a `[broker.…]`, the first
    one if empty. `share`: name of the group of a shared subscription; only with a broker that keeps a device with one
    member of it, which Mosquitto does not: streams would be torn apart.
    `max_devices`: devices beyond it are refused and counted. `idle_s`: silence after which a device is forgotten.
    `silence_s`: silence after which its availability is offline. `linger_ms`: how long to collect messages of many
    devices into one model call.
    """

    filter: str = ""
    broker: str = ""
    share: str = ""
    qos: int = 0
    max_devices: int = 2000
    max_payload: int = 65536
    silence_s: float = 10.0
    idle_s: float = 600.0
    linger_ms: float = 20.0

    def __post_init__(self) -> None:
        """Refuse a filter that does not name the device, and numbers out of range."""
        super().__post_init__()
        levels = self.filter.split("/")
        if self.filter and (levels.count("{device}") != 1 or "#" in self.filter):
            raise ValueError(
                f"filter must have one {{device}} level and no #, such as imu/{{device}}/samples: {self.filter!r}"
            )
        _within("qos", self.qos, 0, 1)
        _within("max_devices", self.max_devices, 1, 100_000)
        _within("max_payload", self.max_payload, 64, 1 << 24)
        _within("silence_s", self.silence_s, 0.5, 3600)
        _within("idle_s", self.idle_s, 1, 1e6)
        _within("linger_ms", self.linger_ms, 0, 1000)
        if any("+" in level and level != "+" for level in levels):
            raise ValueError(f"filter: + stands for a whole level: {self.filter!r}")
        if any(c in "+#/\0" for c in self.share):
            raise ValueError(f"share must be a name without + # /, not {self.share!r}")


@dataclass(frozen=True, repr=False)
class BrokerSettings:
    """A broker, as in `[broker.local]`; the first one is used while it can be, the next ones in order otherwise.

    `url`: `mqtt://host:1883` or, with TLS, `mqtts://host:8883`. `password_file`, `key_file` and the others: paths;
    a bare name is looked for in `$CREDENTIALS_DIRECTORY` first. `ca_file`: what signs the broker's certificate, the
    system's own if not set. `protocol`: 5 or 3.1.1.
    """

    url: str = "mqtt://localhost:1883"
    user: str = ""
    password_file: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    protocol: str = "5"

    def __post_init__(self) -> None:
        """Refuse an address that is none, and half of a pair."""
        _one_of("protocol", self.protocol, ("5", "3.1.1"))
        if self.url == BrokerSettings.url:
            return
        parts = self._parts
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or parts.path.strip("/") or parts.query:
            raise ValueError(f"url must be mqtt://host:port or mqtts://host:port, not {self.url!r}")
        if parts.username or parts.password:
            raise ValueError("url must not hold user and password: set user and password_file")
        if parts.port == 0:
            raise ValueError("url: port 0 is none")

    @property
    def _parts(self) -> "SplitResult":
        # Only whoever has brokers pays for it, at a start.
        from urllib.parse import urlsplit

        return urlsplit(self.url)

    @property
    def host(self) -> str:
        """The host's name or address."""
        return self._parts.hostname or ""

    @property
    def port(self) -> int:
        """The port, that of the scheme if the address has none."""
        return self._parts.port or (8883 if self.tls else 1883)

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self._parts.scheme == "mqtts"


@dataclass(frozen=True, repr=False)
class MqttSettings:
    """The link to the brokers.

    `root`: first level of every topic. `keepalive_s`: seconds between signs of life. `inflight`: messages that may
    wait for an acknowledgement. `ack_timeout_s`: silence on those after which the connection is given up.
    `connect_timeout_s`: for a connection and its greeting. `retry_first_s`, `retry_longest_s`: waits between tries;
    the longest one also between tries of what the broker refuses.
    `stable_s`: how long a connection must hold before waits start from the first again; also how often the first
    broker is tried again while a later one is in use.
    """

    root: str = "har"
    keepalive_s: int = 30
    inflight: int = 1000
    ack_timeout_s: float = 20.0
    connect_timeout_s: float = 10.0
    retry_first_s: float = 1.0
    retry_longest_s: float = 60.0
    stable_s: float = 60.0

    def __post_init__(self) -> None:
        """Refuse a root that is no topic, and numbers out of range."""
        if not self.root or any(c in "+#\0" for c in self.root) or self.root.strip("/") != self.root:
            raise ValueError(f"root must be a topic without + # and without / at its ends, not {self.root!r}")
        _within("keepalive_s", self.keepalive_s, 1, 3600)
        _within("inflight", self.inflight, 1, 10_000)
        for name in ("ack_timeout_s", "connect_timeout_s", "retry_first_s", "retry_longest_s", "stable_s"):
            _within(name, getattr(self, name), 0.01, 86_400)


@dataclass(frozen=True, repr=False)
class OutboxSettings:
    """Predictions that wait for the broker.

    `durability`: `process` survives the end of the agent, kill -9 included; `power-loss` waits for the disk at every
    commit; `memory` survives nothing and writes nothing. `max_mb`: beyond it the oldest are dropped and counted.
    `history_hz`: messages a second that are sent of what was stored while the broker was away.
    """

    durability: str = "process"
    max_mb: float = 64.0
    history_hz: float = 50.0

    def __post_init__(self) -> None:
        """Refuse an unknown durability and numbers out of range."""
        _one_of("durability", self.durability, DURABILITIES)
        _within("max_mb", self.max_mb, 0.1, 100_000)
        _within("history_hz", self.history_hz, 0.1, 100_000)


@dataclass(frozen=True, repr=False)
class TelemetrySettings:
    """What the agent tells about itself.

    `interval_s`: seconds between telemetry messages. `prometheus_port`: a text endpoint on loopback, off at 0.
    `power`: `auto`, or one source of it: hwmon, pmic, battery, rapl, model, none. `idle_watts`, `busy_watts`: what the
    board draws with its cores idle and all busy, for the model; a table of boards is used if not set.
    """

    interval_s: float = 60.0
    prometheus_port: int = 0
    power: str = "auto"
    idle_watts: float | None = None
    busy_watts: float | None = None

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        _within("interval_s", self.interval_s, 1, 86_400)
        _within("prometheus_port", self.prometheus_port, 0, 65_535)
        _one_of("power", self.power, ("auto", "hwmon", "pmic", "battery", "rapl", "model", "none"))


@dataclass(frozen=True, repr=False)
class HomeAssistantSettings:
    """Home Assistant device discovery. `prefix`: its discovery topic. `max_devices`: sensors that are shown there."""

    enabled: bool = False
    prefix: str = "homeassistant"
    max_devices: int = 32

    def __post_init__(self) -> None:
        """Refuse a prefix that is no topic."""
        if not self.prefix or any(c in "+#\0" for c in self.prefix) or self.prefix.strip("/") != self.prefix:
            raise ValueError(f"prefix must be a topic without + and #, and no / at its ends, not {self.prefix!r}")
        _within("max_devices", self.max_devices, 0, 1000)


@dataclass(frozen=True, repr=False)
class CommandSettings:
    """Commands over MQTT, `<root>/<agent>/command/<name>`."""

    enabled: bool = True


@dataclass(frozen=True, repr=False)
class ModelSettings:
    """The model.

    `bundle`: a bundle's folder, or the name of one that ships with the agent; it runs while none is installed in a
    slot. `allow_unsigned`: install bundles without a signature of a trusted key. `canary_windows`: windows that a
    newly installed bundle must score beside the old one before it takes over. `max_failures`: turns in a row in which
    a model may fail before it is rolled back. `novelty_threshold`: over the bundle's own.
    """

    bundle: str = "har-base"
    allow_unsigned: bool = False
    canary_windows: int = 20
    max_failures: int = 3
    novelty_threshold: float | None = None

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        _within("canary_windows", self.canary_windows, 0, 100_000)
        _within("max_failures", self.max_failures, 1, 1000)
        if self.novelty_threshold is not None:
            _within("novelty_threshold", self.novelty_threshold, 1e-6, 1e6)


@dataclass(frozen=True, repr=False)
class WindowSettings:
    """`hop`: samples from one window to the next at the model's rate; the bundle's own where it is not set."""

    hop: int | None = None

    def __post_init__(self) -> None:
        """Refuse a hop that moves nothing."""
        if self.hop is not None and self.hop < 1:
            raise ValueError(f"hop must be 1 or more samples, not {self.hop}")


@dataclass(frozen=True, repr=False)
class CloudSettings:
    """A bigger model behind a broker, which is asked and never depended on.

    `when`: off, always, or one or more of low-confidence, unknown and overload, with spaces between them.
    `confidence`: below it a window counts as low-confidence. `overload_ms`: samples that waited longer for their turn
    count as overload. `broker`: name of a `[broker.…]`, the first one if empty, over a connection of its own; unless it
    is the first one, nothing but requests goes there.
    `service`: which workers are asked. `deadline_ms`: after which the local result is published.
    `payload`: what goes up, code or window. `windows`: of how many windows, the last one that in question; codes are
    always as many as the board's own context sees. `privacy`: the most that may leave the board, code or window.
    `requests_per_day`, `mb_per_day`: budgets of 24 hours; what MQTT and TLS add is not counted.
    `per_device_per_minute`: requests of one device on average; as many may come at once.
    `failures`: that many in a row, and nothing is asked for `retry_s`, then once to see; that time doubles, up to 16
    times itself, with every such try that fails. `revise`: publish late answers as revisions.
    """

    when: str = "off"
    confidence: float = 0.8
    overload_ms: float = 500.0
    broker: str = ""
    service: str = "har-cloud"
    deadline_ms: float = 300.0
    payload: str = "code"
    windows: int = 1
    privacy: str = "code"
    requests_per_day: int = 20_000
    mb_per_day: float = 10.0
    per_device_per_minute: int = 30
    failures: int = 5
    retry_s: float = 30.0
    revise: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be meant, and numbers out of range."""
        if not (self.when in ("off", "always") or (self.when.split() and set(self.when.split()) <= set(DOUBTS))):
            raise ValueError(
                f"when must be off, always, or one or more of {', '.join(DOUBTS)} with spaces between them, "
                f"not {self.when!r}"
            )
        _within("confidence", self.confidence, 0, 1)
        _within("overload_ms", self.overload_ms, 1, 1e6)
        _service(self.service)
        _within("deadline_ms", self.deadline_ms, 10, 10_000)
        _one_of("payload", self.payload, PAYLOADS)
        _within("windows", self.windows, 1, 16)
        _one_of("privacy", self.privacy, PAYLOADS)
        _within("requests_per_day", self.requests_per_day, 1, 100_000_000)
        _within("mb_per_day", self.mb_per_day, 0.1, 1e6)
        _within("per_device_per_minute", self.per_device_per_minute, 1, 60_000)
        _within("failures", self.failures, 1, 1000)
        _within("retry_s", self.retry_s, 1, 86_400)

    @property
    def enabled(self) -> bool:
        """Whether anything is ever asked."""
        return self.when != "off"


@dataclass(frozen=True, repr=False)
class SplitSettings:
    """The rest of the board's own network, which others may run behind a broker, and which is never depended on.

    `cut`: the tensor that is sent; off, window to send what the network takes, or auto for whichever is best on the
    link as it is. `until`: the tensor that whoever is asked passes on to the next one; as far as that one can go if
    empty. `exit`: the head that answers, the network's end if empty. Auto finds both by itself.
    `broker`: name of a `[broker.…]`, the first one if empty, over a connection of its own; unless it is the first one,
    nothing but requests goes there. `service`: which workers are asked. `deadline_ms`: after which the board has run
    the rest itself. `privacy`: what may leave the board, tensor or window.
    `profiles`: for auto, files of `har-agent profile`, this board's and then the worker's, with a space between them.
    `objective`: for auto, latency, energy (the board's) or accuracy.
    `early`: windows that an exit on this board is sure of stop there. `mb_per_day`: a budget of 24 hours; what MQTT and
    TLS add is not counted.
    `failures`: that many in a row, and nothing is asked for `retry_s`, then once to see; that time doubles, up to 16
    times itself, with every such try that fails. As often auto looks whether the link has become better.
    """

    cut: str = "off"
    until: str = ""
    exit: str = ""
    broker: str = ""
    service: str = "har-split"
    deadline_ms: float = 300.0
    privacy: str = "tensor"
    profiles: str = ""
    objective: str = "latency"
    early: bool = False
    mb_per_day: float = 100.0
    failures: int = 5
    retry_s: float = 30.0

    def __post_init__(self) -> None:
        """Refuse what cannot be meant, and numbers out of range."""
        for name in ("cut", "until", "exit"):
            value = getattr(self, name)
            if len(value.encode()) > 255 or not value.isprintable() or (name == "cut" and not value):
                raise ValueError(f"{name} must be the name of a tensor or of an exit, not {value!r}")
        _service(self.service)
        _within("deadline_ms", self.deadline_ms, 10, 10_000)
        _one_of("privacy", self.privacy, SPLIT_PRIVACIES)
        if len(self.profiles.split()) not in (0, 2):
            raise ValueError(f"profiles must be two files, this board's and the worker's, not {self.profiles!r}")
        _one_of("objective", self.objective, OBJECTIVES)
        _within("mb_per_day", self.mb_per_day, 0.1, 1e6)
        _within("failures", self.failures, 1, 1000)
        _within("retry_s", self.retry_s, 1, 86_400)

    @property
    def asks(self) -> bool:
        """Whether anything ever leaves the board."""
        return self.cut != "off"

    @property
    def enabled(self) -> bool:
        """Whether the network is ever run in parts."""
        return self.asks or self.early or bool(self.exit)


@dataclass(frozen=True, repr=False)
class WorkerSettings:
    """A worker, `har-agent cloud-worker`, which answers boards.

    `service`: the name under which boards ask. `bundles`: folders, or names of bundles that ship with the agent, with
    spaces between them; those on the command line instead, if there are any. `next`: the service that goes on where a
    network that was split does not end here; over the same broker. `max_batch`: windows that fill a call of a model; a
    request of codes counts as one, and the last request is read whole. `max_waiting`: requests that may wait, of 16 KiB
    on average; of more, the oldest are refused. `linger_ms`: how long to collect requests into one call of a model.
    """

    service: str = "har-cloud"
    bundles: str = "har-cloud"
    next: str = ""
    max_batch: int = 256
    max_waiting: int = 4096
    linger_ms: float = 0.0

    def __post_init__(self) -> None:
        """Refuse services that are no level of a topic, and numbers out of range."""
        _service(self.service)
        if self.next:
            _service(self.next, "next")
        _within("max_batch", self.max_batch, 1, 4096)
        _within("max_waiting", self.max_waiting, 1, 16_384)
        _within("linger_ms", self.linger_ms, 0, 1000)
