"""What a board asks of whoever runs the rest of its network, as bytes: a tensor goes up, scores come back.

They travel as the requests and answers of `cloud_wire` do, over the same topics, and are refused as those are: by its
`encode_refusal`. A request, little-endian:

    2s   magic       "HT"
    u8   version     1
    u8   count       windows
    8s   network     which one: the first bytes of the SHA-256 of its bundle's manifest.json
    u32  elapsed_us  that workers have had it before, from receipt to passing it on
    u8   n_at        bytes of `at`
    u8   n_until     bytes of `until`, 0 for as far as it goes
    u8   n_exit      bytes of `exit`, 0 for the network's end
    utf-8 at         the tensor that is sent
    utf-8 until      the tensor that is to be passed on to the next worker
    utf-8 exit       the head that is to answer
    data             the values, window by window, as the network has them

Whoever passes it on writes one with what came out in place of what went in. An answer is

    2s   magic       "HU"
    u8   version     1
    u8   count       windows
    u8   labels
    u16  code        bytes of a window's code; 0 where none is sent back
    u32  elapsed_us  that workers had the request in all: what the links took is the rest
    i8   count * code
    f32  count * labels
    f32  count       novelty

Numbers are as the network gives them, so that scores are bit for bit those of a network that was never split.
"""

import struct
from typing import NamedTuple

import numpy as np

from agent.core.cloud_wire import CloudRefusal, Refusal, RequestError, decode_answer
from agent.records import Float32Array, Int8Array

VERSION = 1
MAX_TENSORS = 64 * 1024
"""Bytes of a request, and of an answer. Twenty windows of 128 samples as float32."""
NETWORK_BYTES = 8

_REQUEST = struct.Struct("<2sBB8sIBBB")
_REQUEST_MAGIC = b"HT"
_ANSWER = struct.Struct("<2sBBBHI")
_ANSWER_MAGIC = b"HU"
_LONGEST_US = (1 << 32) - 1


class TensorRequest(NamedTuple):
    """What is asked: to go on from the tensor `at`, of so many windows, whose bytes are `data`.

    `network`: see the module. `until`: the tensor to pass on, empty for as far as whoever gets it can go. `exit`: the
    head whose answer is wanted, empty for the end's. `elapsed_us`: that workers have had it before.
    """

    network: bytes
    at: str
    until: str
    exit: str
    windows: int
    elapsed_us: int
    data: bytes


class TensorAnswer(NamedTuple):
    """Scores of `count` windows, as `records.Scores` but for `novelty`, which is float32 as the network gives it.

    `code`: int8 (count, bytes of a code); without columns where an exit answers.
    `elapsed_us`: that workers had the request in all.
    """

    elapsed_us: int
    code: Int8Array
    logits: Float32Array
    novelty: Float32Array


def is_tensor_request(data: bytes) -> bool:
    """Whether what came begins like a request of this kind."""
    return data[:2] == _REQUEST_MAGIC


def encode_tensor_request(request: TensorRequest) -> bytes:
    """Return a request as bytes. `elapsed_us` is cut off at what its field holds, 71 minutes.

    Raises:
        ValueError: it would be refused.
    """
    network, at, until, leave, count, elapsed_us, data = request
    if len(network) != NETWORK_BYTES:
        raise ValueError(f"a network is named by {NETWORK_BYTES} bytes, not {len(network)}")
    if not at:
        raise ValueError("a request has to say which tensor it sends")
    _check_data(count, len(data))
    names = [_encoded(name) for name in (at, until, leave)]
    head = _REQUEST.pack(
        _REQUEST_MAGIC, VERSION, count, network, min(elapsed_us, _LONGEST_US), *(len(name) for name in names)
    )
    return _within(b"".join((head, *names, data)))


