"""Raw recordings, `har-raw/1`: what one sensor sent, byte for byte, with the times at which it came.

A file is a line of JSON (see `RawHeader`) and then records, little-endian:

    2 bytes   0xA5 0x5A
    u8        kind: 0 bytes of one read, or one MQTT payload; 1 the connection broke, or bytes were let go here
    u32       length of what follows the time
    u64       receive time, nanoseconds since `RawHeader.t0_ns`
    …         the bytes
    u32       CRC-32 of everything before, the mark included

Bytes may be damaged on a card: the reader looks for the next record that is whole. What stands after the last whole
one was torn off while it was written.
"""

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, NamedTuple, Protocol

from agent.core.decoders.recording import Declared
from agent.core.settings import SERIAL_FORMATS, InputSettings
from agent.errors import ConfigError, InputError
from agent.records import BadFrame, Decoded, Loss, SampleBatch

FORMAT = "har-raw/1"
START = b'{"format":"har-raw/'
"""What every raw recording begins with, of whatever version."""

MQTT = "mqtt"
"""The format of payloads of MQTT, beside those of serial ports."""

MAX_LENGTH = 1 << 24
"""Bytes of one record: the largest payload that can be configured."""

_MAX_HEADER = 1 << 14
_MARK = b"\xa5\x5a"
_HEAD = struct.Struct("<2sBIQ")
_CRC = struct.Struct("<I")
_BYTES, _BROKEN = 0, 1
_NUMBER_FIELDS = ("rate_hz", "acc_scale", "gyro_scale")


class RawHeader(NamedTuple):
    """What has to be known to decode a raw recording as it was decoded live.

    `format`: one of `SERIAL_FORMATS`, or `MQTT`. `max_payload`: of MQTT. `started`: wall time of the first record, ISO
    8601. `t0_ns`: its receive time on that board's monotonic clock.
    """

    device: str
    format: str
    settings: InputSettings
    started: str = ""
    t0_ns: int = 0
    max_payload: int = 65536


class RawRecord(NamedTuple):
    """Bytes as they came at `t_rx_ns`, since the header's `t0_ns`; None where the connection broke."""

    t_rx_ns: int
    data: bytes | None


class Damage(NamedTuple):
    """Bytes from `where` on, counted from 1 in the file, are no whole record; what follows does not continue."""

    where: int


def encode_header(header: RawHeader) -> bytes:
    """Return the first line of a raw recording."""
    settings = {f.name: getattr(header.settings, f.name) for f in fields(InputSettings)}
    text = json.dumps(
        {
            "format": FORMAT,
            "device": header.device,
            "kind": MQTT if header.format == MQTT else "serial",
            "input_format": header.format,
            "input": settings,
            "max_payload": header.max_payload,
            "started": header.started,
            "t0_ns": header.t0_ns,
        },
        separators=(",", ":"),
    )
    return text.encode() + b"\n"


def decode_header(line: bytes) -> RawHeader:
    """Read the first line of a raw recording.

    Raises:
        InputError: it is none, or none of this version.
    """
    try:
        said = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise InputError("its first line is no header of a raw recording: it is damaged") from e
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        found = said.get("format") if isinstance(said, dict) else None
        raise InputError(f"its format is {found!r}; this agent reads {FORMAT}")
    device, form, t0_ns = said.get("device"), said.get("input_format"), said.get("t0_ns", 0)
    largest = said.get("max_payload", MAX_LENGTH)
    started = said.get("started", "")
    if not (isinstance(device, str) and device.strip() and device.isprintable()):
        raise InputError("its header names no device")
    if form not in (*SERIAL_FORMATS, MQTT):
        raise InputError(f"its header names the format {form!r}; there are {', '.join((*SERIAL_FORMATS, MQTT))}")
    if not (_is_count(t0_ns, 1 << 63) and _is_count(largest, MAX_LENGTH) and isinstance(started, str)):
        raise InputError("its header has a t0_ns, max_payload or started that cannot be")
    return RawHeader(device, form, _settings(said.get("input")), started, t0_ns, largest)


def encode_record(record: RawRecord) -> bytes:
    """Return one record. More than `MAX_LENGTH` bytes are cut there."""
    kind, data = (_BROKEN, b"") if record.data is None else (_BYTES, record.data[:MAX_LENGTH])
    body = _HEAD.pack(_MARK, kind, len(data), max(record.t_rx_ns, 0)) + data
    return body + _CRC.pack(zlib.crc32(body))


