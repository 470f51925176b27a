"""Configuration: TOML -> frozen dataclasses.

Precedence: flag, environment (`HAR_AGENT__SECTION__KEY`), file, default. Every error is collected and told at once,
with its line; unknown keys are refused with a suggestion.
"""

import os
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from agent.core.decision import DecisionSettings
from agent.errors import ConfigError

DEFAULT_PATH = Path("/etc/har-agent/config.toml")
PATH_VARIABLE = "HAR_AGENT_CONFIG"
PREFIX = "HAR_AGENT__"


@dataclass(frozen=True)
class ModelSettings:
    """`bundle`: a bundle's folder, or the name of one that ships with the agent."""

    bundle: str = "har-base"


@dataclass(frozen=True)
class WindowSettings:
    """`hop`: samples from one window to the next at the model's rate; the bundle's own where it is not set."""

    hop: int | None = None

    def __post_init__(self) -> None:
        """Refuse a hop that moves nothing."""
        if self.hop is not None and self.hop < 1:
            raise ValueError(f"hop must be 1 or more samples, not {self.hop}")


@dataclass(frozen=True)
class Config:
    """Everything that can be configured, one field a section."""

    model: ModelSettings = field(default_factory=ModelSettings)
    window: WindowSettings = field(default_factory=WindowSettings)
    decision: DecisionSettings = field(default_factory=DecisionSettings)


def load(
    path: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Config:
    """Build the effective configuration.

    `path`: the file to read; otherwise the one that `HAR_AGENT_CONFIG` names, otherwise `DEFAULT_PATH` if it exists.
    `flags`: "section.key" -> value, None where a flag was not given.

    Raises:
        ConfigError: anything in it cannot be used; one line for each problem.
    """
    environ = os.environ if environ is None else environ
    source, text = _read(path, environ)
    raw = _parse(source, text)
    problems: list[str] = []
    origin: dict[str, str] = {}
    tree: dict[str, dict[str, Any]] = {}
    for section, body in raw.items():
        if not isinstance(body, dict):
            where = f"{source}:{_line(text, '', section)}"
            problems.append(f"{where}: {section} stands outside of a section{_suggest_section()}")
            continue
        tree[section] = dict(body)
        origin |= {f"{section}.{key}": f"{source}:{_line(text, section, key)}" for key in body}
        origin[section] = f"{source}:{_line(text, section, '')}"
    for name, value in environ.items():
        if not name.startswith(PREFIX):
            continue
        parts = name.removeprefix(PREFIX).lower().split("__")
        if len(parts) != 2:
            problems.append(f"{name}: it must be {PREFIX}SECTION__KEY")
            continue
        tree.setdefault(parts[0], {})[parts[1]] = _Text(value)
        origin[".".join(parts)] = name
        origin.setdefault(parts[0], name)
    for name, value in (flags or {}).items():
        if value is not None:
            section, _, key = name.partition(".")
            tree.setdefault(section, {})[key] = value
            origin[name] = f"--{key.replace('_', '-')}"
    config = _build(tree, origin, problems)
    if problems:
        raise ConfigError("the configuration cannot be used:\n  " + "\n  ".join(problems))
    return config


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
    sections = {f.name: typing.cast("type", f.type) for f in fields(Config)}
    built = {}
    for section, body in tree.items():
        if section not in sections:
            problems.append(f"{origin[section]}: there is no section [{section}]{_suggest(section, sections)}")
            continue
        known = typing.get_type_hints(sections[section])
        values = {}
        for key, value in body.items():
            where = origin[f"{section}.{key}"]
            if key not in known:
                problems.append(f"{where}: [{section}] has no key {key}{_suggest(key, known)}")
                continue
            try:
                values[key] = _convert(value, known[key])
                # Each value on its own first, so that every problem is told and not only a section's first.
                sections[section](**{key: values[key]})
            except (ValueError, OverflowError) as e:
                problems.append(f"{where}: {section}.{key}: {e}")
        if not problems:
            built[section] = sections[section](**values)
    return Config(**built)


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


def _suggest(name: str, known: Mapping[str, Any]) -> str:
    import difflib

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
