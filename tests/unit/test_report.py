import numpy as np
import pytest

from agent.core.report import Scorecard
from agent.records import Gap, GapReason, LabelChange, Origin, Prediction, SampleBatch

S = 1_000_000_000


def prediction(seq, label, activity=None, known=True, stream="s"):
    t0 = seq * S
    return Prediction(
        stream, seq, t0, t0 + 2 * S, label, 0.9, (0.9, 0.1), 0.1, known, activity or label, Origin.LOCAL, "m"
    )


def change(t_s, label):
    """One sample a millisecond: its number tells the time."""
    return LabelChange(round(t_s * 1000), round(t_s * S), label)


def batch(changes, stream="s"):
    return SampleBatch(stream, np.zeros(0, np.int64), np.zeros((0, 6), np.float32), 0, truth=tuple(changes))


def scored(changes, labels, **kwargs):
    card = Scorecard(("a", "b"), 50.0)
    predictions = [prediction(i, label, **kwargs) for i, label in enumerate(labels)]
    return card, [t for _, t in card.take([batch(change(t, label) for t, label in changes)], predictions)]


def test_a_window_is_scored_by_the_label_at_its_centre():
    _, truths = scored([(0, "a"), (2.5, "b"), (4, None), (6, "a")], "aaaaaaa")

    assert truths == ["a", "a", "b", None, None, "a", "a"]


def test_precision_recall_f1_and_confusion():
    card, _ = scored([(0, "a"), (5, "b")], "aaabbabbb")
    report = card.as_dict()

    assert report["confusion"] == {"a": {"a": 3, "b": 1}, "b": {"a": 1, "b": 4}}
    assert report["classes"]["a"] == {"precision": 3 / 4, "recall": 3 / 4, "f1": 3 / 4, "support": 4}
    assert report["classes"]["b"]["f1"] == pytest.approx(0.8)
    assert report["accuracy"] == card.accuracy == pytest.approx(7 / 9)
    assert report["macro_f1"] == pytest.approx((0.75 + 0.8) / 2)


def test_a_label_that_the_model_lacks_counts_as_wrong_and_is_named():
    card, _ = scored([(0, "a"), (3, "running")], "aaaaa")
    report = card.as_dict()

    assert report["accuracy"] == pytest.approx(2 / 5)
    assert report["labels_not_in_model"] == {"running": 3}


def test_delay_runs_from_the_onset_to_the_end_of_the_first_window_decided_right():
    card, _ = scored([(0, "a"), (4.5, "b"), (9.2, "a")], "aaaaabbbbbaa")
    onsets = card.as_dict()["onsets"]

    assert (onsets["count"], onsets["missed"]) == (2, 0)
    assert onsets["delay_median_s"] == pytest.approx(2.5, rel=0.02)
    assert onsets["delay_p90_s"] == pytest.approx(12 - 9.2, rel=0.02)


def test_an_onset_that_is_not_decided_before_the_next_is_missed():
    card, _ = scored([(0, "a"), (4, "b"), (6, "a"), (9, None)], "a" * 12)

    assert card.as_dict()["onsets"]["count"] == 2
    assert card.as_dict()["onsets"]["missed"] == 1


def test_an_onset_that_is_decided_only_once_it_is_no_longer_labelled_is_missed():
    card, _ = scored([(0, "a"), (4.5, "b"), (7, None), (20, "a")], "aaaaaaaabbbbb")

    assert card.as_dict()["onsets"] == {"count": 1, "missed": 1, "delay_median_s": None, "delay_p90_s": None}


def test_it_is_the_decided_activity_that_ends_an_onset_not_the_windows_label():
    card = Scorecard(("a", "b"), 50.0)
    decided = zip("abbbbb", "aaaabb", strict=True)
    predictions = [prediction(i, label, activity) for i, (label, activity) in enumerate(decided)]
    card.take([batch([change(0, "a"), change(1.5, "b")])], predictions)

    assert card.as_dict()["onsets"]["delay_median_s"] == pytest.approx(6 - 1.5, rel=0.02)


def test_the_same_label_after_an_unlabelled_stretch_is_no_onset():
    card, _ = scored([(0, "a"), (3, None), (5, "a")], "aaaaaaa")

    assert card.as_dict()["onsets"]["count"] == 0


def test_without_labels_there_is_no_accuracy():
    card, _ = scored([], "aab", known=False)
    report = card.as_dict()

    assert report["accuracy"] is None
    assert (report["windows"], report["unknown_windows"], report["labelled_windows"]) == (3, 3, 0)


def test_streams_are_scored_apart_and_a_name_may_come_again():
    card = Scorecard(("a", "b"), 50.0)
    batches = [batch([change(0, "a")], "s"), batch([change(0, "b")], "u")]
    scored = card.take(batches, [prediction(0, "a", stream=x) for x in "su"])
    assert [t for _, t in scored] == ["a", "b"]
    card.end_stream("s")

    assert card.take([], [prediction(0, "a")]) == [(prediction(0, "a"), None)]


@pytest.mark.parametrize("in_one_go", [True, False])
def test_a_clock_that_was_set_back_takes_no_label_from_the_wrong_side(in_one_go):
    before, after = [(0, "a"), (6, "b")], [(3, "a"), (5, None)]
    first = [prediction(i, "a") for i in range(8)]
    gap = Gap("s", 10_000, 10 * S, 2 * S, GapReason.TIME_RESET, 0)
    second = [prediction(i, "b") for i in range(2, 6)]
    one = batch(change(t, label) for t, label in before)
    two = batch(LabelChange(10_000 + round((t - 2) * 1000), round(t * S), label) for t, label in after)
    card = Scorecard(("a", "b"), 50.0)

    if in_one_go:
        truths = [t for _, t in card.take([one, two], [*first, gap, *second])]
    else:
        truths = [t for _, t in [*card.take([one], first), *card.take([two], [gap, *second])]]

    assert truths == ["a"] * 5 + ["b"] * 3 + ["a", "a", None, None]
    assert card.as_dict()["onsets"] == {"count": 2, "missed": 2, "delay_median_s": None, "delay_p90_s": None}


def test_a_change_right_at_a_windows_end_is_not_decided_by_it():
    card, _ = scored([(0, "a"), (5, "b")], "aaabbbb")

    assert card.as_dict()["onsets"]["delay_median_s"] == pytest.approx(1.0, rel=0.02)


def test_an_onset_that_no_window_came_to_decide_is_missed():
    card, _ = scored([(0, "a"), (4, "b"), (60, "a")], "aaaabb")
    card.end_stream("s")

    assert card.as_dict()["onsets"]["count"] == 2
    assert card.as_dict()["onsets"]["missed"] == 1
