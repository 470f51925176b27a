"""Builds what runs a board's network in parts, `[split]`."""

from collections.abc import Callable

from agent.adapters.mqtt.requester import Requester, new_correlation
from agent.adapters.onnx_model import OrtModel
from agent.adapters.onnx_parts import Parts
from agent.app import compose
from agent.app.compose import credentials_dir
from agent.app.plan import read_file
from agent.config import Config
from agent.core.planner import Profile
from agent.core.split_wire import MAX_TENSORS
from agent.errors import ConfigError, InputError, ModelContractError
from agent.ports import Clock, Cloud, Model
from agent.runtime.split import SplitModel

PURPOSE = "split"
"""What keeps its connection and its answers apart from those of the cloud fallback."""
LONGEST_ANSWER = MAX_TENSORS + 1024
"""Bytes of a packet: an answer, its topic and its properties."""


def open_parts(model: Model) -> Parts:
    """Return the parts of a model that runs on this machine, its golden vectors tried on each.

    Raises:
        ModelContractError: it cannot be split.
    """
    if not isinstance(model, OrtModel):
        raise ModelContractError(f"{model.id} cannot be split: it is no bundle")
    return compose.open_parts(model.bundle)


def read_profiles(config: Config) -> list[Profile]:
    """Return the profiles that `[split]` names.

    Raises:
        ConfigError: one of them cannot be used.
    """
    try:
        return [read_file(path) for path in config.split.profiles.split()]
    except InputError as e:
        raise ConfigError(f"split.profiles: {e}") from e


def open_requester(
    config: Config, name: str, clock: Clock, complain: Callable[[str], None] = lambda _: None, client_id: str = ""
) -> Requester:
    """Return what asks for the rest of the network; `start` begins to connect. `client_id`: for another client."""
    return Requester(
        name,
        config.broker[config.split_broker],
        config.mqtt,
        config.split,
        clock,
        purpose=PURPOSE,
        longest=LONGEST_ANSWER,
        credentials=credentials_dir(),
        complain=complain,
        client_id=client_id or None,
    )


def open_split(config: Config, clock: Clock, cloud: Cloud | None = None) -> SplitModel:
    """Return what `SplitModel.around` makes a model of. `cloud`: who is asked; nobody if not given.

    Raises:
        ConfigError: a profile cannot be used.
    """
    profiles = read_profiles(config) if config.split.cut == "auto" else []
    return SplitModel(config.split, clock, open_parts, cloud, new_correlation, profiles)
