import struct

import numpy as np
import pytest
from fakes import signal

from agent.core.cloud_wire import (
    MAX_REQUEST,
    NO_SPACE,
    CloudAnswer,
    CloudRefusal,
    Kind,
    Refusal,
    Request,
    RequestError,
    answer_topic,
    code_space,
    decode_answer,
    decode_request,
    encode_answer,
    encode_refusal,
    encode_request,
    labels_crc,
    request_bytes,
    request_topic,
)

SPACE = bytes(range(8))
CODES = np.array([[-128, 0], [1, 127]], np.int8)
ONE_CODE = Request(Kind.CODE, SPACE, 50.0, codes=CODES)
WINDOW = signal(128).astype(np.float16).astype(np.float32)
ONE_WINDOW = Request(Kind.WINDOW, NO_SPACE, 50.0, samples=WINDOW)
ANSWER = CloudAnswer((0.25, 0.75), True, 0x01020304, "har-cloud@0123abcd")


def test_a_request_of_codes_byte_by_byte():
    expected = bytes.fromhex("4851 01 01 0001020304050607 00004842 02 0200 0000 80 00 01 7f")

    assert encode_request(ONE_CODE) == expected
    assert len(expected) == request_bytes(Kind.CODE, 2, 2)


def test_a_request_of_a_window_byte_by_byte():
    window = np.array([[1, -2, 0, 0.5, 0, 1e9]], np.float32)
    expected = bytes.fromhex("4851 01 02 0000000000000000 00004842 01 0100 0000 003c 00c0 0000 0038 0000 ff7b")

    assert encode_request(Request(Kind.WINDOW, NO_SPACE, 50.0, samples=window)) == expected
    assert decode_request(expected).samples.tolist() == [[1, -2, 0, 0.5, 0, 65504]]


def test_an_answer_byte_by_byte():
    expected = bytes.fromhex("4841 01 00 01 02 04030201 0000803e 0000403f") + b"har-cloud@0123abcd"

    assert encode_answer(ANSWER) == expected


def test_a_refusal_byte_by_byte():
    assert encode_refusal(Refusal.OVERLOADED, "too much") == bytes.fromhex("4841 01 06") + b"too much"


def test_a_request_comes_as_it_was_sent():
    by_code, by_window = decode_request(encode_request(ONE_CODE)), decode_request(encode_request(ONE_WINDOW))

    assert by_code.codes.tolist() == CODES.tolist()
    assert by_code._replace(codes=None) == ONE_CODE._replace(codes=None)
    assert by_window.samples.dtype == np.float32
    assert by_window.samples.tolist() == WINDOW.tolist()
    assert by_window._replace(samples=None) == ONE_WINDOW._replace(samples=None)
    assert not by_code.codes.flags.writeable
    assert not by_window.samples.flags.writeable


def test_windows_that_overlap_are_sent_as_the_samples_they_share():
    request = Request(Kind.WINDOW, NO_SPACE, 50.0, samples=signal(128 + 3 * 64), windows=4, hop=64)

    data = encode_request(request)

    assert len(data) == request_bytes(Kind.WINDOW, 4, 128, 64) == 21 + 320 * 12
    got = decode_request(data)
    assert (got.windows, got.hop, got.window, len(got.samples)) == (4, 64, 128, 320)


def test_what_half_a_float_keeps_of_a_window_is_finer_than_a_sensor():
    window = decode_request(encode_request(ONE_WINDOW._replace(samples=signal(128)))).samples

    np.testing.assert_allclose(window, signal(128), rtol=1 / 2048, atol=1e-6)


def changed(data, at, value):
    return data[:at] + bytes([value]) + data[at + 1 :]


BY_CODE, BY_WINDOW = encode_request(ONE_CODE), encode_request(ONE_WINDOW)


