"""A bundle cut into slices of similar compute time, as bundles for machines that run the network in a chain.

After Couper (Hsu et al., SEC 2019): what limits a chain is its slowest place, so the best slices are those of which the
slowest is as fast as can be. Each is a bundle that a worker serves: what lies between two cuts of the network.
"""

import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from agent.adapters.bundle import MANIFEST, MANIFEST_CAP, read_golden
from agent.adapters.onnx_parts import Parts
from agent.app.compose import open_parts
from agent.app.profile import profile
from agent.config import Config
from agent.core.manifest import SEGMENT, WINDOW, Bundle, FileEntry, Segment, dump, parse, sha256
from agent.core.planner import Profile, read_profile
from agent.core.settings import SplitSettings, TelemetrySettings
from agent.errors import InputError, ModelContractError
from agent.records import Scores
from har_export import bundle as bundles

CLOSE = 0.01
"""Slices whose slowest ones differ by no more than this share are equal: nobody measures them better."""

_CARD = """# {name}

A part of the network of {of}, from the tensor `{at}` to {until}: slice {number} of {count}. It labels nothing by
itself. A worker serves it (`har-agent cloud-worker`) to boards that have the whole, and whose `[split]` asks for the
rest of it there. What the network is, what it was trained on and what it cannot do is in the card of {of}.

Golden vectors are what the whole makes of its own: `takes` is what this part is given, the others what it gives.
"""


@dataclass(frozen=True)
class Slice:
    """A part of a network in a folder of its own.

    `at`, `until`: the tensors that it takes and gives, `until` empty at the end. `bytes`: what it sends on, a window.
    `us`: how long a run takes; None where the profile does not have its cuts. `segments`: those of the profile in it,
    the first and below the last.
    """

    folder: Path
    at: str
    until: str
    bytes: int
    us: float | None
    segments: tuple[int, int] | None
    exits: tuple[str, ...]


