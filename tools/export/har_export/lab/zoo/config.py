"""Configs of the zoo: one TOML file a model, with its kind, its sizes and how it is trained."""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.errors import InputError
from har_export.lab.zoo import classical, modules
from har_export.train import Settings

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Config:
    """One model of the zoo. `network`: its sizes. `training`: for networks; the baselines do without."""

    name: str
    title: str
    kind: str
    network: dict[str, Any] = field(default_factory=dict)
    training: Settings = field(default_factory=Settings)


def names() -> list[str]:
    """Return the names of all configs, in order."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read(path: Path) -> Config:
    """Read one config; its name is the file's.

    Raises:
        InputError: it is no TOML, or has an entry that nothing reads.
    """
    try:
        config = Config(path.stem, **tomllib.loads(path.read_text(encoding="utf-8")))
        if isinstance(config.training, dict):
            config = Config(config.name, config.title, config.kind, config.network, Settings(**config.training))
    except (OSError, ValueError, TypeError) as e:
        raise InputError(f"{path} is no config of the zoo: {e}") from e
    if config.kind not in modules.KINDS | classical.KINDS:
        kinds = ", ".join([*modules.KINDS, *classical.KINDS])
        raise InputError(f"{path}: kind {config.kind!r} is not known; it is one of {kinds}")
    return config


def named(name: str) -> Config:
    """Return the config that the zoo has under this name.

    Raises:
        InputError: there is none.
    """
    if name not in names():
        raise InputError(f"the zoo has no {name!r}; it has {', '.join(names())}")
    return read(FOLDER / f"{name}.toml")
