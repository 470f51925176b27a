"""The network of the split benchmark: a bundle with random weights that is worth splitting.

In int8, several milliseconds of an x86 core a window. After a third of the work is a tensor of 2,048 bytes a window, in
the middle one of 1,024, after two thirds one of 512, and the code of 64 comes last. At a third and at two thirds are
exits. What it says of a window means nothing; how long that takes, and what travels, is what is measured. The
convolutions between two of these tensors share their weights, so that the bundle is small.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

CHANNELS, KERNEL = 192, 15
LAYERS = 12, 6, 6, 7
"""Convolutions between two narrow tensors. The last ones have as many multiplications, and take longer."""
NARROW = 16
LABELS = ("sitting", "standing", "walking")
CODE = 64
LARGEST = 64
"""Weight, as in bundles: see har_export.quantise."""
STEP = np.float32(1 / 64)
"""Of activations: they stay about 1, and 4 is far out. All steps are powers of two, so that nothing depends on where
ONNX Runtime computes in float."""


class Layers:
    """An ONNX graph under construction, int8 in QDQ form. Its random weights follow from its prefix."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._nodes: list[bytes] = []
        self._constants: dict[str, npt.NDArray[np.generic]] = {}
        self._rng = np.random.default_rng(list(prefix.encode()))

    def op(self, kind: str, *inputs: str, out: str = "", **attributes: int | list[int]) -> str:
        """Add a node and return the name of its output."""
        from graphs import node

        name = out or f"{self._prefix}{len(self._nodes)}"
        self._nodes.append(node(kind, " ".join(inputs), name, **attributes))
        return name

    def constant(self, array: npt.ArrayLike) -> str:
        """Return the name of an initializer."""
        name = f"{self._prefix}_{len(self._constants)}"
        self._constants[name] = np.asarray(array)
        return name

    def quantise(self, x: str, step: np.float32, zero: np.generic, out: str = "") -> str:
        """Float -> integers."""
        return self.op("QuantizeLinear", x, self.constant(step), self.constant(zero), out=out)

    def dequantise(self, x: str, step: np.float32, zero: np.generic) -> str:
        """Integers -> float."""
        return self.op("DequantizeLinear", x, self.constant(step), self.constant(zero))

    def weight(self, into: int, out: int, kernel: int) -> str:
        """Weights of a convolution as large as those of He et al. (ICCV 2015): activations neither die nor grow."""
        bound = np.sqrt(6 / (into * kernel))
        step = 2.0 ** np.ceil(np.log2(bound / LARGEST))
        most = round(bound / step)
        integers = self._rng.integers(-most, most + 1, (out, into, kernel)).astype(np.int8)
        return self.dequantise(self.constant(integers), np.float32(step), np.int8(0))

    def convolve(self, x: str, weight: str, kernel: int, stride: int = 1) -> str:
        """Convolution and ReLU, uint8 to uint8."""
        return self.convolve_float(self.dequantise(x, STEP, np.uint8(0)), weight, kernel, stride)

    def convolve_float(self, x: str, weight: str, kernel: int, stride: int = 1) -> str:
        """Convolution and ReLU, float to uint8."""
        around = [kernel // 2, kernel // 2]
        y = self.op("Conv", x, weight, kernel_shape=[kernel], strides=[stride], pads=around)
        return self.quantise(y, STEP, np.uint8(0))

    def block(self, x: str, width: int, layers: int) -> str:
        """Add what `layers` convolutions with the same weights make of it: inside of a residual block are no cuts."""
        wide, shared = x, self.weight(width, width, KERNEL)
        for _ in range(layers):
            x = self.convolve(x, shared, KERNEL)
        both = self.op("Add", self.dequantise(wide, STEP, np.uint8(0)), self.dequantise(x, STEP, np.uint8(0)))
        return self.quantise(both, STEP, np.uint8(0))

    def head(self, x: str, size: int) -> tuple[bytes, bytes]:
        """Logits and novelty of `size` integers. Their products with these weights add up exactly, in any order."""
        from graphs import value

        flat = self.op("Flatten", self.op("Cast", x, to=1))
        self.logits(flat, size)
        self.novelty(flat, size)
        return value("logits", np.float32, "batch", len(LABELS)), value("novelty", np.float32, "batch")

    def logits(self, flat: str, size: int) -> None:
        """Float (B, size) -> `logits`."""
        self.op("MatMul", flat, self.constant(self._whole(size, len(LABELS)) / np.float32(8192)), out="logits")

    def novelty(self, flat: str, size: int) -> None:
        """Float (B, size) -> `novelty`: the logarithm of a distance."""
        away = self.op("MatMul", flat, self.constant(self._whole(size, 4) / np.float32(64)))
        square = self.op("ReduceSum", self.op("Mul", away, away), self.constant(np.array([1])), keepdims=0)
        distance = self.op("Add", self.op("Sqrt", square), self.constant(np.float32(2)))
        self.op("Log", distance, out="novelty")

    def rebuild(self, flat: str, *shape: int) -> None:
        """Float (B, CODE) -> `reconstruction`."""
        y = self.op("MatMul", flat, self.constant(self._whole(CODE, int(np.prod(shape))) / np.float32(64)))
        self.op("Reshape", y, self.constant(np.array([-1, *shape])), out="reconstruction")

    def serialise(self, takes: bytes, *gives: bytes) -> bytes:
        """Return the graph as a file."""
        from graphs import model

        return model(self._nodes, [takes], list(gives), self._constants)

    def _whole(self, *shape: int) -> npt.NDArray[np.float32]:
        return self._rng.integers(-4, 5, shape).astype(np.float32)


def write_network(folder: Path, accuracy: Sequence[float | None] = (None, None, None)) -> Path:
    """Write the bundle and return its folder. `accuracy`: what its manifest says of its two exits, and of its end."""
    from graphs import value, write_files

    from agent.adapters.onnx_model import OrtModel
    from agent.core.manifest import NOVELTY, Bundle, Calibration, Code, Exit, Input, Manifest
    from agent.core.normalise import Normalisation

    shape = Input()
    window = value("window", np.float32, "batch", shape.window, 6)
    code = value("code", np.int8, "batch", CODE)

    e = Layers("e")
    # The first convolution reads floats: a window of integers would be less to send, and no work.
    x = e.convolve_float(e.op("Transpose", "window", perm=[0, 2, 1]), e.weight(6, CHANNELS, 3), 3)
    x = e.block(x, CHANNELS, LAYERS[0])
    third = e.convolve(x, e.weight(CHANNELS, NARROW, 1), 1)
    x = e.block(e.convolve(third, e.weight(NARROW, CHANNELS, 3), 3), CHANNELS, LAYERS[1])
    half = e.convolve(x, e.weight(CHANNELS, NARROW // 2, 1), 1)
    x = e.block(e.convolve(half, e.weight(NARROW // 2, CHANNELS, 3), 3), CHANNELS, LAYERS[2])
    two_thirds = e.convolve(x, e.weight(CHANNELS, NARROW, 1), 1, stride=4)
    # A quarter of the steps, twice the channels in and out.
    x = e.block(e.convolve(two_thirds, e.weight(NARROW, 2 * CHANNELS, 3), 3), 2 * CHANNELS, LAYERS[3])
    x = e.convolve(x, e.weight(2 * CHANNELS, 2, 1), 1)
    e.quantise(e.op("Flatten", e.dequantise(x, STEP, np.uint8(0))), STEP, np.int8(0), out="code")

    c, n, d = Layers("c"), Layers("n"), Layers("d")
    c.logits(c.op("Cast", "code", to=1), CODE)
    n.novelty(n.op("Cast", "code", to=1), CODE)
    d.rebuild(d.op("Cast", "code", to=1), shape.window, 6)
    contents = {
        "encoder.onnx": e.serialise(window, code),
        "classifier.onnx": c.serialise(code, value("logits", np.float32, "batch", len(LABELS))),
        "decoder.onnx": d.serialise(code, value("reconstruction", np.float32, "batch", shape.window, 6)),
        NOVELTY: n.serialise(code, value("novelty", np.float32, "batch")),
    }
    exits = []
    for name, at, steps, right in (("third", third, 128, accuracy[0]), ("two-thirds", two_thirds, 32, accuracy[1])):
        head = Layers(f"x{len(exits)}")
        gives = head.head(at, NARROW * steps)
        exits.append(Exit(name, at, right, 1.0))
        contents[exits[-1].file] = head.serialise(value(at, np.uint8, "batch", NARROW, steps), *gives)

    manifest = Manifest(
        name="bench",
        version="1",
        created="2026-01-01",
        labels=LABELS,
        input=shape,
        normalisation=Normalisation(np.zeros(6, np.float32), np.ones(6, np.float32)),
        code=Code((CODE,), "int8", CODE),
        calibration=Calibration(1.0, 100.0),
        files={},
        exits=tuple(exits),
        metrics={"held_out": {"accuracy": accuracy[2]}},
    )
    windows = np.random.default_rng(0).normal(0, 1, (8, shape.window, 6)).astype(np.float32)
    scores = OrtModel(Bundle(manifest, "0" * 64, contents)).infer(windows)
    golden = {"window": windows, "code": scores.code, "logits": scores.logits, "novelty": scores.novelty}
    contents["CARD.md"] = b"Random weights: for measuring time and traffic only.\n"
    return write_files(folder, manifest, contents, golden)
