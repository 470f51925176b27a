"""What each protocol's decoder makes of good bytes, and of bad ones: every reason is told, nothing raises."""

import json
import math
import struct

import numpy as np
import pytest

from agent.core.decoders import har1
from agent.core.decoders.formats import decoder
from agent.core.decoders.har1 import cobs_decode, cobs_encode, encode_har1, to_counts
from agent.core.decoders.mqtt_payload import PayloadDecoder
from agent.core.settings import InputSettings
from agent.errors import ConfigError
from agent.records import BadFrame, Dropped, Loss, SampleBatch

ROW = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
MS = 1_000_000
SCALES = (1 / 4096, 1 / 1024)


def fed(format_name, data, **settings):
    """Values, times in ms, and (reason, where, amount) of everything in `data`."""
    return told(decoder(format_name, "a", InputSettings(**settings)).feed(data, 5))


def told(decoded):
    batches = [d for d in decoded if isinstance(d, SampleBatch)]
    values = [row for b in batches for row in b.values.tolist()]
    times = [t / MS for b in batches for t in b.t_ns.tolist()]
    return values, times, [(d.reason, d.where, d.amount) for d in decoded if isinstance(d, BadFrame)]


def payload(data, max_payload=65536, t_rx_ns=5, **settings):
    return told(PayloadDecoder("a", InputSettings(**settings), max_payload).feed(data, t_rx_ns))


def wit(kind, *numbers):
    body = bytes([0x55, kind]) + (struct.pack("<4h", *numbers, 0) if len(numbers) == 3 else bytes(numbers))
    return body + bytes([sum(body) & 0xFF])


def frame(n=2, seq=0, t_us=1000, period_ns=20 * MS, scales=SCALES):
    return encode_har1(seq, t_us, period_ns, np.full((n, 6), 1024, np.int16), *scales)


# csv


@pytest.mark.parametrize(
    "line",
    [
        b"1,2,3,4,5,6\n",
        b"1,2,3,4,5,6,\r\n",
        b"1\t2\t3\t4\t5\t6\n",
        b"1; 2; 3; 4; 5; 6;\n",
        b"  1.0 2.0  3.0 4e0 5. +6\r",
        b"\n\r\n1, 2, 3, 4, 5, 6\n",
    ],
)
def test_csv_takes_any_separator(line):
    values, times, bad = fed("csv", line + b"\n", rate_hz=50)

    assert values == [ROW]
    assert times == [0]
    assert bad == []


@pytest.mark.parametrize(("unit", "stamp"), [("s", b"1.5"), ("ms", b"1500"), ("us", b"1500000")])
def test_csv_with_a_time(unit, stamp):
    assert fed("csv", stamp + b",1,2,3,4,5,6\n", time=unit) == ([ROW], [1500], [])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"ax,ay,az,gx,gy,gz", Loss.NUMBER),
        (b"MPU6050 ready", Loss.COLUMNS),
        (b"1,2,3,4,5", Loss.COLUMNS),
        (b"1,2,3,4,5,6,7", Loss.COLUMNS),
        (b"1,2,3,4,5,1_0", Loss.NUMBER),
        (b"1,2,3,4,5,0x10", Loss.NUMBER),
        (b"1,2,3,4,5,nan", Loss.NON_FINITE),
        (b"1,2,3,4,5,-inf", Loss.NON_FINITE),
        (b"1,2,3,4,5,1e999", Loss.NON_FINITE),
        (b"1,2,3,4,5,1e7", Loss.VALUE_RANGE),
        (b"1,2,3,4,5,1e300", Loss.VALUE_RANGE),
        (b"\xff\xfe\x00\x80", Loss.ENCODING),
        (b"1,2,3\x00,4,5,6", Loss.NUMBER),
        ("1,2,3,4,5,٣٤".encode(), Loss.NUMBER),
        (b"x" * 70_000, Loss.TOO_LONG),
    ],
)
def test_csv_counts_what_it_cannot_read_and_goes_on(line, reason):
    values, _, bad = fed("csv", b"1,2,3,4,5,6\n" + line + b"\n1,2,3,4,5,6\n", rate_hz=50)

    assert values == [ROW, ROW]
    assert bad == [(reason, 2, 1)]


