"""Where each part of a profiled network shall run: on the device, on an edge server, or in the cloud.

A profile cuts a network into segments, one after another. A candidate says which exit gives the answer, and which
segments each place of a chain runs; a place may run none and pass on what it gets, and those beyond the last that runs
any are not asked. There is one border less than there are places, so that all candidates can be predicted, and the best
is exact:

    latency = sum over places that run any (time of its run / (speed x (1 - load)))
            + sum over links that are crossed (round trip + 8 x (bytes at the border + bytes of the answer) / bandwidth)
    joules  = watts of the device x time of its run + joules per byte x bytes over its link

An answer is logits and novelty, and from the end of the network the code, too.

Latency and energy are Neurosurgeon's objectives (Kang et al., ASPLOS 2017), accuracy under a deadline is Edgent's (Li
et al., IEEE Transactions on Wireless Communications 2020). Networks that are no chain: see `min_cut`.
"""

import json
import math
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from itertools import combinations_with_replacement, pairwise
from typing import Any, NamedTuple

from agent.errors import InputError, UsageError

WINDOW = "window"
"""What goes over a border with no segment before it."""

SCHEMA = 1
"""The version of a profile that this agent reads."""

MAX_SEGMENTS = 256
"""Segments in a profile: with three places, some 33,000 candidates."""

MAP_BITS_PER_S = tuple(round(10 ** (5 + k / 4)) for k in range(13))
"""Bandwidths of a map: four a decade, 0.1 to 100 Mbit/s."""


class Objective(StrEnum):
    """What is made as small as it can be, or as large: users write the value."""

    LATENCY = "latency"
    ENERGY = "energy"
    ACCURACY = "accuracy"


class Exit(NamedTuple):
    """Where an answer can be had: after `after` segments, through a head that takes `us` microseconds by itself."""

    name: str
    accuracy: float | None
    after: int
    us: float = 0.0


class Profile(NamedTuple):
    """What `har-agent profile` measured of a network on a machine; times in microseconds.

    `border_bytes[k]` is what goes over a border with k segments before it: the window for k = 0. `output_bytes` comes
    back, and from the end `code_bytes` more. Each of `segments_us` is a run of that segment alone; several in one run
    save `fixed_us` for each but one of them. `watts` is how much more the machine takes while it computes.
    """

    machine: str
    bundle: str
    exits: tuple[Exit, ...]
    cuts: tuple[str, ...]
    border_bytes: tuple[int, ...]
    output_bytes: int
    code_bytes: int
    segments_us: tuple[float, ...]
    fixed_us: float
    whole_us: float
    watts: float | None

    @property
    def tensors(self) -> tuple[str, ...]:
        """What goes over each border, by name."""
        return (WINDOW, *self.cuts)

    def answer_bytes(self, way_out: Exit) -> int:
        """Return what comes back from an exit, or from the end."""
        return self.output_bytes + (self.code_bytes if way_out.after == len(self.segments_us) else 0)

    def run_us(self, first: int, end: int) -> float:
        """Return how long one run of segments `first` to below `end` takes."""
        if (first, end) == (0, len(self.segments_us)):
            return self.whole_us
        us = self.segments_us[first:end]
        # Never less than one of them alone: noise may have measured as much.
        return max(sum(us) - (len(us) - 1) * self.fixed_us, *us)


class Place(NamedTuple):
    """A machine of the chain, the device first.

    `speed`: how many times as fast as in its profile; `load`: the share of it that others use, below 1.
    """

    name: str
    profile: Profile
    speed: float = 1.0
    load: float = 0.0

    def run_ns(self, first: int, end: int, way_out: Exit) -> float:
        """Return how long segments `first` to below `end` take here, in one run with the exit's head at their end."""
        if first == end:
            return 0.0
        us = self.profile.run_us(first, end)
        if end == way_out.after:
            head_us = next(e.us for e in self.profile.exits if e.name == way_out.name)
            us += max(head_us - self.profile.fixed_us, 0.0)
        return 1e3 * us / (self.speed * (1.0 - self.load))


