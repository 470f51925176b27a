import numpy as np
import pytest
from fakes import even_times, signal

from agent.core.timeline import Break, Grid, RateError, Timeline
from agent.records import GapReason, Loss


def run(t, v, rate_hz=50.0):
    timeline = Timeline(rate_hz)
    out = timeline.push(t, v)
    grids = [p for p in out if isinstance(p, Grid)]
    breaks = [p for p in out if isinstance(p, Break)]
    return timeline, grids, breaks


def test_a_source_on_the_grid_passes_bit_for_bit():
    v = signal(500)
    timeline, grids, breaks = run(even_times(500), v)

    assert np.array_equal(np.concatenate([g.values for g in grids]), v)
    assert (timeline.resampled, timeline.interpolated, breaks) == (0, 0, [])


def test_later_samples_on_the_grid_are_not_copied():
    t, v = even_times(200), signal(200)
    timeline = Timeline(50.0)
    timeline.push(t[:100], v[:100])
    (grid,) = timeline.push(t[100:], v[100:])

    assert np.shares_memory(grid.values, v)


@pytest.mark.parametrize("rate_hz", [10, 25, 47.3, 50.4, 62.5, 100, 119, 200, 400])
def test_a_ramp_is_resampled_to_the_same_ramp_delayed_by_half_the_average(rate_hz):
    t = even_times(3000, rate_hz)
    v = np.repeat((t / 1e9)[:, None], 6, axis=1).astype(np.float32)
    timeline, grids, _ = run(t, v)

    got = np.concatenate([g.values for g in grids])[10:, 0]
    average_s = max(0, 1 / 50 - 1 / rate_hz) if rate_hz > 75 else 0
    wanted = np.arange(10, 10 + len(got)) / 50 - average_s / 2
    assert np.abs(got - wanted).max() < 3e-5
    assert timeline.delay_ns == pytest.approx((average_s / 2 + 1 / rate_hz) * 1e9, rel=1e-6)


@pytest.mark.parametrize("rate_hz", [100, 200, 400])
def test_every_average_counts_as_resampled(rate_hz):
    timeline, grids, _ = run(even_times(3000, rate_hz), signal(3000))

    assert timeline.resampled == sum(len(g.values) for g in grids) > 300


def test_nothing_newer_than_a_grid_point_changes_it():
    t, v = even_times(400, 130), signal(400)
    _, before, _ = run(t[:200], v[:200])
    changed = v.copy()
    changed[201:] = 99
    _, after, _ = run(t, changed)

    n = len(before[0].values)
    assert np.array_equal(after[0].values[:n], before[0].values)


def test_what_is_above_nyquist_is_damped_before_it_folds_down():
    t = even_times(8000, 400)
    tone = np.sin(2 * np.pi * 57 * t / 1e9)
    _, grids, _ = run(t, np.repeat(tone[:, None], 6, axis=1).astype(np.float32))

    assert np.abs(grids[0].values[10:]).max() < 0.1


def test_a_short_hole_is_interpolated_and_counted():
    keep = np.r_[0:100, 103:200]
    t, v = even_times(200), np.zeros((200, 6), np.float32)
    v[:, 0] = np.arange(200)
    timeline, grids, breaks = run(t[keep], v[keep])

    assert breaks == []
    assert np.concatenate([g.values for g in grids])[:, 0].tolist() == pytest.approx(list(range(200)))
    assert timeline.interpolated == 3


def test_a_long_hole_is_a_gap_and_starts_a_new_grid():
    t, v = even_times(200), signal(200)
    t[100:] += 36_000_000_000_000
    _, grids, breaks = run(t, v)

    assert breaks == [Break(100, int(t[99]), int(t[100]), GapReason.MISSING)]
    assert [(g.origin_ns, g.k0, len(g.values)) for g in grids] == [(0, 0, 100), (int(t[100]), 0, 100)]


def test_time_that_stands_still_or_goes_back_a_little_drops_samples_and_counts_them():
    t, v = even_times(200), signal(200)
    t[120] = t[119]
    t[150] = t[140]
    timeline, grids, breaks = run(t, v)

    assert breaks == []
    assert timeline.losses == {Loss.DUPLICATE_TIME: 1, Loss.BACKWARD_TIME: 1}
    assert sum(len(g.values) for g in grids) == 200
    assert timeline.interpolated == 2


def test_time_that_goes_back_far_is_a_gap():
    t, v = even_times(200, t0_s=1000), signal(200)
    t[100:] -= 500_000_000_000
    _, grids, breaks = run(t, v)

    assert breaks == [Break(100, int(t[99]), int(t[100]), GapReason.TIME_RESET)]
    assert sum(len(g.values) for g in grids) == 200


def test_the_rate_is_the_median_so_that_jitter_and_holes_do_not_matter():
    rng = np.random.default_rng(3)
    t = even_times(300, 100) + rng.normal(0, 1e6, 300).astype(np.int64)
    t = np.delete(t, [5, 6, 7, 20])
    timeline, _, _ = run(t, signal(len(t)))

    assert timeline.source_rate_hz == pytest.approx(100, rel=0.05)


@pytest.mark.parametrize("rate_hz", [1, 8, 500, 10_000])
def test_a_rate_that_cannot_be_resampled_is_refused_with_the_rate(rate_hz):
    with pytest.raises(RateError, match=r"10 to 400 Hz"):
        run(even_times(100, rate_hz), signal(100))


def test_a_clock_that_never_moves_has_no_rate():
    with pytest.raises(RateError, match="do not move forward"):
        run(np.zeros(100, np.int64), signal(100))


def test_samples_are_held_until_the_rate_is_known():
    timeline = Timeline(50.0)

    assert timeline.push(even_times(32), signal(32)) == []
    assert timeline.held == 32


def test_times_since_1970_lose_no_precision():
    t, v = even_times(400, 100), signal(400)
    _, near, _ = run(t, v)
    _, far, _ = run(t + 1_778_000_000_123_456_789, v)

    assert np.array_equal(near[0].values, far[0].values)
