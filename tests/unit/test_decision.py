import numpy as np
import pytest

from agent.core.decision import Decision, DecisionSettings, calibrated
from agent.records import UNKNOWN

HOP_NS = 1_280_000_000
A, B = [0.9, 0.1], [0.1, 0.9]


def decide(settings, scores, known=True, start=0):
    decision = Decision(("a", "b"), settings)
    return [decision.update((start + i) * HOP_NS, s, known=known)[0] for i, s in enumerate(scores)]


def test_without_smoothing_the_decision_is_the_window():
    assert decide(DecisionSettings(0, 0), [A, B, A, B]) == ["a", "b", "a", "b"]


def test_smoothing_rides_over_one_wrong_window():
    assert decide(DecisionSettings(3, 0), [A, A, A, B, A, A]) == ["a"] * 6


def test_smoothing_follows_a_lasting_change():
    got = decide(DecisionSettings(3, 0), [A] * 5 + [B] * 5)

    assert got[5] == "a"
    assert got[-1] == "b"


def test_smoothing_is_in_seconds_not_in_windows():
    def delay_s(hop_ns):
        decision = Decision(("a", "b"), DecisionSettings(2, 0))
        for i in range(100):
            decision.update(i * hop_ns, A, known=True)
        for i in range(100, 1000):
            if decision.update(i * hop_ns, B, known=True)[0] == "b":
                return (i - 99) * hop_ns / 1e9
        raise AssertionError("never decided")

    assert delay_s(100_000_000) == pytest.approx(delay_s(20_000_000), abs=0.1)


def test_hold_waits_until_the_new_activity_has_led_for_so_long():
    got = decide(DecisionSettings(0, 2.0), [A, A, B, B, B, B])

    assert got == ["a", "a", "a", "a", "b", "b"]


def test_hold_starts_again_when_the_challenger_loses_its_lead():
    got = decide(DecisionSettings(0, 2.0), [A, B, A, B, A, B, A])

    assert got == ["a"] * 7


def test_two_windows_in_a_row_that_are_not_known_are_decided_as_unknown():
    decision = Decision(("a", "b"), DecisionSettings(0, 0))

    known = [True, False, True, False, False, False, True]
    got = [decision.update(i * HOP_NS, A, known=k)[0] for i, k in enumerate(known)]

    assert got == ["a", "a", "a", "a", UNKNOWN, UNKNOWN, "a"]


def test_where_nothing_came_before_one_window_is_enough_to_be_unknown():
    decision = Decision(("a", "b"), DecisionSettings(0, 0))

    assert decision.update(0, A, known=False)[0] == UNKNOWN
    assert decision.update(HOP_NS, A, known=True)[0] == "a"
    decision.clear()
    assert decision.update(5 * HOP_NS, A, known=False)[0] == UNKNOWN


def test_strange_windows_are_smoothed_over_like_any_other():
    decision = Decision(("a", "b"), DecisionSettings(8, 0))
    for i in range(5):
        decision.update(i * HOP_NS, A, known=True)

    assert decision.update(5 * HOP_NS, A, known=False)[0] == "a"
    assert decision.update(6 * HOP_NS, A, known=False)[0] == "a"


def test_after_a_gap_nothing_of_the_past_is_averaged_in():
    decision = Decision(("a", "b"), DecisionSettings(100, 0))
    for i in range(5):
        decision.update(i * HOP_NS, A, known=True)
    decision.clear()

    assert decision.update(6 * HOP_NS, B, known=True) == ("b", pytest.approx(0.9))


def test_calibrated_is_a_softmax_over_the_temperature():
    logits = np.array([[1.0, 2.0, 3.0], [500.0, 0.0, -500.0]], np.float32)
    p = calibrated(logits, 2.0)

    assert p.sum(axis=1) == pytest.approx([1, 1])
    assert p[0] == pytest.approx(np.exp([0.5, 1, 1.5]) / np.exp([0.5, 1, 1.5]).sum())


def test_a_context_is_not_smoothed_unless_that_is_set():
    def keeps_a(settings, in_context):
        decision = Decision(("a", "b"), settings, in_context=in_context)
        decision.update(0, A, known=True)
        return decision.update(HOP_NS // 4, B, known=True)[0] == "a"

    assert [keeps_a(DecisionSettings(), used) for used in (False, True)] == [True, False]
    assert [keeps_a(DecisionSettings(1.0), used) for used in (False, True)] == [True, True]
    assert [keeps_a(DecisionSettings(0), used) for used in (False, True)] == [False, False]


def test_what_is_decided_stands_when_a_context_comes():
    decision = Decision(("a", "b"), DecisionSettings())
    decision.update(0, A, known=True)
    decision.use_context(True)

    assert decision.activity == "a"
    assert decision.update(HOP_NS // 4, B, known=True) == ("b", pytest.approx(0.9))


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_times_that_are_no_times_are_refused(bad):
    with pytest.raises(ValueError, match="smoothing_s"):
        DecisionSettings(smoothing_s=bad)
