"""What a board asks of a worker and what it answers, as bytes: the payloads of an MQTT 5 request and its response.

A request, little-endian:

    2s   magic    "HQ"
    u8   version  1
    u8   kind     1 code, 2 window
    8s   space    which codes: the first bytes of the SHA-256 of the encoder's file; zeros for a window
    f32  rate_hz  samples a second of the window
    u8   count    windows, oldest first, the last one is that in question
    u16  size     bytes of a code; samples of a window
    u16  hop      samples from one window to the next; 0 for codes, and where there is one window
    code:   i8    count * size
    window: f16   (size + (count - 1) * hop) * 6, sample by sample, ax ay az in g, gx gy gz in rad/s, cut off at ±65504

An answer begins with

    2s   magic    "HA"
    u8   version  1
    u8   status   0, or why there is no answer (`Refusal`)

and goes on, where there is one, with

    u8   flags    bit 0: known; the others are 0
    u8   n        labels
    u32  CRC-32 of the labels in the worker's order, UTF-8, with a zero between two of them
    f32  n        calibrated probabilities
    utf-8         the model's id, up to the end

and otherwise with a sentence for people, UTF-8, up to the end. Both sides refuse whatever does not fit exactly: the
bytes come from outside, and MQTT has seen to it that they came whole.
"""

import math
import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple
from zlib import crc32

import numpy as np

from agent.core.timeline import MAX_RATE_HZ, MIN_RATE_HZ
from agent.core.wire import topic_level
from agent.records import CHANNELS, Float32Array, Int8Array

VERSION = 1
MAX_REQUEST = 16 * 1024
"""Bytes; longer ones are not even looked at. 3.4 s of samples at 400 Hz, or 16 codes of 1000 bytes."""
SPACE_BYTES = 8
NO_SPACE = bytes(SPACE_BYTES)
"""What stands for the space of codes in a request with a window."""

_REQUEST = struct.Struct("<2sBB8sfBHH")
_REQUEST_MAGIC = b"HQ"
_ANSWER = struct.Struct("<2sBB")
_ANSWER_MAGIC = b"HA"
_RESULT = struct.Struct("<BBI")
_SAMPLE_BYTES = 2 * len(CHANNELS)
_MAX_HALF = 65504.0
"""The largest number of 16 bits."""
_MAX_TEXT = 300
"""Bytes: room for the id of any bundle, whose name has at most 64 characters."""
_SUM_WITHIN = 1e-3
"""How far a sum of probabilities may be from 1: float32 over 255 labels stays well within."""


class Kind(IntEnum):
    """What a request holds."""

    CODE = 1
    WINDOW = 2


class Refusal(IntEnum):
    """Why a worker does not answer."""

    BAD_REQUEST = 1
    UNKNOWN_VERSION = 2
    TOO_LARGE = 3
    OTHER_CODE = 4
    OTHER_WINDOW = 5
    OVERLOADED = 6
    FAILED = 7
    OTHER_PART = 8
    NOWHERE_NEXT = 9


class RequestError(ValueError):
    """A request cannot be answered. `refusal` is why; the text is for people."""

    def __init__(self, refusal: Refusal, sentence: str) -> None:
        super().__init__(sentence)
        self.refusal = refusal


class Request(NamedTuple):
    """What is asked: of codes int8 (count, size) in `space`, or of samples float32 (n, 6), g and rad/s.

    The one that `kind` does not name is None. Samples are those of `windows`, each `hop` after the one before.
    """

    kind: Kind
    space: bytes
    rate_hz: float
    codes: Int8Array | None = None
    samples: Float32Array | None = None
    windows: int = 1
    hop: int = 0

    @property
    def window(self) -> int:
        """How many samples a window has; 0 where there are none."""
        return 0 if self.samples is None else len(self.samples) - (self.windows - 1) * self.hop


class CloudAnswer(NamedTuple):
    """What a worker says of a window: `probabilities` per label of its model, in the model's order, calibrated.

    `labels_crc`: see `labels_crc`. `model`: the model's id.
    """

    probabilities: tuple[float, ...]
    known: bool
    labels_crc: int
    model: str


class CloudRefusal(NamedTuple):
    """That a worker does not answer, and why; `sentence` is for people."""

    refusal: Refusal
    sentence: str


