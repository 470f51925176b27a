"""Fixtures that every test may use; `layouts.py` writes data sets as their publishers do."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from har_export.datasets import hapt, ucihar
from har_export.datasets.records import Data, Recording, Windows
from har_export.datasets.smartphone import LABELS

sys.path.insert(0, str(Path(__file__).resolve().parent))

SUBJECTS = ("1", "3", "5", "6", "7")


def posture(label: int, rng: np.random.Generator, n: int) -> np.ndarray:
    """Six channels that a tiny network can tell apart: gravity by label, and a gait for the first three."""
    t = np.arange(n) / 50
    values = rng.normal(0, 0.01, (n, 6))
    values[:, label % 3] += 1
    if label < 3:
        values += 0.4 * np.sin(2 * np.pi * (1.2 + 0.5 * label) * t)[:, None]
    return values.astype(np.float32)


def recording(subject: str, session: int, seconds: float = 6.0) -> Recording:
    """One recording that goes through all seven classes, with an unlabelled stretch at the end of each."""
    rng = np.random.default_rng([int(subject), session])
    n = int(seconds * 50)
    values = np.concatenate([posture(label, rng, n) for label in range(7)])
    label = np.repeat(np.arange(7, dtype=np.int64), n)
    label.reshape(7, n)[:, -10:] = -1
    return Recording(subject, str(session), 50.0, values, label, label, hapt.ORIGIN)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Threads cost more than they bring at this size."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny() -> Data:
    """Five subjects, one recording and six filtered windows each."""
    recordings = tuple(recording(subject, i) for i, subject in enumerate(SUBJECTS))
    windows, label, subject = [], [], []
    for s in SUBJECTS:
        rng = np.random.default_rng([int(s), 99])
        for activity in range(6):
            windows.append(posture(activity, rng, 128))
            label.append(activity)
            subject.append(s)
    filtered = Windows(np.stack(windows), np.array(label), np.array(subject), ucihar.ORIGIN)
    return Data(recordings, filtered, LABELS)


@pytest.fixture
def recorded_data() -> Path:
    """The folder of real recordings; the test is skipped where there is none."""
    root = Path(__file__).resolve().parents[3]
    folder = Path(os.environ.get("HAR_DATA", root.parent / "shared" / "data"))
    if not (folder / "hapt_train.npz").is_file():
        pytest.skip("no recordings at HAR_DATA or ../shared/data")
    return folder
