"""Replay: recordings through the live pipeline, labels out, a report on how right they were."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.adapters.clock import SystemClock
from agent.adapters.recording import STDIN, RecordingSource
from agent.adapters.text_output import FORMATS as FORMATS
from agent.adapters.text_output import STDOUT, PredictionLines, TextOutput
from agent.app.compose import build_pipeline, open_model
from agent.config import Config
from agent.core.decoders.recording import Declared
from agent.core.report import Scorecard
from agent.errors import InputError, SourceUnavailable
from agent.ports import Clock, Source
from agent.records import BadFrame, Loss, Prediction, Refused, Turn
from agent.runtime.engine import Engine, TimedModel
from agent.runtime.pacing import PacedSource

SHOWN_BAD_ROWS = 20
"""Bad rows whose line numbers are reported; all are counted."""


@dataclass(frozen=True)
class ReplaySettings:
    """How to replay. `speed`: times real time, None for as fast as it goes."""

    config: Config = field(default_factory=Config)
    declared: Declared = field(default_factory=Declared)
    speed: float | None = None
    max_bad_rows: int = 100
    out: str = STDOUT
    fmt: str = "jsonl"


@dataclass
class RecordingResult:
    """What became of one recording. `error` says why it could not be used, or not to its end."""

    path: str
    device: str = ""
    samples: int = 0
    windows: int = 0
    gaps: int = 0
    resampled: int = 0
    interpolated: int = 0
    bad_rows: int = 0
    bad_lines: list[dict[str, Any]] = field(default_factory=list)
    losses: Counter[Loss] = field(default_factory=Counter)
    error: InputError | SourceUnavailable | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            **{name: getattr(self, name) for name in ("path", "device", "samples", "windows", "gaps")},
            **{name: getattr(self, name) for name in ("resampled", "interpolated", "bad_rows", "bad_lines")},
            "losses": {reason.value: n for reason, n in sorted(self.losses.items()) if n},
            "error": str(self.error) if self.error else None,
        }


@dataclass
class ReplayResult:
    """All recordings of one call, and the scorecard over them."""

    model: str
    scorecard: Scorecard
    recordings: list[RecordingResult] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the report of `--report`, as plain values."""
        return {
            "v": 1,
            "model": self.model,
            **self.scorecard.as_dict(),
            "recordings": [r.as_dict() for r in self.recordings],
        }


@dataclass(frozen=True)
class Progress:
    """How far the replay is: bytes read of all bytes (None if unknown), and samples in all so far."""

    path: str
    done_bytes: int
    samples: int


def expand(patterns: Iterable[str]) -> list[str]:
    """Return the paths that patterns mean, in order; what is no pattern is returned as it is.

    Raises:
        SourceUnavailable: a pattern matches nothing.
    """
    import glob

    paths: list[str] = []
    for pattern in patterns:
        if pattern == STDIN or Path(pattern).exists() or not glob.has_magic(pattern):
            paths.append(pattern)
            continue
        found = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207  Path.glob takes no absolute patterns
        if not found:
            raise SourceUnavailable(f"{pattern}: no file matches")
        paths += found
    return paths


def total_bytes(paths: Iterable[str]) -> int | None:
    """Return the size of all files together, None if one is a pipe or cannot be looked at."""
    try:
        files = [Path(p) for p in paths]
        return sum(f.stat().st_size for f in files) if all(f.is_file() for f in files) else None
    except OSError:
        return None


def replay(
    paths: Sequence[str],
    settings: ReplaySettings,
    on_progress: Callable[[Progress], None] = lambda _: None,
    clock: Clock | None = None,
) -> ReplayResult:
    """Replay recordings one after the other, each from a fresh state, and return what became of them.

    A recording that cannot be used is noted in its result and the next one is taken.

    Raises:
        ConfigError, ModelContractError: nothing can be replayed like this.
        OutputError: predictions cannot be written.
    """
    model = open_model(settings.config.model.bundle)
    run = _Run(model, settings, on_progress, clock or SystemClock())
    try:
        for path in paths:
            run.recording(path)
    finally:
        run.sink.close()
    return run.result


class _Run:
    """One call of `replay`."""

    def __init__(
        self, model: Any, settings: ReplaySettings, on_progress: Callable[[Progress], None], clock: Clock
    ) -> None:
        self._model = TimedModel(model, clock)
        self._manifest = model.bundle.manifest
        self._settings = settings
        self._on_progress = on_progress
        self._clock = clock
        self._done_bytes = self._samples = 0
        self._output = TextOutput(settings.out)
        self.sink = PredictionLines(self._output, settings.fmt, model.labels)
        self.result = ReplayResult(model.id, Scorecard(model.labels))

    def recording(self, path: str) -> None:
        """Replay one recording and add its result."""
        result = RecordingResult(path)
        self.result.recordings.append(result)
        try:
            source = RecordingSource(path, self._settings.declared)
        except (InputError, SourceUnavailable) as e:
            result.error = e
            return
        try:
            self._play(source, result)
        except (InputError, SourceUnavailable) as e:
            result.error = e
        finally:
            source.close()
        self._done_bytes += source.size or 0

    def _play(self, source: RecordingSource, result: RecordingResult) -> None:
        settings = self._settings
        pipeline = build_pipeline(self._model, self._manifest, settings.config)
        paced: Source = PacedSource(source, self._clock, settings.speed) if settings.speed else source
        engine = Engine(paced, pipeline, [self.sink], self._clock, self._model)
        self.sink.recording = source.path
        try:
            while (turn := engine.turn()) is not None:
                self._take(turn, result)
                if settings.speed:
                    self._output.flush()
                self._on_progress(Progress(source.path, self._done_bytes + source.position, self._samples))
        finally:
            result.device = source.device
            self._count(pipeline, engine, result)
            self.result.scorecard.end_stream(source.device)
        if not result.samples:
            raise InputError("it has no samples, only a header")

    def _take(self, turn: Turn, result: RecordingResult) -> None:
        scorecard = self.result.scorecard
        for batch in turn.batches:
            self._samples += len(batch.t_ns)
            scorecard.truth(batch.stream, batch.truth)
        for frame in turn.bad:
            self._bad_row(frame, result)
        for event in turn.events:
            if isinstance(event, Prediction):
                scorecard.add(event)
            elif isinstance(event, Refused):
                raise InputError(event.reason)

    def _bad_row(self, frame: BadFrame, result: RecordingResult) -> None:
        if frame.reason == Loss.TORN:
            return
        result.bad_rows += 1
        if len(result.bad_lines) < SHOWN_BAD_ROWS:
            result.bad_lines.append({"line": frame.where, "reason": frame.reason.value})
        if result.bad_rows > self._settings.max_bad_rows:
            first = result.bad_lines[0]
            raise InputError(
                f"more than {self._settings.max_bad_rows} rows cannot be read, the first in line {first['line']} "
                f"({first['reason']}); raise --max-bad-rows to replay the others"
            )

    def _count(self, pipeline: Any, engine: Engine, result: RecordingResult) -> None:
        for name, counts in pipeline.counts().items():
            pipeline.finish(name)
            counts = pipeline.counts()[name]
            result.samples += counts.samples
            result.windows += counts.windows
            result.gaps += counts.gaps
            result.resampled += counts.resampled
            result.interpolated += counts.interpolated
            result.losses += counts.losses
        for reasons in engine.bad.values():
            result.losses += reasons
