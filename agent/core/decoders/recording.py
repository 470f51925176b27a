"""The recording format `har-recording/1`: CSV with a comment header, as CONTRACTS and `docs/reference` describe it."""

from typing import NamedTuple

import numpy as np

from agent.core import units
from agent.core.framing import LineFramer
from agent.core.timeline import RATE_SAMPLES, is_late
from agent.errors import InputError
from agent.records import (
    CHANNELS,
    BadFrame,
    Decoded,
    Float32Array,
    Float64Array,
    Int64Array,
    LabelChange,
    Loss,
    SampleBatch,
)

FORMAT = "har-recording/1"
_MAX_SECONDS = 9.2e9
"""Beyond this, seconds do not fit 64-bit nanoseconds."""

_MAX_VALUE = 1e6
"""No unit of acceleration or angular velocity that is read here reaches this on a body or a machine."""

_UNIT_SAMPLES = RATE_SAMPLES
"""Samples whose magnitude is held against the declared unit: no label comes of fewer."""

_HEADER_LINES = 1000
"""Lines after which a file without a column line is something else."""


class Declared(NamedTuple):
    """What the user says of a recording; None leaves it to the recording's own header."""

    acc_unit: str | None = None
    gyro_unit: str | None = None
    rate_hz: float | None = None
    device: str | None = None


