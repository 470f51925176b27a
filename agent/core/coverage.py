"""Coverage: what no window covers between one run of the agent and the next, such as an update or a crash.

Theory of operation. Each window that is predicted ends, for this purpose, when its last sample was received, and began
its own length before that, on the monotonic clock. A run keeps the end of the last window of each stream in the status
that it writes; the run after it reads that, and takes the difference to the beginning of its own first window of that
stream. A run that predicts nothing hands on what it was left itself: one that fails does not hide the gap that it made.

What the figure does not contain: streams that had been silent when the run before wrote its last status, and those that
come back later than `RETURN_S` after the start, because they would not have been covered without a restart either; and
time in which the board was asleep, which its monotonic clock does not count. After a start of the board nothing is
known. A run that was killed had written its last status up to an interval before: windows that it predicted after that
are not known of, so the figure is then an upper bound, too large by that interval at most.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from agent.core.messages import CoverageGap

RETURN_S = 60.0
"""After the start: a stream that comes back later was away by itself."""
MOST_KEPT = 100
"""Streams that are kept, those that were covered last: the status is written every few seconds."""


class Covered(NamedTuple):
    """The end of a stream's last window: on the monotonic clock, by which release or version, and whether it is known.

    `exact`: false where the run that predicted it may have predicted more without having written so.
    """

    stream: str
    end_ns: int
    by: str
    exact: bool


class _Gap(NamedTuple):
    before: Covered
    ns: int
    window_ns: int


class Coverage:
    """See the module's text. Times are nanoseconds of the monotonic clock; used from one thread."""

    def __init__(self, before: Iterable[Covered] = (), by: str = "", started_ns: int = 0) -> None:
        """`before`: what earlier runs of this boot left. `by`: release or version of this run."""
        self._before = {covered.stream: covered for covered in before}
        self._by = by
        self._until_ns = started_ns + round(RETURN_S * 1e9)
        self._ends: dict[str, int] = {}
        self._worst: _Gap | None = None
        self._back = 0

    def window(self, stream: str, received_ns: int, length_ns: int) -> None:
        """A window was predicted, whose last sample came at `received_ns`. Cheap: called for each."""
        if stream not in self._ends:
            self._begin(stream, received_ns, length_ns)
        self._ends[stream] = received_ns

    def _begin(self, stream: str, received_ns: int, length_ns: int) -> None:
        before = self._before.pop(stream, None)
        if before is None or received_ns > self._until_ns:
            return
        self._back += 1
        # What had waited for this run may reach back to before the other's end: then nothing is missing.
        gap_ns = max(0, received_ns - length_ns - before.end_ns)
        if self._worst is None or gap_ns > self._worst.ns:
            self._worst = _Gap(before, gap_ns, length_ns)

    def retire(self, stream: str) -> None:
        """A stream has been silent for long, and is not expected any more."""
        self._ends.pop(stream, None)
        self._before.pop(stream, None)

    def gap(self) -> "CoverageGap | None":
        """Return what no window covers, of the stream that lost most; None while none of the run before is back."""
        if self._worst is None:
            return None
        before, gap_ns, window_ns = self._worst
        return {
            "seconds": round(gap_ns / 1e9, 3),
            "windows": round(gap_ns / max(window_ns, 1), 2),
            "devices": self._back,
            "absent": len(self._before),
            "previous": before.by,
            "orderly": before.exact,
        }

    def keep(self, now_ns: int, silence_s: float, *, ended: bool) -> list[dict[str, Any]]:
        """Return what the next run is to know, as plain values; `kept` reads it.

        `silence_s`: streams whose last window is older are left out, they are silent. `ended`: this run predicts no
        more.
        """
        # Where other streams are back, one that is not was away by itself.
        left = self._before.values() if now_ns <= self._until_ns or not self._ends else ()
        own = [
            Covered(stream, end_ns, self._by, ended)
            for stream, end_ns in self._ends.items()
            if now_ns - end_ns <= silence_s * 1e9
        ]
        most = sorted([*own, *left], key=lambda c: -c.end_ns)[:MOST_KEPT]
        return [covered._asdict() for covered in most]


def kept(said: Any, now_ns: int) -> list[Covered]:
    """Read what `Coverage.keep` returned; what is no such thing, or lies in the future, is left out."""
    found = []
    for entry in said[:MOST_KEPT] if isinstance(said, list) else ():
        try:
            covered = Covered(**entry)
        except TypeError:
            continue
        right = tuple(map(type, covered)) == (str, int, str, bool)
        if right and 0 <= covered.end_ns <= now_ns:
            found.append(covered)
    return found