@pytest.mark.parametrize(
    ("data", "refusal", "says"),
    [
        (b"", Refusal.BAD_REQUEST, "does not begin like one"),
        (b"HQ", Refusal.BAD_REQUEST, "does not begin like one"),
        (b"HA" + BY_CODE[2:], Refusal.BAD_REQUEST, "does not begin like one"),
        (b"HQ\x02", Refusal.UNKNOWN_VERSION, "version 2 is not known here, only 1"),
        (BY_CODE[:18], Refusal.BAD_REQUEST, "18 bytes are not even the head"),
        (BY_CODE[:-1], Refusal.BAD_REQUEST, "24 bytes are not 2 times 2 of kind code"),
        (BY_CODE + b"\0", Refusal.BAD_REQUEST, "26 bytes are not 2 times 2 of kind code"),
        (changed(BY_CODE, 3, 3), Refusal.BAD_REQUEST, "kind 3 is neither code nor window"),
        (changed(BY_CODE[:21], 16, 0), Refusal.BAD_REQUEST, "are not 0 times 2"),
        (changed(BY_CODE[:21], 17, 0), Refusal.BAD_REQUEST, "are not 2 times 0"),
        (changed(BY_WINDOW, 4, 1), Refusal.BAD_REQUEST, "no space of codes"),
        (changed(BY_CODE, 19, 1), Refusal.BAD_REQUEST, "2 windows of 2 cannot be 1 samples apart"),
        (changed(BY_WINDOW, 19, 1), Refusal.BAD_REQUEST, "1 windows of 128 cannot be 1 samples apart"),
        (changed(BY_WINDOW, 16, 2), Refusal.BAD_REQUEST, "2 windows of 128 cannot be 0 samples apart"),
        (changed(BY_WINDOW + bytes(12), 16, 2), Refusal.BAD_REQUEST, "are not 2 times 128"),
        (BY_WINDOW[:-2] + b"\x00\x7c", Refusal.BAD_REQUEST, "no number"),
        (BY_WINDOW[:-2] + b"\x01\x7d", Refusal.BAD_REQUEST, "no number"),
        (BY_CODE[:12] + struct.pack("<f", np.nan) + BY_CODE[16:], Refusal.BAD_REQUEST, "nan Hz"),
        (BY_CODE[:12] + struct.pack("<f", 401) + BY_CODE[16:], Refusal.BAD_REQUEST, "401 Hz"),
        (BY_CODE + bytes(MAX_REQUEST), Refusal.TOO_LARGE, "16409 bytes are more than the 16384"),
    ],
)
def test_what_is_no_request_is_refused_with_a_reason(data, refusal, says):
    with pytest.raises(RequestError, match=says) as caught:
        decode_request(data)

    assert caught.value.refusal is refusal


@pytest.mark.parametrize(
    "request_",
    [
        Request(Kind.CODE, SPACE, 50.0),
        Request(Kind.CODE, SPACE, 50.0, samples=WINDOW),
        Request(Kind.CODE, SPACE[:7], 50.0, codes=CODES),
        Request(Kind.CODE, SPACE, 50.0, codes=CODES[0]),
        Request(Kind.CODE, SPACE, 50.0, codes=CODES[:0]),
        Request(Kind.CODE, SPACE, 50.0, codes=CODES[:, :0]),
        Request(Kind.CODE, SPACE, 50.0, codes=np.zeros((256, 1), np.int8)),
        Request(Kind.CODE, SPACE, 50.0, codes=np.zeros((1, MAX_REQUEST), np.int8)),
        Request(Kind.WINDOW, NO_SPACE, 50.0, samples=WINDOW[:, :3]),
        Request(Kind.WINDOW, NO_SPACE, 50.0, samples=np.zeros((1365, 6), np.float32)),
        Request(Kind.WINDOW, NO_SPACE, 50.0, samples=WINDOW, windows=2, hop=0),
        Request(Kind.WINDOW, NO_SPACE, 50.0, samples=WINDOW, windows=2, hop=100),
        Request(Kind.WINDOW, NO_SPACE, 50.0, samples=WINDOW, windows=1, hop=64),
    ],
)
def test_what_fits_into_no_request_is_not_sent(request_):
    with pytest.raises(ValueError, match=r"are no request|dimensions|space"):
        encode_request(request_)


def test_the_largest_request_is_read():
    codes = np.zeros((1, 16363), np.int8)

    assert len(encode_request(ONE_CODE._replace(codes=codes))) == MAX_REQUEST
    assert decode_request(encode_request(ONE_CODE._replace(codes=codes))).codes.shape == (1, 16363)


