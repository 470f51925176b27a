"""The container of raw recordings: whatever is cut, torn or damaged, what is whole comes back as it went in."""

import contextlib
import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.decoders.formats import decoder
from agent.core.decoders.mqtt_payload import PayloadDecoder
from agent.core.harraw import (
    MQTT,
    START,
    Damage,
    RawDecoder,
    RawHeader,
    RawRecord,
    RecordReader,
    decode_header,
    encode_header,
    encode_record,
)
from agent.core.settings import InputSettings
from agent.errors import InputError
from agent.records import BadFrame, Dropped, Loss, SampleBatch

CSV = RawHeader("waist-07", "csv", InputSettings(rate_hz=50.0), "2026-05-04T10:21:07.310Z", 77)
RECORDS = [
    RawRecord(0, b"1,2,3"),
    RawRecord(20, b"\xa5\x5a" * 9),
    RawRecord(31, None),
    RawRecord(40, b""),
    RawRecord(2**60, b"x" * 999),
]
STORED = [encode_record(record) for record in RECORDS]

some_records = st.lists(st.builds(RawRecord, st.integers(0, 2**64 - 1), st.none() | st.binary(max_size=60)), max_size=8)


def read(data: bytes, cuts: list[int] | None = None):
    reader = RecordReader(100)
    edges = [0, *sorted(c % (len(data) + 1) for c in cuts or []), len(data)]
    out = [item for a, b in pairwise(edges) for item in reader.feed(data[a:b])]
    rest, torn = reader.finish()
    return out + rest, torn


def lines(n: int, first: int = 0) -> bytes:
    return b"".join(b"0.0,0.0,1.0,%.1f,0.0,0.0\n" % (k / 10) for k in range(first, first + n))


def decoded(data: bytes, size: int = 7):
    raw = RawDecoder("name")
    out = [item for at in range(0, len(data), size) for item in raw.feed(data[at : at + size])]
    return raw.device, out + raw.finish()


@pytest.mark.parametrize(
    "header",
    [
        CSV,
        RawHeader("näme", MQTT, InputSettings(), max_payload=99),
        RawHeader("w", "witmotion", InputSettings(acc_unit="m/s2", axes="-y x z", gyro_scale=-0.5)),
    ],
)
def test_a_header_comes_back_as_it_went_in(header: RawHeader):
    line = encode_header(header)

    assert line.startswith(START)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode_header(line) == header


@given(some_records, st.lists(st.integers(0, 1000)))
def test_records_come_back_however_they_are_cut(records: list[RawRecord], cuts: list[int]):
    assert read(b"".join(map(encode_record, records)), cuts) == (records, None)


@given(st.integers(1, sum(map(len, STORED)) - 1), st.lists(st.integers(0, 2000), max_size=3))
def test_a_torn_record_is_dropped_and_told(end: int, cuts: list[int]):
    whole = [i for i in range(len(STORED) + 1) if len(b"".join(STORED[:i])) <= end]
    begins = len(b"".join(STORED[: whole[-1]]))

    out, torn = read(b"".join(STORED)[:end], cuts)

    assert out == RECORDS[: whole[-1]]
    assert torn == (None if begins == end else 100 + begins + 1)


def test_zeros_at_the_end_as_a_power_cut_leaves_them_are_torn():
    assert read(b"".join(STORED) + bytes(5000))[1] == 100 + len(b"".join(STORED)) + 1


@given(st.integers(0, len(b"".join(STORED)) - 1), st.integers(1, 255), st.lists(st.integers(0, 2000), max_size=3))
def test_damage_costs_one_record_and_is_told(at: int, change: int, cuts: list[int]):
    data = bytearray(b"".join(STORED))
    hit = next(i for i in range(len(STORED)) if at < len(b"".join(STORED[: i + 1])))
    data[at] ^= change

    out, torn = read(bytes(data), cuts)

    last = hit == len(STORED) - 1
    damage = [] if last else [Damage(100 + len(b"".join(STORED[:hit])) + 1)]
    assert out == [*RECORDS[:hit], *damage, *RECORDS[hit + 1 :]]
    assert (torn is not None) == last


@given(st.binary(max_size=300))
def test_any_bytes_are_read(data: bytes):
    read(data)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{", "no header"),
        (b"[1]", "None"),
        (b'{"format":"har-raw/2"}', "har-raw/1"),
        (b"[" * 100_000, "no header"),
        (encode_header(CSV).replace(b'"waist-07"', b"7"), "device"),
        (encode_header(CSV).replace(b"waist-07", b"a\\u001b[2J"), "device"),
        (encode_header(CSV).replace(b'"input_format":"csv"', b'"input_format":[]'), "format"),
        (encode_header(CSV).replace(b'"t0_ns":77', b'"t0_ns":-1'), "t0_ns"),
        (encode_header(CSV).replace(b"50.0", b'"fast"'), "rate_hz"),
        (encode_header(CSV).replace(b"50.0", b"NaN"), "rate_hz"),
        (encode_header(CSV).replace(b"50.0", b"1" + b"0" * 400), "header"),
        (encode_header(CSV).replace(b'"x y z"', b'"x x z"'), "axes"),
        (encode_header(CSV).replace(b'"input":{', b'"other":{'), "numbers"),
    ],
)
def test_a_header_that_cannot_be_used_is_refused_in_a_sentence(line: bytes, says: str):
    with pytest.raises(InputError, match=says):
        decode_header(line)


