"""`har-agent check`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli._exit import Exit, end_on_sigterm
from agent.cli._options import finite
from agent.cli._print import out, say
from agent.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.app.check import Finding


def check(
    config: Annotated[Path | None, typer.Option(help="Configuration file.")] = None,
    connect: Annotated[
        bool, typer.Option("--connect", help="Open the serial ports and connect to the brokers, too.")
    ] = False,
    port: Annotated[
        list[str] | None, typer.Option(help="With --connect: another serial port to look at; may be repeated.")
    ] = None,
    seconds: Annotated[
        float,
        typer.Option(callback=finite, min=0.5, max=600, help="With --connect: how long to listen to each source."),
    ] = 3.0,
    show: Annotated[
        bool, typer.Option("--print", help="Only print the configuration, and where each value came from.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Look for what would keep the agent from working, and say what to do about it.

    Nothing is connected or changed without --connect. With it, every configured port is read with its settings
    and every broker gets a test message, <root>/<agent>/check; for a port that cannot be read, or is not configured
    yet, the usual speeds and formats are tried, and a section for the configuration is suggested. A running agent is
    not disturbed.

    Exit 0 if there is no error, 1 if there is one; warnings are none.

    Example: har-agent check --connect --port /dev/ttyUSB0
    """
    from agent.app.check import check_board, effective, effective_toml, read_config

    if show and (connect or port):
        raise UsageError("--print only prints the configuration: use it without --connect and --port")
    if port and not connect:
        raise UsageError("--port is looked at with --connect")
    end_on_sigterm()
    loaded, findings = read_config(config)
    if show and loaded is not None:
        out(json.dumps(effective(loaded)) if as_json else effective_toml(loaded))
        return
    if not show:
        findings += check_board(loaded.config if loaded is not None else None)
    if connect and loaded is not None:
        from agent.app.check_connect import check_connections

        findings += check_connections(loaded.config, seconds, port or (), tell=say)
    out(_json(findings) if as_json else view(findings))
    if any(f.state == "error" for f in findings):
        raise typer.Exit(Exit.NO)


def _json(findings: "Sequence[Finding]") -> str:
    return json.dumps({**_counts(findings), "findings": [f._asdict() for f in findings]})


def view(findings: "Sequence[Finding]") -> str:
    """Return findings for people: a line each, what to do under it, and how many are wrong."""
    wide = max((len(f.id) for f in findings), default=0)
    lines = []
    for f in findings:
        lines.append(f"{f.state:<8} {f.id:<{wide}}  {f.text}")
        if f.fix:
            lines.append(f"{'':<8} {'':<{wide}}  {'do: ' if f.state != 'ok' else ''}{f.fix}")
        lines += [f"    {line}" for line in ("", *f.section.splitlines(), "")] if f.section else []
    counts = _counts(findings)
    lines.append(f"{counts['errors']} errors, {counts['warnings']} warnings")
    return "\n".join(line.rstrip() for line in lines)


def _counts(findings: "Sequence[Finding]") -> dict[str, int]:
    states = [f.state for f in findings]
    return {"errors": states.count("error"), "warnings": states.count("warning")}
