"""The agent's own recordings, `har-recording/1`: labelled CSV files, decoded by the agent's own decoder."""

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np

from agent.adapters.recording import RecordingSource
from agent.core.decoders.recording import Declared
from agent.core.timeline import MAX_RATE_HZ, RATE_SAMPLES, Break, Grid, RateError, Timeline, grid_offset_ns
from agent.errors import InputError, SourceUnavailable
from agent.records import CHANNELS, UNKNOWN, BadFrame, Float32Array, Int64Array, Loss, SampleBatch
from har_export.datasets.records import UNLABELLED, Data, Recording, no_windows
from har_export.datasets.split import PIECE, piece_of

NAME = "recordings of the agent"
SUFFIXES = (".csv", ".csv.gz", ".csv.zst")


def find(path: Path) -> list[Path]:
    """Return the recordings that `path` is or holds at any depth, in order; hidden ones are passed over."""
    if path.is_file():
        return [path] if path.name.endswith(SUFFIXES) else []
    files = (p for p in path.rglob("*.csv*") if p.name.endswith(SUFFIXES) and p.is_file())
    return sorted(p for p in files if not any(part.startswith(".") for part in p.relative_to(path).parts))


def read(
    root: Path, files: Sequence[Path], declared: Declared | None, max_bad_rows: int, grid_hz: float | None
) -> Data:
    """Read recordings `<subject>/<session>.csv` below `root`, onto the grid of `grid_hz`; None is each one's own rate.

    Files directly in `root` are of one subject, who is called like the folder; folders below a subject's become part of
    the session's name. A gap ends a recording: what follows is another one, `session~2` and so on. Labels are all that
    occur, in the order they do. `declared`: units and rate, where the headers do not say them. `max_bad_rows`: rows of
    one file that may be unreadable. What could not be used is in the data's `losses`.

    Raises:
        InputError: a recording cannot be used, or nothing is labelled.
    """
    folder = root.parent if root.is_file() else root
    names = [path.relative_to(folder).parts for path in files]
    if len({len(parts) == 1 for parts in names}) > 1:
        raise InputError(f"{root} holds recordings as well as folders of them: put each into the folder of its subject")
    labels: dict[str, int] = {}
    losses: list[str] = []
    recordings: list[Recording] = []
    seen: dict[tuple[str, str], Path] = {}
    for path, parts in zip(files, names, strict=True):
        subject = parts[0] if len(parts) > 1 else folder.resolve().name
        session = "/".join((*parts[1:-1], path.name.partition(".csv")[0]))
        if PIECE in session:
            raise InputError(f"{path}: {PIECE} stands for the pieces of a recording; take it out of the name")
        if (subject, session) in seen:
            raise InputError(f"{path} and {seen[subject, session]} have the same name; is one a copy?")
        seen[subject, session] = path
        rate_hz, pieces = _pieces(path, declared, max_bad_rows, grid_hz, labels, losses)
        for n, (values, label) in enumerate(pieces, 1):
            recordings.append(Recording(subject, piece_of(session, n), rate_hz, values, label))
    if not labels:
        raise InputError(f"nothing in {root} is labelled; name the activity of each row in a column label")
    if UNKNOWN in labels:
        raise InputError(f"{root} has the label {UNKNOWN!r}, which is what the agent says of the new; leave it empty")
    return Data(tuple(recordings), no_windows(), tuple(labels), tuple(losses))


