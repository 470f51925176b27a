"""`har-agent bench`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from agent.cli._print import out, say


def bench(
    model: Annotated[str | None, typer.Option(help="A bundle's folder, or the name of one that ships.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, max=60, help="Time for each comparison.")] = 2.0,
    config: Annotated[Path | None, typer.Option(help="Configuration file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure the pipeline against bare ONNX Runtime on this machine, side by side.

    Example: har-agent bench --seconds 5
    """
    from agent.app.bench import bench as run
    from agent.app.compose import load_config
    from agent.cli._table import table

    settings = load_config(config, {"model.bundle": model})
    result = run(settings, seconds, lambda what: say(f"measuring {what} …"))
    if as_json:
        out(json.dumps(result.as_dict()))
        return
    out(f"{result.model} on {', '.join(f'{k} {v}' for k, v in result.machine.items())}\n")
    out(table([vars(f) for f in result.figures]))
