"""The loop around the pipeline; a single turn of it can be called by a test."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from agent.errors import InferenceError
from agent.pipeline import Pipeline, Scored, Undecided
from agent.ports import Clock, Model, Sink, Source
from agent.records import (
    BadFrame,
    Event,
    Float32Array,
    Int8Array,
    Loss,
    Prediction,
    SampleBatch,
    Scores,
    Timings,
    Turn,
    Unscored,
)

if TYPE_CHECKING:
    from agent.runtime.fallback import Fallback


class TimedModel:
    """A `ports.Model` that remembers how long its calls took."""

    def __init__(self, model: Model, clock: Clock, around: Callable[[Model], Model] | None = None) -> None:
        """`around`: gives what is called in place of `model`, and of each that replaces it; itself if not given."""
        self._clock = clock
        self._around = around
        self.replace(model)
        self.spent_ns = 0
        """Total of all calls so far."""

    def replace(self, model: Model) -> None:
        """Time another model from now on."""
        self._model = self._around(model) if self._around else model
        self.id, self.labels, self.context_windows = model.id, model.labels, model.context_windows

    def infer(self, windows: Float32Array) -> Scores:
        """See `ports.Model.infer`."""
        start = self._clock.monotonic_ns()
        scores = self._model.infer(windows)
        self.spent_ns += self._clock.monotonic_ns() - start
        return scores

    def contextualise(self, codes: Int8Array) -> Float32Array:
        """See `ports.Model.contextualise`."""
        start = self._clock.monotonic_ns()
        logits = self._model.contextualise(codes)
        self.spent_ns += self._clock.monotonic_ns() - start
        return logits


class Engine:
    """Moves what the source has through the pipeline to the sinks, one `turn` at a time."""

    def __init__(
        self,
        source: Source,
        pipeline: Pipeline,
        sinks: Sequence[Sink],
        clock: Clock,
        model: TimedModel,
        max_failures: int = 3,
        fallback: "Fallback | None" = None,
    ) -> None:
        """`model`: the one inside `pipeline`. `max_failures`: turns in a row in which it may fail.

        `fallback`: who is asked before windows in doubt are decided; nobody if not given.
        """
        self._source = source
        self._pipeline = pipeline
        self._sinks = list(sinks)
        self._clock = clock
        self._model = model
        self._max_failures = max_failures
        self._failures = 0
        self._fallback = fallback
        self.bad: defaultdict[str, Counter[Loss]] = defaultdict(Counter)
        """Frames that could not be decoded, by stream and reason."""

    def add_sink(self, sink: Sink) -> None:
        """Let `sink` take every turn, too, after the others."""
        self._sinks.append(sink)

    def turn(self, timeout_s: float = 0.25) -> Turn | None:
        """Poll the source, waiting at most `timeout_s`, and carry what came all the way; None once it has ended.

        Raises:
            InputError, SourceUnavailable: from the source.
            InferenceError: the model has failed in too many turns in a row.
            OutputError, SinkUnavailable: from a sink.
        """
        if self._fallback is not None:
            timeout_s = self._fallback.patience_s(timeout_s)
        decoded = self._source.poll(timeout_s)
        if decoded is None:
            return None
        start_ns = self._clock.monotonic_ns()
        bad = [d for d in decoded if isinstance(d, BadFrame)]
        items = [d for d in decoded if not isinstance(d, BadFrame)]
        batches = [d for d in items if isinstance(d, SampleBatch)]
        for frame in bad:
            self.bad[frame.stream][frame.reason] += frame.amount
        spent_ns = self._model.spent_ns
        scored = self._pipeline.score(items)
        infer_ns = self._model.spent_ns - spent_ns
        if self._fallback is None:
            events = self._pipeline.decide(scored)
            turn = Turn(batches, bad, events, self._timings(batches, events, start_ns, infer_ns))
        else:
            timings = self._timings(batches, scored, start_ns, infer_ns)
            turn = Turn(batches, bad, *self._fallback.take(scored, timings))
        self._write(turn)
        self._count_failures(scored)
        return turn

    def settle(self, stream: str | None = None) -> None:
        """Decide what waits for an answer without one, of one stream or of all, and carry it to the sinks.

        Raises:
            OutputError, SinkUnavailable: from a sink.
        """
        if self._fallback is not None and (decided := self._fallback.settle(stream)).events:
            self._write(Turn((), (), *decided))

    def close(self) -> None:
        """Stop from upstream to downstream: the source, then the sinks, in order; all of them, even if one fails."""
        with ExitStack() as closing:
            for sink in reversed(self._sinks):
                closing.callback(sink.close)
            closing.callback(self._source.close)

    def _write(self, turn: Turn) -> None:
        for sink in self._sinks:
            sink.write(turn)

    def _count_failures(self, scored: Sequence[Undecided]) -> None:
        failed = next((item for item in scored if isinstance(item, Unscored)), None)
        if failed is not None:
            self._failures += 1
            if self._failures >= self._max_failures:
                # Whoever goes on with another model gives it as many turns.
                self._failures = 0
                raise InferenceError(failed.reason)
        elif any(isinstance(item, Scored) for item in scored):
            self._failures = 0

    def _timings(
        self, batches: Sequence[SampleBatch], made: Sequence[Event | Undecided], start_ns: int, infer_ns: int
    ) -> dict[tuple[str, int], Timings]:
        """Time each prediction, or what is to become one, from when the batch came that completed its window."""
        arrivals: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        for b in batches:
            if b.t_rx_ns is not None and len(b.t_ns):
                arrivals[b.stream].append((int(b.t_ns[-1]), b.t_rx_ns))
        if not arrivals:
            return {}
        now_ns, period_ns = self._clock.monotonic_ns(), self._pipeline.period_ns
        timings = {}
        for e in made:
            if isinstance(e, (Prediction, Scored)) and e.stream in arrivals:
                came = arrivals[e.stream]
                received_ns = came[-1][1]
                if len(came) > 1:
                    received_ns = next((rx for last, rx in came if last >= e.t1_ns - period_ns), received_ns)
                timings[e.stream, e.seq] = Timings(
                    e.stream, e.seq, received_ns, start_ns - received_ns, infer_ns, now_ns - received_ns
                )
        return timings
