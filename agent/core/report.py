"""How right the labels were: predictions held against a recording's own labels.

A window is scored by the label at its centre. Delay is measured for each onset, the moment at which the recording's
label becomes another one: the end of the first window after it whose decided activity is that label, less the onset. An
onset whose label is not decided while it lasts is missed. Delays are kept in a histogram, so that the memory does not
grow with the recording: their quantiles are within 2 %.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any

from agent.core.histogram import Histogram
from agent.records import Event, Gap, LabelChange, Prediction, SampleBatch


class _Changes:
    """Label changes of one stream, in the order of its samples; those after a gap are held back until it is passed.

    Times alone cannot tell: a clock that was set back takes the same time twice.
    """

    def __init__(self) -> None:
        self._waiting: deque[LabelChange] = deque()
        self._gaps: deque[int] = deque()

    def add(self, changes: Sequence[LabelChange]) -> None:
        self._waiting.extend(changes)

    def expect(self, gap: Gap) -> None:
        self._gaps.append(gap.seq)

    def due(self, t_ns: int) -> Iterator[LabelChange]:
        """Yield the changes up to `t_ns`, before the next gap."""
        while self._waiting and self._waiting[0].t_ns <= t_ns and not self._is_after_gap():
            yield self._waiting.popleft()

    def pass_gap(self) -> Iterator[LabelChange]:
        """Yield what is left before the next gap, and pass it."""
        while self._waiting and not self._is_after_gap():
            yield self._waiting.popleft()
        self._gaps.popleft()

    def rest(self) -> Iterator[LabelChange]:
        """Yield everything that is left."""
        while self._waiting:
            yield self._waiting.popleft()

    def _is_after_gap(self) -> bool:
        return bool(self._gaps) and self._waiting[0].seq >= self._gaps[0]


class _Stream:
    """The labels of one stream: what it is at a window's centre, and which onsets wait to be decided."""

    def __init__(self, delays: Histogram, period_ns: int) -> None:
        self._at_centre, self._at_end = _Changes(), _Changes()
        self._label: str | None = None
        self._last: str | None = None
        self._open: LabelChange | None = None
        self._delays = delays
        self._period_ns = period_ns
        self.onsets = 0

    def add(self, changes: Sequence[LabelChange]) -> None:
        self._at_centre.add(changes)
        self._at_end.add(changes)

    def expect(self, gap: Gap) -> None:
        self._at_centre.expect(gap)
        self._at_end.expect(gap)

    def pass_gap(self) -> None:
        for change in self._at_centre.pass_gap():
            self._label = change.label
        for change in self._at_end.pass_gap():
            self._take_onset(change)
        # Across a gap no delay can be measured: what is open is missed.
        self._open = None

    def score(self, prediction: Prediction) -> str | None:
        """Return the label at the window's centre; measure the delay of an onset that this decision ends."""
        for change in self._at_centre.due((prediction.t0_ns + prediction.t1_ns) // 2):
            self._label = change.label
        # Up to the window's last point: what is labelled after it was not there to be decided, and may not be here yet.
        for change in self._at_end.due(prediction.t1_ns - self._period_ns):
            self._take_onset(change)
        if self._open and self._open.label == prediction.activity:
            self._delays.add(prediction.t1_ns - self._open.t_ns)
            self._open = None
        return self._label

    def finish(self) -> None:
        """Count what no window came to decide."""
        for change in self._at_end.rest():
            self._take_onset(change)

    def _take_onset(self, change: LabelChange) -> None:
        # What waited for its label to be decided has ended.
        self._open = None
        if change.label is None:
            return
        # What a recording begins with is no change of activity.
        if change.label != self._last and self._last is not None:
            self._open = change
            self.onsets += 1
        self._last = change.label


class Scorecard:
    """Collects labels and predictions of any number of streams, in any interleaving."""

    def __init__(self, labels: Sequence[str], rate_hz: float) -> None:
        """`labels`, `rate_hz`: the model's."""
        self._labels = tuple(labels)
        self._period_ns = round(1e9 / rate_hz)
        self._delays = Histogram()
        self._streams: dict[str, _Stream] = {}
        self._finished_onsets = 0
        self._confusion: Counter[tuple[str, str]] = Counter()
        self._decided_right = 0
        self.windows = 0
        self.unknown = 0

    def take(self, batches: Sequence[SampleBatch], events: Sequence[Event]) -> list[tuple[Prediction, str | None]]:
        """Score what came of a turn; return its predictions, each with the recording's label for it, None without."""
        for batch in batches:
            if batch.truth:
                self._streams.setdefault(batch.stream, _Stream(self._delays, self._period_ns)).add(batch.truth)
        gaps = [e for e in events if isinstance(e, Gap) and e.stream in self._streams]
        for gap in gaps:
            self._streams[gap.stream].expect(gap)
        scored = []
        for event in events:
            if isinstance(event, Gap) and event.stream in self._streams:
                self._streams[event.stream].pass_gap()
            elif isinstance(event, Prediction):
                scored.append((event, self._score(event)))
        return scored

    def _score(self, p: Prediction) -> str | None:
        self.windows += 1
        self.unknown += not p.known
        stream = self._streams.get(p.stream)
        truth = stream.score(p) if stream else None
        if truth is not None:
            self._confusion[truth, p.label] += 1
            self._decided_right += p.activity == truth and truth in self._labels
        return truth

    def end_stream(self, name: str) -> None:
        """Forget a stream's labels: another recording may use its name again."""
        stream = self._streams.pop(name, None)
        if stream:
            stream.finish()
            self._finished_onsets += stream.onsets

    @property
    def labelled(self) -> int:
        """Windows that the recording has a label for."""
        return self._confusion.total()

    @property
    def accuracy(self) -> float | None:
        """Share of labelled windows whose own label is right; None without any."""
        right = sum(n for (truth, label), n in self._confusion.items() if truth == label)
        return right / self.labelled if self.labelled else None

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values, for JSON."""
        support: Counter[str] = Counter()
        predicted: Counter[str] = Counter()
        for (truth, label), n in self._confusion.items():
            support[truth] += n
            predicted[label] += n
        names = [*self._labels, *sorted(set(support) - set(self._labels))]
        classes = {name: self._class(name, support[name], predicted[name]) for name in names}
        scored = [c["f1"] for c in classes.values() if c["support"]]
        unknown_to_model = {n: classes[n]["support"] for n in names if n not in self._labels}
        return {
            "windows": self.windows,
            "unknown_windows": self.unknown,
            "labelled_windows": self.labelled,
            "accuracy": self.accuracy,
            "activity_accuracy": self._decided_right / self.labelled if self.labelled else None,
            "macro_f1": sum(scored) / len(scored) if scored else None,
            "classes": classes,
            "labels_not_in_model": unknown_to_model,
            "confusion": {t: {p: self._confusion[t, p] for p in self._labels} for t in names if classes[t]["support"]},
            "onsets": self._onset_summary(),
        }

    def _class(self, name: str, support: int, predicted: int) -> dict[str, Any]:
        right = self._confusion[name, name]
        return {
            "precision": right / predicted if predicted else None,
            "recall": right / support if support else None,
            "f1": 2 * right / (support + predicted) if support + predicted else None,
            "support": support,
        }

    def _onset_summary(self) -> dict[str, Any]:
        count = self._finished_onsets + sum(s.onsets for s in self._streams.values())
        delay = {f"delay_{name}_s": self._delays.quantile_ns(q) / 1e9 for name, q in (("median", 0.5), ("p90", 0.9))}
        known = self._delays.count > 0
        return {
            "count": count,
            "missed": count - self._delays.count,
            **{name: round(seconds, 2) if known else None for name, seconds in delay.items()},
        }
