"""Where a network is cut, and which exit answers: as configured, or as is best on the link as it is."""

import math
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from agent.core.link import LinkEstimator
from agent.core.manifest import WINDOW, Exit
from agent.core.planner import MAP_BITS_PER_S, Demand, Link, Objective, Place, Profile, StaticMap, aligned, crossings
from agent.core.planner import Exit as WayOut
from agent.core.settings import SplitSettings
from agent.core.split_wire import MAX_TENSORS
from agent.errors import ConfigError, UsageError
from agent.ports import Parts

ROOM = MAX_TENSORS - 1024
"""Bytes of values in a request, and of scores in an answer: what is around them has less than a kilobyte."""
_LONGEST_NAME = 255
"""Bytes in a request: the length of a name is one of them."""
_PROBES, _AGAIN = 6, 2
"""Answers, at both cuts together, before a link counts as known: one that is new, and one that became another, of which
the estimator has some already."""
_IN_HAND = 0.9
"""The share of the deadline that a plan may take: one that takes all of it is late every other time."""
_RUNS = 32
"""Runs that tell how fast this board is now."""
_CHANGED = 1 / 4
"""By how much of itself the round trip, or the speed of this board, must be another one before it is planned anew."""
_NAMES = ("this board", "the worker")
"""What the profiles of auto are called in errors."""


class Choice(NamedTuple):
    """Where to cut, nowhere if empty, and which exit answers, the end if empty.

    `probe`: one window is asked, to learn what the link takes.
    """

    cut: str = ""
    exit: str = ""
    probe: bool = False


class Layout:
    """The cuts and exits of a network in their order."""

    def __init__(self, parts: Parts) -> None:
        self.cuts = {cut.name: cut for cut in parts.cuts}
        self._order = {cut.name: n for n, cut in enumerate(parts.cuts)}
        self.exits: list[Exit] = sorted(parts.exits, key=lambda one: self._order[one.at])
        manifest = parts.manifest
        self.answer_bytes = 4 * len(manifest.labels) + 4 + manifest.code.bytes
        """Of a window, in an answer: logits, novelty, code."""
        self._ways_out: dict[tuple[str, str, str], tuple[str, ...]] = {}

    def exits_from(self, at: str) -> list[Exit]:
        """Return the exits at a cut and behind it."""
        return [one for one in self.exits if self._order[one.at] >= self._order[at]]

    def exits_up_to(self, last: str) -> list[Exit]:
        """Return the exits before a cut and at it."""
        return [one for one in self.exits if self._order[one.at] <= self._order[last]]

    def behind(self, at: str) -> list[str]:
        """Return the cuts behind a cut."""
        return list(self.cuts)[self._order[at] + 1 :]

    def most_windows(self, cut: str) -> int:
        """Return how many windows fit into a request for what is behind a cut, and their scores into an answer."""
        return ROOM // max(self.cuts[cut].bytes, self.answer_bytes)

    def usable(self, privacy: str) -> list[str]:
        """Return the cuts at which something can be asked, and may leave the board."""
        return [
            name
            for name in self.cuts
            if self.most_windows(name)
            and (name.isprintable() and len(name.encode()) <= _LONGEST_NAME)
            and (name != WINDOW or privacy == "window")
        ]

    def ways_out(self, at: str, planned: str, spare: str = "") -> tuple[str, ...]:
        """Return the planned exit, and those between a cut, or an exit whose scores are there, and it; last first."""
        if (at, planned, spare) not in self._ways_out:
            ends = {one.name: self._order[one.at] for one in self.exits}
            first, last = max(self._order[at], ends.get(spare, -1) + 1), ends.get(planned, len(self._order))
            sooner = [name for name, end in ends.items() if first <= end < last]
            self._ways_out[at, planned, spare] = planned, *sorted(sooner, key=lambda name: -ends[name])
        return self._ways_out[at, planned, spare]


