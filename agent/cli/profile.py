"""`har-agent profile`."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli._options import finite
from agent.cli._print import out, say

if TYPE_CHECKING:
    from agent.app.profile import Profile
    from agent.core.layers import Layer

_ROOM = 24
"""For the layers of a segment, so that a row fits into 80 columns."""


def profile(
    bundles: Annotated[list[str], typer.Argument(help="What to measure: bundles by name, folder or .harmodel file.")],
    predict: Annotated[
        str | None,
        typer.Option(help="A bundle that is not timed: its times are predicted from those of the measured ones."),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option("--out", help="Write the profile to this file, for har-agent plan; with --predict, that one."),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option(
            min=0.1, max=600, callback=finite, help="Time for each bundle, in place and once more back to back."
        ),
    ] = 3.0,
    config: Annotated[Path | None, typer.Option(help="Configuration file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure what the parts of a bundle's network cost here, between the points where it can be cut.

    With several bundles, also how well each is predicted from the others.

    Example: har-agent profile har-base --out profile.json
    """
    from agent.app.compose import load_config
    from agent.app.profile import profile as run
    from agent.cli._table import table

    settings = load_config(config, {})
    report = run(bundles, settings, seconds, predict, to, lambda name: say(f"measuring {name} …"))
    if as_json:
        out(json.dumps(report.as_dict()))
        return
    shown = [*report.profiles, *([report.predicted] if report.predicted else [])]
    for found in shown:
        out(f"{_headline(found)}\n\n{table(_rows(found))}\n\n{_summary(found)}\n")
    if report.left_out:
        errors = [
            {
                "predicted from the others": e.bundle,
                "segments off by %": None if e.segments is None else 100 * e.segments,
                "whole off by %": None if e.whole is None else 100 * e.whole,
                "none of the others has": ", ".join(e.unknown) or "-",
            }
            for e in report.left_out
        ]
        out(table(errors))


def _headline(found: "Profile") -> str:
    how = "measured" if found.measured else "predicted, not measured"
    return f"{found.bundle}, {how}, on {found.machine['cpu']} ({found.machine['arch']})"


def _rows(found: "Profile") -> list[dict[str, object]]:
    ends = [(cut.name, cut.bytes) for cut in found.cuts] + [("end", found.output_bytes)]
    return [
        {
            "up to": name,
            "bytes": size,
            "layers": _layers(segment.layers),
            "MAC": sum(layer.macs for layer in segment.layers),
            "µs": segment.us,
            "p95": segment.us_p95,
            "hot": segment.hot_us,
            "µJ": None if segment.joules is None else 1e6 * segment.joules,
        }
        for (name, size), segment in zip(ends, found.segments, strict=True)
    ]


def _layers(layers: "Sequence[Layer]") -> str:
    """The operators that compute most, then those that are many, as far as there is room; and how many more there are.

    What ONNX Runtime calls its own kinds of an operator is left out: QLinearConv and FusedConv are Conv.
    """
    counts, macs = Counter[str](), Counter[str]()
    for layer in layers:
        name = re.sub("^(QLinear|Q(?=[A-Z])|Nhwc|Fused)|Linear$", "", layer.op)
        counts[name] += 1
        macs[name] += layer.macs
    told, left = "", len(layers)
    for name in sorted(counts, key=lambda name: (-macs[name], -counts[name])):
        longer = f"{told}{', ' if told else ''}{f'{counts[name]} ' if counts[name] > 1 else ''}{name}"
        more = left - counts[name]
        if told and len(longer) + len(f" +{more}") * bool(more) > _ROOM:
            break
        told, left = longer, more
    return f"{told} +{left}" if left else told


def _summary(found: "Profile") -> str:
    hot = "" if found.whole_hot_us is None else f", {found.whole_hot_us:.1f} µs hot"
    lines = [
        f"exit {early.name}: after {found.cuts[early.after - 1].name}, its head {early.us:.1f} µs"
        + ("" if early.accuracy is None else f", accuracy {early.accuracy:.4g}")
        for early in found.exits[:-1]
    ]
    lines += [
        f"the whole: {found.whole_us:.1f} µs{hot}, from {found.input_bytes} bytes",
        f"each run more: {found.fixed_us:.1f} µs, which is in each of the segments",
    ]
    if "novelty" not in found.ends:
        lines.append("novelty is not in it: no graph of it can be one with the others, so [split] takes no such bundle")
    if found.watts is None:
        return "\n".join([*lines, "energy: this machine has no power meter that can be read"])
    watts = found.watts
    error = "" if watts.error_pct is None else f", off by up to {watts.error_pct:g} %"
    return "\n".join([*lines, f"energy: {watts.busy:.2f} W busy, {watts.idle:.2f} W idle, by {watts.source}{error}"])
