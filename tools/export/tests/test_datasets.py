from pathlib import Path

import numpy as np
import pytest

from agent.errors import InputError
from har_export.datasets import Data, load
from har_export.datasets.records import TEST_SUBJECTS

UCI_CHANNELS = [f"{s}_{a}" for s in ("body_acc", "body_gyro", "total_acc") for a in "xyz"]


def write_hapt_folder(folder: Path, users: dict[int, int], rows: int = 300) -> dict[int, np.ndarray]:
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


def write_uci_folder(folder: Path, parts: dict[str, list[int]]) -> dict[str, np.ndarray]:
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
    acc = np.arange(300, dtype=np.int16).reshape(100, 3)
    np.savez(
        folder / "hapt_train.npz", acc=acc, gyro=acc * 2, acc_scale=0.001, gyro_scale=0.01,
        offset=[0, 60, 100], exp=[1, 2], user=[1, 3], y=np.repeat([0, 6, 12], [10, 50, 40]),
    )  # fmt: skip
    x = np.random.default_rng(2).normal(0, 1, (4, 128, 9)).astype(np.float32)
    np.savez(folder / "ucihar_train.npz", X=x, channels=UCI_CHANNELS, y=[1, 2, 6, 3], subject=[1, 1, 3, 3])


def test_hapt_as_published(tmp_path: Path) -> None:
    values = write_hapt_folder(tmp_path, {1: 1, 2: 30})

    data = load(tmp_path)

    assert data.subjects == (1, 30)
    first = data.recordings[0]
    assert (first.subject, first.experiment, first.rate_hz) == (1, 1, 50.0)
    np.testing.assert_array_equal(first.values, values[1])
    # labels.txt counts from 1 and includes both ends; transitions 7 to 12 are one class.
    expected = np.full(300, -1)
    expected[10:100], expected[100:150], expected[150:200] = 4, 6, 3
    np.testing.assert_array_equal(first.label, expected)


def test_uci_har_as_published(tmp_path: Path) -> None:
    total = write_uci_folder(tmp_path, {"train": [1, 1, 3], "test": [2, 5]})

    data = load(tmp_path)

    # Acceleration with gravity and angular velocity; subject 2 is kept for the final test wherever it lies.
    np.testing.assert_array_equal(data.windows.values, np.concatenate([total["train"], total["test"][1:]]))
    np.testing.assert_array_equal(data.windows.subject, [1, 1, 3, 5])
    np.testing.assert_array_equal(data.windows.label, [0, 1, 2, 1])


@pytest.mark.parametrize("dataset", ["UCI HAR Dataset", "UCI HAR Dataset/.."])
def test_uci_har_is_found_in_its_folder_and_above(tmp_path: Path, dataset: str) -> None:
    write_uci_folder(tmp_path, {"train": [1, 3]})

    assert len(load(tmp_path / dataset).windows.label) == 2


def test_packed_files(tmp_path: Path) -> None:
    write_npz(tmp_path)

    data = load(tmp_path)

    assert [(r.subject, len(r.values)) for r in data.recordings] == [(1, 60), (3, 40)]
    np.testing.assert_allclose(data.recordings[0].values[1], [0.003, 0.004, 0.005, 0.06, 0.08, 0.1], rtol=1e-6)
    np.testing.assert_array_equal(data.recordings[0].label, np.repeat([-1, 5], [10, 50]))
    np.testing.assert_array_equal(data.recordings[1].label, np.full(40, 6))
    with np.load(tmp_path / "ucihar_train.npz") as packed:
        np.testing.assert_array_equal(data.windows.values, packed["X"][:, :, [6, 7, 8, 3, 4, 5]])
    np.testing.assert_array_equal(data.windows.label, [0, 1, 5, 2])


def test_a_single_packed_file(tmp_path: Path) -> None:
    write_npz(tmp_path)

    data = load(tmp_path / "ucihar_train.npz")

    assert data.recordings == ()
    assert len(data.windows.label) == 4


def test_test_subjects_are_never_returned(tmp_path: Path) -> None:
    write_hapt_folder(tmp_path, dict(enumerate([*sorted(TEST_SUBJECTS), 1], 1)))

    assert load(tmp_path).subjects == (1,)


def test_of_keeps_only_the_subjects_asked_for(tiny: Data) -> None:
    some = tiny.of([3, 7])

    assert some.subjects == (3, 7)
    assert {r.subject for r in some.recordings} == {3, 7}
    assert set(some.windows.subject.tolist()) == {3, 7}


def drop_gyro(folder: Path) -> Path:
    write_hapt_folder(folder, {1: 1})
    (folder / "RawData" / "gyro_exp01_user01.txt").unlink()
    return folder


def shorten_gyro(folder: Path) -> Path:
    write_hapt_folder(folder, {1: 1})
    np.savetxt(folder / "RawData" / "gyro_exp01_user01.txt", np.zeros((299, 3)))
    return folder


def cut_columns(folder: Path) -> Path:
    write_hapt_folder(folder, {1: 1})
    np.savetxt(folder / "RawData" / "acc_exp01_user01.txt", np.zeros((300, 2)))
    return folder


def too_few_labels(folder: Path) -> Path:
    write_uci_folder(folder, {"train": [1, 3]})
    np.savetxt(folder / "UCI HAR Dataset" / "train" / "y_train.txt", [1])
    return folder


def damaged_npz(folder: Path) -> Path:
    write_npz(folder)
    data = (folder / "hapt_train.npz").read_bytes()
    (folder / "hapt_train.npz").write_bytes(data[: len(data) // 2])
    return folder


def foreign_npz(folder: Path) -> Path:
    np.savez(folder / "mnist.npz", x_train=np.zeros(3))
    return folder / "mnist.npz"


def twice(folder: Path) -> Path:
    write_npz(folder)
    write_hapt_folder(folder, {1: 1})
    return folder


def no_total_acc(folder: Path) -> Path:
    np.savez(folder / "u.npz", X=np.zeros((1, 128, 1)), channels=["body_acc_x"], y=[1], subject=[1])
    return folder


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: folder, "no data of a training subject"),
        (lambda folder: folder / "nowhere", "does not exist"),
        (drop_gyro, "gyro_exp01_user01.txt"),
        (shorten_gyro, "has 300 rows and its gyroscope file has 299"),
        (cut_columns, "has 2 columns, where HAPT has 3"),
        (too_few_labels, "differ in their number of rows"),
        (damaged_npz, "cannot be read"),
        (foreign_npz, "neither a HAPT nor a UCI HAR"),
        (twice, "same data set twice"),
        (no_total_acc, "lacks the channels total_acc_x"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_reason(tmp_path: Path, make, says: str) -> None:
    path = make(tmp_path)

    with pytest.raises(InputError, match=says):
        load(path)