class Link(NamedTuple):
    """What lies between a place and the next. `bits_per_s`: 0 if it is gone, infinite if nobody noticed a limit."""

    rtt_ns: float
    bits_per_s: float

    def takes_ns(self, n_bytes: int) -> float:
        """Return how long a question and its answer of `n_bytes` together are under way."""
        if self.bits_per_s <= 0.0:
            return math.inf
        return self.rtt_ns + 8e9 * n_bytes / self.bits_per_s


class Candidate(NamedTuple):
    """One way to run the network, and what it is predicted to cost.

    `borders[k]`: how many segments have run before place k + 1 goes on. `compute_ns`: by place. `bytes`: over each
    link, there and back together. `joules` is the device's, None where its power is not known. Over a link that is
    gone, latency is infinite.
    """

    exit: Exit
    borders: tuple[int, ...]
    compute_ns: tuple[float, ...]
    link_ns: float
    bytes: tuple[int, ...]
    joules: float | None

    @property
    def latency_ns(self) -> float:
        """From the input to the answer, both at the device; to the nanosecond, so that equal ones are equal."""
        total = sum(self.compute_ns) + self.link_ns
        return total if math.isinf(total) else float(round(total))

    @property
    def is_local(self) -> bool:
        """Whether the device does all of it."""
        return self.borders[:1] in ((), (self.exit.after,))


class Demand(NamedTuple):
    """What a plan is for. An exit of less than `min_accuracy` is not picked, and `least` segments stay on the device.

    Without `min_accuracy`, latency and energy are those of the last exit that can be in time: accuracy is not given
    away unasked.
    """

    objective: Objective = Objective.LATENCY
    deadline_ns: float = math.inf
    min_accuracy: float | None = None
    least: int = 0


class Plan(NamedTuple):
    """Every candidate, the one that is picked, and why, in words."""

    candidates: tuple[Candidate, ...]
    pick: Candidate
    in_time: bool
    why: str


def read_profile(data: bytes) -> Profile:
    """Read what `har-agent profile` wrote.

    Raises:
        InputError: not JSON, of another version, or a field that is missing or of the wrong kind.
    """
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise InputError(f"it is not JSON ({e}); write one with har-agent profile BUNDLE --out FILE") from e
    if not isinstance(raw, dict) or type(raw.get("v")) is not int:
        raise InputError("it is not a profile; write one with har-agent profile BUNDLE --out FILE")
    if raw["v"] != SCHEMA:
        raise InputError(
            f"it is a profile of version {raw['v']}; this agent reads {SCHEMA}: write it anew with this agent"
        )
    try:
        return _profile(raw)
    except KeyError as e:
        raise InputError(f"it lacks {e}; write it anew with har-agent profile") from e
    except (TypeError, ValueError, AttributeError, OverflowError) as e:
        raise InputError(f"{e}; write it anew with har-agent profile") from e


def aligned(profiles: Sequence[Profile], names: Sequence[str], cuts: Collection[str] | None = None) -> list[Profile]:
    """Return profiles of one network with the cuts that all of them have, since machines optimise it differently.

    `names`: what to call each in an error. `cuts`: those that may be kept, all if not given.

    Raises:
        UsageError: they are of different bundles, or do not agree on what goes over a link.
    """
    first = profiles[0]
    wanted = first.cuts if cuts is None else [name for name in first.cuts if name in cuts]
    common = [name for name in wanted if all(name in p.cuts for p in profiles)]
    merged = [_merged(p, common) for p in profiles]
    exits = set.intersection(*({(e.name, e.after) for e in p.exits} for p in merged))
    for name, p in zip(names[1:], merged[1:], strict=True):
        both = f"the profiles of {names[0]} and {name} are of different networks"
        if p.bundle != first.bundle:
            raise UsageError(f"{both} ({first.bundle} and {p.bundle}): profile the same bundle on both machines")
        unlike = _unlike(merged[0], p) or ("" if exits else "no exit in common")
        if unlike:
            raise UsageError(
                f"{both}, though both are called {p.bundle}: {unlike}. Profile it anew on both machines, with the same "
                "version of har-agent"
            )
    return [p._replace(exits=tuple(e for e in p.exits if (e.name, e.after) in exits)) for p in merged]