class Fixed:
    """What is configured."""

    def __init__(self, settings: SplitSettings, parts: Parts, layout: Layout) -> None:
        """Hold the configured names against what there is.

        Raises:
            ConfigError: one of them is not there, or not in order.
        """
        self.cuts = [settings.cut] if settings.asks else []
        """Those that may be picked, in order."""
        self.first = Choice(settings.cut if settings.asks else "", settings.exit)
        """What is done while nothing is known of the link; and ever after."""
        answers_from = WINDOW
        if settings.asks:
            self._check_cut(settings, parts, layout)
            answers_from = settings.until or settings.cut
        known = [one.name for one in layout.exits_from(answers_from)]
        if settings.exit and settings.exit not in known:
            raise ConfigError(
                f"split.exit: {parts.id} has no exit {settings.exit!r} at {answers_from} or after it; there are "
                f"{', '.join(known) or 'none'}"
            )

    def plan(self, now_ns: int) -> Choice:
        """Return what to do."""
        del now_ns
        return self.first

    def learned(self) -> None:
        """Take note that the link was observed, which changes nothing."""

    def ran(self, at: str, way_out: str, ns: float) -> None:
        """Take note of how long a window took here, which changes nothing."""

    @staticmethod
    def _check_cut(settings: SplitSettings, parts: Parts, layout: Layout) -> None:
        cut, until = settings.cut, settings.until
        if cut not in layout.cuts:
            raise ConfigError(f"split.cut: {parts.id} has no cut {cut!r}; there are {', '.join(layout.cuts)}")
        if cut not in (usable := layout.usable(settings.privacy)):
            raise ConfigError(
                f"split.cut: a window has {layout.cuts[cut].bytes} bytes at {cut}, and a request {ROOM} at most; "
                f"there are {', '.join(usable)}"
            )
        behind = layout.behind(cut)
        if until and until not in behind:
            raise ConfigError(
                f"split.until: {parts.id} has no cut {until!r} after {cut}; there are {', '.join(behind) or 'none'}"
            )


