"""`har-agent status`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli._exit import Exit, end_on_sigterm
from agent.cli._options import finite
from agent.cli._print import out

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
            help="Wait so long for ok, with a window predicted, every source and a broker there; exit 1 if not.",
        ),
    ] = None,
    release: Annotated[
        str | None, typer.Option(metavar="ID", help="It must run this release, 0.2.0+1a2b3c4d; exit 1 if not.")
    ] = None,
    tolerate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CODE",
            help="A reason of health that --wait-healthy does not mind, such as clock_unsynced; with no_source, it "
            "waits for no window either. May be given several times.",
        ),
    ] = None,
    broker: Annotated[
        str | None,
        typer.Option(help="Ask this broker instead: mqtt://host:port, or the name of a configured one."),
    ] = None,
    agent: Annotated[
        str | None, typer.Option(metavar="NAME", help="With --broker: the agent to ask for; this board's if not given.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Configuration file.")] = None,
) -> None:
    """Show what the agent on this board, or one that a broker knows, says of itself, and what to do about it.

    Exit 0 if it runs and is ok or degraded, 1 if it fails, hangs or does not run, 69 if the broker cannot be asked.

    Example: har-agent status --wait-healthy 60
    """
    from agent.app.compose import load_config
    from agent.app.status import codes, read_status
    from agent.app.status import wait_healthy as wait

    if agent is not None and broker is None:
        raise typer.BadParameter("--agent goes with --broker: without it, the agent on this board is asked")
    if tolerate and wait_healthy is None:
        raise typer.BadParameter("--tolerate goes with --wait-healthy")
    tolerated = codes(tolerate or ())
    loaded = load_config(config, {})
    end_on_sigterm()

    def found_by(look: "Callable[[], AgentStatus]") -> "AgentStatus":
        def asked() -> "AgentStatus":
            return look().of_release(release)

        return asked() if wait_healthy is None else wait(asked, wait_healthy, tolerated)

    if broker is None:
        found = found_by(lambda: read_status(loaded))
    else:
        # Only here: what this board says of itself needs no client of MQTT.
        from agent.app.broker_status import BrokerStatus

        with BrokerStatus(loaded, broker, agent or "", wait_healthy) as asking:
            found = found_by(asking.look)
    lacking = found.lacks(tolerated) if wait_healthy is not None else []
    out(json.dumps(found.as_dict(tolerated)) if as_json else _view(found, lacking))
    if found.state == "unreachable":
        raise typer.Exit(Exit.UNAVAILABLE)
    if not found.is_up if wait_healthy is None else lacking:
        raise typer.Exit(Exit.NO)


def _view(found: "AgentStatus", lacking: "Sequence[str]" = ()) -> str:
    """Return it for people. `lacking`: why it is not as healthy as was waited for."""
    said = found.said
    rows = [(_text(said.get("agent")) or "har-agent", found.state + (f": {found.problem}" if found.problem else ""))]
    rows += [row for row in _rows(said) if row[1]]
    lines = [f"{name:<11} {value}" for name, value in rows]
    if found.state in ("ok", "degraded", "failing"):
        lines += [f"{'waits for' if not k else '':<12}{why}" for k, why in enumerate(lacking)]
    for reason in found.reasons if found.state not in ("stopped", "absent", "offline") else ():
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
    elif said.get("broker"):
        broker = _text(said.get("broker"))
    sources = said.get("sources")
    process = [
        f"version {_text(said.get('version'))}" if said.get("version") else "",
        f"release {_text(said.get('release'))}" if said.get("release") else "",
        f"pid {said['pid']}" if isinstance(said.get("pid"), int) else "",
        f"since {_text(said.get('started'))}" if said.get("started") else "",
        f"written {_text(said.get('updated'))}" if said.get("updated") else "",
    ]
    work = [
        _figure(telemetry, "streams", "streams {:.0f}"),
        _figure(said, "windows", "windows {:.0f}") or _figure(telemetry, "windows", "windows {:.0f}"),
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
        ("cloud", _cloud(_part(telemetry, "cloud"))),
        ("split", _split(_part(telemetry, "split"))),
        ("gap", _gap(_part(_part(said, "health"), "coverage_gap"))),
        ("outbox", _figure(outbox, "depth", "{:.0f} messages")),
        ("board", ", ".join(filter(None, board))),
    ]


def _gap(gap: dict[str, Any]) -> str:
    """What no window covers since the run before."""
    if not gap:
        return ""
    most = "" if gap.get("orderly") is True else "at most "
    parts = [
        most + (_figure(gap, "seconds", "{:.2f} s") or "?") + f" without a window since {_text(gap.get('previous'))}",
        _figure(gap, "windows", "{:.1f} windows long"),
        _figure(gap, "devices", "the longest of {:.0f} devices") if gap.get("devices") != 1 else "",
        _figure(gap, "absent", "{:.0f} are not back") if gap.get("absent") else "",
    ]
    return ", ".join(filter(None, parts))


def _cloud(cloud: dict[str, Any]) -> str:
    """What became of windows in doubt, where any may be asked about."""
    rtt = _part(cloud, "rtt_ms")
    parts = [
        _figure(cloud, "asked", "asked {:.0f}"),
        _figure(cloud, "answered", "answered {:.0f}"),
        _figure(cloud, "timed_out", "timed out {:.0f}") if cloud.get("timed_out") else "",
        _figure(rtt, "p50", "p50 {:.0f} ms"),
        _figure(rtt, "p95", "p95 {:.0f} ms"),
        f"breaker {_text(cloud.get('breaker'))}" if cloud.get("breaker") else "",
    ]
    return ", ".join(filter(None, parts))


def _split(split: dict[str, Any]) -> str:
    """Where the network is cut, and what others ran of it, where it is run in parts."""
    rtt = _part(split, "rtt_ms")
    windows = _part(split, "windows")
    not_asked = _part(split, "not_asked")
    by_exit = [f"{_text(name)} {_figure(windows, name, '{:.0f}')}" for name in windows]
    parts = [
        f"cut {_text(split.get('cut'))}" if split.get("cut") else "",
        f"windows {', '.join(by_exit)}" if by_exit else "",
        _figure(split, "away", "away {:.0f}"),
        _figure(split, "timed_out", "timed out {:.0f}") if split.get("timed_out") else "",
        *(f"not asked {_figure(not_asked, reason, '{:.0f}')} ({_text(reason)})" for reason in not_asked),
        _figure(rtt, "p50", "p50 {:.0f} ms"),
        _figure(rtt, "p95", "p95 {:.0f} ms"),
        f"breaker {_text(split.get('breaker'))}" if split.get("breaker") else "",
    ]
    return ", ".join(filter(None, parts))


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
