"""Small ONNX graphs and a whole bundle of them, as protobuf bytes: the onnx package is no part of these tests."""

import io

import numpy as np

from agent.adapters.bundle import read_golden
from agent.adapters.onnx_model import OrtModel
from agent.adapters.onnx_parts import Parts
from agent.core.manifest import (
    CONTEXT,
    NOVELTY,
    Bundle,
    Calibration,
    Code,
    Context,
    FileEntry,
    Input,
    Manifest,
    Segment,
    dump,
    sha256,
)
from agent.core.normalise import Normalisation
from agent.core.onnx_wire import TYPES

LABELS = ("still", "moving", "turning")
DTYPES = {np.dtype(kind): number for number, kind in TYPES.items()}


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def number(tag, value):
    """One protobuf field that is a number."""
    return varint(tag << 3) + varint(value)


def field(tag, data):
    """One length-delimited protobuf field."""
    data = data.encode() if isinstance(data, str) else data
    return varint(tag << 3 | 2) + varint(len(data)) + data


def node(kind, inputs, outputs, **integers):
    """A NodeProto; its attributes are whole numbers or lists of them."""
    out = b"".join(field(1, x) for x in inputs.split()) + b"".join(field(2, x) for x in outputs.split())
    for name, value in integers.items():
        many = isinstance(value, list)
        values = b"".join(number(8, x) for x in value) if many else number(3, value)
        out += field(5, field(1, name) + values + number(20, 7 if many else 2))
    return out + field(4, kind)


def tensor(name, array):
    """A TensorProto."""
    dims = b"".join(number(1, n) for n in array.shape)
    return dims + number(2, DTYPES[array.dtype]) + field(8, name) + field(9, array.tobytes())


def value(name, dtype, *shape):
    """A ValueInfoProto; None and text are dimensions that are no number."""
    dims = b"".join(field(1, number(1, n) if isinstance(n, int) else field(2, n) if n else b"") for n in shape)
    return field(1, name) + field(2, field(1, number(1, DTYPES[np.dtype(dtype)]) + field(2, dims)))


def model(nodes, inputs, outputs, constants=None, opset=17, ir_version=8):
    """A ModelProto of parts as above; `constants` are arrays by name."""
    graph = b"".join(field(1, x) for x in nodes) + field(2, "test")
    graph += b"".join(field(5, tensor(name, array)) for name, array in (constants or {}).items())
    graph += b"".join(field(11, x) for x in inputs) + b"".join(field(12, x) for x in outputs)
    return number(1, ir_version) + field(8, field(1, "") + number(2, opset)) + field(7, graph)


def _weights(*shape, step=1 / 64):
    """Multiples of a power of two: sums of their products with whole numbers are exact, in any order."""
    return (np.random.default_rng(list(shape)).integers(-4, 5, shape) * step).astype(np.float32)


def encoder(p="e"):
    """`window` -> four steps of code."""
    return model(
        [
            node("Reshape", f"window {p}0", f"{p}a"),
            node("MatMul", f"{p}a {p}1", f"{p}b"),
            node("QuantizeLinear", f"{p}b {p}2 {p}3", "code"),
        ],
        [value("window", np.float32, "batch", 128, 6)],
        [value("code", np.int8, "batch", 4)],
        {
            f"{p}0": np.array([-1, 768]),
            f"{p}1": _weights(768, 4),
            f"{p}2": np.float32(1 / 8).reshape(()),
            f"{p}3": np.zeros((), np.int8),
        },
    )


def classifier(p="c", labels=3, opset=17, batch="batch", declared=3):
    """`code` -> `logits`, of which it may declare another number."""
    return model(
        [node("Cast", "code", f"{p}a", to=1), node("MatMul", f"{p}a {p}0", "logits")],
        [value("code", np.int8, batch, 4)],
        [value("logits", np.float32, batch, declared)],
        {f"{p}0": _weights(4, labels)},
        opset,
    )


def decoder(p="d"):
    """`code` -> `reconstruction`."""
    return model(
        [
            node("Cast", "code", f"{p}a", to=1),
            node("MatMul", f"{p}a {p}0", f"{p}b"),
            node("Reshape", f"{p}b {p}1", "reconstruction"),
        ],
        [value("code", np.int8, "batch", 4)],
        [value("reconstruction", np.float32, "batch", 128, 6)],
        {f"{p}0": _weights(4, 768), f"{p}1": np.array([-1, 128, 6])},
    )


