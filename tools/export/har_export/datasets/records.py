"""What every dataset reader returns, in the agent's units: g and rad/s."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from agent.errors import InputError
from agent.records import Float32Array, Int64Array

LABELS = (
    "walking",
    "walking_upstairs",
    "walking_downstairs",
    "sitting",
    "standing",
    "laying",
    "transition",
)
"""Class names in the order of the logits. The six postural transitions of HAPT are one class."""

ACTIVITIES = 6
"""How many of `LABELS` are activities; accuracy is claimed over these."""

TRANSITION = LABELS.index("transition")
UNLABELLED = -1

TEST_SUBJECTS = frozenset({2, 4, 9, 10, 12, 13, 18, 20, 24})
"""The publishers' test subjects, the same nine people in UCI HAR and HAPT. No reader returns them."""


@dataclass(frozen=True)
class Recording:
    """One continuous recording of one subject.

    `values`: float32 (n, 6), `agent.records.CHANNELS` in g and rad/s, at `rate_hz`. `label`: int64 (n,), an index of
    `LABELS` or `UNLABELLED`. `experiment` numbers the recording within its dataset.
    """

    subject: int
    experiment: int
    rate_hz: float
    values: Float32Array
    label: Int64Array


@dataclass(frozen=True)
class Windows:
    """Windows that a publisher cut and filtered.

    `values`: float32 (n, 128, 6) in g and rad/s at 50 Hz. `label`: int64 (n,), an index of `LABELS`. `subject`:
    int64 (n,).
    """

    values: Float32Array
    label: Int64Array
    subject: Int64Array

    def of(self, subjects: npt.ArrayLike) -> "Windows":
        """Return the windows of `subjects` only."""
        keep = np.isin(self.subject, np.asarray(subjects))
        return Windows(self.values[keep], self.label[keep], self.subject[keep])


def no_windows() -> Windows:
    """Return an empty `Windows`, for when there is only a dataset of recordings."""
    nobody = np.empty(0, np.int64)
    return Windows(np.empty((0, 128, 6), np.float32), nobody, nobody)


def from_publisher(code: npt.ArrayLike) -> Int64Array:
    """Turn the publishers' numbers (0 unlabelled, 1 to 6 activities, 7 to 12 transitions) into label indices."""
    return np.minimum(np.asarray(code, np.int64) - 1, TRANSITION)


def read_table(path: Path, columns: int, dataset: str) -> Float32Array:
    """Read a text file of numbers, float32 (rows, `columns`). `dataset`: whose layout it is, for the error.

    Raises:
        InputError: it cannot be read, or has another number of columns.
    """
    try:
        table = np.loadtxt(path, dtype=np.float32, ndmin=2)
    except (OSError, ValueError) as e:
        raise InputError(f"{path} cannot be read: {e}") from e
    if table.shape[1] != columns:
        raise InputError(f"{path} has {table.shape[1]} columns, where {dataset} has {columns}")
    return table
