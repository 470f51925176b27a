import random

from agent.core.clock_map import SPAN_NS, ClockMap

S = 1_000_000_000
OFFSET = 7_000 * S


def test_nothing_is_known_before_a_sample_came():
    assert ClockMap().monotonic_ns(0) is None


def test_a_burst_after_a_stall_does_not_move_time():
    clock = ClockMap()
    clock.update(1 * S, OFFSET + 1 * S + 2_000_000)
    for k in range(50):
        clock.update(2 * S + k * S // 50, OFFSET + 9 * S)

    assert clock.monotonic_ns(3 * S) == OFFSET + 3 * S + 2_000_000


def test_the_offset_is_the_least_delay_whatever_the_jitter():
    clock, rng = ClockMap(), random.Random(1)
    delays = [rng.randrange(1_000_000, 80_000_000) for _ in range(1000)]
    for k, delay in enumerate(delays):
        clock.update(k * 20_000_000, OFFSET + k * 20_000_000 + delay)

    assert clock.monotonic_ns(0) == OFFSET + min(delays)


def test_a_device_whose_clock_is_slow_is_followed():
    clock = ClockMap()
    for k in range(600):
        clock.update(k * S * 9_999 // 10_000, OFFSET + k * S)
    error = clock.monotonic_ns(599 * S * 9_999 // 10_000) - (OFFSET + 599 * S)

    assert abs(error) <= 2 * SPAN_NS // 10_000


def test_a_clock_that_was_set_back_or_forward_is_learned_at_once():
    clock = ClockMap()
    clock.update(5_000 * S, OFFSET + 5_000 * S)
    clock.update(10 * S, OFFSET + 5_001 * S)
    assert clock.monotonic_ns(11 * S) == OFFSET + 5_002 * S

    clock.update(9_000 * S, OFFSET + 5_002 * S)
    assert clock.monotonic_ns(9_001 * S) == OFFSET + 5_003 * S


def test_a_sample_that_was_overtaken_on_the_way_resets_nothing():
    clock = ClockMap()
    clock.update(10 * S, OFFSET + 10 * S)
    clock.update(9 * S + S // 2, OFFSET + 10 * S + S // 2)

    assert clock.monotonic_ns(11 * S) == OFFSET + 11 * S


def test_after_a_long_silence_the_old_offset_is_not_held_against_the_new():
    clock = ClockMap()
    clock.update(10 * S, OFFSET + 10 * S)
    clock.update(20 * S, OFFSET + 200 * S)

    assert clock.monotonic_ns(20 * S) == OFFSET + 200 * S
