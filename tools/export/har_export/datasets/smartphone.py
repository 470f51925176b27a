"""What HAPT and UCI HAR share: the same 30 people with a phone at the waist, and how their classes are numbered."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from agent.errors import InputError
from agent.records import Int64Array
from har_export.datasets.records import TRANSITION

LABELS = (
    "walking",
    "walking_upstairs",
    "walking_downstairs",
    "sitting",
    "standing",
    "laying",
    TRANSITION,
)
"""Class names in the order of the publishers' numbers. The six postural transitions of HAPT are one class."""

CODES = 12
"""The highest of the publishers' numbers."""

TEST_SUBJECTS = frozenset({"2", "4", "9", "10", "12", "13", "18", "20", "24"})
"""The publishers' test subjects, the same nine people in UCI HAR and HAPT. No reader returns them."""


def from_publisher(code: npt.ArrayLike, path: Path) -> Int64Array:
    """Turn the publishers' numbers (0 unlabelled, 1 to 6 activities, 7 to 12 transitions) into label indices.

    Raises:
        InputError: there is another number in `path`.
    """
    return np.minimum(detail_of(code, path), LABELS.index(TRANSITION))


def detail_of(code: npt.ArrayLike, path: Path) -> Int64Array:
    """Turn the publishers' numbers into 12 classes: which posture a transition leads from and to is kept.

    Raises:
        InputError: there is another number in `path`.
    """
    number = np.asarray(code, np.int64)
    strange = number[(number < 0) | (number > CODES)]
    if len(strange):
        raise InputError(f"{path} has the label {strange[0]}, where its publisher has 0 to {CODES}")
    return number - 1
