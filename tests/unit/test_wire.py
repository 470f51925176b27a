import json

import numpy as np
import pytest
from fakes import even_times, signal

from agent.core import units
from agent.core.decoders.recording import RecordingDecoder
from agent.core.wire import (
    CSV_COLUMNS,
    HISTORICAL,
    LIVE,
    LivePredictions,
    activity_message,
    csv_row,
    encode,
    iso_time,
    prediction_message,
    recording_header,
    recording_rows,
    topic_level,
)
from agent.records import ActivityChange, LabelChange, Origin, Prediction, SampleBatch, Timings

LABELS = ("walking", "laying")
PREDICTION = Prediction(
    stream="waist-07",
    seq=412,
    t0_ns=526_080_000_000,
    t1_ns=528_640_000_000,
    label="walking",
    confidence=0.98214,
    scores=(0.98214, 0.01786),
    novelty=0.1123456,
    known=True,
    activity="walking",
    origin=Origin.LOCAL,
    model="har-base@3f9c1a7e",
)


def test_a_prediction_is_the_object_of_the_contract():
    assert prediction_message(PREDICTION, LABELS) == {
        "v": 1,
        "device": "waist-07",
        "seq": 412,
        "t0": 526.08,
        "t1": 528.64,
        "label": "walking",
        "confidence": 0.9821,
        "scores": {"walking": 0.9821, "laying": 0.0179},
        "novelty": 0.1123,
        "known": True,
        "activity": "walking",
        "origin": "local",
        "model": "har-base@3f9c1a7e",
    }


@pytest.mark.parametrize(
    "prediction",
    [
        PREDICTION,
        PREDICTION._replace(novelty=1.23456e-7, known=False, activity="unknown", seq=0, t0_ns=-1, t1_ns=10**18),
        PREDICTION._replace(stream='a"b\\c %s {0} é\n\udc80', label="50 % up", model="%(x)s@1", novelty=12345.678),
    ],
)
@pytest.mark.parametrize(("cloud_ns", "cloud"), [(None, {}), (40_500_000, {"cloud": 40.5})])
def test_a_live_prediction_is_the_same_object_and_more(prediction, cloud_ns, cloud):
    labels = ("50 % up", '"{quoted}"')
    timings = Timings("waist-07", 412, 0, 400_000, 210_000, 1_300_000, cloud_ns)

    live = LivePredictions(labels, "b00t").encode(prediction, 1_700_000_000_123_456_789, timings, clock_synced=True)

    plain = json.loads(encode(prediction_message(prediction, labels)))
    assert json.loads(live) == {
        **plain,
        "id": json.loads(encode({"id": f"b00t:{prediction.stream}:{prediction.seq}"}))["id"],
        "latency_ms": {"wait": 0.4, "infer": 0.21, "total": 1.3, **cloud},
        "time": "2023-11-14T22:13:20.123Z",
        "clock_synced": True,
        "historical": False,
    }


def test_a_live_prediction_can_be_made_historical_by_its_bytes_alone():
    hostile = PREDICTION._replace(stream='","historical":false,"', activity='"historical":false')
    live = LivePredictions(('"historical":false', "b"), "b").encode(hostile, 0, clock_synced=False)

    assert live.count(LIVE) == 1
    assert json.loads(live.replace(LIVE, HISTORICAL)) == json.loads(live) | {"historical": True}


def test_times_of_predictions_follow_the_second_back_and_forth():
    live = LivePredictions(LABELS, "b")
    times = [999_999_999, 1_000_000_000, 500_000_000, 1_777_890_067_310_000_000, -1]

    said = [json.loads(live.encode(PREDICTION, t, clock_synced=True))["time"] for t in times]

    assert said == [iso_time(t) for t in times]
    assert said[3] == "2026-05-04T10:21:07.310Z"


