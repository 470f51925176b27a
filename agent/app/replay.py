"""Replay: recordings through the live pipeline, labels out, a report on how right they were."""

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from agent.adapters.clock import SystemClock
from agent.adapters.onnx_model import OrtModel
from agent.adapters.recording import STDIN, RecordingSource
from agent.adapters.text_output import FORMATS as FORMATS
from agent.adapters.text_output import STDOUT, PredictionLines, TextOutput
from agent.app.compose import build_pipeline, open_model
from agent.config import Config
from agent.core.decoders.recording import Declared
from agent.core.report import Scorecard
from agent.errors import InputError, OutputError, SourceUnavailable, UsageError
from agent.pipeline import Pipeline
from agent.ports import Clock, Source
from agent.records import BadFrame, Loss, Refused, Turn
from agent.runtime.engine import Engine, TimedModel
from agent.runtime.pacing import PacedSource

SHOWN_BAD_ROWS = 20
"""Bad rows whose line numbers are reported; all are counted."""


class ReplaySettings(NamedTuple):
    """How to replay.

    `speed`: times real time, None for as fast as it goes. `report`: where the caller will write one.
    """

    config: Config = Config()
    declared: Declared = Declared()
    speed: float | None = None
    max_bad_rows: int = 100
    out: str = STDOUT
    fmt: str = "jsonl"
    report: str | None = None


@dataclass
class RecordingResult:
    """What became of one recording.

    `delay_ms`: the most that resampling adds to the age of a sample. `error`: why it could not be used, or not to its
    end.
    """

    path: str
    device: str = ""
    samples: int = 0
    source_rate_hz: float | None = None
    delay_ms: float = 0.0
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
            **{name: getattr(self, name) for name in ("path", "device", "samples", "source_rate_hz", "delay_ms")},
            **{name: getattr(self, name) for name in ("windows", "gaps", "resampled", "interpolated")},
            **{name: getattr(self, name) for name in ("bad_rows", "bad_lines")},
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


class Progress(NamedTuple):
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
        if pattern == STDIN or os.path.exists(pattern) or not glob.has_magic(pattern):  # noqa: PTH110  never raises
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
        InferenceError: the model failed.
        UsageError: what is written would overwrite a recording.
    """
    _check_outputs(paths, settings)
    model = open_model(settings.config.model.bundle)
    run = _Run(model, settings, on_progress, clock or SystemClock())
    try:
        for path in paths:
            run.recording(path)
    finally:
        run.close()
    return run.result


def _check_outputs(paths: Sequence[str], settings: ReplaySettings) -> None:
    """Refuse what would destroy a recording, or fail only after a long replay."""
    written = [w for w in (settings.out, settings.report) if w and w != STDOUT]
    for a, b in [*((w, p) for w in written for p in paths), *combinations(written, 2)]:
        if _is_same(a, b):
            raise UsageError(f"{a} would be overwritten: write somewhere else")
    for w in written:
        folder = os.path.dirname(w) or "."  # noqa: PTH120
        if not os.path.isdir(folder):  # noqa: PTH112  never raises
            raise OutputError(f"{w} cannot be written: there is no folder {folder}")


def _is_same(written: str, other: str) -> bool:
    """Whether two names mean one file, through links too; `STDIN` is what standard input was opened on."""
    if other != STDIN and os.path.realpath(written) == os.path.realpath(other):
        return True
    try:
        found = Path(written).stat(), os.fstat(0) if other == STDIN else Path(other).stat()
    except OSError:
        return False
    return stat.S_ISREG(found[0].st_mode) and os.path.samestat(*found)


class _Run:
    """One call of `replay`."""

    def __init__(
        self, model: OrtModel, settings: ReplaySettings, on_progress: Callable[[Progress], None], clock: Clock
    ) -> None:
        self._model = TimedModel(model, clock)
        self._manifest = model.bundle.manifest
        self._settings = settings
        self._on_progress = on_progress
        self._clock = clock
        self._done_bytes = self._samples = 0
        self._output: TextOutput | None = None
        self._lines: PredictionLines | None = None
        self.result = ReplayResult(model.id, Scorecard(model.labels, self._manifest.input.rate_hz))

    def close(self) -> None:
        """Close the output, if it has been opened."""
        if self._output:
            self._output.close()

    def _sink(self) -> PredictionLines:
        """Open the output with the first recording that can be replayed: a mistake before that leaves it as it was."""
        if self._lines is None:
            self._output = TextOutput(self._settings.out)
            self._lines = PredictionLines(self._output, self._settings.fmt, self._model.labels)
        return self._lines

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
        sink = self._sink()
        sink.recording = source.path
        engine = Engine(paced, pipeline, [sink], self._clock, self._model, max_failures=1)
        try:
            while (turn := engine.turn()) is not None:
                self._take(turn, result, raw=source.is_raw)
                if settings.speed and self._output:
                    self._output.flush()
                self._on_progress(Progress(source.path, self._done_bytes + source.position, self._samples))
        finally:
            result.device = source.device
            self._count(pipeline, engine, result)
            self.result.scorecard.end_stream(source.device)
        if not result.samples:
            raise InputError("it has no samples, only a header")

    def _take(self, turn: Turn, result: RecordingResult, *, raw: bool) -> None:
        self._samples += sum(len(batch.t_ns) for batch in turn.batches)
        self.result.scorecard.take(turn.batches, turn.events)
        if not raw:
            # What a sensor sent includes what nobody can read: it is counted, and no reason to give up.
            self._note_bad_rows([f for f in turn.bad if f.reason != Loss.TORN], result)
        refused = next((e for e in turn.events if isinstance(e, Refused)), None)
        if refused:
            raise InputError(refused.reason)

    def _note_bad_rows(self, frames: Sequence[BadFrame], result: RecordingResult) -> None:
        result.bad_rows += len(frames)
        shown = [{"line": f.where, "reason": f.reason.value} for f in frames]
        result.bad_lines += shown[: SHOWN_BAD_ROWS - len(result.bad_lines)]
        if result.bad_rows > self._settings.max_bad_rows:
            first = result.bad_lines[0]
            do = (
                "is t in seconds?"
                if first["reason"] == Loss.TIME_RANGE
                else "raise --max-bad-rows to replay the others"
            )
            raise InputError(
                f"more than {self._settings.max_bad_rows} rows cannot be read, the first in line {first['line']} "
                f"({first['reason']}); {do}"
            )

    def _count(self, pipeline: Pipeline, engine: Engine, result: RecordingResult) -> None:
        for name in pipeline.counts():
            counts = pipeline.finish(name)
            result.source_rate_hz, result.delay_ms = counts.source_rate_hz, counts.delay_ns / 1e6
            result.samples += counts.samples
            result.windows += counts.windows
            result.gaps += counts.gaps
            result.resampled += counts.resampled
            result.interpolated += counts.interpolated
            result.losses += counts.losses
        for reasons in engine.bad.values():
            result.losses += reasons
