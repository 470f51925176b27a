import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from agent.errors import InputError
from har_export.datasets.mnist import IDX_FILES, Mnist, load

TRAIN, TEST = 12, 5


def digits(seed: int = 0) -> Mnist:
    rng = np.random.default_rng(seed)
    parts = []
    for n in (TRAIN, TEST):
        parts += [rng.integers(0, 256, (n, 28, 28), np.uint8), rng.integers(0, 10, n, np.uint8)]
    return Mnist(*parts)


def arrays(mnist: Mnist) -> list[np.ndarray]:
    return [mnist.x_train, mnist.y_train, mnist.x_test, mnist.y_test]


def write_idx(folder: Path, mnist: Mnist, pack: bool = False) -> None:
    for name, values in zip(IDX_FILES, arrays(mnist), strict=True):
        header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
        data = header + values.tobytes()
        (folder / (f"{name}.gz" if pack else name)).write_bytes(gzip.compress(data) if pack else data)


def write_npz(folder: Path, **changes: np.ndarray) -> None:
    mnist = digits()
    known = {"x_train": mnist.x_train, "y_train": mnist.y_train, "x_test": mnist.x_test, "y_test": mnist.y_test}
    np.savez_compressed(folder / "mnist.npz", **(known | changes))


def assert_same(one: Mnist, other: Mnist) -> None:
    for a, b in zip(arrays(one), arrays(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("pack", [False, True])
def test_the_four_files_as_published(tmp_path: Path, pack: bool) -> None:
    write_idx(tmp_path, digits(), pack)

    assert_same(load(tmp_path), digits())


def test_the_packed_file_and_its_folder(tmp_path: Path) -> None:
    write_npz(tmp_path)

    assert_same(load(tmp_path), digits())
    assert_same(load(tmp_path / "mnist.npz"), digits())


def change(name: str, edit: Callable[[bytes], bytes], pack: bool = False) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        write_idx(folder, digits(), pack)
        path = next(folder.glob(f"{name}*"))
        path.write_bytes(edit(path.read_bytes()))

    return damage


def lose_labels(folder: Path) -> None:
    write_idx(folder, digits())
    (folder / "t10k-labels-idx1-ubyte").unlink()


def halve_npz(folder: Path) -> None:
    write_npz(folder)
    data = (folder / "mnist.npz").read_bytes()
    (folder / "mnist.npz").write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: None, "holds neither mnist.npz nor train-images-idx3-ubyte"),
        (lose_labels, "nor t10k-labels-idx1-ubyte"),
        (change("train-images", lambda data: data[:-1]), "9407 bytes after its header, which announces 12 x 28 x 28"),
        (change("train-images", lambda data: data + b"\0"), "9409 bytes after its header"),
        (change("train-images", lambda data: b"\0\0\x0d" + data[3:]), "begins with 00000d03"),
        (change("train-labels", lambda data: data[:3] + b"\3" + data[4:]), "where its kind begins with 00000801"),
        (change("t10k-labels", lambda data: b""), "begins with nothing"),
        (change("t10k-labels", lambda data: data[:6]), "ends within its header, after 6 bytes"),
        (change("train-images", lambda data: data[:200], pack=True), "cannot be read"),
        (change("train-images", lambda data: b"plain" + data, pack=True), "cannot be read"),
        (halve_npz, "cannot be read"),
        (lambda folder: np.savez(folder / "mnist.npz", x_train=np.zeros(3)), "lacks y_train, x_test, y_test"),
        (lambda folder: write_npz(folder, x_test=np.zeros((5, 28, 28))), "x_test is float64"),
        (lambda folder: write_npz(folder, x_train=np.zeros((12, 784), np.uint8)), r"x_train is uint8 \(12, 784\)"),
        (lambda folder: write_npz(folder, y_train=np.zeros(11, np.uint8)), "where x_train has 12 images"),
        (lambda folder: write_npz(folder, y_test=np.full(5, 10, np.uint8)), "holds 10, which is no digit"),
    ],
)
def test_a_damaged_set_is_refused_with_a_reason(tmp_path: Path, damage: Callable[[Path], None], says: str) -> None:
    damage(tmp_path)

    with pytest.raises(InputError, match=says):
        load(tmp_path)