def test_a_line_that_was_a_sample_takes_its_place():
    data = b"1,2,3,4,5,6\nboot\n1,2,3,4,x,6\n1,2,3,4,5,6\n"

    assert fed("csv", data, rate_hz=50)[1] == [0, 40]


def test_csv_applies_units_and_axes():
    values, _, _ = fed("csv", b"9.80665,0,0,180,0,0\n", rate_hz=50, acc_unit="m/s2", gyro_unit="deg/s", axes="y -x z")

    assert values[0] == pytest.approx([0, -1, 0, 0, -math.pi, 0])


# json


@pytest.mark.parametrize(
    ("settings", "line", "t_ms"),
    [
        ({}, {"t": 1.5}, 1500),
        ({"time": "ms"}, {"t": 1500}, 1500),
        ({"keys": ",ax,ay,az,gx,gy,gz", "rate_hz": 50}, {}, 0),
    ],
)
def test_json(settings, line, t_ms):
    sample = {**line, **dict(zip(("ax", "ay", "az", "gx", "gy", "gz"), ROW, strict=True)), "temp": "warm"}

    assert fed("json", json.dumps(sample).encode() + b"\r\n", **settings) == ([ROW], [t_ms], [])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", Loss.JSON),
        (b"[1,2,3,4,5,6]", Loss.JSON),
        (b"ready", Loss.JSON),
        (b'{"t":1}', Loss.KEYS),
        (b'{"t":1,"ax":NaN,"ay":2,"az":3,"gx":4,"gy":5,"gz":6}', Loss.JSON),
        (b'{"t":1,"ax":true,"ay":2,"az":3,"gx":4,"gy":5,"gz":6}', Loss.NUMBER),
        (b'{"t":1,"ax":"1","ay":2,"az":3,"gx":4,"gy":5,"gz":6}', Loss.NUMBER),
        (b'{"t":1,"ax":null,"ay":2,"az":3,"gx":4,"gy":5,"gz":6}', Loss.NUMBER),
        (b'{"t":1,"ax":' + b"9" * 400 + b',"ay":2,"az":3,"gx":4,"gy":5,"gz":6}', Loss.NUMBER),
        (b'{"t":1,"ax":' + b"9" * 5000 + b',"ay":2,"az":3,"gx":4,"gy":5,"gz":6}', Loss.JSON),
        (b'{"t":1,"ax":1e999,"ay":2,"az":3,"gx":4,"gy":5,"gz":6}', Loss.NON_FINITE),
        (b'{"t":1e300,"ax":1,"ay":2,"az":3,"gx":4,"gy":5,"gz":6}', Loss.TIME_RANGE),
        (b"[" * 60_000, Loss.JSON),
        (b'{"a":' * 10_000, Loss.JSON),
        (b"\xff{}", Loss.ENCODING),
    ],
)
def test_json_counts_what_it_cannot_read(line, reason):
    assert fed("json", line + b"\n") == ([], [], [(reason, 1, 1)])


# witmotion

ACC, GYRO = wit(0x51, 2048, -2048, 4096), wit(0x52, 16384, 0, -16384)
WIT_ROW = pytest.approx([1, -1, 2, math.radians(1000), 0, math.radians(-1000)])


def test_witmotion():
    data = (ACC + GYRO + wit(0x53, 1, 2, 3) + wit(0x59, 1, 2, 3)) * 2
    values, times, bad = fed("witmotion", data, rate_hz=50, acc_unit="m/s2")

    assert values == [WIT_ROW, WIT_ROW]
    assert times == [0, 20]
    assert bad == []


def test_witmotion_with_its_own_time():
    first = wit(0x50, 24, 2, 29, 23, 59, 59, 0xE7, 0x03) + ACC + GYRO
    second = wit(0x50, 24, 3, 1, 0, 0, 0, 19, 0) + ACC + GYRO
    _, times, bad = fed("witmotion", first + second, time="ms")

    assert times[1] - times[0] == 20
    assert bad == []


