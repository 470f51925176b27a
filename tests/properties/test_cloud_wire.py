"""Requests and answers come from outside: whatever the bytes are, reading them ends in a value or in a refusal."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from agent.core.cloud_wire import (
    NO_SPACE,
    CloudAnswer,
    CloudRefusal,
    Kind,
    Refusal,
    Request,
    RequestError,
    decode_answer,
    decode_request,
    encode_answer,
    encode_refusal,
    encode_request,
)
from agent.core.timeline import MAX_RATE_HZ, MIN_RATE_HZ

RATES = st.floats(MIN_RATE_HZ, MAX_RATE_HZ, width=32)
CODES = arrays(np.int8, st.tuples(st.integers(1, 5), st.integers(1, 8)))
HALVES = arrays(np.float16, st.tuples(st.integers(1, 4), st.just(6)), elements=st.floats(-65504, 65504, width=16))
REQUESTS = st.one_of(
    st.builds(lambda *of: Request(Kind.CODE, *of), st.binary(min_size=8, max_size=8), RATES, CODES),
    st.builds(lambda rate_hz, half: Request(Kind.WINDOW, NO_SPACE, rate_hz, None, np.float32(half)), RATES, HALVES),
    st.builds(
        lambda rate_hz, hop, samples: Request(
            Kind.WINDOW, NO_SPACE, rate_hz, samples=samples, windows=(len(samples) - 4) // hop + 1, hop=hop
        ),
        RATES,
        st.integers(1, 2),
        arrays(np.float32, st.tuples(st.sampled_from([6, 8, 10]), st.just(6)), elements=st.integers(-9, 9)),
    ),
)
NAMES = st.text(min_size=1, max_size=70).filter(str.isprintable)


@st.composite
def answers(draw):
    weights = draw(st.lists(st.integers(0, 1000), min_size=1, max_size=255).filter(any))
    probabilities = tuple(float(np.float32(w / sum(weights))) for w in weights)
    return CloudAnswer(probabilities, draw(st.booleans()), draw(st.integers(0, (1 << 32) - 1)), draw(NAMES))


@st.composite
def damaged(draw, good):
    """Bytes that were right, with some of them changed, gone, or too many."""
    data = bytearray(draw(good))
    for at, value in draw(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=4)):
        data[at % len(data)] = value
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data) + draw(st.binary(max_size=3))


@given(REQUESTS)
@settings(deadline=None)
def test_every_request_comes_as_it_was_sent(request_):
    got = decode_request(encode_request(request_))

    assert (got.kind, got.space, got.rate_hz) == (request_.kind, request_.space, request_.rate_hz)
    np.testing.assert_array_equal(got.codes, request_.codes)
    np.testing.assert_array_equal(got.samples, request_.samples)
    assert (got.windows, got.hop, got.window) == (request_.windows, request_.hop, request_.window)


@given(answers())
@settings(deadline=None)
def test_every_answer_comes_as_it_was_sent(answer):
    assert decode_answer(encode_answer(answer)) == answer


@given(st.sampled_from(Refusal), st.text(max_size=400))
def test_every_refusal_comes_with_its_reason(refusal, sentence):
    got = decode_answer(encode_refusal(refusal, sentence))

    assert isinstance(got, CloudRefusal)
    assert got.refusal is refusal


@given(st.one_of(st.binary(max_size=200), damaged(REQUESTS.map(encode_request))))
@settings(deadline=None, max_examples=500)
def test_any_bytes_are_a_request_or_refused(data):
    try:
        request_ = decode_request(data)
    except RequestError:
        return
    assert encode_request(request_) == data


@given(st.one_of(st.binary(max_size=200), damaged(answers().map(encode_answer))))
@settings(deadline=None, max_examples=500)
def test_any_bytes_are_an_answer_or_garbage(data):
    try:
        said = decode_answer(data)
    except ValueError:
        return
    assert (encode_answer(said) if isinstance(said, CloudAnswer) else encode_refusal(*said)) == data
