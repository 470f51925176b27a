import numpy as np
import pytest

from agent.core.cloud_wire import CloudAnswer, CloudRefusal, Refusal, RequestError, encode_answer, encode_refusal
from agent.core.split_wire import (
    MAX_TENSORS,
    TensorAnswer,
    TensorRequest,
    decode_tensor_answer,
    decode_tensor_request,
    encode_tensor_answer,
    encode_tensor_request,
    is_tensor_request,
)

NETWORK = bytes(range(8))
REQUEST = TensorRequest(NETWORK, "e4", "e7", "a", 2, 258, bytes.fromhex("80007f01"))
ANSWER = TensorAnswer(
    258,
    np.array([[-128, 127], [0, 1]], np.int8),
    np.array([[1, -2], [0.5, 0]], np.float32),
    np.array([3, 4], np.float32),
)
REQUEST_HEAD, ANSWER_HEAD = 19, 11
MOST = MAX_TENSORS - REQUEST_HEAD - len("e4e7a")


def test_a_request_byte_by_byte():
    expected = bytes.fromhex("4854 01 02 0001020304050607 02010000 02 02 01 6534 6537 61 80007f01")

    assert encode_tensor_request(REQUEST) == expected
    assert decode_tensor_request(expected) == REQUEST
    assert is_tensor_request(expected)


def test_an_answer_byte_by_byte():
    expected = bytes.fromhex(
        "4855 01 02 02 0200 02010000 80 7f 00 01 0000803f 000000c0 0000003f 00000000 00004040 00008040"
    )

    assert encode_tensor_answer(ANSWER) == expected
    assert not is_tensor_request(expected)


def test_an_answer_comes_as_it_was_sent():
    got = decode_tensor_answer(encode_tensor_answer(ANSWER))

    assert isinstance(got, TensorAnswer)
    assert got.elapsed_us == 258
    for ours, theirs in zip(got[1:], ANSWER[1:], strict=True):
        assert (ours.tolist(), ours.dtype) == (theirs.tolist(), theirs.dtype)
        assert not ours.flags.writeable


def test_who_began_with_the_code_is_not_sent_it_back():
    answer = ANSWER._replace(code=np.zeros((2, 0), np.int8))

    got = decode_tensor_answer(encode_tensor_answer(answer))

    assert isinstance(got, TensorAnswer)
    assert got.code.shape == (2, 0)
    assert got.logits.tolist() == ANSWER.logits.tolist()


def test_a_refusal_is_that_of_other_requests():
    said = decode_tensor_answer(encode_refusal(Refusal.NOWHERE_NEXT, "nobody"))

    assert said == CloudRefusal(Refusal.NOWHERE_NEXT, "nobody")


def test_the_answer_to_another_kind_of_request_is_none():
    with pytest.raises(ValueError, match="another kind"):
        decode_tensor_answer(encode_answer(CloudAnswer((1.0,), True, 0, "m@1")))


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (REQUEST._replace(network=b"short"), "8 bytes"),
        (REQUEST._replace(at=""), "which tensor"),
        (REQUEST._replace(at="e\n4"), "printed"),
        (REQUEST._replace(until="e" * 256), "255"),
        (REQUEST._replace(windows=0), "no 0 windows"),
        (REQUEST._replace(windows=3), "no 3 windows"),
        (REQUEST._replace(windows=256, data=bytes(256)), "no 256 windows"),
        (REQUEST._replace(data=b""), "no 2 windows"),
        (REQUEST._replace(data=bytes(MOST + 2)), "more than the 65536"),
    ],
)
def test_what_would_be_refused_is_not_encoded(wrong: TensorRequest, why: str):
    with pytest.raises(ValueError, match=why):
        encode_tensor_request(wrong)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (ANSWER._replace(novelty=np.zeros(3, np.float32)), "one answer"),
        (ANSWER._replace(code=np.zeros((1, 2), np.int8)), "one answer"),
        (ANSWER._replace(logits=np.full((2, 2), np.nan, np.float32)), "no number"),
        (ANSWER._replace(novelty=np.array([0, np.inf], np.float32)), "no number"),
        (ANSWER._replace(logits=np.zeros((2, 0), np.float32)), "are no answer"),
        (ANSWER._replace(code=np.zeros((2, 40_000), np.int8)), "more than the 65536"),
    ],
)
def test_an_answer_that_would_be_refused_is_not_encoded(wrong: TensorAnswer, why: str):
    with pytest.raises(ValueError, match=why):
        encode_tensor_answer(wrong)


GOOD = encode_tensor_request(REQUEST)


@pytest.mark.parametrize(
    ("wrong", "refusal"),
    [
        (b"", Refusal.BAD_REQUEST),
        (b"HT", Refusal.BAD_REQUEST),
        (b"HQ" + GOOD[2:], Refusal.BAD_REQUEST),
        (GOOD[:2] + b"\x02" + GOOD[3:], Refusal.UNKNOWN_VERSION),
        (GOOD[: REQUEST_HEAD - 1], Refusal.BAD_REQUEST),
        (GOOD[:REQUEST_HEAD], Refusal.BAD_REQUEST),
        (GOOD[: REQUEST_HEAD + 4], Refusal.BAD_REQUEST),
        (GOOD[:-1], Refusal.BAD_REQUEST),
        (GOOD[:3] + b"\0" + GOOD[4:], Refusal.BAD_REQUEST),
        (GOOD.replace(b"e4", b"\xff4"), Refusal.BAD_REQUEST),
        (GOOD.replace(b"e4", b"e\x07"), Refusal.BAD_REQUEST),
        (GOOD[:16] + b"\0" + GOOD[17:REQUEST_HEAD] + GOOD[REQUEST_HEAD + 2 :], Refusal.BAD_REQUEST),
        (GOOD + bytes(MAX_TENSORS), Refusal.TOO_LARGE),
    ],
)
def test_what_is_no_request_is_refused_with_a_reason(wrong: bytes, refusal: Refusal):
    with pytest.raises(RequestError) as told:
        decode_tensor_request(wrong)

    assert told.value.refusal is refusal
    assert len(str(told.value)) > 15


@pytest.mark.parametrize("cut", [1, ANSWER_HEAD - 1, ANSWER_HEAD, ANSWER_HEAD + 5])
def test_a_part_of_an_answer_is_none(cut: int):
    with pytest.raises(ValueError, match=r"no|even"):
        decode_tensor_answer(encode_tensor_answer(ANSWER)[:cut])


def test_the_largest_request_fits_and_time_is_cut_off_where_its_field_ends():
    largest = REQUEST._replace(data=bytes(MOST), elapsed_us=1 << 40)

    assert decode_tensor_request(encode_tensor_request(largest)) == largest._replace(elapsed_us=(1 << 32) - 1)
