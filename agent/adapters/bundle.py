"""Model bundles, folders or single files: read once, every file held against the manifest, only verified bytes go on.

A single file, `.harmodel`, is a tar of the folder, as it is or compressed with gzip. It is read in memory: nothing of
it is written anywhere before it is verified.
"""

import io
import math
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.core import onnx_wire, tar
from agent.core.cuts import bridges
from agent.core.manifest import (
    CODE,
    CONTEXT,
    REQUIRED_FILES,
    SEGMENT,
    SEGMENT_FILES,
    SIZE_CAPS,
    WINDOW,
    Bundle,
    Golden,
    Manifest,
    Segment,
    SegmentGolden,
    check_file,
    parse,
    sha256,
)
from agent.core.onnx_wire import FLOAT, INT8, TYPES, Value
from agent.errors import ModelContractError
from agent.records import Scores

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
"""Ed25519 over the bytes of `manifest.json`: 64 bytes. It stands beside the manifest, which cannot list it."""

MANIFEST_CAP = 1 << 20
"""Largest `manifest.json` that is read, in bytes."""

SIGNATURE_CAP = 1024
TOTAL_CAP = 32 << 20
"""Most that all files of a bundle may have together, in bytes; also the size of a single file, unpacked."""

GOLDEN_CAP = 16 << 20
"""Most that golden vectors may unpack to, in bytes."""

TENSOR_CAP = 1 << 20
"""Most bytes of what a segment may take or give of one window."""

