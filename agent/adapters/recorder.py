"""Recording to disk: samples as `har-recording/1`, or bytes as they came as `har-raw/1`; a file a device.

Readers' threads only put bytes in memory; whoever turns the loop writes them out, once a second. A recorder never
deletes a recording: at its byte budget, or when the disk refuses, it stops and says so.
"""

import contextlib
import os
import re
import threading
import zlib
from collections import deque
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agent.core.harraw import RawHeader, RawRecord, encode_header, encode_record
from agent.core.wire import iso_time, recording_header, recording_rows
from agent.errors import OutputError
from agent.ports import Clock
from agent.records import SampleBatch, Turn

CSV, CSV_GZ, RAW = "csv", "csv.gz", "raw"
KINDS = (CSV, CSV_GZ, RAW)
"""What can be recorded."""

MAX_PENDING = 16 << 20
"""Bytes that may wait in memory to be written: what comes beyond it is let go and counted."""

_SUFFIXES = {CSV: ".csv", CSV_GZ: ".csv.gz", RAW: ".harraw"}
_FLUSH_NS = 1_000_000_000
_IDLE_NS = 600_000_000_000
_CSV_ROW = 70
"""Bytes of a row of CSV, and more than bytes and time of a small read take in memory."""
_NAME = 64
_SHOWN_FILES = 16


class RecorderStatus(NamedTuple):
    """What a recorder does, or has done since it was started last.

    `left_s`: until it stops by itself; None if it does not. `files`: how many were begun; `names`: the newest of them.
    `size_bytes`: written to disk. `lost`: samples (csv) or bytes (raw) that were let go because the disk was too slow.
    `ended`: `duration`, `stopped`, `budget` or `problem`, None while it records. `problem`: for people.
    """

    active: bool
    kind: str
    folder: str
    left_s: float | None
    devices: int
    samples: int
    files: int
    names: tuple[str, ...]
    size_bytes: int
    lost: int
    ended: str | None
    problem: str | None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return self._asdict() | {"names": list(self.names)}


class _File:
    """A file that is written to; it is open only while it is."""

    def __init__(self, path: Path, *, compressed: bool, t0_ns: int = 0) -> None:
        self.path = path
        self.t0_ns = t0_ns
        self.size = 0
        # A small window: a board may record many devices, each with its own.
        self._gzip = zlib.compressobj(6, zlib.DEFLATED, 16 + 12, 5) if compressed else None

    def append(self, data: bytes, *, last: bool = False) -> int:
        """Write `data` and return what that took on disk; whatever was appended can be read, should nothing follow."""
        if self._gzip:
            data = self._gzip.compress(data) + self._gzip.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | (0 if self.size else os.O_CREAT | os.O_EXCL)
        with os.fdopen(os.open(self.path, flags, 0o644), "ab") as file:
            file.write(data)
        self.size += len(data)
        return len(data)

    def finish(self) -> int:
        """Write what makes it whole; return the bytes that took."""
        return self.append(b"", last=True) if self._gzip and self.size else 0


class _Track:
    """One device: what waits to be written, and the file that it goes to."""

    def __init__(self, label: str | None, *, cut: bool) -> None:
        self.batches: list[SampleBatch] = []
        self.reads: list[RawRecord] = []
        self.cut = cut
        """The next read does not continue what was recorded before it: it may begin inside a line or a frame."""
        self.file: _File | None = None
        self.numbers = count(1)
        self.label = label
        self.written_ns = 0


