"""Record: the configured sources, read as `har-agent run` reads them, to files instead of a model."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from uuid import uuid4

from agent.adapters.clock import SystemClock
from agent.adapters.recorder import CSV, CSV_GZ, RAW, Recorder, RecorderStatus
from agent.config import Config
from agent.core.harraw import MQTT, RawHeader
from agent.ports import Clock
from agent.records import BadFrame, Decoded, Dropped, Loss, SampleBatch, Turn

_TURN_S = 0.25
_PROGRESS_NS = 1_000_000_000

Tee = Callable[[str, bytes | None, int], None]
"""Takes what one read brought: device, bytes (None where the connection broke), receive time."""


class Inbox(Protocol):
    """Everything that the sources deliver; see `agent.runtime.inbox`."""

    def start(self) -> None:
        """Start every source."""

    def poll(self, timeout_s: float) -> Sequence[Decoded] | None:
        """See `ports.Source.poll`."""

    def close(self) -> None:
        """Close every source; what has been queued can still be polled."""

    def problems(self) -> Mapping[str, str | None]:
        """Return, by serial device, why it delivers nothing; None for those that do."""


OpenSources = Callable[[Config, Clock, Tee], Inbox]


@dataclass(frozen=True)
class RecordSettings:
    """What to record, and where to.

    `raw`: bytes as they came instead of samples. `gzip`: compress samples. `duration_s`: None until it is stopped.
    The others are those of `Recorder`.
    """

    out: Path
    raw: bool = False
    gzip: bool = False
    duration_s: float | None = None
    rotate_mb: float = 64.0
    budget_mb: float = 1024.0
    label: str | None = None

    @property
    def kind(self) -> str:
        """What kind of files come of it."""
        if self.raw:
            return RAW
        return CSV_GZ if self.gzip else CSV


class Progress(NamedTuple):
    """The recording so far. `rate_hz`: samples a second, of all devices, since the progress before."""

    elapsed_s: float
    rate_hz: float
    status: RecorderStatus


@dataclass(frozen=True)
class RecordSummary:
    """What became of a recording.

    `bad`: what could not be read, by reason. `dropped`: samples that a full queue let go before they were recorded (in
    raw, their bytes were recorded all the same). `interruptions`: times that a connection broke. `problems`: by device,
    why a serial port delivered nothing at the end.
    """

    elapsed_s: float
    bad: Counter[Loss]
    dropped: int
    interruptions: int
    status: RecorderStatus
    problems: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "v": 1,
            "elapsed_s": round(self.elapsed_s, 3),
            **self.status.as_dict(),
            "bad_frames": {reason.value: n for reason, n in sorted(self.bad.items())},
            "dropped": self.dropped,
            "interruptions": self.interruptions,
            "problems": dict(self.problems),
        }


def raw_headers(config: Config) -> Callable[[str], RawHeader]:
    """Return what tells how a device's bytes are to be decoded: those of its serial port, or payloads of MQTT."""

    def header(device: str) -> RawHeader:
        port = config.serial.get(device)
        if port is not None:
            return RawHeader(device, port.format, port)
        return RawHeader(device, MQTT, config.mqtt_in, max_payload=config.mqtt_in.max_payload)

    return header


def record(
    config: Config,
    settings: RecordSettings,
    on_progress: Callable[[Progress], None] = lambda _: None,
    stopping: Callable[[], bool] = lambda: False,
    clock: Clock | None = None,
    open_sources: OpenSources | None = None,
) -> RecordSummary:
    """Record until `stopping` says so, the duration is over, the budget is spent or the sources have ended.

    Raises:
        ConfigError: no source is configured, or one lacks a setting.
        OutputError: the folder cannot be used, or its budget is spent.
    """
    clock = clock or SystemClock()
    recorder = Recorder(
        settings.out,
        settings.kind,
        clock,
        raw_headers(config),
        rotate_mb=settings.rotate_mb,
        budget_mb=settings.budget_mb,
        label=settings.label,
    )
    inbox = (open_sources or _configured)(config, clock, recorder.raw)
    loop = _Recording(inbox, recorder, clock, on_progress)
    try:
        recorder.start(settings.duration_s, joins=False)
        try:
            inbox.start()
            loop.run(stopping)
            loop.note_problems()
        finally:
            inbox.close()
        loop.drain()
    finally:
        recorder.close()
    return loop.summary()


def _configured(config: Config, clock: Clock, tee: Tee) -> Inbox:
    # Only here: they bring pyserial and paho, which a test with sources of its own has no use for.
    from agent.app.sources import open_sources

    # A client id of its own: a broker ends the connection of a running agent that has the same.
    return open_sources(config, clock, tee, client=f"har-record-{uuid4().hex[:12]}")


class _Recording:
    """One call of `record`."""

    def __init__(self, inbox: Inbox, recorder: Recorder, clock: Clock, on_progress: Callable[[Progress], None]) -> None:
        self._inbox = inbox
        self._recorder = recorder
        self._clock = clock
        self._on_progress = on_progress
        self._start_ns = self._told_ns = clock.monotonic_ns()
        self._told_samples = 0
        self._bad: Counter[Loss] = Counter()
        self._dropped = self._interruptions = 0
        self._problems: Mapping[str, str | None] = {}

    def run(self, stopping: Callable[[], bool]) -> None:
        """Turn until it is over."""
        while not stopping() and self._recorder.status().active:
            decoded = self._inbox.poll(_TURN_S)
            if decoded is None:
                return
            self._take(decoded)
            self._tell_when_due()

    def drain(self) -> None:
        """Take what the closed sources have left."""
        while self._recorder.status().active and (decoded := self._inbox.poll(0)) is not None:
            self._take(decoded)

    def note_problems(self) -> None:
        """Ask the sources how they are, before they are closed."""
        self._problems = self._inbox.problems()

    def summary(self) -> RecordSummary:
        """Return what became of it."""
        elapsed_s = (self._clock.monotonic_ns() - self._start_ns) / 1e9
        problems = {name: problem for name, problem in self._problems.items() if problem}
        status = self._recorder.status()
        return RecordSummary(elapsed_s, self._bad, self._dropped, self._interruptions, status, problems)

    def _take(self, decoded: Sequence[Decoded]) -> None:
        batches = [d for d in decoded if isinstance(d, SampleBatch)]
        bad = [d for d in decoded if isinstance(d, BadFrame)]
        for frame in bad:
            self._bad[frame.reason] += frame.amount
        for cut in decoded:
            if isinstance(cut, Dropped):
                self._dropped += cut.samples
                self._interruptions += not cut.samples
        self._recorder.write(Turn(batches, bad, (), {}))

    def _tell_when_due(self) -> None:
        now_ns = self._clock.monotonic_ns()
        spent_ns = now_ns - self._told_ns
        if spent_ns < _PROGRESS_NS:
            return
        status = self._recorder.status()
        rate_hz = (status.samples - self._told_samples) / (spent_ns / 1e9)
        self._told_ns, self._told_samples = now_ns, status.samples
        self._on_progress(Progress((now_ns - self._start_ns) / 1e9, rate_hz, status))
