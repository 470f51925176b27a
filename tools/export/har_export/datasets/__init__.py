"""Recorded data: one loader that recognises which layout a folder or file has."""

import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from agent.core.decoders.recording import Declared
from agent.core.input import Mounting
from agent.core.settings import InputSettings
from agent.errors import InputError
from agent.records import CHANNELS
from har_export.datasets import hapt, mhealth, motionsense, own, ucihar
from har_export.datasets.records import UNLABELLED, Data, no_windows
from har_export.datasets.smartphone import LABELS

SMARTPHONE = "HAPT and UCI HAR"
UNTURNED = "x y z"


class Source(NamedTuple):
    """Where data lies, and what is declared of it: see `load`."""

    path: Path
    place: str | None = None
    axes: str = UNTURNED
    declared: Declared = Declared()
    max_bad_rows: int = 100

    def load(self, grid_hz: float | None = None) -> Data:
        """Read it; see the function of that name."""
        return load(**self._asdict(), grid_hz=grid_hz)


def load(
    path: Path,
    *,
    place: str | None = None,
    axes: str = UNTURNED,
    declared: Declared | None = None,
    max_bad_rows: int = 100,
    grid_hz: float | None = None,
) -> Data:
    """Read the data set in `path`: a publisher's folder, packed .npz, the agent's recordings, or a folder of these.

    The layout is recognised; what else must be known is declared. `place`: which of `mhealth.PLACES` to take. `axes`:
    which of the sensor's axes point along x, y and z of the model, as in the agent's configuration. `declared`: units
    and rate of the agent's recordings, where their headers do not say them; `max_bad_rows`: rows of one of them that
    may be unreadable. `grid_hz`: the rate that recordings are put on as the agent does it, from the times in its own;
    None leaves each at its own rate.

    Raises:
        InputError: there is none, or several that do not belong together; one is damaged; a declaration is missing, or
            does not apply.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; give the folder that holds the data sets")
    found: dict[str, Callable[[], Data]] = {}
    if parts := _smartphone(path):
        found[SMARTPHONE] = partial(merge, parts)
    if logs := mhealth.find(path):
        found[mhealth.NAME] = partial(mhealth.read, logs, place)
    if (trials := motionsense.find(path)) is not None:
        # Its files are CSV too: recordings beside them cannot be told apart.
        found[motionsense.NAME] = partial(motionsense.read, trials)
    elif files := own.find(path):
        found[own.NAME] = partial(own.read, path, files, declared, max_bad_rows, grid_hz)
    if len(found) > 1:
        raise InputError(
            f"{path} holds {', '.join(found)}: other people, sensors and labels, which only the caller can put "
            "together; give the folder of one"
        )
    name = next(iter(found), "")
    if place is not None and name != mhealth.NAME:
        raise InputError(f"a place is declared, and {path} holds no {mhealth.NAME}, which alone has several")
    if declared and any(declared) and name != own.NAME:
        raise InputError(f"units or a rate are declared, and {path} holds no {own.NAME}; those of others are known")
    data = found[name]() if found else merge([])
    if not data.subjects:
        raise InputError(
            f"{path} holds no data of a training subject; expected HAPT's 'RawData', 'UCI HAR Dataset', their .npz, "
            f"MHEALTH's 'mHealth_subjectN.log', MotionSense's '{motionsense.FOLDER}', or {own.NAME} (.csv)"
        )
    data = data if axes == UNTURNED else _turned(data, axes)
    return data if grid_hz is None else data.at_rate(grid_hz)


def merge(parts: Sequence[Data]) -> Data:
    """Put data sets together. Classes: those of the first, then what each of the next adds; equal names are one.

    The same name of a subject is taken for the same person. Finer classes are kept where all have the same labels.

    Raises:
        InputError: a session is in two of them, or windows are.
    """
    labels = tuple(dict.fromkeys(name for part in parts for name in part.labels))
    alike = all(part.labels == labels for part in parts)
    recordings, windows = [], []
    for part in parts:
        # UNLABELLED, -1, is the index of the last.
        number = np.array([*(labels.index(name) for name in part.labels), UNLABELLED], np.int64)
        recordings += [replace(r, label=number[r.label], detail=r.detail if alike else None) for r in part.recordings]
        if len(part.windows.label):
            windows.append(replace(part.windows, label=number[part.windows.label]))
    sessions = {(r.subject, r.session) for r in recordings}
    if len(sessions) != len(recordings) or len(windows) > 1:
        raise InputError("the same data set is there twice; give one of them")
    losses = tuple(loss for part in parts for loss in part.losses)
    return Data(tuple(recordings), windows[0] if windows else no_windows(), labels, losses)


def _turned(data: Data, axes: str) -> Data:
    """Turn everything as the agent turns a sensor's axes.

    Raises:
        InputError: `axes` does not name each axis once.
    """
    try:
        InputSettings(axes=axes)
    except ValueError as e:
        raise InputError(str(e)) from e
    mounting, windows = Mounting(axes, 1.0, 1.0), data.windows
    samples = mounting.apply(windows.values.reshape(-1, len(CHANNELS)).astype(np.float64))
    return replace(
        data,
        recordings=tuple(replace(r, values=mounting.apply(r.values.astype(np.float64))) for r in data.recordings),
        windows=replace(windows, values=samples.reshape(windows.values.shape)),
    )


def _smartphone(path: Path) -> list[Data]:
    """Read what there is of HAPT and UCI HAR: the same people, sensor and labels."""
    if path.is_file():
        return _read_npz(path) if path.suffix == ".npz" else []
    parts = [part for file in sorted(path.glob("*.npz")) for part in _read_npz(file)]
    if (raw_data := hapt.find(path)) is not None:
        parts.append(Data(tuple(hapt.read_folder(raw_data)), no_windows(), LABELS))
    if (dataset := ucihar.find(path)) is not None:
        parts.append(Data((), ucihar.read_folder(dataset), LABELS))
    return parts


def _read_npz(path: Path) -> list[Data]:
    """Read a packed data set; nothing where it is something else."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as packed:
            keys = set(packed.files)
        if keys >= hapt.NPZ_KEYS:
            return [Data(tuple(hapt.read_npz(path)), no_windows(), LABELS)]
        if keys >= ucihar.NPZ_KEYS:
            return [Data((), ucihar.read_npz(path), LABELS)]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise InputError(f"{path} cannot be read: {e}") from e
    return []
