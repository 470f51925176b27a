"""The format `witmotion`: the binary output of WitMotion's serial sensors, as their protocol sheets describe it.

A frame is 11 bytes: 0x55, a type, eight bytes, and the sum of these ten. Used here, each with little-endian int16:

    0x50  year - 2000, month, day, hour, minute, second (u8), millisecond (u16)
    0x51  acceleration x y z, temperature;      counts / 32768 * 16 g
    0x52  angular velocity x y z, (voltage);    counts / 32768 * 2000 deg/s

A sample is a 0x51 and the 0x52 after it; where the sensor's clock is used, a 0x50 comes before them. The other types,
0x53 to 0x5F, are passed over. A frame has no escape for 0x55, so after damage the next frame is looked for byte by
byte, and counts as found when its sum is right: every byte is in a good frame or counted as garbage.
"""

import math
import struct
from datetime import date

from agent.core.input import RowIntake
from agent.records import BadFrame, Decoded, Loss

ACC_SCALE = 16 / 32768
GYRO_SCALE = math.radians(2000) / 32768
_FRAME = 11
_HEAD = 0x55
_TIME, _ACC, _GYRO = 0x50, 0x51, 0x52
_THREE = struct.Struct("<3h")
_CLOCK = struct.Struct("<6BH")
_EPOCH = date(2000, 1, 1).toordinal()


class WitMotionDecoder:
    """`ports.Decoder`. `BadFrame.where` is the byte since the last reset."""

    def __init__(self, intake: RowIntake) -> None:
        """`intake`: for counts; if it takes times, those of 0x50 in milliseconds since 2000."""
        self._intake = intake
        self._rest = b""
        self._forget()

    def _forget(self) -> None:
        self._offset = 1
        self._synced = True
        self._time: int | None = None
        self._acc: tuple[float, ...] | None = None

    def feed(self, data: bytes, t_rx_ns: int) -> list[Decoded]:
        """See `ports.Decoder.feed`."""
        data = self._rest + data if self._rest else data
        rows: list[list[float]] = []
        wheres: list[int] = []
        bad: list[Decoded] = []
        at, end, garbage = 0, len(data) - _FRAME, 0
        while at <= end:
            if data[at] == _HEAD and 0x50 <= data[at + 1] <= 0x5F:
                if sum(data[at : at + 10]) & 0xFF == data[at + 10]:
                    if garbage:
                        bad.append(self._bad(Loss.GARBAGE, at - garbage, garbage))
                        garbage = 0
                    self._synced = True
                    if data[at + 1] <= _GYRO:
                        self._take(data, at, rows, wheres, bad)
                    at += _FRAME
                    continue
                if self._synced:
                    bad.append(self._bad(Loss.CHECKSUM, at))
            if self._synced:
                self._lose(at, bad)
            found = data.find(_HEAD, at + 1, end + 1)
            step = (end + 1 if found < 0 else found) - at
            at, garbage = at + step, garbage + step
        if garbage:
            bad.append(self._bad(Loss.GARBAGE, at - garbage, garbage))
        self._rest = data[at:]
        self._offset += at
        return (self._intake.take(rows, t_rx_ns, wheres) if rows else []) + bad

    def reset(self) -> list[Decoded]:
        """See `ports.Decoder.reset`."""
        out: list[Decoded] = []
        if self._acc is not None:
            self._lose(0, out)
        if self._rest:
            out.append(self._bad(Loss.GARBAGE, 0, len(self._rest)))
        self._rest = b""
        self._forget()
        return [*out, self._intake.interrupted()]

    def _take(self, data: bytes, at: int, rows: list[list[float]], wheres: list[int], bad: list[Decoded]) -> None:
        """Take a good frame of a type that matters."""
        kind = data[at + 1]
        if kind == _TIME:
            self._time = _milliseconds(*_CLOCK.unpack_from(data, at + 2))
            if self._time is None:
                bad.append(self._bad(Loss.TIME_RANGE, at))
            return
        xyz = _THREE.unpack_from(data, at + 2)
        if kind == _ACC:
            if self._acc is not None:
                bad.append(self._bad(Loss.FRAME, at))
            self._acc = xyz
        elif self._acc is None or (self._intake.timed and self._time is None):
            bad.append(self._bad(Loss.FRAME, at))
            self._acc = None
        else:
            rows.append([*((self._time or 0,) if self._intake.timed else ()), *self._acc, *xyz])
            wheres.append(self._offset + at)
            self._acc = self._time = None

    def _lose(self, at: int, bad: list[Decoded]) -> None:
        """Frames no longer follow each other: what has begun cannot be completed by what comes after."""
        self._synced = False
        if self._acc is not None:
            bad.append(self._bad(Loss.FRAME, at))
        self._acc = self._time = None

    def _bad(self, reason: Loss, at: int, amount: int = 1) -> BadFrame:
        return BadFrame(self._intake.stream, reason, self._offset + at, amount)


def _milliseconds(year: int, month: int, day: int, hour: int, minute: int, second: int, ms: int) -> int | None:
    """Since the year 2000; None if there is no such moment."""
    try:
        days = date(2000 + year, month, day).toordinal() - _EPOCH
    except ValueError:
        return None
    if hour > 23 or minute > 59 or second > 59 or ms > 999:
        return None
    return (((days * 24 + hour) * 60 + minute) * 60 + second) * 1000 + ms
