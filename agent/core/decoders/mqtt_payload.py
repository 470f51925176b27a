"""Payloads of MQTT messages of one device: JSON of many samples, JSON of one, or a `har1` frame, mixed as they like."""

from itertools import chain
from typing import Any

import numpy as np

from agent.core.decoders.formats import har1_frames, json_unit
from agent.core.decoders.har1 import VERSION
from agent.core.decoders.json_lines import JsonSample, is_number, parse
from agent.core.input import CountedClock, DeviceClock, Intake, Mounting
from agent.core.settings import InputSettings
from agent.core.timeline import grid_offset_ns
from agent.records import CHANNELS, BadFrame, Decoded, Float64Array, Int64Array, Loss

MAX_SAMPLES = 4096
"""Samples in one payload: more are a mistake, or an attack on the memory."""

_RATES_HZ = (1e-3, 1e6)
_NUMBERS = {int, float}


class PayloadDecoder:
    """`ports.Decoder` of one device's payloads, a whole one a feed. `BadFrame.where` is the payload's number.

    Times are in the unit that the settings name, seconds if none. Samples without a time are counted at `rate_hz`; a
    single one without either is taken at its receive time.
    """

    def __init__(self, stream: str, settings: InputSettings, max_payload: int) -> None:
        """`max_payload`: bytes; longer ones are not read."""
        self._stream = stream
        self._max_payload = max_payload
        self._rate_hz = settings.rate_hz
        time_key, _, values = settings.keys.partition(",")
        self._time_key = time_key.strip()
        self._values = JsonSample("," + values)
        self._clock = DeviceClock(json_unit(settings))
        self._counted = None if settings.rate_hz is None else CountedClock(settings.rate_hz)
        self._intake = Intake(stream, Mounting.of(settings), settings.acc_scale, settings.gyro_scale)
        self._har1 = har1_frames(self._intake, settings)
        self._number = 0

    def feed(self, data: bytes, t_rx_ns: int) -> list[Decoded]:
        """See `ports.Decoder.feed`."""
        self._number += 1
        if len(data) > self._max_payload:
            return self._bad(Loss.TOO_LARGE)
        if data[:1] == bytes((VERSION,)):
            return self._har1.decode(data, t_rx_ns, self._number)
        try:
            value = parse(data)
        except UnicodeDecodeError:
            return self._bad(Loss.ENCODING)
        except ValueError:
            return self._bad(Loss.JSON)
        if not isinstance(value, dict):
            return self._bad(Loss.JSON)
        read = self._many(value, t_rx_ns) if "samples" in value else self._one(value, t_rx_ns)
        if isinstance(read, Loss):
            return self._bad(read)
        return self._intake.pick(*read, t_rx_ns, self._number)

    def reset(self) -> list[Decoded]:
        """See `ports.Decoder.reset`."""
        return [self._intake.interrupted()]

    def _bad(self, reason: Loss) -> list[Decoded]:
        return [BadFrame(self._stream, reason, self._number)]

    def _one(self, value: dict[str, Any], t_rx_ns: int) -> tuple[Int64Array, Float64Array] | Loss:
        row = self._values.read(value)
        if isinstance(row, Loss):
            return row
        if self._time_key and self._time_key in value:
            t_ns = self._device_times([value[self._time_key]])
        elif self._counted is not None:
            t_ns = self._counted.times(1, t_rx_ns)
        else:
            t_ns = np.array([t_rx_ns], np.int64)
        return t_ns if isinstance(t_ns, Loss) else (t_ns, np.array([row], np.float64))

    def _many(self, value: dict[str, Any], t_rx_ns: int) -> tuple[Int64Array, Float64Array] | Loss:
        samples = value["samples"]
        if not isinstance(samples, list):
            return Loss.KEYS
        if len(samples) > MAX_SAMPLES:
            return Loss.TOO_LARGE
        try:
            if set(map(len, samples)) != {len(CHANNELS)}:
                return Loss.COLUMNS
            numbers = _numbers(list(chain.from_iterable(samples)))
        except TypeError:
            return Loss.NUMBER
        if isinstance(numbers, Loss):
            return numbers
        t_ns = self._times(value, len(samples), t_rx_ns)
        return t_ns if isinstance(t_ns, Loss) else (t_ns, numbers.reshape(-1, len(CHANNELS)))

    def _times(self, value: dict[str, Any], n: int, t_rx_ns: int) -> Int64Array | Loss:
        if "t" in value:
            times = value["t"]
            if not isinstance(times, list):
                return Loss.NUMBER
            return self._device_times(times) if len(times) == n else Loss.COLUMNS
        if "t0" not in value:
            return Loss.KEYS if self._counted is None else self._counted.times(n, t_rx_ns)
        rate_hz = value.get("rate_hz", self._rate_hz)
        if rate_hz is None:
            return Loss.KEYS
        if not is_number(rate_hz):
            return Loss.NUMBER
        if not _RATES_HZ[0] <= rate_hz <= _RATES_HZ[1]:
            return Loss.TIME_RANGE
        t0_ns = self._device_times([value["t0"]])
        return t0_ns if isinstance(t0_ns, Loss) else t0_ns + grid_offset_ns(np.arange(n), rate_hz)

    def _device_times(self, times: list[Any]) -> Int64Array | Loss:
        stamps = _numbers(times)
        if isinstance(stamps, Loss):
            return stamps
        return self._clock.times(stamps) if (np.abs(stamps) <= self._clock.most).all() else Loss.TIME_RANGE


def _numbers(values: list[Any]) -> Float64Array | Loss:
    """Make float64 of JSON numbers; anything else among them, true and false too, is refused."""
    if not set(map(type, values)) <= _NUMBERS:
        return Loss.NUMBER
    try:
        return np.array(values, np.float64)
    except OverflowError:
        return Loss.VALUE_RANGE
