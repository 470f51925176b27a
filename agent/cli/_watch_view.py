"""How `har-agent watch` looks: tables that fit the terminal, whatever its size. The only module that draws with Rich.

All text from outside has been cleaned by `agent.core.fleet`; it goes into `Text`, never into markup.
"""

from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from agent.core.fleet import Agent, Device, Fleet

_BARS = "▁▂▃▄▅▆▇█"
_SPARK = 20
_HEALTH = {"ok": "green", "degraded": "yellow", "failing": "bold red"}
_STATE = {"online": "green", "degraded": "yellow", "offline": "red"}
_WIDEST = 32
"""Of a column: one long name must not take the place of all the others."""
_BETWEEN = 2
_TABLE_LINES = 2
"""A table's line of names, and the empty line after it."""


def frame(
    fleet: Fleet, now_ns: int, width: int, height: int | None, problems: Sequence[str] = (), overflowed: int = 0
) -> RenderableType:
    """Return everything within `height` lines, or all of it if that is None; columns that `width` has no room for go.

    Of more devices than fit, those heard last are shown; they stand in the order of their names, so that lines stay.
    """
    agents = sorted(fleet.agents.values(), key=lambda a: (a.health in (None, "ok"), a.name))
    for_agents = None if height is None else max(height // 3, _TABLE_LINES + 1)
    shown = _fitting(agents, for_agents)
    lines = sum(map(_lines, shown)) + (len(agents) > len(shown)) + (_TABLE_LINES if agents else 0)
    room = None if height is None else max(height - lines - _TABLE_LINES - 2 - len(problems), 1)
    latest = list(reversed(fleet.devices.values()))
    devices = sorted(latest[:room], key=lambda d: d.name)
    parts: list[RenderableType] = []
    if agents:
        parts.append(_agents(shown, now_ns, width))
        parts += [_note(f"  {a.name}: {code}: {text}", "yellow") for a in shown for code, text in a.reasons]
        if len(agents) > len(shown):
            parts.append(_note(f"and {len(agents) - len(shown)} more agents"))
        parts.append(Text())
    if devices:
        parts.append(_devices(devices, now_ns, width))
    if len(latest) > len(devices):
        online = sum(d.availability == "online" for d in latest)
        parts.append(_note(f"and {len(latest) - len(devices)} more devices; {online} in all say online"))
    parts += [_note(f"! {problem}", "red") for problem in problems]
    parts.append(_footer(fleet, now_ns, overflowed))
    return Group(*parts)


def spark(device: Device, width: int = _SPARK) -> str:
    """Return the last confidences as bars; a dot for a window that the model did not know."""
    top = len(_BARS) - 1
    return "".join(_BARS[round(w.confidence * top)] if w.known else "·" for w in list(device.history)[-width:])


def _fitting(agents: Sequence[Agent], room: int | None) -> list[Agent]:
    shown: list[Agent] = []
    used = _TABLE_LINES
    for agent in agents:
        used += _lines(agent)
        if shown and room is not None and used > room:
            break
        shown.append(agent)
    return shown


def _lines(agent: Agent) -> int:
    return 1 + len(agent.reasons)


def _agents(agents: Sequence[Agent], now_ns: int, width: int) -> Table:
    columns = [
        _Column("agent", 0, [Text(a.name) for a in agents]),
        _Column("health", 1, [_health(a) for a in agents]),
        _Column("model", 4, [Text(a.model or "-") for a in agents]),
        _Column("power", 5, [Text(_power(a)) for a in agents]),
        _Column("temp", 3, [_temperature(a) for a in agents]),
        _Column("win/s", 7, [_figure(a.windows_per_s, "{:.1f}") for a in agents], right=True),
        _Column("outbox", 6, [_figure(a.outbox_depth, "{:.0f}") for a in agents], right=True),
        _Column("age", 2, [_age(a.age_s(now_ns)) for a in agents], right=True),
    ]
    return _table(columns, width)


def _devices(devices: Sequence[Device], now_ns: int, width: int) -> Table:
    rates = [d.windows_per_s(now_ns) if d.windows else None for d in devices]
    columns = [
        _Column("device", 0, [Text(d.name) for d in devices]),
        _Column("state", 4, [Text(d.availability or "-", _STATE.get(d.availability or "", "")) for d in devices]),
        _Column("activity", 1, [_activity(d) for d in devices]),
        _Column("conf", 2, [_figure(d.confidence, "{:.0%}") for d in devices], right=True),
        _Column("last windows", 5, [Text(spark(d)) for d in devices]),
        _Column("win/s", 7, [_figure(rate, "{:.2f}") for rate in rates], right=True),
        _Column("latency", 6, [_figure(d.latency_ms, "{:.1f} ms") for d in devices], right=True),
        _Column("novelty", 8, [_novelty(d) for d in devices], right=True),
        _Column("age", 3, [_age(d.age_s(now_ns)) for d in devices], right=True),
        _Column("", 9, [_remarks(d) for d in devices]),
    ]
    return _table(columns, width)


class _Column(NamedTuple):
    """`rank`: the higher, the sooner it is left out of a narrow terminal."""

    name: str
    rank: int
    cells: Sequence[Text]
    right: bool = False

    @property
    def width(self) -> int:
        return min(max(len(self.name), *(cell.cell_len for cell in self.cells)), _WIDEST)


def _table(columns: Sequence[_Column], width: int) -> Table:
    """Return the columns that fit, the most important first, in their own order."""
    shown: list[_Column] = []
    left = width
    for column in sorted((c for c in columns if c.name or any(c.cells)), key=lambda c: c.rank):
        left -= column.width + _BETWEEN
        if shown and left + _BETWEEN < 0:
            break
        shown.append(column)
    table = Table(box=None, pad_edge=False, padding=(0, _BETWEEN, 0, 0), header_style="dim")
    kept = [c for c in columns if c in shown]
    for c in kept:
        table.add_column(
            c.name, justify="right" if c.right else "left", no_wrap=True, overflow="ellipsis", max_width=_WIDEST
        )
    for cells in zip(*(c.cells for c in kept), strict=True):
        table.add_row(*cells)
    return table


def _power(a: Agent) -> str:
    if a.watts is None:
        return "-"
    off = "" if a.power_error_pct is None else f" ±{a.power_error_pct:.0f}%"
    return f"{a.watts:.2f} W ({a.power_source or '?'}{off})"


def _health(a: Agent) -> Text:
    if a.state == "offline":
        return Text("offline", _STATE["offline"])
    return Text(a.health or "-", _HEALTH.get(a.health or "", ""))


def _temperature(a: Agent) -> Text:
    if a.temperature_c is None:
        return Text("throttled" if a.throttled else "-")
    return Text(f"{a.temperature_c:.0f} °C{'!' if a.throttled else ''}", "yellow" if a.throttled else "")


def _activity(d: Device) -> Text:
    return Text(d.activity or "-", "bold" if d.known and d.activity != "unknown" else "yellow")


def _novelty(d: Device) -> Text:
    return _figure(d.novelty, "{:.2g}", "") if d.known else _figure(d.novelty, "{:.2g}!", "yellow")


def _remarks(d: Device) -> Text:
    remarks = [d.reason] if d.reason else []
    remarks += ["stored earlier"] if d.historical else []
    remarks += [f"{d.late} late"] if d.late else []
    return Text(", ".join(remarks), "dim")


def _figure(value: float | None, how: str, style: str = "") -> Text:
    return Text("-" if value is None else how.format(value), style=style)


def _age(seconds: float | None) -> Text:
    if seconds is None:
        return Text("-")
    if seconds < 100:
        return Text(f"{seconds:.0f} s")
    return Text(f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h")


def _footer(fleet: Fleet, now_ns: int, overflowed: int) -> Text:
    rate = sum(d.windows_per_s(now_ns) for d in fleet.devices.values())
    parts = [f"{len(fleet.devices)} devices, {len(fleet.agents)} agents, {rate:.1f} windows/s"]
    counts = (
        (fleet.repeats, "repeats dropped"),
        (fleet.unreadable, "messages that are none"),
        (fleet.forgotten, "forgotten"),
        (overflowed, "came too fast"),
    )
    parts += [f"{n} {what}" for n, what in counts if n]
    return _note(" · ".join(parts))


def _note(text: str, style: str = "dim") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")