def _unlike(one: Profile, other: Profile) -> str:
    """Say what two profiles with the same cuts do not agree on; empty if they do."""
    if one.cuts != other.cuts:
        return "their cuts are not in the same order"
    names = (*one.tensors, "an answer", "the code in it")
    sizes = ((*p.border_bytes, p.output_bytes, p.code_bytes) for p in (one, other))
    return next((f"{name} has {a} and {b} bytes" for name, a, b in zip(names, *sizes, strict=True) if a != b), "")


def _merged(profile: Profile, cuts: Sequence[str]) -> Profile:
    """Return a profile with these of its cuts alone, and the exits that lie at one of them."""
    at = [0, *(k for k, name in enumerate(profile.cuts, 1) if name in cuts), len(profile.segments_us)]
    return profile._replace(
        exits=tuple(e._replace(after=at.index(e.after)) for e in profile.exits if e.after in at),
        cuts=tuple(name for name in profile.cuts if name in cuts),
        border_bytes=tuple(profile.border_bytes[k] for k in at[:-1]),
        segments_us=tuple(profile.run_us(i, j) for i, j in pairwise(at)),
    )


def candidates(
    places: Sequence[Place], links: Sequence[Link], watts: float | None = None, joules_per_byte: float = 0.0
) -> list[Candidate]:
    """Return every way to run a network.

    Args:
        places: The device first. Their profiles are `aligned`.
        links: From each place to the next.
        watts: How much more the device takes while it computes; what its profile says if not given.
        joules_per_byte: What a byte over the first link costs the device, either way.
    """
    device = places[0].profile
    watts = device.watts if watts is None else watts
    return [
        _candidate(places, links, way_out, borders, watts, joules_per_byte)
        for way_out in device.exits
        # From the last to the first: what leaves more to the device comes before what leaves less.
        for borders in reversed(list(combinations_with_replacement(range(way_out.after + 1), len(links))))
    ]


def plan(
    places: Sequence[Place],
    links: Sequence[Link],
    demand: Demand,
    watts: float | None = None,
    joules_per_byte: float = 0.0,
) -> Plan:
    """Return every candidate and the best of those that are in time; if none is, the fastest.

    Of equal ones, that which leaves most to the device. Arguments are those of `candidates`.

    Raises:
        UsageError: watts or accuracies are asked for that are not known, or an accuracy that no exit has.
    """
    found = tuple(candidates(places, links, watts, joules_per_byte))
    if demand.objective is Objective.ENERGY and any(c.joules is None for c in found):
        raise UsageError(
            "the device's power is not known, since its profile has no watts: profile it where something measures its "
            "power, or with idle_watts and busy_watts in [telemetry]"
        )
    good: list[Candidate] = []
    for exits in _preferred(places[0].profile.exits, demand):
        possible = (c for c in found if math.isfinite(c.latency_ns) and demand.least <= min(c.borders, default=0))
        good += [c for c in possible if c.exit in exits]
        timely = [c for c in good if c.latency_ns <= demand.deadline_ns]
        if timely:
            best = min(timely, key=_COST[demand.objective])
            return Plan(found, best, True, _why(places, demand, best, good, len(timely)))
    best = min(good, key=_COST[Objective.LATENCY])
    return Plan(found, best, False, _why(places, demand, best, good, 0))


def curve(found: Plan) -> list[Candidate]:
    """Return the candidates that a later deadline makes more accurate, the fastest first."""
    better: list[Candidate] = []
    for c in sorted(found.candidates, key=_COST[Objective.LATENCY]):
        if math.isfinite(c.latency_ns) and (not better or _accuracy(c) > _accuracy(better[-1])):
            better.append(c)
    return better


