"""`har-agent bench`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from agent.cli._print import out, say
from agent.errors import UsageError


def bench(
    bundles: Annotated[
        list[str] | None, typer.Argument(help="With --choose: at least two, by name, folder or .harmodel file.")
    ] = None,
    choose: Annotated[
        bool,
        typer.Option(
            "--choose",
            help="Instead, measure bundles with the same labels and input, such as one in int8 and one in float, and "
            "print the one to use on this machine: the fastest at cadence, or the first of those within 5 % of it.",
        ),
    ] = False,
    model: Annotated[str | None, typer.Option(help="A bundle's folder, or the name of one that ships.")] = None,
    seconds: Annotated[
        float,
        typer.Option(
            min=0.1, max=60, help="Time for each comparison; with --choose, for each bundle, hot and at cadence."
        ),
    ] = 2.0,
    config: Annotated[Path | None, typer.Option(help="Configuration file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure the pipeline against bare ONNX Runtime on this machine, side by side.

    Example: har-agent bench --seconds 5

    Example: har-agent bench --choose har-base har-base-float
    """
    from agent.app.bench import bench as run
    from agent.app.bench import choose as fastest
    from agent.app.compose import load_config
    from agent.cli._table import table

    if choose:
        if model is not None or config is not None:
            raise UsageError("--choose takes the bundles after it, not --model or --config")
        choice = fastest(bundles or [], seconds)
        if as_json:
            out(json.dumps(choice.as_dict()))
            return
        say(table([vars(contender) for contender in choice.bundles]))
        out(choice.chosen)
        return
    if bundles:
        raise UsageError(f"to measure {bundles[0]}, give it to --model; to choose between bundles, give --choose")
    settings = load_config(config, {"model.bundle": model})
    result = run(settings, seconds, lambda what: say(f"measuring {what} …"))
    if as_json:
        out(json.dumps(result.as_dict()))
        return
    out(f"{result.model} on {', '.join(f'{k} {v}' for k, v in result.machine.items())}\n")
    out(table([vars(f) for f in result.figures]))
