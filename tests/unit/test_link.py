import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.link import STALE_NS, LinkEstimator

S = 1_000_000_000
MS = 1_000_000


class Wire:
    """A link that scatters: times are log-normal around round trip and bandwidth."""

    def __init__(self, rtt_ms=20.0, mbit=1.0, scatter=0.1, seed=0):
        self.rtt_ms, self.mbit, self.scatter = rtt_ms, mbit, scatter
        self.estimator = LinkEstimator()
        self._random = random.Random(seed)
        self._now_ns = 0

    def takes_ns(self, n_bytes):
        return self.rtt_ms * MS + 8000 * n_bytes / self.mbit

    def carry(self, times, *sizes):
        for k in range(times):
            n_bytes = sizes[k % len(sizes)]
            self._now_ns += S
            taken = self.takes_ns(n_bytes) * self._random.lognormvariate(0.0, self.scatter)
            self.estimator.observe(self._now_ns, n_bytes, round(taken))

    def outlier(self, n_bytes, factor):
        self._now_ns += S
        self.estimator.observe(self._now_ns, n_bytes, round(factor * self.takes_ns(n_bytes)))


def test_nothing_is_known_before_the_first():
    link = LinkEstimator()

    assert (link.rtt_ns, link.bits_per_s, link.expected_ns(100), link.changes) == (None, None, None, 0)


def test_the_first_is_what_is_expected():
    link = LinkEstimator()
    link.observe(0, 100, 30 * MS)

    assert (link.rtt_ns, link.bits_per_s, link.expected_ns(100)) == (30 * MS, None, 30 * MS)


def test_sizes_that_differ_give_round_trip_and_bandwidth():
    wire = Wire(rtt_ms=20, mbit=1.0)
    wire.carry(100, 100, 100, 100, 10_000)
    link = wire.estimator

    assert link.rtt_ns == pytest.approx(20 * MS, rel=0.1)
    assert link.bits_per_s == pytest.approx(1e6, rel=0.1)
    assert link.expected_ns(5000) == pytest.approx(wire.takes_ns(5000), rel=0.1)
    assert link.changes == 0


def test_two_probes_are_enough():
    link = LinkEstimator()
    link.observe(0, 100, 21 * MS)
    link.observe(S, 10_000, 120 * MS)

    assert link.bits_per_s == pytest.approx(8e9 * 9900 / (99 * MS))
    assert link.rtt_ns == pytest.approx(20 * MS)


def test_a_bandwidth_that_noise_hides_is_not_known():
    wire = Wire(rtt_ms=20, mbit=1000.0)
    wire.carry(500, 100, 1500)

    assert wire.estimator.bits_per_s is None
    assert wire.estimator.expected_ns(1500) == pytest.approx(20 * MS, rel=0.1)


def test_a_bandwidth_stays_known_while_sizes_are_alike():
    wire = Wire()
    wire.carry(40, 100, 10_000)
    wire.carry(500, 300)

    assert wire.estimator.bits_per_s == pytest.approx(1e6, rel=0.1)
    assert wire.estimator.expected_ns(300) == pytest.approx(wire.takes_ns(300), rel=0.1)


@pytest.mark.parametrize("factor", [0.01, 10, 100])
def test_one_outlier_changes_nothing(factor):
    wire = Wire()
    wire.carry(50, 300)
    before = wire.estimator.expected_ns(300)
    wire.outlier(300, factor)

    assert wire.estimator.expected_ns(300) == before

    wire.carry(50, 300)
    assert wire.estimator.changes == 0


@pytest.mark.parametrize("factor", [0.1, 0.5, 2, 10])
def test_a_change_is_believed_after_a_few_and_restarts_the_average(factor):
    wire = Wire()
    wire.carry(100, 300)
    wire.rtt_ms *= factor
    wire.carry(5, 300)

    assert wire.estimator.changes == 1
    assert wire.estimator.expected_ns(300) == pytest.approx(wire.takes_ns(300), rel=0.15)


def test_less_bandwidth_alone_is_a_change():
    wire = Wire(mbit=4.0)
    wire.carry(100, 100, 10_000)
    wire.mbit = 0.5
    wire.carry(20, 100, 10_000)

    assert wire.estimator.changes >= 1
    assert wire.estimator.bits_per_s == pytest.approx(0.5e6, rel=0.2)
    assert wire.estimator.rtt_ns == pytest.approx(20 * MS, rel=0.3)


def test_after_a_change_bandwidth_is_not_known_until_sizes_differ_again():
    wire = Wire()
    wire.carry(40, 100, 10_000)
    wire.rtt_ms = 200
    wire.carry(10, 100)

    assert wire.estimator.bits_per_s is None

    wire.carry(6, 100, 10_000)
    assert wire.estimator.bits_per_s == pytest.approx(1e6, rel=0.5)


def test_a_first_one_that_was_slow_is_soon_forgotten():
    wire = Wire()
    wire.outlier(300, 100)
    wire.carry(4, 300)

    assert wire.estimator.expected_ns(300) == pytest.approx(wire.takes_ns(300), rel=0.15)


@pytest.mark.parametrize("scatter", [0.05, 0.3])
def test_a_steady_link_hardly_ever_changes(scatter):
    for seed in range(3):
        wire = Wire(scatter=scatter, seed=seed)
        wire.carry(1000, 300, 300, 300, 5000)
        assert wire.estimator.changes <= 1


def test_outliers_every_now_and_then_are_no_changes():
    wire = Wire()
    wire.carry(30, 300)
    for k in range(50):
        wire.carry(10 + k % 17, 300)
        wire.outlier(300, 5 + 3 * k)

    assert wire.estimator.changes == 0
    assert wire.estimator.expected_ns(300) == pytest.approx(wire.takes_ns(300), rel=0.2)


def test_a_slow_drift_is_followed():
    wire = Wire()
    for _ in range(300):
        wire.carry(1, 300)
        wire.rtt_ms *= 1.005

    assert wire.estimator.expected_ns(300) == pytest.approx(wire.takes_ns(300), rel=0.2)


def test_after_a_long_silence_all_is_new():
    link = LinkEstimator()
    for k in range(50):
        link.observe(k * S, 300, 20 * MS)
    link.observe(50 * S + STALE_NS, 300, 90 * MS)

    assert (link.expected_ns(300), link.changes) == (90 * MS, 1)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**13)), max_size=100))
def test_whatever_is_observed_expectations_are_times_that_grow_with_size(seen):
    link = LinkEstimator()
    for k, (n_bytes, rtt_ns) in enumerate(seen):
        link.observe(k * S, n_bytes, rtt_ns)
        small, large = link.expected_ns(10), link.expected_ns(10**6)
        assert small is not None
        assert large is not None
        assert 0 <= small <= large
        assert link.bits_per_s is None or link.bits_per_s > 0
