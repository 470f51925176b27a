"""Numbers become samples: turned, scaled, timed."""

import numpy as np
import pytest

from agent.core.input import CountedClock, DeviceClock, Intake, Mounting, RowIntake
from agent.core.settings import InputSettings
from agent.core.units import STANDARD_GRAVITY
from agent.records import BadFrame, Loss, SampleBatch

ROW = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
MS = 1_000_000


def mounted(**settings) -> list[float]:
    return Mounting.of(InputSettings(**settings)).apply(np.array([ROW]))[0].tolist()


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ("x y z", [1, 2, 3, 4, 5, 6]),
        ("-y x z", [-2, 1, 3, -5, 4, 6]),
        ("+z -x -y", [3, -1, -2, 6, -4, -5]),
    ],
)
def test_acceleration_and_rotation_are_turned_alike(axes, expected):
    assert mounted(axes=axes) == expected
    assert Mounting.of(InputSettings(axes=axes)).apply_one(ROW)[0].tolist() == expected


def test_units_and_scales():
    got = mounted(acc_unit="m/s2", gyro_unit="deg/s", acc_scale=STANDARD_GRAVITY, gyro_scale=180)

    assert got == pytest.approx([1, 2, 3, 4 * np.pi, 5 * np.pi, 6 * np.pi])


def test_nothing_to_do_keeps_every_bit():
    raw = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)

    assert (Mounting.of(InputSettings()).apply(raw.astype(np.float64)) == raw).all()


@pytest.mark.parametrize(
    ("unit", "stamps", "expected_ms"),
    [
        ("s", [1.5, 1.52, 0.1], [1500, 1520, 100]),
        ("ms", [10, 30, 50], [10, 30, 50]),
        ("us", [0, 20000], [0, 20]),
        ("ms", [2**32 - 10, 10, 30], [2**32 - 10, 2**32 + 10, 2**32 + 30]),
        # Signed, as a sketch with the wrong format prints them.
        ("ms", [2**31 - 10, -(2**31) + 10], [2**31 - 10, 2**31 + 10]),
        # Late ones from before the wrap.
        ("ms", [2**32 - 10, 10, 2**32 - 5, 30], [2**32 - 10, 2**32 + 10, 2**32 - 5, 2**32 + 30]),
        # The sensor was started again: no wrap.
        ("ms", [3_000_000, 20, 40], [3_000_000, 20, 40]),
        # Since 1970: more than a float64 holds in nanoseconds, and yet the same moments.
        ("s", [1_700_000_000.001, 1_700_000_000.021], [1_700_000_000_001, 1_700_000_000_021]),
        ("ms", [1_700_000_000_001, 1_700_000_000_021], [1_700_000_000_001, 1_700_000_000_021]),
        ("us", [1_700_000_000_001_000], [1_700_000_000_001]),
        # No 32-bit counter at all.
        ("ms", [1_700_000_000_000, 1_600_000_000_000], [1_700_000_000_000, 1_600_000_000_000]),
    ],
)
def test_device_clock(unit, stamps, expected_ms):
    lump = DeviceClock(unit).times(np.array(stamps, np.float64)).tolist()
    clock = DeviceClock(unit)

    assert lump == [ms * MS for ms in expected_ms]
    assert [clock.time(float(stamp)) for stamp in stamps] == lump


def test_a_counter_that_wraps_at_every_turn_never_overflows():
    clock = DeviceClock("ms")
    for _ in range(10_000):
        times = clock.times(np.array([0, 2.0**31, 2.0**32 - 1]))
    assert (np.abs(times) < 2**63 - 1).all()


def test_counting_is_exact_at_any_rate():
    clock = CountedClock(104)
    got = np.concatenate([clock.times(n, 0) for n in (1, 7, 100, 1000)])

    assert got.tolist() == np.rint(np.arange(1108) * (1e9 / 104)).astype(np.int64).tolist()


def test_a_short_stall_and_its_burst_make_no_gap():
    clock = CountedClock(50)
    now, times = 0, []
    for k in range(1000):
        now = max(now, 20 * MS * k)
        if k == 500:
            now += 450 * MS
        times.append(clock.time(now))
    assert (np.diff(times) == 20 * MS).all()


@pytest.mark.parametrize("lump", [1, 5, 30])
def test_a_silence_makes_one_gap_of_its_length(lump):
    clock = CountedClock(50)
    before = [clock.time(20 * MS * k) for k in range(100)]
    again = [clock.times(lump, 99 * 20 * MS + 2000 * MS + lump * 20 * MS * (k + 1)) for k in range(20)]
    steps = np.diff(np.concatenate([before, *again]))

    assert (steps != 20 * MS).sum() == 1
    assert steps.max() == pytest.approx(2020 * MS, abs=21 * MS)


def test_samples_that_came_and_could_not_be_read_keep_their_places():
    intake = RowIntake("a", Mounting.of(InputSettings()), CountedClock(50))
    nan = [float("nan")] * 6
    batch, bad = intake.take([ROW, nan, ROW], 0, [1, 2, 3])
    (alone,) = intake.take([nan], 0, [4])
    (after,) = intake.take([ROW], 0, [5])

    assert isinstance(batch, SampleBatch)
    assert batch.t_ns.tolist() == [0, 40 * MS]
    assert bad == BadFrame("a", Loss.NON_FINITE, 2)
    assert alone == BadFrame("a", Loss.NON_FINITE, 4)
    assert isinstance(after, SampleBatch)
    assert after.t_ns.tolist() == [80 * MS]
    assert after.seq0 == 2


def test_numbers_beyond_what_a_sensor_gives_are_counted():
    intake = RowIntake("a", Mounting.of(InputSettings()), DeviceClock("s"))
    late, far = [9.3e9, *ROW], [1.0, 2e6, *ROW[1:]]

    assert intake.take([late, far], 0, [7, 8]) == [
        BadFrame("a", Loss.TIME_RANGE, 7),
        BadFrame("a", Loss.VALUE_RANGE, 8),
    ]


def test_picking_counts_by_reason():
    raw = np.array([ROW, [np.inf] * 6, [-1e7] * 6, [1e300] * 6])
    batch, *bad = Intake("a", Mounting.of(InputSettings())).pick(np.arange(4), raw, 9, 3)

    assert isinstance(batch, SampleBatch)
    assert batch.t_ns.tolist() == [0]
    assert bad == [BadFrame("a", Loss.NON_FINITE, 3, 1), BadFrame("a", Loss.VALUE_RANGE, 3, 2)]
