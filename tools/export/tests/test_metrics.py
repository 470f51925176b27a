import numpy as np
import pytest

from agent.core.report import Scorecard
from agent.records import LabelChange, Origin, Prediction, SampleBatch
from har_export import metrics
from har_export.datasets.records import UNLABELLED
from har_export.metrics import Bin, ClassFigures, Onset

S = 1_000_000_000


def test_confusion_has_a_row_a_label_and_a_column_a_prediction() -> None:
    table = metrics.confusion(np.array([0, 0, 0, 1, 2]), np.array([0, 0, 1, 1, 0]), 3)

    assert table.tolist() == [[2, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_precision_recall_and_f1_by_class() -> None:
    figures = metrics.by_class(np.array([[2, 1, 0], [0, 1, 0], [1, 0, 0]]))

    assert figures[0] == ClassFigures(2 / 3, 2 / 3, 2 / 3, 3)
    assert figures[1] == ClassFigures(1 / 2, 1.0, 2 / 3, 1)
    assert figures[2] == ClassFigures(None, 0.0, 0.0, 1)


def test_macro_f1_is_over_the_classes_that_occur() -> None:
    figures = metrics.by_class(np.array([[2, 1, 1], [0, 1, 0], [0, 0, 0]]))

    assert metrics.macro_f1(figures) == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert metrics.macro_f1(figures[2:]) is None


def test_calibration_error_is_the_mean_gap_over_windows() -> None:
    confidence = np.array([0.1, 0.2, 0.55, 0.95, 0.95, 1.0])
    right = np.array([False, True, True, True, False, True])

    table = metrics.reliability(confidence, right, bins=5)

    assert [b.windows for b in table] == [2, 0, 1, 0, 3]
    assert table[0] == Bin(0.0, 0.2, 2, pytest.approx(0.15), 0.5)
    assert table[1] == Bin(0.2, 0.4, 0, None, None)
    gaps = 2 * abs(0.15 - 0.5) + abs(0.55 - 1) + 3 * abs(2.9 / 3 - 2 / 3)
    assert metrics.expected_calibration_error(table) == pytest.approx(gaps / 6)


def test_negative_log_likelihood_is_of_the_right_class() -> None:
    probabilities = np.array([[0.5, 0.5], [0.9, 0.1], [1.0, 0.0]])

    found = metrics.negative_log_likelihood(probabilities, np.array([0, 1, 1]))

    assert found == pytest.approx(-(np.log(0.5) + np.log(0.1) + np.log(1e-12)) / 3)


def test_auroc_counts_pairs_and_halves_ties() -> None:
    assert metrics.auroc(np.array([1.0, 3.0]), np.array([2.0, 3.0])) == pytest.approx((0 + 0 + 1 + 0.5) / 4)
    assert metrics.auroc(np.array([5.0, 6.0]), np.array([1.0, 2.0, 3.0])) == 1.0
    assert metrics.auroc(np.full(3, 2.0), np.full(4, 2.0)) == 0.5


def test_nothing_has_no_figures() -> None:
    nothing = np.empty(0)

    assert metrics.share(nothing.astype(bool)) is None
    assert metrics.expected_calibration_error(metrics.reliability(nothing, nothing.astype(bool))) is None
    assert metrics.negative_log_likelihood(np.empty((0, 2)), nothing.astype(np.int64)) is None
    assert metrics.auroc(nothing, np.ones(1)) is None


def labels(*bouts: tuple[int, float]) -> np.ndarray:
    """Labels at 10 Hz, each for so many seconds."""
    return np.concatenate([np.full(round(10 * seconds), label) for label, seconds in bouts])


def found(label: np.ndarray, decided: list[int], shortest_s: float = 0.0) -> list[Onset]:
    """Windows of 2 s, one a second."""
    t1_s = np.arange(len(decided)) + 2.0
    return metrics.onsets(label, 10.0, t1_s, np.array(decided), 0.1, shortest_s)


def test_delay_runs_from_the_first_sample_to_the_end_of_the_first_window_that_decides_it() -> None:
    onsets = found(labels((0, 4.5), (1, 4.7), (0, 3)), [0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0])

    assert onsets == [Onset(1, 4.5, pytest.approx(7 - 4.5)), Onset(0, 9.2, pytest.approx(11 - 9.2))]


def test_an_activity_that_is_not_decided_while_it_lasts_is_missed() -> None:
    onsets = found(labels((0, 4), (1, 3), (UNLABELLED, 5)), [0, 0, 0, 0, 0, 0, 1, 1, 1, 1])

    assert onsets == [Onset(1, 4.0, None)]


def test_a_recordings_beginning_and_a_label_that_returns_from_unlabelled_are_no_onsets() -> None:
    assert found(labels((0, 4), (UNLABELLED, 3), (0, 4)), [0] * 10) == []


def test_an_activity_that_is_too_short_is_left_out_but_ends_what_came_before_it() -> None:
    onsets = found(labels((0, 4), (1, 1), (0, 5)), [0] * 9, shortest_s=2.0)

    assert onsets == [Onset(0, 5.0, pytest.approx(1.0))]


@pytest.mark.parametrize("seed", range(5))
def test_onsets_are_those_of_the_agents_replay_report(seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = ("a", "b", "c")
    bouts = [(int(rng.integers(-1, 3)), float(rng.integers(5, 80)) / 10) for _ in range(30)]
    label = labels(*bouts)
    decided = rng.integers(-1, 3, int(len(label) / 10) - 2)
    ours = found(label, decided.tolist())

    edges = [0, *(np.flatnonzero(np.diff(label)) + 1).tolist()]
    truth = [LabelChange(i, i * S // 10, names[label[i]] if label[i] >= 0 else None) for i in edges]
    card = Scorecard(names, 10.0)
    card.take(
        [SampleBatch("s", np.zeros(0, np.int64), np.zeros((0, 6), np.float32), 0, truth=tuple(truth))],
        [
            Prediction("s", i, i * S, (i + 2) * S, "a", 1.0, (1.0,), 0.0, True, activity, Origin.LOCAL, "m")
            for i, activity in enumerate([*names, "unknown"][k] for k in decided)
        ],
    )
    card.end_stream("s")
    theirs = card.as_dict()["onsets"]

    delays = [o.delay_s for o in ours if o.delay_s is not None]
    assert (theirs["count"], theirs["missed"]) == (len(ours), len(ours) - len(delays))
    assert len(delays) > 3
    # The report's quantiles are those of a histogram, of one of the delays.
    for q, name in ((0.5, "delay_median_s"), (0.9, "delay_p90_s")):
        low, high = (float(np.quantile(delays, q, method=method)) for method in ("lower", "higher"))
        assert low * 0.97 <= theirs[name] <= high * 1.03
