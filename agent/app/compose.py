"""Builds the parts that every command shares: a verified model and a pipeline around it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.adapters.bundle import find_bundle, load_bundle, read_golden
from agent.adapters.onnx_model import OrtModel
from agent.config import Config, load
from agent.core.manifest import Manifest
from agent.errors import ConfigError
from agent.pipeline import Pipeline
from agent.ports import Model


def load_config(path: Path | None, flags: Mapping[str, Any]) -> Config:
    """Return the effective configuration; see `agent.config.load`.

    Raises:
        ConfigError: it cannot be used.
    """
    return load(path, flags=flags)


def open_model(name: str) -> OrtModel:
    """Load, verify and open a bundle; its golden vectors are run, which also warms its sessions.

    Raises:
        ModelContractError: the bundle breaks its contract.
    """
    bundle = load_bundle(find_bundle(name))
    model = OrtModel(bundle)
    model.verify(*read_golden(bundle))
    return model


def build_pipeline(model: Model, manifest: Manifest, config: Config) -> Pipeline:
    """Build one pipeline as configured.

    Raises:
        ConfigError: the hop does not fit the bundle's window.
    """
    try:
        return Pipeline(model, manifest, config.decision, config.window.hop)
    except ValueError as e:
        raise ConfigError(f"window.hop: {e}") from e
