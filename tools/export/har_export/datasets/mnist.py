"""MNIST: handwritten digits of 28 x 28 pixels (LeCun et al., 1998), for the edge-learning experiment only."""

import gzip
import math
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from agent.errors import InputError

SIDE = 28
CLASSES = 10
PACKED = "mnist.npz"
NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")
IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
"""The publisher's names, in the order of `NPZ_KEYS`; each may end in .gz, as it is published."""

_UNSIGNED_BYTE = 8

UInt8Array = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Mnist:
    """`x_*`: uint8 (n, 28, 28), 0 is paper. `y_*`: uint8 (n,), the digit. The publisher's split."""

    x_train: UInt8Array
    y_train: UInt8Array
    x_test: UInt8Array
    y_test: UInt8Array


def load(path: Path) -> Mnist:
    """Read the packed file, or a folder that holds it or the publisher's four idx files.

    Raises:
        InputError: it is not there, or damaged.
    """
    packed = path / PACKED if path.is_dir() else path
    if packed.is_file():
        arrays, source = _read_npz(packed), packed
    else:
        arrays, source = [_read_idx(_idx_file(path, name)) for name in IDX_FILES], path
    mnist = Mnist(*arrays)
    for part, x, y in (("train", mnist.x_train, mnist.y_train), ("test", mnist.x_test, mnist.y_test)):
        if x.dtype != np.uint8 or x.ndim != 3 or x.shape[1:] != (SIDE, SIDE) or len(x) == 0:
            raise InputError(f"{source}: x_{part} is {x.dtype} {x.shape}, where MNIST has uint8 (n, {SIDE}, {SIDE})")
        if y.dtype != np.uint8 or y.shape != x.shape[:1]:
            raise InputError(f"{source}: y_{part} is {y.dtype} {y.shape}, where x_{part} has {len(x)} images")
        if y.max() >= CLASSES:
            raise InputError(f"{source}: y_{part} holds {y.max()}, which is no digit")
    return mnist


def _read_npz(path: Path) -> list[UInt8Array]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as packed:
            missing = [key for key in NPZ_KEYS if key not in packed.files]
            if missing:
                raise InputError(f"{path} lacks {', '.join(missing)}: it is not MNIST")
            return [packed[key] for key in NPZ_KEYS]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise InputError(f"{path} cannot be read: {e}") from e


def _idx_file(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise InputError(f"{folder} holds neither {PACKED} nor {name}; give the folder of the publisher's four files")


def _read_idx(path: Path) -> UInt8Array:
    """Read an idx file: two zero bytes, the type, how many dimensions, their sizes (big endian), the values.

    Raises:
        InputError: the header says something else than bytes, or another size than the file has.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as e:
        raise InputError(f"{path} cannot be read: {e}") from e
    dimensions = 3 if "idx3" in path.name else 1
    magic, header = bytes([0, 0, _UNSIGNED_BYTE, dimensions]), 4 + 4 * dimensions
    if data[:4] != magic:
        raise InputError(f"{path} begins with {data[:4].hex() or 'nothing'}, where its kind begins with {magic.hex()}")
    if len(data) < header:
        raise InputError(f"{path} ends within its header, after {len(data)} bytes")
    shape = struct.unpack(f">{dimensions}I", data[4:header])
    values = np.frombuffer(data, np.uint8, offset=header)
    if len(values) != math.prod(shape):
        announced = " x ".join(map(str, shape))
        raise InputError(f"{path} has {len(values)} bytes after its header, which announces {announced}")
    return values.reshape(shape)
