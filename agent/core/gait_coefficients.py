"""Coefficients of the simulated person: what `har-export fit-simulator` fits and `core.gait` plays."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from agent.records import CHANNELS, Float64Array

FORMAT = "har-simulated-imu/1"
"""The format of the coefficients that this version reads."""

GAITS = ("walking", "walking_upstairs", "walking_downstairs")
POSTURES = ("sitting", "standing", "laying")
ACTIVITIES = GAITS + POSTURES
CHANGES = ("stand_to_sit", "sit_to_stand", "sit_to_lie", "lie_to_sit", "stand_to_lie", "lie_to_stand")
"""The changes of posture that were recorded, by name."""

FIT_RATE_HZ = 50
"""Rate of the recordings that the coefficients were fitted on, and of the residual noise."""


RESPONSE = 2 * FIT_RATE_HZ
"""Length in samples of the residual's impulse response: two seconds, after which nothing is left of it."""


@dataclass(frozen=True)
class Residual:
    """Coloured noise: standard deviation (6,) and autoregressive coefficients (6, order) at `FIT_RATE_HZ`."""

    sd: Float64Array
    ar: Float64Array

    def response(self) -> Float64Array:
        """Impulse response (6, `RESPONSE`), scaled so that unit white noise comes out with `sd`."""
        h = np.zeros((len(CHANNELS), RESPONSE))
        h[:, 0] = 1.0
        order = self.ar.shape[1]
        for k in range(1, RESPONSE):
            past = h[:, max(0, k - order) : k][:, ::-1]
            h[:, k] = (self.ar[:, : past.shape[1]] * past).sum(axis=1)
        scaled: Float64Array = h * (self.sd / np.sqrt((h**2).sum(axis=1)))[:, None]
        return scaled


@dataclass(frozen=True)
class Gait:
    """Periodic motion.

    `cos`, `sin`: (harmonics, 6) of the stride rate. `turn`: mean angular velocity (3,), rad/s.

    `rate_jitter`, `gain_jitter`: standard deviation of the stride rate and of the amplitude, relative.
    """

    cos: Float64Array
    sin: Float64Array
    turn: Float64Array
    rate_jitter: float
    gain_jitter: float
    residual: Residual


@dataclass(frozen=True)
class Posture:
    """Holding still. `sway`: standard deviation (3,) of gravity, g; `sway_s`: its correlation time."""

    sway: Float64Array
    sway_s: float
    residual: Residual


@dataclass(frozen=True)
class Change:
    """A change of posture. `seconds`: quartiles of its duration. `pattern`: (knots, 6) over it."""

    seconds: tuple[float, float, float]
    pattern: Float64Array
    residual: Residual


@dataclass(frozen=True)
class People:
    """How people differ: a person is `median` + z @ `directions`, z standard normal.

    `median` (27,), `directions` (k, 27): gravity x, y, z for each of `ACTIVITIES` (g), stride rate for each
    of `GAITS` (Hz), natural logarithm of the gain of acceleration and of angular velocity for each of
    `GAITS`.
    """

    median: Float64Array
    directions: Float64Array


@dataclass(frozen=True)
class Coefficients:
    """Everything that was fitted."""

    people: People
    gaits: Mapping[str, Gait]
    postures: Mapping[str, Posture]
    changes: Mapping[str, Change]


def parse(raw: Mapping[str, Any]) -> Coefficients:
    """Read the JSON object that `har-export fit-simulator` writes.

    Raises:
        ValueError: another format, or a part is missing.
    """
    if raw.get("format") != FORMAT:
        raise ValueError(f"these coefficients are {raw.get('format')!r}, this version reads {FORMAT!r}")
    try:
        return Coefficients(
            People(_array(raw["people"]["median"]), _array(raw["people"]["directions"])),
            {name: _gait(raw["gaits"][name]) for name in GAITS},
            {name: _read_posture(raw["postures"][name]) for name in POSTURES},
            {name: _change(raw["changes"][name]) for name in CHANGES},
        )
    except KeyError as error:
        raise ValueError(f"the coefficients lack {error}") from error


def _array(raw: object) -> Float64Array:
    return np.asarray(raw, dtype=np.float64)


def _residual(raw: Mapping[str, Any]) -> Residual:
    return Residual(_array(raw["sd"]), _array(raw["ar"]))


def _gait(raw: Mapping[str, Any]) -> Gait:
    return Gait(
        _array(raw["cos"]),
        _array(raw["sin"]),
        _array(raw["turn"]),
        float(raw["rate_jitter"]),
        float(raw["gain_jitter"]),
        _residual(raw["residual"]),
    )


def _read_posture(raw: Mapping[str, Any]) -> Posture:
    return Posture(_array(raw["sway"]), float(raw["sway_s"]), _residual(raw["residual"]))


def _change(raw: Mapping[str, Any]) -> Change:
    short, middle, long = (float(s) for s in raw["seconds"])
    return Change((short, middle, long), _array(raw["pattern"]), _residual(raw["residual"]))