class RecordReader:
    """Bytes after the header in, however they are cut; records and damage out."""

    def __init__(self, offset: int = 0) -> None:
        """`offset`: bytes of the file before the first record."""
        self._rest = bytearray()
        self._offset = offset
        self._damaged_at: int | None = None

    def feed(self, data: bytes) -> list[RawRecord | Damage]:
        """Return what is complete with `data`."""
        self._rest += data
        return self._scan(ended=False)

    def finish(self) -> tuple[list[RawRecord | Damage], int | None]:
        """End the input: return what was still to come, and where the record began that was torn, from 1, if any."""
        out = self._scan(ended=True)
        if self._rest and self._damaged_at is None:
            self._damaged_at = self._offset
        return out, None if self._damaged_at is None else self._damaged_at + 1

    def _scan(self, *, ended: bool) -> list[RawRecord | Damage]:
        out: list[RawRecord | Damage] = []
        rest, at = self._rest, 0
        while len(rest) - at >= _HEAD.size + _CRC.size:
            mark, kind, length, t_ns = _HEAD.unpack_from(rest, at)
            possible = mark == _MARK and kind <= _BROKEN and length <= MAX_LENGTH
            end = at + _HEAD.size + length + _CRC.size
            if possible and end > len(rest) and not ended:
                break
            if possible and end <= len(rest) and _is_whole(rest, at, end):
                if self._damaged_at is not None:
                    out.append(Damage(self._damaged_at + 1))
                    self._damaged_at = None
                data = bytes(rest[at + _HEAD.size : end - _CRC.size])
                out.append(RawRecord(t_ns, None if kind == _BROKEN else data))
                at = end
                continue
            if self._damaged_at is None:
                self._damaged_at = self._offset + at
            following = rest.find(_MARK, at + 1)
            # The last byte may be the first half of a mark.
            at = following if following >= 0 else len(rest) - 1
        del rest[:at]
        self._offset += at
        return out


class _Decoder(Protocol):
    """`ports.Decoder`, which stands above this floor."""

    def feed(self, data: bytes, t_rx_ns: int) -> list[Decoded]: ...

    def reset(self) -> list[Decoded]: ...


class RawDecoder:
    """Bytes of one raw recording in, `SampleBatch`, `BadFrame` and `Dropped` out, through the decoder of live.

    Batches carry no receive time: in a replay they come when they are read. Damage is counted, and interrupts the
    stream as a broken connection does.
    """

    def __init__(self, name: str, declared: Declared | None = None) -> None:
        """`name`: the stream's until the header is read. `declared`: what the user says, over the header."""
        self.device = name
        self._declared = declared or Declared()
        self._line = bytearray()
        self._decoder: _Decoder | None = None
        self._reader = RecordReader()
        self._t0_ns = 0

    def feed(self, data: bytes) -> list[Decoded]:
        """Decode what is complete with `data`.

        Raises:
            InputError: the header cannot be used.
        """
        if self._decoder is None:
            self._line += data
            line, end, data = (bytes(part) for part in self._line.partition(b"\n"))
            if len(line) > _MAX_HEADER:
                raise InputError("its first line is too long for a header of a raw recording: it is damaged")
            if not end:
                return []
            self._decoder = self._open(decode_header(line), len(line) + 1)
        return self._decode(self._decoder, self._reader.feed(data))

    def finish(self) -> list[Decoded]:
        """End the input; a record that was torn off is dropped and counted.

        Raises:
            InputError: the input ended inside its header.
        """
        if self._decoder is None:
            raise InputError("it ends inside its first line")
        records, torn = self._reader.finish()
        out = self._decode(self._decoder, records)
        if torn is not None:
            out.append(BadFrame(self.device, Loss.TORN, torn))
        return out

    def _open(self, header: RawHeader, offset: int) -> _Decoder:
        said = self._declared
        self.device = said.device or header.device
        self._t0_ns = header.t0_ns
        self._reader = RecordReader(offset)
        given = {"acc_unit": said.acc_unit, "gyro_unit": said.gyro_unit, "rate_hz": said.rate_hz}
        try:
            settings = replace(header.settings, **{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]  # names and types are those of `Declared`
            # Only here: what decodes live streams is nothing that a recording in CSV needs.
            if header.format == MQTT:
                from agent.core.decoders.mqtt_payload import PayloadDecoder

                return PayloadDecoder(self.device, settings, header.max_payload)
            from agent.core.decoders.formats import decoder

            return decoder(header.format, self.device, settings)
        except (ConfigError, ValueError) as e:
            raise InputError(f"it cannot be decoded: {e}") from e

    def _decode(self, decoder: _Decoder, records: list[RawRecord | Damage]) -> list[Decoded]:
        out: list[Decoded] = []
        for record in records:
            if isinstance(record, Damage):
                out += [BadFrame(self.device, Loss.CHECKSUM, record.where), *decoder.reset()]
            elif record.data is None:
                out += decoder.reset()
            else:
                out += decoder.feed(record.data, self._t0_ns + record.t_rx_ns)
        return [d._replace(t_rx_ns=None) if isinstance(d, SampleBatch) else d for d in out]


def _is_whole(data: bytearray, start: int, end: int) -> bool:
    (said,) = _CRC.unpack_from(data, end - _CRC.size)
    return bool(said == zlib.crc32(memoryview(data)[start : end - _CRC.size]))


def _is_count(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _settings(said: Any) -> InputSettings:
    """Settings from what a file says; keys of a later version are passed over."""
    if not isinstance(said, Mapping):
        raise InputError("its header does not say how its numbers are to be read")
    given = {f.name: said[f.name] for f in fields(InputSettings) if f.name in said}
    for name, value in given.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number or (value is None and name == "rate_hz") if name in _NUMBER_FIELDS else isinstance(value, str)):
            raise InputError(f"its header has the {name} {value!r}, which cannot be")
    try:
        return InputSettings(**given)
    except (ValueError, OverflowError) as e:
        raise InputError(f"its header cannot be used: {e}") from e
