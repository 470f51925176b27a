"""How right the labels were: predictions held against a recording's own labels.

A window is scored by the label at its centre. Delay is measured for each onset, the moment at which the recording's
label becomes another one: the end of the first window after it whose decided activity is that label, less the onset. An
onset whose label is not decided before the next onset is missed.
"""

import math
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from typing import Any

from agent.records import LabelChange, Prediction


class _Truth:
    """The labels of one stream, in the order of time, forgotten once no window can ask for them."""

    def __init__(self) -> None:
        self._changes: deque[LabelChange] = deque()
        self._current: str | None = None

    def add(self, changes: Sequence[LabelChange]) -> None:
        self._changes.extend(changes)

    def at(self, t_ns: int) -> str | None:
        """The label at `t_ns`, which never goes back."""
        while self._changes and self._changes[0].t_ns <= t_ns:
            self._current = self._changes.popleft().label
        return self._current


class _Onsets:
    """Onsets of one stream, and how long each took to be decided."""

    def __init__(self, delays_ns: list[int]) -> None:
        self._pending: deque[LabelChange] = deque()
        self._last: str | None = None
        self._delays_ns = delays_ns
        self.count = 0

    def add(self, changes: Sequence[LabelChange]) -> None:
        for change in changes:
            if change.label is None:
                continue
            # What a recording begins with is no change of activity.
            if change.label != self._last and self._last is not None:
                self._pending.append(change)
                self.count += 1
            self._last = change.label

    def decided(self, t_ns: int, activity: str) -> None:
        while len(self._pending) > 1 and self._pending[1].t_ns <= t_ns:
            self._pending.popleft()
        if self._pending and self._pending[0].t_ns <= t_ns and self._pending[0].label == activity:
            self._delays_ns.append(t_ns - self._pending.popleft().t_ns)


class Scorecard:
    """Collects labels and predictions of any number of streams, in any interleaving."""

    def __init__(self, labels: Sequence[str]) -> None:
        """`labels`: the model's."""
        self._labels = tuple(labels)
        self._truth: defaultdict[str, _Truth] = defaultdict(_Truth)
        self._delays_ns: list[int] = []
        self._onsets: dict[str, _Onsets] = {}
        self._finished_onsets = 0
        self._confusion: Counter[tuple[str, str]] = Counter()
        self._decided_right = 0
        self.windows = 0
        self.unknown = 0

    def truth(self, stream: str, changes: Sequence[LabelChange]) -> None:
        """Take label changes of a stream; they must come before the predictions whose windows they label."""
        if changes:
            self._truth[stream].add(changes)
            if stream not in self._onsets:
                self._onsets[stream] = _Onsets(self._delays_ns)
            self._onsets[stream].add(changes)

    def add(self, prediction: Prediction) -> str | None:
        """Score one prediction; return the recording's label for it, None if it has none."""
        p = prediction
        self.windows += 1
        self.unknown += not p.known
        truth = self._truth[p.stream].at((p.t0_ns + p.t1_ns) // 2)
        if truth is not None:
            self._confusion[truth, p.label] += 1
            self._decided_right += p.activity == truth
        if p.stream in self._onsets:
            self._onsets[p.stream].decided(p.t1_ns, p.activity)
        return truth

    def end_stream(self, stream: str) -> None:
        """Forget a stream's labels: another recording may use its name again."""
        self._truth.pop(stream, None)
        onsets = self._onsets.pop(stream, None)
        if onsets:
            self._finished_onsets += onsets.count

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
        names = [*self._labels, *sorted({t for t, _ in self._confusion} - set(self._labels))]
        classes = {name: self._class(name) for name in names}
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

    def _class(self, name: str) -> dict[str, Any]:
        support = sum(n for (truth, _), n in self._confusion.items() if truth == name)
        predicted = sum(n for (_, label), n in self._confusion.items() if label == name)
        right = self._confusion[name, name]
        return {
            "precision": right / predicted if predicted else None,
            "recall": right / support if support else None,
            "f1": 2 * right / (support + predicted) if support + predicted else None,
            "support": support,
        }

    def _onset_summary(self) -> dict[str, Any]:
        count = self._finished_onsets + sum(o.count for o in self._onsets.values())
        delays = sorted(d / 1e9 for d in self._delays_ns)
        return {
            "count": count,
            "missed": count - len(delays),
            "delay_median_s": _quantile(delays, 0.5),
            "delay_p90_s": _quantile(delays, 0.9),
        }


def _quantile(ordered: Sequence[float], q: float) -> float | None:
    """The smallest value that a share `q` does not exceed."""
    return ordered[max(math.ceil(q * len(ordered)) - 1, 0)] if ordered else None