MAX_OPSET = 21
ALLOWED_OPERATORS = frozenset({
    "Add", "AveragePool", "Cast", "Clip", "Concat", "Constant", "Conv", "ConvTranspose", "DequantizeLinear", "Div",
    "Flatten", "Gather", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "Identity", "Log", "MatMul", "MaxPool", "Mul",
    "Pad", "QuantizeLinear", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu", "Reshape", "Resize",
    "Sigmoid", "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Operators of the standard domain that a bundle may use: arithmetic on tensors, no control flow, no I/O."""

_Array = tuple[str, tuple[int, ...]]
"""What an array holds, by numpy's name, and its shape without the first axis."""


def builtin_models() -> Path:
    """Return the folder of the bundles that ship with the agent: in the wheel, or in a source checkout."""
    package = Path(__file__).resolve().parent.parent
    shipped = package / "models"
    return shipped if shipped.is_dir() else package.parent / "models"


def find_bundle(name: str) -> Path:
    """Return the folder that `name` means: a path if it exists as one, else a bundle that ships with the agent.

    Raises:
        ModelContractError: neither exists.
    """
    # Not Path.is_dir(): where a folder above may not be entered, that raises.
    if os.path.isdir(name) or os.path.isfile(name):  # noqa: PTH112, PTH113
        return Path(name)
    shipped = builtin_models() / name
    if name and "/" not in name and os.path.isdir(shipped):  # noqa: PTH112
        return shipped
    known = ", ".join(sorted(p.name for p in builtin_models().glob("*") if p.is_dir())) or "none"
    raise ModelContractError(
        f"no model bundle at {name!r}; give a bundle's folder or .harmodel file, or the name of one that ships: {known}"
    )


def load_bundle(source: Path | bytes) -> Bundle:
    """Read and verify a bundle: a folder, or a single file by its path or its bytes.

    The models are not run: see `onnx_model.OrtModel.verify`.

    Raises:
        ModelContractError: it breaks the bundle contract; the text says in what.
    """
    return check_files(read_files(source))


def read_files(source: Path | bytes) -> dict[str, bytes]:
    """Read a bundle's files by name, within their caps: what the manifest lists, the manifest, a signature if any.

    They are not verified: see `check_files`.

    Raises:
        ModelContractError: a file is missing, too large, or none that a bundle may carry.
    """
    if isinstance(source, bytes):
        return _unpack(source, "the bundle")
    # As in find_bundle().
    if os.path.isfile(source):  # noqa: PTH113
        return _unpack(_read(source, TOTAL_CAP), str(source))
    files = {MANIFEST: _read(source / MANIFEST, MANIFEST_CAP)}
    if os.path.lexists(source / SIGNATURE):
        files[SIGNATURE] = _read(source / SIGNATURE, SIGNATURE_CAP)
    listed = parse(files[MANIFEST]).files
    if len(listed) > tar.MAX_MEMBERS:
        raise ModelContractError(f"{source}: the manifest lists more than {tar.MAX_MEMBERS} files")
    left = TOTAL_CAP
    for name in listed:
        files[name] = _read(source / name, min(_cap(name), left))
        left -= len(files[name])
    return files


def check_files(files: Mapping[str, bytes]) -> Bundle:
    """Hold a bundle's files against its manifest. Its signature, if it has one, is not looked at.

    Raises:
        ModelContractError: they break the bundle contract; the text says in what.
    """
    manifest_bytes = files.get(MANIFEST, b"")
    if not manifest_bytes:
        raise ModelContractError(f"the bundle has no {MANIFEST}")
    for name, cap in ((MANIFEST, MANIFEST_CAP), (SIGNATURE, SIGNATURE_CAP)):
        if len(files.get(name, b"")) > cap:
            raise ModelContractError(f"{name} is larger than {cap} bytes, the most that is allowed for it")
    manifest = parse(manifest_bytes)
    required = SEGMENT_FILES if manifest.segment else REQUIRED_FILES
    missing = [name for name in (*required, *(e.file for e in manifest.exits)) if name not in manifest.files]
    if missing:
        raise ModelContractError(f"{manifest.name}: the manifest does not list {', '.join(missing)}")
    if (manifest.context is None) != (CONTEXT not in manifest.files):
        raise ModelContractError(
            f"{manifest.name}: the manifest has one of {CONTEXT} and `context`, which only mean something together"
        )
    unlisted = files.keys() - manifest.files.keys() - {MANIFEST, SIGNATURE}
    if unlisted:
        raise ModelContractError(
            f"{manifest.name} carries {', '.join(sorted(unlisted))}, which its manifest does not list"
        )
    contents = {}
    for name, entry in manifest.files.items():
        cap = _cap(name)
        data = files.get(name)
        if data is None:
            raise ModelContractError(f"{manifest.name} lacks {name}, which its manifest lists")
        if len(data) > cap:
            raise ModelContractError(f"{name} is larger than {cap} bytes, the most that is allowed for it")
        check_file(name, data, entry)
        if name.endswith(".onnx"):
            _check_onnx(name, data)
        contents[name] = data
    if manifest.segment:
        _check_segment(manifest, manifest.segment, contents[SEGMENT])
    _check_exits(manifest, contents)
    return Bundle(manifest, sha256(manifest_bytes), contents)


def pack(source: Path) -> bytes:
    """Return a bundle's folder as the bytes of a `.harmodel`; equal bundles give equal bytes.

    Raises:
        ModelContractError: it breaks the bundle contract.
    """
    files = read_files(source)
    check_files(files)
    first = [name for name in (MANIFEST, SIGNATURE) if name in files]
    try:
        return tar.pack({name: files[name] for name in [*first, *sorted(files.keys() - first)]})
    except tar.TarError as e:
        raise ModelContractError(f"{source} cannot be packed: {e}") from e


def read_golden(bundle: Bundle) -> Golden:
    """Return the golden vectors.

    Raises:
        ModelContractError: `golden.npz` cannot be read or does not fit the manifest.
    """
    manifest = bundle.manifest
    wanted: dict[str, _Array] = {
        "window": ("float32", (manifest.input.window, len(manifest.input.channels))),
        **_scores(manifest),
    }
    if manifest.context:
        wanted["codes"] = ("int8", (manifest.context.windows, *manifest.code.shape))
        wanted["context_logits"] = ("float32", (len(manifest.labels),))
    return Golden(**_golden(bundle, wanted))


def read_segment_golden(bundle: Bundle) -> SegmentGolden:
    """Return the golden vectors of a bundle that holds a part of a network.

    Raises:
        ModelContractError: `golden.npz` cannot be read or does not fit what the graph declares.
    """
    inputs, outputs = onnx_wire.signature(bundle.contents[SEGMENT])
    takes = {"takes": _array(inputs[0])}
    if len(outputs) == 1:
        arrays = _golden(bundle, {**takes, "gives": _array(outputs[0])})
        return SegmentGolden(arrays["takes"], arrays["gives"])
    arrays = _golden(bundle, {**takes, **_scores(bundle.manifest)})
    return SegmentGolden(arrays.pop("takes"), Scores(**arrays))


def _array(value: Value) -> _Array:
    """What a tensor that `_check_segment` has passed is in golden vectors."""
    return TYPES[value.dtype], tuple(n for n in value.shape[1:] if n)


def _scores(manifest: Manifest) -> dict[str, _Array]:
    return {
        "code": ("int8", manifest.code.shape),
        "logits": ("float32", (len(manifest.labels),)),
        "novelty": ("float64", ()),
    }


def _golden(bundle: Bundle, wanted: Mapping[str, _Array]) -> dict[str, npt.NDArray[Any]]:
    """Read the arrays that are `wanted`, by name; all have a row a window but those of a context."""
    try:
        with zipfile.ZipFile(io.BytesIO(bundle.contents["golden.npz"])) as packed:
            inflated = sum(entry.file_size for entry in packed.infolist())
        if inflated > GOLDEN_CAP:
            raise ValueError(f"it unpacks to {inflated} bytes, more than {GOLDEN_CAP}")
        with np.load(io.BytesIO(bundle.contents["golden.npz"]), allow_pickle=False) as golden:
            arrays = {name: golden[name] for name in wanted}
    except Exception as e:  # numpy raises BadZipFile, ValueError, KeyError, EOFError, NotImplementedError and more here
        raise ModelContractError(f"golden.npz cannot be read: {e}") from e
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    for name, (kind, shape) in wanted.items():
        n = lengths["codes" if name in ("codes", "context_logits") else next(iter(wanted))]
        if arrays[name].shape != (n, *shape) or arrays[name].dtype != kind:
            raise ModelContractError("golden.npz does not have the shapes and types that the manifest says")
    if 0 in lengths.values():
        raise ModelContractError("golden.npz holds no windows")
    return arrays


def _check_onnx(name: str, data: bytes) -> None:
    try:
        summary = onnx_wire.summarise(data)
    except ModelContractError as e:
        raise ModelContractError(f"{name}: {e}") from e
    if summary.external_data:
        raise ModelContractError(f"{name} keeps data outside the file, which a bundle may not")
    version = summary.opsets.get("", 0)
    if not 1 <= version <= MAX_OPSET:
        raise ModelContractError(f"{name} uses ONNX opset {version}; this agent allows 1 to {MAX_OPSET}")
    foreign = {
        op if not domain else f"{domain}.{op}"
        for domain, op in summary.operators
        if domain or op not in ALLOWED_OPERATORS
    }
    if summary.functions:
        foreign.add("local functions")
    if foreign:
        raise ModelContractError(f"{name} uses {', '.join(sorted(foreign))}, which a bundle may not")


def _check_segment(manifest: Manifest, segment: Segment, graph: bytes) -> None:
    """Hold what a part of a network declares against the manifest."""
    if manifest.context:
        raise ModelContractError(f"{manifest.name}: a part of a network has no context, the board has it")
    inputs, outputs = onnx_wire.signature(graph)
    known = {
        WINDOW: Value(WINDOW, FLOAT, (None, manifest.input.window, len(manifest.input.channels))),
        CODE: Value(CODE, INT8, (None, *manifest.code.shape)),
    }
    ends = ([] if segment.at == CODE else [known[CODE]]) + _scored(manifest)
    for side, found, wanted in (
        ("input", inputs, [known.get(segment.at)]),
        ("output", outputs, [known.get(segment.until)] if segment.until else ends),
    ):
        name = segment.at if side == "input" else segment.until
        # Of a tensor inside of the network, the manifest knows the name alone.
        if found != wanted and not (wanted == [None] and len(found) == 1 and found[0].name == name and _fits(found[0])):
            raise ModelContractError(f"{SEGMENT}: its {side} is not what the manifest means")


def _fits(value: Value) -> bool:
    """Whether a part may take or give this: so many numbers of a known type for each window."""
    batch, *sizes = value.shape or (0,)
    itemsize = np.dtype(TYPES[value.dtype]).itemsize if value.dtype in TYPES else TENSOR_CAP + 1
    return batch is None and all(sizes) and math.prod(n or 0 for n in sizes) * itemsize <= TENSOR_CAP


def _check_exits(manifest: Manifest, contents: Mapping[str, bytes]) -> None:
    """Hold the heads of exits against the manifest, and the tensors that they read against the network."""
    unknown = {name for name in contents if name.startswith("exit-")} - {one.file for one in manifest.exits}
    if unknown:
        raise ModelContractError(f"{manifest.name}: the manifest has no exit for {', '.join(sorted(unknown))}")
    if not manifest.exits:
        return
    inside = set(bridges(contents[SEGMENT if manifest.segment else "encoder.onnx"]))
    if manifest.segment:
        inside.add(manifest.segment.until)
    for one in manifest.exits:
        if one.at not in inside:
            raise ModelContractError(f"{manifest.name}: exit {one.name} reads {one.at}, which is no cut of the network")
        inputs, outputs = onnx_wire.signature(contents[one.file])
        if [value.name for value in inputs] != [one.at] or outputs != _scored(manifest):
            raise ModelContractError(f"{one.file}: it must take {one.at}, and give logits and novelty as the end does")


def _scored(manifest: Manifest) -> list[Value]:
    """What the end of a network declares, and so must a head."""
    return [Value("logits", FLOAT, (None, len(manifest.labels))), Value("novelty", FLOAT, (None,))]


def _unpack(data: bytes, what: str) -> dict[str, bytes]:
    try:
        return tar.unpack(_inflate(data))
    except (tar.TarError, zlib.error) as e:
        raise ModelContractError(f"{what} is no model bundle: {e}. `har-export pack` makes one of a folder") from e


def _inflate(data: bytes) -> bytes:
    """What is in `data` if it is compressed, up to the cap and no further."""
    if not data.startswith(b"\x1f\x8b"):
        if len(data) > TOTAL_CAP:
            raise tar.TarError(f"it is larger than {TOTAL_CAP} bytes")
        return data
    unzip = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    plain = unzip.decompress(data, TOTAL_CAP + 1)
    if len(plain) > TOTAL_CAP:
        raise tar.TarError(f"it unpacks to more than {TOTAL_CAP} bytes")
    if not unzip.eof:
        raise tar.TarError("it is cut short")
    return plain


def _cap(name: str) -> int:
    cap = SIZE_CAPS.get(Path(name).suffix)
    if cap is None or not re.fullmatch(r"[\w.-]+", name, re.ASCII):
        raise ModelContractError(f"a bundle may not carry {name!r}")
    return cap


def _read(path: Path, cap: int) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ModelContractError(f"{path} is not a file")
        with path.open("rb") as f:
            data = f.read(cap + 1)
    except OSError as e:
        raise ModelContractError(f"{path} cannot be read: {e.strerror or e}") from e
    if len(data) > cap:
        raise ModelContractError(f"{path} is larger than {cap} bytes, the most that is allowed for it")
    return data