@dataclass(frozen=True)
class Sliced:
    """What one command made. `whole_us`: how long one run of the whole takes."""

    bundle: str
    machine: str
    whole_us: float
    slices: tuple[Slice, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "v": 1,
            "bundle": self.bundle,
            "machine": self.machine,
            "whole_us": self.whole_us,
            "slices": [{**vars(one), "folder": str(one.folder)} for one in self.slices],
            "config": self.config(),
        }

    def config(self) -> dict[str, dict[str, dict[str, str]]]:
        """Return what deploys the slices: for each place, tables of its configuration with the keys to set.

        The board runs the first slice itself, out of the whole.
        """
        tables = {"board": {"split": {"cut": self.slices[0].until}}}
        services = [SplitSettings.service, *(f"{SplitSettings.service}-{n}" for n in range(3, len(self.slices) + 1))]
        for number, (one, service) in enumerate(zip(self.slices[1:], services, strict=True), 2):
            after = services[number - 1 :][:1]
            worker = {"service": service, "bundles": str(one.folder), **({"next": after[0]} if after else {})}
            tables[f"slice {number}"] = {"worker": worker}
        return tables

    def text(self) -> str:
        """Return all of it for people."""
        lines = [f"{'slice':<6} {'from':<12} {'to':<12} {'µs':>8} {'bytes on':>9}  folder"]
        lines += [
            f"{i:<6} {one.at:<12} {one.until or 'the end':<12} {'-' if one.us is None else f'{one.us:.1f}':>8} "
            f"{one.bytes:>9}  {one.folder}"
            for i, one in enumerate(self.slices, 1)
        ]
        times = [one.us for one in self.slices if one.us is not None]
        lines += ["", f"the whole: {self.whole_us:.1f} µs on {self.machine}"]
        if len(times) == len(self.slices):
            lines.append(
                f"pipelined: a window every {max(times):.1f} µs, {self.whole_us / max(times):.2f} times as many"
            )
        for place, tables in self.config().items():
            name = "the board, which has the whole and runs slice 1" if place == "board" else f"the worker of {place}"
            lines += ["", f"# {name}"]
            for table, keys in tables.items():
                # A string of JSON is one of TOML.
                lines += [f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
        return "\n".join(lines)


def measured(source: str, seconds: float) -> Profile:
    """Return the profile of a bundle on this machine; see `agent.app.profile`.

    Raises:
        ModelContractError, InferenceError: it cannot be cut here.
    """
    config = Config(telemetry=TelemetrySettings(power="none"))
    (found,) = profile([source], config, seconds).profiles
    return read_profile(json.dumps(found.as_dict()).encode())


def read(path: Path) -> Profile:
    """Return the profile in a file of `har-agent profile`.

    Raises:
        InputError: it is none.
        OSError: it cannot be read.
    """
    try:
        return read_profile(path.read_bytes())
    except InputError as e:
        raise InputError(f"{path}: {e}") from e


def balanced(found: Profile, parts: int, usable: Sequence[str]) -> list[str]:
    """Return the cuts that make as many parts, so that the slowest one is as fast as can be.

    A part takes the sum of its segments, less what being run once more costs for each but one. Of equal ones, see
    `CLOSE`, that which sends the fewest bytes over all cuts. Exact, by dynamic programming. `usable`: cuts that may be
    used.

    Raises:
        InputError: there are not as many cuts.
    """
    last = len(found.segments_us)
    ends = [0, *(k for k, name in enumerate(found.cuts, 1) if name in usable), last]
    if parts >= len(ends):
        raise InputError(f"{found.bundle} can be cut into {len(ends) - 1} parts at most, not {parts}")
    us = {(a, b): found.run_us(a, b) for a in ends for b in ends if a < b}
    slowest = {0: 0.0}
    for _ in range(parts):
        slowest = {b: min(max(t, us[a, b]) for a, t in slowest.items() if a < b) for b in ends if min(slowest) < b}
    limit = slowest[last] * (1 + CLOSE)
    ways: dict[int, tuple[int, float, tuple[int, ...]]] = {0: (0, 0.0, ())}
    for _ in range(parts):
        ways = {
            b: min(
                (sent + (found.border_bytes[b] if b < last else 0), max(worst, us[a, b]), (*way, b))
                for a, (sent, worst, way) in ways.items()
                if us.get((a, b), math.inf) <= limit
            )
            for b in ends
            if any(us.get((a, b), math.inf) <= limit for a in ways)
        }
    return [found.cuts[k - 1] for k in ways[last][2][:-1]]


def slice_bundle(
    bundle: Bundle, profiled: Callable[[], Profile], out: Path, parts: int | None = None, at: Sequence[str] = ()
) -> Sliced:
    """Cut a bundle into `parts`, or `at` these tensors, and write each as a bundle into a folder of its own in `out`.

    `profiled`: is asked for the profile when there is nothing left to refuse without it, since it takes its time.

    Raises:
        InputError: the profile is of another bundle, it cannot be cut like that, or a folder holds something else.
        ModelContractError: it cannot be split, or its slices do not give together what the whole gives.
        OSError: a folder cannot be written.
    """
    name = bundle.manifest.name
    if bundle.manifest.segment:
        raise InputError(f"{bundle.id} is a part of a network already: cut the whole, {bundle.manifest.segment.of}")
    count = parts or len(at) + 1
    folders = [out / f"{name}-{i}-of-{count}" for i in range(1, count + 1)]
    for folder in folders:
        _refuse_foreign(folder, name)
    whole = open_parts(bundle)
    usable = [cut.name for cut in whole.cuts[1:]]
    if list(at) != [cut for cut in usable if cut in at]:
        raise InputError(f"{bundle.id} can be cut here at {', '.join(usable)}, in this order, not at {', '.join(at)}")
    found = profiled()
    if found.bundle != bundle.id:
        raise InputError(
            f"the profile is of {found.bundle}, not of {bundle.id}: measure this one with har-agent profile"
        )
    cuts = list(at) or balanced(found, count, usable)
    made = [
        (folder, segment(bundle, whole, begin, until, folder.name, i, count))
        for i, (folder, (begin, until)) in enumerate(zip(folders, pairwise([WINDOW, *cuts, ""]), strict=True), 1)
    ]
    slices = []
    for folder, one in made:
        bundles.write(one, folder)
        slices.append(_described(folder, one, whole, found))
    return Sliced(bundle.id, found.machine, found.whole_us, tuple(slices))


def segment(bundle: Bundle, whole: Parts, at: str, until: str, name: str, number: int, count: int) -> Bundle:
    """Return the part of a network from one tensor to another as a bundle, in memory.

    Its golden vectors are what the whole makes of its own, and the part must give them bit by bit.

    Raises:
        ModelContractError: it does not.
    """
    takes = bundle.manifest.normalisation.apply(read_golden(bundle).window)
    gives = whole.run(WINDOW, until, takes)
    if at != WINDOW:
        takes = np.asarray(whole.run(WINDOW, at, takes))
    names = [cut.name for cut in whole.cuts]
    inside = tuple(
        one
        for one in whole.exits
        if names.index(at) < names.index(one.at) <= (names.index(until) if until else len(names))
    )
    given: dict[str, Any]
    if isinstance(gives, Scores):
        given = {"logits": gives.logits, "code": gives.code, "novelty": gives.novelty}
    else:
        given = {"gives": gives}
    packed = io.BytesIO()
    np.savez_compressed(packed, takes=takes, **given)
    facts = {"name": name, "of": bundle.id, "at": at, "number": number, "count": count}
    contents = {
        SEGMENT: whole.part(at, until),
        **{one.file: bundle.contents[one.file] for one in inside},
        "golden.npz": packed.getvalue(),
        "CARD.md": _CARD.format(**facts, until=f"`{until}`" if until else "the end").encode(),
    }
    manifest = bundle.manifest._replace(
        name=name,
        created=bundles.created(),
        files={file: FileEntry(sha256(data), len(data)) for file, data in contents.items()},
        training={},
        metrics={},
        context=None,
        exits=inside,
        segment=Segment(bundle.id, bundle.digest, at, until),
    )
    made = Bundle(manifest, sha256(dump(manifest)), contents)
    alone = Parts(made).run(at, until, takes)
    pairs = zip(alone, gives, strict=True) if isinstance(gives, Scores) else [(alone, gives)]
    if any(np.asarray(a).tobytes() != np.asarray(b).tobytes() for a, b in pairs):
        raise ModelContractError(
            f"from {at} to {until or 'the end'} ONNX Runtime computes something else here than in the whole: choose "
            "other cuts with --at"
        )
    return made


def _described(folder: Path, one: Bundle, whole: Parts, found: Profile) -> Slice:
    part = one.manifest.segment
    assert part is not None  # it was made as one
    tensors = [*found.tensors, ""]
    known = part.at in tensors and part.until in tensors
    first, end = (tensors.index(part.at), tensors.index(part.until)) if known else (0, 0)
    answer = found.output_bytes + found.code_bytes
    sent = next((cut.bytes for cut in whole.cuts if cut.name == part.until), answer)
    return Slice(
        folder,
        part.at,
        part.until,
        sent,
        round(found.run_us(first, end), 3) if known else None,
        (first, end) if known else None,
        tuple(way.name for way in one.manifest.exits),
    )


def _refuse_foreign(folder: Path, name: str) -> None:
    """Write over slices of the same model, and over nothing else."""
    if " " in str(folder):
        raise InputError(f"{folder} has a space in its name, which [worker] bundles could not name")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        with (folder / MANIFEST).open("rb") as f:
            there = parse(f.read(MANIFEST_CAP)).segment
    except (OSError, ModelContractError):
        there = None
    if there is None or there.of.partition("@")[0] != name:
        raise InputError(f"{folder} is there already, and is no slice of {name}: name another folder, or remove it")
