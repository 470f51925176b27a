import numpy as np
import pytest

from agent.core.decoders.recording import Declared, RecordingDecoder
from agent.errors import InputError
from agent.records import BadFrame, LabelChange, Loss, SampleBatch

HEADER = "# format: har-recording/1\n# device: waist-07\n# rate_hz: 50\n# acc_unit: g\n# gyro_unit: rad/s\n"
COLUMNS = "t,ax,ay,az,gx,gy,gz,label\n"
ROW = "0.00,0.918,-0.112,0.509,-0.054,-0.069,-0.030,standing\n"


def decode(text, declared=None):
    decoder = RecordingDecoder("file", declared)
    out = decoder.feed(text.encode() if isinstance(text, str) else text) + decoder.finish()
    return decoder, [b for b in out if isinstance(b, SampleBatch)], [b for b in out if isinstance(b, BadFrame)]


def test_the_example_of_the_contract_is_read():
    decoder, (batch,), bad = decode(HEADER + COLUMNS + ROW + "0.02,1,2,3,4,5,6,\n")

    assert decoder.device == batch.stream == "waist-07"
    assert batch.t_ns.tolist() == [0, 20_000_000]
    assert batch.values[0] == pytest.approx([0.918, -0.112, 0.509, -0.054, -0.069, -0.030])
    assert batch.truth == (LabelChange(0, 0, "standing"), LabelChange(1, 20_000_000, None))
    assert bad == []


def test_units_are_converted_to_g_and_rad_per_s():
    header = "# acc_unit: m/s2\n# gyro_unit: deg/s\n"
    _, (batch,), _ = decode(header + COLUMNS + "0,9.80665,0,0,180,0,0,\n")

    assert batch.values[0] == pytest.approx([1, 0, 0, np.pi, 0, 0])


def test_flags_win_over_the_header_and_stand_in_for_one():
    declared = Declared(acc_unit="m/s2", gyro_unit="rad/s", device="left-arm")
    _, (over,), _ = decode(HEADER + COLUMNS + ROW, declared)
    _, (alone,), _ = decode(COLUMNS + ROW, declared)

    assert over.stream == alone.stream == "left-arm"
    assert over.values[0, 0] == alone.values[0, 0] == pytest.approx(0.918 / 9.80665)


def test_columns_may_stand_in_any_order_and_others_are_passed_over():
    text = HEADER + "label,gz,gy,gx,az,ay,ax,t,heart\n" + "walking,6,5,4,3,2,1,0.5,72\n"
    _, (batch,), _ = decode(text)

    assert batch.values[0].tolist() == [1, 2, 3, 4, 5, 6]
    assert batch.t_ns.tolist() == [500_000_000]
    assert batch.truth == (LabelChange(0, 500_000_000, "walking"),)


def test_without_times_the_declared_rate_gives_them():
    _, (batch,), _ = decode(HEADER.replace("50", "100") + "ax,ay,az,gx,gy,gz\n" + "1,0,0,0,0,0\n" * 3)

    assert batch.t_ns.tolist() == [0, 10_000_000, 20_000_000]


def test_bad_rows_are_counted_by_reason_with_their_line():
    rows = [
        ROW,
        "0.02,1,2,3\n",
        "0.04,x,2,3,4,5,6,\n",
        "0.06,nan,2,3,4,5,6,\n",
        "0.08,1,inf,3,4,5,6,\n",
        "1e30,1,2,3,4,5,6,\n",
        "0.10,1e30,2,3,4,5,6,\n",
        "0.12,1_0,2,3,4,5,6,\n",
        ROW.replace("0.00", "0.14"),
    ]
    _, batches, bad = decode(HEADER + COLUMNS + "".join(rows))

    assert [(b.where, b.reason) for b in bad] == [
        (8, Loss.COLUMNS),
        (9, Loss.NUMBER),
        (10, Loss.NON_FINITE),
        (11, Loss.NON_FINITE),
        (12, Loss.TIME_RANGE),
        (13, Loss.VALUE_RANGE),
        (14, Loss.NUMBER),
    ]
    assert np.concatenate([b.t_ns for b in batches]).tolist() == [0, 140_000_000]


def test_a_row_that_is_not_utf8_is_counted():
    _, _, bad = decode((HEADER + COLUMNS + ROW).encode() + b"0.02,1,2,3,4,5,6,\xff\n")

    assert [(b.where, b.reason) for b in bad] == [(8, Loss.ENCODING)]


def test_a_last_line_without_an_end_is_torn():
    _, (batch,), bad = decode(HEADER + COLUMNS + ROW + ROW.rstrip("\n"))

    assert len(batch.t_ns) == 1
    assert [(b.where, b.reason) for b in bad] == [(8, Loss.TORN)]


@pytest.mark.parametrize("end", ["\r\n", "\r", "\n"])
def test_any_line_end_and_a_byte_order_mark_are_read(end):
    decoder, batches, bad = decode("\ufeff" + (HEADER + COLUMNS + ROW + ROW).replace("\n", end))

    assert (decoder.device, sum(len(b.t_ns) for b in batches), bad) == ("waist-07", 2, [])


