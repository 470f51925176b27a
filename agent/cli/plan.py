"""`har-agent plan`."""

import json
from collections.abc import Mapping
from typing import Annotated

import typer

from agent.cli._exit import Exit
from agent.cli._options import finite
from agent.cli._print import out


def plan(
    profiles: Annotated[
        list[str],
        typer.Argument(help="What har-agent profile wrote on the device, and on each place after it; or one for all."),
    ],
    rtt_ms: Annotated[
        list[float],
        typer.Option(min=0, help="Round trip to the server; twice, for an edge server and the cloud behind it."),
    ],
    mbit: Annotated[
        list[float], typer.Option(min=0, help="Bandwidth of each of these links, Mbit/s; 0 if it is gone.")
    ],
    objective: Annotated[
        str, typer.Option(help="What to make the best of: latency, energy (the device's) or accuracy.")
    ] = "latency",
    deadline_ms: Annotated[
        float | None, typer.Option(min=0, callback=finite, help="When the answer must be there; exit 1 if it cannot.")
    ] = None,
    min_accuracy: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            callback=finite,
            help="Exits of at least this accuracy may be picked; if not given, the last that can be in time.",
        ),
    ] = None,
    speed: Annotated[
        list[float] | None,
        typer.Option(help="How many times as fast as its profile a place is; once for each, the device first."),
    ] = None,
    load: Annotated[
        list[float] | None,
        typer.Option(help="The share of a place that others use, below 1; once for each, the device first."),
    ] = None,
    watts: Annotated[
        float | None,
        typer.Option(
            min=0, callback=finite, help="How much more the device takes while it computes; by its profile otherwise."
        ),
    ] = None,
    joules_per_mb: Annotated[
        float, typer.Option(min=0, callback=finite, help="What a megabyte over its link costs the device.")
    ] = 0.0,
    bandwidths: Annotated[
        bool, typer.Option("--map", help="Show what is picked at 0.1 to 100 Mbit/s of the first link, too.")
    ] = False,
    accuracies: Annotated[
        bool, typer.Option("--curve", help="Show how accurate an answer can be by which deadline, too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say where each part of a network should run: every candidate, what it would take, and which is best.

    Example: har-agent plan board.json server.json --rtt-ms 20 --mbit 10 --deadline-ms 50
    """
    from agent.app.plan import planned
    from agent.cli._table import table

    found = planned(
        profiles,
        rtt_ms,
        mbit,
        objective=objective,
        deadline_ms=deadline_ms,
        min_accuracy=min_accuracy,
        speed=speed or (),
        load=load or (),
        watts=watts,
        joules_per_mb=joules_per_mb,
        with_map=bandwidths,
        with_curve=accuracies,
    )
    if as_json:
        out(json.dumps(found.as_dict()))
    else:
        out(f"{table(found.rows())}\n\n{found.plan.why}\n\n{_config(found.config())}")
        for shown in (found.map_rows(), found.curve_rows()):
            if shown:
                out(f"\n{table(shown)}")
    if not found.plan.in_time:
        raise typer.Exit(Exit.NO)


def _config(places: Mapping[str, Mapping[str, Mapping[str, str]]]) -> str:
    """As it stands in the configuration of each place."""
    return "\n\n".join(
        "\n".join([f"[{name}]  # {place}", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())])
        for place, tables in places.items()
        for name, keys in tables.items()
    )