@pytest.mark.parametrize(
    ("data", "bad"),
    [
        (b"\x55\x51garbage" + ACC + GYRO, [(Loss.CHECKSUM, 1, 1), (Loss.GARBAGE, 1, 9)]),
        (b"\x00\x55\x51garbage" + ACC + GYRO, [(Loss.GARBAGE, 1, 10)]),
        (ACC[:-1] + b"\0" + ACC + GYRO, [(Loss.CHECKSUM, 1, 1), (Loss.GARBAGE, 1, 11)]),
        (ACC + ACC + GYRO, [(Loss.FRAME, 12, 1)]),
        (GYRO + ACC + GYRO, [(Loss.FRAME, 1, 1)]),
        # The other half of a sample must not be taken from the next one.
        (ACC + b"?" + GYRO + ACC + GYRO, [(Loss.FRAME, 12, 1), (Loss.GARBAGE, 12, 1), (Loss.FRAME, 13, 1)]),
    ],
)
def test_witmotion_counts_what_it_cannot_read_and_goes_on(data, bad):
    values, _, got = fed("witmotion", data, rate_hz=50)

    assert values == [WIT_ROW]
    assert sorted(got) == sorted(bad)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (ACC + GYRO, Loss.FRAME),
        (wit(0x50, 24, 13, 1, 0, 0, 0, 0, 0) + ACC, Loss.TIME_RANGE),
        (wit(0x50, 24, 1, 1, 24, 0, 0, 0, 0) + ACC, Loss.TIME_RANGE),
    ],
)
def test_witmotion_without_the_time_that_was_promised(data, reason):
    assert fed("witmotion", data, time="ms")[2][0][0] is reason


# har1


def test_the_crc_is_ccitt_false():
    assert har1.crc_hqx(b"123456789", 0xFFFF) == 0x29B1


def test_har1():
    values, times, bad = fed("har1", cobs_encode(frame(3)))

    assert values == [[0.25] * 3 + [1] * 3] * 3
    assert times == [1, 21, 41]
    assert bad == []


def test_har1_is_turned_and_scaled_by_the_settings():
    values, _, _ = fed("har1", cobs_encode(frame(1)), axes="x y -z", acc_scale=2, acc_unit="m/s2")

    assert values == [[0.5, 0.5, -0.5, 1, 1, -1]]


def changed(data, at, byte):
    return data[:at] + bytes([byte]) + data[at + 1 :]


def sealed(data):
    return data + struct.pack("<H", har1.crc_hqx(data, 0xFFFF))


@pytest.mark.parametrize(
    ("block", "reason", "amount"),
    [
        (b"\x05ab\0", Loss.FRAME, 1),
        (b"\x03ab\0", Loss.FRAME, 1),
        (cobs_encode(changed(frame(), 40, 7)), Loss.CHECKSUM, 1),
        (cobs_encode(frame()[:-3]), Loss.CHECKSUM, 1),
        (cobs_encode(sealed(frame()[:-4])), Loss.FRAME, 1),
        (cobs_encode(sealed(changed(frame()[:-2], 0, 2))), Loss.VERSION, 1),
        (cobs_encode(sealed(changed(frame()[:-2], 1, 0))), Loss.FRAME, 1),
        (cobs_encode(frame(t_us=1 << 63)), Loss.TIME_RANGE, 2),
        (cobs_encode(frame(scales=(math.nan, 1.0))), Loss.VALUE_RANGE, 2),
        (cobs_encode(frame(scales=(1.0, math.inf))), Loss.VALUE_RANGE, 2),
        (cobs_encode(frame(scales=(-1.0, 1.0))), Loss.VALUE_RANGE, 2),
        (cobs_encode(frame(scales=(1e9, 1.0))), Loss.VALUE_RANGE, 2),
        (b"\x01" * 5000 + b"\0", Loss.GARBAGE, 5000),
    ],
)
def test_har1_counts_what_it_cannot_read_and_goes_on(block, reason, amount):
    values, _, bad = fed("har1", block + b"\0\0" + cobs_encode(frame(1)))

    assert len(values) == 1
    assert [(r, n) for r, _, n in bad] == [(reason, amount)]


