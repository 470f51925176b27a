"""Where each part of a profiled network should run, by profiles and figures that are given on the command line."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from agent.core.planner import (
    MAP_BITS_PER_S,
    WINDOW,
    Candidate,
    Demand,
    Link,
    Objective,
    Place,
    Plan,
    Profile,
    StaticMap,
    aligned,
    crossings,
    curve,
    plan,
    read_profile,
    spans,
)
from agent.errors import InputError, UsageError

NAMES = {2: ("device", "server"), 3: ("device", "edge", "cloud")}
"""What places are called, by how many there are."""

SERVICES = ("har-split", "har-split-cloud")
"""Under which names the places after the device are asked: the first one by the name that `[split]` has anyway."""

_LARGEST = 4 << 20


@dataclass(frozen=True)
class Planned:
    """A plan with what it was made of. `map`: the plan for each bandwidth of `MAP_BITS_PER_S`, of the first link.

    `curve`: the candidates that a later deadline makes more accurate.
    """

    places: tuple[Place, ...]
    links: tuple[Link, ...]
    demand: Demand
    plan: Plan
    map: tuple[Plan, ...] = ()
    curve: tuple[Candidate, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "v": 1,
            "bundle": self.places[0].profile.bundle,
            "objective": self.demand.objective.value,
            "deadline_ms": _ms(self.demand.deadline_ns),
            "min_accuracy": self.demand.min_accuracy,
            "places": [
                {"name": p.name, "machine": p.profile.machine, "speed": p.speed, "load": p.load} for p in self.places
            ],
            "links": [{"rtt_ms": link.rtt_ns / 1e6, "mbit": link.bits_per_s / 1e6} for link in self.links],
            "candidates": [self._candidate(c) for c in self.plan.candidates],
            "pick": self.plan.candidates.index(self.plan.pick),
            "in_time": self.plan.in_time,
            "why": self.plan.why,
            "config": self.config(),
            "map": [{"mbit": mbit, **self._candidate(p.pick), "why": p.why} for mbit, p in self._mapped()],
            "curve": [self._candidate(c) for c in self.curve],
        }

    def config(self) -> dict[str, dict[str, dict[str, str]]]:
        """Return what does as the pick says: for each place, tables of its configuration with the keys to set.

        Places that only pass on are not in it: the broker brings a tensor to the next one that runs something.
        """
        pick, device = self.plan.pick, self.places[0].profile
        # Who is asked, under which name, and from which tensor on.
        asked = [
            (place.name, service, device.tensors[first])
            for place, service, (first, end) in zip(self.places[1:], SERVICES, spans(pick)[1:], strict=False)
            if first < end
        ]
        split: dict[str, str] = {"cut": asked[0][2] if asked else "off"}
        if len(asked) > 1:
            split["until"] = asked[1][2]
        if pick.exit.after < len(device.segments_us):
            split["exit"] = pick.exit.name
        if asked and asked[0][1] != SERVICES[0]:
            split["service"] = asked[0][1]
        if split["cut"] == WINDOW:
            split["privacy"] = WINDOW
        tables = {self.places[0].name: {"split": split}}
        bundle = device.bundle.partition("@")[0]
        for (place, service, _), after in zip_longest(asked, asked[1:]):
            tables[place] = {"worker": {"service": service, "bundles": bundle, **({"next": after[1]} if after else {})}}
        return tables

    def rows(self) -> list[dict[str, Any]]:
        """Return every candidate as a row for people, the pick marked."""
        return [{"pick": "*" if c is self.plan.pick else "", **self._row(c)} for c in self.plan.candidates]

    def map_rows(self) -> list[dict[str, Any]]:
        """Return the pick for each bandwidth of the map as a row for people."""
        return [{"mbit": mbit, **self._row(p.pick)} for mbit, p in self._mapped()]

    def curve_rows(self) -> list[dict[str, Any]]:
        """Return the curve as rows for people: from which deadline on there is which accuracy."""
        return [{"from ms": _ms(c.latency_ns), **self._row(c)} for c in self.curve]

    def _mapped(self) -> list[tuple[float, Plan]]:
        return [(b / 1e6, p) for b, p in zip(MAP_BITS_PER_S, self.map, strict=False)]

    def _candidate(self, c: Candidate) -> dict[str, Any]:
        return {
            "exit": c.exit.name,
            "segments": [list(span) for span in spans(c)],
            "cuts": crossings(c, self.places[0].profile),
            "compute_ms": [ns / 1e6 for ns in c.compute_ns],
            "link_ms": _ms(c.link_ns),
            "latency_ms": _ms(c.latency_ns),
            "bytes": list(c.bytes),
            "joules": c.joules,
            "accuracy": c.exit.accuracy,
            "in_time": c.latency_ns <= self.demand.deadline_ns and math.isfinite(c.latency_ns),
        }

    def _row(self, c: Candidate) -> dict[str, Any]:
        row: dict[str, Any] = {"exit": c.exit.name} if len(self.places[0].profile.exits) > 1 else {}
        for place, (first, end) in zip(self.places, spans(c), strict=True):
            row[place.name] = "-" if first == end else str(end) if end == first + 1 else f"{first + 1}-{end}"
        row |= {
            "sends": ", ".join(dict.fromkeys(filter(None, crossings(c, self.places[0].profile)))) or "-",
            "bytes": sum(c.bytes),
            "compute ms": sum(c.compute_ns) / 1e6,
            "link ms": _ms(c.link_ns),
            "ms": _ms(c.latency_ns),
            "mJ": None if c.joules is None else 1e3 * c.joules,
            "accuracy": c.exit.accuracy,
        }
        if math.isfinite(self.demand.deadline_ns):
            row["in time"] = "yes" if c.latency_ns <= self.demand.deadline_ns else "no"
        return row


def planned(
    paths: Sequence[str],
    rtt_ms: Sequence[float],
    mbit: Sequence[float],
    *,
    objective: str = "latency",
    deadline_ms: float | None = None,
    min_accuracy: float | None = None,
    speed: Sequence[float] = (),
    load: Sequence[float] = (),
    watts: float | None = None,
    joules_per_mb: float = 0.0,
    with_map: bool = False,
    with_curve: bool = False,
) -> Planned:
    """Read profiles and plan.

    Args:
        paths: A profile for each place, the device first, or one for all.
        rtt_ms: Round trip of each link, from the device on.
        mbit: Bandwidth of each link.
        objective: What to make the best of, see `Objective`.
        deadline_ms: When the answer must be there, if it must.
        min_accuracy: Which exits are good enough, see `Demand`.
        speed: How many times as fast as its profile each place is; 1 if not given.
        load: The share of each place that others use; 0 if not given.
        watts: How much more the device takes while it computes; by its profile if not given.
        joules_per_mb: What a megabyte over the first link costs the device.
        with_map: Whether to plan for the bandwidths of `MAP_BITS_PER_S` too.
        with_curve: Whether to tell which accuracy can be had by which deadline.

    Raises:
        InputError: a profile cannot be read.
        UsageError: figures that do not fit each other, or that nothing can have.
    """
    n = len(rtt_ms) + 1
    if n not in NAMES:
        raise UsageError("give --rtt-ms once for a server, or twice for an edge server and the cloud behind it")
    if len(mbit) != n - 1:
        raise UsageError(f"there are {n - 1} links by --rtt-ms, so give --mbit as often")
    if len(paths) not in (1, n):
        raise UsageError(f"{' and '.join(NAMES[n])} need a profile each, or one for all of them, not {len(paths)}")
    for name, values in (("--speed", speed), ("--load", load)):
        if len(values) not in (0, n):
            raise UsageError(f"give {name} once for each of {', '.join(NAMES[n])}, or not at all")
    if objective not in list(Objective):
        raise UsageError(f"--objective is one of {', '.join(Objective)}, not {objective}")
    demand = Demand(Objective(objective), math.inf if deadline_ms is None else 1e6 * deadline_ms, min_accuracy)
    given = (*rtt_ms, *mbit, *load, joules_per_mb, watts or 0.0, *speed)
    if not all(math.isfinite(x) and x >= 0.0 for x in given) or not all(speed) or any(x >= 1.0 for x in load):
        raise UsageError("times, bandwidths and powers are 0 or more, --speed is above 0, and --load is below 1")
    copies = n if len(paths) == 1 else 1
    called = [f"{name} ({path})" for name, path in zip(NAMES[n], [*paths] * copies, strict=True)]
    profiles = aligned([read_file(path) for path in paths] * copies, called)
    if demand.objective is Objective.ENERGY and watts is None and profiles[0].watts is None:
        raise UsageError(
            f"the device's power is not known, since {paths[0]} has no watts: give --watts, or profile the device "
            "where something measures its power"
        )
    places = tuple(
        Place(name, profile, s, q)
        for name, profile, s, q in zip(NAMES[n], profiles, speed or (1.0,) * n, load or (0.0,) * n, strict=True)
    )
    links = tuple(Link(1e6 * ms, 1e6 * b) for ms, b in zip(rtt_ms, mbit, strict=True))
    power = (watts, joules_per_mb / 1e6)
    static = StaticMap(places, links, demand, MAP_BITS_PER_S, *power) if with_map else None
    found = plan(places, links, demand, *power)
    return Planned(
        places,
        links,
        demand,
        found,
        static.plans[1:] if static else (),
        tuple(curve(found)) if with_curve else (),
    )


def read_file(path: str) -> Profile:
    """Read a profile from a file.

    Raises:
        InputError: it cannot be read, or is none.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as e:
        raise InputError(f"{path} cannot be read: {e.strerror or e}") from e
    if len(data) > _LARGEST:
        raise InputError(f"{path} is larger than any profile")
    try:
        return read_profile(data)
    except InputError as e:
        raise InputError(f"{path} cannot be used: {e}") from e


def _ms(ns: float) -> float | None:
    return ns / 1e6 if math.isfinite(ns) else None