class Recorder:
    """`ports.Sink` for samples, and a tee for bytes, of as many devices as come.

    `raw` may be called from any thread and only takes a lock for a moment; everything else belongs to one thread, which
    must call `write` or `tick` now and then: they write to disk. Nothing is recorded before `start`.
    """

    def __init__(
        self,
        folder: Path,
        kind: str,
        clock: Clock,
        headers: Callable[[str], RawHeader] | None = None,
        *,
        rotate_mb: float = 64.0,
        budget_mb: float = 1024.0,
        label: str | None = None,
    ) -> None:
        """`kind`: one of `KINDS`. `headers`: how a device's bytes are to be decoded, needed for raw.

        `rotate_mb`: size at which a device gets a new file. `budget_mb`: of all recordings in `folder` together, older
        ones included. `label`: what every sample is labelled with, unless its source knows better.

        Raises:
            ValueError: an unknown kind, or raw without `headers`.
        """
        if kind not in KINDS or (kind == RAW and headers is None):
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, and raw needs headers: {kind!r}")
        self._folder = folder
        self._kind = kind
        self._clock = clock
        self._headers = headers
        self._rotate_bytes = round(rotate_mb * 1e6)
        self._budget_bytes = round(budget_mb * 1e6)
        self._label = label
        self._lock = threading.Lock()
        self._active = False
        self._joins = True
        self._tracks: dict[str, _Track] = {}
        self._pending = self._lost = 0
        self._deadline_ns: int | None = None
        self._flushed_ns = self._held = 0
        self._reset()

    def _reset(self) -> None:
        self._names: set[str] = set()
        self._newest: deque[str] = deque(maxlen=_SHOWN_FILES)
        self._files = self._samples = self._size = self._lost = 0
        self._ended: str | None = None
        self._problem: str | None = None

    @property
    def problem(self) -> str | None:
        """Why it stopped by itself before its time, for people; None if it did not."""
        return self._problem

    def start(self, seconds: float | None = None, *, joins: bool = True) -> None:
        """Begin to record, for `seconds` or until `stop`; while it records, only set the time that is left.

        `joins`: sources deliver already, so that the first bytes may be the rest of a line or a frame.

        Raises:
            OutputError: the folder cannot be used, or its budget is spent.
        """
        now_ns = self._clock.monotonic_ns()
        if not self._active:
            self._reset()
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._held = self._measure()
            except OSError as e:
                raise OutputError(f"nothing can be recorded to {self._folder}: {e.strerror or e}") from e
            if self._held >= self._budget_bytes:
                raise OutputError(
                    f"{self._folder} holds {self._held / 1e6:.1f} MB of recordings, and its budget is "
                    f"{self._budget_bytes / 1e6:g} MB: move some away, or raise --budget-mb"
                )
            self._flushed_ns, self._joins = now_ns, joins
            with self._lock:
                self._active = True
        self._deadline_ns = None if seconds is None else now_ns + round(seconds * 1e9)

    def stop(self) -> None:
        """Write everything out and end. Never raises: see `problem`. Idempotent."""
        self._end("stopped")

    def raw(self, device: str, data: bytes | None, t_rx_ns: int) -> None:
        """Take bytes of one read, or one payload, as they came; None where the connection broke. Thread-safe.

        Does no I/O and never raises.
        """
        if self._kind != RAW:
            return
        size = _CSV_ROW + len(data or b"")
        with self._lock:
            if not self._active:
                return
            track = self._track(device)
            if self._pending + size > MAX_PENDING:
                self._lost += len(data or b"")
                track.cut = True
                return
            if track.cut and data is not None:
                track.reads.append(RawRecord(t_rx_ns, None))
            track.cut = False
            track.reads.append(RawRecord(t_rx_ns, data))
            self._pending += size

    def write(self, turn: Turn) -> None:
        """Take a turn's samples, and write out what is due. Blocks on the disk once a second; never raises for it."""
        if not self._active:
            return
        for batch in turn.batches:
            self._samples += len(batch.t_ns)
            self._names.add(batch.stream)
            if self._kind == RAW or not len(batch.t_ns):
                continue
            size = _CSV_ROW * len(batch.t_ns)
            with self._lock:
                if self._pending + size > MAX_PENDING:
                    self._lost += len(batch.t_ns)
                    continue
                self._track(batch.stream).batches.append(batch)
                self._pending += size
        self.tick()

    def tick(self) -> None:
        """Write out what is due, and stop if the time is over. Blocks on the disk; never raises for it."""
        if not self._active:
            return
        now_ns = self._clock.monotonic_ns()
        if self._deadline_ns is not None and now_ns >= self._deadline_ns:
            self._end("duration")
        elif now_ns - self._flushed_ns >= _FLUSH_NS or self._pending > MAX_PENDING // 2:
            self._flush(now_ns)

    def close(self) -> None:
        """See `stop`."""
        self.stop()

    def status(self) -> RecorderStatus:
        """Return what is recorded, or what has been."""
        left_s = None
        if self._active and self._deadline_ns is not None:
            left_s = max(self._deadline_ns - self._clock.monotonic_ns(), 0) / 1e9
        return RecorderStatus(
            self._active,
            self._kind,
            str(self._folder),
            left_s,
            len(self._names),
            self._samples,
            self._files,
            tuple(self._newest),
            self._size,
            self._lost,
            self._ended,
            self._problem,
        )

    def _track(self, device: str) -> _Track:
        track = self._tracks.get(device)
        if track is None:
            track = self._tracks[device] = _Track(self._label, cut=self._joins)
        return track

    def _end(self, why: str, problem: str | None = None) -> None:
        if not self._active:
            return
        # What is flushed may be what ends it.
        if problem is None and not self._flush(self._clock.monotonic_ns()):
            return
        with self._lock:
            self._active = False
            tracks, self._tracks = self._tracks, {}
            self._pending = 0
        self._ended, self._problem = why, problem
        for track in tracks.values():
            with contextlib.suppress(OSError):
                self._finish(track)

    def _flush(self, now_ns: int) -> bool:
        """Write out what waits; False if that ended the recording."""
        self._flushed_ns = now_ns
        with self._lock:
            waiting = [(name, t, t.batches, t.reads) for name, t in self._tracks.items() if t.batches or t.reads]
            for track in self._tracks.values():
                track.batches, track.reads = [], []
            self._pending = 0
        for name, track, batches, reads in waiting:
            self._names.add(name)
            try:
                full = not self._store(name, track, batches, reads)
            except OSError as e:
                self._end("problem", f"recording to {self._folder} stopped: {e.strerror or e}")
                return False
            if full:
                spent = f"the recordings in {self._folder} have reached their budget of {self._budget_bytes / 1e6:g} MB"
                self._end("budget", f"recording stopped: {spent}")
                return False
            track.written_ns = now_ns
        self._forget_idle(now_ns)
        return True

    def _forget_idle(self, now_ns: int) -> None:
        with self._lock:
            idle = [n for n, t in self._tracks.items() if t.written_ns and now_ns - t.written_ns > _IDLE_NS]
            tracks = [self._tracks.pop(n) for n in idle if not self._tracks[n].reads]
        for track in tracks:
            with contextlib.suppress(OSError):
                self._finish(track)

    def _store(self, name: str, track: _Track, batches: list[SampleBatch], reads: list[RawRecord]) -> bool:
        """Append what waited to the device's file; False if there is no room for it in the budget."""
        label = track.label
        if self._kind == RAW:
            size = sum(map(_stored_size, reads))
        else:
            text, label = _rows(batches, label)
            size = len(text)
        # What is compressed takes less: it is held against the limits as it is, for a flush is small beside them.
        if track.file is not None and (track.file.size + size > self._rotate_bytes or not track.file.path.exists()):
            self._finish(track)
            if reads and reads[0].data is not None:
                # A file stands for itself: it may begin inside a line or a frame.
                reads = [RawRecord(reads[0].t_rx_ns, None), *reads]
        data = b""
        if track.file is None:
            track.file = self._new_file(name, track, reads)
            data = self._header(name, batches, track.file)
        if self._kind == RAW:
            data += b"".join(encode_record(RawRecord(r.t_rx_ns - track.file.t0_ns, r.data)) for r in reads)
        else:
            data += text
        if self._held + len(data) > self._budget_bytes:
            self._held = self._measure()
            if self._held + len(data) > self._budget_bytes:
                return False
        fresh = not track.file.size
        self._count(track.file.append(data))
        if fresh:
            self._files += 1
            self._newest.append(track.file.path.name)
        track.label = label
        return True

    def _new_file(self, name: str, track: _Track, reads: list[RawRecord]) -> _File:
        time = re.sub(r"[-:]|\.\d+", "", iso_time(self._clock.wall_ns()))
        stem = f"{safe_name(name)}-{time}"
        # Two devices may be called alike but for what a file's name cannot hold.
        path = next(
            path
            for path in (self._folder / f"{stem}-{n}{_SUFFIXES[self._kind]}" for n in track.numbers)
            if not path.exists()
        )
        return _File(path, compressed=self._kind == CSV_GZ, t0_ns=reads[0].t_rx_ns if reads else 0)

    def _header(self, name: str, batches: list[SampleBatch], file: _File) -> bytes:
        device = _printable(name)
        if self._kind == RAW:
            assert self._headers is not None
            # The wall clock is read once the bytes are written, up to a second after they came.
            started = iso_time(self._clock.wall_ns() - (self._clock.monotonic_ns() - file.t0_ns))
            header = self._headers(name)
            return encode_header(header._replace(device=device, started=started, t0_ns=file.t0_ns))
        return recording_header(device, _rate_hz(batches)).encode("utf-8", "backslashreplace")

    def _finish(self, track: _Track) -> None:
        file, track.file = track.file, None
        if file is not None and file.path.exists():
            self._count(file.finish())

    def _count(self, size: int) -> None:
        self._size += size
        self._held += size

    def _measure(self) -> int:
        """Bytes of all recordings in the folder, whoever made them."""
        suffixes = tuple(_SUFFIXES.values())
        with os.scandir(self._folder) as entries:
            return sum(e.stat().st_size for e in entries if e.name.endswith(suffixes) and e.is_file())


def safe_name(device: str) -> str:
    """Return a device's name as the beginning of a file's name, whatever it is."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", device).lstrip(".-")[:_NAME] or "device"


def _printable(device: str) -> str:
    """A device's name as one line of text, which a header can hold."""
    return "".join(c if c.isprintable() else "_" for c in device).strip() or "device"


def _rows(batches: list[SampleBatch], label: str | None) -> tuple[bytes, str | None]:
    lines = []
    for batch in batches:
        text, label = recording_rows(batch, label)
        lines.append(text)
    return "".join(lines).encode("utf-8", "backslashreplace"), label


def _rate_hz(batches: list[SampleBatch]) -> float | None:
    """The rate of the first samples of a file, by their own times; for people, since every row has its time."""
    intervals = np.diff(np.concatenate([batch.t_ns for batch in batches]))
    if not len(intervals) or np.median(intervals) <= 0:
        return None
    return float(f"{1e9 / float(np.median(intervals)):.4g}")


def _stored_size(read: RawRecord) -> int:
    return len(read.data or b"") + len(encode_record(RawRecord(0, None)))
