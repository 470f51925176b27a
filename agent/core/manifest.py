"""The manifest of a model bundle: what it contains, what it takes and gives, and how its scores are read."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from agent.core.normalise import Normalisation
from agent.core.timeline import MAX_RATE_HZ, MIN_RATE_HZ
from agent.errors import ModelContractError
from agent.records import CHANNELS, UNKNOWN, Float32Array, Float64Array, Int8Array, Scores

SCHEMA = 1
"""The manifest schema that this version reads and writes."""

REQUIRED_FILES = ("encoder.onnx", "classifier.onnx", "decoder.onnx", "golden.npz", "CARD.md")
NOVELTY = "novelty.onnx"
"""An optional file: how unlike the codes of known activities a code is. Without it, that is the decoder's error."""

CONTEXT = "context.onnx"
"""An optional file, which comes with the manifest's `context`."""

SEGMENT = "segment.onnx"
"""The only graph of a bundle that holds a part of a network, beside heads of exits in it."""

SEGMENT_FILES = (SEGMENT, "golden.npz", "CARD.md")
"""What such a bundle has in place of `REQUIRED_FILES`."""

WINDOW, CODE = "window", "code"
"""The tensors that every network has: the first one, and the last one that a network is cut at."""

MAX_LOOK_BACK_S = 30.0
"""How far back a context may reach: what follows a change of activity may not wait longer for what preceded it."""

SIZE_CAPS = {".onnx": 8 << 20, ".npz": 4 << 20, ".md": 256 << 10}
"""Largest size that is read, per suffix: far above any bundle for a board, far below what exhausts one."""


_NUMERIC = re.compile(r"[0-9]+(\.[0-9]+)*")
_EXIT = re.compile(r"[a-z0-9-]{1,16}")


class Input(NamedTuple):
    """What one window is. `hop` is the default distance between windows, in samples."""

    rate_hz: float = 50.0
    window: int = 128
    hop: int = 64
    channels: tuple[str, ...] = CHANNELS
    acc_unit: str = "g"
    gyro_unit: str = "rad/s"


class Code(NamedTuple):
    """What the encoder makes of one window, and what would be sent in its place."""

    shape: tuple[int, ...]
    dtype: str
    bytes: int


class FileEntry(NamedTuple):
    """One file of the bundle."""

    sha256: str
    bytes: int


class Calibration(NamedTuple):
    """How logits and novelty are read.

    `temperature` divides the logits before softmax (Guo et al., ICML 2017). A window whose novelty exceeds
    `novelty_threshold` is unknown. `novelty_quantiles`: quantile -> novelty on held-out windows, for comparison. Both
    are in the unit of what gives the novelty: `novelty.onnx`, or else the decoder's error.
    """

    temperature: float
    novelty_threshold: float
    novelty_quantiles: Mapping[str, float] = {}


class Context(NamedTuple):
    """What `context.onnx` looks at: the codes of so many windows, the current one the last, at the bundle's own hop.

    `temperature` divides its logits before softmax, as `Calibration.temperature` does a single window's.
    """

    windows: int
    temperature: float


class Exit(NamedTuple):
    """A head inside of the encoder, in `exit-<name>.onnx`: it has logits and a novelty of its own, on the end's scales.

    `at`: the tensor that it reads, which everything passes through. `accuracy`: the share of single windows of people
    unknown to it that it got right, if that was measured. `confidence`: a window may stop there whose calibrated
    confidence reaches it.
    """

    name: str
    at: str
    accuracy: float | None
    confidence: float

    @property
    def file(self) -> str:
        """The file of its head."""
        return f"exit-{self.name}.onnx"


class Segment(NamedTuple):
    """What part of a network a bundle holds.

    `of`: id of the whole, `har-base@3f9c1a7e`. `network`: SHA-256 of the whole's manifest. `at`: the tensor that it
    takes, `window` or one that everything passes through. `until`: the tensor that it gives, empty at the end.
    """

    of: str
    network: str
    at: str
    until: str


class Manifest(NamedTuple):
    """A bundle's description; `training` and `metrics` are for people and are not interpreted."""

    name: str
    version: str
    created: str
    labels: tuple[str, ...]
    input: Input
    normalisation: Normalisation
    code: Code
    calibration: Calibration
    files: Mapping[str, FileEntry]
    training: Mapping[str, Any] = {}
    metrics: Mapping[str, Any] = {}
    context: Context | None = None
    exits: tuple[Exit, ...] = ()
    segment: Segment | None = None
    schema: int = SCHEMA

    @property
    def look_back_s(self) -> float:
        """How far back the context reaches, in seconds; 0 without one."""
        return self.context.windows * self.input.hop / self.input.rate_hz if self.context else 0.0


