"""Writes small data sets in every layout that the readers accept, made from a seed."""

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

UCI_CHANNELS = [f"{s}_{a}" for s in ("body_acc", "body_gyro", "total_acc") for a in "xyz"]
MOTIONSENSE_SIGNALS = ("attitude", "gravity", "rotationRate", "userAcceleration")
HEADER = "# format: har-recording/1\n# acc_unit: g\n# gyro_unit: rad/s\n"
COLUMNS = "t,ax,ay,az,gx,gy,gz,label"


def write_hapt_folder(folder: Path, users: Mapping[int, int], rows: int = 300) -> dict[int, np.ndarray]:
    """`users`: who did each experiment. Returns what each experiment's files hold, (rows, 6)."""
    raw = folder / "RawData"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    values, labels = {}, []
    for experiment, user in users.items():
        values[experiment] = rng.normal(0, 1, (rows, 6)).astype(np.float32)
        name = f"exp{experiment:02d}_user{user:02d}.txt"
        np.savetxt(raw / f"acc_{name}", values[experiment][:, :3], fmt="%.9e")
        np.savetxt(raw / f"gyro_{name}", values[experiment][:, 3:], fmt="%.9e")
        labels += [(experiment, user, 5, 11, 100), (experiment, user, 7, 101, 150), (experiment, user, 4, 151, 200)]
    np.savetxt(raw / "labels.txt", labels, fmt="%d")
    return values


def write_uci_folder(folder: Path, parts: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """`parts`: subject of each window in train and test. Returns the windows of each part, (n, 128, 6)."""
    rng = np.random.default_rng(1)
    total = {}
    for part, subjects in parts.items():
        signals = folder / "UCI HAR Dataset" / part / "Inertial Signals"
        signals.mkdir(parents=True)
        n = len(subjects)
        total[part] = np.empty((n, 128, 6), np.float32)
        for name in UCI_CHANNELS:
            x = rng.normal(0, 1, (n, 128)).astype(np.float32)
            np.savetxt(signals / f"{name}_{part}.txt", x, fmt="%.9e")
            if name.startswith("total_acc"):
                total[part][:, :, "xyz".index(name[-1])] = x
            elif name.startswith("body_gyro"):
                total[part][:, :, 3 + "xyz".index(name[-1])] = x
        np.savetxt(signals.parent / f"y_{part}.txt", np.arange(n) % 6 + 1, fmt="%d")
        np.savetxt(signals.parent / f"subject_{part}.txt", subjects, fmt="%d")
    return total


def write_npz(folder: Path) -> None:
    """HAPT and UCI HAR, packed."""
    acc = np.arange(300, dtype=np.int16).reshape(100, 3)
    np.savez(
        folder / "hapt_train.npz", acc=acc, gyro=acc * 2, acc_scale=0.001, gyro_scale=0.01,
        offset=[0, 60, 100], exp=[1, 2], user=[1, 3], y=np.repeat([0, 6, 12], [10, 50, 40]),
    )  # fmt: skip
    x = np.random.default_rng(2).normal(0, 1, (4, 128, 9)).astype(np.float32)
    np.savez(folder / "ucihar_train.npz", X=x, channels=UCI_CHANNELS, y=[1, 2, 6, 3], subject=[1, 1, 3, 3])


def write_mhealth(folder: Path, subjects: Sequence[int], labels: Sequence[int] = (0, 4, 11)) -> dict[int, np.ndarray]:
    """Fifty rows a label. Returns each subject's table, (rows, 24)."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {}
    for subject in subjects:
        rng = np.random.default_rng([3, subject])
        tables[subject] = rng.normal(0, 10, (50 * len(labels), 24)).astype(np.float32)
        tables[subject][:, 23] = np.repeat(labels, 50)
        np.savetxt(folder / f"mHealth_subject{subject}.log", tables[subject], fmt="%.9g", delimiter="\t")
    return tables


def write_motionsense(
    folder: Path, trials: Sequence[str], subjects: Sequence[int], rows: int = 60
) -> dict[tuple[str, int], np.ndarray]:
    """Returns each file's twelve signals, (rows, 12)."""
    axes = [("roll", "pitch", "yaw"), *[("x", "y", "z")] * 3]
    header = ",".join(["", *(f"{s}.{a}" for s, names in zip(MOTIONSENSE_SIGNALS, axes, strict=True) for a in names)])
    tables = {}
    for i, trial in enumerate(trials):
        (folder / "A_DeviceMotion_data" / trial).mkdir(parents=True)
        for subject in subjects:
            table = np.random.default_rng([4, i, subject]).normal(0, 1, (rows, 12)).astype(np.float32)
            lines = [f"{k}," + ",".join(f"{x:.9g}" for x in row) for k, row in enumerate(table)]
            path = folder / "A_DeviceMotion_data" / trial / f"sub_{subject}.csv"
            path.write_text("\n".join([header, *lines, ""]))
            tables[trial, subject] = table
    return tables


def rows_of(t: np.ndarray, values: np.ndarray, labels: Sequence[str]) -> list[str]:
    """The rows of a recording in the agent's format: times (n,), values (n, 6), labels (n,)."""
    numbers = np.column_stack([t, values])
    return [",".join(f"{x:.9g}" for x in row) + f",{name}" for row, name in zip(numbers, labels, strict=True)]


def write_recording(
    path: Path, bouts: Sequence[tuple[str, float]], seed: int = 0, rate_hz: float = 50.0
) -> tuple[np.ndarray, list[str]]:
    """A recording in the agent's format. `bouts`: label and seconds. Returns values (n, 6) and label of each row."""
    labels = [name for name, seconds in bouts for _ in range(round(seconds * rate_hz))]
    values = np.random.default_rng([5, seed]).normal(0, 0.2, (len(labels), 6)).astype(np.float32)
    values[:, 2] += 1
    rows = rows_of(np.arange(len(labels)) / rate_hz, values, labels)
    text = "\n".join([HEADER + COLUMNS, *rows, ""])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return values, labels
