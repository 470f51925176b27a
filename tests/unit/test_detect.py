"""What a sensor's bytes suggest to whoever configures it."""

import json
import tomllib

import numpy as np
import pytest
from fakes import signal

from agent.core.decoders.detect import suggest
from agent.core.decoders.formats import decoder
from agent.core.decoders.har1 import cobs_encode, encode_har1
from agent.core.settings import SerialSettings
from agent.records import SampleBatch

N = 120


def lines(values, times=None, digits=5):
    rows = [",".join(f"{x:.{digits}f}" for x in row) for row in values.tolist()]
    if times is not None:
        rows = [f"{t},{row}" for t, row in zip(times, rows, strict=True)]
    return ("34,0.2\r\n" + "\r\n".join(rows) + "\r\n0.12,").encode()


def scaled(acc, gyro):
    return signal(N) * np.repeat([acc, gyro], 3)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (lines(scaled(1, 1)), {"format": "csv", "rate_hz": 50.0, "acc_unit": "g", "gyro_unit": "rad/s"}),
        (lines(scaled(9.8, 200)), {"format": "csv", "rate_hz": 50.0, "acc_unit": "m/s2", "gyro_unit": "deg/s"}),
        (lines(scaled(1, 1), np.arange(N) / 50), {"time": "s", "acc_unit": "g"}),
        (lines(scaled(1, 1), np.arange(N) * 10), {"time": "ms", "acc_unit": "g"}),
        (lines(scaled(1, 1), np.arange(N) * 20_000), {"time": "us", "acc_unit": "g"}),
        (
            lines(scaled(16384, 1000), digits=0),
            {"acc_scale": 1 / 16384, "gyro_scale": 0.007633588, "gyro_unit": "deg/s"},
        ),
        (lines(scaled(1000, 1), digits=0), {"acc_scale": 1 / 1000, "acc_unit": "g"}),
    ],
)
def test_csv(data, expected):
    found = suggest(data, seconds=N / 50.4, port="/dev/serial/by-id/usb-x", name="waist 07")

    assert found is not None
    assert expected.items() <= found.settings.items()
    section = tomllib.loads(found.text)["serial"]["waist 07"]
    assert section == found.settings
    assert decoder(found.format, "a", SerialSettings(**section)).feed(data, 0)


def test_json_with_names_of_its_own():
    keys = ("millis", "accX", "accY", "accZ", "gyroX", "gyroY", "gyroZ")
    rows = [json.dumps(dict(zip(keys, [20 * i, *row], strict=True))) for i, row in enumerate(signal(N).tolist())]
    found = suggest("\n".join(rows).encode())

    assert found is not None
    assert found.format == "json"
    assert found.settings["keys"] == ",".join(keys)
    assert found.settings["time"] == "ms"
    assert found.score == 1


def test_binary_formats():
    counts = np.zeros((4, 6), np.int16)
    har1 = b"".join(cobs_encode(encode_har1(4 * i, i, 1, counts, 1, 1)) for i in range(9))

    def wit(kind):
        body = bytes([0x55, kind, 1, 2, 3, 4, 5, 6, 7, 8])
        return body + bytes([sum(body) & 0xFF])

    for name, data in (("har1", har1), ("witmotion", (wit(0x51) + wit(0x52) + wit(0x53)) * 20)):
        found = suggest(data[5:-3], seconds=0.4)
        assert found is not None
        assert (found.format, found.score > 0.8) == (name, True)


@pytest.mark.parametrize("data", [b"", b"\n" * 100, bytes(range(256)) * 20, b"hello world\n" * 50])
def test_what_is_nothing_gives_no_suggestion(data):
    assert suggest(data, seconds=1) is None


def test_lines_of_another_length_are_told():
    found = suggest(b"1,2,3,4,5,6,7,8,9\n" * 20)

    assert found is not None
    assert "have 9 numbers" in found.notes[0]


def test_what_was_decoded_is_what_was_sent():
    found = suggest(lines(scaled(9.8, 200)), seconds=N / 50)
    assert found is not None
    (batch, *_) = decoder(found.format, "a", SerialSettings(**found.settings)).feed(lines(scaled(9.8, 200)), 0)

    assert isinstance(batch, SampleBatch)
    assert np.median(np.linalg.norm(batch.values[:, :3], axis=1)) == pytest.approx(1, rel=0.2)