def test_scores_that_are_no_numbers_are_no_message():
    for bad in (PREDICTION._replace(novelty=float("nan")), PREDICTION._replace(confidence=float("inf"))):
        with pytest.raises(ValueError, match="window 412 of waist-07"):
            LivePredictions(LABELS, "b").encode(bad, 0, clock_synced=True)


@pytest.mark.parametrize("name", ["waist-07", "Küche 1", "a_b", "$x"])
def test_a_name_that_is_a_level_stays_as_it_is(name):
    assert topic_level(name) == name


@pytest.mark.parametrize("name", ["", "a/b", "a+b", "a#b", "a\0b", "a\tb", "a\x80b", "a\udc80b", "x" * 300, "é" * 150])
def test_a_name_that_is_none_becomes_one_of_its_own(name):
    level = topic_level(name)

    assert level != topic_level(name + "b")
    assert not set(level) & set("+#/")
    assert level.isprintable()
    assert 0 < len(level.encode()) < 220


def test_csv_has_the_same_values():
    row = dict(zip(CSV_COLUMNS, csv_row(PREDICTION), strict=True))

    assert row == {k: v for k, v in prediction_message(PREDICTION, LABELS).items() if k in CSV_COLUMNS}


def test_an_activity_says_what_it_was_before():
    message = activity_message(ActivityChange("s", 2_560_000_000, "laying", None, 0.75))

    assert message == {"v": 1, "device": "s", "t": 2.56, "activity": "laying", "previous": None, "confidence": 0.75}


def test_a_live_activity_has_a_time():
    message = activity_message(ActivityChange("s", 0, "laying", None, 0.75), 310_000_000, clock_synced=True)

    assert message["time"] == "1970-01-01T00:00:00.310Z"
    assert message["clock_synced"]


def test_text_is_compact_utf8_and_never_nan():
    assert encode({"a": "é", "b": [1, 2.5]}) == '{"a":"é","b":[1,2.5]}'.encode()
    assert json.loads(encode(prediction_message(PREDICTION, LABELS)))["seq"] == 412
    with pytest.raises(ValueError, match="JSON"):
        encode({"a": float("nan")})


def test_a_recording_is_read_back_as_it_was_written():
    truth = (
        LabelChange(0, 0, "walking"),
        LabelChange(50, 1_000_000_000, None),
        LabelChange(75, 1_500_000_000, "laying"),
    )
    batch = SampleBatch("s", even_times(100), np.round(signal(100), 4), 0, truth=truth)
    text = recording_header("s", 50.0) + recording_rows(batch, None)[0]

    decoder = RecordingDecoder("file")
    (read,) = [*decoder.feed(text.encode()), *decoder.finish()]

    assert read.stream == "s"
    assert np.array_equal(read.t_ns, batch.t_ns)
    assert read.values == pytest.approx(batch.values, abs=1e-5)
    assert read.truth == truth


def test_units_reach_g_and_rad_per_s():
    assert units.scale("g", "rad/s").tolist() == [1] * 6
    assert units.scale("m/s2", "deg/s") == pytest.approx([1 / 9.80665] * 3 + [np.pi / 180] * 3)


@pytest.mark.parametrize(("acc", "gyro", "names"), [("ft", "rad/s", "g, m/s2"), ("g", "rpm", "rad/s, deg/s")])
def test_an_unknown_unit_is_refused_with_those_that_are_known(acc, gyro, names):
    with pytest.raises(ValueError, match=names):
        units.scale(acc, gyro)


@pytest.mark.parametrize(
    ("declared", "size", "meant"),
    [("g", 1, None), ("g", 9.8, "m/s2"), ("m/s2", 1, None), ("m/s2", 0.102, "g"), ("g", 3, None)],
)
def test_a_unit_is_doubted_only_where_it_is_clearly_another(declared, size, meant):
    values = np.zeros((50, 6), np.float32)
    values[:, 2] = size

    assert units.likelier_acc_unit(values, declared) == meant