def test_a_key_of_a_later_version_is_passed_over():
    later = json.loads(encode_header(CSV))
    later["new"] = 1
    later["input"]["newer"] = 2

    assert decode_header(json.dumps(later).encode()) == CSV


def test_bytes_are_decoded_as_live_and_carry_no_time_of_receipt():
    data = lines(20)
    records = [encode_record(RawRecord(k, data[k * 10 : k * 10 + 10])) for k in range(60)]

    device, out = decoded(encode_header(CSV) + b"".join(records))

    batches = [item for item in out if isinstance(item, SampleBatch)]
    assert device == "waist-07"
    assert [round(float(x), 1) for b in batches for x in b.values[:, 3]] == [k / 10 for k in range(20)]
    assert [b.seq0 for b in batches] == [sum(len(c.t_ns) for c in batches[:i]) for i in range(len(batches))]
    assert {b.t_rx_ns for b in batches} == {None}


@pytest.mark.parametrize("form", ["csv", "json", "witmotion", "har1"])
@given(data=st.data())
def test_every_format_gives_what_it_gave_live_resets_and_damage_of_the_stream_included(form: str, data: st.DataObject):
    settings = InputSettings(rate_hz=50.0, keys=",ax,ay,az,gx,gy,gz")
    known = {
        "csv": lines(6),
        "json": b'{"ax":0,"ay":0,"az":1,"gx":0,"gy":0,"gz":0}\n' * 4,
        "witmotion": b"\x55\x51" + bytes(8) + b"\xa6" + b"\x55\x52" + bytes(8) + b"\xa7",
        "har1": b"\x01\x00",
    }[form]
    pieces = st.none() | st.binary(max_size=30) | st.sampled_from([known, known[:20], known[20:]])
    records = [RawRecord(k, piece) for k, piece in enumerate(data.draw(st.lists(pieces, max_size=12)))]
    live = decoder(form, "waist-07", settings)
    came = [d for r in records for d in (live.reset() if r.data is None else live.feed(r.data, 77 + r.t_rx_ns))]

    header = encode_header(CSV._replace(format=form, settings=settings))
    _, out = decoded(header + b"".join(map(encode_record, records)))

    assert [plain(d) for d in out] == [plain(d) for d in came]


@given(
    st.lists(st.binary(max_size=30) | st.sampled_from([b"", b"[0,0,1,0,0,0]", b'{"t0":1,"rate_hz":50}']), max_size=9)
)
def test_payloads_of_mqtt_give_what_they_gave_live(payloads: list[bytes]):
    settings = InputSettings(rate_hz=50.0)
    live = PayloadDecoder("waist-07", settings, 99)
    came = [d for k, payload in enumerate(payloads) for d in live.feed(payload, 77 + k)]
    header = encode_header(CSV._replace(format=MQTT, settings=settings, max_payload=99))

    _, out = decoded(header + b"".join(encode_record(RawRecord(k, payload)) for k, payload in enumerate(payloads)))

    assert [plain(d) for d in out] == [plain(d) for d in came]


def plain(item):
    """A record as something that can be compared, without its time of receipt."""
    return (item.t_ns.tolist(), item.values.tolist(), item.seq0) if isinstance(item, SampleBatch) else item


def test_damage_interrupts_the_stream_and_what_follows_is_decoded():
    stored = [encode_record(RawRecord(k, lines(10, 10 * k))) for k in range(3)]
    stored[1] = stored[1].replace(b"0.0", b"0.1", 1)

    _, out = decoded(encode_header(CSV) + b"".join(stored) + b"\xa5", 10**6)

    first = len(encode_header(CSV)) + 1
    bad = [(d.reason, d.where) for d in out if isinstance(d, BadFrame)]
    assert (Loss.CHECKSUM, first + len(stored[0])) in bad
    assert (Loss.TORN, first + sum(map(len, stored))) in bad
    assert any(isinstance(d, Dropped) for d in out)
    # A decoder may distrust the first line after an interruption.
    assert sum(len(d.t_ns) for d in out if isinstance(d, SampleBatch)) >= 10 + 9


@given(st.binary(max_size=200))
def test_whatever_follows_a_header_is_decoded_or_refused(data: bytes):
    decoded(encode_header(CSV) + data)
    with contextlib.suppress(InputError):
        decoded(START + data)
