"""Tensors and scores come from outside: whatever the bytes are, reading them ends in a value or in a refusal."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from agent.core.cloud_wire import CloudRefusal, RequestError, encode_refusal
from agent.core.split_wire import (
    TensorAnswer,
    TensorRequest,
    decode_tensor_answer,
    decode_tensor_request,
    encode_tensor_answer,
    encode_tensor_request,
)

NAMES = st.text(max_size=40).filter(str.isprintable)
MICROSECONDS = st.integers(0, (1 << 32) - 1)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False, width=32)


@st.composite
def requests(draw):
    windows = draw(st.integers(1, 255))
    each = draw(st.binary(min_size=1, max_size=8))
    network = draw(st.binary(min_size=8, max_size=8))
    return TensorRequest(
        network, draw(NAMES.filter(len)), draw(NAMES), draw(NAMES), windows, draw(MICROSECONDS), each * windows
    )


@st.composite
def answers(draw):
    windows, labels, size = draw(st.integers(1, 8)), draw(st.integers(1, 8)), draw(st.integers(0, 8))
    return TensorAnswer(
        draw(MICROSECONDS),
        draw(arrays(np.int8, (windows, size))),
        draw(arrays(np.float32, (windows, labels), elements=NUMBERS)),
        draw(arrays(np.float32, windows, elements=NUMBERS)),
    )


@st.composite
def damaged(draw, good):
    """Bytes that were right, with some of them changed, gone, or too many."""
    data = bytearray(draw(good))
    for at, value in draw(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=4)):
        data[at % len(data)] = value
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data) + draw(st.binary(max_size=3))


@given(requests())
@settings(deadline=None)
def test_every_request_comes_as_it_was_sent(request_):
    assert decode_tensor_request(encode_tensor_request(request_)) == request_


@given(answers())
@settings(deadline=None)
def test_every_answer_comes_as_it_was_sent(answer):
    got = decode_tensor_answer(encode_tensor_answer(answer))

    assert isinstance(got, TensorAnswer)
    assert got.elapsed_us == answer.elapsed_us
    for ours, theirs in zip(got[1:], answer[1:], strict=True):
        np.testing.assert_array_equal(ours, theirs, strict=True)


@given(st.one_of(st.binary(max_size=200), damaged(requests().map(encode_tensor_request))))
@settings(deadline=None, max_examples=500)
def test_any_bytes_are_a_request_or_refused(data):
    try:
        request_ = decode_tensor_request(data)
    except RequestError:
        return
    assert encode_tensor_request(request_) == data


@given(st.one_of(st.binary(max_size=200), damaged(answers().map(encode_tensor_answer))))
@settings(deadline=None, max_examples=500)
def test_any_bytes_are_an_answer_or_garbage(data):
    try:
        said = decode_tensor_answer(data)
    except ValueError:
        return
    assert (encode_refusal(*said) if isinstance(said, CloudRefusal) else encode_tensor_answer(said)) == data
