"""Builds the parts that every command shares: a verified model and a pipeline around it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.adapters.bundle import find_bundle, load_bundle, read_golden, read_segment_golden
from agent.config import Config, load
from agent.core.manifest import Bundle, Manifest
from agent.core.settings import BrokerSettings
from agent.errors import ConfigError, UsageError
from agent.pipeline import Pipeline
from agent.ports import Model

if TYPE_CHECKING:
    from agent.adapters.onnx_model import OrtModel
    from agent.adapters.onnx_parts import Parts


CREDENTIALS = Path("/etc/har-agent/credentials")
"""Where the files are kept that the unit loads as credentials, readable by root alone."""


def load_config(path: Path | None, flags: Mapping[str, Any]) -> Config:
    """Return the effective configuration; see `agent.config.load`.

    Raises:
        ConfigError: it cannot be used.
    """
    return load(path, flags=flags)


def state_dir(config: Config) -> Path:
    """Return where the agent keeps what must outlive a restart."""
    return Path(config.agent.state_dir or _first("STATE_DIRECTORY") or "/var/lib/har-agent")


def runtime_dir(config: Config) -> Path:
    """Return where the agent keeps what need not outlive a restart: in memory, where it may."""
    places = runtime_dirs(config)
    return next((p for p in places if os.access(p if p.exists() else p.parent, os.W_OK)), places[-1])


def runtime_dirs(config: Config) -> list[Path]:
    """Return the folders of which `runtime_dir` is one, in order; the last is not in memory."""
    named = config.agent.runtime_dir or _first("RUNTIME_DIRECTORY")
    if named:
        return [Path(named)]
    session = os.environ.get("XDG_RUNTIME_DIR")
    return [Path("/run/har-agent"), *([Path(session) / "har-agent"] if session else []), state_dir(config)]


def _first(variable: str) -> str:
    """The first folder that systemd names; there are several if a unit asks for several."""
    return os.environ.get(variable, "").partition(":")[0]


def open_model(name: str) -> "OrtModel":
    """Load, verify and open a bundle; its golden vectors are run, which also warms its sessions.

    Raises:
        ModelContractError: the bundle breaks its contract.
    """
    # Only here: commands without a model do not carry its runtime.
    from agent.adapters.onnx_model import OrtModel

    bundle = load_bundle(find_bundle(name))
    model = OrtModel(bundle)
    model.verify(read_golden(bundle))
    return model


def open_parts(bundle: Bundle) -> "Parts":
    """Open a verified bundle, of a whole network or of a part, to be run in parts; golden vectors are run.

    Raises:
        ModelContractError: the bundle breaks its contract, or its network cannot be split.
    """
    from agent.adapters.onnx_parts import Parts

    parts = Parts(bundle)
    parts.verify(read_segment_golden(bundle) if bundle.manifest.segment else read_golden(bundle))
    return parts


def build_pipeline(model: Model, manifest: Manifest, config: Config) -> Pipeline:
    """Build one pipeline as configured.

    Raises:
        ConfigError: the hop does not fit the bundle's window.
    """
    try:
        pipeline = Pipeline(model, manifest, config.decision, config.window.hop)
    except ValueError as e:
        raise ConfigError(f"window.hop: {e}") from e
    pipeline.set_novelty_threshold(config.model.novelty_threshold)
    return pipeline


def agent_name(config: Config) -> str:
    """Return how this board calls itself: as configured, or its host name."""
    return config.agent.name or os.uname().nodename or "har-agent"


def broker_named(config: Config, name: str) -> BrokerSettings:
    """Return the broker that `--broker` means: one that is configured, or an address.

    Raises:
        UsageError: it is neither.
    """
    try:
        return config.broker.get(name) or BrokerSettings(url=name)
    except ValueError as e:
        raise UsageError(f"--broker: {e}, or the name of a [broker.NAME]") from e


def credentials_dir() -> Path | None:
    """Return where the credentials of this service are, None if nothing is said of any.

    For the service, where systemd has put them; for a command by hand, where systemd takes them from, if that is there.
    """
    named = os.environ.get("CREDENTIALS_DIRECTORY")
    if named:
        return Path(named)
    return CREDENTIALS if os.path.isdir(CREDENTIALS) else None  # noqa: PTH112  as Path, it raises where none may look