def test_empty_lines_and_comments_between_rows_are_no_data_and_no_error():
    _, (batch,), bad = decode(HEADER + COLUMNS + ROW + "\n# a note\n" + ROW)

    assert (len(batch.t_ns), bad) == (2, [])


def test_a_line_without_end_is_dropped_once_and_reading_goes_on():
    decoder = RecordingDecoder("file")
    out = decoder.feed((HEADER + COLUMNS + ROW).encode())
    for _ in range(40):
        out += decoder.feed(b"9" * 10_000)
    out += decoder.feed(("\n" + ROW).encode()) + decoder.finish()

    assert [b.reason for b in out if isinstance(b, BadFrame)] == [Loss.TOO_LONG]
    assert sum(len(b.t_ns) for b in out if isinstance(b, SampleBatch)) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        (HEADER, "no line of column names"),
        (HEADER + "time,x,y,z\n", "lacks ax, ay, az, gx, gy, gz"),
        (COLUMNS + ROW, "does not say its acc_unit; add it with --acc-unit"),
        (
            HEADER.replace("acc_unit: g", "acc_unit: furlong") + COLUMNS,
            "acc_unit is 'furlong'; it must be one of g, m/s2",
        ),
        (HEADER.replace("rad/s", "rpm") + COLUMNS, "gyro_unit is 'rpm'"),
        (HEADER.replace("recording/1", "recording/9") + COLUMNS, "format is 'har-recording/9'"),
        (HEADER.replace("# rate_hz: 50\n", "") + "ax,ay,az,gx,gy,gz\n", "give the rate with --rate-hz if not"),
        (HEADER.replace("50", "fast") + "ax,ay,az,gx,gy,gz\n", "rate_hz is 'fast'"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "not text"),
        (b"\x00" * 200_000, "has no lines that are short enough"),
        ("# a: b\n" * 2000, "within its first 1000 lines"),
        ("\n" * 2000, "within its first 1000 lines"),
    ],
)
def test_a_header_that_cannot_be_used_says_what_to_do(text, says):
    with pytest.raises(InputError, match=says):
        decode(text)


@pytest.mark.parametrize(("declared", "size", "meant"), [("g", 9.8, "m/s2"), ("m/s2", 1.0, "g")])
def test_a_unit_that_the_values_belie_is_refused(declared, size, meant):
    header = f"# acc_unit: {declared}\n# gyro_unit: rad/s\n"
    rows = "".join(f"{i / 50},0,0,{size},0,0,0,\n" for i in range(200))

    with pytest.raises(InputError, match=f"declared in {declared} but its size is that of {meant}"):
        decode(header + COLUMNS + rows)


def test_without_times_a_row_that_cannot_be_read_takes_its_place_all_the_same():
    rows = ["1,0,0,0,0,0\n", "bad\n", "2,0,0,0,0,0\n", "\n", "# note\n", "3,0,0,0,0,0\n"]
    decoder = RecordingDecoder("file")
    out = decoder.feed((HEADER + "ax,ay,az,gx,gy,gz\n").encode())
    whole = RecordingDecoder("file")
    expected = whole.feed((HEADER + "ax,ay,az,gx,gy,gz\n" + "".join(rows)).encode())
    for row in rows:
        out += decoder.feed(row.encode())

    for decoded in (out, expected):
        times = np.concatenate([b.t_ns for b in decoded if isinstance(b, SampleBatch)])
        assert times.tolist() == [0, 40_000_000, 60_000_000]


def test_bad_rows_are_told_in_the_order_of_lines():
    long = "9" * 70_000 + "\n"
    _, _, bad = decode(HEADER + COLUMNS + "x\n" + long + "x\n")

    assert [(b.where, b.reason) for b in bad] == [(7, Loss.COLUMNS), (8, Loss.TOO_LONG), (9, Loss.COLUMNS)]


def test_labels_of_samples_that_come_late_change_nothing():
    times = [0, 1, 2, 4, 3, 5, 5, 6]
    labels = "aaabaabb"
    text = HEADER + COLUMNS + "".join(f"{t},0,0,1,0,0,0,{x}\n" for t, x in zip(times, labels, strict=True))
    _, (batch,), _ = decode(text)
    alone = RecordingDecoder("file")
    pieces = [b for line in text.splitlines(keepends=True) for b in alone.feed(line.encode())]

    assert batch.truth == (LabelChange(0, 0, "a"), LabelChange(3, 4 * 10**9, "b"), LabelChange(5, 5 * 10**9, "a"),
                           LabelChange(7, 6 * 10**9, "b"))  # fmt: skip
    assert tuple(c for b in pieces for c in b.truth) == batch.truth


def test_a_column_that_occurs_twice_is_refused():
    with pytest.raises(InputError, match="names ax more than once"):
        decode(HEADER + "t,ax,ax,ay,az,gx,gy,gz\n")


def test_times_since_1970_are_exact_to_the_microsecond():
    rows = "1700000000.000001,1,2,3,4,5,6,\n1700000000.020001,1,2,3,4,5,6,\n"
    _, (batch,), _ = decode(HEADER + COLUMNS + rows)

    assert batch.t_ns.tolist() == [1_700_000_000_000_001_000, 1_700_000_000_020_001_000]