class RecordingDecoder:
    """Bytes of one recording in, `SampleBatch` and `BadFrame` out.

    Header problems are `InputError`s, since without units and columns nothing can be read. Rows that cannot be read are
    `BadFrame`s with their line number. `device` is the stream's name once the header is read.
    """

    def __init__(self, name: str, declared: Declared | None = None) -> None:
        """`name`: the stream's name where neither the header nor the user names a device."""
        self.device = name
        self._name = name
        self._declared = declared or Declared()
        self._framer = LineFramer()
        self._header: dict[str, str] = {}
        self._columns: tuple[str, ...] = ()
        self._line = 1
        self._seq = 0
        self._rows = 0
        self._newest_ns: int | None = None
        self._label: str | None = None
        self._first = np.empty((0, len(CHANNELS)), np.float32)

    def feed(self, data: bytes) -> list[Decoded]:
        """Decode what is complete with `data`.

        Raises:
            InputError: the header cannot be used.
        """
        block = self._framer.feed(data)
        return _in_order((self._decode(block) if block else []) + self._too_long())

    def finish(self) -> list[Decoded]:
        """End the input; a last line without a line end is torn: it is dropped and counted.

        Raises:
            InputError: the input ended before its column line.
        """
        block, torn = self._framer.finish()
        out = (self._decode(block) if block else []) + self._too_long()
        if not self._columns:
            if self._line == 1 and not torn:
                raise InputError("it is empty")
            raise InputError(f"it has no line of column names, such as t,{','.join(CHANNELS)},label")
        if torn:
            out.append(BadFrame(self.device, Loss.TORN, self._line))
        return _in_order(out)

    def _too_long(self) -> list[Decoded]:
        lines, self._framer.too_long = self._framer.too_long, []
        if lines and not self._columns:
            raise InputError("it is not a recording: it has no lines that are short enough")
        return [BadFrame(self.device, Loss.TOO_LONG, line) for line in lines]

    def _decode(self, block: bytes) -> list[Decoded]:
        lines = block[:-1].split(b"\n")
        at = 0
        while not self._columns and at < len(lines):
            self._read_header(lines[at])
            at += 1
            self._line += 1
            if self._line > _HEADER_LINES and not self._columns:
                raise InputError(f"it has no line of column names within its first {_HEADER_LINES} lines")
        rows = lines[at:]
        first, self._line = self._line, self._line + len(rows)
        if not rows:
            return []
        return self._fast(rows) or self._row_by_row(rows, first)

    def _read_header(self, line: bytes) -> None:
        if self._line == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        try:
            text = line.decode().strip()
        except UnicodeDecodeError as e:
            raise InputError("it is not text: a recording is UTF-8 CSV, plain or as .gz or .zst") from e
        if text.startswith("#"):
            key, _, value = text[1:].partition(":")
            self._header[key.strip()] = value.strip()
        elif text:
            self._set_columns(text)

    def _set_columns(self, text: str) -> None:
        columns = tuple(c.strip() for c in text.split(","))
        missing = [c for c in CHANNELS if c not in columns]
        if missing:
            found = text if len(text) < 60 else text[:57] + "..."
            raise InputError(
                f"its column line lacks {', '.join(missing)} (found {found!r}); "
                f"a recording has t,{','.join(CHANNELS)} and may have label"
            )
        twice = sorted({c for c in columns if columns.count(c) > 1 and c in (*CHANNELS, "t", "label")})
        if twice:
            raise InputError(f"its column line names {', '.join(twice)} more than once")
        said, given = self._header, self._declared
        if said.get("format", FORMAT) != FORMAT:
            raise InputError(f"its format is {said['format']!r}; this agent reads {FORMAT}")
        unit = {}
        for key, flag in (("acc_unit", given.acc_unit), ("gyro_unit", given.gyro_unit)):
            unit[key] = flag or said.get(key, "")
            if not unit[key]:
                raise InputError(f"it does not say its {key}; add it with --{key.replace('_', '-')}")
        try:
            factor = units.scale(unit["acc_unit"], unit["gyro_unit"])
        except ValueError as e:
            raise InputError(f"its {e}") from e
        self._acc_unit = unit["acc_unit"]
        self._scale = None if (factor == 1).all() else factor
        self._rate_hz = given.rate_hz or _rate(said.get("rate_hz"))
        if "t" not in columns and not self._rate_hz:
            raise InputError(
                "it has no column t (seconds): rename yours if it has times, or give the rate with --rate-hz if not"
            )
        self.device = given.device or said.get("device") or self._name
        self._columns = columns
        self._has_time = "t" in columns
        self._numbers = [columns.index(c) for c in (("t", *CHANNELS) if self._has_time else CHANNELS)]
        self._limits = np.array([[_MAX_SECONDS]] * self._has_time + [[_MAX_VALUE]] * len(CHANNELS))
        self._label_at = columns.index("label") if "label" in columns else None

    def _fast(self, rows: list[bytes]) -> list[Decoded]:
        """Decode rows that are all good, column by column; empty if any is not."""
        try:
            text = b"\n".join(rows).decode()
            if text.startswith("#") or "\n#" in text:
                return []
            lines = text.split("\n")
            commas = len(self._columns) - 1
            if any(line.count(",") != commas for line in lines):
                return []
            # NumPy's own parser takes half the time of float() per field, and refuses what _number() refuses.
            data = np.loadtxt(lines, delimiter=",", usecols=self._numbers, comments=None, ndmin=2).T
        except ValueError:
            return []
        if not (np.abs(data) <= self._limits).all():
            return []
        labels = None if self._label_at is None else tuple(self._label_of(line) for line in lines)
        return [self._batch(data, labels, np.arange(len(rows)), len(rows))]

    def _label_of(self, line: str) -> str:
        if self._label_at == len(self._columns) - 1:
            return line.rpartition(",")[2]
        assert self._label_at is not None
        return line.split(",")[self._label_at]

    def _row_by_row(self, rows: list[bytes], line: int) -> list[Decoded]:
        """Decode rows of which some are bad: the good ones in between become one batch."""
        bad: list[Decoded] = []
        good: list[list[float]] = []
        labels: list[str] = []
        places: list[int] = []
        filled = 0
        for i, row in enumerate(rows):
            if not row.strip() or row.startswith(b"#"):
                continue
            filled += 1
            read = self._read_row(row)
            if isinstance(read, Loss):
                bad.append(BadFrame(self.device, read, line + i))
            else:
                numbers, label = read
                good.append(numbers)
                labels.append(label)
                places.append(filled - 1)
        if not good:
            self._rows += filled
            return bad
        data = np.array(good, np.float64).T
        batch = self._batch(data, None if self._label_at is None else tuple(labels), np.array(places), filled)
        return [batch, *bad]

    def _read_row(self, row: bytes) -> tuple[list[float], str] | Loss:
        try:
            text = row.decode()
        except UnicodeDecodeError:
            return Loss.ENCODING
        fields = text.split(",")
        if len(fields) != len(self._columns):
            return Loss.COLUMNS
        try:
            numbers = [_number(fields[i]) for i in self._numbers]
        except ValueError:
            return Loss.NUMBER
        if not all(map(np.isfinite, numbers)):
            return Loss.NON_FINITE
        if not (np.abs(numbers) <= self._limits[:, 0]).all():
            return Loss.TIME_RANGE if self._has_time and abs(numbers[0]) > _MAX_SECONDS else Loss.VALUE_RANGE
        return numbers, "" if self._label_at is None else self._label_of(text)

    def _batch(
        self, data: Float64Array, labels: tuple[str, ...] | None, places: Int64Array, filled: int
    ) -> SampleBatch:
        """`data`: float64 (7 or 6, n), time in seconds first if the recording has it.

        `places`: which of the next `filled` rows these are: where there is no time, a row that cannot be read takes its
        place all the same.
        """
        n = data.shape[1]
        if self._has_time:
            t_ns = units.nanoseconds(data[0], 1_000_000_000)
        else:
            assert self._rate_hz is not None
            t_ns = np.rint((self._rows + places) * (1e9 / self._rate_hz)).astype(np.int64)
        values = np.ascontiguousarray(data[-len(CHANNELS) :].T, np.float32)
        if self._scale is not None:
            values *= self._scale
        self._check_unit(values)
        batch = SampleBatch(self.device, t_ns, values, self._seq, truth=self._changes(t_ns, labels))
        self._seq += n
        self._rows += filled
        return batch

    def _check_unit(self, values: Float32Array) -> None:
        """Hold the first `_UNIT_SAMPLES` samples against the declared unit: a factor of 9.8 spoils every label."""
        if self._seq >= _UNIT_SAMPLES:
            return
        self._first = np.concatenate([self._first, values[: _UNIT_SAMPLES - self._seq]])
        if len(self._first) == _UNIT_SAMPLES:
            unit = units.likelier_acc_unit(self._first, self._acc_unit)
            if unit:
                raise InputError(f"its acceleration is declared in {self._acc_unit} but its size is that of {unit}")

    def _changes(self, t_ns: Int64Array, labels: tuple[str, ...] | None) -> tuple[LabelChange, ...]:
        if labels is None:
            return ()
        changes = []
        times = t_ns.tolist()
        newest = times[0] - 1 if self._newest_ns is None else self._newest_ns
        forward = newest < times[0] and bool((t_ns[1:] > t_ns[:-1]).all())
        for i, label in enumerate(labels):
            if not forward:
                # A sample that the timeline drops says nothing about the ones that it keeps.
                if is_late(times[i], newest):
                    continue
                newest = times[i]
            if label != self._label:
                changes.append(LabelChange(self._seq + i, times[i], label.strip() or None))
                self._label = label
        self._newest_ns = times[-1] if forward else newest
        return tuple(changes)


def _in_order(decoded: list[Decoded]) -> list[Decoded]:
    """Samples first, then what could not be read, by line."""
    bad = [d for d in decoded if isinstance(d, BadFrame)]
    return [*(d for d in decoded if not isinstance(d, BadFrame)), *sorted(bad, key=lambda frame: frame.where)]


def is_rate(rate_hz: float) -> bool:
    """Whether a declared rate is one that a sensor could have; NaN is not."""
    return 1e-3 <= rate_hz <= 1e6


def _number(text: str) -> float:
    # float() takes 1_000 for a number; a recording does not.
    if "_" in text:
        raise ValueError(text)
    return float(text)


def _rate(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        rate = _number(text)
    except ValueError as e:
        raise InputError(f"its rate_hz is {text!r}, which is not a number") from e
    if not is_rate(rate):
        raise InputError(f"its rate_hz is {text!r}, which is no rate")
    return rate
