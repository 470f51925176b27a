"""What no window covers between two runs, and what can be known of that."""

import json
from collections.abc import Sequence

import pytest

from agent.core.coverage import MOST_KEPT, RETURN_S, Coverage, Covered, kept

S = 1_000_000_000
WINDOW = 2_560_000_000
SILENT_S = 10.0


def run(before: Sequence[Covered] = (), by: str = "new", started_s: float = 100) -> Coverage:
    return Coverage(before, by, round(started_s * S))


def covered(coverage: Coverage, stream: str, *ends_s: float) -> None:
    for end_s in ends_s:
        coverage.window(stream, round(end_s * S), WINDOW)


def left(coverage: Coverage, now_s: float, *, ended: bool = True) -> list[Covered]:
    """What the next run reads, through the file."""
    text = json.dumps(coverage.keep(round(now_s * S), SILENT_S, ended=ended))
    return kept(json.loads(text), round(now_s * S))


def test_without_a_run_before_nothing_is_known():
    coverage = run()
    covered(coverage, "waist", 110, 111.28)

    assert coverage.gap() is None


def test_a_gap_is_from_the_last_window_of_one_run_to_the_first_of_the_next():
    old = run(by="0.1.0", started_s=0)
    covered(old, "waist", 95.0, 96.28)
    new = run(left(old, 97))
    assert new.gap() is None
    covered(new, "waist", 103.96, 105.24)

    assert new.gap() == {
        "seconds": 5.12,
        "windows": 2.0,
        "devices": 1,
        "absent": 0,
        "previous": "0.1.0",
        "orderly": True,
    }


def test_windows_that_follow_each_other_leave_no_gap_and_overlap_is_none():
    for first_s in (96.28 + 2.56, 97.0):
        old = run(started_s=0)
        covered(old, "waist", 96.28)
        new = run(left(old, 97))
        covered(new, "waist", first_s)
        gap = new.gap()

        assert gap is not None
        assert (gap["seconds"], gap["windows"]) == (0.0, 0.0)


def test_of_a_run_that_was_killed_only_an_upper_bound_is_known():
    old = run(started_s=0)
    covered(old, "waist", 90)
    found = left(old, 92, ended=False)
    covered(old, "waist", 91.28, 92.56, 93.84)
    new = run(found)
    covered(new, "waist", 103)
    gap = new.gap()

    assert gap is not None
    assert (gap["seconds"], gap["orderly"]) == (10.44, False)
    assert gap["seconds"] >= 103 - 2.56 - 93.84


def test_the_stream_that_lost_most_is_told_and_how_many_are_missing():
    old = run(started_s=0)
    for stream in ("a", "b", "c"):
        covered(old, stream, 96)
    new = run(left(old, 97))
    covered(new, "a", 105)
    covered(new, "b", 108)
    covered(new, "other", 150)
    gap = new.gap()

    assert gap is not None
    assert (gap["seconds"], gap["devices"], gap["absent"]) == (9.44, 2, 1)


def test_a_stream_that_was_away_by_itself_does_not_count():
    old = run(started_s=0)
    covered(old, "asleep", 80)
    covered(old, "left", 96)
    covered(old, "waist", 96)
    new = run(left(old, 97))
    covered(new, "asleep", 105)
    covered(new, "waist", 105)
    covered(new, "left", 100 + RETURN_S + 1)
    gap = new.gap()

    assert gap is not None
    assert (gap["seconds"], gap["devices"], gap["absent"]) == (6.44, 1, 0)


def test_one_that_is_retired_is_not_missed():
    old = run(started_s=0)
    covered(old, "a", 96)
    covered(old, "b", 96)
    new = run(left(old, 97))
    covered(new, "a", 105)
    new.retire("b")
    new.retire("a")
    gap = new.gap()

    assert gap is not None
    assert (gap["devices"], gap["absent"]) == (1, 0)
    assert left(new, 106) == []


def test_a_run_that_predicts_nothing_hides_no_gap():
    old = run(by="good", started_s=0)
    covered(old, "waist", 96)
    broken = run(left(old, 97), by="bad", started_s=100)
    rolled_back = run(left(broken, 200, ended=False), by="good again", started_s=201)
    covered(rolled_back, "waist", 205)
    gap = rolled_back.gap()

    assert gap is not None
    assert (gap["seconds"], gap["previous"], gap["orderly"]) == (106.44, "good", True)


def test_a_run_that_went_on_without_a_stream_does_not_hand_it_on():
    old = run(started_s=0)
    covered(old, "a", 96)
    covered(old, "b", 96)
    new = run(left(old, 97))
    covered(new, "a", 105)
    assert {c.stream for c in left(new, 106)} == {"a", "b"}
    covered(new, "a", 100 + RETURN_S + 1)

    assert {c.stream for c in left(new, 100 + RETURN_S + 2)} == {"a"}


def test_what_is_kept_is_bounded_to_those_covered_last():
    old = run(started_s=0)
    for k in range(3 * MOST_KEPT):
        covered(old, f"d{k}", 90 + k / 1000)
    found = left(old, 91)

    assert len(found) == MOST_KEPT
    assert min(c.end_ns for c in found) == round((90 + 2 * MOST_KEPT / 1000) * S)


GOOD = {"stream": "a", "end_ns": 5, "by": "1", "exact": True}


@pytest.mark.parametrize(
    "said",
    [
        *(None, 5, "x", {}, [None], [5], [[]], [{}], [{1: 2}], [GOOD | {"more": 1}]),
        *([GOOD | {"end_ns": wrong}] for wrong in (True, -1, 11, 1.5, None)),
        *([GOOD | wrong] for wrong in ({"stream": 5}, {"by": None}, {"exact": 1})),
    ],
)
def test_what_cannot_be_read_is_left_out(said: object):
    assert kept(said, 10) == []
    assert kept([GOOD], 10) == [Covered("a", 5, "1", exact=True)]
