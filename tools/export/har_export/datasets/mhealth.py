"""MHEALTH: ten people with sensors at chest, left ankle and right lower arm (Banos et al., IWAAL 2014; UCI id 319)."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agent.core import units
from agent.errors import InputError
from har_export.datasets.records import Data, Origin, Recording, no_windows, read_table

NAME = "MHEALTH"
ORIGIN = Origin(
    "MHEALTH, Mobile Health (UCI id 319)",
    "Banos et al., mHealthDroid: a novel framework for agile development of mobile health applications, IWAAL 2014",
    "to be cited where it is used, according to the publisher's read-me file",
)
RATE_HZ = 50.0
COLUMNS = 24
PLACES = {"ankle": 5, "arm": 14}
"""The sensors with a gyroscope, left ankle and right lower arm: which column their acceleration begins in, from 0."""

LABELS = (
    "standing",
    "sitting",
    "laying",
    "walking",
    "climbing_stairs",
    "bending_forward",
    "raising_arms",
    "crouching",
    "cycling",
    "jogging",
    "running",
    "jumping",
)
"""Class names in the order of the publisher's numbers, which begin at 1; 0 is unlabelled."""

_FILE = re.compile(r"mHealth_subject(\d+)\.log")


def find(folder: Path) -> list[Path]:
    """Return the publisher's files in `folder` or in the `MHEALTHDATASET` that it holds."""
    for candidate in (folder, folder / "MHEALTHDATASET"):
        numbered = {int(m[1]): p for p in candidate.glob("mHealth_subject*.log") if (m := _FILE.fullmatch(p.name))}
        if numbered:
            return [path for _, path in sorted(numbered.items())]
    return []


def read(files: Sequence[Path], place: str | None) -> Data:
    """Read `mHealth_subjectN.log`: 24 columns, acceleration in m/s², angular velocity in deg/s.

    `place`: one of `PLACES`. Subject N is called `mhealth-N`.

    Raises:
        InputError: no such place, or a file is damaged.
    """
    if place not in PLACES:
        wanted = " or ".join(f"place={name}" for name in PLACES)
        raise InputError(
            f"{NAME} has sensors at several places: say which with --declare {wanted}"
            + (f", not {place!r}" if place else "")
            + ("; the one at the chest has no gyroscope" if place == "chest" else "")
        )
    first, scale = PLACES[place], units.scale("m/s2", "deg/s")
    recordings = []
    for path in files:
        table = read_table(path, COLUMNS, NAME)
        code = table[:, -1].astype(np.int64)
        strange = (code != table[:, -1]) | (code < 0) | (code > len(LABELS))
        if strange.any():
            raise InputError(
                f"{path} has the label {table[strange][0, -1]:g} in row {int(strange.argmax()) + 1}, "
                f"where {NAME} has 0 to {len(LABELS)}"
            )
        subject = f"mhealth-{path.stem.removeprefix('mHealth_subject')}"
        values = table[:, first : first + 6] * scale
        recordings.append(Recording(subject, place, RATE_HZ, values, code - 1, origin=ORIGIN))
    return Data(tuple(recordings), no_windows(), LABELS)