def code_space(encoder_sha256: str) -> bytes:
    """Return what names the codes of an encoder: the first bytes of the hash, given as hexadecimal digits."""
    return bytes.fromhex(encoder_sha256)[:SPACE_BYTES]


def labels_crc(labels: Sequence[str]) -> int:
    """Return what must be equal on both sides for probabilities to mean the same labels."""
    return crc32("\0".join(labels).encode())


def request_topic(root: str, service: str) -> str:
    """Return the topic of requests to the workers of a service."""
    return f"{root}/cloud/{service}/request"


def answer_topic(root: str, agent: str, purpose: str = "cloud") -> str:
    """Return the topic on which a board, `agent` by name, gets its answers.

    `purpose`: the section of its configuration that has it ask, cloud or split.
    """
    return f"{root}/{topic_level(agent)}/{purpose}/answer"


def request_bytes(kind: Kind, count: int, size: int, hop: int = 0) -> int:
    """Return the length of a request of so many windows. `size`: bytes of a code; samples of a window."""
    body = count * size if kind is Kind.CODE else _SAMPLE_BYTES * (size + (count - 1) * hop)
    return _REQUEST.size + body


def encode_request(request: Request) -> bytes:
    """Return a request as bytes.

    Raises:
        ValueError: what `kind` names is missing or has another shape, or is more than a request holds.
    """
    kind, space, rate_hz, codes, samples, count, hop = request
    values = codes if kind is Kind.CODE else samples
    if values is None or values.ndim != 2 or (kind is Kind.WINDOW and values.shape[1] != len(CHANNELS)):
        raise ValueError(f"a request of kind {kind.name.lower()} needs an array of two dimensions")
    if len(space) != SPACE_BYTES:
        raise ValueError(f"a space of codes has {SPACE_BYTES} bytes, not {len(space)}")
    if kind is Kind.CODE:
        count, size, hop = *values.shape, 0
    else:
        size = request.window
    fits = 1 <= count <= 0xFF and 1 <= size <= 0xFFFF and request_bytes(kind, count, size, hop) <= MAX_REQUEST
    if not fits or not _is_hop(kind, count, size, hop):
        raise ValueError(f"{count} times {size}, {hop} apart, are no request of at most {MAX_REQUEST} bytes")
    head = _REQUEST.pack(_REQUEST_MAGIC, VERSION, kind, space, rate_hz, count, size, hop)
    if kind is Kind.CODE:
        return head + values.astype(np.int8, copy=False).tobytes()
    return head + np.clip(values, -_MAX_HALF, _MAX_HALF).astype("<f2").tobytes()


def _is_hop(kind: Kind, count: int, size: int, hop: int) -> bool:
    """Whether so many windows can be `hop` samples apart: they overlap, or touch."""
    return hop == 0 if kind is Kind.CODE or count == 1 else 1 <= hop <= size


def decode_request(data: bytes) -> Request:
    """Return the request in `data`; its arrays are read-only.

    Raises:
        RequestError: it is none, or none of this version.
    """
    if len(data) > MAX_REQUEST:
        raise RequestError(Refusal.TOO_LARGE, f"{len(data)} bytes are more than the {MAX_REQUEST} of a request")
    if data[:2] != _REQUEST_MAGIC or len(data) < 3:
        raise RequestError(Refusal.BAD_REQUEST, "this is no request: it does not begin like one")
    if data[2] != VERSION:
        raise RequestError(Refusal.UNKNOWN_VERSION, f"version {data[2]} is not known here, only {VERSION}")
    if len(data) < _REQUEST.size:
        raise RequestError(Refusal.BAD_REQUEST, f"{len(data)} bytes are not even the head of a request")
    _, _, number, space, rate_hz, count, size, hop = _REQUEST.unpack_from(data)
    try:
        kind = Kind(number)
    except ValueError:
        raise RequestError(Refusal.BAD_REQUEST, f"kind {number} is neither code nor window") from None
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise RequestError(
            Refusal.BAD_REQUEST, f"a rate of {rate_hz:g} Hz is not between {MIN_RATE_HZ:g} and {MAX_RATE_HZ:g}"
        )
    if not count or not size or len(data) != request_bytes(kind, count, size, hop):
        raise RequestError(
            Refusal.BAD_REQUEST, f"{len(data)} bytes are not {count} times {size} of kind {kind.name.lower()}"
        )
    if not _is_hop(kind, count, size, hop):
        raise RequestError(Refusal.BAD_REQUEST, f"{count} windows of {size} cannot be {hop} samples apart")
    if kind is Kind.CODE:
        codes = np.frombuffer(data, np.int8, offset=_REQUEST.size).reshape(count, size)
        return Request(kind, space, rate_hz, codes=codes)
    if space != NO_SPACE:
        raise RequestError(Refusal.BAD_REQUEST, "a window is in no space of codes")
    samples = np.frombuffer(data, "<f2", offset=_REQUEST.size).reshape(-1, len(CHANNELS)).astype(np.float32)
    if not np.isfinite(samples).all():
        raise RequestError(Refusal.BAD_REQUEST, "the window holds what is no number")
    samples.flags.writeable = False
    return Request(kind, space, rate_hz, samples=samples, windows=count, hop=hop)


