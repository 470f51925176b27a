"""Small data sets in every layout that the readers accept, made from a seed."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from har_export.datasets import Data
from har_export.datasets.records import Recording, Windows

SUBJECTS = (1, 3, 5, 6, 7)


def posture(label: int, rng: np.random.Generator, n: int) -> np.ndarray:
    """Six channels that a tiny network can tell apart: gravity by label, and a gait for the first three."""
    t = np.arange(n) / 50
    values = rng.normal(0, 0.01, (n, 6))
    values[:, label % 3] += 1
    if label < 3:
        values += 0.4 * np.sin(2 * np.pi * (1.2 + 0.5 * label) * t)[:, None]
    return values.astype(np.float32)


def recording(subject: int, experiment: int, seconds: float = 6.0) -> Recording:
    """One recording that goes through all seven classes, with an unlabelled stretch at the end of each."""
    rng = np.random.default_rng([subject, experiment])
    n = int(seconds * 50)
    values = np.concatenate([posture(label, rng, n) for label in range(7)])
    label = np.repeat(np.arange(7, dtype=np.int64), n)
    label.reshape(7, n)[:, -10:] = -1
    return Recording(subject, experiment, 50.0, values, label)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Threads cost more than they bring at this size."""
    torch.set_num_threads(1)


@pytest.fixture
def tiny() -> Data:
    """Five subjects, one recording and six filtered windows each."""
    recordings = tuple(recording(subject, i) for i, subject in enumerate(SUBJECTS))
    windows, label, subject = [], [], []
    for s in SUBJECTS:
        rng = np.random.default_rng([s, 99])
        for activity in range(6):
            windows.append(posture(activity, rng, 128))
            label.append(activity)
            subject.append(s)
    return Data(recordings, Windows(np.stack(windows), np.array(label), np.array(subject)))


@pytest.fixture
def recorded_data() -> Path:
    """The folder of real recordings; the test is skipped where there is none."""
    root = Path(__file__).resolve().parents[3]
    folder = Path(os.environ.get("HAR_DATA", root.parent / "shared" / "data"))
    if not (folder / "hapt_train.npz").is_file():
        pytest.skip("no recordings at HAR_DATA or ../shared/data")
    return folder