class Bundle(NamedTuple):
    """A manifest with the bytes of its files, each already checked against its hash."""

    manifest: Manifest
    digest: str
    contents: Mapping[str, bytes]

    @property
    def id(self) -> str:
        """Name and the first eight digits of the manifest's SHA-256, `har-base@3f9c1a7e`."""
        return f"{self.manifest.name}@{self.digest[:8]}"


class Golden(NamedTuple):
    """Windows, float32 (n, window, 6) in g and rad/s, and the code, logits and novelty that they must give.

    Where there is a context, also `codes`, int8 (m, windows, *code), and the logits that it must give of them.
    """

    window: Float32Array
    code: Int8Array
    logits: Float32Array
    novelty: Float64Array
    codes: Int8Array | None = None
    context_logits: Float32Array | None = None


class SegmentGolden(NamedTuple):
    """Tensors that a segment takes, (n, …), and what it must give of them: `gives`, or scores if it is the last one."""

    takes: npt.NDArray[Any]
    gives: npt.NDArray[Any] | Scores


def dump(manifest: Manifest) -> bytes:
    """Return the manifest as the bytes of `manifest.json`; what came to the schema later is there only where used."""
    raw = manifest._asdict()
    for part in ("input", "code", "calibration"):
        raw[part] = raw[part]._asdict()
    raw["context"] = manifest.context and manifest.context._asdict()
    raw["exits"] = [one._asdict() for one in manifest.exits]
    raw["segment"] = manifest.segment and manifest.segment._asdict()
    for later in ("exits", "segment"):
        if not raw[later]:
            del raw[later]
    raw["files"] = {name: entry._asdict() for name, entry in manifest.files.items()}
    raw["normalisation"] = {
        "mean": [float(x) for x in manifest.normalisation.mean],
        "std": [float(x) for x in manifest.normalisation.std],
    }
    return (json.dumps(raw, indent=2) + "\n").encode()


def is_lower(version: str, than: str) -> bool | None:
    """Return whether a version is lower than another, number by number: 0.9 < 0.10, and 1.0 is 1.0.0.

    None where one is anything but numbers with dots between them, such as a name or a release candidate: those have
    no order that everybody agrees on.
    """
    if not (_NUMERIC.fullmatch(version) and _NUMERIC.fullmatch(than)):
        return None
    one, other = (tuple(map(int, v.split("."))) for v in (version, than))
    longest = max(len(one), len(other))
    return one + (0,) * (longest - len(one)) < other + (0,) * (longest - len(other))


