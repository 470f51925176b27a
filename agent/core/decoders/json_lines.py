"""The format `json`: one object a line, its keys configurable."""

import json
from typing import Any

from agent.core.decoders.lines import LineDecoder, ReadLine
from agent.core.input import RowIntake
from agent.records import Loss


def json_lines(intake: RowIntake, keys: str) -> LineDecoder:
    """Return the decoder. `keys`: as in `InputSettings`."""
    return LineDecoder(intake, _reader(JsonSample(keys)))


class JsonSample:
    """Reads samples that are JSON objects."""

    def __init__(self, keys: str) -> None:
        """`keys`: names of time (empty if there is none), ax, ay, az, gx, gy, gz, separated by commas."""
        self._keys = [key for i, key in enumerate(k.strip() for k in keys.split(",")) if key or i]

    def read(self, sample: dict[str, Any]) -> list[float] | Loss:
        """Return its numbers in order, the time first if its key is named."""
        try:
            numbers = [sample[key] for key in self._keys]
        except KeyError:
            return Loss.KEYS
        return numbers if all(map(is_number, numbers)) else Loss.NUMBER


def is_number(value: object) -> bool:
    """Whether a JSON value is a number that a float can hold; true and false are none."""
    return type(value) is float or (type(value) is int and -(1 << 63) <= value < 1 << 63)


def parse(text: bytes) -> Any:
    """Read one JSON value; NaN and Infinity, which JSON does not have, are refused.

    Raises:
        ValueError: it is not JSON, or nested deeper than anything that a sensor sends.
    """
    try:
        return _JSON.decode(text.decode())
    except RecursionError as e:
        raise ValueError("nested too deeply") from e


def _refuse(literal: str) -> None:
    raise ValueError(f"{literal} is not JSON")


_JSON = json.JSONDecoder(parse_constant=_refuse)


def _reader(sample: JsonSample) -> ReadLine:
    def read(line: bytes) -> list[float] | Loss | None:
        if not line.strip():
            return None
        try:
            value = parse(line)
        except UnicodeDecodeError:
            return Loss.ENCODING
        except ValueError:
            return Loss.JSON
        return sample.read(value) if isinstance(value, dict) else Loss.JSON

    return read
