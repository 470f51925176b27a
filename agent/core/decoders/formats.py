"""The protocols of serial ports: name -> constructor. A new one is a file beside this one and a row here."""

from collections.abc import Callable, Mapping

from agent.core.decoders.delimited import delimited
from agent.core.decoders.har1 import Har1Decoder, Har1Frames
from agent.core.decoders.json_lines import json_lines
from agent.core.decoders.lines import LineDecoder
from agent.core.decoders.witmotion import ACC_SCALE, GYRO_SCALE, WitMotionDecoder
from agent.core.input import CountedClock, DeviceClock, Intake, Mounting, RowIntake
from agent.core.settings import InputSettings
from agent.errors import ConfigError

SerialDecoder = LineDecoder | Har1Decoder | WitMotionDecoder
"""Each of them is a `ports.Decoder`."""


def decoder(format_name: str, stream: str, settings: InputSettings) -> SerialDecoder:
    """Build the decoder of one sensor. `format_name`: one of `SERIAL_FORMATS`.

    Raises:
        ConfigError: the sensor sends no time, and the settings do not say its rate.
    """
    return FORMATS[format_name](stream, settings)


def _csv(stream: str, settings: InputSettings) -> SerialDecoder:
    unit = None if settings.time == "none" else settings.time
    remedy = "or time to the unit of its first column, if that is a time"
    return delimited(_intake(stream, settings, unit, remedy))


def _json(stream: str, settings: InputSettings) -> SerialDecoder:
    unit = json_unit(settings) if settings.keys.split(",")[0].strip() else None
    return json_lines(_intake(stream, settings, unit, "or name its time in keys"), settings.keys)


def _witmotion(stream: str, settings: InputSettings) -> SerialDecoder:
    clock = _clock(
        stream, settings, None if settings.time == "none" else "ms", "or time to ms, if it is set up to send it (0x50)"
    )
    acc, gyro = ACC_SCALE * settings.acc_scale, GYRO_SCALE * settings.gyro_scale
    return WitMotionDecoder(RowIntake(stream, Mounting(settings.axes, acc, gyro), clock, acc, gyro))


def _har1(stream: str, settings: InputSettings) -> SerialDecoder:
    intake = Intake(stream, Mounting.of(settings))
    return Har1Decoder(intake, har1_frames(intake, settings))


FORMATS: Mapping[str, Callable[[str, InputSettings], SerialDecoder]] = {
    "csv": _csv,
    "json": _json,
    "witmotion": _witmotion,
    "har1": _har1,
}


def har1_frames(intake: Intake, settings: InputSettings) -> Har1Frames:
    """Return a reader of har1 frames; their units are fixed, so only the settings' axes and scales apply."""
    acc, gyro = settings.acc_scale, settings.gyro_scale
    return Har1Frames(intake, Mounting(settings.axes, acc, gyro), acc, gyro)


def json_unit(settings: InputSettings) -> str:
    """Return the unit of times in JSON: seconds where the settings name none."""
    return "s" if settings.time == "none" else settings.time


def _intake(stream: str, settings: InputSettings, unit: str | None, remedy: str) -> RowIntake:
    clock = _clock(stream, settings, unit, remedy)
    return RowIntake(stream, Mounting.of(settings), clock, settings.acc_scale, settings.gyro_scale)


def _clock(stream: str, settings: InputSettings, unit: str | None, remedy: str) -> DeviceClock | CountedClock:
    if unit is not None:
        return DeviceClock(unit)
    if settings.rate_hz is None:
        raise ConfigError(f"{stream} sends no time: set its rate_hz, {remedy}")
    return CountedClock(settings.rate_hz)