def novelty(p="n"):
    """`code` -> the logarithm of its Mahalanobis distance from nothing."""
    return model(
        [
            node("Cast", "code", f"{p}a", to=1),
            node("Sub", f"{p}a {p}0", f"{p}b"),
            node("MatMul", f"{p}b {p}1", f"{p}c"),
            node("Mul", f"{p}c {p}c", f"{p}d"),
            node("ReduceSum", f"{p}d {p}2", f"{p}e", keepdims=0),
            node("Sqrt", f"{p}e", f"{p}f"),
            node("Add", f"{p}f {p}3", f"{p}g"),
            node("Log", f"{p}g", "novelty"),
        ],
        [value("code", np.int8, "batch", 4)],
        [value("novelty", np.float32, "batch")],
        {
            f"{p}0": np.full((1, 4), 0.5, np.float32),
            f"{p}1": np.eye(4, dtype=np.float32),
            f"{p}2": np.array([1]),
            f"{p}3": np.float32(2).reshape(()),
        },
    )


def exit_head(at="eb", p="x", labels=3, opset=17):
    """Four floats inside of `encoder` -> logits, and the greatest of them as novelty."""
    return model(
        [node("MatMul", f"{at} {p}0", "logits"), node("ReduceMax", "logits", "novelty", axes=[1], keepdims=0)],
        [value(at, np.float32, "batch", 4)],
        [value("logits", np.float32, "batch", labels), value("novelty", np.float32, "batch")],
        {f"{p}0": _weights(4, labels)},
        opset,
    )


def context(windows, labels=3):
    """`codes` -> `logits` of their mean."""
    return model(
        [
            node("Cast", "codes", "a", to=1),
            node("ReduceMean", "a", "b", axes=[1], keepdims=0),
            node("MatMul", "b w", "logits"),
        ],
        [value("codes", np.int8, "batch", windows, 4)],
        [value("logits", np.float32, "batch", labels)],
        {"w": _weights(4, labels)},
    )


def write_bundle(folder, windows=0, novel=False, graphs=None, **changes):
    """Write a bundle of the graphs above and return its folder.

    With a context of so many `windows` and a graph for novelty, if asked for. `graphs` replaces or adds some after the
    golden vectors were made; `changes` are made to the manifest.
    """
    contents = {"encoder.onnx": encoder(), "classifier.onnx": classifier(), "decoder.onnx": decoder()}
    contents |= {NOVELTY: novelty()} if novel else {}
    contents |= {CONTEXT: context(windows)} if windows else {}
    manifest = Manifest(
        name="tiny",
        version="1",
        created="2026-01-01",
        labels=LABELS,
        input=Input(),
        normalisation=Normalisation(np.zeros(6, np.float32), np.ones(6, np.float32)),
        code=Code((4,), "int8", 4),
        calibration=Calibration(1.0, 100.0),
        files={},
        context=Context(windows, 1.0) if windows else None,
    )
    model = OrtModel(Bundle(manifest, "0" * 64, contents))
    rng = np.random.default_rng(0)
    window = np.rint(rng.normal(0, 64, (8, 128, 6))).astype(np.float32) / 64
    scores = model.infer(window)
    golden = {"window": window, "code": scores.code, "logits": scores.logits, "novelty": scores.novelty}
    if windows:
        codes = rng.integers(-128, 128, (5, windows, 4)).astype(np.int8)
        golden |= {"codes": codes, "context_logits": model.contextualise(codes)}
    return write_files(folder, manifest._replace(**changes), {**contents, **(graphs or {})}, golden)


def write_segment(folder, whole, at="window", until="", **changes):
    """Write the part of a whole bundle from one tensor to another as a bundle, and return its folder.

    `changes` are made to the manifest.
    """
    parts = Parts(whole)
    windows = whole.manifest.normalisation.apply(read_golden(whole).window)
    takes = windows if at == "window" else parts.run("window", at, windows)
    gives = parts.run("window", until, windows)
    scores = ("logits", "code", "novelty")
    golden = {"takes": takes, **({"gives": gives} if until else {name: getattr(gives, name) for name in scores})}
    segment = Segment(whole.id, whole.digest, at, until)
    facts = {"name": "part", "context": None, "exits": (), "segment": segment}
    manifest = whole.manifest._replace(**{**facts, **changes})
    heads = {one.file: whole.contents[one.file] for one in manifest.exits}
    return write_files(folder, manifest, {"segment.onnx": parts.part(at, until), **heads}, golden)


def write_files(folder, manifest, contents, golden):
    """Write a bundle: its files, golden vectors made of these arrays, and the manifest; return its folder."""
    packed = io.BytesIO()
    np.savez(packed, **golden)
    contents = {"golden.npz": packed.getvalue(), "CARD.md": b"tiny", **contents}
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    files = {name: FileEntry(sha256(data), len(data)) for name, data in contents.items()}
    (folder / "manifest.json").write_bytes(dump(manifest._replace(files=files)))
    return folder
