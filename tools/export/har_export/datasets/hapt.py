"""HAPT: raw recordings of a waist-mounted phone (Reyes-Ortiz et al., Neurocomputing 171, 2016; UCI id 341)."""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np

from agent.errors import InputError
from har_export.datasets.records import Origin, Recording, read_table
from har_export.datasets.smartphone import TEST_SUBJECTS, detail_of, from_publisher

ORIGIN = Origin(
    "HAPT, Smartphone-Based Recognition of Human Activities and Postural Transitions (UCI id 341)",
    "Reyes-Ortiz et al., Transition-Aware Human Activity Recognition Using Smartphones, Neurocomputing 171, 2016",
    "no commercial use, according to the publisher's read-me file",
)
RATE_HZ = 50.0
NPZ_KEYS = frozenset({"acc", "gyro", "acc_scale", "gyro_scale", "offset", "exp", "user", "y"})
_NAME = re.compile(r"acc_exp(\d+)_user(\d+)\.txt")


def find(folder: Path) -> Path | None:
    """Return the `RawData` folder that `folder` is or holds, None if there is none."""
    for candidate in (folder, folder / "RawData", *sorted(folder.glob("*/RawData"))):
        if (candidate / "labels.txt").is_file() and any(candidate.glob("acc_exp*_user*.txt")):
            return candidate
    return None


def read_npz(path: Path) -> list[Recording]:
    """Read the packed form: all recordings in one .npz, as integers with a scale."""
    with np.load(path, allow_pickle=False) as packed:
        acc = packed["acc"] * np.float32(packed["acc_scale"])
        gyro = packed["gyro"] * np.float32(packed["gyro_scale"])
        label, detail = from_publisher(packed["y"], path), detail_of(packed["y"], path)
        # Whole numbers, whatever they are packed as: a test subject is known by his number.
        offset, experiment, subject = (packed[key].astype(np.int64) for key in ("offset", "exp", "user"))
    values = np.concatenate([acc, gyro], axis=1).astype(np.float32)
    return [
        Recording(str(subject[i]), str(experiment[i]), RATE_HZ, values[a:b], label[a:b], detail[a:b], ORIGIN)
        for i, (a, b) in enumerate(pairwise(offset))
        if str(subject[i]) not in TEST_SUBJECTS
    ]


def read_folder(raw_data: Path) -> list[Recording]:
    """Read the publisher's layout: `acc_expEE_userUU.txt` (g), `gyro_expEE_userUU.txt` (rad/s), `labels.txt`.

    Raises:
        InputError: a file is missing or does not fit its partner.
    """
    rows = read_table(raw_data / "labels.txt", 5, "HAPT").astype(np.int64)
    recordings = []
    for path in sorted(raw_data.glob("acc_exp*_user*.txt")):
        match = _NAME.fullmatch(path.name)
        if match is None or str(int(match[2])) in TEST_SUBJECTS:
            continue
        experiment, subject = int(match[1]), int(match[2])
        acc = read_table(path, 3, "HAPT")
        gyro = read_table(path.with_name(path.name.replace("acc_", "gyro_", 1)), 3, "HAPT")
        if len(acc) != len(gyro):
            raise InputError(f"{path} has {len(acc)} rows and its gyroscope file has {len(gyro)}")
        code = np.zeros(len(acc), np.int64)
        for _, _, activity, first, last in rows[(rows[:, 0] == experiment) & (rows[:, 1] == subject)]:
            code[first - 1 : last] = activity
        label, detail = (convert(code, raw_data / "labels.txt") for convert in (from_publisher, detail_of))
        values = np.concatenate([acc, gyro], axis=1)
        recordings.append(Recording(str(subject), str(experiment), RATE_HZ, values, label, detail, ORIGIN))
    return recordings
