"""`har-agent status`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli._exit import Exit, end_on_sigterm
from agent.cli._options import finite
from agent.cli._print import out

if TYPE_CHECKING:
    from agent.app.status import AgentStatus

_LONGEST = 100


def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    wait_healthy: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=86400,
            callback=finite,
            metavar="SECONDS",
            help="Wait so long for ok, with every source and a broker there; exit 1 if not.",
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Configuration file.")] = None,
) -> None:
    """Show what the agent on this board says of itself, and what to do about it.

    Exit 0 if it runs and is ok or degraded, 1 if it fails, hangs or does not run.

    Example: har-agent status --wait-healthy 60
    """
    from agent.app.compose import load_config
    from agent.app.status import read_status
    from agent.app.status import wait_healthy as wait

    loaded = load_config(config, {})
    end_on_sigterm()
    found = read_status(loaded) if wait_healthy is None else wait(loaded, wait_healthy)
    out(json.dumps(found.as_dict()) if as_json else _view(found))
    if not (found.is_up if wait_healthy is None else found.is_healthy):
        raise typer.Exit(Exit.NO)


def _view(found: "AgentStatus") -> str:
    said = found.said
    rows = [(_text(said.get("agent")) or "har-agent", found.state + (f": {found.problem}" if found.problem else ""))]
    rows += [row for row in _rows(said) if row[1]]
    lines = [f"{name:<12}{value}" for name, value in rows]
    for reason in found.reasons if found.state not in ("stopped", "absent") else ():
        since = "" if reason["since_s"] is None else f", since {_duration(reason['since_s'])}"
        lines += ["", f"{reason['code']}{since}: {reason['text']}"]
        if reason["remedy"]:
            lines.append(f"  do: {reason['remedy']}")
    return "\n".join(lines)


def _rows(said: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and value of what is there to be shown; empty values where it is not."""
    telemetry, link = _part(said, "telemetry"), _part(said, "link")
    total, power = _part(_part(telemetry, "latency_ms"), "total"), _part(telemetry, "power")
    outbox = _part(said, "outbox") or _part(telemetry, "outbox")
    broker = ""
    if link:
        broker = _text(link.get("broker")) + (", connected" if link.get("connected") is True else ", away")
        broker += f": {_text(link.get('problem'))}" if link.get("problem") else ""
    sources = said.get("sources")
    process = [
        f"version {_text(said.get('version'))}" if said.get("version") else "",
        f"pid {said['pid']}" if isinstance(said.get("pid"), int) else "",
        f"since {_text(said.get('started'))}" if said.get("started") else "",
        f"written {_text(said.get('updated'))}" if said.get("updated") else "",
    ]
    work = [
        _figure(telemetry, "streams", "streams {:.0f}"),
        _figure(telemetry, "windows", "windows {:.0f}"),
        _figure(telemetry, "windows_per_s", "{:.2f}/s"),
    ]
    board = [
        _figure(telemetry, "temperature_c", "{:.0f} °C"),
        _figure(power, "watts", "{:.2f} W") + (f" ({_text(power.get('source'))})" if power.get("watts") else ""),
        _figure(telemetry, "rss_bytes", "{:.0f} MiB resident", 2**-20),
    ]
    latency = ", ".join(filter(None, (_figure(total, q, q + " {:.1f} ms") for q in ("p50", "p99", "max"))))
    return [
        ("process", ", ".join(filter(None, process))),
        ("model", _text(said.get("model"))),
        *(("source", _source(s)) for s in (sources if isinstance(sources, list) else ())),
        ("broker", broker),
        ("work", ", ".join(filter(None, work))),
        ("latency", latency),
        ("outbox", _figure(outbox, "depth", "{:.0f} messages")),
        ("board", ", ".join(filter(None, board))),
    ]


def _source(source: Any) -> str:
    """One source, which is a name or says more."""
    if isinstance(source, dict):
        known = ("name", "kind", "port", "state")
        named = [_text(source.get(key)) for key in known if source.get(key)]
        problem = f": {_text(source.get('problem'))}" if source.get("problem") else ""
        return " ".join(named) + problem
    return _text(source)


def _text(value: Any) -> str:
    from agent.core.fleet import text

    return text(value, _LONGEST) or ""


def _figure(part: dict[str, Any], key: str, how: str, factor: float = 1.0) -> str:
    from agent.core.fleet import number

    value = number(part.get(key))
    return "" if value is None else how.format(value * factor)


def _part(said: dict[str, Any], key: str) -> dict[str, Any]:
    part = said.get(key)
    return part if isinstance(part, dict) else {}


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