class Auto:
    """Whatever is best on the link as it is.

    Theory of operation. What the link takes is learned from every answer, also a late one, and the cut is looked up in
    a map that was planned by profiles of this board and of the worker, and by how much slower or faster than in its
    profile this board runs now. While something is not known yet, a window is asked at the smallest and at the largest
    cut in turn; so it is now and then while all of the network had better run here, or nobody would learn that the link
    has become better.
    """

    def __init__(
        self,
        settings: SplitSettings,
        profiles: Sequence[Profile],
        parts: Parts,
        layout: Layout,
        link: LinkEstimator,
    ) -> None:
        """`profiles`: this board's, and the worker's. `link`: is taught by whoever asks.

        Raises:
            ConfigError: the profiles are not of this network, or lack what the objective needs.
        """
        self.first = Choice()
        """What is done while nothing is known of the link."""
        self._link = link
        self._rtt_ns, self._speed = -1.0, 1.0
        """For which the map was made."""
        self._retry_ns = round(settings.retry_s * 1e9)
        self._exits = {one.name for one in layout.exits}
        usable = layout.usable(settings.privacy)
        self._demand = Demand(
            Objective(settings.objective), _IN_HAND * settings.deadline_ms * 1e6, least=0 if WINDOW in usable else 1
        )
        try:
            # Exits are at cuts, too.
            wanted = {*_worthwhile(layout, usable), *(one.at for one in layout.exits if one.at in usable)}
            board, worker = aligned(profiles, _NAMES, wanted)
            if board.bundle != parts.id:
                raise UsageError(f"the profiles are of {board.bundle}: profile {parts.id} on both machines")
            self._board, self._worker = Place(_NAMES[0], board), Place(_NAMES[1], worker)
            self.cuts = [t for t in board.tensors if t in wanted]
            """Those that may be picked, in order."""
            if not self.cuts:
                raise UsageError(f"the profiles have no cut that {parts.id} has here; there are {', '.join(usable)}")
            self._map = self._planned(0.0)
            self._map.at(math.inf)
        except UsageError as error:
            raise ConfigError(f"split.profiles: {error}") from error
        # Where the head alone takes all the time, no answer would be of use.
        heads_us = {t: board.run_us(0, k) if k else 0.0 for k, t in enumerate(board.tensors)}
        tried = [cut for cut in self.cuts if heads_us[cut] < 500 * settings.deadline_ms] or self.cuts[:1]
        tried.sort(key=lambda cut: layout.cuts[cut].bytes)
        self._tried = (tried[0], tried[-1])
        """The smallest and the largest of those that leave half of the deadline for an answer."""
        self._turn = 1
        self._slowness: deque[float] = deque(maxlen=_RUNS)
        """How many times as long as by the profile the last runs here took."""
        self._changes = link.changes
        self._answers = 0
        """Since there is a link, and fewer since it became another one."""
        self._asked_ns = 0

    def plan(self, now_ns: int) -> Choice:
        """Return what to do now."""
        link = self._link
        if link.changes != self._changes:
            self._changes, self._answers = link.changes, min(self._answers, _PROBES - _AGAIN)
        if link.rtt_ns is None or self._answers < _PROBES:
            return self._probe(now_ns)
        speed = 1.0 / median(self._slowness) if self._slowness else 1.0
        if (
            abs(link.rtt_ns - self._rtt_ns) > _CHANGED * self._rtt_ns
            or abs(speed - self._speed) > _CHANGED * self._speed
        ):
            self._rtt_ns, self._speed = link.rtt_ns, speed
            self._map = self._planned(link.rtt_ns)
        pick = self._map.at(math.inf if link.bits_per_s is None else link.bits_per_s).pick
        (cut,) = crossings(pick, self._board.profile)
        if cut is None and now_ns - self._asked_ns >= self._retry_ns:
            return self._probe(now_ns)
        if cut is not None:
            self._asked_ns = now_ns
        return Choice(cut or "", self._name(pick.exit))

    def learned(self) -> None:
        """Take note that the link was observed."""
        self._answers += 1

    def ran(self, at: str, way_out: str, ns: float) -> None:
        """Take note of how long a window took here, from a cut to an exit, to the end if that is empty."""
        board = self._board.profile
        first = board.tensors.index(at) if at in board.tensors else len(board.tensors)
        one = next((e for e in board.exits if self._name(e) == way_out), None)
        if one is not None and first < one.after:
            self._slowness.append(max(ns, 1.0) / self._board.run_ns(first, one.after, one))

    def _name(self, way_out: WayOut) -> str:
        """Return what the network calls an exit of a profile."""
        return way_out.name if way_out.name in self._exits else ""

    def _probe(self, now_ns: int) -> Choice:
        self._turn, self._asked_ns = 1 - self._turn, now_ns
        return Choice(self._tried[self._turn], probe=True)

    def _planned(self, rtt_ns: float) -> StaticMap:
        places = self._board._replace(speed=self._speed), self._worker
        return StaticMap(places, [Link(rtt_ns, 0.0)], self._demand, MAP_BITS_PER_S)


def choose(
    settings: SplitSettings, profiles: Sequence[Profile], parts: Parts, layout: Layout, link: LinkEstimator
) -> Fixed | Auto:
    """Return what says where to cut `parts`; as for `Auto`.

    Raises:
        ConfigError: what is configured does not suit this network.
    """
    if settings.early and not layout.exits:
        raise ConfigError(f"split.early: {parts.id} has no exits")
    if settings.cut == "auto":
        return Auto(settings, profiles, parts, layout, link)
    return Fixed(settings, parts, layout)


def _worthwhile(layout: Layout, usable: Sequence[str]) -> list[str]:
    """Return the cuts with fewer bytes than all before them: others take more of the link and of this board."""
    found: list[str] = []
    least = math.inf
    for name in usable:
        if layout.cuts[name].bytes < least:
            found.append(name)
            least = layout.cuts[name].bytes
    return found
