"""Recordings in another order: bouts of activity joined where the activity is the same.

Recordings of a study follow its script, and whatever sees a sequence of windows could learn the script by heart. So
what learns from sequences is trained, and tested, on resampled orders too. A recording is cut at a random point inside
each bout of an activity; what lies between two cuts leads from one activity to the next, with the real movement between
them. Pieces are then joined in a random walk: the next one begins with the activity that the last one ends with, and
where it leads is drawn with equal chances from wherever people were seen to go from there.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from agent.records import Int64Array
from har_export.datasets.records import UNLABELLED, Data, Recording, no_windows


class Piece(NamedTuple):
    """Elements `first` to `last` (exclusive) of sequence `source`: from inside one bout to inside the next."""

    source: int
    first: int
    last: int
    begins: int
    ends: int


def pieces(label: Int64Array, source: int, margin: int, rng: np.random.Generator) -> list[Piece]:
    """Cut a sequence of labels (n,), those that are no activity being `UNLABELLED`.

    Cuts are at least `margin` elements from the ends of a bout; shorter bouts are not cut.
    """
    edges = np.flatnonzero(np.diff(label, prepend=UNLABELLED - 1, append=UNLABELLED - 1))
    cuts = [
        (int(rng.integers(a + margin, b - margin + 1)), int(label[a]))
        for a, b in pairwise(edges)
        if label[a] != UNLABELLED and b - a >= 2 * margin
    ]
    return [Piece(source, first, last, begins, ends) for (first, begins), (last, ends) in pairwise(cuts)]


def reorder(labels: Sequence[Int64Array], margin: int, rng: np.random.Generator) -> list[Piece]:
    """Return pieces of one person's sequences in a new order, together about as long as those.

    `labels`: of each sequence (n,), those that are no activity being `UNLABELLED`. Empty where nothing can be cut.
    """
    found = [piece for source, label in enumerate(labels) for piece in pieces(label, source, margin, rng)]
    if not found:
        return []
    wanted = sum(len(label) for label in labels)
    piece = found[rng.integers(len(found))]
    order, length = [piece], piece.last - piece.first
    while length < wanted:
        # Where the script ends, it begins anew somewhere.
        following = [p for p in found if p.begins == piece.ends] or found
        goal = rng.choice(sorted({p.ends for p in following}))
        choices = [p for p in following if p.ends == goal]
        piece = choices[rng.integers(len(choices))]
        order.append(piece)
        length += piece.last - piece.first
    return order


def reordered(data: Data, margin_s: float, seed: int) -> Data:
    """Return everybody's recordings in another order of bouts, each person's as one recording; windows are left out.

    `margin_s`: least distance of a cut from the ends of a bout. Who cannot be reordered is left out.
    """
    rng = np.random.default_rng(seed)
    found = []
    for subject in data.subjects:
        own = [r for r in data.recordings if r.subject == subject]
        activity = [np.where(data.is_activity(r.label), r.label, UNLABELLED) for r in own]
        order = reorder(activity, round(margin_s * own[0].rate_hz), rng) if own else []
        if order:
            values = np.concatenate([own[p.source].values[p.first : p.last] for p in order])
            label = np.concatenate([own[p.source].label[p.first : p.last] for p in order])
            found.append(Recording(subject, "reordered", own[0].rate_hz, values, label))
    return replace(data, recordings=tuple(found), windows=no_windows())
