"""`har-agent watch`."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli._exit import Exit
from agent.cli._options import finite
from agent.cli._print import out, say
from agent.cli._stopping import Stopping

if TYPE_CHECKING:
    from agent.app.watch import Watch

_FRAME_S = 0.25


def watch(
    devices: Annotated[list[str] | None, typer.Argument(help="Only these devices; all of them if not given.")] = None,
    broker: Annotated[
        list[str] | None,
        typer.Option(help="mqtt://host:port, or the name of a configured broker; may be given several times."),
    ] = None,
    root: Annotated[str | None, typer.Option(help="First level of the topics.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Print what is known after --seconds, and end.")] = False,
    seconds: Annotated[float, typer.Option(callback=finite, min=0.1, max=3600, help="How long --once listens.")] = 3.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a line, for each change; with --once, one in all.")
    ] = False,
    config: Annotated[Path | None, typer.Option(help="Configuration file.")] = None,
) -> None:
    """Show live what agents publish: activities, confidence, rate, latency, health.

    Exit 1 if nothing was heard with --once.

    Example: har-agent watch --broker mqtt://gateway:1883 waist-07
    """
    from agent.app.compose import load_config
    from agent.app.watch import Watch

    if not (once or as_json) and (sys.stdout is None or not sys.stdout.isatty()):
        raise typer.BadParameter("standard output is no terminal: add --json for lines, or --once for one table")
    loaded = load_config(config, {"mqtt.root": root})
    watching = Watch(loaded, broker or (), devices or ())
    with Stopping() as stopping, watching:
        if once:
            _once(watching, seconds, stopping, as_json=as_json)
        elif as_json:
            while not stopping():
                _lines(watching)
        else:
            _live(watching, stopping)


def _once(watching: "Watch", seconds: float, stopping: Stopping, *, as_json: bool) -> None:
    end_ns = watching.now_ns() + round(seconds * 1e9)
    while not stopping() and (left_s := (end_ns - watching.now_ns()) / 1e9) > 0:
        watching.update(min(left_s, _FRAME_S))
    fleet, now_ns = watching.fleet, watching.now_ns()
    if as_json:
        found = {
            "v": 1,
            "agents": [a.as_dict(now_ns) for a in fleet.agents.values()],
            "devices": [d.as_dict(now_ns) for d in fleet.devices.values()],
        }
        out(json.dumps(found))
    else:
        from rich.console import Console

        from agent.cli._watch_view import frame

        console = Console(markup=False, emoji=False, highlight=False)
        with console.capture() as captured:
            console.print(frame(fleet, now_ns, console.width, None, watching.problems(), watching.overflowed))
        out(captured.get().rstrip("\n"))
    if not fleet.devices and not fleet.agents:
        say(f"har-agent: nothing was heard within {seconds:g} s: is an agent running, with this broker and root?")
        raise typer.Exit(Exit.NO)


def _lines(watching: "Watch") -> None:
    from agent.core.wire import iso_time

    # One at a time, since each line is what is known at that message.
    for what in watching.update(_FRAME_S, most=1):
        out(json.dumps({"v": 1, "time": iso_time(watching.wall_ns()), **what.as_dict(watching.now_ns())}))


def _live(watching: "Watch", stopping: Stopping) -> None:
    from rich.console import Console
    from rich.live import Live

    from agent.cli._watch_view import frame

    console = Console(markup=False, emoji=False, highlight=False)
    with Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
        while not stopping():
            # The console asks for the terminal's size at every frame.
            width, height = console.size
            shown = frame(watching.fleet, watching.now_ns(), width, height, watching.problems(), watching.overflowed)
            live.update(shown, refresh=True)
            watching.update(_FRAME_S)