def decode_tensor_request(data: bytes) -> TensorRequest:
    """Return the request in `data`. Whether there is such a network, tensor or exit is for whoever has one to say.

    Raises:
        RequestError: it is none, or none of this version.
    """
    if len(data) > MAX_TENSORS:
        raise RequestError(Refusal.TOO_LARGE, f"{len(data)} bytes are more than the {MAX_TENSORS} of a request")
    if not is_tensor_request(data) or len(data) < 3:
        raise RequestError(Refusal.BAD_REQUEST, "this is no request: it does not begin like one")
    if data[2] != VERSION:
        raise RequestError(Refusal.UNKNOWN_VERSION, f"version {data[2]} is not known here, only {VERSION}")
    if len(data) < _REQUEST.size:
        raise RequestError(Refusal.BAD_REQUEST, f"{len(data)} bytes are not even the head of a request")
    _, _, count, network, elapsed_us, *lengths = _REQUEST.unpack_from(data)
    begins = _REQUEST.size + sum(lengths)
    try:
        names, start = [], _REQUEST.size
        for length in lengths:
            names.append(_decoded(data[start : start + length]))
            start += length
        if not names[0]:
            raise ValueError("it does not say which tensor it sends")
        _check_data(count, len(data) - begins)
    except ValueError as error:
        raise RequestError(Refusal.BAD_REQUEST, str(error)) from None
    at, until, leave = names
    return TensorRequest(network, at, until, leave, count, elapsed_us, data[begins:])


def encode_tensor_answer(answer: TensorAnswer) -> bytes:
    """Return an answer as bytes. `elapsed_us` is cut off as in a request.

    Raises:
        ValueError: it would be refused: shapes that do not fit one another, no numbers, or too much of them.
    """
    elapsed_us, code, logits, novelty = answer
    count, labels = logits.shape
    if code.ndim != 2 or len(code) != count or novelty.shape != (count,):
        raise ValueError(f"codes {code.shape}, logits {logits.shape} and novelty {novelty.shape} are no one answer")
    if not 1 <= count <= 0xFF or not 1 <= labels <= 0xFF or code.shape[1] > 0xFFFF:
        raise ValueError(f"{count} windows with {labels} labels and codes of {code.shape[1]} bytes are no answer")
    _check_numbers(logits, novelty)
    head = _ANSWER.pack(_ANSWER_MAGIC, VERSION, count, labels, code.shape[1], min(elapsed_us, _LONGEST_US))
    values = (code.astype(np.int8, copy=False), logits.astype("<f4", copy=False), novelty.astype("<f4", copy=False))
    return _within(b"".join((head, *(array.tobytes() for array in values))))


def decode_tensor_answer(data: bytes) -> TensorAnswer | CloudRefusal:
    """Return what a worker says; the arrays are read-only.

    Raises:
        ValueError: it is no answer to a request of this kind, or one that cannot be right.
    """
    if data[:2] != _ANSWER_MAGIC:
        said = decode_answer(data)
        if isinstance(said, CloudRefusal):
            return said
        raise ValueError("this answers another kind of request")
    if len(_within(data)) < _ANSWER.size:
        raise ValueError(f"{len(data)} bytes are not even the head of an answer")
    _, version, count, labels, size, elapsed_us = _ANSWER.unpack_from(data)
    if version != VERSION:
        raise ValueError(f"version {version} is not known here, only {VERSION}")
    if not count or not labels or len(data) != _ANSWER.size + count * (size + 4 * labels + 4):
        raise ValueError(f"{len(data)} bytes are no {count} windows with {labels} labels and codes of {size} bytes")
    code = np.frombuffer(data, np.int8, count * size, _ANSWER.size).reshape(count, size)
    numbers = np.frombuffer(data, "<f4", offset=_ANSWER.size + count * size)
    logits, novelty = numbers[: count * labels].reshape(count, labels), numbers[count * labels :]
    _check_numbers(logits, novelty)
    return TensorAnswer(elapsed_us, code, logits, novelty)


def _check_data(count: int, size: int) -> None:
    """Raise ValueError unless so many bytes can be so many windows."""
    if not 1 <= count <= 0xFF or size < count or size % count:
        raise ValueError(f"{size} bytes of values are no {count} windows")


def _within(data: bytes) -> bytes:
    """Return a request or an answer; raise ValueError where it is too long."""
    if len(data) > MAX_TENSORS:
        raise ValueError(f"{len(data)} bytes are more than the {MAX_TENSORS} of a message")
    return data


def _check_numbers(logits: Float32Array, novelty: Float32Array) -> None:
    if not np.isfinite(logits).all() or not np.isfinite(novelty).all():
        raise ValueError("an answer holds what is no number")


def _encoded(name: str) -> bytes:
    data = name.encode()
    if not name.isprintable() or len(data) > 0xFF:
        raise ValueError(f"a name has at most 255 bytes that can be printed, unlike {name!r}")
    return data


def _decoded(data: bytes) -> str:
    name = data.decode()
    if not name.isprintable():
        raise ValueError("a name holds what cannot be printed")
    return name
