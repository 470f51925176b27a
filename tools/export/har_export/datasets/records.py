"""What every dataset reader returns, in the agent's units: g and rad/s."""

import warnings
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from agent.core.timeline import Grid, RateError, Timeline
from agent.errors import InputError
from agent.records import CHANNELS, Float32Array, Int64Array
from har_export.datasets.split import in_order

TRANSITION = "transition"
"""The one class that is no activity: people on their way from one to the next. Accuracy is claimed over the others."""

UNLABELLED = -1


class Origin(NamedTuple):
    """Who published data, for manifests and model cards: its name, what to cite, and what its use is bound to."""

    name: str
    citation: str
    terms: str


OWN = Origin("recordings of the agent", "Recorded by whoever built this model", "theirs to say")


@dataclass(frozen=True)
class Recording:
    """One continuous recording of one subject.

    `subject`: who wore the sensor. `session`: names the recording; no two of a subject share it. `values`: float32
    (n, 6), `agent.records.CHANNELS` in g and rad/s, at `rate_hz`. `label`: int64 (n,), an index of the data's labels
    or `UNLABELLED`. `detail`: the same with finer classes, where a dataset has them; training learns them on the side.
    `origin`: who published it; `OWN` where nobody did.
    """

    subject: str
    session: str
    rate_hz: float
    values: Float32Array
    label: Int64Array
    detail: Int64Array | None = None
    origin: Origin = OWN


@dataclass(frozen=True)
class Windows:
    """Windows that a publisher, `origin`, cut and filtered.

    `values`: float32 (n, 128, 6) in g and rad/s at 50 Hz. `label`: int64 (n,), an index of the data's labels.
    `subject`: str (n,).
    """

    values: Float32Array
    label: Int64Array
    subject: npt.NDArray[np.str_]
    origin: Origin = OWN

    def of(self, subjects: Collection[str]) -> "Windows":
        """Return the windows of `subjects` only."""
        keep = np.isin(self.subject, np.array(sorted(subjects), np.str_))
        return replace(self, values=self.values[keep], label=self.label[keep], subject=self.subject[keep])


@dataclass(frozen=True)
class Data:
    """Everything to train on and score with, and the names of its classes in the order of the logits.

    `losses`: what could not be used of the files, a sentence each, for people.
    """

    recordings: tuple[Recording, ...]
    windows: Windows
    labels: tuple[str, ...]
    losses: tuple[str, ...] = ()

    @property
    def subjects(self) -> tuple[str, ...]:
        """Every subject in the data, in order: 2 before 10."""
        found = {r.subject for r in self.recordings} | set(self.windows.subject.tolist())
        return in_order(list(found))

    @property
    def details(self) -> int:
        """How many finer classes there are; as many as labels where no recording has any."""
        return 1 + max([len(self.labels) - 1, *(int(r.detail.max()) for r in self.recordings if r.detail is not None)])

    def is_activity(self, label: Int64Array) -> npt.NDArray[np.bool_]:
        """Return which of `label` (any shape) are activities: labelled, and no transition."""
        transition = self.labels.index(TRANSITION) if TRANSITION in self.labels else UNLABELLED
        return np.asarray((label != UNLABELLED) & (label != transition))

    def of(self, subjects: Collection[str]) -> "Data":
        """Return the data of `subjects` only."""
        return replace(
            self,
            recordings=tuple(r for r in self.recordings if r.subject in subjects),
            windows=self.windows.of(subjects),
        )

    def at_rate(self, rate_hz: float) -> "Data":
        """Return the data with every recording on the grid of `rate_hz`; see `at_rate`.

        Raises:
            InputError: a rate that cannot be resampled.
        """
        return replace(self, recordings=tuple(at_rate(r, rate_hz) for r in self.recordings))


def no_windows() -> Windows:
    """Return an empty `Windows`, for when there are only recordings."""
    return Windows(np.empty((0, 128, len(CHANNELS)), np.float32), np.empty(0, np.int64), np.empty(0, np.str_))


def at_rate(recording: Recording, rate_hz: float) -> Recording:
    """Return the recording on the grid of `rate_hz`, resampled as the agent does; itself where it has that rate.

    A label is that of the sample before or at its grid point.

    Raises:
        InputError: its rate cannot be resampled.
    """
    if recording.rate_hz == rate_hz:
        return recording
    t_ns = np.round(np.arange(len(recording.values)) * 1e9 / recording.rate_hz).astype(np.int64)
    try:
        pieces = Timeline(rate_hz).push(t_ns, recording.values)
    except RateError as e:
        raise InputError(f"recording {recording.session} of subject {recording.subject}: {e}") from e
    values = np.concatenate([p.values for p in pieces if isinstance(p, Grid)] or [np.empty((0, 6), np.float32)])
    source = np.minimum(
        np.floor(np.arange(len(values)) * recording.rate_hz / rate_hz + 1e-6).astype(np.int64), len(t_ns) - 1
    )
    detail = None if recording.detail is None else recording.detail[source]
    return replace(recording, rate_hz=rate_hz, values=values, label=recording.label[source], detail=detail)


def read_table(
    path: Path, columns: int, dataset: str, delimiter: str | None = None, header_lines: int = 0
) -> Float32Array:
    """Read a text file of numbers, float32 (rows, `columns`). `dataset`: whose layout it is, for the error.

    `delimiter`: what stands between two numbers, white space if None. `header_lines`: how many lines come before them.

    Raises:
        InputError: it cannot be read, has no rows, another number of columns, or what is no finite number.
    """
    try:
        with warnings.catch_warnings():
            # NumPy warns of an empty file, which is refused below.
            warnings.simplefilter("ignore", UserWarning)
            table = np.loadtxt(path, dtype=np.float32, ndmin=2, delimiter=delimiter, skiprows=header_lines)
    except (OSError, ValueError) as e:
        raise InputError(f"{path} cannot be read: {e}") from e
    if table.size == 0:
        raise InputError(f"{path} holds no numbers")
    if table.shape[1] != columns:
        raise InputError(f"{path} has {table.shape[1]} columns, where {dataset} has {columns}")
    if not np.isfinite(table).all():
        row = int(np.flatnonzero(~np.isfinite(table).all(axis=1))[0])
        raise InputError(f"{path} holds what is no finite number, first in row {row + 1} of its numbers")
    return table