class StaticMap:
    """What to do at any bandwidth of the first link, looked up: Edgent's configuration map.

    For a link whose round trip stays what it is; make another one when that changes.
    """

    def __init__(
        self,
        places: Sequence[Place],
        links: Sequence[Link],
        demand: Demand,
        bits_per_s: Sequence[float],
        watts: float | None = None,
        joules_per_byte: float = 0.0,
    ) -> None:
        """`bits_per_s`: bandwidths to plan for, rising; that of `links[0]` does not count. See `plan`."""
        self.bits_per_s = (0.0, *bits_per_s)
        self._planned = lru_cache(
            lambda b: plan(places, [links[0]._replace(bits_per_s=b), *links[1:]], demand, watts, joules_per_byte)
        )

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plan for each of `bits_per_s`. Each is made when it is first looked at."""
        return tuple(self._planned(b) for b in self.bits_per_s)

    def at(self, bits_per_s: float) -> Plan:
        """Return the plan for the next lower bandwidth: at this one, it is as fast or faster. Below all, for none."""
        return self._planned(self.bits_per_s[bisect_right(self.bits_per_s, max(bits_per_s, 0.0)) - 1])


def spans(candidate: Candidate) -> list[tuple[int, int]]:
    """Return the first segment of each place and the one after its last; equal where it runs none."""
    return list(pairwise((0, *candidate.borders, candidate.exit.after)))


def crossings(candidate: Candidate, profile: Profile) -> list[str | None]:
    """Return what goes over each link, by name; None where nothing does."""
    return [profile.tensors[b] if b < candidate.exit.after else None for b in candidate.borders]


def _candidate(
    places: Sequence[Place],
    links: Sequence[Link],
    way_out: Exit,
    borders: tuple[int, ...],
    watts: float | None,
    joules_per_byte: float,
) -> Candidate:
    device = places[0].profile
    runs = pairwise((0, *borders, way_out.after))
    compute_ns = tuple(place.run_ns(*run, way_out) for place, run in zip(places, runs, strict=True))
    answer = device.answer_bytes(way_out)
    carried = tuple(device.border_bytes[b] + answer if b < way_out.after else 0 for b in borders)
    link_ns = sum(link.takes_ns(n) for link, n, b in zip(links, carried, borders, strict=True) if b < way_out.after)
    joules = None if watts is None else watts * compute_ns[0] / 1e9 + joules_per_byte * sum(carried[:1])
    return Candidate(way_out, borders, compute_ns, link_ns, carried, joules)


def _accuracy(candidate: Candidate) -> float:
    return -1.0 if candidate.exit.accuracy is None else candidate.exit.accuracy


_COST: Mapping[Objective, Callable[[Candidate], tuple[float, float, float]]] = {
    Objective.LATENCY: lambda c: (c.latency_ns, -_accuracy(c), 0.0),
    Objective.ENERGY: lambda c: (c.joules or 0.0, c.latency_ns, -_accuracy(c)),
    Objective.ACCURACY: lambda c: (-_accuracy(c), c.latency_ns, 0.0),
}


def _preferred(exits: Sequence[Exit], demand: Demand) -> list[list[Exit]]:
    """Return the exits that may be picked: those of the first list if they can be in time, and so on."""
    known = [(e.accuracy, e) for e in exits if e.accuracy is not None]
    if demand.min_accuracy is None:
        if demand.objective is not Objective.ACCURACY:
            return [[e] for e in sorted(exits, key=lambda e: -e.after)]
        if not known:
            raise UsageError("the profile has no accuracies: nothing can be the most accurate")
    good = [e for accuracy, e in known if accuracy >= (demand.min_accuracy or 0.0)]
    if not good:
        most = f"the most accurate exit has {max(known)[0]:.4g}" if known else "the profile has no accuracies"
        raise UsageError(f"no exit has an accuracy of {demand.min_accuracy:g}: {most}")
    return [good]


def _why(places: Sequence[Place], demand: Demand, best: Candidate, good: Sequence[Candidate], timely: int) -> str:
    latency = f"{best.latency_ns / 1e6:.4g} ms"
    if not timely:
        reason = f"none of {len(good)} is in time, and {latency} is the fastest"
    else:
        of = f"of {timely} in time" if math.isfinite(demand.deadline_ns) else f"of {timely} that can be had"
        reason = {
            Objective.LATENCY: f"{latency} is the fastest {of}",
            Objective.ENERGY: f"{1e3 * (best.joules or 0.0):.4g} mJ is the least {of}, at {latency}",
            Objective.ACCURACY: f"an accuracy of {_accuracy(best):.4g} is the highest {of}, and {latency} the fastest "
            "way to it",
        }[demand.objective]
    local = next(c for c in good if c.is_local and c.exit == best.exit)
    if best.is_local:
        return f"{places[0].name} runs all of it: {reason}"
    parts = [
        f"{place.name} runs {_span(*span)}"
        for place, span in zip(places, spans(best), strict=True)
        if span[0] < span[1]
    ]
    alone = f"{local.latency_ns / 1e6:.4g} ms"
    if demand.objective is Objective.ENERGY:
        alone = f"{1e3 * (local.joules or 0.0):.4g} mJ and {alone}"
    return f"{', '.join(parts)}: {reason}; {places[0].name} alone takes {alone}"


def _span(first: int, end: int) -> str:
    return f"segment {first + 1}" if end == first + 1 else f"segments {first + 1} to {end}"


def _profile(raw: dict[str, Any]) -> Profile:
    cuts, segments = _list(raw["cuts"], "cuts"), _list(raw["segments"], "segments")
    if not 1 <= len(segments) <= MAX_SEGMENTS or len(segments) != len(cuts) + 1:
        raise ValueError(
            f"{len(segments)} segments do not lie between {len(cuts)} cuts; at most {MAX_SEGMENTS} are read"
        )
    for k, segment in enumerate(segments):
        if (segment["from"], segment["to"]) != (k, k + 1):
            raise ValueError(f"segments[{k}] goes from {segment['from']!r} to {segment['to']!r}: they are not in order")
    exits = tuple(
        Exit(
            _text(e["name"], "exits.name"),
            None if e["accuracy"] is None else _number(e["accuracy"], "exits.accuracy", 1.0),
            _whole(e["after"], "exits.after"),
            _number(e["us"], "exits.us"),
        )
        for e in _list(raw["exits"], "exits")
    )
    if len({e.name for e in exits}) < max(len(exits), 1) or not all(1 <= e.after <= len(segments) for e in exits):
        raise ValueError(f"exits must be at least one, of different names, after 1 to {len(segments)} segments")
    if len({c["name"] for c in cuts}) < len(cuts):
        raise ValueError("cuts must have different names")
    watts = raw["watts"]
    return Profile(
        machine=_text(raw["machine"]["name"], "machine.name"),
        bundle=_text(raw["bundle"], "bundle"),
        exits=exits,
        cuts=tuple(_text(c["name"], "cuts.name") for c in cuts),
        border_bytes=(
            _whole(raw["input_bytes"], "input_bytes"),
            *(_whole(c["bytes"], "cuts.bytes") for c in cuts),
        ),
        output_bytes=_whole(raw["output_bytes"], "output_bytes"),
        code_bytes=_whole(raw["code_bytes"], "code_bytes"),
        segments_us=tuple(_number(s["us"], "segments.us") for s in segments),
        fixed_us=_number(raw["fixed_us"], "fixed_us"),
        whole_us=_number(raw["whole_us"], "whole_us"),
        # What it takes while it does nothing, it takes wherever the network runs.
        watts=None
        if watts is None
        else max(_number(watts["busy"], "watts.busy") - _number(watts["idle"] or 0.0, "watts.idle"), 0.0),
    )


def _list(value: object, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{name} must be a list, not {value!r}")
    return value


def _text(value: object, name: str) -> str:
    if not isinstance(value, str) or not value.isprintable() or not 1 <= len(value) <= 256:
        raise ValueError(f"{name} must be 1 to 256 printable characters")
    return value


def _number(value: object, name: str, most: float = 1e15) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= most:
        raise ValueError(f"{name} must be a number from 0 to {most:g}, not {value!r}")
    return float(value)


def _whole(value: object, name: str) -> int:
    if type(value) is not int or not 0 <= value <= 1 << 40:
        raise ValueError(f"{name} must be a whole number, 0 or more, not {value!r}")
    return value
