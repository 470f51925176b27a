"""`har-agent simulate`."""

from typing import Annotated

import typer

from agent.cli._exit import end_on_sigterm


def simulate(
    activities: Annotated[
        str | None, typer.Option(help="Activities and their seconds: walking:20,sitting:15.", metavar="NAME:S,…")
    ] = None,
    script: Annotated[str | None, typer.Option(help="A ready-made script instead: demo.")] = None,
    out: Annotated[str, typer.Option("--out", "-o", help="A .csv or .csv.gz file; - is standard output.")] = "-",
    duration: Annotated[
        float | None,
        typer.Option(help="Seconds in all: the activities repeat, or end early. Once through if not given."),
    ] = None,
    rate_hz: Annotated[float, typer.Option(help="Samples a second, 10 to 400.")] = 50.0,
    seed: Annotated[int, typer.Option(help="Draws the person and everything else; equal seeds, equal bytes.")] = 0,
    jitter_ms: Annotated[float, typer.Option(help="Standard deviation of the time stamps.")] = 0.0,
    drop_rate: Annotated[float, typer.Option(help="Share of the samples that is missing, 0 to below 1.")] = 0.0,
    noise: Annotated[float, typer.Option(help="Noise and drift, times as recorded; 0 for none.")] = 1.0,
    device: Annotated[str, typer.Option(help="Name of the device.")] = "simulated",
    realtime: Annotated[bool, typer.Option("--realtime", help="Write samples when they are due.")] = False,
) -> None:
    """Write a recording of a simulated person, labels included.

    Example: har-agent simulate --activities walking:20,sitting:15 --seed 7 --out walk.csv.gz
    """
    from agent.app.simulate import SimulateSettings
    from agent.app.simulate import simulate as run
    from agent.core.gait import SCRIPTS, Imperfections, parse_script

    if activities is not None and script is not None:
        raise typer.BadParameter("give --activities or --script, not both")
    if activities is None and (script or "demo") not in SCRIPTS:
        raise typer.BadParameter(f"{script!r} is not one of {', '.join(SCRIPTS)}", param_hint="--script")
    try:
        steps = parse_script(activities if activities is not None else SCRIPTS[script or "demo"])
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--activities") from error
    settings = SimulateSettings(
        script=steps,
        out=out,
        duration_s=duration,
        rate_hz=rate_hz,
        seed=seed,
        device=device,
        realtime=realtime,
        imperfections=Imperfections(noise, jitter_ms / 1000, drop_rate),
    )
    end_on_sigterm()
    run(settings)
