"""MotionSense: 24 people with a phone in a trouser pocket, one activity a file (Malekzadeh et al., IoTDI 2019)."""

import re
from pathlib import Path

import numpy as np

from agent.errors import InputError
from agent.records import Float32Array
from har_export.datasets.records import Data, Origin, Recording, no_windows, read_table

NAME = "MotionSense"
ORIGIN = Origin(
    "MotionSense, sensor data of smartphones in trouser pockets",
    "Malekzadeh et al., Mobile Sensor Data Anonymization, IoTDI 2019",
    "to be cited where it is used, according to the publisher's read-me file",
)
RATE_HZ = 50.0
FOLDER = "A_DeviceMotion_data"
ACTIVITIES = {
    "wlk": "walking",
    "ups": "walking_upstairs",
    "dws": "walking_downstairs",
    "sit": "sitting",
    "std": "standing",
    "jog": "jogging",
}
"""What the publisher's folders are called after, in the order of the labels."""

LABELS = tuple(ACTIVITIES.values())
SIGNALS = ("gravity", "userAcceleration", "rotationRate")

_TRIAL = re.compile(r"([a-z]{3})_(\d+)")
_FILE = re.compile(r"sub_(\d+)\.csv")


def find(folder: Path) -> Path | None:
    """Return the `A_DeviceMotion_data` folder that `folder` is or holds, None if there is none."""
    for candidate in (folder, folder / FOLDER, *sorted(folder.glob(f"*/{FOLDER}"))):
        if any(candidate.glob("???_*/sub_*.csv")):
            return candidate
    return None


def read(folder: Path) -> Data:
    """Read `<act>_<trial>/sub_N.csv`: gravity and the user's acceleration in g, rotation rate in rad/s.

    Acceleration is the sum of the two, with the sign of the phone's maker: at rest, an axis that points up reads -1 g.
    Subject N is called `motionsense-N`.

    Raises:
        InputError: a folder is named after no activity, or a file is damaged.
    """
    found = []
    for path in folder.glob("*/sub_*.csv"):
        trial, subject = _TRIAL.fullmatch(path.parent.name), _FILE.fullmatch(path.name)
        if trial is None or trial[1] not in ACTIVITIES:
            raise InputError(
                f"{path.parent} is named after no activity; {NAME} has {', '.join(ACTIVITIES)} and the trial's number"
            )
        if subject is not None:
            found.append((int(subject[1]), int(trial[2]), trial[1], path))
    recordings = []
    for number, _, activity, path in sorted(found):
        values = _values(path)
        label = np.full(len(values), LABELS.index(ACTIVITIES[activity]), np.int64)
        subject_name = f"motionsense-{number}"
        recordings.append(Recording(subject_name, path.parent.name, RATE_HZ, values, label, origin=ORIGIN))
    return Data(tuple(recordings), no_windows(), LABELS)


def _values(path: Path) -> Float32Array:
    try:
        with path.open(encoding="utf-8-sig") as file:
            columns = [name.strip().strip('"') for name in file.readline().split(",")]
    except (OSError, ValueError) as e:
        raise InputError(f"{path} cannot be read: {e}") from e
    missing = [name for s in SIGNALS for a in "xyz" if (name := f"{s}.{a}") not in columns]
    if missing:
        raise InputError(f"{path} has no column {', '.join(missing)}; {NAME}'s {FOLDER} is what is read")
    table = read_table(path, len(columns), NAME, delimiter=",", header_lines=1)
    gravity, user, rotation = (table[:, [columns.index(f"{signal}.{a}") for a in "xyz"]] for signal in SIGNALS)
    return np.concatenate([gravity + user, rotation], axis=1)
