"""UCI HAR: filtered windows of 128 samples at 50 Hz, waist-mounted phone (Anguita et al., ESANN 2013; UCI id 240)."""

from pathlib import Path

import numpy as np

from agent.errors import InputError
from agent.records import Float32Array
from har_export.datasets.records import Origin, Windows, read_table
from har_export.datasets.smartphone import TEST_SUBJECTS, from_publisher

ORIGIN = Origin(
    "UCI HAR, Human Activity Recognition Using Smartphones (UCI id 240)",
    "Anguita et al., A Public Domain Dataset for Human Activity Recognition Using Smartphones, ESANN 2013",
    "no commercial use, according to the publisher's read-me file",
)
WINDOW = 128
NPZ_KEYS = frozenset({"X", "channels", "y", "subject"})
SIGNALS = tuple(f"{signal}_{axis}" for signal in ("total_acc", "body_gyro") for axis in "xyz")
"""The publishers' names of the agent's six channels: acceleration with gravity in it (g), angular velocity (rad/s)."""


def find(folder: Path) -> Path | None:
    """Return the `UCI HAR Dataset` folder that `folder` is or holds, None if there is none."""
    for candidate in (folder, folder / "UCI HAR Dataset"):
        if any((candidate / part / "Inertial Signals").is_dir() for part in ("train", "test")):
            return candidate
    return None


def read_npz(path: Path) -> Windows:
    """Read the packed form: X (n, 128, channels) with the publishers' channel names.

    Raises:
        InputError: a channel is missing.
    """
    with np.load(path, allow_pickle=False) as packed:
        names = [str(name) for name in packed["channels"]]
        missing = [name for name in SIGNALS if name not in names]
        if missing:
            raise InputError(f"{path} lacks the channels {', '.join(missing)}")
        values = packed["X"][:, :, [names.index(name) for name in SIGNALS]]
        label, subject = packed["y"], packed["subject"]
    return _training_subjects(values, label, subject, path)


def read_folder(dataset: Path) -> Windows:
    """Read the publisher's layout: `{train,test}/Inertial Signals`, `y_*.txt`, `subject_*.txt`.

    Raises:
        InputError: a file is missing, or one has another number of rows than its partners.
    """
    values, label, subject = [], [], []
    for part in ("train", "test"):
        if not (dataset / part).is_dir():
            continue
        signals = [
            read_table(dataset / part / "Inertial Signals" / f"{s}_{part}.txt", WINDOW, "UCI HAR") for s in SIGNALS
        ]
        label.append(read_table(dataset / part / f"y_{part}.txt", 1, "UCI HAR")[:, 0])
        subject.append(read_table(dataset / part / f"subject_{part}.txt", 1, "UCI HAR")[:, 0])
        if len({len(x) for x in (*signals, label[-1], subject[-1])}) != 1:
            raise InputError(f"{dataset / part}: the signals, labels and subjects differ in their number of rows")
        values.append(np.stack(signals, axis=2))
    return _training_subjects(np.concatenate(values), np.concatenate(label), np.concatenate(subject), dataset)


def _training_subjects(values: Float32Array, label: np.ndarray, subject: np.ndarray, path: Path) -> Windows:
    subject = subject.astype(np.int64).astype(np.str_)
    keep = ~np.isin(subject, sorted(TEST_SUBJECTS))
    kept = np.ascontiguousarray(values[keep], np.float32)
    return Windows(kept, from_publisher(label[keep], path), subject[keep], ORIGIN)