def sha256(data: bytes) -> str:
    """Hex SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def parse(data: bytes) -> Manifest:
    """Read `manifest.json`.

    Raises:
        ModelContractError: not JSON, an unknown schema version, or a field that is missing or of the wrong kind.
    """
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise ModelContractError(f"manifest.json is not JSON: {e}") from e
    if not isinstance(raw, dict):
        raise ModelContractError("manifest.json does not hold an object")
    if type(raw.get("schema")) is not int or raw["schema"] != SCHEMA:
        raise ModelContractError(
            f"manifest.json has schema version {raw.get('schema')!r}; this agent reads {SCHEMA}. "
            "Install an agent that knows it, or a bundle made for this one"
        )
    try:
        return _manifest(raw)
    except KeyError as e:
        raise ModelContractError(f"manifest.json lacks {e}") from e
    except (TypeError, ValueError, AttributeError, OverflowError) as e:
        raise ModelContractError(f"manifest.json: {e}") from e


def _manifest(raw: dict[str, Any]) -> Manifest:
    labels = tuple(_name(x, "labels") for x in _list(raw["labels"], "labels"))
    if len(labels) < 2 or len(set(labels)) != len(labels) or UNKNOWN in labels:
        raise ValueError(f"labels must be at least two distinct names, none of them {UNKNOWN!r}")
    given, norm, code, calibration = (
        _object(raw[name], name) for name in ("input", "normalisation", "code", "calibration")
    )
    entry = Input(
        rate_hz=_number(given["rate_hz"], "input.rate_hz"),
        window=_positive(given["window"], "input.window"),
        hop=_positive(given["hop"], "input.hop"),
        channels=tuple(given["channels"]),
        acc_unit=given["acc_unit"],
        gyro_unit=given["gyro_unit"],
    )
    if entry.channels != CHANNELS or (entry.acc_unit, entry.gyro_unit) != ("g", "rad/s"):
        raise ValueError(f"input must be {', '.join(CHANNELS)} in g and rad/s")
    if not MIN_RATE_HZ <= entry.rate_hz <= MAX_RATE_HZ or entry.hop > entry.window or entry.window > 4096:
        raise ValueError("input.rate_hz, window and hop do not fit each other")
    shape = tuple(_positive(n, "code.shape") for n in code["shape"])
    if code["dtype"] != "int8" or int(np.prod(shape)) != code["bytes"]:
        raise ValueError("code must be int8, with as many bytes as its shape says")
    files = {
        name: FileEntry(str(_object(f, f"files.{name}")["sha256"]), _positive(f["bytes"], f"files.{name}.bytes"))
        for name, f in _object(raw["files"], "files").items()
    }
    threshold = _number(calibration["novelty_threshold"], "calibration.novelty_threshold")
    if threshold <= 0:
        raise ValueError("calibration.novelty_threshold must be positive")
    return Manifest(
        name=_name(raw["name"], "name"),
        version=_name(raw["version"], "version"),
        created=_name(raw["created"], "created"),
        labels=labels,
        input=entry,
        normalisation=Normalisation(_float32(norm["mean"]), _float32(norm["std"])),
        code=Code(shape, code["dtype"], code["bytes"]),
        calibration=Calibration(
            _temperature(calibration["temperature"], "calibration.temperature"),
            threshold,
            {
                q: float(v)
                for q, v in _object(calibration["novelty_quantiles"], "calibration.novelty_quantiles").items()
            },
        ),
        files=files,
        training=_object(raw.get("training", {}), "training"),
        metrics=_object(raw.get("metrics", {}), "metrics"),
        context=_context(raw.get("context"), entry),
        exits=_exits(raw.get("exits", [])),
        segment=_segment(raw.get("segment")),
    )


def _context(raw: Any, entry: Input) -> Context | None:
    if raw is None:
        return None
    raw = _object(raw, "context")
    context = Context(
        _positive(raw["windows"], "context.windows"), _temperature(raw["temperature"], "context.temperature")
    )
    look_back_s = context.windows * entry.hop / entry.rate_hz
    if look_back_s > MAX_LOOK_BACK_S:
        raise ValueError(
            f"context.windows is {context.windows}: it looks back {look_back_s:g} s, at most {MAX_LOOK_BACK_S:g} s "
            "are allowed"
        )
    return context


def _exits(raw: Any) -> tuple[Exit, ...]:
    found = tuple(
        Exit(
            _name(one["name"], "exits.name"),
            _name(one["at"], "exits.at"),
            None if one.get("accuracy") is None else _share(one["accuracy"], "exits.accuracy"),
            _share(one["confidence"], "exits.confidence"),
        )
        for one in (_object(each, "each of exits") for each in _list(raw, "exits"))
    )
    if not all(_EXIT.fullmatch(one.name) for one in found) or len({one.name for one in found}) != len(found):
        raise ValueError("exits must have distinct names of 1 to 16 small letters, digits and dashes")
    return found


def _segment(raw: Any) -> Segment | None:
    if raw is None:
        return None
    raw = _object(raw, "segment")
    until = "" if raw["until"] == "" else _name(raw["until"], "segment.until")
    segment = Segment(
        _name(raw["of"], "segment.of"), _name(raw["network"], "segment.network"), _name(raw["at"], "segment.at"), until
    )
    if not re.fullmatch(r"[0-9a-f]{64}", segment.network) or not segment.of.endswith(f"@{segment.network[:8]}"):
        raise ValueError("segment.network must be the SHA-256 that segment.of ends with the first eight digits of")
    if segment.at == until:
        raise ValueError(f"segment.at and segment.until are both {until!r}")
    return segment


def _float32(values: Any) -> Float32Array:
    array = np.asarray(values, np.float64)
    # Beyond the range of float32, the cast would give infinity and a warning.
    return np.where(np.abs(array) < 1e30, array, np.inf).astype(np.float32)


def _list(value: object, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{name} must be a list, not {value!r}")
    return value


def _object(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{name} must be an object, not {value!r}")
    return value


def _name(value: object, name: str) -> str:
    if not isinstance(value, str) or not value.isprintable() or not 1 <= len(value) <= 64:
        raise ValueError(f"{name} must be 1 to 64 printable characters")
    return value


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, not {value!r}")
    return float(value)


def _share(value: object, name: str) -> float:
    share = _number(value, name)
    if not 0 <= share <= 1:
        raise ValueError(f"{name} must be from 0 to 1")
    return share


def _temperature(value: object, name: str) -> float:
    temperature = _number(value, name)
    if not 0 < temperature < 100:
        raise ValueError(f"{name} must be positive and below 100")
    return temperature


def _positive(value: object, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive whole number, not {value!r}")
    return value


def check_file(name: str, data: bytes, entry: FileEntry) -> None:
    """Hold one file of a bundle against its manifest entry.

    Raises:
        ModelContractError: its size or its SHA-256 differs.
    """
    if len(data) != entry.bytes:
        raise ModelContractError(f"{name} is {len(data)} bytes; its manifest says {entry.bytes}")
    if sha256(data) != entry.sha256:
        raise ModelContractError(f"{name} is damaged or was changed: its SHA-256 is not the manifest's")
