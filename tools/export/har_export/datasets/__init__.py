"""Recorded data: one loader that recognises what a folder or file holds."""

import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.errors import InputError
from har_export.datasets import hapt, ucihar
from har_export.datasets.records import Recording, Windows, no_windows


@dataclass(frozen=True)
class Data:
    """Everything to train on and score with. Never holds a subject of the publishers' test set."""

    recordings: tuple[Recording, ...]
    windows: Windows

    @property
    def subjects(self) -> tuple[int, ...]:
        """Every subject in the data, in order."""
        return tuple(sorted({r.subject for r in self.recordings} | {int(s) for s in set(self.windows.subject)}))

    def of(self, subjects: Collection[int]) -> "Data":
        """Return the data of `subjects` only."""
        return Data(tuple(r for r in self.recordings if r.subject in subjects), self.windows.of(sorted(subjects)))


def load(path: Path) -> Data:
    """Read every HAPT and UCI HAR dataset in `path`: a .npz file, a publisher's folder, or a folder of these.

    Raises:
        InputError: there is none, or one is damaged.
    """
    if path.is_file():
        found = _read_npz(path)
        if found is None:
            raise InputError(f"{path} is neither a HAPT nor a UCI HAR .npz file")
        parts = [found]
    elif path.is_dir():
        parts = [part for file in sorted(path.glob("*.npz")) if (part := _read_npz(file)) is not None]
        if (raw_data := hapt.find(path)) is not None:
            parts.append(Data(tuple(hapt.read_folder(raw_data)), no_windows()))
        if (dataset := ucihar.find(path)) is not None:
            parts.append(Data((), ucihar.read_folder(dataset)))
    else:
        raise InputError(f"{path} does not exist; give the folder that holds the data sets")
    data = _merge(parts)
    if not data.subjects:
        raise InputError(
            f"{path} holds no data of a training subject; expected HAPT's 'RawData', 'UCI HAR Dataset', or their .npz"
        )
    return data


def _read_npz(path: Path) -> Data | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as packed:
            keys = set(packed.files)
        if keys >= hapt.NPZ_KEYS:
            return Data(tuple(hapt.read_npz(path)), no_windows())
        if keys >= ucihar.NPZ_KEYS:
            return Data((), ucihar.read_npz(path))
    except (OSError, ValueError, zipfile.BadZipFile) as e:
        raise InputError(f"{path} cannot be read: {e}") from e
    return None


def _merge(parts: list[Data]) -> Data:
    recordings = tuple(r for part in parts for r in part.recordings)
    experiments = [r.experiment for r in recordings]
    windows = [part.windows for part in parts if len(part.windows.label)]
    if len(set(experiments)) != len(experiments) or len(windows) > 1:
        raise InputError("the folder holds the same data set twice; give one of them")
    return Data(recordings, windows[0] if windows else no_windows())