def encode_answer(answer: CloudAnswer) -> bytes:
    """Return an answer as bytes.

    Raises:
        ValueError: it would be refused: no probabilities, or an id that is too long.
    """
    probabilities, known, crc, model = answer
    _check_probabilities(probabilities)
    _check_model(model)
    return b"".join(
        (
            _ANSWER.pack(_ANSWER_MAGIC, VERSION, 0),
            _RESULT.pack(known, len(probabilities), crc),
            struct.pack(f"<{len(probabilities)}f", *probabilities),
            model.encode(),
        )
    )


def encode_refusal(refusal: Refusal, sentence: str) -> bytes:
    """Return a refusal as bytes. `sentence`: for people, cut off where it is too long."""
    text = "".join(c if c.isprintable() else " " for c in sentence).encode()[:_MAX_TEXT]
    return _ANSWER.pack(_ANSWER_MAGIC, VERSION, refusal) + text.decode(errors="ignore").encode()


def decode_answer(data: bytes) -> CloudAnswer | CloudRefusal:
    """Return what a worker says.

    Raises:
        ValueError: it is no answer, or one that cannot be right.
    """
    if len(data) < _ANSWER.size or data[:2] != _ANSWER_MAGIC:
        raise ValueError("this is no answer: it does not begin like one")
    _, version, status = _ANSWER.unpack_from(data)
    if version != VERSION:
        raise ValueError(f"version {version} is not known here, only {VERSION}")
    if status:
        return CloudRefusal(Refusal(status), _text(data[_ANSWER.size :]))
    at = _ANSWER.size + _RESULT.size
    if len(data) < at:
        raise ValueError(f"{len(data)} bytes are not even the head of an answer")
    flags, n, crc = _RESULT.unpack_from(data, _ANSWER.size)
    if flags > 1 or len(data) < at + 4 * n:
        raise ValueError(f"{len(data)} bytes with flags {flags} are no answer with {n} labels")
    probabilities = struct.unpack_from(f"<{n}f", data, at)
    _check_probabilities(probabilities)
    model = _text(data[at + 4 * n :])
    _check_model(model)
    return CloudAnswer(probabilities, bool(flags), crc, model)


def _check_probabilities(probabilities: Sequence[float]) -> None:
    """Raise ValueError unless they are what a model can say."""
    if not 1 <= len(probabilities) <= 0xFF or not all(0 <= p <= 1 for p in probabilities):
        raise ValueError("an answer has 1 to 255 probabilities, each from 0 to 1")
    if abs(math.fsum(probabilities) - 1) > _SUM_WITHIN:
        raise ValueError(f"the probabilities sum to {math.fsum(probabilities):g}")


def _check_model(model: str) -> None:
    """Raise ValueError unless it can be told whose answer this is."""
    if not model or not model.isprintable() or len(model.encode()) > _MAX_TEXT:
        raise ValueError(f"a model's id is 1 to {_MAX_TEXT} bytes that can be printed")


def _text(data: bytes) -> str:
    """Return text for people, which may be empty; raise ValueError where it is none, or cannot be shown."""
    text = data[: _MAX_TEXT + 1].decode()
    if len(data) > _MAX_TEXT or not text.isprintable():
        raise ValueError(f"a text is at most {_MAX_TEXT} bytes that can be printed")
    return text