def _pieces(
    path: Path,
    declared: Declared | None,
    max_bad_rows: int,
    grid_hz: float | None,
    labels: dict[str, int],
    losses: list[str],
) -> tuple[float, list[tuple[Float32Array, Int64Array]]]:
    """Return the grid's rate, values and label of each stretch without a gap; note new labels and losses.

    A label is that of the sample before or at its grid point.
    """
    t_ns, values, label = _samples(path, declared, max_bad_rows, labels, losses)
    if len(t_ns) < RATE_SAMPLES:
        losses.append(f"{path}: left out, since its rate cannot be told from so few samples: {len(t_ns)}")
        return 0.0, []
    try:
        timeline = Timeline(grid_hz or _rate(t_ns, values))
        resampled = timeline.push(t_ns, values)
    except RateError as e:
        raise InputError(f"{path}: {e}") from e
    if late := sum(timeline.losses.values()):
        losses.append(f"{path}: samples left out because their times do not move forward: {late}")
    breaks = [piece.seq for piece in resampled if isinstance(piece, Break)]
    if breaks:
        losses.append(f"{path}: interruptions, which no window spans: {len(breaks)}")
    pieces = []
    grids = [piece for piece in resampled if isinstance(piece, Grid)]
    for grid, (a, b) in zip(grids, pairwise([0, *breaks, len(t_ns)]), strict=True):
        # The samples that the timeline kept: those that moved time forward.
        kept = np.append(True, t_ns[a + 1 : b] > np.maximum.accumulate(t_ns[a : b - 1]))
        at_ns = grid.origin_ns + grid_offset_ns(grid.k0 + np.arange(len(grid.values)), timeline.rate_hz)
        before = np.searchsorted(t_ns[a:b][kept], at_ns, side="right") - 1
        pieces.append((grid.values, label[a:b][kept][before]))
    return timeline.rate_hz, pieces


def _rate(t_ns: Int64Array, values: Float32Array) -> float:
    """Return the rate that the agent takes a source for, to six digits: 30 Hz in whole nanoseconds are 30.0000003.

    Raises:
        RateError: it cannot be used.
    """
    timeline = Timeline(MAX_RATE_HZ)
    timeline.push(t_ns[:RATE_SAMPLES], values[:RATE_SAMPLES])
    assert timeline.source_rate_hz is not None
    return float(f"{timeline.source_rate_hz:.6g}")


def _samples(
    path: Path, declared: Declared | None, max_bad_rows: int, labels: dict[str, int], losses: list[str]
) -> tuple[Int64Array, Float32Array, Int64Array]:
    """Return all samples of a file: times int64 (n,), g and rad/s float32 (n, 6), label int64 (n,)."""
    batches: list[SampleBatch] = []
    bad: list[BadFrame] = []
    try:
        with closing(RecordingSource(str(path), declared)) as source:
            while (decoded := source.poll(0)) is not None:
                if source.is_raw:
                    raise InputError("it holds raw bytes, which have no labels; record CSV instead")
                batches += [item for item in decoded if isinstance(item, SampleBatch)]
                bad += [item for item in decoded if isinstance(item, BadFrame)]
    except (InputError, SourceUnavailable) as e:
        # Once header and unit are taken, only damaged compression is an error of the input.
        if isinstance(e, SourceUnavailable) or sum(len(batch.t_ns) for batch in batches) < RATE_SAMPLES:
            # The agent's decoder names options of the agent's.
            text = re.sub(r"--(acc|gyro|rate)-(unit|hz)", r"--declare \1_\2=...", str(e))
            raise InputError(f"{path}: {text}") from e
        losses.append(f"{path}: its compressed data is cut short or damaged; what came before is used")
    _note_bad_rows(path, bad, max_bad_rows, losses)
    n = sum(len(batch.t_ns) for batch in batches)
    changes = [change for batch in batches for change in batch.truth]
    number = [UNLABELLED if c.label is None else labels.setdefault(c.label, len(labels)) for c in changes]
    return (
        np.concatenate([np.empty(0, np.int64), *(batch.t_ns for batch in batches)]),
        np.concatenate([np.empty((0, len(CHANNELS)), np.float32), *(batch.values for batch in batches)]),
        np.repeat(np.array([UNLABELLED, *number]), np.diff([0, *(c.seq for c in changes), n])),
    )


def _note_bad_rows(path: Path, bad: Sequence[BadFrame], most: int, losses: list[str]) -> None:
    reasons = Counter(frame.reason.value for frame in bad)
    if not reasons:
        return
    counts = ", ".join(f"{reason} {n}" for reason, n in sorted(reasons.items()))
    text = f"{path}: rows that cannot be read: {len(bad)} ({counts}), the first in line {bad[0].where}"
    # A last line that is torn is what a power cut leaves: it is no reason to give up.
    if len(bad) - reasons[Loss.TORN.value] > most:
        raise InputError(f"{text}; allow more with --declare max_bad_rows=... to use the others")
    losses.append(text)
