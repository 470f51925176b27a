"""Configuration: TOML -> frozen dataclasses.

Precedence: flag, environment (`HAR_AGENT__SECTION__KEY`), file, default. Every error is collected and told at once,
with its line; unknown keys are refused with a suggestion.
"""

import os
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from agent.core.decision import DecisionSettings
from agent.core.settings import (
    AgentSettings,
    BrokerSettings,
    CloudSettings,
    CommandSettings,
    HomeAssistantSettings,
    ModelSettings,
    MqttInSettings,
    MqttSettings,
    OutboxSettings,
    SerialSettings,
    SplitSettings,
    TelemetrySettings,
    WindowSettings,
    WorkerSettings,
)
from agent.errors import ConfigError

DEFAULT_PATH = Path("/etc/har-agent/config.toml")
PATH_VARIABLE = "HAR_AGENT_CONFIG"
PREFIX = "HAR_AGENT__"
_FLAGS = {"broker.local.url": "--broker", "model.bundle": "--model"}
"""Flags that are not called as their keys are."""


@dataclass(frozen=True)
class Config:
    """Everything that can be configured: a field for each section, or for each family of named sections."""

    agent: AgentSettings = field(default_factory=AgentSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    window: WindowSettings = field(default_factory=WindowSettings)
    decision: DecisionSettings = field(default_factory=DecisionSettings)
    serial: Mapping[str, SerialSettings] = field(default_factory=dict)
    mqtt_in: MqttInSettings = field(default_factory=MqttInSettings)
    broker: Mapping[str, BrokerSettings] = field(default_factory=lambda: {"local": BrokerSettings()})
    mqtt: MqttSettings = field(default_factory=MqttSettings)
    outbox: OutboxSettings = field(default_factory=OutboxSettings)
    telemetry: TelemetrySettings = field(default_factory=TelemetrySettings)
    homeassistant: HomeAssistantSettings = field(default_factory=HomeAssistantSettings)
    commands: CommandSettings = field(default_factory=CommandSettings)
    cloud: CloudSettings = field(default_factory=CloudSettings)
    split: SplitSettings = field(default_factory=SplitSettings)
    worker: WorkerSettings = field(default_factory=WorkerSettings)

    @property
    def cloud_broker(self) -> str:
        """Name of the broker that the cloud is asked through."""
        return self.cloud.broker or next(iter(self.broker))

    @property
    def split_broker(self) -> str:
        """Name of the broker that others are asked through to run the rest of the network."""
        return self.split.broker or next(iter(self.broker))

    @property
    def brokers(self) -> Mapping[str, BrokerSettings]:
        """What the agent speaks to, the preferred one first: all but those that are only there to ask through."""
        first, asked = next(iter(self.broker), None), (self.cloud.broker, self.split.broker)
        return {name: b for name, b in self.broker.items() if name == first or name not in asked}


class Loaded(NamedTuple):
    """A configuration, and where each value that is not a default came from, by `section.key`."""

    config: Config
    origin: Mapping[str, str]


def section_kind(name: str) -> tuple[type, bool]:
    """Return the dataclass of a section of `Config`, and whether it is a family of named ones."""
    hint = typing.get_type_hints(Config)[name]
    named = typing.get_origin(hint) is not None
    return (typing.get_args(hint)[1] if named else hint), named


def load(
    path: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Config:
    """Build the effective configuration; see `load_with_origins`."""
    return load_with_origins(path, environ, flags).config


def load_with_origins(
    path: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Loaded:
    """Build the effective configuration, and tell where each value came from.

    `path`: the file to read; otherwise the one that `HAR_AGENT_CONFIG` names, otherwise `DEFAULT_PATH` if it exists.
    `flags`: "section.key" -> value, None where a flag was not given.

    Raises:
        ConfigError: anything in it cannot be used; one line for each problem.
    """
    environ = os.environ if environ is None else environ
    source, text = _read(path, environ)
    problems: list[str] = []
    origin: dict[str, str] = {}
    tree: dict[str, dict[str, Any]] = {}
    families = [f.name for f in fields(Config) if section_kind(f.name)[1]]
    for section, body in _sections(_parse(source, text), families):
        if body is None:
            key = section.rpartition(".")[2]
            where = f"{source}:{_line(text, section.rpartition('.')[0], key)}"
            hint = f"; it belongs under [{section.partition('.')[0]}.NAME]" if "." in section else _suggest_section()
            problems.append(f"{where}: {key} stands outside of a section{hint}")
            continue
        tree[section] = dict(body)
        origin |= {f"{section}.{key}": f"{source}:{_line(text, section, key)}" for key in body}
        origin[section] = f"{source}:{_line(text, section, '')}"
    for name, value in environ.items():
        if not name.startswith(PREFIX):
            continue
        *path_to, key = name.removeprefix(PREFIX).lower().split("__")
        if len(path_to) != 1 + (path_to[:1] != [] and path_to[0] in families):
            problems.append(f"{name}: it must be {PREFIX}SECTION__KEY, or {PREFIX}SECTION__NAME__KEY")
            continue
        section = _same_name(".".join(path_to), tree)
        tree.setdefault(section, {})[key] = _Text(value)
        origin[f"{section}.{key}"] = name
        origin.setdefault(section, name)
    for name, value in (flags or {}).items():
        if value is not None:
            section, _, key = name.rpartition(".")
            tree.setdefault(section, {})[key] = value
            origin[name] = _FLAGS.get(name) or f"--{key.replace('_', '-')}"
            origin.setdefault(section, origin[name])
    config = _build(tree, origin, problems)
    if problems:
        raise ConfigError("the configuration cannot be used:\n  " + "\n  ".join(problems))
    return Loaded(config, origin)


def _sections(raw: Mapping[str, Any], families: list[str]) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Every section with its keys, named ones as `family.name`; None for what is no section."""
    for section, body in raw.items():
        if section in families and isinstance(body, dict):
            for name, inner in body.items():
                yield f"{section}.{name}", inner if isinstance(inner, dict) else None
        else:
            yield section, body if isinstance(body, dict) else None


def _same_name(section: str, tree: Mapping[str, Any]) -> str:
    """The section that an environment variable means, which can spell neither capitals nor hyphens."""
    return next((s for s in tree if s.lower().replace("-", "_") == section), section)


class _Text(str):
    """A value from the environment: text that stands for whatever its key is."""


def _read(path: Path | None, environ: Mapping[str, str]) -> tuple[str, str]:
    named = path or (Path(environ[PATH_VARIABLE]) if environ.get(PATH_VARIABLE) else None)
    file = named or DEFAULT_PATH
    try:
        return str(file), file.read_text("utf-8")
    except FileNotFoundError as e:
        if named is None:
            return str(file), ""
        raise ConfigError(f"{file}: there is no such configuration file") from e
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{file} cannot be read: {getattr(e, 'strerror', None) or e}") from e


def _parse(source: str, text: str) -> dict[str, Any]:
    if not text:
        return {}
    import tomllib

    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"{source}: {e}") from e


def _build(tree: Mapping[str, Mapping[str, Any]], origin: Mapping[str, str], problems: list[str]) -> Config:
    sections = {f.name: section_kind(f.name) for f in fields(Config)}
    built: dict[str, Any] = {}
    for section, body in tree.items():
        family, _, name = section.partition(".")
        if family not in sections or ("." in section and not sections[family][1]):
            problems.append(f"{origin[section]}: there is no section [{section}]{suggest(section, sections)}")
            continue
        kind, named = sections[family]
        known = typing.get_type_hints(kind)
        known = {f.name: known[f.name] for f in fields(kind)}
        values = {}
        for key, value in body.items():
            where = origin[f"{section}.{key}"]
            if key not in known:
                problems.append(f"{where}: [{section}] has no key {key}{suggest(key, known)}")
                continue
            try:
                values[key] = _convert(value, known[key])
                # Each value on its own first, so that every problem is told and not only a section's first.
                kind(**{key: values[key]})
            except (ValueError, OverflowError) as e:
                problems.append(f"{where}: {section}.{key}: {e}")
        if problems:
            continue
        if named:
            built.setdefault(family, {})[name] = kind(**values)
        else:
            built[family] = kind(**values)
    config = Config(**built)
    if not problems:
        problems += (f"{origin[key]}: {key}: {text}" for key, text in _contradictions(config))
    return config


def _contradictions(config: Config) -> Iterator[tuple[str, str]]:
    """What cannot be used together although each value could: a key that was set, and a sentence."""
    cloud, brokers = config.cloud, config.broker
    if cloud.payload == "window" and cloud.privacy != "window":
        yield "cloud.payload", 'a window may only leave the board with privacy = "window" in [cloud]'
    yield from _asked_through("cloud", cloud.broker, config.cloud_broker if cloud.enabled else "", brokers)
    split = config.split
    if split.cut == "window" and split.privacy != "window":
        yield "split.cut", 'a window may only leave the board with privacy = "window" in [split]'
    if split.cut == "auto":
        if not split.profiles:
            yield "split.cut", "auto needs profiles: what har-agent profile wrote on this board and on the worker's"
        for key in ("until", "exit"):
            if getattr(split, key):
                yield f"split.{key}", f"auto finds {key} by itself: leave it out, or name a cut"
    if split.cut == "off" and split.until:
        yield "split.until", "nobody is asked, and so nobody passes on: leave until out, or name a cut"
    yield from _asked_through("split", split.broker, config.split_broker if split.asks else "", brokers)
    if config.worker.next == config.worker.service:
        yield "worker.next", "a worker cannot pass on to its own service: name that of the workers that go on"


def _asked_through(
    section: str, named: str, used: str, brokers: Mapping[str, BrokerSettings]
) -> Iterator[tuple[str, str]]:
    """What is wrong with the broker of a section that asks workers. `used`: by its name, empty where none is."""
    if named and named not in brokers:
        yield f"{section}.broker", f"there is no section [broker.{named}]{suggest(named, brokers)}"
    elif used and brokers[used].protocol != "5":
        yield (
            f"broker.{used}.protocol",
            f'a worker is asked over MQTT 5: set protocol = "5", or another {section}.broker',
        )


def _convert(value: Any, kind: Any) -> Any:
    kinds = [k for k in (typing.get_args(kind) or (kind,)) if k is not type(None)]
    if isinstance(value, _Text):
        if kinds == [bool]:
            if value.lower() not in ("true", "false"):
                raise ValueError(f"must be true or false, not {value!r}")
            return value.lower() == "true"
        try:
            return kinds[0](value)
        except ValueError as e:
            raise ValueError(f"must be {_spoken(kinds)}, not {str(value)!r}") from e
    if kinds == [float] and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if (isinstance(value, bool) and bool not in kinds) or not isinstance(value, tuple(kinds)):
        raise ValueError(f"must be {_spoken(kinds)}, not {value!r}")
    return value


def _spoken(kinds: list[type]) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return " or ".join(names[k] for k in kinds)


def suggest(name: str, known: Iterable[str]) -> str:
    """Return what is meant by a name that is not known, or which there are, to be put behind a sentence on it."""
    import difflib

    known = list(known)

    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"


def _suggest_section() -> str:
    return f"; sections are {', '.join(f'[{f.name}]' for f in fields(Config))}"


def _line(text: str, section: str, key: str) -> int:
    """The line on which a key, or a section's header, stands: tomllib does not tell."""
    here = ""
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line)
        if header:
            here = header[1]
            if here == section and not key:
                return number
        elif here == section and key and re.match(rf"""\s*["']?{re.escape(key)}["']?\s*=""", line):
            return number
    return 1