@pytest.mark.parametrize(
    "answer",
    [ANSWER, ANSWER._replace(known=False), ANSWER._replace(probabilities=(1.0,)), ANSWER._replace(model="é" * 150)],
)
def test_an_answer_comes_as_it_was_sent(answer):
    assert decode_answer(encode_answer(answer)) == answer


def test_probabilities_may_be_rounded():
    thirds = decode_answer(encode_answer(ANSWER._replace(probabilities=(1 / 3,) * 3))).probabilities

    assert thirds == pytest.approx((1 / 3,) * 3, abs=1e-7)


@pytest.mark.parametrize(
    ("sentence", "comes"),
    [
        ("too much", "too much"),
        ("", ""),
        ("a\nb\0", "a b "),
        ("é" * 200, "é" * 150),
        ("x" + "é" * 200, "x" + "é" * 149),
    ],
)
def test_a_refusal_comes_as_far_as_it_can_be_shown(sentence, comes):
    assert decode_answer(encode_refusal(Refusal.FAILED, sentence)) == CloudRefusal(Refusal.FAILED, comes)


GOOD = encode_answer(ANSWER)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "does not begin like one"),
        (b"HQ" + GOOD[2:], "does not begin like one"),
        (changed(GOOD, 2, 2), "version 2"),
        (changed(GOOD, 3, 10), "10 is not a valid Refusal"),
        (GOOD[:9], "9 bytes are not even the head"),
        (changed(GOOD, 4, 2), "flags 2"),
        (changed(GOOD, 5, 200), "200 labels"),
        (changed(GOOD, 5, 0), "1 to 255 probabilities"),
        (changed(GOOD, 5, 1), "sum to 0.25"),
        (GOOD[:10] + struct.pack("<2f", 0.5, 0.6) + GOOD[18:], "sum to 1.1"),
        (GOOD[:10] + struct.pack("<2f", -0.1, 1.1) + GOOD[18:], "each from 0 to 1"),
        (GOOD[:10] + struct.pack("<2f", np.nan, 1) + GOOD[18:], "each from 0 to 1"),
        (GOOD[:10] + struct.pack("<2f", np.inf, 1) + GOOD[18:], "each from 0 to 1"),
        (GOOD[:18], "a model's id"),
        (GOOD + b"\n", "can be printed"),
        (GOOD + b"\xff", "can't decode"),
        (GOOD + b"x" * 300, "at most 300 bytes"),
        (b"HA\x01\x07\xc3", "can't decode"),
        (b"HA\x01\x07\x1b[2J", "can be printed"),
        (b"HA\x01\x07" + b"x" * 301, "at most 300 bytes"),
    ],
)
def test_what_is_no_answer_is_garbage(data, says):
    with pytest.raises(ValueError, match=says):
        decode_answer(data)


@pytest.mark.parametrize(
    "answer",
    [
        ANSWER._replace(probabilities=()),
        ANSWER._replace(probabilities=(1 / 256,) * 256),
        ANSWER._replace(probabilities=(float("nan"), 1.0)),
        ANSWER._replace(model=""),
        ANSWER._replace(model="é" * 151),
        ANSWER._replace(model="\ud800"),
    ],
)
def test_what_would_be_garbage_is_not_sent(answer):
    with pytest.raises(ValueError, match=r"an answer has|model's id"):
        encode_answer(answer)


def test_labels_are_equal_where_names_and_order_are():
    assert labels_crc(("walking", "sitting")) == 0x3FBAC423
    assert labels_crc(("sitting", "walking")) != labels_crc(("walking", "sitting"))
    assert labels_crc(("ab", "c")) != labels_crc(("a", "bc"))


def test_a_space_of_codes_is_the_beginning_of_the_encoders_hash():
    assert code_space("0123456789abcdef" * 4) == bytes.fromhex("0123456789abcdef")


def test_topics():
    assert request_topic("har", "har-cloud") == "har/cloud/har-cloud/request"
    assert answer_topic("site/har", "kitchen") == "site/har/kitchen/cloud/answer"
    assert answer_topic("har", "kitchen", "split") == "har/kitchen/split/answer"
    assert answer_topic("har", "a+b").startswith("har/a_b-")
