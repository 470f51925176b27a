"""Guesses what a serial port sends, for `har-agent check --connect`. A suggestion to a person, never used by itself."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from agent.core.decoders.delimited import fields
from agent.core.decoders.formats import decoder
from agent.core.decoders.json_lines import is_number, parse
from agent.core.input import TICKS_NS
from agent.core.settings import InputSettings
from agent.core.timeline import MAX_RATE_HZ, MIN_RATE_HZ
from agent.records import BadFrame, Float64Array, Loss, SampleBatch

GOOD_SCORE = 0.8
"""From here on a guess is worth telling."""

_LEAST = 8
"""Samples from which anything can be guessed."""
_SLACK = 1.2
_MOST = 1e17
"""What can be squared without overflow."""
_COUNTS_PER_G = (16384, 8192, 4096, 2048, 1000, 256)
_COUNTS_PER_DPS = {16384: 131.0, 8192: 65.5, 4096: 32.8, 2048: 16.4}
"""Acceleration and rotation of the MPU-6000 family at equal settings of its ranges (datasheet PS-MPU-6000A)."""
_RATES_HZ = (10, 12.5, 20, 25, 26, 50, 52, 62.5, 100, 104, 119, 125, 200, 208, 250, 400)
_NAMES = (
    re.compile("t|time|ts|timestamp|ms|millis|us|micros|seconds"),
    *(re.compile(f"a(cc(el(eration|erometer)?)?)?{axis}") for axis in "xyz"),
    *(re.compile(f"(g(yro?(scope)?)?|rot(ation)?|w){axis}") for axis in "xyz"),
)


class Suggestion(NamedTuple):
    """What a port seems to send.

    `score`: share of it that reads well, 0 to 1. `settings`: keys of a `[serial.NAME]` section. `notes`: what a person
    has to check, or to set. `text`: the section itself.
    """

    format: str
    score: float
    settings: Mapping[str, str | float]
    notes: tuple[str, ...]
    text: str


def suggest(
    data: bytes, *, seconds: float | None = None, port: str = "", baud: int = 115200, name: str = "sensor"
) -> Suggestion | None:
    """Guess the format of what was heard, and how to configure it; None if it looks like nothing that is known.

    `seconds`: how long it took to come, from which the rate of samples without a time is told.
    """
    guesses = [guess(data, seconds) for guess in (_har1, _witmotion, _json, _csv)]
    best = max((g for g in guesses if g is not None), key=lambda g: g[1], default=None)
    if best is None or best[1] < GOOD_SCORE / 2:
        return None
    format_name, score, settings, notes = best
    whole: dict[str, str | float] = {"port": port, "baud": baud, "format": format_name, **settings}
    lines = [f"{key} = {json.dumps(value)}" for key, value in whole.items()]
    return Suggestion(format_name, score, whole, tuple(notes), "\n".join([f"[serial.{_key(name)}]", *lines, ""]))


_Guess = tuple[str, float, dict[str, str | float], list[str]]


def _har1(data: bytes, _seconds: float | None) -> _Guess | None:
    out = decoder("har1", "", InputSettings()).feed(data, 0)
    # The first frame is one that was cut by listening.
    good = sum(isinstance(d, SampleBatch) for d in out)
    bad = sum(isinstance(d, BadFrame) and d.reason is not Loss.MISSED for d in out)
    return ("har1", good / (good + max(bad - 1, 0)), {}, []) if good else None


def _witmotion(data: bytes, seconds: float | None) -> _Guess | None:
    out = decoder("witmotion", "", InputSettings(rate_hz=50)).feed(data, 0)
    garbage = sum(d.amount for d in out if isinstance(d, BadFrame) and d.reason is Loss.GARBAGE)
    n = sum(len(d.t_ns) for d in out if isinstance(d, SampleBatch))
    if n < _LEAST:
        return None
    settings, notes = _rate(n, seconds)
    return "witmotion", 1 - garbage / len(data), settings, notes


def _json(data: bytes, seconds: float | None) -> _Guess | None:
    lines = _whole_lines(data)
    objects = []
    for line in lines:
        try:
            value = parse(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            objects.append(value)
    if len(objects) < _LEAST:
        return None
    numbers = [key for key, value in objects[-1].items() if is_number(value)]
    found = [next((k for k in numbers if name.fullmatch(_plain(k))), "") for name in _NAMES]
    if "" in found[1:]:
        note = f"set keys to the names of time, ax, ay, az, gx, gy, gz among {', '.join(numbers) or 'its numbers'}"
        return "json", len(objects) / len(lines), {}, [note]
    rows = [[o[k] for k in found if k] for o in objects if all(is_number(o.get(k)) for k in found if k)]
    settings, notes = _describe(np.array(rows, np.float64), seconds)
    if settings.get("time") == "s":
        del settings["time"]
    if ",".join(found) != InputSettings().keys:
        settings = {"keys": ",".join(found), **settings}
    return "json", len(rows) / len(lines), settings, notes


def _csv(data: bytes, seconds: float | None) -> _Guess | None:
    lines = _whole_lines(data)
    rows = [row for row in map(_numbers, lines) if row]
    if len(rows) < _LEAST:
        return None
    columns, n = Counter(map(len, rows)).most_common(1)[0]
    if columns not in (6, 7):
        if columns < 3:
            return None
        note = f"its lines have {columns} numbers: the agent reads six, or a time and six; change what it prints"
        return "csv", n / len(lines), {}, [note]
    settings, notes = _describe(np.array([row for row in rows if len(row) == columns]), seconds)
    return "csv", n / len(lines), settings, notes


def _describe(rows: Float64Array, seconds: float | None) -> tuple[dict[str, str | float], list[str]]:
    """Guess time, rate, units and scales of float64 (n, 6 or 7)."""
    settings: dict[str, str | float] = {}
    notes: list[str] = []
    rows = np.clip(rows, -_MOST, _MOST)
    if rows.shape[1] == 7:
        unit, rate_hz = _time_unit(rows[:, 0])
        if unit:
            settings["time"] = unit
            notes.append(f"its own times say {rate_hz:.4g} Hz")
        else:
            notes.append("the first of its seven numbers does not look like a time: set time to its unit, if it is one")
        rows = rows[:, 1:]
    else:
        settings, notes = _rate(len(rows), seconds)
    size = float(np.median(np.linalg.norm(rows[:, :3], axis=1)))
    turning = float(np.percentile(np.linalg.norm(rows[:, 3:], axis=1), 90))
    per_g = next((c for c in _COUNTS_PER_G if c / _SLACK < size < c * _SLACK), None)
    if 1 / 1.6 < size < 1.6:
        settings["acc_unit"] = "g"
    elif 6 < size < 16:
        settings["acc_unit"] = "m/s2"
    elif per_g:
        settings["acc_unit"], settings["acc_scale"] = "g", 1 / per_g
        if per_g in _COUNTS_PER_DPS:
            settings["gyro_unit"], settings["gyro_scale"] = "deg/s", round(1 / _COUNTS_PER_DPS[per_g], 9)
            notes.append("its numbers look like an MPU-6050's raw counts; look gyro_scale up in its datasheet")
            return settings, notes
    else:
        notes.append(f"its acceleration is about {size:.3g}, neither 1 g nor 9.8 m/s2: set acc_unit and acc_scale")
    settings["gyro_unit"] = "deg/s" if turning > 20 else "rad/s"
    notes.append("a turn by hand tells whether gyro_unit is right: one turn in two seconds is 3 rad/s, or 180 deg/s")
    return settings, notes


def _time_unit(stamps: Float64Array) -> tuple[str, float]:
    """The unit in which these times make a rate that can be used, and that rate; empty if there is none."""
    steps = np.diff(stamps)
    if (steps <= 0).sum() > len(steps) / 10:
        return "", 0.0
    step = float(np.median(steps))
    for unit, tick_ns in TICKS_NS.items():
        rate_hz = 1e9 / (step * tick_ns) if step > 0 else 0.0
        if MIN_RATE_HZ / _SLACK <= rate_hz <= MAX_RATE_HZ * _SLACK:
            return unit, rate_hz
    return "", 0.0


def _rate(n: int, seconds: float | None) -> tuple[dict[str, str | float], list[str]]:
    if not seconds:
        return {}, ["it sends no time: set rate_hz to how often it samples"]
    rate_hz = n / seconds
    usual = min(_RATES_HZ, key=lambda r: abs(r - rate_hz))
    rate_hz = usual if abs(usual - rate_hz) < 0.05 * usual else round(rate_hz, 1)
    return {"rate_hz": float(rate_hz)}, ["it sends no time, and rate_hz is what came: set it to how often it samples"]


def _whole_lines(data: bytes) -> list[bytes]:
    """Lines with something in them, less the first and the last, which listening cut."""
    lines = data.replace(b"\r", b"\n").split(b"\n")[1:-1]
    return [line for line in lines if line.strip()]


def _numbers(line: bytes) -> Sequence[float] | None:
    try:
        row = [float(cell) for cell in fields(line)]
    except ValueError:
        return None
    return row if np.isfinite(row).all() else None


def _plain(key: str) -> str:
    return re.sub("[^a-z]", "", key.lower())


def _key(name: str) -> str:
    """A name as TOML writes it in a section."""
    return name if re.fullmatch("[A-Za-z0-9_-]+", name) else json.dumps(name)