def test_har1_tells_what_is_missing_by_the_sequence():
    frames = [frame(2, seq) for seq in (2**32 - 2, 0, 5, 5, 0, 2)]
    _, _, bad = fed("har1", b"".join(map(cobs_encode, frames)))

    # A jump ahead is a loss; a frame again, or a device that was started again, is none.
    assert bad == [(Loss.MISSED, 3, 3)]


@pytest.mark.parametrize("data", [b"\x01", b"\0" * 600, b"\x01" * 253, b"\x01" * 254, b"\x01" * 255, b"a\0" * 400])
def test_cobs_there_and_back(data):
    block = cobs_encode(data)

    assert block.index(b"\0") == len(block) - 1
    assert cobs_decode(block[:-1]) == data


def test_counts_are_cut_off_at_what_a_frame_holds():
    counts = to_counts(np.array([[0.25, 100, -100, 0, 1, 2]], np.float32), *SCALES)

    assert counts.tolist() == [[1024, 32767, -32768, 0, 1024, 2048]]


@pytest.mark.parametrize("n", [0, 256])
def test_a_frame_holds_one_to_255_samples(n):
    with pytest.raises(ValueError, match="1 to 255"):
        frame(n)


# MQTT


@pytest.mark.parametrize(
    ("data", "t_ms"),
    [
        ({"t0": 1.5, "rate_hz": 50, "samples": [ROW] * 2}, [1500, 1520]),
        ({"t": [1.5, 1.53], "samples": [ROW] * 2}, [1500, 1530]),
        ({"samples": [ROW] * 2}, [0, 20]),
        ({"t0": 7, "samples": [ROW] * 2}, [7000, 7020]),
        (dict(zip(("t", "ax", "ay", "az", "gx", "gy", "gz"), [2, *ROW], strict=True)), [2000]),
        (dict(zip(("ax", "ay", "az", "gx", "gy", "gz"), ROW, strict=True)), [0]),
    ],
)
def test_payloads(data, t_ms):
    values, times, bad = payload(json.dumps(data).encode(), rate_hz=50)

    assert values == [ROW] * len(t_ms)
    assert times == t_ms
    assert bad == []


def test_payloads_in_milliseconds():
    assert payload(json.dumps({"t": [10, 30], "samples": [ROW] * 2}).encode(), time="ms")[1] == [10, 30]


def test_one_sample_without_time_or_rate_is_taken_when_it_came():
    data = json.dumps(dict(zip(("ax", "ay", "az", "gx", "gy", "gz"), ROW, strict=True))).encode()

    assert payload(data, t_rx_ns=77 * MS)[1] == [77]


def test_a_payload_may_be_har1():
    d = PayloadDecoder("a", InputSettings(), 65536)
    first, second = d.feed(frame(), 5), d.feed(json.dumps({"t0": 1, "rate_hz": 50, "samples": [ROW]}).encode(), 6)

    assert isinstance(first[0], SampleBatch)
    assert isinstance(second[0], SampleBatch)
    assert (first[0].seq0, second[0].seq0) == (0, 2)
    assert (first[0].t_rx_ns, second[0].t_rx_ns) == (5, 6)


