"""Where each part of a profiled network should run, by profiles and figures that are given on the command line."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.core.planner import (
    Candidate,
    Demand,
    Link,
    Objective,
    Place,
    Plan,
    Profile,
    StaticMap,
    aligned,
    plan,
    read_profile,
    spans,
)
from agent.errors import InputError, UsageError

NAMES = {2: ("device", "server"), 3: ("device", "edge", "cloud")}
"""What places are called, by how many there are."""

MAP_MBIT = tuple(round(10 ** (k / 4), 3) for k in range(-4, 9))
"""Bandwidths of a map: four a decade, 0.1 to 100 Mbit/s."""

_LARGEST = 4 << 20


@dataclass(frozen=True)
class Planned:
    """A plan with what it was made of. `map`: the plan for each bandwidth of the first link, in Mbit/s."""

    places: tuple[Place, ...]
    links: tuple[Link, ...]
    demand: Demand
    plan: Plan
    map: tuple[tuple[float, Plan], ...] = ()

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
            "map": [{"mbit": mbit, **self._candidate(p.pick), "why": p.why} for mbit, p in self.map],
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return every candidate as a row for people, the pick marked."""
        return [{"pick": "*" if c is self.plan.pick else "", **self._row(c)} for c in self.plan.candidates]

    def map_rows(self) -> list[dict[str, Any]]:
        """Return the pick for each bandwidth of the map as a row for people."""
        return [{"mbit": mbit, **self._row(p.pick)} for mbit, p in self.map]

    def _candidate(self, c: Candidate) -> dict[str, Any]:
        return {
            "exit": c.exit.name,
            "segments": [list(span) for span in spans(c)],
            "cuts": self._cuts(c),
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
            "sends": ", ".join(dict.fromkeys(cut for cut in self._cuts(c) if cut)) or "-",
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

    def _cuts(self, c: Candidate) -> list[str | None]:
        """What goes over each link: a tensor's name, `input`, or None where nothing does."""
        names = ("input", *self.places[0].profile.cuts)
        return [names[b] if b < c.exit.after else None for b in c.borders]


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
        with_map: Whether to plan for the bandwidths of `MAP_MBIT` too.

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
    profiles = [_read(path) for path in paths]
    profiles = aligned(profiles * (n if len(profiles) == 1 else 1))
    places = tuple(
        Place(name, profile, s, q)
        for name, profile, s, q in zip(NAMES[n], profiles, speed or (1.0,) * n, load or (0.0,) * n, strict=True)
    )
    links = tuple(Link(1e6 * ms, 1e6 * b) for ms, b in zip(rtt_ms, mbit, strict=True))
    power = (watts, joules_per_mb / 1e6)
    static = StaticMap(places, links, demand, [1e6 * b for b in MAP_MBIT], *power) if with_map else None
    return Planned(
        places,
        links,
        demand,
        plan(places, links, demand, *power),
        tuple(zip(MAP_MBIT, static.plans[1:], strict=True)) if static else (),
    )


def _read(path: str) -> Profile:
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
