"""Splits by subject, or by session where there is one subject, and why others are refused."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from agent.errors import InputError
from agent.records import Float32Array

if TYPE_CHECKING:
    from har_export.datasets.records import Data, Recording

PIECE = "~"
"""Between a session's name and the number of a piece that was cut out of it: `walk~2`."""

Session = tuple[str, str]
"""Subject and session. The pieces of one recording are one session."""

_STRETCH = 32
"""So many equal samples in a row are a copy: 0.64 s at 50 Hz, in six channels with noise."""

UInt64Array = npt.NDArray[np.uint64]

_FACTORS = np.random.default_rng(0).integers(1, 1 << 63, 7, np.uint64) * np.uint64(2) + np.uint64(1)


def folds_of(subjects: Sequence[str], folds: int, seed: int) -> list[tuple[str, ...]]:
    """Deal the subjects out to `folds` folds, in another order for every seed.

    Raises:
        InputError: fewer subjects than folds.
    """
    if not 2 <= folds <= len(subjects):
        raise InputError(f"{len(subjects)} subjects cannot be dealt out to {folds} folds")
    order = np.random.default_rng([seed, 0]).permutation(in_order(subjects))
    return [in_order(order[i::folds].tolist()) for i in range(folds)]


def folds_by_session(data: "Data", folds: int, seed: int) -> list[tuple[Session, ...]]:
    """Deal the sessions of `data` out to `folds` folds, in another order for every seed.

    Raises:
        InputError: fewer sessions than folds.
    """
    sessions = sessions_of(data)
    if not 2 <= folds <= len(sessions):
        raise InputError(f"{len(sessions)} sessions cannot be dealt out to {folds} folds")
    order = np.random.default_rng([seed, 0]).permutation(len(sessions))
    return [tuple(sessions[i] for i in sorted(order[fold::folds].tolist())) for fold in range(folds)]


def sessions_of(data: "Data") -> tuple[Session, ...]:
    """Return every session of `data`, in order."""
    found = {_session_of(r) for r in data.recordings}
    return tuple(sorted(found, key=lambda session: [(len(name), name) for name in session]))


def of_sessions(data: "Data", sessions: Collection[Session]) -> "Data":
    """Return the recordings of `sessions` only, and no windows: these do not say which session they come from."""
    return replace(
        data, recordings=tuple(r for r in data.recordings if _session_of(r) in sessions), windows=data.windows.of([])
    )


def piece_of(session: str, n: int) -> str:
    """Name the piece `n`, from 1, of what was recorded as `session`."""
    return session if n == 1 else f"{session}{PIECE}{n}"


def _session_of(recording: "Recording") -> Session:
    return recording.subject, recording.session.partition(PIECE)[0]


def in_order(subjects: Sequence[str]) -> tuple[str, ...]:
    """Sort names that may be numbers: 2 before 10."""
    return tuple(sorted(subjects, key=lambda name: (len(name), name)))


def check_split(train: "Data", test: "Data", by: Literal["subject", "session"] = "subject") -> None:
    """Refuse a split that leaks: a model may not be scored on whom, or what, it was trained on.

    `by`: "subject", or "session" for what is claimed of the same people on another occasion. Whatever the names say,
    samples may not be on both sides: neither a copy of a recording nor windows that overlap.

    Raises:
        InputError: it leaks; the text says where.
    """
    both = in_order(list(set(train.subjects) & set(test.subjects)))
    if by == "subject" and both:
        raise InputError(f"the split leaks: subject {both[0]} is trained on and tested on")
    filtered = in_order(list(set(train.windows.subject.tolist()) & set(test.windows.subject.tolist())))
    if filtered:
        raise InputError(
            f"the split leaks: ready-cut windows of subject {filtered[0]} are on both sides, and may overlap; "
            "they do not say which session they come from"
        )
    sessions = [session for session in sessions_of(train) if session in sessions_of(test)]
    if sessions:
        subject, session = sessions[0]
        raise InputError(f"the split leaks: of session {session} of subject {subject} there are pieces on both sides")
    # Every `_STRETCH`th of one side is enough to find half a window that is on both.
    trained, tested = _hashed(train), _hashed(test)
    anchors = np.concatenate([s[::_STRETCH] for _, s in tested])
    shared = next((s[found] for _, s in trained if (found := np.isin(s, anchors)).any()), None)
    if shared is not None:
        one, other = (next(name for name, s in side if (s == shared[0]).any()) for side in (trained, tested))
        raise InputError(f"the split leaks: {one}, trained on, and {other}, tested on, share samples")


def _hashed(data: "Data") -> list[tuple[str, UInt64Array]]:
    """Return what every recording and the windows are called in an error, and their stretches."""
    found = [(f"recording {r.session} of subject {r.subject}", _stretches(r.values)) for r in data.recordings]
    return [*found, ("the ready-cut windows", _stretches(data.windows.values.reshape(-1, 6)))]


def _stretches(values: Float32Array) -> UInt64Array:
    """Return a hash of every `_STRETCH` samples in a row of (n, 6); those that hardly change say nothing, and go."""
    n = len(values) - _STRETCH + 1
    if n < 1:
        return np.empty(0, np.uint64)
    rows = (np.ascontiguousarray(values, np.float32).view(np.uint32) * _FACTORS[:6]).sum(axis=1, dtype=np.uint64)
    stretches: UInt64Array = np.zeros(n, np.uint64)
    for i in range(_STRETCH):
        stretches = stretches * _FACTORS[6] + rows[i : i + n]
    changes = np.cumsum(np.append(0, rows[1:] != rows[:-1]))
    telling: UInt64Array = stretches[changes[_STRETCH - 1 :] - changes[:n] >= _STRETCH // 2]
    return telling


def leave_out(data: "Data", label: str, window: int = 128) -> "Data":
    """Return `data` as if nobody had ever done `label`: its class, samples and windows are gone.

    Recordings are cut where it was, so that no window spans the place; pieces shorter than `window` samples go too.

    Raises:
        InputError: there is no such class.
    """
    if label not in data.labels:
        raise InputError(f"there is no class {label!r}; there are {', '.join(data.labels)}")
    gone = data.labels.index(label)
    counts: Counter[Session] = Counter()
    recordings = []
    for r in data.recordings:
        edges = np.flatnonzero(np.diff((r.label != gone).astype(np.int8), prepend=0, append=0)).tolist()
        for a, b in pairwise(edges):
            if b - a < window or r.label[a] == gone:
                continue
            session = _session_of(r)
            counts[session] += 1
            recordings.append(
                replace(
                    r,
                    session=piece_of(session[1], counts[session]),
                    values=r.values[a:b],
                    label=r.label[a:b] - (r.label[a:b] > gone),
                    detail=None if r.detail is None else r.detail[a:b],
                )
            )
    others = data.windows.label != gone
    windows = replace(
        data.windows,
        values=data.windows.values[others],
        label=data.windows.label[others] - (data.windows.label[others] > gone),
        subject=data.windows.subject[others],
    )
    return replace(
        data,
        recordings=tuple(recordings),
        windows=windows,
        labels=tuple(name for name in data.labels if name != label),
    )
