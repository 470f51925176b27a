"""Samples in, predictions out: timeline -> window -> normalise -> model -> decision, for many streams at once.

One `feed` makes at most one model call per `max_batch` windows, whatever stream they belong to. What comes out for a
stream does not depend on how its samples were cut into batches, nor on what other streams are doing.

`feed` is `score` and then `decide`. Between the two a window may wait, for an answer from elsewhere: what comes after
it in its stream must wait with it, because each decision follows from the one before.

Where the bundle has a context, a second call scores each window by the codes of those before it, and the decision
follows that. It was trained on windows a bundle's own hop apart: at any other hop it is not used.
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from agent.core.decision import Decision, DecisionSettings, calibrated
from agent.core.manifest import Context, Manifest
from agent.core.timeline import Break, RateError, Timeline, grid_offset_ns
from agent.core.window import WindowRing
from agent.errors import InferenceError, ModelContractError
from agent.ports import Model
from agent.records import (
    ActivityChange,
    BoolArray,
    Dropped,
    Event,
    Float32Array,
    Float64Array,
    Gap,
    GapReason,
    Int8Array,
    Loss,
    Origin,
    Prediction,
    Refused,
    SampleBatch,
    Scores,
    Unscored,
)

MAX_BATCH = 256
"""Windows in one model call: beyond this a batch gains little and costs memory."""

_FEW_STREAMS = 8
"""Beyond this something is always about to be complete."""


class StreamCounts(NamedTuple):
    """What became of one stream's samples.

    `source_rate_hz` is measured; `delay_ns`: the most that resampling adds to the age of a sample. Grid points are
    counted as `resampled` (not samples of the source) and `interpolated` (inside short holes).
    """

    source_rate_hz: float | None
    delay_ns: float
    samples: int
    windows: int
    gaps: int
    resampled: int
    interpolated: int
    losses: Counter[Loss]


class _Stream:
    """Everything that is remembered of one stream."""

    def __init__(
        self, name: str, manifest: Manifest, hop: int, decision: Decision, codes: deque[bytes], seq0: int
    ) -> None:
        self.name = name
        self.timeline = Timeline(manifest.input.rate_hz)
        self.ring = WindowRing(manifest.input.window, hop)
        self.decision = decision
        self.codes = codes
        self.seq0 = self.seq = seq0
        self.t_rx_ns: int | None = None
        self.samples = 0
        self.gaps = 0
        self.refused = False
        self.losses: Counter[Loss] = Counter()

    def due_ns(self, period_ns: float) -> int:
        """When its next window can be complete at the earliest; 0 if its rate is not known yet."""
        if self.timeline.source_rate_hz is None or self.t_rx_ns is None:
            return 0
        return self.t_rx_ns + int((self.ring.missing - 1) * period_ns)

    def counts(self) -> StreamCounts:
        timeline = self.timeline
        return StreamCounts(
            timeline.source_rate_hz,
            timeline.delay_ns,
            self.samples,
            self.seq - self.seq0,
            self.gaps,
            timeline.resampled,
            timeline.interpolated,
            self.losses + timeline.losses,
        )


class _Staged(NamedTuple):
    """A window that waits for the model call; its samples are in the batch already.

    `codes`: those of the windows before it, to the last gap; what waits behind a gap has others.
    """

    stream: _Stream
    seq: int
    t0_ns: int
    codes: deque[bytes]


class Call(NamedTuple):
    """What the windows of one model call share.

    `codes`: int8, B times those of a window and the ones before it in its context, oldest first, or the window's own
    alone where there is no context. `windows`: float32 (B, window, 6) in g and rad/s, only if `keep_windows` is set.
    `by_exit`: as in `Scores`.
    """

    manifest: Manifest
    codes: Int8Array
    windows: Float32Array | None
    by_exit: BoolArray | None


class Scored(NamedTuple):
    """A window that the model has scored, and that is not decided yet.

    `scores`: its calibrated probabilities, in the order of the labels; `decisive`: those to decide by, in its context.
    `origin`, `model`: whose they are. `decision`: of its stream. `call`: the model call that it was part of, as number
    `at`.
    """

    stream: str
    seq: int
    t0_ns: int
    t1_ns: int
    scores: list[float]
    novelty: float
    known: bool
    decisive: list[float]
    origin: Origin
    model: str
    decision: Decision
    call: Call
    at: int

    @property
    def has_code(self) -> bool:
        """Whether its code is known: it is not where an early exit has scored it."""
        return self.call.by_exit is None or not self.call.by_exit[self.at]

    def answered(self, probabilities: Sequence[float], model: str, *, known: bool) -> "Scored":
        """Return the window as `model` has scored it elsewhere: that is what is decided by, and published."""
        scores = list(probabilities)
        return self._replace(scores=scores, decisive=scores, known=known, origin=Origin.CLOUD, model=model)


Undecided = Scored | Gap | Refused | Unscored


class Pipeline:
    """See the module's text."""

    def __init__(
        self,
        model: Model,
        manifest: Manifest,
        settings: DecisionSettings | None = None,
        hop: int | None = None,
        max_batch: int = MAX_BATCH,
    ) -> None:
        """`manifest`: of the model's bundle. `hop`: samples from one window to the next, the bundle's own by default.

        Raises:
            ValueError: a hop that is not between 1 and the window's length.
        """
        self._model = model
        self._manifest = manifest
        self._settings = settings or DecisionSettings()
        self._own_hop = hop
        self._hop = manifest.input.hop if hop is None else hop
        self._seq0 = 0
        WindowRing(manifest.input.window, self._hop)
        self._set_threshold: float | None = None
        self._threshold = self.novelty_threshold
        self.period_ns = 1e9 / manifest.input.rate_hz
        """Between two grid points."""
        self._span_ns = int(grid_offset_ns(np.asarray(manifest.input.window), manifest.input.rate_hz))
        self._streams: dict[str, _Stream] = {}
        self._batch = np.empty((max_batch, manifest.input.window, len(manifest.input.channels)), np.float32)
        self._filled = 0
        self._staged: list[_Staged | Gap | Refused] = []
        self.tap: Callable[[Float32Array], None] | None = None
        """Is shown the windows of each model call, float32 (B, window, 6) in g and rad/s; copies what it keeps."""
        self.keep_windows = False
        """Whether what is scored still has its windows: see `Call`."""

    def counts(self) -> dict[str, StreamCounts]:
        """Return what became of each stream's samples so far."""
        return {name: stream.counts() for name, stream in self._streams.items()}

    def feed(self, items: Sequence[SampleBatch | Dropped]) -> list[Event]:
        """Take what has come, run the model on every window that is complete, return events in order per stream.

        Where the model fails, the windows of that call come out as `Unscored`, and the next call is a new try.
        """
        return self.decide(self.score(items))

    def score(self, items: Sequence[SampleBatch | Dropped]) -> list[Undecided]:
        """Do as `feed` does, up to the decision: return what is to be given to `decide`, in this order per stream."""
        scored: list[Undecided] = []
        for item in items:
            stream = self._streams.get(item.stream)
            if stream is None:
                if isinstance(item, Dropped):
                    # Nothing to interrupt; and a name of which nothing could be read is no stream.
                    continue
                stream = _Stream(
                    item.stream, self._manifest, self._hop, self._new_decision(), self._no_codes(), self._seq0
                )
                self._streams[item.stream] = stream
            if isinstance(item, Dropped):
                if item.samples:
                    stream.losses[Loss.QUEUE_FULL] += item.samples
                if item.reason is GapReason.DISCONNECTED:
                    stream.refused = False
                stream.timeline.interrupt(item.reason)
            else:
                scored += self._ingest(stream, item)
        scored += self._score()
        return scored

    def decide(self, scored: Sequence[Undecided]) -> list[Event]:
        """Decide what was scored, and return the events of it. Also after a `swap`, but before its stream is ended."""
        events: list[Event] = []
        for item in scored:
            if not isinstance(item, Scored):
                self._streams[item.stream].decision.clear()
                events.append(item)
                continue
            stream, seq, t0_ns, t1_ns, scores, novelty, known, decisive, origin, model, decision, call, _ = item
            confidence = max(scores)
            previous = decision.activity
            activity, smoothed = decision.update(t1_ns, decisive, known)
            # By position, in the order of the record's fields: names cost a third more, for every window.
            events.append(
                Prediction(
                    stream,
                    seq,
                    t0_ns,
                    t1_ns,
                    call.manifest.labels[scores.index(confidence)],
                    confidence,
                    tuple(scores),
                    novelty,
                    known,
                    activity,
                    origin,
                    model,
                )
            )
            if activity != previous:
                events.append(ActivityChange(stream, t1_ns, activity, previous, smoothed))
        return events

    def due_ns(self) -> int:
        """Return the time, on the clock of receive times, before which no window can be complete; 0 if nobody knows.

        Whoever waits for samples may sleep that long, instead of waking up for each of them.
        """
        if len(self._streams) > _FEW_STREAMS:
            return 0
        return min((stream.due_ns(self.period_ns) for stream in self._streams.values()), default=0)

    def reconsider(self, name: str) -> None:
        """Look again at a stream that was refused; it is refused again if it has not changed.

        One that was interrupted is looked at again by itself.
        """
        stream = self._streams.get(name)
        if stream is not None:
            stream.refused = False

    def finish(self, name: str) -> StreamCounts:
        """End a stream and forget it; return what became of its samples, those that no window has covered included."""
        stream = self._streams.pop(name)
        stream.losses[Loss.PARTIAL_WINDOW] += stream.ring.uncovered + stream.timeline.held
        return stream.counts()

    def retire(self, name: str) -> StreamCounts | None:
        """Do as `finish` does, for a stream that may come back: no stream that begins later uses its numbers again.

        None if there is no such stream.
        """
        if name not in self._streams:
            return None
        self._seq0 = max(self._seq0, self._streams[name].seq)
        return self.finish(name)

    def swap(self, model: Model, manifest: Manifest) -> None:
        """Go on with another model, between two feeds: no sample, window or number is lost.

        What was decided stands where the labels are the same, and is decided anew where they are not. Codes of the old
        model say nothing to the new one: its context begins anew.

        Raises:
            ModelContractError: the model takes another input; nothing has changed.
        """
        check_same_input(manifest, self._manifest)
        same_labels = manifest.labels == self._manifest.labels
        self._model, self._manifest = model, manifest
        self._hop = manifest.input.hop if self._own_hop is None else self._own_hop
        self._threshold = self.novelty_threshold
        for stream in self._streams.values():
            stream.ring.hop = self._hop
            stream.codes = self._no_codes()
            if same_labels:
                stream.decision.use_context(self._context is not None)
            else:
                stream.decision = self._new_decision()

    @property
    def hop(self) -> int:
        """Samples from one window to the next."""
        return self._hop

    @property
    def _context(self) -> Context | None:
        """The context that is used, if any."""
        return self._manifest.context if self._hop == self._manifest.input.hop else None

    def _new_decision(self) -> Decision:
        return Decision(self._manifest.labels, self._settings, in_context=self._context is not None)

    def _no_codes(self) -> deque[bytes]:
        """What a context sees before a stream's first window, and before the first one after a gap."""
        n = self._context.windows if self._context else 0
        return deque([bytes(self._manifest.code.bytes)] * n, maxlen=n)

    @property
    def novelty_threshold(self) -> float:
        """Novelty above which a window is unknown: the model's own, or what was set."""
        return self.threshold_for(self._manifest)

    def threshold_for(self, manifest: Manifest) -> float:
        """Return the threshold that will hold once the model of `manifest` runs."""
        return manifest.calibration.novelty_threshold if self._set_threshold is None else self._set_threshold

    def set_novelty_threshold(self, threshold: float | None) -> None:
        """Use another threshold, with whatever model runs; None for the model's own.

        Raises:
            ValueError: it is not a positive number.
        """
        # Whole numbers may be beyond what NumPy compares with.
        threshold = None if threshold is None else float(threshold)
        if threshold is not None and not 0 < threshold < float("inf"):
            raise ValueError(f"novelty_threshold must be a positive number, not {threshold}")
        self._set_threshold = threshold
        self._threshold = self.novelty_threshold

    def _ingest(self, stream: _Stream, batch: SampleBatch) -> list[Undecided]:
        """Stage what a batch completes; return what came of model calls that had to be made on the way."""
        scored: list[Undecided] = []
        stream.samples += len(batch.t_ns)
        stream.t_rx_ns = batch.t_rx_ns
        if stream.refused:
            stream.losses[Loss.RATE] += len(batch.t_ns)
            return scored
        held = 0 if stream.timeline.source_rate_hz else stream.timeline.held
        try:
            pieces = stream.timeline.push(batch.t_ns, batch.values, batch.seq0)
        except RateError as e:
            stream.refused = True
            stream.losses[Loss.RATE] += held + len(batch.t_ns)
            self._staged.append(Refused(stream.name, str(e)))
            return scored
        window = self._manifest.input.window
        for piece in pieces:
            if isinstance(piece, Break):
                self._staged.append(self._interrupt(stream, piece))
                continue
            for taken, data in stream.ring.push(piece.values):
                if self._filled == len(self._batch):
                    scored += self._score()
                self._batch[self._filled] = data
                self._filled += 1
                t0_ns = piece.origin_ns + round((piece.k0 + taken - window) * self.period_ns)
                self._staged.append(_Staged(stream, stream.seq, t0_ns, stream.codes))
                stream.seq += 1
        return scored

    def _interrupt(self, stream: _Stream, cut: Break) -> Gap:
        gap = Gap(stream.name, cut.seq, cut.t0_ns, cut.t1_ns, cut.reason, stream.ring.uncovered)
        stream.gaps += 1
        stream.losses[Loss.PARTIAL_WINDOW] += stream.ring.uncovered
        stream.ring.clear()
        stream.codes = self._no_codes()
        return gap

    def _score(self) -> list[Undecided]:
        """Run the model on what is staged; return it in the order of staging."""
        staged, self._staged = self._staged, []
        n, self._filled = self._filled, 0
        if not n:
            return [item for item in staged if not isinstance(item, _Staged)]
        windows = self._batch[:n]
        if self.tap is not None:
            self.tap(windows)
        kept = windows.copy() if self.keep_windows else None
        self._manifest.normalisation.apply(windows, out=windows)
        try:
            scores = self._model.infer(windows)
            rows, codes = self._read(scores, staged)
        except InferenceError as e:
            return [self._unscored(item, str(e)) for item in staged]
        call, model = Call(self._manifest, codes, kept, scores.by_exit), self._model.id
        scored: list[Undecided] = []
        at = 0
        for item in staged:
            if not isinstance(item, _Staged):
                scored.append(item)
                continue
            stream, seq, t0_ns, _ = item
            probabilities, novelty, decisive = next(rows)
            # By position, as in `decide`.
            scored.append(
                Scored(
                    stream.name,
                    seq,
                    t0_ns,
                    t0_ns + self._span_ns,
                    probabilities,
                    novelty,
                    novelty <= self._threshold,
                    decisive,
                    Origin.LOCAL,
                    model,
                    stream.decision,
                    call,
                    at,
                )
            )
            at += 1
        return scored

    def _unscored(self, item: _Staged | Gap | Refused, reason: str) -> Undecided:
        stream = item.stream if isinstance(item, _Staged) else self._streams[item.stream]
        stream.codes = self._no_codes()
        if not isinstance(item, _Staged):
            return item
        stream.losses[Loss.INFERENCE] += 1
        return Unscored(stream.name, item.seq, item.t0_ns, item.t0_ns + self._span_ns, reason)

    def _read(
        self, scores: Scores, staged: Sequence[_Staged | Gap | Refused]
    ) -> tuple[Iterator[tuple[list[float], float, list[float]]], Int8Array]:
        """Calibrated probabilities, novelty, and the probabilities to decide by, a window at a time, as plain floats.

        And the codes, as in `Call`.

        Raises:
            InferenceError: they are no numbers, which no decision can be made of; or the context failed.
        """
        rows = calibrated(scores.logits, self._manifest.calibration.temperature).tolist()
        novelty = scores.novelty.tolist()
        self._check_numbers(novelty)
        self._check_numbers([row[0] for row in rows])
        context = self._context
        if context is None:
            return zip(rows, novelty, rows, strict=True), scores.code
        codes = self._gather(staged, scores.code)
        decisive = calibrated(self._model.contextualise(codes), context.temperature).tolist()
        if scores.by_exit is not None:
            # A window without a code has no context either.
            decisive = [own if alone else row for own, alone, row in zip(rows, scores.by_exit, decisive, strict=True)]
        self._check_numbers([row[0] for row in decisive])
        return zip(rows, novelty, decisive, strict=True), codes

    def _check_numbers(self, values: Sequence[float]) -> None:
        # One logit that is no number makes all of its row so.
        if not all(map(math.isfinite, values)):
            raise InferenceError(f"{self._model.id} gives scores that are no numbers")

    def _gather(self, staged: Sequence[_Staged | Gap | Refused], code: Int8Array) -> Int8Array:
        """Put each window's code behind those before it; return what the context takes, int8 (B, windows, *code).

        As bytes, because one join costs less than as many array operations.
        """
        raw, size, at = code.tobytes(), self._manifest.code.bytes, 0
        seen: list[bytes] = []
        for item in staged:
            if isinstance(item, _Staged):
                item.codes.append(raw[at : at + size])
                seen += item.codes
                at += size
        return np.frombuffer(b"".join(seen), np.int8).reshape(len(code), -1, *code.shape[1:])


def check_same_input(new: Manifest, running: Manifest) -> None:
    """Check that a model can take the place of another while windows are being filled.

    Raises:
        ModelContractError: it takes another input.
    """
    a, b = new.input._replace(hop=0), running.input._replace(hop=0)
    if a != b:
        raise ModelContractError(
            f"{new.name} takes windows of {a.window} samples at {a.rate_hz:g} Hz, the model that runs {b.window} at "
            f"{b.rate_hz:g} Hz: it cannot take over live. Set model.bundle to it and start the agent again"
        )


def score_windows(model: Model, manifest: Manifest, windows: Float32Array) -> tuple[Float64Array, Float64Array]:
    """Score ready-cut windows through the same normalisation, model and calibration, without decision.

    `windows`: float32 (n, window, 6) in g and rad/s. Returns probabilities
    float64 (n, classes) and novelty float64 (n,).
    """
    scores = [
        model.infer(manifest.normalisation.apply(windows[i : i + MAX_BATCH])) for i in range(0, len(windows), MAX_BATCH)
    ]
    return (
        np.concatenate([calibrated(s.logits, manifest.calibration.temperature) for s in scores]),
        np.concatenate([s.novelty for s in scores]),
    )