GOOD = '"t0":0,"rate_hz":50'


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("", Loss.JSON),
        ("[]", Loss.JSON),
        ("nonsense", Loss.JSON),
        ("[" * 60_000, Loss.JSON),
        ("{}", Loss.KEYS),
        (f'{{{GOOD},"samples":{{}}}}', Loss.KEYS),
        (f'{{{GOOD},"samples":[]}}', Loss.COLUMNS),
        (f'{{{GOOD},"samples":[[1,2,3]]}}', Loss.COLUMNS),
        (f'{{{GOOD},"samples":[[[1,2,3,4,5,6]]]}}', Loss.COLUMNS),
        (f'{{{GOOD},"samples":[1,2,3]}}', Loss.NUMBER),
        (f'{{{GOOD},"samples":["123456"]}}', Loss.NUMBER),
        (f'{{{GOOD},"samples":[[1,2,3,4,5,true]]}}', Loss.NUMBER),
        (f'{{{GOOD},"samples":[[1,2,3,4,5,null]]}}', Loss.NUMBER),
        (f'{{{GOOD},"samples":[[1,2,3,4,5,[6]]]}}', Loss.NUMBER),
        (f'{{{GOOD},"samples":[[1,2,3,4,5,NaN]]}}', Loss.JSON),
        (f'{{{GOOD},"samples":[[1,2,3,4,5,1e999]]}}', Loss.NON_FINITE),
        (f'{{{GOOD},"samples":[[1,2,3,4,5,{"9" * 400}]]}}', Loss.VALUE_RANGE),
        (f'{{{GOOD},"samples":[[1,2,3,4,5,1e9]]}}', Loss.VALUE_RANGE),
        (f'{{{GOOD},"samples":[{",".join(["[1,2,3,4,5,6]"] * 4097)}]}}', Loss.TOO_LARGE),
        ('{"samples":[[1,2,3,4,5,6]]}', Loss.KEYS),
        ('{"t0":0,"samples":[[1,2,3,4,5,6]]}', Loss.KEYS),
        ('{"t0":"0","rate_hz":50,"samples":[[1,2,3,4,5,6]]}', Loss.NUMBER),
        ('{"t0":1e300,"rate_hz":50,"samples":[[1,2,3,4,5,6]]}', Loss.TIME_RANGE),
        ('{"t0":0,"rate_hz":0,"samples":[[1,2,3,4,5,6]]}', Loss.TIME_RANGE),
        ('{"t0":0,"rate_hz":true,"samples":[[1,2,3,4,5,6]]}', Loss.NUMBER),
        ('{"t":5,"samples":[[1,2,3,4,5,6]]}', Loss.NUMBER),
        ('{"t":[1,2],"samples":[[1,2,3,4,5,6]]}', Loss.COLUMNS),
        ('{"t":[false],"samples":[[1,2,3,4,5,6]]}', Loss.NUMBER),
        ('{"t":1,"ax":1,"ay":1,"az":1,"gx":1,"gy":1,"gz":false}', Loss.NUMBER),
        ('{"t":"now","ax":1,"ay":1,"az":1,"gx":1,"gy":1,"gz":1}', Loss.NUMBER),
        ("x" * 70_000, Loss.TOO_LARGE),
        ("\x01", Loss.FRAME),
        ("\x01" * 50, Loss.CHECKSUM),
    ],
)
def test_payloads_that_cannot_be_read(data, reason):
    values, _, bad = payload(data.encode(), max_payload=65536)

    assert values == []
    assert bad == [(reason, 1, 1)]


def test_a_payload_that_is_not_text():
    assert payload(b'{"t":\xff}')[2] == [(Loss.ENCODING, 1, 1)]


# all of them


@pytest.mark.parametrize(
    ("format_name", "half", "whole", "lost"),
    [
        ("csv", b"1,2,3", b"1,2,3,4,5,6\n", Loss.TORN),
        ("json", b'{"ax":', b'{"ax":1,"ay":2,"az":3,"gx":4,"gy":5,"gz":6}\n', Loss.TORN),
        ("witmotion", ACC[:5], ACC + GYRO, Loss.GARBAGE),
        ("witmotion", ACC, ACC + GYRO, Loss.FRAME),
        ("har1", cobs_encode(frame())[:9], cobs_encode(frame()), Loss.FRAME),
    ],
)
def test_a_reset_counts_the_unfinished_and_begins_anew(format_name, half, whole, lost):
    d = decoder(format_name, "a", InputSettings(rate_hz=50, keys=",ax,ay,az,gx,gy,gz"))
    d.feed(half, 0)
    bad, dropped = d.reset()
    _, _, after = told(d.feed(whole, 0))

    assert isinstance(bad, BadFrame)
    assert bad.reason is lost
    assert isinstance(dropped, Dropped)
    assert after == []
    assert d.reset() == [dropped]


@pytest.mark.parametrize(
    ("format_name", "settings"), [("csv", {}), ("json", {"keys": ",a,b,c,d,e,f"}), ("witmotion", {})]
)
def test_a_sensor_that_sends_no_time_needs_a_rate(format_name, settings):
    with pytest.raises(ConfigError, match="waist sends no time: set its rate_hz"):
        decoder(format_name, "waist", InputSettings(**settings))
