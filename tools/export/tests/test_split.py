from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from agent.errors import InputError
from har_export.datasets.records import UNLABELLED, Data, Recording, Windows, no_windows
from har_export.datasets.split import (
    check_split,
    folds_by_session,
    folds_of,
    leave_out,
    of_sessions,
    sessions_of,
)


def one(subject: str, session: str, seed: int, n: int = 400) -> Recording:
    values = np.random.default_rng([9, seed]).normal(0, 1, (n, 6)).astype(np.float32)
    return Recording(subject, session, 50.0, values, np.zeros(n, np.int64))


def data_of(*recordings: Recording) -> Data:
    return Data(recordings, no_windows(), ("walking", "sitting", "rowing"))


PERSON = data_of(
    one("anna", "2", 0), one("anna", "10", 1), one("anna", "10~2", 2), one("anna", "walk", 3), one("bert", "2", 4)
)


def test_folds_of_subjects_pass_the_check(tiny: Data) -> None:
    for held in folds_of(tiny.subjects, 5, seed=3):
        check_split(tiny.of([s for s in tiny.subjects if s not in held]), tiny.of(held))


def test_the_pieces_of_a_recording_are_one_session() -> None:
    assert sessions_of(PERSON) == (("anna", "2"), ("anna", "10"), ("anna", "walk"), ("bert", "2"))
    assert [r.session for r in of_sessions(PERSON, [("anna", "10")]).recordings] == ["10", "10~2"]


def test_folds_by_session_hold_every_session_once_and_pass_the_check() -> None:
    folds = folds_by_session(PERSON, 3, seed=0)

    assert sorted(session for fold in folds for session in fold) == sorted(sessions_of(PERSON))
    assert folds_by_session(PERSON, 3, seed=1) != folds
    for held in folds:
        others = [session for session in sessions_of(PERSON) if session not in held]
        check_split(of_sessions(PERSON, others), of_sessions(PERSON, held), by="session")
    with pytest.raises(InputError, match="4 sessions cannot be dealt out to 5 folds"):
        folds_by_session(PERSON, 5, seed=0)


def ready_cut(tiny: Data, subject: str) -> Data:
    return replace(tiny.of([subject]), recordings=())


def renamed(recording: Recording, begin: int, end: int) -> Recording:
    return replace(
        recording, subject="carl", session="other", values=recording.values[begin:end], label=recording.label[begin:end]
    )


FIRST = one("anna", "2", 0)


@pytest.mark.parametrize(
    ("make", "by", "says"),
    [
        (lambda tiny: (tiny, tiny.of(["3"])), "subject", "subject 3 is trained on and tested on"),
        (
            lambda tiny: (data_of(FIRST), data_of(one("anna", "10", 1))),
            "subject",
            "subject anna is trained on and tested on",
        ),
        (
            lambda tiny: (data_of(FIRST), data_of(replace(one("anna", "2", 1), session="2~2"))),
            "session",
            "of session 2 of subject anna there are pieces on both sides",
        ),
        (
            lambda tiny: (ready_cut(tiny, "3"), ready_cut(tiny, "3")),
            "session",
            "ready-cut windows of subject 3 are on both sides",
        ),
        (
            lambda tiny: (data_of(one("bert", "2", 4), FIRST), data_of(renamed(FIRST, 337, 400))),
            "subject",
            "recording 2 of subject anna, trained on, and recording other of subject carl, tested on, share samples",
        ),
        (
            lambda tiny: (
                data_of(FIRST),
                replace(
                    data_of(), windows=Windows(FIRST.values[None, 200:328], np.zeros(1, np.int64), np.array(["carl"]))
                ),
            ),
            "subject",
            "and the ready-cut windows, tested on, share samples",
        ),
    ],
)
def test_a_split_that_leaks_is_refused_with_the_reason(
    tiny: Data, make: Callable[[Data], tuple[Data, Data]], by: str, says: str
) -> None:
    train, test = make(tiny)

    with pytest.raises(InputError, match=f"the split leaks: .*{says}"):
        check_split(train, test, by)


def test_a_sensor_that_lies_still_on_both_sides_is_no_copy() -> None:
    still = replace(FIRST, values=np.tile(np.float32([0, 0, 1, 0, 0, 0]), (400, 1)))

    check_split(data_of(still), data_of(replace(still, subject="bert")))


def test_a_class_is_left_out_and_no_window_spans_the_place() -> None:
    label = np.repeat([UNLABELLED, 1, 2, 0, 1, 2, 1], [150, 50, 300, 10, 20, 100, 170])
    values = np.arange(len(label) * 6, dtype=np.float32).reshape(-1, 6)
    first = Recording("anna", "x", 50.0, values, label, label + 10)
    windows = Windows(np.zeros((3, 128, 6), np.float32), np.array([0, 1, 2]), np.array(["a", "b", "c"]))
    data = Data(
        (first, replace(first, session="x~2"), replace(first, session="y", label=label * 0)),
        windows,
        ("walking", "sitting", "rowing"),
    )

    left = leave_out(data, "sitting", 128)

    assert left.labels == ("walking", "rowing")
    assert [(r.session, len(r.values)) for r in left.recordings] == [
        ("x", 150), ("x~2", 310), ("x~3", 150), ("x~4", 310), ("y", 800),
    ]  # fmt: skip
    np.testing.assert_array_equal(left.recordings[1].values, values[200:510])
    np.testing.assert_array_equal(left.recordings[1].label, np.repeat([1, 0], [300, 10]))
    np.testing.assert_array_equal(left.recordings[1].detail, np.repeat([12, 10], [300, 10]))
    np.testing.assert_array_equal(left.windows.label, [0, 1])
    np.testing.assert_array_equal(left.windows.subject, ["a", "c"])
    with pytest.raises(InputError, match="no class 'flying'; there are walking, sitting, rowing"):
        leave_out(data, "flying")
