"""Units of recordings and sensors, converted once, at the edge, to g and rad/s."""

import math

import numpy as np

from agent.records import Float32Array, Float64Array, Int64Array

STANDARD_GRAVITY = 9.80665
"""m/s² in one g (CODATA; ISO 80000-3)."""

ACC_UNITS = {"g": 1.0, "m/s2": 1.0 / STANDARD_GRAVITY}
GYRO_UNITS = {"rad/s": 1.0, "deg/s": math.pi / 180.0}


def scale(acc_unit: str, gyro_unit: str) -> Float32Array:
    """Return float32 (6,): what each channel is multiplied with to reach g and rad/s.

    Raises:
        ValueError: a unit that is not in `ACC_UNITS` or `GYRO_UNITS`; the text lists them.
    """
    for name, unit, known in (("acc_unit", acc_unit, ACC_UNITS), ("gyro_unit", gyro_unit, GYRO_UNITS)):
        if unit not in known:
            raise ValueError(f"{name} is {unit!r}; it must be one of {', '.join(known)}")
    return np.array([ACC_UNITS[acc_unit]] * 3 + [GYRO_UNITS[gyro_unit]] * 3, np.float32)


_EXACT_NS = 1 << 53


def nanoseconds(times: Float64Array, tick_ns: int) -> Int64Array:
    """Return times in units of `tick_ns`, a multiple of 1,000, as integer nanoseconds.

    From 104 days on a float64 does not hold each nanosecond. There times are taken to the microsecond, which it holds
    for 290 years: the same moment is the same number whether it came in seconds, milliseconds or microseconds.
    """
    t_ns = np.rint(times * tick_ns)
    if (np.abs(t_ns) < _EXACT_NS).all():
        return t_ns.astype(np.int64)
    t_us = np.rint(times * (tick_ns // 1000))
    return np.where(np.abs(t_ns) < _EXACT_NS, t_ns.astype(np.int64), t_us.astype(np.int64) * 1000)


def one_nanoseconds(time: float, tick_ns: int) -> int:
    """Do the same for one time, without NumPy."""
    t_ns = round(time * tick_ns)
    return t_ns if abs(t_ns) < _EXACT_NS else round(time * (tick_ns // 1000)) * 1000


def implausible_gravity(values: Float32Array) -> str | None:
    """Say what is wrong with the unit of `values`, float32 (n, 6), in g as declared; None if nothing is."""
    for declared in ACC_UNITS:
        unit = likelier_acc_unit(values, declared)
        if unit:
            magnitude = float(np.sort(np.linalg.norm(values[:, :3], axis=1))[len(values) // 2])
            return f"acceleration is about {magnitude:.2g} g, which speaks of {unit}: set acc_unit to that"
    return None


def likelier_acc_unit(values: Float32Array, declared: str) -> str | None:
    """Name the acceleration unit that `values` speak of, if it is clearly not the declared one; None otherwise.

    `values`: float32 (n, 6), already converted from `declared` to g. A worn or resting sensor reads about 1 g most of
    the time, so the median magnitude tells g from m/s², which are a factor of 9.8 apart.
    """
    magnitude = float(np.sort(np.linalg.norm(values[:, :3], axis=1))[len(values) // 2])
    if declared == "g" and 6.0 < magnitude < 16.0:
        return "m/s2"
    if declared == "m/s2" and 0.06 < magnitude < 0.16:
        return "g"
    return None
